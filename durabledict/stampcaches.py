"""The caches that can hold a stamp, in one form: memcached, Redis, Django's, memory.

Nothing here imports a driver that the caller has not imported: what kind of client it is, its class
says. Each kind has a module of its own: `memcachedcaches`, `rediscaches`, `djangocaches`.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .locks import Lease

__all__ = ["MemoryCache", "StampCache", "as_number", "stamp_cache"]

#: A sum of more terms than this is added up.
TERMS = 64


class StampCache(ABC):
    """What a stamp needs of a cache; one number under each key, without expiry."""

    #: Whether `increase` is one atomic step between processes.
    atomic: bool = True
    #: How many servers the keys are spread over.
    nodes: int = 1
    #: The exceptions that mean "it cannot be asked".
    unavailable: tuple[type[BaseException], ...] = (OSError,)

    @property
    @abstractmethod
    def identity(self) -> object:
        """What is equal for two that are the same cache, in this process."""

    def check_key(self, key: str) -> None:
        """Refuse a key that the cache does not take; nothing is sent.

        :raises ValueError: such a one
        :raises TypeError: no str

        """
        if not isinstance(key, str):
            raise TypeError(f"key={key!r}: write a str")

    def is_in_use(self) -> bool:
        """Whether this thread is in the middle of a request, and another one would break it.

        So it may be for a finalizer and for a signal handler. The caches that have connections of
        their own take any request at any time.

        """
        return False

    @abstractmethod
    def get(self, key: str) -> int | None:
        """Return the number; None: there is none; -1: something that is no number."""

    @abstractmethod
    def add(self, key: str, number: int) -> bool:
        """Put a number if there is none; tell whether it was put."""

    @abstractmethod
    def increase(self, key: str, by: int) -> int | None:
        """Add to the number and return it; None where there is none that can be added to."""

    @abstractmethod
    def put(self, key: str, number: int) -> None:
        """Put a number, whatever is there; raise where that is not sure."""

    def lease(self, key: str, seconds: float) -> Lease | None:
        """Return a lock under that key, which no number has; None: no other process would see it.

        :param seconds: for which it is held without being renewed

        """
        return None


class MemoryCache(StampCache):
    """A cache in this process, for tests and for stores that no other process writes.

    >>> cache = MemoryCache()
    >>> cache.add("k", 5), cache.add("k", 5), cache.increase("k", 2), cache.get("k")
    (True, False, 7, 7)

    """

    unavailable: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        # The terms of a sum for each key. To append one is a single step, where `+=` is three: a
        # finalizer, or a signal handler, may come in between, in the thread that has the lock.
        self._numbers: dict[str, list[int]] = {}
        self._lock = threading.RLock()
        self._adding_up = False
        call_after_fork(self)

    @property
    def identity(self) -> object:
        """The cache itself: who is given the same object shares it."""
        return id(self)

    def get(self, key: str) -> int | None:
        """Return the number, or None."""
        with self._lock:
            terms = self._numbers.get(key)
            return None if terms is None else sum(terms)

    def add(self, key: str, number: int) -> bool:
        """Put a number if there is none."""
        terms = [number]
        with self._lock:
            return self._numbers.setdefault(key, terms) is terms

    def increase(self, key: str, by: int) -> int | None:
        """Add to the number and return it, or None."""
        with self._lock:
            terms = self._numbers.get(key)
            if terms is None:
                return None
            terms.append(by)
            number = sum(terms)
            if len(terms) > TERMS and not self._adding_up:
                self._adding_up = True
                try:
                    # What is appended meanwhile stays behind them.
                    count = len(terms)
                    terms[:count] = [sum(terms[:count])]
                finally:
                    self._adding_up = False
            return number

    def put(self, key: str, number: int) -> None:
        """Put a number."""
        with self._lock:
            self._numbers[key] = [number]

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._adding_up = False


def stamp_cache(cache: Any) -> StampCache:
    """Return a cache in the form that a stamp needs.

    :raises TypeError: no cache that is known

    """
    if isinstance(cache, StampCache):
        return cache
    kinds: dict[str, Callable[[Any], StampCache]] = {
        "pymemcache": _memcached_cache,
        "redis": _redis_cache,
        "django": _django_cache,
    }
    for kind in type(cache).__mro__:
        found = kinds.get(kind.__module__.partition(".")[0])
        if found is not None:
            return found(cache)
    if isinstance(cache, str) and "://" not in cache:  # a URL may have a password
        return _django_cache(cache)
    raise TypeError(
        "a stamp is kept in a client of pymemcache or redis-py, a cache of Django's or its alias, "
        f"or a MemoryCache, not in a {type(cache).__name__}"
    )


def _memcached_cache(cache: Any) -> StampCache:
    from .memcachedcaches import MemcachedCache

    return MemcachedCache(cache)


def _redis_cache(cache: Any) -> StampCache:
    from .rediscaches import RedisCache

    return RedisCache(cache)


def _django_cache(cache: Any) -> StampCache:
    try:
        from .djangocaches import DjangoCache
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("django"):
            raise
        raise ImportError(
            f"the cache {cache!r} is one of Django's: pip install Django, or install durabledict "
            "with its extra [django]",
            name=error.name,
        ) from error

    return DjangoCache(cache)


def as_number(answer: Any) -> int | None:
    """Return what a client answered as a number; -1 for what is none.

    >>> as_number(None), as_number(b"12"), as_number("12"), as_number(b"text"), as_number(1e19)
    (None, 12, 12, -1, -1)

    """
    if answer is None:
        return None
    # Exactly these: a float of that size stays what it is when 1 is added, so that nobody would
    # hear of a write; and whoever can write to the cache can put an object there, with code.
    if type(answer) not in (int, str, bytes):
        return -1
    try:
        return int(answer)
    except ValueError:
        return -1


# By identity; the hook in the child replaces locks, which a thread that is no more may hold.
_living: dict[int, weakref.ref[Any]] = {}


def call_after_fork(one: Any) -> None:
    """Have `one._after_fork` called in every forked child, as long as it is alive (rule 0.9)."""
    identity = id(one)
    _living[identity] = weakref.ref(one, lambda _: _living.pop(identity, None))


def _after_fork() -> None:
    for reference in list(_living.values()):
        one = reference()
        if one is not None:
            one._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
