"""What the tests of a read without SQL watch: statements, calls of stat, files and descriptors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    SqliteDict,
    sqliteconnection,
)
from durabledict.sqliteconnection import Connection

from .servers import PATIENCE

__all__ = [
    "PATIENCE",
    "STAMP_SELECT",
    "Failing",
    "Forbidden",
    "Watched",
    "beside",
    "held",
    "paths_asked_of_stat",
    "plain",
    "query",
    "shm",
    "statements_of",
    "warm",
    "watching",
]

STAMP_SELECT = "SELECT version, nonce FROM durabledict_commits WHERE keyspace = ? ORDER"


class Watched(Connection):
    """A connection of the library that notes each statement, and lets a test come in between."""

    made: list[Watched] = []
    statements: list[str] = []
    before: dict[str, Callable[[], object]] = {}
    after: dict[str, Callable[[], object]] = {}

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.own: list[str] = []
        self.closed = False
        Watched.made.append(self)

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        self.note(sql)
        run(Watched.before, sql)
        # A write is a transaction, or one statement that is a transaction of its own.
        verb = sql.split()[0]
        begins = sql == "BEGIN IMMEDIATE" or (verb == "UPDATE" and not self.in_transaction)
        if begins:
            run(Watched.before, "a write")
        cursor = super().execute(sql, *arguments)
        run(Watched.after, sql)
        if verb == "COMMIT" or (verb == "UPDATE" and not self.in_transaction):
            run(Watched.after, "a write")
        return cursor

    def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        self.note(sql)
        return super().executemany(sql, *arguments)

    def note(self, sql: str) -> None:
        words = " ".join(sql.split())
        Watched.statements.append(words)
        self.own.append(words)

    def close(self) -> None:
        self.closed = True
        super().close()


class Failing(Connection):
    """A connection that does something else than it is told, once."""

    instead: Callable[..., object] | None = None
    at = ""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        act = Failing.instead
        if act is not None and sql.startswith(Failing.at):
            Failing.instead = None
            act(self, sql, *arguments)
        return super().execute(sql, *arguments)


def run(hooks: dict[str, Callable[[], object]], sql: str) -> None:
    """Run what is to be run at a statement, once."""
    words = " ".join(sql.split())
    for beginning in list(hooks):
        if words.startswith(beginning):
            hooks.pop(beginning)()


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Watched]]:
    """Have the library make such connections."""
    monkeypatch.setattr(sqliteconnection, "Connection", Watched)
    yield Watched
    for noted in (Watched.made, Watched.statements, Watched.before, Watched.after):
        noted.clear()


def paths_asked_of_stat(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the paths that os.stat is asked about."""
    asked: list[str] = []
    original = os.stat

    def stat(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        asked.append(str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    return asked


class Forbidden:
    """A lock that nobody may take."""

    def __enter__(self) -> None:
        raise AssertionError("a lock was taken")

    def __exit__(self, *arguments: object) -> None:
        raise AssertionError("a lock was released")

    def acquire(self, *arguments: object, **named: object) -> bool:
        raise AssertionError("a lock was taken")

    def _is_owned(self) -> bool:
        return False


def plain(file: Path) -> closing[sqlite3.Connection]:
    """Another program's connection."""
    return closing(sqlite3.connect(file, isolation_level=None, timeout=PATIENCE))


def query(file: Path, sql: str) -> list[Any]:
    with plain(file) as connection:
        return connection.execute(sql).fetchall()


def beside(file: Path) -> list[str]:
    """The names of the files that SQLite made beside the file."""
    return sorted(name for name in os.listdir(file.parent) if name.startswith(f"{file.name}-"))


def shm(file: Path) -> Path:
    return file.with_name(f"{file.name}-shm")


def held(file: Path) -> list[str]:
    """What the descriptors of this process that belong to the file lead to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the list itself
        if target.startswith(str(file)):
            found.append(target)
    return sorted(found)


def statements_of(action: Callable[[], object]) -> list[str]:
    """The SQL that an action runs."""
    Watched.statements.clear()
    action()
    return list(Watched.statements)


def warm(d: SqliteDict[Any, Any]) -> None:
    """Have the next strict read be a fast one."""
    d.sync()
    assert d._glimpse is not None
