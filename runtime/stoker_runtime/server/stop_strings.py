"""Stop strings in a text that grows, however many there are. Pure.

Source: A. V. Aho and M. J. Corasick, "Efficient string matching: an aid to bibliographic search",
Communications of the ACM 18(6), 1975.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# How much of which string the end of the text is: the string's place in the alphabet, and characters of it.
# Of several strings with this beginning the first is meant.
State = tuple[int, int]
START: State = (0, 0)


@dataclass(frozen=True, slots=True)
class Found:
    """A stop string in a text.

    Args:
        end: characters of the new text up to its end.
        size: characters of it; some may lie before the new text.
    """

    end: int
    size: int


class StopStrings:
    """The automaton of a request's stop strings; all its choices share it.

    A state is the longest end of the text that is the beginning of a stop string. Strings in the order of the
    alphabet share their beginnings with a neighbour, so no state needs to be built: a string owns the states
    behind what it shares with the one before it. Where a text leaves a string is found out when a text gets
    there, and kept. So building costs a sort, and a character costs a few look-ups, amortised.

    Args:
        strings: the stop strings, none of them empty.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = sorted(set(strings))
        self._num_shared: list[int] = []  # by string: characters that the one before it begins with as well
        self._branches: dict[tuple[State, str], int] = {}  # which string goes on from another's state
        self._known: dict[State, tuple[State, int]] = {START: (START, 0)}  # see _enter
        self._build()

    def __bool__(self) -> bool:
        return bool(self._strings)

    def _build(self) -> None:
        owners = []  # by string: who owns the state it branches off from
        for index, string in enumerate(self._strings):
            if index == 0:
                self._num_shared.append(-1)
                owners.append(0)
                continue
            size = _num_shared(self._strings[index - 1], string)
            owner = index - 1
            while self._num_shared[owner] >= size:
                owner = owners[owner]
            self._num_shared.append(size)
            owners.append(owner)
            self._branches[(owner, size), string[size]] = index

    def advance(self, state: State, text: str, *, is_searched: bool) -> tuple[State, Found | None]:
        """Take more text.

        Args:
            state: START, or what the call before returned.
            text: what follows.
            is_searched: a stop string may end in it.

        Returns:
            The state behind the text, whose number of characters are the longest end of the text that may
            become a stop string; and the stop string that is complete first, the longest of those that end
            together, if there is one: then the state is of no use.
        """
        if not self._strings:
            return state, None
        for end, char in enumerate(text, start=1):
            state, size = self._step(state, char)
            if size and is_searched:
                return state, Found(end, size)
        return state, None

    def _step(self, state: State, char: str) -> tuple[State, int]:
        """Return the state behind one more character, and the size of the longest string that ends there."""
        while (following := self._child(state, char)) is None:
            if state == START:
                return START, 0
            state = self._known[state][0]
        if following not in self._known:
            self._enter(state, char, following)
        size = self._known[following][1]
        while self._is_leaf(following):
            following = self._known[following][0]
        return following, size

    def _child(self, state: State, char: str) -> State | None:
        index, depth = state
        string = self._strings[index]
        if depth < len(string) and string[depth] == char:
            return index, depth + 1
        branch = self._branches.get((state, char))
        return None if branch is None else (branch, depth + 1)

    def _is_leaf(self, state: State) -> bool:
        """Tell whether no stop string is longer than this one and begins with it."""
        index, depth = state
        if depth < len(self._strings[index]):
            return False
        return index + 1 == len(self._strings) or self._num_shared[index + 1] < depth

    def _enter(self, state: State, char: str, child: State) -> None:
        """Learn of a state's child where a text goes that does not follow it, and what ends in it.

        The first is the longest other state that ends the same text: a child, by the same character, of a
        state to which this one's parent fails. That may be new as well; all of them are noted together.
        """
        path = []
        following: State | None = child
        while following not in self._known:
            assert following is not None
            path.append(following)
            following = None
            while following is None and state != START:
                state = self._known[state][0]
                following = self._child(state, char)
            following = following or START
        for entered in reversed(path):
            index, depth = entered
            is_whole = depth == len(self._strings[index])
            self._known[entered] = (following, depth if is_whole else self._known[following][1])
            following = entered


def _num_shared(left: str, right: str) -> int:
    """Return how many characters two strings begin with in common. Slices compare fast: a binary search."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
