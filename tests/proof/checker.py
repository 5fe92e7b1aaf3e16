"""What has to be true of a history, and what in it is not.

- *Strict reads are linearizable* with the acknowledged writes, key by key. A read that promises the
  state of an earlier moment, or a later one (`autosync` in seconds; a manual dict: its last sync),
  is one that began at that moment. The reads that promise no moment are left out here.
  (Or less: it sees what was acknowledged before, and of what is under way, or raised an error, one
  reader may see what a later one does not.)
- *Nothing acknowledged is lost*: what the store holds in the end is a read like the others.
- *No reader goes back*, whatever it promises: whoever has seen a write sees no older one after it.
- *`compute` adds up*: no number is given twice, none of those missing but by an addition of unknown
  outcome, and a later addition gives a greater one.
- *Each local copy equals the store* after one sync, when the faults have stopped.
- *Errors* mean an outage.

A fault after which acknowledged writes may be lost begins a new epoch: there the key holds any
value that it has had before. What was under way, or is of unknown outcome, may arrive in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Any

from .entries import COUNTER
from .history import Fault, History, Operation
from .linearizability import ABSENT, Interval, explain
from .violations import BACK, COPIES, ERROR, LOST, NOBODYS, STALE, SUMS, Violation

__all__ = ["check"]


@dataclass(frozen=True)
class Epoch:
    """The time between two faults that may lose writes.

    :param blinds: in it, from when to when reads promise less

    """

    start: float
    end: float
    blinds: tuple[tuple[float, float], ...]

    def holds(self, read: Operation) -> bool:
        """Whether what a read promised is of this epoch alone, and all that reads usually do."""
        inside = read.as_of >= self.start and read.end <= self.end
        return (
            read.as_of > -inf
            and inside
            and not any(read.end >= begin and read.as_of <= end for begin, end in self.blinds)
        )


def check(history: History) -> list[Violation]:
    """Return all that is wrong with a history."""
    epochs = _epochs(history.faults)
    keys: dict[str, list[Operation]] = defaultdict(list)
    for operation in history.operations:
        keys[operation.key].append(operation)
    for store in history.stores:
        for key in keys:
            value = store.entries.get(key, ABSENT)
            keys[key].append(
                Operation("the store", "read", key, value, store.time, store.time, "ok", store.time)
            )
    violations: list[Violation] = []
    for key, operations in sorted(keys.items()):
        operations.sort(key=lambda operation: operation.start)
        if key == COUNTER:
            violations += _check_sums(operations, epochs)
            operations = _numbered(operations, epochs)
        always = history.promise != "cached"
        violations += _check_sessions(key, operations, epochs, always)
        if history.promise == "linearizable":
            violations += _check_order(key, operations, epochs)
        else:
            violations += _check_acknowledged(key, operations, epochs)
    violations += _check_copies(history)
    violations += [
        Violation(ERROR, "-", f"{process}: {text}") for process, text in history.surprises
    ]
    return violations


def _epochs(faults: Sequence[Fault]) -> list[Epoch]:
    blinds = tuple((fault.start, fault.end) for fault in faults if fault.blind)
    losses = [fault for fault in faults if fault.loses]
    starts = [-inf, *(fault.end for fault in losses)]
    ends = [*(fault.start for fault in losses), inf]
    return [Epoch(start, end, blinds) for start, end in zip(starts, ends, strict=True)]


def _is_in(operation: Operation, epoch: Epoch) -> bool:
    """Whether a write took place in the epoch, for sure."""
    return (
        operation.outcome == "ok" and operation.start >= epoch.start and operation.end <= epoch.end
    )


# -- an order of all ------------------------------------------------------------------------------


def _check_order(key: str, operations: list[Operation], epochs: list[Epoch]) -> Iterator[Violation]:
    for number, epoch in enumerate(epochs):
        reads = [op for op in operations if op.kind == "read" and epoch.holds(op)]
        writes = [op for op in operations if op.kind != "read" and op.start <= epoch.end]
        sure = [op for op in writes if _is_in(op, epoch)]
        # Begun before its end, and not known to have been done in an earlier one.
        late = [op for op in writes if not _is_in(op, epoch) and op.end >= epoch.start]
        failure = _explained(number, reads, sure, late)
        if failure is not None:
            lost = failure[0].process == "the store"
            kind = LOST if lost else STALE
            yield Violation(kind, key, f"{failure[0]}, where the key held {failure[1]!r}")


def _explained(
    epoch: int, reads: list[Operation], sure: list[Operation], late: list[Operation]
) -> tuple[Operation, object] | None:
    """Return None if an order explains the reads, else one for which there is no place.

    :param epoch: before the first one the key is absent; before any other one it held what it has
        held in an earlier one

    """
    initials: list[object] = [ABSENT]
    if epoch > 0:
        own = {op.value for op in sure}
        # Last a value that no read has seen.
        initials = [*{read.value: None for read in reads if read.value not in own}, ABSENT, ()]
    failure: tuple[Operation, object] | None = None
    for initial in dict.fromkeys(initials):
        named: list[Operation] = []
        intervals: list[Interval] = []
        for group, certain in ((reads, True), (sure, True), (late, False)):
            for op in group:
                is_write = op.kind != "read"
                if is_write and op.value is not ABSENT and op.value == initial:
                    continue  # it is what the epoch begins with
                start = op.start if is_write else op.as_of
                name = str(len(named))
                named.append(op)
                intervals.append(Interval(is_write, op.value, start, op.end, certain, name))
        found = explain(intervals, initial)
        if found is None:
            return None
        failure = failure or (named[int(found.operation.name)], found.value)
    return failure


def _check_acknowledged(
    key: str, operations: list[Operation], epochs: list[Epoch]
) -> Iterator[Violation]:
    """See that no read sees a write that was over before one began that was done before it."""
    writes = [op for op in operations if op.kind != "read"]
    writers = {op.value: op for op in writes if op.value is not ABSENT}
    removals = [op for op in writes if op.value is ABSENT]
    for epoch in epochs:
        done = sorted((op for op in writes if _is_in(op, epoch)), key=lambda op: op.end)
        ends = [op.end for op in done]
        # Of those that had ended by then, the one that began last.
        latest = list(accumulate(done, _later))
        for read in operations:
            if read.kind != "read" or not epoch.holds(read):
                continue
            number = bisect_left(ends, read.as_of)
            if not number:
                continue
            before = latest[number - 1]
            seen = [writers[read.value]] if read.value in writers else removals
            if not any(op.end >= before.start and op.start <= read.end for op in seen):
                kind = LOST if read.process == "the store" else STALE
                yield Violation(kind, key, f"{read}, after {before}")


def _later(one: Operation, other: Operation) -> Operation:
    """Return the one that began later."""
    return one if one.start > other.start else other


# -- one process ----------------------------------------------------------------------------------


def _check_sessions(
    key: str, operations: list[Operation], epochs: list[Epoch], always: bool
) -> Iterator[Violation]:
    """See that no process sees an older write after a newer one, whatever its reads promise.

    :param always: also while reads promise less

    """
    writers = {op.value: op for op in operations if op.kind != "read" and op.value is not ABSENT}
    can_vanish = any(op.kind == "delete" for op in operations)
    for epoch in epochs:
        newest: dict[str, Operation] = {}
        for read in operations:
            if read.kind != "read" or read.start < epoch.start or read.end > epoch.end:
                continue
            if not always and not epoch.holds(read):
                newest.pop(read.process, None)
                continue
            before = newest.get(read.process)
            if read.value is ABSENT:
                if before is not None and not can_vanish:
                    yield Violation(BACK, key, f"{read}, after {before}")
                continue
            writer = writers.get(read.value)
            if writer is None or writer.start > read.end:
                yield Violation(NOBODYS, key, str(read))
            elif before is not None and writer.end < before.start:
                yield Violation(BACK, key, f"{read}, after {before}")
            elif _is_in(writer, epoch) and (before is None or writer.start > before.start):
                newest[read.process] = writer


# -- additions ------------------------------------------------------------------------------------


def _check_sums(operations: list[Operation], epochs: list[Epoch]) -> Iterator[Violation]:
    additions = [op for op in operations if op.kind == "compute"]
    for number, epoch in enumerate(epochs):
        sure = sorted((op for op in additions if _is_in(op, epoch)), key=lambda op: op.value)
        unknown = [op for op in additions if not _is_in(op, epoch) and op.start <= epoch.end]
        unknown = [op for op in unknown if op.end >= epoch.start]
        gaps = sure[0].value - 1 if sure and number == 0 else 0
        latest: Operation | None = None
        for one, other in zip([None, *sure], sure, strict=False):
            if one is not None:
                gaps += max(other.value - one.value - 1, 0)
                if one.value == other.value:
                    yield Violation(SUMS, COUNTER, f"{one}, and {other}")
            if latest is not None and other.end < latest.start:
                yield Violation(SUMS, COUNTER, f"{latest}, but {other}")
            if latest is None or other.start > latest.start:
                latest = other
        seen = [op.value for op in operations if op.kind == "read" and epoch.holds(op)]
        if number == 0 and seen:
            most = max((value for value in seen if value is not ABSENT), default=0)
            gaps += max(most - (sure[-1].value if sure else 0), 0)
        if gaps > len(unknown):
            yield Violation(
                SUMS,
                COUNTER,
                f"{gaps} numbers that no addition gave, and {len(unknown)} of unknown outcome",
            )


def _numbered(operations: list[Operation], epochs: list[Epoch]) -> list[Operation]:
    """Return those of the first epoch, so that each number that was seen is written, and once.

    A number that was seen and given to nobody is that of an addition of unknown outcome. In another
    epoch the same number is another one, and from where it counts is not known: there the sums are
    all that is checked.

    """
    end = epochs[0].end
    sure = [op for op in operations if op.outcome == "ok" and op.end <= end]
    # Of two that gave the same number, which `_check_sums` tells of, the first one.
    first = {op.value: op for op in reversed(sure) if op.kind == "compute"}
    sure = [op for op in sure if op.kind == "read" or op is first[op.value]]
    unknown = [op for op in operations if op.outcome != "ok" or op.start <= end < op.end]
    unknown = [op for op in unknown if op.kind == "compute" and op.start <= end]
    if unknown:
        given = {op.value for op in sure if op.kind == "compute"}
        seen: set[Any] = {op.value for op in sure if op.kind == "read"} - {ABSENT}
        start = unknown[0].start
        sure += [
            Operation("an unknown one", "compute", COUNTER, value, start)
            for value in sorted(seen - given)
        ]
    return sorted(sure, key=lambda op: op.start)


# -- the end --------------------------------------------------------------------------------------


def _check_copies(history: History) -> Iterator[Violation]:
    stores = {store.phase: store.entries for store in history.stores}
    for copy in history.copies:
        truth = stores[copy.phase]
        if copy.entries != truth:
            wrong = [
                f"{key}: {copy.entries.get(key)!r}, not {truth.get(key)!r}"
                for key in sorted({*copy.entries, *truth})
                if copy.entries.get(key) != truth.get(key)
            ]
            yield Violation(COPIES, "-", f"{copy.process}: {'; '.join(wrong[:5])}")
