"""One creator at a time: whoever finds nothing under a key creates it, and the others wait.

Between threads of a process by a *flight*, which the first one leads and the others wait for;
between processes by a lock of the store (`locks`), which only the leader asks for. What was created
is stored if nobody else has written meanwhile, as well as the store can tell (rule 5.7 of
docs/internals.rst). Dicts and Stores both use this; what they do about a key is a `Target`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from datetime import timedelta
from enum import Enum
from typing import Any

from .errors import MISSING
from .locks import Lease, Mutex, pauses
from .options import seconds

__all__ = ["Outcome", "Target", "checked_timeout", "create"]

logger = logging.getLogger("durabledict.locks")


class Outcome(Enum):
    """What became of what was created."""

    #: It is in the store: the others look there.
    STORED = "stored"
    #: It is not to be kept, or there was nothing to store: those who waited are given it.
    HANDED = "handed"
    #: Somebody else has written, or the creator has raised: the others look, and one creates.
    NONE = "none"


class Target(ABC):
    """One key of a dict or a Store, about which something is to be created.

    :param identity: equal for those who are about the same key of the same object; this target
        keeps alive what has its `id` in it

    """

    def __init__(self, identity: Hashable) -> None:
        self.identity = identity

    @abstractmethod
    def __repr__(self) -> str:
        """What is created, for messages."""

    @abstractmethod
    def lease(self) -> Lease:
        """Return the lock of the key."""

    @abstractmethod
    def look(self) -> Any:
        """Return what is there, or MISSING; asks the store."""

    def look_expired(self) -> Any:
        """Return what may be served while it is created anew, or MISSING."""
        return MISSING

    @abstractmethod
    def reserve(self) -> Any:
        """Return what is there, or MISSING, and note what shows that nobody has written since.

        Called with the lock held.

        """

    @abstractmethod
    def store(self, value: Any, mutex: Mutex) -> tuple[Any, Outcome]:
        """Store what was created, if nobody has written since, and the lock is still held.

        :return: what the creator's caller is to get, and what became of it

        """

    def abandon(self) -> None:  # noqa: B027  # not all of them leave something
        """Take back what `reserve` left: nothing was created, or it was not stored."""


class _Flight:
    """One creation in this process: a thread leads, others wait."""

    def __init__(self) -> None:
        self.leader = threading.get_ident()
        self.landed = threading.Event()
        self.outcome = Outcome.NONE
        self.value: Any = MISSING


# By the identity of targets. To add to it, and to take away, are single steps: no lock is needed,
# which a signal handler or a finalizer that creates something would wait for.
_flights: dict[Hashable, _Flight] = {}


def create(target: Target, creator: Callable[[], Any], timeout: float | None = None) -> Any:
    """Return what is under a key where nothing was a moment ago; see `get_or_create`.

    :param creator: called without any lock of ours that code of the user's could wait for, but for
        the one of this key
    :param timeout: seconds to wait for what another one creates; None: without end
    :raises RuntimeError: this thread is creating it already
    :raises TimeoutError: another one was not done in time

    """
    ends = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        own = _Flight()
        try:
            flight = _flights.setdefault(target.identity, own)
            if flight is own:
                return _lead(target, creator, flight, ends)
        finally:
            # Also where a KeyboardInterrupt came just before it was led.
            if _flights.get(target.identity) is own:
                del _flights[target.identity]
            own.landed.set()
        if flight.leader == threading.get_ident():
            raise _reentered(target)
        expired = target.look_expired()
        if expired is not MISSING:
            return expired
        left = ends - time.monotonic()
        if not flight.landed.wait(None if left == float("inf") else max(0.0, left)):
            raise _too_late(target, timeout)
        if flight.outcome is Outcome.HANDED:
            return flight.value
        found = target.look()
        if found is not MISSING:
            return found
        if flight.outcome is Outcome.STORED:
            # Forgotten at once: it was there while this caller waited.
            return flight.value


def _lead(target: Target, creator: Callable[[], Any], flight: _Flight, ends: float) -> Any:
    mutex = Mutex(target.lease())
    if mutex.is_mine:
        raise _reentered(target)
    lengths = pauses()
    is_first = True
    while not mutex.acquire(blocking=False):
        # Another process, or another Store over the same store, is creating it.
        found = target.look()
        if found is MISSING:
            found = target.look_expired()
        if found is not MISSING:
            return found
        if is_first and mutex.is_entered():
            raise _reentered(target)
        is_first = False
        left = ends - time.monotonic()
        if left <= 0:
            raise _too_late(target, None)
        mutex.lease.wait(min(left, next(lengths)))
    try:
        value, outcome = _create_locked(target, creator, mutex)
    finally:
        mutex.release()
    flight.value, flight.outcome = value, outcome
    return value


def _create_locked(target: Target, creator: Callable[[], Any], mutex: Mutex) -> tuple[Any, Outcome]:
    found = target.reserve()
    if found is not MISSING:
        return found, Outcome.STORED
    try:
        created = creator()
        if mutex.token is None:
            # A child that was forked meanwhile: the lock, and what was reserved, are its parent's.
            return created, Outcome.NONE
        value, outcome = target.store(created, mutex)
    except BaseException:
        if mutex.token is not None:
            _abandon(target)
        raise
    if outcome is not Outcome.STORED:
        _abandon(target)
    return value, outcome


def _abandon(target: Target) -> None:
    try:
        target.abandon()
    except Exception as error:
        # What the creator raised, or made, is what its caller is to get.
        logger.warning("%r: what was reserved for it stays until it expires: %s", target, error)


def _reentered(target: Target) -> RuntimeError:
    return RuntimeError(
        f"{target!r} is being created by this very thread: its creator asks for what it is to "
        "create, and would wait for itself"
    )


def _too_late(target: Target, timeout: float | None) -> TimeoutError:
    within = "in time" if timeout is None else f"within {timeout:g} s"
    return TimeoutError(f"{target!r} is being created by another caller, who was not done {within}")


def checked_timeout(timeout: float | timedelta | None) -> float | None:
    """Return a timeout in seconds.

    :raises TypeError: no number of seconds, 0 or more, and no timedelta

    """
    if timeout is None:
        return None
    found = seconds(timeout)
    if found is None or found < 0:
        raise TypeError(f"timeout={timeout!r}: write seconds, 0 or more, a timedelta, or None")
    return found


if hasattr(os, "register_at_fork"):
    # The threads that lead them are the parent's.
    os.register_at_fork(after_in_child=_flights.clear)
