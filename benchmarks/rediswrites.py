"""What writes to a `RedisDict` cost, beside the same commands by hand."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import count
from statistics import median

import redis

from durabledict import RedisDict
from tests.redisservers import RedisServer

from .cores import both_ways, each_way
from .measure import Statement, compare
from .reads import entries
from .redispeers import LeftOut, redis_peers
from .tables import Row
from .writes import in_random_order, new_values

__all__ = ["SETTLED", "redis_writes"]

# Writes after which the server has cleared away what a large update left in its Lua: until then
# each script call takes a part in that.
SETTLED = 3_000

BY_HAND = """
payloads = {key: dumps(value) for key, value in batch.items()}
c.hset(name, mapping=payloads)
written = {key: loads(payload) for key, payload in payloads.items()}
"""


def redis_writes(server: RedisServer, left_out: LeftOut) -> Iterator[Row]:
    """Measure single writes, and one of many entries."""
    with server.client() as client:
        for number in (100, 100_000):
            yield from _single(server, client, number, left_out)
        yield from _updates(server, client)


def _single(
    server: RedisServer, client: redis.Redis, number: int, left_out: LeftOut
) -> Iterator[Row]:
    held = entries(number)
    name = f"bare-{number}"
    client.hset(name, mapping={key: pickle.dumps(value) for key, value in held.items()})
    with RedisDict[str, str].from_url(server.url, f"writes-{number}") as d:
        d.update(held)
        by_hand = Statement(
            "c.hset(name, next(k), dumps(next(v)))",
            c=client,
            name=name,
            dumps=pickle.dumps,
            k=in_random_order(held),
            v=new_values(),
        )
        writing = Statement("d[next(k)] = next(v)", d=d, k=in_random_order(held), v=new_values())
        writing.one_by_one(SETTLED)
        what = f"d[k] = v, {number:,} keys"

        def beside_hset() -> Iterator[Row]:
            yield Row(what, "redis.Redis.hset", compare(by_hand, writing, pick=median), 1.1)

        def beside_peers() -> Iterator[Row]:
            with redis_peers(server, held, left_out) as others:
                for peer in others:
                    other = peer.writing(in_random_order(held), new_values())
                    yield Row(what, peer.name, compare(other, writing, rounds=10, pick=median))

        yield from each_way(server.pid, beside_hset)
        if number == 100:
            yield from both_ways(server.pid, beside_peers)


def _updates(server: RedisServer, client: redis.Redis) -> Iterator[Row]:
    number = 10_000
    batches = (dict.fromkeys(entries(number), f"value {turn}") for turn in count())
    with RedisDict[str, str].from_url(server.url, "update") as d:
        d.update(entries(number))

        def update() -> Iterator[Row]:
            measured = compare(
                Statement(
                    BY_HAND.strip(),
                    untimed="batch = next(batches)",
                    batches=batches,
                    c=client,
                    name="bare-update",
                    dumps=pickle.dumps,
                    loads=pickle.loads,
                ),
                Statement("d.update(batch)", untimed="batch = next(batches)", batches=batches, d=d),
                rounds=15,
                pick=median,
            )
            yield Row(f"update() with {number:,}", "dumps, one HSET, loads", measured, 2.0)

        yield from both_ways(server.pid, update)
