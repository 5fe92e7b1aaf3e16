"""Put an encoding to work for one entry: bind it, name the key in errors, fall back to the old one.

The encodings themselves are in `encoding.py`.
"""

from __future__ import annotations

import inspect
import logging
import pickle
import sys
from typing import Any

from .basicencodings import PickleEncoding
from .errors import MISSING, DecodingError, EncodingError
from .interruptions import raise_interruption

__all__ = [
    "as_bytes",
    "check_encodings",
    "decode",
    "decode_all",
    "encode",
    "immutable_types",
    "is_deep",
    "prepare",
    "refusal",
]

logger = logging.getLogger("durabledict.encoding")

# The first byte of every pickle since protocol 2.
FIRST_OF_PICKLE = 0x80


def check_encodings(encoding: Any, old_encoding: Any, allow_unsigned: bool) -> None:
    """Refuse what is no encoding, and an old encoding that undoes what a signature is for.

    :raises TypeError: no `encode` or no `decode`, or a class that has to be instantiated first
    :raises ValueError: the old encoding of a signed one runs code, and `allow_unsigned` is false

    """
    for name, given in (("encoding", encoding), ("old_encoding", old_encoding)):
        if given is None and name == "old_encoding":
            continue
        methods = [getattr(given, "encode", None), getattr(given, "decode", None)]
        if not all(map(callable, methods)):
            raise TypeError(
                f"{name}={_shown(given)} has no encode() and decode(): write one of durabledict's, "
                "JSONEncoding say, or an object of your own that has both"
            )
        if isinstance(given, type) and not all(map(_takes_one, methods)):
            raise TypeError(
                f"{name}={_shown(given)} is a class whose encode() and decode() need an instance: "
                f"write {name}={_shown(given)}(...)"
            )
    if old_encoding is None or not getattr(encoding, "signs", False):
        return
    # An encoding that does not say is one that nobody has looked at: taken for the worse.
    if getattr(old_encoding, "executes_code", True):
        if not allow_unsigned:
            raise ValueError(
                f"old_encoding={_shown(old_encoding)} would load pickles that nobody signed, "
                "which is what the signed encoding is there to prevent. Where only you have been "
                "able to write to the store so far, pass allow_unsigned=True, call migrate(), and "
                "take old_encoding away again"
            )
        logger.warning(
            "unsigned payloads are read with %s (allow_unsigned=True); call migrate() and take "
            "old_encoding away",
            _shown(old_encoding),
        )


def decode(encoding: Any, old_encoding: Any, keyspace: str, key: object, payload: Any) -> Any:
    """Return the value of `payload`, which may be of the old encoding.

    :raises DecodingError: naming the key, with the reason that the new encoding gave

    """
    try:
        return _bound(encoding, keyspace, key).decode(_shaped(payload, encoding))
    except Exception as error:
        if isinstance(error, RecursionError) and is_deep():
            raise  # not the payload's fault: a read that is made from less deep may decode it
        raise_interruption(error)
        first = error
    try:
        if old_encoding is not None and not _is_of(encoding, payload):
            return _bound(old_encoding, keyspace, key).decode(_shaped(payload, old_encoding))
    except Exception as error:
        raise_interruption(error)
        logger.debug("key %r is not of the old encoding either: %s", key, error)
    raise DecodingError(f"{_named(key)} cannot be decoded: {_reason(first)}") from first


