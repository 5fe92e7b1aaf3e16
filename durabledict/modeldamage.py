"""Rows with what their columns cannot give: each harms itself alone.

docs/internals.rst, rule 6.3. A query of Django's gives all of its rows or none: JSON that is deeper
than the stack, a number of 5,000 digits, or, in SQLite, anything in any column, is an error of the
whole. So after such an error the same rows are asked for as they stand there, and given their types
one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError
from django.db.models import F, Field, Func

from .coder import is_deep

__all__ = [
    "Unreadable",
    "as_it_stands",
    "is_of_value",
    "reader",
    "require_harm",
    "require_text",
    "text_of_any_bytes",
]


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
    """Whether a query failed at what a row holds, and not at the database or the query."""
    if isinstance(error, RecursionError) and is_deep():
        return False  # a read that is made from less deep may do
    if isinstance(error, OperationalError):
        return "Could not decode to UTF-8" in str(error)  # SQLite's, whatever it is an error of
    return not isinstance(error, (DatabaseError, InterfaceError))


def require_harm(error: Exception, rows: Iterable[tuple[Any, Any]]) -> None:
    """Raise the error of a query if none of its rows, read once more, has an `Unreadable`.

    Then it is none of theirs: a signal that ends a task which takes too long raises in the middle
    of a query, say.

    """
    if isinstance(error, OperationalError):
        return  # of a text, as `is_of_value` has seen, in whatever column
    if not any(isinstance(each, Unreadable) for row in rows for each in row):
        raise error


def require_text(stored: Any) -> None:
    """Raise a ValueError for what `text_of_any_bytes` gives of bytes that are no text."""
    if isinstance(stored, str):
        stored.encode("utf-8")


class _AsItStands(Func):
    template = "%(expressions)s"
    arity = 1

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # A result that is no column has no type, for which sqlite3 would have a reading.
        return self.as_sql(compiler, connection, template="+%(expressions)s", **context)


def as_it_stands(name: str) -> Any:
    """Return the expression that gives what stands in a column, without its field's reading."""
    return _AsItStands(F(name), output_field=Field())


def reader(field: Any, connection: Any) -> Callable[[Any], Any]:
    """Return what makes of that what the field gives, or an `Unreadable`."""
    column = field.get_col(field.model._meta.db_table)
    steps = [*connection.ops.get_db_converters(column), *column.get_db_converters(connection)]

    def read(stored: Any) -> Any:
        try:
            require_text(stored)
            for step in steps:
                stored = step(stored, column, connection)
        except Exception as error:
            if not is_of_value(error):
                raise
            return Unreadable(error)
        return stored

    return read


@contextmanager
def text_of_any_bytes(connection: Any) -> Iterator[None]:
    """Have the module sqlite3 give text that is no UTF-8, which it refuses to."""
    if connection.vendor != "sqlite":
        yield
        return
    connection.ensure_connection()
    driver = connection.connection
    before = driver.text_factory
    driver.text_factory = _text_of_any_bytes
    try:
        yield
    finally:
        driver.text_factory = before


def _text_of_any_bytes(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
