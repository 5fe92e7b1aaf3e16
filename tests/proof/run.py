"""One run: the processes of one backend, the faults that hit them, and what the checker says."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from .backends import Backend
from .checker import check
from .faults import Deck
from .history import History, Recorder
from .processes import Part, Workers
from .violations import Violation
from .workers import RUN, SETTLE, WAIT

__all__ = ["ROUND", "Result", "prove"]

#: Seconds of faults between two moments at which all stop, and each copy is compared.
ROUND = 10.0

#: How many times as long as it was asked to a run may take, until there is enough.
LONGEST = 10


@dataclass
class Result:
    """What came out of one run.

    :param faults: how many of each

    """

    backend: str
    seconds: float
    history: History
    faults: Counter[str]
    violations: list[Violation]


def prove(
    backend: Backend,
    seconds: float,
    seed: int,
    *,
    bug: str = "",
    only: Sequence[str] = (),
    parts: Sequence[Part] = (),
    keep: Path | None = None,
    enough: Callable[[History], object] | None = None,
) -> Result:
    """Run the processes for so long, under faults; then check what they did and saw.

    :param seed: chooses faults and operations; when they meet is chance
    :param bug: one of `bugs.BUGS`, put into each process
    :param only: the beginnings of the names of the faults; none: all
    :param parts: what the processes do; none: as the backend has it
    :param keep: where the histories are to stay; None: they are removed
    :param enough: whether what was looked for has happened; else the run goes on for as long again:
        a machine that is busy does less in its seconds

    """
    began = time.monotonic()
    random = Random(f"{seed} {backend.name}")
    faults = Counter[str]()
    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="proof-")))
        else:
            folder = keep
            folder.mkdir(parents=True)
        stack.enter_context(backend)
        record = Recorder(folder, "main")
        orders: dict[str, Any] = {
            "backend": backend.name,
            "place": backend.place(),
            "seed": seed,
            "bug": bug,
        }
        record.promise(backend.promise)
        workers = stack.enter_context(
            Workers(parts or backend.parts, folder, orders, backend.environment())
        )
        kinds = [
            kind
            for kind in backend.faults(workers, random)
            if not only or kind.name.startswith(tuple(only))
        ]
        deck = Deck(kinds, random, record)
        for _ in range(LONGEST):
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                workers.come_to(RUN)
                until = min(time.monotonic() + ROUND, ends)
                while time.monotonic() < until:
                    time.sleep(random.uniform(0.1, 0.6))
                    if kinds:
                        faults[deck.strike()] += 1
                workers.come_to(WAIT)
                time.sleep(backend.calm)  # what was sent in vain arrives, if it does
                # By now it stands still: nothing is written until the next round.
                phase = workers.come_to(SETTLE)
                record.store(phase, backend.stored())
            history = History.load(folder)
            if enough is None or enough(history):
                break
    return Result(backend.name, time.monotonic() - began, history, faults, check(history))
