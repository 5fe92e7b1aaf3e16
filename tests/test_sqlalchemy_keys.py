"""First keys of every kind, and what else changes them: sessions and chains leave nothing old."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, delete, event, insert, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from durabledict.ext.sqlalchemy import StockpyleSessionExtension, sync_sessions
from durabledict.stores import ChainedStore, MemcacheStore, ProcessMemoryStore, SqlAlchemyStore
from durabledict.stores.writethrough import WriteThrough

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .sqlkeymodels import (
    Account,
    Alias,
    Animal,
    Book,
    Dog,
    Folded,
    KeyBase,
    Late,
    Money,
    Shelf,
    Shouted,
    Slug,
    Star,
    Thing,
)
from .sqlmodels import Pet, User, Word, database, row


class Setting:
    """A chain, and sessions that are in step with it."""

    def __init__(self, engine: Engine, cache: MemcacheStore) -> None:
        self.engine = engine
        self.cache = cache
        self.durable = SqlAlchemyStore(engine=engine)
        self.chain = ChainedStore([cache, self.durable])
        self.sessions = sessionmaker(engine)
        sync_sessions(self.sessions, self.chain)
        self.dialect: Any = postgresql if engine.dialect.name == "postgresql" else sqlite


@pytest.fixture
def cache(memcached_server: MemcachedServer) -> Iterator[MemcacheStore]:
    memcached_server.flush()
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"]) as store:
        yield store


@pytest.fixture(params=["sqlite", "postgresql"])
def setting(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_server: PostgresServer,
    cache: MemcacheStore,
) -> Iterator[Setting]:
    with database(
        request.param, tmp_path, postgres_server, begins=True, more=[KeyBase.metadata]
    ) as engine:
        yield Setting(engine, cache)


@pytest.fixture
def on_postgres(
    tmp_path: Path, postgres_server: PostgresServer, cache: MemcacheStore
) -> Iterator[Setting]:
    with database("postgresql", tmp_path, postgres_server, more=[KeyBase.metadata]) as engine:
        yield Setting(engine, cache)


# -- kinds of keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("klass", [Alias, Shouted, Slug, Late])
def test_a_key_of_any_kind_leaves_nothing_old(klass: Any, setting: Setting) -> None:
    attribute = klass.__stockpyle_keys__[0]

    def cached(name: str) -> Any:
        key = {attribute: getattr(klass(id=9, name=name), attribute)}
        found = setting.cache.get(klass, key)
        return found and found.value

    def change(**values: Any) -> None:
        with setting.sessions() as session:
            one = row(session, klass, 1)
            for name, value in values.items():
                setattr(one, name, value)
            session.commit()

    setting.chain.put(klass(id=1, name="a"))
    assert cached("a") == 0
    change(value=5)
    assert cached("a") == 5
    change(name="b")
    assert (cached("a"), cached("b")) == (None, 5)
    setting.chain.put(klass(id=1, name="c"))
    assert (cached("b"), cached("c")) == (None, 5)
    with setting.sessions() as session:
        session.execute(update(klass).values(value=7))
        session.commit()
    assert cached("c") is None
    setting.chain.put(klass(id=1, name="d"))
    with setting.sessions() as session:
        session.delete(row(session, klass, 1))
        session.commit()
    assert cached("d") is None


def test_a_key_that_cannot_be_computed_fails_no_commit(setting: Setting) -> None:
    with setting.sessions() as session:
        session.add(Slug(id=1, name=None))
        session.commit()
        row(session, Slug, 1).name = "A"
        session.commit()
        found = setting.cache.get(Slug, {"slug": "a"})
        assert found is not None
        row(session, Slug, 1).name = None
        session.commit()
        assert setting.cache.get(Slug, {"slug": "a"}) is None
        session.delete(row(session, Slug, 1))
        session.commit()


def test_a_key_that_the_database_rounded(on_postgres: Setting) -> None:
    """The session that wrote it does not know how."""
    with on_postgres.sessions(expire_on_commit=False) as session:
        one, two = Money(id=1, amount=Decimal("1.006")), Money(id=2, amount=Decimal("2.006"))
        session.add_all([one, two])
        session.commit()
        keys = [{"amount": Decimal("1.01")}, {"amount": Decimal("2.01")}]
        assert None not in on_postgres.cache.batch_get(Money, keys)
        one.amount = Decimal("3")
        session.delete(two)
        session.commit()
    assert on_postgres.cache.batch_get(Money, keys) == [None, None]


@pytest.mark.parametrize("act", ["change", "delete"])
def test_a_row_that_another_gave_a_new_key_meanwhile(act: str, on_postgres: Setting) -> None:
    on_postgres.chain.put(Word(id=1, text="a"))
    with on_postgres.sessions() as session:
        word = row(session, Word, 1)
        on_postgres.chain.put(Word(id=1, text="b"))
        assert on_postgres.cache.get(Word, {"text": "b"}) is not None
        if act == "delete":
            session.delete(word)
        else:
            word.text = "z"
        session.commit()
    assert on_postgres.cache.get(Word, {"text": "b"}) is None
    assert on_postgres.chain.get(Word, {"text": "b"}) is None


# -- rows of two tables ---------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "klass"), [(Thing, Star), (Animal, Dog)])
def test_a_row_of_two_tables(base: Any, klass: Any, setting: Setting) -> None:
    setting.chain.put(klass(id=1, badge="x"))
    with setting.sessions() as session:
        row(session, base, 1).name = "n"
        session.commit()
    found = setting.chain.get(klass, {"badge": "x"})
    assert found is not None
    assert found.name == "n"
    assert setting.cache.get(klass, {"badge": "x"}) is not None
    with setting.sessions() as session:
        session.execute(update(base).values(name="m"))
        session.commit()
    assert setting.cache.get(klass, {"badge": "x"}) is None
    setting.chain.put(klass(id=1, badge="y"))
    setting.chain.put(base(id=2, name="r"))
    setting.chain.put(base(id=2, name="s"))
    found = setting.cache.get(base, {"id": 2})
    assert found is not None
    assert found.name == "s"
    with setting.sessions() as session:
        session.execute(delete(base).where(base.id == 2))
        session.commit()
    assert setting.cache.get(base, {"id": 2}) is None
    setting.chain.delete(base(id=1))
    assert setting.cache.get(klass, {"badge": "y"}) is None
    assert setting.durable.get(base, {"id": 1}) is None


def test_half_a_row_is_not_published(on_postgres: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of its two tables is locked: the other one may be written at any moment."""
    on_postgres.chain.put(Star(id=1, badge="x", name="old", size=1))
    begin = WriteThrough.begin

    def begin_later(self: WriteThrough, *args: Any) -> None:
        monkeypatch.setattr(WriteThrough, "begin", begin)
        with on_postgres.sessions() as other:
            row(other, Star, 1).name = "new"
            other.commit()
        begin(self, *args)

    with on_postgres.sessions() as session:
        row(session, Star, 1).size = 2
        session.flush()
        monkeypatch.setattr(WriteThrough, "begin", begin_later)
        session.commit()
    assert on_postgres.cache.get(Star, {"badge": "x"}) is None
    found = on_postgres.chain.get(Star, {"badge": "x"})
    assert found is not None
    assert (found.name, found.size) == ("new", 2)
    # A new one is locked as a whole.
    with on_postgres.sessions() as session:
        star = Star(id=2, badge="y")
        session.add(star)
        session.flush()
        star.size = 5
        session.commit()
    found = on_postgres.cache.get(Star, {"badge": "y"})
    assert found is not None
    assert found.size == 5


