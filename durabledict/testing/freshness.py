"""The suite, second part: when reads compare, how old a copy may be, outages, push, callbacks."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from ..errors import MISSING
from ..outage import FIRST_RETRY, LONGEST_RETRY
from ..reading import Syncing
from .tools import PATIENCE, SuiteBase, in_thread, needs, raises

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


class FreshnessTests(SuiteBase):
    """Comparisons, bounds, outages, push and callbacks of one dict."""

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

    @needs("delta")
    def test_a_write_costs_no_comparison_when_nobody_else_wrote(self) -> None:
        for autosync in (True, 3600.0, False):
            d = self.open(autosync=autosync)
            d["k"] = 1
            reloads = d.stats.reloads
            assert self.comparisons(d, partial(d.__setitem__, "k", 2)) == 0
            assert self.comparisons(d, partial(d.update, l=1, m=2)) == 0
            assert self.comparisons(d, partial(d.__delitem__, "l")) == 0
            assert self.comparisons(d, partial(d.replace_all, {"n": 1})) == 0
            assert self.comparisons(d, d.clear) == 0
            assert d.stats.reloads == reloads
            assert d.last_synced == d.last_updated()

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

    @needs("delta", "shared")
    def test_a_write_after_others_writes_brings_them_too(self) -> None:
        a, b = self.open(autosync=False), self.open()
        a["k"] = 1
        reloads = a.stats.reloads
        b["other"] = 2
        a["k"] = 3
        assert a.copy() == {"k": 3, "other": 2}
        assert a.stats.reloads == reloads

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
        for autosync in (True, 5.0, timedelta(seconds=5)):
            d.autosync = autosync
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

    @needs("shared")
    def test_sync_by_force_reloads_whatever_the_stamps_say(self) -> None:
        a, b = self.open(autosync=False), self.open()
        b["k"] = 1
        a.sync()
        dict.__setitem__(a, "k", "wrong")
        dict.__setitem__(a, "x", "wrong")
        assert a.sync() is False
        assert a["k"] == "wrong"
        assert a.sync(force=True) is True
        assert a.copy() == {"k": 1}
        assert a.sync(force=True) is False

    def test_sync_can_be_connected_to_a_signal(self) -> None:
        d = self.open()
        assert d.sync(signal=object(), sender=object(), environ={}, scope=None) is False
        with raises(TypeError, "environ"):
            d.sync(environ={})
        with self.logged() as records, self.down(d):
            assert d.sync(signal=object(), sender=object(), environ={}) is False
            assert d.sync(signal=object()) is False
            with raises(d.unavailable):
                d.sync()
        assert len(records) == 1
        assert d.stats.failures == 3
        assert d.sync(signal=object()) is False
        assert d.stale_since is None

    def test_opening_changes_nothing(self) -> None:
        d = self.open()
        d["k"] = 1
        for autosync in (True, 5.0, False):
            stamp = d.last_updated()
            assert self.reader(autosync=autosync).get("k") == 1
            assert d.last_updated() == stamp

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

    # -- outages ------------------------------------------------------------------------------

    def test_an_outage_reaches_the_reader(self) -> None:
        d = self.open()
        d["k"] = 1
        with self.down(d):
            reads: list[Any] = [lambda: d["k"], lambda: list(d), lambda: len(d), lambda: d.copy()]
            for read in reads:
                with raises(d.unavailable, "cannot be asked"):
                    read()
            writes: list[Any] = [
                lambda: d.__setitem__("k", 2), lambda: d.update(k=2), lambda: d.__delitem__("k"),
                lambda: d.setdefault("k", 2), lambda: d.popitem(),
            ]  # fmt: skip
            for write in writes:
                with raises(d.unavailable, "cannot be asked"):
                    write()
            assert repr(d) == "{'k': 1}"
        assert d["k"] == 1
        assert d.stale_since is None

    def test_an_outage_is_waited_out_with_a_stale_copy(self) -> None:
        with self.clock() as clock, self.logged() as records:
            d = self.open(on_outage="stale")
            d["k"] = 1
            clock.move(3.0)
            began = datetime.now(timezone.utc)
            with self.down(d) as calls:
                for _ in range(100):
                    assert (d["k"], d.get("x"), "k" in d, len(d), list(d)) == (
                        1,
                        None,
                        True,
                        1,
                        ["k"],
                    )
                assert len(calls) == 1
                assert len(records) == 1
                assert d.checked_age == 3.0
                since = d.stale_since
                assert since is not None
                assert began <= since <= datetime.now(timezone.utc)
                for number in range(2, 20):
                    waited = 0.0
                    while len(calls) < number:
                        clock.move(0.01)
                        waited += 0.01
                        assert d["k"] == 1
                    shortest = min(FIRST_RETRY * 2 ** (number - 2), LONGEST_RETRY)
                    assert shortest - 0.02 <= waited <= shortest * 1.25 + 0.02
                assert d.stale_since == since
                assert len(records) == 1
                assert d.sync() is False
                writes: list[Any] = [
                    lambda: d.__setitem__("k", 2), lambda: d.update(k=2),
                    lambda: d.__delitem__("k"), lambda: d.setdefault("k", 2),
                ]  # fmt: skip
                for write in writes:
                    with raises(d.unavailable):
                        write()
            clock.move(LONGEST_RETRY * 1.25)
            assert d["k"] == 1
            assert d.stale_since is None
            assert d.checked_age == 0
            with self.down(d):
                assert d["k"] == 1
            assert len(records) == 2

    def test_how_long_a_stale_copy_is_served_can_be_bounded(self) -> None:
        for autosync in (True, 1.0, False):
            with self.clock() as clock:
                d = self.open(autosync=autosync, on_outage="stale", max_stale=60.0)
                d["k"] = 1
                d.sync()
                clock.move(50.0)
                with self.down(d):
                    assert d.sync() is False
                    assert d["k"] == 1
                    clock.move(9.9)
                    assert d["k"] == 1
                    clock.move(0.2)
                    reads: list[Any] = [
                        lambda d=d: d["k"],
                        lambda d=d: list(d),
                        lambda d=d: d.sync(),
                    ]
                    for read in reads:
                        with raises(d.unavailable):
                            read()
                    clock.move(0.01)
                    with raises(d.unavailable):
                        d.get("k")
                clock.move(LONGEST_RETRY * 1.25)
                assert d["k"] == 1

    @needs("shared")
    def test_a_manual_dict_mends_itself_after_a_bounded_outage(self) -> None:
        with self.clock() as clock:
            d = self.open(autosync=False, on_outage="stale", max_stale=60.0)
            b = self.open()
            assert not issubclass(type(d), Syncing)
            with self.down(d):
                assert d.sync() is False
                assert issubclass(type(d), Syncing)
            b["k"] = 1
            assert "k" not in d
            clock.move(1.0)
            assert d["k"] == 1
            assert not issubclass(type(d), Syncing)

    def test_outage_options_are_checked(self) -> None:
        with raises(ValueError, "on_outage", "raise", "stale"):
            self.open(on_outage="ignore")
        with raises(ValueError, "max_stale", "stale"):
            self.open(max_stale=5.0)
        refused: list[Any] = ["5", True, [], -1, math.nan]
        for bad in refused:
            with raises(TypeError, "max_stale"):
                self.open(on_outage="stale", max_stale=bad)
        d = self.open(on_outage="stale", max_stale=timedelta(seconds=5))
        assert (d.on_outage, d.max_stale) == ("stale", 5.0)

    def test_a_write_of_unknown_outcome_is_looked_up_at_the_next_read(self) -> None:
        for autosync in (True, 3600.0, False):
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

    @needs("shared")
    def test_a_write_that_is_done_does_not_raise_because_the_sync_after_it_fails(self) -> None:
        """Or the caller would write again."""
        a, b = self.open(autosync=False), self.open()
        a["k"] = 1
        b["other"] = 2

        def fail() -> None:
            raise self.outage(a)

        with self.hook(a, "last_updated", before=fail), self.logged() as records:
            a["k"] = 3
        assert len(records) == 1
        assert a["k"] == 3
        assert a["other"] == 2

    def test_stats(self) -> None:
        d = self.open(autosync=False)
        before = d.stats.comparisons
        d["k"] = 1
        d.sync(force=True)
        assert d.stats.comparisons > before
        assert d.stats.reloads <= d.stats.syncs
        assert d.stats.keys_fetched >= 1
        assert d.stats.failures == 0

    # -- push ---------------------------------------------------------------------------------

    @needs("shared", "push")
    def test_watch_brings_others_writes_into_a_manual_dict(self) -> None:
        a, b = self.open(autosync=False), self.open()
        heard: dict[Any, threading.Event] = {n: threading.Event() for n in range(5)}
        a.on_change(lambda key, old, new: heard[key].set())
        with a.watch(interval=3600.0) as watch:
            assert watch.running
            for number, event in heard.items():
                b[number] = number
                assert event.wait(PATIENCE)
                assert a[number] == number
                assert not issubclass(type(a), Syncing)
        assert not watch.running
        b["unheard"] = 1
        assert "unheard" not in a

    @needs("shared")
    def test_watch_compares_after_each_interval_even_if_no_message_comes(self) -> None:
        a, b = self.open(autosync=False), self.open()
        heard = threading.Event()
        a.on_change(lambda key, old, new: heard.set())
        asked = threading.Event()

        def deaf(since: Any, timeout: float) -> bool:
            assert timeout == 0.05
            asked.set()
            a._interrupted.wait(timeout)
            return False

        a.wait = deaf
        a.watch(interval=timedelta(seconds=0.05))
        assert asked.wait(PATIENCE)
        b["k"] = 1
        assert heard.wait(PATIENCE)

    @needs("shared")
    def test_watch_survives_an_outage_and_reports_it_once(self) -> None:
        a, b = self.open(autosync=False), self.open()
        failed, heard = threading.Event(), threading.Event()
        a.on_change(lambda key, old, new: heard.set())

        def fail() -> None:
            failed.set()
            raise self.outage(a)

        with self.logged() as records:
            with self.hook(a, "last_updated", before=fail):
                a.watch(interval=0.05)
                assert failed.wait(PATIENCE)
                while a.stats.failures < 2:
                    threading.Event().wait(0.01)
                assert a.stale_since is not None
            b["k"] = 1
            assert heard.wait(PATIENCE)
        assert len(records) == 1
        assert a.stale_since is None

    def test_watch_ends_with_the_dict(self) -> None:
        d = self.open(autosync=False)
        watch = d.watch(interval=3600.0)
        again = d.watch(interval=0.05)
        assert not watch.running
        assert again.running
        d.close()
        assert not again.running
        refused: list[Any] = [0, -1.0, True, "5", math.nan, None]
        for bad in refused:
            with raises(TypeError, "interval"):
                self.open().watch(interval=bad)

    def test_nothing_keeps_a_watched_dict_alive(self) -> None:
        d = self.factory(self.place, autosync=False)
        thread = d.watch(interval=0.05)._thread
        reference = weakref.ref(d)
        del d
        thread.join(PATIENCE)
        assert not thread.is_alive()
        gc.collect()
        assert reference() is None

    # -- callbacks ----------------------------------------------------------------------------

    @needs("shared")
    def test_on_change_hears_own_writes_and_others(self) -> None:
        a, b = self.open(), self.open()
        heard: list[Any] = []
        end = a.on_change(lambda key, old, new: heard.append((key, old, new)))
        a["k"] = 1
        a["k"] = 2
        a["k"] = 2
        del a["k"]
        assert heard == [("k", MISSING, 1), ("k", 1, 2), ("k", 2, MISSING)]
        heard.clear()
        b["k"] = [3]
        a.sync()
        b["k"] = [4]
        b["l"] = None
        a.sync()
        a.sync()
        b.clear()
        a.sync()
        assert heard[0] == ("k", MISSING, [3])
        assert sorted(map(repr, heard[1:3])) == ["('k', [3], [4])", "('l', MISSING, None)"]
        assert sorted(map(repr, heard[3:])) == ["('k', [4], MISSING)", "('l', None, MISSING)"]
        end()
        end()
        a["k"] = 5
        assert len(heard) == 5
        with raises(TypeError, "on_change"):
            a.on_change(5)

    def test_a_callback_that_raises_harms_nobody(self) -> None:
        d = self.open()
        heard: list[Any] = []

        def broken(key: Any, old: Any, new: Any) -> None:
            raise ZeroDivisionError

        d.on_change(broken)
        d.on_change(lambda key, old, new: heard.append(new))
        with self.logged() as records:
            d["k"] = 1
            d["k"] = 2
        assert d["k"] == 2
        assert heard == [1, 2]
        assert len(records) == 2

    def test_a_callback_may_write_and_is_called_in_order(self) -> None:
        d = self.open()
        heard: list[Any] = []

        def chain(key: Any, old: Any, new: Any) -> None:
            if new < 5:
                d[key] = new + 1
            heard.append(new)

        d.on_change(chain)
        d["k"] = 1
        assert heard == [1, 2, 3, 4, 5]
        assert d["k"] == 5

    def test_a_callback_holds_no_lock(self) -> None:
        d = self.open()
        seen: list[Any] = []

        def from_another_thread(key: Any, old: Any, new: Any) -> None:
            seen.append(in_thread(lambda: (d["k"], d.copy(), d.sync())))

        d.on_change(from_another_thread)
        d["k"] = 1
        assert seen == [(1, {"k": 1}, False)]

    @needs("shared")
    def test_changes_that_come_while_another_thread_delivers_are_left_to_it(self) -> None:
        d = self.open()
        inside, goes_on = threading.Event(), threading.Event()
        heard: list[Any] = []

        def slow(key: Any, old: Any, new: Any) -> None:
            heard.append((new, threading.current_thread().name))
            if new == 1:
                inside.set()
                assert goes_on.wait(PATIENCE)

        d.on_change(slow)
        thread = threading.Thread(target=lambda: d.__setitem__("k", 1), name="first")
        thread.start()
        assert inside.wait(PATIENCE)
        d["k"] = 2
        d["k"] = 3
        goes_on.set()
        thread.join(PATIENCE)
        assert heard == [(1, "first"), (2, "first"), (3, "first")]
