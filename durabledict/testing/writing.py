"""The suite: what each way of writing does."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from ..reading import Syncing
from .overriding import override
from .tools import PATIENCE, SuiteBase, needs, raises

__all__ = ["WritingTests"]


class WritingTests(SuiteBase):
    """Writes, and what the other clients see of them."""

    def test_each_way_of_writing_reaches_another_client(self) -> None:
        d, b = self.open(), self.reader()
        d["a"] = 1
        self.check(b, {"a": 1})
        d.update({"b": 2}, c=3)
        self.check(b, {"a": 1, "b": 2, "c": 3})
        d.update([("d", 4)])
        d |= {"e": 5}
        d |= [("f", 6)]
        self.check(b, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6})
        del d["a"]
        assert d.pop("b") == 2
        assert d.setdefault("c", 9) == 3
        assert d.setdefault("g", 7) == 7
        self.check(b, {"c": 3, "d": 4, "e": 5, "f": 6, "g": 7})
        key, value = d.popitem()
        assert key not in self.seen(b)
        b[key] = value
        d.replace_all({"c": 3, "h": 8})
        self.check(b, {"c": 3, "h": 8})
        self.check(d, {"c": 3, "h": 8})
        d.clear()
        self.check(b, {})
        self.check(d, {})

    def test_update_takes_what_dict_takes(self) -> None:
        d = self.open()
        d.update()
        d.update({})
        d.update([("a", 1), ("a", 2)], b=3)
        other = self.fresh()
        other["c"] = 4
        assert self.comparisons(other, lambda: d.update(other)) <= 1
        self.check(d, {"a": 2, "b": 3, "c": 4})
        for bad in (42, None, [1], ["abc"]):
            with raises((TypeError, ValueError)):
                d.update(bad)
        with raises(TypeError):
            d.update({}, {})
        with raises(TypeError):
            d |= 5
        self.check(d, {"a": 2, "b": 3, "c": 4})

    def test_zero_items_send_nothing(self) -> None:
        d = self.open()
        d["k"] = 1
        stamp = d.last_updated()
        empties: list[Any] = [{}, [], (), iter([])]
        for empty in empties:
            d.update(empty)
        d |= {}
        assert d.last_updated() == stamp
        d.replace_all({"k": 1})
        self.check(d, {"k": 1})
        d.clear()
        d.clear()
        d.replace_all({})
        self.check(d, {})
        assert self.comparisons(d, lambda: d.update()) == 0

    def test_missing_keys(self) -> None:
        d = self.open()
        reads: list[Any] = [
            lambda: d["x"],
            lambda: d.pop("x"),
            lambda: d.__delitem__("x"),
            d.popitem,
        ]
        for read in reads:
            with raises(KeyError):
                read()
        with raises(KeyError, "'x'"):
            del d["x"]
        assert d.get("x") is None
        assert d.get("x", 1) == d.pop("x", 1) == 1
        with raises(TypeError):
            d.pop("x", 1, 2)
        assert "x" not in d
        self.check(d, {})

    def test_a_missing_key_leaves_no_doubt(self) -> None:
        d = self.open(autosync=False)
        d["k"] = 1
        misses: list[Any] = [lambda: d.__delitem__("x"), lambda: d.pop("x")]
        for miss in misses:
            with raises(KeyError):
                miss()
            assert d.last_synced is not None
            assert not issubclass(type(d), Syncing)

    @needs("shared")
    def test_a_write_decides_by_what_the_store_holds_not_by_the_local_copy(self) -> None:
        """A manual dict has not heard of the other client's writes; its own still meet them."""
        a, b = self.open(autosync=False), self.reader()
        b["added"] = 1
        assert a.setdefault("added", 2) == 1
        b["popped"] = 3
        assert a.pop("popped", None) == 3
        b["deleted"] = 4
        del a["deleted"]
        a["gone"] = 5
        del self.seen(b)["gone"]
        with raises(KeyError):
            del a["gone"]
        assert "gone" not in a
        a["gone"] = 5
        del self.seen(b)["gone"]
        assert a.pop("gone", "default") == "default"
        assert "gone" not in a
        b["cleared"] = 6
        a.clear()
        self.check(b, {})
        b["replaced"] = 7
        a.replace_all({"k": 1})
        self.check(b, {"k": 1})
        self.check(a, {"k": 1})

    def test_popitem_takes_every_item_once(self) -> None:
        d, b = self.open(), self.reader()
        expected = {str(number): number for number in range(20)}
        d.update(expected)
        taken: dict[Any, Any] = {}
        while True:
            try:
                key, value = (d if len(taken) % 2 else self.seen(b)).popitem()
            except KeyError:
                break
            assert key not in taken
            taken[key] = value
        assert taken == expected
        self.check(d, {})

    def test_popitem_passes_over_what_only_an_override_shows(self) -> None:
        """Or it would try the same key for ever."""
        d = self.open()
        d["k"] = 1
        with override(d, shown=2), self.hook(d, "pop") as pops:
            assert d.popitem() == ("k", 1)
            assert len(pops) == 2
            with raises(KeyError):
                d.popitem()

    # -- setdefault and pop -------------------------------------------------------------------

    def test_setdefault_is_atomic_between_threads(self) -> None:
        d = self.open()
        results: list[Any] = []

        def race(number: int) -> None:
            for key in range(20):
                results.append((key, d.setdefault(key, number)))

        threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(results) == 80
        assert len(set(results)) == 20
        self.check(d, dict(results))

    def test_pop_is_atomic_between_threads(self) -> None:
        d = self.open()
        d.update({number: number for number in range(40)})
        results: list[Any] = []

        def race() -> None:
            for key in range(40):
                value = d.pop(key, None)
                if value is not None:
                    results.append(value)

        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(results) == list(range(40))
        self.check(d, {})

    @needs("compare_and_set", "shared")
    def test_setdefault_and_pop_meet_another_client_at_the_critical_point(self) -> None:
        a, b = self.open(), self.open()
        with self.hook(a, "_fetch", after=lambda: b.update(k="theirs"), times=1):
            assert a.setdefault("k", "mine") == "theirs"
        self.check(a, {"k": "theirs"})
        with self.hook(a, "_fetch", after=lambda: b.update(k="newer"), times=1):
            assert a.pop("k") == "newer"
        self.check(a, {})

    @needs("compare_and_set", "shared")
    def test_setdefault_that_meets_another_write_brings_it(self) -> None:
        a, b = self.open(autosync=False), self.open()
        with self.hook(a, "_fetch", before=lambda: b.update(k="theirs"), times=1):
            assert a.setdefault("k", "mine") == "theirs"
        assert a["k"] == "theirs"

    # -- what the store said, and what it may have done ---------------------------------------

    def test_a_write_of_unknown_outcome_is_looked_up_at_the_next_read(self) -> None:
        for autosync in (self.strictest, 3600.0, False):
            d = self.open(autosync=autosync)
            d["k"] = 1

            def fail(d: Any = d) -> None:
                raise self.outage(d)

            names = ("persist", "persist_many")
            with (
                self.hook(d, names[0], after=fail),
                self.hook(d, names[1], after=fail),
                raises(d.unavailable),
            ):
                d["k"] = "done"
            assert d.last_synced is None
            assert d["k"] == "done"
            with (
                self.hook(d, names[0], before=fail),
                self.hook(d, names[1], before=fail),
                raises(d.unavailable),
            ):
                d["k"] = "not done"
            assert d["k"] == "done"
            assert d.last_synced == d.last_updated()

    def test_an_interrupted_write_is_looked_up_at_the_next_read(self) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        d = self.open(autosync=False)
        with self.hook(d, "persist", after=interrupt), raises(KeyboardInterrupt):
            d["k"] = 1
        assert d["k"] == 1

    @needs("shared")
    def test_a_write_that_is_done_does_not_raise_because_the_sync_after_it_fails(self) -> None:
        """Or the caller would write again."""
        a, b = self.open(autosync=False), self.open()
        a["k"] = 1
        a.sync()  # from here on a store that tells by itself tells of what others write
        b["other"] = 2

        def fail() -> None:
            raise self.outage(a)

        with (
            self.hook(a, "last_updated", before=fail),
            # Where the store tells by itself, only this is asked.
            self.hook(a, "changes", before=fail),
            self.logged() as records,
        ):
            a["k"] = 3
        assert len(records) == 1
        assert a["k"] == 3
        assert a["other"] == 2

    @needs("delta")
    def test_a_write_costs_no_comparison_when_nobody_else_wrote(self) -> None:
        for autosync in (self.strictest, 3600.0, False):
            d = self.open(autosync=autosync)
            d["k"] = 1
            reloads = d.stats.reloads
            assert self.comparisons(d, partial(d.__setitem__, "k", 2)) == 0
            assert self.comparisons(d, partial(d.update, l=1, m=2)) == 0
            assert self.comparisons(d, partial(d.__delitem__, "l")) == 0
            compares_first = int("own_stamps" in self.capabilities)
            assert self.comparisons(d, partial(d.replace_all, {"n": 1})) == compares_first
            assert self.comparisons(d, d.clear) == compares_first
            assert d.stats.reloads == reloads
            if "own_stamps" in self.capabilities:
                d.sync()  # a stamp may also count what a write leaves to be asked for
            assert d.last_synced == d.last_updated()

    @needs("delta", "shared")
    def test_a_write_after_others_writes_brings_them_too(self) -> None:
        a, b = self.open(autosync=False), self.open()
        a["k"] = 1
        reloads = a.stats.reloads
        b["other"] = 2
        a["k"] = 3
        if "own_stamps" in self.capabilities:
            # The store was not asked, and may not have told: but the write does not hide it.
            a.sync()
        assert a.copy() == {"k": 3, "other": 2}
        assert a.stats.reloads == reloads
