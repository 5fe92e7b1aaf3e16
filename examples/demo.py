"""Settings that three processes read while a fourth one writes them. Takes five seconds.

    python examples/demo.py [--backend sqlite] [--seconds 5]

They are in an SQLite file, or, with `--backend redis`, in a Redis server that the demo starts and
stops, of a program redis-server or valkey-server.

Ends with an error if a read under autosync=True was stale, or one under autosync=0.1 was further
behind than that.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import secrets
import shlex
import shutil
import socket
import statistics
import subprocess
import sysconfig
import tempfile
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import durabledict

# The setting that says how many commits there were; the others are Python's own.
COUNTER = "DEMO_COMMITS"

WRITES_A_SECOND = 300
BOUND = 0.1

# A reader reads so many times, then leaves the cores to the others for a moment.
BATCH = 100
PAUSE = 0.002

HOST = "127.0.0.1"

# name -> value of autosync
READERS: dict[str, bool | float] = {
    "autosync=True": True,
    f"autosync={BOUND}": BOUND,
    "autosync=False, watch()": False,
}


class Board:
    """What the processes tell each other past the dict: memory that they share.

    Each slot is eight aligned bytes, which the processor reads and writes in one piece: a reader
    that needs no lock cannot see half a number.

    :param most: how many commits there can be

    """

    def __init__(self, context: Any, most: int) -> None:
        self.most = most
        self.ready = context.RawArray(ctypes.c_longlong, len(READERS))
        self.stop = context.RawValue(ctypes.c_longlong, 0)
        # The number of the last commit that was acknowledged to the writer, ...
        self.acknowledged = context.RawValue(ctypes.c_longlong, 0)
        # ... and when each was, by time.monotonic(), which all processes of a machine share.
        # 0.0: not yet.
        self.acknowledged_at = context.RawArray(ctypes.c_double, most + 2)


@dataclass
class Report:
    """What one reader saw."""

    reads: int = 0
    seconds: float = 0.0  # without the pauses
    stale: int = 0
    oldest: float = 0.0  # how long it was out of date when its read began
    ages: array[float] = field(default_factory=lambda: array("d"))
    syncs: int = 0
    keys_fetched: int = 0
    converged: bool = False

    def age(self, percent: int) -> float:
        """Return the age that so many percent of the reads did not exceed, in ms."""
        return statistics.quantiles(self.ages, n=100)[percent - 1] * 1000


# -- in the children --------------------------------------------------------------------------

board: Board


def share(shared: Board) -> None:
    """Begin a child process."""
    global board
    board = shared


def open_settings(url: str, autosync: bool | float) -> durabledict.DurableDict[str, Any]:
    """Open the dict, as each process does."""
    return durabledict.open(url, keyspace="settings", autosync=autosync)


def write(url: str, seconds: float) -> int:
    """Change settings, one commit each time; return how many were acknowledged."""
    with open_settings(url, autosync=False) as settings:
        original = settings.copy()
        names = cycle([name for name in original if name != COUNTER])
        wait_until_all_read()
        began = time.monotonic()
        number = 0
        while number < board.most and not board.stop.value:
            due = began + number / WRITES_A_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            number += 1
            name = next(names)
            settings.update({COUNTER: number, name: f"{original[name]} (changed by {number})"})
            # The commit is acknowledged. The time first: who sees the number finds the time.
            board.acknowledged_at[number] = time.monotonic()
            board.acknowledged.value = number
            if time.monotonic() > began + seconds:
                break
    return number


def wait_until_all_read() -> None:
    """Wait for the readers, which take a moment to start."""
    while not all(board.ready) and not board.stop.value:
        time.sleep(0.01)


def read(url: str, number: int, autosync: bool | float) -> Report:
    """Read until the writer has finished, and check every read."""
    report = Report()
    with open_settings(url, autosync) as settings:
        if autosync is False:
            settings.watch()
        board.ready[number] = 1
        while not board.acknowledged.value and not board.stop.value:
            time.sleep(0.001)
        before = (settings.stats.syncs, settings.stats.keys_fetched)
        while not board.stop.value:
            read_batch(settings, report)
            time.sleep(PAUSE)
        report.syncs = settings.stats.syncs - before[0]
        report.keys_fetched = settings.stats.keys_fetched - before[1]
        settings.sync()
        # Not only the counter: every setting that was ever changed is as the store has it.
        with open_settings(url, autosync=False) as fresh:
            report.converged = settings == fresh
    return report


def read_batch(settings: durabledict.DurableDict[str, Any], report: Report) -> None:
    """Read the counter many times, and compare each answer with what the writer announced."""
    acknowledged, acknowledged_at = board.acknowledged, board.acknowledged_at
    monotonic, ages = time.monotonic, report.ages
    start = monotonic()
    for _ in range(BATCH):
        # Looked at before the read: whatever was acknowledged by now, a strict read must see.
        floor = acknowledged.value
        began = monotonic()
        seen = settings[COUNTER]
        now = monotonic()
        # What was read is out of date since the next commit was acknowledged, if it was.
        outdated_at = acknowledged_at[seen + 1] or now
        ages.append(max(0.0, now - outdated_at))
        report.oldest = max(report.oldest, began - outdated_at)
        report.stale += seen < floor
    report.reads += BATCH
    report.seconds += monotonic() - start


# -- in the parent ----------------------------------------------------------------------------


@contextmanager
def sqlite_store() -> Iterator[tuple[str, str]]:
    """Give the URL of an SQLite file, and what to call it; it is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/settings.sqlite", "one SQLite file"


