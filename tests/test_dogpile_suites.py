"""dogpile.cache's own suites over its backends of this library, none left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dogpile.cache.region
import dogpile.lock
import pytest
from dogpile.testing import fixtures
from dogpile.testing.fixtures import (
    _GenericBackendFixture,
    _GenericBackendTestSuite,
    _GenericMutexTestSuite,
    _GenericSerializerTestSuite,
)

from durabledict import MemoryDict, SqliteDict
from durabledict.ext.dogpile import SharedInvalidation
from durabledict.redis import RedisDict
from durabledict.stores import DurableDictStore, MemcacheStore, ProcessMemoryStore

from .memcachedserver import MemcachedServer
from .redisservers import RedisServer

#: How much faster the clock of the tests with many threads goes: they sleep for ten seconds.
FASTER = 8

MANY_THREADS = ("test_threaded_dogpile", "test_threaded_get_multi")


class Place:
    """Where the values of a suite are: its `open` returns the backend's arguments."""

    config_args: Any
    backend: str

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        raise NotImplementedError

    @classmethod
    def setup_class(cls) -> None:
        """Do nothing: the fixture `_opened` does it, which has the servers."""


@pytest.fixture(scope="class", autouse=True)
def _opened(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    memcached_server: MemcachedServer,
) -> Iterator[None]:
    redis_server.flush()
    memcached_server.flush()
    suite: Any = request.cls
    with ExitStack() as ends:
        folder = tmp_path_factory.mktemp("dogpile")
        suite.config_args = {"arguments": suite.open(ends, folder, redis_server, memcached_server)}
        super(Place, suite).setup_class()  # theirs: it makes a backend
        yield


class Standing:
    """A clock that stands still but when somebody sleeps: what expires does so then, not before."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def _another_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any
    if request.node.name in MANY_THREADS:
        began = time.time()
        clock = SimpleNamespace(
            time=lambda: began + (time.time() - began) * FASTER,
            sleep=lambda seconds: time.sleep(seconds / FASTER),
        )
    elif request.node.name == "test_region_expire":
        clock = Standing()
    else:
        return
    for module in (fixtures, dogpile.cache.region, dogpile.lock):
        monkeypatch.setattr(module, "time", clock)


class InMemory(Place):
    backend = "durabledict.dict"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        return {"dict": ends.enter_context(MemoryDict[Any, Any]())}


class InSqlite(Place):
    backend = "durabledict.dict"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        return {"dict": ends.enter_context(SqliteDict[Any, Any](folder / "cache.sqlite"))}


class InRedis(Place):
    backend = "durabledict.dict"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        client = ends.enter_context(server.client())
        return {"dict": ends.enter_context(RedisDict[Any, Any]("dogpile", client))}


class InWatchedRedis(Place):
    backend = "durabledict.dict"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        client = ends.enter_context(server.client())
        d = ends.enter_context(RedisDict[Any, Any]("watched", client, autosync=False))
        d.watch()
        return {"dict": d, "invalidation": SharedInvalidation(d), "distributed_lock": True}


class InProcessMemoryStore(Place):
    backend = "durabledict.store"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        return {"store": ProcessMemoryStore()}


class InMemcacheStore(Place):
    backend = "durabledict.store"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        store = ends.enter_context(MemcacheStore([f"127.0.0.1:{cache.port}"]))
        return {"store": store, "invalidation": SharedInvalidation(store)}


class InDurableDictStore(Place):
    backend = "durabledict.store"

    @staticmethod
    def open(ends: ExitStack, folder: Path, server: RedisServer, cache: MemcachedServer) -> Any:
        d = ends.enter_context(SqliteDict[Any, Any](folder / "store.sqlite"))
        return {"store": DurableDictStore(d)}


class TestMemoryDict(InMemory, _GenericBackendTestSuite):
    pass


class TestSqliteDict(InSqlite, _GenericBackendTestSuite):
    pass


class TestRedisDict(InRedis, _GenericBackendTestSuite):
    pass


class TestWatchedRedisDict(InWatchedRedis, _GenericSerializerTestSuite, _GenericBackendTestSuite):
    """With everything: watched, a lock in Redis, generations, and the region's own serializer."""


class TestProcessMemoryStore(InProcessMemoryStore, _GenericBackendTestSuite):
    pass


class TestMemcacheStore(InMemcacheStore, _GenericBackendTestSuite):
    pass


class TestSerializersOverMemoryDict(InMemory, _GenericSerializerTestSuite, _GenericBackendFixture):
    pass


class TestSerializersOverSqliteDict(InSqlite, _GenericSerializerTestSuite, _GenericBackendFixture):
    pass


class TestSerializersOverRedisDict(InRedis, _GenericSerializerTestSuite, _GenericBackendFixture):
    pass


class TestSerializersOverDurableDictStore(
    InDurableDictStore, _GenericSerializerTestSuite, _GenericBackendFixture
):
    pass


class Distributed(_GenericMutexTestSuite):
    extra_arguments = {"distributed_lock": True}


class TestMutexOfMemoryDict(InMemory, Distributed):
    pass


class TestMutexOfSqliteDict(InSqlite, Distributed):
    pass


class TestMutexOfRedisDict(InRedis, Distributed):
    pass


class TestMutexOfProcessMemoryStore(InProcessMemoryStore, Distributed):
    pass


class TestMutexOfMemcacheStore(InMemcacheStore, Distributed):
    pass


class TestMutexThatIsNotDistributed(InMemcacheStore, _GenericMutexTestSuite):
    """What notes the generation, of this process alone."""
