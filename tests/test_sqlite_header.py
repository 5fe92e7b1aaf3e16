"""The header that tells of every commit to an SQLite file.

docs/internals.rst, rules 1.2 and 1.3. All in one process: what other processes do to the file, and
what kills them, is in test_sqlite_faults.py; the anchor is in test_sqlite_anchor.py.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import threading
from collections.abc import Callable
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
from durabledict.sqlitefile import SYNCHRONOUS
from durabledict.testing import override
from durabledict.testing.tools import Clock, in_thread

from .sqlitewatch import (
    PATIENCE,
    STAMP_SELECT,
    Forbidden,
    Watched,
    beside,
    plain,
    query,
    statements_of,
    warm,
)

pytestmark = pytest.mark.usefixtures("clock", "watched")


def nothing() -> None:
    """What is done where nothing else is said."""


def at_next_stamp(
    d: Any, before: Callable[[], object] = nothing, after: Callable[[], object] = nothing
) -> None:
    """Act before or after the dict reads its stamp the next time."""
    original = d.last_updated

    def last_updated() -> Any:
        vars(d).pop("last_updated")
        before()
        found = original()
        after()
        return found

    d.last_updated = last_updated


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
            d._sync_mutex = d._copy_lock = shared._lock = Forbidden()  # type: ignore[assignment]  # whoever takes one fails
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
                at_next_stamp(d, before=write)
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
            at_next_stamp(d, after=lambda: other.__setitem__("k", 2))
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
            at_next_stamp(d, after=d._doubt)
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
            d._glimpse = None
            at_next_stamp(d, after=lambda: d.__setitem__("k", 2))
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

            class Map(walindex.HeaderMap):
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
            d.synchronous = "OFF"  # type: ignore[misc]  # that is the test


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
