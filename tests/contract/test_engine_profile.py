"""The operator's engine profile against the runtime itself: here the two packages meet in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from server_engine import listening, make_server_config, running_stack

from stoker_operator.api import ModelDeployment, labels, parse
from stoker_operator.cluster.inflight import HttpInFlightReader
from stoker_operator.profiles import STOKER, EngineContainer, EngineProfile, MountedModel, fetch_args
from stoker_operator.reconcile.readings import Readings
from stoker_runtime import __main__ as runtime
from stoker_runtime import termination
from stoker_runtime.config import QUANTIZATIONS, EngineConfig, ServerConfig
from stoker_runtime.errors import ConfigError, ModelError

REPOSITORY = Path(__file__).resolve().parents[2]
IN_PLACE = MountedModel("/model")


def modeldeployment(**spec: Any) -> ModelDeployment:
    return parse(
        {
            "apiVersion": "stoker.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": 1},
            "spec": {"model": {"source": "hf://org/name@v1"}} | spec,
        }
    )


def container(model: ModelDeployment, mounted: MountedModel = IN_PLACE) -> EngineContainer:
    return STOKER.container(model, mounted)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what the runtime's own command line makes of container arguments; unknown flags raise."""
    command = runtime.cli.commands[arguments[0]]
    context = command.make_context(arguments[0], list(arguments[1:]))
    return context.params


def configured(options: dict[str, Any]) -> tuple[ServerConfig, EngineConfig]:
    """Return the settings that the runtime derives, as `serve` does."""
    options.pop("revision")
    return runtime.configs(options.pop("model"), options.pop("log_level"), options)


FULL_ENGINE = {
    "dtype": "bfloat16",
    "quantization": "int8",
    "kvCacheDtype": "fp8",
    "speculative": "ngram",
    "maxModelLen": 4096,
    "maxNumSeqs": 32,
    "maxNumBatchedTokens": 512,
    "memoryFraction": "0.85",
}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"engine": FULL_ENGINE}, id="every-engine-field"),
        pytest.param({"accelerator": {"perPod": 0}}, id="cpu"),
        pytest.param({"accelerator": {"resource": "nvidia.com/gpu", "perPod": 1}}, id="gpu"),
        pytest.param({"pod": {"terminationGracePeriodSeconds": 600}}, id="long-grace"),
    ],
)
def test_runtime_takes_the_arguments_of_serving(spec: dict[str, Any]) -> None:
    served = container(modeldeployment(**spec))
    options = parsed(served.args)
    server, engine = runtime.configs(
        options.pop("model"), options.pop("log_level"), options | {"revision": None}
    )
    assert engine.model == "/model"
    assert server.served_model_names == ("m",)
    assert server.port == served.ports[labels.HTTP_PORT] == STOKER.load.port


def test_engine_fields_reach_the_engine() -> None:
    arguments = container(modeldeployment(engine=FULL_ENGINE, accelerator={"perPod": 0})).args
    options = parsed(arguments)
    _, engine = configured(options)
    assert (engine.dtype, engine.device) == ("bfloat16", "cpu")
    assert (engine.quantization, engine.speculative) == ("int8", "ngram")
    assert engine.kv_cache_dtype == "fp8"
    assert (engine.max_model_len, engine.max_num_seqs, engine.max_num_batched_tokens) == (4096, 32, 512)
    assert engine.memory_fraction == pytest.approx(0.85)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_quantization_can_be_asked_for(quantization: str) -> None:
    spec = modeldeployment(engine={"quantization": quantization}, accelerator={"perPod": 0})
    _, engine = configured(parsed(container(spec).args))
    assert engine.quantization == quantization


def test_shutdown_fits_into_the_grace_period() -> None:
    model = modeldeployment(pod={"terminationGracePeriodSeconds": 120})
    options = parsed(container(model).args)
    assert options["shutdown_delay_s"] + options["drain_timeout_s"] < 120


def test_runtime_takes_the_arguments_of_fetching() -> None:
    options = parsed(fetch_args(modeldeployment(), "/cache"))
    assert options["source"] == "hf://org/name@v1"
    assert options["destination"] == Path("/cache")


def test_operator_reads_what_a_failing_runtime_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setenv("STOKER_TERMINATION_LOG", str(log))
    error = ModelError("no such model", reason="ModelNotFound")
    termination.report(termination.reason_of(error), str(error))
    cause = STOKER.read_termination(log.read_text())
    assert cause is not None
    assert (cause.reason, cause.message) == ("ModelNotFound", "no such model")


def test_configuration_errors_have_the_reason_the_operator_knows() -> None:
    assert termination.reason_of(ConfigError("x")) == "InvalidConfig"


def test_in_flight_answer_is_understood() -> None:
    assert STOKER.load.read(json.dumps({"in_flight": 3, "draining": False}).encode()) == 3


def test_variables_of_the_engine_are_settings_of_the_runtime(tmp_path: Path) -> None:
    model = modeldeployment()
    mounted = MountedModel(model.spec.model.source, str(tmp_path))
    served = container(model, mounted)
    assert STOKER.load.drain is not None
    variables = {variable["name"]: variable.get("value", "uid-1") for variable in served.env}
    assert variables == {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        STOKER.load.drain.key_variable: "uid-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        server, engine = configured(parsed(served.args))
    assert server.drain_key == "uid-1"
    assert engine.model == model.spec.model.source


async def test_operator_tells_the_runtime_to_drain_and_reads_its_answer() -> None:
    pod = {"metadata": {"uid": "uid-1"}, "status": {"podIP": "127.0.0.1"}}
    async with running_stack(config=make_server_config(drain_key="uid-1")) as stack, listening(stack) as url:
        profile = replace(STOKER, load=replace(STOKER.load, port=int(url.rpartition(":")[2])))
        reader = HttpInFlightReader(answer_within_s=10)
        try:
            other = {**pod, "metadata": {"uid": "another pod, which had the address before"}}
            assert await first_reading(reader, other, profile) == 0
            assert not stack.serving.is_draining
            assert await first_reading(reader, pod, profile) == 0
            assert stack.serving.is_draining
        finally:
            await reader.close()


async def first_reading(
    reader: HttpInFlightReader, pod: dict[str, Any], profile: EngineProfile
) -> int | None:
    """Return what a pod says the first time it is asked."""
    is_read = asyncio.Event()
    readings = Readings(
        reader, lambda: datetime.now(UTC), lambda *_: is_read.set(), profile_of=lambda _: profile
    )
    readings.ask(("n", "m"), {"x": pod})
    task = asyncio.create_task(readings.run())
    try:
        async with asyncio.timeout(30):
            await is_read.wait()
    finally:
        task.cancel()
    return readings.of(("n", "m"))["x"].num_in_flight


def test_paths_the_operator_probes_exist() -> None:
    from stoker_runtime.server import app as server_app

    source = Path(server_app.__file__).read_text()
    served = container(modeldeployment())
    assert STOKER.load.drain is not None
    probes = (served.startup.path, served.readiness.path, served.liveness.path)
    for path in (*probes, STOKER.load.path, STOKER.load.drain.path):
        assert f'"{path}"' in source
