"""The processes that write and read: `python -m tests.proof.workers <their orders, as JSON>`.

Three in four of a writer's operations are writes: of one key, of two in one step, removals, and
additions by `compute`. A reader reads all keys, or one. Each value is written once only, so that
who reads it knows which write that was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

from ..counters import Counter
from .bugs import sow
from .clients import client_of
from .entries import BALLAST, COUNTER, KEYS, REMOVED
from .history import Recorder

__all__ = ["MODES", "PHASES", "RUN", "SETTLE", "WAIT", "main"]

#: A number that all processes share says what they do: its rest by `PHASES`.
PHASES = 3
RUN, WAIT, SETTLE = range(PHASES)

#: How each kind of process reads: the options of its dict.
MODES: dict[str, dict[str, Any]] = {
    "strict": {"autosync": True},
    "asking": {"autosync": "strict"},  # of a store that tells
    "seconds": {"autosync": 0.2},
    "manual": {"autosync": False},
    "stale": {"autosync": True, "on_outage": "stale"},
    "watched": {"autosync": False, "on_outage": "stale"},
}

#: How many operations the child of a fork does.
CHILDS = 20

#: For how many seconds a sync is tried when the servers are there again.
PATIENCE = 40.0


class Worker:
    """One process: its dict, and what it notes.

    :param orders: what the main process says

    """

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.name: str = orders["name"]
        self.mode: str = orders["mode"]
        self.writes: bool = orders["writes"]
        self.random = Random(orders["seed"])
        self.folder = Path(orders["folder"])
        self.phase = Counter(self.folder / "phase")
        self.settled = Counter(self.folder / f"{self.name}.settled")
        self.ready = Counter(self.folder / f"{self.name}.ready")
        self.record = Recorder(self.folder, self.name)
        self.client = client_of(orders["backend"], orders["place"])
        self.forks = 0
        self.fork_wanted = False
        #: Since when the copy of a manual dict is at least as new as the store was.
        self.good_since = float("-inf")
        self.number = 0
        self.children: list[int] = []
        self.session: tuple[int, bytes] | None = None

    def work(self) -> None:
        signal.signal(signal.SIGUSR1, self._want_fork)
        self.d = self._opened()
        self.ready.value = 1
        parent = os.getppid()
        while os.getppid() == parent:  # which kills it, or is killed
            phase = self.phase.value
            self._note_session()
            if self.settled.value < phase:
                if phase % PHASES == WAIT:
                    self._await_children()
                elif phase % PHASES == SETTLE:
                    self._settle(phase)
                self.settled.value = phase
            if phase % PHASES != RUN:
                time.sleep(0.002)
                continue
            if self.fork_wanted:
                self.fork_wanted = False
                self._fork()
            self._operate()
            time.sleep(self.random.uniform(0.0005, 0.004))

    def _note_session(self) -> None:
        """Write down under which session it is known to the servers, to be expired."""
        session = self.client.session()
        if session is not None and session != self.session:
            number, password = self.session = session
            (self.folder / f"{self.name}.session").write_text(f"{number} {password.hex()}")

    def _opened(self) -> Any:
        """Open the dict; again, as long as there is an outage."""
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                d = self.client.open(**MODES[self.mode])
                if self.writes:
                    d.update(BALLAST)
                if self.mode == "watched":
                    d.watch(interval=0.5)
                return d
            except self.client.errors:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.1)

    def _want_fork(self, *_: object) -> None:
        self.fork_wanted = True

    # -- one operation ------------------------------------------------------------------------

    def _operate(self) -> None:
        if self.writes and self.random.random() < 0.75:
            self._write()
        elif self.mode == "manual" and self.random.random() < 0.3:
            self._sync()
        else:
            self._read()

    def _write(self) -> None:
        chance = self.random.random()
        if chance < 0.2 and self.client.counts:
            self._compute()
            return
        self.number += 1
        value = f"{self.name}.{self.number}"
        written: dict[str, Any]
        if chance < 0.35:
            key = self.random.choice(REMOVED)
            kind, written = "delete", {key: None}
        elif chance < 0.5:
            kind, written = "update", dict.fromkeys(self.random.sample(KEYS[:-1], 2), value)
        else:
            kind, written = "set", {self.random.choice(KEYS[:-1]): value}
        number = self.record.begin(kind, written)
        start = time.monotonic()
        committed = True
        try:
            if kind == "delete":
                committed = self.d.pop(key, None) is not None
            elif kind == "update":
                self.d.update(written)
            else:
                for key in written:
                    self.d[key] = value
        except Exception as error:
            self._failed(number, error)
        else:
            self.record.end(number, "ok")
            if committed:  # what changes nothing in the store does not sync the copy
                self._caught_up(start)

    def _compute(self) -> None:
        number = self.record.begin("compute", {COUNTER: None})
        start = time.monotonic()
        try:
            result = self.d.compute(COUNTER, lambda total: total + 1, default=0)
        except Exception as error:
            self._failed(number, error)
        else:
            self.record.end(number, "ok", result)
            self._caught_up(start)

    def _caught_up(self, start: float) -> None:
        """Note that an own write was acknowledged, which began then.

        The copy has all that was acknowledged before it; but of a store that tells of changes by
        itself only what it has told of.

        """
        if self.client.is_strict:
            self.good_since = max(self.good_since, start)

    def _failed(self, number: int | None, error: Exception) -> None:
        if number is not None:
            self.record.end(number, "maybe")
        else:
            self.record.failed(error)
        if not isinstance(error, self.client.errors):
            self.record.surprise("".join(traceback.format_exception(error)))
        time.sleep(0.02)

    def _sync(self) -> None:
        start = time.monotonic()
        try:
            self.d.sync()
        except Exception as error:
            self._failed(None, error)
        else:
            self.good_since = max(self.good_since, start)

    def _read(self) -> None:
        start = time.monotonic()
        try:
            if self.random.random() < 0.4:
                state = self.d.copy()
                seen = {key: state.get(key) for key in KEYS}
            else:
                key = self.random.choice(KEYS)
                seen = {key: self.d.get(key)}
        except Exception as error:
            self._failed(None, error)
        else:
            self.record.read(start, self._as_of(start), seen)

    def _as_of(self, start: float) -> float | None:
        """Return the moment whose state a read promised that began at `start`, or None."""
        if self.mode == "asking" or (self.mode == "strict" and self.client.is_strict):
            return start
        since = self.good_since if self.good_since > float("-inf") else None
        if self.mode == "seconds":
            bound: float = MODES["seconds"]["autosync"]
            return max(start - bound, self.good_since)
        if self.mode in ("manual", "strict"):
            return since
        return None

    # -- the rest -----------------------------------------------------------------------------

    def _settle(self, phase: int) -> None:
        """Note the local copy after one sync; one that could be done."""
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                self.d.sync()
                if self.d.stale_since is None:  # with "stale" it is not raised
                    break
                error: BaseException = TimeoutError("the dict is still stale")
            except self.client.errors as caught:
                error = caught
            if time.monotonic() > ends:
                self.record.surprise(f"no sync when the faults had stopped: {error!r}")
                break
            time.sleep(0.05)
        self.record.copy(phase, self.client.entries(self.d))

    def _fork(self) -> None:
        self.forks += 1
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return
        # Its parent may be killed: so the main process waits for who has such a file.
        mark = self.folder / f"{os.getpid()}.child"
        mark.touch()
        try:
            self.name = f"{self.name}-child{self.forks}"
            self.record = Recorder(self.folder, self.name)
            self.random.seed(self.name)
            self.children = []
            for _ in range(CHILDS):
                if self.phase.value % PHASES != RUN:
                    break
                self._operate()
        except BaseException:
            self.record.surprise(traceback.format_exc())
        finally:
            mark.unlink()
            os._exit(0)

    def _await_children(self) -> None:
        for pid in self.children:
            os.waitpid(pid, 0)
        self.children = []


def main(orders: dict[str, Any]) -> None:
    # Forks beside threads, which 3.12 warns of, are what is tried here.
    warnings.simplefilter("ignore")
    worker = Worker(orders)
    if orders["bug"]:
        sow(orders["bug"], worker.client)
    try:
        worker.work()
    except BaseException:
        worker.record.surprise(traceback.format_exc())
        raise


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
