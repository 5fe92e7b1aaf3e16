"""`MemoryDict`: the protocol with the process's own memory as the store.

For tests, and for code that takes any durable dict. Dicts that are given the same storage share
it, as processes share a database: each has a local copy of its own.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

from .base import Changes, Commit, DurableDict, Undecodable
from .encoding import NoOpEncoding
from .errors import MISSING, Missing
from .hiding import kind_of
from .locks import LEASE, Lease, ProcessLease

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .base import Options

__all__ = ["MemoryDict", "MemoryStorage"]

K = TypeVar("K")
V = TypeVar("V")

# How many commits a reader may be behind and still fetch only what changed.
HISTORY = 1000

Stamp = tuple[int, int]

_finding = threading.RLock()


class MemoryStorage:
    """The store of `MemoryDict`: payloads, a stamp, and the keys of the last commits.

    :param entries: a plain dict to keep the payloads in; it belongs to the storage from then on

    """

    # By identity, so that two dicts that are given the same plain dict share it. The storage
    # keeps the plain dict alive, so an identity here is never one that was used again.
    _over: ClassVar[WeakValueDictionary[int, MemoryStorage]] = WeakValueDictionary()
    _named: ClassVar[WeakValueDictionary[str, MemoryStorage]] = WeakValueDictionary()

    def __init__(self, entries: dict[Any, Any] | None = None) -> None:
        self.entries: dict[Any, Any] = {} if entries is None else entries
        # Re-entrant, since a finalizer may run in any thread at any time; and never entered
        # through the Condition, whose __enter__ is Python code that a signal can interrupt.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._version = 0
        self._nonce = random.getrandbits(62)
        self._history: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=HISTORY)

    @classmethod
    def over(cls, entries: dict[Any, Any]) -> MemoryStorage:
        """Return the storage that keeps its payloads in `entries`, the same one each time."""
        with _finding:
            return cls._over.setdefault(id(entries), cls(entries))

    @classmethod
    def named(cls, name: str) -> MemoryStorage:
        """Return the storage of that name, as long as some dict uses it."""
        with _finding:
            return cls._named.setdefault(name, cls())

    @property
    def stamp(self) -> Stamp:
        """The number of the last commit, and this storage's nonce."""
        return self._version, self._nonce

    def commit(self, written: Mapping[Any, Any], removed: Collection[Any]) -> tuple[object, ...]:
        """Write, with `changed` held; return what was replaced, to be kept until it is not."""
        old = [self.entries.pop(key, None) for key in removed]
        old += [self.entries.get(key) for key in written]
        self.entries.update(written)
        self._version += 1
        self._history.append((self._version, (*written, *removed)))
        self.changed.notify_all()
        return tuple(old)

    def keys_since(self, since: Stamp) -> list[Any] | None:
        """Return the keys of the commits after `since`, with `changed` held; None: too far back."""
        version, nonce = since
        behind = self._version - version
        if nonce != self._nonce or not 0 <= behind <= len(self._history):
            return None
        recent = list(self._history)[len(self._history) - behind :]
        return list(dict.fromkeys(key for _, keys in recent for key in keys))

    def after_fork(self) -> None:
        """Replace the lock; one that was held stands for a commit of which a half may be here."""
        half = not self.lock.acquire(blocking=False)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        if half:
            self._version += 1
            self._history.clear()


