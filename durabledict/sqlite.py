"""`SqliteDict`: a durable dict in an SQLite file, shared by all processes of one machine.

docs/internals.rst, section 1, numbers the rules of this protocol. Rows, a log of changed keys and a
table of commits are written in one transaction; the stamp of a keyspace is the number and the
random nonce of its last commit.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .base import Changes, Commit, DurableDict, Undecodable
from .encoding import DefaultEncoding
from .errors import MISSING, EncodingError, Missing
from .keys import decode_key, encode_key
from .sqliteconnection import Connection, is_locked
from .sqlitefile import SqliteFile

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .base import Options

__all__ = ["SqliteDict"]

K = TypeVar("K")
V = TypeVar("V")

Stamp = tuple[int, int]

# What a keyspace without a commit has: a keyspace that was emptied has one of its own.
NEVER_WRITTEN: Stamp = (0, 0)

STAMP = """
    SELECT version, nonce FROM durabledict_commits WHERE keyspace = ?
    ORDER BY version DESC LIMIT 1
"""
PROOF = """
    SELECT last_entry FROM durabledict_commits WHERE keyspace = ? AND version = ? AND nonce = ?
"""
ENTRIES = "SELECT key, value FROM durabledict_entries WHERE keyspace = ? ORDER BY id"
PAYLOAD = "SELECT value FROM durabledict_entries WHERE keyspace = ? AND key = ?"
# An entry keeps its row, and so its place, when its value changes.
UPSERT = """
    INSERT INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)
    ON CONFLICT (keyspace, key) DO UPDATE SET value = excluded.value
"""
# Cast, because a key that is no UTF-8 comes, and goes, as bytes.
DELETE = "DELETE FROM durabledict_entries WHERE keyspace = ? AND key = CAST(? AS TEXT)"
# Entries with a higher number were inserted after this commit, some for the second time.
COMMIT = """
    INSERT INTO durabledict_commits (keyspace, version, nonce, last_entry)
    SELECT ?, ?, ?, coalesce(max(id), 0) FROM durabledict_entries
"""
LOG = "INSERT INTO durabledict_log (keyspace, version, key) VALUES (?, ?, ?)"
CHANGED = """
    SELECT changed.key, entry.value, entry.id
    FROM (SELECT DISTINCT key FROM durabledict_log WHERE keyspace = ? AND version > ?) AS changed
    LEFT JOIN durabledict_entries AS entry ON entry.keyspace = ? AND entry.key = changed.key
    ORDER BY entry.id
