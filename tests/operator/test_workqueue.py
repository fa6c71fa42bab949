import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import pass_time, run_virtual, until

from stoker_operator.lanes import Priority
from stoker_operator.retry import Backoff, RetryLater
from stoker_operator.workqueue import WorkQueue

Handler = Callable[[str], Awaitable[float | None]]


class Recorder:
    """A handler that notes its passes and does as told."""

    def __init__(self, duration_s: float = 0.0) -> None:
        self.passes: list[tuple[float, str]] = []
        self.answers: list[float | Exception | None] = []
        self.running = 0
        self.most_at_once: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._duration_s = duration_s

    async def __call__(self, key: str) -> float | None:
        self.passes.append((round(asyncio.get_running_loop().time(), 3), key))
        self._now[key] = self._now.get(key, 0) + 1
        self.most_at_once[key] = max(self.most_at_once.get(key, 0), self._now[key])
        await pass_time(self._duration_s)
        self._now[key] -= 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


def drive(handler: Handler, scenario: Callable[[WorkQueue[str]], Awaitable[None]], workers: int = 2) -> None:
    """Run a scenario against a queue with workers."""

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue(Backoff(first_s=1.0, max_s=8.0, jitter=0.0), random.Random(0))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(queue.work(handler)) for _ in range(workers)]
            await scenario(queue)
            queue.close()
            for task in tasks:
                task.cancel()

    run_virtual(main())


def test_many_adds_of_one_key_are_one_pass() -> None:
    handler = Recorder()

    async def scenario(queue: WorkQueue[str]) -> None:
        for _ in range(50):
            queue.add("a")
        assert len(queue) == 1
        await until(lambda: queue.is_idle)

    drive(handler, scenario)
    assert [key for _, key in handler.passes] == ["a"]


def test_adds_during_a_pass_make_exactly_one_more_and_never_overlap() -> None:
    handler = Recorder(duration_s=1.0)

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await pass_time(0.5)
        for _ in range(50):
            queue.add("a")
        await until(lambda: queue.is_idle)

    drive(handler, scenario)
    assert handler.passes == [(0.0, "a"), (1.0, "a")]
    assert handler.most_at_once == {"a": 1}


def test_different_keys_run_side_by_side() -> None:
    handler = Recorder(duration_s=1.0)

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_all(["a", "b", "c"])
        await until(lambda: queue.is_idle)

    drive(handler, scenario)
    assert handler.passes == [(0.0, "a"), (0.0, "b"), (1.0, "c")]


def test_failures_back_off_and_success_resets(caplog: pytest.LogCaptureFixture) -> None:
    handler = Recorder()
    handler.answers = [
        ValueError("one"),
        ValueError("two"),
        ValueError("three"),
        None,
        ValueError("four"),
        None,
    ]

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await until(lambda: len(handler.passes) == 4)
        assert queue.num_failures("a") == 0
        queue.add("a")
        await until(lambda: len(handler.passes) == 6)

    with caplog.at_level(logging.ERROR):
        drive(handler, scenario)
    gaps = [
        round(later[0] - sooner[0]) for sooner, later in zip(handler.passes, handler.passes[1:], strict=False)
    ]
    assert gaps[:3] == [1, 2, 4]
    assert gaps[4] == 1
    assert sum(record.exc_info is not None for record in caplog.records) == 4


def test_backoff_is_capped() -> None:
    backoff = Backoff(first_s=1.0, max_s=8.0, jitter=0.5)
    assert backoff.delay_s(1000, 0.0) == 8.0
    assert backoff.delay_s(2, 0.5) == 1.5


def test_retry_after_of_the_server_is_honoured() -> None:
    class Busy(RetryLater):
        retry_after_s = 20.0

    handler = Recorder()
    handler.answers = [Busy("busy")]

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await until(lambda: len(handler.passes) == 2)

    drive(handler, scenario)
    assert handler.passes == [(0.0, "a"), (20.0, "a")]


def test_the_earliest_of_several_delays_counts_and_a_pass_clears_them() -> None:
    handler = Recorder()

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 30.0)
        queue.add_after("a", 10.0)
        queue.add_after("a", 20.0)
        assert queue.num_delayed == 1
        await pass_time(5.0)
        queue.add("a")
        await until(lambda: queue.is_idle)
        assert queue.num_delayed == 0
        queue.add_after("b", 0.0)
        await pass_time(60.0)

    drive(handler, scenario)
    assert handler.passes == [(5.0, "a"), (5.05, "b")]


def test_a_pass_may_ask_to_come_back() -> None:
    handler = Recorder()
    handler.answers = [3.0, None]

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await pass_time(60.0)

    drive(handler, scenario)
    assert handler.passes == [(0.0, "a"), (3.0, "a")]


def resynced(period_s: float, run_s: float, keys: Callable[[], list[str]]) -> list[tuple[float, str]]:
    """Passes of a queue that is only resynced."""
    handler = Recorder()

    async def scenario(queue: WorkQueue[str]) -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(queue.resync(keys, period_s))
            await pass_time(run_s)
            task.cancel()

    drive(handler, scenario)
    return handler.passes


