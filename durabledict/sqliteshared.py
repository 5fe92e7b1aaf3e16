"""What the dicts of one process share of an SQLite file: the header that tells of every commit.

docs/internals.rst, rules 1.2 and 1.3. In WAL mode every commit, of whichever program, changes the
first 48 bytes of the file ``-shm`` before it is acknowledged. Mapped into memory they are read at
the cost of a slice. They can be trusted only while a connection of this process is open, the
*anchor*: it keeps others from removing ``-shm``, and from changing the journal mode. And only while
the file is still the one under its name: that is looked at once a second.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import os
import sqlite3
import struct
import threading
import time
from typing import Any

from . import reading
from .filelocks import holders, read_locks
from .mountinfo import network_file_system
from .sqliteconnection import Connection, connect, shut_all

__all__ = ["SharedFile", "WalIndex", "shared_file"]

logger = logging.getLogger("durabledict.sqlite")

#: The seconds between two looks whether the file is still there.
LOOKS_EACH = 1.0

#: The length of the header (https://www.sqlite.org/walformat.html#walidxfmt); what is read of it,
#: which is the number of its format, the number of commits and whether it is initialised; and the
#: one format that is known.
HEADER_BYTES = 48
HEADER = struct.Struct("=I4xI?")
HEADER_FORMAT = 3007000

#: The bytes that a connection locks (https://www.sqlite.org/walformat.html#wal_locks): one of the
#: -shm, and some of these of the file itself.
INDEX_LOCK = 128
FILE_LOCK = (0x40000002, 0x40000002 + 509)

Identity = tuple[int, int]


class _Nothing:
    """Stands in place of a map: what is read from it equals nothing that was ever read."""

    def __getitem__(self, part: slice) -> object:
        return object()


class WalIndex:
    """The header, as long as it is true.

    A plain object with two attributes, since each strict read looks at both. When the anchor
    closes, this ends, and another one comes in its place: a header read here is never compared with
    one read there. (An empty log always has the same.)

    """

    __slots__ = ("header", "look_at")

    def __init__(self, header: Any) -> None:
        #: ``header[:]`` gives its bytes; something that equals nothing where it cannot be read.
        self.header = header
        #: Until when the file need not be looked at, by `reading.monotonic`.
        self.look_at = -math.inf

    def end(self) -> None:
        """Have every comparison with it fail."""
        self.look_at = -math.inf
        self.header = _Nothing()


class SharedFile:
    """One file, as long as any dict of this process has it open.

    :param path: the file, absolute

    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.index = WalIndex(_Nothing())
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._users = 0
        self._timeout = 0.0
        self._anchor: Connection | None = None
        self._identity: Identity | None = None
        self._map: _Map | None = None
        self._network: str | None = None

    def acquire(self, timeout: float) -> None:
        """Note one more user.

        :param timeout: seconds to wait for a lock

        """
        with self._lock:
            self._users += 1
            self._timeout = max(self._timeout, timeout)

    def release(self) -> None:
        """Note that one is gone; the last one closes the anchor."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._anchor is not None:
                self._anchor.shut()
                self._anchor = None
                if self._map is None or self._map.closed_if_unlinked():
                    self._map = None
                    _files.pop((os.getpid(), self.path), None)

    def current(self) -> WalIndex:
        """Return the header; look at the file if that was not done for a second.

        :raises sqlite3.OperationalError: the file is gone

        """
        index = self.index
        return index if reading.monotonic() < index.look_at else self.look()

    def require_own_process(self) -> None:
        """Raise in a child that was forked past Python's hooks (uWSGI does so by default).

        SQLite would take the parent's locks for the child's own, and the child's commits could be
        lost though they were acknowledged.

        """
        if self._process != os.getpid():
            raise RuntimeError(
                f"this process was forked while {self.path} was open, and Python's fork hooks did "
                "not run: open the dict in the child (uWSGI: lazy-apps, or "
                "py-call-uwsgi-fork-hooks)"
            )

    def look(self, *, create: bool = False) -> WalIndex:
        """Make sure that the anchor holds the file which is under the name now.

        :param create: make the file if it is not there
        :raises sqlite3.OperationalError: the file is gone
        :raises RuntimeError: the last dict over it was closed by another thread

        """
        self.require_own_process()
        with self._lock:
            if self._users == 0:
                raise RuntimeError(f"the dict over {self.path} is closed")
            now = reading.monotonic()
            if create and self._identity is not None and _identity(self.path) is None:
                self._leave()  # a new one is to be made where the old one was
                self._identity = None
            while True:
                if self._identity is not None and not self._is_same():
                    self._leave()
                if self._is_open() or self._open(create):
                    break
            self.index.look_at = now + LOOKS_EACH
            return self.index

    def connect(self) -> Connection | None:
        """Open a connection to the file that the anchor holds.

        :return: None when the file is replaced, or the process forks, in this very moment

        """
        self.look()
        return self._connected(self._identity, create=False)

    def prepare(self, connection: Connection) -> None:
        """Make sure of the journal mode, which others can change while nobody has the file open.

        WAL needs memory that all who have the file open share, which the machines of a network
        file system do not.

        :raises ValueError: not an SQLite database; or one in WAL mode on a network file system

        """
        wanted = "wal" if self._network is None else "delete"
        try:
            ((mode,),) = connection.rows("PRAGMA journal_mode")
            if mode == "wal" != wanted:
                raise ValueError(
                    f"{self.path} is in WAL mode, and on a network file system ({self._network}), "
                    "whose machines share no memory. Run PRAGMA journal_mode = DELETE where it "
                    "comes from"
                )
            if mode != wanted:
                ((mode,),) = connection.rows(f"PRAGMA journal_mode = {wanted}")
        except sqlite3.DatabaseError as error:
            if type(error) is sqlite3.DatabaseError:
                raise ValueError(f"{self.path} is not an SQLite database: {error}") from error
            raise
        if mode != wanted:
            raise sqlite3.OperationalError(
                f"{self.path} cannot be put into {wanted.upper()} mode; its journal mode is {mode}"
            )

    # -- inside; the lock is held -------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._anchor is not None and not self._anchor.is_shut

    def _is_same(self) -> bool:
        if _required_identity(self.path) != self._identity:
            return False
        if self._map is None or not self._is_open():
            return True  # while the anchor is closed, as after a fork, the log may come and go
        return _identity(self._map.path) == self._map.identity

    def _connected(self, identity: Identity | None, *, create: bool) -> Connection | None:
        connection = connect(self.path, self._timeout, create=create)
        # Before anything is read: beside a file that has just come in its place there may still be
        # the old one's log.
        if identity is not None and _identity(self.path) != identity:
            connection.shut()
        return None if connection.is_shut else connection

    def _open(self, create: bool) -> bool:
        """Open the anchor; return False when the file was replaced, or the process forked."""
        self._network = network_file_system(self.path)
        before = _identity(self.path)
        if before is None and not create:
            raise _gone(self.path)
        if before is not None:
            _require_own_log(self.path, before)
        anchor = self._connected(before, create=create)
        if anchor is None:
            return False
        with anchor.use:
            try:
                if anchor.is_shut:
                    return False
                self.prepare(anchor)
                # It may be the one that checkpoints as the last to close.
                anchor.rows("PRAGMA synchronous = FULL")
                # Any read makes SQLite open the log, take its locks, and recover what a killed
                # process left.
                anchor.rows("SELECT count(*) FROM sqlite_master")
                self._identity = before or _required_identity(self.path)
                self.index = WalIndex(self._header())
                anchor.before_shut = self.index.end
                self._anchor = anchor
            except BaseException:
                anchor.shut()
                raise
        return True

    def _header(self) -> Any:
        """Map the header, or return what equals nothing: then the PRAGMA has to be asked."""
        if self._network is not None or os.name != "posix":
            return _Nothing()
        path = f"{os.path.realpath(self.path)}-shm"
        kept = self._map
        if kept is not None and (kept.path, kept.identity) != (path, _identity(path)):
            # Of a file that is no more; or it is kept for ever, since to close it could drop the
            # locks of connections that the program itself has to the file.
            kept.closed_if_unlinked()
            kept = self._map = None
        if kept is None:
            try:
                self._map = kept = _Map(path)
            except (OSError, ValueError) as error:
                logger.debug("%s cannot be mapped (%s): comparisons take longer", path, error)
                return _Nothing()
        format_number, _, initialised = HEADER.unpack_from(kept.mapped)
        known = initialised and format_number == HEADER_FORMAT
        return kept.mapped if known else _Nothing()

    def _leave(self) -> None:
        """Close all connections to a file that is no longer the one under the name.

        The log beside it may be still that of the old file: SQLite would take it for the new
        one's, and destroy that (seen). So it is removed. It is not in use: a connection to the old
        file has it open already, and does not remove a log when its file has moved.

        """
        logger.warning("%s was replaced while it was open; it is opened again", self.path)
        kept = self._map
        moved = _identity(self.path) != self._identity
        if moved and self._anchor is not None and self._is_open():
            try:
                # The old file may live on under another name, and needs what is in its log.
                self._anchor.rows("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                logger.warning("the log of the old file could not be put into it: %s", error)
        shut_all(self.path)
        self._anchor = None
        if kept is not None and moved and kept.path == f"{os.path.realpath(self.path)}-shm":
            _remove_log(kept)


class _Map:
    """The mapped header, and the descriptors it needs.

    To close any descriptor of a file makes the system drop all locks that the process has on it,
    SQLite's too. Python's `mmap` holds one more that it does not show. So both stay open, past the
    end of the interpreter, unless the file has no name any more: then nobody else has it.

    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self.identity: Identity = (status.st_dev, status.st_ino)
        self.mapped = mmap.mmap(self._descriptor, HEADER_BYTES, access=mmap.ACCESS_READ)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.mapped))

    def closed_if_unlinked(self) -> bool:
        """Close the descriptors if the file has no name any more; tell whether it had none."""
        if os.fstat(self._descriptor).st_nlink > 0:
            return False
        os.close(self._descriptor)
        # The map itself goes with the last reader that has it.
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self.mapped))
        return True


