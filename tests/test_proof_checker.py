"""The checker of the proof: orders that explain a history are found, and breaches are told."""

from __future__ import annotations

import itertools
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import pytest

from .proof.checker import check
from .proof.entries import COUNTER
from .proof.history import Fault, History, Recorder
from .proof.linearizability import ABSENT, Interval, explain
from .proof.violations import BACK, COPIES, ERROR, LOST, NOBODYS, STALE, SUMS


def w(value: object, start: float, end: float = inf, *, certain: bool = True) -> Interval:
    return Interval(True, value, start, end, certain)


def r(value: object, start: float, end: float) -> Interval:
    return Interval(False, value, start, end)


# -- the search -----------------------------------------------------------------------------------

EXPLAINED = {
    "nothing": [],
    "absent": [r(ABSENT, 0, 1)],
    "one after the other": [w("a", 0, 1), r("a", 2, 3), w("b", 4, 5), r("b", 6, 7)],
    "a read beside a write sees either": [w("a", 0, 9), r(ABSENT, 1, 2), r("a", 3, 4)],
    "two writes side by side, in either order": [w("a", 0, 9), w("b", 0, 9), r("a", 10, 11)],
    "the later one first": [w("a", 0, 9), w("b", 1, 8), r("b", 2, 3), r("a", 4, 5), r("a", 10, 11)],
    "done, though it raised": [w("a", 0, certain=False), r("a", 5, 6)],
    "not done, though it was tried": [w("a", 0, certain=False), r(ABSENT, 5, 6)],
    "it arrives after the error": [w("a", 0, certain=False), r(ABSENT, 5, 6), r("a", 7, 8)],
    "removed": [w("a", 0, 1), w(ABSENT, 2, 3), r(ABSENT, 4, 5)],
    "removed, though it raised": [w("a", 0, 1), w(ABSENT, 2, certain=False), r(ABSENT, 4, 5)],
    "two removals that raised": [
        w("a", 0, 1),
        w(ABSENT, 2, certain=False),
        w(ABSENT, 2, certain=False),
        r(ABSENT, 4, 5),
        w("b", 6, 7),
        r("b", 8, 9),
        r(ABSENT, 10, 11),
    ],
    "a removal that raised is left for later": [
        w("a", 0, 2),
        w(ABSENT, 1, 4.5),
        w(ABSENT, 0, certain=False),
        r(ABSENT, 3, 4),
        w("b", 5, 6),
        r("b", 6.5, 6.8),
        r(ABSENT, 7, 8),
    ],
}

