"""Download progress as log lines, for people who read `kubectl logs` rather than a terminal."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

LOG_EVERY_S = 5.0


class LogBar:
    """Stands in for the progress bars of the hub library and logs `downloaded_bytes` every few seconds.

    The library makes several bars of the class it is given and describes them; the one that counts bytes
    written to disk starts with "Reconstruct", the others stay silent. It reads `n`, `total`, `format_dict`.
    """

    model = ""
    total_bytes = 0  # of all files chosen, also those a former attempt brought

    def __init__(
        self,
        *_iterables: object,
        desc: str = "",
        total: float | None = None,
        initial: float = 0,
        **_look: object,
    ) -> None:
        self.desc = desc
        self.total = total
        self.n = initial
        self.format_dict: dict[str, Any] = {"rate": None}
        self._lock = threading.Lock()
        self._logged_s = time.monotonic()

    def __enter__(self) -> LogBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        """Count n more bytes; called from every download thread."""
        with self._lock:
            self.n += n or 0
            now = time.monotonic()
            if not self.desc.startswith("Reconstruct") or now - self._logged_s < LOG_EVERY_S:
                return
            self._logged_s = now
        logger.info(
            "downloading",
            extra={"model": self.model, "downloaded_bytes": int(self.n), "total_bytes": self.total_bytes},
        )

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Take a new description."""
        self.desc = desc or ""

    set_description_str = set_description

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Ignore what would stand behind a drawn bar."""

    def refresh(self) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """Release nothing."""


def progress_bar(model: str, total_bytes: int) -> type[LogBar]:
    """Return a bar class for one download.

    Args:
        model: what the log lines call the download.
        total_bytes: size of all files chosen.
    """
    return type("LogBar", (LogBar,), {"model": model, "total_bytes": total_bytes})
