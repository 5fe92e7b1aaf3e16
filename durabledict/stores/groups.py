"""Groups: objects that are invalidated together, in one step, however many they are.

A class names its groups in ``__stockpyle_groups__``: a list, or a property that returns one for
each object. A Store keeps a random token for each group, and with each object the tokens of its
groups as they were before the object was made. An object counts only while all of them are still
these: so to remove one token invalidates all that have it (rule 5.8 of docs/internals.rst).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .words import word

if TYPE_CHECKING:
    from .base import BaseStore

__all__ = [
    "ANY",
    "ATTRIBUTE",
    "Moments",
    "Tokens",
    "all_groups_of",
    "groups_named_by",
    "groups_of",
    "has_sound_groups",
    "made_after",
    "may_have_groups",
    "token_name",
    "tokens_now",
]

logger = logging.getLogger("durabledict.stores")

#: Where a class names its groups.
ATTRIBUTE = "__stockpyle_groups__"

#: The name of the token that each invalidation replaces, whatever the group.
ANY = "!groups"

#: Tokens by their names, as they were at some moment.
Tokens = Mapping[str, Any]

#: Such tokens of several Stores, by the `id` of each.
Moments = Mapping[int, Tokens]

_moments: ContextVar[Moments | None] = ContextVar("durabledict.stores.moments", default=None)


def token_name(group: Any) -> str:
    """Return the name of a group's token. No record is named so: a class's name has no "!".

    >>> token_name("zone-1"), token_name(("zone", 1))
    ('!group/zone-1', '!group/~tuple:%5B%22zone%22%2C1%5D')

    :param group: a str, or another value that can be a key
    :raises TypeError: it has no name

    """
    text = word("group", group)
    # To a Store of files, nothing and dots alone would be a folder.
    return f"!group/{text if text.strip('.') else f'%{text}'}"


def groups_of(obj: Any) -> tuple[str, ...]:
    """Return the names of the tokens of an object's groups.

    :raises TypeError: its class names something else than a list of groups

    """
    if getattr(type(obj), ATTRIBUTE, None) is None:
        return ()
    return _names(type(obj), getattr(obj, ATTRIBUTE))


def groups_named_by(klass: type) -> tuple[str, ...]:
    """Return the same of all objects of a class, where it names a list; else nothing."""
    declared = getattr(klass, ATTRIBUTE, None)
    return _names(klass, declared) if isinstance(declared, (list, tuple)) else ()


def may_have_groups(klass: type) -> bool:
    """Whether objects of a class, or of one of its subclasses, may have groups."""
    if getattr(klass, ATTRIBUTE, None) is not None:
        return True
    return any(map(may_have_groups, type.__subclasses__(klass)))


def all_groups_of(objs: Iterable[Any]) -> set[str]:
    """Return the names of the tokens of all groups of some objects."""
    return {name for obj in objs for name in groups_of(obj)}


def tokens_now(store: BaseStore, objs: Iterable[Any]) -> Tokens:
    """Return the tokens of objects that are about to be put: as old as they are, where known."""
    moments = _moments.get()
    if moments is not None and id(store) in moments:
        return moments[id(store)]
    return store._tokens_of(objs)


@contextmanager
def made_after(moments: Moments) -> Iterator[None]:
    """Put an object that was made after these moments, through however many layers.

    Not a parameter of every put: a user's own put takes an object and nothing else.

    """
    token = _moments.set(moments)
    try:
        yield
    finally:
        _moments.reset(token)


def has_sound_groups(obj: Any) -> bool:
    """Whether it can be told of which groups an object is; a warning says why it cannot."""
    try:
        groups_of(obj)
    except Exception as error:
        # A cache goes on without the object, which is where it lasts already.
        logger.warning("%s is not cached: %s", type(obj).__qualname__, error)
        return False
    return True


def _names(klass: type, groups: Any) -> tuple[str, ...]:
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Collection):
        raise TypeError(
            f"{klass.__qualname__}.{ATTRIBUTE} = {groups!r}: write a list of groups, "
            '["zone-1"] say, or a property that returns one'
        )
    return tuple(sorted(set(map(token_name, groups))))
