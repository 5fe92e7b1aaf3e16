"""`ModelDict`: any Django model as a dict, its stamp in a fast cache.

docs/internals.rst, section 3, has the protocol; the numbers in comments are its rules. The parts:
`stamps` is the number in the cache; `modelcolumns` what the columns take; `modelconnections` what
there is to know of Django's connections; `modelrows` and `modelwrites` the SQL; `modelstore` where
the dict lives; `modeltransactions` what is known of open transactions, and `modelreads` how reads
go in them; `modelsignals` hears of other writes. Here is how the dict writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from .extras import raise_if_missing

try:
    import django  # noqa: F401  # the other imports name only parts of it when it is missing
except ModuleNotFoundError as error:
    raise_if_missing(error, "ModelDict needs", "Django", extra="django")
    raise

from . import modelsignals
from .base import Commit, Undecodable
from .errors import MISSING, Missing
from .modelconnections import is_in_transaction
from .modelreads import ModelReads
from .modeltransactions import Block, busy
from .modelwrites import begin_for_savepoints, nothing_was_done
from .stamps import CacheStamp, Write

__all__ = ["ModelDict"]

K = TypeVar("K")
V = TypeVar("V")


class ModelDict(ModelReads[K, V]):
    """A durable dict over a Django model: a row an entry, a column of keys, a column of values.

    >>> from durabledict import ModelDict
    >>> settings = ModelDict(Setting.objects, autosync=False)  # doctest: +SKIP

    A strict read that finds nothing new costs one get of the cache and no SQL, a sync after a
    change one SELECT of all rows, a write two SQL statements and two requests to the cache,
    whatever the number of rows. It sees every write whose touch has reached the cache: those of
    dicts, and those that Django's signals tell of (`Model.save`, `delete`, the admin, fixtures) in
    a process where a dict of that model exists. After `QuerySet.update`, `bulk_create` and raw SQL
    call `touch_last_updated`.

    In a transaction a thread reads what it wrote, and the others do not until it is committed.
    Nothing touches the database before the first read or write, so that a dict may be made where a
    module is imported.

    :param manager: a manager of the model, or the model; what its queries leave out, the dict
        does not have
    :param cache: where the stamp is kept: None for Django's default cache, an alias or a cache of
        Django's, a client of pymemcache or redis-py, or a `durabledict.stamps.MemoryCache`
    :param key_col: the field of the keys: text (any key that the other dicts take), integer or UUID
        (those alone); "pk" for the primary key. It has to be unique
    :param value_col: the field of the values: text, a BinaryField, a JSONField (native JSON), or
        any other, which keeps its own values
    :param return_instances: values are instances of the model; may be set at run time
    :param autosync: see `DurableDict`
    :param encoding: see `DurableDict`; None: pickles, and native JSON in a JSONField
    :param old_encoding: see `DurableDict`
    :param cache_key: the stamp's key in the cache; None: one of its own for each database, table
        and pair of columns
    :param using: the alias of the database; None: the one that the router writes the model to.
        Rows are never read from a replica
    :param verify: seconds after which a comparison reloads whatever the stamp says; None: never
    :param options: ``on_outage``, ``max_stale``, ``allow_unsigned``: see `DurableDict`. Under
        ``on_outage="stale"`` the database is read itself while the cache cannot be asked
    :raises TypeError: no manager, or a column of keys that is none of these
    :raises django.core.exceptions.FieldDoesNotExist: no such column

    """

    __slots__ = ()

    @property
    def return_instances(self) -> bool:
        """Whether values are instances of the model."""
        return self._return_instances

    @return_instances.setter
    def return_instances(self, wanted: bool) -> None:
        self._return_instances = bool(wanted)
        block = Block.of(self._connection)
        view = None if block is None else block.view_of(self)
        if view is not None:
            view.spoil()
        self._doubt()

    def touch_last_updated(self) -> None:
        """Tell all readers of a write past the dict: `QuerySet.update`, `bulk_create`, raw SQL.

        One request to the cache; in a transaction it is sent after the commit, so this may stand
        beside the write.

        """
        self._refuse_event_loop()
        connection = self._connection
        if is_in_transaction(connection):
            stamp = self._stamp()
            Block.begin(connection).open(stamp)
            self._tell_others(connection, stamp, also_itself=True)
        else:
            self._stamp().touch()

    # -- writing ------------------------------------------------------------------------------

    def _write(self, action: Any, *arguments: Any, conditional: bool = False) -> Any:
        self._refuse_event_loop()
        return super()._write(action, *arguments, conditional=conditional)

    def _accept(self, commit: object) -> None:
        block = Block.of(self._connection)
        if block is None:
            super()._accept(commit)
            return
        view = block.view(self)
        if isinstance(commit, Commit) and not (commit.before or self._return_instances):
            view.apply(commit.written, commit.removed)
        else:
            view.wrote = True
            view.spoil()

    @contextmanager
    def _writing(self) -> Iterator[Write]:
        """Tell readers of a write; in a transaction, when it has ended (rules 3.1 and 3.3)."""
        connection, stamp = self._connection, self._stamp()
        if is_in_transaction(connection):
            block = Block.begin(connection)
            block.open(stamp)
            view = block.view(self)
            view.wrote = True
            begin_for_savepoints(connection)
            with busy(stamp) as heard:
                try:
                    yield Write()
                except BaseException:
                    view.spoil()
                    raise
                finally:
                    self._tell_others(connection, stamp, heard[0] > 1)
            return
        opening = stamp.begin()
        write = Write()
        heard = [0]
        try:
            with busy(stamp) as heard:
                yield write
        finally:
            try:
                ended = stamp.end(opening)
            except stamp.unavailable as error:
                # The write is done, or known not to be: the caller is not to do it again. The
                # stamp has not counted it, and would say that the copy is as it should be.
                self._doubt()
                self._report_outage(error, noted=False)
            else:
                # A receiver of the signals of this write may have written other rows.
                if heard[0] <= 1:
                    write.before, write.after = ended.before, ended.after

    def _tell_others(self, connection: Any, stamp: CacheStamp, also_itself: bool) -> None:
        """Note in an open transaction that other dicts' rows were written, and perhaps more."""
        block = Block.of(connection)
        if block is None:
            return
        for other in modelsignals.living():
            if other is self and not also_itself:
                continue
            if other.model._meta.concrete_model is self.model._meta.concrete_model and (
                other._stamp().identity == stamp.identity
            ):
                other._note_foreign_write(block)

    def persist(self, key: K, value: V) -> Commit[K, V] | None:
        """Store one entry through `Model.save`: two SQL statements."""
        payload, stored = self._prepare(key, self._plain_value(value))
        column = self._column_key(key)
        with self._writing() as write:
            instance = self._rows.save(self._connection, column, payload)
        if instance is None or getattr(instance, self._key_column.field.attname) != column:
            return None  # a `save` of the user's, say, has stored it under another key
        return self._committed(write, {key: self._as_saved(key, instance, payload, stored)})

    def _as_saved(self, key: K, instance: Any, payload: Any, stored: Any) -> Any:
        """Return what reading a row back gives, which was written through `Model.save`."""
        if self._return_instances:
            return instance
        found = getattr(instance, self._value_column.field.attname)
        if self._value_column.gives_back_what_it_takes and self._value_column.is_as_put(
            found, payload
        ):
            return stored
        # A `save` of the user's, or a receiver of a signal, may have stored something else, or have
        # changed the instance afterwards.
        return self._read_back(key, stored)

    def _read_back(self, key: K, stored: Any) -> Any:
        """Return the value of a key that was written; `stored`: the row is gone again."""
        value, _ = self._fetch(key)
        return stored if value is MISSING else value

    def depersist(self, key: K) -> Commit[K, V]:
        """Remove one entry through `Model.delete`."""
        column = self._column_key(key, new=False)
        with self._writing() as write:
            removed = self._rows.delete(self._connection, column)
        return self._committed(write, {}, [key] if removed else [])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        """Store several entries in one transaction, by `bulk_create`; Django sends no signals."""
        columns, payloads, stored = self._prepared(entries)
        with self._writing() as write:
            self._rows.save_many(self._connection, dict(zip(columns, payloads, strict=True)))
        return self._committed(write, stored) if self._knows_what_is_stored() else None

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V] | None:
        """Remove several entries in one transaction; Django sends no signals."""
        gone = list(keys)
        columns = [self._column_key(key, new=False) for key in gone]
        with self._writing() as write:
            self._rows.delete_many(self._connection, columns)
        return self._committed(write, {}, gone)

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        columns, payloads, stored = self._prepared(entries)
        with self._writing() as write:
            changed, gone = self._rows.replace_all(
                self._connection, dict(zip(columns, payloads, strict=True))
            )
        if not self._knows_what_is_stored():
            return None
        keys = dict(zip(columns, stored, strict=True))
        to_key = self._key_column.to_key
        return self._committed(
            write, {keys[one]: stored[keys[one]] for one in changed}, map(to_key, gone)
        )

    def _knows_what_is_stored(self) -> bool:
        """Whether what was prepared is what reading back gives, so that no reload is needed."""
        return self._value_column.gives_back_what_it_takes and not self._return_instances

    def _prepared(self, entries: Mapping[K, V]) -> tuple[list[Any], list[Any], dict[K, Any]]:
        plain = {key: self._plain_value(value) for key, value in entries.items()}
        payloads, stored = self._prepare_all(plain)
        return [self._column_key(key) for key in payloads], list(payloads.values()), stored

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        column = self._column_key(key)
        payload, stored = MISSING, None
        if not isinstance(value, Missing):
            payload, stored = self._prepare(key, self._plain_value(value))
        with self._writing() as write:
            done = self._rows.compare_and_set(self._connection, column, payload, proof)
        if not done:
            return None
        if isinstance(value, Missing):
            return self._committed(write, {}, [key])
        if done is not True:
            return self._committed(write, {key: self._as_saved(key, done, payload, stored)})
        if self._return_instances:
            return Commit(None, None, {key: stored})  # reloaded as an instance
        if not self._value_column.gives_back_what_it_takes:
            stored = self._read_back(key, stored)
        return self._committed(write, {key: stored})

    def get_or_create(self, key: K, value: V) -> tuple[Any, bool]:
        """Return the row of a key, made with `value` if there is none, and whether it was made.

        One SELECT where it is there; else as a write, and the dict reloads.

        :raises DecodingError: it is there, and what is its primary key is none of Django's

        """
        key = self._canonical(key)
        payload, _ = self._prepare(key, self._plain_value(value))
        column = self._column_key(key)
        there = self._rows.find_whole(self._connection, column)
        if there is not None:
            return there, False
        made: list[tuple[Any, bool]] = []

        def create() -> None:
            with self._writing():
                made.append(self._rows.get_or_create(self._connection, column, payload))

        self._write(create)
        return made[0]

    def _prepare(self, key: Any, value: Any) -> tuple[Any, Any]:
        payload, stored = super()._prepare(key, value)
        self._value_column.require_room(key, payload)
        return payload, stored

    def _prepare_all(self, entries: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
        payloads, stored = super()._prepare_all(entries)
        for key, payload in payloads.items():
            self._value_column.require_room(key, payload)
        return payloads, stored

    def _plain_value(self, value: Any) -> Any:
        """Return the value of what may be an instance of the model, as `return_instances` gives."""
        if isinstance(value, self.model):
            decoded = self._decode(
                self._value_column.to_payload(getattr(value, self._value_column.field.attname))
            )
            if isinstance(decoded, Undecodable):
                raise decoded.error
            return decoded
        return value

    def _was_refused(self, error: Exception) -> bool:
        # An error of the cache's comes from before the SQL; later ones are caught.
        refused = nothing_was_done(error, self._connection)
        return refused or self._is_of_cache(error) or super()._was_refused(error)
