"""A lock in the database of a `SqlAlchemyStore`: a row of a table of our own, made when needed.

The lease is counted by the database server's clock, and with SQLite by the host's. The table is
``durabledict_locks_sql``, with the columns name, token and expires; it may be emptied, and dropped,
while nobody holds a lock.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from sqlalchemy import Column, Double, LargeBinary, MetaData, String, Table, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from ..locks import Lease

__all__ = ["SqlLease", "takes_leases"]

#: What the server's clock says, in seconds since the epoch.
CLOCKS = {
    "postgresql": "extract(epoch from clock_timestamp())",
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "mysql": "unix_timestamp(now(6))",
    "mariadb": "unix_timestamp(now(6))",
}

TABLE = Table(
    "durabledict_locks_sql",
    MetaData(),
    Column("name", String(64), primary_key=True),
    Column("token", LargeBinary(32), nullable=False),
    Column("expires", Double, nullable=False),
)


def takes_leases(bind: object) -> bool:
    """Whether there can be a lock in what a Store is bound to that other processes see."""
    if not isinstance(bind, Engine) or bind.dialect.name not in CLOCKS:
        return False
    # A database in memory is of this process, and as a rule of one thread.
    database = bind.url.database or ""
    return bind.dialect.name != "sqlite" or not (
        database in ("", ":memory:") or "mode=memory" in database
    )


class SqlLease(Lease):
    """A lock in a database: one short transaction to take it, to renew and to release it.

    :param engine: of the database; see `takes_leases`
    :param name: of the lock, at most 64 characters

    """

    def __init__(self, seconds: float, identity: Hashable, engine: Engine, name: str) -> None:
        super().__init__(seconds, identity)
        if engine.dialect.name != "sqlite":
            # In a stricter one, which the engine may have, who comes second gets an error.
            engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._engine = engine
        self._name = name
        clock = CLOCKS[engine.dialect.name]
        where = "UPDATE durabledict_locks_sql SET expires = {} WHERE name = :name AND "
        taken = where.format(f"{clock} + :seconds, token = :token")
        self._take = text(f"{taken} expires <= {clock}")
        self._renew = text(
            f"{where.format(f'{clock} + :seconds')} token = :token AND expires > {clock}"
        )
        self._add = text(
            "INSERT INTO durabledict_locks_sql (name, token, expires) "
            f"VALUES (:name, :token, {clock} + :seconds)"
        )
        self._remove = text(
            "DELETE FROM durabledict_locks_sql "
            f"WHERE name = :name AND token = :token AND expires > {clock}"
        )
        self._look = text(
            f"SELECT token FROM durabledict_locks_sql WHERE name = :name AND expires > {clock}"
        )

    def __repr__(self) -> str:
        return f"SqlLease({self._engine.url!r}, {self._name!r})"

    def acquire(self, token: bytes) -> bool:
        """Take the lock: a SELECT, and where it is free an UPDATE or an INSERT."""
        if self.is_held():
            return False
        try:
            return self._run(self._take, token) or self._run(self._add, token)
        except IntegrityError:
            return False  # another one was faster

    def renew(self, token: bytes) -> bool:
        """Begin the lease anew: an UPDATE."""
        return self._run(self._renew, token)

    def release(self, token: bytes) -> bool:
        """Give the lock up: a DELETE."""
        return self._run(self._remove, token)

    def holder(self) -> bytes | None:
        """Return the token that holds the lock: a SELECT."""
        try:
            with self._engine.connect() as connection:
                found = connection.execute(self._look, {"name": self._name}).scalar()
        except (OperationalError, ProgrammingError):
            self._make_table()
            return None
        return None if found is None else bytes(found)

    def _run(self, statement: Any, token: bytes) -> bool:
        values = {"name": self._name, "token": token, "seconds": self.seconds}
        with self._engine.begin() as connection:
            used = {name: values[name] for name in statement.compile().params}
            return bool(connection.execute(statement, used).rowcount)

    def _make_table(self) -> None:
        """Make the table, if that is what was missing; another process may do so as well."""
        try:
            with self._engine.begin() as connection:
                _create(connection)
        except (IntegrityError, OperationalError, ProgrammingError):
            with self._engine.connect() as connection:
                connection.execute(self._look, {"name": self._name})


def _create(connection: Connection) -> None:
    TABLE.create(connection, checkfirst=True)
