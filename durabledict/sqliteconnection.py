"""A connection to an SQLite file, and none of them while the process forks.

SQLite keeps a list, by file, of the locks that this process holds, and does not notice a fork. A
child that inherits an entry takes the parent's locks for its own: it never asks the system for
any, so that the parent's last `close` removes the log under the child, and commits that were
acknowledged are lost (seen). A thread in the middle of a call leaves mutexes locked in the child as
well, for ever (seen). So before a fork every thread is let out of what it does, all connections are
closed, and both processes open theirs when they next need them (docs/internals.rst, rule 1.6).
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Connection", "connect", "is_locked", "pauses", "shut_all"]

logger = logging.getLogger("durabledict.sqlite")

OLDEST_SQLITE = (3, 25)  # UPSERT is of 3.24, window functions are of 3.25

if sqlite3.sqlite_version_info < OLDEST_SQLITE:
    raise ImportError(f"SqliteDict needs SQLite 3.25; this Python has {sqlite3.sqlite_version}")

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

    #: The file, as it was asked for.
    path = ""
    #: The seconds to wait for a lock.
    timeout = 0.0
    #: Whether it is closed.
    is_shut = False
    #: Whether it is to be closed as soon as its thread is done with it.
    is_left = False
    #: Whether its thread is in the middle of using it; see `sqlitethreads.Own`.
    is_busy = False
    #: Whether it met text that is not UTF-8, which it then gives as bytes.
    met_bytes = False
    #: Called by `shut`, before it closes.
    before_shut: Callable[[], object] | None = None
    #: What `SqliteDict.last_updated` remembers where it asks the PRAGMA: (data_version, stamp).
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
        pause: Callable[[], bool] | None = None
        while True:
            try:
                return self.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if "UTF-8" in str(error) and self.text_factory is str:
                    break
                pause = pause or pauses(self.timeout)
                if not is_locked(error) or not pause():
                    raise
        # Not always so: this function would be called for each text of every reader.
        self.met_bytes = True
        self.text_factory = _text_or_bytes
        try:
            return self.rows(statement, values)
        finally:
            self.text_factory = str

    def shut(self) -> None:
        """Close the connection once its thread is done with it.

        If that is this thread, which a signal handler has interrupted, it closes it later.

        """
        self.is_left = True
        with self.use:
            if not self.is_shut and not self.is_busy:
                self.is_shut = True
                # First: a reader that came in between would trust a header that nobody keeps true.
                if self.before_shut is not None:
                    self.before_shut()
                self.close()


def connect(path: str, timeout: float, *, create: bool) -> Connection:
    """Open a connection; wait while the process forks.

    :param path: the file
    :param timeout: seconds to wait for a lock
    :param create: make the file if it is not there; else that is an error, since an empty file in
        its place would keep the one that is about to come back from being noticed

    """
    if os.path.realpath(path) in _gate.inherited:
        raise RuntimeError(
            f"{path} was in use when this process was forked, for longer than a fork waits: "
            "SQLite would take the parent's locks for the child's own"
        )
    uri = f"{Path(path).as_uri()}?mode={'rwc' if create else 'rw'}"
    with _gate.entered():
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=0,  # waiting is done in `rows`, where a fork can come between
            isolation_level=None,
            check_same_thread=False,  # its own thread uses it; any may close it
            factory=Connection,
        )
        _gate.open.add(connection)
    connection.path = path
    connection.timeout = timeout
    return connection


def shut_all(path: str) -> None:
    """Close all connections of this process to a file, each when its thread is done with it."""
    with _gate.entered():
        connections = [each for each in _gate.open if each.path == path]
    for connection in connections:
        _shut_soon(connection)


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


def _shut_soon(connection: Connection) -> None:
    """Close a connection if its thread is out of its transaction in time; else it does so then."""
    connection.is_left = True
    if connection.use.acquire(timeout=PATIENCE):
        try:
            connection.shut()
        finally:
            connection.use.release()


class _Gate:
    """Sees to it that no connection is open while this process forks."""

    def __init__(self) -> None:
        # Held to open a connection, and for the length of a fork. Re-entrant, since a signal
        # handler that comes while one is opened may open another.
        self.lock = threading.RLock()
        self.open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.forking: int | None = None
        # In a child: the files of which it has a connection of its parent's.
        self.inherited: set[str] = set()

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
            for _ in range(2):
                try:
                    _shut_soon(connection)
                    break
                except BaseException:
                    # A signal handler's. Python would print it and fork all the same.
                    logger.exception("interrupted while a connection is closed for a fork")
            if not connection.is_shut:
                logger.error(
                    "a thread was in a transaction for %.0f s while the process forks; the child "
                    "cannot use %s",
                    PATIENCE,
                    connection.path,
                )
        # What is still open is so at the next fork, too.
        self.open = weakref.WeakSet(each for each in self.open if not each.is_shut)

    def after_fork_in_parent(self) -> None:
        self.forking = None
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.forking = None
        self.lock = threading.RLock()
        self.inherited |= {os.path.realpath(each.path) for each in self.open}
        self.open = weakref.WeakSet()


_gate = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_gate.before_fork,
        after_in_parent=_gate.after_fork_in_parent,
        after_in_child=_gate.after_fork_in_child,
    )
