"""`DurableDict`: a dict whose contents live in a store that many processes share.

Who writes a backend reads this module and one backend: from "what a backend supplies" on, four
methods make a working dict, the others make it faster or safer. `_encode` and `_decode`, which they
use, are in `payloads`. The layers below are `localcopy` (the entries in this process), `validity`
(until when they will do), `comparing` (with the store), `syncing` (for reads), `reading` (how reads
check), `writing` and `modifying` (what users call to write) and `watching` (the thread that syncs).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from . import atomic, coder, forking, reading
from .changes import Changes, Commit, Undecodable, chained, differs
from .encoding import DefaultEncoding
from .errors import MISSING, EncoderError, Missing
from .keys import canonical_key
from .locks import LEASE, Lease, ProcessLease
from .options import named_options
from .payloads import Payloads
from .watching import WatchedCopy

if TYPE_CHECKING:
    from typing import TypedDict

    class Options(TypedDict, total=False):
        """The keyword options that every dict takes."""

        on_outage: str
        max_stale: float | timedelta | None
        allow_unsigned: bool


__all__ = ["Changes", "Commit", "ConnectionDurableDict", "DurableDict", "Undecodable"]

K = TypeVar("K")
V = TypeVar("V")


class DurableDict(WatchedCopy[K, V], Payloads, Generic[K, V]):
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

    __slots__ = ("_writers", "encoding", "old_encoding")

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
            known = named_options(type(self), DurableDict)
            raise TypeError(
                f"{type(self).__name__} has no option {name!r}; there are: {', '.join(known)}"
            )
        coder.check_encodings(encoding, old_encoding, allow_unsigned)
        self.encoding = encoding
        self.old_encoding = old_encoding
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

    # -- inside -------------------------------------------------------------------------------

    def _lacking(self) -> NotImplementedError:
        return NotImplementedError(
            f"{self._native_class.__name__} has to define _fetch() and _compare_and_set() for "
            "compare_and_set, compute and edit"
        )

    def _has_compare_and_set(self) -> bool:
        return type(self)._compare_and_set is not DurableDict._compare_and_set

    def _after_fork(self) -> None:
        super()._after_fork()
        if not self._has_compare_and_set():
            self._writers = threading.RLock()


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
