"""The sync protocol: when a local copy is compared with its store, and what is done about it.

docs/internals.rst numbers the rules and shows the races; the numbers here are its. In short: the
stamp is read before the data (0.1), compared with `!=` (0.1), and an answer is applied only if
nothing else was applied since the question (0.3). One thread asks at a time; another may use the
answer if the question was sent after its own read began (0.6).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import reading
from .changes import Changes, Commit, Difference, Undecodable, differs
from .errors import MISSING, DecodingError
from .localcopy import LocalCopy
from .options import checked_autosync, outage_policy
from .outage import Freshness, Stats, bare
from .reading import syncing_class

__all__ = ["SyncedCopy"]

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger("durabledict.sync")

# How often a sync starts again because something else was applied meanwhile (rule 0.3).
ROUNDS = 3
IS_LAST = (False,) * (ROUNDS - 1) + (True,)

_set_class = object.__dict__["__class__"].__set__


class SyncedCopy(LocalCopy[K, V], Generic[K, V]):
    """A local copy that knows when it is out of date.

    The lock order is `_writers` (writing.py), `_sync_mutex`, the backend's own, `_copy_lock`. The
    second is held while the store is asked, so that the others wait for the answer; the last never
    is.

    """

    __slots__ = (
        "_answer_error",
        "_answered",
        "_asked",
        "_autosync",
        "_doubtful",
        "_filled",
        "_freshness",
        "_glimpse",
        "_is_closed",
        "_max_stale",
        "_native_class",
        "_on_outage",
        "_sync_mutex",
        "_sync_owner",
        "_transactions",
        "_watch_lost",
        "stats",
    )

    if TYPE_CHECKING:  # the backend's part, documented in base.py
        unavailable: tuple[type[BaseException], ...]

        def last_updated(self) -> Any: ...
        def durables(self) -> Mapping[K, V | Undecodable]: ...
        def changes(self, since: Any) -> Changes[K, V] | None: ...
        def _overlay(self) -> Mapping[K, V] | None: ...

    def __init__(self, autosync: object, on_outage: str, max_stale: object) -> None:
        super().__init__()
        # A syncing class says whose it is; `type(d)(...)` makes an instance of it.
        self._native_class: type[Any] = type(self).__dict__.get("_native_of", type(self))
        self._autosync = checked_autosync(autosync, self._autosync_words)
        self._on_outage, self._max_stale = outage_policy(on_outage, max_stale)
        self.stats = Stats()
        self._freshness = Freshness()
        # What `_glance` said before the last comparison; None where a read must not rely on it.
        self._glimpse: Any = None
        self._filled = False
        self._doubtful = False  # a write of unknown outcome, or a sync that lost every round
        self._transactions = 0
        self._watch_lost = False
        self._is_closed = False
        self._sync_mutex = threading.RLock()
        self._sync_owner: int | None = None
        self._asked = 0
        self._answered = 0
        self._answer_error: BaseException | None = None
        # Made here and not by `_settle`, under whose lock a metaclass of the user's would run.
        syncing_class(self._native_class)
        with self._copy_lock:
            self._settle()

    # -- what a read may rely on --------------------------------------------------------------

    # Whether `durables` gives an order that is promised.
    _ordered = False

    # Words that `autosync` takes besides True, False and seconds; ZookeeperDict has "strict".
    _autosync_words: tuple[str, ...] = ()

    @property
    def autosync(self) -> bool | float | str:
        """When reads compare: True (each), seconds (at most one in that time), False (never).

        May be set at any time, to a float or timedelta as well.

        :raises TypeError: for anything else, the ints 0 and 1 included

        """
        return self._autosync

    @autosync.setter
    def autosync(self, value: object) -> None:
        checked = checked_autosync(value, self._autosync_words)
        with self._copy_lock:
            self._autosync = checked
            self._settle()

    @property
    def on_outage(self) -> str:
        """What a read does when the store cannot be asked: "raise" or "stale"."""
        return self._on_outage

    @property
    def max_stale(self) -> float | None:
        """The seconds for which "stale" serves an old copy; None: without end."""
        return self._max_stale

    @property
    def checked_age(self) -> float:
        """The seconds since the last successful comparison was sent; inf before the first."""
        return self._freshness.age()

    @property
    def stale_since(self) -> datetime | None:
        """When the outage began that the copy is in (UTC), or None. For display."""
        return self._freshness.since

    @property
    def cache_expired(self) -> Any:
        """The store's stamp if the local copy is out of date, else None. One comparison."""
        stamp = self.last_updated()
        return stamp if stamp != self.last_synced else None

    # -- native or syncing --------------------------------------------------------------------

    def _settle(self) -> None:
        """Choose the class, and until when reads need not check. The caller holds the lock.

        Called after every change of what it looks at; it is the only place that decides.

        """
        native = self._is_closed or (self._needs_no_comparison() and not self._must_not_be_native())
        target = self._native_class if native else syncing_class(self._native_class)
        if self._is_closed:
            self._good_until = math.inf
        elif self._every_read_looks():
            self._good_until = -math.inf
        else:
            self._good_until = self._compares_at()
        self._glimpse = None
        if type(self) is not target:
            # type(self).__class__ = ... would find the property that answers the native class.
            _set_class(self, target)

    def _every_read_looks(self) -> bool:
        """Whether each read has something to look at, whatever the clock says."""
        return (
            not self._filled
            or self._watch_lost
            or self._transactions > 0
            or bool(self._undecodable)
        )

    def _must_not_be_native(self) -> bool:
        """Whether a manual dict is not clean, and so not native."""
        limited = self._freshness.error is not None and self._max_stale is not None
        return self._every_read_looks() or self._doubtful or limited

    def _compares_at(self) -> float:
        """Return the time at which the next read has to compare; the copy is filled."""
        freshness = self._freshness
        limited = self._max_stale is not None
        asks = self._doubtful or self._autosync is not False or limited
        if freshness.error is not None and self._on_outage == "stale" and asks:
            if self._max_stale is None:
                return freshness.retry_at
            return min(freshness.retry_at, freshness.sent + self._max_stale)
        if self._doubtful:
            return -math.inf
        if self._needs_no_comparison():
            return math.inf
        if isinstance(self._autosync, float):
            return freshness.sent + self._autosync
        return -math.inf

    def _needs_no_comparison(self) -> bool:
        """Whether the local copy as it is will do, until something happens."""
        if self._autosync is True and self._hears:
            return self._freshness.error is None and self._is_told()
        return self._autosync is False

    # -- a store that tells of each change by itself ------------------------------------------

    # Whether it does. Then a strict dict is native until something was told, and its read asks
    # only for what that was.
    _hears = False

    def _is_told(self) -> bool:
        """Whether the copy holds all that the store has told of by itself. No lock, no waiting.

        `_settle` is to be called when that changes.

        """
        return False

    def _told_stamp(self) -> Any:
        """Return the stamp of what the store has told of by itself, without asking."""
        return self.last_updated()

    def _compare_told(self, unless: Callable[[], bool] | None = None) -> bool:
        """Bring the copy up to what the store has told of by itself; else, compare."""
        return self._compare(unless=unless)

    # -- transactions -------------------------------------------------------------------------

    def _transaction_opened(self) -> None:
        """Note that a thread's transaction has uncommitted writes: reads ask `_overlay`."""
        with self._copy_lock:
            self._transactions += 1
            self._settle()

    def _transaction_closed(self) -> None:
        """Note that such a transaction ended, however it ended."""
        with self._copy_lock:
            self._transactions -= 1
            self._settle()

    # -- reads --------------------------------------------------------------------------------

    def _glance(self) -> Any:
        """Return what changes whenever the store does, from where it costs next to nothing.

        :return: None where there is nothing of the kind

        """
        return None

    def _is_unchanged(self, now: float) -> bool:
        """Whether a strict read needs no comparison, since `_glance` would say the same.

        It counts as one. No lock is held, and nothing is waited for.

        :param now: the time by `reading.monotonic`

        """
        return False

    def _before_read(self, key: Any = MISSING) -> Mapping[K, V] | None:
        """Make the copy good for one read; the slow way of every read of the syncing class.

        :return: the entries of this thread's open transaction, to be read instead, or None

        """
        if self._is_closed:
            return None
        if self._watch_lost:
            self._restart_watch()
        overlay = self._overlay() if self._transactions else None
        if overlay is None:
            self._make_good()
            if key is not MISSING and self._undecodable:
                self._require_decodable(key)
        return overlay

    def _require_decodable(self, key: K) -> None:
        """Raise the DecodingError of a key whose payload cannot be decoded."""
        error = self._undecodable.get(key)
        if error is not None and key not in self._covered:
            # A new one each time: the traceback of one that is kept would grow. A backend of
            # 0.9's kind decodes without saying for which key.
            text = str(error) if repr(key) in str(error) else f"key {key!r}: {error}"
            raise DecodingError(text) from error.__cause__

    def _make_good(self) -> None:
        freshness = self._freshness
        error, now = freshness.error, reading.monotonic()
        if error is not None and self._on_outage == "stale" and now < freshness.retry_at:
            # Rule 0.6: between two attempts the store is left alone.
            if not self._may_serve():
                raise bare(error)
            return
        if self._is_good():
            return
        try:
            if self._autosync is True and self._hears:
                self._compare_told(unless=self._is_good)
            else:
                self._compare(unless=self._is_good)
        except self.unavailable as error:
            if self._is_closed:
                return  # by another thread meanwhile
            if self._on_outage == "raise" or not self._may_serve():
                raise
            self._report_outage(error)
        except Exception:
            if not self._is_closed:
                raise
            # Closed by another thread meanwhile: the copy as it is, as ever after.
        finally:
            self._feed.deliver()

    def _is_good(self) -> bool:
        """Whether a read needs no comparison now."""
        if self._autosync is True and not self._hears and self._freshness.error is None:
            return False  # as `_compares_at` would say
        return self._filled and reading.monotonic() < self._compares_at()

    def _may_serve(self) -> bool:
        """Whether the copy may be served though the store cannot be asked."""
        limit = self._max_stale
        return self._filled and (limit is None or self._freshness.age() <= limit)

    def _report_outage(self, error: BaseException) -> None:
        if self._freshness.first_report():
            logger.warning(
                "the store of this %s cannot be asked (%s: %s); %s",
                self._native_class.__name__,
                type(error).__name__,
                error,
                f"the local copy is {self._freshness.age():.1f} s old"
                if self._filled
                else "nothing has been loaded yet",
            )

    def sync(
        self, *, force: bool = False, signal: object = None, sender: object = None, **named: object
    ) -> bool:
        """Compare stamps and, when they differ, bring the local copy up to date.

        Costs one comparison when nothing changed; else a fetch of what changed, or, where the
        backend cannot tell, of everything.

        It can be connected as it is to a signal of Django's, `request_started.connect(d.sync)`:
        called with `signal` while there is a good copy, it logs and records an outage instead of
        raising it.

        :param force: fetch everything, whatever the stamps say
        :param signal: given by a signal
        :param sender: given by a signal, not used
        :param named: further names that a signal gives, not used
        :return: True when an entry changed
        :raises TypeError: unknown names, unless `signal` is given
        :raises RuntimeError: the dict is closed
        :raises Exception: the driver's own, when the store cannot be asked; under
            ``on_outage="stale"`` only when there is no copy that may be served

        """
        if named and signal is None:
            raise TypeError(f"sync() got unexpected names: {', '.join(sorted(named))}")
        self._require_open()
        if self._watch_lost:
            self._restart_watch()
        if self._is_inside():
            self._doubt()
            return False
        try:
            return self._compare(force=force)
        except self.unavailable as error:
            quiet = signal is not None or self._on_outage == "stale"
            if not quiet or not self._may_serve():
                raise
            self._report_outage(error)
            return False
        finally:
            self._feed.deliver()

    def _require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"this {self._native_class.__name__} is closed")

    # -- comparing ----------------------------------------------------------------------------

    def _compare(
        self,
        *,
        force: bool = False,
        unless: Callable[[], bool] | None = None,
        told: bool = False,
    ) -> bool:
        """Sync, or share the answer of a thread that asked after this call began (rule 0.6).

        :param unless: asked again when it is this thread's turn: another one may have done it
        :param told: only up to what the store has told of; no answer for who wants to ask it
        :return: True when an entry changed meanwhile

        """
        if self._is_inside():
            return False
        ticket, generation = self._asked, self._generation
        with self._sync_mutex:
            if self._answered > ticket and not force:
                if self._answer_error is not None:
                    raise bare(self._answer_error)
                return self._generation != generation
            if unless is not None and unless():
                return self._generation != generation
            self._asked += not told
            self._sync_owner = threading.get_ident()
            try:
                changed = self._synchronize(force, told)
            except BaseException as error:
                self._record_failure(error)
                if isinstance(error, self.unavailable) and not told:
                    self._answered, self._answer_error = self._asked, bare(error)
                # What is not an outage may be this thread's alone (KeyboardInterrupt, a
                # recursion limit): the others ask for themselves.
                raise
            finally:
                self._sync_owner = None
            if not told:
                self._answered, self._answer_error = self._asked, None
            return changed

    def _is_inside(self) -> bool:
        """Whether this thread is in the middle of a sync or an apply of this very dict.

        So it is where the backend, or the decoding of a value, reads the dict: to ask again would
        never end. And where a signal handler or a finalizer interrupted an apply: to wait for the
        thread that syncs, which waits for the lock that is held here, would not end either.

        """
        return self._sync_owner == threading.get_ident() or self._copy_lock._is_owned()  # type: ignore[attr-defined]  # as threading.Condition asks it

    def _record_failure(self, error: BaseException) -> None:
        self.stats.failures += 1
        if isinstance(error, self.unavailable):
            with self._copy_lock:
                self._freshness.failed(error)
                self._settle()

    def _synchronize(self, force: bool, told: bool = False) -> bool:
        """Ask until an answer can be applied; the caller holds `_sync_mutex`."""
        changed = False
        for last in IS_LAST:
            with self._copy_lock:
                generation, since = self._generation, self.last_synced
            # What the store has told by itself is no answer to a question: no bound counts from it.
            sent = self._freshness.sent if told else reading.monotonic()
            self.stats.comparisons += 1
            glimpse = self._glance()
            stamp = self._told_stamp() if told else self.last_updated()
            if self._filled and since is not None and stamp == since and not force:
                self._succeed(sent, generation, glimpse)
                return changed
            difference, reached = self._ask(since, stamp, force)
            replaced: object = None
            listed = self._undecodable
            with self._copy_lock:
                current = self._generation == generation
                if current or last:
                    # After so many rounds lost to others' applies: what differs, and a
                    # last_synced that is unknown, so that the next read asks again.
                    before = self._generation
                    replaced = self._apply(difference, reached if current else None)
                    self._filled = True
                    self._doubtful = not current
                    self._freshness.succeeded(sent)
                    self._settle_after_apply(before)
                    self._rely_on(glimpse, before + 1)
            del replaced  # finalizers run here, where no lock of the dict is held
            if current or last:
                self._count_sync(difference)
                self._log_undecodable(difference, listed)
                changed = bool(difference.written or difference.removed)
                break
        return changed

    def _succeed(self, sent: float, generation: int, glimpse: Any) -> None:
        freshness = self._freshness
        if glimpse is None and freshness.error is None and self._good_until == -math.inf:
            freshness.sent = sent
            return
        with self._copy_lock:
            if freshness.error is None and self._good_until == -math.inf:
                # Strict, no outage: nothing that `_settle` looks at has changed.
                freshness.sent = sent
            else:
                freshness.succeeded(sent)
                self._settle()
            self._rely_on(glimpse, generation)

    def _rely_on(self, glimpse: Any, generation: int) -> None:
        """Let strict reads rely on what `_glance` said before the stamp was read (rule 0.6).

        The lock is held. Not if anything was applied, or doubted, since the question; and not
        while a read has something else to look at.

        """
        if (
            glimpse is not None
            and generation == self._generation
            and self._autosync is True
            and self._freshness.error is None
            and not self._is_closed
            and not self._must_not_be_native()
        ):
            self._glimpse = glimpse

    def _ask(self, since: Any, stamp: Any, force: bool) -> tuple[Difference[K, V], Any]:
        """Return what has to be applied and the stamp that this reaches. No lock is held."""
        if self._filled and since is not None and stamp is not None and not force:
            changes = self.changes(since)
            if changes is not None:
                return self._news(changes), changes.stamp
        # The stamp was read before the data it vouches for (rule 0.1): a write in between makes
        # the copy newer than its stamp, which costs a needless sync and misses nothing.
        entries = self.durables()
        with self._copy_lock:
            held = [*dict.keys(self), *self._covered]
        # Read while others may apply: then the generation has changed, and this is thrown away.
        return Difference.of_reload(held, self._store_side, entries, self._ordered), stamp

    def _news(self, changes: Changes[K, V]) -> Difference[K, V]:
        """Leave out what was written and is the same, or removed and not held."""
        news = Difference.of_changes(changes.written, changes.removed, changes.moved)
        back = set(news.moved)
        news.written = {
            key: value
            for key, value in news.written.items()
            if key in back or differs(self._store_side(key), value)
        }
        news.removed = [
            key
            for key in news.removed
            if key in self._undecodable or self._store_side(key) is not MISSING
        ]
        return news

    def _count_sync(self, difference: Difference[K, V]) -> None:
        self.stats.syncs += 1
        self.stats.reloads += difference.complete
        self.stats.keys_fetched += difference.fetched

    def _log_undecodable(
        self, difference: Difference[K, V], listed: Mapping[K, DecodingError]
    ) -> None:
        for key, error in difference.undecodable.items():
            if key not in listed:
                logger.warning("key %r is left out of the local copy: %s", key, error)

    # -- after a write ------------------------------------------------------------------------

    def _accept(self, commit: object) -> None:
        """Bring the local copy up to a write that the store has acknowledged (rule 0.3).

        :param commit: what the backend said of it; anything but a `Commit` means a reload

        """
        if not isinstance(commit, Commit):
            self._catch_up(force=True)
            return
        if not self._take(commit):
            self._catch_up()

    def _take(self, commit: Commit[K, V]) -> bool:
        """Apply a commit, if the local copy is in the state before it; tell whether it holds it."""
        difference: Difference[K, V] = Difference.of_commit(commit)
        listed = self._undecodable
        with self._copy_lock:
            # Compared with last_synced as it is now, not as it was when the write was sent:
            # another thread may have synced past this commit since.
            known = self._filled and self.last_synced is not None
            replaced: object = None
            if known and commit.after == self.last_synced:
                done = True
            elif known and commit.before == self.last_synced:
                before, undecodable = self._generation, len(self._undecodable)
                replaced = self._apply(difference, commit.after)
                # The copy was clean: that alone can have changed of what `_settle` looks at.
                if (
                    undecodable != len(self._undecodable)
                    or self._generation != before + 1
                    or self._hears
                ):
                    self._settle_after_apply(before)
                done = True
            else:
                done = False
        del replaced
        if done and difference.undecodable:
            self._log_undecodable(difference, listed)
        return done

    def _catch_up(self, *, force: bool = False) -> None:
        """Sync after a write. The write is done: that the store cannot be asked any more is
        recorded, not raised, or the caller would write again."""
        if self._is_inside():
            self._doubt()
            return
        try:
            if force:
                self._compare(force=True)
            else:
                self._compare_told()
        except self.unavailable as error:
            self._doubt()
            self._report_outage(error)
        finally:
            self._feed.deliver()

    def _settle_after_apply(self, before: int) -> None:
        """Settle; and doubt once more what was doubted in the middle of the apply.

        By a signal handler that called `sync`: what it wanted to hear of may be newer.

        """
        if self._generation == before + 1:
            self._settle()
        else:
            self._doubt()

    def _doubt(self) -> None:
        """Note that the store may hold something else than last_synced says (rule 0.4)."""
        with self._copy_lock:
            self.last_synced = None
            self._doubtful = True
            # A sync that asked before must not make the doubt go away with its old answer.
            self._generation += 1
            self._settle()

    # -- fork ---------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """Mark the dict in a forked child: the locks of threads that are no more are replaced.

        Nothing is asked, closed or started here: this runs inside `os.fork`.

        """
        half_applied = not self._copy_lock.acquire(blocking=False)
        self._copy_lock = threading.RLock()
        self._sync_mutex = threading.RLock()
        self._sync_owner = None
        self._feed.after_fork()
        if half_applied:
            self._doubt()

    def _restart_watch(self) -> None:
        raise NotImplementedError  # base.py: the first read after a fork
