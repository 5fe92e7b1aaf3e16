"""What is done to processes, servers and connections, and what may be lost by it.

A fault is a function that does it, mends it, and returns. Those of processes, servers and
connections are the same for every backend; each backend has others of its own.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ..servers import Server
from ..tcpproxy import TcpProxy
from .history import Fault, Recorder

if TYPE_CHECKING:
    from .processes import Worker, Workers

__all__ = [
    "Deck",
    "Kind",
    "limited_files",
    "of_connections",
    "of_processes",
    "of_server",
    "stopped",
]


@dataclass
class Kind:
    """A fault that can be made.

    :param strike: does it and mends it
    :param loses: whether acknowledged writes may be lost: "may lose the tail"; else it
        "keeps everything"
    :param blind: whether reads promise less until it is over
    :param grace: seconds until it is over for every process, after `strike` has returned

    """

    name: str
    strike: Callable[[], object]
    loses: bool = False
    blind: bool = False
    grace: float = 0.0


class Deck:
    """Deals the faults by chance, each once before any comes again.

    :param record: where they are noted

    """

    def __init__(self, kinds: Sequence[Kind], random: Random, record: Recorder) -> None:
        self.kinds = list(kinds)
        self.random = random
        self.record = record
        self._left: list[Kind] = []

    def strike(self) -> str:
        """Make the next one; return its name when it is mended."""
        if not self._left:
            self._left = self.random.sample(self.kinds, len(self.kinds))
        kind = self._left.pop()
        start = time.monotonic()
        kind.strike()
        if kind.grace:
            time.sleep(kind.grace)
        self.record.fault(Fault(kind.name, start, time.monotonic(), kind.loses, kind.blind))
        return kind.name


def of_processes(
    workers: Workers, random: Random, *, blind: bool = False, grace: float = 0.0
) -> Iterator[Kind]:
    """Give the faults of the processes that read and write.

    :param blind: as in `Kind`, of a writer that is killed

    """

    def kill() -> None:
        workers.replace(random.choice(workers.writers()), signal.SIGKILL)

    def stop() -> None:
        with stopped(random.choice(workers.all())):
            time.sleep(random.uniform(0.5, 3.0))

    def fork() -> None:
        ready = workers.ready()
        for worker in random.sample(ready, min(2, len(ready))):
            os.kill(worker.pid, signal.SIGUSR1)

    yield Kind("a writer is killed", kill, blind=blind, grace=grace)
    yield Kind("a process is stopped for seconds", stop)
    yield Kind("processes fork under load", fork)


@contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    """Let a process do nothing."""
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker.pid, signal.SIGCONT)


def limited_files(workers: Workers, size: int) -> Callable[[], None]:
    """Return what lets no file of the workers grow beyond `size` for a while, as a full disk."""

    def strike() -> None:
        limits = {}
        for worker in workers.all():
            soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
            limits[worker.pid] = soft, hard
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size, hard))
        time.sleep(1.0)
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)

    return strike


def of_server(
    name: str, server: Callable[[], Server], random: Random, *, kill: bool = True, **options: bool
) -> Iterator[Kind]:
    """Give the faults of a server's process.

    :param name: what it is, in the report
    :param server: gives the one to hit
    :param options: of `Kind`

    """

    def kill_and_start() -> None:
        hit = server()
        hit.kill()
        time.sleep(random.choice([0.0, 0.5]))
        hit.start()

    def pause() -> None:
        hit = server()
        hit.pause()
        time.sleep(random.uniform(0.5, 2.0))
        hit.resume()

    if kill:
        yield Kind(f"{name} is killed, and started again", kill_and_start, **options)
    yield Kind(f"{name} is stopped for seconds", pause, **options)


def of_connections(
    name: str, proxies: Sequence[TcpProxy], random: Random, **options: bool
) -> Iterator[Kind]:
    """Give the faults of the connections through any of the proxies.

    :param name: to what they go

    """

    def mended(fault: Callable[[TcpProxy], object], *seconds: float) -> Callable[[], None]:
        def strike() -> None:
            proxy = random.choice(proxies)
            fault(proxy)
            time.sleep(random.choice(seconds))
            proxy.mend()

        return strike

    def refuse(proxy: TcpProxy) -> None:
        proxy.refuse()
        proxy.cut()

    def delay(proxy: TcpProxy) -> None:
        held = [proxy.hold(times=1) for _ in range(3)]
        time.sleep(random.uniform(0.1, 1.5))  # longer than some wait for an answer
        for fault in held:
            fault.release()

    faults: dict[str, Callable[[], None]] = {
        "are cut": mended(lambda proxy: proxy.cut(), 0.0),
        "are reset": mended(lambda proxy: proxy.cut(reset=True), 0.0),
        "are refused for a while": mended(refuse, 0.2, 1.0),
        "are cut as the answer comes": mended(lambda proxy: proxy.cut_after(times=3), 0.2),
        "are cut before the request": mended(lambda proxy: proxy.cut_before(times=3), 0.2),
        "are late": mended(delay, 0.0),
        "are half open": mended(lambda proxy: proxy.half_close(times=3), 0.2, 1.0),
        "lead nowhere": mended(lambda proxy: proxy.black_hole(), 0.5, 2.0),
    }
    for what, strike in faults.items():
        yield Kind(f"connections to {name} {what}", strike, **options)
