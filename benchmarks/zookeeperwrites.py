"""What writes to a `ZookeeperDict` cost, beside the same requests by hand."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from statistics import median
from typing import Any

from durabledict import ZookeeperDict
from tests.zookeeperservers import ZookeeperServer, started

from .measure import Comparison, Statement, compare
from .reads import entries
from .tables import Row
from .writes import in_random_order, new_values
from .zookeeperserver import anywhere_and_pinned, each_placement, fill, ignore, path_of

__all__ = ["zookeeper_writes"]

FEW, MANY, BATCH = 100, 10_000, 500

SET = "c.set(f'{folder}/{next(k)}', dumps(next(v)))"
SET_AND_GET = """
path = f'{folder}/{next(k)}'
stored = c.set_async(path, dumps(next(v)))
read = c.get_async(path, watch=ignore)
stored.get()
loads(read.get()[0])
"""
TRANSACTION = """
payloads = {key: dumps(value) for key, value in batch.items()}
transaction = c.transaction()
for key, payload in payloads.items():
    transaction.set_data(f'{folder}/{key}', payload)
transaction.commit()
"""
# What a `dict` with the values as stored takes, as a read would give them.
LOADS = "written = {key: loads(payload) for key, payload in payloads.items()}"
# What arms the watches again that the transaction has used up.
GETS = """
asked = [c.get_async(f'{folder}/{key}', watch=ignore) for key in batch]
asked[-1].wait()
written = [loads(answer.get()[0]) for answer in asked]
"""


def zookeeper_writes(server: ZookeeperServer) -> Iterator[Row]:
    """Measure single writes, and one of many entries."""
    for number in (FEW, MANY):
        for name in ("ours", "bare"):
            with started(server.client()) as client:
                fill(client, _folder(name, number), entries(number))
    yield from each_placement(server, lambda: _single(server, FEW))
    yield from anywhere_and_pinned(server, lambda: _single(server, MANY))
    yield from anywhere_and_pinned(server, lambda: _updates(server))


def _folder(name: str, number: int) -> str:
    return f"/writes-{name}-{number}"


def _single(server: ZookeeperServer, number: int) -> Iterator[Row]:
    held = entries(number)
    with _beside(server, number) as (d, by_hand):
        by_hand |= {"k": in_random_order(held), "v": new_values()}
        ours: dict[str, Any] = {"d": d, "k": in_random_order(held), "v": new_values()}
        measured = compare(
            Statement(SET, **by_hand), Statement("d[next(k)] = next(v)", **ours), pick=median
        )
        yield Row(f"d[k] = v, {number:,} keys", "KazooClient.set", measured, 1.5)
        _watch(d, by_hand, held)
        measured = compare(
            Statement(SET_AND_GET.strip(), **by_hand),
            Statement("d[next(k)] = next(v); d['setting.50']", **ours),
            pick=median,
        )
        yield Row(f"d[k] = v, d[k], {number:,} keys", "set and get, pipelined", measured)


def _updates(server: ZookeeperServer) -> Iterator[Row]:
    batches = (dict.fromkeys(entries(BATCH), f"value {turn}") for turn in count())
    with _beside(server, MANY) as (d, by_hand):

        def beside(source_by_hand: str, source: str) -> Comparison:
            _watch(d, by_hand, entries(BATCH))
            untimed = "batch = next(batches)"
            return compare(
                Statement(source_by_hand.strip(), untimed=untimed, batches=batches, **by_hand),
                Statement(source, untimed=untimed, batches=batches, d=d),
                rounds=15,
                # Some transactions in each round.
                round_seconds=0.1,
                pick=median,
            )

        what, update = f"update() with {BATCH:,}", "d.update(batch)"
        yield Row(what, "dumps, one transaction", beside(TRANSACTION, update), 1.5)
        yield Row(what, "the same, and loads", beside(TRANSACTION + LOADS, update))
        measured = beside(TRANSACTION + GETS, f"{update}; d['setting.50']")
        yield Row(f"{what}, d[k]", "the same, get of each", measured)


@contextmanager
def _beside(
    server: ZookeeperServer, number: int
) -> Iterator[tuple[ZookeeperDict[str, str], dict[str, Any]]]:
    """Open a dict of so many entries; give also the names for what does the same by hand."""
    with (
        started(server.client()) as client,
        started(server.client()) as own,
        ZookeeperDict[str, str](_folder("ours", number), own) as d,
    ):
        by_hand = {"c": client, "folder": _folder("bare", number), "ignore": ignore}
        yield d, {**by_hand, "dumps": pickle.dumps, "loads": pickle.loads}


def _watch(d: ZookeeperDict[str, str], by_hand: dict[str, Any], keys: Iterable[str]) -> None:
    """Watch these keys in both, or only one would be told of each write."""
    for key in keys:
        by_hand["c"].get(path_of(by_hand["folder"], key), watch=ignore)
    d.sync()
