"""Where a client and its server run: on one core, on one each, or wherever the system puts them.

On one core each waits for the other, so that what is measured is the work of both; the figures
vary least. On a core each, one that waits has to be woken up, which takes longer than the work
itself. Left to the system they may be on one core or on two, for a whole row: such a figure says
what users may meet, and is good for no comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from .tables import Row

__all__ = ["both_ways", "each_way", "follow", "one_core", "placed"]


@contextmanager
def placed(pid: int, client: int, server: int) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, on one core, and a server on one.

    :param pid: the server
    :param client: which of the cores that this process may use, counted from the last: the first
        one tends to serve the devices
    :param server: the same for the server

    """
    before = {which: os.sched_getaffinity(which) for which in (0, pid)}
    cores = sorted(before[0], reverse=True)
    try:
        for which, number in ((0, client), (pid, server)):
            os.sched_setaffinity(which, {cores[number % len(cores)]})
        yield
    finally:
        for which, allowed in before.items():
            os.sched_setaffinity(which, allowed)


def follow(leader: int, process: int) -> None:
    """Keep all threads of a process on the cores that the thread `leader` may use.

    The system's call moves one thread, and memcached and ZooKeeper answer in others than the first.

    """
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(leader)
        for thread in os.listdir(f"/proc/{process}/task"):
            os.sched_setaffinity(int(thread), allowed)


def one_core(pid: int) -> AbstractContextManager[None]:
    """Keep this thread, what it starts meanwhile, and a server on one core."""
    return placed(pid, 0, 0)


def both_ways(pid: int, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """Measure with the server on this process's only core, then without that.

    Without the former where the system does not let us.

    :param pid: the server
    :param measure: is called for each, and gives the same rows

    """
    rows: list[Row] = []
    if hasattr(os, "sched_setaffinity"):
        with one_core(pid):
            rows += [replace(row, what=f"{row.what}, pinned") for row in measure()]
    return [*rows, *measure()]


def each_way(pid: int, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """Measure as `both_ways`, and with client and server kept apart."""
    rows: list[Row] = []
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        with placed(pid, 0, 1):
            rows += [replace(row, what=f"{row.what}, two cores") for row in measure()]
    return [*rows, *both_ways(pid, measure)]
