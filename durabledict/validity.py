"""Validity: what a read may rely on without asking the store.

`_settle` alone decides, of the state that is kept here: whether the dict is of the native class or
of the syncing one (docs/internals.rst, "Native and syncing"), and until when reads of the latter
need not compare. How they compare is in `comparing`.
"""

from __future__ import annotations

import logging
import math
from datetime import datetime
from typing import Any, Generic, TypeVar

from . import reading
from .localcopy import LocalCopy
from .options import checked_autosync, outage_policy
from .outage import Freshness
from .reading import syncing_class

__all__ = ["DatedCopy"]

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger("durabledict.sync")

_set_class = object.__dict__["__class__"].__set__


class DatedCopy(LocalCopy[K, V], Generic[K, V]):
    """A local copy that knows until when it will do as it is."""

    __slots__ = (
        "_autosync",
        "_doubtful",
        "_filled",
        "_freshness",
        "_glimpse",
        "_is_closed",
        "_max_stale",
        "_native_class",
        "_on_outage",
        "_transactions",
        "_watch_lost",
    )

    def __init__(self, autosync: object, on_outage: str, max_stale: object) -> None:
        super().__init__()
        # A syncing class says whose it is; `type(d)(...)` makes an instance of it.
        self._native_class: type[Any] = type(self).__dict__.get("_native_of", type(self))
        self._autosync = checked_autosync(autosync, self._autosync_words)
        self._on_outage, self._max_stale = outage_policy(on_outage, max_stale)
        self._freshness = Freshness()
        # What `_glance` said before the last comparison; None where a read must not rely on it.
        self._glimpse: Any = None
        self._filled = False
        self._doubtful = False  # a write of unknown outcome, or a sync that lost every round
        self._transactions = 0
        self._watch_lost = False
        self._is_closed = False
        # Made here and not by `_settle`, under whose lock a metaclass of the user's would run.
        syncing_class(self._native_class)
        with self._copy_lock:
            self._settle()

    # -- what the caller chose ----------------------------------------------------------------

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

    def _is_good(self) -> bool:
        """Whether a read needs no comparison now."""
        if self._autosync is True and not self._hears and self._freshness.error is None:
            return False  # as `_compares_at` would say
        return self._filled and reading.monotonic() < self._compares_at()

    # -- a store that tells of each change by itself ------------------------------------------

    # Whether it does. Then a strict dict is native until something was told, and its read asks
    # only for what that was.
    _hears = False

    def _is_told(self) -> bool:
        """Whether the copy holds all that the store has told of by itself. No lock, no waiting.

        `_settle` is to be called when that changes.

        """
        return False

    # -- a store that is cheap to look at -----------------------------------------------------

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

    # -- doubts and outages -------------------------------------------------------------------

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

    def _may_serve(self) -> bool:
        """Whether the copy may be served though the store cannot be asked."""
        limit = self._max_stale
        return self._filled and (limit is None or self._freshness.age() <= limit)

    def _report_outage(self, error: BaseException, *, noted: bool = True) -> None:
        if self._freshness.first_report(noted=noted):
            logger.warning(
                "the store of this %s cannot be asked (%s: %s); %s",
                self._native_class.__name__,
                type(error).__name__,
                error,
                f"the local copy is {self._freshness.age():.1f} s old"
                if self._filled
                else "nothing has been loaded yet",
            )

    def _require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"this {self._native_class.__name__} is closed")
