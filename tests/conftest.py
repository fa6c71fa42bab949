"""What all tests share: how hard hypothesis tries, where kernels run, how many threads PyTorch has."""

import os
import re

import pytest
from hypothesis import settings

# Processes of tests run side by side. Two threads in each would wait for each other, busily, for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test` is thorough, `make test-fast` gives --hypothesis-profile=fast.
# On CI the examples are the same each time, so that a run fails for what was changed and nothing else.
settings.register_profile("thorough", max_examples=150, deadline=None, derandomize="CI" in os.environ)
settings.register_profile("fast", max_examples=20, deadline=None)
settings.load_profile("thorough")


def pytest_configure(config: pytest.Config) -> None:
    """Choose Triton's interpreter unless the run is `-m gpu` or a part of it; kernels look once."""
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr")):
        os.environ["TRITON_INTERPRET"] = "1"