# -- statements -----------------------------------------------------------------------------------


def test_an_upsert_that_meets_a_row_by_another_key(setting: Setting) -> None:
    setting.chain.batch_put([Account(id=1, name="a"), Account(id=2, name="b")])
    with setting.sessions() as session:
        statement = setting.dialect.insert(Account).on_conflict_do_update(
            index_elements=["name"], set_={"value": 9}
        )
        session.execute(statement, [{"id": 99, "name": "a"}])
        session.commit()
    assert setting.cache.get(Account, {"id": 1}) is None
    assert setting.cache.get(Account, {"id": 2}) is not None


def test_an_upsert_that_changes_the_key(setting: Setting) -> None:
    setting.chain.put(Word(id=1, text="a"))
    with setting.sessions() as session:
        statement = setting.dialect.insert(Word).on_conflict_do_update(
            index_elements=["id"], set_={"text": "n"}
        )
        session.execute(statement, [{"id": 1, "text": "unused"}])
        session.commit()
    assert setting.cache.get(Word, {"text": "a"}) is None
    assert setting.chain.get(Word, {"text": "n"}) is not None


def test_an_upsert_that_may_meet_any_row(setting: Setting) -> None:
    setting.chain.batch_put([Folded(id=1, name="a"), Folded(id=2, name="b")])
    with setting.sessions() as session:
        statement = setting.dialect.insert(Folded).on_conflict_do_update(
            index_elements=[text("lower(name)")], set_={"value": 9}
        )
        session.execute(statement, [{"id": 99, "name": "A"}])
        session.commit()
    found = setting.durable.get(Folded, {"id": 1})
    assert found is not None
    assert found.value == 9
    assert setting.cache.batch_get(Folded, [{"id": 1}, {"id": 2}]) == [None, None]


