"""`SqlAlchemyStore` alone, on SQLite and PostgreSQL."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from durabledict import NonUniqueKeyError
from durabledict.stores import NotIndexedError, SqlAlchemyStore
from durabledict.testing.things import Keyless, Thing

from .postgresserver import PostgresServer
from .servers import PATIENCE, wait_until
from .sqlmodels import (
    Manager,
    Membership,
    Pet,
    Statements,
    Tag,
    Tool,
    User,
    Word,
    Worker,
    database,
    row,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[Engine]:
    with database(request.param, tmp_path, postgres_server) as engine:
        yield engine


@pytest.fixture
def store(engine: Engine) -> SqlAlchemyStore:
    return SqlAlchemyStore(engine=engine)


@pytest.fixture
def statements(engine: Engine) -> Statements:
    return Statements(engine)


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_any_mapped_column(store: SqlAlchemyStore) -> None:
    store.batch_put([User(name="a", zone=1, nick="x", balance=2.5), Tag(text="t")])
    for key in (
        {"id": 1},
        {"name": "a"},
        {"nick": "x", "zone": 1},
        {"balance": 2.5},
        {"note": None},
        {"zone": 1, "note": None},
        {"id": 1, "name": "a"},
    ):
        for found in (store.get(User, key), *store.batch_get(User, [key])):
            assert found is not None, key
            assert found.name == "a"
    assert store.get(User, {"id": 2}) is None
    assert store.get(User, {"zone": 1, "nick": "y"}) is None
    tag = store.get(Tag, {"text": "t"})
    assert tag is not None
    assert tag.id == 1


def test_what_is_no_mapped_column_is_no_key(store: SqlAlchemyStore) -> None:
    methods: list[Any] = [store.get, store.delete_key, lambda k, key: store.batch_get(k, [key])]
    for method in methods:
        with pytest.raises(NotIndexedError, match=r"indexed by 'age'; .*'id', 'name'"):
            method(User, {"age": 1})
        with pytest.raises(KeyError, match="pets"):
            method(User, {"pets": 1})
        with pytest.raises(KeyError, match="not indexed"):
            method(User, {})
        with pytest.raises(TypeError, match="a dict of attributes"):
            method(User, 5)
        with pytest.raises(TypeError, match="a class comes first"):
            method("User", {"id": 1})


def test_a_batch_is_one_query_whatever_the_mix_of_keys(
    store: SqlAlchemyStore, statements: Statements
) -> None:
    store.batch_put([User(name=f"n{i}", zone=i % 2, nick=f"x{i}") for i in range(1, 40)])
    store.put(User(name="nobody", zone=None, nick="x1"))
    statements.taken()
    keys: list[Any] = [
        {"id": 3},
        {"name": "n5"},
        {"zone": 0, "nick": "x2"},
        {"nick": "x3", "zone": 1},
        {"nick": "x1", "zone": None},
        {"id": 99},
        {"id": 3},
        {"name": "n3"},
    ]
    found = store.batch_get(User, iter(keys))
    names = [user and user.name for user in found]
    assert names == ["n3", "n5", "n2", "n3", "nobody", None, "n3", "n3"]
    assert len(statements.taken()) == 1
    assert store.batch_get(User, []) == []
    assert statements.taken() == []


def test_large_batches_are_queries_of_some_thousands(
    store: SqlAlchemyStore, statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabledict.stores.sqlalchemyqueries.AT_ONCE", 10)
    monkeypatch.setattr("durabledict.stores.sqlalchemyqueries.VALUES", 20)
    words = [Word(id=number, text=str(number)) for number in range(25)]
    store.batch_put(words)
    store.batch_put([Word(id=number, text=str(number), value=1) for number in range(25)])
    statements.taken()
    found = store.batch_get(Word, [{"id": number} for number in range(25)])
    assert [word and (word.text, word.value) for word in found] == [
        (str(number), 1) for number in range(25)
    ]
    assert len(statements.taken()) == 3
    # Keys of two attributes are twice as many values.
    monkeypatch.setattr("durabledict.stores.sqlalchemyqueries.VALUES", 10)
    found = store.batch_get(Word, [{"id": number, "text": "5"} for number in range(25)])
    assert [word and word.id for word in found if word is not None] == [5]
    assert len(statements.taken()) == 5


def test_a_key_that_several_have_says_which(store: SqlAlchemyStore) -> None:
    store.batch_put([User(name="a", zone=1), User(name="b", zone=1), User(name="c", zone=2)])
    methods: list[Any] = [store.get, store.delete_key]
    for method in methods:
        with pytest.raises(NonUniqueKeyError) as caught:
            method(User, {"zone": 1})
        assert (caught.value.klass, caught.value.key) == (User, {"zone": 1})
    with pytest.raises(NonUniqueKeyError) as caught:
        store.batch_get(User, [{"id": 3}, {"zone": 2}, {"zone": 1}])
    assert (caught.value.klass, caught.value.key) == (User, {"zone": 1})
    found = store.get(User, {"zone": 2})
    assert found is not None
    assert found.name == "c"


def test_a_value_that_only_the_database_takes_for_equal_is_found(tmp_path: Path) -> None:
    with database("sqlite", tmp_path, None) as engine:
        store = SqlAlchemyStore(engine=engine)
        store.batch_put([Word(text="1"), Word(text="2")])
        keys: list[Any] = [{"id": "1"}, {"text": "2"}, {"id": "5"}]
        found = store.batch_get(Word, keys)
        assert [word and word.text for word in found] == ["1", "2", None]


def test_a_value_of_another_type_is_sent_as_the_columns(store: SqlAlchemyStore) -> None:
    store.batch_put([User(id=1, name="a", zone=1, nick="x"), User(id=2, name="b")])
    assert store.get(User, {"id": "1"}) is not None
    # Its row answers another key of the batch as well.
    keys: list[Any] = [{"id": "1"}, {"name": "a"}, {"zone": "1", "nick": "x"}, {"id": "3"}]
    found = store.batch_get(User, keys)
    assert [user and user.name for user in found] == ["a", "a", "a", None]


def test_a_batch_of_thousands_whatever_is_null_in_it(
    store: SqlAlchemyStore, statements: Statements
) -> None:
    """SQLite takes no expression of a thousand terms, and 32,766 values."""
    count = 1_200
    store.batch_put([User(name=f"n{i}", zone=i % 3 or None, nick=f"x{i}") for i in range(count)])
    statements.taken()
    keys = [{"zone": i % 3 or None, "nick": f"x{i}", "note": None} for i in range(count)]
    found = store.batch_get(User, keys)
    assert [user and user.name for user in found] == [f"n{i}" for i in range(count)]
    assert len(statements.taken()) == 1


def test_what_is_not_mapped_is_ignored(store: SqlAlchemyStore) -> None:
    store.batch_put([Thing(1), Keyless()])
    store.put(Thing(1))
    store.delete(Thing(1))
    store.batch_delete([Keyless()])
    store.delete_key(Thing, {"id": 1})
    assert store.get(Thing, {"id": 1}) is None
    assert store.batch_get(Keyless, [{"id": 1}, {}]) == [None, None]


# -- what comes back ------------------------------------------------------------------------------


def test_objects_are_detached_and_whole(store: SqlAlchemyStore) -> None:
    store.put(User(name="a", note="long"))
    for found in (
        store.get(User, {"id": 1}),
        store.get(User, {"name": "a"}),
        *store.batch_get(User, [{"id": 1}]),
    ):
        assert found is not None
        assert inspect(found).detached
        assert (found.made, found.note, found.zone) == ("by the server", "long", None)
        with pytest.raises(DetachedInstanceError):
            _ = found.pets
    store.put(Pet(name="rex", owner_id=1))
    pet = store.get(Pet, {"name": "rex"})
    assert pet is not None
    assert pet.owner is not None
    assert pet.owner.name == "a"


def test_collections_that_are_joined_are_loaded(store: SqlAlchemyStore) -> None:
    tag = Tag(text="t", tools=[Tool(), Tool()])
    store.batch_put([tag, Tag(text="u")])
    store.put(Tag(id=1, text="v"))
    found = store.batch_get(Tag, [{"text": "v"}, {"id": 2}])
    for each in (store.get(Tag, {"text": "v"}), store.get(Tag, {"id": 1}), found[0]):
        assert each is not None
        assert [tool.id for tool in each.tools] == [1, 2]
    assert found[1] is not None
    assert found[1].tools == []
    store.delete(tag)
    assert store.get(Tag, {"text": "v"}) is None


def test_columns_of_subclasses_are_loaded(store: SqlAlchemyStore) -> None:
    store.batch_put([Manager(budget=5), Worker()])
    for found in (store.get(Worker, {"id": 1}), *store.batch_get(Worker, [{"id": 1}])):
        assert isinstance(found, Manager)
        assert found.budget == 5


def test_an_object_is_merged_into_the_callers_session(
    store: SqlAlchemyStore, engine: Engine
) -> None:
    store.put(User(name="a"))
    found = store.get(User, {"id": 1})
    assert found is not None
    found.nick = "bleh"
    with Session(engine) as session:
        session.merge(found)
        session.commit()
    found = store.get(User, {"id": 1})
    assert found is not None
    assert found.nick == "bleh"


def test_it_is_merged_at_once_where_the_session_is_known(
    engine: Engine, statements: Statements
) -> None:
    sessions = scoped_session(sessionmaker(engine))
    store = SqlAlchemyStore(engine=engine, merge_into=sessions)
    store.batch_put([User(name="a"), User(name="b")])
    statements.taken()
    first, second = (store.get(User, {"id": 1}), *store.batch_get(User, [{"id": 2}]))
    assert first in sessions
    assert second in sessions
    assert len(statements.taken()) == 2
    assert first is not None
    assert first.pets == []
    first.nick = "changed here"
    # Not taken away by what the database still has.
    assert store.get(User, {"id": 1}) is first
    assert first.nick == "changed here"
    sessions.remove()
    loose = SqlAlchemyStore(engine=engine, merge_into=lambda: None)
    held: Any = loose.get(User, {"id": 1})
    assert inspect(held).detached


# -- puts -----------------------------------------------------------------------------------------


def test_a_new_object_has_what_the_database_made(store: SqlAlchemyStore) -> None:
    user = User(name="a")
    store.put(user)
    assert inspect(user).detached
    assert (user.id, user.made, user.note) == (1, "by the server", None)
    user.nick = "x"
    store.put(user)
    found = store.get(User, {"id": 1})
    assert found is not None
    assert found.nick == "x"


def test_a_put_replaces_the_row_with_its_primary_key(store: SqlAlchemyStore) -> None:
    store.put(Word(id=5, text="old", value=1))
    again = Word(id=5, text="new")
    store.put(again)
    assert inspect(again).transient
    found = store.get(Word, {"id": 5})
    assert found is not None
    # What it did not say stays as it was, and the object is told.
    assert (found.text, found.value, again.value) == ("new", 1, 1)


def test_the_last_of_two_in_one_batch_is_stored(store: SqlAlchemyStore) -> None:
    store.batch_put([Word(id=1, text="a", value=1), Word(id=1, text="b", value=2)])
    found = store.get(Word, {"id": 1})
    assert found is not None
    assert (found.text, found.value) == ("b", 2)


def test_an_object_of_another_session_stays_there(store: SqlAlchemyStore, engine: Engine) -> None:
    store.put(User(name="a"))
    with Session(engine) as session:
        user = row(session, User, 1)
        user.nick = "x"
        new = User(name="b")
        session.add(new)
        with session.no_autoflush:
            if engine.dialect.name == "postgresql":
                # In SQLite the session would be in the way of the Store.
                store.put(user)
            store.put(new)
        assert user in session
        assert new in session
        session.rollback()
    if engine.dialect.name == "postgresql":
        found = store.get(User, {"id": 1})
        assert found is not None
        assert found.nick == "x"
    assert store.get(User, {"name": "b"}) is not None


def test_relationships_cascade_as_the_mapping_says(store: SqlAlchemyStore) -> None:
    user = User(name="a", pets=[Pet(name="rex")])
    store.put(user)
    assert store.get(Pet, {"owner_id": 1}) is not None
    store.put(Pet(name="tom", owner=user))
    pets = store.batch_get(Pet, [{"name": "rex"}, {"name": "tom"}])
    assert [pet and pet.owner_id for pet in pets] == [1, 1]
    store.delete(User(id=1))
    assert store.batch_get(Pet, [{"name": "rex"}, {"name": "tom"}]) == [None, None]


def test_a_delete_is_by_primary_key_and_else_by_the_first(store: SqlAlchemyStore) -> None:
    store.batch_put([Word(text="a"), Word(text="b"), Word(text="c")])
    store.batch_delete([Word(id=1), Word(text="b"), Word(text="none"), Word(id=9)])
    found = store.batch_get(Word, [{"id": number} for number in (1, 2, 3)])
    assert [word and word.text for word in found] == [None, None, "c"]
    store.delete_key(Word, {"text": "c"})
    store.delete_key(Word, {"text": "c"})
    assert store.get(Word, {"id": 3}) is None


def test_a_put_of_many_is_one_question_for_each_class(
    store: SqlAlchemyStore, statements: Statements
) -> None:
    store.batch_put([Word(id=number, text=str(number)) for number in range(50)])
    statements.taken()
    store.batch_put(
        [Word(id=number, text="x") for number in range(20)] + [Tag(id=1, text="t"), User(name="u")]
    )
    sent = [statement.split()[0] for statement in statements.taken()]
    assert sent.count("SELECT") == 2 + 1  # and what the server made of the user
    assert sent.count("UPDATE") == 1
    words = store.batch_get(Word, [{"id": 0}, {"id": 19}, {"id": 20}])
    assert [word and word.text for word in words] == ["x", "x", "20"]


# -- failures -------------------------------------------------------------------------------------


def test_a_put_that_the_database_refuses_changes_nothing(store: SqlAlchemyStore) -> None:
    store.put(User(name="taken"))
    objs: list[Any] = [User(name="new"), User(name="taken"), Word(id=7, text="w")]
    objs += [klass(text="x") for klass in (Word, Tag)]
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"(?i)unique.*name|name.*unique"):
            store.batch_put(objs)
        assert [vars(obj).get("id") for obj in objs] == [None, None, 7, None, None]
        assert all(inspect(obj).transient for obj in objs)
        assert store.batch_get(User, [{"name": "new"}, {"id": 2}]) == [None, None]
    objs[1].name = "free"
    store.batch_put(objs)
    found = store.batch_get(User, [{"name": "new"}, {"name": "free"}])
    assert None not in found
    assert store.get(Word, {"id": 7}) is not None


def test_what_a_refused_put_brought_along_is_what_it_was(store: SqlAlchemyStore) -> None:
    """Else it would be taken for another one's row when it is put again."""
    store.put(Word(id=1, text="w"))
    pet = Pet(name="rex")
    objs: list[Any] = [User(name="a", pets=[pet]), Word(text="x")]
    with pytest.raises(IntegrityError):
        # Tools are the last to be sent.
        store.batch_put([*objs, Membership(id=1, user_id=99)])
    assert inspect(pet).transient
    assert vars(pet).keys() & {"id", "owner_id"} == set()
    store.batch_put(objs)
    found = store.get(Pet, {"name": "rex"})
    assert found is not None
    assert found.owner_id == objs[0].id


