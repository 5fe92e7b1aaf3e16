"""How soon a watch in another process shows a write, and what it costs while nothing is written.

This process writes the time into an entry, again and again. A child notes when it sees the entry:
either a manual dict with a `watch()`, or a bare loop on ``PRAGMA data_version`` that never sleeps,
faster than which nothing can notice. Both take turns, in short rounds: two children at once would
be in each other's way. The clock is the same in all processes (`time.monotonic_ns`), and the time
of the write itself is in the figures of both.

``python -m benchmarks.wakeup`` is the child.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import sqlite3
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from statistics import median

from durabledict import MISSING, DurableDict, SqliteDict
from durabledict.errors import Missing

from .children import ask, child
from .tables import Amount

__all__ = ["Wakeups", "latencies", "noting", "wakeups"]

# Seconds between two writes: at random between the first two, or the last one, after which a loop
# that pauses ever longer has reached its longest pause.
SHORTEST, LONGEST, IDLE = 0.005, 0.03, 0.3
ROUNDS = 10
# In each round.
BUSY_WRITES, IDLE_WRITES = 22, 3
IDLE_SECONDS = 10.0

LIMIT_MILLISECONDS = 5.0
LIMIT_PERCENT = 1.0

KEY = "sent"
DATA_VERSION = "PRAGMA data_version"
SELECT = "SELECT value FROM durabledict_entries WHERE key = ?"


@dataclass
class Wakeups:
    """Nanoseconds from a write to the moment at which another process had its value.

    :param busy: of each kind of child, where the write before was a few milliseconds ago
    :param idle: of each kind of child, where it was longer ago
    :param idle_percent: of a core, which the watch took while nothing was written

    """

    busy: dict[str, list[int]] = field(default_factory=lambda: {"watch": [], "loop": []})
    idle: dict[str, list[int]] = field(default_factory=lambda: {"watch": [], "loop": []})
    idle_percent: float = 0.0

    def amounts(self) -> Iterator[Amount]:
        """Compare the watch with the bare loop."""
        for what, samples in (
            (f"{SHORTEST * 1000:.0f} to {LONGEST * 1000:.0f} ms", self.busy),
            (f"{IDLE * 1000:.0f} ms", self.idle),
        ):
            above = median(samples["watch"]) - median(samples["loop"])
            what = f"median wake-up above a bare loop, {what} after a write"
            yield Amount(what, above / 1e6, LIMIT_MILLISECONDS, "ms")
        what = f"CPU time while nothing is written for {IDLE_SECONDS:.0f} s"
        yield Amount(what, self.idle_percent, LIMIT_PERCENT, "% of a core")


def latencies(sent: Sequence[int], seen: Sequence[tuple[int, int]]) -> list[int]:
    """Return the nanoseconds from each write to the moment at which another process had it.

    A process that wakes up late finds a later value, and has the earlier write by that, too: left
    out, the slowest of all would not count.

    :param sent: when each value was written, which is the value
    :param seen: the values that were seen, and when

    """
    values = [value for value, _ in seen]
    found = []
    for value in sent:
        place = bisect_left(values, value)
        if place == len(seen):
            raise RuntimeError("the last write was never seen")
        found.append(seen[place][1] - value)
    return found


def wakeups(folder: str) -> Wakeups:
    """Measure both kinds of child in turns, then the idle watch."""
    path = os.path.join(folder, "wakeup.sqlite")
    measured = Wakeups()
    with ExitStack() as stack:
        d: SqliteDict[str, int] = stack.enter_context(SqliteDict(path, autosync=False))
        d[KEY] = 0
        children = {
            kind: stack.enter_context(child("benchmarks.wakeup", kind, path))
            for kind in ("watch", "loop")
        }
        for _ in range(ROUNDS):
            for kind, process in children.items():
                ask(process, "begin")
                pauses, sent = _write(d)
                taken = latencies(sent, ask(process, "end"))
                for pause, nanoseconds in zip(pauses, taken, strict=True):
                    samples = measured.idle if pause >= IDLE else measured.busy
                    samples[kind].append(nanoseconds)
        watch = children["watch"]
        ask(watch, "begin")
        # What the beginning costs is not what idling costs.
        time.sleep(1.0)
        before = ask(watch, "cpu")
        time.sleep(IDLE_SECONDS)
        measured.idle_percent = (ask(watch, "cpu") - before) / IDLE_SECONDS * 100
        ask(watch, "end")
    return measured


def _write(d: SqliteDict[str, int]) -> tuple[list[float], list[int]]:
    """Write the time at random intervals; return the pause before each, and what was written."""
    pauses = [random.uniform(SHORTEST, LONGEST) for _ in range(BUSY_WRITES)] + [IDLE] * IDLE_WRITES
    random.shuffle(pauses)
    sent = []
    for pause in pauses:
        time.sleep(pause)
        sent.append(time.monotonic_ns())
        d[KEY] = sent[-1]
    # However late the last one is seen, it counts.
    time.sleep(IDLE)
    return pauses, sent


# -- the children -----------------------------------------------------------------------------

# The values that were seen, which are the times at which they were written, and when.
Seen = list[tuple[int, int]]


@contextmanager
def noting(d: DurableDict[str, int], seen: Seen) -> Iterator[None]:
    """Note when a manual dict with a watch shows a value."""

    def note(key: str, old: object, new: int | Missing) -> None:
        assert new is not MISSING
        seen.append((new, time.monotonic_ns()))

    with d:
        d.on_change(note)
        with d.watch():
            yield


def _watching(path: str, seen: Seen) -> AbstractContextManager[None]:
    return noting(SqliteDict(path, autosync=False), seen)


@contextmanager
def _looping(path: str, seen: Seen) -> Iterator[None]:
    """Note when a loop without a pause has a value."""
    stopping = threading.Event()

    def loop() -> None:
        with closing(sqlite3.connect(path)) as connection:
            known = connection.execute(DATA_VERSION).fetchone()
            while not stopping.is_set():
                version = connection.execute(DATA_VERSION).fetchone()
                if version != known:
                    known = version
                    value = pickle.loads(connection.execute(SELECT, (KEY,)).fetchone()[0])
                    seen.append((value, time.monotonic_ns()))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _answer_questions(kind: str, path: str) -> None:
    noting = {"watch": _watching, "loop": _looping}[kind]
    seen: Seen = []
    with ExitStack() as stack:
        for question in map(str.strip, sys.stdin):
            answer: object = None
            if question == "begin":
                seen.clear()
                stack.enter_context(noting(path, seen))
            elif question == "end":
                stack.close()
                answer = seen
            elif question == "cpu":
                answer = time.process_time()
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _answer_questions(*sys.argv[1:])