def test_an_insert_that_replaces(tmp_path: Path, cache: MemcacheStore) -> None:
    with database("sqlite", tmp_path, None, more=[KeyBase.metadata]) as engine:
        setting = Setting(engine, cache)
        setting.chain.put(Account(id=1, name="a"))
        with setting.sessions() as session:
            statement = insert(Account).prefix_with("OR REPLACE")
            session.execute(statement, [{"id": 2, "name": "a"}])
            session.commit()
        assert cache.get(Account, {"id": 1}) is None


@contextmanager
def skipped_where_unknown() -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        pytest.skip(f"of a later SQLAlchemy: {error}")


def test_one_statement_for_many_parameters(setting: Setting) -> None:
    setting.chain.batch_put([Word(id=1, text="a", value=1), Word(id=2, text="b", value=2)])
    with setting.sessions() as session, skipped_where_unknown():
        session.execute(
            update(Word).where(Word.text == bindparam("name")).values(value=bindparam("new")),
            [{"name": "a", "new": 7}, {"name": "b", "new": 8}],
            execution_options={"dml_strategy": "core_only", "synchronize_session": False},
        )
        session.commit()
    found = setting.chain.batch_get(Word, [{"text": "a"}, {"text": "b"}])
    assert [word and word.value for word in found] == [7, 8]


def test_the_rows_of_a_statement_do_not_change_before_it(on_postgres: Setting) -> None:
    """Else it would meet another one, and as many as were seen."""
    on_postgres.chain.batch_put([Word(id=1, text="a", value=1), Word(id=2, text="b", value=2)])
    failed: list[Exception] = []

    def swap(_: Any, cursor: Any, statement: str, *others: Any) -> None:
        if statement.startswith("UPDATE words SET value=") and not failed:
            failed.append(KeyError())
            try:
                with on_postgres.engine.begin() as other:
                    other.execute(text("SET LOCAL lock_timeout = '50ms'"))
                    other.execute(text("UPDATE words SET value = 3 - value"))
            except Exception as error:
                failed[0] = error

    event.listen(on_postgres.engine, "before_cursor_execute", swap)
    with on_postgres.sessions() as session:
        session.execute(
            update(Word).where(Word.value == 1).values(value=9),
            execution_options={"synchronize_session": False},
        )
        session.commit()
    event.remove(on_postgres.engine, "before_cursor_execute", swap)
    assert "lock timeout" in str(failed[0])
    keys = [{"text": "a"}, {"text": "b"}]
    cached = on_postgres.cache.batch_get(Word, keys)
    assert [word and word.value for word in cached] == [None, 2]


