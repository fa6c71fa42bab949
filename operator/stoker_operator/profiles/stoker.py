"""Stoker's own engine. Flags, paths and variables are pinned against the runtime by tests/contract."""

from __future__ import annotations

import json
from typing import Any

from stoker_operator.api import ModelDeployment, labels
from stoker_operator.profiles.container import TMP, EngineContainer, MountedModel, Probe, Scratch
from stoker_operator.profiles.profile import Cause, Drain, EngineProfile, LoadPage

SHUTDOWN_DELAY_S = 5  # new connections are still answered this long, until every node forgot the pod
EXIT_MARGIN_S = 5  # what an engine needs to end once nothing is in flight
PORT = 8000
USER_ID = 10001  # of the runtime's image, and its group's

SHARED_MEMORY = Scratch("shm", "/dev/shm", medium="Memory")  # noqa: S108  a mount point inside the pod
DRAIN = Drain(path="/drain", key_variable="STOKER_DRAIN_KEY")

# Loading may take long: weights of hundreds of GB come from a network disk. A day, then the kubelet restarts.
_STARTUP = Probe("/ready", period_s=1, failure_threshold=86_400, timeout_s=2)
_READINESS = Probe("/ready", period_s=2, failure_threshold=2, timeout_s=2)
_LIVENESS = Probe("/health", period_s=10, failure_threshold=3, timeout_s=5)


def container(model: ModelDeployment, mounted: MountedModel) -> EngineContainer:
    """Return what ``stoker-runtime`` needs to serve a model."""
    return EngineContainer(
        args=tuple(serve_args(model, mounted.path)),
        env=(*_offline(mounted), _drain_key()),
        ports={labels.HTTP_PORT: PORT},
        startup=_STARTUP,
        readiness=_READINESS,
        liveness=_LIVENESS,
        scratch=(TMP, SHARED_MEMORY),
        user_id=USER_ID,
        group_id=USER_ID,
    )


def serve_args(model: ModelDeployment, path: str) -> list[str]:
    """Return the arguments of ``stoker-runtime`` that serve the model at `path`."""
    spec = model.spec
    grace_s = spec.pod.termination_grace_period_seconds
    args = [
        "serve",
        f"--model={path}",
        f"--served-model-name={spec.model.served_name or model.name}",
        f"--port={PORT}",
        f"--device={'auto' if spec.accelerator.per_pod else 'cpu'}",
        f"--dtype={spec.engine.dtype}",
        f"--shutdown-delay-s={SHUTDOWN_DELAY_S}",
        f"--drain-timeout-s={grace_s - SHUTDOWN_DELAY_S - EXIT_MARGIN_S}",
    ]
    optional = {
        "--quantization": spec.engine.quantization,
        "--kv-cache-dtype": spec.engine.kv_cache_dtype,
        "--speculative": spec.engine.speculative,
        "--max-model-len": spec.engine.max_model_len,
        "--max-num-seqs": spec.engine.max_num_seqs,
        "--max-num-batched-tokens": spec.engine.max_num_batched_tokens,
        "--memory-fraction": spec.engine.memory_fraction,
    }
    return args + [f"{flag}={value}" for flag, value in optional.items() if value is not None]


def read_in_flight(body: bytes) -> int:
    """Read the answer of ``/load``, or of ``/drain``.

    Raises:
        ValueError: it is something else.
    """
    answer = json.loads(body)
    count = answer.get("in_flight") if isinstance(answer, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"not an answer of /load: {body[:200]!r}")
    return count


def read_termination(message: str) -> Cause | None:
    """Read the JSON line that the runtime leaves when it ends in an error.

    The kubelet falls back to the end of the log, so the line may stand anywhere, or nowhere.
    """
    for line in reversed(message.strip().splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("reason"), str):
            return Cause(value["reason"], str(value.get("message", "")))
    return None


def _offline(mounted: MountedModel) -> list[dict[str, Any]]:
    """Return what makes a downloaded model be found where it is: nothing may depend on where it came from."""
    if mounted.cache_dir is None:
        return []
    return [{"name": "HF_HOME", "value": mounted.cache_dir}, {"name": "HF_HUB_OFFLINE", "value": "1"}]


def _drain_key() -> dict[str, Any]:
    # A variable and not an argument: an older engine ignores it, and would not start with a new flag.
    uid = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}
    return {"name": DRAIN.key_variable, "valueFrom": uid}


STOKER = EngineProfile(
    name="stoker",
    container=container,
    load=LoadPage(port=PORT, path="/load", read=read_in_flight, drain=DRAIN),
    read_termination=read_termination,
)
