"""An SQLite file of durable dicts: its transactions, and a connection for each thread.

docs/internals.rst, section 1. Nothing here knows of dicts.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from . import sqliteschema
from .hiding import hidden
from .options import seconds
from .sqliteconnection import Connection, is_locked, pauses
from .sqliteshared import shared_file
from .sqlitethreads import Connections, Own
from .walindex import WalIndex

__all__ = ["SYNCHRONOUS", "SqliteFile", "Transaction"]

#: What SQLite waits for the disk for; see the class docstring of `SqliteDict`.
SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")

#: What is written where a path belongs: a URL of ours, or one that sqlite3 takes.
_URL = re.compile(r"[a-z]+://|file:")

T = TypeVar("T")

Row = tuple[Any, ...]
# A query, and the values in it, that has a row if a commit was done.
Proof = tuple[str, Row]


class _PerThread(threading.local):
    """What a thread sees of a file: its own connection."""

    def __init__(self, connections: Connections) -> None:
        self.own = Own(connections)


class Transaction:
    """A write transaction under way.

    :param connection: its connection

    """

    __slots__ = ("connection", "proof")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        #: A query with a row if the COMMIT was done.
        self.proof: Proof | None = None


class SqliteFile:
    """An SQLite file with the tables of durable dicts.

    :param path: the file; made if it is not there
    :param timeout: seconds to wait for another writer
    :param synchronous: one of `SYNCHRONOUS`

    """

    def __init__(
        self, path: str | bytes | os.PathLike[str], timeout: float | timedelta, synchronous: str
    ) -> None:
        given = os.fsdecode(path)
        if given in ("", ":memory:"):
            raise ValueError(f"path={path!r} is no file; for a dict in memory there is MemoryDict")
        if _URL.match(given):
            raise ValueError(
                f"path={hidden(given)!r} is a URL: write the path of the file, or use "
                "durabledict.open('sqlite:///path')"
            )
        if not isinstance(synchronous, str) or synchronous.upper() not in SYNCHRONOUS:
            raise ValueError(f"synchronous={synchronous!r}: one of {', '.join(SYNCHRONOUS)}")
        self.path = os.path.abspath(given)
        limit = seconds(timeout)
        if limit is None:
            raise TypeError(f"timeout={timeout!r}: write seconds, or a timedelta")
        if limit < 0:
            raise ValueError(f"timeout={timeout!r}: write 0 (do not wait) or more seconds")
        self.timeout = limit
        self.synchronous = synchronous.upper()
        self._require_writable()
        self._begin()
        try:
            self._shared.look(create=True)
            with self.use() as connection:
                self._create_tables(connection)
        except BaseException:
            self.close()
            raise

    # -- connections --------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start with no connection."""
        self._shared = shared_file(self.path, self.timeout)
        self._connections = Connections(self._shared, self.timeout, self.synchronous)
        self._per_thread = _PerThread(self._connections)
        # For a dict that is dropped without close(), and at the end of the process.
        weakref.finalize(self, self._connections.close)

    def use(self) -> Own:
        """Lend this thread its connection: ``with file.use() as connection``."""
        own: Own = self._per_thread.own
        return own

    @property
    def index(self) -> WalIndex:
        """The header that tells of every commit, as it was found by the last look at the file."""
        return self._shared.index

    def current(self) -> WalIndex:
        """Return the header, at most a second after a look that the file is still there.

        :raises sqlite3.OperationalError: it is not

        """
        return self._shared.current()

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
            raise FileNotFoundError(
                f"the folder {folder} for {self.path} does not exist: make it first"
            )
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
        if not sqliteschema.exists(connection):
            self.write(_create_missing_tables)
        sqliteschema.require(self.path, connection)

    # -- transactions -------------------------------------------------------------------------

    def read(self, work: Callable[[Connection], T]) -> T:
        """Have `work` read several times from one state of the file; return what it returned.

        A function and no context manager: the frame that has the connection must be on the stack.

        :raises RuntimeError: this thread is in the middle of a transaction

        """
        with self.use() as connection:
            _require_no_transaction(connection)
            try:
                connection.rows("BEGIN")
                return work(connection)
            finally:
                if not connection.is_shut and connection.in_transaction:
                    connection.rows("ROLLBACK")

    def run(self, statement: str, values: Row, proof: Proof) -> bool:
        """Run one statement as a transaction of its own; tell whether it changed anything.

        :param proof: a query with a row if it was committed
        :return: False also where another writer is in the way, who is not waited for

        """
        with self.use() as connection:
            if connection.in_transaction:
                return False  # a signal handler's write in the middle of another, which may fail
            try:
                return connection.execute(statement, values).rowcount > 0
            except sqlite3.Error as error:
                if isinstance(error, sqlite3.OperationalError) and is_locked(error):
                    return False
                if _was_done(connection, proof):
                    return True
                raise
            finally:
                connection.known = None

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run one write transaction; return what `work` returned, once it is committed.

        IMMEDIATE, since a read that turns into a write fails at once when somebody else wrote in
        between, whatever the timeout. While another writer is waited for, the connection is let
        go: the process may fork.

        :param work: is called when nobody else can write
        :raises RuntimeError: this thread is in the middle of a transaction

        """
        result: T
        pause: Callable[[], bool] | None = None
        while True:
            with self.use() as connection:
                _require_no_transaction(connection)
                transaction = Transaction(connection)
                try:
                    # Inside, since a signal's exception may come when the lock is already ours.
                    locked = _begin_writing(connection)
                    if locked is None:
                        result = work(transaction)
                        connection.rows("COMMIT")
                        return result
                except BaseException as error:
                    if connection.in_transaction:
                        connection.rows("ROLLBACK")
                    if isinstance(error, sqlite3.Error) and _was_done(
                        connection, transaction.proof
                    ):
                        return result
                    raise
                finally:
                    # data_version tells of other connections' writes only.
                    connection.known = None
            pause = pause or pauses(self.timeout)
            if not pause():
                raise locked


def _create_missing_tables(transaction: Transaction) -> None:
    # Looked at once more: another process may have made them since.
    if not sqliteschema.exists(transaction.connection):
        sqliteschema.create(transaction.connection)


def _require_no_transaction(connection: Connection) -> None:
    """Refuse what a signal handler, or a finalizer, does in the middle of a write.

    It could not tell what is stored from what the write may yet take back. And the error that
    SQLite has for this would be answered by the end of the transaction, which is not its own.

    """
    if connection.in_transaction:
        raise RuntimeError("this thread is in the middle of a transaction with the same file")


def _begin_writing(connection: Connection) -> sqlite3.OperationalError | None:
    """Begin, or return the error where another writer is in the way."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not is_locked(error):
            raise
        return error
    return None


def _was_done(connection: Connection, proof: Proof | None) -> bool:
    if proof is None:
        return False
    try:
        return bool(connection.rows(*proof))
    except sqlite3.Error:
        return False
