"""Real processes that put against each other: the cache never differs from the database."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from durabledict.ext.sqlalchemy import sync_sessions
from durabledict.stores import ChainedStore, MemcacheStore, SqlAlchemyStore

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .sqlmodels import NAME as DATABASE
from .sqlmodels import Word, database, postgres_url
from .test_store_processes import in_processes

NUMBERS = range(4)


@contextmanager
def chained(url: str, memcached: str) -> Iterator[tuple[Any, Any, ChainedStore]]:
    engine = create_engine(url)
    with MemcacheStore([memcached]) as cache:
        yield engine, cache, ChainedStore([cache, SqlAlchemyStore(engine=engine)])
    engine.dispose()


def write_at_random(url: str, memcached: str, turns: int, seconds: float, number: int) -> None:
    """Put, delete and get, through the chain and through sessions that are in step."""
    chance = random.Random(number)
    ends = time.monotonic() + seconds
    with chained(url, memcached) as (engine, _, chain):
        maker = sessionmaker(engine)
        sync_sessions(maker, chain)
        turn = 0
        while turn < turns or time.monotonic() < ends:
            turn += 1
            ids = chance.sample(NUMBERS, 2)
            words = [Word(id=n, text=f"w{n}", value=number * 10**6 + turn) for n in sorted(ids)]
            action = chance.random()
            if action < 0.35:
                chain.batch_put(words)
            elif action < 0.45:
                chain.batch_delete(words)
            elif action < 0.6:
                # The other process may have deleted the row.
                with contextlib.suppress(StaleDataError), maker.begin() as session:
                    found = session.get(Word, ids[0])
                    if found is not None:
                        found.value = number * 10**6 + turn
            elif action < 0.65:
                with maker.begin() as session:
                    session.execute(update(Word).where(Word.id == ids[0]).values(value=turn))
            else:
                chain.batch_get(Word, [{"text": word.text} for word in words])


def race(
    folder: Path, postgres: PostgresServer, memcached: MemcachedServer, turns: int, seconds: float
) -> None:
    memcached.flush()
    url, address = postgres_url(postgres, DATABASE), f"127.0.0.1:{memcached.port}"
    with database("postgresql", folder, postgres):
        in_processes(write_at_random, url, address, turns, seconds)
        with chained(url, address) as (engine, cache, chain):
            last = SqlAlchemyStore(engine=engine)
            for number in NUMBERS:
                key = {"text": f"w{number}"}
                found = [store.get(Word, key) for store in (cache, last, chain)]
                cached, lasting, read = (word and (word.id, word.value) for word in found)
                assert cached is None or cached == lasting
                assert read == lasting


@pytest.mark.parametrize("attempt", range(2))
def test_a_cache_never_differs_from_the_database(
    attempt: int, tmp_path: Path, postgres_server: PostgresServer, memcached_server: MemcachedServer
) -> None:
    race(tmp_path, postgres_server, memcached_server, 120, 0)


@pytest.mark.long
@pytest.mark.parametrize("attempt", range(4))
def test_a_cache_never_differs_from_the_database_for_a_minute(
    attempt: int, tmp_path: Path, postgres_server: PostgresServer, memcached_server: MemcachedServer
) -> None:
    race(tmp_path, postgres_server, memcached_server, 120, 15)
