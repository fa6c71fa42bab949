"""Stoker's own engine. Flags, paths and metric names are pinned against the runtime by tests/contract."""

from __future__ import annotations

import json

from stoker_operator.api import ModelDeployment
from stoker_operator.profiles.profile import Cause, Drain, EngineProfile

SHUTDOWN_DELAY_S = 5  # new connections are still answered this long, until every node forgot the pod
EXIT_MARGIN_S = 5  # what an engine needs to end once nothing is in flight
PORT = 8000


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


def fetch_args(model: ModelDeployment, destination: str) -> list[str]:
    """Return the arguments of ``stoker-runtime`` that download the model into a folder."""
    return ["fetch", f"--source={model.spec.model.source}", f"--destination={destination}"]


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


STOKER = EngineProfile(
    name="stoker",
    port=PORT,
    serve_args=serve_args,
    fetch_args=fetch_args,
    ready_path="/ready",
    live_path="/health",
    in_flight_path="/load",
    read_in_flight=read_in_flight,
    drain=Drain(path="/drain", key_variable="STOKER_DRAIN_KEY"),
    read_termination=read_termination,
    running_metric="vllm:num_requests_running",
    waiting_metric="vllm:num_requests_waiting",
)
