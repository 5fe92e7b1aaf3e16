"""What the two backends for dogpile.cache have in common: dogpile's methods, over entries.

Where a region has no serializer, its values go into the dict or Store as they are, which encodes
them; where it has one, its bytes do. So nothing is pickled twice.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from dogpile.cache.api import NO_VALUE, CacheBackend

from ..locks import LEASE, Lease, Mutex
from ..options import seconds
from ..stampcaches import call_after_fork
from .dogpileinvalidation import CreationMutex, SharedInvalidation, shown
from .dogpilerecords import Entry, content_of

__all__ = ["EntriesBackend"]

#: Locks that are kept, of a kilobyte at most.
KEPT_MUTEXES = 4096

logger = logging.getLogger("durabledict.dogpile")


class EntriesBackend(CacheBackend):
    """A backend that keeps entries somewhere; a subclass says where, with the last four methods.

    :param arguments: as dogpile hands them on: ``distributed_lock``, ``lock_lease`` and
        ``invalidation``, which are explained at the subclasses

    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._distributed = bool(arguments.get("distributed_lock", False))
        lease = seconds(arguments.get("lock_lease", LEASE))
        if lease is None or lease <= 0:
            raise TypeError(
                f"lock_lease={arguments['lock_lease']!r}: write seconds above 0, or a timedelta"
            )
        self._lock_lease = lease
        self._invalidation = arguments.get("invalidation")
        if not isinstance(self._invalidation, (SharedInvalidation, type(None))):
            raise TypeError(f"invalidation={self._invalidation!r}: pass a SharedInvalidation")
        # key -> the generation in which its creator began
        self._creating: dict[Any, str] = {}
        self._mutexes: dict[Any, CreationMutex] = {}
        call_after_fork(self)

    def _warn_of_others(self, arguments: Mapping[str, Any], known: Collection[str]) -> None:
        """Log arguments that mean nothing here, which dogpile has backends ignore."""
        others = sorted(set(arguments).difference(known, OPTIONS))
        if others:
            logger.warning(
                "%s has no argument %s; there are: %s",
                type(self).__name__,
                ", ".join(map(repr, others)),
                ", ".join([*known, *OPTIONS]),
            )

    # -- dogpile's methods ------------------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """Return what `set` stored, or NO_VALUE, also where it cannot be decoded."""
        return self.get_multi([key])[0]

    def get_multi(self, keys: Iterable[Any]) -> Sequence[Any]:
        """Return what `set` stored, or NO_VALUE, for each of many keys."""
        wanted = list(keys)
        if not wanted:
            return []
        found = self._load(wanted)
        if self._invalidation is None:
            values = [each if each is None else shown(each, each.generation) for each in found]
        else:
            # After them: a value of a generation was stored after the generation began.
            current = self._invalidation.current()
            values = [each if each is None else shown(each, current) for each in found]
        return [NO_VALUE if value is None else value for value in values]

    def get_serialized(self, key: Any) -> Any:
        """Return the bytes that `set_serialized` stored, or NO_VALUE."""
        return self.get_serialized_multi([key])[0]

    def get_serialized_multi(self, keys: Iterable[Any]) -> Sequence[Any]:
        """Return the bytes that `set_serialized` stored, or NO_VALUE, for each of many keys."""
        # What a region without a serializer has left there is no bytes.
        return [v if isinstance(v, bytes) else NO_VALUE for v in self.get_multi(keys)]

    def set(self, key: Any, value: Any) -> None:
        """Store a value, or bytes."""
        self.set_multi({key: value})

    def set_multi(self, mapping: Mapping[Any, Any]) -> None:
        """Store many values in one write."""
        contents = {}
        for key, value in mapping.items():
            contents[key] = content_of(value)
            if contents[key] is None:
                raise TypeError(
                    f"key {key!r}: a region stores CachedValue or bytes, not {type(value).__name__}"
                )
        if not contents:
            return
        generations = self._generations(contents)
        self._save(
            {key: Entry(cast(Any, contents[key]), generations.get(key, "")) for key in contents}
        )

    def delete(self, key: Any) -> None:
        """Remove a value, if there is one."""
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[Any]) -> None:
        """Remove many values, as far as they are there."""
        gone = list(dict.fromkeys(keys))
        if gone:
            self._remove(gone)

    def get_mutex(self, key: Any) -> CreationMutex:
        """Return the lock of a key's creator: of this process, or with ``distributed_lock`` of all.

        dogpile asks for it also where it finds the value, and forgets it at once. So it is kept:
        to make one takes longer than all the rest of a hit.

        """
        found = self._mutexes.get(key)
        if found is None:
            if len(self._mutexes) >= KEPT_MUTEXES:
                # What somebody holds, or waits for, dogpile has itself.
                self._mutexes = {}
            found = self._mutexes.setdefault(key, self._new_mutex(key))
        return found

    def _new_mutex(self, key: Any) -> CreationMutex:
        lock: Any = threading.Lock()
        if self._distributed:
            # dogpile may have it released in another thread, by an `async_creation_runner`.
            lock = Mutex(self._lease(f"dogpile:{key}", self._lock_lease), any_thread=True)
        return CreationMutex(lock, partial(self._begin, key), partial(self._end, key))

    # -- generations ------------------------------------------------------------------------------

    def _begin(self, key: Any) -> None:
        """Note the generation in which the creator of a key begins, which has the key's lock."""
        if self._invalidation is not None:
            self._creating[key] = self._invalidation.generation()

    def _end(self, key: Any) -> None:
        self._creating.pop(key, None)

    def _generations(self, keys: Iterable[Any]) -> dict[Any, str]:
        """Return the generations that values were created in; what nobody created is of now."""
        if self._invalidation is None:
            return {}
        found = {key: self._creating.get(key) for key in keys}
        now = self._invalidation.generation() if None in found.values() else ""
        return {key: generation or now for key, generation in found.items()}

    def _after_fork(self) -> None:
        # The creators run in the parent.
        self._creating = {}
        self._mutexes = {}

    # -- what a subclass supplies -----------------------------------------------------------------

    @abstractmethod
    def _load(self, keys: list[Any]) -> list[Entry | None]:
        """Return what there is, in the order of the keys; what cannot be decoded is not there."""

    @abstractmethod
    def _save(self, entries: Mapping[Any, Entry]) -> None:
        """Store entries, of which there is one at least."""

    @abstractmethod
    def _remove(self, keys: list[Any]) -> None:
        """Remove entries, as far as they are there, of different keys, one at least."""

    @abstractmethod
    def _lease(self, name: str, length: float) -> Lease:
        """Return the lock of that name in the place where the entries are."""


#: The arguments of both backends.
OPTIONS = ("distributed_lock", "lock_lease", "invalidation")
