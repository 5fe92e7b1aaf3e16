"""What sessions do, and what the database and the cache hold afterwards: a table of cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, delete, event, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from durabledict.ext.sqlalchemy import sync_sessions
from durabledict.stores import ChainedStore, SqlAlchemyStore

from .sqlmodels import Word

__all__ = ["AT_FIRST", "CASES", "Case", "World"]


class World:
    """Two words in the database, which the cache has as well, and sessions that are in step."""

    def __init__(self, engine: Engine, cache: Any) -> None:
        self.engine = engine
        self.cache = cache
        self.durable = SqlAlchemyStore(engine=engine)
        self.chain = ChainedStore([cache, self.durable])
        self.sessions = sessionmaker(engine)
        sync_sessions(self.sessions, self.chain)
        self.durable.batch_put([Word(text="a", value=1), Word(text="b", value=2)])
        assert self.cached() == {}
        self.chain.batch_get(Word, [{"text": "a"}, {"text": "b"}])
        assert self.cached() == {"a": 1, "b": 2}

    def lasting(self) -> dict[str, int]:
        """What the database holds."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT text, value FROM words ORDER BY text"))
            return {row.text: row.value for row in rows}

    def cached(self) -> dict[str, int]:
        """What the cache holds."""
        found = self.cache.batch_get(Word, [{"text": each} for each in "abcdz"])
        return {word.text: word.value for word in found if word is not None}

    def word(self, session: Session, name: str) -> Word:
        return session.scalars(select(Word).where(Word.text == name)).one()


Case = Callable[[World], None]
CASES: list[tuple[Case, dict[str, int], dict[str, int]]] = []
AT_FIRST = {"a": 1, "b": 2}


def case(lasting: dict[str, int], cached: dict[str, int]) -> Callable[[Case], Case]:
    """Add a case, and what the database and the cache hold after it."""

    def add(function: Case) -> Case:
        CASES.append((function, lasting, cached))
        return function

    return add


def change_all(world: World, session: Session) -> None:
    """Change, add, and delete."""
    world.word(session, "a").value = 10
    session.add(Word(text="c", value=3))
    session.delete(world.word(session, "b"))


@case({"a": 10, "c": 3}, {"a": 10, "c": 3})
def commit(world: World) -> None:
    with world.sessions() as session:
        change_all(world, session)
        session.commit()


@case({"a": 10, "c": 3}, {"a": 10, "c": 3})
def begin_block(world: World) -> None:
    with world.sessions.begin() as session:
        change_all(world, session)


@case(AT_FIRST, AT_FIRST)
def begin_block_that_raises(world: World) -> None:
    with pytest.raises(KeyError), world.sessions.begin() as session:
        change_all(world, session)
        session.flush()
        raise KeyError


@case(AT_FIRST, AT_FIRST)
def rollback(world: World) -> None:
    with world.sessions() as session:
        change_all(world, session)
        session.flush()
        session.rollback()


@case({"a": 1, "b": 2, "d": 4}, {"a": 1, "b": 2, "d": 4})
def rollback_and_a_later_commit(world: World) -> None:
    with world.sessions() as session:
        change_all(world, session)
        session.flush()
        session.rollback()
        session.add(Word(text="d", value=4))
        session.commit()


@case(AT_FIRST, AT_FIRST)
def close_without_commit(world: World) -> None:
    session = world.sessions()
    change_all(world, session)
    session.flush()
    session.close()


@case({"a": 1, "b": 2, "d": 4}, {"a": 1, "b": 2, "d": 4})
def close_without_commit_and_a_later_commit(world: World) -> None:
    session = world.sessions()
    change_all(world, session)
    session.flush()
    session.close()
    session.add(Word(text="d", value=4))
    session.commit()
    session.close()


@case({"a": 10, "c": 3}, {"a": 10, "c": 3})
def savepoint_released(world: World) -> None:
    with world.sessions() as session:
        with session.begin_nested():
            change_all(world, session)
        # Not before the commit.
        assert world.cached() == AT_FIRST
        session.commit()


@case({"a": 1, "b": 2, "d": 4}, {"a": 1, "b": 2, "d": 4})
def savepoint_rolled_back(world: World) -> None:
    with world.sessions() as session:
        nested = session.begin_nested()
        change_all(world, session)
        session.flush()
        nested.rollback()
        session.add(Word(text="d", value=4))
        session.commit()


