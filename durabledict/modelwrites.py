"""How rows of a `ModelDict` are written: one by one, together, or if they are as they were read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    transaction,
)
from django.db.models.expressions import Expression

from .errors import MISSING
from .modelconnections import is_in_transaction
from .modeldamage import careful, is_of_value, require_harm
from .modelrows import ModelRows, locked

__all__ = ["WrittenRows", "begin_for_savepoints", "nothing_was_done"]

#: How often a write looks again because others add and remove its row in between.
ATTEMPTS = 5

#: Keys of one DELETE: SQLite takes a limited number of parameters.
KEYS_AT_ONCE = 500


class WrittenRows(ModelRows):
    """The rows of one dict, and how they are written."""

    # -- writing one --------------------------------------------------------------------------

    def save(self, connection: Any, key: Any, payload: Any) -> Any:
        """Write a row through `Model.save`, and return its instance. Two statements.

        None: its primary key cannot be read, so that it was written by its key, without signals.

        """
        for attempt in range(1, ATTEMPTS + 1):
            instance = self.find(connection, key)
            try:
                if instance is None:
                    return self._insert(connection, key, payload)
                if self.is_without_primary_key(instance):
                    if self._same(connection, key).update(**self._changed(payload)):
                        return None
                    continue
                setattr(instance, self._value, self._value_column.to_column(payload))
                self._update(connection, instance)
                return self._settled(instance, payload)
            except IntegrityError:
                # Somebody else has added it: as a rule it is found the next time.
                if instance is not None or attempt == ATTEMPTS:
                    raise
            except DatabaseError as error:
                if not _found_no_row(error, self._model) or attempt == ATTEMPTS:
                    raise
        raise DatabaseError(f"the row of key {key!r} comes and goes: nothing was written")

    def _insert(self, connection: Any, key: Any, payload: Any) -> Any:
        instance = self._instance(key, payload)
        if is_in_transaction(connection):
            # In a savepoint: PostgreSQL would refuse all further statements after a collision.
            with transaction.atomic(using=connection.alias):
                instance.save(force_insert=True, using=connection.alias)
        else:
            instance.save(force_insert=True, using=connection.alias)
        return self._settled(instance, payload)

    def _update(self, connection: Any, instance: Any) -> None:
        instance.save(using=connection.alias, update_fields=[self._value, *self._timestamps])

    def _instance(self, key: Any, payload: Any) -> Any:
        value = self._value_column.to_column(payload)
        return self._model(**self._scope, **{self._key: key, self._value: value})

    def _settled(self, instance: Any, payload: Any) -> Any:
        """Give an instance the value that reading it back gives, where an expression was saved."""
        if isinstance(getattr(instance, self._value), Expression):
            setattr(instance, self._value, payload)
        return instance

    def get_or_create(self, connection: Any, key: Any, payload: Any) -> tuple[Any, bool]:
        """Return the instance of a key, made if there is none, and whether it was made."""
        for attempt in range(1, ATTEMPTS + 1):
            instance = self.find_whole(connection, key)
            if instance is not None:
                return instance, False
            try:
                return self._insert(connection, key, payload), True
            except IntegrityError:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def delete(self, connection: Any, key: Any) -> bool:
        """Remove a row through `Model.delete`; return whether it was this that removed it."""
        instance = self.find(connection, key)
        if instance is None:
            return False
        if self.is_without_primary_key(instance):
            return bool(self._delete_rows(connection, self._same(connection, key)))
        label = self._model._meta.label
        _, numbers = instance.delete(using=connection.alias)
        return bool(numbers.get(label) or numbers.get(self._model._meta.concrete_model._meta.label))

    def compare_and_set(self, connection: Any, key: Any, payload: Any, proof: Any) -> Any:
        """Write or remove a row that is as `proof` was read; one statement, without signals.

        A row that was not there is added through `Model.save`.

        :param payload: MISSING: remove it
        :param proof: MISSING: there was no row
        :return: whether it was done, or the instance that was added

        """
        if proof is MISSING:
            if payload is MISSING:
                return True
            try:
                return self._insert(connection, key, payload)
            except IntegrityError:
                if self.find(connection, key) is None:
                    raise  # it is not the key that collided
                return False
        guarded = (
            self._same(connection, key)
            .annotate(durabledict_proof=self._value_column.proof(self._value))
            .filter(durabledict_proof=proof)
        )
        if payload is MISSING:
            return bool(self._delete_rows(connection, guarded))
        return bool(guarded.update(**self._changed(payload)))

    def _changed(self, payload: Any) -> dict[str, Any]:
        """Return what an UPDATE sets where a row gets a payload."""
        new = {self._value: self._value_column.to_column(payload)}
        for name in self._timestamps:
            new[name] = self._model._meta.get_field(name).pre_save(self._model(), add=False)
        return new

    @staticmethod
    def _delete_rows(connection: Any, rows: Any) -> int:
        """Remove rows in one statement; `delete` would fetch them first, and lose what guards."""
        return int(rows._raw_delete(connection.alias))

    # -- writing many -------------------------------------------------------------------------

    def save_many(self, connection: Any, payloads: Mapping[Any, Any]) -> None:
        """Write rows in one transaction."""
        with transaction.atomic(using=connection.alias):
            self._save_many(connection, payloads)

    def _save_many(self, connection: Any, payloads: Mapping[Any, Any]) -> None:
        if not payloads:
            return
        if not self._takes_bulk(connection):
            for key, payload in payloads.items():
                self.save(connection, key, payload)
            return
        targets: dict[str, Any] = {}
        if connection.features.supports_update_conflicts_with_target:
            targets = {"unique_fields": [*self._scope, self._key]}
        self._model._base_manager.using(connection.alias).bulk_create(
            [self._instance(key, payload) for key, payload in payloads.items()],
            update_conflicts=True,
            update_fields=[self._value, *self._timestamps],
            **targets,
        )

    def _takes_bulk(self, connection: Any) -> bool:
        """Whether one INSERT for all does what a `save` of each would, collisions included."""
        return (
            self.is_unique
            and not self._key_column.may_join
            and connection.vendor != "mysql"  # whose collations join keys unless told otherwise
            and connection.features.supports_update_conflicts
        )

    def delete_many(self, connection: Any, keys: Iterable[Any]) -> None:
        """Remove rows in one transaction."""
        with transaction.atomic(using=connection.alias):
            self._delete_many(connection, keys)

    def _delete_many(self, connection: Any, keys: Iterable[Any]) -> None:
        left = iter(keys)
        while some := list(islice(left, KEYS_AT_ONCE)):
            rows = self._rows(connection).filter(**{f"{self._key}__in": some})
            self._delete_rows(connection, rows)

    def replace_all(
        self, connection: Any, payloads: Mapping[Any, Any]
    ) -> tuple[list[Any], list[Any]]:
        """Make the rows exactly these, in one transaction; return the keys written and removed."""
        with transaction.atomic(using=connection.alias):
            if connection.vendor == "sqlite" and connection.in_atomic_block:
                # A transaction that begins with a SELECT cannot write once another one has.
                self._take_write_lock(connection)
            rows = self._rows(connection)
            if connection.features.has_select_for_update:
                rows = locked(rows, connection)
            to_payload = self._value_column.to_payload
            stored = {key: to_payload(value) for key, value in self._pairs(rows)}
            written = {
                key: payload
                for key, payload in payloads.items()
                if key not in stored or not _is_same(stored[key], payload)
            }
            removed = [key for key in stored if key not in payloads]
            # Additions first: an entry that moves to another key is never missing under both.
            self._save_many(connection, written)
            self._delete_many(connection, removed)
        return list(written), removed

    def _pairs(self, rows: Any) -> list[tuple[Any, Any]]:
        """Return what stands in both columns of the rows that have a key."""
        cells = rows.values_list(self._key, self._value)
        try:
            pairs = list(cells)
        except Exception as error:
            if not is_of_value(error):
                raise
            pairs = list(careful(cells))
            require_harm(error, pairs)
        return [pair for pair in pairs if self._key_column.is_key(pair[0])]

    def _take_write_lock(self, connection: Any) -> None:
        table = connection.ops.quote_name(self._model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table} WHERE 1 = 0")


def begin_for_savepoints(connection: Any) -> None:
    """Begin the transaction that SQLite has not begun under `set_autocommit(False)`.

    It would begin with the first INSERT, UPDATE or DELETE; the release of a savepoint that comes
    before these commits.

    """
    if connection.vendor == "sqlite" and not connection.in_atomic_block:
        connection.ensure_connection()
        if not connection.connection.in_transaction:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN")


def _is_same(stored: Any, payload: Any) -> bool:
    return type(stored) is type(payload) and bool(stored == payload)


def _found_no_row(error: DatabaseError, model: Any) -> bool:
    """Whether `save(update_fields=...)` found that somebody else has removed the row."""
    return type(error) in (DatabaseError, getattr(model, "NotUpdated", DatabaseError))


def nothing_was_done(error: Exception, connection: Any) -> bool:
    """Whether an error says that the database refused a statement, and did nothing."""
    if isinstance(error, OperationalError):
        return connection.vendor == "sqlite" and "locked" in str(error)
    refusals = (IntegrityError, DataError, ProgrammingError, NotSupportedError, InternalError)
    return isinstance(error, (*refusals, TypeError, ValueError))
