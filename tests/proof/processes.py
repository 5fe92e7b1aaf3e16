"""The workers as the main process sees them: started, replaced when killed, told what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..counters import Counter
from ..servers import wait_until
from .workers import PHASES, RUN

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Part", "Worker", "Workers"]

#: Where `tests` is a package.
ROOT = Path(__file__).parent.parent.parent

#: Longer than any worker waits for anything.
PATIENCE = 60.0


@dataclass(frozen=True)
class Part:
    """What a process does all the time.

    :param mode: how it reads, one of `workers.MODES`

    """

    mode: str
    writes: bool = False


@dataclass
class Worker:
    """One process."""

    part: Part
    name: str
    process: subprocess.Popen[bytes]
    ready: Counter
    settled: Counter

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass
class Workers:
    """All processes of one run, in a `with` statement.

    :param orders: what all of them are told
    :param folder: where they write their histories
    :param environment: what else is in theirs

    """

    parts: Sequence[Part]
    folder: Path
    orders: dict[str, Any]
    environment: dict[str, str]
    _running: list[Worker] = field(default_factory=list)
    _started: int = 0
    _environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.phase = Counter(self.folder / "phase")
        # Not measured by coverage.py: it takes a third of what a process does, and is killed.
        own = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
        self._environment = {**own, **self.environment}
        try:
            for part in self.parts:
                self._running.append(self._start(part))
            for worker in self._running:
                self._wait(worker, partial(worker.ready.has_come_to, 1), "has opened its dict")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running:
            worker.process.kill()
            worker.process.wait()
        for pid in self._children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended meanwhile

    def _start(self, part: Part) -> Worker:
        self._started += 1
        name = f"{'writer' if part.writes else 'reader'}-{part.mode}-{self._started}"
        orders = {
            **self.orders,
            "name": name,
            "mode": part.mode,
            "writes": part.writes,
            "folder": str(self.folder),
            "seed": f"{self.orders['seed']} {name}",
        }
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.proof.workers", json.dumps(orders)],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        counters = (Counter(self.folder / f"{name}.{what}") for what in ("ready", "settled"))
        return Worker(part, name, process, *counters)

    def _wait(self, worker: Worker, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            if worker.process.poll() is not None:
                log = (self.folder / f"{worker.name}.log").read_text(errors="replace")
                raise RuntimeError(f"{worker.name} has ended:\n{log}")
            return condition()

        wait_until(holds, f"{worker.name} {what}", PATIENCE)

    def all(self) -> list[Worker]:
        return list(self._running)

    def ready(self) -> list[Worker]:
        """Return those that have opened their dicts, and so listen to signals."""
        return [worker for worker in self._running if worker.ready.value]

    def writers(self) -> list[Worker]:
        return [worker for worker in self._running if worker.part.writes]

    def replace(self, worker: Worker, signal_number: int) -> None:
        """End a process by a signal, and start another one of its kind."""
        worker.process.send_signal(signal_number)
        worker.process.wait()
        place = self._running.index(worker)
        self._running[place] = self._start(worker.part)

    def come_to(self, rest: int) -> int:
        """Have all go on to the next phase of that kind; return its number when all have."""
        number = self.phase.value + 1
        while number % PHASES != rest:
            number += 1
        self.phase.value = number
        if rest != RUN:
            for worker in self._running:
                self._wait(worker, partial(worker.settled.has_come_to, number), "obeys")
            wait_until(lambda: not self._children(), "the children of forks have ended")
        return number

    def session(self, worker: Worker) -> tuple[int, bytes]:
        """Return the number and the password of the session that it has, or has had."""
        number, password = (self.folder / f"{worker.name}.session").read_text().split()
        return int(number), bytes.fromhex(password)

    def _children(self) -> list[int]:
        found = []
        for path in self.folder.glob("*.child"):
            pid = int(path.stem)
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            else:
                found.append(pid)
        return found
