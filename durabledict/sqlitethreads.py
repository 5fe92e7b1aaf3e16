"""The connections of one dict to its SQLite file: one a thread."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import TYPE_CHECKING

from .sqliteconnection import Connection
from .sqliteshared import SharedFile

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Connections", "Own"]


class Connections:
    """The open connections of all threads of this process.

    :param shared: the file, of which this is a user already
    :param timeout: seconds to wait for a lock
    :param synchronous: what a write waits for, as SQLite's PRAGMA has it

    """

    def __init__(self, shared: SharedFile, timeout: float, synchronous: str) -> None:
        self.shared = shared
        self._timeout = timeout
        self._synchronous = synchronous
        self._open: list[Connection] = []
        self._lock = threading.RLock()  # of the list; re-entrant, since `Own.__del__` comes here
        self._closed = False
        self.process = os.getpid()

    def open(self) -> Connection:
        """Open one more, for the calling thread; wait while the process forks."""
        connection = self.shared.connect()
        while connection is None:
            connection = self.shared.connect()
        connection.timeout = self._timeout
        with connection.use:
            try:
                if not connection.is_shut:
                    self.shared.prepare(connection)
                    connection.rows(f"PRAGMA synchronous = {self._synchronous}")
            except BaseException:
                connection.shut()
                raise
        with self._lock:
            self._open = [other for other in self._open if not other.is_shut] + [connection]
        if self._closed:
            self.shut(connection)
            raise RuntimeError(f"the dict over {self.shared.path} is closed")
        return connection

    def shut(self, connection: Connection) -> None:
        """Close the connection of a thread that has ended."""
        # Not in a child that was forked past Python's hooks: SQLite forbids it there.
        if self.process == os.getpid():
            connection.shut()
            with self._lock:
                self._open = [other for other in self._open if other is not connection]

    def close(self) -> None:
        """Close all, each as soon as its thread is done with it, and open no more."""
        if self.process != os.getpid():
            return
        closed, self._closed = self._closed, True
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            self.shut(connection)
        if not closed:
            self.shared.release()

    def abandon(self) -> None:
        """Leave these alone for ever, in a forked child (rule 0.9).

        All were closed before the fork, but for one whose thread did not let go of it. The
        interpreter would close it when it exits; so it gets a reference that nobody gives back.
        And so does the parent's map, whose descriptors no child may close.

        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


class Own:
    """A thread's own connection to a file: a context manager that lends it.

    It may be entered again while it is lent, by a signal handler or a finalizer. And a handler's
    exception may come anywhere, also between two lines of this class. So nothing is counted: who
    has it is the frame that entered first, and whether he still has it, the stack tells.

    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._connection: Connection | None = None
        self._user: FrameType | None = None

    def __enter__(self) -> Connection:
        if self._connections.process != os.getpid():
            self._connections.shared.require_own_process()
        frame = sys._getframe(1)
        while True:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._connections.open()
            connection.use.acquire()
            if self._user is not None and _is_running(self._user, frame):
                return connection
            self._user = None
            connection.is_busy = False
            if connection.is_left:
                connection.shut()
            if not connection.is_shut:
                break
            # By a fork; or by close(), and then opening another one raises.
            _let_go(connection)
            self._connection = None
        if connection.in_transaction:
            # An exception came between a BEGIN and what ends it. Left open, it would keep every
            # writer of the file waiting, for ever.
            connection.rows("ROLLBACK")
        self._user = frame
        connection.is_busy = True
        return connection

    def __exit__(self, *_: object) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._user is not sys._getframe(1):
            connection.use.release()
            return
        self._user = None
        connection.is_busy = False
        if connection.is_left:
            connection.shut()
        _let_go(connection)

    def __del__(self) -> None:
        # The thread has ended, or nobody has the file any more.
        if self._connection is not None:
            self._connections.shut(self._connection)


def _is_running(user: FrameType, frame: FrameType | None) -> bool:
    while frame is not None and frame is not user:
        frame = frame.f_back
    return frame is user


def _let_go(connection: Connection) -> None:
    # More often than it was taken here, where an exception came before it was given back.
    while connection.use._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks it
        connection.use.release()
