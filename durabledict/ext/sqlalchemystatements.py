"""INSERT, UPDATE and DELETE statements of the ORM: which objects caches have to forget.

What they write is not published: nobody knows which rows a statement changed, only which it was to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import UniqueConstraint, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session
from sqlalchemy.orm.exc import UnmappedColumnError

from ..stores.sqlalchemychanges import reader
from ..stores.sqlalchemymappers import copy_of, first_names, shape_of
from ..stores.sqlalchemyqueries import parts_of, query
from ..stores.sqlalchemyrows import reload, rows_of
from .sqlalchemyprogress import Progress

__all__ = ["execute"]


def execute(state: ORMExecuteState, progress: Progress) -> Any:
    """Execute the statement of an event `do_orm_execute`, and note what it changed.

    :return: its result; None: nothing was done, it is none of these

    """
    mapper = state.bind_mapper
    if mapper is None or not first_names(mapper.class_):
        return None
    if state.is_update or state.is_delete:
        return _execute_on_rows(state, mapper, progress)
    if state.is_insert and _replaces(state.statement):
        return _execute_upsert(state, mapper, progress)
    # A row that is new is in no cache.
    return None


def _execute_on_rows(state: ORMExecuteState, mapper: Mapper[Any], progress: Progress) -> Any:
    session = state.session
    if session.autoflush:
        # What the statement is to find must be there when we ask what it will find.
        session.flush()
    rows = _rows_before(state, mapper)
    result = state.invoke_statement()
    changes = progress.current(session)
    changes.gone += [copy_of(row) for row in rows or ()]
    count = getattr(result, "rowcount", -1)
    if rows is None or count not in (-1, None, len(rows)):
        # Others have added rows that it is about, between our question and the statement.
        changes.everything = True
    return result


def _rows_before(state: ORMExecuteState, mapper: Mapper[Any]) -> list[Any] | None:
    """Return the rows that a statement is about, locked, as it will lock them; None: who knows."""
    statement: Any = state.statement
    with reader(state.session, mapper) as reading:
        if isinstance(state.parameters, Sequence):
            primary = shape_of(mapper).primary
            if not all(row.keys() >= set(primary) for row in state.parameters):
                # The same statement many times, `dml_strategy="core_only"`.
                return None
            identities = [tuple(row[name] for name in primary) for row in state.parameters]
            return list(rows_of(reading, mapper, identities, lock=True).values())
        found = select(mapper.class_).with_for_update(of=list(mapper.tables))
        if statement.whereclause is not None:
            found = found.where(statement.whereclause)
        rows = list(reading.scalars(found, dict(state.parameters or {})).unique())
        reload(reading, rows)
        return rows


def _replaces(statement: Any) -> bool:
    """Whether an INSERT may change rows that are there: ON CONFLICT, ON DUPLICATE KEY, OR REPLACE.

    SQLAlchemy has no public name for it.

    """
    return getattr(statement, "_post_values_clause", None) is not None or bool(
        getattr(statement, "_prefixes", ())
    )


def _execute_upsert(state: ORMExecuteState, mapper: Mapper[Any], progress: Progress) -> Any:
    session, parameters = state.session, state.parameters
    if session.autoflush:
        session.flush()
    given = [parameters] if isinstance(parameters, Mapping) else list(parameters or ())
    wanted = _conflicts(mapper, given)
    # Before it, as they may have other keys afterwards; and after it, as they may come meanwhile.
    rows = _rows_with(session, mapper, wanted or {})
    result = state.invoke_statement()
    changes = progress.current(session)
    changes.gone += rows + _rows_with(session, mapper, wanted or {})
    if wanted is None:
        changes.everything = True
    return result


Wanted = dict[tuple[str, ...], list[tuple[Any, ...]]]


def _conflicts(mapper: Mapper[Any], given: Sequence[Mapping[str, Any]]) -> Wanted | None:
    """Return by which unique values an INSERT may meet rows; None: who knows.

    :param given: what it is to insert; nothing: it is in the statement itself

    """
    wanted: Wanted = {}
    if not given:
        return None
    for columns in _unique_columns(mapper):
        try:
            names = tuple(mapper.get_property_by_column(column).key for column in columns)
        except UnmappedColumnError:
            return None
        if not names:
            return None
        for row in given:
            if not all(name in row or _is_free(c) for name, c in zip(names, columns, strict=True)):
                return None
            values = tuple(row.get(name) for name in names)
            # NULL conflicts with nothing.
            if None not in values:
                wanted.setdefault(names, []).append(values)
    return wanted


def _unique_columns(mapper: Mapper[Any]) -> list[list[Any]]:
    """Return the columns of each unique constraint and index; of one on an expression, none."""
    found: list[list[Any]] = []
    for given in mapper.tables:
        table: Any = given
        found.append(list(table.primary_key.columns))
        found += [list(c.columns) for c in table.constraints if isinstance(c, UniqueConstraint)]
        for index in table.indexes:
            if index.unique:
                columns = list(index.columns)
                found.append(columns if columns == list(index.expressions) else [])
    return found


def _is_free(column: Any) -> bool:
    """Whether what the database puts into a column that is not given conflicts with no row."""
    if column is column.table.autoincrement_column:
        return True
    return column.default is None and column.server_default is None


def _rows_with(session: Session, mapper: Mapper[Any], wanted: Wanted) -> list[Any]:
    found: list[Any] = []
    with reader(session, mapper) as reading:
        for names, values in wanted.items():
            for part in parts_of(values, len(names)):
                found += query(reading, mapper, {names: part}, lock=True)
        reload(reading, found)
        return [copy_of(row) for row in found]