@case({"a": 1, "b": 2, "d": 4}, {"a": 1, "b": 2, "d": 4})
def savepoint_released_and_rolled_back_outside(world: World) -> None:
    with world.sessions() as session:
        outer = session.begin_nested()
        with session.begin_nested():
            change_all(world, session)
        outer.rollback()
        session.add(Word(text="d", value=4))
        session.commit()


@case(AT_FIRST, AT_FIRST)
def savepoint_released_and_all_rolled_back(world: World) -> None:
    with world.sessions() as session:
        with session.begin_nested():
            change_all(world, session)
        session.rollback()


@case({"a": 10, "c": 3, "d": 4}, {"a": 10, "c": 3, "d": 4})
def savepoints_in_savepoints(world: World) -> None:
    with world.sessions() as session:
        session.add(Word(text="d", value=3))
        with session.begin_nested():
            world.word(session, "d").value = 4
            with session.begin_nested():
                change_all(world, session)
            failing = session.begin_nested()
            world.word(session, "a").value = 11
            session.flush()
            failing.rollback()
        session.commit()


@case({"a": 10, "c": 3}, {"a": 10, "c": 3})
def commit_with_a_savepoint_open(world: World) -> None:
    with world.sessions() as session:
        session.begin_nested()
        change_all(world, session)
        session.commit()


@case({"a": 11, "b": 2}, {"a": 11, "b": 2})
def an_object_twice_in_one_transaction(world: World) -> None:
    with world.sessions() as session:
        world.word(session, "a").value = 10
        session.flush()
        world.word(session, "a").value = 11
        session.commit()


