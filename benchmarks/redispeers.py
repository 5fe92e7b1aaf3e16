"""What else keeps a mapping in Redis. None of them has a copy that a write to another one reaches.

Each is opened the way its documentation shows, and has a client of its own: pottery changes the
settings of the one that it is given.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import redis
from redis.cache import CacheConfig

from tests.redisservers import RedisServer

from .peer import Peer

__all__ = ["LeftOut", "redis_peers"]

# Why a peer is not in the tables, by its name.
LeftOut = dict[str, str]


@contextmanager
def redis_peers(
    server: RedisServer,
    held: Mapping[str, str],
    left_out: LeftOut,
    names: Iterable[str] | None = None,
) -> Iterator[list[Peer]]:
    """Open the peers, each holding these entries.

    :param left_out: is told which of them cannot be opened
    :param names: of those to open; None: all

    """
    with ExitStack() as stack:
        opened = []
        for name in OPENERS if names is None else names:
            try:
                read, write, used = stack.enter_context(OPENERS[name](server, held))
            except (ImportError, redis.ConnectionError) as error:
                left_out[name] = str(error)
            else:
                opened.append(Peer(name, read, write, used))
        yield opened


# The statements that read and write, and the names in them.
Opened = tuple[str, str, Mapping[str, object]]


@contextmanager
def _redis_dict(server: RedisServer, held: Mapping[str, str]) -> Iterator[Opened]:
    from redis_dict import RedisDict

    with server.client(decode_responses=True) as client:
        d = RedisDict("redis-dict", redis=client)
        d.update(dict(held))
        yield "d[k]", "d[next(k)] = next(v)", {"d": d}


@contextmanager
def _pottery(server: RedisServer, held: Mapping[str, str]) -> Iterator[Opened]:
    from pottery import RedisDict

    with server.client() as client:
        d = RedisDict(redis=client, key="pottery")
        for key, value in held.items():
            d[key] = value
        yield "d[k]", "d[next(k)] = next(v)", {"d": d}


@contextmanager
def _dogpile(server: RedisServer, held: Mapping[str, str]) -> Iterator[Opened]:
    from dogpile.cache import make_region

    address = {"host": "127.0.0.1", "port": server.port}
    region = make_region().configure("dogpile.cache.redis", arguments=address)
    try:
        region.set_multi({f"dogpile:{key}": value for key, value in held.items()})
        yield (
            "d.get('dogpile:' + k)",
            "d.set('dogpile:' + next(k), next(v))",
            {"d": region},
        )
    finally:
        region.backend.writer_client.close()


@contextmanager
def _client_side_cache(server: RedisServer, held: Mapping[str, str]) -> Iterator[Opened]:
    # The cache is told by the server of what others change, which only RESP3 can.
    with server.client(protocol=3, cache_config=CacheConfig()) as client:
        try:
            client.ping()
        except redis.ConnectionError as error:
            if "7.4" in str(error):
                raise redis.ConnectionError("needs Redis 7.4") from error
            raise
        for key, value in held.items():
            client.set(f"cached:{key}", pickle.dumps(value))
        yield (
            "loads(c.get('cached:' + k))",
            "c.set('cached:' + next(k), dumps(next(v)))",
            {"c": client, "dumps": pickle.dumps, "loads": pickle.loads},
        )


OPENERS: dict[str, Callable[[RedisServer, Mapping[str, str]], AbstractContextManager[Opened]]] = {
    "redis-dict": _redis_dict,
    "pottery RedisDict": _pottery,
    "dogpile.cache": _dogpile,
    "client-side cache": _client_side_cache,
}
