"""What `helm test` runs: serve a small model, ask it a question, delete it, and tell what happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from stoker_operator.api import labels
from stoker_operator.cluster.chat import ChatFailed, ChatRefused
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import AlreadyExists, ApiError, ApiUnreachable, Conflict, NotFound
from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS

Object = dict[str, Any]
Ask = Callable[[str, str, str], Awaitable[str]]
T = TypeVar("T")

QUESTION = "What is the capital of France?"
OURS = {"app.kubernetes.io/managed-by": "stoker-selftest"}
POLL_S = 0.5
# Some causes go away by themselves, such as a download that is tried again: they get a few tries.
STALLED_S = 60.0
DELETE_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried.

    Args:
        name: of the ModelDeployment.
        namespace: where it is served.
        source: its ``spec.model.source``; it runs on a CPU.
        resources: its ``spec.pod.resources``.
        timeout_s: until it has answered.
    """

    name: str
    namespace: str
    source: str
    resources: Mapping[str, Any]
    timeout_s: float


class TrialFailed(Exception):
    """The model did not answer; the text says why, for a person."""


def manifest(trial: Trial) -> Object:
    """Return the ModelDeployment that is tried: one small replica on a CPU."""
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": trial.name, "namespace": trial.namespace, "labels": dict(OURS)},
        "spec": {
            "model": {"source": trial.source},
            "engine": {"maxModelLen": 512, "maxNumSeqs": 4},
            "accelerator": {"perPod": 0},
            "replicas": 1,
            "pod": {"resources": dict(trial.resources), "terminationGracePeriodSeconds": 15},
        },
    }


def conditions_of(model: Object) -> dict[str, str]:
    """Return each condition of a ModelDeployment in words, by its type."""
    found = (model.get("status") or {}).get("conditions") or ()
    return {
        condition["type"]: f"{condition['type']}={condition['status']} {condition['reason']}"
        + (f": {condition['message']}" if condition.get("message") else "")
        for condition in found
    }


async def run(trial: Trial, client: KubeClient, ask: Ask, say: Callable[[str], None]) -> None:
    """Try it, and delete it whatever happens; each condition that changes is told.

    Args:
        trial: what to try.
        client: calls of the API server.
        ask: returns a model's answer, from the address, the model's name and the question.
        say: tells one line.

    Raises:
        TrialFailed: there was no answer; the conditions are in the text.
    """
    await _Run(trial, client, say).whole(ask)


class _Run:
    """One trial under way: what was seen of its ModelDeployment, and since when."""

    def __init__(self, trial: Trial, client: KubeClient, say: Callable[[str], None]) -> None:
        self._trial = trial
        self._client = client
        self._model: Object = {}
        self._trouble = ""
        self._started_s = self._now()
        self._moved_s = self._started_s
        self._say_line = say

    async def whole(self, ask: Ask) -> None:
        trial = self._trial
        self._say(f"serve {trial.source} as {trial.namespace}/{trial.name}")
        try:
            async with asyncio.timeout(trial.timeout_s):
                await self._until(self._create)
                url = await self._until(self._ready_url)
                self._say(f"ask {url}: {QUESTION}")
                answer = await self._until(lambda: ask(url, trial.name, QUESTION))
            self._say(f"answer: {answer.strip()}")
        except TimeoutError:
            raise self._failed(f"no answer within {trial.timeout_s:g} s") from None
        except (ApiError, ChatRefused) as error:
            raise self._failed(str(error)) from error
        finally:
            await self._delete()

    async def _until(self, step: Callable[[], Awaitable[T | None]]) -> T:
        """Take a step again and again until it returns something; trouble that may pass is told once."""
        while True:
            try:
                done = await step()
            except (ApiError, ApiUnreachable, ChatFailed) as error:
                if _is_final(error):
                    raise
                if self._trouble != str(error):
                    self._trouble = str(error)
                    self._say(self._trouble)
            else:
                self._trouble = ""
                if done is not None:
                    return done
            await asyncio.sleep(POLL_S)

    async def _create(self) -> Object | None:
        try:
            self._model = await self._client.create(MODEL_DEPLOYMENTS, manifest(self._trial))
        except AlreadyExists:
            live = await self._get()
            if live is not None and not _is_ours(live):
                raise TrialFailed(
                    f"the ModelDeployment {self._trial.namespace}/{self._trial.name} is not of an earlier "
                    "test: rename it, or the release"
                ) from None
            self._say("an earlier test left its ModelDeployment behind: delete it")
            await self._remove(live)
            return None
        return self._model

    async def _ready_url(self) -> str | None:
        live = await self._get()
        if live is None:
            raise TrialFailed(f"somebody deleted {self._trial.namespace}/{self._trial.name} meanwhile")
        before, now = conditions_of(self._model), conditions_of(live)
        self._model = live
        for kind, text in now.items():
            if before.get(kind) != text:
                self._moved_s = self._now()
                self._say(text)
        if now.get("Ready", "").startswith("Ready=True "):
            return str(live["status"]["url"])
        is_stalled = now.get("Stalled", "").startswith("Stalled=True ")
        if is_stalled and self._now() - self._moved_s > STALLED_S:
            raise self._failed(f"it has been stalled for {STALLED_S:g} s")
        return None

    async def _get(self) -> Object | None:
        try:
            return await self._client.get(MODEL_DEPLOYMENTS, self._trial.namespace, self._trial.name)
        except NotFound:
            return None

    async def _remove(self, live: Object | None) -> None:
        """Delete what was seen; that it is gone, or another one by now, is fine."""
        if live is None:
            return
        metadata = live["metadata"]
        try:
            await self._client.delete(
                MODEL_DEPLOYMENTS, metadata["namespace"], metadata["name"], metadata["uid"]
            )
        except (NotFound, Conflict):
            return

    async def _delete(self) -> None:
        """Delete the ModelDeployment, and so its pods; also after a create that nobody knows the end of."""
        try:
            async with asyncio.timeout(DELETE_WITHIN_S):
                if await self._until(self._is_gone) == "deleted":
                    self._say("deleted")
        except (TimeoutError, ApiError) as error:
            self._say(
                f"not deleted ({error or 'no answer'}): kubectl delete mdep "
                f"--namespace {self._trial.namespace} {self._trial.name}"
            )

    async def _is_gone(self) -> str | None:
        live = await self._get()
        if live is None or not _is_ours(live):
            return "nothing to delete"
        await self._remove(live)
        return "deleted"

    def _failed(self, why: str) -> TrialFailed:
        conditions = list(conditions_of(self._model).values()) or [
            "no condition at all: is the operator up, and does it watch this namespace?"
        ]
        trouble = [self._trouble] if self._trouble else []
        return TrialFailed("\n  ".join([why, *trouble, *conditions]))

    def _say(self, text: str) -> None:
        self._say_line(f"{self._now() - self._started_s:6.1f} s  {text}")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _is_final(error: Exception) -> bool:
    """Tell whether the same call would fail again."""
    if isinstance(error, ApiError):
        return error.code != 429 and error.code < 500
    return isinstance(error, ChatRefused)


def _is_ours(live: Object) -> bool:
    found = live["metadata"].get("labels") or {}
    return all(found.get(name) == value for name, value in OURS.items())
