"""Locks that processes share, each held for a lease that its holder renews while it lives.

A store supplies a `Lease`: four questions about one name, each one round trip. A `Mutex` makes a
lock of it that is used as one of `threading` is. What holds the lock is a random token, so nobody
renews or releases what is another's; a holder that is killed costs the others no more than the
lease; and one that stalls for longer than that has lost the lock, which it can ask (`is_lost`) and
is never raised (rule 5.7 of docs/internals.rst). `renewals` has the thread that renews.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from . import renewals

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LEASE", "Lease", "Mutex", "ProcessLease", "pauses"]

logger = logging.getLogger("durabledict.locks")

#: Seconds for which a lock is held without being renewed, where nothing else is asked for.
LEASE = 30.0

#: Seconds between two tries to get a lock: the first, and the longest.
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.1


class Lease(ABC):
    """What a store supplies for one named lock. Nothing here waits, but for `wait`.

    :param seconds: the lease's length: what is not renewed for so long is anybody's
    :param identity: equal for two leases of this process that are about the same lock; the lease
        keeps alive whatever has its `id` in it

    """

    def __init__(self, seconds: float, identity: Hashable) -> None:
        self.seconds = seconds
        self.identity = identity

    @abstractmethod
    def acquire(self, token: bytes) -> bool:
        """Take the lock if nobody has it; tell whether it was taken. One round trip.

        :param token: what will show that it is one's own; no two acquisitions have the same

        """

    @abstractmethod
    def renew(self, token: bytes) -> bool:
        """Begin the lease anew, if the lock is still held by that token; tell whether it is."""

    @abstractmethod
    def release(self, token: bytes) -> bool:
        """Give the lock up, if it is still held by that token; tell whether it was."""

    @abstractmethod
    def holder(self) -> bytes | None:
        """Return the token that holds the lock, in whatever process; None: nobody does."""

    def is_held(self) -> bool:
        """Whether anybody holds the lock, in any process. One round trip."""
        return self.holder() is not None

    def wait(self, seconds: float) -> None:
        """Return when the lock may be free, or after that time: here, always after it."""
        time.sleep(seconds)


class ProcessLease(Lease):
    """A lock of this process alone: no other one hears of it. It needs no renewal.

    :param owner: what the lock is about: a dict, or a Store
    :param name: of the lock; one owner's locks of other names are other locks

    """

    def __init__(self, owner: object, name: str) -> None:
        super().__init__(float("inf"), (id(owner), name))
        self._owner = owner  # so that no other object has its id meanwhile

    def acquire(self, token: bytes) -> bool:
        """Take the lock if nobody has it. No round trip."""
        return _process_holders.setdefault(self.identity, token) == token

    def renew(self, token: bytes) -> bool:
        """Tell whether the lock is held by that token."""
        return _process_holders.get(self.identity) == token

    def release(self, token: bytes) -> bool:
        """Give the lock up, if it is held by that token."""
        if not self.renew(token):
            return False
        del _process_holders[self.identity]
        return True

    def holder(self) -> bytes | None:
        """Return the token of the thread of this process that holds the lock. No round trip."""
        return _process_holders.get(self.identity)


class Mutex:
    """A lock over a `Lease`, with the methods of `threading.Lock`; a context manager.

    >>> owner = object()
    >>> mutex = Mutex(ProcessLease(owner, "report"))
    >>> with mutex:
    ...     Mutex(ProcessLease(owner, "report")).acquire(blocking=False)
    False
    >>> mutex.locked()
    False

    Threads of one process queue here, so that only one of them asks the store. While it is held, a
    thread of the process renews the lease.

    :param lease: a store's, as its ``_lease(name, seconds)`` returns it
    :param any_thread: a thread that holds it may hand it to another one, which releases it. So to
        take it twice in one thread is no error, but waits for that

    """

    def __init__(self, lease: Lease, *, any_thread: bool = False) -> None:
        self.lease = lease
        self._any_thread = any_thread
        self._queue = _queue_of(lease.identity)
        self._token: bytes | None = None
        self._is_lost = False
        self._is_inherited = False

    def __repr__(self) -> str:
        state = "free" if self._token is None else "lost" if self._is_lost else "held"
        return f"Mutex({self.lease!r}, {state})"

    @property
    def token(self) -> bytes | None:
        """What holds the lock, while this does; None: it does not."""
        return self._token

    @property
    def is_lost(self) -> bool:
        """Whether the lock was found to be somebody else's while this held it, or anybody's."""
        return self._is_lost

    @property
    def is_mine(self) -> bool:
        """Whether the thread that asks holds this very lock, by this object or another one."""
        return self._queue.holder == threading.get_ident()

    def is_entered(self) -> bool:
        """Whether the thread that asks holds the lock in the store, by whatever client of that.

        So that to wait for it would never end. One round trip, and none where the thread holds no
        lock at all.

        """
        own = threading.get_ident()
        if self._any_thread or own not in list(_threads.values()):
            return False
        holder = self.lease.holder()
        return holder is not None and _threads.get(holder) == own

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; tell whether it was taken. One round trip, and one for each further try.

        :param blocking: wait for it
        :param timeout: seconds to wait at most; -1: without end
        :raises RuntimeError: to wait would never end: this thread has it already
        :raises ValueError: a timeout without waiting, as `threading.Lock` has it
        :raises Exception: the driver's own: the store cannot be asked

        """
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0 and timeout != -1:
            raise ValueError("timeout value must be a non-negative number, or -1")
        if blocking and self.is_mine and not self._any_thread:
            raise self._waits_for_itself()
        ends = None if timeout == -1 else time.monotonic() + timeout
        if not self._queue.acquire(blocking, timeout):
            return False
        taken = False
        try:
            taken = self._ask(blocking, ends)
        finally:
            if not taken:
                self._queue.release()
        return taken

    def _ask(self, blocking: bool, ends: float | None) -> bool:
        """Ask the store until the lock is taken; only the first thread of the queue does."""
        token = os.urandom(16)
        lengths = pauses()
        is_first = True
        while True:
            sent = time.monotonic()
            try:
                if self.lease.acquire(token):
                    self._is_lost = self._is_inherited = False
                    self._token = token
                    if not self._any_thread:
                        _threads[token] = threading.get_ident()
                    renewals.begin(self, sent)
                    return True
            except BaseException:
                # It may have been taken all the same, or will be: then nobody is to wait for it.
                self._token = None
                _threads.pop(token, None)
                self._give_back(token)
                raise
            left = float("inf") if ends is None else ends - time.monotonic()
            if not blocking or left <= 0:
                return False
            if is_first and self.is_entered():
                raise self._waits_for_itself()
            is_first = False
            self.lease.wait(min(left, next(lengths)))

    def release(self) -> None:
        """Give the lock up. One round trip.

        That it was lost meanwhile, or that the store cannot be asked, is logged and not raised: the
        lease ends by itself.

        :raises RuntimeError: it is not held

        """
        token, self._token = self._token, None
        if token is None:
            if self._is_inherited:  # by a fork: it is the parent's
                self._is_inherited = False
                return
            raise RuntimeError("release of a lock that is not held")
        _threads.pop(token, None)
        renewals.end(self)
        try:
            self._give_back(token)
        finally:
            self._queue.release()

    def _waits_for_itself(self) -> RuntimeError:
        return RuntimeError(
            f"{self.lease!r} is held by this very thread: to wait for it would never end"
        )

    def _give_back(self, token: bytes) -> None:
        try:
            self.lease.release(token)
        except Exception as error:
            log = logger.debug if self._is_lost else logger.warning
            log("%r could not be released, and will expire: %s", self.lease, error)

    def still_held(self) -> bool:
        """Ask whether the lock is still one's own, and begin the lease anew. One round trip.

        :raises Exception: the driver's own: the store cannot be asked

        """
        token = self._token
        if token is None or self._is_lost:
            return False
        if not self.lease.renew(token):
            self._lose("somebody else has it, or it has expired")
            return False
        return True

    def _lose(self, why: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            logger.warning("%r was lost while it was held: %s", self.lease, why)

    def locked(self) -> bool:
        """Whether anybody holds the lock, in any process. One round trip, or none."""
        return self._token is not None or self.lease.is_held()

    def _forget(self) -> None:
        """Leave the lock to the parent: this is a forked child, in which nothing is held."""
        self._token, self._is_inherited = None, True

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def pauses() -> Iterator[float]:
    """Yield the seconds between tries: growing, and of random length, so that none keep step."""
    length = FIRST_PAUSE
    while True:
        yield length * random.uniform(0.5, 1.0)
        length = min(length * 1.5, LONGEST_PAUSE)


class _Queue:
    """The threads of this process that want one lock, one of which may ask the store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.holder: int | None = None

    def acquire(self, blocking: bool, timeout: float) -> bool:
        if not self._lock.acquire(blocking, timeout):
            return False
        self.holder = threading.get_ident()
        return True

    def release(self) -> None:
        self.holder = None
        self._lock.release()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self.holder = None


# A queue lives as long as there is a `Mutex` of it. The lock is re-entrant: a finalizer or a signal
# handler may create something in the middle (rule 5.7).
_queues: weakref.WeakValueDictionary[Hashable, _Queue] = weakref.WeakValueDictionary()
_queues_lock = threading.RLock()

# Which thread holds what, by tokens: so one that would wait for itself is told so, by whatever
# client of the store it asks.
_threads: dict[bytes, int] = {}

# Who holds the locks that are of this process alone.
_process_holders: dict[Hashable, bytes] = {}


def _queue_of(identity: Hashable) -> _Queue:
    with _queues_lock:
        found = _queues.get(identity)
        if found is None:
            made = _Queue()
            # Somebody may have come in the middle, in this thread.
            found = _queues.setdefault(identity, made)
        return found


def _after_fork() -> None:
    # Threads that are no more may hold them, and what this process's parent holds it does not.
    global _queues_lock
    _queues_lock = threading.RLock()
    _process_holders.clear()
    _threads.clear()
    for queue in list(_queues.values()):
        queue.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
