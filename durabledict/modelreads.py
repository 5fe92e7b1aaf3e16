"""How a `ModelDict` is read: from the local copy, or from what its thread's transaction sees.

docs/internals.rst, rule 3.4. What a thread wrote, or loaded, in a transaction is in a `View` of its
`Block`; all other threads read the shared copy.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Mapping
from typing import Any, TypeVar

from django.db import connections, router

from . import reading
from .base import DurableDict
from .changes import Difference
from .errors import MISSING, DecodingError, Missing
from .modelconnections import is_in_transaction, runs_event_loop
from .modelstore import ModelStore
from .modeltransactions import Block, View
from .stamps import Write

__all__ = ["ModelReads"]

K = TypeVar("K")
V = TypeVar("V")

#: Seconds for which a thread in a transaction waits for another one that compares.
PATIENCE = 1.0

# What `_ask` may do without: see there.
_OWN_METHODS = [DurableDict.changes, ModelStore.durables]


class ModelReads(ModelStore[K, V]):
    """A dict that shows each transaction its own; see `ModelDict`."""

    __slots__ = ()

    def _view(self) -> View | None:
        """Return what this thread's open transaction sees, if that is something of its own."""
        if not self._transactions:
            return None
        block = Block.of(self._connection)
        return None if block is None else block.view_of(self)

    def _overlay(self) -> Mapping[K, V] | None:
        view = self._view()
        if view is None or (view.entries is None and not self._derive(view)):
            return None
        assert view.entries is not None
        return self._shown(view)

    def _shown(self, view: View) -> Mapping[K, V]:
        entries = view.entries or {}
        if self._overrides:
            entries = dict(entries)
            for layer in list(self._overrides):
                for key, value in layer.items():
                    if isinstance(value, Missing):
                        entries.pop(key, None)
                    else:
                        entries[key] = value
        return _WithUndecodable(entries, view.undecodable) if view.undecodable else entries

    def _derive(self, view: View) -> bool:
        """Make the entries of a view from the shared copy, where that is right; tell whether."""
        if view.spoilt or view.heard or not view.wrote or not self._filled:
            return False
        with self._copy_lock:
            entries, undecodable = self._plain(), dict(self._undecodable)
            stamp, sent = self.last_synced, self._freshness.sent
        for layer in self._overrides:  # the view is of what is stored
            for key in layer:
                value = self._store_side(key)
                if isinstance(value, Missing):
                    entries.pop(key, None)
                else:
                    entries[key] = value
        view.derive(entries, undecodable)
        view.stamp, view.sent = stamp, sent
        return True

    def _before_read(self, key: Any = MISSING) -> Mapping[K, V] | None:
        if not self._transactions:
            super()._before_read(key)
            if not self._transactions:
                return None
        view = None if self._is_closed else self._view()
        if view is None:
            # A callback of the commit that is run before ours reads what was committed.
            self._finish_blocks()
            super()._before_read(key)
            view = None if self._is_closed else self._view()
            if view is None:
                return None
        elif self._must_compare(view):
            self._make_good()
        overlay = self._overlay()
        if overlay is None and key is not MISSING and self._undecodable:
            self._require_decodable(key)
        return overlay

    def _must_compare(self, view: View) -> bool:
        if self._autosync is False:
            # Written past the dict: a manual dict shows that when it is synced.
            shows_copy = view.heard and not view.wrote and self._filled and not self._doubtful
            return view.entries is None and not shows_copy and not self._derive(view)
        if view.entries is None or self._autosync is True:
            return True
        return reading.monotonic() >= view.sent + float(self._autosync)

    def _is_good(self) -> bool:
        if self._transactions:
            view = self._view()
            if view is not None:
                return not self._must_compare(view)
        return super()._is_good()

    def _make_good(self) -> None:
        if self._autosync is False and self._filled and runs_event_loop():
            return  # rule 3.10: the copy as it is, as of the last sync; `_compare` refuses others
        error = self._freshness.error
        if (
            error is not None
            and isinstance(error, Exception)
            and self._on_outage == "stale"
            and reading.monotonic() < self._freshness.retry_at
            and self._is_of_cache(error)
        ):
            # Rule 0.6 leaves the cache alone, and the database answers for what is not held.
            view = self._view()
            if view is not None:
                if self._overlay() is None:
                    self._compare_view(view, False)
                return
            if not self._may_serve():
                self._compare_without_cache(error)
                return
        super()._make_good()

    def _compare(self, *, force: bool = False, unless: Any = None, told: bool = False) -> bool:
        if _get_running_loop() is not None:
            self._refuse_event_loop()
        if self._transactions:
            view = self._view()
            if view is not None and not self._is_inside():
                return self._compare_view(view, force)
            self._finish_blocks()
        # Each strict read comes here: not by way of `_connection`, whose calls would be felt.
        connection = connections[self.using or router.db_for_write(self.model)]
        try:
            if is_in_transaction(connection) and not self._is_inside():
                return self._compare_in_transaction(force, unless)
            return super()._compare(force=force, unless=unless)
        except _LoadedForTransactionError:
            return True
        except self._stamp().unavailable as error:
            if self._on_outage == "raise" or self._is_inside():
                raise
            return self._compare_without_cache(error)

    def _compare_in_transaction(self, force: bool, unless: Any) -> bool:
        """Compare, but do not wait for a thread that may wait for this transaction.

        It asks the database for the rows, and this transaction may have locked them: neither
        Python nor the database would see that the two wait for each other.

        """
        if not self._sync_mutex.acquire(timeout=PATIENCE):
            return self._compare_view(Block.begin(self._connection).view(self), force)
        try:
            return super()._compare(force=force, unless=unless)
        finally:
            self._sync_mutex.release()

    def _compare_view(self, view: View, force: bool) -> bool:
        """Compare in a transaction that has something of its own, and load for it alone."""
        block = Block.of(self._connection)
        own = 1 if block is not None and block.is_open(self._stamp()) else 0
        sent = reading.monotonic()
        self.stats.comparisons += 1
        try:
            stamp = self._read_stamp(own)
        except self._stamp().unavailable as error:
            self._record_failure(error)
            if self._on_outage == "raise":
                raise
            self._report_outage(error)
            stamp = None  # the database itself is read
        if stamp is not None and not force:
            if view.entries is not None and stamp == view.stamp:
                view.sent = sent
                return False
            if view.entries is None and stamp == self.last_synced and self._derive(view):
                view.stamp, view.sent = stamp, sent
                return False
        before = view.entries
        entries, undecodable = _parted(self.durables())
        view.fill(entries, undecodable, stamp, sent)
        self.stats.syncs += 1
        self.stats.reloads += 1
        self.stats.keys_fetched += len(entries)
        return (
            before is None
            or bool(
                Difference.of_reload(
                    before, lambda key: before.get(key, MISSING), entries, False
                ).written
            )
            or before.keys() != entries.keys()
        )

    def _ask(self, since: Any, stamp: Any, force: bool) -> tuple[Difference[K, V], Any]:
        connection = self._connection
        inside = is_in_transaction(connection)
        methods = [getattr(method, "__func__", None) for method in (self.changes, self.durables)]
        if not inside and methods != _OWN_METHODS:
            return super()._ask(since, stamp, force)  # of a subclass, or a test that looks on
        sent = reading.monotonic()
        rows, shared = self._load()
        if shared:
            difference = self._news_of(rows)
            if difference is not None:
                return difference, stamp
        decoded = self._decoded_rows(rows)
        if not shared:
            # An older snapshot, or with what was written past the dict and is not committed: for
            # this transaction alone (rule 3.4).
            entries, undecodable = _parted(decoded)
            Block.begin(connection).view(self).fill(entries, undecodable, stamp, sent)
            raise _LoadedForTransactionError
        with self._copy_lock:
            held = [*dict.keys(self), *self._covered]
        return Difference.of_reload(held, self._store_side, decoded, self._ordered), stamp

    def _news_of(self, rows: list[tuple[Any, Any]]) -> Difference[K, V] | None:
        """Return what differs in rows that all hold pickles, or None: that takes more care.

        In one pass, in which no second dict is made, and no call of ours for a row.

        """
        column = self._value_column
        with self._copy_lock:
            covered, held = self._covered, list(dict.keys(self))
        if covered or self._return_instances or not column.decodable_quickly(self.encoding):
            return None
        # Read while others may apply: then the generation has changed, and this is thrown away.
        get = dict.get.__get__(self)
        found = self._rows.changed(rows, get, len(held))
        if found is None or self._covered is not covered:
            return None
        written, there = found
        removed = [] if there is None else [key for key in held if key not in there]
        return Difference(written, removed, {}, True, fetched=len(rows))

    def _record_failure(self, error: BaseException) -> None:
        if not isinstance(error, _LoadedForTransactionError):
            super()._record_failure(error)

    def _compare_without_cache(self, error: BaseException) -> bool:
        """Read the database itself, while the cache that says what is new cannot be asked."""
        sent = reading.monotonic()
        generation = self._generation
        try:
            difference, _ = self._ask(None, None, True)
        except _LoadedForTransactionError:
            self._report_outage(error)
            return True
        replaced: object = None
        with self._copy_lock:
            if self._generation == generation:
                replaced = self._apply(difference, None)
                self._filled, self._doubtful = True, False
                self._freshness.sent = sent
                self._settle()
        del replaced
        self._count_sync(difference)
        self._report_outage(error)
        return bool(difference.written or difference.removed)

    def _finish_blocks(self) -> None:
        """Finish transactions that ended without a word to their callbacks (rule 3.3)."""
        if self._transactions:
            with self._copy_lock:  # another thread may add one
                blocks = list(self._blocks)
            for block in blocks:
                if not block.is_current():
                    block.finish(committed=False)

    def _block_opened(self, block: Block) -> None:
        with self._copy_lock:
            self._blocks.add(block)
            self._transaction_opened()

    def _block_finished(self, view: View, ended: Mapping[Any, Write]) -> None:
        """Take over what a transaction wrote, if it is known to be committed and what it was."""
        self._transaction_closed()
        if view.wrote:
            write = ended.get(self._stamp().identity)
            known = write is not None and not view.spoilt and not view.heard
            if (
                not known
                or write is None
                or not self._take(self._committed(write, view.written, list(view.removed)))
            ):
                self._doubt()

    def _note_foreign_write(self, block: Block) -> None:
        view = block.view(self)
        view.heard = True
        if self._autosync is False and view.entries is not None:
            view.stamp = None  # a manual dict goes on showing what it has, until `sync`
        else:
            view.entries = None


class _LoadedForTransactionError(Exception):
    """What was loaded serves one transaction alone, and is in its view."""


class _WithUndecodable(dict[Any, Any]):
    """The entries of a view of which some cannot be decoded."""

    def __init__(self, entries: Mapping[Any, Any], undecodable: Mapping[Any, DecodingError]):
        super().__init__(entries)
        self._undecodable = undecodable

    def _require(self, key: Any) -> None:
        error = self._undecodable.get(key)
        if error is not None and not dict.__contains__(self, key):
            raise DecodingError(str(error)) from error.__cause__

    def __getitem__(self, key: Any) -> Any:
        self._require(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None, /) -> Any:
        self._require(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._require(key)
        return super().__contains__(key)


def _parted(entries: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, DecodingError]]:
    difference: Difference[Any, Any] = Difference.of_changes(entries, ())
    return difference.written, difference.undecodable