def test_what_comes_along_may_be_put_as_well(store: SqlAlchemyStore) -> None:
    pet = Pet(name="rex")
    user = User(name="a", pets=[pet])
    store.batch_put([pet, user, user])
    assert (pet.id, pet.owner_id) == (1, 1)
    assert store.batch_get(User, [{"id": 1}, {"id": 2}])[1] is None


def test_a_row_that_came_between_question_and_insert_is_replaced(
    engine: Engine, statements: Statements
) -> None:
    store = SqlAlchemyStore(engine=engine)
    others = [Word(id=1, text="theirs", value=1)]
    maker = sessionmaker(engine)

    def between(session: Session, *_: Any) -> None:
        if others:
            SqlAlchemyStore(engine=engine).put(others.pop())

    event.listen(maker, "before_flush", between)
    SqlAlchemyStore(sessionmaker=maker).put(Word(id=1, text="ours", value=2))
    found = store.get(Word, {"id": 1})
    assert found is not None
    assert (found.text, found.value) == ("ours", 2)


def test_a_deadlock_leaves_the_store_usable(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with database("postgresql", tmp_path, postgres_server) as engine:
        store = SqlAlchemyStore(engine=engine)
        store.batch_put([Word(id=1, text="a"), Word(id=2, text="b")])
        has_one = threading.Event()
        waiting = "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted"

        def between(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "FOR UPDATE" in statement and not has_one.is_set():
                cursor.execute("SELECT FROM words WHERE id = 1 FOR UPDATE")
                has_one.set()
                # Whoever begins to wait last finds the deadlock, and is the one that fails.
                wait_until(lambda: postgres_server.sql(waiting) == [(True,)], "the other one waits")

        event.listen(engine, "before_cursor_execute", between)
        with engine.connect() as other:
            other.execute(text("SET deadlock_timeout = '60s'"))
            other.execute(text("UPDATE words SET value = 5 WHERE id = 2"))
            failed: list[Exception] = []

            def put() -> None:
                try:
                    store.batch_put([Word(id=1, text="x"), Word(id=2, text="y")])
                except Exception as error:
                    failed.append(error)

            thread = threading.Thread(target=put)
            thread.start()
            assert has_one.wait(PATIENCE)
            other.execute(text("UPDATE words SET value = 5 WHERE id = 1"))
            thread.join()
            other.commit()
        event.remove(engine, "before_cursor_execute", between)
        assert isinstance(failed[0], OperationalError)
        assert "deadlock" in str(failed[0])
        store.batch_put([Word(id=1, text="x"), Word(id=2, text="y")])
        found = store.batch_get(Word, [{"id": 1}, {"id": 2}])
        assert [word and (word.text, word.value) for word in found] == [("x", 5), ("y", 5)]


# -- the database and its sessions ----------------------------------------------------------------


def test_it_says_what_it_takes() -> None:
    engine = create_engine("sqlite://")
    for options in ({}, {"uri": "sqlite://", "engine": engine}):
        with pytest.raises(ValueError, match="uri=, engine= or sessionmaker="):
            SqlAlchemyStore(**options)  # type: ignore[arg-type]  # as users write it
    wrong: Any = "sqlite://"
    with pytest.raises(TypeError, match=r"^engine is a str: pass what create_engine returns"):
        SqlAlchemyStore(engine=wrong)
    with pytest.raises(TypeError, match="pass a sessionmaker"):
        SqlAlchemyStore(sessionmaker=wrong)


def test_a_forked_child_has_connections_of_its_own(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with database("postgresql", tmp_path, postgres_server) as engine:
        url = engine.url.render_as_string(hide_password=False)
        with SqlAlchemyStore(uri=url) as store:

            def backend() -> int:
                with store._session() as session:
                    return int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())

            before = backend()
            context = multiprocessing.get_context("fork")
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=lambda: sender.send((backend(), backend())))
            child.start()
            first, second = receiver.recv()
            child.join()
            assert child.exitcode == 0
            assert first == second != before
            # The child did not close this one.
            assert backend() == before


def test_it_opens_a_uri_and_closes_what_it_opened(tmp_path: Path) -> None:
    with database("sqlite", tmp_path, None) as engine:
        with SqlAlchemyStore(uri=str(engine.url)) as store:
            store.put(Word(text="a"))
        store.put(Word(text="b"))
        assert SqlAlchemyStore(engine=engine).get(Word, {"text": "b"}) is not None
        assert "test.sqlite" in repr(store)
        store.release()
        own = SqlAlchemyStore(engine=engine)
        pool = engine.pool
        own.release()
        assert engine.pool is pool


def test_sessions_are_the_sessionmakers(engine: Engine) -> None:
    commits: list[Session] = []

    class Own(Session):
        def commit(self) -> None:
            commits.append(self)
            super().commit()

    maker = sessionmaker(engine, class_=Own, autobegin=True)
    for given in (maker, scoped_session(maker)):
        store = SqlAlchemyStore(sessionmaker=given)
        store.put(Word(text="a"))
        store.delete(Word(text="a"))
        assert "sessionmaker" in repr(store)
    assert len(commits) == 4
    assert maker.kw["expire_on_commit"] is True


def test_classes_are_routed_to_engines(tmp_path: Path, postgres_server: PostgresServer) -> None:
    (tmp_path / "other").mkdir()
    with (
        database("sqlite", tmp_path / "other", None) as first,
        database("postgresql", tmp_path, postgres_server) as second,
    ):

        class Routed(Session):
            def get_bind(self, mapper: Any = None, **_: Any) -> Engine:
                found = inspect(mapper)
                return first if found is not None and found.class_ is User else second

        store = SqlAlchemyStore(sessionmaker=sessionmaker(class_=Routed))
        store.batch_put([User(name="a"), Word(text="w")])
        assert store.get(User, {"name": "a"}) is not None
        assert store.batch_get(Word, [{"text": "w"}])[0] is not None
        for engine, klass, other in ((first, User, Word), (second, Word, User)):
            alone = SqlAlchemyStore(engine=engine)
            assert alone.get(klass, {"id": 1}) is not None
            assert alone.get(other, {"id": 1}) is None
        store.batch_delete([User(id=1), Word(id=1)])
        assert store.get(User, {"name": "a"}) is None


def test_what_others_write_is_seen_by_the_next_get(store: SqlAlchemyStore, engine: Engine) -> None:
    store.put(Word(text="a"))
    assert store.get(Word, {"id": 1}) is not None
    code = (
        "import sys; from sqlalchemy import create_engine, text\n"
        "with create_engine(sys.argv[1]).begin() as c:\n"
        "    c.execute(text('UPDATE words SET value = 7'))"
    )
    url = engine.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", code, url], check=True)
    found = store.get(Word, {"id": 1})
    assert found is not None
    assert found.value == 7


def test_threads_share_it(store: SqlAlchemyStore) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                store.put(Word(id=number, text=str(number), value=turn))
                found = store.get(Word, {"text": str(number)})
                assert found is not None
                assert found.value == turn
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_no_transaction_is_left(store: SqlAlchemyStore, engine: Engine) -> None:
    store.put(User(name="a"))
    store.get(User, {"id": 1})
    store.batch_get(User, [{"name": "a"}])
    with pytest.raises(IntegrityError):
        store.put(User(name="a"))
    store.delete(User(id=1))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of a QueuePool


def test_the_package_is_named_where_it_is_missing() -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from durabledict.stores import *\n"
        "for module in ('durabledict.stores.sqlalchemy', 'durabledict.ext.sqlalchemy'):\n"
        "    try:\n"
        "        __import__(module)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.count("[sqlalchemy]") == 2
