"""What `helm test` runs, against an operator and kubelets in memory; and the command itself over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner
from fakeapi import faults
from fakeapi.client import delete, everything, get, put
from fakeapi.core import FakeApi
from fakeapi.faults import Call, Fault
from fakeapi.server import FakeServer
from operator_world import Object, World, play
from virtual_time import pass_time, until

from stoker_operator import selftest
from stoker_operator.__main__ import main
from stoker_operator.api import parse
from stoker_operator.cluster.chat import ChatFailed, ChatRefused, ask
from stoker_operator.cluster.client import KubeClient
from stoker_operator.selftest import Trial, TrialFailed

TRIAL = Trial(
    name="stoker-test",
    namespace="default",
    source="oci://registry.example/smol:1",
    resources={"limits": {"memory": "2Gi"}},
    timeout_s=280.0,
)
METADATA = {"name": TRIAL.name, "namespace": TRIAL.namespace}


async def paris(url: str, model: str, question: str) -> str:
    assert url == "http://stoker-test.default.svc.cluster.local"
    assert (model, question) == (TRIAL.name, selftest.QUESTION)
    return " Paris.\n"


async def tried(world: World, lines: list[str], asker: selftest.Ask = paris) -> None:
    await selftest.run(TRIAL, KubeClient(world.api), asker, lines.append)


def played(scenario: Callable[[World, list[str]], Awaitable[None]]) -> list[str]:
    """Play a scenario; afterwards the test's ModelDeployment must be gone. Returns what was told."""
    lines: list[str] = []

    async def whole(world: World) -> None:
        await scenario(world, lines)
        assert get(world.api, "modeldeployments", TRIAL.name) is None

    play(whole)
    return lines


def test_the_model_that_is_tried_is_a_valid_one() -> None:
    metadata = {**METADATA, "uid": "u", "generation": 1}
    model = parse(selftest.manifest(TRIAL) | {"metadata": metadata})
    assert model.spec.model.source == TRIAL.source
    assert model.spec.accelerator.per_pod == 0
    assert model.spec.pod.resources is not None
    assert model.spec.pod.resources.limits == {"memory": "2Gi"}


def test_every_change_of_a_condition_and_the_answer_are_told() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        await tried(world, lines)
        await until(lambda: not world.pods(), 60.0)

    lines = played(scenario)
    texts = [line.split(" s  ", 1)[1] for line in lines]
    assert texts[0] == "serve oci://registry.example/smol:1 as default/stoker-test"
    assert any(text.startswith("Ready=False ") for text in texts)
    assert [text for text in texts if text.startswith("Ready=True Ready")]
    assert texts[-2:] == ["answer: Paris.", "deleted"]
    assert len(texts) == len(set(texts))


def test_a_model_that_stalls_fails_with_its_conditions() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        world.kubelet.is_broken = lambda pod: True
        with pytest.raises(TrialFailed, match="stalled for 60 s") as failed:
            await tried(world, lines)
        assert re.search(r"\n  Ready=False (Container|Engine)Crash", str(failed.value))
        assert "\n  Stalled=True " in str(failed.value)

    assert played(scenario)[-1].endswith("deleted")


def test_a_model_that_never_gets_ready_fails_in_time() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        world.kubelet.add_node("node-0", unschedulable=True)
        start_s = asyncio.get_running_loop().time()
        with pytest.raises(TrialFailed, match="no answer within 280 s") as failed:
            await tried(world, lines)
        assert asyncio.get_running_loop().time() - start_s < 300
        assert "\n  Ready=False " in str(failed.value)

    played(scenario)


def test_without_an_operator_it_says_so() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        world.stop()
        with pytest.raises(TrialFailed, match="is the operator up, and does it watch this namespace"):
            await tried(world, lines)

    played(scenario)


