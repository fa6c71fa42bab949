"""What came of the actions of one pass: what was done, what is refused, what failed."""

from dataclasses import dataclass

from stoker_operator.cluster.errors import Altered, ApiError, ApiUnreachable
from stoker_operator.observed import Failure, Refusal
from stoker_operator.plan.actions import Action, Adopt, Apply, Create, Delete, Patch
from stoker_operator.reconcile.pace import kind_of

# Answers of the server that say nothing about the write itself: it may work in a moment, or on another look.
PASSING_CODES = frozenset({401, 404, 408, 409, 410, 429})


@dataclass(frozen=True)
class Outcome:
    """What came of a plan's actions.

    Args:
        done: the actions that changed something.
        refusals: what the API server refuses, now or the last time it was tried.
        failure: the first call that fails, now or the last time it was tried.
        error: why a call failed now.
        wait_s: seconds until what was not done may be tried.
        trouble_s: for how many seconds there has been trouble.
        is_unfinished: whether something came to nothing without trouble, as an object is in the way.
    """

    done: tuple[Action, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    failure: Failure | None = None
    error: ApiError | ApiUnreachable | None = None
    wait_s: float | None = None
    trouble_s: float = 0.0
    is_unfinished: bool = False


def describe(action: Action) -> str:
    """The action in words, for logs: "create pod x"."""
    match action:
        case Create():
            return f"create {_target(action)}"
        case Patch(purpose=purpose):
            return f"{purpose.value} {_target(action)}"
        case Delete():
            return f"delete {_target(action)}"
        case Adopt():
            return f"adopt {_target(action)}"
        case Apply(drift=drift):
            return f"apply {_target(action)} ({', '.join(drift) or 'missing'})"


def _target(action: Action) -> str:
    return f"{action.kind.lower()} {action.name}"


def trouble_of(action: Action, error: ApiError | ApiUnreachable) -> Refusal | Failure:
    """Tell what stays the same until a person changes something, such as a quota, from what passes."""
    if isinstance(error, Altered):
        return Refusal(_target(action), error.message, error.reason)
    if isinstance(error, ApiError) and 400 <= error.code < 500 and error.code not in PASSING_CODES:
        return Refusal(_target(action), error.message)
    return Failure(describe(action), str(error))


class Run:
    """What came of the actions of one pass so far."""

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.ended: set[int] = set()  # identities of actions that need not be tried again now
        self.is_unfinished = False
        self.troubled: set[str] = set()
        self.error: ApiError | ApiUnreachable | None = None
        self.is_over = False

    def take(self, action: Action, result: ApiError | ApiUnreachable | Action | None) -> None:
        """Note what came of one action."""
        if isinstance(result, ApiError | ApiUnreachable):
            self._take_error(action, result)
            return
        self.ended.add(id(action))
        if result is None:
            self.is_unfinished = True
        else:
            self.done.append(result)

    def _take_error(self, action: Action, error: ApiError | ApiUnreachable) -> None:
        self.troubled.add(kind_of(action))
        if isinstance(trouble_of(action, error), Failure):
            self.error = self.error or error
            is_about_the_write = isinstance(error, ApiError) and error.code >= 500
            self.is_over = self.is_over or not is_about_the_write
