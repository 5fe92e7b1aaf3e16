"""Prints the table of ratios. Its exit code is 0 also where a limit is missed: a time that was
measured on a shared machine is something to look at, not a test."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
from itertools import chain

from .measure import ROUND_SECONDS, ROUNDS, Row
from .memory import memory
from .reads import reads
from .stores import stores

HEADINGS = ("what", "against", "ratio", "limit", "A/A", "figure", "against", "", "")
LINE = "{:<34} {:<26} {:>7} {:>6} {:>5} {:>10} {:>10} {:<5} {}"


def main() -> None:
    began = time.monotonic()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores. Each line: some {ROUNDS} rounds of about "
        f"{ROUND_SECONDS * 1000:.0f} ms, in turns with\nwhat it is compared with; the fastest "
        "round counts. A/A is the latter against itself: the noise.\n"
    )
    print(LINE.format(*HEADINGS).rstrip())
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for row in chain(reads(folder), memory(folder), stores(folder)):
            print(_line(row), flush=True)
            if row.verdict not in ("", "ok"):
                missed.append(row)
    print(f"\nTook {time.monotonic() - began:.0f} s.", "" if missed else "Every limit is kept.")
    for row in missed:
        print(f"{row.verdict}: {row.what}: {row.ratio:.2f} x {row.against}, limit {row.limit:g}")


def _line(row: Row) -> str:
    scale, digits = (1e6, 3) if row.unit == "us" else (1, 1)
    return LINE.format(
        row.what,
        row.against,
        f"{row.ratio:.2f}",
        "" if row.limit is None else f"{row.limit:g}",
        f"{row.noise:.2f}",
        f"{row.measured.candidate * scale:.{digits}f}",
        f"{row.measured.baseline * scale:.{digits}f}",
        row.unit,
        row.verdict,
    ).rstrip()


if __name__ == "__main__":
    main()
