"""The suite: one thread asks the store, and others use the answer.

Rule 0.6 of docs/internals.rst: those that began to read before the question was sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .tools import PATIENCE, SuiteBase, in_thread, needs, raises

__all__ = ["SharingTests"]


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

    def wait_for(self, threads: int) -> None:
        """Return when so many have come."""
        ends = time.monotonic() + PATIENCE
        while self.entered < threads and time.monotonic() < ends:
            time.sleep(0.001)
        assert self.entered >= threads


class _Readers:
    """Threads that come while the first of them asks, and wait for its answer.

    :param read: what each of them does

    """

    def __init__(self, durable: Any, number: int, read: Callable[[], object]) -> None:
        self._lock = durable._sync_mutex = _CountedLock(durable._sync_mutex)
        self._threads = [threading.Thread(target=read) for _ in range(number)]
        self._asked, self._goes_on = threading.Event(), threading.Event()

    def wait_for_all(self) -> None:
        """Stop the first one, in the middle of its question, until all have come."""
        self._asked.set()
        assert self._goes_on.wait(PATIENCE)

    def run(self) -> None:
        """Start them and wait for them."""
        first, *others = self._threads
        first.start()
        assert self._asked.wait(PATIENCE)
        for thread in others:
            thread.start()
        self._lock.wait_for(len(self._threads))
        self._goes_on.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class _Overtaking:
    """A lock at which the first thread that comes is overtaken by another one."""

    def __init__(self, lock: Any, action: Callable[[], object]) -> None:
        self._lock = lock
        self._actions = [action]

    def __enter__(self) -> None:
        if self._actions:
            in_thread(self._actions.pop())
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


class SharingTests(SuiteBase):
    """Many readers, few questions."""

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
            lock.wait_for(9)
            goes_on.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert len(calls) == 2
        if b is not a:
            assert {results[f"later {number}"] for number in range(8)} == {"new"}

    def test_rule_0_6_readers_at_the_end_of_a_bound_make_one_comparison(self) -> None:
        with self.clock() as clock:
            d = self.open(autosync=10.0)
            d["k"] = 1
            clock.move(20.0)
            readers = _Readers(d, 8, lambda: d.get("k"))
            with self.hook(d, "last_updated", before=readers.wait_for_all, times=1) as calls:
                readers.run()
            assert len(calls) == 1

    @needs("!told")
    def test_rule_0_6_waiting_reads_share_a_failure(self) -> None:
        """A store that times out must not cost each waiting thread its own timeout."""
        d = self.open()
        d["k"] = 1
        failures: list[BaseException] = []

        def fail() -> None:
            readers.wait_for_all()
            raise self.outage(d)

        def read() -> None:
            try:
                d["k"]
            except d.unavailable as error:
                failures.append(error)

        readers = _Readers(d, 9, read)
        with self.hook(d, "last_updated", before=fail) as calls:
            readers.run()
        assert len(failures) == 9
        assert len(calls) == 2
        assert d["k"] == 1

    @needs("!told")
    def test_rule_0_6_a_failure_that_is_shared_is_raised_as_a_copy(self) -> None:
        """One object that many threads raise would grow a traceback of them all."""
        d = self.open()

        def fail_to_read() -> None:
            with self.down(d), raises(d.unavailable):
                d.sync()

        caught: list[BaseException] = []
        mutex = d._sync_mutex
        for _ in range(2):
            d._sync_mutex = _Overtaking(mutex, fail_to_read)
            d._glimpse = None  # a read that needs the lock
            try:
                d.get("k")
            except d.unavailable as error:
                caught.append(error)
        assert len({id(error) for error in (*caught, d._answer_error)}) == 3

    @needs("!told")
    def test_rule_0_6_an_error_that_is_no_outage_is_not_shared(self) -> None:
        d = self.open()
        d["k"] = 1

        def interrupt() -> None:
            raise KeyboardInterrupt

        with self.hook(d, "last_updated", before=interrupt, times=1), raises(KeyboardInterrupt):
            d["k"]
        assert d["k"] == 1
        assert d.stale_since is None

    @needs("!told")
    def test_rule_0_6_who_waits_asks_again_after_an_error_that_is_no_outage(self) -> None:
        d = self.open()
        d["k"] = 1

        def fail() -> None:
            raise RecursionError

        def fail_to_read() -> None:
            with self.hook(d, "last_updated", before=fail), raises(RecursionError):
                d.sync()

        d._sync_mutex = _Overtaking(d._sync_mutex, fail_to_read)
        d._glimpse = None  # as above
        assert d["k"] == 1

    def test_rule_0_6_a_reload_by_force_is_not_satisfied_by_anothers_answer(self) -> None:
        d = self.open(autosync=False)
        d["k"] = 1
        dict.__setitem__(d, "k", "wrong")
        d._sync_mutex = _Overtaking(d._sync_mutex, d.sync)
        assert d.sync(force=True) is True
        assert d["k"] == 1

    @needs("shared")
    def test_rule_0_6_sync_tells_of_a_change_that_another_thread_brought(self) -> None:
        a, b = self.open(autosync=False), self.open()

        def write_and_sync() -> None:
            b["k"] = 1
            assert a.sync() is True

        a._sync_mutex = _Overtaking(a._sync_mutex, write_and_sync)
        with self.hook(a, "last_updated") as calls:
            assert a.sync() is True
        assert len(calls) == 1
