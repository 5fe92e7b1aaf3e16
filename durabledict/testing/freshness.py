"""The suite: when reads compare, and how old a copy may be."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial
from typing import Any

from ..reading import Syncing
from .tools import SuiteBase, needs, raises

__all__ = ["FreshnessTests"]

# One read each, in strict mode: what it does -> how many comparisons it costs.
COSTS: dict[str, tuple[Any, int]] = {
    "d[k]": (lambda d: d["k"], 1),
    "get": (lambda d: d.get("k"), 1),
    "get of a missing key": (lambda d: d.get("x"), 1),
    "in": (lambda d: "k" in d, 1),
    "len": (lambda d: len(d), 1),
    "bool": (lambda d: bool(d), 1),
    "for": (lambda d: [None for _ in d], 1),
    "iter": (lambda d: iter(d), 1),
    "reversed": (lambda d: list(reversed(d)), 1),
    "keys": (lambda d: list(d.keys()), 1),
    "values": (lambda d: list(d.values()), 1),
    "items": (lambda d: list(d.items()), 1),
    "key in d.keys()": (lambda d: "k" in d.keys(), 1),  # noqa: SIM118  # the view is the test
    "copy": (lambda d: d.copy(), 1),
    "==": (lambda d: d == {"k": 1}, 1),
    "!=": (lambda d: d != {"k": 1}, 1),
    "|": (lambda d: d | {}, 1),
    "| from the right": (lambda d: {} | d, 1),
    "set": (lambda d: set(d), 1),
    "repr": (lambda d: repr(d), 0),
    "fromkeys": (lambda d: d.fromkeys("k"), 0),
    # Iteration, and the length that list() asks for as a hint.
    "list": (lambda d: list(d), 2),
    # keys() once, then item by item: the mapping protocol's way.
    "dict": (lambda d: dict(d), 1 + 3),
    "{**d}": (lambda d: {**d}, 1 + 3),
}


class Row:
    """A value like a row of a database: equal where the id is."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and other.number == self.number

    def __hash__(self) -> int:
        return self.number


