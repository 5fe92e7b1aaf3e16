"""What tests of stamps do with one, whichever cache it is in."""

from __future__ import annotations

import threading
from typing import Any

from durabledict.stamps import CacheStamp, Stamp

from .servers import PATIENCE, wait_until

__all__ = ["answered", "read", "write_from_eight_threads"]


def read(stamp: CacheStamp, own: int = 0) -> Stamp:
    """Return what is read, which is something."""
    found = stamp.read(own)
    assert found is not None
    return found


def answered(stamp: CacheStamp) -> Stamp:
    """Return what is read by a client with a short timeout, once a busy machine is in time."""
    found: list[Stamp] = []

    def is_in_time() -> bool:
        try:
            found.append(read(stamp))
        except stamp.unavailable:
            return False
        return True

    wait_until(is_in_time, "the server answers in time")
    return found[0]


def write_from_eight_threads(cache: Any, key: str) -> None:
    """Each of 240 writes counts, and none of them is open at the end.

    :param cache: as `CacheStamp` takes it

    """
    stamp = CacheStamp(cache, key)
    first = read(stamp).number
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            barrier.wait(PATIENCE)
            for _ in range(30):
                with stamp.writing():
                    pass
                read(stamp)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not errors
    assert read(stamp) == Stamp(first + 240, 0, 0)
