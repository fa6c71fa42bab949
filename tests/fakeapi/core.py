"""A Kubernetes API server in memory, as far as the operator can tell.

Speaks requests and bytes, so it serves as the client's transport directly (virtual time, no sockets) and
behind ``fakeapi.server`` over HTTP. Real enough: server-side apply, generations, resource versions, label
selectors, preconditions, paged lists, watches with bookmarks and 410, /status, /scale, graceful deletion,
garbage collection.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fakeapi.admission import Denied, Hook, Review
from fakeapi.faults import AFTER, CRASHES, REFUSALS, Call, Fault, Injector, no_fault
from fakeapi.fields import FieldConflict, Owners, apply, merge, without
from fakeapi.kinds import Target, are_gates_removed, matches, resolve
from fakeapi.managed import manager as managed_by
from fakeapi.storage import Change, Storage
from virtual_time import pass_time

from stoker_operator.cluster.client import APPLY_PATCH, Reply
from stoker_operator.cluster.errors import ApiUnreachable

Object = dict[str, Any]

MAX_TEXTS = 256


class Refused(Exception):
    """The request ends with this Status; ``field`` is the one at fault."""

    def __init__(self, code: int, reason: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.field = code, reason, message, field


@dataclass(frozen=True)
class Write:
    """What came of one write.

    Args:
        at_s: the loop's time.
        call: the request.
        code: of the answer; 0 when none was sent.
        change: what it stored; None when it changed nothing.
    """

    at_s: float
    call: Call
    code: int
    change: Change | None


class FakeApi:
    """The server; ``admission`` holds the hooks that every write passes (``fakeapi.admission``).

    Args:
        storage: the objects.
        latency_s: of every request; keep it positive in virtual time so that requests interleave.
        bookmark_s: how often an idle watch sends a bookmark.
    """

    def __init__(
        self,
        storage: Storage | None = None,
        latency_s: float = 0.0,
        bookmark_s: float = 60.0,
    ) -> None:
        self.storage = storage or Storage()
        self.calls: list[Call] = []
        self.outcomes: list[Write] = []
        self.admission: list[Hook] = []
        self.injector: Injector = no_fault
        self.on_crash: Callable[[], None] | None = None
        # Paths of fields that this server does not know: strict writes are refused, others lose them.
        self.unknown_fields: tuple[str, ...] = ()
        self.watch_lag_s = 0.0
        self.watch_repeats = 1  # times that each event comes
        self.hang: Callable[[], Awaitable[None]] = lambda: pass_time(5.0)
        self._latency_s = latency_s
        self._bookmark_s = bookmark_s
        self._pages: dict[str, tuple[str, list[Object]]] = {}
        self._tokens = itertools.count(1)
        self._watches: dict[asyncio.Event, str] = {}  # those that wait, and for which table
        self._texts: dict[int, tuple[Object, str]] = {}
        self._watch_epoch = 0
        self.storage.on_change(self._wake)

    @property
    def writes(self) -> list[Call]:
        """Every write so far."""
        return [call for call in self.calls if call.is_write]

    def break_watches(self) -> None:
        """End all open watches, as a restart of the server does."""
        self._watch_epoch += 1
        self._wake(None)

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        """One request to its answer."""
        if self._latency_s:
            await pass_time(self._latency_s)
        call = Call(method, path, body)
        self.calls.append(call)
        fault = self.injector(call)
        if fault in REFUSALS:
            reply = self._refusal(fault)
            self._note(call, reply.code, None)
            return reply
        if fault is not None and fault not in AFTER:
            self._note(call, 0, None)
            await self._fail(fault)
        version = self.storage.version
        reply = self._answer(method, path, params, body, content_type)
        changes = [change for change in self.storage.history[-1:] if change.version > version]
        self._note(call, reply.code if fault is None else 0, changes[0] if changes else None)
        if fault is not None:
            await self._fail(fault)
        return reply

    def _note(self, call: Call, code: int, change: Change | None) -> None:
        if call.is_write:
            self.outcomes.append(Write(asyncio.get_running_loop().time(), call, code, change))

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """One watch, line by line."""
        call = Call("GET", path, is_watch=True)
        self.calls.append(call)
        fault = self.injector(call)
        if fault is not None:
            if fault in REFUSALS:
                code, reason = REFUSALS[fault]
                yield _line("ERROR", _status(Refused(code, reason, "injected")))
                return
            await self._fail(fault)
        target = resolve(path)
        assert target is not None, path
        async for line in self._watch(target, params):
            yield line

    async def _fail(self, fault: Fault) -> None:
        if fault in CRASHES:
            assert self.on_crash is not None, "a crash needs somebody who dies"
            self.on_crash()
            await asyncio.get_running_loop().create_future()  # the caller is dead: cancelled from outside
        if fault in (Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER):
            await self.hang()
        raise ApiUnreachable(f"injected: {fault.value}")

    def _refusal(self, fault: Fault) -> Reply:
        code, reason = REFUSALS[fault]
        body = json.dumps(_status(Refused(code, reason, "injected"))).encode()
        return Reply(code, body, "1" if code == 429 else None)

    def _answer(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        target = resolve(path)
        try:
            if target is None:
                raise Refused(404, "NotFound", f"the fake serves nothing at {path}")
            obj = self._dispatch(method, target, params, json.loads(body) if body else {}, content_type)
        except Refused as refused:
            return Reply(refused.code, json.dumps(_status(refused)).encode())
        return Reply(201 if method == "POST" else 200, self._text(obj).encode())

    def _dispatch(
        self, method: str, target: Target, params: Mapping[str, str], body: Object, content_type: str
    ) -> Object:
        if method == "GET" and target.name is None:
            return self._list(target, params)
        if method == "POST" and target.name is None:
            return self._create(target, self._known(body, params), params.get("fieldManager", "unknown"))
        if target.subresource == "scale":
            return self._scale(method, target, body, params)
        if method == "GET":
            return self._live(target)
        if method == "DELETE":
            return self._delete(target, body)
        if method == "PATCH" and content_type == APPLY_PATCH:
            return self._apply(target, body, params)
        if method == "PATCH":
            return self._patch(target, body, params)
        raise Refused(405, "MethodNotAllowed", method)

    def _known(self, body: Object, params: Mapping[str, str]) -> Object:
        """What this server knows of a new object."""
        for path in self.unknown_fields:
            left = without(body, path.split("."))
            if left != body and params.get("fieldValidation") == "Strict":
                raise Refused(400, "BadRequest", f'strict decoding error: unknown field "{path}"')
            body = left
        return body

    def _live(self, target: Target) -> Object:
        stored = self.storage.get(target.kind.table, (target.namespace or "", target.name or ""))
        if stored is None:
            raise Refused(404, "NotFound", f'{target.kind.table} "{target.name}" not found')
        return stored.obj

    def _list(self, target: Target, params: Mapping[str, str]) -> Object:
        token = params.get("continue")
        if token:
            if token not in self._pages:
                raise Refused(410, "Expired", "The provided continue parameter is too old")
            version, found = self._pages.pop(token)
        else:
            version, selector = str(self.storage.version), params.get("labelSelector", "")
            found = [
                obj
                for obj in self.storage.all(target.kind.table)
                if target.namespace in (None, obj["metadata"].get("namespace")) and matches(obj, selector)
            ]
        limit = int(params.get("limit") or 0) or len(found)
        metadata = {"resourceVersion": version}
        if len(found) > limit:
            metadata["continue"] = f"token-{next(self._tokens)}"
            self._pages[metadata["continue"]] = (version, found[limit:])
        items = [{k: v for k, v in obj.items() if k not in ("apiVersion", "kind")} for obj in found[:limit]]
        kind = f"{target.kind.kind}List"
        return {"apiVersion": target.kind.api_version, "kind": kind, "metadata": metadata, "items": items}

    def _create(self, target: Target, body: Object, manager: str) -> Object:
        metadata = {**body["metadata"]}
        namespace = target.namespace
        if target.kind.namespaced and metadata.setdefault("namespace", namespace) != namespace:
            raise Refused(400, "BadRequest", "the namespace differs from the URL's")
        if self.storage.get(target.kind.table, (target.namespace or "", metadata["name"])) is not None:
            raise Refused(409, "AlreadyExists", f'{target.kind.table} "{metadata["name"]}" already exists')
        if target.kind.table == "pods" and not (body.get("spec") or {}).get("containers"):
            raise Refused(422, "Invalid", "spec.containers: Required value")
        obj = {**body, "metadata": metadata, "apiVersion": target.kind.api_version, "kind": target.kind.kind}
        owners = Owners({}, {}, obj, manager)
        return self.storage.insert(target.kind, self._admit("CREATE", target, obj), owners)

    def _admit(self, operation: str, target: Target, obj: Object) -> Object:
        """The object after all hooks."""
        for hook in self.admission:
            try:
                changed = hook(Review(operation, target.kind.table, target.subresource or "", obj))
            except Denied as denied:
                raise Refused(denied.code, denied.reason, denied.message) from denied
            obj = obj if changed is None else changed
        return obj

    def _apply(self, target: Target, body: Object, params: Mapping[str, str]) -> Object:
        kind, key = target.kind, (target.namespace or "", target.name or "")
        # An apply owns its fields apart from plain writes of the same manager, one set for each subresource.
        manager = managed_by(params["fieldManager"], "apply", target.subresource or "")
        stored = self.storage.get(kind.table, key)
        if stored is None:
            if target.subresource:
                raise Refused(404, "NotFound", f'{kind.table} "{target.name}" not found')
            if body["metadata"].get("uid"):
                raise Refused(409, "Conflict", "uid mismatch: the object does not exist")
            return self._create(target, body, manager)
        _check_identity(target, stored.obj, body)
        try:
            merged, owners = apply(stored.obj, body, stored.owners, manager, params.get("force") == "true")
        except FieldConflict as conflict:
            raise Refused(409, "Conflict", str(conflict)) from conflict
        return self.storage.update(kind, self._changed_by(target, stored.obj, merged), owners)

    def _patch(self, target: Target, body: Object, params: Mapping[str, str]) -> Object:
        live = self._live(target)
        _check_identity(target, live, body)
        stored = self.storage.get(target.kind.table, (target.namespace or "", target.name or ""))
        assert stored is not None
        after = self._changed_by(target, live, merge(live, body))
        owners = Owners(stored.owners, live, after, params.get("fieldManager", "unknown"))
        return self.storage.update(target.kind, after, owners)

    def _changed_by(self, target: Target, live: Object, after: Object) -> Object:
        """What is stored of an update; admission cannot reach beyond it either."""
        admitted = self._admit("UPDATE", target, self._in_scope(target, live, after))
        return self._in_scope(target, live, admitted)

    def _in_scope(self, target: Target, live: Object, after: Object) -> Object:
        """What a write may change: the status only through /status, everything else only beside it."""
        if target.subresource == "status":
            return {**live, "status": after.get("status") or {}}
        if target.kind.has_status:
            after = {name: value for name, value in after.items() if name != "status"}
            if "status" in live:
                after["status"] = live["status"]
        is_changed = target.kind.spec_is_immutable and after.get("spec") != live.get("spec")
        if is_changed and not are_gates_removed(live["spec"], after["spec"]):
            raise Refused(422, "Invalid", "spec: Forbidden: pod updates may not change fields")
        return after

    def _scale(self, method: str, target: Target, body: Object, params: Mapping[str, str]) -> Object:
        live = self._live(target)
        if method in ("PUT", "PATCH"):
            spec = {**live["spec"], "replicas": body["spec"]["replicas"]}
            stored = self.storage.get(target.kind.table, (target.namespace or "", target.name or ""))
            assert stored is not None
            after = {**live, "spec": spec}
            who = managed_by(params.get("fieldManager", "unknown"), "update", "scale")
            live = self.storage.update(target.kind, after, Owners(stored.owners, live, after, who))
        status = live.get("status") or {}
        return {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": target.name, "namespace": target.namespace},
            "spec": {"replicas": live["spec"].get("replicas", 1)},
            "status": {"replicas": status.get("replicas", 0), "selector": status.get("selector", "")},
        }

    def _delete(self, target: Target, options: Object) -> Object:
        live = self._live(target)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != live["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {wanted}")
        self._admit("DELETE", target, live)
        key = (target.namespace or "", target.name or "")
        obj, gone = self.storage.delete(target.kind.table, key, options.get("gracePeriodSeconds"))
        if gone and target.kind.table != "pods":
            details = {"name": target.name, "uid": live["metadata"]["uid"]}
            return {"apiVersion": "v1", "kind": "Status", "status": "Success", "details": details}
        return obj

    async def _watch(self, target: Target, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        version, selector = int(params.get("resourceVersion") or 0), params.get("labelSelector", "")
        ends_at = loop.time() + float(params.get("timeoutSeconds") or 3600)
        epoch, wakeup = self._watch_epoch, asyncio.Event()
        self._watches[wakeup] = target.kind.table
        try:
            while epoch == self._watch_epoch and loop.time() < ends_at:
                if version < self.storage.oldest_version:
                    yield _line(
                        "ERROR", _status(Refused(410, "Expired", f"too old resource version: {version}"))
                    )
                    return
                wakeup.clear()
                for change in self._since(version):
                    line = self._event(change, target, selector)
                    version = change.version
                    if line is not None:
                        if self.watch_lag_s:
                            await pass_time(self.watch_lag_s)
                        for _ in range(self.watch_repeats):
                            yield line
                idle_until = min(loop.time() + self._bookmark_s, ends_at)
                try:
                    async with asyncio.timeout_at(idle_until):
                        await wakeup.wait()
                except TimeoutError:
                    if not wakeup.is_set() and params.get("allowWatchBookmarks") == "true":
                        version = self.storage.version
                        yield _line("BOOKMARK", _bookmark(target, version))
        finally:
            del self._watches[wakeup]

    def _since(self, version: int) -> list[Change]:
        history = self.storage.history
        # Every version is one line of history.
        return history[max(0, version + 1 - history[0].version) :] if history else []

    def _wake(self, change: Change | None) -> None:
        for event, table in self._watches.items():
            if change is None or change.plural == table:
                event.set()

    def _event(self, change: Change, target: Target, selector: str) -> bytes | None:
        """The line a watcher with this selector gets for a change, if any."""
        if change.plural != target.kind.table:
            return None
        if target.namespace not in (None, change.obj["metadata"].get("namespace")):
            return None
        fits = change.type != "DELETED" and matches(change.obj, selector)
        fitted = change.before is not None and matches(change.before, selector)
        if not (fits or fitted):
            return None
        type_ = "DELETED" if not fits else "MODIFIED" if fitted else "ADDED"
        return f'{{"type": "{type_}", "object": {self._text(change.obj)}}}\n'.encode()

    def _text(self, obj: Object) -> str:
        """An object as JSON. Who wrote it and who watches it get the same, so it is made once."""
        known = self._texts.get(id(obj))
        if known is None:
            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()
            known = self._texts[id(obj)] = (obj, json.dumps(obj))  # kept with it, its id is nobody else's
        return known[1]


def _check_identity(target: Target, live: Object, body: Object) -> None:
    """A patch with another uid edits a field that cannot change, unless it reaches the status only."""
    wanted = body.get("metadata") or {}
    if wanted.get("resourceVersion") not in (None, live["metadata"]["resourceVersion"]):
        raise Refused(409, "Conflict", "the object has been modified")
    if wanted.get("uid") not in (None, live["metadata"]["uid"]) and target.subresource is None:
        message = f'metadata.uid: Invalid value: "{wanted["uid"]}": field is immutable'
        raise Refused(422, "Invalid", message, "metadata.uid")


def _bookmark(target: Target, version: int) -> Object:
    kind = target.kind
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"resourceVersion": str(version)}}


def _line(type_: str, obj: Object) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


def _status(refused: Refused) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": refused.code,
        "reason": refused.reason,
        "message": refused.message,
        "details": {"causes": [{"field": refused.field}] if refused.field else []},
    }
