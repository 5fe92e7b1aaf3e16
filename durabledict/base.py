"""`DurableDict`: a dict whose contents live in a store that many processes share.

Who writes a backend reads this module and one backend: from "what a backend supplies" on, four
methods make a working dict, the others make it faster or safer. The layers below are `localcopy`
(the entries in this process), `syncing` (when they are compared with the store), `reading` (how
reads check) and `writing` (what users call to write).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from . import atomic, coder, forking, reading
from .changes import Changes, Commit, Undecodable, chained, differs
from .encoding import DefaultEncoding
from .errors import MISSING, DecodingError, EncoderError, EncodingError, Missing
from .keys import canonical_key
from .localcopy import LocalCopy
from .locks import LEASE, Lease, ProcessLease
from .options import named_options, seconds
from .watch import Watch
from .writing import WritableCopy

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


class DurableDict(WritableCopy[K, V], Generic[K, V]):
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
    :param unknown: refused
    :raises TypeError: an `autosync` that is none of these, or an option that there is not

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
        **unknown: NoReturn,  # a type checker refuses any; this says which there are
    ) -> None:
        for name in unknown:
            known = named_options(type(self).__init__, DurableDict.__init__)
            raise TypeError(
                f"{type(self).__name__} has no option {name!r}; there are: {', '.join(known)}"
            )
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
