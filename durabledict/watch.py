"""The background thread that syncs a dict when its store says so.

The store's notification is a hint; the stamp is the proof. Whatever `wait` answers, the thread
compares stamps, at least once an `interval`: a message that was lost costs one interval.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

from .outage import backoff

if TYPE_CHECKING:
    from typing_extensions import Self

    from .watching import WatchedCopy

__all__ = ["Watch"]

logger = logging.getLogger("durabledict.watch")

# A pause after a wake-up that brought nothing, so that a store whose stamp never stays the same
# does not keep a core busy.
BREATHER = 0.01


class Watch:
    """A running watch, as `DurableDict.watch` returns it; a context manager that stops it.

    The thread is a daemon and holds the dict weakly between two rounds: a dict that nobody uses
    any more ends its watch within one interval.

    """

    def __init__(self, watched: WatchedCopy[Any, Any], interval: float) -> None:
        self.interval = interval
        self._watched = weakref.ref(watched)
        self._make_thread()

    def _make_thread(self) -> None:
        watched: Any = self._watched()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=_run,
            args=(self._watched, self._stopping, self.interval),
            name=f"durabledict-watch-{type(watched).__name__}",
            daemon=True,
        )

    def _start(self) -> None:
        """Start the thread; once more in a forked child, so that its handle goes on working."""
        if self._thread.ident is not None:
            self._make_thread()
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread is alive: a forked child has none until its first read."""
        return self._thread.is_alive()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread, and wait for it, unless this is it.

        :param timeout: seconds to wait at most; a callback of `on_change` may keep the thread

        """
        self._stopping.set()
        watched = self._watched()
        if watched is not None and watched._watch is self:  # or its successor would spin
            watched._interrupt_wait()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout)
            if self._thread.is_alive():
                logger.warning("the watch thread is still busy after %.1f s", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _run(
    reference: weakref.ref[WatchedCopy[Any, Any]], stopping: threading.Event, interval: float
) -> None:
    failed = 0
    waits = False
    while not stopping.is_set():
        watched = reference()
        if watched is None or watched._is_closed:
            return
        try:
            # The first round, and the one after a failure, compares at once: what was written
            # while nobody waited is seen without waiting.
            woken = waits and watched.wait(watched.last_synced, interval)
            if stopping.is_set():
                return
            changed = watched._sync_watched(woken)
            failed, waits = 0, True
        except BaseException as error:  # SystemExit out of a callback, too: nothing may end it
            # At the end of the interpreter the stores are closed under a watch that runs.
            if stopping.is_set() or not threading.main_thread().is_alive():
                return
            failed, waits = failed + 1, False
            if not isinstance(error, watched.unavailable):
                # An outage is reported once by the dict; anything else is a bug that the log
                # has to show, in the backend or in a class that does not unpickle.
                logger.exception("a watch could not sync; it tries again")
            pause = backoff(failed)
        else:
            pause = BREATHER if woken and not changed else 0.0
        # Out here the traceback is gone, whose frames hold the dict.
        del watched
        if pause:
            stopping.wait(pause)
