"""A backup that is restored over, or in place of, an SQLite file that dicts have open."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from durabledict import SqliteDict

from .sqliteprocesses import (
    Other,
    beside,
    execute,
    file_of,
    mine,
    sound,
    stored,
    until,
    use,
)
from .sqlitewatch import plain
from .test_processes import PATIENCE, opened

# So many that each quarter has pages of its own.
KEYS = 200


def contents(state: str, keys: int = KEYS) -> dict[int, Any]:
    return {number: (state, number, "-" * 400) for number in range(keys)}


RESTORED = contents("restored")
# Half of it is in the file and half in the log: a log that is read over the backup is a mixture.
LOST = {**contents("lost"), **contents("lost later", KEYS // 4)}


def back_up(source: Path, target: Path) -> None:
    with plain(source) as reads, plain(target) as writes:
        reads.backup(writes)


def prepare(place: Path) -> None:
    """Make a backup, and then write what the restoring of it will undo."""
    with opened(place) as d:
        d.update(RESTORED)
        back_up(file_of(place), place / "backup.sqlite")
        d.update(contents("lost"))


def write_into_the_log(d: SqliteDict[Any, Any], place: Path) -> None:
    with plain(file_of(place)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number, value in contents("lost later", KEYS // 4).items():
        d[number] = value
    assert beside(place)[0].stat().st_size > 100_000
    assert d == LOST


def restore_into(place: Path) -> None:
    """With SQLite's own backup, into the live file."""
    back_up(place / "backup.sqlite", file_of(place))


def restore_by_name(place: Path) -> None:
    for path in beside(place):
        path.unlink()
    os.replace(place / "backup.sqlite", file_of(place))


def restore_by_name_alone(place: Path) -> None:
    """The old file's log, with what was not copied into the file, is left lying there."""
    os.replace(place / "backup.sqlite", file_of(place))
    assert all(path.exists() for path in beside(place))


class Followers:
    """A dict of each mode, and what they showed so far."""

    def __init__(self, place: Path) -> None:
        modes: dict[str, Any] = {"strict": True, "manual": False, "bounded": 0.05, "watched": False}
        self.dicts = {mode: opened(place, autosync=modes[mode]) for mode in modes}
        self.dicts["watched"].watch(interval=1.0)
        self._was_restored: set[str] = set()

    def look(self) -> dict[str, dict[Any, Any]]:
        """Return what each shows. It must be one of the two states, and not go back."""
        shown = {}
        for mode, d in self.dicts.items():
            if mode == "manual":
                d.sync()
            shown[mode] = copy = d.copy()
            of_state = {key: copy[key] for key in copy if isinstance(key, int)}
            if of_state == RESTORED:
                self._was_restored.add(mode)
            else:
                states = sorted({value[0] for value in of_state.values()})
                assert of_state == LOST, f"{mode} is a mixture of {states}"
                assert mode not in self._was_restored, f"{mode} went back"
        return shown

    def wait_lost(self) -> None:
        """Wait for what was written before anything is restored."""

        def all_have_it() -> bool:
            self.dicts["manual"].sync()
            return all(d.copy() == LOST for d in self.dicts.values())

        until(all_have_it)

    def wait_restored(self) -> None:
        until(lambda: self.look() and len(self._was_restored) == len(self.dicts))

    def wait_equal(self, expected: list[tuple[Any, Any]]) -> None:
        until(lambda: all(list(shown.items()) == expected for shown in self.look().values()))

    def write_later(self, name: str) -> None:
        for mode, d in self.dicts.items():
            for number in range(5):
                d[f"{name} {mode} {number}"] = number

    def close(self) -> None:
        for d in self.dicts.values():
            d.close()


def follow(place: Path) -> None:
    mine["followers"] = Followers(place)


