"""Connections to an SQLite file: one a thread, and none while the process forks.

SQLite keeps a list, by file, of the locks that this process holds, and does not notice a fork. A
child that inherits an entry takes the parent's locks for its own: it never asks the system for
any, so that the parent's last `close` removes the log under the child, and commits that were
acknowledged are lost (seen). A thread in the middle of a call leaves mutexes locked in the child as
well, for ever (seen). So before a fork every thread is let out of what it does, all connections are
closed, and both processes open theirs when they next need them (docs/internals.rst, rule 1.6).
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Connection", "Connections", "Own", "is_locked", "pauses"]

logger = logging.getLogger("durabledict.sqlite")

# Between two attempts to get a lock: from the first to the second, doubling.
FIRST_PAUSE = 0.001
LONGEST_PAUSE = 0.02

# How long a fork waits for a thread that is in a transaction.
PATIENCE = 10.0

Row = tuple[Any, ...]


class Connection(sqlite3.Connection):
    """A connection in which every statement is run to its end.

    To the end, because with a statement left unfinished the connection sees no later commit.

    """

    #: The seconds to wait for a lock.
    timeout = 0.0
    #: Whether `shut` was called.
    is_shut = False
    #: What `SqliteDict.last_updated` remembers: (data_version, stamp).
    known: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Held by the thread from the first statement of a transaction to the last: neither a
        # fork nor another thread's close() comes between (sqlite3 would crash).
        self.use = threading.RLock()

    def rows(self, statement: str, values: Row = ()) -> list[Row]:
        """Run a statement, waiting for locks up to the timeout, and return all rows.

        Text that is not UTF-8, which another program may have written, comes as bytes.

        """
        pause = pauses(self.timeout)
        while True:
            try:
                return self.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if "UTF-8" in str(error) and self.text_factory is str:
                    break
                if not is_locked(error) or not pause():
                    raise
        # Not always so: this function would be called for each text of every reader.
        self.text_factory = _text_or_bytes
        try:
            return self.rows(statement, values)
        finally:
            self.text_factory = str

    def many(self, statement: str, values: Iterable[Row]) -> None:
        """Run a statement for each of these, inside a transaction."""
        self.executemany(statement, values)

    def shut(self) -> None:
        """Close the connection once its thread is done with it."""
        with self.use:
            if not self.is_shut:
                self.is_shut = True
                self.close()


class Connections:
    """The open connections to one file, of all threads of this process.

    :param path: the file
    :param timeout: seconds to wait for a lock
    :param prepare: run on each new connection before it is used

    """

    def __init__(
        self, path: str, timeout: float, prepare: Callable[[str, Connection], None]
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._prepare = prepare
        self._open: list[Connection] = []
        self._closed = False
        self._process = os.getpid()

    def open(self) -> Connection:
        """Open one more, for the calling thread; wait while the process forks."""
        with _gate.entered():
            connection = sqlite3.connect(
                self._path,
                timeout=0,  # waiting is done in `rows`, where a fork can come between
                isolation_level=None,
                check_same_thread=False,  # its own thread uses it; any may close it
                factory=Connection,
            )
            _gate.open.add(connection)
        connection.timeout = self._timeout
        with connection.use:
            try:
                self._prepare(self._path, connection)
            except BaseException:
                connection.shut()
                raise
        self._open.append(connection)
        if self._closed:
            self.shut(connection)
            raise RuntimeError(f"the dict over {self._path} is closed")
        return connection

    def require_own_process(self) -> None:
        """Raise in a child that was forked past Python's hooks (uWSGI does so by default).

        SQLite would take the parent's locks for the child's own, and the child's commits could be
        lost though they were acknowledged.

        """
        if self._process != os.getpid():
            raise RuntimeError(
                f"this process was forked while {self._path} was open, and Python's fork hooks "
                "did not run: open the dict in the child (uWSGI: lazy-apps, or "
                "py-call-uwsgi-fork-hooks)"
            )

    def shut(self, connection: Connection) -> None:
        """Close the connection of a thread that has ended."""
        # Not in a child that was forked past Python's hooks: SQLite forbids it there.
        if self._process == os.getpid():
            connection.shut()
            self._open = [other for other in self._open if other is not connection]

    def close(self) -> None:
        """Close all, each as soon as its thread is done with it, and open no more."""
        self._closed = True
        while self._open and self._process == os.getpid():
            self.shut(self._open[-1])

    def abandon(self) -> None:
        """Leave these alone for ever, in a forked child (rule 0.9).

        All were closed before the fork, but for one whose thread did not let go of it. The
        interpreter would close it when it exits; so it gets a reference that nobody gives back.

        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


class Own:
    """A thread's own connection to a file: a context manager that lends it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._connection: Connection | None = None
        self._depth = 0

    def __enter__(self) -> Connection:
        self._connections.require_own_process()
        while True:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._connections.open()
            connection.use.acquire()
            if not connection.is_shut:
                break
            # By a fork; or by close(), and then opening another one raises.
            connection.use.release()
            self._connection = None
        if self._depth == 0 and connection.in_transaction:
            # A signal handler's exception came between a BEGIN and what ends it. Left open, it
            # would keep every writer of the file waiting, for ever.
            connection.rows("ROLLBACK")
        self._depth += 1
        return connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._connection is not None:
            self._connection.use.release()

    def __del__(self) -> None:
        # The thread has ended, or nobody has the file any more.
        if self._connection is not None:
            self._connections.shut(self._connection)


def is_locked(error: sqlite3.OperationalError) -> bool:
    """Whether another connection's lock was in the way."""
    return "is locked" in str(error)


def pauses(timeout: float) -> Callable[[], bool]:
    """Return a function that sleeps a little, and says False when the time is up.

    SQLite could wait itself, but a fork would have to wait with it.

    """
    ends = time.monotonic() + timeout
    length = FIRST_PAUSE

    def pause() -> bool:
        nonlocal length
        left = ends - time.monotonic()
        if left <= 0:
            return False
        # Of random length, so that two that wait for each other do not wait in step.
        time.sleep(min(left, length * random.uniform(0.5, 1.0)))
        length = min(length * 2, LONGEST_PAUSE)
        return True

    return pause


def _text_or_bytes(stored: bytes) -> str | bytes:
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError:
        return stored


class _Gate:
    """Sees to it that no connection is open while this process forks."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held to open a connection, and for the length of a fork
        self.open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.forking: int | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Wait for a fork to be over."""
        if self.forking == threading.get_ident():
            # Another package's fork hook uses a dict: to wait for the end of the fork, here in
            # the thread that forks, would not end.
            raise RuntimeError("an SQLite file cannot be opened in a fork hook")
        with self.lock:
            yield

    def before_fork(self) -> None:
        """Close every connection, as soon as its thread is out of its transaction."""
        self.lock.acquire()
        self.forking = threading.get_ident()
        for connection in list(self.open):
            if connection.use.acquire(timeout=PATIENCE):
                try:
                    connection.shut()
                finally:
                    connection.use.release()
            else:
                logger.error(
                    "a thread was in a transaction for %.0f s while the process forks; the child "
                    "must not use that file",
                    PATIENCE,
                )
        self.open.clear()

    def after_fork_in_parent(self) -> None:
        self.forking = None
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.forking = None
        self.lock = threading.Lock()


_gate = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_gate.before_fork,
        after_in_parent=_gate.after_fork_in_parent,
        after_in_child=_gate.after_fork_in_child,
    )
