"""SqliteDict on a network file system, where there is no memory that all machines share.

docs/internals.rst, rules 1.2 and 1.4. The mount is that of a sample in place of Linux's list; which
types are network file systems is in test_mountinfo.py.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durabledict import DurableDict, SqliteDict, mountinfo, sqliteconnection
from durabledict.sqliteconnection import Connection
from durabledict.testing import DurableDictSuite
from durabledict.testing.tools import in_thread

from .fewsequences import FewSequences
from .sqlitewatch import PATIENCE, plain, query


def mounted(place: Path, type_: str = "nfs4") -> str:
    """Two lines of Linux's list: the root, and what is mounted at `place`."""
    point = str(place).replace(" ", r"\040")
    return (
        "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n"
        f"97 22 0:53 / {point} rw,relatime shared:2 - {type_} server:/export rw,vers=4.2\n"
    )


class TestSqliteDictOverANetwork(FewSequences, DurableDictSuite):
    capabilities = frozenset({"strict", "compare_and_set", "delta", "push", "shared", "aliasing"})
    modes = (True,)

    @pytest.fixture(autouse=True)
    def list_of_mounts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mountinfo, "MOUNTINFO", str(tmp_path / "mountinfo"))
        # The suite has its places in a folder of its own, made before this.
        (tmp_path / "mountinfo").write_text(mounted(self.place.parent))

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        opened: SqliteDict[Any, Any] = SqliteDict(place / "test.sqlite", **options)
        assert opened._file._shared._network == "nfs4"
        return opened

    def teardown_method(self, method: object = None) -> None:
        left = [name for _, _, names in os.walk(self.place.parent) for name in names]
        assert not [name for name in left if name.endswith(("-wal", "-shm"))]
        super().teardown_method(method)


