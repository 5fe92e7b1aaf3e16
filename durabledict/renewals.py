"""The thread that renews what this process holds of other processes' locks.

One daemon thread, for all locks, which is started when the first lock is taken and ends a moment
after the last one was released. In a forked child nothing is held. A store that answers slowly
makes the renewals of the others late: leases are to be long beside a store's timeouts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .locks import Mutex

__all__ = ["begin", "end"]

logger = logging.getLogger("durabledict.locks")

#: A lease is renewed when this part of it is over.
PART = 1 / 3

#: Seconds for which the thread stays after the last lock was released.
LINGER = 1.0


class _Held:
    """One lock that is held.

    :param mutex: the lock
    :param sent: when the request was sent that began the lease, by the monotonic clock

    """

    __slots__ = ("due", "expires", "mutex")

    def __init__(self, mutex: Mutex, sent: float) -> None:
        self.mutex = mutex
        self.renewed(sent)

    def renewed(self, sent: float) -> None:
        self.due = sent + self.mutex.lease.seconds * PART
        self.expires = sent + self.mutex.lease.seconds

    def renew(self) -> bool:
        """Renew the lease; return False when it is lost, or not held any more."""
        mutex, token = self.mutex, self.mutex.token
        if token is None or mutex.is_lost:
            return False
        sent = time.monotonic()
        try:
            still = mutex.lease.renew(token)
        except Exception as error:
            if time.monotonic() >= self.expires:
                mutex._lose(f"it could not be renewed: {error}")
                return False
            # More often than when all is well: it may be the last chance.
            self.due = sent + mutex.lease.seconds * PART / 4
            return True
        if mutex.token is not token:
            return False  # released meanwhile
        if not still:
            mutex._lose("somebody else has it, or it has expired")
            return False
        self.renewed(sent)
        return True


class _Renewer:
    def __init__(self) -> None:
        # Re-entrant: a finalizer or a signal handler may take a lock in the middle.
        self.changed = threading.Condition(threading.RLock())
        self.held: dict[int, _Held] = {}
        self.thread: threading.Thread | None = None

    def begin(self, mutex: Mutex, sent: float) -> None:
        with self.changed:
            self.held[id(mutex)] = _Held(mutex, sent)
            if mutex.lease.seconds == float("inf"):
                return
            if self.thread is not None:
                self.changed.notify()
                return
            self.thread = threading.Thread(target=self.run, name="durabledict-leases", daemon=True)
            try:
                self.thread.start()
            except BaseException:
                self.thread = None
                del self.held[id(mutex)]
                raise

    def end(self, mutex: Mutex) -> None:
        with self.changed:
            self.held.pop(id(mutex), None)

    def run(self) -> None:
        lingered = False
        while True:
            with self.changed:
                due = min((each.due for each in self.held.values()), default=float("inf"))
                pause = due - time.monotonic()
                if pause > 0:
                    if due == float("inf"):
                        if lingered:
                            self.thread = None
                            return
                        pause = LINGER
                    lingered = due == float("inf") and not self.changed.wait(pause)
                    continue
                now = time.monotonic()
                late = [each for each in self.held.values() if each.due <= now]
            for each in late:
                if not self.renew(each):
                    with self.changed:
                        if self.held.get(id(each.mutex)) is each:
                            del self.held[id(each.mutex)]

    @staticmethod
    def renew(held: _Held) -> bool:
        try:
            return held.renew()
        except BaseException:
            # Nothing may end the thread: the other locks are to be renewed.
            logger.exception("%r is not renewed any more", held.mutex.lease)
            return False


_renewer = _Renewer()


def begin(mutex: Mutex, sent: float) -> None:
    """Renew a lock from now on.

    :param mutex: it was just taken
    :param sent: when that was asked for, by the monotonic clock

    """
    _renewer.begin(mutex, sent)


def end(mutex: Mutex) -> None:
    """Stop renewing a lock: it is about to be released."""
    _renewer.end(mutex)


def _after_fork() -> None:
    global _renewer
    inherited, _renewer = list(_renewer.held.values()), _Renewer()
    for held in inherited:
        held.mutex._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
