import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fakeapi.client import delete, put
from fakeapi.core import FakeApi
from fakeapi.faults import AFTER, CRASHES, Call, Fault, FaultAt
from virtual_time import pass_time, run_virtual, until

from stoker_operator.cluster.client import KubeClient, Reply
from stoker_operator.cluster.resources import NODES, PODS, Resource
from stoker_operator.informer import reflector as module
from stoker_operator.informer.reflector import Reflector, Scope
from stoker_operator.informer.store import Store


class Restarts:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def watch_restarted(self, resource: Resource, reason: str) -> None:
        self.seen.append(f"{resource.plural} {reason}")


def pod(name: str, ours: bool = True, namespace: str = "default") -> dict[str, object]:
    labels = {"managed": "stoker"} if ours else {}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"metadata": metadata, "spec": {"containers": [{"name": "c"}]}}


class World:
    """A fake API, a store, and a reflector between them."""

    def __init__(
        self, namespace: str | None = None, resource: Resource = PODS, required: bool = True
    ) -> None:
        self.api = FakeApi(latency_s=0.001)
        self.store = Store()
        self.restarts = Restarts()
        scope = Scope(resource, namespace, "managed=stoker" if resource is PODS else "", required)
        self.reflector = Reflector(
            KubeClient(self.api), scope, self.store, random.Random(1), observer=self.restarts
        )

    @property
    def names(self) -> list[str]:
        return sorted(name for _, name in self.store.all_keys())

    @property
    def lists(self) -> int:
        return sum(call.method == "GET" and not call.is_watch for call in self.api.calls)

    @property
    def watches(self) -> int:
        return sum(call.is_watch for call in self.api.calls)


