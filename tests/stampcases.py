"""What tests of stamps do with one, whichever cache it is in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from durabledict.stamps import CacheStamp, Stamp

from .servers import PATIENCE, wait_until

__all__ = [
    "answered",
    "check_held",
    "check_lost",
    "check_unavailable",
    "read",
    "write_from_eight_threads",
]


def read(stamp: CacheStamp, own: int = 0) -> Stamp:
    """Return what is read, which is something."""
    found = stamp.read(own)
    assert found is not None
    return found


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


def check_held(cache: Any, key: str) -> Stamp:
    """See that two stamps in one place are one, and return it.

    :param cache: as `CacheStamp` takes it

    """
    one, two = CacheStamp(cache, key), CacheStamp(cache, key)
    assert one.identity == two.identity
    known = read(one)
    assert read(two) == known
    with one.writing() as write:
        pass
    assert (write.before, write.after) == (known, read(two))
    two.touch()
    touched = read(one)
    assert touched not in (write.before, write.after)
    one.renew()
    assert touched != read(one) == read(two)
    return read(one)


def check_unavailable(stamp: CacheStamp) -> None:
    """See that each question to the cache is an outage."""
    for action in (stamp.read, stamp.begin, stamp.touch, stamp.renew):
        with pytest.raises(stamp.unavailable):
            action()


def check_lost(cache: Any, key: str, lose: Callable[[], object]) -> None:
    """See that a stamp is another one when it has been lost, and whenever that was.

    :param cache: as `CacheStamp` takes it
    :param lose: forgets what is in the cache

    """
    writer, reader = CacheStamp(cache, key), CacheStamp(cache, key)
    known = read(reader)
    lose()
    second = read(reader)
    assert second != known
    opening = writer.begin()
    lose()
    writer.end(opening)
    third = read(reader)
    assert third not in (known, second)
    opening = writer.begin()
    lose()
    fourth = read(reader)  # beside the writer, and before it has committed
    writer.end(opening)
    assert read(reader) not in (known, second, third, fourth)
    lose()
    with writer.writing() as write:
        pass
    assert write.after == read(reader)
    lose()
    writer.touch()
    assert read(reader) != write.after


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
