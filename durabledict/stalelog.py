"""The log that lies beside a file and is another one's: the file was replaced by a rename alone.

docs/internals.rst, rule 1.3. SQLite does not look: it reads a mixture, and destroys the file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time

from .filelocks import holders, read_locks
from .walindex import HeaderMap, Identity, identity_of

__all__ = ["remove_log", "require_own_log"]

logger = logging.getLogger("durabledict.sqlite")

#: The bytes that a connection locks (https://www.sqlite.org/walformat.html#wal_locks): one of the
#: -shm, and some of these of the file itself.
INDEX_LOCK = 128
FILE_LOCK = (0x40000002, 0x40000002 + 509)


def require_own_log(path: str, identity: Identity) -> None:
    """Refuse to open a file beside which lies the log of another one that is open.

    Every connection to a file in WAL mode holds a lock on it, and one on its ``-shm``, in this
    order. So where there is the second and not the first, it is a connection to the file that was
    under the name before. SQLite does not look.

    :raises sqlite3.OperationalError: such a log

    """
    index = identity_of(f"{os.path.realpath(path)}-shm")
    if index is None:
        return
    for pause in (0.001, 0.01, 0.0):
        locks = read_locks()
        others = holders(*index, INDEX_LOCK, INDEX_LOCK, locks)
        if not others or holders(*identity, *FILE_LOCK, locks):
            return
        time.sleep(pause)  # or somebody opened the file while the locks were listed
    raise sqlite3.OperationalError(
        f"{path} has come in the place of a file that process {others[0]} still has open, and "
        "whose log lies beside it; SQLite would mix the two. Remove the files -wal and -shm first"
    )


def remove_log(kept: HeaderMap) -> None:
    """Remove the log beside a file, if it is that of the file which was there before."""
    import fcntl

    try:
        folder = os.open(os.path.dirname(kept.path), os.O_RDONLY)
    except OSError as error:
        raise sqlite3.OperationalError(f"{kept.path} cannot be reached: {error}") from error
    try:
        # One process at a time: between the look and the removal another one could have removed
        # it, and begun the new file's log.
        fcntl.flock(folder, fcntl.LOCK_EX)
        if identity_of(kept.path) == kept.identity:
            logger.warning("removing %s, the log of the file before it", kept.path[:-4] + "-wal")
            for path in (kept.path[:-4] + "-wal", kept.path):
                if os.path.exists(path):
                    os.unlink(path)
    except OSError as error:
        raise sqlite3.OperationalError(
            f"{kept.path} is of the file that was replaced, and cannot be removed: {error}"
        ) from error
    finally:
        os.close(folder)
