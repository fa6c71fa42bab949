"""`python -m stoker_runtime.engine --socket PATH --config JSON`: the server starts this, people need not."""

from __future__ import annotations

import gc
import sys

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import Runner
from stoker_runtime.engine.process import main


def _load_runner(config: EngineConfig) -> Runner:
    # Imported here, because torch takes seconds and OpenMP reads its environment at import.
    from stoker_runtime.model.loader import load_runner

    # 170,000 objects that stay: the collection at the end of the load would take 0.1 s for them.
    gc.freeze()
    return load_runner(config)


if __name__ == "__main__":
    sys.exit(main(_load_runner))
