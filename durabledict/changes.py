"""What a backend tells about a write, and about the writes of others.

>>> Commit(before=7, after=8, written={"theme": "dark"}).removed
()
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, TypeVar

from .errors import MISSING, DecodingError, Missing
from .interruptions import raise_interruption

__all__ = ["Changes", "Commit", "Difference", "Undecodable", "chained", "differs"]

K = TypeVar("K")
V = TypeVar("V")

# Exact types whose `==` says all there is to say.
PLAIN = frozenset({int, str, bytes, bool, type(None)})


@dataclass(frozen=True)
class Undecodable:
    """Stands in place of a value whose payload cannot be decoded.

    A backend puts it into what `durables()`, `Changes` and `Commit` hold; the dict leaves the key
    out of its local copy and lists it in `DurableDict.undecodable`.

    :param error: what decoding raised, with the key's name in its message

    """

    error: DecodingError


@dataclass(frozen=True)
class Changes(Generic[K, V]):
    """The entries written and the keys removed since a stamp, and the stamp that this reaches.

    :param stamp: the stamp of the state that the changes lead to
    :param written: key -> value, decoded, or `Undecodable`
    :param removed: the keys that are gone
    :param moved: those of `written` that were removed and written again meanwhile, where the
        backend promises an order: they come last now, in the order of `written`

    """

    stamp: object
    written: Mapping[K, V | Undecodable] = field(default_factory=dict)
    removed: Collection[K] = ()
    moved: Collection[K] = ()


# Not frozen, which would take half a microsecond of each write. Nobody changes one that is made.
@dataclass(slots=True)
class Commit(Generic[K, V]):
    """What a write tells about itself.

    A write that changed nothing (the key to remove was not there, the key to add was) answers
    with `before == after`.

    :param before: the stamp that the store had before this write; None when it is not known
    :param after: the stamp that this write gave to the store
    :param written: key -> value *as stored*: decoded from the payload, never the caller's object
    :param removed: the keys that this write took away
    :param value: for `_setdefault` the value that is now stored, for `_pop` the one that was

    """

    before: object
    after: object
    written: Mapping[K, V | Undecodable] = field(default_factory=dict)
    removed: Collection[K] = ()
    value: V | Missing = MISSING


def chained(results: Collection[object]) -> Commit[Any, Any] | None:
    """Return one commit for several made one after the other, or None when one tells nothing.

    Where somebody else wrote in between, `before` is unknown, and the dict fetches the delta.

    """
    commits = [result for result in results if isinstance(result, Commit)]
    if not commits or len(commits) < len(results):
        return None
    unbroken = all(
        first.after is not None and first.after == second.before
        for first, second in pairwise(commits)
    )
    written: dict[Any, Any] = {}
    removed: dict[Any, None] = {}
    for commit in commits:
        for key in commit.removed:
            written.pop(key, None)
            removed[key] = None
        for key, value in commit.written.items():
            removed.pop(key, None)
            written[key] = value
    before = commits[0].before if unbroken else None
    return Commit(before, commits[-1].after, written, list(removed))


def differs(old: object, new: object) -> bool:
    """Return whether a reader could tell `new` from `old`.

    The same object does not differ, another type does (1 and True are equal, yet not the same
    setting). Other values are compared by what they pickle to: an `==` may look at an id alone,
    as that of a database row does, and is no reason to go on serving the old one. Equal values
    that pickle differently, and what does not pickle, are taken to differ, which costs little.

    >>> differs(1, True), differs([1], [1]), differs([1], [True])
    (True, False, True)

    """
    if old is new:
        return False
    if type(old) is not type(new):
        return True
    if type(old) in PLAIN:
        return bool(old != new)
    try:
        return pickle.dumps(old) != pickle.dumps(new)
    except Exception as error:
        raise_interruption(error)
        return True


@dataclass(slots=True)
class Difference(Generic[K, V]):
    """Entries on their way into a local copy, sorted out before its lock is taken.

    `written` is an exact dict, so that `dict.update` takes it in one step in C.

    """

    written: dict[K, V]
    removed: list[K]
    undecodable: dict[K, DecodingError]
    complete: bool  # a reload: keys that are not undecodable here are so no longer
    moved: list[K] = field(default_factory=list)
    fetched: int = 0

    @classmethod
    def of_commit(cls, commit: Commit[K, V]) -> Difference[K, V]:
        """Sort out a commit; a write waits for this."""
        written, removed = commit.written, commit.removed
        if type(written) is not dict or removed:
            return cls.of_changes(written, removed)
        for value in written.values():
            if type(value) is Undecodable:
                return cls.of_changes(written, removed)
        return cls(
            written, removed=[], undecodable={}, complete=False, moved=[], fetched=len(written)
        )

    @classmethod
    def of_changes(
        cls,
        entries: Mapping[K, V | Undecodable],
        removed: Collection[K],
        moved: Collection[K] = (),
    ) -> Difference[K, V]:
        """Sort out a delta."""
        written, undecodable = _parted(entries)
        gone = [key for key in removed if key not in entries] + list(undecodable)
        back = [key for key in moved if key in written]
        return cls(written, gone, undecodable, False, back, len(entries))

    @classmethod
    def of_reload(
        cls,
        held: Collection[K],
        get: Callable[[K], object],
        entries: Mapping[K, V | Undecodable],
        ordered: bool,
    ) -> Difference[K, V]:
        """Find what a reload changes; an entry that is the same stays the very object.

        Costs one comparison an entry. It runs user code (pickling), so never under a lock.

        :param held: the keys of the local copy
        :param get: key -> the value that the local copy holds, or MISSING
        :param ordered: whether the order of `entries` is promised

        """
        stored, undecodable = _parted(entries)
        if not held:
            return cls(stored, [], undecodable, True, fetched=len(entries))
        moved = _moved(held, stored) if ordered else []
        last = set(moved)
        written = {
            key: value for key, value in stored.items() if key in last or differs(get(key), value)
        }
        removed = [key for key in held if key not in stored]
        return cls(written, removed, undecodable, True, moved, len(entries))


def _moved(held: Collection[K], stored: Collection[K]) -> list[K]:
    """Return the keys of both whose place in `stored` shows that they were written again.

    What is written again goes to the end. So the keys that stayed come first, in the order in
    which they are held, and from the first one out of order on all have moved.

    """
    places = {key: place for place, key in enumerate(held)}
    common = [key for key in stored if key in places]
    for number, (key, following) in enumerate(pairwise(common)):
        if places[key] > places[following]:
            return common[number + 1 :]
    return []


def _parted(
    entries: Mapping[K, V | Undecodable],
) -> tuple[dict[K, V], dict[K, DecodingError]]:
    good: dict[K, Any] = dict(entries)
    if Undecodable not in set(map(type, good.values())):
        return good, {}
    bad = {key: value.error for key, value in good.items() if isinstance(value, Undecodable)}
    for key in bad:
        del good[key]
    return good, bad
