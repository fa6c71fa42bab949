"""Scheduler and kubelets of the fake cluster: single steps for tests that stage a moment, or all alone."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from fakeapi.client import delete, everything, get, put
from fakeapi.core import FakeApi
from fakeapi.nodes import Nodes
from fakeapi.scheduler import Scheduler
from virtual_time import pass_time

from stoker_operator.cluster.inflight import PodAnswer, Question

Object = dict[str, Any]

IPV4, IPV6 = "10.244.0.", "fd00:10:244::"


class Kubelet:
    """Moves pods through their lives.

    Args:
        api: where pods are.
        is_broken: pods that crash instead of becoming ready.
        is_rejected: pods that their kubelet refuses to run.
        is_loading: pods whose engine takes its time.
        num_crashes: restarts of those that are broken.
        last_words: what they leave as their termination message.
        in_flight: requests that a pod (by name) reports; none by default.
        families: what the addresses of pods begin with, one for each family of the cluster, its first first.
        is_reachable: addresses that the operator's network leads to.

    Attributes:
        unreachable: why a pod (by name) does not answer the operator; "" when it does.
        answer_s: seconds until it answers, or until the operator gives it up.
        asked_by: name of the task that asked, each time.
        is_older: pods (by name) whose engine cannot be told to drain.
        on_told: called with each pod that is told to drain.
        odd_answer: what a pod (by name) says instead of its requests; None when it tells them.
        told: names of the pods that were told to drain, each time. They are not ready from then on.
    """

    def __init__(
        self,
        api: FakeApi,
        is_broken: Callable[[Object], bool] = lambda pod: False,
        in_flight: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self.api = api
        self.is_broken = is_broken
        self.is_rejected: Callable[[Object], bool] = lambda pod: False
        self.is_loading: Callable[[Object], bool] = lambda pod: False
        self.num_crashes = 3
        self.last_words = ""
        self.in_flight = in_flight
        self.families: tuple[str, ...] = (IPV4,)
        self.is_reachable: Callable[[str], bool] = lambda address: True
        self.unreachable: Callable[[str], str] = lambda name: ""
        self.is_older: Callable[[str], bool] = lambda name: False
        self.answer_s: Callable[[], float] = lambda: 0.0
        self.on_told: Callable[[Object], None] = lambda pod: None
        self.odd_answer: Callable[[str], bytes | None] = lambda name: None
        self.told: list[str] = []
        self.asked_by: list[str] = []
        self._drained: set[str] = set()
        self.nodes = Nodes(api)
        self.scheduler = Scheduler(api)
        self._addresses = itertools.count(1 + len(everything(api, "pods")))  # of a copied world

    def add_node(self, name: str, unschedulable: bool = False, ready: bool = True, **more: Any) -> None:
        """Create a node, or change it; see ``Nodes.add``."""
        self.nodes.add(name, unschedulable, ready, **more)

    async def run(self, period_s: float = 0.25) -> None:
        """Do every pod's next step and collect garbage, again and again, until cancelled."""
        while True:
            await pass_time(period_s)
            self.api.storage.collect_garbage()
            self.nodes.advance()
            for pod in everything(self.api, "pods"):
                self.advance(pod)

    def advance(self, pod: Object) -> None:
        """Do the next step of one pod."""
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        status = pod["status"]
        if pod["spec"].get("nodeName") and not self.nodes.is_up(pod):
            return
        if "deletionTimestamp" in pod["metadata"]:
            delete(self.api, "pods", name, namespace, grace_s=0)
        elif status["phase"] in ("Succeeded", "Failed") or pod["spec"].get("schedulingGates"):
            return
        elif not pod["spec"].get("nodeName"):
            self.scheduler.place(pod)
        elif status["phase"] == "Pending" and self.is_rejected(pod):
            self.fail(name, namespace, "UnexpectedAdmissionError")
        elif status["phase"] == "Pending":
            self.start(name, namespace)
        elif self.is_broken(pod):
            self.crash(name, namespace, message=self.last_words)
        elif pod["metadata"]["uid"] in self._drained:
            if is_ready(pod):
                self.make_unready(name, namespace)
        elif not is_ready(pod) and not self.is_loading(pod):
            self.make_ready(name, namespace)

    def schedule(self, name: str, node: str = "node-0", namespace: str = "default") -> None:
        """Bind the pod to a node."""
        conditions = [{"type": "PodScheduled", "status": "True"}]
        self._set(name, namespace, {"conditions": conditions}, {"nodeName": node})

    def refuse_to_schedule(self, name: str, message: str, namespace: str = "default") -> None:
        """Say that no node fits."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._set(name, namespace, {"conditions": [condition]})

    def start(self, name: str, namespace: str = "default") -> None:
        """Start the containers."""
        self._run(name, namespace, ready=False)

    def make_ready(self, name: str, namespace: str = "default") -> None:
        """Let the readiness probe succeed."""
        self._run(name, namespace, ready=True)

    def make_unready(self, name: str, namespace: str = "default") -> None:
        """Let the readiness probe fail while the engine works on, as that of a draining one does."""
        self._set(name, namespace, {"conditions": _conditions(False)})

    def crash(self, name: str, namespace: str = "default", reason: str = "Error", message: str = "") -> None:
        """Let the engine die; the kubelet waits before it starts it again."""
        terminated = {"exitCode": 1, "reason": reason, "message": message}
        waiting = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
        container = {
            "name": "engine",
            "ready": False,
            "started": False,
            "restartCount": self.num_crashes,
            "state": {"waiting": waiting},
            "lastState": {"terminated": terminated},
        }
        self._set(name, namespace, {"containerStatuses": [container], "conditions": _conditions(False)})

    def fail(self, name: str, namespace: str = "default", reason: str = "Evicted") -> None:
        """End the pod as a whole, as an eviction does."""
        self._set(name, namespace, {"phase": "Failed", "reason": reason, "conditions": _conditions(False)})

    async def read(self, questions: Mapping[str, Question]) -> dict[str, PodAnswer]:
        """Answer as the pods would; see ``cluster.inflight.InFlightReader``."""
        task = asyncio.current_task()
        self.asked_by.append("" if task is None else task.get_name())
        if self.answer_s():
            await pass_time(self.answer_s())
        return {key: self._answer(question) for key, question in questions.items()}

    def _answer(self, question: Question) -> PodAnswer:
        host = urlsplit(question.load_url).hostname or ""
        for pod in everything(self.api, "pods") if self.is_reachable(host) else ():
            if {"ip": host} not in pod["status"].get("podIPs", ()) or not _is_started(pod):
                continue
            name = pod["metadata"]["name"]
            trouble = self.unreachable(name)
            if trouble:
                return PodAnswer(None, trouble)
            can_drain = not self.is_older(name) and question.drain_key == pod["metadata"]["uid"]
            if question.drain_url is not None and can_drain:
                self.told.append(name)
                self.on_told(pod)
                self._drained.add(pod["metadata"]["uid"])
            body = self.odd_answer(name)
            return PodAnswer(b'{"in_flight": %d}' % self.in_flight(name) if body is None else body)
        return PodAnswer(None, "Connection refused")

    def _run(self, name: str, namespace: str, ready: bool) -> None:
        pod = get(self.api, "pods", name, namespace)
        assert pod is not None
        container = {"name": "engine", "ready": ready, "started": ready, "restartCount": 0}
        running = [c["state"].get("running") for c in pod["status"].get("containerStatuses") or []]
        container["state"] = {"running": next(filter(None, running), {"startedAt": self.api.storage.now()})}
        addresses = pod["status"].get("podIPs") or self._new_addresses()
        status = {
            "phase": "Running",
            "podIP": addresses[0]["ip"],
            "podIPs": addresses,
            "containerStatuses": [container],
            "conditions": _conditions(ready),
        }
        self._set(name, namespace, status)

    def _new_addresses(self) -> list[Object]:
        number = next(self._addresses)
        return [
            {"ip": f"{family}{number:x}" if ":" in family else f"{family}{number}"}
            for family in self.families
        ]

    def _set(self, name: str, namespace: str, status: Object, spec: Object | None = None) -> None:
        pod = get(self.api, "pods", name, namespace)
        assert pod is not None
        self._date(pod["status"], status)
        body: Object = {"metadata": {"name": name, "namespace": namespace}, "status": status}
        if spec is not None:
            body["spec"] = spec
        put(self.api, "pods", body, "kubelet")

    def _date(self, before: Object, status: Object) -> None:
        """Add the times that a kubelet adds: of the first status, and of each change of a condition."""
        if any(condition["type"] == "Ready" for condition in status.get("conditions") or []):
            status.setdefault("startTime", before.get("startTime") or self.api.storage.now())
        old = {condition["type"]: condition for condition in before.get("conditions") or []}
        for condition in status.get("conditions") or []:
            last = old.get(condition["type"], {})
            is_same = last.get("status") == condition["status"]
            time = last.get("lastTransitionTime") if is_same else None
            condition["lastTransitionTime"] = time or self.api.storage.now()


def is_ready(pod: Object) -> bool:
    """Whether the Ready condition holds."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _is_started(pod: Object) -> bool:
    """Whether the engine has answered since it (re)started."""
    return any(status.get("started") for status in (pod.get("status") or {}).get("containerStatuses") or [])


def is_serving(pod: Object) -> bool:
    """Whether the Service would send requests to the pod."""
    labels = pod["metadata"].get("labels") or {}
    gone = "deletionTimestamp" in pod["metadata"]
    return is_ready(pod) and not gone and labels.get("stoker.dev/serving") == "true"


def _conditions(ready: bool) -> list[Object]:
    text = "True" if ready else "False"
    return [
        {"type": "PodScheduled", "status": "True"},
        {"type": "ContainersReady", "status": text},
        {"type": "Ready", "status": text},
    ]
