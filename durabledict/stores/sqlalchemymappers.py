"""Mapped classes and objects: what SQLAlchemy knows of them, and whether an object is whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper, PassiveFlag
from sqlalchemy.orm.attributes import History, get_history, set_committed_value

from .keys import index_of

__all__ = [
    "PASSIVE",
    "Shape",
    "by_class",
    "changed_columns",
    "copy_of",
    "first_key",
    "first_names",
    "has_all",
    "has_changed_columns",
    "identity_of",
    "is_whole",
    "key_columns",
    "mapper_of",
    "shape_of",
    "state_of",
]


logger = logging.getLogger("durabledict.stores")

#: Nothing is loaded to tell what an attribute was.
PASSIVE = PassiveFlag.PASSIVE_NO_INITIALIZE


class Shape(NamedTuple):
    """What is asked of a mapper again and again.

    :param columns: the attributes that hold columns
    :param primary: those of the primary key, in its order
    :param deferred: whether a query leaves columns out, unless it is told
    :param partial: whether it may do so even then: columns of subclasses
    :param related: whether there are relationships
    :param joined: whether there may be several rows to an object

    """

    columns: frozenset[str]
    primary: tuple[str, ...]
    deferred: bool
    partial: bool
    related: bool
    joined: bool


# A shape does not refer to its class: so one that is made at run time is not kept alive.
_shapes: WeakKeyDictionary[Mapper[Any], tuple[Any, Shape]] = WeakKeyDictionary()


def mapper_of(klass: type) -> Mapper[Any] | None:
    """Return the mapper of a class; None: it is not mapped."""
    found: Any = inspect(klass, raiseerr=False)
    return found if isinstance(found, Mapper) else None


def state_of(obj: Any) -> Any:
    """Return what SQLAlchemy knows of an object; None: nothing."""
    return vars(obj).get("_sa_instance_state") if hasattr(obj, "__dict__") else None


def shape_of(mapper: Mapper[Any]) -> Shape:
    """Return the shape of a mapped class."""
    columns = mapper.column_attrs
    known = _shapes.get(mapper)
    # Another collection when a column was added.
    if known is not None and known[0] is columns:
        return known[1]
    shape = Shape(
        frozenset(each.key for each in columns),
        tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key),
        any(each.deferred for each in columns),
        len(list(mapper.self_and_descendants)) > 1,
        bool(mapper.relationships),
        any(each.lazy == "joined" for each in mapper.relationships),
    )
    _shapes[mapper] = columns, shape
    return shape


def is_whole(obj: Any) -> bool:
    """Whether all columns of a mapped object are loaded, and no session has it.

    One from a cache lacks those that its class was given since. One that somebody put into a
    session, which expired it, lacks all.

    """
    mapper = mapper_of(type(obj))
    if mapper is None:
        return True
    state = state_of(obj)
    return state is not None and state.session is None and has_all(state, shape_of(mapper))


def has_all(state: Any, shape: Shape) -> bool:
    """Whether an object with this state has all its columns loaded."""
    return bool(shape.columns <= state.dict.keys())


def identity_of(obj: Any, shape: Shape) -> tuple[Any, ...] | None:
    """Return the primary key of an object; None: it has none yet."""
    state = state_of(obj)
    if state is not None and state.key is not None:
        return tuple(state.key[1])
    held = vars(obj)
    values = tuple([held.get(name) for name in shape.primary])
    return None if None in values else values


def by_class(objs: Iterable[Any]) -> dict[Mapper[Any], list[Any]]:
    """Return mapped objects by their mappers."""
    found: dict[Mapper[Any], list[Any]] = {}
    for obj in objs:
        mapper = mapper_of(type(obj))
        if mapper is not None:
            found.setdefault(mapper, []).append(obj)
    return found


def has_changed_columns(obj: Any) -> bool:
    """Whether an UPDATE of the object's row is due, as far as its own columns say.

    Not what `Session.is_modified` says: a collection, or the other side of a one-to-one, changes
    without the row.

    """
    mapper = mapper_of(type(obj))
    if mapper is None:
        return False
    return bool(changed_columns(obj, shape_of(mapper).columns))


def changed_columns(obj: Any, among: Iterable[str]) -> dict[str, History]:
    """Return which of some columns an UPDATE is due of, and their histories."""
    changed = state_of(obj).committed_state.keys() & among
    histories = {name: get_history(obj, name, PASSIVE) for name in changed}
    return {name: each for name, each in histories.items() if each.has_changes()}


def copy_of(obj: Any, **values: Any) -> Any:
    """Return a detached copy of the columns that an object has loaded, without asking for more.

    :param values: what some of them are to be

    """
    mapper = mapper_of(type(obj))
    if mapper is None:
        return obj
    state = state_of(obj)
    copied = mapper.class_manager.new_instance()
    for name in shape_of(mapper).columns:
        if name in values:
            set_committed_value(copied, name, values[name])
        elif name in state.dict:
            set_committed_value(copied, name, state.dict[name])
    return copied


def first_names(klass: type) -> tuple[str, ...]:
    """Return the attributes that caches have objects under; none where it names no keys."""
    if getattr(klass, "__stockpyle_keys__", None) is None:
        return ()
    return index_of(klass).keys[0]


def first_key(obj: Any) -> tuple[Any, ...] | None:
    """Return what caches have an object under; None: they cannot have it."""
    try:
        key = type(obj), *[getattr(obj, name) for name in first_names(type(obj))]
        hash(key)
    except Exception as error:
        # A property of the class's own raises what it likes.
        logger.debug("%r has no first key: %s", type(obj), error)
        return None
    return key


def key_columns(mapper: Mapper[Any]) -> frozenset[str]:
    """Return the columns that the first key is made of.

    Of a key that is computed, by a hybrid or a property, they are all that there are.

    """
    found = set()
    for given in first_names(mapper.class_):
        name = given
        while name in mapper.synonyms:
            name = mapper.synonyms[name].name
        if name not in mapper.column_attrs:
            return shape_of(mapper).columns
        found.add(name)
    return frozenset(found)
