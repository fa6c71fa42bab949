"""The engine process without a model: `python tests/fake_engine.py --socket PATH --config JSON`.

It is the real process around FakeRunner, for tests that need a process to talk to, to signal and to kill.
The environment sets it up: FAKE_ENGINE_STEP_S (seconds that a step takes), FAKE_ENGINE_VOCAB_SIZE,
FAKE_ENGINE_FAIL_LOAD (a ModelError reason), FAKE_ENGINE_FAIL_AT_STEP (a step number).
"""

from __future__ import annotations

import os
import sys
import threading

from runtime_builders import FakeRunner

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import StepPlan
from stoker_runtime.engine.process import main
from stoker_runtime.errors import ModelError


def load(config: EngineConfig) -> FakeRunner:
    """Make the runner that the environment describes, in place of loading config.model."""
    reason = os.environ.get("FAKE_ENGINE_FAIL_LOAD")
    if reason:
        raise ModelError(f"{config.model} cannot be loaded", reason=reason)
    step_s = float(os.environ.get("FAKE_ENGINE_STEP_S", "0"))
    fail_at = int(os.environ.get("FAKE_ENGINE_FAIL_AT_STEP", "0"))
    num_steps = 0

    def on_step(plan: StepPlan) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == fail_at:
            raise RuntimeError(f"step {num_steps} failed as asked")
        if step_s:
            threading.Event().wait(step_s)

    return FakeRunner(
        num_blocks=1024,
        block_size=config.block_size,
        vocab_size=int(os.environ.get("FAKE_ENGINE_VOCAB_SIZE", "128")),
        max_model_len=config.max_model_len or 2048,
        on_step=on_step,
    )


if __name__ == "__main__":
    sys.exit(main(load))
