"""The rows of a `ModelDict`: loaded all together, or found by their key."""

from __future__ import annotations

import binascii
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import BooleanField, UniqueConstraint, prefetch_related_objects
from django.db.models.expressions import RawSQL

from .changes import PLAIN, differs
from .coder import FIRST_OF_PICKLE
from .encoding import PickleEncoding
from .errors import MISSING, DecodingError
from .interruptions import raise_interruption
from .modelcolumns import KeyColumn, ValueColumn
from .modelconnections import is_in_transaction
from .modeldamage import Unreadable, careful, harm_of, is_of_value, require_harm

__all__ = ["ModelRows", "locked", "repeated"]

#: Whether a load may differ from what every other transaction sees: it is not READ COMMITTED, or
#: something was written, be it by raw SQL.
DIFFERS = (
    "(current_setting('transaction_isolation') <> 'read committed'"
    " OR txid_current_if_assigned() IS NOT NULL)"
)


class ModelRows:
    """The rows of one dict.

    :param model: the model
    :param manager: its manager, whose queries say which rows there are
    :param scope: the fields, with their values, that all rows have in common
    :param key_column: the column of the keys
    :param value_column: the column of the values

    """

    def __init__(
        self,
        model: Any,
        manager: Any,
        scope: Mapping[str, Any],
        key_column: KeyColumn,
        value_column: ValueColumn,
    ) -> None:
        self._model = model
        self._manager = manager
        self._scope = dict(scope)
        self._key_column = key_column
        self._value_column = value_column
        self._key = key_column.field.name
        self._value = value_column.field.name
        # What `save(update_fields=...)` and `update` would leave as it was.
        self._timestamps = [
            field.name for field in model._meta.concrete_fields if getattr(field, "auto_now", False)
        ]
        self.is_unique = _is_unique(model, {self._key, *self._scope})

    def _rows(self, connection: Any) -> Any:
        rows = self._manager.all().using(connection.alias)
        return rows.filter(**self._scope) if self._scope else rows

    def _same(self, connection: Any, key: Any) -> Any:
        """Return the rows of a key, as the column has it."""
        return self._rows(connection).filter(**{self._key: key})

    # -- reading ------------------------------------------------------------------------------

    def all(
        self, connection: Any, inside: bool, instances: bool
    ) -> tuple[list[tuple[Any, Any]], bool]:
        """Return (key, value) of all rows, or (instance, None); and whether all see the same.

        One SELECT, and another one where a row holds what its column cannot give: there its value,
        or the None, is an `Unreadable`.

        :param inside: whether the connection is in a transaction
        :param instances: return instances

        """
        try:
            return self._all(connection, inside, instances)
        except Exception as error:
            if not is_of_value(error):
                raise
            rows = self._rows(connection)
            if instances:
                found = self._harmed_instances(rows)
            else:
                found = list(careful(rows.values_list(self._key, self._value)))
            require_harm(error, found)
        # In a transaction: for it alone, which is right whatever it has done.
        return found, not inside

    def _all(
        self, connection: Any, inside: bool, instances: bool
    ) -> tuple[list[tuple[Any, Any]], bool]:
        rows = self._rows(connection)
        names = [self._key, self._value]
        tells = inside and connection.vendor == "postgresql"
        if tells:
            # In the same statement, so that nothing comes in between. An empty table says nothing.
            told = RawSQL(DIFFERS, [], output_field=BooleanField())
            rows = rows.annotate(durabledict_differs=told)
            names.append("durabledict_differs")
        if instances:
            instances_found = list(rows)
            differs = not (instances_found and tells) or instances_found[0].durabledict_differs
            for instance in instances_found if tells else ():
                del instance.durabledict_differs  # they are the user's
            return [(instance, None) for instance in instances_found], not (inside and differs)
        found: list[Any] = list(rows.values_list(*names))
        if not tells:
            return found, not inside
        return [row[:2] for row in found], bool(found) and not found[0][2]

    def _harmed_instances(self, rows: Any) -> list[tuple[Any, Any]]:
        """Return (instance, None), or (instance, `Unreadable`), whatever the rows hold."""
        lookups = rows._prefetch_related_lookups
        found = [(each, harm_of(each)) for each in careful(rows.prefetch_related(None))]
        try:
            prefetch_related_objects([each for each, harm in found if harm is None], *lookups)
        except Exception as error:
            if not is_of_value(error):
                raise
            # They are left to be fetched when they are used, as what is joined: see `harm_of`.
        return found

    def keyed(
        self, rows: list[tuple[Any, Any]], instances: bool
    ) -> tuple[list[tuple[Any, Any]], list[str]]:
        """Return rows by their keys, or instances, and what is to be said of those without one."""
        keyed: list[tuple[Any, Any]] = []
        left_out: list[str] = []
        for row, value in rows:
            stored = getattr(row, self._key_column.field.attname) if instances else row
            found = row if instances and value is None else value
            try:
                keyed.append((self._key_column.to_key(stored), found))
            except ValueError as error:
                left_out.append(str(error))
        return keyed, left_out

    def changed(
        self, rows: list[tuple[Any, Any]], get: Callable[..., Any], held: int
    ) -> tuple[dict[Any, Any], set[Any] | None] | None:
        """Return the entries that differ from those held, where all rows hold pickles, or None.

        And the keys of all rows, unless they are those held.

        :param get: gives what is held, as `dict.get` does
        :param held: how many entries are held

        """
        if not self.is_unique:
            return None
        loads, absent, first = pickle.loads, MISSING, FIRST_OF_PICKLE
        other: Any = object()  # no pickle: in place of its value, so that it is among what differs
        try:
            if self._value_column.is_text:
                unpack = binascii.a2b_base64
                rows = [(key, unpack(value)) for key, value in rows]
            # The first three conditions say what `differs` would, for most values without a call.
            written = {
                key: new
                for key, value in rows
                if (
                    (kind := type(new := loads(value) if value[0] == first else other))
                    is not type(old := get(key, absent))
                    or kind not in PLAIN
                    or new != old
                )
                and differs(old, new)
            }
        except Exception as error:
            raise_interruption(error)
            return None  # one cannot be decoded: which, the careful way finds out
        for key, new in written.items():
            # A key that is written as something else is not held under that name.
            if new is other or (type(key) is str and key[:1] == "~"):
                return None
            if not self._key_column.is_key(key):
                return None
        added = sum(get(key, MISSING) is MISSING for key in written)
        return written, None if len(rows) - added == held else {key for key, _ in rows}

    def pickles(
        self,
        rows: list[tuple[Any, Any]],
        to_key: Callable[[Any], Any],
        decode_all: Callable[..., dict[Any, Any] | None],
    ) -> dict[Any, Any] | None:
        """Return the entries of rows that all hold a pickle in base64; None: they do not."""
        unpack = binascii.a2b_base64
        try:
            pairs = [(to_key(key), unpack(value)) for key, value in rows]
            return decode_all(PickleEncoding, pairs)
        except (ValueError, TypeError, IndexError) as error:
            raise_interruption(error)
            return None

    def fetch(self, connection: Any, key: Any) -> tuple[Any, Any] | None:
        """Return the payload of a key, and the proof of what was read. One SELECT.

        A payload that cannot be read is an `Unreadable`.

        """
        rows = self._same(connection, key)
        proven = rows.annotate(durabledict_proof=self._value_column.proof(self._value))
        cells = proven.values_list(self._key, self._value, "durabledict_proof")
        try:
            found = list(cells)
        except Exception as error:
            if not is_of_value(error):
                raise
            found = list(careful(cells))
            require_harm(error, found)
        for stored, value, seen in found:
            self._require_same(stored, key)
            return value, seen
        return None

    def find(self, connection: Any, key: Any) -> Any:
        """Return the instance of a key, or None; in a transaction it stays as it is meanwhile."""
        rows = self._same(connection, key)
        if is_in_transaction(connection) and connection.features.has_select_for_update:
            rows = locked(rows, connection)
        try:
            found = list(rows[:1])
        except Exception as error:
            if not is_of_value(error):
                raise
            found = self._find_harmed(rows[:1], error)
        for instance in found:
            self._require_same(getattr(instance, self._key), key)
            return instance
        return None

    def _find_harmed(self, rows: Any, error: Exception) -> list[Any]:
        """Return instances with what can be read; all else but the primary key is deferred."""
        found = list(careful(rows.prefetch_related(None)))
        require_harm(error, [(harm_of(each),) for each in found])
        for instance in found:
            held = vars(instance)
            for name in [name for name, value in held.items() if isinstance(value, Unreadable)]:
                if name != self._model._meta.pk.attname:
                    del held[name]
        return found

    def find_whole(self, connection: Any, key: Any) -> Any:
        """Return the instance of a key, or None, as `find`; refuse one without a primary key."""
        instance = self.find(connection, key)
        if instance is not None and self.is_without_primary_key(instance):
            raise DecodingError(f"the row of key {key!r} cannot be read: {instance.pk!r}")
        return instance

    def is_without_primary_key(self, instance: Any) -> bool:
        """Whether what identifies an instance to Django cannot be read: only its key finds it."""
        return isinstance(instance.pk, Unreadable)

    def _require_same(self, found: Any, key: Any) -> None:
        if found != key:
            raise ValueError(
                f"key {key!r} is {found!r} to the collation of the column {self._key_column.field}:"
                " nothing was written; give the column one that tells them apart"
            )


def repeated(keyed: list[tuple[Any, Any]]) -> set[Any]:
    """Return the keys that several rows have."""
    seen: set[Any] = set()
    twice: set[Any] = set()
    for key, _ in keyed:
        (twice if key in seen else seen).add(key)
    return twice


def locked(rows: Any, connection: Any) -> Any:
    """Lock the rows themselves, and not what the manager joins to them."""
    if connection.features.has_select_for_update_of:
        return rows.select_for_update(of=("self",))
    return rows.select_for_update()


def _is_unique(model: Any, names: set[str]) -> bool:
    """Whether the model says that two rows cannot agree in these fields."""
    sets = [{field.name} for field in model._meta.fields if field.unique]
    sets += [set(names) for names in model._meta.unique_together]
    sets += [
        set(constraint.fields)
        for constraint in model._meta.constraints
        if isinstance(constraint, UniqueConstraint)
        and constraint.fields
        and constraint.condition is None
        and constraint.deferrable is None  # which holds at the commit only
    ]
    return any(one <= names for one in sets)
