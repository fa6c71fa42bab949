"""Where the kernels of this folder's tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(
    params=[pytest.param("cpu", id="interpreter"), pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)],
    scope="session",
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, for kernels in Triton's interpreter, or with `-m gpu` the CUDA device."""
    if (request.param == "cpu") != ("TRITON_INTERPRET" in os.environ):
        pytest.skip("kernels are compiled in a run with -m gpu, and interpreted in any other")
    return torch.device(request.param)


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter() -> None:
    """No kernel waits for what the interpreter looks up again at each call."""
    if "TRITON_INTERPRET" in os.environ:
        from quick_interpreter import hurry  # not above: Triton looks at the variable when it is imported

        hurry()


@pytest.fixture(autouse=True)
def quiet_overflow() -> Iterator[None]:
    """The sigmoid of a large negative number is 1 / (1 + inf), of which numpy warns."""
    with np.errstate(over="ignore"):
        yield