def is_deep() -> bool:
    """Whether the stack was half used up before this was called."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth > sys.getrecursionlimit() // 2


def decode_all(encoding: Any, payloads: list[tuple[Any, Any]]) -> dict[Any, Any] | None:
    """Return key -> value for pairs of a key and a payload, or None where that takes more care.

    For pickles, which a first load spends its time in: `pickle.loads` itself takes a third of the
    time of `PickleEncoding.decode`, which also knows what 0.9 wrote.

    """
    if getattr(encoding, "decode", None) is not PickleEncoding.decode or _binds(encoding):
        return None
    loads, first = pickle.loads, FIRST_OF_PICKLE
    try:
        entries = {key: loads(payload) for key, payload in payloads if payload[0] == first}
    except Exception as error:
        raise_interruption(error)
        return None  # one of them at least: which, the careful way finds out
    return entries if len(entries) == len(payloads) else None


def immutable_types(encoding: Any) -> frozenset[type]:
    """Return the types whose values need no decoding after they were encoded."""
    return frozenset() if _binds(encoding) else getattr(encoding, "immutable", frozenset())


def encode(encoding: Any, keyspace: str, key: object, value: object) -> Any:
    """Return the payload to store, where nobody needs the value that reading it back gives.

    :raises EncodingError: naming the key

    """
    try:
        return _bound(encoding, keyspace, key).encode(value)
    except Exception as error:
        raise refusal(key, error) from error


def prepare(encoding: Any, keyspace: str, key: object, value: object) -> tuple[Any, Any]:
    """Return the payload to store and the value that reading it back gives.

    The local copy gets the second, so that later changes to the caller's object are not mistaken
    for stored ones. Values of the types that the encoding names `immutable` are their own.

    :raises EncodingError: naming the key, also when the payload cannot be read back

    """
    # Not by way of `_bound`: each write waits for this.
    bind = getattr(encoding, "bind", None)
    try:
        payload = (encoding if bind is None else bind(keyspace, key)).encode(value)
    except Exception as error:
        raise refusal(key, error) from error
    if type(value) in getattr(encoding, "immutable", ()):
        return payload, value
    try:
        return payload, decode(encoding, None, keyspace, key, payload)
    except DecodingError as error:
        # Its own message names the key as well; the reason is in what caused it.
        raise EncodingError(
            f"{_named(key)} could be encoded, but not be read back: {_reason(error.__cause__)}"
        ) from error


def as_bytes(key: object, payload: Any, store: str) -> bytes:
    """Return a payload as bytes, for a store that holds nothing else.

    :param store: what it is called, for the message
    :raises EncodingError: it is neither text nor bytes

    """
    if type(payload) is bytes:
        return payload
    if isinstance(payload, str):
        try:
            payload = payload.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EncodingError(f"the payload of key {key!r} is no text: {error}") from error
    if not isinstance(payload, (bytes, bytearray, memoryview)):
        raise EncodingError(
            f"the payload of key {key!r} is of type {type(payload).__name__}: {store} holds str "
            "or bytes, so the encoding has to give one of them"
        )
    return bytes(payload)


def refusal(key: object, error: Exception) -> EncodingError:
    """Return what is raised where `encode` raised `error`: it names the key."""
    raise_interruption(error)
    return EncodingError(f"{_named(key)} cannot be encoded: {_reason(error)}")


def _named(key: object) -> str:
    return "the value" if key is MISSING else f"the value of key {key!r}"


def _binds(encoding: Any) -> bool:
    return getattr(encoding, "bind", None) is not None


def _bound(encoding: Any, keyspace: str, key: object) -> Any:
    bind = getattr(encoding, "bind", None)
    return encoding if bind is None else bind(keyspace, key)


def _is_of(encoding: Any, payload: Any) -> bool:
    """Whether a payload carries the encoding's own header: then the old one is not asked."""
    recognizes = getattr(encoding, "recognizes", None)
    if recognizes is None:
        return False
    try:
        shaped = _shaped(payload, encoding)
    except (UnicodeError, DecodingError):
        return False  # bytes to an encoding that writes text, and no text
    return bool(recognizes(shaped))


def _shaped(payload: Any, encoding: Any) -> Any:
    """Hand text to text encodings and bytes to the others, whatever the store's column gives."""
    text = getattr(encoding, "text", False)
    if text and isinstance(payload, (bytes, bytearray, memoryview)):
        raw = bytes(payload)
        if raw and raw[0] == FIRST_OF_PICKLE:  # with which no text begins
            raise DecodingError("a pickle, not text: old_encoding=PickleEncoding reads it")
        return raw.decode("utf-8")
    if text is False and isinstance(payload, str):
        return payload.encode("utf-8")
    return payload


def _reason(error: BaseException | None) -> str:
    if isinstance(error, (EncodingError, DecodingError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _shown(encoding: object) -> str:
    return encoding.__qualname__ if isinstance(encoding, type) else repr(encoding)


def _takes_one(method: Any) -> bool:
    """Whether a method can be called with a value alone; True where it does not tell."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True
