"""`DurableDict`: a dict whose contents live in a store that many processes share.

Who writes a backend reads this module and one backend. The first half of the class is what users
call; from "what a backend supplies" on it is what a backend writes: four methods make a working
dict, the others make it faster or safer. The layers below are `localcopy` (the entries in this
process), `syncing` (when they are compared with the store) and `reading` (how reads check).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from . import atomic, coder, forking, reading
from .changes import Changes, Commit, Undecodable, chained, differs
from .computing import compute_missing
from .creating import checked_timeout
from .encoding import DefaultEncoding
from .errors import MISSING, DecodingError, EncoderError, EncodingError, Missing
from .keys import canonical_key
from .localcopy import LocalCopy
from .locks import LEASE, Lease, ProcessLease
from .options import seconds
from .syncing import SyncedCopy
from .watch import Watch

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypedDict

    from typing_extensions import Self

    class Options(TypedDict, total=False):
        """The keyword options that every dict takes."""

        on_outage: str
        max_stale: float | timedelta | None
        allow_unsigned: bool


__all__ = ["Changes", "Commit", "ConnectionDurableDict", "DurableDict", "Undecodable"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class DurableDict(SyncedCopy[K, V], Generic[K, V]):
    """A dict backed by a durable store; subclass it to write a backend.

    Looking up: ``d[k]``, ``get``, ``in``, ``len``, iteration, ``keys``, ``values``, ``items``,
    ``copy``, ``==``, ``|``, ``reversed``. What each costs in comparisons: docs/tutorial.rst.

    Writing: ``d[k] = v``, ``del``, `update`, ``|=``, `setdefault`, `pop`, `popitem`, `clear`,
    `replace_all`, `migrate`.

    Read-modify-write: `compare_and_set`, `compute`, `edit`, `get_or_compute`.

    Syncing: `sync`, `autosync`, `watch`, `on_change`, `checked_age`, `stale_since`, `stats`,
    `undecodable`, `close`.

    A backend supplies: `persist`, `depersist`, `durables`, `last_updated`, and, if it can,
    `changes`, `persist_many`, `depersist_many`, `_replace_all`, `_fetch`, `_compare_and_set`,
    `_setdefault`, `_pop`, `_was_refused`, `wait`, `_glance` with `_is_unchanged`, `_lease`,
    `_overlay`, `close`, `unavailable`.

    :param autosync: True: every read compares; seconds (float or timedelta): at most one
        comparison in that time; False: reads touch the local copy alone, until `sync` is called
    :param encoding: turns values into payloads and back; see `durabledict.encoding`
    :param old_encoding: reads payloads that are not of `encoding`; nothing is written in it
    :param on_outage: "raise": a read that cannot ask the store raises the driver's exception;
        "stale": it is served from the local copy
    :param max_stale: the seconds for which "stale" does so, or None for without end
    :param allow_unsigned: allow a pickle as `old_encoding` of a signed encoding
    :raises TypeError: an `autosync` that is none of these

    """

    __slots__ = ("_interrupted", "_watch", "_writers", "encoding", "old_encoding")

    #: The exceptions that mean "the store cannot be asked", not "the caller made a mistake".
    unavailable: tuple[type[BaseException], ...] = (OSError,)

    #: The name of this dict in its store; signatures are bound to it.
    keyspace: str = ""

    # Whether the constructor loads the entries, or the first read does.
    _loads_at_once = True

    _syncing_class: ClassVar[type]

    def __init__(
        self,
        autosync: bool | float | timedelta | str = True,
        encoding: Any = DefaultEncoding,
        old_encoding: Any = None,
        *,
        on_outage: str = "raise",
        max_stale: float | timedelta | None = None,
        allow_unsigned: bool = False,
    ) -> None:
        coder.check_encodings(encoding, old_encoding, allow_unsigned)
        self.encoding = encoding
        self.old_encoding = old_encoding
        self._watch: Watch | None = None
        self._interrupted = threading.Event()
        # Without compare-and-set in the store, setdefault and pop are made of several requests:
        # then this dict's writers take turns, so that they are atomic between threads at least.
        self._writers = None if self._has_compare_and_set() else threading.RLock()
        super().__init__(autosync, on_outage, max_stale)
        forking.register(self)
        if not self._loads_at_once:
            return
        try:
            self._compare()
        except self.unavailable as error:
            if self.on_outage == "raise":
                raise
            self._report_outage(error)

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

    # -- read-modify-write --------------------------------------------------------------------

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
        computed: V = compute_missing(self, key, creator, checked_timeout(timeout), length)
        return computed

    # -- syncing ------------------------------------------------------------------------------

    @property
    def undecodable(self) -> Mapping[K, DecodingError]:
        """The keys whose payload cannot be decoded, each with the error, as of the last sync."""
        return MappingProxyType(self._undecodable)

    def on_change(
        self, callback: Callable[[K, V | Missing, V | Missing], object]
    ) -> Callable[[], None]:
        """Call ``callback(key, old, new)`` for every change this process sees, own writes included.

        `MISSING` stands for absent. The calls come in order, outside all locks, in the thread
        that synced or in one that is delivering already. A callback that raises is logged.

        :return: a function that ends it

        """
        return self._feed.subscribe(callback)

    def watch(self, interval: float | timedelta = 5.0) -> Watch:
        """Sync in a background thread whenever the store says that something changed.

        A manual dict is then fresh within milliseconds and reads at the speed of the C dict.
        Call it after the fork: a child that inherits a watch starts its own thread at its first
        read. A second call replaces the first watch.

        :param interval: seconds after which stamps are compared even if the store says nothing
        :return: the watch, which `stop` or `close` ends

        """
        between = seconds(interval)
        if between is None or between <= 0:
            raise TypeError(f"interval={interval!r}: write seconds above 0, or a timedelta")
        self._require_open()
        if self._watch is not None:
            self._watch.stop()
        self._interrupted.clear()
        with self._copy_lock:
            self._watch_lost = False
            self._settle()
        # Started when the dict knows it: an interrupt in between leaves no thread that nobody ends.
        watch = self._watch = Watch(self, between)
        watch._start()
        return watch

    def close(self) -> None:
        """Release threads and connections. Reads go on from the local copy as it is.

        A backend with connections of its own closes them after ``super().close()``.

        """
        with self._copy_lock:
            self._is_closed = True
            self._settle()
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what a backend supplies --------------------------------------------------------------

    def persist(self, key: K, value: V) -> Commit[K, V] | None:
        """Store `value` under `key`: encode, then write data and stamp in one atomic step.

        :param key: as `durabledict.keys.canonical_key` gives it
        :return: a `Commit`; None (or anything else) makes the dict reload

        """
        raise NotImplementedError(f"{self._native_class.__name__} has to define persist()")

    def depersist(self, key: K) -> Commit[K, V] | None:
        """Remove `key`.

        :return: a `Commit`, with nothing `removed` when the key was not there; None (or anything
            else) makes the dict reload

        """
        raise NotImplementedError(f"{self._native_class.__name__} has to define depersist()")

    def durables(self) -> Mapping[K, V | Undecodable]:
        """Return everything that is stored, from one snapshot taken after this call began."""
        raise NotImplementedError(f"{self._native_class.__name__} has to define durables()")

    def last_updated(self) -> Any:
        """Return the stamp: a value that every write replaces; None when it is not known.

        It has to be fast: reads wait for it. It must be read from where writers put it, not
        from a cache of this process.

        """
        raise NotImplementedError(f"{self._native_class.__name__} has to define last_updated()")

    def changes(self, since: Any) -> Changes[K, V] | None:
        """Return what changed since the stamp `since`, or None: then the dict reloads.

        Only if the store's history still holds *the very write* that gave `since` (its number and
        its nonce; rule 0.2), and from the snapshot in which that was seen.

        """
        return None

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        """Store all these; a backend that can does it in one commit."""
        return chained([self._persist(key, value) for key, value in entries.items()])

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V] | None:
        """Remove all these; a backend that can does it in one commit."""
        return chained([self.depersist(key) for key in keys])

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        """Make the store hold exactly these; a backend that can does it in one commit."""
        stored = self.durables()
        written = {
            key: value for key, value in entries.items() if differs(stored.get(key, MISSING), value)
        }
        removed = [key for key in stored if key not in entries]
        # Additions first: an entry that moves to another key is never missing under both.
        results: list[object] = []
        if written:
            results.append(self.persist_many(written))
        if removed:
            results.append(self.depersist_many(removed))
        return chained(results)

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        """Return the stored value of `key`, or MISSING, and a proof of what was read.

        The proof is for `_compare_and_set` alone: the payload as read, a row's version.

        """
        raise self._lacking()

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        """Store `value` (MISSING: remove the key) if what is stored is what `proof` was read from.

        :return: None if it is not, and nothing was done

        """
        raise self._lacking()

    def _setdefault(self, key: K, default: V) -> Any:
        """Store `default` if the key is not there; return a `Commit` with the `value` now there.

        As in 0.9 the value itself will do; then the dict reloads.

        """
        if self._has_compare_and_set():
            return atomic.setdefault(self, key, default)
        self._compare()
        if self._store_side(key) is MISSING:
            self._persist(key, default)
            self._compare(force=True)
        value = self._store_side(key)
        return default if value is MISSING else value

    def _pop(self, key: K) -> Any:
        """Remove the key; return a `Commit` with the `value` that was there, or raise KeyError.

        As in 0.9 the value itself will do; then the dict reloads.

        """
        if self._has_compare_and_set():
            return atomic.pop(self, key)
        self._compare()
        self._require_decodable(key)
        value = self._store_side(key)
        if value is MISSING:
            raise KeyError(key)
        self.depersist(key)
        return value

    def _canonical(self, key: Any) -> Any:
        """Return the form of `key` in which the local copy holds it.

        A backend whose place for keys takes others than `durabledict.keys` says, or fewer, has
        its own.

        :raises TypeError: a key of a class that cannot be stored

        """
        return canonical_key(key)

    def _was_refused(self, error: Exception) -> bool:
        """Whether an error of a write means that nothing was done, and nothing may still arrive.

        After any other error the outcome is unknown, and the next read reloads.

        """
        return isinstance(error, (EncoderError, KeyError, NotImplementedError))

    def wait(self, since: Any, timeout: float) -> bool:
        """Return True when the stamp is no longer `since`, False after `timeout` seconds.

        This one polls. A backend that is told by its store waits for that, and returns soon
        after `_interrupt_wait` was called.

        """
        ends = reading.monotonic() + timeout
        pause, longest = self._poll_pauses
        while self.last_updated() == since:
            left = ends - reading.monotonic()
            if left <= 0 or self._pause(min(pause, left)):
                return False
            pause = min(pause * 1.5, longest)
        return True

    # The seconds between two looks of the polling `wait`: it begins with the first, and each is
    # half as long again, up to the second.
    _poll_pauses = (0.002, 0.05)

    def _pause(self, seconds: float) -> bool:
        """Pause between two looks; return True if `_interrupt_wait` was called."""
        return self._interrupted.wait(seconds)

    def _interrupt_wait(self) -> None:
        """Make a `wait` that another thread is in return soon."""
        self._interrupted.set()

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        """Return the lock of that name, of this dict's keyspace: what a `locks.Mutex` is made of.

        This one is of this process alone; a backend has one that all processes share, if it can.
        Locks are no entries, and no stamp hears of them.

        :param name: any str; the lock of another name is another lock
        :param seconds: for which it is held without being renewed

        """
        return ProcessLease(self, name)

    def _overlay(self) -> Mapping[K, V] | None:
        """Return the entries as this thread's open transaction sees them, or None.

        Asked only between `_transaction_opened` and `_transaction_closed`.

        """
        return None

    # -- what a backend uses ------------------------------------------------------------------

    def _encodings(self) -> tuple[Any, Any]:
        """Return `encoding` and `old_encoding` in the form that the store's place for values takes.

        As they are, unless a backend's place takes text alone, say.

        """
        return self.encoding, self.old_encoding

    def _encode(self, value: Any, key: Any = MISSING) -> Any:
        """Return the payload of a value, one that can be read back.

        :param key: for the message, and for an encoding that is bound to its place
        :raises EncodingError: before anything is sent

        """
        return self._prepare(key, value)[0]

    def _decode(self, payload: Any, key: Any = MISSING) -> Any:
        """Return the value of a payload, which may be of `old_encoding`, or `Undecodable`.

        It does not raise, so that one bad value harms one key: a `durables` that hands on what
        comes from here is as good as any.

        """
        try:
            return coder.decode(*self._encodings(), self.keyspace, key, payload)
        except DecodingError as error:
            # It is kept: without the tracebacks, whose frames hold the caller's local variables.
            kept: BaseException | None = error
            while kept is not None:
                kept.__traceback__ = kept.__context__ = None
                kept = kept.__cause__
            return Undecodable(error)

    def _decode_all(self, payloads: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return key -> value, or `Undecodable`, for pairs of a key and a payload.

        As `_decode`, in a third of its time where all are pickles: it is what a first load spends
        its time in.

        """
        pairs = payloads if isinstance(payloads, list) else list(payloads)
        entries = coder.decode_all(self._encodings()[0], pairs)
        if entries is None:
            entries = {key: self._decode(payload, key) for key, payload in pairs}
        return entries

    def _prepare(self, key: Any, value: Any) -> tuple[Any, Any]:
        """Return the payload of a value and the value as reading it back gives it.

        :raises EncodingError: before anything is sent

        """
        if isinstance(value, LocalCopy):
            raise EncodingError(
                f"the value of key {key!r} is a {type(value).__name__}, which lives in its own "
                "store and cannot be put into another: store its copy()"
            )
        return coder.prepare(self._encodings()[0], self.keyspace, key, value)

    def _prepare_all(self, entries: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Return key -> payload and key -> value as reading it back gives it; see `_prepare`."""
        encoding, _ = self._encodings()
        encode, immutable = encoding.encode, coder.immutable_types(encoding)
        payloads, stored = {}, {}
        for key, value in entries.items():
            if type(value) not in immutable:
                payloads[key], stored[key] = self._prepare(key, value)
                continue
            try:
                payloads[key], stored[key] = encode(value), value
            except Exception as error:
                raise coder.refusal(key, error) from error
        return payloads, stored

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

    def _sync_watched(self, woken: bool) -> bool:
        """Sync for the watch, which tries again by itself after an error.

        :param woken: the store has said that something changed

        """
        try:
            return self._compare_told() if woken else self._compare()
        except self.unavailable as error:
            self._report_outage(error)
            raise
        finally:
            self._feed.deliver()

    def _has_compare_and_set(self) -> bool:
        return type(self)._compare_and_set is not DurableDict._compare_and_set

    def _lacking(self) -> NotImplementedError:
        return NotImplementedError(
            f"{self._native_class.__name__} has to define _fetch() and _compare_and_set() for "
            "compare_and_set, compute and edit"
        )

    def _after_fork(self) -> None:
        super()._after_fork()
        self._interrupted = threading.Event()
        if not self._has_compare_and_set():
            self._writers = threading.RLock()
        if self._watch is not None and not self._watch._stopping.is_set():
            with self._copy_lock:
                self._watch_lost = True
                self._settle()

    def _restart_watch(self) -> None:
        with self._copy_lock:
            lost, self._watch_lost = self._watch_lost, False
            self._settle()
        if lost and self._watch is not None:
            self._watch._start()


class _AbsentError(KeyError):
    """The store does not hold the key that was to be taken."""


class ConnectionDurableDict(DurableDict[K, V]):
    """Base of the dicts that are given a connection, as in 0.9.

    :param keyspace: the name under which the dict lives in its store
    :param connection: the caller's client; it and its settings are left as they are

    """

    __slots__ = ("connection", "keyspace")

    def __init__(self, keyspace: str, connection: Any, *args: Any, **options: Any) -> None:
        self.keyspace = keyspace
        self.connection = connection
        self.connection_hook()
        super().__init__(*args, **options)

    def connection_hook(self) -> None:
        """Do what the connection needs before the first request; nothing here."""