def test_resync_adds_every_key_again_spread_over_the_period() -> None:
    passes = resynced(10.0, 22.0, lambda: ["a", "b"])
    assert passes == [(5.0, "a"), (10.0, "b"), (15.0, "a"), (20.0, "b")]


def test_resync_of_nothing_waits_for_a_period() -> None:
    asked: list[int] = []

    def keys() -> list[str]:
        asked.append(1)
        return []

    assert resynced(10.0, 35.0, keys) == []
    assert len(asked) == 4


@given(changes=st.lists(st.tuples(st.sets(st.sampled_from("abcdefgh")), st.floats(0.5, 60.0)), max_size=8))
def test_resync_leaves_out_no_key_for_two_periods_and_has_no_bursts(
    changes: list[tuple[set[str], float]],
) -> None:
    there: dict[str, float] = {}
    missed: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        last_at: dict[str, float] = {}
        num_at: dict[float, int] = {}

        class Noting(WorkQueue[str]):
            def add(self, key: str, priority: Priority = Priority.HIGH) -> None:
                assert priority is Priority.LOW
                last_at[key] = loop.time()
                num_at[loop.time()] = num_at.get(loop.time(), 0) + 1

        task = asyncio.create_task(Noting().resync(lambda: sorted(there), 10.0))
        for keys, stays_s in changes:
            there.update({key: there.get(key, loop.time()) for key in keys})
            for key in there.keys() - keys:
                del there[key]
            await pass_time(stays_s)
            missed.extend(
                key
                for key, since in there.items()
                if loop.time() - max(since, last_at.get(key, since)) > 20.001
            )
        task.cancel()
        assert max(num_at.values(), default=0) <= 1

    run_virtual(main())
    assert missed == []


def test_what_happens_goes_before_what_is_only_looked_at_again() -> None:
    handler = Recorder(duration_s=1.0)

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_all(["a", "b", "c", "d"], Priority.LOW)
        queue.add("c")
        queue.add("e")
        await pass_time(0.5)
        queue.add("e", Priority.LOW)
        queue.add("e")
        await until(lambda: queue.is_idle)

    drive(handler, scenario, workers=1)
    assert [key for _, key in handler.passes] == ["c", "e", "a", "b", "d"]


def test_a_key_that_runs_comes_back_with_the_highest_priority_that_was_asked() -> None:
    handler = Recorder(duration_s=1.0)

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("x")
        await pass_time(0.5)
        queue.add_all(["a", "b"], Priority.LOW)
        queue.add("x", Priority.LOW)
        queue.add("x")
        queue.add("x", Priority.LOW)
        await until(lambda: queue.is_idle)

    drive(handler, scenario, workers=1)
    assert [key for _, key in handler.passes] == ["x", "x", "a", "b"]


@given(
    adds=st.lists(
        st.tuples(st.floats(0.0, 5.0), st.sampled_from("abcdef"), st.sampled_from(Priority), st.booleans()),
        max_size=60,
    ),
    num_workers=st.integers(1, 4),
)
def test_each_request_is_followed_by_a_pass_and_none_runs_twice_at_once(
    adds: list[tuple[float, str, Priority, bool]], num_workers: int
) -> None:
    handler = Recorder(duration_s=0.3)
    asked: list[tuple[float, str]] = []

    async def scenario(queue: WorkQueue[str]) -> None:
        for wait_s, key, priority, is_delayed in adds:
            await pass_time(wait_s)
            asked.append((round(asyncio.get_running_loop().time(), 3), key))
            if is_delayed:
                queue.add_after(key, 0.7)
            else:
                queue.add(key, priority)
        await until(lambda: queue.is_idle and not queue.num_delayed)
        assert len(queue) == 0

    drive(handler, scenario, num_workers)
    for at_s, key in asked:
        assert any(other == key and started_at >= at_s for started_at, other in handler.passes)
    assert len(handler.passes) <= len(adds)
    assert set(handler.most_at_once.values()) <= {1}


def test_passes_that_wait_for_nothing_leave_others_their_turn() -> None:
    done: list[int] = []

    async def handler(key: int) -> float | None:
        done.append(key)
        return None

    async def main() -> None:
        queue: WorkQueue[int] = WorkQueue()
        queue.add_all(range(1000))
        workers = [asyncio.create_task(queue.work(handler)) for _ in range(4)]
        turns = 0
        while len(done) < 1000:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 1000 / 4
        for worker in workers:
            worker.cancel()

    run_virtual(main())


def test_a_crash_of_the_process_is_not_swallowed() -> None:
    async def handler(key: str) -> float | None:
        raise SystemExit(key)

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        await queue.work(handler)

    with pytest.raises(SystemExit):
        run_virtual(main())


def test_observer_hears_of_every_pass() -> None:
    heard: list[tuple[float, str | None]] = []

    class Observer:
        def pass_done(self, seconds: float, error: Exception | None) -> None:
            heard.append((round(seconds, 3), str(error) if error else None))

    handler = Recorder(duration_s=0.5)
    handler.answers = [ValueError("no")]

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue(observer=Observer())
        queue.add("a")
        task = asyncio.create_task(queue.work(handler))
        await until(lambda: len(heard) == 2)
        task.cancel()

    run_virtual(main())
    assert heard == [(0.5, "no"), (0.5, None)]
