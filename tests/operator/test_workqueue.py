import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import pytest
from virtual_time import pass_time, run_virtual, until

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


def test_resync_adds_every_key_again() -> None:
    handler = Recorder()

    async def scenario(queue: WorkQueue[str]) -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(queue.resync(lambda: ["a", "b"], 10.0))
            await pass_time(25.0)
            task.cancel()

    drive(handler, scenario)
    assert [key for _, key in handler.passes] == ["a", "b", "a", "b"]


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
