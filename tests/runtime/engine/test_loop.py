import socket
import threading
import time

import pytest
from engine_builders import DEADLINE_S, engine_in_thread
from runtime_builders import FakeRunner, make_engine_config, make_request

from stoker_runtime.core.step import StepPlan
from stoker_runtime.engine.connection import Connection
from stoker_runtime.messages import AbortRequest, FinishReason, Shutdown, encode_frame


def test_ready_comes_first_then_one_frame_per_step() -> None:
    runner = FakeRunner()
    with engine_in_thread(runner) as (peer, _):
        assert peer.read_ready() == runner.ready()
        peer.send(make_request(request_id="a", max_tokens=3))
        steps = [peer.read_step() for _ in range(3)]
    assert [[output.request_id for output in step.outputs] for step in steps] == [["a"]] * 3
    assert [step.stats.num_steps for step in steps] == [1, 2, 3]
    assert steps[-1].outputs[0].finish_reason is FinishReason.LENGTH
    assert (steps[-1].stats.num_running, steps[-1].stats.kv_usage) == (0, 0.0)


def test_request_joins_a_running_batch() -> None:
    entered = threading.Event()
    proceed = threading.Event()

    def hold_second_step(plan: StepPlan) -> None:
        if len(runner.plans) == 2:
            entered.set()
            assert proceed.wait(DEADLINE_S)

    runner = FakeRunner(on_step=hold_second_step)
    with engine_in_thread(runner) as (peer, _):
        peer.read_ready()
        peer.send(make_request([5, 6], request_id="a", max_tokens=6))
        assert entered.wait(DEADLINE_S)
        peer.send(make_request([7, 8], request_id="b", max_tokens=2))
        proceed.set()
        outputs = peer.read_to_end("a", "b")
    assert [len(plan.requests) for plan in runner.plans] == [1, 1, 2, 2, 1, 1]
    assert (len(outputs["a"]), len(outputs["b"])) == (6, 2)


def test_it_rests_behind_a_step_that_a_prompt_drew_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[int] = []
    sent = threading.Event()
    runner = FakeRunner(on_step=lambda plan: _hold_second_step(runner, sent))
    monkeypatch.setattr("stoker_runtime.engine.loop.time.sleep", lambda _: rests.append(len(runner.plans)))
    with engine_in_thread(runner, make_engine_config(max_num_batched_tokens=8, max_num_seqs=4)) as (peer, _):
        peer.read_ready()
        peer.send(make_request([5], request_id="a", max_tokens=8))
        peer.send(make_request(num_prompt_tokens=20, request_id="b", max_tokens=1))
        sent.set()
        peer.read_to_end("a", "b")
    mixed = [
        index
        for index, plan in enumerate(runner.plans, start=1)
        if sorted(len(item.token_ids) > 1 for item in plan.requests) == [False, True]
    ]
    assert mixed
    assert rests == mixed


def test_abort_is_answered_and_frees_blocks_within_a_step() -> None:
    sent = threading.Event()
    runner = FakeRunner()
    runner.on_step = lambda plan: _hold_second_step(runner, sent)
    with engine_in_thread(runner) as (peer, _):
        peer.read_ready()
        peer.send(make_request(request_id="a", max_tokens=200))
        peer.read_until(lambda step: bool(step.outputs))
        peer.send(AbortRequest(request_id="a"))
        sent.set()
        *_, last = peer.read_until(
            lambda step: any(o.finish_reason is FinishReason.ABORT for o in step.outputs)
        )
    assert last.stats.kv_usage == 0.0
    assert last.stats.num_running == 0
    assert len(runner.plans) <= 2


def _hold_second_step(runner: FakeRunner, until: threading.Event) -> None:
    if len(runner.plans) == 2:
        assert until.wait(DEADLINE_S)


def test_idle_engine_beats_and_sleeps_in_between() -> None:
    with engine_in_thread() as (peer, _):
        peer.read_ready()
        start_s, start_cpu_s = time.monotonic(), time.process_time()
        beats = [peer.read_step() for _ in range(2)]
        elapsed_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    assert [beat.outputs for beat in beats] == [[], []]
    assert 1.5 < elapsed_s < 10
    assert cpu_s < 0.2, "an idle engine must not poll"


