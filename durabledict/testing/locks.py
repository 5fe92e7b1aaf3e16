"""The suite: what runs under the lock of a dict, and who waits for whom.

Rule 0.5 of docs/internals.rst: the lock of the local copy is held for memory operations alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from .tools import PATIENCE, SuiteBase, in_thread

__all__ = ["LockTests"]

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


class LockTests(SuiteBase):
    """One lock, many threads, and code of the user's that runs at any moment."""

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

    def test_rule_0_5_a_read_that_interrupts_an_apply_does_not_wait(self) -> None:
        """A signal handler that syncs, while another thread does: each would wait for the other."""
        d = self.open(autosync=False)
        d.copy()
        handled: list[Any] = []
        threads: list[threading.Thread] = []

        def interrupt() -> None:
            threads.append(threading.Thread(target=d.sync, daemon=True))
            threads[0].start()
            ends = time.monotonic() + PATIENCE
            while d._sync_owner is None and time.monotonic() < ends:
                time.sleep(0.001)
            assert d._sync_owner is not None
            handled.append(d.sync())

        with self.hook(d, "_follow", before=interrupt, times=1):
            in_thread(lambda: d.__setitem__("k", 1))
        threads[0].join(PATIENCE)
        assert not threads[0].is_alive()
        assert handled == [False]
        assert d["k"] == 1
        assert d.last_synced == d.last_updated()

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
        for number in range(20):
            b.replace_all({"stays": number, "other": number, number: [number]})
            d.sync(force=number % 2 == 0)
            d.replace_all({"stays": -1, "other": -1, "more": [number]})
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not errors