@pytest.mark.parametrize("failure", [ChatFailed("connection refused"), ChatFailed("answered 503: busy")])
def test_an_answer_that_may_still_come_is_waited_for(failure: ChatFailed) -> None:
    failures = [failure, failure]

    async def at_last(url: str, model: str, question: str) -> str:
        if failures:
            raise failures.pop()
        return "Paris"

    lines = played(lambda world, lines: tried(world, lines, at_last))
    assert sum(str(failure) in line for line in lines) == 1
    assert any("answer: Paris" in line for line in lines)


def test_a_refused_question_fails_at_once() -> None:
    async def refused(url: str, model: str, question: str) -> str:
        raise ChatRefused("answered 401: no key")

    async def scenario(world: World, lines: list[str]) -> None:
        with pytest.raises(TrialFailed, match="answered 401: no key\n  Ready=True"):
            await tried(world, lines, refused)
        assert asyncio.get_running_loop().time() < 60

    played(scenario)


def test_what_an_earlier_test_left_behind_is_replaced() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        put(world.api, "modeldeployments", selftest.manifest(TRIAL))
        await world.ready(TRIAL.name)
        await tried(world, lines)

    assert any("an earlier test left" in line for line in played(scenario))


def test_a_model_of_somebody_else_is_left_alone() -> None:
    async def scenario(world: World) -> None:
        world.apply(TRIAL.name)
        lines: list[str] = []
        with pytest.raises(TrialFailed, match="is not of an earlier test: rename it"):
            await tried(world, lines)
        assert get(world.api, "modeldeployments", TRIAL.name) is not None
        assert "deleted" not in "".join(lines)

    play(scenario)


def test_a_model_that_somebody_deletes_is_told() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        world.kubelet.add_node("node-0", unschedulable=True)
        task = asyncio.create_task(tried(world, lines))
        await until(lambda: get(world.api, "modeldeployments", TRIAL.name), 5.0)
        delete(world.api, "modeldeployments", TRIAL.name)
        with pytest.raises(TrialFailed, match="somebody deleted default/stoker-test"):
            await task

    played(scenario)


def test_it_is_deleted_when_the_test_is_stopped() -> None:
    async def scenario(world: World, lines: list[str]) -> None:
        task = asyncio.create_task(tried(world, lines))
        await until(lambda: get(world.api, "modeldeployments", TRIAL.name), 5.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert played(scenario)[-1].endswith("deleted")


def test_trouble_with_the_api_server_is_waited_out() -> None:
    ours = f"/modeldeployments/{TRIAL.name}"
    times = iter(range(3))

    def injector(call: Call) -> Fault | None:
        of_test = call.path.endswith(ours) or (call.method == "POST" and "modeldeployments" in call.path)
        return Fault.SERVER_ERROR if of_test and next(times, None) is not None else None

    async def scenario(world: World, lines: list[str]) -> None:
        world.api.injector = injector
        await tried(world, lines)

    lines = played(scenario)
    assert sum("500 InternalError" in line for line in lines) == 1
    assert lines[-1].endswith("deleted")


def test_what_cannot_be_deleted_is_told_with_the_command() -> None:
    def injector(call: Call) -> Fault | None:
        return Fault.SERVER_ERROR if call.method == "DELETE" else None

    async def scenario(world: World) -> None:
        world.api.injector = injector
        lines: list[str] = []
        await tried(world, lines)
        assert "kubectl delete mdep --namespace default stoker-test" in lines[-1]
        world.api.injector = faults.no_fault
        await pass_time(1.0)

    play(scenario)


# The client of models, and the command.


@asynccontextmanager
async def chat_server(status: int, body: object) -> AsyncIterator[tuple[str, list[Object]]]:
    asked: list[Object] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def completion(content: object) -> Object:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


async def test_the_answer_is_the_text_of_a_chat_completion() -> None:
    async with chat_server(200, completion("Paris")) as (url, asked):
        assert await ask(url, "m", "Where?") == "Paris"
    assert [(body["model"], body["messages"][0]["content"]) for body in asked] == [("m", "Where?")]


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, {"error": "no key"}, ChatRefused, "answered 401: .*no key"),
        (503, {"error": "busy"}, ChatFailed, "answered 503"),
        (200, completion(" "), ChatFailed, "without text"),
        (200, completion(None), ChatFailed, "without text"),
        (200, ["no completion"], ChatFailed, "not a chat completion"),
    ],
)
async def test_anything_else_is_a_failure_that_shows_what_came(
    status: int, body: object, kind: type[ChatFailed], said: str
) -> None:
    async with chat_server(status, body) as (url, _):
        with pytest.raises(kind, match=said) as failed:
            await ask(url, "m", "Where?")
    assert type(failed.value) is kind


