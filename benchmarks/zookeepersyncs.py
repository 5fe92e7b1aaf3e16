"""What a sync of a `ZookeeperDict` costs after one key has changed, beside what 0.9 did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from tests.zookeeperservers import ZookeeperServer, started

from .measure import Comparison, Statement, compare
from .tables import Row
from .zookeeperchanges import OLD, SYNC, TOLD, reader
from .zookeeperserver import anywhere_and_pinned

__all__ = ["FEW", "SOME", "zookeeper_syncs"]

FEW, SOME, MANY = 10, 1_000, 10_000


def zookeeper_syncs(server: ZookeeperServer) -> Iterator[Row]:
    """Measure what follows a change of one entry, of few and of many."""

    def rows() -> Iterator[Row]:
        for number in (FEW, SOME):
            measured = _after_a_change(server, (OLD, number), (TOLD, number))
            against = f"0.9: {number + 1:,} requests"
            yield Row(f"d[k], 1 of {number:,} changed", against, measured)
        for kind, what in ((TOLD, "d[k]"), (SYNC, "sync()")):
            measured = _after_a_change(server, (kind, SOME), (kind, MANY))
            yield Row(f"{what}, 1 of {MANY:,} changed", f"1 of {SOME:,}", measured)

    yield from anywhere_and_pinned(server, rows)


def _after_a_change(
    server: ZookeeperServer, baseline: tuple[str, int], candidate: tuple[str, int]
) -> Comparison:
    with started(server.client()) as writer, ExitStack() as stack:
        opened = [
            stack.enter_context(reader(kind, number, writer, server.port))
            for kind, number in (baseline, candidate)
        ]
        before, after = (
            Statement("read()", untimed="change()", read=one.read, change=one.change)
            for one in opened
        )
        return compare(before, after, rounds=11, round_seconds=0.05, pick=median)
