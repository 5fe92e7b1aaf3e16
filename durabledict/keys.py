"""Python keys to the text that a store holds them under, and back.

A `str` is stored as itself; every other kind of key has a tag:

=====================  ===========================================
key                    text
=====================  ===========================================
``'a/b'``              ``a/b``
``1``                  ``~int:1``
``1.5``                ``~float:1.5``
``None``               ``~none``
``b'ab'``              ``~bytes:6162``
``(1, ('a',))``        ``~tuple:["~int:1",["a"]]``
``'~int:1'``           ``~str:"~int:1"``
=====================  ===========================================

Text is read as a tag only in the one form in which `encode_key` writes it. All other text, such
as ``~int:01`` or a key that somebody happened to begin with a tilde, is a plain `str`. So
`encode_key` and `decode_key` are inverse in both directions: no two keys share a text, and no
two texts share a key.

"""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ("canonical_key", "decode_key", "encode_key")

#: Tuples nested deeper than this are no keys. A fixed limit, so that whether a stored text is a
#: key does not depend on how much of its stack the reading thread happens to have left.
_MAXIMUM_DEPTH = 64

#: Integers of more bits are written in hexadecimal, which Python converts in linear time and
#: whatever `sys.set_int_max_str_digits` says (640 digits is the least that can be set).
_MAXIMUM_DECIMAL_BITS = 2048
_MAXIMUM_DECIMAL_CHARACTERS = 640

#: The closing quote is optional so that a string that never ends is still matched only once.
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def canonical_key(key: object) -> Any:
    """Return the form of `key` in which a dict holds it locally.

    Keys that are equal in Python are one key: whichever of them is passed in, the same comes out.

    >>> canonical_key(True), canonical_key(2.0), canonical_key((1.5, -0.0))
    (1, 2, (1.5, 0))
    >>> canonical_key(float("nan"))
    Traceback (most recent call last):
    TypeError: a key cannot be NaN, which does not equal itself

    An instance of a subclass (an enumeration with `str` or `int` values, a named tuple) becomes
    the plain value that it equals.

    :param key: key as the caller wrote it
    :return: an equal `str`, `int`, `float`, `bytes`, `None`, or `tuple` of those
    :raises TypeError: if a key of this type cannot be stored

    """
    kind = type(key)
    if kind is str or kind is int:
        return key
    return _canonical(key, 0)


def encode_key(key: object) -> str:
    """Return the text that stands for `key` in a store; it can always be encoded in UTF-8.

    >>> encode_key("a/b"), encode_key(1), encode_key(True), encode_key("~int:1")
    ('a/b', '~int:1', '~int:1', '~str:"~int:1"')

    :param key: key as the caller wrote it, or as `canonical_key` or `decode_key` returned it
    :return: text that `decode_key` turns back into the canonical key
    :raises TypeError: if a key of this type cannot be stored

    """
    if type(key) is str:
        if key[:1] != "~" and key.isascii():
            return key
        return _encode_text(key)
    return _encode(canonical_key(key))


def decode_key(text: str) -> Any:
    """Return the key that `text` stands for.

    Any text is some key: what is not exactly as `encode_key` writes it is a plain `str`.

    >>> decode_key("a/b"), decode_key("~int:1"), decode_key("~int:01")
    ('a/b', 1, '~int:01')

    :param text: text as the store holds it
    :return: the canonical key

    """
    if text[:1] != "~":
        return text
    try:
        return _parse(text)
    except ValueError:
        return text


def _canonical(key: object, depth: int) -> Any:
    kind = type(key)
    if kind is str or kind is int or kind is bytes or key is None:
        return key
    if kind is bool:
        return 1 if key else 0
    if isinstance(key, float):
        return _canonical_float(key)
    if isinstance(key, tuple):
        if depth == _MAXIMUM_DEPTH:
            raise TypeError(f"a key cannot be a tuple nested more than {depth} deep")
        # Not `tuple(key)`: what a subclass makes of its own iteration is none of our business.
        items = tuple.__getitem__(key, slice(None))
        plain_tuple = tuple([_canonical(item, depth + 1) for item in items])
        return plain_tuple if kind is tuple else _same(key, plain_tuple)
    if isinstance(key, str):
        return _same(key, str.__str__(key))
    if isinstance(key, int):
        return _same(key, int.__int__(key))
    if isinstance(key, bytes):
        return _same(key, b"".join((key,)))
    raise TypeError(
        f"a key cannot be of type {kind.__qualname__!r}: "
        "use str, int, float, bool, None, bytes or a tuple of those"
    )


