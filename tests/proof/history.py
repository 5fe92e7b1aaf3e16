"""What the processes of the proof did and saw, as they wrote it down.

Each process appends to files of its own, one line an event. That a write begins is noted before it
is sent, so that of a process that was killed the last write is known, and its outcome is not. The
times are those of `time.monotonic`, which on Linux is one clock for all processes of the machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

__all__ = ["Copy", "Fault", "History", "Operation", "Recorder", "Write"]

#: A new file is begun after so many bytes: the fault that limits the size of a process's files is
#: not to hit these.
SEGMENT = 48_000


class Recorder:
    """Writes the events of one process down.

    :param folder: of all histories of one run
    :param process: the name, of this process alone

    """

    def __init__(self, folder: Path, process: str) -> None:
        self.folder = folder
        self.process = process
        self._segments = 0
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        path = self.folder / f"{self.process}.{self._segments:06}.history"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._segments += 1
        self._size = 0

    def _note(self, *event: Any) -> None:
        line = (json.dumps(event) + "\n").encode()
        # One system call: a SIGKILL leaves whole lines.
        os.write(self._file, line)
        self._size += len(line)
        if self._size > SEGMENT:
            os.close(self._file)
            self._begin()

    def begin(self, kind: str, written: Mapping[str, Any]) -> int:
        """Note that a write is about to be sent; return its number."""
        self._number += 1
        self._note("begin", self._number, kind, written, time.monotonic())
        return self._number

    def end(self, number: int, outcome: str, result: Any = None) -> None:
        """Note how it ended: "ok", or "maybe" where an error was raised.

        :param result: what the operation gave, as the new number of a counter

        """
        self._note("end", number, time.monotonic(), outcome, result)

    def read(self, start: float, as_of: float | None, seen: Mapping[str, Any]) -> None:
        """Note a read that ends now.

        :param start: when it began
        :param as_of: it promised the state of that moment, or a later one; None: any state
        :param seen: key -> value, None where there is none

        """
        self._note("read", start, time.monotonic(), as_of, seen)

    def failed(self, error: BaseException) -> None:
        """Note that a read raised what means an outage."""
        self._note("failed", time.monotonic(), type(error).__name__)

    def surprise(self, text: str) -> None:
        """Note an error that means no outage."""
        self._note("surprise", time.monotonic(), text)

    def copy(self, phase: int, entries: Mapping[str, Any]) -> None:
        """Note the local copy after the one sync that follows the faults."""
        self._note("copy", phase, entries)

    def store(self, phase: int, entries: Mapping[str, Any]) -> None:
        """Note what the store holds, as read past the library."""
        self._note("store", phase, time.monotonic(), entries)

    def promise(self, promise: str) -> None:
        """Note what a strict read sees: see `History`."""
        self._note("promise", promise)

    def fault(self, fault: Fault) -> None:
        """Note a fault that has happened."""
        self._note("fault", fault.name, fault.start, fault.end, fault.loses, fault.blind)


@dataclass
class Operation:
    """A read or write of one key."""

    process: str
    kind: str  # "read", "set", "delete", "compute"
    key: str
    value: Any  # written or seen; None: absent
    start: float
    end: float = inf
    outcome: str = "maybe"
    #: Of a read: the moment whose state it promised to see, or a later one; -inf: it promised none.
    as_of: float = -inf
    #: Of a read of several keys, which are of one state: its number among all of the process.
    number: int = 0

    def __str__(self) -> str:
        value = "nothing" if self.value is None else repr(self.value)
        outcome = "" if self.outcome == "ok" else f", {self.outcome}"
        return (
            f"{self.process}: {self.kind} {self.key} {value} [{self.start:.6f}, {self.end:.6f}"
            f"{outcome}]"
        )


@dataclass
class Fault:
    """Something that was done to a process, a server or a connection.

    :param loses: whether acknowledged writes may be lost by it; a new epoch begins at its end
    :param blind: whether reads from its start to its end promise less

    """

    name: str
    start: float
    end: float
    loses: bool = False
    blind: bool = False


@dataclass
class Write:
    """One line of a write, before its end is known."""

    kind: str
    written: dict[str, Any]
    start: float


@dataclass
class Copy:
    """A whole local copy, or what the store holds, when nobody writes."""

    process: str
    phase: int
    entries: dict[str, Any]
    time: float = inf


@dataclass
class History:
    """All that happened in one run.

    :param promise: "linearizable": an order explains all reads and writes; "acknowledged": a read
        sees at least what was acknowledged before it; "cached": so it does, and no reader goes
        back, but while reads promise less

    """

    promise: str = "linearizable"

    operations: list[Operation] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    stores: list[Copy] = field(default_factory=list)
    #: process and error
    surprises: list[tuple[str, str]] = field(default_factory=list)
    #: class of the error -> how many reads raised it
    failed_reads: dict[str, int] = field(default_factory=dict)
    #: How many calls the operations are of: one call may be about several keys.
    calls: int = 0

    @classmethod
    def load(cls, folder: Path) -> History:
        """Read what all processes of a run have written."""
        history = cls()
        processes = sorted({path.name.split(".")[0] for path in folder.glob("*.history")})
        for process in processes:
            history._take(process, _events(folder, process))
        history.faults.sort(key=lambda fault: fault.start)
        history.stores.sort(key=lambda store: store.phase)
        return history

    def _take(self, process: str, events: Iterator[list[Any]]) -> None:
        pending: dict[int, Write] = {}
        for what, *fields in events:
            if what == "begin":
                number, *rest = fields
                pending[number] = Write(*rest)
            elif what == "end":
                number, end, outcome, result = fields
                self._add_write(process, pending.pop(number), end, outcome, result)
            elif what == "read":
                self._add_read(process, *fields)
            elif what == "failed":
                self.calls += 1
                self.failed_reads[fields[1]] = self.failed_reads.get(fields[1], 0) + 1
            elif what == "promise":
                (self.promise,) = fields
            elif what == "surprise":
                self.surprises.append((process, fields[1]))
            elif what == "copy":
                self.copies.append(Copy(process, *fields))
            elif what == "store":
                phase, time_, entries = fields
                self.stores.append(Copy(process, phase, entries, time_))
            else:
                self.faults.append(Fault(*fields))
        for write in pending.values():
            self._add_write(process, write, inf, "maybe", None)

    def _add_write(self, process: str, write: Write, end: float, outcome: str, result: Any) -> None:
        self.calls += 1
        # Of unknown outcome: it may still arrive after the error.
        end = end if outcome == "ok" else inf
        for key, value in write.written.items():
            value = result if write.kind == "compute" else value
            self.operations.append(
                Operation(process, write.kind, key, value, write.start, end, outcome)
            )

    def _add_read(
        self, process: str, start: float, end: float, as_of: float | None, seen: dict[str, Any]
    ) -> None:
        self.calls += 1
        since = -inf if as_of is None else as_of
        for key, value in seen.items():
            self.operations.append(
                Operation(process, "read", key, value, start, end, "ok", since, self.calls)
            )


def _events(folder: Path, process: str) -> Iterator[list[Any]]:
    for path in sorted(folder.glob(f"{process}.*.history")):
        for line in path.read_bytes().splitlines():
            yield json.loads(line)