"""


class SqliteDict(DurableDict[K, V]):
    """A durable dict in an SQLite file. Strict reads are linearizable between processes.

    Iteration is in the order of first insertion, as in a dict. Values are pickled unless
    `encoding` says otherwise; what a text encoding writes is stored as text, to be read in the
    sqlite3 shell. A write is in the file, and on the disk, when it returns (WAL, synchronous=FULL).

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
    :param autosync: see `DurableDict`; a comparison is one PRAGMA when nothing was written
    :param encoding: see `DurableDict`
    :param old_encoding: see `DurableDict`
    :param timeout: seconds to wait for another writer's transaction
    :param options: ``on_outage``, ``max_stale``, ``allow_unsigned``: see `DurableDict`
    :raises FileNotFoundError: the folder is not there
    :raises PermissionError: the file or its folder cannot be written
    :raises ValueError: the file is not an SQLite database, or one that holds other tables by
        these names
    :raises DurableDictError: a later version of the library wrote the file

    """

    __slots__ = ("_file", "_place", "keyspace")

    unavailable = (sqlite3.OperationalError,)
    _ordered = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        keyspace: str = "default",
        autosync: bool | float | timedelta = True,
        encoding: Any = DefaultEncoding,
        old_encoding: Any = None,
        *,
        timeout: float = 5.0,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(keyspace, str):
            raise TypeError(f"keyspace={keyspace!r} is not a str")
        self.keyspace = keyspace
        # In the table the keyspace has the form of a key, in which every str can be stored.
        self._place = encode_key(keyspace)
        self._file = SqliteFile(path, timeout)
        try:
            super().__init__(autosync, encoding, old_encoding, **options)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Open ``sqlite:///relative/path`` or ``sqlite:////absolute/path``."""
        path = url.partition("://")[2]
        if not path.startswith("/") or path == "/":
            raise ValueError(
                f"{url!r} names no file: write sqlite:///relative/path or sqlite:////absolute/path"
            )
        return cls(path[1:], **options)

    @property
    def path(self) -> str:
        """The file, as an absolute path."""
        return self._file.path

    def last_updated(self) -> Stamp:
        """Return the number and nonce of the last commit to this keyspace.

        One PRAGMA; one SELECT more when somebody wrote to the file since this thread asked last.

        """
        with self._file.use() as connection:
            # Read before the stamp: a commit in between is seen by the next call.
            version = self._file.data_version(connection)
            known: tuple[int, Stamp] | None = connection.known
            if known is not None and known[0] == version:
                return known[1]
            stamp = self._stamp(connection)
            connection.known = (version, stamp)
            return stamp

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded, in the order of first insertion."""
        with self._file.use() as connection:
            rows = connection.rows(ENTRIES, (self._place,))
        return self._decode_all((_key(text), payload) for text, payload in rows)

    def changes(self, since: Stamp) -> Changes[K, V] | None:
        """Return the entries that the commits after `since` touched; it costs their number.

        None when the very commit that gave `since` is not in the file: a backup was restored.

        """
        with self._file.snapshot() as connection:
            # Before the first commit there is nothing that could prove anything: no row.
            proof = connection.rows(PROOF, (self._place, *since))
            if not proof:
                return None
            stamp = self._stamp(connection)
            rows = connection.rows(CHANGED, (self._place, since[0], self._place))
        ((last_entry,),) = proof
        stored = ((_key(key), payload) for key, payload, entry in rows if entry is not None)
        return Changes(
            stamp,
            self._decode_all(stored),
            removed=[_key(key) for key, _, entry in rows if entry is None],
            moved=[_key(key) for key, _, entry in rows if (entry or 0) > last_entry],
        )

    def persist(self, key: K, value: V) -> Commit[K, V]:
        """Store one entry: one transaction."""
        return self.persist_many({key: value})

    def depersist(self, key: K) -> Commit[K, V]:
        """Remove one entry: one transaction."""
        return self.depersist_many([key])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V]:
        """Store several entries: one transaction."""
        payloads, written = self._prepare_all(entries)
        return self._commit(lambda connection: (payloads, []), written)

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V]:
        """Remove several entries: one transaction."""
        texts = [encode_key(key) for key in keys]
        return self._commit(
            lambda connection: (
                {},
                [text for text in texts if self._payload(connection, text) is not MISSING],
            ),
            {},
        )

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V]:
        payloads, written = self._prepare_all(entries)

        def difference(connection: Connection) -> tuple[dict[str, Any], list[str]]:
            stored: dict[Any, Any] = dict(connection.rows(ENTRIES, (self._place,)))
            return (
                {key: new for key, new in payloads.items() if stored.get(key, MISSING) != new},
                [key for key in stored if key not in payloads],
            )

        return self._commit(difference, written)

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        with self._file.use() as connection:
            payload = self._payload(connection, encode_key(key))
        return MISSING if payload is MISSING else self._decode(payload, key), payload

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        text = encode_key(key)
        payloads, written = ({}, {}) if value is MISSING else self._prepare_all({key: value})
        removed = [text] if value is MISSING and proof is not MISSING else []

        def if_unchanged(
            connection: Connection,
        ) -> tuple[dict[str, Any], list[str]] | None:
            stored = self._payload(connection, text)
            return (payloads, removed) if stored == proof else None

        return self._commit_if(if_unchanged, written)

    def _was_refused(self, error: Exception) -> bool:
        """Whether nothing was done: so it is where another writer's lock was in the way, too."""
        locked = isinstance(error, sqlite3.OperationalError) and is_locked(error)
        return locked or super()._was_refused(error)

    def close(self) -> None:
        """Close the connections, and end the watch; see `DurableDict.close`."""
        super().close()
        self._file.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._file.after_fork()

    # -- inside -------------------------------------------------------------------------------

    def _stamp(self, connection: Connection) -> Stamp:
        rows = connection.rows(STAMP, (self._place,))
        return rows[0] if rows else NEVER_WRITTEN

    def _payload(self, connection: Connection, text: str) -> Any:
        rows = connection.rows(PAYLOAD, (self._place, text))
        return rows[0][0] if rows else MISSING

    def _prepare_all(self, entries: Mapping[K, Any]) -> tuple[dict[str, Any], dict[K, Any]]:
        """Return key text -> payload, and key -> value as stored, before anything is sent."""
        payloads, written = {}, {}
        for key, value in entries.items():
            payload, written[key] = self._prepare(key, value)
            if isinstance(payload, str):
                _require_utf8(key, payload)
            elif not isinstance(payload, bytes):
                raise EncodingError(
                    f"the payload of key {key!r} is of type {type(payload).__name__}: a file "
                    "holds str or bytes, so the encoding has to give one of them"
                )
            payloads[encode_key(key)] = payload
        return payloads, written

    def _commit(
        self,
        choose: Callable[[Connection], tuple[dict[str, Any], list[str]]],
        written: Mapping[K, Any],
    ) -> Commit[K, V]:
        commit = self._commit_if(choose, written)
        assert commit is not None  # `choose` never declines
        return commit

    def _commit_if(
        self,
        choose: Callable[[Connection], tuple[dict[str, Any], list[str]] | None],
        written: Mapping[K, Any],
    ) -> Commit[K, V] | None:
        """Run one write transaction.

        :param choose: asked inside the transaction what to write and what to remove; None: nothing
        :param written: the values as stored, of the keys that `choose` may write

        """
        nonce = random.SystemRandom().getrandbits(62)
        with self._file.transaction() as transaction:
            connection = transaction.connection
            before = self._stamp(connection)
            chosen = choose(connection)
            if chosen is None:
                return None
            payloads, removed = chosen
            if not payloads and not removed:
                return Commit(before, before)
            place, version = self._place, before[0] + 1
            connection.many(UPSERT, [(place, key, new) for key, new in payloads.items()])
            connection.many(DELETE, [(place, key) for key in removed])
            connection.many(LOG, [(place, version, key) for key in (*payloads, *removed)])
            connection.rows(COMMIT, (place, version, nonce))
            # Rule 0.4: where COMMIT fails without saying whether it was done, the nonce tells.
            transaction.proof = (PROOF, (place, version, nonce))
        return Commit(
            before,
            (version, nonce),
            {key: value for key, value in written.items() if encode_key(key) in payloads},
            [_key(text) for text in removed],
        )


def _require_utf8(key: object, payload: str) -> None:
    try:
        payload.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EncodingError(f"the payload of key {key!r} is no text: {error}") from error


def _key(text: str | bytes) -> Any:
    """Return the key that a text stands for; what is no UTF-8 is shown as Python shows it."""
    return decode_key(text if isinstance(text, str) else text.decode("utf-8", "surrogateescape"))
