"""How a `SqliteDict` is read: the stamp, all entries, and those that changed.

docs/internals.rst, section 1, numbers the rules of this protocol. The stamp of a keyspace is the
number and the random nonce of its last commit.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, TypeVar

from .base import Changes, DurableDict, Undecodable
from .errors import MISSING, DurableDictError, Missing
from .keys import encode_key
from .sqliteconnection import Connection
from .sqlitefile import SqliteFile
from .sqlitelog import unpacked
from .sqlitestatements import (
    ENTRY,
    LOG,
    PROOF,
    STAMP,
    form_there,
    has_tagged_keys,
    key_of,
    payload_of,
    read_entries,
)
from .walindex import WalIndex, commits

__all__ = ["NEVER_WRITTEN", "SqliteReads", "Stamp"]

K = TypeVar("K")
V = TypeVar("V")

Stamp = tuple[int, int]

#: What SQLite's integers end with.
LAST_VERSION = 2**63 - 1

# What a keyspace without a commit has: a keyspace that was emptied has one of its own.
NEVER_WRITTEN: Stamp = (0, 0)


class SqliteReads(DurableDict[K, V]):
    """A dict that can tell its stamp and load its entries; see `SqliteDict`."""

    __slots__ = ("_file", "_known", "_place", "keyspace")

    unavailable = (sqlite3.OperationalError,)
    _ordered = True
    _poll_pauses = (0.0005, 0.005)  # what `wait` looks at is the header

    def __init__(self, file: SqliteFile, keyspace: str, *args: Any, **options: Any) -> None:
        self._file = file
        self.keyspace = keyspace
        # In the table the keyspace has the form of a key, in which every str can be stored.
        self._place = encode_key(keyspace)
        # What `last_updated` found last: the index, its header, the number of commits in that, and
        # the stamp that was read after it. A plain tuple: a write makes one.
        self._known: tuple[WalIndex, bytes, int, Stamp] | None = None
        try:
            super().__init__(*args, **options)
        except BaseException:
            self._file.close()
            raise

    # -- comparing ----------------------------------------------------------------------------

    def last_updated(self) -> Stamp:
        """Return the number and nonce of the last commit to this keyspace.

        48 bytes of memory, and two `stat` once a second; one SELECT more when somebody wrote to the
        file since the last call.

        """
        index = self._file.current()
        # Read before the stamp: a commit in between is seen by the next call (rule 0.1).
        header = index.header[:]
        if not isinstance(header, bytes):
            return self._last_updated_by_pragma()
        known = self._known
        if known is not None and known[0] is index and known[1] == header:
            return known[3]
        with self._file.use() as connection:
            stamp = self._stamp(connection)
            if not connection.in_transaction:  # or it may be taken back
                self._known = (index, header, commits(header), stamp)
        return stamp

    def _last_updated_by_pragma(self) -> Stamp:
        """Ask SQLite, where the header cannot be read: it takes ten times as long."""
        with self._file.use() as connection:
            ((version,),) = connection.rows("PRAGMA data_version")
            known: tuple[int, Stamp] | None = connection.known
            if known is not None and known[0] == version:
                return known[1]
            stamp = self._stamp(connection)
            connection.known = (version, stamp)
            return stamp

    def _glance(self) -> tuple[WalIndex, bytes] | None:
        index = self._file.index
        header = index.header[:]
        return (index, header) if isinstance(header, bytes) else None

    def _is_unchanged(self, now: float) -> bool:
        glimpse = self._glimpse
        if glimpse is None:
            return False
        index, header = glimpse
        if index.header[:] != header or now >= index.look_at:
            return False
        if getattr(self.last_updated, "__func__", None) is not _last_updated:
            return False  # somebody's own: a subclass, or a test that counts
        self.stats.comparisons += 1
        self._freshness.sent = now
        return True

    def _stamp(self, connection: Connection) -> Stamp:
        rows = connection.rows(STAMP, (self._place,))
        if not rows:
            return NEVER_WRITTEN
        version, nonce = rows[0]
        if type(version) is int and type(nonce) is int and version < LAST_VERSION:
            return version, nonce
        raise DurableDictError(
            f"{self._file.path} has a row in durabledict_commits that no durabledict has written: "
            f"version {version!r}, nonce {nonce!r}, of keyspace {self.keyspace!r}; delete it"
        )

    def _remember(self, index: WalIndex, before: int, stamp: Any) -> bool:
        """Remember the stamp that an own commit gave, if nobody else committed; tell whether.

        :param before: the number of commits before it. One commit later the one is our own

        """
        after = index.header[:]
        if isinstance(after, bytes):
            count = commits(after)
            if count == before + 1:
                self._known = (index, after, count, stamp)
                return True
        return False

    def _pause(self, seconds: float) -> bool:
        # Short enough to sleep through: to wait for the event takes twice the processor.
        time.sleep(seconds)
        return self._interrupted.is_set()

    # -- fetching -----------------------------------------------------------------------------

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded, in the order of first insertion."""

        def work(connection: Connection) -> tuple[list[tuple[Any, Any]], bool]:
            rows = read_entries(connection, self._place)
            return rows, has_tagged_keys(connection, self._place) or connection.met_bytes

        rows, tagged = self._file.read(work)
        if tagged:
            rows = [(key_of(text), payload) for text, payload in rows]
        return self._decode_all(rows)

    def changes(self, since: Stamp) -> Changes[K, V] | None:
        """Return the entries that the commits after `since` touched; it costs their number.

        None when the very commit that gave `since` is not in the file: it was long ago, or a backup
        was restored. None too after a commit of so many keys that it does not list them.

        """
        touched: dict[str | bytes, None] = {}
        removed: set[str | bytes] = set()
        rows: list[Any] = []
        absent: list[str | bytes] = []

        def work(connection: Connection) -> list[Any] | None:
            # Before the first commit there is nothing that could prove anything: no row.
            if not connection.rows(PROOF, (self._place, *since)):
                return None
            log = connection.rows(LOG, (self._place, since[0]))
            for _, _, *fields in log:
                if fields == [None, None]:
                    return None
                written, gone = map(unpacked, fields)
                if written is None or gone is None:
                    return None
                touched.update(dict.fromkeys([*written, *gone]))
                removed.update(gone)
            for text in touched:
                entry = connection.rows(ENTRY, (self._place, text))
                rows.extend(entry)
                absent.extend([] if entry else [text])
            return log

        log = self._file.read(work)
        if log is None:
            return None
        rows.sort()  # by their number, in the order of insertion
        return Changes(
            log[-1][:2] if log else since,
            self._decode_all([(key_of(text), payload) for _, text, payload in rows]),
            removed=[key_of(text) for text in absent],
            moved=[key_of(text) for _, text, _ in rows if text in removed],
        )

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        with self._file.use() as connection:
            payload = payload_of(
                connection, self._place, form_there(connection, self._place, encode_key(key))
            )
        return MISSING if payload is MISSING else self._decode(payload, key), payload


# Here, where the class is done: what `_is_unchanged` compares with.
_last_updated = SqliteReads.last_updated
