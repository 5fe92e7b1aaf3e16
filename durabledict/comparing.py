"""Comparing: the copy's stamp with the store's, and applying what differs.

docs/internals.rst numbers the rules and shows the races; the numbers here are its. In short: the
stamp is read before the data (0.1), compared with `!=` (0.1), and an answer is applied only if
nothing else was applied since the question (0.3). One thread asks at a time; another may use the
answer if the question was sent after its own read began (0.6).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import reading
from .changes import Changes, Commit, Difference, Undecodable, differs
from .errors import MISSING, DecodingError
from .outage import Stats, bare
from .validity import DatedCopy

__all__ = ["ComparedCopy"]

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger("durabledict.sync")

# How often a sync starts again because something else was applied meanwhile (rule 0.3).
ROUNDS = 3
IS_LAST = (False,) * (ROUNDS - 1) + (True,)


class ComparedCopy(DatedCopy[K, V], Generic[K, V]):
    """A local copy that is brought up to its store.

    The lock order is `_writers` (writing.py), `_sync_mutex`, the backend's own, `_copy_lock`. The
    second is held while the store is asked, so that the others wait for the answer; the last never
    is.

    """

    __slots__ = (
        "_answer_error",
        "_answered",
        "_asked",
        "_sync_mutex",
        "_sync_owner",
        "stats",
    )

    if TYPE_CHECKING:  # the backend's part, documented in base.py
        unavailable: tuple[type[BaseException], ...]

        def last_updated(self) -> Any: ...
        def durables(self) -> Mapping[K, V | Undecodable]: ...
        def changes(self, since: Any) -> Changes[K, V] | None: ...

    def __init__(self, autosync: object, on_outage: str, max_stale: object) -> None:
        super().__init__(autosync, on_outage, max_stale)
        self.stats = Stats()
        self._sync_mutex = threading.RLock()
        self._sync_owner: int | None = None
        self._asked = 0
        self._answered = 0
        self._answer_error: BaseException | None = None

    # Whether `durables` gives an order that is promised.
    _ordered = False

    # -- asking -------------------------------------------------------------------------------

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

    # -- a store that tells of each change by itself ------------------------------------------

    def _told_stamp(self) -> Any:
        """Return the stamp of what the store has told of by itself, without asking."""
        return self.last_updated()

    def _compare_told(self, unless: Callable[[], bool] | None = None) -> bool:
        """Bring the copy up to what the store has told of by itself; else, compare."""
        return self._compare(unless=unless)

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
