"""`ThreadLocalStore`: the live objects, each thread its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from .base import Key
from .groups import Tokens
from .guarded import GuardedStore, Peeked, Settlement
from .keys import Address
from .lifetime import LifetimeCallback
from .memory import ProcessMemoryStore

__all__ = ["ThreadLocalStore"]

T = TypeVar("T")


class ThreadLocalStore(GuardedStore):
    """A `ProcessMemoryStore` for each thread: what a thread puts, no other thread sees.

    What a thread put is forgotten when it ends, and when it calls `release`: at the end of a
    request, say. The parameters are those of `ProcessMemoryStore`.

    """

    shared = False

    def __init__(
        self,
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        maxsize: int | None = None,
        *,
        stamp: Any = None,
    ) -> None:
        self.lifetime_cb = lifetime_cb
        self.stamp = stamp
        self._options = (polymorphic, lifetime_cb, maxsize)
        self._local = threading.local()
        self._local.store = first = ProcessMemoryStore(*self._options, stamp=stamp)
        self._stamps, self._groups = first._stamps, first._groups

    @property
    def _mine(self) -> ProcessMemoryStore:
        try:
            found: ProcessMemoryStore = self._local.store
        except AttributeError:
            found = self._local.store = ProcessMemoryStore(*self._options)
            found._stamps, found._groups = self._stamps, self._groups
        return found

    def get(self, klass: type[T], key: Key) -> T | None:
        """Return the object, or None."""
        return self._mine.get(klass, key)

    def batch_get(self, klass: type[T], keys: Iterable[Key]) -> list[T | None]:
        """Return an object or None for each key."""
        return self._mine.batch_get(klass, keys)

    def put(self, obj: Any) -> None:
        """Keep the object, for this thread."""
        self._mine.put(obj)

    def batch_put(self, objs: Iterable[Any]) -> None:
        """Keep the objects, for this thread."""
        self._mine.batch_put(objs)

    def delete(self, obj: Any) -> None:
        """Forget the object with the first key of this one."""
        self._mine.delete(obj)

    def batch_delete(self, objs: Iterable[Any]) -> None:
        """Forget objects."""
        self._mine.batch_delete(objs)

    def invalidate_group(self, group: Any) -> None:
        """Have no object of a group be found any more, in any thread."""
        self._mine.invalidate_group(group)

    def _tokens_before(self, klass: type) -> Tokens:
        return self._mine._tokens_before(klass)

    def _tokens_of(self, objs: Iterable[Any]) -> Tokens:
        return self._mine._tokens_of(objs)

    def _put_as_of(self, objs: Iterable[Any], tokens: Tokens) -> None:
        self._mine._put_as_of(objs, tokens)

    def release(self) -> None:
        """Forget what this thread has put."""
        self._local.__dict__.pop("store", None)

    def get_or_create(
        self,
        klass: type[T],
        key: Key,
        creator: Callable[[], T | None],
        lifetime: Any = None,
        serve_expired: bool = False,
        timeout: float | timedelta | None = None,
    ) -> T | None:
        """Return the object, created if there is none: one for each thread, without waiting.

        See `BaseStore.get_or_create`.

        """
        mine = self._mine
        return mine.get_or_create(klass, key, creator, lifetime, serve_expired, timeout)

    _keeps_lifetimes = True

    def _get_expired(self, address: Address, lifetime: Any) -> Any:
        return self._mine._get_expired(address, lifetime)

    def _place(self, address: Address) -> Any:
        return address.entry

    def _peek(self, klass: type, keys: Sequence[Key], life: float) -> Peeked:
        return self._mine._peek(klass, keys, life)

    def _announce(self, objs: Iterable[Any]) -> Any:
        return self._mine._announce(objs)

    def _announced(self, announcement: Any) -> None:
        self._mine._announced(announcement)

    def _mark(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        return self._mine._mark(places, life)

    def _claim(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        return self._mine._claim(places, life)

    def _settle(self, settlements: Iterable[Settlement], *, writes: bool) -> None:
        self._mine._settle(settlements, writes=writes)

    def _spoil(self, places: Iterable[Any]) -> None:
        self._mine._spoil(places)

    def _forget_all(self) -> None:
        self._mine._forget_all()