@pytest.mark.parametrize(
    "restore",
    [restore_into, restore_by_name, restore_by_name_alone],
    ids=lambda restore: restore.__name__,
)
def test_a_backup_is_restored_under_open_dicts(
    place: Path, restore: Callable[[Path], None]
) -> None:
    prepare(place)
    with (
        Other() as operator,
        Other() as program,
        Other() as there,
        closing(Followers(place)) as here,
    ):
        there(follow, place)
        write_into_the_log(here.dicts["strict"], place)
        # Somebody reads an older state, so that no checkpoint can empty the log.
        program(execute, place, "BEGIN")
        program(execute, place, "SELECT count(*) FROM durabledict_entries")
        for number in range(KEYS // 4):
            here.dicts["strict"][number] = LOST[number]
        here.wait_lost()
        there(use, "followers", "wait_lost")
        there.start(use, "followers", "wait_restored")
        operator.start(restore, place)
        here.wait_restored()
        operator.result()
        there.result()
        here.write_later("here")
        there(use, "followers", "write_later", "there")
        expected = stored(place)
        later = {key for key, _ in expected if isinstance(key, str)}
        assert len(later) == len(expected) - KEYS == 40
        here.wait_equal(expected)
        there(use, "followers", "wait_equal", expected)
        sound(place)
    assert stored(place) == expected
    sound(place)


@pytest.mark.parametrize("autosync", [True, False])
def test_a_process_that_only_writes_notices_a_restored_backup_too(
    place: Path, autosync: bool
) -> None:
    """What it writes after that second is in the file of that name."""
    prepare(place)
    with Other() as operator, opened(place, autosync=autosync) as writer:
        writer["written"] = 0
        operator(restore_by_name, place)
        numbers = count(1)

        def is_in_the_file() -> bool:
            number = next(numbers)
            writer["written"] = number
            in_file = operator(stored_under, place, "written")
            assert in_file in (None, number)
            return in_file is not None

        until(is_in_the_file)
        writer.sync()
        expected: dict[Any, Any] = {**RESTORED, "written": writer["written"]}
        assert dict(stored(place)) == writer == expected
    sound(place)


def stored_under(place: Path, key: str) -> Any:
    return dict(stored(place)).get(key)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_backup_that_is_restored_as_a_connection_is_opened(
    place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the look at the file and the first read: the old log must not be read over it.

    To close such a connection would even write that log into the file, and destroy it.

    """
    prepare(place)
    with Other() as operator, opened(place) as d:
        write_into_the_log(d, place)
        connect: Any = sqlite3.connect
        threads: list[threading.Thread] = []
        shown: list[dict[Any, Any]] = []

        def restoring(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() not in threads:
                return connect(*arguments, **named)
            threads.clear()
            if moment == "before":
                operator(restore_by_name_alone, place)
            connection = connect(*arguments, **named)
            if moment == "after":
                operator(restore_by_name_alone, place)
            return connection

        def read() -> None:
            # A thread opens a connection of its own.
            d.sync(force=True)
            shown.append(d.copy())

        monkeypatch.setattr(sqlite3, "connect", restoring)
        thread = threading.Thread(target=read)
        threads.append(thread)
        thread.start()
        thread.join(PATIENCE)
        assert threads == []
        assert shown in ([LOST], [RESTORED]), "a mixture"
        until(lambda: d.copy() == RESTORED)
        sound(place)
    sound(place)


def look_at(path: Path) -> list[tuple[Any, Any]]:
    with SqliteDict[Any, Any](path) as d:
        return list(d.items())


def test_a_restored_backup_is_not_opened_beside_the_log_of_another_file(place: Path) -> None:
    """By a process that did not have the old file: it only sees who holds which locks."""
    prepare(place)
    with Other() as fresh, opened(place, autosync=False) as idle:
        write_into_the_log(idle, place)
        restore_by_name_alone(place)
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError, match=f"process {os.getpid()} still has"):
                fresh(look_at, file_of(place))
        # Whoever has the old file open mends it, as soon as he looks.
        idle._file.index.look_at = -math.inf
        assert idle.sync()
        assert dict(fresh(look_at, file_of(place))) == idle.copy() == RESTORED
    sound(place)


def remove(place: Path) -> None:
    for path in (file_of(place), *beside(place)):
        path.unlink()


def test_a_file_that_is_removed_is_an_outage_until_it_is_back(place: Path) -> None:
    prepare(place)
    with Other() as operator, opened(place) as strict, opened(place, autosync=False) as manual:
        operator(remove, place)

        def fails(action: Callable[[], object]) -> bool:
            try:
                action()
            except sqlite3.OperationalError:
                return True
            return False

        until(lambda: fails(lambda: strict[0]))
        until(lambda: fails(manual.sync))
        for d in (strict, manual):
            for action in (d.sync, partial(d.update, k=1), partial(d.pop, 0)):
                with pytest.raises(sqlite3.OperationalError):
                    action()
        # An empty file in its place would keep the one that comes back from being noticed.
        assert not file_of(place).exists()
        operator(os.replace, place / "backup.sqlite", file_of(place))
        until(lambda: not fails(lambda: strict[0]))
        until(lambda: not fails(manual.sync))
        assert strict == manual == RESTORED
        strict["k"] = 1
        manual["l"] = 2
        expected: dict[Any, Any] = {**RESTORED, "k": 1, "l": 2}
        assert strict == manual == dict(stored(place)) == expected
    sound(place)
