"""The tables of `ZookeeperDict`, over a server that is started for them and ends with them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from tests.zookeeperservers import ZookeeperServer

from .printing import print_rows
from .tables import Row
from .zookeepercounts import print_requests, zookeeper_requests
from .zookeeperloads import zookeeper_loads
from .zookeeperreads import zookeeper_reads
from .zookeeperserver import zookeeper
from .zookeepersyncs import zookeeper_syncs
from .zookeeperwakeup import zookeeper_wakeups
from .zookeeperwrites import zookeeper_writes

__all__ = ["zookeeper_tables"]


def zookeeper_tables() -> list[str]:
    """Print the tables; return which limits were missed."""
    with zookeeper() as server:
        print(
            f"\nZooKeeper {_version(server)}, kazoo {version('kazoo')}. One server, which waits "
            "for its disk. Ratios, in turns\nas well; the median round counts. Pinned: client and "
            "server are kept on one core; two cores: on one each.\n"
        )
        missed = print_rows(_rows(server))
        print("\nRequests of a sync after another client has changed, added or removed one key.\n")
        missed += print_requests(zookeeper_requests(server))
    return missed


def _rows(server: ZookeeperServer) -> Iterator[Row]:
    for rows in (
        zookeeper_reads,
        zookeeper_writes,
        zookeeper_loads,
        zookeeper_wakeups,
        zookeeper_syncs,
    ):
        yield from rows(server)


def _version(server: ZookeeperServer) -> str:
    # "3.8.0-35be68e..., built on ..."
    return server.stats()["zk_version"].split("-")[0]
