"""The proof of `ChainedStore`: a cache that may be down, above a file or a database."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from sqlalchemy import create_engine

from durabledict import SqliteDict
from durabledict.stores import DurableDictStore

from ..djangoproject import DATABASE
from ..memcachedserver import MemcachedServer
from ..postgresserver import USER, PostgresServer
from ..redisservers import RedisServer
from ..servers import HOST
from ..tcpproxy import TcpProxy, each_chunk
from .backends import Backend
from .chainclient import LIFETIME, ChainMapping
from .clients import KEYSPACE
from .faults import Kind, of_connections, of_processes, of_server
from .processes import Part, Workers
from .sqlchainclient import Base

__all__ = ["ChainBackend", "SqlChainBackend"]


class ChainBackend(Backend):
    """Redis, behind a proxy, and an SQLite file."""

    name = "chain"
    promise = "cached"
    parts = (*[Part("strict", writes=True)] * 3, *[Part("strict")] * 3)

    def start(self) -> None:
        self.path = self.folder() / "proof.sqlite"
        self.server = self.stack.enter_context(RedisServer())
        self.proxy = self.stack.enter_context(TcpProxy(self.server.port))

    def place(self) -> dict[str, Any]:
        return {"path": str(self.path), "port": self.proxy.port}

    def stored(self) -> dict[str, Any]:
        """Return what is in the durable Store, past the cache."""
        with SqliteDict[str, Any](self.path, KEYSPACE) as d:
            return ChainMapping(DurableDictStore(d)).copy()

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        yield from of_processes(workers, random)
        yield Kind("the cache is flushed", self.server.flush)
        # A process that was away from the cache goes back to it after a pause.
        for kind in (
            *of_server("the cache", lambda: self.server, random, blind=True),
            *of_connections("the cache", [self.proxy], random, blind=True),
        ):
            kind.grace = LIFETIME + 3.0
            yield kind


class SqlChainBackend(Backend):
    """memcached and PostgreSQL, each behind a proxy."""

    name = "sqlchain"
    promise = "cached"
    parts = ChainBackend.parts

    def start(self) -> None:
        self.postgres = self.stack.enter_context(PostgresServer())
        self.memcached = self.stack.enter_context(MemcachedServer())
        self.postgres.create_database(DATABASE)
        self.to_postgres, self.to_memcached = (
            self.stack.enter_context(TcpProxy(port, split=each_chunk))
            for port in (self.postgres.port, self.memcached.port)
        )
        engine = create_engine(self._uri(self.postgres.port))
        Base.metadata.create_all(engine)
        engine.dispose()

    def _uri(self, port: int) -> str:
        return f"postgresql+psycopg://{USER}@{HOST}:{port}/{DATABASE}?connect_timeout=2"

    def place(self) -> dict[str, Any]:
        return {"uri": self._uri(self.to_postgres.port), "memcached": self.to_memcached.port}

    def stored(self) -> dict[str, Any]:
        """Return the rows, past the cache."""
        return dict(self.postgres.sql("SELECT key, value FROM proof", DATABASE))

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        yield from of_processes(workers, random)
        yield from of_server("PostgreSQL", lambda: self.postgres, random)
        yield from of_connections("PostgreSQL", [self.to_postgres], random)
        yield Kind("the cache is flushed", self.memcached.flush)
        # A process that was away from the cache goes back to it after a pause.
        for kind in (
            *of_server("the cache", lambda: self.memcached, random, blind=True),
            *of_connections("the cache", [self.to_memcached], random, blind=True),
        ):
            kind.grace = LIFETIME + 3.0
            yield kind
