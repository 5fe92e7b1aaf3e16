"""Read-modify-write of one key, as users call it: `atomic` and `computing` do it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Generic, TypeVar, overload

from . import atomic
from .computing import compute_missing
from .creating import checked_timeout
from .errors import MISSING, Missing
from .locks import LEASE
from .options import seconds
from .writing import WritableCopy

__all__ = ["ModifiableCopy"]

K = TypeVar("K")
V = TypeVar("V")


class ModifiableCopy(WritableCopy[K, V], Generic[K, V]):
    """A local copy of whose writes none is lost though many read and write the same key."""

    __slots__ = ()

    def compare_and_set(self, key: K, old: V | Missing, new: V | Missing) -> bool:
        """Set `key` to `new` if the store holds a value equal to `old`; tell whether it did.

        One read and one write. `MISSING` as `old` means that the key must not be there, as `new`
        that it is to be removed.

        >>> from durabledict import MISSING, MemoryDict
        >>> d = MemoryDict()
        >>> d.compare_and_set("leader", MISSING, "a"), d.compare_and_set("leader", "b", "c")
        (True, False)

        :raises NotImplementedError: the backend has no `_compare_and_set`

        """
        return atomic.compare_and_set(self, self._canonical(key), old, new)

    @overload
    def compute(self, key: K, function: Callable[[Any], V], default: Any = MISSING) -> V: ...
    @overload
    def compute(
        self, key: K, function: Callable[[Any], V | Missing], default: Any = MISSING
    ) -> V | Missing: ...
    def compute(
        self, key: K, function: Callable[[Any], V | Missing], default: Any = MISSING
    ) -> V | Missing:
        """Set `key` to ``function(value)``, as often as it takes; return what was stored.

        One read and one write, again for each time that somebody else wrote in between. So
        the function may run several times, and has no side effects; no lock is held meanwhile.

        >>> from durabledict import MemoryDict
        >>> d = MemoryDict()
        >>> d.compute("hits", lambda hits: hits + 1, default=0)
        1

        :param function: gets the value, which it may change, and returns the new one, or
            `MISSING` to remove the key
        :param default: what the function gets when the key is not there
        :raises NotImplementedError: the backend has no `_compare_and_set`

        """
        return atomic.compute(self, self._canonical(key), function, default)

    def edit(self, key: K) -> AbstractContextManager[V]:
        """Change a mutable value in place: ``with d.edit("tags") as tags: tags.append("new")``.

        The body gets a private copy, which is stored when it ends; when it raises, nothing is.

        :raises KeyError: there is no such key
        :raises ConflictError: somebody else wrote the key meanwhile; nothing was stored
        :raises TypeError: the value cannot be changed in place; use `compute`
        :raises NotImplementedError: the backend has no `_compare_and_set`

        """
        return atomic.edit(self, self._canonical(key))

    def get_or_compute(
        self,
        key: K,
        creator: Callable[[], V],
        *,
        timeout: float | timedelta | None = None,
        lease: float | timedelta = LEASE,
    ) -> V:
        """Return ``d[key]``; where there is none, store what `creator` returns, and return that.

        Of all who find nothing one calls its creator, and the others wait for what it stores: the
        threads of this process, and other processes where the backend has a lock that they share.
        A hit is a read; who creates asks for the lock, reads once more, writes, and releases it.

        >>> from durabledict import MemoryDict
        >>> d = MemoryDict()
        >>> d.get_or_compute("report", lambda: "expensive"), d.get_or_compute("report", lambda: 1)
        ('expensive', 'expensive')

        A creator that raises raises in its own caller; one of those who wait creates then. One that
        is killed costs the others the lease at most. One that was overtaken, since it stalled for
        longer than that, or since somebody else wrote the key meanwhile, gets what it has created,
        and the other's value stays: it is stored if the key is still missing, in one step. (A
        backend without `_compare_and_set` asks right before.) No lock but this one is held while
        the creator runs. Any value is stored, None as well; but for `MISSING`, which is returned.

        :param creator: a function that returns the value
        :param timeout: seconds, or a timedelta, to wait for what another one creates
        :param lease: seconds, or a timedelta, after which the lock of a process that is no more is
            free; in ZooKeeper it is when its session has ended
        :raises TimeoutError: it was not done in time; the message names the key
        :raises RuntimeError: the creator asks for what it is to create

        """
        key = self._canonical(key)
        value = self.get(key, MISSING)
        if not isinstance(value, Missing):
            return value
        length = seconds(lease)
        if length is None or length <= 0:
            raise TypeError(f"lease={lease!r}: write seconds above 0, or a timedelta")
        self._require_open()  # or a lock would be asked for, which is the store's
        computed: V = compute_missing(self, key, creator, checked_timeout(timeout), length)
        return computed