# -- other listeners to the commit ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["statement", "savepoint", "the same again"])
def test_what_another_listener_does_during_the_commit(how: str, setting: Setting) -> None:
    setting.chain.batch_put([Word(id=1, text="a", value=1), Word(id=3, text="c")])
    done: list[str] = []

    def act(session: Session) -> None:
        if done:
            return
        done.append(how)
        if how == "statement":
            session.execute(update(Word).where(Word.id == 1).values(value=9))
        elif how == "savepoint":
            with session.begin_nested():
                row(session, Word, 1).value = 9
        else:
            row(session, Word, 1).value = 9
            session.flush()

    with setting.sessions() as session:
        event.listen(session, "before_commit", act)
        if how == "the same again":
            row(session, Word, 1).value = 2
        else:
            session.add(Word(id=2, text="b"))
        session.commit()
    assert done
    # A savepoint cannot be announced: everything is forgotten.
    assert (setting.cache.get(Word, {"text": "c"}) is None) == (how == "savepoint")
    found = setting.chain.get(Word, {"text": "a"})
    assert found is not None
    assert found.value == 9


def test_a_connection_is_listened_to_once(setting: Setting) -> None:
    setting.durable.put(Word(id=1, text="a"))
    with setting.engine.connect() as connection:
        for number in range(3):
            with connection.begin(), setting.sessions(bind=connection) as session:
                row(session, Word, 1).value = number + 1
                session.commit()
        assert len(list(connection.dispatch.commit)) == 1


# -- what a chain's puts and deletes bring along --------------------------------------------------


def test_what_is_put_and_deleted_along_leaves_the_caches(setting: Setting) -> None:
    rex = {"id": 1}
    setting.chain.put(User(id=1, name="a", pets=[Pet(id=1, name="rex"), Pet(id=2, name="tom")]))
    assert None not in setting.chain.batch_get(Pet, [rex, {"id": 2}])
    assert None not in setting.cache.batch_get(Pet, [rex, {"id": 2}])
    # The one is changed, and the other is an orphan.
    setting.chain.put(User(id=1, name="a", pets=[Pet(id=1, name="max")]))
    assert setting.cache.batch_get(Pet, [rex, {"id": 2}, {"name": "rex"}]) == [None, None, None]
    found = setting.chain.get(Pet, rex)
    assert found is not None
    assert found.name == "max"
    setting.chain.delete(User(id=1))
    assert setting.cache.get(Pet, rex) is None
    assert setting.chain.get(Pet, rex) is None


@pytest.mark.parametrize("how", ["chain", "session"])
def test_an_orphan_that_nobody_has_loaded_leaves_the_caches(how: str, setting: Setting) -> None:
    setting.chain.put(Shelf(id=1, books=[Book(id=1, title="x")]))
    assert setting.chain.get(Book, {"title": "x"}) is not None
    assert setting.cache.get(Book, {"title": "x"}) is not None
    if how == "chain":
        setting.chain.put(Shelf(id=1, books=[]))
    else:
        with setting.sessions() as session:
            shelf = row(session, Shelf, 1)
            shelf.books.clear()
            session.commit()
    assert setting.durable.get(Book, {"title": "x"}) is None
    assert setting.cache.get(Book, {"title": "x"}) is None


def test_a_database_alone_cannot_be_told() -> None:
    """Also as the last of a chain whose caches are."""
    memory, durable = (
        ProcessMemoryStore(lifetime_cb=lambda obj: 60),
        SqlAlchemyStore(uri="sqlite://"),
    )
    extension = StockpyleSessionExtension(ChainedStore([memory, durable]))
    assert [layer.store for layer in extension._layers] == [memory]
    assert extension._own == []
