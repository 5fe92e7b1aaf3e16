"""Stamps of classes in a cache that processes share: memory hears of what others write.

A writer raises the stamp of each class under which its object is found, before the durable write
and after it; a reader compares it before each get (rule 5.3 of docs/internals.rst).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from ..stampcaches import stamp_cache
from ..stamps import CacheStamp, Stamp, Write

__all__ = ["ClassStamps"]

#: Characters of a class's name that are a part of its stamp's.
LONGEST = 150


class ClassStamps:
    """The stamps of classes in one cache.

    :param cache: a client of pymemcache or redis-py, a cache of Django's or its alias, or a
        `MemoryCache`
    :raises TypeError: none of these

    """

    def __init__(self, cache: Any) -> None:
        self._cache = stamp_cache(cache)
        self._stamps: dict[str, CacheStamp] = {}

    def read(self, klass: type) -> Stamp | None:
        """Return the stamp of a class; None: the cache keeps none. One request."""
        return self._of(klass).read()

    def begin(self, classes: Iterable[type]) -> dict[type, int]:
        """Note that objects of some classes are about to be written. One request for each."""
        return {klass: self._of(klass).begin() for klass in classes}

    def end(self, openings: dict[type, int]) -> dict[type, Write]:
        """Note that they have been; return the stamps before and after."""
        return {klass: self._of(klass).end(opening) for klass, opening in openings.items()}

    def touch(self, classes: Iterable[type]) -> None:
        """Tell of writes that are done."""
        for klass in classes:
            self._of(klass).touch()

    def touch_all(self) -> None:
        """The same of all classes that this process has met."""
        for stamp in list(self._stamps.values()):
            stamp.touch()

    def _of(self, klass: type) -> CacheStamp:
        # By name, as other processes know them.
        name = quote(f"{klass.__module__}.{klass.__qualname__}", safe="")
        found = self._stamps.get(name)
        if found is None:
            short = name if len(name) <= LONGEST else hashlib.sha256(name.encode()).hexdigest()
            stamp = CacheStamp(self._cache, f"durabledict:class:{short}")
            found = self._stamps.setdefault(name, stamp)
        return found
