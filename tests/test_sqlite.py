"""SqliteDict: the conformance suite, and what is special to it: its file, payloads and stamps.

Transactions are in test_sqlite_transactions.py, connections in test_sqlite_connections.py.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    DecodingError,
    DurableDict,
    DurableDictError,
    EncodingError,
    JSONEncoding,
    NoOpEncoding,
    SqliteDict,
    sqliteconnection,
)
from durabledict.changes import _moved
from durabledict.sqliteconnection import Connection
from durabledict.testing import DurableDictSuite

from . import not_measured
from .fewsequences import FewSequences
from .sqlitewatch import PATIENCE, Failing, plain, query

ROOT = Path(__file__).parent.parent


class TestSqliteDict(FewSequences, DurableDictSuite):
    capabilities = frozenset({"strict", "compare_and_set", "delta", "push", "shared", "aliasing"})

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return SqliteDict(place / "test.sqlite", **options)


class TestOrder:
    """Iteration is in the order of first insertion, in every process."""

    def test_it_is_that_of_a_dict_whatever_a_reader_slept_through(self, tmp_path: Path) -> None:
        writer: SqliteDict[str, int] = SqliteDict(tmp_path / "x.sqlite", autosync=False)
        for force in (False, True):
            writer.clear()
            model: dict[str, int] = {}
            reader: SqliteDict[str, int] = SqliteDict(tmp_path / "x.sqlite", autosync=False)
            for number in range(200):
                key = str(number * 7919 % 11)
                if number % 3 == 0 and key in model:
                    del writer[key], model[key]
                else:
                    writer[key] = model[key] = number
                if number % 5 == 0:
                    reader.sync(force=force)
                    assert list(reader) == list(writer) == list(model)
                    assert list(reader.copy()) == list(model)
            reader.close()
        writer.close()

    @pytest.mark.parametrize("force", [False, True])
    def test_what_is_removed_and_written_again_goes_to_the_end(
        self, tmp_path: Path, force: bool
    ) -> None:
        """Though its value is the same: only its place tells."""
        writer = SqliteDict[str, int](tmp_path / "x.sqlite")
        reader = SqliteDict[str, int](tmp_path / "x.sqlite", autosync=False)
        with writer, reader:
            writer.update(a=1, b=2)
            reader.sync()
            reader.copy()
            del writer["a"]
            writer["a"] = 1
            writer["b"] = 3
            reader.sync(force=force)
            assert list(reader) == list(reader.copy()) == list(writer) == ["b", "a"]

    def test_what_only_changed_has_not_moved(self, tmp_path: Path) -> None:
        with SqliteDict[str, int](tmp_path / "x.sqlite") as d:
            d["a"] = 1
            stamp = d.last_updated()
            d["a"] = 2
            changes = d.changes(stamp)
            assert changes is not None
            assert (changes.written, list(changes.moved)) == ({"a": 2}, [])

    def test_a_key_that_stays_is_not_moved_by_one_that_does(self) -> None:
        assert _moved(["x", "y"], ["y", "x"]) == ["x"]
        assert _moved(["x", "y", "z"], ["y", "z", "x"]) == ["x"]
        assert _moved(["x", "y", "z"], ["new", "y", "x", "z"]) == ["x", "z"]
        assert _moved(["x", "y"], ["x", "new", "y"]) == []


class TestTheFile:
    @pytest.mark.parametrize("version", [1, 3])
    def test_another_version_of_the_tables_is_refused(self, file: Path, version: int) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
        query(file, f"UPDATE durabledict_schema SET version = {version}")
        before = file.read_bytes()
        with pytest.raises(DurableDictError, match=rf"version {version}; .* version 2"):
            SqliteDict(file)
        assert file.read_bytes() == before

    @pytest.mark.parametrize("content", [b"no database at all\n" * 100, b"x" * 5000])
    def test_a_file_that_is_no_database_is_left_alone(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.sqlite is not an SQLite database"):
            SqliteDict(file)
        assert file.read_bytes() == content
        assert os.listdir(file.parent) == [file.name]

    @pytest.mark.parametrize(
        "table",
        [
            "durabledict_entries (a)",
            "durabledict_schema (a TEXT)",
            "durabledict_schema (version, more)",
        ],
    )
    def test_foreign_tables_under_our_names_are_left_alone(self, file: Path, table: str) -> None:
        query(file, f"CREATE TABLE {table}")
        before = query(file, "SELECT * FROM sqlite_master")
        with pytest.raises(ValueError, match=f"other programs.* {table.split()[0]}"):
            SqliteDict(file)
        assert query(file, "SELECT * FROM sqlite_master") == before

    def test_tables_of_another_program_beside_ours(self, file: Path) -> None:
        query(file, "CREATE TABLE theirs (a)")
        query(file, "INSERT INTO theirs VALUES (1)")
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            query(file, "INSERT INTO theirs VALUES (2)")
            reloads = d.stats.reloads
            assert d == {"k": 1}
            assert d.stats.reloads == reloads
        assert query(file, "SELECT * FROM theirs") == [(1,), (2,)]

    @pytest.mark.parametrize("path", ["", ":memory:"])
    def test_no_file_at_all(self, path: str) -> None:
        with pytest.raises(ValueError, match="MemoryDict"):
            SqliteDict(path)

    @pytest.mark.parametrize("path", ["sqlite:///x.sqlite", "file:x?mode=memory", b"file:x"])
    def test_a_url_where_a_path_belongs(
        self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"is a URL: .* durabledict\.open"):
            SqliteDict(path)
        assert os.listdir(tmp_path) == []

    def test_a_path_may_be_bytes_as_everywhere(self, tmp_path: Path) -> None:
        with (
            SqliteDict[str, int](os.fsencode(tmp_path / "x.sqlite")) as d,
            SqliteDict[str, int](tmp_path / "x.sqlite") as other,
        ):
            d["k"] = 1
            assert other == {"k": 1}

    def test_seconds_to_wait_are_not_negative(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"timeout=-1: write 0 \(do not wait\)"):
            SqliteDict(tmp_path / "x.sqlite", timeout=-1)
        with SqliteDict[str, int](tmp_path / "x.sqlite", timeout=0) as d:
            d["k"] = 1

    def test_a_folder_and_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError, match="is a folder"):
            SqliteDict(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"the folder .*missing"):
            SqliteDict(tmp_path / "missing" / "x.sqlite")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_what_cannot_be_written_is_named(self, what: str) -> None:
        program = (
            "import os, sys\n"
            "from durabledict import SqliteDict\n"
            "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try: SqliteDict(sys.argv[1])\n"
            "except PermissionError as error: print(error)\n"
        )
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "x.sqlite"
            with SqliteDict[str, int](file) as d:
                d["k"] = 1
            file.chmod(0o444 if what == "file" else 0o666)
            Path(name).chmod(0o777 if what == "file" else 0o555)
            done = subprocess.run(
                [sys.executable, "-c", program, str(file)],
                cwd=ROOT,
                env=not_measured(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            Path(name).chmod(0o700)
        named = f"{file} is read-only" if what == "file" else f"the folder {name} is read-only"
        assert done.stdout.startswith(named), done.stderr
        assert done.stderr == ""

    def test_keyspaces_do_not_see_each_other(self, file: Path) -> None:
        keyspaces = ["", "default", "a/b", "a", "A", "\ud800", "~int:1", "1", "a\0b", "%", "ü"]
        dicts = [SqliteDict[str, Any](file, keyspace) for keyspace in keyspaces]
        for number, d in enumerate(dicts):
            d["k"] = number
        dicts[0].clear()
        assert [d.get("k") for d in dicts] == [None, *range(1, len(dicts))]
        for d in dicts:
            d.close()
        with SqliteDict[str, Any](file, "\ud800") as d:
            assert d == {"k": 5}

    @pytest.mark.parametrize("keyspace", [None, 1, b"k", ("k",)])
    def test_a_keyspace_is_a_str(self, file: Path, keyspace: Any) -> None:
        with pytest.raises(TypeError, match="is not a str"):
            SqliteDict(file, keyspace)
        assert not file.exists()

    @pytest.mark.parametrize("timeout", ["5", None, True])
    def test_a_timeout_is_seconds(self, file: Path, timeout: Any) -> None:
        with pytest.raises(TypeError, match=f"timeout={timeout!r}: write seconds"):
            SqliteDict(file, timeout=timeout)
        assert not file.exists()

    def test_a_timeout_may_be_a_timedelta(self, file: Path) -> None:
        """As that of the other dicts; it is the seconds for which a writer waits for another."""
        with (
            SqliteDict[str, int](file) as d,
            SqliteDict[str, int](file, timeout=timedelta(milliseconds=1)) as hasty,
            closing(sqlite3.connect(file)) as other,
        ):
            d["a"] = 1
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                hasty["a"] = 2
            other.rollback()
            hasty["a"] = 3
            assert d == {"a": 3}

    def test_opening_changes_no_entry_and_no_stamp(self, file: Path) -> None:
        for expected in ({}, {"k": 1}):
            with SqliteDict[str, int](file) as d:
                stamp = d.last_updated()
                assert d == expected
                content = query(file, "SELECT * FROM durabledict_commits")
                with SqliteDict[str, int](file) as other:
                    assert other.last_updated() == stamp
                assert d.last_updated() == stamp
                assert query(file, "SELECT * FROM durabledict_commits") == content
                d["k"] = 1

    def test_wal_is_made_sure_of_at_each_open(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
        assert query(file, "PRAGMA journal_mode = DELETE") == [("delete",)]
        with SqliteDict[str, int](file) as d:
            assert query(file, "PRAGMA journal_mode") == [("wal",)]
            assert d == {"k": 1}

    def test_the_journal_mode_is_waited_for(self, file: Path, failing: Any) -> None:
        SqliteDict[str, int](file).close()
        with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
            assert other.execute("PRAGMA journal_mode = DELETE").fetchall() == [("delete",)]
            other.execute("BEGIN EXCLUSIVE")
            attempts: list[str] = []

            def let_go_at_the_second(connection: Failing, sql: str, *_: Any) -> None:
                attempts.append(sql)
                if len(attempts) == 1:
                    failing.instead = let_go_at_the_second
                else:
                    other.execute("COMMIT")

            failing.at, failing.instead = "PRAGMA journal_mode", let_go_at_the_second
            SqliteDict[str, int](file, timeout=PATIENCE).close()
            assert len(attempts) == 2

    def test_tables_that_another_process_made_at_the_same_moment(
        self, file: Path, failing: Any
    ) -> None:
        def make(connection: Failing, sql: str, *_: Any) -> None:
            SqliteDict[str, int](file).close()

        failing.at, failing.instead = "BEGIN IMMEDIATE", make
        with SqliteDict[str, int](file) as d:
            assert failing.instead is None
            d["k"] = 1
            assert d == {"k": 1}

    def test_a_commit_is_on_the_disk(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[sqlite3.Connection] = []

        class Noted(Connection):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                made.append(self)

        monkeypatch.setattr(sqliteconnection, "Connection", Noted)
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            assert made
            for connection in made:
                assert connection.execute("PRAGMA synchronous").fetchall() == [(2,)]
                assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


class TestPayloads:
    def test_json_is_read_as_text(self, file: Path) -> None:
        with SqliteDict[Any, Any](file, encoding=JSONEncoding) as d:
            d["k"] = {"a": ["u", 1]}
            d["n"] = None
        rows = query(file, "SELECT key, value, typeof(value) FROM durabledict_entries")
        assert rows == [("k", '{"a":["u",1]}', "text"), ("n", "null", "text")]

    def test_without_an_encoding_str_and_bytes_only(self, file: Path) -> None:
        with SqliteDict[Any, Any](file, encoding=NoOpEncoding) as d:
            d.update(text="x", data=b"x")
            stamp = d.last_updated()
            for value in (1, None, ["x"], bytearray(b"x")):
                with pytest.raises(EncodingError, match=r"'k'.*str or bytes"):
                    d.update(text="y", k=value)
            assert d.last_updated() == stamp
            assert d.compare_and_set("data", "x", "y") is False
        with SqliteDict[Any, Any](file, encoding=NoOpEncoding) as d:
            assert d == {"text": "x", "data": b"x"}

    def test_text_that_is_no_text_is_refused_before_anything_is_sent(self, file: Path) -> None:
        with SqliteDict[Any, Any](file, encoding=NoOpEncoding) as d:
            d["k"] = "x"
            stamp = d.last_synced
            with pytest.raises(EncodingError, match="payload of key 'bad' is no text"):
                d.update(good="x", bad="lone \ud800 surrogate")
            assert d.last_synced == stamp == d.last_updated()
            assert d == {"k": "x"}

    @pytest.mark.parametrize("autosync", [True, False])
    def test_text_of_another_program_that_is_no_utf8_harms_its_key_alone(
        self, file: Path, autosync: bool
    ) -> None:
        with SqliteDict[Any, Any](file, autosync=autosync, encoding=JSONEncoding) as d:
            d.update(good=1, bad=2)
            query(
                file,
                "UPDATE durabledict_entries SET value = CAST(x'22ff22' AS TEXT) WHERE key = 'bad'",
            )
            d.sync(force=True)
            assert d.copy() == {"good": 1}
            assert list(d.undecodable) == ["bad"]
            with pytest.raises(DecodingError, match="'bad'"):
                d["bad"]
            d["good"] = 3
            assert d["good"] == 3
            d["bad"] = 4
            assert d.copy() == {"good": 3, "bad": 4}
            assert not d.undecodable

    @pytest.mark.parametrize("how", ["clear", "replace_all"])
    def test_a_key_of_another_program_that_is_no_utf8_can_be_removed(
        self, file: Path, how: str
    ) -> None:
        with SqliteDict[Any, Any](file, encoding=JSONEncoding) as d:
            d["k"] = 1
            query(file, "UPDATE durabledict_entries SET key = CAST(x'6bff' AS TEXT)")
            d["l"] = 2
            d.sync(force=True)
            assert d.copy() == {"k\udcff": 1, "l": 2}
            if how == "clear":
                d.clear()
            else:
                d.replace_all({"l": 2})
            d.sync(force=True)
            assert "k\udcff" not in d
        assert query(file, "SELECT count(*) FROM durabledict_entries WHERE key != 'l'") == [(0,)]

    def test_a_number_and_its_digits_are_two_keys(self, file: Path) -> None:
        with SqliteDict[Any, str](file) as a, SqliteDict[Any, str](file) as b:
            a["1"] = "str"
            b[1] = "int"
            b["~int:1"] = "tag"
            assert a == b == {"1": "str", 1: "int", "~int:1": "tag"}
            del a[True]
            assert b == {"1": "str", "~int:1": "tag"}


class TestStamps:
    def test_a_stamp_is_a_number_and_a_nonce(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            first = d.last_updated()
            d["k"] = 1
            second = d.last_updated()
            assert second[0] == first[0] + 1
            assert second[1] != first[1]
            rows = query(file, "SELECT version, nonce FROM durabledict_commits")
            assert rows == [first, second]

    @pytest.mark.parametrize("autosync", [True, False])
    def test_rule_1_1_a_restored_backup_is_a_reload(self, file: Path, autosync: bool) -> None:
        backup = file.with_name("backup.sqlite")
        with SqliteDict[str, Any](file) as d:
            d.update({str(number): "both" for number in range(10)})
            with plain(file) as source, plain(backup) as target:
                source.backup(target)
            for number in range(10):
                d[str(number)] = "lost"
        with SqliteDict[str, Any](file, autosync=autosync) as reader:
            seen = reader.last_updated()
            reloads = reader.stats.reloads
            with plain(file) as target, plain(backup) as source:
                source.backup(target)
            with SqliteDict[str, Any](file, autosync=False) as writer:
                for number in range(11):
                    writer["new"] = number
                reader.sync()
                # The number that the reader saw has been given again, and one more.
                assert writer.last_updated()[0] == seen[0] + 1
                assert reader == writer.durables()
                assert reader == {**{str(number): "both" for number in range(10)}, "new": 10}
            assert reader.stats.reloads == reloads + 1

    def test_a_restored_backup_with_the_same_number_is_a_reload(self, file: Path) -> None:
        backup = file.with_name("backup.sqlite")
        with SqliteDict[str, Any](file) as d:
            with plain(file) as source, plain(backup) as target:
                source.backup(target)
            d["k"] = "lost"
            with plain(file) as target, plain(backup) as source:
                source.backup(target)
            with SqliteDict[str, Any](file) as writer:
                writer["other"] = "new"
                assert d == {"other": "new"}

    def test_the_delta_is_of_the_state_of_its_proof(self, file: Path, failing: Any) -> None:
        with SqliteDict[str, int](file) as reader, SqliteDict[str, int](file) as writer:
            writer["k"] = 1

            def write(connection: Failing, sql: str, *_: Any) -> None:
                assert connection.in_transaction
                writer.update(k=2, late=2)

            assert reader.sync() is True
            since = reader.last_synced
            writer["k"] = 0
            expected = writer.last_updated()
            failing.at, failing.instead = "\n    SELECT version, nonce", write
            changes = reader.changes(since)
            assert failing.instead is None
            assert changes is not None
            assert (changes.stamp, changes.written) == (expected, {"k": 0})
            assert reader == {"k": 2, "late": 2}

    def test_a_delta_needs_the_very_commit(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            version, nonce = d.last_updated()
            assert d.changes((version, nonce)) is not None
            assert d.changes((version, nonce + 1)) is None
            assert d.changes((version + 1, nonce)) is None

    def test_a_write_between_data_version_and_stamp_is_seen_by_the_next_read(
        self, file: Path
    ) -> None:
        with (
            SqliteDict[str, int](file) as a,
            SqliteDict[str, int](file) as b,
            SqliteDict[str, int](file, "another keyspace") as elsewhere,
        ):
            b["k"] = 1
            assert a["k"] == 1
            original = a._stamp

            def stamp(connection: Connection) -> Any:
                found = original(connection)
                vars(a).pop("_stamp")
                b["k"] = 2
                return found

            elsewhere["x"] = 1  # so that data_version is another, and the stamp is not
            a._stamp = stamp  # type: ignore[method-assign]  # a hook
            assert a["k"] == 1  # the read began before the write
            assert a["k"] == 2

    def test_replace_all_writes_the_difference(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            d.update(a=1, b=2)
            stamp = d.last_updated()
            d.replace_all({"a": 1, "b": 2})
            assert d.last_updated() == stamp
            commit = d._replace_all({"a": 1, "b": 3})
            assert commit.written == {"b": 3}
            changes = d.changes(stamp)
            assert changes is not None
            assert changes.written == {"b": 3}

    def test_writes_of_another_connection_are_always_seen(self, file: Path) -> None:
        """An unfinished cursor would freeze data_version."""
        with SqliteDict[str, int](file) as a, SqliteDict[str, int](file) as b:
            for number in range(20):
                a["k"] = number
                assert b["k"] == number
                b["k"] = -number
                assert a["k"] == -number
                with plain(file) as connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS other (a)")
                    connection.execute("INSERT INTO other VALUES (1)")
                assert (a["k"], b["k"]) == (-number, -number)

    def test_an_own_write_drops_the_stamp_that_was_remembered(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d:
            for number in range(3):
                before = d.last_updated()
                d["k"] = number
                after = d.last_updated()
                assert after != before
                assert d.last_synced == after == tuple(query(file, NEWEST)[0])
                assert d.compare_and_set("k", -1, 0) is False
                assert d.last_updated() == after

    def test_a_write_that_changes_nothing_remembers_nothing(self, file: Path) -> None:
        """Or the next commit, another's, would be taken for its own."""
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            d["k"] = 1
            opened: Any = d._file
            write = opened.write

            def written_and_overtaken(work: Any) -> Any:
                result = write(work)
                other["k"] = 2
                return result

            opened.write = written_and_overtaken
            d.replace_all({"k": 1})
            del opened.write
            assert d["k"] == 2

    @pytest.mark.parametrize("key", ["k", "new"])
    def test_a_write_that_is_overtaken_is_not_taken_for_the_last(
        self, file: Path, key: str
    ) -> None:
        """By a commit between its own and the look at the header."""
        for autosync in (True, False):
            d: Any = SqliteDict[str, int](file, str(autosync), autosync=autosync)
            with d, SqliteDict[str, int](file, str(autosync)) as other:
                d["k"] = 1
                remember = d._remember

                def overtaken(*arguments: Any, other: Any = other, remember: Any = remember) -> Any:
                    other["k"] = 2
                    return remember(*arguments)

                d._remember = overtaken
                d[key] = 3
                del d._remember
                d.sync()
                assert d == other
                assert d["k"] == 2


NEWEST = "SELECT version, nonce FROM durabledict_commits ORDER BY version DESC LIMIT 1"


# CPython's longest tests, in the modes in which other backends take them, too.
for _name in ("test_mapping_popitem_bounded", "test_mapping_popitem_manual"):
    pytest.mark.long(getattr(TestSqliteDict, _name))
