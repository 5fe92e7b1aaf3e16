"""A cache of Django's as the place of a stamp: any backend, with what each can promise.

Of those over pymemcache and redis-py it takes the client and asks by itself: `ignore_exc`, set in
the OPTIONS of so many projects, makes an outage look like a missing key, and a cache with several
Redis servers reads from replicas. The others are asked through Django.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.cache import DEFAULT_CACHE_ALIAS, caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import InterfaceError, OperationalError
from django.utils.connection import ConnectionProxy

from .cacheleases import DjangoLease
from .hiding import kind_of
from .locks import Lease
from .stampcaches import StampCache, as_number, stamp_cache

__all__ = ["DjangoCache"]


class DjangoCache(StampCache):
    """A cache of Django's; by its alias where it has one, so that each thread uses its own.

    :param cache: the cache, or its alias; None: the default one
    :raises TypeError: it is no cache
    :raises django.core.cache.InvalidCacheBackendError: no such alias

    """

    def __init__(self, cache: Any = None) -> None:
        self._alias = DEFAULT_CACHE_ALIAS if cache is None else _alias_of(cache)
        self._instance = None if self._alias is not None else cache
        self._settings: object = None
        self._open()

    def _open(self) -> None:
        settings = None if self._alias is None else caches.settings.get(self._alias)
        chosen: Any = self._instance if self._alias is None else caches[self._alias]
        client = _client_of(chosen)
        self._keys: dict[str, str] = {}
        self._names_keys = client is not None
        self._place = _AnyCache(self._alias, chosen) if client is None else stamp_cache(client)
        self.atomic = self._place.atomic
        self.nodes = self._place.nodes
        self.unavailable = self._place.unavailable
        self._settings = settings

    @property
    def identity(self) -> object:
        """The alias, or the object that has none."""
        return self._alias or id(self._instance)

    @property
    def cache(self) -> Any:
        """The cache of this thread."""
        return caches[self._alias] if self._alias is not None else self._instance

    def _there(self, key: str) -> tuple[StampCache, str]:
        """Return where a key is, and its name there, with Django's prefix and version."""
        if self._alias is not None and caches.settings.get(self._alias) is not self._settings:
            self._open()  # in a test with other settings
        if not self._names_keys:
            return self._place, key
        name = self._keys.get(key)
        if name is None:
            name = self._keys[key] = self.cache.make_and_validate_key(key)
        return self._place, name

    def check_key(self, key: str) -> None:
        """Refuse a key that Django or the cache refuses."""
        super().check_key(key)
        self.cache.make_and_validate_key(key)
        place, name = self._there(key)
        place.check_key(name)

    def is_in_use(self) -> bool:
        """Whether this thread is in the middle of a request, and another one would break it."""
        return self._place.is_in_use()

    def get(self, key: str) -> int | None:
        """Return the number: one get."""
        place, name = self._there(key)
        return place.get(name)

    def add(self, key: str, number: int) -> bool:
        """Put a number if there is none, without expiry: Django's default is five minutes."""
        place, name = self._there(key)
        return place.add(name, number)

    def increase(self, key: str, by: int) -> int | None:
        """Add to the number and return it, or None."""
        place, name = self._there(key)
        return place.increase(name, by)

    def put(self, key: str, number: int) -> None:
        """Put a number, without expiry."""
        place, name = self._there(key)
        place.put(name, number)

    def lease(self, key: str, seconds: float) -> Lease | None:
        """Return a lock in the cache, where processes share it."""
        place, name = self._there(key)
        return place.lease(name, seconds)


# For all caches together: two stamps in one cache have an object each that asks it.
_threads = threading.local()