async def test_a_server_that_is_not_there_is_a_failure(unused_tcp_port: int) -> None:
    with pytest.raises(ChatFailed, match="ClientConnectorError"):
        await ask(f"http://127.0.0.1:{unused_tcp_port}", "m", "Where?")


@pytest.mark.parametrize("resources", ["[]", "2Gi"])
def test_resources_must_be_an_object(resources: str) -> None:
    args = ["selftest", "--name=a", "--namespace=b", "--source=oci://c", f"--resources={resources}"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert "--resources must be a JSON object" in result.output


def command(tmp_path: Path, url: str, *args: str) -> tuple[list[str], dict[str, str]]:
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    asked = ["selftest", "--name=t", "--namespace=default", f"--source={TRIAL.source}", *args]
    return [sys.executable, "-m", "stoker_operator", *asked], {
        **os.environ,
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
    }


@asynccontextmanager
async def running_command(
    api: FakeApi, server: FakeServer, tmp_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command; the block begins once its ModelDeployment is there."""
    is_made = asyncio.Event()
    api.storage.on_change(lambda change: is_made.set() if change.plural == "modeldeployments" else None)
    args, env = command(tmp_path, server.url, '--resources={"limits": {"memory": "1Gi"}}')
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*args, env=env, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(60):
            await is_made.wait()
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def report(api: FakeApi, ready: str, url: str) -> None:
    """Write a status as the operator does."""
    condition = {"type": "Ready", "status": ready, "reason": "Because", "message": "so it is"}
    status = {"url": url, "conditions": [condition]}
    put(api, "modeldeployments", {"metadata": {"name": "t", "namespace": "default"}, "status": status})


async def test_the_command_prints_the_answer_and_ends_with_0(tmp_path: Path) -> None:
    api = FakeApi()
    async with (
        FakeServer(api, token="secret").running() as server,
        chat_server(200, completion("Paris")) as (url, asked),
        running_command(api, server, tmp_path) as process,
    ):
        (made,) = everything(api, "modeldeployments")
        report(api, "True", url)
        output, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert made["spec"]["pod"]["resources"] == {"limits": {"memory": "1Gi"}}
    assert "Ready=True Because: so it is" in output.decode()
    assert "answer: Paris" in output.decode()
    assert len(asked) == 1
    assert everything(api, "modeldeployments") == []


async def test_the_command_fails_with_the_conditions(tmp_path: Path) -> None:
    api = FakeApi()
    async with (
        FakeServer(api, token="secret").running() as server,
        chat_server(403, {"error": "go away"}) as (url, _),
        running_command(api, server, tmp_path) as process,
    ):
        report(api, "True", url)
        output, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith("FAILED: ")
    assert "go away" in errors.decode()
    assert "\n  Ready=True Because: so it is" in errors.decode()
    assert output.decode().rstrip().endswith("deleted")
    assert everything(api, "modeldeployments") == []


async def test_the_command_deletes_its_model_when_it_is_told_to_stop(tmp_path: Path) -> None:
    api = FakeApi()
    async with (
        FakeServer(api, token="secret").running() as server,
        running_command(api, server, tmp_path) as process,
    ):
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode() == "stopped\n"
    assert everything(api, "modeldeployments") == []
