"""Stores and chains between real processes."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabledict import SqliteDict
from durabledict.stores import (
    BaseStore,
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    RedisStore,
    ShoveStore,
)
from durabledict.testing.things import Thing

from .memcachedserver import MemcachedServer

spawning = multiprocessing.get_context("spawn")

KINDS = ["memcached", "redis", "sqlite", "folder"]
TURNS = 60


@contextmanager
def opened(kind: str, where: str) -> Iterator[BaseStore]:
    if kind == "sqlite":
        with SqliteDict[Any, Any](where, synchronous="NORMAL") as d:
            yield DurableDictStore(d)
    elif kind == "folder":
        yield ShoveStore(uri=where)
    else:
        store: Any = RedisStore(where) if kind == "redis" else MemcacheStore([where])
        with store:
            yield store


@contextmanager
def chained(kind: str, where: str, durable: str) -> Iterator[tuple[BaseStore, BaseStore, Any]]:
    with opened(kind, where) as cache, opened("sqlite", durable) as last:
        yield cache, last, ChainedStore([cache, last])


@pytest.fixture
def places(tmp_path: Path, memcached_server: MemcachedServer, redis_url: str) -> dict[str, str]:
    memcached_server.flush()
    return {
        "memcached": f"127.0.0.1:{memcached_server.port}",
        "redis": redis_url,
        "sqlite": str(tmp_path / "objects.sqlite"),
        "folder": str(tmp_path / "objects"),
        "durable": str(tmp_path / "durable.sqlite"),
    }


def in_processes(target: Any, *arguments: Any) -> None:
    """Run a function in two processes at once; its last argument is the number of the process."""
    children = [spawning.Process(target=target, args=(*arguments, n)) for n in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def write_many(kind: str, where: str, number: int) -> None:
    with opened(kind, where) as store:
        for turn in range(TURNS):
            store.batch_put([Thing(number, name=number, value=turn), Thing("shared", value=turn)])
            found = store.get(Thing, {"zone": 1, "name": number})
            assert found is not None
            assert found.value == turn


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_share_a_store(kind: str, places: dict[str, str]) -> None:
    in_processes(write_many, kind, places[kind])
    with opened(kind, places[kind]) as store:
        found: Any = store.batch_get(Thing, [{"id": 1}, {"zone": 1, "name": 2}, {"id": "shared"}])
        assert [thing.value for thing in found] == [TURNS - 1] * 3


def use_at_random(kind: str, where: str, durable: str, number: int) -> None:
    chance = random.Random(number)
    with chained(kind, where, durable) as (_, _, chain):
        for turn in range(TURNS * 2):
            things = [
                Thing(n, name=f"{n}{chance.choice('ab')}", value=(number, turn))
                for n in chance.sample(range(4), 2)
            ]
            action = chance.random()
            if action < 0.3:
                chain.batch_put(things)
            elif action < 0.4:
                chain.batch_delete(things)
            elif action < 0.7:
                chain.batch_get(Thing, [{"id": thing.id} for thing in things])
            else:
                chain.batch_get(Thing, [{"zone": 1, "name": thing.name} for thing in things])


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_a_cache_never_differs_from_what_lasts(kind: str, places: dict[str, str]) -> None:
    """Whatever two processes did at once: when they are done, the cache holds that or nothing."""
    in_processes(use_at_random, kind, places[kind], places["durable"])
    with chained(kind, places[kind], places["durable"]) as (cache, last, chain):
        for number in range(4):
            cached, lasting = (store.get(Thing, {"id": number}) for store in (cache, last))
            assert cached is None or cached == lasting
            assert chain.get(Thing, {"id": number}) == lasting
