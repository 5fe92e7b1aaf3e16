"""Commits of a `RedisDict` as the server has them: ids, fields, and how many go into one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .bytekeys import bytes_of, key_of

__all__ = [
    "COMMIT_BYTES",
    "COMMIT_KEYS",
    "IDENTIFIER",
    "LAST_NUMBER",
    "NEVER_WRITTEN",
    "Stamp",
    "flattened",
    "keys_of",
    "parts_of",
    "stamp_of",
]

#: Number and nonce of a commit. (0, 0): never written and empty. (0, size, counter): what 0.9
#: wrote, its number of entries and 0.9's own counter. (number, nonce, size): a hash that has
#: another number of entries than that commit left.
Stamp = tuple[int, ...]

#: What the mirror holds, unless somebody else has written to it.
IDENTIFIER = re.compile(rb"\d{1,20}-\d{1,20}")

NEVER_WRITTEN: Stamp = (0, 0)

#: Scripts count in floating point, which goes so far.
LAST_NUMBER = 2**53 - 1

#: A commit of more keys, or of more bytes of keys and payloads, is several: the server serves
#: nobody else meanwhile.
COMMIT_KEYS = 200_000
COMMIT_BYTES = 64_000_000


def stamp_of(identifier: bytes) -> Stamp:
    """Return the stamp of the commit of an id."""
    number, _, nonce = identifier.partition(b"-")
    return int(number), int(nonce)


def keys_of(fields: list[bytes]) -> list[Any]:
    """Return the keys of many fields: all at once where none has a tag or a line break.

    One by one takes a third of the time of a first load.

    """
    together = b"\n".join(fields)
    if not (together[:1] == b"~" or b"\n~" in together):
        try:
            keys = together.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            keys = []
        if len(keys) == len(fields):
            return keys
    return [key_of(field) for field in fields]


def flattened(payloads: Mapping[Any, bytes]) -> tuple[bytes, ...]:
    """Return the fields and payloads of entries, one after the other.

    :param payloads: key -> payload

    """
    flat: list[bytes] = []
    for key, payload in payloads.items():
        flat += bytes_of(key), payload
    return tuple(flat)


def parts_of(sizes: list[int]) -> list[tuple[int, int]]:
    """Return where each commit of a large write begins and ends.

    :param sizes: the bytes of each entry

    """
    if len(sizes) <= COMMIT_KEYS and sum(sizes) <= COMMIT_BYTES:
        return [(0, len(sizes))]
    parts, first, size = [], 0, 0
    for place, own in enumerate(sizes):
        if place > first and (place - first == COMMIT_KEYS or size + own > COMMIT_BYTES):
            parts.append((first, place))
            first, size = place, 0
        size += own
    return [*parts, (first, len(sizes))]
