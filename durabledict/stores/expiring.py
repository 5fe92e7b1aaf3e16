"""Entries in memory that expire and are bounded in number, over cachetools."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .. import reading
from ..extras import raise_if_missing

__all__ = ["expiring_entries"]


def expiring_entries(maxsize: int | None, forget: Callable[[Any, Any], None]) -> Any:
    """Return a mapping whose values are tuples that end with their lifetime in seconds, or None.

    :param maxsize: when there are as many, the one that was used longest ago goes; None: no limit
    :param forget: called with the key and the value of each that expires or goes
    :raises ImportError: cachetools is not installed; it names the remedy

    """
    try:
        from cachetools import TLRUCache
    except ModuleNotFoundError as error:
        raise_if_missing(
            error, "lifetimes and a maxsize in memory need", "cachetools", extra="stores"
        )
        raise

    class Entries(TLRUCache[Any, Any]):
        def expire(self, time: float | None = None) -> Any:
            expired = list(super().expire(time))
            for key, value in expired:
                forget(key, value)
            return expired

        def popitem(self) -> tuple[Any, Any]:
            key, value = super().popitem()
            forget(key, value)
            return key, value

    return Entries(math.inf if maxsize is None else maxsize, _expires, _now)


def _expires(key: Any, value: Any, now: float) -> float:
    lifetime: float | None = value[-1]
    return math.inf if lifetime is None else now + lifetime


def _now() -> float:
    # Looked up each time: tests put a clock of their own there.
    return reading.monotonic()
