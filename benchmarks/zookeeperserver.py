"""The server of ZooKeeper's tables, and on which cores it and its clients run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from kazoo.client import KazooClient

from tests.zookeeperservers import ZookeeperServer, started

from .cores import both_ways, each_way, follow
from .tables import Row

__all__ = ["anywhere_and_pinned", "each_placement", "fill", "ignore", "path_of", "zookeeper"]

#: In place of what the tests say, with which a server starts sooner and never becomes as fast: the
#: JVM's own compilers and collector, and the heap that ZooKeeper's script gives it.
JAVA = ("-Xmx1000m", "-XX:TieredStopAtLevel=4", "-XX:-UseSerialGC", "-XX:+UseG1GC")

#: Requests after which the JVM has compiled what answers them.
WARM_READS, WARM_WRITES, WARM_TRANSACTIONS = 20_000, 3_000, 100

#: Operations in one transaction, and reads that are under way at once.
BATCH = 500


@contextmanager
def zookeeper() -> Iterator[ZookeeperServer]:
    """Start a server that waits for the disk before it answers a write, as ZooKeeper's do."""
    with ZookeeperServer(force_sync=True, java=JAVA) as server:
        with started(server.client()) as client:
            _warm_up(client)
        yield server


def _warm_up(client: KazooClient) -> None:
    path = "/warm-up"
    client.create(path)
    for _ in range(WARM_READS // BATCH):
        asked = [client.get_async(path) for _ in range(BATCH)]
        for answer in asked:
            answer.get()
    # At once, so that they share the waits for the disk.
    for result in [client.set_async(path, b"warm") for _ in range(WARM_WRITES)]:
        result.get()
    for _ in range(WARM_TRANSACTIONS):
        transaction = client.transaction()
        for _ in range(BATCH):
            transaction.set_data(path, b"warm")
        transaction.commit()


def anywhere_and_pinned(server: ZookeeperServer, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """Measure as `both_ways`, all threads of the server included.

    :param measure: starts its clients itself: their threads stay where they began

    """
    return both_ways(server.pid, lambda: _followed(server, measure))


def each_placement(server: ZookeeperServer, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """Measure as `each_way`; else as `anywhere_and_pinned`."""
    return each_way(server.pid, lambda: _followed(server, measure))


def _followed(server: ZookeeperServer, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    while True:
        try:
            follow(server.pid, server.pid)
        except ProcessLookupError:
            continue  # the JVM has ended one of its threads meanwhile
        return list(measure())


def path_of(folder: str, key: str) -> str:
    """Return the path of the znode that holds an entry."""
    return f"{folder}/{key}"


def fill(client: KazooClient, folder: str, held: Mapping[str, str]) -> None:
    """Make a folder with these entries, where they are not there."""
    client.ensure_path(folder)
    there = set(client.get_children(folder))
    made = [
        client.create_async(path_of(folder, key), pickle.dumps(value))
        for key, value in held.items()
        if key not in there
    ]
    for result in made:
        result.get()


def ignore(event: object) -> None:
    """Do nothing, when a watch is told of an event."""
