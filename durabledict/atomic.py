"""Read-modify-write on one key, so that no update is lost.

Everything here stands on two methods of a backend: `_fetch`, which reads a value together with a
proof of what was read, and `_compare_and_set`, which writes if the proof still holds. No lock is
held while the caller's code runs; where somebody else wrote meanwhile, it runs again.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from .changes import Commit, Undecodable
from .errors import MISSING, ConflictError, Missing

if TYPE_CHECKING:
    from .writing import WritableCopy

__all__ = ["compare_and_set", "compute", "edit", "pop", "rewrite", "setdefault"]

K = TypeVar("K")
V = TypeVar("V")

# What `edit` refuses: a change of these can only be a new object, which `edit` would not see.
IMMUTABLE = (
    int, float, complex, str, bytes, bool, type(None), tuple, frozenset, range, decimal.Decimal,
    datetime.date, datetime.time, datetime.timedelta, datetime.timezone, uuid.UUID,
)  # fmt: skip


def _fetched(durable: WritableCopy[Any, Any], key: Any) -> tuple[Any, Any]:
    durable._require_open()
    value, proof = durable._fetch(key)
    if isinstance(value, Undecodable):
        raise value.error.with_traceback(None)
    return value, proof


def _private(durable: WritableCopy[Any, Any], value: Any) -> Any:
    """Return a value that the caller's function may change: a copy, where it is not one already."""
    return copy.deepcopy(value) if getattr(durable.encoding, "aliases", False) else value


def _set_if(durable: WritableCopy[K, V], key: K, value: V | Missing, proof: Any) -> Any:
    return durable._write(durable._compare_and_set, key, value, proof, conditional=True)


def compare_and_set(
    durable: WritableCopy[K, V], key: K, old: V | Missing, new: V | Missing
) -> bool:
    """See `DurableDict.compare_and_set`."""
    while True:
        value, proof = _fetched(durable, key)
        # The values are compared, the proof is what the store compares: two pickles of equal
        # values need not be equal, so the payload of `old` says nothing.
        if old is MISSING or value is MISSING:
            equal = old is value
        else:
            equal = bool(value == old)
        if not equal:
            # Or a caller that takes `old` from a manual dict would try for ever.
            durable._catch_up()
            return False
        if value is MISSING and new is MISSING:
            return True
        if _set_if(durable, key, new, proof) is not None:
            return True


def compute(
    durable: WritableCopy[K, V],
    key: K,
    function: Callable[[Any], V | Missing],
    default: Any,
) -> V | Missing:
    """See `DurableDict.compute`."""
    while True:
        value, proof = _fetched(durable, key)
        given = copy.deepcopy(default) if value is MISSING else _private(durable, value)
        new = function(given)
        if value is MISSING and new is MISSING:
            return MISSING
        commit = _set_if(durable, key, new, proof)
        if commit is not None:
            return commit.written[key] if new is not MISSING else MISSING


@contextmanager
def edit(durable: WritableCopy[K, V], key: K) -> Iterator[V]:
    """See `DurableDict.edit`."""
    value, proof = _fetched(durable, key)
    if isinstance(value, Missing):
        raise KeyError(key)
    if isinstance(value, IMMUTABLE):
        raise TypeError(
            f"the value of key {key!r} is of type {type(value).__name__}, which cannot be changed "
            f"in place: use compute({key!r}, function), which stores what the function returns"
        )
    private = _private(durable, value)
    yield private
    if _set_if(durable, key, private, proof) is None:
        durable._catch_up()
        raise ConflictError(f"somebody else wrote key {key!r} while it was edited; try again")


def setdefault(durable: WritableCopy[K, V], key: K, default: V) -> Commit[K, V]:
    """Add a key if it is not there: the default of `DurableDict._setdefault`."""
    while True:
        value, proof = _fetched(durable, key)
        if not isinstance(value, Missing):
            return Commit(None, None, value=value)
        commit = durable._compare_and_set(key, default, proof)
        if commit is not None:
            stored: Any = commit.written[key]
            return Commit(commit.before, commit.after, commit.written, value=stored)


def pop(durable: WritableCopy[K, V], key: K) -> Commit[K, V]:
    """Take a key away and return what it held: the default of `DurableDict._pop`."""
    while True:
        value, proof = _fetched(durable, key)
        if isinstance(value, Missing):
            raise KeyError(key)
        commit = durable._compare_and_set(key, MISSING, proof)
        if commit is not None:
            return Commit(commit.before, commit.after, removed=commit.removed, value=value)


def rewrite(durable: WritableCopy[K, V], key: K) -> bool:
    """Store the value of a key once more, in the current encoding; return False when it is gone."""
    while True:
        value, proof = _fetched(durable, key)
        if isinstance(value, Missing):
            return False
        if _set_if(durable, key, value, proof) is not None:
            return True
