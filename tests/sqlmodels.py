"""Mapped classes for the tests of `SqlAlchemyStore`, and databases to have them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Engine,
    ForeignKey,
    MetaData,
    Numeric,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from .postgresserver import PostgresServer

__all__ = [
    "Base",
    "Manager",
    "Membership",
    "Pet",
    "Statements",
    "Tag",
    "Tool",
    "User",
    "Worker",
    "Word",
    "database",
    "row",
]

T = TypeVar("T")

#: Of the database in PostgreSQL.
NAME = "sqlobjects"


class Base(DeclarativeBase):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"


class User(Base):
    """A class with keys of all kinds, and columns that the database makes."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("name"),)
    __stockpyle_keys__ = ("id", "name", ("zone", "nick"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    zone: Mapped[int | None]
    nick: Mapped[str | None]
    balance: Mapped[Decimal | None] = mapped_column(Numeric(10, 2, asdecimal=False))
    made: Mapped[str] = mapped_column(server_default="by the server")
    note: Mapped[str | None] = mapped_column(deferred=True)

    pets: Mapped[list[Pet]] = relationship(back_populates="owner", cascade="all, delete-orphan")


class Pet(Base):
    __tablename__ = "pets"
    __stockpyle_keys__ = ("name", "id")

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))

    owner: Mapped[User | None] = relationship(back_populates="pets", lazy="joined")


class Word(Base):
    """Its first key is not the primary one."""

    __tablename__ = "words"
    __stockpyle_keys__ = ("text",)

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    value: Mapped[int] = mapped_column(default=0)


class Membership(Base):
    """A relationship sets a part of its first key."""

    __tablename__ = "memberships"
    __stockpyle_keys__ = (("user_id", "group"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    group: Mapped[str]

    user: Mapped[User] = relationship()


class Tag(Base):
    """A class that names no keys: only the database has its objects."""

    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]

    tools: Mapped[list[Tool]] = relationship(lazy="joined")


class Tool(Base):
    __tablename__ = "tools"

    id: Mapped[int] = mapped_column(primary_key=True)
    tag_id: Mapped[int | None] = mapped_column(ForeignKey("tags.id"))


class Worker(Base):
    __tablename__ = "workers"
    __stockpyle_keys__ = ("id",)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "worker"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]


class Manager(Worker):
    __tablename__ = "managers"
    __mapper_args__ = {"polymorphic_identity": "manager"}

    id: Mapped[int] = mapped_column(ForeignKey("workers.id"), primary_key=True)
    budget: Mapped[int]


@contextmanager
def database(
    kind: str,
    folder: Path,
    server: PostgresServer | None,
    *,
    begins: bool = False,
    more: Sequence[MetaData] = (),
) -> Iterator[Engine]:
    """Make a database with the tables of these classes.

    :param kind: ``"sqlite"`` or ``"postgresql"``
    :param server: for the latter
    :param begins: have SQLite begin a transaction when SQLAlchemy does, and not at the first write,
        as its driver does: savepoints need it
    :param more: what else it is to have tables of

    """
    options: dict[str, str] = {}
    if server is None or kind == "sqlite":
        url = f"sqlite:///{folder / 'test.sqlite'}"
    else:
        url = postgres_url(server, NAME)
        # A write that waits for its own session fails, and does not hang.
        options = {"options": "-c lock_timeout=20s"}
        if not server.sql("SELECT 1 FROM pg_database WHERE datname = %s", parameters=[NAME]):
            server.create_database(NAME)
    engine = create_engine(url, connect_args=options)
    if begins and engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _leave_to_us)
        event.listen(engine, "begin", _begin)
    try:
        tables = []
        for metadata in (Base.metadata, *more):
            metadata.create_all(engine)
            tables += metadata.sorted_tables
        if engine.dialect.name == "postgresql":
            # Emptied, and not made anew, which would take a second for each test.
            names = ", ".join(table.name for table in tables)
            with engine.begin() as connection:
                connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
        yield engine
    finally:
        engine.dispose()


def postgres_url(server: PostgresServer, name: str) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{server.port}/{name}"


def row(session: Session, klass: type[T], identity: int) -> T:
    """Return the object with a primary key. (`Session.get_one` came with SQLAlchemy 2.0.22.)"""
    found = session.get(klass, identity)
    assert found is not None
    return found


def _leave_to_us(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN")


class Statements:
    """Counts the statements that an engine sends."""

    def __init__(self, engine: Engine) -> None:
        self.sent: list[str] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.sent.append(statement)

    def taken(self) -> list[str]:
        """Return what was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent
