"""Processes of their own that do with an SQLite file what a test tells them."""

from __future__ import annotations

import sqlite3
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .serving import serve
from .sqlitewatch import plain
from .test_processes import PATIENCE, opened, spawning

__all__ = [
    "Other",
    "beside",
    "execute",
    "file_of",
    "items",
    "mine",
    "open_mine",
    "reloads",
    "sound",
    "stored",
    "until",
    "use",
    "write_mine",
]


def file_of(place: Path) -> Path:
    return place / "x.sqlite"


def beside(place: Path) -> list[Path]:
    """The two files that SQLite makes beside the file."""
    return [place / "x.sqlite-wal", place / "x.sqlite-shm"]


def sound(place: Path) -> None:
    """Check the file."""
    with plain(file_of(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def stored(place: Path, **options: Any) -> list[tuple[Any, Any]]:
    """What a dict that is opened now holds, in its order."""
    with opened(place, **options) as fresh:
        return list(fresh.items())


def until(condition: Callable[[], object]) -> None:
    """Ask again and again until it holds."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it does not come to that"
        time.sleep(0.002)


class Other:
    """A process of its own that runs one function after the other, as it is told.

    Between two of them it does nothing, and keeps what they put into `mine`.

    """

    def __init__(self) -> None:
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.start(function, *arguments)
        return self.result()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._pipe.send((function, arguments))

    def result(self) -> Any:
        assert self._pipe.poll(PATIENCE), "the process hangs"
        good, outcome = self._pipe.recv()
        if not good:
            raise outcome
        return outcome

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _serve(pipe: Any) -> None:
    def print_it(error: BaseException) -> BaseException:
        traceback.print_exc()  # the exception goes to the other side without it
        return error

    serve(pipe, print_it)


# What the functions below keep in their process.
mine: dict[str, Any] = {}


def open_mine(name: str, place: Path, options: dict[str, Any]) -> None:
    mine[name] = opened(place, **options)


def use(name: str, method: str, *arguments: Any) -> Any:
    return getattr(mine[name], method)(*arguments)


def items(name: str) -> list[tuple[Any, Any]]:
    return list(mine[name].items())


def reloads(name: str) -> int:
    stats = mine[name].stats
    return int(stats.reloads)


def write_mine(name: str, entries: dict[Any, Any]) -> None:
    for key, value in entries.items():
        mine[name][key] = value


def execute(place: Path, sql: str, *values: Any) -> list[Any]:
    """Run a statement on a connection that stays open, as a program without durabledict does."""
    connection = mine.get("plain")
    if connection is None:
        connection = mine["plain"] = sqlite3.connect(
            file_of(place), isolation_level=None, timeout=PATIENCE
        )
    rows: list[Any] = connection.execute(sql, values).fetchall()
    return rows
