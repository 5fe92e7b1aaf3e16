"""Stamps in a fast cache: "last updated" for a store that cannot tell it fast.

docs/internals.rst, rules 3.1 and 3.2, is the protocol. A stamp is one number in the cache. A
writer raises it by 1 before it begins and by 65,535 when it has ended, so its low 16 bits count the
writers that are at work, and the bits above them change with every write. A reader compares those.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from . import reading
from .options import seconds
from .stampcaches import MemoryCache, StampCache, call_after_fork, stamp_cache

__all__ = ["CacheStamp", "MemoryCache", "Stamp", "Write"]

logger = logging.getLogger("durabledict.stamps")

#: What the low bits can count.
WRITERS = 1 << 16

#: What a writer adds at its end, after the 1 of its beginning.
ENDED = WRITERS - 1

#: A number below this is no stamp: INCRBY has made a key that was not there, say.
LEAST = 1 << 61

#: A closing answer further ahead of the opening one than this is of another base: two bases lie as
#: near to each other once in 500 million times.
FAR = 1 << 32

#: So many stamps are left out, at most, when a stamp is mended: it may be an old one come back, and
#: the next of those are known.
SKIPPED = 1 << 12

#: Seconds for which a copy is good while a writer is at work.
GOOD = 1.0

#: Seconds after which writers that never ended are taken for dead.
DEAD = 60.0

#: Seconds between two looks, each of which finds writers at work, in which those of the first may
#: have ended, and others begun.
SPARSE = 10.0


class Stamp(NamedTuple):
    """What `CacheStamp.read` says; a copy is out of date when it differs from its own.

    :param number: the bits that every write changes
    :param round: how often `verify` has passed
    :param pending: 0, or, while writers are at work, another number each second

    """

    number: int
    round: int
    pending: int


class Write:
    """One write: what the stamp was before and after it, as far as that is known.

    :param before: the stamp of the state before this write, if nobody else wrote; None before the
        write has ended, and where it cannot be told
    :param after: the stamp that this write gave

    """

    __slots__ = ("after", "before")

    def __init__(self, before: Stamp | None = None, after: Stamp | None = None) -> None:
        self.before = before
        self.after = after


class CacheStamp:
    """The stamp of one store in a cache that its processes share.

    >>> stamp = CacheStamp(MemoryCache(), "settings")
    >>> before = stamp.read()
    >>> with stamp.writing():
    ...     pass  # write to the store
    >>> stamp.read() == before
    False
    >>> CacheStamp({}, "settings")
    Traceback (most recent call last):
    TypeError: a stamp is kept in a client of pymemcache or redis-py, a cache of Django's or its
    alias, or a MemoryCache, not in a dict

    :param cache: a pymemcache or redis-py client, a cache of Django's (or the alias of one), or a
        `MemoryCache`; it and its settings are left as they are
    :param key: the cache's key; the processes that share a store give the same one
    :param verify: seconds, or a timedelta, after which a reader reloads whatever the stamp says:
        a stamp may come back to a value it had (a node of memcached that was away), or be lost in
        the middle of a write whose process is then killed. None: never
    :raises TypeError: a cache that is none of these
    :raises ValueError: no `verify` over several nodes of memcached; a key that the cache does not
        take

    """

    def __init__(self, cache: Any, key: str, *, verify: float | timedelta | None = 60.0) -> None:
        self.cache: StampCache = stamp_cache(cache)
        self.cache.check_key(key)
        self.key = key
        self.verify = _checked(verify, self.cache)
        # Re-entrant, since a finalizer that reads may come while it is held.
        self._lock = threading.RLock()
        self._latest = Stamp(0, 0, 0)
        # The number in the cache that gave the latest stamp, while no writer was at work.
        self._quiet: tuple[int, Stamp] = (0, self._latest)
        self._good_at = -1.0  # when the latest stamp was the whole truth
        self._pending = 0
        self._round = 0
        self._verify_at: float | None = None
        self._at_work_since: float | None = None
        self._seen = (0, 0.0)  # the bits that writes change, and when
        call_after_fork(self)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        if self._verify_at is not None and self.verify is not None:
            # All children have the parent's, and are not to reload in one instant.
            self._verify_at -= self.verify * random.uniform(0.0, 0.25)

    @property
    def identity(self) -> tuple[object, str]:
        """What two stamps have in common that are one number in one cache."""
        return self.cache.identity, self.key

    @property
    def unavailable(self) -> tuple[type[BaseException], ...]:
        """The exceptions that mean "the cache cannot be asked"."""
        return self.cache.unavailable

    # -- reading ------------------------------------------------------------------------------

    def read(self, own: int = 0) -> Stamp | None:
        """Return the stamp, to be read before the data that it vouches for. One get.

        Where there is none, one is added and read back: three requests.

        :param own: how many of the writers at work are the caller's own
        :return: None where the cache does not keep what it is given: then nothing is known
        :raises Exception: the cache's own, when it cannot be asked

        """
        asked = reading.monotonic()
        number = self.cache.get(self.key)
        if number is None or number < LEAST:
            number = self._created(number)
            if number is None:
                return None
        known, latest = self._quiet
        if number == known and not own and (self._verify_at is None or asked < self._verify_at):
            # Nothing new, as most often: what `_judged` would say.
            self._good_at, self._seen = asked, (latest.number, asked)
            return latest
        stamp, dead = self._judged(number, own, asked)
        if dead:
            logger.warning(
                "a writer of %r began %.0f s ago or more and has not ended: taken for dead",
                self.key,
                DEAD,
            )
            self.renew()
        return stamp

    def _created(self, found: int | None) -> int | None:
        """Put a stamp where there is none, and read it back: another process may be faster."""
        if found is None:
            self.cache.add(self.key, _new_base())
        else:
            if found < 0:
                logger.warning("what was under %r in the cache is no stamp: replaced", self.key)
            self.cache.put(self.key, _new_base())
        number = self.cache.get(self.key)
        return number if number is not None and number >= LEAST else None

    def _judged(self, value: int, own: int, asked: float) -> tuple[Stamp, bool]:
        """Return the stamp of a number in the cache, and whether its writers are dead."""
        number, writers = divmod(value, WRITERS)
        writers -= own
        with self._lock:
            if self.verify is not None:
                if self._verify_at is not None and asked >= self._verify_at:
                    self._round += 1
                    self._verify_at = None
                if self._verify_at is None:
                    # Not all processes at once.
                    self._verify_at = asked + self.verify * random.uniform(0.75, 1.0)
            (seen, seen_at), self._seen = self._seen, (number, asked)
            if writers <= 0:
                self._at_work_since = None
                self._latest, self._good_at = Stamp(number, self._round, 0), asked
                self._quiet = (value - own, self._latest) if writers == 0 else (0, self._latest)
                return self._latest, False
            self._quiet = (0, self._latest)
            # A writer may have committed, and be killed before it can say so (rule 3.1).
            if self._at_work_since is None or (number != seen and asked - seen_at >= SPARSE):
                self._at_work_since = asked
            dead = asked - self._at_work_since >= DEAD
            if dead:
                # For the next try, if this one fails; and other threads need not try at all.
                self._at_work_since = asked - DEAD + GOOD
            known = (number, self._round) == self._latest[:2]
            if not known or asked - self._good_at >= GOOD:
                self._pending += 1
                self._latest = Stamp(number, self._round, self._pending)
                self._good_at = asked
            return self._latest, dead

    # -- writing ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Write]:
        """Tell readers of a write: ``with stamp.writing() as write:`` around it. Two requests.

        >>> stamp = CacheStamp(MemoryCache(), "settings")
        >>> known = stamp.read()
        >>> with stamp.writing() as write:
        ...     pass  # write to the store
        >>> write.before == known, write.after == stamp.read()
        (True, True)

        :return: a `Write`, which at the end knows the stamps for a `Commit`
        :raises Exception: the cache's own; before the body ran, when it cannot be asked then. After
            a body that ended well it means that the write is done, and that readers may need a
            second to see it

        """
        opening = self.begin()
        write = Write()
        try:
            yield write
        except BaseException:
            try:
                self.end(opening)
            except self.unavailable:
                # The body's own error is what the caller has to hear of.
                logger.warning("readers of %r look again each second", self.key, exc_info=True)
            raise
        ended = self.end(opening)
        write.before, write.after = ended.before, ended.after

    def begin(self) -> int:
        """Note that a write begins. One request; more where there is no stamp yet.

        :return: what `end` has to be given, by the same or another thread of this process

        """
        number: int | None
        if self.cache.atomic:
            number = self.cache.increase(self.key, 1)
            if number is None:
                number = _new_base() + 1
                if self.cache.add(self.key, number):
                    return number
                # Somebody was faster, or it is no number that is there.
                number = self.cache.increase(self.key, 1)
            if number is not None and number >= LEAST:
                return number
        number = _new_base() + 1
        self.cache.put(self.key, number)
        return number

    def end(self, opening: int) -> Write:
        """Note that a write has ended, however it ended. One request.

        :param opening: what `begin` returned
        :return: the stamps before and after, where the cache can tell that it was this write alone
            that ended since it began

        """
        if not self.cache.atomic:
            self.renew()
            return Write()
        number = self.cache.increase(self.key, ENDED)
        if number is None or number < LEAST:
            # Who reads next finds no stamp, puts a new one, and loads.
            return Write()
        if not ENDED <= number - opening < FAR:
            # It was put since this write began, and has not counted its beginning. That is made
            # good in the number itself: to put a new one would forget who else is at work.
            self.cache.increase(self.key, 1 + WRITERS * secrets.randbelow(SKIPPED))
            return Write()
        high = number // WRITERS
        if opening // WRITERS != high - 1:
            # Another one has ended since, and may have written after this one: a copy that has
            # both is not to have this one's value put over it.
            return Write()
        return Write(Stamp(high - 1, self._round, 0), Stamp(high, self._round, 0))

    def touch(self) -> None:
        """Tell readers of a write that is done. One request."""
        if self.cache.atomic:
            self.cache.increase(self.key, WRITERS)  # no stamp: as in `end`
        else:
            self.renew()

    def renew(self) -> None:
        """Put a new random stamp: every reader reloads. One request."""
        self.cache.put(self.key, _new_base())


def _new_base() -> int:
    """Return a number that no process has seen: 62 bits, of which the low 16 are 0.

    Of the system's randomness: a program may seed its own, and would put a number a second time.

    """
    return LEAST | secrets.randbits(45) << 16


def _checked(verify: float | timedelta | None, cache: StampCache) -> float | None:
    if verify is None:
        if cache.nodes > 1:
            raise ValueError(
                f"verify=None over {cache.nodes} nodes of memcached: one that was away comes back "
                "with the stamp of that time, and nobody would notice; write the seconds after "
                "which readers reload in any case, 60 say"
            )
        return None
    given = seconds(verify)
    if given is None or given <= 0:
        raise TypeError(f"verify={verify!r}: write seconds above 0, a timedelta, or None")
    return given
