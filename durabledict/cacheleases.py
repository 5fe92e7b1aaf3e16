"""Locks in the caches that hold stamps: memcached, and any cache of Django's.

docs/internals.rst, rule 5.7. A lock in Redis is the one of `redisleases`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

from .locks import Lease

__all__ = ["DjangoLease", "MemcachedLease"]


class MemcachedLease(Lease):
    """A lock in memcached: an item with the token. The lease is rounded up to whole seconds.

    memcached may evict the item, and loses it when it is restarted: then the lock is lost.

    :param ask: sends one of pymemcache's commands, with its arguments, and returns the answer
    :param key: of the item

    """

    def __init__(
        self, seconds: float, identity: Hashable, key: str, ask: Callable[..., Any]
    ) -> None:
        super().__init__(max(1, math.ceil(seconds)), identity)
        self._key = key
        self._ask = ask

    def __repr__(self) -> str:
        return f"MemcachedLease({self._key!r})"

    def acquire(self, token: bytes) -> bool:
        """Take the lock: ``add``."""
        # One second more: an item goes up to a second before its time.
        return bool(self._ask("add", self._key, token, int(self.seconds) + 1, noreply=False))

    def renew(self, token: bytes) -> bool:
        """Begin the lease anew: ``gets`` and ``cas``."""
        return self._put(token, token, int(self.seconds) + 1)

    def release(self, token: bytes) -> bool:
        """Give the lock up: ``gets``, and a ``cas`` by what has expired already."""
        return self._put(token, b"", -1)

    def holder(self) -> bytes | None:
        """Return the token that holds the lock: ``get``."""
        found: bytes | None = self._ask("get", self._key)
        return found

    def _put(self, token: bytes, new: bytes, expires: int) -> bool:
        while True:
            held, version = self._ask("gets", self._key)
            if held != token:
                return False
            if self._ask("cas", self._key, new, version, expires, noreply=False):
                return True
            # The number may be another one because another thread has just renewed one's own lock.


class DjangoLease(Lease):
    """A lock in any cache of Django's that processes share.

    Django has no compare-and-set: to renew and to release are a look and a second request, between
    which the lease may end. It is as safe as that moment is short beside the lease.

    :param asking: a context manager that lends the cache of this thread
    :param key: as for the cache's methods

    """

    def __init__(
        self, seconds: float, identity: Hashable, key: str, asking: Callable[[], Any]
    ) -> None:
        super().__init__(max(1, math.ceil(seconds)), identity)
        self._key = key
        self._asking = asking

    def __repr__(self) -> str:
        return f"DjangoLease({self._key!r})"

    def acquire(self, token: bytes) -> bool:
        """Take the lock: ``add``."""
        with self._asking() as cache:
            return bool(cache.add(self._key, token.hex(), timeout=self.seconds))

    def renew(self, token: bytes) -> bool:
        """Begin the lease anew: ``get`` and ``touch``."""
        with self._asking() as cache:
            if cache.get(self._key) != token.hex():
                return False
            return bool(cache.touch(self._key, timeout=self.seconds))

    def release(self, token: bytes) -> bool:
        """Give the lock up: ``get`` and ``delete``."""
        with self._asking() as cache:
            if cache.get(self._key) != token.hex():
                return False
            cache.delete(self._key)
            return True

    def holder(self) -> bytes | None:
        """Return the token that holds the lock: ``get``."""
        with self._asking() as cache:
            found = cache.get(self._key)
        return None if found is None else bytes.fromhex(found)
