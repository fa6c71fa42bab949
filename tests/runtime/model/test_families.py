"""The table of families in docs/runtime.md: each that is read, and the small models that hold it exact."""

from __future__ import annotations

import re
from pathlib import Path

from model_builders import FAMILIES, family_config

from stoker_runtime.model.checkpoint.config_json import ARCHITECTURES

DOCUMENT = Path(__file__).parents[3] / "docs" / "runtime.md"


def table() -> dict[str, set[str]]:
    """Small models by architecture, as the document says."""
    rows = re.findall(r"^\| `(\w+For\w+)` \| .* \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`([\w-]+)`", models)) for name, models in rows}


def test_the_table_has_every_architecture_that_is_read() -> None:
    assert list(table()) != []
    assert set(table()) == set(ARCHITECTURES)


def test_every_architecture_is_held_exact_on_the_models_that_the_table_names() -> None:
    by_architecture: dict[str, set[str]] = {name: set() for name in ARCHITECTURES}
    for family in FAMILIES:
        by_architecture[family_config(family)[0]].add(family)
    assert table() == by_architecture
    assert all(by_architecture.values())
