"""Who holds which locks on a file, without opening it: from ``/proc/locks`` (proc(5))."""

from __future__ import annotations

import os

__all__ = ["LOCKS", "holders", "read_locks"]

#: Where the system tells; tests may have it elsewhere.
LOCKS = "/proc/locks"


def read_locks() -> str:
    """Return the text, or nothing where the system does not tell."""
    try:
        with open(LOCKS) as file:
            return file.read()
    except OSError:
        return ""


def holders(device: int, inode: int, first: int, last: int, locks: str) -> list[int]:
    """Return the processes that hold a POSIX lock on any of these bytes of a file.

    >>> holders(0xFE00, 7, 128, 128, "1: POSIX  ADVISORY  READ 5002 fe:00:7 128 128")
    [5002]

    :param device: `st_dev` of the file
    :param inode: `st_ino` of the file
    :param first: the first byte
    :param last: the last byte
    :param locks: as `read_locks` returns it

    """
    if not locks:
        return []  # nor has such a system os.major()
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    found = []
    for line in locks.splitlines():
        # A lock that is waited for has an arrow before the word POSIX, and so one field more.
        fields = line.split()
        if len(fields) != 8 or fields[1] != "POSIX" or fields[5] != place:
            continue
        begins, ends = fields[6:]
        if int(begins) <= last and (ends == "EOF" or int(ends) >= first):
            found.append(int(fields[4]))
    return found
