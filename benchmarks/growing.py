"""What a process that holds a dict costs the server, and what many of them would.

Each process is a real one, and what passes between it and a server is counted by a proxy. A file
has no server: there, what the process asks the system for is counted, without the memory that
processes share. What 1,000 processes and more would cost is multiplied, not measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from subprocess import Popen

from .children import ask, child
from .growingplaces import PLACES, Backend, Counts, Proxied
from .growingprocess import NAME, SIZES, STRICT

__all__ = ["PROCESSES", "READS", "Memory", "Taken", "growing_tables"]

PROCESSES = (10, 1_000, 100_000)
#: A second, in each process.
READS = 100
READING_SECONDS = 5
# Twice the longest interval after which something asks, even if it was told nothing.
IDLE_SECONDS = 20
CHANGES = 10
HELD = 1_000
#: Seconds after which what one thing started has ended.
SETTLES = 0.3

MODULE = "benchmarks.growingprocess"
LINE = "{:<46} {:>6} {:>8} {:>8} {:>8} {:>9} {:>10} {:>10}"
MANY_LINE = "{:<46} {:>9} {:>11} {:>13} {:>13} {:>11}"
MEMORY_LINE = "{:<46} {:>12} {:>12} {:>12}"


@dataclass(frozen=True)
class Taken:
    """What one process takes of one server.

    :param what: the dict, how it is read, and the server
    :param connections: that stay open
    :param idle: requests a second while nothing is read or written
    :param processor: the part of a core that the process takes meanwhile, in percent
    :param reading: requests a second at so many reads
    :param change: requests until it has seen one change
    :param change_bytes: the bytes of those and of their answers

    """

    what: str
    connections: int
    idle: float
    processor: float
    reading: float
    change: float
    change_bytes: float

    @property
    def a_read(self) -> float:
        """Requests that a read adds."""
        return max(0.0, self.reading - self.idle) / READS

    def together(self, processes: int) -> tuple[float, ...]:
        """Return connections, requests idle and reading, and those of a change and its bytes."""
        one = (self.connections, self.idle, self.reading, self.change, self.change_bytes)
        return tuple(figure * processes for figure in one)


@dataclass(frozen=True)
class Memory:
    """The bytes of memory of a process that holds so many entries."""

    what: str
    by_entries: Mapping[int, int]


def growing_tables() -> list[str]:
    """Print the tables; there are no limits, so that none was missed."""
    print(
        f"\nOne process with {HELD:,} entries of 100 characters: connections, requests a second "
        f"while idle,\nprocessor time while idle, requests a second at {READS} reads a second (or "
        "web requests with a\nsync each), and what it takes to see one change, in requests and "
        "bytes, both ways. Of a file:\nreads and writes that the system is asked for.\n"
    )
    print(LINE.format("what", "conns", "idle", "CPU", "a read", "reading", "a change", "bytes"))
    taken: list[Taken] = []
    memory: list[Memory] = []
    for opened in PLACES:
        with opened() as backend:
            for line in _measured(backend):
                print(_line(line), flush=True)
                taken.append(line)
            memory.append(_memory(backend))
    print(f"\nThe same, multiplied by the number of processes, each with {READS} reads a second.\n")
    print(
        MANY_LINE.format("what", "processes", "conns", "idle, a s", "reading, a s", "MB a change")
    )
    for line in taken:
        for processes in PROCESSES:
            print(_together_line(line, processes))
    print("\nMemory of a process (resident, shared libraries included) in MB, by entries held.\n")
    print(MEMORY_LINE.format("what", *(f"{size:,}" for size in SIZES)))
    for held in memory:
        print(MEMORY_LINE.format(held.what, *(f"{held.by_entries[n] / 1e6:.1f}" for n in SIZES)))
    return []


def _measured(backend: Backend) -> Iterator[Taken]:
    """Measure a process in each mode, all idle at the same time, the rest one after another."""
    with ExitStack() as stack:
        writer = stack.enter_context(child(MODULE, json.dumps(backend.place), NAME, STRICT))
        ask(writer, f"fill {HELD}")
        ask(writer, "write first")
        counters = []
        for mode in backend.modes:
            proxied = stack.enter_context(backend.proxied())
            reader = stack.enter_context(child(MODULE, json.dumps(proxied.place), NAME, mode))
            # It has loaded then.
            ask(reader, "see first")
            counters.append(Counter(mode, proxied, reader))
        time.sleep(SETTLES)
        with ThreadPoolExecutor(len(counters)) as pool:
            idle = list(pool.map(lambda each: each.count(f"idle {IDLE_SECONDS}"), counters))
        for counter, (processor, resting) in zip(counters, idle, strict=True):
            yield from _taken(backend, counter, writer, processor, resting)


def _taken(
    backend: Backend, counter: Counter, writer: Popen[str], processor: float, resting: Counts
) -> Iterator[Taken]:
    """Give a line for each server that a process asks."""
    _, reading = counter.count(f"read {READS} {READING_SECONDS}")
    changes = []
    for number in range(CHANGES):
        value = f"{counter.mode.replace(' ', '')}-{number}"
        write = partial(ask, writer, f"write {value}")
        changes.append(counter.count(f"see {value}", first=write)[1])
    for server, (requests, _) in reading.items():
        yield Taken(
            f"{backend.name}, {counter.mode}{server and ', '}{server}",
            counter.proxied.connections(server),
            resting[server][0] / IDLE_SECONDS,
            # What it takes to look is taken off, and may be more.
            max(0.0, processor / IDLE_SECONDS * 100),
            requests / READING_SECONDS,
            sum(counts[server][0] for counts in changes) / CHANGES,
            sum(counts[server][1] for counts in changes) / CHANGES,
        )


@dataclass(frozen=True)
class Counter:
    """Counts what a process does.

    :param mode: how it reads
    :param proxied: where it is counted
    :param reader: the process

    """

    mode: str
    proxied: Proxied
    reader: Popen[str]

    def count(
        self, question: str, first: Callable[[], object] = lambda: None
    ) -> tuple[float, Counts]:
        """Do something, then ask the process.

        Return the processor's seconds, and what was asked of each server; of a file, of the system.

        """
        before = self.proxied.counts()
        first()
        processor, calls, size = ask(self.reader, question)
        if not before:
            return processor, {"": (calls, size)}
        # A watch goes on for a moment after it has brought what is waited for.
        time.sleep(SETTLES)
        return processor, {
            server: (requests - before[server][0], bytes_ - before[server][1])
            for server, (requests, bytes_) in self.proxied.counts().items()
        }


def _memory(backend: Backend) -> Memory:
    """Measure processes that hold so many entries, each in one of its own."""
    by_entries = {}
    for size in SIZES:
        name = f"{NAME}{size}"
        with child(MODULE, json.dumps(backend.place), name, STRICT) as writer:
            ask(writer, f"fill {size}")
        with child(MODULE, json.dumps(backend.place), name, STRICT) as reader:
            by_entries[size] = ask(reader, "memory")
    return Memory(backend.name, by_entries)


def _line(taken: Taken) -> str:
    return LINE.format(
        taken.what,
        taken.connections,
        f"{taken.idle:.2f}",
        f"{taken.processor:.2f} %",
        f"{taken.a_read:.2f}",
        f"{taken.reading:.1f}",
        f"{taken.change:.1f}",
        f"{taken.change_bytes:,.0f}",
    )


def _together_line(taken: Taken, processes: int) -> str:
    connections, idle, reading, _, size = taken.together(processes)
    return MANY_LINE.format(
        taken.what if processes == PROCESSES[0] else "",
        f"{processes:,}",
        f"{connections:,.0f}",
        f"{idle:,.0f}",
        f"{reading:,.0f}",
        f"{size / 1e6:,.2f}",
    )
