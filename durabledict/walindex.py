"""The first 48 bytes of the file ``-shm``, which every commit changes before it is acknowledged.

docs/internals.rst, rules 1.2 and 1.3. In WAL mode SQLite's processes share an index of the log, and
this is its header, whichever program commits. Mapped into memory it is read at the cost of a slice.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sqlite3
import struct
from typing import Any

__all__ = ["HeaderMap", "Identity", "Nothing", "WalIndex", "commits", "identity_of"]

#: The length of the header (https://www.sqlite.org/walformat.html#walidxfmt); what is read of it,
#: which is the number of its format, the number of commits and whether it is initialised; and the
#: one format that is known.
HEADER_BYTES = 48
HEADER = struct.Struct("=I4xI?")
HEADER_FORMAT = 3007000

Identity = tuple[int, int]


class Nothing:
    """Stands in place of a map: what is read from it equals nothing that was ever read."""

    def __getitem__(self, part: slice) -> object:
        return object()


class WalIndex:
    """The header, as long as it is true.

    A plain object with two attributes, since each strict read looks at both. When the anchor
    closes, this ends, and another one comes in its place: a header read here is never compared with
    one read there. (An empty log always has the same.)

    """

    __slots__ = ("header", "look_at")

    def __init__(self, header: Any) -> None:
        #: ``header[:]`` gives its bytes; something that equals nothing where it cannot be read.
        self.header = header
        #: Until when the file need not be looked at, by `reading.monotonic`.
        self.look_at = -math.inf

    def end(self) -> None:
        """Have every comparison with it fail."""
        self.look_at = -math.inf
        self.header = Nothing()


class HeaderMap:
    """The mapped header, and the descriptors it needs.

    To close any descriptor of a file makes the system drop all locks that the process has on it,
    SQLite's too. Python's `mmap` holds one more that it does not show. So both stay open, past the
    end of the interpreter, unless the file has no name any more: then nobody else has it.

    :raises OSError: it cannot be opened
    :raises ValueError: it cannot be mapped; it stays open

    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self.identity: Identity = (status.st_dev, status.st_ino)
        try:
            self.mapped = mmap.mmap(self._descriptor, HEADER_BYTES, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ValueError(f"{path} cannot be mapped: {error}") from error
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.mapped))

    def closed_if_unlinked(self) -> bool:
        """Close the descriptors if the file has no name any more; tell whether it had none."""
        if os.fstat(self._descriptor).st_nlink > 0:
            return False
        os.close(self._descriptor)
        # The map itself goes with the last reader that has it.
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self.mapped))
        return True

    def is_known(self) -> bool:
        """Whether it is initialised, and of the one format that is known."""
        number, _, initialised = HEADER.unpack_from(self.mapped)
        return bool(initialised) and number == HEADER_FORMAT


def commits(header: bytes) -> int:
    """Return the number of commits, which grows by one with each and begins anew in a recovery."""
    number: int = HEADER.unpack_from(header)[1]
    return number


def identity_of(path: str) -> Identity | None:
    """Return what tells a file from all others, whatever its name; None where there is none.

    :raises sqlite3.OperationalError: the system does not tell

    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # As SQLite would say it: it is an outage of this store, not of something else.
        raise sqlite3.OperationalError(f"{path} cannot be looked at: {error}") from error
    return status.st_dev, status.st_ino