def free_port() -> int:
    """Return a free port, below those of outgoing connections: one might come in between."""
    while True:
        port = secrets.choice(range(10240, 22000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


@contextmanager
def redis_store() -> Iterator[tuple[str, str]]:
    """Give the URL of a Redis server of our own, and what to call it; it is stopped at the end."""
    import redis  # only here: SQLite needs no driver

    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("--backend redis needs redis-server; on Debian: apt-get install it")
    port = free_port()
    # So that nobody else uses this server, and we no other one.
    password = secrets.token_hex(16)
    url = f"redis://:{password}@{HOST}:{port}/0"
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "log"), "w+b") as log:
        command = [program, "--bind", HOST, "--port", str(port), "--requirepass", password]
        command += ["--save", "", "--dir", folder]
        # The shell stops the server when its own input ends, also when this process is killed.
        shell = subprocess.Popen(
            ["sh", "-c", f"{shlex.join(command)} & read -r _; kill $!; wait"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process alone.
        )
        try:
            with redis.Redis.from_url(url) as client:
                for _ in range(500):
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        time.sleep(0.02)
                else:
                    log.seek(0)
                    raise SystemExit(f"redis-server does not start:\n{log.read().decode()}")
            yield url, f"a Redis server of our own (port {port})"
        finally:
            shell.communicate()  # ends its input, and waits


STORES = {"sqlite": sqlite_store, "redis": redis_store}


def show(seconds: float, url: str, store: str) -> None:
    """Run the demo, and raise SystemExit where a promise was not kept."""
    real = sysconfig.get_config_vars()
    with open_settings(url, autosync=True) as settings:
        settings.update({**real, COUNTER: 0})
    print(
        f"The {len(real)} settings that this Python was built with are now in {store},\nput there "
        "with one update(). Three processes read them as a dict, each in its own way to stay up\n"
        f"to date. A fourth process changes them, some {WRITES_A_SECOND} times a second, for "
        f"{seconds:g} seconds. Every read is\nchecked.\n",
        flush=True,
    )
    commits, reports = run(seconds, url)
    line = "{:<23}{:>15}{:>8}{:>14}{:>13}{:>13}{:>13}"
    print(
        line.format(
            "reader",
            "reads a second",
            "syncs",
            "keys fetched",
            "age: median",
            "99th perc.",
            "stale reads",
        )
    )
    for name, report in reports.items():
        print(
            line.format(
                name,
                f"{report.reads / report.seconds:,.0f}",
                f"{report.syncs:,}",
                f"{report.keys_fetched:,}",
                f"{report.age(50):.3f} ms",
                f"{report.age(99):.3f} ms",
                f"{report.stale:,}",
            )
        )
    strict, bounded, _ = reports.values()
    print(
        f"\nThe writer had {commits:,} commits acknowledged, of two keys each. Age: for how long "
        "what a read returned\nhad been out of date by then. Stale: older than a commit that was "
        "acknowledged before the read\nbegan. Reads a second leave out the pauses between the "
        "reads and include the checks.\n"
    )
    print(
        f"autosync=True: {strict.stale} stale reads of {strict.reads:,}. "
        f"autosync={BOUND}: at most {bounded.oldest * 1000:.0f} ms behind when a read began."
    )
    failures = []
    if not commits or not all(report.reads for report in reports.values()):
        failures.append("nothing was written, or nothing was read")
    if strict.stale:
        failures.append(f"{strict.stale} stale reads under autosync=True")
    if bounded.oldest > BOUND:
        failures.append(f"a read under autosync={BOUND} was {bounded.oldest:.3f} s behind")
    failures += [
        f"{name}: the copy is not what the store holds after the last sync"
        for name, report in reports.items()
        if not report.converged
    ]
    if failures:
        raise SystemExit("The demo failed: " + "; ".join(failures))
    print("All three hold the same settings at the end.")
    print("\nRead next: README.rst, then docs/tutorial.rst, which says what each way costs.")


def run(seconds: float, url: str) -> tuple[int, dict[str, Report]]:
    """Run one writer and the readers, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    shared = Board(context, most=int(seconds * WRITES_A_SECOND) + 1)
    workers = len(READERS) + 1
    with ProcessPoolExecutor(workers, context, share, (shared,)) as pool:
        readers: dict[str, Future[Report]] = {
            name: pool.submit(read, url, number, autosync)
            for number, (name, autosync) in enumerate(READERS.items())
        }
        writer = pool.submit(write, url, seconds)
        # The writer is the first to end, unless something went wrong in a reader.
        everybody: list[Future[Any]] = [writer, *readers.values()]
        wait(everybody, seconds + 60, FIRST_COMPLETED)
        shared.stop.value = 1
        try:
            return writer.result(), {name: future.result() for name, future in readers.items()}
        except Exception as error:
            cause = error.__cause__ or error  # what the child printed, where it could
            raise SystemExit(f"The demo failed: a process ended with an error: {cause}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Processes that share settings.")
    parser.add_argument("--backend", choices=STORES, default="sqlite", help="where they are")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to write")
    arguments = parser.parse_args()
    with STORES[arguments.backend]() as (url, store):
        show(arguments.seconds, url, store)


if __name__ == "__main__":
    main()
