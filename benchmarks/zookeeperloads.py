"""What the first load of a `ZookeeperDict` costs, beside the same requests by hand."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from statistics import median
from typing import Any

from durabledict import ZookeeperDict
from tests.zookeeperservers import ZookeeperServer, started

from .measure import Comparison, Statement, timed
from .reads import entries
from .tables import Row
from .zookeeperserver import anywhere_and_pinned, fill, ignore

__all__ = ["zookeeper_loads"]

FEW, MANY = 2_000, 10_000

# By the last answer, which comes last: to wait for each would wake this thread for each.
PIPELINED = """
names = c.get_children(folder, watch=ignore)
asked = [(name, c.get_async(f'{folder}/{name}', watch=ignore)) for name in names]
asked[-1][1].wait()
d = {name: result.get()[0] for name, result in asked}
"""
ONE_AFTER_ANOTHER = """
names = c.get_children(folder, watch=ignore)
d = {name: loads(c.get(f'{folder}/{name}', watch=ignore)[0]) for name in names}
"""
LOADS = "d = {name: loads(payload) for name, payload in d.items()}"


def zookeeper_loads(server: ZookeeperServer) -> Iterator[Row]:
    """Measure the opening of a keyspace with many entries."""
    for number in (FEW, MANY):
        with started(server.client()) as client:
            fill(client, _folder(number), entries(number))
    yield from anywhere_and_pinned(server, lambda: _few(server))
    yield from anywhere_and_pinned(server, lambda: _many(server))


def _folder(number: int) -> str:
    return f"/loads-{number}"


def _few(server: ZookeeperServer) -> Iterator[Row]:
    sources = (PIPELINED + LOADS, PIPELINED, ONE_AFTER_ANOTHER)
    decoding, bare, singly = _beside(server, FEW, sources, rounds=7)
    what = f"open and load {FEW:,}"
    yield Row(what, "get_async of each, loads", decoding, 1.2)
    yield Row(what, "get_async of each", bare)
    # 2.5 times as fast.
    yield Row(what, "one get after another", singly, 1 / 2.5)


def _many(server: ZookeeperServer) -> Iterator[Row]:
    (decoding,) = _beside(server, MANY, (PIPELINED + LOADS,), rounds=3)
    yield Row(f"open and load {MANY:,}", "get_async of each, loads", decoding)


def _beside(
    server: ZookeeperServer, number: int, sources: tuple[str, ...], rounds: int
) -> list[Comparison]:
    """Time a load and what it is compared with, all in turns, the latter twice."""
    with started(server.client()) as client, started(server.client()) as own:
        by_hand: dict[str, Any] = {"c": client, "folder": _folder(number), "ignore": ignore}
        by_hand["loads"] = pickle.loads
        opening = Statement(
            "d = ZookeeperDict(folder, c, autosync=False)",
            untimed="d = None",
            ZookeeperDict=ZookeeperDict,
            folder=_folder(number),
            c=own,
        )
        baselines = [Statement(source.strip(), untimed="d = None", **by_hand) for source in sources]
        ours, *others = timed([opening, *baselines, *baselines], rounds=rounds, pick=median)
    pairs = zip(others[: len(sources)], others[len(sources) :], strict=True)
    return [Comparison(first, ours, again) for first, again in pairs]
