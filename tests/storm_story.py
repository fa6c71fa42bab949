"""Stories of random trouble: what happens to one small ModelDeployment, made of a seed and nothing else."""

import random
from dataclasses import dataclass
from typing import Any

from fakeapi.faults import Fault

GOOD, BROKEN = (512, 1024, 2048), 4096  # lengths of models that answer, and of one that never does
LIMITS = ((1, 0), (0, 1), (1, 1), (2, 0))
GAPS_S = (0.05, 0.5, 3.0, 10.0, 40.0)
SILENCES = ("Connection refused", "no answer within 1 s", "it answers with status 503")
NONSENSE = (
    b"",
    b"\xff",
    b"null",
    b"[0]",
    b"{}",
    b'{"in_flight": -1}',
    b'{"in_flight": false}',
    b'{"in_flight": "0"}',
)
PULLS = ("karpenter.sh/disrupted", "ToBeDeletedByClusterAutoscaler", "stoker.dev/drain")


@dataclass(frozen=True)
class Step:
    """One thing that happens.

    Args:
        kind: name of the method of ``storm.Storm`` that does it.
        args: what it is told.
        gap_s: time until the next step.
        stays: whether its effect lasts to the end of the story instead of that gap.
    """

    kind: str
    args: tuple[Any, ...] = ()
    gap_s: float = 1.0
    stays: bool = False

    def __str__(self) -> str:
        told = ", ".join(map(str, self.args))
        return f"{self.kind}({told}), {self.gap_s} s" + (", stays" if self.stays else "")


@dataclass(frozen=True)
class Story:
    """A ModelDeployment and what it goes through.

    Args:
        seed: what the story was made of.
        replicas: at first.
        limits: surge and unavailable at first.
        slots: accelerators of each node; 0 for a model that needs none.
        num_nodes: in the cluster.
        grace_s: of its pods.
        steps: what happens, in order.
        end: replicas in the end.
        is_edited: whether the user edits the model in the end even where it works.
    """

    seed: int
    replicas: int
    limits: tuple[int, int]
    slots: int
    num_nodes: int
    grace_s: int
    steps: tuple[Step, ...]
    end: int
    is_edited: bool

    def __str__(self) -> str:
        surge, unavailable = self.limits
        room = f"{self.slots} slots each" if self.slots else "room without end"
        lines = [
            f"STOKER_SEED={self.seed}: {self.replicas} replicas, surge {surge}, unavailable {unavailable}, "
            f"grace {self.grace_s} s, {self.num_nodes} nodes with {room}",
            *(f"{number}. {step}" for number, step in enumerate(self.steps, 1)),
            f"healed; {self.end} replicas of {'another' if self.is_edited else 'a'} model that works",
        ]
        return "\n".join(lines)


def tell(seed: int) -> Story:
    """The story of a seed."""
    rng = random.Random(seed)
    num_nodes, slots = rng.randint(2, 3), rng.choice((0, 0, 1))
    most = num_nodes * slots or 3
    steps = [_step(rng, num_nodes, most) for _ in range(rng.randint(5, 12))]
    if rng.random() < 0.5:
        steps[0] = Step(*_busy(rng), 0.5, stays=True)
        if rng.random() < 0.5:
            steps[1] = Step(*_manners(rng), 0.5, stays=True)
    return Story(
        seed=seed,
        replicas=rng.randint(1, most),
        limits=rng.choice(LIMITS),
        slots=slots,
        num_nodes=num_nodes,
        grace_s=rng.choice((15, 30)),
        steps=tuple(steps),
        end=rng.randint(1, most),
        is_edited=rng.random() < 0.3,
    )


def _step(rng: random.Random, num_nodes: int, most: int) -> Step:
    kind, args = rng.choice((_user, _engine, _api, _admission, _node, _pod, _foreign, _operator))(
        rng, num_nodes, most
    )
    return Step(kind, args, rng.choice(GAPS_S), rng.random() < 0.25)


Told = tuple[str, tuple[Any, ...]]


def _user(rng: random.Random, num_nodes: int, most: int) -> Told:
    del num_nodes
    return rng.choice(
        (
            ("scale", (rng.randint(0, most),)),
            ("edit", (rng.choice(GOOD),)),
            ("edit", (BROKEN,)),
            ("limit", rng.choice(LIMITS)),
            ("pause", ()),
            ("suspend", ()),
            ("restart", ()),
            ("recreate", (rng.choice(GOOD),)),
        )
    )


def _engine(rng: random.Random, num_nodes: int, most: int) -> Told:
    del num_nodes, most
    return rng.choice((_busy, _manners))(rng)


def _manners(rng: random.Random) -> Told:
    pick = rng.choice((None, rng.randrange(6)))
    return rng.choice(
        (
            ("answer_late", (rng.choice((0.3, 1.0)),)),
            ("answer_nothing", (pick, rng.choice(SILENCES))),
            ("answer_nonsense", (pick, rng.choice(NONSENSE))),
            ("age", (pick,)),
        )
    )


def _busy(rng: random.Random) -> Told:
    counts = (rng.choice((0, 1, 1, 2, 3)) for _ in range(rng.randint(1, 5)))
    return "keep_busy", (rng.choice((1.0, 8.0, 25.0)), *counts)


def _api(rng: random.Random, num_nodes: int, most: int) -> Told:
    del num_nodes, most
    faults = tuple((rng.randrange(12), rng.choice(list(Fault))) for _ in range(rng.randint(1, 4)))
    return rng.choice(
        (
            ("fail_calls", faults),
            ("fail_calls", faults),
            ("break_watches", ()),
            ("expire_watches", ()),
            ("delay_events", (rng.choice((0.1, 0.5)),)),
            ("double_events", ()),
        )
    )


def _admission(rng: random.Random, num_nodes: int, most: int) -> Told:
    del num_nodes, most
    plural = rng.choice(("pods", "services", "poddisruptionbudgets", "controllerrevisions"))
    refusal = (rng.choice(("audited", "unreachable")), rng.choice((403, 422, 500)))
    return rng.choice(
        (
            ("refuse", (plural, *refusal)),
            ("refuse", ("modeldeployments", *refusal)),
            ("annotate", (plural,)),
            ("inject", ()),
            ("drop_label", (rng.choice(("pods", "services")), rng.choice(("revision", "group", "serving")))),
        )
    )


def _node(rng: random.Random, num_nodes: int, most: int) -> Told:
    del most
    node = f"node-{rng.randrange(num_nodes)}"
    return rng.choice(
        (
            ("cordon", (node,)),
            ("lose_node", (node,)),
            ("remove_node", (node,)),
            ("taint", (node, rng.choice(PULLS))),
            ("drain", (node,)),
        )
    )


def _pod(rng: random.Random, num_nodes: int, most: int) -> Told:
    del num_nodes, most
    pick = rng.randrange(6)
    return rng.choice(
        (
            ("delete_pod", (pick,)),
            ("fail_pod", (pick,)),
            ("evict_pod", (pick,)),
            ("crash_pod", (pick,)),
            ("hide_pod", (pick, rng.choice(("serving", "deployment", "revision")))),
        )
    )


def _foreign(rng: random.Random, num_nodes: int, most: int) -> Told:
    del num_nodes, most
    plural = rng.choice(("services", "poddisruptionbudgets"))
    return rng.choice(
        (
            ("edit_child", (plural,)),
            ("delete_child", (plural,)),
            ("delete_records", ()),
            ("edit_status", ()),
        )
    )


def _operator(rng: random.Random, num_nodes: int, most: int) -> Told:
    del rng, num_nodes, most
    return "restart_operator", ()
