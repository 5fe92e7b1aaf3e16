"""The backends whose costs to many processes are measured, and the proxies that count."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from tests.memcachedserver import MemcachedServer
from tests.postgresserver import PostgresServer
from tests.redisservers import RedisServer
from tests.tcpproxy import TcpProxy, each_chunk
from tests.zookeeperproxy import ZookeeperProxy
from tests.zookeeperservers import ZookeeperServer

from .growingprocess import LEADER, SECONDS, STRICT, SYNC, WATCH, Place

__all__ = ["PLACES", "Backend", "Counts", "Proxied"]

#: Requests and bytes, by the name of the server.
Counts = dict[str, tuple[float, float]]

DATABASE = "growing"


@dataclass(frozen=True)
class Proxied:
    """What a reader is told to open, and what is between it and its servers.

    :param place: for the reader
    :param proxies: by the name of the server; none where there is no server

    """

    place: Place
    proxies: Mapping[str, TcpProxy]

    def counts(self) -> Counts:
        """Return what has passed so far, both ways."""
        return {
            name: (proxy.requests, proxy.bytes_from_client + proxy.bytes_from_server)
            for name, proxy in self.proxies.items()
        }

    def connections(self, name: str) -> int:
        """Return how many are open to this server."""
        return self.proxies[name].open_connections if name in self.proxies else 0


@dataclass(frozen=True)
class Backend:
    """Servers that run.

    :param name: of the dict
    :param place: of the servers themselves, for who is not counted
    :param modes: the ways to read that are measured
    :param proxied: gives another place, where all is counted

    """

    name: str
    place: Place
    modes: tuple[str, ...]
    proxied: Callable[[], AbstractContextManager[Proxied]]


@contextmanager
def _sqlite() -> Iterator[Backend]:
    with tempfile.TemporaryDirectory() as folder:
        place = {"kind": "sqlite", "path": os.path.join(folder, "growing.sqlite")}

        @contextmanager
        def unproxied() -> Iterator[Proxied]:
            yield Proxied(place, {})

        yield Backend("SqliteDict", place, (STRICT, SECONDS, SYNC, WATCH), unproxied)


@contextmanager
def _behind(place: Place, name: str, proxy_to: Callable[[int], TcpProxy]) -> Iterator[Proxied]:
    """Give a place with a proxy before its server."""
    with proxy_to(place["port"]) as proxy:
        yield Proxied({**place, "port": proxy.port}, {name: proxy})


@contextmanager
def _redis() -> Iterator[Backend]:
    with RedisServer() as server:
        place = {"kind": "redis", "port": server.port}
        proxied = partial(_behind, place, "Redis", TcpProxy)
        yield Backend("RedisDict", place, (STRICT, SECONDS, SYNC, WATCH), proxied)


@contextmanager
def _zookeeper() -> Iterator[Backend]:
    with ZookeeperServer() as server:
        place = {"kind": "zookeeper", "port": server.port}
        proxied = partial(_behind, place, "ZooKeeper", ZookeeperProxy)
        yield Backend("ZookeeperDict", place, (STRICT, LEADER, SYNC, WATCH), proxied)


@contextmanager
def _settings() -> Iterator[Backend]:
    with PostgresServer() as postgres, MemcachedServer() as memcached:
        postgres.create_database(DATABASE)
        database = postgres.django_settings(DATABASE)

        def place(sql: int, cache: int, migrate: bool) -> Place:
            return {
                "kind": "settings",
                "database": {**database, "PORT": sql},
                "memcached": cache,
                "migrate": migrate,
            }

        @contextmanager
        def proxied() -> Iterator[Proxied]:
            with ExitStack() as stack:
                # What comes together is a round trip: one statement, or one question.
                sql, cache = (
                    stack.enter_context(TcpProxy(server.port, split=each_chunk))
                    for server in (postgres, memcached)
                )
                yield Proxied(
                    place(sql.port, cache.port, False), {"memcached": cache, "PostgreSQL": sql}
                )

        direct = place(postgres.port, memcached.port, True)
        yield Backend("SettingsDict", direct, (STRICT, SECONDS, SYNC, WATCH), proxied)


#: Each starts its servers, and stops them at the end.
PLACES: tuple[Callable[[], AbstractContextManager[Backend]], ...] = (
    _sqlite,
    _redis,
    _zookeeper,
    _settings,
)
