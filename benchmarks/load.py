"""`make load`: many readers of one Redis and one SQLite file; many operations in one process.

Unlike a benchmark it says no: its exit code is 1 when a reader saw an older value after a newer
one, when memory or file descriptors grow, or when a thread is left after `close()`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.redisservers import RedisServer

from .loadreaders import Place, opened
from .loadsteady import steady
from .loadwatch import run_readers

STORES = ("redis", "sqlite")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the operations")
    parser.add_argument("--operations", type=int, default=1_000_000, help="in all, at least")
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="even if they are fewer")
    parser.add_argument("--readers", type=int, default=200, help="of each store")
    parser.add_argument("--reading", type=float, default=60.0, help="seconds that they read")
    parser.add_argument("--memory", type=int, default=8000, help="megabytes for their processes")
    parser.add_argument("--processes", type=int, default=200, help="at most; the rest are threads")
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores.")
    began = time.monotonic()
    problems: list[str] = []
    with _places() as places:
        for place in places:
            reading = min(options.reading, options.seconds)
            problems += run_readers(
                place, options.readers, options.processes, options.memory, reading
            )
        problems += steady(
            places, options.seconds, options.operations, most_seconds=options.most_seconds
        )
    print(f"\nTook {time.monotonic() - began:.0f} s.")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("Something is wrong." if problems else "Nothing grew, and nothing is left.")
    return 1 if problems else 0


@contextmanager
def _places() -> Iterator[list[Place]]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(RedisServer())
        places = [
            Place("redis", server.url, "load"),
            Place("sqlite", os.path.join(folder, "load.sqlite"), "load"),
        ]
        for place in places:
            with opened(place) as d:
                d.update({f"key {number}": number for number in range(100)}, count=0)
        yield places


if __name__ == "__main__":
    sys.exit(main())
