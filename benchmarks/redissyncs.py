"""What a sync of a `RedisDict` costs: as much as what changed, whatever is held."""

from __future__ import annotations

import gc
import pickle
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from statistics import median

from durabledict import RedisDict
from tests.redisservers import RedisServer

from .cores import both_ways
from .measure import Comparison, Statement, compare
from .reads import entries
from .redisloads import HGETALL
from .rediswrites import SETTLED
from .syncs import BATCH, sync_after_one_change
from .tables import Row

__all__ = ["redis_syncs"]

FEW, MANY = 1_000, 1_000_000


def redis_syncs(server: RedisServer) -> Iterator[Row]:
    """Measure syncs of few and of many entries; the limit says that it makes no difference."""
    with _after_one_change(server, FEW) as few, _after_one_change(server, MANY) as many:
        what = f"sync(), 1 of {MANY:,}"

        def beside_few() -> Iterator[Row]:
            yield Row(what, f"1 of {FEW:,}", compare(few, many, pick=median), 2.0)

        def beside_nothing() -> Iterator[Row]:
            nothing = Statement("d.sync()", d=few.names["d"])
            measured = compare(few, nothing, rounds=10, pick=median)
            yield Row("sync(), nothing changed", f"1 of {FEW:,}", measured)

        yield from both_ways(server.pid, beside_few)
        yield from both_ways(server.pid, beside_nothing)
        yield Row(what, "HGETALL and pickle.loads", _beside_all(server, many), 0.0001)


@contextmanager
def _after_one_change(server: RedisServer, number: int) -> Iterator[Statement]:
    """Open a dict of so many entries twice; give the statement that syncs after a write."""
    with ExitStack() as stack:
        writer, reader = (
            RedisDict[str, str].from_url(server.url, _name(number), autosync=False)
            for _ in range(2)
        )
        stack.enter_context(writer)
        stack.enter_context(reader)
        items = iter(entries(number).items())
        while batch := dict(islice(items, BATCH)):
            writer.update(batch)
        reader.sync()
        syncing = sync_after_one_change(writer, reader)
        syncing.one_by_one(SETTLED)
        yield syncing


def _name(number: int) -> str:
    return f"syncs-{number}"


def _beside_all(server: RedisServer, syncing: Statement) -> Comparison:
    """Compare with a load of everything: it takes seconds, so twice has to do."""
    with server.client() as client:
        source, name = HGETALL.strip(), _name(MANY)
        loop = Statement(source, c=client, name=name, loads=pickle.loads).compiled(
            time.perf_counter
        )
        sync = syncing.compiled(time.perf_counter)
        loads, syncs = [], []
        gc.disable()
        try:
            for _ in range(2):
                syncs += [sync(1) for _ in range(100)]
                loads.append(loop(1))
        finally:
            gc.enable()
    return Comparison(loads[0], median(syncs), loads[1])
