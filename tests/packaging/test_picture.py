"""README's picture shows what was recorded, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import product
import record
from record import Shown


def test_the_picture_is_drawn_from_what_was_recorded() -> None:
    """After a new version of rich: `.venv/bin/python e2e/record.py --draw`."""
    assert record.draw(record.load()) == record.PICTURE.read_text()


def test_what_was_recorded_went_well() -> None:
    watched, answer = record.load()[1], record.load()[-1]
    assert re.search(r"^smollm2 +False ", watched.output, re.MULTILINE)
    assert re.match(r"smollm2 +True +", watched.output.splitlines()[-1])
    assert answer.output.count(" ") > 10


def test_a_picture_is_well_formed_and_needs_no_network() -> None:
    svg = record.draw([Shown("echo '<&>'", "<&>"), Shown("true", "")])
    ElementTree.fromstring(svg)
    assert "@font-face" not in svg
    assert re.findall(r"(?:url\(|href=)[\"']?https?:", svg) == []
    assert svg == record.draw([Shown("echo '<&>'", "<&>"), Shown("true", "")])


def test_readme_shows_it() -> None:
    path = record.PICTURE.relative_to(product.REPOSITORY)
    assert re.search(rf"!\[[^\]]+\]\({path}\)", (product.REPOSITORY / "README.md").read_text())
