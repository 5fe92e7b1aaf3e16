"""Watching: who hears of changes, the thread that syncs, and `close`, which ends it.

The thread itself is `watch.Watch`; here is its dict's part, and what a fork asks of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import Missing
from .modifying import ModifiableCopy
from .options import seconds
from .watch import Watch

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["WatchedCopy"]

K = TypeVar("K")
V = TypeVar("V")


class WatchedCopy(ModifiableCopy[K, V], Generic[K, V]):
    """A local copy that a thread may keep up to its store, until it is closed."""

    __slots__ = ("_interrupted", "_watch")

    if TYPE_CHECKING:  # the backend's part, documented in base.py

        def wait(self, since: Any, timeout: float) -> bool: ...
        def _interrupt_wait(self) -> None: ...

    def __init__(self, autosync: object, on_outage: str, max_stale: object) -> None:
        self._watch: Watch | None = None
        # Makes the polling `wait` of base.py return.
        self._interrupted = threading.Event()
        super().__init__(autosync, on_outage, max_stale)

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

    def _after_fork(self) -> None:
        super()._after_fork()
        self._interrupted = threading.Event()
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
