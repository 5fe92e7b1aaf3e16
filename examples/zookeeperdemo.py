"""Two processes that share settings in ZooKeeper: what one changes, the other sees.

    python examples/zookeeperdemo.py [--flips 20]

Starts a ZooKeeper server of its own, and stops it at the end. A feature flag is flipped in one of
two processes, and then read in the other one, in three ways: a strict read, which asks ZooKeeper's
leader; a read that asks nobody, and shows what the server has told of by itself; and a watch, which
says when it heard. Ends with an error if a strict read was stale, or a watch did not hear.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import statistics
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from kazoo.client import KazooClient

from durabledict import ZookeeperDict
from durabledict.errors import Missing

if TYPE_CHECKING:
    from typing_extensions import Self

PATH = "/demo/settings"
FLAG = "new_design"

# Nothing takes that long: it is when what hangs becomes a failure.
PATIENCE = 30.0

# Reads of each kind, to say how long one takes.
READS = 1_000


# The values that a watch brought, and when, by time.monotonic(), which all processes of a machine
# share.
Heard: TypeAlias = "queue.SimpleQueue[tuple[bool | Missing, float]]"


class Seen(NamedTuple):
    """What one process found after the flag was flipped in the other one."""

    told: bool  # by autosync=True, which asks nobody
    strict: bool  # by autosync="strict"
    strict_seconds: float
    heard: bool | Missing | None  # by the watch; None: nothing
    heard_at: float


class Costs(NamedTuple):
    """What the reads of one process took."""

    told_seconds: float  # for one read
    strict_seconds: float
    fetched: int  # entries that autosync=True asked for, in all


# -- in the children --------------------------------------------------------------------------


def serve(hosts: str, pipe: Connection) -> None:
    """Do what comes through the pipe, until the parent ends, or nothing more is to be done."""
    try:
        with ExitStack() as stack:
            # One client, and so one session, for all dicts of a process. It is started by the
            # first of them, and stopped by the last.
            client = KazooClient(hosts)
            told = stack.enter_context(ZookeeperDict[str, bool](PATH, client))
            strict = stack.enter_context(ZookeeperDict[str, bool](PATH, client, autosync="strict"))
            watched = stack.enter_context(ZookeeperDict[str, bool](PATH, client, autosync=False))
            heard: Heard = queue.SimpleQueue()
            watched.on_change(lambda key, old, new: heard.put((new, time.monotonic())))
            watched.watch()
            pipe.send(None)
            while True:
                match pipe.recv():
                    case "flip", on:
                        told[FLAG] = on
                        pipe.send(time.monotonic())
                        # The watch of the process that writes hears of it, too. The next flip
                        # has to wait for that: two between two syncs would be no change.
                        next_of(heard)
                        pipe.send(None)
                    case "look":
                        pipe.send(look(told, strict, heard))
                    case "costs":
                        pipe.send(costs(told, strict))
                    case _:
                        return
    except (EOFError, KeyboardInterrupt):
        return  # the parent has ended, or is to


def look(
    told: ZookeeperDict[str, bool],
    strict: ZookeeperDict[str, bool],
    heard: Heard,
) -> Seen:
    # First the one that asks nobody: what the others ask brings it the news, too.
    without_asking = told[FLAG]
    began = time.perf_counter()
    asked = strict[FLAG]
    seconds = time.perf_counter() - began
    return Seen(without_asking, asked, seconds, *next_of(heard))


def next_of(heard: Heard) -> tuple[bool | Missing | None, float]:
    try:
        return heard.get(timeout=PATIENCE)
    except queue.Empty:
        return None, time.monotonic()


def costs(told: ZookeeperDict[str, bool], strict: ZookeeperDict[str, bool]) -> Costs:
    return Costs(seconds_a_read(told), seconds_a_read(strict), told.stats.keys_fetched)


def seconds_a_read(settings: ZookeeperDict[str, bool]) -> float:
    settings[FLAG]  # fetches what there is to be fetched
    began = time.perf_counter()
    for _ in range(READS):
        settings[FLAG]
    return (time.perf_counter() - began) / READS


# -- in the parent ----------------------------------------------------------------------------


class Worker:
    """A process, and the pipe through which it is told what to do."""

    def __init__(self, name: str, hosts: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(hosts, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        try:
            if self._pipe.poll(2 * PATIENCE):
                return self._pipe.recv()
        except EOFError:
            pass
        raise SystemExit(f"The demo failed: process {self.name} does not answer")

    def ask(self, *request: object) -> Any:
        self._pipe.send(request if len(request) > 1 else request[0])
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pipe.send(None)
        except OSError:
            pass  # it has ended already
        self._process.join(PATIENCE)
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def flip(workers: list[Worker], flips: int) -> None:
    """Flip the flag so often, and raise SystemExit where a strict read was stale."""
    stale, told, unheard = 0, 0, 0
    asked: list[float] = []
    heard: list[float] = []
    line = "{:>4}   {:<15}{:<21}{:<23}{}"
    print(line.format("flip", FLAG, 'autosync="strict"', "autosync=True", "watch()"))
    for number in range(flips):
        here, there = workers[number % 2], workers[1 - number % 2]
        on = number % 2 == 0
        acknowledged = here.ask("flip", on)
        seen: Seen = there.ask("look")
        here.answer()
        stale += seen.strict != on
        told += seen.told == on
        unheard += seen.heard != on
        asked.append(seen.strict_seconds * 1000)
        # The server tells all at once: the watch may hear before the writer has its answer.
        heard.append(max(0.0, seen.heard_at - acknowledged) * 1000)
        print(
            line.format(
                number + 1,
                f"{json.dumps(on)}, by {here.name}",
                f"{there.name}: {json.dumps(seen.strict)}, {asked[-1]:.1f} ms"
                if seen.strict == on
                else f"{there.name}: {json.dumps(seen.strict)}: STALE",
                json.dumps(seen.told) + ("" if seen.told == on else ": not told yet"),
                f"after {heard[-1]:.1f} ms" if seen.heard == on else "heard nothing",
            ),
            flush=True,
        )
    print()
    for worker in workers:
        spent: Costs = worker.ask("costs")
        print(
            f"{worker.name}: while nobody writes a strict read takes "
            f"{spent.strict_seconds * 1e6:,.0f} us, one with autosync=True "
            f"{spent.told_seconds * 1e6:.2f} us.\n"
            f"   The latter fetched {spent.fetched} entries in all, when the server had told of it."
        )
    if flips:
        print(
            f"Right after a flip: a strict read took {statistics.median(asked):.1f} ms, the watch "
            f"heard after {statistics.median(heard):.1f} ms (medians);\nthe read that asks nobody "
            f"had the new value already {told} times of {flips}."
        )
    print(f"{flips} flips: {stale} stale strict reads.")
    if stale or unheard or not flips:
        raise SystemExit(
            f"The demo failed: {stale} stale strict reads in {flips} flips, of which the watch did "
            f"not hear {unheard}"
        )
    print("\nRead next: docs/backends/zookeeper.rst, which says what each way promises and costs.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Two processes that share settings in ZooKeeper.")
    parser.add_argument("--flips", type=int, default=20, help="how often to flip the flag")
    arguments = parser.parse_args()
    # Only here, since the children need none: the server that the tests use.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.servers import ServerError
    from tests.zookeeperservers import ZookeeperServer

    try:
        server = ZookeeperServer()
        server.start()
    except ServerError as error:
        raise SystemExit(str(error)) from error
    with ExitStack() as stack:
        stack.callback(server.close)
        with ZookeeperDict[str, bool](PATH, server.client()) as settings:
            settings[FLAG] = False
        workers = [stack.enter_context(Worker(name, server.hosts)) for name in ("A", "B")]
        for worker in workers:
            worker.answer()
        print(
            f"Processes A and B share the dict at {PATH} in a ZooKeeper server of our own (port "
            f"{server.port}).\nThe flag {FLAG!r} is flipped in one process. When that is "
            "acknowledged, the other one reads it:\nstrictly, which asks the leader; with "
            "autosync=True, which asks nobody and shows what the server has\ntold of; and by a "
            "watch, which says when it heard.\n",
            flush=True,
        )
        flip(workers, arguments.flips)


if __name__ == "__main__":
    main()
