"""What stands for one value of a key in the names of records: readable, ASCII, without spaces."""

from __future__ import annotations

import re
import uuid
from datetime import date, datetime, time, timezone
from decimal import Context, Decimal
from typing import Any
from urllib.parse import quote

from ..keys import encode_key

__all__ = ["word"]

# Text that needs no quotes: none of it is the beginning of a tag.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+").fullmatch

# Ints that `encode_key` writes in no other way than this module.
_SHORT = 1 << 64

# Values whose `str` tells them apart, and is the same in every process.
_WORDED = (uuid.UUID, datetime, date, time, Decimal)


def word(name: str, value: Any) -> str:
    """Return the text for one value: equal values have the same one."""
    kind = type(value)
    if kind is str and _PLAIN(value):
        return str(value)
    if kind is int and -_SHORT < value < _SHORT:
        return f"~int:{value}"
    try:
        if isinstance(value, _WORDED):
            value = _plain(value)
        if isinstance(value, _WORDED):
            # No other kind of value has a "!" in its text.
            # A subclass's objects are equal to those of the class, and may have another text.
            base = next(each for each in _WORDED if isinstance(value, each))
            return f"!{base.__name__}:{quote(base.__str__(value), safe=':')}"
        return quote(encode_key(value), safe="~:")
    except TypeError as error:
        raise TypeError(
            f"{name}={value!r} cannot be a key outside of this process: a {kind.__name__} "
            "has no name; use str, int, float, bool, None, bytes, Decimal, UUID, a date or time, "
            "or a tuple of the first six"
        ) from error


def _plain(value: Any) -> Any:
    """Return what of a kind is the same for all equal values."""
    if isinstance(value, Decimal):
        # Equal to an int or a float: then it is one key with that.
        if value.is_nan():
            raise TypeError("it is not equal to itself")
        if value.is_infinite():
            return float(value)
        if value == value.to_integral_value():
            return int(value)
        if float(value) == value:
            return float(value)
        # All of its digits: by itself it takes 28.
        return value.normalize(Context(prec=len(value.as_tuple().digits)))
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc)
    return value