# For each process: a forked child has connections, and maps, of its own.
_files: dict[tuple[int, str], SharedFile] = {}


def shared_file(path: str) -> SharedFile:
    """Return the one of this process for a file.

    :param path: absolute

    """
    return _files.setdefault((os.getpid(), path), SharedFile(path))


def commits(header: bytes) -> int:
    """Return the number of commits, which grows by one with each and begins anew in a recovery."""
    number: int = HEADER.unpack_from(header)[1]
    return number


def _identity(path: str) -> Identity | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _required_identity(path: str) -> Identity:
    found = _identity(path)
    if found is None:
        raise _gone(path)
    return found


def _gone(path: str) -> sqlite3.OperationalError:
    return sqlite3.OperationalError(
        f"{path} is not there any more: it was removed or renamed while it was open"
    )


def _require_own_log(path: str, identity: Identity) -> None:
    """Refuse to open a file beside which lies the log of another one that is open.

    Every connection to a file in WAL mode holds a lock on it, and one on its ``-shm``, in this
    order. So where there is the second and not the first, it is a connection to the file that was
    under the name before. SQLite does not look.

    :raises sqlite3.OperationalError: such a log

    """
    index = _identity(f"{os.path.realpath(path)}-shm")
    if index is None:
        return
    for pause in (0.001, 0.01, 0.0):
        locks = read_locks()
        others = holders(*index, INDEX_LOCK, INDEX_LOCK, locks)
        if not others or holders(*identity, *FILE_LOCK, locks):
            return
        time.sleep(pause)  # or somebody opened the file while the locks were listed
    raise sqlite3.OperationalError(
        f"{path} has come in the place of a file that process {others[0]} still has open, and "
        "whose log lies beside it; SQLite would mix the two. Remove the files -wal and -shm first"
    )


def _remove_log(kept: _Map) -> None:
    """Remove the log beside a file, if it is that of the file which was there before."""
    import fcntl

    folder = os.open(os.path.dirname(kept.path), os.O_RDONLY)
    try:
        # One process at a time: between the look and the removal another one could have removed
        # it, and begun the new file's log.
        fcntl.flock(folder, fcntl.LOCK_EX)
        if _identity(kept.path) == kept.identity:
            logger.warning("removing %s, the log of the file before it", kept.path[:-4] + "-wal")
            for path in (kept.path[:-4] + "-wal", kept.path):
                if os.path.exists(path):
                    os.unlink(path)
    except OSError as error:
        raise sqlite3.OperationalError(
            f"{kept.path} is of the file that was replaced, and cannot be removed: {error}"
        ) from error
    finally:
        os.close(folder)
