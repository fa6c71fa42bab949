"""What is kept of groups that wait for nodes, and who is woken when."""

from __future__ import annotations

from functools import partial
from typing import Any

from group_builders import pods_of
from operator_builders import NOW, ago

from stoker_operator.observed import Turn
from stoker_operator.reconcile.turns import Turns

Object = dict[str, Any]


class Kept:
    """Turns over pods that a test changes; every ModelDeployment has the uid that `make_model` gives."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.gone: set[str] = set()
        self.now = NOW
        self.turns = Turns(lambda: self.now, self._owner, lambda key: self.woken.append(key[1]))

    def _owner(self, key: tuple[str, str]) -> str | None:
        return None if key[1] in self.gone else "uid-smol"

    def see(self, *groups: list[Object]) -> list[str]:
        """Let the watch tell of these pods; returns who was woken by that."""
        self.woken.clear()
        for pods in groups:
            for pod in pods:
                self.turns.see(pod, partial(dict, pod))
        return sorted(set(self.woken))

    def ahead(self, name: str) -> str:
        """The group before that of a ModelDeployment."""
        return self.turns.of(("team", name))[f"{name}-0"].ahead


def placed(pods: list[Object]) -> list[Object]:
    return [{**pod, "spec": {**pod["spec"], "nodeName": "node-a", "schedulingGates": []}} for pod in pods]


def test_only_the_next_is_woken_when_one_has_its_nodes() -> None:
    kept = Kept()
    first, second, third = (
        pods_of("a", made_at=ago(3), let_go_at=NOW),
        pods_of("b", made_at=ago(2)),
        pods_of("c"),
    )
    assert kept.see(first, second, third) == ["a", "b", "c"]
    assert (kept.ahead("b"), kept.ahead("c")) == ("a-0", "b-0")
    assert kept.see(placed(first)) == ["a", "b"]
    assert (kept.ahead("b"), kept.ahead("c")) == ("", "b-0")
    assert kept.turns.of(("team", "a")) == {}
    assert kept.see(placed(first), second, third) == [], "nothing is new"


def test_one_that_is_being_let_go_is_passed_by_nobody() -> None:
    kept = Kept()
    kept.see(pods_of("b"))
    kept.turns.go(("team", "b"), kept.turns.of(("team", "b")))
    kept.see(pods_of("a"))  # of the same second, and its name comes first
    assert kept.ahead("a") == "b-0"
    kept.see(pods_of("b", let_go_at=NOW))
    kept.turns.done(("team", "b"))
    assert kept.ahead("a") == "b-0"


def test_one_that_does_not_go_when_it_can_lets_the_next_go() -> None:
    kept = Kept()
    kept.see(pods_of("a", made_at=ago(9)), pods_of("b"))
    kept.turns.go(("team", "a"), kept.turns.of(("team", "a")))
    kept.woken.clear()
    kept.turns.done(("team", "a"))
    assert sorted(kept.woken) == ["a", "b"]
    assert (kept.ahead("b"), kept.ahead("a")) == ("", "b-0")


def test_pods_without_a_modeldeployment_that_stays_are_in_no_line() -> None:
    kept = Kept()
    foreign = pods_of("a", let_go_at=NOW, nodes=1)
    for pod in foreign:
        pod["metadata"]["ownerReferences"][0]["uid"] = "uid-of-an-earlier-one"
    kept.see(foreign, pods_of("b", let_go_at=NOW), pods_of("c"))
    assert kept.ahead("c") == "b-0"
    kept.gone.add("b")
    kept.woken.clear()
    kept.turns.tell("team")
    assert "c" in kept.woken
    assert kept.ahead("c") == ""


def test_a_pod_that_goes_or_changes_its_labels_is_forgotten() -> None:
    kept = Kept()
    first = pods_of("a", let_go_at=NOW)
    kept.see(first, pods_of("b"))
    kept.turns.see(first[0], lambda: None)
    assert kept.turns.of(("team", "b")) == {"b-0": Turn()}
    kept.see(pods_of("a", let_go_at=NOW))
    assert kept.ahead("b") == "a-0"
    first[1]["metadata"]["labels"].clear()
    kept.see(first[1:])
    assert kept.ahead("b") == ""


def test_who_has_to_make_room_by_time_alone_is_woken_by_the_pass_that_sees_it() -> None:
    kept = Kept()
    kept.see(pods_of("a", let_go_at=ago(82)), pods_of("b", num_turns=1))
    kept.woken.clear()
    kept.now = kept.turns.of(("team", "b"))["b-0"].not_before or NOW
    assert kept.ahead("b") == "a-0"
    assert "a" in kept.woken
    assert kept.turns.of(("team", "a"))["a-0"].is_over
