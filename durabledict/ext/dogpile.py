"""Regions of dogpile.cache over a DurableDict, or over a Store.

``make_region().configure("durabledict.dict", arguments={"dict": d})`` and ``"durabledict.store"``
with ``{"store": store}``: the names are entry points, so nothing is to be imported for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import opening
from ..base import DurableDict
from ..errors import DecodingError
from ..extras import raise_if_missing
from ..locks import Lease
from ..stores.base import BaseStore
from .dogpilerecords import (
    GENERATION,
    CacheRecord,
    Entry,
    check_record,
    content_of,
    entry_of,
    from_dict,
    to_dict,
)

try:
    from dogpile.cache.api import NO_VALUE, CachedValue

    from .dogpilebackend import OPTIONS, EntriesBackend
    from .dogpileinvalidation import SharedInvalidation, read_many
except ModuleNotFoundError as error:
    raise_if_missing(error, "durabledict.ext.dogpile needs", "dogpile.cache", extra="dogpile")
    raise

__all__ = ["CacheRecord", "DictBackend", "SharedInvalidation", "StoreBackend"]


class DictBackend(EntriesBackend):
    """``durabledict.dict``: a region whose values are the entries of a DurableDict.

    >>> from dogpile.cache import make_region
    >>> from durabledict import MemoryDict
    >>> region = make_region().configure("durabledict.dict", arguments={"dict": MemoryDict()})
    >>> region.get_or_create("answer", lambda: 42)
    42

    A hit costs what a read of the dict costs: nothing is sent where it is watched or manual, one
    comparison where it is strict. Its value is the object that the local copy has: who changes it
    has changed what the next hit returns. A `_multi` is one comparison, or one commit.

    Values are encoded by the dict's encoding; of a region with a serializer the dict gets bytes.
    Arguments:

    - ``dict``: a DurableDict, which stays the caller's, who closes it;
    - or ``url``, as `durabledict.open` takes it, and beside it the options of that dict;
      ``watch``: True, or seconds as `DurableDict.watch` takes them, to watch it;
    - ``distributed_lock``: True for one creator in all processes, by a lock in the dict's store;
    - ``lock_lease``: seconds after which the lock of a process that was killed is free, 30;
    - ``invalidation``: a `SharedInvalidation`, which the region gets as ``region_invalidator``.

    :raises TypeError: neither a DurableDict nor a URL, or both; an option that the dict has not

    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._is_own = False
        if ("dict" in arguments) == ("url" in arguments):
            raise TypeError(
                'durabledict.dict needs arguments={"dict": a DurableDict}, or {"url": ...} with '
                "the options of durabledict.open"
            )
        if "url" in arguments:
            self.dict = self._open(arguments)
            self._is_own = True
            return
        found = arguments["dict"]
        if not isinstance(found, DurableDict):
            raise TypeError(f"dict: pass a DurableDict, not {type(found).__name__}")
        self.dict = found
        self._warn_of_others(arguments, ("dict",))

    def _open(self, arguments: Mapping[str, Any]) -> DurableDict[Any, Any]:
        options = {
            name: value
            for name, value in arguments.items()
            if name not in OPTIONS and name not in ("url", "watch")
        }
        opened = opening.open(arguments["url"], **options)
        watch = arguments.get("watch", False)
        try:
            if watch is True:
                opened.watch()
            elif watch is not False:
                opened.watch(watch)
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Close the dict, if it was opened from a URL: ``region.actual_backend.close()``."""
        if self._is_own:
            self.dict.close()

    def get(self, key: Any) -> Any:
        """Return what `set` stored, or NO_VALUE. One read of the dict."""
        # Each hit waits for this: so it is not made of smaller functions.
        try:
            found = self.dict.get(key)
        except DecodingError:
            return NO_VALUE
        if found is None:
            return NO_VALUE
        invalidation = self._invalidation
        if (
            type(found) is tuple
            and len(found) == 2
            and type(found[1]) is dict
            and type(found[1].get("ct")) is float
            and "v" in found[1]
            and (invalidation is None or found[1].get(GENERATION, "") == invalidation.current())
        ):
            # As `CachedValue(*found)` makes it, in half the time.
            return tuple.__new__(CachedValue, found)
        return super().get(key)

    def _load(self, keys: list[Any]) -> list[Entry | None]:
        return [from_dict(value) for value in read_many(self.dict, keys)]

    def _save(self, entries: Mapping[Any, Entry]) -> None:
        self.dict.update({key: to_dict(entry) for key, entry in entries.items()})

    def _remove(self, keys: list[Any]) -> None:
        if len(keys) > 1 and self.dict._has_compare_and_set():
            self.dict._write(self.dict.depersist_many, [self.dict._canonical(key) for key in keys])
            return
        # What has no commits of its own does not say whether a key was there.
        for key in keys:
            try:
                del self.dict[key]
            except KeyError:
                pass

    def _lease(self, name: str, length: float) -> Lease:
        return self.dict._lease(name, length)


class StoreBackend(EntriesBackend):
    """``durabledict.store``: a region whose values are records in any Store.

    >>> from dogpile.cache import make_region
    >>> from durabledict.stores import ProcessMemoryStore
    >>> store = ProcessMemoryStore(lifetime_cb=lambda record: 3600)
    >>> region = make_region().configure("durabledict.store", arguments={"store": store})
    >>> region.get_or_create("answer", lambda: 42)
    42

    A hit is a get of the Store, a `_multi` one of its batches. What the Store encodes are objects
    of `CacheRecord`; its lifetimes are theirs. Arguments:

    - ``store``: a Store of `durabledict.stores`, which stays the caller's;
    - ``record``: a class like `CacheRecord`, one of its subclasses say, so that regions of one
      Store do not share their keys. A `SqlAlchemyStore` needs a mapped one;
    - ``distributed_lock``, ``lock_lease`` and ``invalidation``, as for ``durabledict.dict``; the
      lock is in the Store.

    :raises TypeError: no Store, or one that keeps no such records

    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        store = arguments.get("store")
        if not isinstance(store, BaseStore):
            raise TypeError(
                'durabledict.store needs arguments={"store": a Store of durabledict.stores}, not '
                f"{type(store).__name__}"
            )
        self.store = store
        self.record: Any = arguments.get("record", CacheRecord)
        check_record(store, self.record)
        self._warn_of_others(arguments, ("store", "record"))

    def _load(self, keys: list[Any]) -> list[Entry | None]:
        try:
            found = self.store.batch_get(self.record, [{"key": key} for key in keys])
        except DecodingError:
            if len(keys) == 1:
                return [None]
            return [self._load([key])[0] for key in keys]
        return [None if record is None else _entry_of(record) for record in found]

    def _save(self, entries: Mapping[Any, Entry]) -> None:
        self.store.batch_put(
            [
                self.record(key=key, value=entry.content, generation=entry.generation)
                for key, entry in entries.items()
            ]
        )

    def _remove(self, keys: list[Any]) -> None:
        self.store.batch_delete([self.record(key=key) for key in keys])

    def _lease(self, name: str, length: float) -> Lease:
        return self.store._lease(name, length)


def _entry_of(record: Any) -> Entry | None:
    content = content_of(record.value)
    return None if content is None else entry_of(content, record.generation or "")
