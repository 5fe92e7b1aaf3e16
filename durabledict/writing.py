"""The writes of `dict`, each of which is one of the store's; `replace_all` and `migrate`.

The durable write comes first, the local copy second; what the store said of it is applied by
`comparing`. The methods that a backend supplies are in `base`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from . import atomic
from .changes import Commit, Undecodable
from .errors import MISSING, DecodingError, EncodingError, Missing
from .interruptions import raise_interruption
from .localcopy import LocalCopy
from .locks import LEASE, Lease
from .syncing import SyncedCopy

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WritableCopy"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class WritableCopy(SyncedCopy[K, V], Generic[K, V]):
    """A local copy whose writes go to the store."""

    __slots__ = ()

    if TYPE_CHECKING:  # the backend's part, documented in base.py
        encoding: Any
        _writers: threading.RLock | None

        def persist(self, key: K, value: V) -> Commit[K, V] | None: ...
        def depersist(self, key: K) -> Commit[K, V] | None: ...
        def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V] | None: ...
        def depersist_many(self, keys: Iterable[K]) -> Commit[K, V] | None: ...
        def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V] | None: ...
        def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]: ...
        def _compare_and_set(
            self, key: K, value: V | Missing, proof: Any
        ) -> Commit[K, V] | None: ...
        def _setdefault(self, key: K, default: V) -> Any: ...
        def _pop(self, key: K) -> Any: ...
        def _canonical(self, key: Any) -> Any: ...
        def _was_refused(self, error: Exception) -> bool: ...
        def _lease(self, name: str, seconds: float = LEASE) -> Lease: ...
        def _has_compare_and_set(self) -> bool: ...

    # -- writing ------------------------------------------------------------------------------

    def __setitem__(self, key: K, value: V) -> None:
        """Set ``d[key]`` in the store, then here. One round trip.

        The local copy holds what was stored: the value decoded from its payload, so that later
        changes to `value` itself are not mistaken for stored ones.

        :raises TypeError: a key of a class that cannot be stored; nothing was sent
        :raises EncodingError: a value that cannot be encoded; nothing was sent
        :raises Exception: the driver's own. When the outcome is unknown, the next read reloads

        """
        self._write(self._persist, self._canonical(key), value)

    def __delitem__(self, key: K) -> None:
        """Remove ``d[key]`` from the store, then here. One round trip.

        :raises KeyError: the store holds no such key

        """
        key = self._canonical(key)
        commit = self._write(self._remove, key)
        if isinstance(commit, Commit) and key not in commit.removed:
            raise KeyError(key)

    def _remove(self, key: K) -> object:
        if not self._has_compare_and_set():
            # depersist() of a four-method class does not say whether the key was there.
            self._compare()
            if self._store_side(key) is MISSING and key not in self._undecodable:
                raise KeyError(key)
        return self.depersist(key)

    def update(self, other: Any = (), /, **named: V) -> None:
        """Set many keys in one commit, as `dict.update` takes them. One round trip.

        :raises TypeError: a key of a class that cannot be stored; nothing was sent
        :raises EncodingError: a value that cannot be encoded; nothing was sent

        """
        entries = self._entries(other, named)
        self._require_open()
        if entries:
            self._write(self.persist_many, entries)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]  # dict's has overloads
        """Set many keys in one commit: ``d |= other`` is ``d.update(other)``."""
        self.update(other)
        return self

    def replace_all(self, mapping: Mapping[K, V]) -> None:
        """Make the contents equal to `mapping`, in one commit of the difference.

        No reader ever sees an empty dict in between. One round trip.

        """
        self._write(self._replace_all, self._entries(mapping, {}))

    def clear(self) -> None:
        """Remove every key from the store, also those this process has not heard of yet."""
        self._write(self._replace_all, {})

    @overload
    def setdefault(self, key: K) -> V | None: ...
    @overload
    def setdefault(self, key: K, default: V) -> V: ...
    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return ``d[key]``; where there is none, store `default` first, atomically.

        One comparison when the key is there; else one comparison and the write.

        :raises DecodingError: the key is there and its payload cannot be decoded

        """
        key = self._canonical(key)
        self._require_open()
        self._sync_for_write()
        # The very object of the local copy, as `dict.setdefault` returns it.
        value = self._seen(key)
        if value is not MISSING:
            return value
        commit = self._write(self._setdefault, key, default)
        return self._value_of(commit)

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: V | D, /) -> V | D: ...
    def pop(self, key: K, /, *default: Any) -> Any:
        """Remove `key` and return the value that the store held, atomically.

        :param default: returned when there is no such key; without it that is a `KeyError`
        :raises DecodingError: the key is there and its payload cannot be decoded

        """
        if len(default) > 1:
            raise TypeError(f"pop expected at most 2 arguments, got {1 + len(default)}")
        key = self._canonical(key)
        try:
            commit = self._write(self._pop_there, key)
        except _AbsentError:
            if dict.__contains__(self, key):
                self._catch_up()
            if default:
                return default[0]
            raise KeyError(key) from None
        return self._value_of(commit)

    def _pop_there(self, key: K) -> Any:
        """Call `_pop`, whose KeyError is not to be mixed up with one of the sync after it."""
        try:
            return self._pop(key)
        except KeyError as error:
            raise _AbsentError(key) from error

    def popitem(self) -> tuple[K, V]:
        """Remove some item, the newest one this process knows of, and return it, atomically.

        :raises KeyError: the dict is empty

        """
        self._require_open()
        gone: set[K] = set()
        while True:
            self._sync_for_write()
            key = self._newest(gone)
            if isinstance(key, Missing):
                raise KeyError("popitem(): the dictionary is empty")
            value: V | Missing = self.pop(key, MISSING)
            if not isinstance(value, Missing):
                return key, value
            # Somebody else was faster, or `override` shows a key that the store does not hold.
            gone.add(key)

    def migrate(self) -> int:
        """Store every value once more, in the current encoding; return how many.

        Costs one read and one commit a key. It may run while others write, and again after it
        was stopped: a key that somebody else writes meanwhile keeps what they wrote (but in a
        backend without `_compare_and_set`). Undecodable keys are left as they are.

        :raises EncodingError: the current encoding does not take the value of some key, the first
            of which it names. It is raised at the end: all other keys are stored anew

        """
        self.sync(force=True)
        count = 0
        refused: EncodingError | None = None
        shown = dict.fromkeys([*self._keys(), *self._covered])
        for key in [key for key in shown if self._store_side(key) is not MISSING]:
            try:
                count += self._rewrite(key)
            except EncodingError as error:
                refused = refused or error
            except DecodingError:
                continue  # written since by somebody whose values this process cannot read
        if refused is not None:
            raise refused
        return count

    def _rewrite(self, key: K) -> bool:
        """Store the value of a key once more; return False when it is gone."""
        if self._has_compare_and_set():
            return atomic.rewrite(self, key)
        value = self._store_side(key)
        if isinstance(value, Missing):
            return False
        self._write(self._persist, key, value)
        return True

    # -- inside -------------------------------------------------------------------------------

    def _entries(self, other: Any, named: Mapping[str, Any]) -> dict[Any, Any]:
        """Return what `dict.update` would set, as an exact dict with canonical keys.

        Everything that can go wrong in the caller's objects goes wrong here, before anything is
        sent.

        """
        given = dict(other.copy() if isinstance(other, LocalCopy) else other, **named)
        return {self._canonical(key): value for key, value in given.items()}

    def _seen(self, key: K) -> V | Missing:
        """Return what a read by this thread gives, without comparing."""
        overlay = self._overlay() if self._transactions else None
        if overlay is not None:
            return overlay.get(key, MISSING)
        self._require_decodable(key)
        return dict.get(self, key, MISSING)

    def _newest(self, gone: Collection[K]) -> K | Missing:
        """Return the newest key of this thread's view that is not among `gone`."""
        overlay = self._overlay() if self._transactions else None
        if overlay is not None:
            return next((key for key in reversed(list(overlay)) if key not in gone), MISSING)
        with self._copy_lock:
            return next((key for key in dict.__reversed__(self) if key not in gone), MISSING)

    def _write(self, action: Callable[..., Any], *arguments: Any, conditional: bool = False) -> Any:
        """Run a write of the backend's; bring the local copy up to it; return what it said.

        :param conditional: None from the backend means that nothing was done

        """
        self._require_open()
        refused: Exception | None = None
        try:
            try:
                if self._writers is None:
                    commit = action(*arguments)
                else:
                    with self._writers:
                        commit = action(*arguments)
            except Exception as error:
                raise_interruption(error)  # which says nothing of the write
                if not self._was_refused(error):
                    raise
                refused = error
            else:
                if commit is not None or not conditional:
                    self._accept(commit)
        except BaseException:
            # It may have been sent, and may still arrive (rule 0.4).
            self._doubt()
            raise
        finally:
            self._feed.deliver()
        if refused is not None:
            raise refused
        return commit

    def _persist(self, key: K, value: V) -> Commit[K, V] | None:
        """Call `persist`, which as in 0.9 may have called `_encode` without the key."""
        try:
            return self.persist(key, value)
        except EncodingError as error:
            if repr(key) in str(error):
                raise
            raise EncodingError(f"key {key!r}: {error}") from error

    def _value_of(self, commit: Any) -> Any:
        """The value that `_setdefault` or `_pop` spoke of, or, as in 0.9, is."""
        return commit.value if isinstance(commit, Commit) else commit

    def _sync_for_write(self) -> None:
        """Sync before an operation that reads and writes; it raises an outage in any case."""
        try:
            self._compare()
        finally:
            self._feed.deliver()


class _AbsentError(KeyError):
    """The store does not hold the key that was to be taken."""
