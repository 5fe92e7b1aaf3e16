"""Where a `ModelDict` lives: its model and connection, its stamp, and the rows as entries.

docs/internals.rst, section 3. Nothing here asks before the first read or write (rule 3.6), and the
database is always the one that is written (rule 3.5).
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.exceptions import SynchronousOnlyOperation
from django.db import InterfaceError, OperationalError, connections, router

from . import modelsignals
from .base import Commit, DurableDict, Undecodable
from .coder import decode_all
from .encoding import DefaultEncoding
from .errors import MISSING, DecodingError, Missing
from .locks import LEASE, Lease
from .modelcolumns import KeyColumn, ValueColumn
from .modelconnections import (
    beside,
    database_name,
    is_in_transaction,
    leave_to_parent,
    may_be_behind,
    runs_event_loop,
    shared_name,
)
from .modeldamage import Unreadable
from .modelrows import repeated
from .modeltransactions import Block
from .modelwrites import WrittenRows
from .stamps import CacheStamp, Write

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .base import Options

__all__ = ["ModelStore"]

logger = logging.getLogger("durabledict.models")

K = TypeVar("K")
V = TypeVar("V")


class ModelStore(DurableDict[K, V]):
    """A dict that can tell its stamp and load its rows; see `ModelDict`."""

    __slots__ = (
        "_blocks", "_cache_key", "_given_cache", "_key_column", "_left_out", "_place",
        "_return_instances", "_rows", "_stamps", "_value_column", "_verify", "key_col", "manager",
        "model", "using", "value_col",
    )  # fmt: skip

    _loads_at_once = False  # rule 3.6
    _poll_pauses = (0.01, 0.5)  # what `wait` asks is a server

    def __init__(
        self,
        manager: Any = None,
        cache: Any = None,
        key_col: str = "key",
        value_col: str = "value",
        return_instances: bool = False,
        autosync: bool | float | timedelta = True,
        encoding: Any = None,
        old_encoding: Any = None,
        *,
        cache_key: str | None = None,
        using: str | None = None,
        verify: float | timedelta | None = 60.0,
        **options: Unpack[Options],
    ) -> None:
        self.manager, self.model = _manager_and_model(manager)
        self.key_col, self.value_col = key_col, value_col
        key_field = self.model._meta.pk if key_col == "pk" else self.model._meta.get_field(key_col)
        value_field = self.model._meta.get_field(value_col)
        self._key_column = KeyColumn(key_field)
        self._value_column = ValueColumn(value_field, encoding is None)
        self._rows = WrittenRows(
            self.model, self.manager, self._scope(), self._key_column, self._value_column
        )
        self._left_out: set[str] = set()  # what was said of rows that stand under no key
        self._return_instances = bool(return_instances)
        self._given_cache = cache
        self._cache_key = cache_key
        self.using = using
        self._verify = verify
        self._stamps: dict[object, CacheStamp] = {}
        self._place: object = None
        self._blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        if not self.keyspace:
            self.keyspace = f"{self.model._meta.label_lower}.{key_col}.{value_col}"
        native = self._value_column.native
        if encoding is None:
            encoding = DefaultEncoding if native is None else native
        super().__init__(autosync, encoding, old_encoding, **options)
        modelsignals.connect(self)

    # -- the places ---------------------------------------------------------------------------

    def _scope(self) -> dict[str, Any]:
        """Return the fields, with their values, that all rows of this dict have in common."""
        return {}

    def _has(self, instance: Any) -> bool:
        """Whether a row of the table is one of this dict's, or was before it is saved."""
        return True

    @property
    def _alias(self) -> str:
        return self.using or router.db_for_write(self.model)

    @property
    def _connection(self) -> Any:
        """The connection of this thread, to the database that is written (rule 3.5)."""
        return connections[self._alias]

    @property
    def cache(self) -> Any:
        """The cache that holds the stamp, as it was given; Django's default one for None."""
        if self._given_cache is not None:
            return self._given_cache
        from django.core.cache import cache

        return cache

    @property
    def cache_key(self) -> str:
        """The key of the stamp in the cache; may be set, for all processes alike."""
        if self._cache_key is not None:
            return self._cache_key
        return self._default_key()

    @cache_key.setter
    def cache_key(self, key: str | None) -> None:
        self._cache_key = key
        self._stamps.clear()

    def _default_key(self) -> str:
        """Return a key for the database, table and columns, of characters that memcached takes.

        Not by alias, host or label, which may be spelt differently in two processes that share the
        table. Those that share a key without sharing a table reload once more than needed.

        """
        table = self.model._meta.db_table
        columns = self._key_column.field.column, self._value_column.field.column
        database = str(shared_name(self._connection))
        text = repr((database, table, columns, sorted(self._scope().items())))
        return f"durabledict:{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _stamp(self) -> CacheStamp:
        """Return the stamp for the database that the connection names now (rule 3.6)."""
        database = database_name(self._connection)
        stamp = self._stamps.get(database)
        if stamp is None:
            key = self._cache_key or self._default_key()
            stamp = CacheStamp(self.cache, key, verify=self._verify)
            self._stamps[database] = stamp
        return stamp

    @property
    def unavailable(self) -> tuple[type[BaseException], ...]:  # type: ignore[override]  # an attribute elsewhere
        """The exceptions that mean that the database, or the cache, cannot be asked."""
        return (OperationalError, InterfaceError, *self._stamp().unavailable)

    # -- stamps -------------------------------------------------------------------------------

    def last_updated(self) -> tuple[object, ...] | None:
        """Return the stamp, with the name of the database. One get of the cache."""
        return self._read_stamp(0)

    def _read_stamp(self, own: int) -> tuple[object, ...] | None:
        # A strict read waits for this, so the connection is looked up once.
        database = database_name(connections[self.using or router.db_for_write(self.model)])
        if database != self._place:
            self._refill_elsewhere()
        found = self._stamps.get(database)
        stamp = (self._stamp() if found is None else found).read(own)
        return None if stamp is None else (database, *stamp)

    def _committed(
        self, write: Write, written: Mapping[Any, Any], removed: Iterable[Any] = (), **more: Any
    ) -> Commit[K, V]:
        if write.before is None or write.after is None:
            return Commit(None, None, written, list(removed), **more)
        database = database_name(self._connection)
        before, after = (database, *write.before), (database, *write.after)
        return Commit(before, after, written, list(removed), **more)

    def _refill_elsewhere(self) -> None:
        """Note that the connection names another database than the copy is of (rule 3.6)."""
        place = database_name(self._connection)
        if place != self._place:
            moved, self._place = self._place is not None, place
            if moved:
                with self._copy_lock:
                    self._filled = False  # not to be served, not even in an outage
                self._doubt()

    # -- reading ------------------------------------------------------------------------------

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded. One SELECT, from the database that is written."""
        return self._decoded_rows(self._load()[0])

    def _load(self) -> tuple[list[tuple[Any, Any]], bool]:
        """Return the rows, and whether they are what every transaction sees (rule 3.4)."""
        connection = self._connection
        inside = is_in_transaction(connection)
        if not inside and may_be_behind(connection):
            with beside(connection) as another:
                return self._rows.all(another, False, self._return_instances)
        try:
            return self._rows.all(connection, inside, self._return_instances)
        except (OperationalError, InterfaceError):
            if inside:
                raise
            # The server was restarted, say: Django looks at a connection between requests only.
            connection.close_if_unusable_or_obsolete()
            if connection.connection is not None:
                raise
            return self._rows.all(connection, inside, self._return_instances)

    def _decoded_rows(self, rows: list[tuple[Any, Any]]) -> dict[Any, Any]:
        quick = self._value_column.is_text and self._value_column.decodable_quickly(self.encoding)
        if quick and not self._return_instances:
            entries = self._rows.pickles(rows, self._key_column.to_key, decode_all)
            if entries is not None and len(entries) == len(rows):
                return entries
        keyed, left_out = self._rows.keyed(rows, self._return_instances)
        self._log_left_out(left_out)
        entries = self._decoded(keyed)
        if len(entries) < len(keyed):
            for key in repeated(keyed):
                entries[key] = Undecodable(
                    DecodingError(f"the value of key {key!r} cannot be told: several rows have it")
                )
        return entries

    def _decoded(self, keyed: list[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return the entries of what stands under each key: a value's payload, or an instance."""
        if self._return_instances:
            entries = dict(keyed)
        else:
            to_payload = self._value_column.to_payload
            entries = self._decode_all(
                [
                    (key, to_payload(found))
                    for key, found in keyed
                    if not isinstance(found, Unreadable)
                ]
            )
        for key, found in keyed:
            if isinstance(found, Unreadable):
                entries[key] = _undecodable(key, found)
        return entries

    def _log_left_out(self, texts: list[str]) -> None:
        """Tell once of each row that stands under no key."""
        told, self._left_out = self._left_out, set(texts)
        for text in sorted(self._left_out - told):
            logger.warning("a row is left out of the local copy: %s", text)

    def _encodings(self) -> tuple[Any, Any]:
        column = self._value_column
        return column.encoding(self.encoding), column.encoding(self.old_encoding)

    def _canonical(self, key: Any) -> Any:
        return self._key_column.canonical(key)

    def _column_key(self, key: K, *, new: bool = True) -> Any:
        return self._key_column.to_column(key, self._connection, new=new)

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        row = self._rows.fetch(self._connection, self._column_key(key))
        if row is None:
            return MISSING, MISSING
        payload, proof = row
        if isinstance(payload, Unreadable):
            return _undecodable(key, payload), proof
        return self._decode(self._value_column.to_payload(payload), key), proof

    def _is_of_cache(self, error: Exception) -> bool:
        database = (OperationalError, InterfaceError)
        return isinstance(error, self._stamp().unavailable) and not isinstance(error, database)

    def _refuse_event_loop(self) -> None:
        if runs_event_loop():
            raise SynchronousOnlyOperation(
                f"a {self._native_class.__name__} asks its cache and database, which a coroutine "
                "cannot do: use autosync=False, with `await sync_to_async(d.sync)()` or watch(), "
                "and write by sync_to_async"
            )

    def _sync_watched(self, woken: bool) -> bool:
        connection = self._connection
        connection.close_if_unusable_or_obsolete()
        try:
            return super()._sync_watched(woken)
        finally:
            connection.close_if_unusable_or_obsolete()

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        """Return a lock in the cache that holds the stamp, where processes share that."""
        stamp = self._stamp()
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        found = stamp.cache.lease(f"{stamp.key}:{digest}", seconds)
        return super()._lease(name, seconds) if found is None else found

    def _after_fork(self) -> None:
        super()._after_fork()
        leave_to_parent(self._alias)
        # The transaction of a thread that is no more is the parent's to end.
        with self._copy_lock:
            self._blocks = weakref.WeakSet()
            self._transactions = 0
            self._settle()


def _manager_and_model(manager: Any) -> tuple[Any, Any]:
    """Return the manager and its model, for a manager or a model.

    :raises TypeError: neither; a model that inherits the table of another

    """
    if isinstance(manager, type) and hasattr(manager, "_default_manager"):
        manager = manager._default_manager
    model = getattr(manager, "model", None)
    if model is None:
        raise TypeError(f"manager={manager!r}: write ModelDict(Setting.objects) or (Setting)")
    parents = model._meta.concrete_model._meta.parents
    if parents:
        # No statement of SQL writes a row of two tables if it is as it was read.
        (parent, *_) = parents
        raise TypeError(
            f"the rows of {model.__name__} are in two tables: give the manager of "
            f"{parent.__name__}, or a model whose parent is abstract"
        )
    return manager, model


def _undecodable(key: Any, found: Unreadable) -> Undecodable:
    error = DecodingError(f"the value of key {key!r} cannot be read: {found!r}")
    error.__cause__ = found.error
    return Undecodable(error)
