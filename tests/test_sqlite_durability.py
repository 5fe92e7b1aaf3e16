"""How often SqliteDict waits for the disk, counted from outside, by strace.

Rule 0.8. To kill a process proves nothing about the loss of power, because the system still writes
what it holds. What proves something is the number of syncs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from durabledict import SqliteDict

from . import not_measured

ROOT = Path(__file__).parent.parent

# No program takes that long: it is when one that hangs becomes a failure.
PATIENCE = 60.0

WRITES = 20

# It syncs two files of its own before and after the writes, which marks their place in the trace.
# One write before them: what the first one does once belongs to nobody.
PROGRAM = f"""
import os, pathlib, sys, threading
from durabledict import SqliteDict

place, options = pathlib.Path(sys.argv[1]), eval(sys.argv[2])

def mark(name):
    descriptor = os.open(place / name, os.O_CREAT | os.O_WRONLY)
    os.fsync(descriptor)
    os.close(descriptor)

with SqliteDict(place / "x.sqlite", **options) as d:
    d["first"] = 0
    mark("begin")
    for number in range({WRITES}):
        # New keys and new values: they are written in two ways.
        thread = threading.Thread(target=d.__setitem__, args=(number % 10, number))
        if sys.argv[3] == "in threads":
            thread.start()
            thread.join()
        else:
            thread.run()
    mark("end")
"""


def traced(place: Path, options: dict[str, Any], how: str) -> list[str]:
    """Run the program; return its calls of fsync and fdatasync between the two marks."""
    trace = place / "trace"
    # With -y each descriptor is shown with its path, with -f the threads are traced, too.
    strace = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace)]
    program = [sys.executable, "-c", PROGRAM, str(place), repr(options), how]
    try:
        done = subprocess.run(
            [*strace, *program],
            cwd=ROOT,
            env=not_measured(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except FileNotFoundError:
        pytest.fail("strace is not installed: see tests/install_requirements.sh")
    # Not a skip: nothing else tells whether a commit waits for the disk.
    if "ptrace" in done.stderr:
        pytest.fail(f"this machine forbids to trace a process: {done.stderr}")
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if "sync(" in line]
    places = {
        name: [number for number, line in enumerate(calls) if f"/{name}>" in line]
        for name in ("begin", "end")
    }
    assert [len(found) for found in places.values()] == [1, 1], calls
    return calls[places["begin"][0] + 1 : places["end"][0]]


def syncs(place: Path, options: dict[str, Any], how: str = "alone") -> tuple[int, int]:
    """Return how often the log was synced, and how often anything was."""
    calls = traced(place, options, how)
    return sum("x.sqlite-wal>" in line for line in calls), len(calls)


@pytest.mark.parametrize(
    "options", [{}, {"synchronous": "FULL"}, {"synchronous": "EXTRA"}], ids=str
)
def test_each_commit_waits_for_the_disk(tmp_path: Path, options: dict[str, Any]) -> None:
    """Also by default."""
    of_log, _ = syncs(tmp_path, options)
    assert of_log >= WRITES


def test_normal_waits_at_checkpoints_only(tmp_path: Path) -> None:
    _, of_all = syncs(tmp_path, {"synchronous": "NORMAL"})
    assert of_all < WRITES / 4


def test_off_never_waits(tmp_path: Path) -> None:
    assert syncs(tmp_path, {"synchronous": "OFF"}) == (0, 0)


@pytest.mark.parametrize("options", [{}, {"synchronous": "OFF"}], ids=str)
def test_the_setting_is_that_of_every_thread(tmp_path: Path, options: dict[str, Any]) -> None:
    """Each has a connection of its own, and to SQLite the setting belongs to the connection."""
    of_log, of_all = syncs(tmp_path, options, "in threads")
    assert of_all == 0 if options else of_log >= WRITES


@pytest.mark.parametrize("level", ["OFF", "NORMAL", "FULL", "EXTRA"])
def test_the_level_is_that_of_each_connection(tmp_path: Path, level: str) -> None:
    levels = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}
    options: dict[str, Any] = {"synchronous": level}
    with SqliteDict[str, int](tmp_path / "x.sqlite", **options) as d, d._file.use() as connection:
        assert connection.rows("PRAGMA synchronous") == [(levels[level],)]


def test_the_level_is_full_by_default(tmp_path: Path) -> None:
    with SqliteDict[str, int](tmp_path / "x.sqlite") as d, d._file.use() as connection:
        assert connection.rows("PRAGMA synchronous") == [(2,)]
        assert connection.rows("PRAGMA journal_mode") == [("wal",)]
