"""Keys as bytes, for stores that hold any bytes, of whoever: UTF-8 or not.

What `encode_key` writes is UTF-8. Other bytes are the keys that Python shows them as, with a lone
surrogate for each byte that is none of UTF-8: then anybody's entry is found, and replaced, by its
key. So such a key has two forms, and only one of them counts, or two entries would have one key.
"""

from __future__ import annotations

from typing import Any

from .keys import decode_key, encode_key

__all__ = ["bytes_of", "key_of", "not_utf8"]


def bytes_of(key: Any) -> bytes:
    """Return the bytes that stand for a key.

    >>> bytes_of("theme"), bytes_of(1), bytes_of("\\udcff")
    (b'theme', b'~int:1', b'\\xff')

    :raises TypeError: a key of this type cannot be stored

    """
    if type(key) is str:
        if key[:1] != "~" and key.isascii():
            return key.encode()  # as `encode_key` says, in half the time
        raw = not_utf8(key)
        if raw is not None:
            return raw
        if key[:1] == "~":
            meant = decode_key(key)
            text = key.encode("utf-8", "surrogatepass")
            if type(meant) is str and meant != key and bytes_of(meant) != text:
                return text  # it looks like the form of another key that does not count
    return encode_key(key).encode()


def key_of(raw: bytes) -> Any:
    """Return the key that bytes stand for; any bytes are those of some key, and no others are.

    >>> key_of(b"theme"), key_of(b"~int:1"), key_of(b"\\xff"), key_of(b'~str:"\\\\udcff"')
    ('theme', 1, '\\udcff', '~str:"\\\\udcff"')

    """
    text = raw.decode("utf-8", "surrogateescape")
    key = decode_key(text)
    if type(key) is str and key != text and bytes_of(key) != raw:
        return text
    return key


def not_utf8(key: Any) -> bytes | None:
    """Return the bytes that are no UTF-8 and are shown as this key, if there are any."""
    if type(key) is not str or key.isascii():
        return None
    try:
        raw = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    return None