class Hooked(Connection):
    """A connection that tells of its statements before it runs them."""

    tell: Callable[[str], object] | None = None
    statements: list[str] = []

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        words = " ".join(sql.split())
        Hooked.statements.append(words)
        if Hooked.tell is not None:
            Hooked.tell(words)
        return super().execute(sql, *arguments)


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hooked]]:
    monkeypatch.setattr(sqliteconnection, "Connection", Hooked)
    yield Hooked
    Hooked.tell = None
    Hooked.statements.clear()


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a network file system."""
    place = tmp_path / "my share"
    place.mkdir()
    (tmp_path / "mountinfo").write_text(mounted(place))
    monkeypatch.setattr(mountinfo, "MOUNTINFO", str(tmp_path / "mountinfo"))
    return place


@pytest.fixture
def file(network: Path) -> Path:
    return network / "x.sqlite"


def repeated(hooked: type[Hooked], thread: threading.Thread) -> threading.Event:
    """An event that is set when the thread tries a statement once more: a lock is in its way."""
    waits, seen = threading.Event(), [""]

    def tell(sql: str) -> None:
        if threading.current_thread() is thread:
            if sql == seen[-1]:
                waits.set()
            seen.append(sql)

    hooked.tell = staticmethod(tell)
    return waits


class TestTheFile:
    def test_there_is_no_shared_memory(self, file: Path) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            for number in range(3):
                d["k"] = number
                assert other["k"] == number
                assert os.listdir(file.parent) == [file.name]
            assert query(file, "PRAGMA journal_mode") == [("delete",)]
            shared = d._file._shared
            assert shared._map is None
            assert not isinstance(shared.index.header[:], bytes)
            assert d._glimpse is None
            assert not [
                name
                for name in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{name}")
                and os.readlink(f"/proc/self/fd/{name}").endswith("-shm")
            ]
        assert os.listdir(file.parent) == [file.name]
        with SqliteDict[str, int](file) as d:
            assert d == {"k": 2}

    def test_one_in_wal_mode_is_refused_and_left_alone(
        self, file: Path, network: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(mountinfo, "MOUNTINFO", os.devnull)
            with SqliteDict[str, int](file) as d:
                d["k"] = 1
        before = file.read_bytes()
        with pytest.raises(ValueError, match=r"x\.sqlite is in WAL mode.*\(nfs4\).*DELETE"):
            SqliteDict(file)
        assert file.read_bytes() == before
        assert os.listdir(file.parent) == [file.name]
        # And so it is by the remedy that the message names.
        assert query(file, "PRAGMA journal_mode = DELETE") == [("delete",)]
        with SqliteDict[str, int](file) as d:
            assert d == {"k": 1}

    def test_other_modes_are_changed(self, file: Path) -> None:
        for mode in ("TRUNCATE", "PERSIST"):
            with SqliteDict[str, int](file) as d:
                d[mode] = 1
            with plain(file) as program:
                program.execute(f"PRAGMA journal_mode = {mode}")
                with SqliteDict[str, int](file) as d, d._file.use() as connection:
                    assert d[mode] == 1
                    assert connection.rows("PRAGMA journal_mode") == [("delete",)]

    def test_one_that_came_from_there_is_put_into_wal_mode(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
        monkeypatch.setattr(mountinfo, "MOUNTINFO", os.devnull)
        with SqliteDict[str, int](file) as d:
            assert d == {"k": 1}
            assert query(file, "PRAGMA journal_mode") == [("wal",)]
            d.sync()
            assert d._glimpse is not None

    def test_a_link_to_it_counts(self, file: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.sqlite"
        link.symlink_to(file)
        with SqliteDict[str, int](link) as d:
            d["k"] = 1
            assert query(file, "PRAGMA journal_mode") == [("delete",)]

    def test_beside_it_is_no_network(self, file: Path, tmp_path: Path) -> None:
        with SqliteDict[str, int](tmp_path / "local.sqlite") as d:
            assert d._file._shared._map is not None


class TestComparisons:
    def test_commits_of_others_are_seen(self, file: Path, hooked: type[Hooked]) -> None:
        with (
            SqliteDict[str, int](file) as d,
            SqliteDict[str, int](file) as other,
            SqliteDict[str, int](file, "elsewhere") as elsewhere,
        ):
            for number in range(5):
                other["k"] = number
                assert d["k"] == number
                in_thread(lambda: d.update(l=1))
                assert d == other == {"k": number, "l": 1}
                elsewhere["k"] = -number
                d.sync()
                hooked.statements.clear()
                assert d["k"] == number
                assert hooked.statements == ["PRAGMA data_version"]
            query(file, "DELETE FROM durabledict_entries WHERE key = 'l'")
            assert d == other == {"k": 4}
            query(file, "VACUUM")
            assert d == other == {"k": 4}

    def test_a_file_that_was_replaced(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            with SqliteDict[str, int](file.with_name("new.sqlite")) as other:
                other["k"] = 2
            os.replace(file.with_name("new.sqlite"), file)
            d._file.index.look_at = 0.0  # as if a second had passed
            assert d["k"] == 2
            d["k"] = 3
        with SqliteDict[str, int](file) as d:
            assert d == {"k": 3}


class TestLocks:
    def test_a_writer_waits_for_a_reader_s_snapshot(self, file: Path, hooked: type[Hooked]) -> None:
        """There is one state of the file only, and whoever reads it holds a lock."""
        with SqliteDict[str, int](file, timeout=PATIENCE) as d, SqliteDict[str, int](file) as other:
            d["k"] = 1
            assert other["k"] == 1
            thread = threading.Thread(target=d.update, kwargs={"k": 2, "l": 2})
            waits = repeated(hooked, thread)

            def work(connection: Connection) -> None:
                found = connection.rows("SELECT count(*) FROM durabledict_commits")
                thread.start()
                assert waits.wait(PATIENCE)
                assert connection.rows("SELECT count(*) FROM durabledict_commits") == found

            other._file.read(work)
            thread.join(PATIENCE)
            assert not thread.is_alive()
            assert d == other == {"k": 2, "l": 2}

    def test_a_writer_does_not_wait_for_ever(self, file: Path) -> None:
        with SqliteDict[str, int](file, timeout=0.05) as d, SqliteDict[str, int](file) as other:
            d["k"] = 1
            assert other["k"] == 1
            reloads = d.stats.reloads

            def work(connection: Connection) -> None:
                connection.rows("SELECT count(*) FROM durabledict_commits")
                for write in (lambda: d.update(k=2, l=2), lambda: d.pop("k")):
                    with pytest.raises(sqlite3.OperationalError, match="locked"):
                        in_thread(write)

            other._file.read(work)
            # Nothing was done, and nothing is in doubt.
            assert d.last_synced == d.last_updated()
            assert d == other == {"k": 1}
            assert d.stats.reloads == reloads
            assert os.listdir(file.parent) == [file.name]
            d["k"] = 3
            assert d == other == {"k": 3}

    def test_a_reader_waits_for_a_writer(self, file: Path, hooked: type[Hooked]) -> None:
        with SqliteDict[str, int](file, timeout=PATIENCE) as d:
            d["k"] = 1
            with plain(file) as program:
                program.execute("BEGIN EXCLUSIVE")
                program.execute("DELETE FROM durabledict_entries")
                found: list[int] = []
                thread = threading.Thread(target=lambda: found.append(len(d)))
                waits = repeated(hooked, thread)
                thread.start()
                assert waits.wait(PATIENCE)
                program.execute("COMMIT")
                thread.join(PATIENCE)
                assert not thread.is_alive()
                assert found == [0]
