"""What the dicts of one process share of an SQLite file: the header that tells of every commit.

docs/internals.rst, rules 1.2 and 1.3. The header can be trusted only while a connection of this
process is open, the *anchor*: it keeps others from removing ``-shm``, and from changing the journal
mode. And only while the file is still the one under its name: that is looked at once a second.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from typing import Any

from . import reading
from .mountinfo import network_file_system
from .sqliteconnection import Connection, connect, shut_all
from .stalelog import remove_log, require_own_log
from .walindex import HeaderMap, Identity, Nothing, WalIndex, identity_of

__all__ = ["SharedFile", "shared_file"]

logger = logging.getLogger("durabledict.sqlite")

#: The seconds between two looks whether the file is still there.
LOOKS_EACH = 1.0


class SharedFile:
    """One file, as long as any dict of this process has it open.

    :param path: the file, absolute

    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.index = WalIndex(Nothing())
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._users = 0
        self._timeout = 0.0
        self._anchor: Connection | None = None
        self._identity: Identity | None = None
        self._map: HeaderMap | None = None
        self._network: str | None = None
        self._unmappable = False
        self._given_up = False

    def acquire(self, timeout: float) -> bool:
        """Note one more user; return False if this one is given up, and another has its place.

        :param timeout: seconds to wait for a lock

        """
        with self._lock:
            if self._given_up:
                return False
            self._users += 1
            self._timeout = max(self._timeout, timeout)
            return True

    def release(self) -> None:
        """Note that one is gone; the last one closes the anchor."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
            if self._anchor is not None:
                self._anchor.shut()
                self._anchor = None
            if self._map is None or self._map.closed_if_unlinked():
                self._map = None
                self._given_up = True
                _files.pop((os.getpid(), self.path), None)

    def current(self) -> WalIndex:
        """Return the header; look at the file if that was not done for a second.

        :raises sqlite3.OperationalError: the file is gone

        """
        index = self.index
        return index if reading.monotonic() < index.look_at else self.look()

    def is_open_as(self, path: str) -> bool:
        """Whether the anchor is open, and its file is the one that this path leads to."""
        return self._is_open() and (path == self.path or identity_of(path) == self._identity)

    def require_own_process(self) -> None:
        """Raise in a child that was forked past Python's hooks (uWSGI does so by default).

        SQLite would take the parent's locks for the child's own, and the child's commits could be
        lost though they were acknowledged.

        """
        if self._process != os.getpid():
            raise _forked_past_the_hooks(self.path)

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
            if create and self._identity is not None and identity_of(self.path) is None:
                self._leave()  # a new one is to be made where the old one was
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
        return identity_of(self._map.path) == self._map.identity

    def _connected(self, identity: Identity | None, *, create: bool) -> Connection | None:
        connection = connect(self.path, self._timeout, create=create)
        # Before anything is read: beside a file that has just come in its place there may still be
        # the old one's log.
        if identity is not None and identity_of(self.path) != identity:
            connection.shut()
        return None if connection.is_shut else connection

    def _open(self, create: bool) -> bool:
        """Open the anchor; return False when the file was replaced, or the process forked."""
        self._network = network_file_system(self.path)
        before = identity_of(self.path)
        if before is None and not create:
            raise _gone(self.path)
        if before is not None:
            require_own_log(self.path, before)
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
                # All while `use` is held: a fork closes the anchor before this or after it, and
                # after it that ends the index.
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
            return Nothing()
        path = f"{os.path.realpath(self.path)}-shm"
        kept = self._map
        if kept is not None and (kept.path, kept.identity) != (path, identity_of(path)):
            # Of a file that is no more; or it is kept for ever, since to close it could drop the
            # locks of connections that the program itself has to the file.
            kept.closed_if_unlinked()
            kept = self._map = None
        if kept is None and not self._unmappable:
            try:
                self._map = kept = HeaderMap(path)
            except (OSError, ValueError) as error:
                # Not twice: the descriptor cannot be closed.
                self._unmappable = isinstance(error, ValueError)
                logger.debug("%s cannot be mapped (%s): comparisons take longer", path, error)
        if kept is None:
            return Nothing()
        return kept.mapped if kept.is_known() else Nothing()

    def _leave(self) -> None:
        """Close all connections to a file that is no longer the one under the name.

        The log beside it may be still that of the old file: SQLite would take it for the new
        one's, and destroy that (seen). So it is removed. It is not in use: a connection to the old
        file has it open already, and does not remove a log when its file has moved.

        """
        kept = self._map
        moved = identity_of(self.path) != self._identity
        what = "" if moved else "-shm"
        logger.warning("%s%s was replaced or removed; the file is opened again", self.path, what)
        if moved and self._anchor is not None and self._is_open():
            try:
                # The old file may live on under another name, and needs what is in its log.
                self._anchor.rows("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                logger.warning("the log of the old file could not be put into it: %s", error)
        # Before the connections are closed: while one of them is open, who opens the file sees
        # whose log that is.
        if kept is not None and moved and kept.path == f"{os.path.realpath(self.path)}-shm":
            remove_log(kept)
        shut_all(self.path)
        self._anchor = self._identity = None


# For each process: a forked child has connections, and maps, of its own.
_files: dict[tuple[int, str], SharedFile] = {}


def shared_file(path: str, timeout: float) -> SharedFile:
    """Return the one of this process for a file, with one more user.

    :param path: absolute
    :param timeout: seconds to wait for a lock

    """
    for (process, _), other in list(_files.items()):
        if process != os.getpid() and other.is_open_as(path):
            raise _forked_past_the_hooks(path)
    # Without a lock of its own, which a thread could hold while the process forks.
    while True:
        shared = _files.setdefault((os.getpid(), path), SharedFile(path))
        if shared.acquire(timeout):
            return shared


def _forked_past_the_hooks(path: str) -> RuntimeError:
    return RuntimeError(
        f"this process was forked while {path} was open, and Python's fork hooks did not run: open "
        "the dict in the child alone (uWSGI: lazy-apps, or py-call-uwsgi-fork-hooks)"
    )


def _required_identity(path: str) -> Identity:
    found = identity_of(path)
    if found is None:
        raise _gone(path)
    return found


def _gone(path: str) -> sqlite3.OperationalError:
    return sqlite3.OperationalError(
        f"{path} is not there any more: it was removed or renamed while it was open"
    )
