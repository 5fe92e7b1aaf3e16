"""`SharedInvalidation`: ``region.invalidate()`` that all processes hear, and without clocks.

A place that the processes share holds two random tokens, and each value carries those it was
created under: its generation. They are read before its creator runs (`CreationMutex`), so what was
created before an invalidation and stored after it does not count. dogpile.cache knows times only,
so a backend gives values of other generations a time that no value has: see `shown`. That is rule
5.9 of docs/internals.rst.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dogpile.cache.api import CachedValue, CacheMutex
from dogpile.cache.region import RegionInvalidationStrategy

from ..base import DurableDict
from ..hiding import kind_of
from ..locks import Mutex
from ..stampcaches import call_after_fork
from ..stores.base import BaseStore
from ..stores.chained import ChainedStore
from .dogpilerecords import CacheRecord, Entry, check_record, is_metadata

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CreationMutex", "SharedInvalidation", "read_many", "shown"]

#: The creation times of values that an invalidation has hit. To dogpile the first is "no value".
HARD_TIME = 0.0
SOFT_TIME = 1.0

#: How the second token begins where it is a soft invalidation that set it.
_SOFTLY = "~"

_OF_A_TOKEN = re.compile(r"~?[0-9A-Za-z_.-]{1,100}").fullmatch


class SharedInvalidation(RegionInvalidationStrategy):
    """Makes ``region.invalidate()`` count in every process, for regions of this library's backends.

    The region gets it twice: the backend to know which values count, and the region to call it.

    >>> from dogpile.cache import make_region
    >>> from durabledict import MemoryDict
    >>> d = MemoryDict()
    >>> invalidation = SharedInvalidation(d)
    >>> region = make_region().configure(
    ...     "durabledict.dict",
    ...     arguments={"dict": d, "invalidation": invalidation},
    ...     region_invalidator=invalidation,
    ... )
    >>> region.set("k", 1)
    >>> region.invalidate()
    >>> region.get("k")
    <dogpile.cache.api.NoValue object>

    An invalidation is one write: one round trip, whatever the number of values. A read of a region
    reads two tokens as well: in a watched dict nothing is sent for that, in a strict one it is a
    comparison, and in a Store a `batch_get`.

    :param place: the dict or Store that has the tokens; of a chain, the last one. It may be the one
        that has the values, and should be no cache that evicts, and without lifetimes: where a
        token is missing, every value is invalid
    :param name: under which they are kept; regions of one name are invalidated together
    :param record: the class of the records in a Store, as for `StoreBackend`
    :raises TypeError: neither a DurableDict nor a Store; or a Store that keeps no such records

    """

    def __init__(
        self,
        place: DurableDict[Any, Any] | BaseStore,
        name: str = "durabledict.ext.dogpile",
        *,
        record: Any = CacheRecord,
    ) -> None:
        while isinstance(place, ChainedStore):
            # What a layer of this process holds of the tokens would be as old as its lifetime.
            place = place._last
        if isinstance(place, BaseStore):
            check_record(place, record)
        elif not isinstance(place, DurableDict):
            raise TypeError(
                f"place: pass a DurableDict or a Store of durabledict.stores, not {kind_of(place)}"
            )
        self.place = place
        self.name = name
        self._record = record
        self._names = (f"{name}:hard", f"{name}:soft")
        # The tokens as they were read last, and the generation that they are.
        self._known: tuple[str | None, str | None, str | None] = (None, None, None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.place).__name__}, {self.name!r})"

    def invalidate(self, hard: bool = True) -> None:
        """Invalidate all values of the regions that use this, in every process. One write.

        :param hard: nobody gets an older value any more. False: they get it until there is a new
            one, which needs a region with an expiration time

        """
        if hard:
            self._write(dict(zip(self._names, (_token(), _token()), strict=True)))
        else:
            self._write({self._names[1]: _SOFTLY + _token()})

    def is_invalidated(self, timestamp: float) -> bool:
        """Whether a value with that time was invalidated. No round trip."""
        return timestamp in (HARD_TIME, SOFT_TIME)

    def is_hard_invalidated(self, timestamp: float) -> bool:
        """Whether a value with that time is not to be served any more. No round trip."""
        return timestamp == HARD_TIME

    def is_soft_invalidated(self, timestamp: float) -> bool:
        """Whether a value with that time may be served until there is a new one. No round trip."""
        return timestamp == SOFT_TIME

    def was_hard_invalidated(self) -> bool:
        """Whether the last invalidation, if any, was a hard one. One read of the tokens."""
        return not self.was_soft_invalidated()

    def was_soft_invalidated(self) -> bool:
        """Whether the last invalidation was a soft one. One read of the tokens."""
        return _text(self._read()[1] or "").startswith(_SOFTLY)

    # -- for backends -----------------------------------------------------------------------------

    def current(self) -> str | None:
        """Return the generation; None: a token is missing, and every value is invalid."""
        hard, soft = self._read()
        known = self._known
        # Each hit waits for this: the tokens are mostly the very ones of the last time.
        if hard is known[0] and soft is known[1]:
            return known[2]
        both = _is_token(hard) and _is_token(soft)
        found = f"{_text(hard)} {_text(soft)}" if both else None
        self._known = hard, soft, found
        return found

    def generation(self) -> str:
        """Return the generation in which a value is created that is begun now.

        As many round trips as a read of the tokens, and a write where one is missing.

        """
        found = self.current()
        if found is None:
            # By a write of its own for each: of two processes one would else get the other's half.
            for name, token in zip(self._names, self._read(), strict=True):
                if not _is_token(token):
                    self._add(name)
            found = self.current()
        # A place that forgets at once makes every value invalid.
        return found or f"{_token()} {_token()}"

    def _read(self) -> tuple[str | None, str | None]:
        hard, soft = self._names
        found: Any
        if isinstance(self.place, DurableDict):
            # One comparison for both. That one of them is younger does no harm: see `shown`.
            found = self.place._begin_read()
            if found is None:
                return dict.get(self.place, hard), dict.get(self.place, soft)
            return found.get(hard), found.get(soft)
        records = self.place.batch_get(self._record, [{"key": hard}, {"key": soft}])
        found = [None if record is None else record.value for record in records]
        return found[0], found[1]

    def _write(self, tokens: dict[str, str]) -> None:
        if isinstance(self.place, DurableDict):
            self.place.update(tokens)
        else:
            self.place.batch_put(
                [self._record(key=name, value=token) for name, token in tokens.items()]
            )

    def _add(self, name: str) -> None:
        """Set a token that is missing. In a Store of two processes the last one sets it."""
        if isinstance(self.place, DurableDict):
            if not _is_token(self.place.setdefault(name, _token())):
                self.place[name] = _token()
        else:
            self.place.put(self._record(key=name, value=_token()))


def _token() -> str:
    return os.urandom(8).hex()


def _is_token(found: Any) -> bool:
    """Whether this is a token; something else, which anybody may have put there, counts as none."""
    if not isinstance(found, (str, bytes)):
        return False
    text = _text(found)
    return _OF_A_TOKEN(text) is not None


def _text(token: Any) -> str:
    """Return a token as it was set: an encoding that stores bytes as they are gives those."""
    return token.decode("ascii", "replace") if isinstance(token, bytes) else str(token)


def read_many(d: DurableDict[Any, Any], keys: Sequence[Any]) -> list[Any]:
    """Return the values of keys, of one state, for one comparison; None where there is none.

    What cannot be decoded is left out of the local copy, and so is None, too.

    """
    overlay = d._begin_read()
    if overlay is not None:
        return [overlay.get(key) for key in keys]
    with d._copy_lock:
        return [dict.get(d, key) for key in keys]


def shown(entry: Entry, current: str | None) -> CachedValue | bytes | None:
    """Return what a backend gives a region; None: no value.

    :param current: the generation; what is of another one gets the time of an invalidated value

    """
    content, generation = entry
    if generation == current and isinstance(content, bytes):
        return content
    if generation == current:
        return CachedValue(*content)
    hard, _, soft = (current or "").partition(" ")
    # The tokens of a hard invalidation may be read, or in a Store written, one after the other.
    is_soft = soft.startswith(_SOFTLY) and generation.partition(" ")[0] == hard
    time = SOFT_TIME if is_soft else HARD_TIME
    if not isinstance(content, bytes):
        payload, metadata = content
        return CachedValue(payload, {**metadata, "ct": time})
    # As a region writes it: the metadata in JSON, a bar, the payload.
    text, bar, rest = content.partition(b"|")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not is_metadata(found):
        return None  # a proxy's own form, in which nobody knows the time
    return b"%b%b%b" % (json.dumps({**found, "ct": time}).encode("ascii"), bar, rest)


class CreationMutex(CacheMutex):
    """The lock of a key's creator, which notes the generation before the creator runs.

    :param lock: of this process, or in a store
    :param begin: is called when it was taken; `end` before it is released

    """

    def __init__(
        self, lock: Mutex | threading.Lock, begin: Callable[[], None], end: Callable[[], None]
    ) -> None:
        self._lock = lock
        self._begin = begin
        self._end = end
        self._is_inherited = False
        if not isinstance(lock, Mutex):  # which sees to it itself
            call_after_fork(self)

    def _after_fork(self) -> None:
        # The thread that holds it has stayed in the parent. dogpile knows this very object there.
        self._is_inherited = self._lock.locked()
        self._lock = threading.Lock()

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; tell whether it was taken."""
        if not self._lock.acquire(wait):
            return False
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Give the lock up."""
        if self._is_inherited and not self._lock.locked():
            self._is_inherited = False
            return
        self._end()
        self._lock.release()

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return self._lock.locked()
