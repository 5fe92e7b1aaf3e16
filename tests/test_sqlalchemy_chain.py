"""`SqlAlchemyStore` at the end of chains: what is cached, when, and what is not served any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, Integer, inspect, text
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, scoped_session, sessionmaker

from durabledict.stores import (
    BaseStore,
    ChainedStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    SqlAlchemyStore,
)
from durabledict.testing.things import Keyless, Thing

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .sqlmodels import Statements, Tag, User, Word, database


@pytest.fixture
def engine(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Engine]:
    with database("postgresql", tmp_path, postgres_server) as engine:
        yield engine


@pytest.fixture(params=["memory", "memcached", "redis"])
def cache(
    request: pytest.FixtureRequest, memcached_server: MemcachedServer, redis_client: redis.Redis
) -> Iterator[BaseStore]:
    memcached_server.flush()
    if request.param == "memory":
        store: BaseStore = ProcessMemoryStore(lifetime_cb=lambda obj: 60)
    elif request.param == "redis":
        store = RedisStore(redis_client)
    else:
        store = MemcacheStore([f"127.0.0.1:{memcached_server.port}"])
    with store:
        yield store


@pytest.fixture
def chain(engine: Engine, cache: BaseStore) -> ChainedStore:
    return ChainedStore([cache, SqlAlchemyStore(engine=engine)])


def test_a_hit_asks_the_database_for_nothing(
    chain: ChainedStore, cache: BaseStore, engine: Engine
) -> None:
    chain.put(User(name="a", zone=1, nick="x", note="long"))
    statements = Statements(engine)
    keys: list[Any] = [{"id": 1}, {"name": "a"}, {"nick": "x", "zone": 1}]
    for found in (*(chain.get(User, key) for key in keys), *chain.batch_get(User, keys)):
        assert found is not None
        # The key too that the database made, and all columns.
        assert (found.id, found.made, found.note) == (1, "by the server", "long")
        assert inspect(found).detached
    assert statements.taken() == []


def test_a_miss_is_filled_with_a_whole_object(
    chain: ChainedStore, cache: BaseStore, engine: Engine
) -> None:
    SqlAlchemyStore(engine=engine).put(User(name="a", note="long"))
    assert chain.get(User, {"name": "a"}) is not None
    cached = cache.get(User, {"id": 1})
    assert cached is not None
    assert cached.note == "long"
    with Session(engine) as session:
        assert session.merge(cached, load=False).pets == []


def test_what_is_cached_is_what_the_database_holds(chain: ChainedStore, cache: BaseStore) -> None:
    chain.put(User(name="a", balance=1.006))
    for given, held in ((None, 1.01), (2.006, 2.01)):
        if given is not None:
            chain.put(User(id=1, name="a", balance=given))
        cached = cache.get(User, {"id": 1})
        assert cached is not None
        assert cached.balance == held


def test_a_put_of_what_is_there_already_empties_the_cache(
    chain: ChainedStore, cache: BaseStore
) -> None:
    """Its row is not written, so not locked: it may be another one by the time of the commit."""
    chain.put(Word(id=1, text="a", value=1))
    chain.put(Word(id=1, text="a", value=1))
    assert cache.get(Word, {"text": "a"}) is None
    assert chain.get(Word, {"text": "a"}) is not None
    assert cache.get(Word, {"text": "a"}) is not None


def test_a_first_key_that_changed_leaves_nothing(chain: ChainedStore, cache: BaseStore) -> None:
    chain.put(Word(id=1, text="a"))
    chain.put(Word(id=1, text="b"))
    assert cache.get(Word, {"text": "a"}) is None
    assert cache.get(Word, {"text": "b"}) is not None
    # The row's key, and that of the caller's object.
    chain.delete(Word(id=1, text="z"))
    assert cache.get(Word, {"text": "b"}) is None
    assert chain.get(Word, {"text": "b"}) is None


def test_a_put_that_fails_leaves_the_cache_as_it_was(chain: ChainedStore, cache: BaseStore) -> None:
    chain.put(User(name="a"))
    with pytest.raises(Exception, match="users_name_key"):
        chain.batch_put([User(id=1, name="b"), User(name="b")])
    cached = cache.get(User, {"id": 1})
    assert cached is not None
    assert cached.name == "a"


def test_what_is_not_mapped_is_in_the_caches_alone(chain: ChainedStore, cache: BaseStore) -> None:
    chain.batch_put([Thing(1), Word(text="a"), Tag(text="t")])
    assert cache.get(Thing, {"id": 1}) == Thing(1)
    assert chain.get(Thing, {"id": 1}) == Thing(1)
    # And what names no keys is in the database alone.
    tag = chain.get(Tag, {"text": "t"})
    assert tag is not None
    chain.delete(tag)
    assert chain.get(Tag, {"id": 1}) is None
    chain.batch_delete([Thing(1), Keyless()])
    assert chain.get(Thing, {"id": 1}) is None


def test_a_key_that_no_cache_knows_is_asked_of_the_database(chain: ChainedStore) -> None:
    chain.put(User(name="a", balance=2))
    found = chain.get(User, {"balance": 2})
    assert found is not None
    assert found.name == "a"
    with pytest.raises(KeyError, match="age"):
        chain.get(User, {"age": 2})


def test_it_is_merged_into_the_callers_session(engine: Engine, cache: BaseStore) -> None:
    sessions = scoped_session(sessionmaker(engine))
    chain = ChainedStore([cache, SqlAlchemyStore(engine=engine, merge_into=sessions)])
    chain.put(User(name="a"))
    statements = Statements(engine)
    found = chain.get(User, {"id": 1})
    assert found is not None
    assert found in sessions
    assert statements.taken() == []
    assert found.pets == []
    sessions.remove()


def test_an_object_that_a_session_expired_is_a_miss(engine: Engine) -> None:
    """A cache in this process holds the very object, which its owner may do anything with."""
    memory = ProcessMemoryStore(lifetime_cb=lambda obj: 60)
    chain = ChainedStore([memory, SqlAlchemyStore(engine=engine)])
    user = User(name="a")
    chain.put(user)
    assert chain.get(User, {"id": 1}) is user
    with Session(engine) as session:
        session.add(user)
        found = chain.get(User, {"id": 1})
        assert found is not None
        assert found is not user
        session.commit()
    for key in ({"id": 1}, {"name": "a"}):
        for found in (chain.get(User, key), *chain.batch_get(User, [key])):
            assert found is not None
            assert found.name == "a"


class Growing(DeclarativeBase):
    __allow_unmapped__ = True
    """Of a class that is given a column more."""


def test_a_class_that_was_given_a_column_since_is_a_miss(
    chain: ChainedStore, cache: BaseStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gadget(Growing):
        size: Any
        __tablename__ = "gadgets"
        __stockpyle_keys__ = ("id", "name")
        id = mapped_column(Integer, primary_key=True)
        name = mapped_column(Integer)

    # So that it can be pickled.
    monkeypatch.setitem(globals(), "Gadget", Gadget)
    Gadget.__qualname__ = "Gadget"
    Growing.metadata.create_all(engine)
    try:
        chain.batch_put([Gadget(id=1, name=11), Gadget(id=2, name=22)])
        assert cache.get(Gadget, {"id": 1}) is not None
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE gadgets ADD size INTEGER DEFAULT 5"))
        Gadget.size = mapped_column(Integer)
        # As in another process: an engine remembers the columns of its queries.
        engine.clear_compiled_cache()
        for key in ({"id": 1}, {"name": 22}):
            for found in (chain.get(Gadget, key), *chain.batch_get(Gadget, [key])):
                assert found is not None
                assert found.size == 5
        chain.put(Gadget(id=1, name=11, size=6))
        found = chain.get(Gadget, {"name": 11})
        assert found is not None
        assert found.size == 6
    finally:
        Growing.metadata.drop_all(engine)
        Growing.metadata.clear()
        Growing.registry.dispose()
