"""What every encoding has, and the three that stand alone: pickle, JSON, nothing at all.

The contract that they keep is in `encoding.py`, from where they are imported.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from .errors import DecodingError, EncodingError

__all__ = (
    "BaseEncoding",
    "DefaultEncoding",
    "Encoder",
    "JSONEncoding",
    "NoOpEncoding",
    "PickleEncoding",
)

# Not `pickle.HIGHEST_PROTOCOL`: the processes that share a store may run different versions of
# Python, and the oldest of them must read what the newest writes.
_PROTOCOL = 5
_PICKLE = b"\x80"

#: The last protocol of Python 2; what a payload of it calls `str` may be text or bytes.
PYTHON_2_PROTOCOL = 2


@runtime_checkable
class Encoder(Protocol):
    """What every encoding has."""

    def encode(self, value: Any, /) -> Any:
        """Return the payload, `bytes` or `str`, that `value` is stored as."""

    def decode(self, payload: Any, /) -> Any:
        """Return the value that was stored as `payload`."""


class BaseEncoding:
    """What the encodings say of themselves unless they know better."""

    text: bool | None = False
    aliases = False
    executes_code = False
    signs = False
    immutable: frozenset[type] = frozenset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class PickleEncoding(BaseEncoding):
    """Stores anything that pickles; the default.

    What durabledict 0.9 wrote from Python 2 (base64 of a pickle) is read as well.

    >>> PickleEncoding.decode(PickleEncoding.encode({"a": (1, 2)}))
    {'a': (1, 2)}
    >>> PickleEncoding.decode("gAJLBy4=\\n")
    7
    >>> PickleEncoding.decode(b"hello")
    Traceback (most recent call last):
    durabledict.errors.DecodingError: not a pickle

    """

    executes_code = True
    immutable = frozenset({int, str, float, bool, type(None), bytes})

    @staticmethod
    def encode(value: Any) -> bytes:
        """Return `value` as a pickle of protocol 5, which Python 3.8 and later read."""
        return pickle.dumps(value, _PROTOCOL)

    @staticmethod
    def decode(payload: bytes | str) -> Any:
        """Return the value that was pickled.

        :param payload: pickle, or what durabledict 0.9 stored
        :raises DecodingError: if it is neither; an error of the pickle's own is raised as it is

        """
        return load_pickle(payload, pickle.loads)


DefaultEncoding = PickleEncoding


def load_pickle(payload: bytes | str, loads: Callable[..., Any]) -> Any:
    """Return the value of a payload, of whatever form durabledict has written.

    :param loads: called as `pickle.loads` is, and perhaps a second time with another `encoding`

    """
    payload = pickle_in(payload)
    try:
        return loads(payload, encoding="utf-8")
    except (UnicodeDecodeError, TypeError):
        # Python 2 wrote binary strings, and the state of dates and times, as `str`. Some of the
        # latter happen to be valid UTF-8 but too short then, which is a `TypeError`.
        if payload[1] > PYTHON_2_PROTOCOL:
            raise
        return loads(payload, encoding="latin-1")


def pickle_in(payload: bytes | str) -> bytes:
    """Return the pickle that a payload is or, as durabledict 0.9 stored it, holds in base64.

    :raises DecodingError: it is neither

    """
    if not isinstance(payload, str) and payload[:1] == _PICKLE:
        return payload
    try:
        data = payload.encode("ascii") if isinstance(payload, str) else bytes(payload)
        data = base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError as error:
        raise DecodingError("not a pickle") from error
    if data[:1] != _PICKLE:
        raise DecodingError("not a pickle")
    return data


class JSONEncoding(BaseEncoding):
    """Stores what standard JSON can express, as text that other languages read.

    JSON has no tuples (they come back as lists), and all keys of its objects are strings.

    >>> JSONEncoding.encode({"name": "red", "sizes": (1, 2.5)})
    '{"name":"red","sizes":[1,2.5]}'
    >>> JSONEncoding.encode("\\ud800")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    durabledict.errors.EncodingError: 'utf-8' codec can't encode character '\\ud800' in ...

    """

    text = True
    immutable = frozenset({int, str, float, bool, type(None)})

    @staticmethod
    def encode(value: Any) -> str:
        """Return `value` as compact ASCII JSON.

        :raises EncodingError: for what only Python's JSON has: NaN, infinities, lone surrogates
        :raises TypeError: if JSON has nothing like this value

        """
        try:
            text = json.dumps(value, allow_nan=False, separators=(",", ":"))
            if "\\ud" in text:
                # Two lone surrogates in a row would come back as one character.
                json.dumps(value, ensure_ascii=False).encode("utf-8")
        except ValueError as error:
            raise EncodingError(str(error)) from error
        return text

    @staticmethod
    def decode(payload: str | bytes) -> Any:
        """Return the value that `payload` expresses; NaN, which 0.9 wrote, is understood.

        :raises DecodingError: a pickle, as the default encoding writes them
        :raises ValueError: what is no JSON otherwise

        """
        if not isinstance(payload, str) and payload[:1] == _PICKLE:
            raise DecodingError("a pickle, not JSON: old_encoding=PickleEncoding reads it")
        return json.loads(payload)


class NoOpEncoding(BaseEncoding):
    """Stores the value itself, for stores that keep Python objects.

    Who changes the value after storing it has changed what is stored.

    """

    text = None
    aliases = True

    @staticmethod
    def encode(value: Any) -> Any:
        """Return `value`."""
        return value

    @staticmethod
    def decode(payload: Any) -> Any:
        """Return `payload`."""
        return payload
