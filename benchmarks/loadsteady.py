"""Many operations of every kind in one process, whose memory and descriptors are not to grow."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from .loadreaders import Place, descriptors, memory, opened

__all__ = ["Sample", "grown", "steady"]

#: Samples that are taken, at even intervals; the first of them are of a process that warms up.
SAMPLES = 40
WARMING = SAMPLES // 4

#: Megabytes by which an allocator may differ from one moment to another.
SLACK = 4.0

#: Operations between two looks at the clock.
AT_ONCE = 200


class Sample(NamedTuple):
    """What a process has at one moment.

    :param memory: megabytes of its own
    :param descriptors: files and sockets
    :param threads: those that are running

    """

    memory: float
    descriptors: int
    threads: int


def take_sample() -> Sample:
    """Return what this process has now, without garbage."""
    gc.collect()
    return Sample(memory() / 1e6, descriptors(), threading.active_count())


def grown(samples: Sequence[Sample]) -> list[str]:
    """Return what grew: what is always more in the last third than ever in the first.

    >>> grown([Sample(20.0, 5, 1)] * 9)
    []
    >>> grown([Sample(20.0, 5 + number, 1) for number in range(9)])
    ['descriptors grew from 7 to 11']

    """
    third = len(samples) // 3
    if not third:
        return []
    problems = []
    for name, slack in (("memory", SLACK), ("descriptors", 0), ("threads", 0)):
        before = max(getattr(sample, name) for sample in samples[:third])
        after = min(getattr(sample, name) for sample in samples[-third:])
        if after > before + slack:
            problems.append(f"{name} grew from {before:g} to {after:g}")
    return problems


def steady(
    places: Sequence[Place], seconds: float, operations: int, *, most_seconds: float
) -> list[str]:
    """Do so many operations, for so many seconds at least; return what is wrong.

    :param most_seconds: after which it ends, however many there were

    """
    chance = random.Random(1)
    samples: list[Sample] = []
    done = 0
    for place in places:  # what the first use of a module, and of a file, leaves behind
        opened(place).close()
    before = take_sample()
    began = time.monotonic()
    with ExitStack() as stack:
        users = [_User(place, stack, chance) for place in places]
        while True:
            for user in users:
                user.work(AT_ONCE)
            done += AT_ONCE * len(users)
            passed = time.monotonic() - began
            share = min(passed / max(seconds, 0.001), done / max(operations, 1))
            if share * SAMPLES >= len(samples) + 1:
                samples.append(take_sample())
            if share >= 1.0 or passed >= most_seconds:
                break
    problems = grown(samples[WARMING:])
    if done < operations:
        problems.append(f"only {done:,} operations in {passed:.0f} s")
    after = take_sample()
    if after.threads > before.threads:
        left = ", ".join(thread.name for thread in threading.enumerate()[1:])
        problems.append(f"threads are left after close(): {left}")
    if after.descriptors > before.descriptors:
        problems.append(f"{after.descriptors - before.descriptors} descriptors left after close()")
    print(f"\n{done:,} operations in {passed:.0f} s; memory (MB), descriptors and threads:")
    step = max(1, len(samples) // 10)
    for number in range(0, len(samples), step):
        sample = samples[number]
        print(
            f"  {100 * (number + 1) // SAMPLES:3d} %  {sample.memory:7.1f}  "
            f"{sample.descriptors:4d}  {sample.threads:3d}"
        )
    print(f"  closed {after.memory:6.1f}  {after.descriptors:4d}  {after.threads:3d}")
    return problems


class _User:
    """Uses the dicts of one place in every way: strict, manual, watched, opened and closed."""

    def __init__(self, place: Place, stack: ExitStack, chance: random.Random) -> None:
        self._place = place
        self._chance = chance
        self._strict: Any = stack.enter_context(opened(place))
        self._manual: Any = stack.enter_context(opened(place, autosync=False))
        self._watched: Any = stack.enter_context(opened(place, autosync=False))
        self._watched.watch(0.5)
        self._heard = 0
        self._watched.on_change(self._hear)
        self._opened = 0

    def _hear(self, key: object, old: object, new: object) -> None:
        self._heard += 1

    def work(self, number: int) -> None:
        """Do so many operations; in each thousand one opens and closes a dict."""
        strict, manual = self._strict, self._manual
        for _ in range(number):
            key, what = f"key {self._chance.randrange(100)}", self._chance.randrange(1000)
            if what < 800:
                strict.get(key)
            elif what < 860:
                manual.sync()
            elif what < 920:
                strict[key] = what
            elif what < 940:
                manual.compute(key, lambda value: (value or 0) + 1, default=0)
            elif what < 960:
                strict.pop(key, None)
            elif what < 975:
                manual.update({key: 1, "another": 2})
            elif what < 990:
                list(strict.items())
            elif what < 999:
                strict.sync(force=True)
            else:
                self._open_and_close()

    def _open_and_close(self) -> None:
        self._opened += 1
        with opened(self._place, autosync=False) as d:
            if self._opened % 4 == 0:
                d.watch(0.5)
            d.get("count")