def _canonical_float(key: float) -> Any:
    plain = float.__float__(key)
    if math.isnan(plain):
        raise TypeError("a key cannot be NaN, which does not equal itself")
    if type(key) is not float:
        _same(key, plain)
    return int(plain) if plain.is_integer() else plain


def _same(key: object, plain: Any) -> Any:
    """Return `plain` if a `dict` could not tell it from `key`; otherwise they are two keys."""
    if hash(plain) == hash(key) and plain == key:
        return plain
    raise TypeError(
        f"a key cannot be of type {type(key).__qualname__!r}: "
        f"it does not equal, or hash like, its plain {type(plain).__name__}"
    )


def _encode(key: Any) -> str:
    """Encode a canonical key."""
    kind = type(key)
    if kind is str:
        return _encode_text(key)
    if kind is int:
        return f"~int:{key if key.bit_length() <= _MAXIMUM_DECIMAL_BITS else hex(key)}"
    if kind is float:
        return f"~float:{key!r}"
    if kind is bytes:
        return f"~bytes:{key.hex()}"
    if kind is tuple:
        return f"~tuple:{_dump(_nest(key))}"
    return "~none"


def _encode_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        quoted = _dump(text)
        if json.loads(quoted) == text:
            return f"~str:{quoted}"
        # JSON cannot tell two surrogates in a row from the one character that they make up.
        return f"~utf8:{text.encode('utf-8', 'surrogatepass').hex()}"
    return f"~str:{_dump(text)}" if _reads_as_tag(text) else text


def _reads_as_tag(text: str) -> bool:
    if text[:1] != "~":
        return False
    try:
        _parse(text)
    except ValueError:
        return False
    return True


def _parse(text: str) -> Any:
    """Return the key that the tagged `text` stands for.

    :raises ValueError: if `encode_key` would not have written this text

    """
    tag, _, body = text.partition(":")
    key: Any
    if text == "~none":
        return None
    if tag == "~int":
        if len(body) > _MAXIMUM_DECIMAL_CHARACTERS and "x" not in body[:3]:
            raise ValueError("not written by encode_key")
        key = int(body, 0)
    elif tag == "~float":
        key = float(body)
        if key.is_integer() or math.isnan(key):
            raise ValueError("not written by encode_key")
    elif tag == "~bytes":
        key = bytes.fromhex(body)
    elif tag == "~tuple":
        key = _unnest(_load(body, list))
    elif tag == "~str":
        key = _load(body, str)
    elif tag == "~utf8":
        key = bytes.fromhex(body).decode("utf-8", "surrogatepass")
    else:
        raise ValueError("not a tag")
    if _encode(key) != text:
        raise ValueError("not written by encode_key")
    return key


def _load(body: str, kind: type) -> Any:
    """Parse the JSON of a tag, refusing what `_dump` would have written otherwise.

    That the quotes are in their canonical form is checked here, before anything is taken out of
    them: then each level of quotes doubles their length, and tags within tags cannot go deep.

    """
    if body.count("[") + body.count("{") > _MAXIMUM_DEPTH and _depth(body) > _MAXIMUM_DEPTH:
        raise ValueError("nested too deep")
    loaded = json.loads(body)
    if type(loaded) is not kind or _dump(loaded) != body:
        raise ValueError("not written by encode_key")
    return loaded


def _depth(body: str) -> int:
    """Return how deep arrays and objects are nested in `body`, which need not be valid JSON."""
    depth = deepest = 0
    for character in _JSON_STRING.sub("", body):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _nest(key: tuple[Any, ...]) -> list[Any]:
    # An array within an array, rather than text within text, whose quotes would double each time.
    return [_nest(item) if type(item) is tuple else _encode(item) for item in key]


def _unnest(items: list[Any]) -> tuple[Any, ...]:
    key = []
    for item in items:
        if type(item) is list:
            key.append(_unnest(item))
        elif type(item) is str:
            key.append(decode_key(item))
        else:
            raise ValueError("not written by encode_key")
    return tuple(key)
