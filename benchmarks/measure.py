"""Times statements in turns, so that a noisy machine harms all alike.

A figure of one run cannot be compared with one of another run, not even on the same machine. So a
statement (B) is timed together with what it is compared with (A), in short rounds, A, B, A, B and
so on, and the fastest round of each counts: whatever else the machine does can only make a round
slower. Where a server answers, the core that it is on decides as much as the code: there the median
round counts. A is timed a second time in the same manner, as if it were another statement: how far
its ratio to itself is from 1 is the noise of the figure beside it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from textwrap import indent
from typing import Any

__all__ = ["Comparison", "Statement", "compare", "timed"]

Timer = Callable[[], float]
# Of the seconds that each round took, the one that counts.
Pick = Callable[[Sequence[float]], float]

ROUNDS = 20
ROUND_SECONDS = 0.02

# The names are parameters, so that a statement finds them as fast as local variables.
LOOP = """
def _loop(_count, {names}):
    _start = _timer()
    for _ in _repeat(None, _count):
{body}
    return _timer() - _start
"""
LOOP_WITH_PAUSES = """
def _loop(_count, {names}):
    _total = 0.0
    for _ in _repeat(None, _count):
{untimed}
        _start = _timer()
{body}
        _total += _timer() - _start
    return _total
"""
LOOP_OF_SAMPLES = """
def _loop(_count, {names}):
    _samples = []
    for _ in _repeat(None, _count):
{untimed}
        _start = _timer()
{body}
        _samples.append(_timer() - _start)
    return _samples
"""


class Statement:
    """A statement to time, with the names that it uses.

    :param source: Python source
    :param unroll: how often it stands in the loop's body; makes the cost of the loop itself
        vanish beside a statement that takes nanoseconds
    :param untimed: a statement to run before each time, outside the timing
    :param names: what the names in the source stand for

    """

    def __init__(self, source: str, *, unroll: int = 1, untimed: str = "", **names: object) -> None:
        if untimed and unroll != 1:
            raise ValueError("with an untimed statement before each, there is nothing to unroll")
        self.source = source
        self.unroll = unroll
        self.untimed = untimed
        self.names = names

    def compiled(self, timer: Timer) -> Callable[[int], float]:
        """Return a function that runs the loop so many times and returns the seconds it took."""
        return self._compiled(LOOP_WITH_PAUSES if self.untimed else LOOP, timer)

    def one_by_one(self, count: int, timer: Callable[[], int] = time.perf_counter_ns) -> list[int]:
        """Run the statement so many times and return what each took, in ticks of the clock."""
        samples: list[int] = self._compiled(LOOP_OF_SAMPLES, timer)(count)
        return samples

    def _compiled(self, template: str, timer: Callable[[], Any]) -> Callable[[int], Any]:
        space: dict[str, object] = {**self.names, "_timer": timer, "_repeat": repeat}
        source = template.format(
            names=", ".join(f"{name}={name}" for name in space),
            body=indent("\n".join([self.source] * self.unroll), " " * 8),
            untimed=indent(self.untimed, " " * 8),
        )
        exec(compile(source, f"<{self.source}>", "exec"), space)
        loop = space["_loop"]
        assert callable(loop)
        return loop


@dataclass(frozen=True)
class Comparison:
    """Seconds that one run of each took in the round that counts.

    :param baseline: the statement compared with
    :param candidate: the statement of interest
    :param again: the baseline once more

    """

    baseline: float
    candidate: float
    again: float


def compare(
    baseline: Statement,
    candidate: Statement,
    *,
    rounds: int = ROUNDS,
    round_seconds: float = ROUND_SECONDS,
    timer: Timer = time.perf_counter,
    pick: Pick = min,
) -> Comparison:
    """Time two statements in turns; the baseline twice.

    :param rounds: how often each is timed
    :param round_seconds: about how long each time takes
    :param timer: the clock
    :param pick: the round that counts: the fastest one, or `statistics.median`

    """
    statements = (baseline, candidate, baseline)
    return Comparison(
        *timed(statements, rounds=rounds, round_seconds=round_seconds, timer=timer, pick=pick)
    )


def timed(
    statements: Iterable[Statement],
    *,
    rounds: int = ROUNDS,
    round_seconds: float = ROUND_SECONDS,
    timer: Timer = time.perf_counter,
    pick: Pick = min,
) -> list[float]:
    """Time statements in turns; return the seconds of one run of each in the round that counts.

    :param rounds: how often each is timed
    :param round_seconds: about how long each time takes
    :param timer: the clock
    :param pick: the round that counts

    """
    contestants = []
    with _without_gc():
        for statement in statements:
            # Compiled anew for the second time, too: where code lies in memory, and what the
            # interpreter has learned about it, is part of the noise.
            loop = statement.compiled(timer)
            passes = _calibrate(loop, round_seconds, timer)
            contestants.append((loop, passes, passes * statement.unroll))
        seconds: list[list[float]] = [[] for _ in contestants]
        for number in range(rounds):
            # A different one begins each round, so that none is always the one after another.
            for place in range(len(contestants)):
                index = (number + place) % len(contestants)
                loop, passes, runs = contestants[index]
                seconds[index].append(loop(passes) / runs)
    return [pick(rounds_of_one) for rounds_of_one in seconds]


def _calibrate(loop: Callable[[int], float], round_seconds: float, timer: Timer) -> int:
    """Return how many passes of the loop fill a round, what is untimed in it included."""
    passes = 1
    while True:
        start = timer()
        loop(passes)
        elapsed = timer() - start
        if elapsed >= round_seconds / 4:
            return max(1, round(passes * round_seconds / elapsed))
        passes *= 4


@contextmanager
def _without_gc() -> Iterator[None]:
    """Keep the garbage collector from running in whichever round it pleases."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