class _AnyCache(StampCache):
    """A cache that is asked through Django's own methods.

    :param alias: its alias, if it has one
    :param cache: the cache itself

    """

    def __init__(self, alias: str | None, cache: Any) -> None:
        self._alias = alias
        self._cache = cache
        self._lock = threading.RLock()
        # Without an atomic incr two writers may put the same number: each puts a new one instead.
        self.atomic = _has_atomic_incr(cache)
        servers = getattr(cache, "_servers", ())
        self.nodes = len(servers) if isinstance(servers, (list, tuple)) and servers else 1
        self.unavailable = _errors(cache)
        # It swallows the errors of the database when it sets, and no others.
        self._deletes_first = isinstance(cache, DatabaseCache)

    @property
    def identity(self) -> object:
        """Not asked for: see `DjangoCache`."""
        return self._alias or id(self._cache)

    def is_in_use(self) -> bool:
        """Whether this thread is in the middle of a request."""
        return getattr(_threads, "depth", 0) > 0

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        depth = getattr(_threads, "depth", 0)
        _threads.depth = depth + 1
        try:
            if self._alias is not None:
                yield caches[self._alias]
            else:
                with self._lock:  # an object that several threads were given
                    yield self._cache
        finally:
            _threads.depth = depth

    def get(self, key: str) -> int | None:
        with self._asking() as cache:
            return as_number(cache.get(key))

    def add(self, key: str, number: int) -> bool:
        with self._asking() as cache:
            return bool(cache.add(key, number, timeout=None))

    def lease(self, key: str, seconds: float) -> Lease | None:
        """Return a lock in the cache, where processes share it."""
        if isinstance(self._cache, (DummyCache, LocMemCache)):
            return None
        return DjangoLease(seconds, ("django", self.identity, key), key, self._asking)

    def increase(self, key: str, by: int) -> int | None:
        try:
            with self._asking() as cache:
                return as_number(cache.incr(key, by))
        except ValueError:
            return None  # not there
        except Exception as error:
            # What is there is no number: memcached and Redis say so in errors of their own.
            if "non-numeric" in str(error) or "not an integer" in str(error):
                return None
            raise

    def put(self, key: str, number: int) -> None:
        with self._asking() as cache:
            if self._deletes_first:
                cache.delete(key)  # raises; and who finds nothing reloads
            cache.set(key, number, timeout=None)


def _alias_of(cache: Any) -> str | None:
    if isinstance(cache, str):
        return cache
    if isinstance(cache, ConnectionProxy):  # django.core.cache.cache
        alias: str = vars(cache)["_alias"]
        return alias
    if not isinstance(cache, BaseCache):
        raise TypeError(f"cache is {kind_of(cache)}: pass a cache of Django's, or its alias")
    for known in caches:
        # Not those that this thread has not used: to make one may fail.
        if hasattr(caches._connections, known) and caches[known] is cache:  # type: ignore[attr-defined]  # of Django's connection handler
            return known
    return None


def _client_of(cache: Any) -> Any:
    """Return the client of pymemcache or redis-py that a cache stands on, if it is Django's own."""
    memcached: Any = sys.modules.get("django.core.cache.backends.memcached")
    if memcached is not None and isinstance(cache, memcached.PyMemcacheCache):
        return cache._cache
    redis: Any = sys.modules.get("django.core.cache.backends.redis")
    known = redis is not None and isinstance(cache, redis.RedisCache)
    # A class of the user's may choose the server by the key.
    if known and type(cache._cache) is redis.RedisCacheClient:
        return cache._cache.get_client(write=True)
    return None


def _has_atomic_incr(cache: Any) -> bool:
    per_process = isinstance(cache, (DummyCache, LocMemCache))
    return type(cache).incr is not BaseCache.incr and not per_process


def _errors(cache: Any) -> tuple[type[BaseException], ...]:
    """Return the errors of the library that a cache of somebody else's stands on."""
    found: list[type[BaseException]] = [OSError, OperationalError, InterfaceError]
    library = getattr(cache, "_lib", None) or getattr(getattr(cache, "_cache", None), "_lib", None)
    if library is not None:
        errors = getattr(library, "exceptions", None)
        for name in ("MemcacheError", "Error", "ConnectionError", "TimeoutError"):
            for place in (errors, library):
                error = getattr(place, name, None)
                if isinstance(error, type) and issubclass(error, BaseException):
                    found.append(error)
    return tuple(dict.fromkeys(found))
