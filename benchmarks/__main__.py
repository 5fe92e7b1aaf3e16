"""Prints the tables. Its exit code is 0 also where a limit is missed: a time that was measured on
a shared machine is something to look at, not a test."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from itertools import chain

from .loads import loads
from .measure import ROUND_SECONDS, ROUNDS
from .memory import memory
from .percentiles import spreads
from .printing import print_amounts, print_rows, print_spreads
from .reads import reads
from .stores import stores
from .syncs import syncs
from .wakeup import wakeups
from .writes import writes

PICTURES = ("reads", "syncs", "writes", "wakeups", "commands")
PARTS = ("sqlite", "redis", "zookeeper", "django", "stores", "growing", "features")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--plots", metavar="FOLDER", help="draw the plots into this folder; print no tables"
    )
    parser.add_argument(
        "--picture",
        action="append",
        choices=PICTURES,
        help="with --plots: draw this one alone; may be repeated",
    )
    which.add_argument("--only", choices=PARTS, help="print the tables of this backend alone")
    options = parser.parse_args()
    began = time.monotonic()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores."
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.plots is None:
            verdict = _tables(folder, PARTS if options.only is None else (options.only,))
        else:
            verdict = _plots(folder, options.plots, options.picture)
    print(f"\nTook {time.monotonic() - began:.0f} s. {verdict}")


def _tables(folder: str, parts: Sequence[str]) -> str:
    """Print the tables; return which limits were missed."""
    missed = []
    if "sqlite" in parts:
        missed += _sqlite_tables(folder)
    if "redis" in parts:
        # Only here: it needs a server, and more packages.
        from .redistables import redis_tables

        missed += redis_tables()
    if "zookeeper" in parts:
        from .zookeepertables import zookeeper_tables

        missed += zookeeper_tables()
    if "django" in parts:
        from .djangotables import django_tables

        missed += django_tables()
    if "stores" in parts:
        from .facadestores import facade_tables

        missed += facade_tables()
    if "growing" in parts:
        from .growing import growing_tables

        missed += growing_tables()
    if "features" in parts:
        from .features import feature_tables

        missed += feature_tables(folder)
    return "\n".join(["", *missed]) if missed else "Every limit is kept."


def _sqlite_tables(folder: str) -> list[str]:
    print(
        f"\nRatios. Each line: some {ROUNDS} rounds of about {ROUND_SECONDS * 1000:.0f} ms, in "
        "turns with what it is compared with;\nthe fastest round counts. A/A is the latter "
        "against itself: the noise.\n"
    )
    missed = print_rows(
        chain(
            reads(folder),
            memory(folder),
            stores(folder),
            writes(folder),
            loads(folder),
            syncs(folder),
        )
    )
    print("\nWake-ups of a watch in another process, and what it costs while idle.\n")
    woken = wakeups(folder)
    missed += print_amounts(woken.amounts())
    print("\nPercentiles of single operations in microseconds, the clock's own cost included.\n")
    print_spreads(spreads(folder, woken))
    return missed


def _plots(folder: str, target: str, names: Sequence[str] | None) -> str:
    # Only here: matplotlib is needed for nothing else.
    from .plots import plots

    for line in plots(folder, target, names):
        print(line, flush=True)
    return f"The plots are in {target}."


if __name__ == "__main__":
    main()
