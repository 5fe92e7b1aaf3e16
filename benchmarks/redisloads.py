"""What the first load of a `RedisDict` costs, in time and memory, beside HGETALL by hand.

Memory is measured in a process of its own, which `python -m benchmarks.redisloads` is.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tracemalloc
from collections.abc import Iterator
from statistics import median
from typing import Any

import redis

from durabledict import RedisDict
from tests.redisservers import RedisServer

from .children import asked
from .cores import both_ways
from .measure import Comparison, Statement, compare
from .reads import entries
from .tables import Row

__all__ = ["HGETALL", "redis_loads"]

COUNT = 100_000
NAME = "loads"
# Of this process, on Linux.
STATUS = "/proc/self/status"

# Keys are texts in both: what is loaded is equal.
HGETALL = """
d = {}
for k, v in c.hgetall(name).items():
    d[k.decode()] = loads(v)
"""


def redis_loads(server: RedisServer) -> Iterator[Row]:
    """Measure the opening of a keyspace with many entries."""
    with (
        server.client() as client,
        server.client() as others,
        # Holds the connections open that those who are measured use.
        RedisDict[str, str](NAME, others, autosync=False) as d,
    ):
        d.update(entries(COUNT))

        def loading() -> Iterator[Row]:
            # It is the same hash; and the connections of both are open already.
            measured = compare(
                Statement(
                    HGETALL.strip(), untimed="d = None", c=client, name=NAME, loads=pickle.loads
                ),
                Statement(
                    "d = RedisDict(name, c, autosync=False)",
                    untimed="d = None",
                    RedisDict=RedisDict,
                    name=NAME,
                    c=others,
                ),
                rounds=11,
                pick=median,
            )
            yield Row(f"open and load {COUNT:,}", "HGETALL and pickle.loads", measured, 1.3)

        yield from both_ways(server.pid, loading)
    what = "highest while loading"
    yield _memory(server, "tracemalloc", what, 0.7)
    if os.path.exists(STATUS):
        yield _memory(server, "resident", f"{what}, RSS")


def _memory(server: RedisServer, tool: str, what: str, limit: float | None = None) -> Row:
    by_hand, durable, again = (
        asked("benchmarks.redisloads", tool, kind, server.url) / COUNT
        for kind in ("HGETALL", "RedisDict", "HGETALL")
    )
    measured = Comparison(by_hand, durable, again)
    return Row(what, "HGETALL and pickle.loads", measured, limit, "bytes")


def _highest(tool: str, kind: str, url: str) -> int:
    """Return by how many bytes the most memory in use while loading is above that before."""
    with (
        redis.Redis.from_url(url) as client,
        RedisDict[str, str]("another keyspace", client) as first,
    ):
        # What the first use of the modules and of a connection leaves behind is not an entry's.
        assert not first.copy()
        client.ping()
        if tool == "tracemalloc":
            tracemalloc.start()
        before = _most(tool)
        loaded = _by_hand(client) if kind == "HGETALL" else RedisDict(NAME, client, False)
        highest = _most(tool) - before
        assert len(loaded) == COUNT
    return highest


def _most(tool: str) -> int:
    """Return the most memory that this process has had so far, in bytes."""
    if tool == "tracemalloc":
        return tracemalloc.get_traced_memory()[1]
    # Also what the driver takes behind Python's back. Not `getrusage`, whose figure begins with
    # that of the process that started this one.
    with open(STATUS) as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _by_hand(client: redis.Redis) -> dict[Any, Any]:
    space: dict[str, Any] = {"c": client, "name": NAME, "loads": pickle.loads}
    exec(HGETALL, space)
    loaded: dict[Any, Any] = space["d"]
    return loaded


if __name__ == "__main__":
    print(json.dumps(_highest(*sys.argv[1:])))
