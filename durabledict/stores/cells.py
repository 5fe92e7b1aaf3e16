"""What stands under a name outside of this process: a record, a pointer to one, or a marker.

=========  =============================================================
cell       bytes
=========  =============================================================
record     ``R``, format, expiry, length of the names, names, payload
pointer    ``P``, format, name of the record
marker     ``M`` (a writer's), ``F`` (a reader's) or ``S`` (nobody's), token; or nothing
=========  =============================================================

The names in a record are those of the pointers to it: so they are found when it is replaced or
deleted, without decoding it.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ..errors import DecodingError

__all__ = [
    "RECORD",
    "Record",
    "is_marker",
    "marker",
    "pack_pointer",
    "pack_record",
    "payload_of",
    "payload_start",
    "pointer_of",
    "record_of",
]

#: The format of records and pointers. A newer one is refused.
FORMAT = 1

_HEAD = struct.Struct(">ccdI")
#: How a record of this format begins.
RECORD = b"R" + bytes([FORMAT])

_POINTER = b"P" + bytes([FORMAT])
_MARKERS = b"MFS"


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


def is_marker(cell: bytes) -> bool:
    """Whether a cell is a marker: to who reads, the same as nothing."""
    return not cell or cell[0] in _MARKERS


def pack_pointer(name: str) -> bytes:
    """Return a pointer to the record of that name."""
    return _POINTER + name.encode()


def pointer_of(cell: bytes) -> str | None:
    """Return the name that a pointer leads to; None: it is none.

    :raises DecodingError: of a newer format

    """
    # Not `cell[0]`: a mapping may hold a tuple, whose object is not to be compared.
    if cell[:1] != b"P":
        return None
    _check_format(cell)
    return cell[2:].decode("ascii", "replace")


def pack_record(expires: float, pointers: tuple[str, ...], payload: bytes | str) -> bytes:
    """Return a record."""
    names = "\n".join(pointers).encode()
    if isinstance(payload, str):
        payload = payload.encode()
    return _HEAD.pack(b"R", bytes([FORMAT]), expires, len(names)) + names + payload


def payload_start(cell: bytes) -> int:
    """Return where the payload of a record of this format begins: one that begins as `RECORD`."""
    return _HEAD.size + int.from_bytes(cell[10:14], "big")


def payload_of(cell: bytes) -> tuple[float, bytes] | None:
    """Return the expiry and the payload of a record; None: it is none.

    :raises DecodingError: of a newer format, or cut off

    """
    if cell[:1] != b"R":
        return None
    if len(cell) < _HEAD.size or cell[1] > FORMAT:
        _check_format(cell)
        raise DecodingError("the record is cut off")
    _, _, expires, length = _HEAD.unpack_from(cell)
    return expires, cell[_HEAD.size + length :]


def record_of(cell: bytes) -> Record | None:
    """Take a record apart; None: it is none.

    :raises DecodingError: of a newer format, or cut off

    """
    found = payload_of(cell)
    if found is None:
        return None
    expires, payload = found
    names = cell[_HEAD.size : len(cell) - len(payload)].decode("ascii", "replace")
    return Record(expires, tuple(names.split("\n")) if names else (), payload)


def _check_format(cell: bytes) -> None:
    if len(cell) > 1 and cell[1] > FORMAT:
        raise DecodingError(
            f"it is of format {cell[1]}; this durabledict knows formats up to {FORMAT}"
        )
