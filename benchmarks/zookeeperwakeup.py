"""How soon a watch in another process shows a write to a `ZookeeperDict`.

This process writes the time into an entry, again and again. A child notes when it has the value:
either a manual dict with a `watch()`, or a function that kazoo's `DataWatch` calls, which unpickles
it. They take turns, in short rounds. The clock is the same in all processes
(`time.monotonic_ns`), and the time of the write itself, up to the event, is in all figures.

``python -m benchmarks.zookeeperwakeup`` is the child.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from kazoo.client import KazooClient

from durabledict import ZookeeperDict
from tests.zookeeperservers import ZookeeperServer, started

from .children import ask, child
from .measure import Comparison
from .tables import Row, Spread
from .wakeup import KEY, latencies, noting
from .zookeeperserver import anywhere_and_pinned, path_of

__all__ = ["zookeeper_wakeups"]

FOLDER = "/wakeup"

# Seconds between a write and the next.
SHORTEST, LONGEST = 0.002, 0.008
ROUNDS = 10
WRITES = 60
LIMIT = 1.5

# The values that were seen, which are the times at which they were written, and when.
Seen = list[tuple[int, int]]


def zookeeper_wakeups(server: ZookeeperServer) -> Iterator[Row]:
    """Compare the watch with kazoo's."""
    yield from anywhere_and_pinned(server, lambda: _rows(_measured(server)))


def _rows(taken: dict[str, list[int]]) -> Iterator[Row]:
    spreads = {kind: Spread(kind, samples) for kind, samples in taken.items()}
    for fraction in (0.5, 0.99):
        baseline, watch, again = (
            (spreads[which].percentile(fraction) or 0) / 1e9
            for which in ("DataWatch", "watch", "DataWatch, again")
        )
        what = f"wake-up by watch(), p{fraction * 100:.0f}"
        yield Row(what, "kazoo DataWatch, loads", Comparison(baseline, watch, again), LIMIT)


def _measured(server: ZookeeperServer) -> dict[str, list[int]]:
    """Return the nanoseconds from each write to the moment at which each kind of child had it."""
    taken: dict[str, list[int]] = {}
    with (
        started(server.client()) as client,
        ZookeeperDict[str, int](FOLDER, client) as d,
        ExitStack() as stack,
    ):
        d[KEY] = 0
        # Started here, where the process may be on one core: they are there, too.
        children = {
            kind: stack.enter_context(child("benchmarks.zookeeperwakeup", kind, server.hosts))
            for kind in KINDS
        }
        turns = [("DataWatch", ""), ("watch", ""), ("DataWatch", ", again")]
        for number in range(ROUNDS):
            # A different one begins each round.
            for place in range(len(turns)):
                kind, suffix = turns[(number + place) % len(turns)]
                ask(children[kind], "begin")
                sent = _write(d)
                found = latencies(sent, ask(children[kind], "end"))
                taken.setdefault(f"{kind}{suffix}", []).extend(found)
    return taken


def _write(d: ZookeeperDict[str, int]) -> list[int]:
    """Write the time at random intervals; return what was written."""
    sent = []
    for _ in range(WRITES):
        time.sleep(random.uniform(SHORTEST, LONGEST))
        sent.append(time.monotonic_ns())
        d[KEY] = sent[-1]
    # However late the last one is seen, it counts.
    time.sleep(0.1)
    return sent


# -- the children -----------------------------------------------------------------------------


def _watching(client: KazooClient, seen: Seen) -> AbstractContextManager[None]:
    return noting(ZookeeperDict(FOLDER, client, autosync=False), seen)


@contextmanager
def _data_watching(client: KazooClient, seen: Seen) -> Iterator[None]:
    """Note when kazoo's own watch has a value."""
    stopping = threading.Event()

    def note(payload: bytes, _: object) -> bool:
        seen.append((pickle.loads(payload), time.monotonic_ns()))
        # False ends the watch; the value that it is registered with is none that was written.
        return not stopping.is_set()

    client.DataWatch(path_of(FOLDER, KEY), note)
    yield
    stopping.set()


KINDS: dict[str, Callable[[KazooClient, Seen], Any]] = {
    "watch": _watching,
    "DataWatch": _data_watching,
}


def _answer_questions(kind: str, hosts: str) -> None:
    with ExitStack() as stack:
        seen: Seen = []
        for question in map(str.strip, sys.stdin):
            answer: object = None
            if question == "begin":
                seen.clear()
                client = stack.enter_context(started(KazooClient(hosts)))
                stack.enter_context(KINDS[kind](client, seen))
            elif question == "end":
                stack.close()
                answer = seen
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _answer_questions(*sys.argv[1:])
