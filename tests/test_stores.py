"""The suite of Stores over every Store, and over chains of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from pymemcache.client.hash import HashClient

from durabledict import MemoryDict, MemoryStorage, SqliteDict
from durabledict.stores import (
    BaseStore,
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ShoveStore,
    ThreadLocalStore,
)
from durabledict.testing import StoreSuite

from .memcachedserver import MemcachedServer
from .wrappedstore import WrappedStore

ALL = frozenset({"copies", "encodes", "groups", "lifetimes", "polymorphic", "shared", "threads"})
IN_MEMORY = frozenset({"clock", "groups", "guarded", "lifetimes", "live", "polymorphic", "threads"})


class OnServers(StoreSuite):
    """A suite whose factory needs the servers, emptied for each test."""

    memcached: MemcachedServer
    client: redis.Redis

    @pytest.fixture(autouse=True)
    def _servers(self, memcached_server: MemcachedServer, redis_client: redis.Redis) -> None:
        memcached_server.flush()
        self.memcached, self.client = memcached_server, redis_client

    def memcache(self, **options: Any) -> MemcacheStore:
        return MemcacheStore([f"127.0.0.1:{self.memcached.port}"], **options)


class TestProcessMemoryStore(StoreSuite):
    capabilities = IN_MEMORY

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ProcessMemoryStore(**options)


class TestProcessMemoryStoreOfBoundedSize(StoreSuite):
    capabilities = IN_MEMORY

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ProcessMemoryStore(maxsize=1000, **options)


class TestThreadLocalStore(StoreSuite):
    capabilities = IN_MEMORY - {"threads"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ThreadLocalStore(**options)


class TestMemcacheStore(OnServers):
    capabilities = ALL | {"guarded"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return self.memcache(**options)


class TestMemcacheStoreOfSeveralServers(OnServers):
    """One server under two names, so that keys go to several nodes."""

    capabilities = ALL | {"guarded"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        port = self.memcached.port
        nodes = [("127.0.0.1", port), ("localhost", port)]
        return MemcacheStore(client=HashClient(nodes), **options)


class TestRedisStore(OnServers):
    capabilities = ALL | {"guarded"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return RedisStore(self.client, **options)


class TestSqliteDictStore(StoreSuite):
    capabilities = ALL | {"clock", "guarded"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        d: SqliteDict[Any, Any] = SqliteDict(place / "objects.sqlite")
        self._stack.callback(d.close)
        return DurableDictStore(d, **options)


class TestMemoryDictStore(StoreSuite):
    capabilities = ALL | {"clock", "guarded"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return DurableDictStore(MemoryDict(storage=MemoryStorage.named(str(place))), **options)


class TestShoveStoreOfAFolder(StoreSuite):
    capabilities = ALL | {"clock"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ShoveStore(uri=f"file://{place}", **options)


class TestShoveStoreInMemory(StoreSuite):
    capabilities = ALL | {"clock"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ShoveStore(shoveuri=f"memory://{place}", **options)


class TestShoveStoreOfAMapping(StoreSuite):
    capabilities = (ALL | {"clock"}) - {"shared"}

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ShoveStore({}, **options)


class TestChainOfMemory(StoreSuite):
    """A per-process layer in front of what only this process writes: live objects, never old."""

    capabilities = frozenset({"live", "threads"})

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ChainedStore([ProcessMemoryStore(), ThreadLocalStore(), ProcessMemoryStore()])


class TestChainOfMemcached(OnServers):
    capabilities = frozenset({"copies", "shared", "threads"})

    def factory(self, place: Path, **options: Any) -> BaseStore:
        d: SqliteDict[Any, Any] = SqliteDict(place / "objects.sqlite")
        self._stack.callback(d.close)
        return ChainedStore([self.memcache(), DurableDictStore(d)])


class TestChainOfRedis(OnServers):
    capabilities = frozenset({"copies", "shared", "threads"})

    def factory(self, place: Path, **options: Any) -> BaseStore:
        d: SqliteDict[Any, Any] = SqliteDict(place / "objects.sqlite")
        self._stack.callback(d.close)
        return ChainedStore([RedisStore(self.client), DurableDictStore(d)])


class TestChainOfAll(OnServers):
    """Memory in front of memcached in front of Redis in front of files."""

    capabilities = frozenset({"threads"})

    def factory(self, place: Path, **options: Any) -> BaseStore:
        files = ShoveStore(uri=str(place))
        return ChainedStore([ProcessMemoryStore(), self.memcache(), RedisStore(self.client), files])


class TestChainOfTheSixMethods(StoreSuite):
    """Layers that know nothing but the six operations."""

    capabilities = frozenset({"keeps_for_ever", "live", "threads"})

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return ChainedStore([WrappedStore(), WrappedStore(), WrappedStore()])
