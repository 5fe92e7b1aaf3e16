"""`SqliteDict`: a durable dict in an SQLite file, shared by all processes of one machine.

docs/internals.rst, section 1, numbers the rules of this protocol. The entries, and the row of the
commit, which lists their keys, are written in one transaction; how they are read is in
`sqlitereads`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .base import Commit
from .encoding import DefaultEncoding
from .errors import MISSING, EncodingError, Missing
from .hiding import hidden
from .keys import encode_key
from .locks import LEASE, Lease
from .sqliteconnection import Connection, is_locked
from .sqlitefile import SqliteFile, Transaction
from .sqliteleases import SqliteLease
from .sqlitelog import packed, trim
from .sqlitereads import SqliteReads
from .sqlitestatements import (
    COMMIT,
    OVERWRITE,
    OVERWRITTEN,
    PROOF,
    forget_inherited_nonces,
    form_there,
    key_of,
    new_nonce,
    payload_of,
    read_entries,
    remove,
    store,
)
from .walindex import commits

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .base import Options

__all__ = ["SqliteDict"]

K = TypeVar("K")
V = TypeVar("V")

# What a transaction writes, key text -> payload, and which keys it removes.
Chosen = tuple[dict[str | bytes, Any], list[Any]]


class SqliteDict(SqliteReads[K, V]):
    """A durable dict in an SQLite file. Strict reads are linearizable between processes.

    Iteration is in the order of first insertion, as in a dict. Values are pickled unless
    `encoding` says otherwise; what a text encoding writes is stored as text, to be read in the
    sqlite3 shell. A write is in the file when it returns, and on the disk (``synchronous="FULL"``).
    What other programs write to the table ``durabledict_entries`` is seen like any other write.

    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> d = SqliteDict(os.path.join(folder.name, "settings.sqlite"))
    >>> d["theme"] = "dark"
    >>> SqliteDict(os.path.join(folder.name, "settings.sqlite"))
    {'theme': 'dark'}
    >>> d["language"]
    Traceback (most recent call last):
    KeyError: 'language'
    >>> d.close(); folder.cleanup()

    :param path: the file; made if it is not there, with two more beside it, ``-wal`` and ``-shm``
    :param keyspace: the part of the file that is this dict; a file holds any number
    :param autosync: see `DurableDict`; a comparison reads 48 bytes of memory when nothing was
        written to the file, and makes no system call but for two `stat` once a second
    :param encoding: see `DurableDict`
    :param old_encoding: see `DurableDict`
    :param timeout: seconds, or a timedelta, to wait for another writer's transaction
    :param synchronous: what a write waits for. "FULL": the disk, so that what was acknowledged
        survives the loss of power. "NORMAL": nothing; the loss of power may take the last writes,
        and never damages the file. "OFF": as NORMAL, and the loss of power may damage the file.
        "EXTRA": as FULL. The crash of a process costs nothing under any of them
    :param options: ``on_outage``, ``max_stale``, ``allow_unsigned``: see `DurableDict`
    :raises FileNotFoundError: the folder is not there
    :raises PermissionError: the file or its folder cannot be written
    :raises ValueError: the file is not an SQLite database; it holds other tables by these names;
        it is in WAL mode and on a network file system; there is no such `synchronous`
    :raises DurableDictError: another version of the library wrote the file

    """

    __slots__ = ()

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        keyspace: str = "default",
        autosync: bool | float | timedelta = True,
        encoding: Any = DefaultEncoding,
        old_encoding: Any = None,
        *,
        timeout: float | timedelta = 5.0,
        synchronous: str = "FULL",
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(keyspace, str):
            raise TypeError(f"keyspace={keyspace!r} is not a str")
        forget_inherited_nonces()  # of a fork that Python's hooks did not see
        file = SqliteFile(path, timeout, synchronous)
        super().__init__(file, keyspace, autosync, encoding, old_encoding, **options)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Open ``sqlite:///relative/path`` or ``sqlite:////absolute/path``."""
        path = url.partition("://")[2]
        if not path.startswith("/") or path == "/":
            raise ValueError(
                f"{hidden(url)!r} names no file: write sqlite:///relative/path or sqlite:////absolute/path"
            )
        return cls(path[1:], **options)

    @property
    def path(self) -> str:
        """The file, as an absolute path."""
        return self._file.path

    @property
    def synchronous(self) -> str:
        """What a write waits for: "OFF", "NORMAL", "FULL" or "EXTRA"."""
        return self._file.synchronous

    # -- writing ------------------------------------------------------------------------------

    def persist(self, key: K, value: V) -> Commit[K, V]:
        """Store one entry: one transaction; one statement where the key is there."""
        payload, stored = self._prepare(key, value)
        _require_storable(key, payload)
        text = encode_key(key)
        commit = self._overwrite(text, payload, {key: stored})
        if commit is not None:
            return commit
        return self._commit(
            lambda connection: ({form_there(connection, self._place, text): payload}, []),
            {key: stored},
        )

    def depersist(self, key: K) -> Commit[K, V]:
        """Remove one entry: one transaction."""
        return self.depersist_many([key])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V]:
        """Store several entries: one transaction."""
        payloads, written = self._payloads(entries)
        return self._commit(lambda connection: (self._all_there(connection, payloads), []), written)

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V]:
        """Remove several entries: one transaction."""
        texts = dict.fromkeys(encode_key(key) for key in keys)
        return self._commit(
            lambda connection: (
                {},
                [
                    there
                    for there in (form_there(connection, self._place, text) for text in texts)
                    if payload_of(connection, self._place, there) is not MISSING
                ],
            ),
            {},
        )

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V]:
        payloads, written = self._payloads(entries)

        def difference(connection: Connection) -> Chosen:
            stored: dict[Any, Any] = dict(read_entries(connection, self._place))
            wanted = self._all_there(connection, payloads)
            return (
                {key: new for key, new in wanted.items() if stored.get(key, MISSING) != new},
                [key for key in stored if key not in wanted],
            )

        return self._commit(difference, written)

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        text = encode_key(key)
        payloads, written = ({}, {}) if value is MISSING else self._payloads({key: value})
        removed = [text] if value is MISSING and proof is not MISSING else []

        def if_unchanged(connection: Connection) -> Chosen | None:
            there = form_there(connection, self._place, text)
            if payload_of(connection, self._place, there) != proof:
                return None
            wanted = {} if value is MISSING else {there: payloads[text]}
            return wanted, [there for _ in removed]

        return self._commit_if(if_unchanged, written)

    def _was_refused(self, error: Exception) -> bool:
        """Whether nothing was done: so it is where another writer's lock was in the way, too."""
        locked = isinstance(error, sqlite3.OperationalError) and is_locked(error)
        return locked or super()._was_refused(error)

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        identity = ("sqlite", self.path, self._place, name)
        return SqliteLease(seconds, identity, self._file, self._place, encode_key(name))

    def close(self) -> None:
        """Close the connections, and end the watch; see `DurableDict.close`."""
        super().close()
        self._file.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._file.after_fork()

    # -- inside -------------------------------------------------------------------------------

    def _all_there(
        self, connection: Connection, payloads: dict[str, Any]
    ) -> dict[str | bytes, Any]:
        return {
            form_there(connection, self._place, text): payload for text, payload in payloads.items()
        }

    def _payloads(self, entries: Mapping[K, Any]) -> tuple[dict[str, Any], dict[K, Any]]:
        """Return key text -> payload, and key -> value as stored, before anything is sent."""
        payloads, written = self._prepare_all(entries)
        for key, payload in payloads.items():
            _require_storable(key, payload)
        return {encode_key(key): payload for key, payload in payloads.items()}, written

    def _overwrite(self, text: str, payload: Any, written: dict[K, Any]) -> Commit[K, V] | None:
        """Change the value of a key that is there.

        With ``synchronous="NORMAL"`` a write takes two thirds of the time in this way: it is one
        statement instead of four, and the header tells whether the commit before it is the one
        that is known.

        :return: None where the key is not there, somebody else wrote last, or is about to, or the
            header cannot be had; nothing was done

        """
        index = self._file.current()  # or the write could go to a file that was replaced
        known = self._known
        if known is None or known[0] is not index or known[1] != index.header[:]:
            return None
        place, nonce = self._place, new_nonce()
        proof = (OVERWRITTEN, (place, nonce))
        if not self._file.run(OVERWRITE, (payload, nonce, place, text), proof):
            return None
        _, _, count, before = known
        stamp = (before[0] + 1, nonce)
        if self._remember(index, count, stamp):
            return Commit(before, stamp, written)
        # Somebody else wrote as well, before or after: the sync that follows tells.
        return Commit(None, None, written)

    def _commit(
        self, choose: Callable[[Connection], Chosen], written: Mapping[K, Any]
    ) -> Commit[K, V]:
        commit = self._commit_if(choose, written)
        assert commit is not None  # `choose` never declines
        return commit

    def _commit_if(
        self, choose: Callable[[Connection], Chosen | None], written: Mapping[K, Any]
    ) -> Commit[K, V] | None:
        """Run one write transaction.

        :param choose: asked inside the transaction what to write and what to remove; None: nothing
        :param written: the values as stored, of the keys that `choose` may write

        """
        place, nonce = self._place, new_nonce()
        index = self._file.current()  # as in `_overwrite`
        header: Any = None

        def work(transaction: Transaction) -> Commit[K, V] | None:
            nonlocal header
            connection = transaction.connection
            # Nobody else commits from here on: it is the header of the state that is read now.
            header = index.header[:]
            known = self._known
            if known is not None and known[0] is index and known[1] == header:
                before = known[3]
            else:
                before = self._stamp(connection)
            chosen = choose(connection)
            if chosen is None:
                return None
            payloads, removed = chosen
            if not payloads and not removed:
                return Commit(before, before)
            version = before[0] + 1
            store(connection, place, nonce, payloads)
            remove(connection, place, removed)
            try:
                fields = packed(payloads), packed(removed)
            except OverflowError:
                fields = None, None
            connection.execute(COMMIT, (place, version, nonce, *fields))
            trim(connection, place, version, *fields)
            # Rule 0.4: where COMMIT fails without saying whether it was done, the nonce tells.
            transaction.proof = (PROOF, (place, version, nonce))
            stored: Mapping[K, Any] = written
            if len(payloads) < len(written):
                keys = {key_of(text) for text in payloads}
                stored = {key: value for key, value in written.items() if key in keys}
            return Commit(before, (version, nonce), stored, [key_of(text) for text in removed])

        commit = self._file.write(work)
        # What made no commit has no place in the count: the one that came may be another's.
        if commit is not None and commit.after != commit.before and isinstance(header, bytes):
            self._remember(index, commits(header), commit.after)
        return commit


def _require_storable(key: object, payload: object) -> None:
    """Refuse what SQLite would store as something else."""
    if type(payload) is bytes:
        return
    if isinstance(payload, str):
        try:
            payload.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EncodingError(f"the payload of key {key!r} is no text: {error}") from error
    elif not isinstance(payload, bytes):
        raise EncodingError(
            f"the payload of key {key!r} is of type {type(payload).__name__}: a file holds str or "
            "bytes, so the encoding has to give one of them"
        )