class MemoryDict(DurableDict[K, V]):
    """A durable dict in this process's memory. Strict reads are linearizable.

    Values are not encoded (`NoOpEncoding`): a dict that shares the storage holds the very objects
    that were put in. ``encoding=PickleEncoding`` makes it behave like the other backends.

    >>> d = MemoryDict(storage=(storage := MemoryStorage()))
    >>> d["theme"] = "dark"
    >>> MemoryDict(storage=storage)
    {'theme': 'dark'}
    >>> d["language"]
    Traceback (most recent call last):
    KeyError: 'language'

    :param autosync: see `DurableDict`; a comparison takes about a microsecond
    :param encoding: see `DurableDict`
    :param old_encoding: see `DurableDict`
    :param storage: a `MemoryStorage` or a plain dict, shared by all dicts that are given it;
        None: one of its own
    :param options: ``on_outage``, ``max_stale``, ``allow_unsigned``: see `DurableDict`

    """

    __slots__ = ("storage",)

    def __init__(
        self,
        autosync: bool | float | timedelta = True,
        encoding: Any = NoOpEncoding,
        old_encoding: Any = None,
        *,
        storage: MemoryStorage | dict[Any, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        if storage is None:
            storage = MemoryStorage()
        elif not isinstance(storage, (MemoryStorage, dict)):
            raise TypeError(
                f"storage is {kind_of(storage)}: write a MemoryStorage, or a plain dict"
            )
        elif isinstance(storage, dict):
            storage = MemoryStorage.over(storage)
        self.storage = storage
        super().__init__(autosync, encoding, old_encoding, **options)

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        return ProcessLease(self.storage, name)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Open ``memory://`` (a storage of its own) or ``memory://name`` (shared by that name)."""
        name = url.partition("://")[2]
        if name and "storage" not in options:
            options["storage"] = MemoryStorage.named(name)
        return cls(**options)

    def last_updated(self) -> Stamp:
        """Return the number of the last commit and the storage's nonce."""
        return self.storage.stamp

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded."""
        with self.storage.lock:
            payloads = list(self.storage.entries.items())
        return self._decode_all(payloads)

    def changes(self, since: Stamp) -> Changes[K, V] | None:
        """Return the changes since a stamp, from the keys of the last thousand commits."""
        storage = self.storage
        with storage.lock:
            keys = storage.keys_since(since)
            if keys is None:
                return None
            stamp = storage.stamp
            payloads = {key: storage.entries[key] for key in keys if key in storage.entries}
        written = self._decode_all(payloads.items())
        return Changes(stamp, written, [key for key in keys if key not in payloads])

    def persist(self, key: K, value: V) -> Commit[K, V]:
        """Store one entry."""
        return self.persist_many({key: value})

    def depersist(self, key: K) -> Commit[K, V]:
        """Remove one entry."""
        return self.depersist_many([key])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V]:
        """Store several entries in one commit."""
        payloads, written = self._prepare_all(entries)
        return self._commit(written, lambda stored: (payloads, []))

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V]:
        """Remove several entries in one commit."""
        wanted = list(keys)
        return self._commit({}, lambda stored: ({}, [key for key in wanted if key in stored]))

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V]:
        payloads, written = self._prepare_all(entries)
        return self._commit(
            written,
            lambda stored: (
                {
                    key: payload
                    for key, payload in payloads.items()
                    if not _is_stored(stored.get(key, MISSING), payload)
                },
                [key for key in stored if key not in payloads],
            ),
        )

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        with self.storage.lock:
            payload = self.storage.entries.get(key, MISSING)
        return MISSING if payload is MISSING else self._decode(payload, key), payload

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        payloads, written = ({}, {}) if value is MISSING else self._prepare_all({key: value})
        with self.storage.lock:
            # The very object that was read. One that was taken away and put back meanwhile is
            # still the value that the caller saw.
            if self.storage.entries.get(key, MISSING) is not proof:
                return None
            before = self.storage.stamp
            gone = [] if payloads or proof is MISSING else [key]
            replaced = self.storage.commit(payloads, gone)
            after = self.storage.stamp
        del replaced
        return Commit(before, after, written, gone)

    def wait(self, since: Any, timeout: float) -> bool:
        """Return True as soon as the stamp is no longer `since`: a commit wakes this up."""
        storage = self.storage
        with storage.lock:
            storage.changed.wait_for(
                lambda: storage.stamp != since or self._interrupted.is_set(), timeout
            )
            return bool(storage.stamp != since)

    def _interrupt_wait(self) -> None:
        super()._interrupt_wait()
        with self.storage.lock:
            self.storage.changed.notify_all()

    def _after_fork(self) -> None:
        super()._after_fork()
        self.storage.after_fork()

    def _prepare_all(self, entries: Mapping[K, Any]) -> tuple[dict[K, Any], dict[K, Any]]:
        prepared = {key: self._prepare(key, value) for key, value in entries.items()}
        return (
            {key: payload for key, (payload, _) in prepared.items()},
            {key: stored for key, (_, stored) in prepared.items()},
        )

    def _commit(
        self,
        written: dict[K, Any],
        choose: Callable[[dict[Any, Any]], tuple[dict[K, Any], list[K]]],
    ) -> Commit[K, V]:
        """Write in one step.

        :param written: the values as stored, of the keys that `choose` may write
        :param choose: given all that are stored, says what to write and what to remove

        """
        with self.storage.lock:
            before = self.storage.stamp
            payloads, removed = choose(self.storage.entries)
            # Dropping the last reference to a value runs its finalizer, which may come back
            # here: `replaced` lives until the lock is released.
            replaced = self.storage.commit(payloads, removed) if payloads or removed else ()
            after = self.storage.stamp
        del replaced
        return Commit(before, after, {key: written[key] for key in payloads}, removed)


def _is_stored(stored: Any, payload: Any) -> bool:
    """Whether a payload is the stored one. No user's `==` is called: the lock is held."""
    if type(stored) is type(payload) and type(payload) in (bytes, str):
        return bool(stored == payload)
    return stored is payload
