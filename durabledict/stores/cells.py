"""What stands under a name outside of this process: a record, a pointer to one, or a marker.

=========  =====================================================================================
cell       bytes
=========  =====================================================================================
record     ``R``, format, expiry, length of the names, names, payload
tagged     ``T``, the same up to the names, length of the tags, tags, payload: a record with groups
pointer    ``P``, format, name of the record
marker     ``M`` (a writer's), ``F`` (a reader's) or ``S`` (nobody's), token; or nothing
token      ``G``, format, random: that of a group
=========  =====================================================================================

The names in a record are those of the pointers to it: so they are found when it is replaced or
deleted, without decoding it. Its tags are the tokens of its groups, by their names.
"""

from __future__ import annotations

import os
import re
import struct
from typing import NamedTuple

from ..errors import DecodingError

__all__ = [
    "RECORD",
    "TAGGED",
    "Record",
    "Tags",
    "is_marker",
    "is_name",
    "is_record",
    "is_whole",
    "marker",
    "new_token",
    "pack_pointer",
    "pack_record",
    "payload_of",
    "payload_start",
    "pointer_of",
    "record_of",
    "tags_of",
]

#: The format of records and pointers. A newer one is refused.
FORMAT = 1

_HEAD = struct.Struct(">ccdI")
_LENGTH = struct.Struct(">I")
#: How a record of this format begins.
RECORD = b"R" + bytes([FORMAT])
#: How one with groups begins.
TAGGED = b"T" + bytes([FORMAT])

#: The tokens of a record's groups: name and token of each.
Tags = tuple[tuple[str, bytes], ...]

_POINTER = b"P" + bytes([FORMAT])
_TOKEN = b"G" + bytes([FORMAT])
_MARKERS = b"MFS"

# What every name of ours is made of: a cell is whatever somebody has written, and others than these
# would be two commands to memcached, or a file outside of a Store's folder.
_OF_A_NAME = re.compile(r"[\x21-\x5b\x5d-\x7e]+").fullmatch
_NO_PARTS = frozenset({"", ".", ".."})


class Record(NamedTuple):
    """A record, taken apart.

    :param expires: seconds since the epoch, or 0.0: never, or the store itself sees to it
    :param pointers: names of the pointers to it
    :param payload: the object, encoded

    """

    expires: float
    pointers: tuple[str, ...]
    payload: bytes


def marker(kind: bytes) -> bytes:
    """Return a marker that no other is equal to.

    :param kind: ``b"M"``, ``b"F"`` or ``b"S"``

    """
    return kind + os.urandom(12)


def new_token() -> bytes:
    """Return a token that no other is equal to."""
    return _TOKEN + os.urandom(12).hex().encode()


def is_name(name: str) -> bool:
    """Whether a name can be one of a record, a pointer or a token, so that it may be asked for."""
    return _OF_A_NAME(name) is not None and _NO_PARTS.isdisjoint(name.split("/"))


def is_marker(cell: bytes) -> bool:
    """Whether a cell is a marker: to who reads, the same as nothing."""
    return not cell or cell[0] in _MARKERS


def pack_pointer(name: str) -> bytes:
    """Return a pointer to the record of that name."""
    return _POINTER + name.encode()


def pointer_of(cell: bytes) -> str | None:
    """Return the name that a pointer leads to; None: it is none.

    :raises DecodingError: of a newer format, or what it leads to is no name

    """
    # Not `cell[0]`: a mapping may hold a tuple, whose object is not to be compared.
    if cell[:1] != b"P":
        return None
    _check_format(cell)
    name = cell[2:].decode("ascii", "replace")
    if not is_name(name):
        raise DecodingError("it leads to what is no name")
    return name


def pack_record(
    expires: float, pointers: tuple[str, ...], payload: bytes | str, tags: Tags = ()
) -> bytes:
    """Return a record."""
    names = "\n".join(pointers).encode()
    if isinstance(payload, str):
        payload = payload.encode()
    kind, length = (b"T" if tags else b"R"), len(names)
    if tags:
        listed = b"\n".join(b"%b %b" % (name.encode(), token) for name, token in tags)
        names += _LENGTH.pack(len(listed)) + listed
    return _HEAD.pack(kind, bytes([FORMAT]), expires, length) + names + payload


def is_record(cell: bytes) -> bool:
    """Whether a cell is a record of this format, with groups or without."""
    return cell[:2] in (RECORD, TAGGED)


def is_whole(cell: bytes) -> bool:
    """Whether a record of this format is not cut off."""
    try:
        return _parts(cell) is not None
    except DecodingError:
        return False


def payload_start(cell: bytes) -> int:
    """Return where the payload of a record of this format begins: one that begins as `RECORD`."""
    return _HEAD.size + int.from_bytes(cell[10:14], "big")


def payload_of(cell: bytes) -> tuple[float, bytes] | None:
    """Return the expiry and the payload of a record; None: it is none.

    :raises DecodingError: of a newer format, or cut off

    """
    found = _parts(cell)
    return None if found is None else (found[0], found[3])


def record_of(cell: bytes) -> Record | None:
    """Take a record apart; None: it is none.

    :raises DecodingError: of a newer format, or cut off

    """
    found = _parts(cell)
    if found is None:
        return None
    expires, listed, _, payload = found
    # What is no name leads to nothing that could be removed with the record.
    names = filter(is_name, listed.decode("ascii", "replace").split("\n"))
    return Record(expires, tuple(names), payload)


def tags_of(cell: bytes) -> Tags:
    """Return the tokens that a record has of its groups; of what is no such record, nothing.

    :raises DecodingError: of a newer format, cut off, or of a group that has no name

    """
    found = _parts(cell)
    if found is None or not found[2]:
        return ()
    tags = []
    for line in found[2].split(b"\n"):
        word, _, token = line.partition(b" ")
        name = word.decode("ascii", "replace")
        if not is_name(name):
            raise DecodingError("it is of a group that has no name")
        tags.append((name, token))
    return tuple(tags)


def _parts(cell: bytes) -> tuple[float, bytes, bytes, bytes] | None:
    """Return expiry, names, tags and payload."""
    kind = cell[:1]
    if kind not in (b"R", b"T"):
        return None
    if len(cell) < _HEAD.size or cell[1] > FORMAT:
        _check_format(cell)
        raise DecodingError("the record is cut off")
    _, _, expires, length = _HEAD.unpack_from(cell)
    end = _HEAD.size + length
    names = cell[_HEAD.size : end]
    if kind == b"R":
        return expires, names, b"", cell[end:]
    begin = end + _LENGTH.size
    if len(cell) < begin:
        raise DecodingError("the record is cut off")
    (length,) = _LENGTH.unpack_from(cell, end)
    return expires, names, cell[begin : begin + length], cell[begin + length :]


def _check_format(cell: bytes) -> None:
    if len(cell) > 1 and cell[1] > FORMAT:
        raise DecodingError(
            f"it is of format {cell[1]}; this durabledict knows formats up to {FORMAT}"
        )
