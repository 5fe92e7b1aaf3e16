"""How long an object may be served from a Store: seconds, a timedelta, or a moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple

from ..options import seconds
from .keys import Address, matches

__all__ = [
    "LifetimeCallback",
    "Terms",
    "checked_callback",
    "keeps_expired",
    "lifetime_of",
    "now",
    "remaining",
    "under",
]

#: Seconds until a moment that the system cannot tell, or since.
FAR = 1e11

#: What a Store's `lifetime_cb` is: an object in, its lifetime out.
LifetimeCallback = Callable[[Any], Any]


def now() -> float:
    """Return the seconds since the epoch; replaced in tests."""
    return time.time()


def remaining(lifetime: object) -> float | None:
    """Return a lifetime in seconds from now; None is for ever, 0 or less: not to be kept.

    >>> from datetime import timedelta
    >>> remaining(20), remaining(timedelta(minutes=5)), remaining(None)
    (20.0, 300.0, None)
    >>> remaining("20")
    Traceback (most recent call last):
    TypeError: lifetime '20': write seconds, a timedelta, a datetime, or None for ever

    :param lifetime: seconds, a timedelta, or a datetime: aware, or naive in local time
    :raises TypeError: anything else

    """
    if lifetime is None:
        return None
    if isinstance(lifetime, datetime):
        # `timestamp` takes a naive one as local, which is what a caller means by it.
        try:
            return lifetime.timestamp() - now()
        except (OSError, OverflowError, ValueError):
            # Too far away for the system: datetime.min, or datetime.max.
            return math.copysign(FAR, lifetime.year - 1970)
    found = seconds(lifetime)
    if found is None:
        raise TypeError(
            f"lifetime {lifetime!r}: write seconds, a timedelta, a datetime, or None for ever"
        )
    return found


def lifetime_of(obj: object, callback: LifetimeCallback | None) -> float | None:
    """Return what a Store's callback says of an object, in seconds from now.

    Or what is said of this object alone, while it is put `under` that.

    """
    terms = _terms.get()
    if terms is not None and terms.lifetime is not None and matches(obj, terms.address):
        return terms.lifetime
    return None if callback is None else remaining(callback(obj))


class Terms(NamedTuple):
    """What is said of one object while it is put, through however many layers.

    :param address: the key that it was asked for by: another object that is put meanwhile, by a
        callback or along with it, has not that
    :param lifetime: in seconds; None: what each layer's callback says
    :param keeps_expired: it is to be kept for one more lifetime, for `get_or_create` alone

    """

    address: Address
    lifetime: float | None
    keeps_expired: bool


# Not a parameter of every put: the Stores of a chain call each other, and a user's own put takes an
# object and nothing else.
_terms: ContextVar[Terms | None] = ContextVar("durabledict.stores.terms", default=None)


@contextmanager
def under(terms: Terms) -> Iterator[None]:
    """Put an object under these terms: ``with under(terms): store.put(obj)``."""
    token = _terms.set(terms)
    try:
        yield
    finally:
        _terms.reset(token)


def keeps_expired(obj: object) -> bool:
    """Whether an object that is being put is to be kept for one more lifetime."""
    terms = _terms.get()
    return terms is not None and terms.keeps_expired and matches(obj, terms.address)


def checked_callback(callback: LifetimeCallback | None) -> LifetimeCallback | None:
    """Return a `lifetime_cb` as it was given.

    :raises TypeError: it cannot be called

    """
    if callback is not None and not callable(callback):
        raise TypeError(
            f"lifetime_cb={callback!r}: write a function of an object, lambda obj: 60 say"
        )
    return callback
