"""SqliteDict beside other programs: whose locks hold, and what they write is seen."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pickle
import struct
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durabledict import JSONEncoding
from durabledict.keys import encode_key
from durabledict.sqliteschema import COMMITS_KEPT

from .sqliteprocesses import (
    Other,
    beside,
    execute,
    file_of,
    open_mine,
    stored,
    write_mine,
)
from .test_processes import PATIENCE, opened

# -- descriptors ----------------------------------------------------------------------------------

# struct flock of 64-bit Linux: type, whence, start, length, process.
FLOCK = "@hhqqi4x"

# Where SQLite has its locks: on the file a connection, on the shared memory everybody who maps it.
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510
DEAD_MAN_SWITCH = 128


def holder(path: Path, start: int, length: int) -> int:
    """Return the process, 0 for none, that keeps others from locking these bytes alone.

    For another process than the one that is looked at. To close the file, as this does, takes a
    process's own locks away.

    """
    with path.open("rb+") as file:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def holders(place: Path) -> list[int]:
    """Return who holds the file itself, and who the shared memory."""
    return [
        holder(file_of(place), SHARED_FIRST, SHARED_SIZE),
        holder(beside(place)[1], DEAD_MAN_SWITCH, 1),
    ]


def test_the_locks_are_held_as_long_as_a_dict_is_open(place: Path) -> None:
    """To close any descriptor of the file takes all locks of the process away (rule 1.3)."""
    with Other() as probe, opened(place) as d:
        held = [os.getpid()] * 2
        d["k"] = 1
        assert probe(holders, place) == held

        more = [opened(place), opened(place, keyspace="other"), opened(place, autosync=False)]
        assert probe(holders, place) == held
        more[0]["k"] = 2
        assert d["k"] == 2
        more.pop().close()
        assert probe(holders, place) == held
        del more[0]  # without close()
        assert probe(holders, place) == held

        def work() -> None:
            with opened(place) as own:
                written = own.compute("k", lambda k: k + 1)
                assert d["k"] >= written

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert probe(holders, place) == held
        assert d["k"] == 6

        with d.watch(interval=0.05):
            assert probe(holders, place) == held
        assert probe(holders, place) == held
        d.sync(force=True)

        # The library looks whether the file is still the one under its name.
        for each in (d, more[0]):
            each._file.index.look_at = -math.inf
            assert list(each) == (["k"] if each is d else [])
            assert each.sync() is False
        assert probe(holders, place) == held
        more.pop().close()
        assert d["k"] == 6
        assert probe(holders, place) == held


def open_and_close_past_sqlite(place: Path, name: str) -> None:
    with (place / name).open("rb"):
        pass


def test_a_program_that_closes_a_descriptor_drops_the_locks(place: Path) -> None:
    """It shows that the test above can fail, and why the page of caveats forbids it."""
    with Other() as probe, Other() as careless:
        careless(open_mine, "d", place, {})
        careless(write_mine, "d", {"k": 1})
        assert probe(holders, place) == [careless.pid] * 2
        careless(open_and_close_past_sqlite, place, "x.sqlite")
        assert probe(holders, place) == [0, careless.pid]
        careless(open_and_close_past_sqlite, place, "x.sqlite-shm")
        assert probe(holders, place) == [0, 0]


# -- writes of other programs ---------------------------------------------------------------------

INSERT = "INSERT INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)"
REPLACE = "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)"
UPDATE = "UPDATE durabledict_entries SET value = ? WHERE keyspace = ? AND key = ?"
RENAME = "UPDATE durabledict_entries SET key = ? WHERE keyspace = ? AND key = ?"
DELETE = "DELETE FROM durabledict_entries WHERE keyspace = ? AND key = ?"


class Edited:
    """A keyspace that another program edits, one that it does not, and their readers."""

    def __init__(self, place: Path, encoding: Any) -> None:
        options = {"encoding": encoding} if encoding is not None else {}
        self.place, self.options = place, options
        self.strict = opened(place, **options)
        self.manual = opened(place, autosync=False, **options)
        self.elsewhere = opened(place, keyspace="elsewhere", **options)

    def close(self) -> None:
        for d in (self.strict, self.manual, self.elsewhere):
            d.close()

    def check(self, expected: dict[Any, Any], *, ordered: bool = True) -> None:
        """All have the same, in the same order, and the elsewhere is as it was."""
        assert self.strict.copy() == expected
        assert self.manual.sync() is True
        assert self.manual.copy() == expected
        assert self.manual.sync() is False
        fresh = stored(self.place, **self.options)
        assert dict(fresh) == expected
        if ordered:
            assert list(self.strict.items()) == list(self.manual.items()) == fresh


@pytest.mark.parametrize("how", ["pickle", "JSON"])
def test_writes_of_another_program_are_seen(place: Path, how: str) -> None:
    encode: Any = pickle.dumps if how == "pickle" else json.dumps
    with (
        Other() as program,
        closing(Edited(place, None if how == "pickle" else JSONEncoding)) as edited,
    ):
        edited.strict.update({"a": 1, "b": 2, "c": 3, 4: 4})
        edited.elsewhere.update({"a": "elsewhere"})
        edited.manual.sync()
        stamp = edited.elsewhere.last_updated()
        begun = [d.stats.reloads for d in (edited.strict, edited.manual, edited.elsewhere)]

        program(execute, place, UPDATE, encode(["changed"]), "default", "a")
        edited.check({"a": ["changed"], "b": 2, "c": 3, 4: 4})
        program(execute, place, UPDATE, encode("four"), "default", encode_key(4))
        edited.check({"a": ["changed"], "b": 2, "c": 3, 4: "four"})
        program(execute, place, INSERT, "default", "new", encode("new"))
        edited.check({"a": ["changed"], "b": 2, "c": 3, 4: "four", "new": "new"})
        program(execute, place, DELETE, "default", "b")
        edited.check({"a": ["changed"], "c": 3, 4: "four", "new": "new"})
        # Removed and written again, so it goes to the end.
        program(execute, place, REPLACE, "default", "a", encode("replaced"))
        edited.check({"c": 3, 4: "four", "new": "new", "a": "replaced"})
        # Several of them are seen at once; and what was rolled back is not.
        program(execute, place, "BEGIN")
        program(execute, place, DELETE, "default", "c")
        program(execute, place, INSERT, "default", "c", encode("again"))
        program(execute, place, UPDATE, encode("last"), "default", "new")
        assert edited.strict["c"] == 3
        program(execute, place, "COMMIT")
        edited.check({4: "four", "new": "last", "a": "replaced", "c": "again"})
        program(execute, place, "BEGIN")
        program(execute, place, DELETE, "default", "c")
        program(execute, place, "ROLLBACK")
        assert edited.strict["c"] == "again"
        # A dict goes on from there.
        edited.strict["own"] = 1
        edited.check({4: "four", "new": "last", "a": "replaced", "c": "again", "own": 1})
        program(execute, place, DELETE, "default", encode_key(4))
        edited.check({"new": "last", "a": "replaced", "c": "again", "own": 1})

        assert [d.stats.reloads for d in (edited.strict, edited.manual, edited.elsewhere)] == begun
        assert edited.elsewhere.last_updated() == stamp
        assert edited.elsewhere == {"a": "elsewhere"}
        with opened(place, keyspace="elsewhere", **edited.options) as fresh:
            assert fresh == {"a": "elsewhere"}


def test_a_key_that_another_program_renames(place: Path) -> None:
    with Other() as program, closing(Edited(place, None)) as edited:
        edited.strict.update(a=1, b=2, c=3)
        edited.manual.sync()
        begun = [edited.strict.stats.reloads, edited.manual.stats.reloads]
        program(execute, place, RENAME, "z", "default", "c")
        edited.check({"a": 1, "b": 2, "z": 3})
        # In the middle: a fresh dict has it at the place of its row.
        program(execute, place, RENAME, "y", "default", "a")
        edited.check({"y": 1, "b": 2, "z": 3}, ordered=False)
        # Over to another keyspace.
        sql = "UPDATE durabledict_entries SET keyspace = 'elsewhere' WHERE key = 'b'"
        program(execute, place, sql)
        edited.check({"y": 1, "z": 3}, ordered=False)
        assert edited.elsewhere == {"b": 2}
        assert [edited.strict.stats.reloads, edited.manual.stats.reloads] == begun


def test_a_renamed_key_goes_to_the_end(place: Path) -> None:
    """Local copies have the same order everywhere."""
    with Other() as program, closing(Edited(place, None)) as edited:
        edited.strict.update(a=1, b=2, c=3)
        edited.manual.sync()
        program(execute, place, RENAME, "y", "default", "a")
        edited.check({"y": 1, "b": 2, "c": 3})


@pytest.mark.parametrize("rows", [500, 12_000])
def test_another_program_updates_all_rows_at_once(place: Path, rows: int) -> None:
    with Other() as program, closing(Edited(place, JSONEncoding)) as edited:
        edited.strict.update({str(number): number for number in range(rows)})
        edited.elsewhere["0"] = 0
        edited.manual.sync()
        begun = edited.manual.stats.reloads
        sql = "UPDATE durabledict_entries SET value = CAST(value + 1 AS TEXT) WHERE keyspace = ?"
        program(execute, place, sql, "default")
        edited.check({str(number): number + 1 for number in range(rows)})
        # Each row is a commit of its own, and so many are kept.
        assert edited.manual.stats.reloads == begun + (rows > COMMITS_KEPT)
        program(execute, place, "DELETE FROM durabledict_entries WHERE keyspace = 'default'")
        edited.check({})
        assert edited.elsewhere == {"0": 0}