def follow(world: World, scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        task = asyncio.create_task(world.reflector.run())
        await scenario()
        assert not task.done(), task
        task.cancel()
        await asyncio.wait([task])

    run_virtual(main())


def test_lists_then_watches_only_what_the_selector_matches() -> None:
    world = World()
    put(world.api, "pods", pod("old"))
    put(world.api, "pods", pod("foreign", ours=False))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        assert world.names == ["old"]
        put(world.api, "pods", pod("new"))
        await until(lambda: world.names == ["new", "old"])
        put(world.api, "pods", {**pod("new"), "status": {"phase": "Running"}})
        await until(
            lambda: (world.store.get("default", "new") or {}).get("status", {}).get("phase") == "Running"
        )
        delete(world.api, "pods", "old")
        await until(lambda: world.names == ["new"])

    follow(world, scenario)
    assert (world.lists, world.watches) == (1, 1)


def test_losing_the_label_is_a_deletion_until_it_is_back() -> None:
    world = World()
    put(world.api, "pods", pod("p"))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        put(
            world.api,
            "pods",
            {"metadata": {"name": "p", "namespace": "default", "labels": {"managed": None}}},
        )
        await until(lambda: world.names == [])
        put(world.api, "pods", pod("p"))
        await until(lambda: world.names == ["p"])

    follow(world, scenario)


def test_long_lists_come_in_pages(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "PAGE_SIZE", 3)
    world = World()
    for index in range(8):
        put(world.api, "pods", pod(f"p{index}"))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        assert len(world.store) == 8

    follow(world, scenario)
    assert world.lists == 3


def test_an_expired_page_token_starts_the_list_over(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "PAGE_SIZE", 3)
    world = World()
    for index in range(5):
        put(world.api, "pods", pod(f"p{index}"))
    world.api.injector = FaultAt(1, Fault.GONE, writes=False)

    async def scenario() -> None:
        await world.reflector.synced.wait()
        assert len(world.store) == 5

    follow(world, scenario)
    assert world.lists == 4


def test_gone_lists_again_and_drops_what_vanished_meanwhile() -> None:
    world = World()
    put(world.api, "pods", pod("kept"))
    put(world.api, "pods", pod("vanished"))
    vanished: list[str] = []
    world.store.subscribe(lambda obj: vanished.append(obj["metadata"]["name"]))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        await until(lambda: world.watches == 1)
        vanished.clear()
        world.api.break_watches()
        delete(world.api, "pods", "vanished")
        world.api.storage.compact()
        await until(lambda: world.names == ["kept"])

    follow(world, scenario)
    assert vanished == ["vanished"]
    assert "pods gone" in world.restarts.seen


def test_bookmarks_keep_a_quiet_watch_from_expiring() -> None:
    world = World()

    async def scenario() -> None:
        await world.reflector.synced.wait()
        for index in range(50):
            put(world.api, "pods", pod(f"foreign{index}", ours=False))
        await pass_time(120.0)
        world.api.storage.compact()
        world.api.break_watches()
        put(world.api, "pods", pod("new"))
        await until(lambda: world.names == ["new"])

    follow(world, scenario)
    assert world.lists == 1
    assert "pods gone" not in world.restarts.seen


def test_a_watch_that_ends_on_time_goes_on_where_it_was() -> None:
    world = World()

    async def scenario() -> None:
        await world.reflector.synced.wait()
        await pass_time(1000.0)
        put(world.api, "pods", pod("new"))
        await until(lambda: world.names == ["new"])

    follow(world, scenario)
    assert world.lists == 1
    assert world.watches == 1 + world.restarts.seen.count("pods expired") >= 4


def test_failures_are_waited_out_with_growing_pauses() -> None:
    world = World()
    put(world.api, "pods", pod("p"))

    def broken(call: Call) -> Fault | None:
        return Fault.SERVER_ERROR if asyncio.get_running_loop().time() < 20.0 else None

    world.api.injector = broken

    async def scenario() -> None:
        await world.reflector.synced.wait()
        assert asyncio.get_running_loop().time() < 60.0
        assert world.names == ["p"]

    follow(world, scenario)
    assert 5 <= world.lists <= 10


def test_every_fault_of_lists_and_watches_ends_in_sync() -> None:
    for fault in set(Fault) - CRASHES - AFTER:
        for index in range(4):
            world = World()
            put(world.api, "pods", pod("p"))
            world.api.injector = FaultAt(index, fault, writes=False)

            async def scenario(world: World = world) -> None:
                await world.reflector.synced.wait()
                put(world.api, "pods", pod("q"))
                world.api.break_watches()
                await until(lambda: world.names == ["p", "q"])

            follow(world, scenario)


def test_a_server_that_ends_watches_at_once_is_not_asked_in_a_tight_loop() -> None:
    world = World()

    async def scenario() -> None:
        await world.reflector.synced.wait()
        for _ in range(100):
            world.api.break_watches()
            await pass_time(0.1)

    follow(world, scenario)
    assert world.watches < 15


def test_answers_without_a_version_are_waited_out() -> None:
    world = World()
    put(world.api, "pods", pod("p"))
    answer, lines = world.api.request, world.api.stream
    is_broken = True

    async def request(*args: Any) -> Reply:
        return Reply(200, b'{"items": []}') if is_broken else await answer(*args)

    async def stream(path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        if is_broken:
            yield b'{"type": "BOOKMARK", "object": {}}'
            return
        async with aclosing(lines(path, params)) as found:
            async for line in found:
                yield line

    world.api.request, world.api.stream = request, stream  # type: ignore[method-assign,assignment]

    async def scenario() -> None:
        nonlocal is_broken
        await pass_time(5.0)
        assert not world.reflector.synced.is_set(), "an empty answer is no empty cluster"
        is_broken = False
        await world.reflector.synced.wait()
        is_broken = True
        world.api.break_watches()
        await pass_time(5.0)
        assert world.names == ["p"]
        is_broken = False
        put(world.api, "pods", pod("q"))
        await until(lambda: world.names == ["p", "q"])

    follow(world, scenario)


def test_an_optional_scope_that_is_forbidden_counts_as_synced() -> None:
    world = World(resource=NODES, required=False)
    world.api.injector = lambda call: Fault.FORBIDDEN

    async def scenario() -> None:
        await world.reflector.synced.wait()
        assert len(world.store) == 0

    follow(world, scenario)


def test_what_may_not_be_read_any_more_is_listed_again_once_it_may() -> None:
    world = World()
    put(world.api, "pods", pod("p"))
    told: list[tuple[bool, bool]] = []
    world.reflector.subscribe(
        lambda: told.append((world.reflector.synced.is_set(), world.reflector.refusal is None))
    )

    async def scenario() -> None:
        await world.reflector.synced.wait()
        assert told == [(True, True)]
        world.api.injector = lambda call: Fault.FORBIDDEN
        world.api.break_watches()
        await until(lambda: world.reflector.refusal is not None)
        assert not world.reflector.is_current
        assert world.names == ["p"], "the last view is kept"
        delete(world.api, "pods", "p")
        put(world.api, "pods", pod("q"))
        await pass_time(120.0)
        assert world.names == ["p"]
        world.api.injector = lambda call: None
        await until(lambda: world.names == ["q"] and world.reflector.is_current, 31.0)
        assert (told[1], told[-1]) == ((True, False), (True, True))

    follow(world, scenario)


def test_follows_one_namespace_only() -> None:
    world = World(namespace="a")
    put(world.api, "pods", pod("mine", namespace="a"))
    put(world.api, "pods", pod("other", namespace="b"))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        put(world.api, "pods", pod("late", namespace="b"))
        put(world.api, "pods", pod("mine2", namespace="a"))
        await until(lambda: world.names == ["mine", "mine2"])

    follow(world, scenario)


def test_history_that_went_back_empties_the_cache_first() -> None:
    world = World()
    for index in range(5):
        put(world.api, "pods", pod(f"p{index}"))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        restored = FakeApi(latency_s=0.001)
        put(restored, "pods", pod("restored"))
        world.api.storage = restored.storage
        world.api.storage.oldest_version = 1000
        world.api.break_watches()
        await until(lambda: world.names == ["restored"])

    follow(world, scenario)


def test_list_items_get_their_kind() -> None:
    world = World()
    put(world.api, "pods", pod("p"))

    async def scenario() -> None:
        await world.reflector.synced.wait()

    follow(world, scenario)
    held = world.store.get("default", "p")
    assert held is not None
    assert (held["apiVersion"], held["kind"]) == ("v1", "Pod")


def test_a_storm_of_410_is_waited_out_and_an_event_ends_it() -> None:
    """A list that takes longer than the server remembers: every watch comes too late."""
    world = World()
    put(world.api, "pods", pod("p"))
    is_stormy = True
    world.api.injector = lambda call: Fault.GONE if call.is_watch and is_stormy else None

    async def scenario() -> None:
        nonlocal is_stormy
        await pass_time(60.0)
        assert 4 <= world.lists <= 10
        is_stormy = False
        await pass_time(60.0)
        put(world.api, "pods", pod("q"))
        await until(lambda: world.names == ["p", "q"], 1.0)
        world.api.storage.compact()
        world.api.break_watches()
        put(world.api, "pods", pod("r"))
        await until(lambda: world.names == ["p", "q", "r"], 1.0)

    follow(world, scenario)


def test_lists_that_take_long_are_no_more_than_half_of_the_time() -> None:
    world = World()
    put(world.api, "pods", pod("p"))
    lines, answer = world.api.stream, world.api.request

    async def request(*args: Any) -> Reply:
        await pass_time(8.0)
        return await answer(*args)

    async def stream(path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """One event, then the end of the history, each time."""
        async with aclosing(lines(path, {**params, "resourceVersion": "1"})) as found:
            async for line in found:
                yield line
                break
        yield b'{"type": "ERROR", "object": {"code": 410}}'

    world.api.request, world.api.stream = request, stream  # type: ignore[method-assign,assignment]

    async def scenario() -> None:
        await pass_time(160.0)

    follow(world, scenario)
    assert 5 <= world.lists <= 10


def test_every_error_of_a_watch_is_waited_out() -> None:
    """Errors as an event, with codes that are none, and streams that end at once with or without an event."""
    endings = [
        b'{"type": "ERROR", "object": {"code": 410}}',
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}',
        b'{"type": "ERROR", "object": {"code": "x"}}',
        b'{"type": "ERROR", "object": {}}',
        b'{"type": "ERROR", "object": {"code": 504, "message": "Too large resource version: 9"}}',
        b"not an event",
        None,
    ]
    for ending in endings:
        world = World()
        put(world.api, "pods", pod("p"))
        num_watches = 0

        async def stream(
            path: str, params: Mapping[str, str], ending: bytes | None = ending
        ) -> AsyncGenerator[bytes, None]:
            nonlocal num_watches
            num_watches += 1
            if ending is not None:
                yield ending

        world.api.stream = stream  # type: ignore[method-assign]

        async def scenario() -> None:
            await pass_time(60.0)

        follow(world, scenario)
        assert 4 <= num_watches <= 12, ending
        assert world.lists <= 12, ending


def test_a_version_that_the_server_refuses_for_ever_is_given_up() -> None:
    world = World()
    put(world.api, "pods", pod("p"))
    lines = world.api.stream

    async def stream(path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        if int(params["resourceVersion"]) < 50:
            yield b'{"type": "ERROR", "object": {"code": 400, "message": "invalid resource version"}}'
            return
        async with aclosing(lines(path, params)) as found:
            async for line in found:
                yield line

    world.api.stream = stream  # type: ignore[method-assign]

    async def scenario() -> None:
        await world.reflector.synced.wait()
        world.api.storage.version = 60
        put(world.api, "pods", pod("q"))
        await until(lambda: world.names == ["p", "q"], 120.0)

    follow(world, scenario)


def phase(world: World, name: str) -> object:
    return ((world.store.get("default", name) or {}).get("status") or {}).get("phase")


def restored(world: World, version: int, *names: str) -> None:
    """The server now has what a backup had, at this version; its watches go on."""
    backup = FakeApi(latency_s=0.001)
    for name in names:
        put(backup, "pods", pod(name))
    world.api.storage = backup.storage
    world.api.storage.version = world.api.storage.oldest_version = version
    world.api.storage.history.clear()
    world.api.storage.on_change(world.api._wake)


def test_a_watch_whose_versions_go_back_is_a_restored_backup() -> None:
    """The connection stays, or the watch starts from a version that is not there yet: no 410 tells."""
    world = World()
    for index in range(50):
        put(world.api, "pods", pod(f"p{index}"))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        await until(lambda: world.watches == 1)
        restored(world, 10, "p0", "p1")
        await until(lambda: world.names == ["p0", "p1"], 130.0)
        put(world.api, "pods", {**pod("p0"), "status": {"phase": "Running"}})
        await until(lambda: phase(world, "p0") == "Running", 1.0)

    follow(world, scenario)


def test_a_restored_backup_that_has_grown_past_us_is_seen_in_the_list() -> None:
    world = World()
    for index in range(5):
        put(world.api, "pods", pod(f"p{index}"))

    async def scenario() -> None:
        await world.reflector.synced.wait()
        put(world.api, "pods", {**pod("p0"), "status": {"phase": "Running"}})
        await until(lambda: phase(world, "p0") == "Running")
        restored(world, 1000, "p0")
        world.api.break_watches()
        await until(lambda: world.names == ["p0"])
        assert phase(world, "p0") == "Pending"

    follow(world, scenario)
