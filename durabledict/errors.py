"""The errors that durabledict raises, and the marker for an absent value.

Every error of the library's own is a `DurableDictError`; errors of a store's driver reach the
caller as they are. All of them can be pickled and copied, so they cross process boundaries.

>>> issubclass(DecodingError, ValueError) and issubclass(DecodingError, DurableDictError)
True
>>> MISSING
MISSING

"""

from __future__ import annotations

import enum
from typing import Any, Final

__all__ = (
    "MISSING",
    "ConflictError",
    "DecodingError",
    "DurableDictError",
    "EncoderError",
    "EncodingError",
    "Missing",
    "NonUniqueKeyError",
)


class Missing(enum.Enum):
    """Type of the one value `MISSING`, which stands where no value is.

    An enumeration of one member is its own singleton through `copy` and `pickle`, and a type
    checker narrows it: after ``if value is MISSING: return`` the rest is the value's own type.

    """

    MISSING = enum.auto()

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__


#: "No value here", where `None` is a value like any other.
MISSING: Final = Missing.MISSING


class DurableDictError(Exception):
    """Base of the errors that durabledict itself raises."""


class EncoderError(DurableDictError, ValueError):
    """A value and its stored form could not be turned into each other."""


class EncodingError(EncoderError):
    """A value could not be encoded; nothing was sent to the store."""


class DecodingError(EncoderError):
    """A stored payload could not be decoded, or was refused; nothing of it was executed."""


class ConflictError(DurableDictError):
    """Somebody else wrote the entry in the meantime; nothing of this write was stored."""


class NonUniqueKeyError(DurableDictError):
    """A key that should identify one object matched several.

    >>> error = NonUniqueKeyError(dict, {"name": "x"})
    >>> error.klass, error.key
    (<class 'dict'>, {'name': 'x'})
    >>> print(error)
    more than one dict has the key {'name': 'x'}

    :param klass: class of the objects
    :param key: the key that matched more than one of them

    """

    def __init__(self, klass: type, key: Any) -> None:
        # Both go into `args`, from which pickle and copy rebuild an exception.
        super().__init__(klass, key)
        self.klass = klass
        self.key = key

    def __str__(self) -> str:
        name = getattr(self.klass, "__qualname__", repr(self.klass))
        return f"more than one {name} has the key {self.key!r}"
