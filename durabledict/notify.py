"""Deliver changes to `on_change` callbacks, in order, outside all locks."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from .changes import differs
from .errors import Missing

__all__ = ["ChangeFeed"]

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger("durabledict.notify")


class _Subscription(Generic[K, V]):
    """One call of `on_change`: the same function subscribed twice is two subscriptions."""

    def __init__(self, callback: Callable[[K, V | Missing, V | Missing], object]) -> None:
        self.callback = callback
        self.active = True


class ChangeFeed(Generic[K, V]):
    """A queue of changes, filled under the dict's lock and emptied after it is released.

    The lock gives the queue its order; one thread at a time empties it, so that the callbacks
    hear the changes in that order. A thread that finds another one delivering leaves its own
    changes to it.

    """

    def __init__(self) -> None:
        self._subscriptions: tuple[_Subscription[K, V], ...] = ()
        # Re-entrant: a finalizer, which may run at any time, may subscribe or unsubscribe.
        self._edit = threading.RLock()
        self._queue: deque[tuple[tuple[_Subscription[K, V], ...], K, V | Missing, V | Missing]] = (
            deque()
        )
        self._delivering = threading.Lock()

    @property
    def wanted(self) -> bool:
        """Whether anybody listens: where nobody does, no change is collected."""
        return bool(self._subscriptions)

    def subscribe(
        self, callback: Callable[[K, V | Missing, V | Missing], object]
    ) -> Callable[[], None]:
        """Add `callback`; return a function that takes it away again, also out of the queue."""
        if not callable(callback):
            raise TypeError(f"on_change takes a function, not {type(callback).__name__}")
        subscription: _Subscription[K, V] = _Subscription(callback)
        with self._edit:
            self._subscriptions = (*self._subscriptions, subscription)

        def unsubscribe() -> None:
            subscription.active = False
            with self._edit:
                self._subscriptions = tuple(
                    other for other in self._subscriptions if other is not subscription
                )

        return unsubscribe

    def put(self, changes: Iterable[tuple[K, V | Missing, V | Missing]]) -> None:
        """Queue changes for those who listen now. The caller holds the dict's lock."""
        subscriptions = self._subscriptions
        self._queue.extend((subscriptions, key, old, new) for key, old, new in changes)

    def deliver(self) -> None:
        """Call the callbacks with all that is queued. The caller holds no lock.

        The queue is looked at again after `_delivering` is released: a change that another
        thread queued between our last look and the release, finding the lock taken, would
        otherwise wait for the next one. A callback that writes to the dict comes back here,
        finds the lock taken, and its change is delivered by the loop that called it.

        """
        while self._queue:
            delivering = self._delivering  # a callback may fork, which replaces it
            if not delivering.acquire(blocking=False):
                return
            try:
                while self._queue:
                    # One at a time: what a callback raises that ends its thread must not take
                    # the other changes along.
                    self._call(*self._queue.popleft())
            finally:
                delivering.release()

    def after_fork(self) -> None:
        """Forget locks that a thread of the parent may have held."""
        self._edit = threading.RLock()
        self._delivering = threading.Lock()

    @staticmethod
    def _call(
        subscriptions: tuple[_Subscription[K, V], ...], key: K, old: V | Missing, new: V | Missing
    ) -> None:
        # Compared here and not where the change was queued: == is the user's code.
        if not differs(old, new):
            return
        for subscription in subscriptions:
            if subscription.active:
                try:
                    subscription.callback(key, old, new)
                except Exception:
                    logger.exception("an on_change callback failed for key %r", key)
