"""The suite, third part: the interleavings of docs/internals.rst, section 0, forced by hooks.

A thread is stopped at the critical point by running the other party inside a hook; nothing sleeps
and hopes. Each test names the rule that it fails without.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ..reading import Syncing
from .tools import PATIENCE, SuiteBase, in_thread, needs, raises

__all__ = ["RaceTests"]

# Counts the instances that finalizers, pickles and comparisons of `Probe` ran in.
_probes: list[Callable[[], object]] = []


class Probe:
    """A value whose code runs something: when it is compared, decoded, finalized."""

    def __init__(self, number: int) -> None:
        self.number = number

    def _run(self) -> None:
        for probe in list(_probes):
            probe()

    def __eq__(self, other: object) -> bool:
        self._run()
        return isinstance(other, Probe) and other.number == self.number

    def __hash__(self) -> int:
        return self.number

    def __setstate__(self, state: dict[str, int]) -> None:
        self._run()
        self.__dict__.update(state)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._run()
        return super().__reduce_ex__(protocol)

    def __del__(self) -> None:
        self._run()


class _CountedLock:
    """A lock that knows how many threads wait for it or hold it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.entered = 0

    def __enter__(self) -> None:
        self.entered += 1
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


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
        assert a.last_synced == b.last_updated()

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

    @needs("delta")
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

    @needs("delta")
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

    @needs("delta")
    def test_rule_0_3_last_synced_never_vouches_for_less_than_it_says(self) -> None:
        """At any moment, a copy whose stamp is the store's holds what the store holds."""
        d = self.open(autosync=False)
        b = self.reader()
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
            before = b.last_updated()
            stored = self.other(b)
            if before == synced == b.last_updated():
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

    # -- rule 0.5 -----------------------------------------------------------------------------

    def unlocked(self, d: Any) -> Callable[[], None]:
        """Return a function that fails where this thread holds the lock of the dict."""

        def probe() -> None:
            assert in_thread(d._lists)

        return probe

    def test_rule_0_5_the_lock_is_not_held_during_io(self) -> None:
        d = self.open(autosync=False)
        d["k"] = [1]
        probe = self.unlocked(d)
        with ExitStack() as stack:
            counts = [
                stack.enter_context(self.hook(d, name, before=probe, after=probe))
                for name in ("last_updated", "durables", "changes", "persist", "persist_many")
            ]
            d["k"] = [2]
            d.update(l=3)
            d.sync(force=True)
            self.reader()["k"] = [4]
            d.sync()
            d.setdefault("m", 1)
            d.pop("m")
        assert all(counts[:2])
        assert any(counts[3:])

    def test_rule_0_5_the_lock_is_not_held_while_user_code_runs(self) -> None:
        d, b = self.open(autosync=False), self.reader()
        d["k"] = 1
        probe = self.unlocked(d)
        runs: list[int] = []

        def run() -> None:
            runs.append(1)
            probe()

        _probes.append(run)
        try:
            d["p"] = Probe(1)
            d["p"] = Probe(2)
            d.update(q=Probe(3), r=Probe(4))
            b["p"] = Probe(5)
            d.sync()
            d.sync(force=True)
            assert d == d.copy()
            d.replace_all({"k": 1, "p": Probe(6)})
            del d["p"]
            d.sync(force=True)
            d.clear()
            d["k"] = 1
        finally:
            _probes.remove(run)
        assert runs

    def test_rule_0_5_the_lock_is_not_held_while_something_is_logged(self) -> None:
        d = self.open(autosync=False, on_outage="stale")
        d["k"] = 1
        seen: list[Any] = []

        class Reading(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(in_thread(d._lists))

        logger, handler = logging.getLogger("durabledict"), Reading()
        logger.addHandler(handler)
        try:
            with self.down(d):
                d.sync()
        finally:
            logger.removeHandler(handler)
        assert seen == [(["k"], [1])]

    def test_rule_0_5_a_value_may_read_its_own_dict_while_it_is_decoded(self) -> None:
        """The backend's answer is on its way: asking again would never end."""
        d = self.open()
        d["k"] = 1
        read: list[Any] = []
        action = lambda: read.append((d.get("k"), len(d), list(d)))  # noqa: E731  # one line
        _probes.append(action)
        try:
            d["p"] = Probe(1)
            self.reader()["p"] = Probe(2)
            d.sync(force=True)
        finally:
            _probes.remove(action)
        assert all(value[0] == 1 for value in read)

    def test_rule_0_5_a_key_that_stays_is_never_missing(self) -> None:
        """Readers in the native class take no lock: an apply must not pass through less."""
        d, b = self.open(autosync=False), self.reader()
        d.update({"stays": 0, "other": 0})
        stop = threading.Event()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    d["stays"]
                    assert "stays" in d
                    assert len(d) >= 2
                    for _ in d:
                        pass
                    assert "stays" in dict(d.items())
                    assert d.copy()["stays"] is not None
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(60):
            b.replace_all({"stays": number, "other": number, number: [number]})
            d.sync(force=number % 2 == 0)
            d.replace_all({"stays": -1, "other": -1, "more": [number]})
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not errors

    # -- rule 0.6 -----------------------------------------------------------------------------

    @needs("strict")
    def test_rule_0_6_waiting_reads_share_an_answer_asked_after_they_began(self) -> None:
        a, b = self.open(), self.reader()
        a["k"] = "old"
        lock = _CountedLock(a._sync_mutex)
        a._sync_mutex = lock
        answered, goes_on = threading.Event(), threading.Event()

        def stop_first() -> None:
            answered.set()
            assert goes_on.wait(PATIENCE)

        results: dict[str, Any] = {}

        def read(name: str) -> None:
            results[name] = a["k"]

        with self.hook(a, "last_updated", after=stop_first, times=1) as calls:
            threads = [threading.Thread(target=read, args=("first",))]
            threads[0].start()
            assert answered.wait(PATIENCE)
            # The store has answered the first reader. A write that is acknowledged now must be
            # seen by whoever begins to read after it, though an answer is about to arrive.
            if b is not a:
                b["k"] = "new"
            for number in range(8):
                threads.append(threading.Thread(target=read, args=(f"later {number}",)))
                threads[-1].start()
            ends = time.monotonic() + PATIENCE
            while lock.entered < 9 and time.monotonic() < ends:
                time.sleep(0.001)
            goes_on.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert len(calls) == 2
        if b is not a:
            assert {results[f"later {number}"] for number in range(8)} == {"new"}

    def test_rule_0_6_waiting_reads_share_a_failure(self) -> None:
        """A store that times out must not cost each waiting thread its own timeout."""
        d = self.open()
        d["k"] = 1
        lock = _CountedLock(d._sync_mutex)
        d._sync_mutex = lock
        asked, goes_on = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def fail() -> None:
            asked.set()
            assert goes_on.wait(PATIENCE)
            raise self.outage(d)

        def read() -> None:
            try:
                d["k"]
            except d.unavailable as error:
                failures.append(error)

        with self.hook(d, "last_updated", before=fail) as calls:
            threads = [threading.Thread(target=read) for _ in range(9)]
            threads[0].start()
            assert asked.wait(PATIENCE)
            for thread in threads[1:]:
                thread.start()
            ends = time.monotonic() + PATIENCE
            while lock.entered < 9 and time.monotonic() < ends:
                time.sleep(0.001)
            goes_on.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert len(failures) == 9
        assert len(calls) == 2
        assert d["k"] == 1

    def test_rule_0_6_an_error_that_is_no_outage_is_not_shared(self) -> None:
        d = self.open()
        d["k"] = 1

        def interrupt() -> None:
            raise KeyboardInterrupt

        with self.hook(d, "last_updated", before=interrupt, times=1), raises(KeyboardInterrupt):
            d["k"]
        assert d["k"] == 1
        assert d.stale_since is None

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
    def test_increments_from_threads_of_two_clients_are_not_lost(self) -> None:
        a, b = self.open(), self.open(autosync=False)

        def increment(d: Any) -> None:
            for _ in range(25):
                d.compute("n", lambda n: n + 1, default=0)

        threads = [threading.Thread(target=increment, args=(d,)) for d in (a, b, a, b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        self.check(a, {"n": 100})
        self.check(b, {"n": 100})
