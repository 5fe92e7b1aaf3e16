"""The readers of `make load`: each a strict dict with connections of its own, in one process.

`python -m benchmarks.loadreaders STORE WHERE KEYSPACE NUMBER` has so many of them as threads. It
says when they have all read once, reads until its input ends, and then says what came of it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, NamedTuple

from durabledict import RedisDict, SqliteDict

__all__ = ["Place", "descriptors", "memory", "opened"]

#: Seconds between two reads of one reader: 200 of them are to leave the writer some of the machine.
PAUSE = 0.02


class Place(NamedTuple):
    """Where a dict is.

    :param store: "redis" or "sqlite"
    :param where: the URL, or the path
    :param keyspace: of that store

    """

    store: str
    where: str
    keyspace: str


def opened(place: Place, **options: Any) -> RedisDict[str, int] | SqliteDict[str, int]:
    """Open a dict with a client of its own; strict unless the options say otherwise."""
    if place.store == "redis":
        return RedisDict[str, int].from_url(place.where, place.keyspace, **options)
    return SqliteDict[str, int](place.where, place.keyspace, synchronous="NORMAL", **options)


def memory() -> int:
    """Return the bytes that this process has in memory and shares with no other, on Linux."""
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def descriptors() -> int:
    """Return how many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Reader(threading.Thread):
    """Reads the writer's counter again and again.

    :param ends: an event that ends it

    """

    def __init__(self, place: Place, ends: threading.Event, ready: threading.Semaphore) -> None:
        super().__init__(name="reader", daemon=True)
        self._place = place
        self._ends = ends
        self._ready = ready
        self.reads = 0
        #: How often a value was older than the one before.
        self.back = 0
        self.last = -1
        self.error = ""

    def run(self) -> None:
        """Read until the event is set."""
        try:
            with opened(self._place) as d:
                while not self._ends.is_set():
                    value = d["count"]
                    self.back += value < self.last
                    self.last = value
                    self.reads += 1
                    if self.reads == 1:
                        self._ready.release()
                    self._ends.wait(PAUSE)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            self._ready.release()


def main(store: str, where: str, keyspace: str, number: str) -> None:
    ends, ready = threading.Event(), threading.Semaphore(0)
    place = Place(store, where, keyspace)
    readers = [Reader(place, ends, ready) for _ in range(int(number))]
    for reader in readers:
        reader.start()
    for _ in readers:
        ready.acquire()
    print(json.dumps({"memory": memory(), "descriptors": descriptors()}), flush=True)
    sys.stdin.readline()
    ends.set()
    for reader in readers:
        reader.join()
    print(
        json.dumps(
            {
                "reads": sum(reader.reads for reader in readers),
                "back": sum(reader.back for reader in readers),
                "last": min(reader.last for reader in readers),
                "errors": sorted({reader.error for reader in readers if reader.error}),
                "threads": [thread.name for thread in threading.enumerate()][1:],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
