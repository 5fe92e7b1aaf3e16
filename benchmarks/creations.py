"""What `get_or_create` costs: a hit, and how often something is created and pickled."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dogpile.cache import make_region
from sqlalchemy import create_engine

from durabledict.stores import MemcacheStore, ProcessMemoryStore
from durabledict.stores.keys import locate
from tests import djangoproject
from tests.creations import KINDS, Journal, Processes, one_of_many
from tests.memcachedserver import MemcachedServer
from tests.postgresserver import PostgresServer
from tests.redisservers import RedisServer
from tests.sqlmodels import Base, postgres_url
from tests.zookeeperservers import ZookeeperServer

from .measure import Statement, compare
from .tables import Amount, Row

__all__ = ["creation_amounts", "creation_rows", "pickle_amounts"]

THREADS = 1_000
PROCESSES = 8


class Item:
    """An object that counts how often it is pickled and unpickled."""

    __stockpyle_keys__ = ["id"]
    pickles = unpickles = 0

    def __init__(self, number: int) -> None:
        self.id = number

    def __getstate__(self) -> dict[str, Any]:
        Item.pickles += 1
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Item.unpickles += 1
        vars(self).update(state)


def creation_rows() -> Iterator[Row]:
    """Measure a hit in memory beside one of a region of dogpile.cache."""
    item = Item(1)
    region = make_region().configure("dogpile.cache.memory")
    region.set("k", item)
    against = Statement("get('k', create)", get=region.get_or_create, create=lambda: item)
    plain, expiring = ProcessMemoryStore(), ProcessMemoryStore(lifetime_cb=lambda obj: 3600)
    for what, store in (("", plain), (", lifetime_cb", expiring)):
        store.put(item)
        hit = Statement(
            "get(Item, {'id': 1}, create)",
            get=store.get_or_create,
            Item=Item,
            create=lambda: item,
        )
        measured = compare(against, hit)
        yield Row(f"ProcessMemoryStore.get_or_create{what}", "dogpile get_or_create", measured, 0.7)


def creation_amounts() -> Iterator[Amount]:
    """Count the calls of the creator: among threads, and among processes over each store."""
    calls: list[int] = []
    store, gate = ProcessMemoryStore(), threading.Barrier(THREADS)

    def creator() -> Item:
        calls.append(1)
        return Item(1)

    def work() -> None:
        gate.wait()
        store.get_or_create(Item, {"id": 1}, creator)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield Amount(f"creators called by {THREADS:,} threads", len(calls), 1, "")
    yield from _by_processes()


def _by_processes() -> Iterator[Amount]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memcached = stack.enter_context(MemcachedServer())
        redis = stack.enter_context(RedisServer())
        postgres = stack.enter_context(PostgresServer())
        zookeeper = stack.enter_context(ZookeeperServer())
        djangoproject.set_up(folder, postgres, memcached, redis)
        where = {
            "memcached": f"127.0.0.1:{memcached.port}",
            "redis": redis.url,
            "zookeeper": zookeeper.hosts,
            "path": "/created",
            "SQLite": f"sqlite:///{folder / 'sql'}",
            "PostgreSQL": postgres_url(postgres, djangoproject.DATABASE),
            "file": os.fspath(folder / "file"),
        }
        for kind in ("SQLite", "PostgreSQL"):
            engine = create_engine(where[kind])
            Base.metadata.create_all(engine)
            engine.dispose()
        processes = Processes(PROCESSES)
        stack.callback(processes.close)
        for kind in KINDS:
            processes.run(one_of_many, kind, where, folder, PROCESSES)
            called = Journal(folder, kind).count("creates")
            yield Amount(f"creators called by {PROCESSES} processes, {kind}", called, 1, "")


def pickle_amounts() -> Iterator[Amount]:
    """Count pickles where an object is created, read, expires, and is created again."""
    with MemcachedServer() as server, MemcacheStore([f"127.0.0.1:{server.port}"]) as store:
        for what, limit in (("a clean server", 2), ("it was there", 3)):

            def get() -> None:
                store.get_or_create(Item, {"id": 1}, lambda: Item(1))

            Item.pickles = Item.unpickles = 0
            get()
            get()
            store._remove(locate(Item, {"id": 1}).name)  # as when it has expired, but at once
            get()
            get()
            # It is there still, for the second round.
            yield Amount(f"pickles, create to recreate, {what}", Item.pickles, 2, "")
            yield Amount(f"unpickles, create to recreate, {what}", Item.unpickles, limit, "")
