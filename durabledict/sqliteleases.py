"""A lock in the file of a `SqliteDict`: a row that holds the token, and says when it expires.

The clock is the host's wall clock, which all processes that use a file have in common: one file is
of one host. A clock that is set forward by more than the lease ends the leases that run: then two
may hold the lock, and what they store is still compared with what they read. One that is set back
ends them as well, since no lease ends later than its length from now.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

from .locks import Lease
from .sqliteconnection import Connection
from .sqlitefile import SqliteFile, Transaction

__all__ = ["SqliteLease"]

TABLE = """
    CREATE TABLE IF NOT EXISTS durabledict_locks (
        keyspace TEXT NOT NULL,
        name TEXT NOT NULL,
        token BLOB NOT NULL,
        expires REAL NOT NULL,  -- seconds since the epoch
        seconds REAL NOT NULL,  -- of the lease
        PRIMARY KEY (keyspace, name)
    ) WITHOUT ROWID
"""
IS_THERE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'durabledict_locks'"
HOLDER = """
    SELECT token FROM durabledict_locks
    WHERE keyspace = ? AND name = ? AND expires > ? AND expires <= ? + seconds
"""
TAKE = """
    INSERT INTO durabledict_locks (keyspace, name, token, expires, seconds) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (keyspace, name) DO UPDATE
    SET token = excluded.token, expires = excluded.expires, seconds = excluded.seconds
"""
GIVE_UP = "DELETE FROM durabledict_locks WHERE keyspace = ? AND name = ? AND token = ?"


def now() -> float:
    """Return the seconds since the epoch; replaced in tests."""
    return time.time()


class SqliteLease(Lease):
    """A lock in an SQLite file: one write transaction to take it, to renew and to release it.

    :param place: the keyspace, in the form that the tables have
    :param name: of the lock, in that form

    """

    def __init__(
        self, seconds: float, identity: Hashable, file: SqliteFile, place: str, name: str
    ) -> None:
        super().__init__(seconds, identity)
        self._file = file
        self._row = (place, name)

    def __repr__(self) -> str:
        return f"SqliteLease({self._file.path!r}, {self._row!r})"

    def acquire(self, token: bytes) -> bool:
        """Take the lock. One transaction; one read while it is another's."""
        if self.is_held():
            return False
        return self._file.write(lambda transaction: self._put(transaction, token, None))

    def renew(self, token: bytes) -> bool:
        """Begin the lease anew."""
        return self._file.write(lambda transaction: self._put(transaction, token, token))

    def release(self, token: bytes) -> bool:
        """Give the lock up."""

        def work(transaction: Transaction) -> bool:
            if self._holder(transaction.connection) != token:
                return False
            transaction.connection.rows(GIVE_UP, (*self._row, token))
            return True

        return self._file.write(work)

    def holder(self) -> bytes | None:
        """Return the token that holds the lock: one read."""
        with self._file.use() as connection:
            found: bytes | None = self._holder(connection)
        return found

    def _put(self, transaction: Transaction, token: bytes, expected: bytes | None) -> bool:
        connection = transaction.connection
        connection.rows(TABLE)
        if self._holder(connection) != expected:
            return False
        connection.rows(TAKE, (*self._row, token, now() + self.seconds, self.seconds))
        return True

    def _holder(self, connection: Connection) -> Any:
        if not connection.rows(IS_THERE):
            return None  # made with the first lock
        moment = now()
        # In the middle of a transaction of its own a clock may move: so a millisecond more.
        rows = connection.rows(HOLDER, (*self._row, moment, moment + 0.001))
        return rows[0][0] if rows else None
