"""INSERT, UPDATE and DELETE statements of the ORM: which objects caches have to forget.

What they write is not published: nobody knows which rows a statement changed, only which it was to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from ..stores.keys import index_of
from ..stores.sqlalchemymappers import copy_of, first_names, shape_of
from ..stores.sqlalchemyqueries import find
from ..stores.sqlalchemyrows import rows_of
from .sqlalchemychanges import Changes, Progress, reader

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
        result = state.invoke_statement()
        changes = progress.current(state.session)
        _note_replaced(state.session, mapper, state.parameters, changes)
        return result
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
    changes.gone += [copy_of(row) for row in rows]
    count = getattr(result, "rowcount", -1)
    if count not in (-1, None, len(rows)):
        # Others have changed which rows it is about, between our question and the statement.
        changes.everything = True
    return result


def _rows_before(state: ORMExecuteState, mapper: Mapper[Any]) -> list[Any]:
    with reader(state.session, mapper) as reading:
        if isinstance(state.parameters, Sequence):
            primary = shape_of(mapper).primary
            identities = [tuple(row[name] for name in primary) for row in state.parameters]
            return list(rows_of(reading, mapper, identities).values())
        statement: Any = state.statement
        found = select(mapper.class_)
        if statement.whereclause is not None:
            found = found.where(statement.whereclause)
        return list(reading.scalars(found, dict(state.parameters or {})).unique())


def _replaces(statement: Any) -> bool:
    """Whether an INSERT may change rows that are there: ON CONFLICT, ON DUPLICATE KEY, OR REPLACE.

    SQLAlchemy has no public name for it.

    """
    return getattr(statement, "_post_values_clause", None) is not None or bool(
        getattr(statement, "_prefixes", ())
    )


def _note_replaced(
    session: Session, mapper: Mapper[Any], parameters: Any, changes: Changes
) -> None:
    given = [parameters] if isinstance(parameters, Mapping) else list(parameters or ())
    if not given:
        # They are in the statement itself.
        changes.everything = True
    others: list[dict[str, Any]] = []
    for row in given:
        names = next((n for n in index_of(mapper.class_).keys if set(n) <= row.keys()), None)
        if names is None:
            changes.everything = True
        elif names == first_names(mapper.class_):
            blank = mapper.class_manager.new_instance()
            changes.gone.append(copy_of(blank, **{name: row[name] for name in names}))
        else:
            others.append({name: row[name] for name in names})
    if others:
        with reader(session, mapper) as reading:
            found = [row for row in find(reading, mapper, others) if row is not None]
        changes.gone += [copy_of(row) for row in found]
