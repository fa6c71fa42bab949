"""Figures as they come: each is written down at once, and one that fails leaves the others."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click


@dataclass(slots=True)
class Report:
    """What was measured so far.

    Args:
        path: where it is kept as JSON; None keeps it in memory alone.
        values: by name; a list holds one figure for each case.
        failed: why figures are missing, by name.
    """

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, figure: Callable[[], Any], case: str = "") -> None:
        """Take a figure, which joins the others of its name where that has a list, and write all down."""
        started_s = time.perf_counter()
        title = f"{name} {case}".rstrip()
        try:
            value = figure()
        except Exception as error:
            self.failed[title] = f"{type(error).__name__}: {error}"
            click.echo(traceback.format_exc(), err=True)
        else:
            kept = self.values.get(name)
            if isinstance(kept, list):
                kept.append(value)
            else:
                self.values[name] = value
        click.echo(f"{title}: took {time.perf_counter() - started_s:.1f} s", err=True)
        if self.path is not None:
            self.path.write_text(self.as_json() + "\n")

    def as_json(self) -> str:
        """Return all of it."""
        return json.dumps(self.values | {"failed": self.failed}, indent=2)
