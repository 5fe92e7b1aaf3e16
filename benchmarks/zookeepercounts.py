"""How many requests a sync sends after one of many keys has changed, as a proxy counts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kazoo.client import KazooClient

from tests.zookeeperproxy import ZookeeperProxy
from tests.zookeeperservers import ZookeeperServer, started

from .zookeeperchanges import OLD, STRICT, SYNC, TOLD, Action, reader
from .zookeepersyncs import FEW, SOME

__all__ = ["Requests", "counted", "print_requests", "zookeeper_requests"]

#: What a sync may send; one that asks the leader as well, one more.
LIMITS = {TOLD: 2, STRICT: 3, SYNC: 3, OLD: None}

HEADINGS = ("what", "changed", "added", "removed", "limit", "")
LINE = "{:<44} {:>8} {:>8} {:>8} {:>6} {}"


@dataclass(frozen=True)
class Requests:
    """One line of the table of requests.

    :param what: what was counted
    :param changed: the requests after the value of a key has changed
    :param added: after a key was added
    :param removed: after one was removed
    :param limit: how many are allowed, of each; None: for information

    """

    what: str
    changed: int
    added: int
    removed: int
    limit: int | None = None

    @property
    def verdict(self) -> str:
        """'ok' or 'MISSED'; nothing where there is no limit."""
        if self.limit is None:
            return ""
        return "ok" if max(self.changed, self.added, self.removed) <= self.limit else "MISSED"


def zookeeper_requests(server: ZookeeperServer) -> Iterator[Requests]:
    """Count the requests of each kind of reader."""
    with started(server.client()) as writer:
        for kind, limit in LIMITS.items():
            for number in (FEW, SOME):
                took = counted(server, writer, kind, number)
                yield Requests(f"{kind}, 1 of {number:,}", *took, limit)


def counted(
    server: ZookeeperServer, writer: KazooClient, kind: str, number: int
) -> tuple[int, int, int]:
    """Return the requests after a change of a value, after a new key, and after its end."""
    with (
        ZookeeperProxy(server.port) as proxy,
        reader(kind, number, writer, proxy.port) as opened,
    ):

        def count(change: Action) -> int:
            change()
            with proxy.counting() as calls:
                opened.read()
            return calls.total()

        return count(opened.change), count(opened.add), count(opened.remove)


def print_requests(lines: Iterable[Requests]) -> list[str]:
    """Print the counts, each as soon as it is there; return what was missed."""
    missed = []
    print(LINE.format(*HEADINGS).rstrip())
    for line in lines:
        limit = "" if line.limit is None else line.limit
        counts = (line.changed, line.added, line.removed)
        print(LINE.format(line.what, *counts, limit, line.verdict).rstrip(), flush=True)
        if line.verdict == "MISSED":
            missed.append(
                f"{line.verdict}: {line.what}: {max(counts)} requests, limit {line.limit}"
            )
    return missed
