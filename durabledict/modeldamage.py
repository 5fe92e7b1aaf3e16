"""Rows with what their columns cannot give: each harms itself alone.

docs/internals.rst, rule 6.3. A query of Django's gives all of its rows or none: JSON that is deeper
than the stack, a number of 5,000 digits, a date that is none of Python's, or, in SQLite, anything
in any column, is an error of the whole. So after such an error the same rows are asked for once
more, and read cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DatabaseError, DataError, InterfaceError, OperationalError
from django.db.models import Model
from django.db.models.expressions import Col

from .coder import is_deep
from .interruptions import raise_interruption

__all__ = ["Unreadable", "careful", "harm_of", "is_of_value", "require_harm"]


class Unreadable:
    """In place of what stands in a column and is no value of it.

    :param error: what was raised when it was read

    """

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        # Without the traceback, whose frames hold the caller's local variables.
        self.error = error.with_traceback(None)
        error.__context__ = error.__cause__ = None

    def __repr__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


def is_of_value(error: Exception) -> bool:
    """Whether a query failed at what a row holds, and not at the database or the query.

    What a signal's handler raised is raised.

    """
    raise_interruption(error)
    if isinstance(error, RecursionError) and is_deep():
        return False  # a read that is made from less deep may do
    if isinstance(error, OperationalError):
        return "Could not decode to UTF-8" in str(error)  # SQLite's, whatever it is an error of
    if isinstance(error, DataError):
        # PostgreSQL's own have a code; one without is its driver's, at what has come.
        return getattr(error.__cause__, "sqlstate", "") is None
    return not isinstance(error, (DatabaseError, InterfaceError))


def require_harm(error: Exception, rows: Iterable[tuple[Any, ...]]) -> None:
    """Raise the error of a query if none of its rows, read once more, has an `Unreadable`.

    Then it is none of theirs: a signal that ends a task which takes too long raises in the middle
    of a query, say.

    """
    if not any(isinstance(each, Unreadable) for row in rows for each in row):
        raise error


def harm_of(instance: Any) -> Unreadable | None:
    """Return one of the columns of an instance that cannot be read, or None.

    Objects that came with it, and cannot be read, are left to be fetched when they are used: they
    are rows of their own.

    """
    return _harm_of(instance, set())


def _harm_of(instance: Any, seen: set[int]) -> Unreadable | None:
    seen.add(id(instance))
    joined = instance._state.fields_cache
    for name, other in list(joined.items()):
        if isinstance(other, Model) and id(other) not in seen and _harm_of(other, seen):
            del joined[name]
    return next((value for value in vars(instance).values() if isinstance(value, Unreadable)), None)


def careful(rows: Any) -> Any:
    """Return a query for the same rows, with an `Unreadable` in each cell that cannot be read."""
    rows = rows.all()
    rows.query.__class__ = _mixed(_CarefulQuery, type(rows.query))
    return rows


_mixtures: dict[tuple[type, type], Any] = {}


def _mixed(mixin: type, kind: type) -> Any:
    """Return the class that does as `mixin` says, and else as `kind`."""
    if (mixin, kind) not in _mixtures:
        _mixtures[mixin, kind] = type(mixin.__name__, (mixin, kind), {})
    return _mixtures[mixin, kind]


class _CarefulQuery:
    def get_compiler(self, *arguments: Any, **named: Any) -> Any:
        compiler = super().get_compiler(*arguments, **named)  # type: ignore[misc]  # of Django's class
        compiler.__class__ = _mixed(_CarefulCompiler, type(compiler))
        return compiler


class _CarefulCompiler:
    connection: Any

    def get_select(self, *arguments: Any, **named: Any) -> Any:
        select, *more = super().get_select(*arguments, **named)  # type: ignore[misc]  # of Django's class
        if self.connection.vendor == "sqlite":
            # A result that is no column has no type, for which sqlite3 would have a reading.
            select = [
                (each, (f"+{sql}" if isinstance(each, Col) else sql, parameters), alias)
                for each, (sql, parameters), alias in select
            ]
        return select, *more

    def execute_sql(self, *arguments: Any, **named: Any) -> Any:
        with _read_by_cell(self.connection):
            return super().execute_sql(*arguments, **named)  # type: ignore[misc]  # of Django's class

    def get_converters(self, expressions: Any) -> dict[int, tuple[list[Any], Any]]:
        found = super().get_converters(expressions)  # type: ignore[misc]  # of Django's class
        return {place: ([_guarded(steps)], each) for place, (steps, each) in found.items()}


def _guarded(steps: list[Callable[..., Any]]) -> Callable[..., Any]:
    """Return one converter in place of several; what one of them refuses is an `Unreadable`."""

    def convert(stored: Any, expression: Any, connection: Any) -> Any:
        if isinstance(stored, Unreadable):
            return stored
        try:
            for step in steps:
                stored = step(stored, expression, connection)
        except Exception as error:
            if not is_of_value(error):
                raise
            return Unreadable(error)
        return stored

    return convert


@contextmanager
def _read_by_cell(connection: Any) -> Iterator[None]:
    """Have the driver give an `Unreadable` where it would fail at all rows."""
    connection.ensure_connection()
    driver = connection.connection
    if connection.vendor == "sqlite":
        name, new = "text_factory", _text
    elif connection.vendor == "postgresql" and hasattr(driver, "adapters"):  # psycopg 3
        name, new = "cursor_factory", _mixed(_CellByCell, driver.cursor_factory)
    else:
        yield
        return
    before = getattr(driver, name)
    setattr(driver, name, new)
    try:
        yield
    finally:
        setattr(driver, name, before)


def _text(raw: bytes) -> Any:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unreadable(error)


class _CellByCell:
    """A cursor of psycopg whose rows are loaded cell by cell."""

    pgresult: Any
    _given = 0

    def fetchmany(self, size: int = 0) -> list[tuple[Any, ...]]:
        """Return the next rows."""
        from psycopg.adapt import Transformer

        result, loading = self.pgresult, Transformer(self)  # type: ignore[arg-type]  # of a mixin
        columns = [
            (place, loading.get_loader(result.ftype(place), result.fformat(place)).load)
            for place in range(result.nfields)
        ]
        first, self._given = self._given, min(self._given + size, result.ntuples)
        return [
            tuple(_loaded(load, result.get_value(number, place)) for place, load in columns)
            for number in range(first, self._given)
        ]


def _loaded(load: Callable[[bytes], Any], stored: bytes | None) -> Any:
    if stored is None:
        return None
    try:
        return load(stored)
    except Exception as error:
        raise_interruption(error)
        return Unreadable(error)