class FreshnessTests(SuiteBase):
    """The three ways to read, what a sync fetches, and bounds."""

    # -- the three ways to read ---------------------------------------------------------------

    @needs("shared", "strict")
    def test_a_strict_read_sees_every_acknowledged_write(self) -> None:
        a, b = self.open(), self.open()
        for number in range(50):
            b["k"] = number
            assert a["k"] == a.get("k") == number
            b[number] = number
            assert number in a
            assert len(a) == number + 2
            assert list(a)
            assert a.copy()[number] == number

    @needs("strict")
    def test_comparisons_of_each_operation(self) -> None:
        d = self.open()
        d.update(k=1, l=2, m=3)
        for name, (operation, cost) in COSTS.items():
            count = self.comparisons(d, partial(operation, d))
            assert count == cost, f"{name}: {count} comparisons"

    @needs("strict")
    def test_only_strict_reads_compare(self) -> None:
        with self.clock():
            bounded, manual = self.open(autosync=5.0), self.open(autosync=False)
            for d in (bounded, manual):
                d["k"] = 1
                for name, (operation, _) in COSTS.items():
                    count = self.comparisons(d, partial(operation, d))
                    assert count == 0, f"{name}: {count} comparisons"

    @needs("shared")
    def test_a_manual_dict_syncs_by_hand(self) -> None:
        a, b = self.open(autosync=False), self.open()
        b["k"] = 1
        assert "k" not in a
        assert a.sync() is True
        assert a["k"] == 1
        assert a.sync() is False
        stamp = a.last_updated()
        assert a.last_synced == stamp
        assert a.cache_expired is None
        b["k"] = 2
        if "strict" in self.capabilities:
            assert a.cache_expired == a.last_updated() != stamp
        assert a["k"] == 1

    def test_a_clean_manual_dict_is_native(self) -> None:
        d = self.open(autosync=False)
        assert type(d) is d.__class__
        assert type(d).__getitem__ is dict.__getitem__ or not issubclass(type(d), Syncing)
        for autosync in (5.0, timedelta(seconds=5), self.strictest):
            d.autosync = autosync
            if "told" not in self.capabilities or autosync is not True:
                assert issubclass(type(d), Syncing)
                assert d.__class__ is not type(d)
            d.autosync = False
            assert not issubclass(type(d), Syncing)
        with self.down(d), raises(d.unavailable):
            d["k"] = 1
        assert issubclass(type(d), Syncing)  # a write of unknown outcome
        assert d.get("k") is None
        assert not issubclass(type(d), Syncing)

    def test_autosync_takes_true_false_and_seconds(self) -> None:
        for good, kept in ((True, True), (False, False), (0.5, 0.5), (timedelta(minutes=1), 60.0)):
            d = self.open(autosync=good)
            assert d.autosync == kept
            assert type(d.autosync) is type(kept)
        bad: list[Any] = [
            0, 1, 5, 0.0, -1.0, math.nan, math.inf, timedelta(0), None, "yes", [], 1j,
        ]  # fmt: skip
        for value in bad:
            with raises(TypeError, "autosync=", "True", "False", "seconds"):
                self.open(autosync=value)
            with raises(TypeError, "autosync="):
                d.autosync = value
        assert d.autosync == 60.0

    def test_opening_changes_nothing(self) -> None:
        d = self.open()
        d["k"] = 1
        for autosync in (True, 5.0, False):
            stamp = d.last_updated()
            assert self.reader(autosync=autosync).get("k") == 1
            assert d.last_updated() == stamp

    # -- what a sync brings -------------------------------------------------------------------

    @needs("delta", "shared")
    def test_a_sync_fetches_only_what_changed(self) -> None:
        a, b = self.open(autosync=False), self.open()
        b.update({number: number for number in range(100)})
        a.sync()
        reloads, fetched = a.stats.reloads, a.stats.keys_fetched
        b[5] = "five"
        b[200] = 200
        del b[6]
        assert a.sync() is True
        assert a.stats.reloads == reloads
        assert a.stats.keys_fetched == fetched + 2
        self.check(a, {**{n: n for n in range(100) if n != 6}, 5: "five", 200: 200})

    @needs("shared")
    def test_a_delta_that_changes_nothing_is_no_change(self) -> None:
        a, b = self.open(autosync=False), self.open()
        b["k"] = 1
        a.sync()
        b["passing"] = 1
        del b["passing"]
        b["k"] = 2
        b["k"] = 1
        assert a.last_updated() != a.last_synced
        assert a.sync() is False
        assert a.last_synced == a.last_updated()

    def test_what_is_the_same_stays_the_very_object(self) -> None:
        d = self.open(autosync=False)
        d["k"] = [1]
        held = d["k"]
        d["l"] = 2
        d.sync(force=True)
        assert d["k"] is held
        held.append(2)
        if "aliasing" in self.capabilities:
            assert d.sync(force=True) is True
            assert d["k"] == [1]

    @needs("shared")
    def test_equal_is_not_the_same(self) -> None:
        """An == that looks at an id alone, or finds 1 and True equal, is no reason to stay old."""
        for force in (True, False):
            a, b = self.open(autosync=False), self.open()
            b.update(row=Row(1, "old"), number=1, list=[1])
            a.sync()
            b.update(row=Row(1, "new"), number=True, list=[True])
            assert a.sync(force=force) is True
            assert a["row"].name == "new"
            assert a["number"] is True
            assert a["list"][0] is True
            b["row"] = Row(1, "own")
            assert b["row"].name == "own"

    @needs("shared")
    def test_sync_by_force_reloads_whatever_the_stamps_say(self) -> None:
        a, b = self.open(autosync=False), self.open()
        b["k"] = 1
        a.sync()
        dict.__setitem__(a, "k", "wrong")
        assert a.sync() is False
        dict.__setitem__(a, "x", "wrong")
        assert a["k"] == "wrong"
        assert a.sync(force=True) is True
        assert a.copy() == {"k": 1}
        assert a.sync(force=True) is False

    def test_stats(self) -> None:
        d = self.open(autosync=False)
        before = d.stats.comparisons
        d["k"] = 1
        d.sync(force=True)
        assert d.stats.comparisons > before
        assert d.stats.reloads <= d.stats.syncs
        assert d.stats.keys_fetched >= 1
        assert d.stats.failures == 0

    # -- bounds -------------------------------------------------------------------------------

    @needs("shared")
    def test_a_bound_allows_one_comparison_in_its_time(self) -> None:
        with self.clock() as clock:
            a, b = self.open(autosync=10.0), self.open()
            b["k"] = 1
            assert self.comparisons(a, lambda: [a.get("k"), "k" in a, len(a), list(a)]) == 0
            assert a.get("k") is None
            clock.move(9.9)
            assert self.comparisons(a, lambda: a.get("k")) == 0
            clock.move(0.2)
            assert self.comparisons(a, lambda: [a.get("k"), "k" in a, list(a)]) == 1
            assert a.get("k") == 1
            clock.move(9.9)
            assert self.comparisons(a, lambda: a.get("k")) == 0
            clock.move(0.2)
            assert self.comparisons(a, lambda: [a["k"], a["k"]]) == 1

    @needs("shared")
    def test_a_bound_is_over_at_its_very_end(self) -> None:
        reads: list[Any] = [
            lambda d: d["k"], lambda d: d.get("k"), lambda d: "k" in d, len, lambda d: list(d),
        ]  # fmt: skip
        for read in reads:
            with self.clock() as clock:
                a, b = self.open(autosync=10.0), self.open()
                b["k"] = 1
                clock.move(10.0)
                assert read(a) in (1, ["k"])
                b.clear()

    def test_a_bound_counts_from_when_the_comparison_was_sent(self) -> None:
        with self.clock() as clock:
            d = self.open(autosync=10.0)
            clock.move(10.0)
            with self.hook(d, "last_updated", after=lambda: clock.move(6.0), times=1) as calls:
                d.get("k")
                assert d.checked_age == 6.0
                clock.move(3.9)
                d.get("k")
                assert len(calls) == 1
                clock.move(0.2)
                d.get("k")
                assert len(calls) == 2

    @needs("shared")
    def test_a_bound_counts_from_when_the_comparison_before_a_fetch_was_sent(self) -> None:
        with self.clock() as clock:
            a, b = self.open(autosync=10.0), self.open()
            a["k"] = 0
            b["k"] = 1
            clock.move(10.0)
            with self.hook(a, "changes", after=lambda: clock.move(6.0)):
                assert a["k"] == 1
            assert a.checked_age == 6.0

    def test_checked_age(self) -> None:
        with self.clock() as clock:
            d = self.open(autosync=False)
            assert d.checked_age == 0
            clock.move(7.0)
            assert d.checked_age == 7.0
            d.sync()
            assert d.checked_age == 0
            clock.move(1.0)
            with self.down(d), raises(d.unavailable):
                d.sync()
            assert d.checked_age == 1.0

    @needs("strict")
    def test_checked_age_of_a_strict_dict(self) -> None:
        with self.clock() as clock:
            d = self.open()
            clock.move(5.0)
            assert d.checked_age == 5.0
            d.get("k")
            assert d.checked_age == 0
