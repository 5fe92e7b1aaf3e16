"""How many commands processes that only read send to a server, counted by the server itself.

Each kind of dict has a server of its own, twice, so that all are counted at the same time: one
where a process reads so often, and one where it holds the dict and reads nothing. What a script
calls inside the server is counted as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from durabledict import RedisDict
from tests.redisservers import RedisServer

from .reads import entries
from .redispeers import OPENERS, LeftOut, redis_peers

__all__ = ["PROCESSES", "READS", "Commands", "redis_commands"]

PROCESSES = 1_000
# A second, in each process.
READS = 100
# Twice the interval after which a watch compares stamps, even if it was told nothing.
SECONDS = 10
KEY = "setting.50"

Action = Callable[[], object]
# Opens a dict; gives what reads it, and what is done with it every second.
Opener = Callable[[RedisServer], AbstractContextManager[tuple[Action, Action]]]


@dataclass(frozen=True)
class Commands:
    """One line of the table of commands.

    :param what: what is read
    :param idle: commands a second of a process that reads nothing
    :param reading: commands a second of a process that reads `READS` times a second

    """

    what: str
    idle: float
    reading: float

    @property
    def a_read(self) -> float:
        """How many commands a read adds."""
        return max(0.0, self.reading - self.idle) / READS

    @property
    def together(self) -> float:
        """Commands a second of so many processes."""
        return self.reading * PROCESSES


def redis_commands(left_out: LeftOut) -> Iterator[Commands]:
    """Count the commands of each mode, and of what else keeps a mapping in Redis."""
    kinds: dict[str, Opener] = {
        "autosync=True": partial(_mode, autosync=True),
        "autosync=1.0": partial(_mode, autosync=1.0),
        "autosync=False, sync() every second": partial(_mode, autosync=False, syncs=True),
        "autosync=False, watch()": partial(_mode, autosync=False, watch=True),
        **{name: partial(_peer, name) for name in OPENERS if name not in left_out},
    }
    with ThreadPoolExecutor(2 * len(kinds)) as pool:
        counts = [
            (name, pool.submit(_counted, opener, 0), pool.submit(_counted, opener, READS))
            for name, opener in kinds.items()
        ]
        for name, idle, reading in counts:
            yield Commands(name, idle.result(), reading.result())


def _counted(opener: Opener, reads: int) -> float:
    """Return the commands a second that a server is sent by one process."""
    with RedisServer() as server, opener(server) as (read, every_second):
        # What the beginning costs is not what going on costs.
        _spend(1, reads, read, every_second)
        with server.counting() as calls:
            _spend(SECONDS, reads, read, every_second)
    return sum(calls.values()) / SECONDS


def _spend(seconds: int, reads: int, read: Action, every_second: Action) -> None:
    began = time.monotonic()
    for second in range(seconds):
        every_second()
        for number in range(reads):
            read()
            _sleep_until(began + second + (number + 1) / reads)
        _sleep_until(began + second + 1)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


@contextmanager
def _mode(
    server: RedisServer, *, autosync: bool | float, syncs: bool = False, watch: bool = False
) -> Iterator[tuple[Action, Action]]:
    with ExitStack() as stack:
        opened: RedisDict[str, str] = RedisDict.from_url(server.url, "counted", autosync=autosync)
        d = stack.enter_context(opened)
        d.update(entries(READS))
        if watch:
            stack.enter_context(d.watch())
        yield lambda: d[KEY], d.sync if syncs else _nothing


@contextmanager
def _peer(name: str, server: RedisServer) -> Iterator[tuple[Action, Action]]:
    with redis_peers(server, entries(READS), {}, [name]) as (peer,):
        reading = peer.reading(KEY).compiled(time.perf_counter)
        yield lambda: reading(1), _nothing


def _nothing() -> None:
    """Do nothing."""
