"""How `SqlAlchemyStore` finds rows: any number of keys, of any mapped attributes, by one query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import and_, bindparam, or_, select, tuple_
from sqlalchemy.orm import Mapper, Session, undefer

from ..errors import NonUniqueKeyError
from .base import Key
from .keys import NotIndexedError
from .sqlalchemymappers import shape_of

__all__ = ["checked_names", "find", "find_one", "parts_of", "query"]

#: Keys of one query: databases limit its parameters, SQLite to 32,766.
AT_ONCE = 5_000

#: And values, of keys of many attributes.
VALUES = 30_000

#: Databases that compare rows: (a, b) IN ((1, 2), (3, 4)).
COMPARE_ROWS = frozenset({"mariadb", "mysql", "oracle", "postgresql", "sqlite"})

V = TypeVar("V")

Names = tuple[str, ...]
Rows = dict[tuple[Any, ...], Any]


def checked_names(mapper: Mapper[Any], key: Key) -> Names:
    """Return the attributes that a query is for, sorted.

    :raises NotIndexedError: one of them is no mapped column
    :raises TypeError: the key is no mapping

    """
    if not isinstance(key, Mapping):
        raise TypeError(f"key={key!r}: write a dict of attributes, {{'id': 1}} say")
    names = tuple(sorted(key))
    if not names or not all(n in mapper.column_attrs or n in mapper.synonyms for n in names):
        wanted = names[0] if len(names) == 1 else names
        known = ", ".join(repr(each.key) for each in mapper.column_attrs)
        raise NotIndexedError(
            f"{mapper.class_.__qualname__} is not indexed by {wanted!r}; it is by its mapped "
            f"columns: {known}"
        )
    return names


def query(
    session: Session,
    mapper: Mapper[Any],
    wanted: Mapping[Names, Sequence[tuple[Any, ...]]],
    *,
    populate_existing: bool = False,
    lock: bool = False,
    limit: int | None = None,
) -> list[Any]:
    """Return the objects whose attributes have one of these values, by one query.

    :param wanted: values by the names of the attributes
    :param populate_existing: load once more what the session has already
    :param lock: keep others from writing them until the transaction ends, where that is to be had
    :param limit: of rows

    """
    dialect = session.get_bind(mapper).dialect.name
    found = select(mapper.class_).where(
        or_(*[_criterion(mapper, n, values, dialect) for n, values in wanted.items()])
    )
    shape = shape_of(mapper)
    if shape.deferred:
        found = found.options(undefer("*"))
    if populate_existing:
        found = found.execution_options(populate_existing=True)
    if lock:
        # In one order, so that two who lock the same rows do not wait for each other.
        key = [getattr(mapper.class_, name) for name in shape.primary]
        found = found.order_by(*key).with_for_update(of=list(mapper.tables))
    if limit is not None:
        found = found.limit(limit)
    result = session.scalars(found)
    if shape.joined:
        result = result.unique()
    return list(result)


def _criterion(
    mapper: Mapper[Any], names: Names, values: Sequence[tuple[Any, ...]], dialect: str
) -> Any:
    attributes = [getattr(mapper.class_, name) for name in names]
    # NULL is in no list: rows of values that have it in the same places are one list of the others.
    # One term for each row would be too deep for SQLite, from the thousandth on.
    groups: dict[tuple[bool, ...], list[tuple[Any, ...]]] = {}
    for row in values:
        groups.setdefault(tuple([value is None for value in row]), []).append(row)
    parts: list[Any] = []
    for nulls, rows in groups.items():
        empty = [each.is_(None) for each, is_null in zip(attributes, nulls, strict=True) if is_null]
        others = [each for each, is_null in zip(attributes, nulls, strict=True) if not is_null]
        if empty:
            rows = [tuple([value for value in row if value is not None]) for row in rows]
        parts.append(and_(*empty, _among(others, rows, dialect)) if others else and_(*empty))
    return or_(*parts)


def _among(attributes: Sequence[Any], rows: Sequence[tuple[Any, ...]], dialect: str) -> Any:
    if len(attributes) == 1:
        # Of the column's type, as SQLAlchemy sends what it stores there: not of the value's own.
        values = [row[0] for row in rows]
        bound = bindparam(None, values, attributes[0].type, unique=True, expanding=True)
        return attributes[0].in_(bound)
    if len(rows) > 1 and dialect in COMPARE_ROWS:
        return tuple_(*attributes).in_(rows)
    return or_(*[and_(*map(_equal, attributes, row)) for row in rows])


def _equal(attribute: Any, value: Any) -> Any:
    return attribute == bindparam(None, value, attribute.type, unique=True)


def find_one(session: Session, mapper: Mapper[Any], key: Key) -> Any:
    """Return the object with these attributes, or None.

    :raises NonUniqueKeyError: there are several

    """
    names = checked_names(mapper, key)
    values = tuple([key[name] for name in names])
    found = query(session, mapper, {names: [values]}, limit=2)
    if len(found) > 1:
        raise NonUniqueKeyError(mapper.class_, dict(key))
    return found[0] if found else None


def find(session: Session, mapper: Mapper[Any], keys: Sequence[Key]) -> list[Any]:
    """Return an object or None for each key, by one query for each `AT_ONCE` of them.

    A value that the database takes for equal and Python does not ("A" and "a" in some collations,
    5 and "5") costs a query for its key.

    :raises NonUniqueKeyError: a key that several objects have

    """
    # names -> values -> the row that has them
    groups: dict[Names, Rows] = {}
    # Most keys of a batch have the same names, in the same order.
    known: dict[Names, Names] = {}
    places: list[tuple[Rows, tuple[Any, ...]]] = []
    for key in keys:
        given = tuple(key) if type(key) is dict or isinstance(key, Mapping) else ()
        names = known.get(given)
        if names is None:
            names = known[given] = checked_names(mapper, key)
            groups.setdefault(names, {})
        values = (key[names[0]],) if len(names) == 1 else tuple([key[name] for name in names])
        group = groups[names]
        group[values] = None
        places.append((group, values))
    for part in _parts(groups):
        rows = query(session, mapper, part)
        strangers = _assign(mapper, rows, groups)
        for names, asked in part.items():
            missing = [values for values in asked if groups[names][values] is None]
            if missing and not strangers:
                # A row that answers another key of the batch may answer these as well.
                similar = {_folded(getattr(row, name) for name in names) for row in rows}
                missing = [values for values in missing if _folded(values) in similar]
            for values in missing if rows else ():
                key = dict(zip(names, values, strict=True))
                groups[names][values] = find_one(session, mapper, key)
    return [group[values] for group, values in places]


def _folded(values: Iterable[Any]) -> tuple[str, ...]:
    """Return what is the same for most values that databases take for equal."""
    return tuple([str(value).casefold().strip() for value in values])


def _parts(groups: Mapping[Names, Rows]) -> Iterator[dict[Names, list[tuple[Any, ...]]]]:
    """Yield what each query is to ask for."""
    keys = sum(map(len, groups.values()))
    values = sum(len(names) * len(group) for names, group in groups.items())
    if groups and keys <= AT_ONCE and values <= VALUES:
        yield {names: list(group) for names, group in groups.items()}
        return
    for names, group in groups.items():
        for part in parts_of(list(group), len(names)):
            yield {names: part}


def parts_of(values: list[V], width: int) -> Iterator[list[V]]:
    """Yield what one query can ask for, of values for so many attributes."""
    size = max(1, min(AT_ONCE, VALUES // width))
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]


def _assign(mapper: Mapper[Any], rows: Iterable[Any], groups: Mapping[Names, Rows]) -> bool:
    """Note which keys each row answers; return whether one answers none."""
    readers = [
        (names, group, attrgetter(*names), len(names) == 1) for names, group in groups.items()
    ]
    strangers = False
    for row in rows:
        is_stranger = True
        for names, group, read, is_one in readers:
            has = (read(row),) if is_one else read(row)
            if has in group:
                is_stranger = False
                if group[has] is not None and group[has] is not row:
                    raise NonUniqueKeyError(mapper.class_, dict(zip(names, has, strict=True)))
                group[has] = row
        if is_stranger:
            strangers = True
    return strangers