@case({"b": 2}, {"b": 2})
def changed_and_then_deleted(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        word.value = 10
        session.flush()
        session.delete(word)
        session.commit()


@case({"a": 5, "b": 2}, {"a": 5, "b": 2})
def deleted_and_made_anew(world: World) -> None:
    with world.sessions() as session:
        session.delete(world.word(session, "a"))
        session.flush()
        session.add(Word(text="a", value=5))
        session.commit()


@case({"b": 2, "z": 1}, {"b": 2, "z": 1})
def first_key_changed(world: World) -> None:
    with world.sessions() as session:
        world.word(session, "a").text = "z"
        session.commit()


@case({"b": 2, "z": 1}, {"b": 2, "z": 1})
def first_key_changed_twice(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        word.text = "c"
        session.flush()
        word.text = "z"
        session.commit()


@case({"b": 2, "z": 1}, {"b": 2, "z": 1})
def first_key_changed_while_expired(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        session.expire(word)
        word.text = "z"
        session.commit()


@case({"a": 2, "b": 1}, {"a": 2, "b": 1})
def first_keys_swapped(world: World) -> None:
    with world.sessions() as session:
        first, second = world.word(session, "a"), world.word(session, "b")
        first.text, second.text = "b", "a"
        session.commit()


@case({"a": 1, "b": 2}, {"a": 1, "b": 2})
def primary_key_changed(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        word.id = 77
        session.commit()
    cached = world.cache.get(Word, {"text": "a"})
    assert cached.id == 77


@case({"b": 2}, {"b": 2})
def deleted_while_expired(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        session.expire(word)
        session.delete(word)
        session.commit()


@case({"b": 2}, {"b": 2})
def deleted_and_then_expired(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        session.delete(word)
        session.expire(word)
        session.commit()


@case({"a": 3, "b": 2}, {"a": 3, "b": 2})
def what_the_database_computed(world: World) -> None:
    with world.sessions() as session:
        world.word(session, "a").value = Word.value + 2
        session.commit()


@case({"a": 1, "b": 2}, {"a": 1, "b": 2})
def nothing_changed(world: World) -> None:
    with world.sessions() as session:
        word = world.word(session, "a")
        word.value = 1
        session.commit()


@case(AT_FIRST, AT_FIRST)
def flush_that_fails(world: World) -> None:
    with world.sessions() as session:
        change_all(world, session)
        session.add(Word(id=1, text="d"))
        with pytest.raises(IntegrityError):
            session.commit()


@case({"a": 99, "b": 99}, {})
def orm_update(world: World) -> None:
    with world.sessions() as session:
        session.execute(update(Word).where(Word.value < 5).values(value=99))
        session.commit()


@case({"a": 1, "b": 99}, {"a": 1})
def orm_update_with_parameters(world: World) -> None:
    with world.sessions() as session:
        statement = update(Word).where(Word.text == bindparam("name")).values(value=99)
        session.execute(statement, {"name": "b"})
        session.commit()


@case({"b": 2, "z": 1}, {"b": 2})
def orm_update_of_the_key(world: World) -> None:
    with world.sessions() as session:
        session.execute(update(Word).where(Word.text == "a").values(text="z"))
        session.commit()


@case({"a": 99, "b": 2}, {"b": 2})
def orm_update_by_primary_key(world: World) -> None:
    with world.sessions() as session:
        session.execute(update(Word), [{"id": 1, "value": 99}])
        session.commit()


@case({"a": 99, "b": 99}, {})
def update_by_a_query(world: World) -> None:
    with world.sessions() as session:
        session.query(Word).update({"value": 99})
        session.commit()


@case({"a": 1}, {"a": 1})
def orm_delete(world: World) -> None:
    with world.sessions() as session:
        session.execute(delete(Word).where(Word.text == "b"))
        session.commit()


@case({}, {})
def orm_delete_of_all_that_was_just_added(world: World) -> None:
    with world.sessions() as session:
        session.add(Word(text="c", value=3))
        session.execute(delete(Word))
        session.commit()


@case(AT_FIRST, AT_FIRST)
def orm_delete_of_what_was_just_added(world: World) -> None:
    with world.sessions() as session:
        session.add(Word(text="c", value=3))
        session.execute(delete(Word).where(Word.text == "c"))
        session.commit()


@case(AT_FIRST, AT_FIRST)
def orm_delete_rolled_back(world: World) -> None:
    with world.sessions() as session:
        session.execute(delete(Word))
        session.rollback()


@case({"a": 99, "b": 2}, {"a": 99, "b": 2})
def orm_update_of_what_was_flushed(world: World) -> None:
    with world.sessions() as session:
        world.word(session, "a").value = 10
        session.execute(update(Word).where(Word.text == "a").values(value=99))
        session.commit()


@case({"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 1, "b": 2})
def orm_insert(world: World) -> None:
    with world.sessions() as session:
        session.execute(insert(Word), [{"text": "c", "value": 3}, {"text": "d", "value": 4}])
        session.commit()


@case({"a": 1, "b": 99}, {"a": 1})
def orm_upsert(world: World) -> None:
    dialect: Any = postgresql if world.engine.dialect.name == "postgresql" else sqlite
    with world.sessions() as session:
        statement = dialect.insert(Word).on_conflict_do_update(
            index_elements=["id"], set_={"value": 99}
        )
        session.execute(statement, [{"id": 2, "text": "b", "value": 5}])
        session.commit()


@case({"a": 1, "b": 99}, {})
def orm_upsert_of_what_nobody_knows(world: World) -> None:
    dialect: Any = postgresql if world.engine.dialect.name == "postgresql" else sqlite
    with world.sessions() as session:
        statement = dialect.insert(Word).values(id=2, text="b", value=5)
        session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"value": 99}))
        session.commit()


@case({"a": 10, "b": 2}, {"b": 2})
def joined_to_an_outer_transaction(world: World) -> None:
    with world.engine.connect() as connection, connection.begin():
        with world.sessions(bind=connection) as session:
            world.word(session, "a").value = 10
            session.commit()
        # Others read, and would store, what is there still.
        if world.engine.dialect.name == "postgresql":
            found = world.chain.get(Word, {"text": "a"})
            assert found is not None
            assert found.value == 1
    assert world.cached() == {"b": 2}


@case(AT_FIRST, {"b": 2})
def joined_to_an_outer_transaction_that_is_rolled_back(world: World) -> None:
    with world.engine.connect() as connection:
        outer = connection.begin()
        with world.sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
            world.word(session, "a").value = 10
            session.commit()
        outer.rollback()


@case({"a": 10, "c": 3, "d": 4}, {"a": 10, "c": 3, "d": 4})
def another_listener_flushes_during_the_commit(world: World) -> None:
    def add(session: Session) -> None:
        session.add(Word(text="d", value=4))
        session.flush()

    with world.sessions() as session:
        event.listen(session, "before_commit", add)
        change_all(world, session)
        session.commit()


@case({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2})
def not_covered_bulk_save_objects(world: World) -> None:
    with world.sessions() as session:
        session.bulk_save_objects([Word(text="c", value=3)])
        session.commit()


@case({"a": 99, "b": 99}, {"a": 1, "b": 2})
def not_covered_core_statement(world: World) -> None:
    with world.sessions() as session:
        session.execute(update(Word.__table__).values(value=99))  # type: ignore[arg-type]  # a Table
        session.commit()
