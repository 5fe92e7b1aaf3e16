"""Seconds, as callers write them."""

from __future__ import annotations

import math
from datetime import timedelta

__all__ = ["seconds"]


def seconds(value: object) -> float | None:
    """Return a finite number or a timedelta as seconds, and None for anything else.

    >>> seconds(timedelta(minutes=1)), seconds(5), seconds(True), seconds("5")
    (60.0, 5.0, None, None)

    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