NOT_EXPLAINED = {
    "an old value": [w("a", 0, 1), w("b", 2, 3), r("a", 4, 5)],
    "absent, though it was written": [w("a", 0, 1), r(ABSENT, 2, 3)],
    "back to the old one": [w("a", 0, 1), w("b", 2, 9), r("b", 3, 4), r("a", 5, 6)],
    "two readers see another order": [
        w("a", 0, 9),
        w("b", 0, 9),
        *(r("a", 1, 2), r("b", 3, 4), r("a", 5, 6)),
    ],
    "seen before it was written": [r("a", 0, 1), w("a", 2, 3)],
    "written by nobody": [r("a", 0, 1)],
    "a removal that is lost": [w("a", 0, 1), w(ABSENT, 2, 3), r("a", 4, 5)],
    "removed once, absent twice": [
        w("a", 0, 1),
        w(ABSENT, 2, certain=False),
        r(ABSENT, 4, 5),
        w("b", 6, 7),
        r(ABSENT, 8, 9),
    ],
    "removed too early": [w("a", 0, 1), r(ABSENT, 2, 3), w(ABSENT, 4, certain=False)],
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_an_order_is_found(name: str) -> None:
    assert explain(EXPLAINED[name]) is None


@pytest.mark.parametrize("name", NOT_EXPLAINED)
def test_no_order_is_found(name: str) -> None:
    assert explain(NOT_EXPLAINED[name]) is not None


def test_it_says_for_which_no_place_was_found() -> None:
    stale = Interval(False, "a", 4, 5, name="the read")
    failure = explain([w("a", 0, 1), w("b", 2, 3), stale])
    assert failure is not None
    assert failure.operation.name == "the read"
    assert str(failure) == "the read, where the key held 'b'"


def test_a_value_is_written_once() -> None:
    with pytest.raises(ValueError, match="'a' is written more than once"):
        explain([w("a", 0, 1), w("a", 2, 3)])


def test_the_value_before_all() -> None:
    assert explain([r("a", 0, 1), w("b", 2, 3), r("b", 4, 5)], initial="a") is None
    assert explain([w("b", 2, 3), r("a", 4, 5)], initial="a") is not None


def by_brute_force(operations: list[Interval]) -> bool:
    """Try every subset of the uncertain writes, in every order."""
    sure = [op for op in operations if op.certain]
    unsure = [op for op in operations if not op.certain]
    for number in range(len(unsure) + 1):
        for done in itertools.combinations(unsure, number):
            for order in itertools.permutations([*sure, *done]):
                if is_order(order):
                    return True
    return False


def is_order(order: tuple[Interval, ...]) -> bool:
    value, latest = ABSENT, -inf
    for op in order:
        if (op.end if op.certain else inf) < latest:
            return False
        latest = max(latest, op.start)
        if op.is_write:
            value = op.value
        elif op.value != value:
            return False
    return True


def some_operations(random: Random) -> list[Interval]:
    values = ["a", "b", "c"]
    operations = []
    for value in random.sample(values, random.randint(1, 3)):
        start = random.randint(0, 8)
        operations.append(
            w(value, start, start + random.randint(0, 5), certain=random.random() < 0.7)
        )
    for _ in range(random.randint(0, 2)):
        start = random.randint(0, 8)
        operations.append(
            w(ABSENT, start, start + random.randint(0, 5), certain=random.random() < 0.5)
        )
    for _ in range(random.randint(1, 6 - min(len(operations), 4))):
        start = random.randint(0, 12)
        operations.append(r(random.choice([*values, ABSENT]), start, start + random.randint(0, 4)))
    return operations


def test_it_agrees_with_brute_force() -> None:
    random = Random(1)
    outcomes = {True: 0, False: 0}
    for _ in range(1500):
        operations = some_operations(random)
        expected = by_brute_force(operations)
        assert (explain(operations) is None) == expected, operations
        outcomes[expected] += 1
    assert min(outcomes.values()) > 200


# -- histories ------------------------------------------------------------------------------------


class Told:
    """A history that is written down by hand: each event is at the time that is given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now = 0.0
        self.recorders: dict[str, Recorder] = {}
        monkeypatch.setattr("tests.proof.history.time.monotonic", lambda: self.now)

    def of(self, process: str) -> Recorder:
        if process not in self.recorders:
            self.recorders[process] = Recorder(self.folder, process)
        return self.recorders[process]

    def write(
        self,
        start: float,
        end: float | None,
        written: dict[str, Any],
        process: str = "w",
        *,
        kind: str = "set",
        outcome: str = "ok",
        result: Any = None,
    ) -> None:
        """Write; with no `end`, be killed in between."""
        self.now = start
        number = self.of(process).begin(kind, written)
        if end is not None:
            self.now = end
            self.of(process).end(number, outcome, result)

    def add(self, start: float, end: float, result: int | None, process: str = "w") -> None:
        outcome = "maybe" if result is None else "ok"
        self.write(
            start, end, {COUNTER: None}, process, kind="compute", outcome=outcome, result=result
        )

    def read(
        self,
        start: float,
        end: float,
        seen: dict[str, Any],
        process: str = "r",
        *,
        as_of: float | None = inf,
    ) -> None:
        """Read; strictly, unless `as_of` says otherwise."""
        self.now = end
        self.of(process).read(start, start if as_of == inf else as_of, seen)

    def store(self, time: float, entries: dict[str, Any], phase: int = 2) -> None:
        self.now = time
        self.of("main").store(phase, entries)

    def fault(self, start: float, end: float, **options: bool) -> None:
        self.of("main").fault(Fault("a fault", start, end, **options))

    def kinds(self) -> set[str]:
        return {violation.kind for violation in check(History.load(self.folder))}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(tmp_path, monkeypatch)


def test_a_sound_history(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.read(2, 3, {"a": "1", "b": None})
    told.write(4, 5, {"a": "2", "b": "2"}, kind="update")
    told.add(5, 6, 1)
    told.add(6, 7, 2, "other")
    told.read(8, 9, {"a": "2", "b": "2", COUNTER: 2})
    told.write(10, 11, {"b": None}, kind="delete")
    told.store(12, {"a": "2", COUNTER: 2})
    told.of("r").copy(2, {"a": "2", COUNTER: 2})
    assert told.kinds() == set()


def test_a_strict_read_of_an_old_value(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.read(4, 5, {"a": "1"})
    assert told.kinds() == {STALE}


def test_a_bounded_read_may_be_as_old_as_it_promised(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.read(4, 5, {"a": "1"}, as_of=2.5)
    told.read(4, 5, {"a": "1"}, "watch", as_of=None)
    assert told.kinds() == set()
    told.read(6, 7, {"a": "1"}, "third", as_of=3.5)
    assert told.kinds() == {STALE}


def test_a_write_of_a_killed_process_may_be_done_or_not(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, None, {"a": "2"})
    told.read(4, 5, {"a": "1"})
    told.read(6, 7, {"a": "2"})
    assert told.kinds() == set()
    told.read(8, 9, {"a": "1"}, "other")
    assert told.kinds() == {STALE}


def test_an_acknowledged_write_that_is_lost(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.store(4, {"a": "1"})
    assert told.kinds() == {LOST}


def test_a_fault_that_may_lose_the_tail_begins_an_epoch(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.fault(4, 5, loses=True)
    told.read(6, 7, {"a": "1"})
    told.store(8, {"a": "1"})
    assert told.kinds() == set()
    told.read(9, 10, {"a": "2"})
    assert told.kinds() == {STALE}


def test_in_the_new_epoch_nothing_is_lost(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.fault(4, 5, loses=True)
    told.write(6, 7, {"a": "2"})
    told.read(8, 9, {"a": "1"})
    assert told.kinds() == {STALE}


def test_in_the_new_epoch_its_own_writes_have_an_order(told: Told) -> None:
    told.fault(4, 5, loses=True)
    told.write(6, 7, {"a": "1"})
    told.write(8, 9, {"a": "2"})
    told.read(10, 11, {"a": "1"})
    assert told.kinds() == {STALE}


def test_a_value_of_no_epoch(told: Told) -> None:
    told.fault(4, 5, loses=True)
    told.read(6, 7, {"a": "?"}, as_of=None)
    assert told.kinds() == {NOBODYS}


def test_a_value_that_is_seen_before_it_is_written(told: Told) -> None:
    told.read(0, 1, {"a": "1"}, as_of=None)
    told.write(2, 3, {"a": "1"})
    assert told.kinds() == {NOBODYS}


def test_a_reader_that_promises_nothing_may_show_what_was_lost_and_then_not(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.fault(4, 5, loses=True)
    told.read(6, 7, {"a": "2"}, as_of=None)
    told.read(8, 9, {"a": "1"}, as_of=None)
    assert told.kinds() == set()


def test_a_write_under_way_at_the_fault_may_arrive_after_it(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(3, 6, {"a": "2"})
    told.fault(4, 5, loses=True)
    told.read(7, 8, {"a": "1"})
    told.read(9, 10, {"a": "2"})
    assert told.kinds() == set()


def test_while_reads_promise_less_they_may_be_old(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.fault(4, 7, blind=True)
    told.read(5, 6, {"a": "1"})
    assert told.kinds() == set()
    told.read(8, 9, {"a": "1"})
    assert told.kinds() == {STALE}


def test_a_read_that_began_while_reads_promise_less_may_be_old(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.fault(4, 7, blind=True)
    told.read(6, 8, {"a": "1"})
    assert told.kinds() == set()


def test_a_fault_that_loses_belongs_to_no_epoch(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.fault(4, 9, loses=True)
    told.read(5, 5.5, {"a": "1"}, "one")
    told.read(6, 6.5, {"a": "2"}, "two")
    told.read(7, 7.5, {"a": "1"}, "three")
    told.read(10, 11, {"a": "1"}, "one")
    assert told.kinds() == set()


def test_what_was_acknowledged_is_seen_where_no_more_is_promised(told: Told) -> None:
    told.of("main").promise("acknowledged")
    told.write(0, 1, {"a": "1"})
    told.write(2, 9, {"a": "2"})
    told.read(3, 4, {"a": "2"}, "one")
    told.read(5, 6, {"a": "1"}, "other")  # no order explains these two
    assert told.kinds() == set()
    told.read(10, 11, {"a": "1"}, "third")
    assert told.kinds() == {STALE}
    told.write(12, 13, {"a": None}, kind="delete")
    told.read(14, 15, {"a": None}, "third")
    told.write(16, 17, {"a": "3"})
    told.read(17, 18, {"a": "3"}, "third")
    assert told.kinds() == {STALE}
    told.store(19, {})
    assert told.kinds() == {STALE, LOST}


def test_a_write_that_ends_during_a_read_need_not_be_seen(told: Told) -> None:
    told.of("main").promise("acknowledged")
    told.write(0, 1, {"a": "1"})
    told.write(2, 5, {"a": "2"})
    told.read(4, 6, {"a": "1"})
    assert told.kinds() == set()


def test_a_removal_that_began_after_the_read_explains_nothing(told: Told) -> None:
    told.of("main").promise("acknowledged")
    told.write(0, 1, {"a": "1"})
    told.read(2, 3, {"a": None})
    told.write(4, 5, {"a": None}, kind="delete")
    assert told.kinds() == {STALE}


def test_what_began_last_counts_and_not_what_ended_last(told: Told) -> None:
    told.of("main").promise("acknowledged")
    told.write(0, 1.5, {"a": "1"})
    told.write(0, 5, {"a": "2"}, "long")
    told.write(2, 3, {"a": "3"})
    told.read(6, 7, {"a": "2"}, "one")  # it may have been done after the third
    assert told.kinds() == set()
    told.read(6, 7, {"a": "1"}, "other")
    assert told.kinds() == {STALE}


@pytest.mark.parametrize("promise", ["linearizable", "acknowledged", "cached"])
def test_a_cache_may_go_back_while_it_promises_less(told: Told, promise: str) -> None:
    told.of("main").promise(promise)
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.fault(4, 9, blind=True)
    told.read(5, 6, {"a": "2"})
    told.read(7, 8, {"a": "1"})
    assert told.kinds() == (set() if promise == "cached" else {BACK})
    told.read(10, 11, {"a": "2"}, "other")
    told.read(12, 13, {"a": "1"}, "other")
    assert told.kinds() == {STALE, BACK}


def test_what_a_cache_showed_before_it_promised_less_is_forgotten(told: Told) -> None:
    told.of("main").promise("cached")
    told.write(0, 1, {"a": "1"})
    told.write(2, 20, {"a": "2"}, "slow")
    told.read(3, 4, {"a": "2"})
    told.fault(5, 9, blind=True)
    told.read(6, 7, {"a": "1"})
    told.read(10, 11, {"a": "1"})  # the second is not acknowledged yet
    assert told.kinds() == set()


@pytest.mark.parametrize("promise", ["linearizable", "acknowledged", "cached"])
def test_a_write_that_raised_may_arrive_after_a_later_one(told: Told, promise: str) -> None:
    told.of("main").promise(promise)
    told.write(0, 1, {"a": "1"}, outcome="maybe")
    told.write(2, 3, {"a": "2"}, "other")
    told.read(4, 5, {"a": "2"})
    told.read(6, 7, {"a": "1"})
    told.store(8, {"a": "1"})
    assert told.kinds() == set()


def test_a_write_that_raised_may_arrive_after_a_fault_that_loses(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"}, "other", outcome="maybe")
    told.fault(4, 5, loses=True)
    told.read(6, 7, {"a": "1"})
    told.read(8, 9, {"a": "2"})
    assert told.kinds() == set()


def test_a_reader_that_promises_nothing_never_goes_back(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.write(2, 3, {"a": "2"})
    told.read(4, 5, {"a": "1"}, as_of=None)
    told.read(6, 7, {"a": "2"}, as_of=None)
    assert told.kinds() == set()
    told.read(8, 9, {"a": "1"}, as_of=None)
    assert told.kinds() == {BACK}


def test_a_key_that_nobody_removes_does_not_vanish(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.read(4, 5, {"a": "1"}, as_of=None)
    told.read(6, 7, {"a": None}, as_of=None)
    assert told.kinds() == {BACK}
    told.write(2, 9, {"a": None}, "other", kind="delete", outcome="maybe")
    assert told.kinds() == set()


def test_two_additions_that_give_one_number(told: Told) -> None:
    told.add(0, 1, 1)
    told.add(2, 3, 1, "other")
    assert SUMS in told.kinds()


def test_a_number_that_nobody_added(told: Told) -> None:
    told.add(0, 1, 1)
    told.add(2, 3, 3)
    assert told.kinds() == {SUMS}
    told.add(1, 2, None, "other")
    assert told.kinds() == set()


def test_a_first_addition_that_gives_the_second_number(told: Told) -> None:
    told.add(0, 1, 2)
    assert told.kinds() == {SUMS}


def test_an_addition_of_the_last_epoch_leaves_no_gap_in_the_next(told: Told) -> None:
    told.add(0, 1, 1)
    told.add(1, 2, 2)
    told.add(2, 3, 3)
    told.fault(4, 5, loses=True)
    told.add(6, 7, 2)
    told.add(8, 9, 4)
    assert told.kinds() == {SUMS}


def test_an_addition_that_was_done_twice_at_the_end(told: Told) -> None:
    told.add(0, 1, 1)
    told.store(4, {COUNTER: 2})
    assert SUMS in told.kinds()


def test_an_addition_that_is_lost(told: Told) -> None:
    told.add(0, 1, 1)
    told.add(2, 3, 2)
    told.store(4, {COUNTER: 1})
    assert LOST in told.kinds()


def test_a_later_addition_that_gives_a_smaller_number(told: Told) -> None:
    told.add(0, 1, 2)
    told.add(2, 3, 1, "other")
    assert SUMS in told.kinds()


def test_a_copy_that_differs_from_the_store(told: Told) -> None:
    told.write(0, 1, {"a": "1"})
    told.store(4, {"a": "1"})
    told.of("r").copy(2, {"a": "1", "b": "2"})
    assert told.kinds() == {COPIES}


def test_each_copy_is_compared_with_what_the_store_held_then(told: Told) -> None:
    for phase in (2, 5):
        told.write(phase * 10, phase * 10 + 1, {"a": f"{phase}"})
        told.store(phase * 10 + 5, {"a": f"{phase}"}, phase)
        told.of("r").copy(phase, {"a": f"{phase}"})
    assert told.kinds() == set()


def test_an_error_that_is_no_outage(told: Told) -> None:
    told.of("r").surprise("KeyError")
    assert told.kinds() == {ERROR}


def test_a_history_of_many_files(told: Told) -> None:
    for number in range(2000):
        told.write(number, number + 0.5, {"a": f"{number}"})
    assert len(list(told.folder.glob("w.*"))) > 2
    history = History.load(told.folder)
    assert [op.value for op in history.operations] == [f"{number}" for number in range(2000)]
    assert check(history) == []
