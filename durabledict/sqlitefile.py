"""An SQLite file of durable dicts: its tables, its transactions, a connection for each thread.

docs/internals.rst, section 1. Nothing here knows of dicts.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import DurableDictError

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


class Connection(sqlite3.Connection):
    """A connection of one thread."""

    #: What `SqliteDict.last_updated` remembers: (data_version, stamp).
    known: Any = None


class _Connections:
    """The open connections of one file in one process, of all its threads."""

    def __init__(self) -> None:
        self._open: list[Connection] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def add(self, connection: Connection) -> None:
        with self._lock:
            self._open.append(connection)

    def discard(self, connection: Connection) -> None:
        """Close the connection of a thread that has ended."""
        # Not in a forked child: SQLite forbids to close there what the parent opened.
        if self._process == os.getpid():
            with self._lock:
                self._open = [other for other in self._open if other is not connection]
            connection.close()

    def close(self) -> None:
        """Close all; nothing happens in a forked child."""
        if self._process == os.getpid():
            with self._lock:
                closing, self._open = self._open, []
            for connection in closing:
                connection.close()


class _Handle:
    """Closes a thread's connection when the thread has ended."""

    def __init__(self, connections: _Connections, connection: Connection) -> None:
        self._connections = connections
        self.connection = connection

    def __del__(self) -> None:
        self._connections.discard(self.connection)


class _ThreadsOwn(threading.local):
    """What a thread sees of a file: its own connection."""

    handle: _Handle | None = None


class _Transaction:
    """What has to be found in the file if the COMMIT was done."""

    proof: tuple[str, tuple[Any, ...]] | None = None


def _text_or_bytes(stored: bytes) -> str | bytes:
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError:
        return stored


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
        self._closed = False
        self._begin()
        self._require_writable()
        self._create_tables(self.connection())

    # -- connections --------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start with no connection."""
        self._threads_own = _ThreadsOwn()
        self._connections = _Connections()
        # For a dict that is dropped without close(), and at the end of the process.
        weakref.finalize(self, self._connections.close)

    def connection(self) -> Connection:
        """Return this thread's connection, opened at the first call."""
        handle = self._threads_own.handle
        if handle is None:
            handle = self._threads_own.handle = _Handle(self._connections, self._connect())
        return handle.connection

    def _connect(self) -> Connection:
        if self._closed:
            raise RuntimeError(f"the dict over {self.path} is closed")
        # Used by its own thread alone; close() and the end of the thread come from others.
        connection = sqlite3.connect(
            self.path,
            timeout=self.timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        try:
            self._prepare(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise ValueError(f"{self.path} is not an SQLite database: {error}") from error
        except BaseException:
            connection.close()
            raise
        self._connections.add(connection)
        return connection

    def _prepare(self, connection: Connection) -> None:
        """Make sure of WAL, which any program can switch off while nobody has the file open."""
        mode = self._patiently(connection, "PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise sqlite3.OperationalError(
                f"{self.path} cannot be put into WAL mode; its journal mode is {mode}"
            )
        # A commit is on the disk when COMMIT returns. NORMAL would lose the last ones at a
        # power cut, though never damage the file.
        connection.execute("PRAGMA synchronous = FULL").fetchall()

    def _patiently(self, connection: Connection, pragma: str) -> Any:
        """Run a PRAGMA that SQLite does not wait for a lock for, whatever its busy timeout says."""
        ends = time.monotonic() + self.timeout
        while True:
            try:
                return connection.execute(pragma).fetchall()[0][0]
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= ends:
                    raise
            time.sleep(0.01)

    def close(self) -> None:
        """Close all connections, those of other threads too."""
        self._closed = True
        self._connections.close()
        self._threads_own = _ThreadsOwn()

    def after_fork(self) -> None:
        """Leave the parent's connections alone, for ever, and begin with none (rule 0.9).

        SQLite forbids even to close them in the child, and the interpreter closes what is no
        longer referenced when it exits. So they get a reference that nobody gives back.

        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connections))
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
            with self.transaction(connection):
                # Looked at once more: another process may have made them since.
                if not self._tables(connection):
                    for statement in TABLES.split(";")[:-1]:
                        connection.execute(statement)
                    connection.execute(
                        "INSERT INTO durabledict_schema (version) VALUES (?)", (SCHEMA_VERSION,)
                    )
            tables = self._tables(connection)
        versions = (
            connection.execute("SELECT * FROM durabledict_schema").fetchall()
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
        rows = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ("
            "'durabledict_schema', 'durabledict_entries', 'durabledict_commits', 'durabledict_log')"
        ).fetchall()
        return [name for (name,) in rows]

    @staticmethod
    def rows(connection: Connection, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Return all rows of a query; text that is not UTF-8 comes as bytes.

        Another program may have written such text. It harms its own entry only, and not at all
        the way of the others: a function in `text_factory` would be called for each of them.

        """
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "UTF-8" not in str(error):
                raise
        connection.text_factory = _text_or_bytes
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.text_factory = str

    # -- transactions -------------------------------------------------------------------------

    @staticmethod
    def data_version(connection: Connection) -> int:
        """Return a number that changes when another connection has written to the file.

        Fetched to the end: with a statement left unfinished it would never change again.

        """
        version: int = connection.execute("PRAGMA data_version").fetchall()[0][0]
        return version

    @contextmanager
    def snapshot(self, connection: Connection) -> Iterator[None]:
        """Read several times from one state of the file."""
        connection.execute("BEGIN")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[_Transaction]:
        """Write in one step: IMMEDIATE, since a read that turns into a write fails at once when
        somebody else wrote in between, whatever the timeout."""
        connection.execute("BEGIN IMMEDIATE")
        transaction = _Transaction()
        try:
            yield transaction
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and self._was_done(connection, transaction):
                return
            raise
        finally:
            # data_version tells of other connections' writes only.
            connection.known = None

    @staticmethod
    def _was_done(connection: Connection, transaction: _Transaction) -> bool:
        if transaction.proof is None:
            return False
        try:
            return bool(connection.execute(*transaction.proof).fetchall())
        except sqlite3.Error:
            return False
