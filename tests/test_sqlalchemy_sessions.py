"""Sessions kept in step: every case of the table, and what is not a line of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, delete, event, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from durabledict.ext.sqlalchemy import StockpyleSessionExtension, sync_sessions
from durabledict.stores import (
    ChainedStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    SqlAlchemyStore,
)
from durabledict.testing import StoreSuite

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .sqlmodels import Membership, Pet, Statements, Tag, User, Word, database, row
from .sqlsessioncases import AT_FIRST, CASES, Case, World
from .tcpproxy import TcpProxy, each_chunk


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[Engine]:
    with database(request.param, tmp_path, postgres_server, begins=True) as engine:
        yield engine


@pytest.fixture
def on_postgres(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Engine]:
    with database("postgresql", tmp_path, postgres_server) as engine:
        yield engine


@pytest.fixture
def cache(memcached: MemcacheStore) -> MemcacheStore:
    return memcached


@pytest.fixture
def world(engine: Engine, cache: MemcacheStore) -> World:
    return World(engine, cache)


@pytest.mark.parametrize(
    ("act", "lasting", "cached"), CASES, ids=[function.__name__ for function, _, _ in CASES]
)
def test_after_a_session(
    act: Case, lasting: dict[str, int], cached: dict[str, int], world: World
) -> None:
    act(world)
    assert (world.lasting(), world.cached()) == (lasting, cached)
    if not act.__name__.startswith("not_covered"):
        found = world.chain.batch_get(Word, [{"text": each} for each in "abcdz"])
        assert {word.text: word.value for word in found if word is not None} == lasting


# -- what a transaction takes with it -------------------------------------------------------------


def test_deletes_by_cascade_and_orphans(world: World) -> None:
    user = User(name="a", pets=[Pet(name="rex"), Pet(name="tom"), Pet(name="kim")])
    world.chain.put(user)
    keys = [{"id": number} for number in (1, 2, 3)]
    assert None not in world.chain.batch_get(Pet, keys)
    assert None not in world.cache.batch_get(Pet, keys)
    with world.sessions() as session:
        owner = row(session, User, 1)
        orphan = owner.pets[0]
        session.expire(orphan)
        owner.pets.remove(orphan)
        session.commit()
        found = world.cache.batch_get(Pet, keys)
        assert [pet and pet.name for pet in found] == [None, "tom", "kim"]
        session.delete(owner)
        session.commit()
    assert world.cache.batch_get(Pet, keys) == [None, None, None]
    assert world.cache.get(User, {"id": 1}) is None
    assert world.chain.batch_get(Pet, keys) == [None, None, None]


def test_what_is_cached_is_whole(world: World) -> None:
    with world.sessions() as session:
        session.add(User(name="a", balance=1.006, note="long"))
        session.commit()
    cached = world.cache.get(User, {"name": "a"})
    assert cached is not None
    assert (cached.id, cached.made, cached.note) == (1, "by the server", "long")
    lasting = world.durable.get(User, {"name": "a"})
    assert lasting is not None
    # As the database rounded it, or not.
    assert cached.balance == lasting.balance
    merged = world.sessions().merge(cached, load=False)
    assert merged.name == "a"


def test_a_key_that_a_relationship_sets(world: World) -> None:
    world.durable.batch_put([User(name="a"), User(name="b"), Membership(group="g", user_id=1)])
    assert world.chain.get(Membership, {"user_id": 1, "group": "g"}) is not None
    with world.sessions() as session:
        row(session, Membership, 1).user = row(session, User, 2)
        session.commit()
    assert world.cache.get(Membership, {"user_id": 1, "group": "g"}) is None
    moved = world.cache.get(Membership, {"user_id": 2, "group": "g"})
    assert moved is not None
    assert moved.id == 1


def test_a_row_that_was_not_written_is_not_published(world: World) -> None:
    """It is not locked: another transaction may have changed it by then."""
    world.durable.put(User(name="a"))
    assert world.chain.get(User, {"id": 1}) is not None
    with world.sessions() as session:
        user = row(session, User, 1)
        session.info["seen"] = user.balance
        user.pets.append(Pet(name="rex"))
        session.flush()
        with world.engine.connect() as connection:
            if world.engine.dialect.name == "postgresql":
                connection.execute(text("UPDATE users SET balance = 7"))
                connection.commit()
        before = world.cache.get(User, {"id": 1})
        session.commit()
    after = world.cache.get(User, {"id": 1})
    assert before is not None
    assert after is not None
    assert after.balance == before.balance is None


def test_classes_without_keys_and_core_sessions_cost_nothing(world: World) -> None:
    statements = Statements(world.engine)
    with world.sessions() as session:
        session.add(Tag(text="t"))
        session.flush()
        session.execute(update(Tag).values(text="u"))
        session.execute(delete(Tag))
        session.commit()
        session.execute(text("SELECT 1"))
        session.commit()
    sent = [statement.split()[0] for statement in statements.taken()]
    assert sent.count("SELECT") == 1


# -- the two phases -------------------------------------------------------------------------------


def test_a_commit_is_two_requests_and_one_query(
    engine: Engine, memcached_server: MemcachedServer
) -> None:
    memcached_server.flush()
    with (
        TcpProxy(memcached_server.port, each_chunk) as proxy,
        MemcacheStore([f"127.0.0.1:{proxy.port}"]) as cache,
    ):
        world = World(engine, cache)
        statements = Statements(engine)
        with world.sessions() as session:
            session.add_all([Word(text=f"w{number}") for number in range(100)])
            session.flush()
            before, _ = proxy.requests, statements.taken()
            session.commit()
            assert proxy.requests - before == 2
            assert [each.split()[0] for each in statements.taken()] == ["SELECT"]
            assert world.chain.get(Word, {"text": "w99"}) is not None
            assert statements.taken() == []


def test_markers_stand_while_it_commits(on_postgres: Engine, cache: MemcacheStore) -> None:
    """Whoever reads then does not store what was there before."""
    world = World(on_postgres, cache)
    seen: list[Any] = []

    def look(connection: Any) -> None:
        seen.append(world.cached())
        found = world.chain.batch_get(Word, [{"text": each} for each in "abc"])
        seen.append({word.text: word.value for word in found if word is not None})
        seen.append(world.cached())

    event.listen(on_postgres, "commit", look)
    with world.sessions() as session:
        world.word(session, "a").value = 10
        session.delete(world.word(session, "b"))
        session.add(Word(text="c", value=3))
        session.commit()
    event.remove(on_postgres, "commit", look)
    assert seen == [{}, AT_FIRST, {}]
    assert world.cached() == world.lasting() == {"a": 10, "c": 3}


@pytest.mark.parametrize("ends", ["commit", "rollback", "close"])
def test_two_phase_commits(ends: str, on_postgres: Engine, cache: MemcacheStore) -> None:
    world = World(on_postgres, cache)
    with world.sessions(twophase=True) as session:
        world.word(session, "a").value = 10
        session.delete(world.word(session, "b"))
        session.prepare()
        assert world.cached() == {}
        getattr(session, ends)()
    expected = {"a": 10} if ends == "commit" else AT_FIRST
    assert world.lasting() == expected
    # Markers of a transaction that did not end well stay until they expire.
    assert world.cached() == (expected if ends == "commit" else {})
    found = world.chain.batch_get(Word, [{"text": "a"}, {"text": "b"}])
    assert {word.text: word.value for word in found if word is not None} == expected


def test_a_commit_whose_connection_breaks(
    on_postgres: Engine, cache: MemcacheStore, postgres_server: PostgresServer
) -> None:
    """Nobody can tell here whether it was done: so nothing is published, and nothing is left."""
    world = World(on_postgres, cache)

    def end(connection: Any) -> None:
        pid = connection.connection.dbapi_connection.info.backend_pid
        postgres_server.sql(f"SELECT pg_terminate_backend({pid})")

    with world.sessions() as session:
        world.word(session, "a").value = 10
        event.listen(on_postgres, "commit", end)
        with pytest.raises(OperationalError, match="terminat"):
            session.commit()
        event.remove(on_postgres, "commit", end)
    assert world.cached() == {"b": 2}
    assert world.lasting() == AT_FIRST


def test_a_statement_whose_rows_changed_meanwhile(
    on_postgres: Engine, cache: MemcacheStore
) -> None:
    """It met a row that it was not seen to meet: then everything is forgotten."""
    world = World(on_postgres, cache)

    seen: list[str] = []

    def between(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE words") and not seen:
            seen.append(statement)
            with on_postgres.begin() as other:
                other.execute(text("UPDATE words SET value = 1 WHERE text = 'b'"))

    event.listen(on_postgres, "before_cursor_execute", between)
    with world.sessions() as session:
        session.execute(
            update(Word).where(Word.value == 1).values(value=9),
            execution_options={"synchronize_session": False},
        )
        session.commit()
    assert world.lasting() == {"a": 9, "b": 9}
    assert world.cached() == {}


def test_an_outer_transaction_that_takes_longer_than_the_markers(
    on_postgres: Engine, cache: MemcacheStore
) -> None:
    """Others cache what is there still; when it is committed, that goes."""
    world = World(on_postgres, cache)
    with on_postgres.connect() as connection, connection.begin():
        with world.sessions(bind=connection) as session:
            world.word(session, "a").value = 10
            session.commit()
        # As if the markers had expired.
        cache._forget_all()
        assert world.chain.get(Word, {"text": "a"}) is not None
        assert world.cached() == {"a": 1}
    assert world.cached() == {}
    assert world.lasting() == {"a": 10, "b": 2}


# -- stores ---------------------------------------------------------------------------------------


def test_the_database_is_not_written_again(engine: Engine, cache: MemcacheStore) -> None:
    world = World(engine, cache)
    statements = Statements(engine)
    with world.sessions() as session:
        session.add(Word(text="c", value=3))
        session.commit()
    sent = [each.split()[0] for each in statements.taken()]
    assert [each for each in sent if each != "BEGIN"] == ["INSERT", "SELECT"]


def test_each_cache_of_a_chain_is_told(
    engine: Engine, cache: MemcacheStore, redis_client: redis.Redis
) -> None:
    memory = ProcessMemoryStore(lifetime_cb=lambda obj: 60)
    on_redis = RedisStore(redis_client)
    chains = [
        ChainedStore([memory, cache, on_redis, SqlAlchemyStore(engine=engine)]),
        # Caches alone, the last of which is no database.
        ChainedStore([memory, ChainedStore([cache, on_redis])]),
    ]
    for number, chain in enumerate(chains):
        maker = sessionmaker(engine)
        stop = StockpyleSessionExtension(store=chain).listen(maker)
        with maker.begin() as session:
            session.add(Word(text=f"w{number}", value=1))
        for store in (memory, cache, on_redis, chain):
            found = store.get(Word, {"text": f"w{number}"})
            assert found is not None
            assert found.value == 1
        with maker.begin() as session:
            session.delete(session.scalars(select(Word)).one())
        for store in (memory, cache, on_redis, chain):
            assert store.get(Word, {"text": f"w{number}"}) is None
        stop()
        with maker.begin() as session:
            session.add(Word(text=f"x{number}", value=1))
        assert cache.get(Word, {"text": f"x{number}"}) is None
        SqlAlchemyStore(engine=engine).delete_key(Word, {"text": f"x{number}"})
    on_redis.release()


def test_a_chain_over_sessions_that_are_in_step_tells_once(
    engine: Engine, cache: MemcacheStore
) -> None:
    """Else the two would take each other for another writer, and nothing would be cached."""
    maker = sessionmaker(engine)
    chain = ChainedStore([cache, SqlAlchemyStore(sessionmaker=maker)])
    other = ProcessMemoryStore()
    sync_sessions(maker, chain)
    sync_sessions(maker, other)
    chain.put(Word(text="a", value=1))
    for store in (cache, other):
        assert store.get(Word, {"text": "a"}) is not None
    # Not through the chain: then the sessions tell.
    SqlAlchemyStore(sessionmaker=maker).put(Word(id=1, text="a", value=2))
    for store in (cache, other):
        found = store.get(Word, {"text": "a"})
        assert found is not None
        assert found.value == 2
    chain.delete(Word(id=1, text="a"))
    for store in (cache, other):
        assert store.get(Word, {"text": "a"}) is None


def test_a_cache_that_is_down_fails_no_commit_and_is_repaired(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    suite = StoreSuite()
    with (
        MemcachedServer() as server,
        TcpProxy(server.port, each_chunk) as proxy,
        MemcacheStore([f"127.0.0.1:{proxy.port}"]) as cache,
        MemcacheStore([f"127.0.0.1:{server.port}"]) as direct,
        suite.clocks() as clock,
    ):
        world = World(engine, cache)
        alone = sessionmaker(engine)
        sync_sessions(alone, cache)
        with world.sessions() as session:
            word = world.word(session, "a")
            session.begin_nested()
            word.value = 10
            session.flush()
            proxy.refuse()
            proxy.cut()
            session.commit()
        with alone() as session:
            world.word(session, "b").value = 20
            session.commit()
        assert world.lasting() == {"a": 10, "b": 20}
        assert "is passed over" in caplog.text
        # What it holds is old, and this process does not read it.
        assert direct.get(Word, {"text": "a"}) is not None
        found = world.chain.get(Word, {"text": "a"})
        assert found is not None
        assert found.value == 10
        proxy.mend()
        clock.move(60)
        found = world.chain.get(Word, {"text": "a"})
        assert found is not None
        assert found.value == 10
        assert direct.get(Word, {"text": "a"}) is None
        # A cache that no chain reads is told at the next commit.
        with alone() as session:
            session.add(Word(text="c", value=3))
            session.commit()
        assert direct.get(Word, {"text": "b"}) is None
        assert direct.get(Word, {"text": "c"}) is not None


def test_what_cannot_be_kept_in_step() -> None:
    durable = SqlAlchemyStore(uri="sqlite://")
    for store in (durable, ChainedStore([durable])):
        with pytest.raises(ValueError, match="no cache"):
            sync_sessions(sessionmaker(), store)
    for wrong in (5, object, sessionmaker):
        with pytest.raises(TypeError, match=r"^target is an? .*: pass a sessionmaker"):
            sync_sessions(wrong, ProcessMemoryStore())
    with pytest.raises(TypeError, match="sync_session_class=maker"):
        sync_sessions(async_sessionmaker(), ProcessMemoryStore())


# -- sessions -------------------------------------------------------------------------------------


def test_what_may_be_listened_to(engine: Engine) -> None:
    class Own(Session):
        pass

    maker = sessionmaker(engine)
    one, scoped = maker(), scoped_session(sessionmaker(engine))
    for target, session in ((maker, maker()), (one, one), (scoped, scoped), (Own, Own(engine))):
        store = ProcessMemoryStore()
        stop = sync_sessions(target, store)
        session.add(Word(text="a", value=1))
        session.commit()
        session.close()
        assert store.get(Word, {"text": "a"}) is not None, target
        stop()
        SqlAlchemyStore(engine=engine).delete_key(Word, {"text": "a"})


def test_sessions_of_the_class_session_itself(engine: Engine) -> None:
    """Those that read for us are of that class, too."""
    store = ProcessMemoryStore()
    stop = sync_sessions(Session, store)
    try:
        with Session(engine) as session:
            session.add(Word(text="a", value=1))
            session.commit()
            word = session.scalars(select(Word)).one()
            session.expire(word)
            word.text = "b"
            session.commit()
    finally:
        stop()
    assert store.get(Word, {"text": "a"}) is None
    assert store.get(Word, {"text": "b"}) is not None


def test_asynchronous_sessions(on_postgres: Engine, cache: MemcacheStore) -> None:
    world = World(on_postgres, cache)

    async def change() -> None:
        engine = create_async_engine(on_postgres.url)
        maker = sessionmaker()
        sync_sessions(maker, world.chain)
        sessions = async_sessionmaker(engine, sync_session_class=maker)
        sync_sessions(async_sessionmaker(engine, sync_session_class=sessionmaker()), world.chain)
        async with sessions() as session:
            await session.execute(update(Word).where(Word.text == "b").values(value=20))
            word = (await session.scalars(select(Word).where(Word.text == "a"))).one()
            session.expire(word)
            word.text = "z"
            await session.commit()
        assert world.cached() == {"z": 1}
        async with AsyncSession(engine) as session:
            sync_sessions(session, world.chain)
            session.add(Word(text="c", value=3))
            await session.commit()
        await engine.dispose()

    asyncio.run(change())
    assert world.lasting() == {"b": 20, "c": 3, "z": 1}
    assert world.cached() == {"c": 3, "z": 1}


def test_nothing_is_left_in_a_session(world: World) -> None:
    with world.sessions() as session:
        for act in (session.commit, session.rollback, session.close):
            session.add(Word(text="d"))
            session.flush()
            session.begin_nested()
            act()
            session.close()
            assert session.info == {}
            session.execute(delete(Word).where(Word.text == "d"))
            session.commit()


def test_nothing_is_said_but_of_outages(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with world.sessions() as session:
        world.word(session, "a").value = 10
        session.commit()
    assert caplog.records == []