def test_idle_engine_is_woken_by_a_request() -> None:
    with engine_in_thread(heartbeat_s=3600) as (peer, _):
        peer.read_ready()
        for request_id in "ab":
            peer.send(make_request(request_id=request_id, max_tokens=1))
            assert peer.read_step().outputs


def test_shutdown_aborts_what_runs_and_ends_with_status_0() -> None:
    sent = threading.Event()
    runner = FakeRunner()
    runner.on_step = lambda plan: _hold_second_step(runner, sent)
    with engine_in_thread(runner) as (peer, statuses):
        peer.read_ready()
        peer.send(make_request(request_id="a", max_tokens=200))
        peer.read_until(lambda step: bool(step.outputs))
        peer.send(Shutdown())
        sent.set()
        outputs = peer.read_to_end("a")
        assert outputs["a"][-1].finish_reason is FinishReason.ABORT
        assert peer.read() is None
    assert statuses == [0]


def test_closed_socket_ends_the_engine() -> None:
    with engine_in_thread() as (peer, statuses):
        peer.read_ready()
        peer.send(make_request(max_tokens=100))
    assert statuses == [0]


def test_slow_reader_loses_nothing_and_stops_the_steps() -> None:
    num_requests, num_tokens = 8, 400
    runner = FakeRunner(num_blocks=2000, max_model_len=500)
    with engine_in_thread(runner, max_outbox_bytes=1) as (peer, _):
        peer.read_ready()
        ids = [f"r{number}" for number in range(num_requests)]
        requests = [
            make_request([n + 1, 5], request_id=name, max_tokens=num_tokens, logprobs=20)
            for n, name in enumerate(ids)
        ]
        peer.send(*requests)
        stalled_at = _step_count_when_stalled(runner)
        assert stalled_at < num_tokens
        outputs = peer.read_to_end(*ids)
    assert {
        name: sum(len(output.token_ids) for output in got) for name, got in outputs.items()
    } == dict.fromkeys(ids, num_tokens)
    assert all(len(output.logprobs) == 1 for got in outputs.values() for output in got)


def _step_count_when_stalled(runner: FakeRunner) -> int:
    """Wait until no step was taken for a while, because the socket is full and nobody reads."""
    deadline_s = time.monotonic() + DEADLINE_S
    never = threading.Event()
    while time.monotonic() < deadline_s:
        before = len(runner.plans)
        never.wait(0.3)
        if before and len(runner.plans) == before:
            return before
    raise AssertionError("the engine went on although nobody reads")


def test_commands_split_at_any_byte_are_put_together() -> None:
    with engine_in_thread() as (peer, _):
        peer.read_ready()
        frames = encode_frame(make_request(request_id="a", max_tokens=1))
        frames += encode_frame(make_request(request_id="b", max_tokens=1))
        for start in range(0, len(frames), 3):
            peer.sock.sendall(frames[start : start + 3])
        assert set(peer.read_to_end("a", "b")) == {"a", "b"}


def test_prompt_larger_than_the_socket_buffer_arrives_whole() -> None:
    runner = FakeRunner(num_blocks=60_000, vocab_size=100_000, max_model_len=250_000)
    config = make_engine_config(max_num_batched_tokens=200_000)
    with engine_in_thread(runner, config) as (peer, _):
        peer.read_ready()
        peer.send(make_request([70_000] * 180_000, request_id="a", max_tokens=1))
        peer.read_to_end("a")
    assert runner.plans[0].num_tokens == 180_000


def test_garbage_from_the_server_is_fatal_and_said() -> None:
    with engine_in_thread() as (peer, statuses):
        peer.read_ready()
        peer.sock.sendall(b"\x03\x00\x00\x00abc")
        failed = peer.read_failed()
        assert peer.read() is None
    assert failed.reason == "EngineCrashed"
    assert statuses == [1]


def test_connection_notices_that_the_server_left_while_it_writes() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(theirs)
        ours.close()
        connection.send(FakeRunner().ready())
        assert not connection.is_open
