"""Rows by their primary keys, all columns loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.orm import Mapper, Session

from .sqlalchemymappers import by_class, has_all, shape_of, state_of
from .sqlalchemyqueries import parts_of, query

__all__ = ["reload", "rows_of"]

Identity = tuple[Any, ...]


def rows_of(
    session: Session, mapper: Mapper[Any], identities: Iterable[Identity], *, lock: bool = False
) -> dict[Identity, Any]:
    """Return the objects with these primary keys, by one query for each `AT_ONCE` of them.

    What the session has already is loaded once more.

    :param lock: keep others from writing them until the transaction ends, where that is to be had

    """
    primary = shape_of(mapper).primary
    found: list[Any] = []
    for part in parts_of(list(identities), len(primary)):
        found += query(session, mapper, {primary: part}, populate_existing=True, lock=lock)
    reload(session, found)
    return {tuple(state_of(obj).key[1]): obj for obj in found}


def reload(session: Session, objs: Sequence[Any]) -> None:
    """Load the columns that objects of the session lack, by one query for each class."""
    for mapper, group in by_class(objs).items():
        shape = shape_of(mapper)
        lacking = [obj for obj in group if not has_all(state_of(obj), shape)]
        if lacking:
            identities = [tuple(state_of(obj).key[1]) for obj in lacking]
            for part in parts_of(identities, len(shape.primary)):
                query(session, mapper, {shape.primary: part}, populate_existing=True)
            for obj in lacking:
                # What no query of the class brings: a column that one of its own SQL makes.
                for name in shape.columns - state_of(obj).dict.keys():
                    getattr(obj, name)
