"""What objects of SQLAlchemy cost through `SqlAlchemyStore`, beside the same by hand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, create_engine, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from durabledict.ext.sqlalchemy import sync_sessions
from durabledict.stores import ChainedStore, MemcacheStore, SqlAlchemyStore
from tests.memcachedserver import MemcachedServer
from tests.postgresserver import PostgresServer

from .measure import Statement, compare
from .tables import Row

__all__ = ["sql_rows"]

#: Objects of a batch_get, and of a commit.
BATCH = 100

#: New objects of a batch_put.
PUT = 1_000


class Base(DeclarativeBase):
    pass


class Record(Base):
    """An object with two keys and a little more."""

    __tablename__ = "records"
    __stockpyle_keys__ = ("id", "name")

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    zone: Mapped[int]
    text: Mapped[str | None]


def sql_rows() -> Iterator[Row]:
    """Measure on SQLite and PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _on("SQLite", f"sqlite:///{os.path.join(folder, 'records.sqlite')}")
    with PostgresServer() as server:
        server.create_database("records")
        url = f"postgresql+psycopg://postgres@127.0.0.1:{server.port}/records"
        yield from _on("PostgreSQL", url)


def _on(kind: str, url: str) -> Iterator[Row]:
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    store = SqlAlchemyStore(engine=engine)
    store.batch_put(_new(PUT))
    yield from _gets(kind, engine, store)
    yield from _puts(kind, engine, store)
    yield from _commits(kind, engine)
    engine.dispose()


def _gets(kind: str, engine: Engine, store: SqlAlchemyStore) -> Iterator[Row]:
    def by_hand(ids: list[int]) -> list[Record]:
        with Session(engine, expire_on_commit=False) as session:
            found = session.scalars(select(Record).where(Record.id.in_(ids))).all()
            session.expunge_all()
        return list(found)

    def one_by_hand(number: int) -> Record | None:
        with Session(engine, expire_on_commit=False) as session:
            return session.get(Record, number)

    ids = list(range(1, 1 + BATCH))
    hand = Statement("by_hand(ids)", by_hand=by_hand, ids=ids)
    ours = Statement(
        "get(Record, keys)", get=store.batch_get, Record=Record, keys=[{"id": n} for n in ids]
    )
    yield Row(f"batch_get of {BATCH}, {kind}", "the query by hand", compare(hand, ours), 1.3)
    hand = Statement("by_hand(5)", by_hand=one_by_hand)
    ours = Statement("get(Record, {'id': 5})", get=store.get, Record=Record)
    yield Row(f"get, {kind}", "session.get, new session", compare(hand, ours), 1.5)


def _puts(kind: str, engine: Engine, store: SqlAlchemyStore) -> Iterator[Row]:
    waiting: list[Any] = []

    def prepare() -> None:
        with engine.begin() as connection:
            connection.execute(delete(Record))
        waiting[:] = _new(PUT)

    def by_hand() -> None:
        with Session(engine) as session:
            session.add_all(waiting)
            session.commit()

    hand = Statement("by_hand()", untimed="prepare()", by_hand=by_hand, prepare=prepare)
    ours = Statement(
        "put(waiting)", untimed="prepare()", put=store.batch_put, waiting=waiting, prepare=prepare
    )
    measured = compare(hand, ours)
    yield Row(f"batch_put of {PUT:,} new, {kind}", "add_all, commit", measured, 1.3)


def _commits(kind: str, engine: Engine) -> Iterator[Row]:
    with (
        MemcachedServer() as server,
        MemcacheStore([f"127.0.0.1:{server.port}"]) as cache,
    ):
        chain = ChainedStore([cache, SqlAlchemyStore(engine=engine)])
        plain, synced = sessionmaker(engine), sessionmaker(engine)
        sync_sessions(synced, chain)
        turns = iter(range(10**9))

        def change(maker: sessionmaker[Session]) -> None:
            turn = str(next(turns))
            with maker.begin() as session:
                for record in session.scalars(select(Record).order_by(Record.id).limit(BATCH)):
                    record.text = turn

        hand = Statement("change(maker)", change=change, maker=plain)
        ours = Statement("change(maker)", change=change, maker=synced)
        measured = compare(hand, ours)
        yield Row(f"commit of {BATCH}, hook, memcached, {kind}", "without the hook", measured)


def _new(count: int) -> list[Record]:
    return [Record(name=f"record {n}", zone=n % 7, text="some text") for n in range(count)]
