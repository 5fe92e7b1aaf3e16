"""Prints the tables. Its exit code is 0 also where a limit is missed: a time that was measured on
a shared machine is something to look at, not a test."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import tempfile
import time
from itertools import chain

from .loads import loads
from .measure import ROUND_SECONDS, ROUNDS
from .memory import memory
from .percentiles import spreads
from .reads import reads
from .stores import stores
from .syncs import syncs
from .tables import Amount, Row, Spread
from .wakeup import wakeups
from .writes import writes

FRACTIONS = (0.5, 0.9, 0.99, 0.999)

HEADINGS = ("what", "against", "ratio", "limit", "A/A", "figure", "against", "", "")
LINE = "{:<34} {:<26} {:>7} {:>6} {:>5} {:>10} {:>10} {:<5} {}"
AMOUNT_LINE = "{:<61} {:>7} {:>6} {:<11} {}"
SPREAD_LINE = "{:<34} {:>8} {:>10} {:>10} {:>10} {:>10}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "--plots", metavar="FOLDER", help="draw the plots into this folder; print no tables"
    )
    target = parser.parse_args().plots
    began = time.monotonic()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores."
    )
    with tempfile.TemporaryDirectory() as folder:
        if target is None:
            verdict = _tables(folder)
        else:
            verdict = _plots(folder, target)
    print(f"\nTook {time.monotonic() - began:.0f} s. {verdict}")


def _tables(folder: str) -> str:
    """Print the tables; return which limits were missed."""
    missed = []
    print(
        f"\nRatios. Each line: some {ROUNDS} rounds of about {ROUND_SECONDS * 1000:.0f} ms, in "
        "turns with what it is compared with;\nthe fastest round counts. A/A is the latter "
        "against itself: the noise.\n"
    )
    print(LINE.format(*HEADINGS).rstrip())
    for row in chain(
        reads(folder), memory(folder), stores(folder), writes(folder), loads(folder), syncs(folder)
    ):
        print(_line(row), flush=True)
        if row.verdict not in ("", "ok"):
            missed.append(
                f"{row.verdict}: {row.what}: {row.ratio:.2f} x {row.against}, limit {row.limit:g}"
            )
    print("\nWake-ups of a watch in another process, and what it costs while idle.\n")
    woken = wakeups(folder)
    for amount in woken.amounts():
        print(_amount_line(amount))
        if amount.verdict != "ok":
            missed.append(
                f"{amount.verdict}: {amount.what}: {amount.figure:.2f} {amount.unit}, "
                f"limit {amount.limit:g}"
            )
    print("\nPercentiles of single operations in microseconds, the clock's own cost included.\n")
    names = [f"p{fraction * 100:g}" for fraction in FRACTIONS]
    print(SPREAD_LINE.format("what", "samples", *names))
    for spread in spreads(folder, woken):
        print(_spread_line(spread), flush=True)
    return "\n".join(["", *missed]) if missed else "Every limit is kept."


def _plots(folder: str, target: str) -> str:
    # Only here: matplotlib is needed for nothing else.
    from .plots import plots

    for line in plots(folder, target):
        print(line, flush=True)
    return f"The plots are in {target}."


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


def _amount_line(amount: Amount) -> str:
    return AMOUNT_LINE.format(
        amount.what, f"{amount.figure:.2f}", f"{amount.limit:g}", amount.unit, amount.verdict
    )


def _spread_line(spread: Spread) -> str:
    figures = (spread.percentile(fraction) for fraction in FRACTIONS)
    return SPREAD_LINE.format(
        spread.what,
        f"{len(spread.samples):,}",
        *("" if figure is None else f"{figure / 1000:.2f}" for figure in figures),
    ).rstrip()


if __name__ == "__main__":
    main()
