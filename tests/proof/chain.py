"""The proof of `ChainedStore`: a cache that may be down, above a file."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from durabledict import SqliteDict
from durabledict.stores import DurableDictStore

from ..redisservers import RedisServer
from ..tcpproxy import TcpProxy
from .backends import Backend
from .chainclient import LIFETIME, ChainMapping
from .clients import KEYSPACE
from .faults import Kind, of_connections, of_processes, of_server
from .processes import Part, Workers

__all__ = ["ChainBackend"]


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
