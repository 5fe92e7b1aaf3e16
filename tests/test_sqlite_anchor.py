"""The anchor by which dicts share an SQLite file, its descriptors, and the look each second.

docs/internals.rst, rules 1.2 and 1.3, as in test_sqlite_header.py.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    SqliteDict,
    sqliteconnection,
    sqliteshared,
)
from durabledict.sqliteconnection import Connection
from durabledict.sqlitefile import Transaction
from durabledict.testing.tools import Clock, in_thread

from .sqlitewatch import (
    Watched,
    beside,
    held,
    plain,
    query,
    shm,
    statements_of,
    warm,
)

pytestmark = pytest.mark.usefixtures("clock", "watched")


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

    def remove(self, file: Path) -> None:
        for name in [file.name, *beside(file)]:
            file.with_name(name).unlink()

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
            self.replace(file, 2)
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
            self.remove(file)
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
            self.remove(file)
            clock.move(1.0)
            with suppress(sqlite3.OperationalError):
                SqliteDict[str, int](file).close()
            clock.move(1.0)
            acknowledged = False
            with suppress(sqlite3.OperationalError):
                d["k"] = 2
                acknowledged = True
            assert file.exists() or not acknowledged
            self.replace(file, 3)
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
