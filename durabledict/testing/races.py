"""The suite: the interleavings of docs/internals.rst, section 0, forced by hooks.

A thread is stopped at the critical point by running the other party inside a hook; nothing sleeps
and hopes. Each test names the rule that it fails without.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from ..changes import Commit
from ..reading import Syncing
from .tools import PATIENCE, SuiteBase, in_thread, needs, raises

__all__ = ["RaceTests"]


class RaceTests(SuiteBase):
    """Two or three parties at the critical points."""

    # -- rule 0.1 -----------------------------------------------------------------------------

    @needs("shared")
    def test_rule_0_1_a_write_between_stamp_and_data_is_not_missed(self) -> None:
        for name in ("durables", "changes"):
            for moment in ("before", "after"):
                a, b = self.open(autosync=False), self.open()
                a["k"] = 0
                b["first"] = name
                write: Any = {moment: lambda b=b, moment=moment: b.update(k=moment)}
                between: Any = lambda b=b: b.update(between=1)  # noqa: E731  # bound here
                with (
                    self.hook(a, "last_updated", after=between, times=1),
                    self.hook(a, name, times=1, **write),
                ):
                    a.sync(force=name == "durables")
                a.sync()
                self.check(a, {"k": moment, "first": name, "between": 1})
                a.clear()

    def test_rule_0_1_the_stamp_is_read_before_the_data(self) -> None:
        d = self.open(autosync=False)
        order: list[str] = []
        with ExitStack() as stack:
            for name in ("last_updated", "durables", "changes"):
                note = lambda name=name: order.append(name)  # noqa: E731  # bound here
                stack.enter_context(self.hook(d, name, before=note))
            d.sync(force=True)
        assert order == ["last_updated", "durables"]

    @needs("shared")
    def test_rule_0_1_stamps_are_compared_for_difference_not_order(self) -> None:
        """A store that was restored hands out lower stamps than before."""
        a, b = self.open(autosync=False), self.open()
        b["k"] = 1
        a.sync()
        a.last_synced = (2**62, 2**61)  # as if the store had been far ahead
        b["k"] = 2
        a.sync()
        assert a["k"] == 2
        # Where the store has stamps of its own, it is also that of any other dict.
        teller = a if "own_stamps" in self.capabilities else b
        assert a.last_synced == teller.last_updated()

    def test_rule_0_1_an_unknown_stamp_means_a_reload_and_records_nothing(self) -> None:
        d = self.open(autosync=False)
        d["k"] = 1
        original = d.last_updated
        d.last_updated = lambda: None
        for _ in range(3):
            reloads = d.stats.reloads
            d.sync()
            assert d.stats.reloads == reloads + 1
            assert d.last_synced is None
            assert d["k"] == 1
        assert not issubclass(type(d), Syncing)
        d.last_updated = original
        d.sync()
        assert d.last_synced == d.last_updated()
        assert d.sync() is False

    # -- rule 0.3 -----------------------------------------------------------------------------

    @needs("shared")
    def test_rule_0_3_own_write_against_another_synced_meanwhile(self) -> None:
        """Own write 10 -> 11; another's 12 is synced by a second thread; 11 is applied after it."""
        for name in ("persist", "persist_many"):
            a, b = self.open(), self.open()
            a["k"] = "old"

            def overtaken(a: Any = a, b: Any = b) -> None:
                in_thread(lambda: b.__setitem__("k", "other"))
                in_thread(lambda: b.__setitem__("more", 1))
                in_thread(a.sync)

            with self.hook(a, "persist", after=overtaken, times=1):
                if name == "persist":
                    a["k"] = "own"
            with self.hook(a, "persist_many", after=overtaken, times=1):
                if name == "persist_many":
                    a.update(k="own")
            assert dict.get(a, "k") == "other"
            assert dict.get(a, "more") == 1
            assert a.last_synced == a.last_updated()
            self.check(a, {"k": "other", "more": 1})
            a.clear()

    @needs("shared")
    def test_rule_0_3_removing_against_another_synced_meanwhile(self) -> None:
        a, b = self.open(), self.open()
        a["k"] = "old"

        def overtaken() -> None:
            in_thread(lambda: b.__setitem__("k", "other"))
            in_thread(a.sync)

        with self.hook(a, "depersist", after=overtaken, times=1):
            del a["k"]
        assert dict.get(a, "k") == "other"
        self.check(a, {"k": "other"})

    @needs("delta", "!own_stamps")
    def test_rule_0_3_a_sync_that_a_write_overtook_is_thrown_away(self) -> None:
        d = self.open(autosync=False)
        d["k"] = "old"

        def overtake() -> None:
            in_thread(lambda: d.__setitem__("k", "new"))

        with self.hook(d, "durables", after=overtake, times=1) as reloads:
            d.sync(force=True)
        assert len(reloads) == 2
        assert d["k"] == "new"
        assert d.last_synced == d.last_updated()

    @needs("delta", "!own_stamps")
    def test_rule_0_3_a_sync_that_loses_every_round_leaves_the_stamp_unknown(self) -> None:
        d = self.open(autosync=False)
        d["k"] = 0
        numbers = iter(range(1, 100))

        def overtake() -> None:
            in_thread(lambda: d.__setitem__("k", next(numbers)))

        with self.hook(d, "durables", after=overtake) as reloads:
            d.sync(force=True)
        assert len(reloads) == 3
        assert d.last_synced is None
        assert issubclass(type(d), Syncing)
        assert d["k"] == 3
        assert d.last_synced == d.last_updated()
        assert not issubclass(type(d), Syncing)

    @needs("delta", "!own_stamps")
    def test_rule_0_3_a_write_that_a_sync_has_brought_already_costs_nothing(self) -> None:
        d = self.open(autosync=False)
        count = d.stats.comparisons
        with self.hook(d, "persist", after=lambda: in_thread(d.sync), times=1):
            d["k"] = 1
        assert d.stats.comparisons == count + 1
        assert d.last_synced == d.last_updated()

    @needs("shared")
    def test_rule_0_3_no_commit_is_applied_to_a_copy_of_unknown_state(self) -> None:
        a, b = self.open(autosync=False), self.open()
        b["other"] = 1
        a.last_synced = None
        a.persist = lambda key, value: Commit(None, a.last_updated(), {})
        a["k"] = 1
        assert a["other"] == 1
        assert a.last_synced == a.last_updated()

    @needs("delta")
    def test_rule_0_3_last_synced_never_vouches_for_less_than_it_says(self) -> None:
        """At any moment, a copy whose stamp is the store's holds what the store holds."""
        d = self.open(autosync=False)
        b = self.reader()
        # Stamps of b's own would say nothing of d's, and be the same by chance.
        teller = d if "own_stamps" in self.capabilities else b
        stop = threading.Event()
        errors: list[BaseException] = []

        def write(durable: Any, name: str) -> None:
            try:
                number = 0
                while not stop.is_set():
                    number += 1
                    durable[f"{name}{number % 7}"] = number
                    if number % 5 == 0:
                        durable.pop(f"{name}{(number + 3) % 7}", None)
            except BaseException as error:
                errors.append(error)

        def sync() -> None:
            try:
                while not stop.is_set():
                    d.sync()
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=write, args=(d, "a")),
            threading.Thread(target=write, args=(d, "b")),
            threading.Thread(target=write, args=(b, "c")),
            threading.Thread(target=sync),
        ]
        for thread in threads:
            thread.start()
        for _ in range(40):
            with d._copy_lock:
                held, synced = dict(zip(*d._lists(), strict=True)), d.last_synced
            # Only where the stamp is the same before and after is the store's state this one.
            before = teller.last_updated()
            stored = self.other(b)
            if before == synced == teller.last_updated():
                assert held == stored
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert not errors
        self.check(d, self.other(b))

    # -- rule 0.4 -----------------------------------------------------------------------------

    def test_rule_0_4_a_sync_in_flight_does_not_clear_a_doubt(self) -> None:
        d = self.open(autosync=False)
        d["k"] = "old"

        def fail() -> None:
            raise self.outage(d)

        def write_and_lose_the_answer() -> None:
            with self.hook(d, "persist", after=fail), raises(d.unavailable):
                d["k"] = "new"

        with self.hook(d, "durables", after=lambda: in_thread(write_and_lose_the_answer), times=1):
            d.sync(force=True)
        assert d["k"] == "new"
        assert d.last_synced == d.last_updated()
