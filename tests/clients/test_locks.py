"""What the clients are installed from: everything pinned by its hash, and by no registry's address."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["clients", "clients-openai2"])
def test_python_packages_are_pinned_by_hash(name: str) -> None:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    pins = re.findall(r"^([A-Za-z0-9._-]+)==\S+ \\\n    --hash=sha256:", text, re.MULTILINE)
    assert len(pins) > 50
    assert pins == re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)
    assert "://" not in text
    # Linked from the environment of the tests, see the Makefile; the build for CUDA would be gigabytes.
    assert not [pin for pin in pins if pin == "torch" or pin.startswith("nvidia-")]


def test_node_packages_are_pinned_by_hash() -> None:
    text = (REPOSITORY / "tests" / "clients" / "node" / "package-lock.json").read_text()
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert '"resolved"' not in text
