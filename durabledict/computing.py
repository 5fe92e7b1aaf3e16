"""`DurableDict.get_or_compute`: what a dict does about the key that is to be created."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import creating
from .changes import Undecodable
from .creating import Outcome, Target
from .errors import MISSING
from .keys import encode_key
from .locks import Lease, Mutex

if TYPE_CHECKING:
    from .writing import WritableCopy

__all__ = ["compute_missing"]


class _Key(Target):
    """One key of a dict, in its canonical form."""

    def __init__(self, durable: WritableCopy[Any, Any], key: Any, seconds: float) -> None:
        super().__init__((id(durable), key))
        self._durable = durable
        self._key = key
        self._seconds = seconds
        self._proof: Any = None

    def __repr__(self) -> str:
        return f"key {self._key!r} of the {type(self._durable).__name__}"

    def lease(self) -> Lease:
        try:
            name = encode_key(self._key)
        except TypeError:
            name = repr(self._key)  # a backend that takes other keys, a UUID say
        return self._durable._lease(f"key:{name}", self._seconds)

    def look(self) -> Any:
        durable, key = self._durable, self._key
        if not durable._has_compare_and_set():
            durable._sync_for_write()
            return durable._store_side(key)
        durable._require_open()
        value, self._proof = durable._fetch(key)
        if isinstance(value, Undecodable):
            raise value.error.with_traceback(None)
        if value is not MISSING:
            # Reads that do not ask are to see it, too; and as they do, this gives the same object.
            durable._catch_up()
            return durable.get(key, value)
        return MISSING

    def reserve(self) -> Any:
        return self.look()

    def store(self, value: Any, mutex: Mutex) -> tuple[Any, Outcome]:
        durable, key = self._durable, self._key
        if value is MISSING:
            return value, Outcome.HANDED
        if not mutex.still_held():
            return value, Outcome.NONE
        if not durable._has_compare_and_set():
            return durable._value_of(
                durable._write(durable._setdefault, key, value)
            ), Outcome.STORED
        commit = durable._write(durable._compare_and_set, key, value, self._proof, conditional=True)
        if commit is None:
            durable._catch_up()
            return value, Outcome.NONE
        return commit.written.get(key, value), Outcome.STORED


def compute_missing(
    durable: WritableCopy[Any, Any],
    key: Any,
    creator: Callable[[], Any],
    timeout: float | None,
    seconds: float,
) -> Any:
    """Create the value of a key that a read has not found; see `DurableDict.get_or_compute`."""
    return creating.create(_Key(durable, key, seconds), creator, timeout)
