"""A chooser that knows what earlier starts measured on such a device, and tells later ones."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stoker_runtime.model.cuda import choice_file
from stoker_runtime.model.cuda.choices import summary
from stoker_runtime.model.cuda.chooser import Chooser
from stoker_runtime.model.cuda.stopwatch import stopwatch_on

logger = logging.getLogger(__name__)


@contextmanager
def remembered(device: torch.device) -> Iterator[Chooser]:
    """Yield a chooser; what it measured is kept afterwards, the memory given back, a line is logged."""
    started_s = time.monotonic()
    machine, folder = choice_file.machine_of(device), choice_file.default_folder(os.environ)
    path = None if folder is None else choice_file.file_of(folder, machine)
    known = () if path is None else choice_file.read(path, machine)
    with stopwatch_on(device) as stopwatch:
        chooser = Chooser(stopwatch, known)
        yield chooser
    if path is None:
        logger.warning("there is neither a home nor an XDG_CACHE_HOME: each start measures kernels again")
    elif chooser.measured:
        choice_file.write(path, machine, chooser.measured)
    logger.info(
        "chose kernels in %.1f s: %s", time.monotonic() - started_s, summary(chooser.decisions, chooser.known)
    )
