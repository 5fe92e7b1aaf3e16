"""The header that tells of every commit to an SQLite file, the anchor, and the look each second.

docs/internals.rst, rules 1.2 and 1.3. All in one process: what other processes do to the file, and
what kills them, is in test_sqlite_faults.py.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    JSONEncoding,
    SqliteDict,
    reading,
    sqliteconnection,
    sqliteshared,
    walindex,
)
from durabledict.sqliteconnection import Connection
from durabledict.sqlitefile import SYNCHRONOUS, Transaction
from durabledict.testing import override
from durabledict.testing.tools import Clock, in_thread

# No test takes that long: it is when a thread that hangs becomes a failure.
PATIENCE = 30.0

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


def run(hooks: dict[str, Callable[[], object]], sql: str) -> None:
    """Run what is to be run at a statement, once."""
    words = " ".join(sql.split())
    for beginning in list(hooks):
        if words.startswith(beginning):
            hooks.pop(beginning)()


pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Watched]]:
    monkeypatch.setattr(sqliteconnection, "Connection", Watched)
    yield Watched
    for noted in (Watched.made, Watched.statements, Watched.before, Watched.after):
        noted.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.sqlite"


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that os.stat is asked about."""
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


class TestAReadWhenNothingChanged:
    def test_it_runs_no_sql_takes_no_lock_and_makes_no_system_call(
        self, file: Path, clock: Clock, stats: list[str]
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            assert d["k"] == 1
            clock.move(0.5)
            Watched.statements.clear()
            stats.clear()
            comparisons, sync_mutex, copy_lock = d.stats.comparisons, d._sync_mutex, d._copy_lock
            shared = d._file._shared
            own = shared._lock
            d._sync_mutex = d._copy_lock = shared._lock = Forbidden()  # type: ignore[assignment]
            try:
                assert d.checked_age == 0.5
                assert d["k"] == 1
                assert d.checked_age == 0.0
                assert d.get("absent") is None
                assert "k" in d
                assert len(d) == 1
            finally:
                d._sync_mutex, d._copy_lock, shared._lock = sync_mutex, copy_lock, own
            assert (Watched.statements, stats) == ([], [])
            assert d.stats.comparisons == comparisons + 4
            assert [*iter(d)] == ["k"]
            assert d.copy() == {"k": 1}
            assert (Watched.statements, stats) == ([], [])
            assert d.stats.comparisons == comparisons + 6
            assert d.stats.reloads == 1

    def test_the_slow_way_asks_no_sql_either(
        self, file: Path, clock: Clock, stats: list[str]
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            clock.move(0.5)
            d.sync()
            assert d.checked_age == 0.0
            stats.clear()
            assert statements_of(d.sync) == []
            assert statements_of(d.last_updated) == []
            assert d.cache_expired is None
            assert stats == []

    def test_the_first_read_after_an_own_write_runs_no_sql(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            for number in range(3):
                d["k"] = number
                assert statements_of(lambda: d["k"]) == []
                d.update(a=number, b=number)
                assert statements_of(lambda: d["k"]) == []
                assert d._glimpse is not None

    def test_each_byte_of_the_header_counts(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            index = d._file.index
            mapped = index.header
            true = mapped[:]
            assert len(true) == 48
            assert isinstance(true, bytes)
            for place in range(48):
                other = bytearray(true)
                other[place] ^= 1
                index.header = bytes(other)
                ran = statements_of(lambda: d["k"])
                assert [sql.startswith(STAMP_SELECT) for sql in ran] == [True], place
                assert statements_of(lambda: d["k"]) == []
                index.header = true
                assert len(statements_of(lambda: d["k"])) == 1, place
            index.header = mapped
            assert statements_of(lambda: d["k"]) == []
            assert d.stats.reloads == 1

    def test_another_index_counts_though_it_says_the_same(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            warm(d)
            shared, old = d._file._shared, d._file.index
            shared.index = walindex.WalIndex(old.header)
            shared.index.look_at = old.look_at
            assert len(statements_of(d.last_updated)) == 1
            assert statements_of(d.last_updated) == []
            shared.index = old

    @pytest.mark.parametrize("when", ["before the header", "before the stamp", "after the stamp"])
    def test_a_commit_while_the_stamp_is_read_is_seen_by_the_next_read(
        self, file: Path, when: str
    ) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            other["k"] = 1
            assert d["k"] == 1
            other["k"] = 2

            def write() -> None:
                other["k"] = 3

            if when == "before the header":
                original = d.last_updated

                def last_updated() -> Any:
                    vars(d).pop("last_updated")
                    write()
                    return original()

                d.last_updated = last_updated  # type: ignore[method-assign]  # a hook
            else:
                # A cursor that is not fetched yet has its snapshot all the same.
                which = Watched.before if when == "before the stamp" else Watched.after
                which[STAMP_SELECT] = write
            assert d["k"] in (2, 3)
            assert not Watched.before
            assert not Watched.after
            assert d["k"] == 3
            assert d.last_synced == other.last_updated()

    def test_a_commit_after_the_comparison_but_before_its_answer_is_used(self, file: Path) -> None:
        """What the next reads rely on is older than the stamp, not newer."""
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            other["k"] = 1
            assert d["k"] == 1
            original = d.last_updated

            def last_updated() -> Any:
                vars(d).pop("last_updated")
                found = original()
                other["k"] = 2
                return found

            d.last_updated = last_updated  # type: ignore[method-assign]  # a hook
            assert d["k"] == 1
            assert d["k"] == 2

    def test_a_commit_before_the_delta_is_in_it_or_in_the_next(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            other["k"] = 1
            assert d["k"] == 1
            for which in (Watched.before, Watched.after):
                other["k"] = 2
                which["BEGIN"] = lambda: query(
                    file, "UPDATE durabledict_entries SET value = CAST('no pickle' AS BLOB)"
                )
                d.sync()
                assert not which
                assert "k" not in d.copy()
                other["k"] = 4
                assert d["k"] == 4


class TestCommitsOfOthers:
    @pytest.mark.parametrize("what", ["a keyspace", "a table", "VACUUM", "a table is made"])
    def test_they_cost_one_select_once(self, file: Path, what: str) -> None:
        query(file, "CREATE TABLE theirs (a)")
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, "elsewhere") as elsewhere:
            d["k"] = 1
            warm(d)
            if what == "a keyspace":
                elsewhere["k"] = 2
            elif what == "a table":
                query(file, "INSERT INTO theirs VALUES (1)")
            elif what == "VACUUM":
                query(file, "VACUUM")
            else:
                query(file, "CREATE TABLE more (a)")
            syncs, reloads = d.stats.syncs, d.stats.reloads
            ran = statements_of(lambda: d["k"])
            assert [sql.startswith(STAMP_SELECT) for sql in ran] == [True]
            assert statements_of(lambda: d["k"]) == []
            assert (d.stats.syncs, d.stats.reloads) == (syncs, reloads)
            assert d == {"k": 1}

    @pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
    def test_a_checkpoint(self, file: Path, mode: str) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            for number in range(3):
                other["k"] = number
                assert d["k"] == number
                query(file, f"PRAGMA wal_checkpoint({mode})")
                assert len(statements_of(lambda: d["k"])) <= 1
                assert d["k"] == number
                assert statements_of(lambda: d["k"]) == []

    def test_each_of_many_is_seen_beside_checkpoints(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d, plain(file) as program:
            program.execute("PRAGMA wal_autocheckpoint = 1")
            d["k"] = 0
            sql = "UPDATE durabledict_entries SET value = ?"
            for number in range(100):
                program.execute(sql, (d._encode(number, "k"),))
                assert d["k"] == number


class TestAPatchedLastUpdated:
    """Who puts a `last_updated` of his own in place counts, or forbids, each comparison."""

    def test_on_the_instance(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            warm(d)
            original, calls = d.last_updated, []

            def last_updated() -> Any:
                calls.append(1)
                return original()

            d.last_updated = last_updated  # type: ignore[method-assign]  # as a test does
            assert "k" not in d
            assert "k" not in d
            assert len(calls) == 2
            vars(d).pop("last_updated")
            assert "k" not in d
            assert len(calls) == 2

    def test_on_the_class(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with SqliteDict[str, int](file) as d:
            warm(d)
            original, calls = SqliteDict.last_updated, []

            def last_updated(self: SqliteDict[Any, Any]) -> Any:
                calls.append(1)
                return original(self)

            monkeypatch.setattr(SqliteDict, "last_updated", last_updated)
            assert "k" not in d
            assert "k" not in d
            assert len(calls) == 2

    def test_in_a_subclass(self, file: Path) -> None:
        calls = []

        class Counting(SqliteDict[str, int]):
            def last_updated(self) -> Any:
                calls.append(1)
                return super().last_updated()

        class Silent(SqliteDict[str, int]):
            pass

        with Counting(file) as d, Silent(file) as silent:
            d.sync()
            calls.clear()
            assert "k" not in d
            assert "k" not in d
            assert len(calls) == 2
            warm(silent)
            silent._sync_mutex = Forbidden()  # type: ignore[assignment]  # a hook
            assert "k" not in silent

    def test_one_that_raises_is_an_outage(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            warm(d)

            def last_updated() -> Any:
                raise sqlite3.OperationalError("no answer")

            d.last_updated = last_updated  # type: ignore[method-assign]  # as a test does
            with pytest.raises(sqlite3.OperationalError, match="no answer"):
                d["k"]
            vars(d).pop("last_updated")


class TestWhenItIsNotReliedOn:
    @pytest.mark.parametrize("autosync", [3600.0, False])
    def test_unless_reads_are_strict(self, file: Path, autosync: Any) -> None:
        with SqliteDict[str, int](file) as d:
            warm(d)
            d.autosync = autosync
            assert d._glimpse is None
            d.sync()
            assert d._glimpse is None
            comparisons = d.stats.comparisons
            assert "k" not in d
            assert d.stats.comparisons == comparisons
            d.autosync = True
            assert d._glimpse is None
            warm(d)

    def test_seconds_are_counted_from_the_last_comparison(self, file: Path, clock: Clock) -> None:
        with SqliteDict[str, int](file, autosync=5.0) as d, SqliteDict[str, int](file) as other:
            other["k"] = 1
            assert "k" not in d
            clock.move(5.0)
            assert d["k"] == 1

    def test_a_copy_in_doubt(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            d._doubt()
            assert d._glimpse is None
            reloads = d.stats.reloads
            assert d["k"] == 1
            assert d.stats.reloads == reloads + 1
            assert d._glimpse is not None

    def test_a_doubt_that_comes_between_question_and_answer(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            original = d.last_updated

            def last_updated() -> Any:
                vars(d).pop("last_updated")
                found = original()
                d._doubt()
                return found

            d.last_updated = last_updated  # type: ignore[method-assign]  # a hook
            d.sync()
            assert d._glimpse is None
            reloads = d.stats.reloads
            assert d["k"] == 1
            assert d.stats.reloads == reloads + 1

    def test_an_undecodable_key(self, file: Path) -> None:
        with SqliteDict[str, int](file, encoding=JSONEncoding) as d:
            d["k"] = 1
            warm(d)
            query(file, "UPDATE durabledict_entries SET value = 'no JSON'")
            for _ in range(2):
                with pytest.raises(ValueError, match="'k'"):
                    d["k"]
                assert d._glimpse is None
            d["k"] = 2
            assert d["k"] == 2
            assert d._glimpse is not None

    @pytest.mark.parametrize("on_outage", ["raise", "stale"])
    def test_an_outage(self, file: Path, on_outage: str, clock: Clock) -> None:
        with SqliteDict[str, int](file, on_outage=on_outage) as d:
            d["k"] = 1
            warm(d)

            def last_updated() -> Any:
                raise sqlite3.OperationalError("no answer")

            d.last_updated = last_updated  # type: ignore[method-assign]  # an outage
            if on_outage == "raise":
                with pytest.raises(sqlite3.OperationalError):
                    d["k"]
            else:
                assert d["k"] == 1
            assert d.stale_since is not None
            assert d._glimpse is None
            vars(d).pop("last_updated")
            clock.move(10.0)
            assert d["k"] == 1
            assert d.stale_since is None
            assert d._glimpse is not None

    def test_an_open_transaction(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            d._transaction_opened()
            assert d._glimpse is None
            d.sync()
            assert d._glimpse is None
            d._overlay = lambda: {"k": 2}  # type: ignore[method-assign]  # as a backend has it
            assert d["k"] == 2
            vars(d).pop("_overlay")
            d._transaction_closed()
            assert d["k"] == 1
            assert d._glimpse is not None

    def test_something_was_applied_between_question_and_answer(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            original = d.last_updated

            def last_updated() -> Any:
                vars(d).pop("last_updated")
                found = original()
                d["k"] = 2
                return found

            d._glimpse = None
            d.last_updated = last_updated  # type: ignore[method-assign]  # a hook
            assert d["k"] == 2
            assert d._glimpse is None
            assert d["k"] == 2
            assert d._glimpse is not None

    def test_a_closed_dict(self, file: Path) -> None:
        with SqliteDict[str, int](file) as keeps, SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            original = d.last_updated

            def last_updated() -> Any:
                found = original()
                d.close()
                return found

            d._glimpse = None
            d.last_updated = last_updated  # type: ignore[method-assign]  # a hook
            assert d["k"] == 1
            assert d._glimpse is None
            keeps["k"] = 2
            assert d["k"] == 1

    def test_an_override_is_shown_and_ends(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            other.update(a=1, b=1)
            warm(d)
            with override(d, a=10, c=10):
                assert (d["a"], d["b"], d["c"]) == (10, 1, 10)
                other.update(a=2, b=2, c=2)
                assert (d["a"], d["b"], d["c"]) == (10, 2, 10)
                assert statements_of(lambda: d["a"]) == []
            assert d == {"a": 2, "b": 2, "c": 2}
            other["a"] = 3
            assert d["a"] == 3

    def test_a_dict_that_is_not_filled(self, file: Path) -> None:
        with SqliteDict[str, int](file) as other:
            other["k"] = 1

            class Late(SqliteDict[str, int]):
                def last_updated(self) -> Any:
                    raise sqlite3.OperationalError("not yet")

            with Late(file, on_outage="stale") as d:
                assert d._glimpse is None
                del Late.last_updated
                reading.monotonic.move(10.0)  # type: ignore[attr-defined]  # it is a Clock
                assert d["k"] == 1
                assert d._glimpse is not None


class TestAnIndexThatEnded:
    def test_its_header_is_not_taken_for_that_of_the_next(self, file: Path) -> None:
        """Over an empty log they are the same."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
        headers = set()
        with SqliteDict[str, int](file) as d:
            for number in range(5):
                warm(d)
                ended = d._file.index
                headers.add(ended.header[:])
                sqliteconnection.shut_all(str(file))  # as before a fork
                assert beside(file) == []
                assert not isinstance(ended.header[:], bytes)
                assert ended.header[:] != ended.header[:]
                # The last one to close it has put the log into the file, and removed it.
                payload = d._encode(number, "k")
                with plain(file) as program:
                    program.execute("UPDATE durabledict_entries SET value = ?", (payload,))
                assert d["k"] == number
                assert d._file.index is not ended
                assert d.stats.reloads == 1
        assert len(headers) == 1

    def test_its_header_is_not_taken_for_that_of_the_next_by_a_write(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
        with SqliteDict[str, int](file) as d:
            warm(d)
            sqliteconnection.shut_all(str(file))
            with plain(file) as program:
                program.execute("DELETE FROM durabledict_entries")
            d["l"] = 2
            assert d == {"l": 2}

    def test_it_ends_before_the_anchor_is_closed(self, file: Path) -> None:
        """Or a read in between would trust a header that nobody holds any more."""
        with SqliteDict[str, int](file) as d:
            shared = d._file._shared
            index, anchor = shared.index, shared._anchor
            assert isinstance(anchor, Watched)
            seen = []

            def close() -> None:
                seen.append((isinstance(index.header[:], bytes), index.look_at))
                sqlite3.Connection.close(anchor)

            anchor.close = close  # type: ignore[method-assign]  # a hook
            sqliteconnection.shut_all(str(file))
            assert seen == [(False, float("-inf"))]

    def test_a_read_that_has_it_still_goes_the_slow_way(self, file: Path) -> None:
        """Of a thread that was stopped between the header and the clock."""
        with SqliteDict[str, int](file) as d:
            warm(d)
            index = d._file.index
            index.end()
            assert not d._is_unchanged(reading.monotonic())
            assert reading.monotonic() >= index.look_at

    @pytest.mark.parametrize("many", [False, True])
    def test_a_fork_in_the_middle_of_an_own_write(self, file: Path, many: bool) -> None:
        """Between the commit and the look at the header a new index came."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)

            def another_index() -> None:
                anchor = d._file._shared._anchor
                assert anchor is not None
                anchor.shut()
                d._file._shared.look()

            Watched.after["a write"] = another_index
            if many:
                d.update(k=2, l=2)
                # That of the index before, which no comparison takes for true.
                assert d._known is not None
                assert d._known[0] is not d._file.index
            else:
                d["k"] = 2
            assert not Watched.after
            assert d["k"] == 2
            ((version, nonce),) = query(
                file,
                "SELECT version, nonce FROM durabledict_commits ORDER BY version DESC LIMIT 1",
            )
            assert d.last_updated() == d.last_synced == (version, nonce)


class TestWithoutAHeader:
    """Then SQLite is asked: PRAGMA data_version."""

    @pytest.fixture(params=["unknown format", "not initialised", "not to be opened", "too short"])
    def without(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        what: str = request.param
        if what == "unknown format":
            monkeypatch.setattr(walindex, "HEADER_FORMAT", 3007001)
        elif what == "not initialised":
            original = walindex.HeaderMap

            class Map(original):  # type: ignore[misc,valid-type]
                mapped: Any

                def __init__(self, path: str) -> None:
                    super().__init__(path)
                    header = bytearray(self.mapped[:])
                    header[12] = 0
                    self.mapped = bytes(header)

                def closed_if_unlinked(self) -> bool:
                    return False

            monkeypatch.setattr(sqliteshared, "HeaderMap", Map)
        elif what == "not to be opened":
            opens = os.open

            def refuse(path: Any, *arguments: Any, **named: Any) -> int:
                if str(path).endswith("-shm"):
                    raise PermissionError(13, "Permission denied", path)
                return opens(path, *arguments, **named)

            monkeypatch.setattr(os, "open", refuse)
        else:

            def too_short(*arguments: Any, **named: Any) -> Any:
                raise ValueError("mmap length is greater than file size")

            monkeypatch.setattr(mmap, "mmap", too_short)
        return what

    def test_everything_works(self, file: Path, without: str) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            assert not isinstance(d._file.index.header[:], bytes)
            for number in range(3):
                d["k"] = number
                assert d["k"] == other["k"] == number
                other["l"] = number
                assert d == other == {"k": number, "l": number}
            query(file, "DELETE FROM durabledict_entries WHERE key = 'l'")
            assert d == other == {"k": 2}
            assert d._glimpse is None
            assert d._known is None
            assert statements_of(lambda: d["k"]) == ["PRAGMA data_version"]
            in_thread(lambda: d.update(l=3))
            assert d == other == {"k": 2, "l": 3}
            assert d.stats.reloads == 1

    def test_the_version_is_read_before_the_stamp(self, file: Path, without: str) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            other["k"] = 1
            assert d["k"] == 1
            for which in (Watched.before, Watched.after):
                other["k"] = 2
                which[STAMP_SELECT] = lambda: other.update(k=3)
                assert d["k"] in (2, 3)
                assert not which
                assert d["k"] == 3

    def test_commits_of_others_cost_one_select_once(self, file: Path, without: str) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, "elsewhere") as elsewhere:
            d["k"] = 1
            assert d["k"] == 1
            elsewhere["k"] = 2
            ran = statements_of(lambda: d["k"])
            assert [sql.split()[0] for sql in ran] == ["PRAGMA", "SELECT"]
            assert statements_of(lambda: d["k"]) == ["PRAGMA data_version"]

    def test_the_next_opening_tries_again(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(walindex, "HEADER_FORMAT", 1)
            SqliteDict[str, int](file).close()
            d = SqliteDict[str, int](file)
        with d:
            assert d._glimpse is None
            sqliteconnection.shut_all(str(file))
            d.sync()
            warm(d)


class TestTheAnchor:
    def test_there_is_one_for_each_file(self, file: Path) -> None:
        other_file = file.with_name("y.sqlite")
        with (
            SqliteDict[str, int](file) as a,
            SqliteDict[str, int](os.path.relpath(file), "elsewhere") as b,
            SqliteDict[str, int](other_file) as c,
        ):
            assert a._file._shared is b._file._shared
            assert a._file._shared is not c._file._shared
            assert a._file.index is b._file.index
            # An anchor for each file, and the connection of each dict in this thread.
            names = [os.path.basename(connection.path) for connection in Watched.made]
            assert names == [file.name] * 3 + [other_file.name] * 2

    def test_it_is_opened_first_and_closed_last(self, file: Path) -> None:
        a = SqliteDict[str, int](file)
        b = SqliteDict[str, int](file, "elsewhere")
        shared = a._file._shared
        anchor = shared._anchor
        assert anchor is Watched.made[0]
        assert len(Watched.made) == 3
        in_thread(lambda: a.update(k=1))
        a.close()
        assert shared._anchor is anchor
        assert [connection.closed for connection in Watched.made] == [False, True, False, True]
        assert b._glimpse is not None or b.sync() is False
        b.close()
        assert all(connection.closed for connection in Watched.made)
        assert shared._anchor is None
        assert (os.getpid(), str(file)) not in sqliteshared._files
        with SqliteDict[str, int](file) as again:
            assert again._file._shared is not shared
            assert again == {"k": 1}
            warm(again)

    def test_a_dict_that_is_closed_twice_counts_once(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            other = SqliteDict[str, int](file)
            other.close()
            other.close()
            assert d._file._shared._users == 1
            assert d._file._shared._anchor is not None
            warm(d)

    def test_it_waits_as_long_as_the_most_patient_dict(self, file: Path) -> None:
        with SqliteDict[str, int](file, timeout=3.0) as d:
            assert d._file._shared._timeout == 3.0
            with SqliteDict[str, int](file, timeout=7.0), SqliteDict[str, int](file, timeout=1.0):
                assert d._file._shared._timeout == 7.0

    def test_a_dict_that_cannot_be_opened_leaves_none(self, file: Path) -> None:
        file.write_bytes(b"no database at all\n" * 100)
        with pytest.raises(ValueError):
            SqliteDict(file)
        assert (os.getpid(), str(file)) not in sqliteshared._files or (
            sqliteshared._files[os.getpid(), str(file)]._anchor is None
        )
        assert all(connection.closed for connection in Watched.made)
        file.unlink()
        with SqliteDict[str, int](file) as d:
            warm(d)

    def test_what_was_written_is_in_the_file_and_nothing_beside_it(self, file: Path) -> None:
        a, b = SqliteDict[str, int](file), SqliteDict[str, int](file)
        a["a"] = 1
        b["b"] = 2
        assert beside(file) == ["x.sqlite-shm", "x.sqlite-wal"]
        a.close()
        assert beside(file) == ["x.sqlite-shm", "x.sqlite-wal"]
        b.close()
        assert beside(file) == []
        copied = shutil.copyfile(file, file.with_name("copied.sqlite"))
        with SqliteDict[str, int](copied) as c:
            assert c == {"a": 1, "b": 2}

    def test_it_keeps_the_journal_mode(self, file: Path) -> None:
        with SqliteDict[str, int](file), closing(sqlite3.connect(file, timeout=0)) as program:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                program.execute("PRAGMA journal_mode = DELETE")
            assert program.execute("PRAGMA journal_mode").fetchall() == [("wal",)]

    def test_it_puts_the_log_into_the_file_with_care(self, file: Path) -> None:
        """Whatever the dicts wait for: it may be the one that checkpoints."""
        with SqliteDict[str, int](file, synchronous="OFF") as d:
            anchor = d._file._shared._anchor
            assert anchor is not None
            assert anchor.execute("PRAGMA synchronous").fetchall() == [(2,)]

    def test_a_file_that_was_replaced_while_it_was_opened(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The anchor would hold one file, and its identity be another's."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
        new = file.with_name("new.sqlite")
        with SqliteDict[str, int](new) as d:
            d["k"] = 2
        Watched.after["SELECT count(*) FROM sqlite_master"] = lambda: os.replace(new, file)
        with SqliteDict[str, int](file) as d:
            assert not Watched.after
            assert d == {"k": 2}
            status = os.stat(file)
            assert d._file._shared._identity == (status.st_dev, status.st_ino)

    @pytest.mark.parametrize("which", [1, 2])
    def test_a_file_that_was_replaced_as_a_connection_was_opened(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, which: int
    ) -> None:
        """That of the anchor, or of a thread: it must not read the old log for the new file's."""
        new = file.with_name("new.sqlite")
        for path, value in ((file, 1), (new, 2)):
            with SqliteDict[str, int](path) as d:
                d["k"] = value
        original, rounds = sqliteconnection.connect, []

        def connect(*arguments: Any, **named: Any) -> Connection:
            made = original(*arguments, **named)
            rounds.append(made)
            if len(rounds) == which:
                os.replace(new, file)
            return made

        monkeypatch.setattr(sqliteshared, "connect", connect)
        with SqliteDict[str, int](file) as d:
            refused = rounds[which - 1]
            assert refused.is_shut
            assert isinstance(refused, Watched)
            assert refused.own == []  # nothing was read
            assert d == {"k": 2}

    def test_a_journal_mode_that_cannot_be_changed(self, file: Path) -> None:
        class Stubborn:
            def rows(self, statement: str) -> list[Any]:
                return [("memory",)]

        with SqliteDict[str, int](file) as d:
            stubborn: Any = Stubborn()
            with pytest.raises(sqlite3.OperationalError, match=r"WAL mode; its journal .* memory"):
                d._file._shared.prepare(stubborn)

    def test_a_connection_that_was_closed_is_forgotten(self, file: Path) -> None:
        with SqliteDict[str, int](file, timeout=3.0) as d, SqliteDict[str, int](file, timeout=7.0):
            for number in range(3):
                sqliteconnection.shut_all(str(file))
                d["k"] = number
                with d._file.use() as connection:
                    assert d._file._connections._open == [connection]
                    # Its own, not that of the most patient.
                    assert connection.timeout == 3.0

    def test_all_entries_are_read_by_the_table_where_there_is_one_keyspace(
        self, file: Path
    ) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, "elsewhere") as elsewhere:
            for alone in (True, False):
                d["k"] = 1
                ran = [sql for sql in statements_of(d.durables) if "ORDER BY id" in sql]
                assert ["NOT INDEXED" in sql for sql in ran] == [alone]
                elsewhere["k"] = 1
            d.clear()
            ran = [sql for sql in statements_of(d.durables) if "ORDER BY id" in sql]
            assert ["NOT INDEXED" in sql for sql in ran] == [False]

    def test_an_anchor_that_a_fork_closed_as_it_was_made(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original, rounds = sqliteconnection.connect, []

        def connect(*arguments: Any, **named: Any) -> Connection:
            made = original(*arguments, **named)
            rounds.append(made)
            if len(rounds) < 3:
                made.shut()
            return made

        monkeypatch.setattr(sqliteshared, "connect", connect)
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            # The third, and then that of this thread.
            assert d._file._shared._anchor is rounds[2]
            assert len(rounds) == 4

    def test_a_dict_that_another_thread_closes_cannot_open_it_again(self, file: Path) -> None:
        d = SqliteDict[str, int](file)
        shared = d._file._shared
        d.close()
        with pytest.raises(RuntimeError, match=r"x\.sqlite is closed"):
            shared.look()
        assert shared._anchor is None
        assert all(connection.closed for connection in Watched.made)

    def test_a_dict_in_a_process_that_was_forked_unnoticed(
        self, file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with SqliteDict[str, int](file) as d:
            clock.move(1.0)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: -1)
                for use in (d.last_updated, d.durables, lambda: d.update(k=1), lambda: d["k"]):
                    with pytest.raises(RuntimeError, match="uWSGI: lazy-apps"):
                        use()
                d._file.close()
            assert not any(connection.closed for connection in Watched.made)
            assert d == {}


class TestDescriptors:
    def test_opening_and_closing_leaks_none(self, file: Path) -> None:
        SqliteDict[str, int](file).close()
        assert held(file) == []
        counts = set()
        for number in range(30):
            with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, "elsewhere") as other:
                d["k"] = other["k"] = number
                counts.add(len(held(file)))
        assert len(counts) == 1
        assert held(file) == []

    def test_forks_leak_none(self, file: Path) -> None:
        """What Python's hooks do in the parent; children are in test_sqlite_faults.py."""
        with SqliteDict[str, int](file) as d:
            d["k"] = -1
            counts = set()
            for number in range(30):
                sqliteconnection._gate.before_fork()
                assert beside(file) == []
                sqliteconnection._gate.after_fork_in_parent()
                assert d["k"] == number - 1
                d["k"] = number
                warm(d)
                assert not [name for name in held(file) if "deleted" in name]
                counts.add(len(held(file)))
            assert len(counts) == 1
        assert held(file) == []

    def test_those_of_the_map_stay_open_while_the_memory_has_a_name(self, file: Path) -> None:
        with plain(file) as program:
            with SqliteDict[str, int](file) as d:
                assert program.execute("SELECT count(*) FROM durabledict_entries").fetchall() == [
                    (0,)
                ]
                shared, kept = d._file._shared, d._file._shared._map
                assert kept is not None
                names = held(file).count(str(shm(file)))
            # SQLite has one of its own as long as the program has the file open.
            mapped = held(file).count(str(shm(file)))
            assert mapped == names
            assert shared._map is kept
            for number in range(5):
                with SqliteDict[str, int](file) as d:
                    assert d._file._shared is shared
                    assert shared._map is kept
                    assert held(file).count(str(shm(file))) == mapped
                    d["k"] = number
                    assert d["k"] == number
                    warm(d)
            assert beside(file) == ["x.sqlite-shm", "x.sqlite-wal"]
        # The program was the last: it has removed the memory, and the map is of no use.
        assert beside(file) == []
        assert shared._map is kept
        with SqliteDict[str, int](file) as d:
            assert d._file._shared._map is not kept
            del kept  # it holds the map
            assert not [name for name in held(file) if "deleted" in name]
            warm(d)
        assert held(file) == []

    def test_none_of_the_memory_is_closed_while_it_is_in_use(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
    ) -> None:
        """The system would drop all locks that this process has on it."""
        closed: list[str] = []
        original = os.close

        def close(descriptor: int) -> None:
            closed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            original(descriptor)

        monkeypatch.setattr(os, "close", close)
        with plain(file) as program, SqliteDict[str, int](file) as d:
            d["k"] = 1
            for _ in range(3):
                with SqliteDict[str, int](file) as other:
                    other["k"] = 2
                sqliteconnection.shut_all(str(file))
                assert d["k"] == 2
                # The program keeps the memory there.
                program.execute("SELECT count(*) FROM durabledict_entries").fetchall()
                clock.move(2.0)
            d.close()
            assert [path for path in closed if not path.endswith(" (deleted)")] == []
        new = file.with_name("new.sqlite")
        for _ in range(3):
            with SqliteDict[str, int](new) as d:
                d["k"] = 3
            with SqliteDict[str, int](file) as d:
                d["k"] = 2
                os.replace(new, file)
                clock.move(2.0)
                assert d["k"] == 3
        memory = [path for path in closed if "-shm" in path]
        assert memory
        assert [path for path in memory if not path.endswith(" (deleted)")] == []

    def test_a_map_of_a_memory_that_lives_on_under_another_name_is_kept(self, file: Path) -> None:
        """To close it could drop the locks of whoever has it open in this process."""
        with SqliteDict[str, int](file) as d:
            shared, kept = d._file._shared, d._file._shared._map
            assert kept is not None
            os.link(shm(file), file.with_name("linked"))
            assert kept.closed_if_unlinked() is False
            os.fstat(kept._descriptor)
        assert shared._map is kept
        os.fstat(kept._descriptor)
        file.with_name("linked").unlink()
        with SqliteDict[str, int](file) as d:
            assert shared._map is not kept
            warm(d)
        del kept  # it holds the map
        assert held(file) == []

    def test_the_descriptors_are_not_inherited_by_other_programs(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            kept = d._file._shared._map
            assert kept is not None
            assert not os.get_inheritable(kept._descriptor)


class TestTheLookEachSecond:
    def test_the_file_is_looked_at_at_the_first_read_after_a_second(
        self, file: Path, clock: Clock, stats: list[str]
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            begun = clock.now
            d._file._shared.look()
            for number in range(3):
                stats.clear()
                clock.now = begun + number + 0.999
                assert d["k"] == 1
                assert stats == []
                clock.now = begun + number + 1.0
                assert d["k"] == 1
                assert stats == [str(file), str(shm(file))]
                assert d["k"] == 1
                assert len(stats) == 2
                assert statements_of(lambda: d["k"]) == []

    def test_one_look_serves_all_dicts(self, file: Path, clock: Clock, stats: list[str]) -> None:
        with SqliteDict[str, int](file) as a, SqliteDict[str, int](file, "elsewhere") as b:
            warm(a)
            warm(b)
            clock.move(1.0)
            stats.clear()
            assert (len(a), len(b), len(a)) == (0, 0, 0)
            assert len(stats) == 2

    def test_a_look_by_one_that_found_nothing_new_is_no_sql(self, file: Path, clock: Clock) -> None:
        with SqliteDict[str, int](file) as d:
            warm(d)
            clock.move(60.0)
            assert statements_of(lambda: len(d)) == []

    def replace(self, file: Path, value: int) -> None:
        """Put another file in its place, as a program that restores a backup does."""
        new = file.with_name("new.sqlite")
        with SqliteDict[str, int](new) as d:
            d["k"] = value
        os.replace(new, file)

    def test_a_file_that_was_replaced(
        self,
        file: Path,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        unlinked: list[str] = []
        original = os.unlink

        def unlink(path: Any, *arguments: Any, **named: Any) -> None:
            unlinked.append(str(path))
            original(path, *arguments, **named)

        monkeypatch.setattr(os, "unlink", unlink)
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, "elsewhere") as elsewhere:
            d.update(k=1, old=1)
            warm(d)
            elsewhere["k"] = 1
            for number in range(2, 5):
                caplog.clear()
                self.replace(file, number)
                assert d["k"] == number - 1
                clock.move(1.0)
                unlinked.clear()
                assert d["k"] == number
                assert unlinked == [f"{file}-wal", f"{file}-shm"]
                assert d == {"k": number}
                assert elsewhere == {}
                assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
                assert "x.sqlite was replaced or removed" in caplog.text
                assert "removing" in caplog.text
                assert statements_of(lambda: d["k"]) == []
                assert d._glimpse is not None
                d["own"] = number
                assert query(file, "SELECT count(*) FROM durabledict_entries") == [(2,)]
                assert query(file, "PRAGMA integrity_check") == [("ok",)]
                del d["own"]
            assert len(held(file)) < 20
            assert not [name for name in held(file) if "deleted" in name]

    def test_the_old_file_keeps_what_was_written_to_it(self, file: Path, clock: Clock) -> None:
        """It may live on under another name; what was in its log is put into it first."""
        away = file.with_name("away.sqlite")
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            os.rename(file, away)
            self.replace(file, 2)
            clock.move(1.0)
            assert d["k"] == 2
        with SqliteDict[str, int](away) as old:
            assert old == {"k": 1}

    def test_a_log_that_is_already_the_new_files_is_left_alone(
        self, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            new = file.with_name("new.sqlite")
            with SqliteDict[str, int](new) as other:
                other["k"] = 2
            os.replace(new, file)
            # Somebody else noticed first, removed the old log, and wrote to the new file.
            for name in beside(file):
                file.with_name(name).unlink()
            payload = d._encode(3, "k")
            with plain(file) as program:
                program.execute("UPDATE durabledict_entries SET value = ?", (payload,))
                memory = os.stat(shm(file)).st_ino
                clock.move(1.0)
                assert d["k"] == 3
                assert os.stat(shm(file)).st_ino == memory
                assert "removing" not in caplog.text

    def test_a_new_file_without_tables(self, file: Path, clock: Clock) -> None:
        """As after `rm x.sqlite; touch x.sqlite`: an outage, and no file is filled unasked."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            file.with_name("new.sqlite").touch()
            os.replace(file.with_name("new.sqlite"), file)
            clock.move(1.0)
            for use in (lambda: d["k"], lambda: d.update(k=2)):
                with pytest.raises(sqlite3.OperationalError, match="no such table"):
                    use()

    def test_a_file_that_is_missing_and_comes_back(
        self, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        away = file.with_name("away")
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            warm(d)
            index = d._file.index
            os.rename(file, away)
            assert d["k"] == 1
            clock.move(1.0)
            for _ in range(2):
                with pytest.raises(sqlite3.OperationalError, match=r"x\.sqlite is not there any"):
                    d["k"]
                assert not file.exists()
            with pytest.raises(sqlite3.OperationalError, match="not there any more"):
                d["k"] = 2
            assert not file.exists()
            os.rename(away, file)
            assert d["k"] == 1
            assert d._file.index is index
            assert caplog.text == ""
            assert statements_of(lambda: d["k"]) == []
            d["k"] = 3
            assert d["k"] == 3

    def test_a_file_that_is_missing_can_be_made_anew_by_a_new_dict(
        self, file: Path, clock: Clock
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            for name in [file.name, *beside(file)]:
                file.with_name(name).unlink()
            clock.move(1.0)
            with pytest.raises(sqlite3.OperationalError, match="not there any more"):
                d["k"]
            with SqliteDict[str, int](file) as new:
                assert new == {}
                new["l"] = 2
                assert d == {"l": 2}

    def test_a_file_that_is_missing_stays_so_for_a_dict_whatever_another_one_tries(
        self, file: Path, clock: Clock
    ) -> None:
        """Or it would write into a file that has no name any more."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            for name in [file.name, *beside(file)]:
                file.with_name(name).unlink()
            clock.move(1.0)
            with suppress(sqlite3.OperationalError):
                SqliteDict[str, int](file).close()
            clock.move(1.0)
            acknowledged = False
            with suppress(sqlite3.OperationalError):
                d["k"] = 2
                acknowledged = True
            assert file.exists() or not acknowledged
            new = file.with_name("new.sqlite")
            with SqliteDict[str, int](new) as other:
                other["k"] = 3
            os.replace(new, file)
            clock.move(10.0)
            assert d["k"] == 3

    def test_a_file_that_is_missing_with_a_copy_that_may_be_old(
        self, file: Path, clock: Clock
    ) -> None:
        with SqliteDict[str, int](file, on_outage="stale") as d:
            d["k"] = 1
            os.rename(file, file.with_name("away"))
            clock.move(1.0)
            assert d["k"] == 1
            assert d.stale_since is not None
            os.rename(file.with_name("away"), file)
            clock.move(10.0)
            assert d["k"] == 1
            assert d.stale_since is None

    @pytest.mark.parametrize("both", [False, True])
    def test_somebody_removed_the_log(
        self, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, both: bool
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            query(file, "PRAGMA wal_checkpoint(TRUNCATE)")
            warm(d)
            kept = d._file._shared._map
            for name in beside(file) if both else [f"{file.name}-shm"]:
                file.with_name(name).unlink()
            clock.move(1.0)
            assert d["k"] == 1
            assert "was replaced or removed" in caplog.text
            assert d._file._shared._map is not kept
            assert statements_of(lambda: d["k"]) == []
            with SqliteDict[str, int](file) as other:
                other["k"] = 2
                assert d["k"] == 2
            query(file, "DELETE FROM durabledict_entries")
            assert d == {}
            assert query(file, "PRAGMA integrity_check") == [("ok",)]

    def test_a_link_that_is_pointed_to_another_file(self, file: Path, clock: Clock) -> None:
        a, b = file.with_name("a.sqlite"), file.with_name("b.sqlite")
        with SqliteDict[str, int](a) as d:
            d["k"] = 1
        with SqliteDict[str, int](b) as d:
            d["k"] = 2
        file.symlink_to(a)
        with SqliteDict[str, int](file) as d:
            assert d.path == str(file)
            d["own"] = 1
            assert d == {"k": 1, "own": 1}
            warm(d)
            with plain(a) as program:
                program.execute("SELECT count(*) FROM durabledict_entries").fetchall()
                file.unlink()
                file.symlink_to(b)
                clock.move(1.0)
                assert d == {"k": 2}
                # Its log was not that of the file which is under the name now.
                assert beside(a) == ["a.sqlite-shm", "a.sqlite-wal"]
            d["own"] = 2
            assert beside(b) == ["b.sqlite-shm", "b.sqlite-wal"]
            warm(d)
        with SqliteDict[str, int](a) as d:
            assert d == {"k": 1, "own": 1}
        with SqliteDict[str, int](b) as d:
            assert d == {"k": 2, "own": 2}

    def test_a_write_looks_too(self, file: Path, clock: Clock) -> None:
        """Of a dict that only writes: or it would write into a file that is no more."""
        away = file.with_name("away")
        with SqliteDict[str, int](file, autosync=False) as d:
            d["k"] = 1
            os.link(file, away)
            self.replace(file, 2)
            clock.move(1.0)
            d["own"] = 3
            assert d == {"k": 2, "own": 3}
        with SqliteDict[str, int](file) as d:
            assert d == {"k": 2, "own": 3}
        with SqliteDict[str, int](away) as d:
            assert d == {"k": 1}

    def test_a_look_while_a_transaction_is_open_waits_for_no_other_thread(
        self, file: Path, clock: Clock
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1

            def work(transaction: Transaction) -> None:
                clock.move(1.0)
                in_thread(lambda: d["k"])

            d._file.write(work)

    def test_the_time_is_that_before_the_look(self, file: Path, clock: Clock) -> None:
        """A file that is replaced right after it was looked at is noticed a second later."""
        with SqliteDict[str, int](file) as d:
            warm(d)
            shared = d._file._shared
            original = shared._is_same

            def slow() -> bool:
                found = original()
                clock.move(0.75)
                return found

            shared._is_same = slow  # type: ignore[method-assign]  # a hook
            begun = clock.now
            assert shared.look().look_at == begun + 1.0


class TestOwnWrites:
    def test_the_stamp_is_remembered_without_a_select(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            for action in (
                lambda: d.update(k=2),
                lambda: d.update(a=1, b=2, k=3),
                lambda: d.pop("a"),
                lambda: d.clear(),
                lambda: d.setdefault("k", 1),
            ):
                ran = statements_of(action)
                assert not [sql for sql in ran if sql.startswith(STAMP_SELECT)]
                assert statements_of(d.last_updated) == []
                assert d.last_updated() == d.last_synced

    def test_a_write_after_that_of_another_reads_the_stamp(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            d["k"] = 1
            other["l"] = 2
            ran = statements_of(lambda: d.update(k=3))
            assert [sql.startswith(STAMP_SELECT) for sql in ran].count(True) >= 1
            assert d.last_synced == d.last_updated() == other.last_updated()
            assert d == other == {"k": 3, "l": 2}

    def test_the_header_is_read_in_the_transaction(self, file: Path) -> None:
        """Where another one commits before it begins, the stamp is read anew."""
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            for number in range(3):
                d["k"] = number
                Watched.before["a write"] = partial(other.update, l=number)
                d["k"] = -number
                assert not Watched.before
                assert d == other == {"k": -number, "l": number}
                assert d.last_updated() == other.last_updated()
                versions = query(file, "SELECT version FROM durabledict_commits ORDER BY version")
                assert versions == [(each + 1,) for each in range(len(versions))]

    @pytest.mark.parametrize("many", [False, True])
    @pytest.mark.parametrize("who", ["a dict", "another keyspace", "another program"])
    def test_it_is_not_remembered_when_somebody_committed_right_after(
        self, file: Path, who: str, many: bool
    ) -> None:
        with (
            SqliteDict[str, int](file) as d,
            SqliteDict[str, int](file) as other,
            SqliteDict[str, int](file, "elsewhere") as elsewhere,
        ):
            d.update(k=1, m=0)
            for number in range(3):

                def write(number: int = number) -> None:
                    if who == "a dict":
                        other["l"] = number
                    elif who == "another keyspace":
                        elsewhere["l"] = number
                    else:
                        payload = d._encode(number, "k")
                        with plain(file) as program:
                            program.execute("BEGIN")
                            program.execute(
                                "INSERT OR REPLACE INTO durabledict_entries "
                                "(keyspace, key, value) VALUES ('default', 'l', ?)",
                                (payload,),
                            )
                            program.execute("COMMIT")

                Watched.after["a write"] = write
                if many:
                    d.update(k=-number, m=0)
                else:
                    d["k"] = -number
                assert not Watched.after
                assert len(statements_of(d.last_updated)) <= 1
                assert d.last_updated() == other.last_updated()
                expected = {"k": -number, "m": 0}
                if who != "another keyspace":
                    expected["l"] = number
                assert d == other == expected

    @pytest.mark.parametrize("many", [False, True])
    @pytest.mark.parametrize(
        "at",
        ["INSERT INTO durabledict_commits", "COMMIT", "SELECT version, nonce", "UPDATE", "BEGIN"],
    )
    @pytest.mark.parametrize("which", ["before", "after"])
    def test_a_write_in_the_middle_of_a_write(
        self, file: Path, which: str, at: str, many: bool
    ) -> None:
        """By a signal handler, or a finalizer: what was acknowledged is in the file."""
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            d.update(k=1, m=1, n=1)
            other["n"] = 2  # so that the stamp is read
            inner: list[str] = []

            def write() -> None:
                try:
                    d["m"] = 2
                    inner.append("done")
                except (sqlite3.Error, RuntimeError):
                    inner.append("refused")

            getattr(Watched, which)[at] = write
            outer = "done"
            try:
                if many:
                    d.update(k=2, l=2)
                else:
                    d["l"] = 2
            except (sqlite3.Error, RuntimeError):
                outer = "refused"
            getattr(Watched, which).clear()
            if outer == "done":
                assert other["l"] == 2
                assert not many or other["k"] == 2
            if inner == ["done"]:
                assert other["m"] == 2
            assert d == other == other.durables()
            assert d.last_updated() == other.last_updated() == d.last_synced
            # And the dict is of use.
            d["k"] = 3
            assert d["k"] == other["k"] == 3

    def test_it_is_that_of_this_commit_alone(self, file: Path) -> None:
        """The number of commits grew by one, and so it does at each; the rest may differ."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            header = d._file.index.header[:]
            d._known = None
            for more in (0, 1, 2, -1):
                d._remember(d._file.index, walindex.commits(header) - more, (1, 2))
                assert (d._known is not None) is (more == 1)
                d._known = None

    def test_a_write_that_changes_nothing(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            stamp = d.last_updated()
            with pytest.raises(KeyError):
                del d["absent"]
            d.replace_all({"k": 1})
            assert d.compare_and_set("k", 2, 3) is False
            assert d.last_updated() == stamp == d.last_synced
            assert statements_of(lambda: d["k"]) == []

    def test_those_of_two_threads(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            for number in range(5):
                d["k"] = number
                in_thread(partial(d.update, l=number))
                assert d == {"k": number, "l": number}
                assert d.last_updated() == d.last_synced


class TestSynchronous:
    @pytest.mark.parametrize("word", [*SYNCHRONOUS, "off", "Normal"])
    def test_it_reaches_each_connection_of_each_thread(self, file: Path, word: str) -> None:
        with SqliteDict[str, int](file, synchronous=word) as d:
            assert d.synchronous == word.upper()
            expected = [(SYNCHRONOUS.index(word.upper()),)]

            def level() -> list[Any]:
                with d._file.use() as connection:
                    return connection.execute("PRAGMA synchronous").fetchall()

            assert level() == in_thread(level) == in_thread(level) == expected
            sqliteconnection.shut_all(str(file))
            assert level() == in_thread(level) == expected
            with SqliteDict[str, int](file) as other:
                assert other.synchronous == "FULL"
                with other._file.use() as connection:
                    assert connection.execute("PRAGMA synchronous").fetchall() == [(2,)]
            assert level() == expected
            d["k"] = 1
            assert d["k"] == 1

    @pytest.mark.parametrize("word", ["", "on", "2", 2, None, "FULL; DROP TABLE x", True])
    def test_any_other_is_refused(self, file: Path, word: Any) -> None:
        with pytest.raises(ValueError, match=r"synchronous=.*one of OFF, NORMAL, FULL, EXTRA"):
            SqliteDict(file, synchronous=word)
        assert not file.exists()

    def test_it_cannot_be_set(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d, pytest.raises(AttributeError):
            d.synchronous = "OFF"  # type: ignore[misc]


class TestThreads:
    def test_a_watch_hears_of_commits(self, file: Path) -> None:
        """By the header, with a clock that stands still."""
        with SqliteDict[str, int](file, autosync=False) as d, SqliteDict[str, int](file) as other:
            heard = threading.Event()
            d.on_change(lambda key, old, new: heard.set())
            d.watch(interval=3600.0)
            other["k"] = 1
            assert heard.wait(PATIENCE)
            assert d["k"] == 1
