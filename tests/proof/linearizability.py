"""Whether an order of the reads and writes of one key explains what they saw.

An order explains them if each operation has its place between its start and its end, and each read
sees the write before it. The search is that of Wing and Gong, who try every operation that may be
next, with Lowe's memory of the states that led nowhere:

    J. M. Wing, C. Gong: Testing and Verifying Concurrent Objects (1993)
    G. Lowe: Testing for Linearizability (2017)

It is quick, because each value is written once. So a read has to come after the write of its value,
and that write before the end of the first read that saw it, which narrows both. It follows, too,
that a write of unknown outcome was done if its value was seen; and if it was not, an order with it
is also one without it. Only that a key is absent has many causes. A removal of unknown outcome is
placed right before a read that found nothing: anywhere else it would explain nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

__all__ = ["ABSENT", "Failure", "Interval", "explain"]

#: The value of a key that is not there.
ABSENT = None


@dataclass(frozen=True)
class Interval:
    """A read or write that took place at one moment from `start` to `end`.

    :param certain: whether it surely was done; of a write that is not, `end` says nothing
    :param name: what it is called in messages

    """

    is_write: bool
    value: object
    start: float
    end: float = inf
    certain: bool = True
    name: str = ""


@dataclass(frozen=True)
class Failure:
    """No order explains them.

    :param operation: the one that ends first among those for which no place was found, by the
        attempt that came furthest
    :param value: what the key held then

    """

    operation: Interval
    value: object

    def __str__(self) -> str:
        return f"{self.operation.name or self.operation}, where the key held {self.value!r}"


def explain(operations: Iterable[Interval], initial: object = ABSENT) -> Failure | None:
    """Return None if an order explains the operations, else where the search ended.

    :param operations: each value but ABSENT is written at most once, and not `initial`
    :param initial: the value before all of them

    """
    narrowed = _narrowed(list(operations), initial)
    if isinstance(narrowed, Failure):
        return narrowed
    return _Search(*narrowed).run(initial)


def _narrowed(
    operations: list[Interval], initial: object
) -> tuple[list[Interval], list[float]] | Failure:
    """Return what surely was done, narrowed, and when the uncertain removals began, in order."""
    first_seen: dict[object, float] = {}
    for operation in operations:
        if not operation.is_write and operation.value is not ABSENT:
            seen = first_seen.get(operation.value, inf)
            first_seen[operation.value] = min(seen, operation.end)
    written: dict[object, Interval] = {}
    done: list[Interval] = []
    removals: list[float] = []
    for operation in operations:
        value = operation.value
        if not operation.is_write:
            continue
        if value is ABSENT:
            if operation.certain:
                done.append(operation)
            else:
                removals.append(operation.start)
            continue
        if value in written or value == initial:
            raise ValueError(f"{value!r} is written more than once")
        written[value] = operation
        if value in first_seen or operation.certain:
            end = min(operation.end if operation.certain else inf, first_seen.get(value, inf))
            done.append(_moved(operation, operation.start, end))
    for operation in operations:
        if operation.is_write:
            continue
        start = operation.start
        if operation.value is not ABSENT and operation.value != initial:
            writer = written.get(operation.value)
            if writer is None or writer.start > operation.end:
                return Failure(operation, ABSENT)  # seen before anybody wrote it
            start = max(start, writer.start)
        done.append(_moved(operation, start, operation.end))
    return sorted(done, key=lambda operation: operation.start), sorted(removals)


def _moved(operation: Interval, start: float, end: float) -> Interval:
    if start == operation.start and end == operation.end:
        return operation
    return Interval(operation.is_write, operation.value, start, end, True, operation.name)


@dataclass
class _State:
    """What is placed by now: all before `low`, and those in `more`; and what the key holds then.

    :param removed: how many of the uncertain removals

    """

    low: int
    more: frozenset[int]
    value: object
    removed: int


class _Search:
    def __init__(self, operations: list[Interval], removals: list[float]) -> None:
        self.operations = operations
        self.removals = removals
        self._furthest = -1
        self._failure: Failure | None = None

    def run(self, initial: object) -> Failure | None:
        states = [_State(0, frozenset(), initial, 0)]
        known: set[tuple[int, frozenset[int], int]] = set()
        while states:
            state = states.pop()
            candidates = self._place_reads(state)
            if not candidates:
                return None
            # Not what the key holds: whatever may be next sees something else, or writes. (Among
            # the candidates is the one that ends first, which all that is left has to wait for.)
            identity = (state.low, state.more, state.removed)
            if identity in known:
                continue
            known.add(identity)
            states += self._next(state, candidates)
        return self._failure

    def _candidates(self, state: _State) -> list[int]:
        """Return those that may be next: they start before any that is not placed ends."""
        found: list[int] = []
        first_end = inf
        for place in range(state.low, len(self.operations)):
            operation = self.operations[place]
            if operation.start > first_end:
                break
            if place not in state.more:
                found.append(place)
                first_end = min(first_end, operation.end)
        return found

    def _place_reads(self, state: _State) -> list[int]:
        """Place the reads that see what the key holds: that is never wrong. Return what is left."""
        while True:
            candidates = self._candidates(state)
            reads = [place for place in candidates if self._is_seen(place, state.value)]
            if not reads:
                return candidates
            self._place(state, reads)

    def _is_seen(self, place: int, value: object) -> bool:
        operation = self.operations[place]
        return not operation.is_write and operation.value == value

    @staticmethod
    def _place(state: _State, places: Iterable[int]) -> None:
        more = {*state.more, *places}
        while state.low in more:
            more.remove(state.low)
            state.low += 1
        state.more = frozenset(more)

    def _next(self, state: _State, candidates: list[int]) -> list[_State]:
        """Return the states that may follow, the likeliest last."""
        first = min(candidates, key=lambda place: self.operations[place].end)
        if state.low + len(state.more) > self._furthest:
            self._furthest = state.low + len(state.more)
            self._failure = Failure(self.operations[first], state.value)
        following: list[_State] = []
        writes = [place for place in candidates if self.operations[place].is_write]
        for place in sorted(writes, key=lambda place: -self.operations[place].end):
            after = _State(state.low, state.more, self.operations[place].value, state.removed)
            self._place(after, [place])
            following.append(after)
        if any(self._is_seen(place, ABSENT) for place in candidates):
            # Those that have begun by now are alike: none of them has an end.
            begun = bisect_right(self.removals, self.operations[first].end)
            if begun > state.removed:
                following.append(_State(state.low, state.more, ABSENT, state.removed + 1))
        return following
