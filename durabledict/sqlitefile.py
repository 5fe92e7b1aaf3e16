"""An SQLite file of durable dicts: its tables, its transactions, a connection for each thread.

docs/internals.rst, section 1. Nothing here knows of dicts.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import DurableDictError
from .sqliteconnection import Connection, Connections, Own, is_locked, pauses

__all__ = ["SqliteFile"]

# The version of the tables below; a file says in durabledict_schema which one it has.
SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE durabledict_schema (version INTEGER NOT NULL);
CREATE TABLE durabledict_entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: it gives the order
    keyspace TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (keyspace, key)
);
CREATE TABLE durabledict_commits (
    keyspace TEXT NOT NULL,
    version INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    last_entry INTEGER NOT NULL,
    PRIMARY KEY (keyspace, version)
) WITHOUT ROWID;
CREATE TABLE durabledict_log (
    keyspace TEXT NOT NULL,
    version INTEGER NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (keyspace, version, key)
) WITHOUT ROWID;
"""


class _PerThread(threading.local):
    """What a thread sees of a file: its own connection."""

    def __init__(self, connections: Connections) -> None:
        self.own = Own(connections)


class Transaction:
    """A write transaction under way.

    :param connection: its connection

    """

    #: A query with a row if the COMMIT was done.
    proof: tuple[str, tuple[Any, ...]] | None = None

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class SqliteFile:
    """An SQLite file with the tables of durable dicts.

    :param path: the file; made if it is not there
    :param timeout: seconds to wait for another writer

    """

    def __init__(self, path: str | os.PathLike[str], timeout: float) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or given in ("", ":memory:"):
            raise ValueError(f"path={path!r} is no file; for a dict in memory there is MemoryDict")
        self.path = os.path.abspath(given)
        self.timeout = timeout
        self._require_writable()
        self._begin()
        with self.use() as connection:
            self._create_tables(connection)

    # -- connections --------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start with no connection."""
        self._connections = Connections(self.path, self.timeout, _prepare)
        self._per_thread = _PerThread(self._connections)
        # For a dict that is dropped without close(), and at the end of the process.
        weakref.finalize(self, self._connections.close)

    def use(self) -> Own:
        """Lend this thread its connection: ``with file.use() as connection``."""
        own: Own = self._per_thread.own
        return own

    def close(self) -> None:
        """Close all connections, those of other threads too."""
        self._connections.close()

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._connections.abandon()
        self._begin()

    # -- the file -----------------------------------------------------------------------------

    def _require_writable(self) -> None:
        """Say what is wrong in words that SQLite's "unable to open database file" lacks."""
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"the folder {folder} for {self.path} does not exist")
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"{self.path} is a folder, not an SQLite file")
        if os.path.exists(self.path) and not os.access(self.path, os.W_OK):
            raise PermissionError(
                f"{self.path} is read-only for this process; a SqliteDict that only reads needs "
                "to write, too: its readers register in the file"
            )
        if not os.access(folder, os.W_OK):
            raise PermissionError(
                f"the folder {folder} is read-only for this process; SQLite makes two files "
                f"beside {os.path.basename(self.path)}"
            )

    def _create_tables(self, connection: Connection) -> None:
        tables = self._tables(connection)
        if not tables:
            with self.transaction() as transaction:
                connection = transaction.connection
                # Looked at once more: another process may have made them since.
                if not self._tables(connection):
                    for statement in TABLES.split(";")[:-1]:
                        connection.rows(statement)
                    connection.rows(
                        "INSERT INTO durabledict_schema (version) VALUES (?)", (SCHEMA_VERSION,)
                    )
            tables = self._tables(connection)
        versions = (
            connection.rows("SELECT * FROM durabledict_schema")
            if "durabledict_schema" in tables
            else []
        )
        if len(versions) != 1 or len(versions[0]) != 1 or not isinstance(versions[0][0], int):
            raise ValueError(
                f"{self.path} holds tables of other programs by the names {', '.join(tables)}; "
                "nothing was changed"
            )
        if versions[0][0] > SCHEMA_VERSION:
            raise DurableDictError(
                f"{self.path} has tables of version {versions[0][0]}; this durabledict knows "
                f"version {SCHEMA_VERSION} and older"
            )

    @staticmethod
    def _tables(connection: Connection) -> list[str]:
        rows = connection.rows(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ("
            "'durabledict_schema', 'durabledict_entries', 'durabledict_commits', 'durabledict_log')"
        )
        return [name for (name,) in rows]

    # -- transactions -------------------------------------------------------------------------

    @staticmethod
    def data_version(connection: Connection) -> int:
        """Return a number that changes when another connection has written to the file."""
        version: int = connection.rows("PRAGMA data_version")[0][0]
        return version

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Read several times from one state of the file."""
        with self.use() as connection:
            try:
                connection.rows("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.rows("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Write in one step: IMMEDIATE, since a read that turns into a write fails at once when
        somebody else wrote in between, whatever the timeout.

        While another writer is waited for, the connection is let go: the process may fork.

        """
        pause = pauses(self.timeout)
        while True:
            with self.use() as connection:
                transaction = Transaction(connection)
                try:
                    # Inside, since a signal's exception may come when the lock is already ours.
                    locked = self._begin_writing(connection)
                    if locked is None:
                        yield transaction
                        connection.rows("COMMIT")
                        return
                except BaseException as error:
                    if connection.in_transaction:
                        connection.rows("ROLLBACK")
                    if isinstance(error, sqlite3.Error) and self._was_done(transaction):
                        return
                    raise
                finally:
                    # data_version tells of other connections' writes only.
                    connection.known = None
            if not pause():
                raise locked

    @staticmethod
    def _begin_writing(connection: Connection) -> sqlite3.OperationalError | None:
        """Begin, or return the error where another writer is in the way."""
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            return error
        return None

    @staticmethod
    def _was_done(transaction: Transaction) -> bool:
        if transaction.proof is None:
            return False
        try:
            return bool(transaction.connection.rows(*transaction.proof))
        except sqlite3.Error:
            return False


def _prepare(path: str, connection: Connection) -> None:
    """Make sure of WAL, which any program can switch off while nobody has the file open."""
    try:
        ((mode,),) = connection.rows("PRAGMA journal_mode = WAL")
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError:
            raise ValueError(f"{path} is not an SQLite database: {error}") from error
        raise
    if mode != "wal":
        raise sqlite3.OperationalError(
            f"{path} cannot be put into WAL mode; its journal mode is {mode}"
        )
    # A commit is on the disk when COMMIT returns. NORMAL would lose the last ones at a power cut,
    # though never damage the file.
    connection.rows("PRAGMA synchronous = FULL")
