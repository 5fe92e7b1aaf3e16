"""Signal handlers, fork hooks and other threads at the most awkward moments of an SQLite file."""

from __future__ import annotations

import fcntl
import mmap
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    JSONEncoding,
    SqliteDict,
    sqliteconnection,
    sqliteshared,
    stalelog,
)
from durabledict.sqliteconnection import Connection
from durabledict.sqlitefile import Transaction

from . import not_measured
from .sqlitewatch import held

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a thread that is busy gives up soon: here it always is."""
    monkeypatch.setattr(sqliteconnection, "PATIENCE", 0.05)


def in_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


@pytest.fixture
def busy(file: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A dict of which another thread is in the middle of a read, and what lets it go."""
    d: Any = SqliteDict[str, int](file)
    d["k"] = 1
    began, ends = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        connection.rows("SELECT count(*) FROM durabledict_entries")
        began.set()
        assert ends.wait(PATIENCE)

    left = threading.Event()

    def run() -> None:
        d._file.read(work)
        left.set()
        assert done.wait(PATIENCE)

    done = threading.Event()
    thread = in_thread(run)
    assert began.wait(PATIENCE)

    def let_go() -> None:
        ends.set()
        assert left.wait(PATIENCE)

    yield d, let_go
    ends.set()
    done.set()
    thread.join(PATIENCE)
    d.close()


# -- handlers ------------------------------------------------------------------------------------


def test_a_handler_closes_the_dict_in_the_middle_of_its_own_write(file: Path) -> None:
    """The connection is in use by the very thread: it is closed when that is done with it."""
    d = SqliteDict[str, int](file)
    states = []

    def work(transaction: Transaction) -> None:
        d.close()
        states.append(transaction.connection.is_shut)
        transaction.connection.rows("SELECT count(*) FROM durabledict_entries")

    d._file.write(work)
    assert states == [False]
    assert not [name for name in os.listdir(file.parent) if name != file.name]


def test_many_rows_are_written_without_python_in_between(file: Path) -> None:
    """A handler that closes the connection inside a statement would crash the process."""

    class Noted(Connection):
        kinds: list[type] = []

        def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
            Noted.kinds.append(type(rows))
            return super().executemany(sql, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqliteconnection, "Connection", Noted)
        with SqliteDict[int, int](file) as d:
            d.update(dict.fromkeys(range(500), 0))
            d.clear()
    assert set(Noted.kinds) == {list}


def test_an_interrupt_as_a_connection_is_lent_or_given_back(file: Path) -> None:
    with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, timeout=0.1) as other:
        d["k"] = 1
        own = d._file.use()

        def interrupted() -> None:
            # As if the exception came when `__enter__` had done all, or `__exit__` nothing yet.
            connection = own.__enter__()
            connection.execute("BEGIN IMMEDIATE")
            raise KeyboardInterrupt

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                interrupted()
        d._known = None
        d["k"] = 2
        other["k"] = 3
        assert d["k"] == other["k"] == 3
        connection = own._connection
        assert connection is not None
        taken: list[bool] = []

        def take() -> None:
            taken.append(connection.use.acquire(timeout=PATIENCE))
            connection.use.release()

        in_thread(take).join(PATIENCE)
        assert taken == [True]


def test_a_handler_opens_a_file_while_one_is_opened(file: Path) -> None:
    gate = sqliteconnection._gate
    with gate.entered(), SqliteDict[str, int](file) as d:
        d["k"] = 1


# -- forks ---------------------------------------------------------------------------------------


def test_a_fork_that_could_not_close_a_connection_is_not_forgotten(
    busy: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    d, let_go = busy
    gate = sqliteconnection._gate
    for rounds in (1, 2):
        gate.before_fork()
        gate.after_fork_in_parent()
        assert caplog.text.count("cannot use") == rounds
    connections = list(gate.open)
    gate.before_fork()
    inherited, forking = gate.inherited, gate.forking
    try:
        # What the child does, but for the process.
        gate.inherited = set()
        gate.after_fork_in_child()
        with pytest.raises(RuntimeError, match="was in use when this process was forked"):
            sqliteconnection.connect(str(file), 1.0, create=False)
    finally:
        gate.inherited, gate.forking = inherited, None
        gate.open.update(connections)
    let_go()
    # It closed it itself when it was done.
    gate.before_fork()
    gate.after_fork_in_parent()
    assert all(connection.is_shut for connection in connections)
    assert forking is not None
    assert d == {"k": 1}


FORKED_PAST_THE_HOOKS = """
import ctypes, os, sys
from durabledict import SqliteDict
d = SqliteDict(sys.argv[1])
d["k"] = 1
child = ctypes.PyDLL(None).fork()
if child == 0:
    try:
        SqliteDict(sys.argv[1], "other")
    except RuntimeError as error:
        os._exit(0 if "fork hooks" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_new_dict_in_a_child_that_was_forked_past_the_hooks(file: Path) -> None:
    """SQLite would take the parent's locks for its own, whichever dict it is."""
    subprocess.run(
        [sys.executable, "-c", FORKED_PAST_THE_HOOKS, file],
        cwd=ROOT,
        env=not_measured(),
        check=True,
        timeout=PATIENCE,
    )


def test_no_watch_complains_at_the_end_of_the_interpreter(file: Path) -> None:
    """The stores are closed under it then: an error of that moment is nobody's fault."""
    program = (
        "import atexit, sys, threading\n"
        "from durabledict import SqliteDict\n"
        "def wait(*_):\n"
        "    threading.main_thread().join()\n"
        "    raise RuntimeError('closed under it')\n"
        "d = SqliteDict(sys.argv[1])\n"
        "d.wait = wait\n"
        "watch = d.watch()\n"
        "atexit.register(watch._thread.join, 1)  # so that it has the time to complain\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, file],
        cwd=ROOT,
        env=not_measured(),
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stderr == b""


# -- the file in another's place -------------------------------------------------------------------


def test_the_log_is_removed_before_the_old_file_is_closed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a connection to the old file is open, who opens the new one sees whose log it is."""
    order: list[str] = []
    for name in ("remove_log", "shut_all"):
        original = getattr(sqliteshared, name)

        def noted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            order.append(name)
            return original(*arguments)

        monkeypatch.setattr(sqliteshared, name, noted)
    with SqliteDict[str, int](file) as d:
        d["k"] = 1
        backup = file.with_name("backup")
        source, target = sqlite3.connect(file), sqlite3.connect(backup)
        source.backup(target)
        source.close()
        target.close()
        d["k"] = 2
        os.replace(backup, file)
        d._file.index.look_at = 0.0
        assert d["k"] == 1
    assert order == ["remove_log", "shut_all"]


def test_one_process_at_a_time_removes_a_log(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SqliteDict[str, int](file) as d:
        d["k"] = 1
        kept = d._file._shared._map
        assert kept is not None
        refused: list[bool] = []

        def looked_at(path: str) -> Any:
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(True)
            finally:
                os.close(folder)
            return (0, 0)  # another file: nothing is removed

        monkeypatch.setattr(stalelog, "identity_of", looked_at)
        stalelog.remove_log(kept)
        assert refused == [True]
        assert d == {"k": 1}


def test_a_thread_that_was_busy_when_the_file_was_replaced_goes_to_the_new_one(
    busy: Any, file: Path
) -> None:
    d, let_go = busy
    (connection,) = (each for each in d._file._connections._open if each.is_busy)
    new = file.with_name("new")
    with SqliteDict[str, int](new) as other:
        other["k"] = 2
    os.replace(new, file)
    d._file.index.look_at = 0.0
    assert d["k"] == 2
    assert not connection.is_shut
    let_go()
    assert connection.is_shut


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(116, "stale handle")])
def test_a_file_that_cannot_be_looked_at_is_an_outage(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def stat(path: str) -> Any:
        raise error

    with SqliteDict[str, int](file, on_outage="stale") as d:
        d["k"] = 1
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stat)
            d._file.index.look_at = 0.0
            assert d["k"] == 1
            assert d.stale_since is not None
            with pytest.raises(sqlite3.OperationalError, match="cannot be looked at"):
                d["k"] = 2
        d.sync()
        assert d.stale_since is None


# -- the rest ------------------------------------------------------------------------------------


def test_the_last_dict_closes_as_the_next_one_opens(file: Path) -> None:
    """There is one anchor for each process and file all the same."""
    d = SqliteDict[str, int](file)
    shared = d._file._shared
    d.close()
    assert shared.acquire(1.0) is False
    with SqliteDict[str, int](file) as a, SqliteDict[str, int](file) as b:
        assert a._file._shared is b._file._shared is not shared
    missing = sqliteshared.shared_file(str(file.with_name("never opened")), 1.0)
    missing.release()
    assert (os.getpid(), missing.path) not in sqliteshared._files


def test_a_map_that_fails_is_not_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor cannot be closed."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(12, "no memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    with SqliteDict[str, int](file) as d:
        d["k"] = 1
        before = len(held(file))
        for number in range(5):
            sqliteconnection.shut_all(str(file))
            d["k"] = number
        assert len(held(file)) == before


def test_the_pauses_of_a_wait_grow_to_a_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SqliteDict[str, int](file) as d:
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 20:
                d._interrupted.set()

        monkeypatch.setattr(time, "sleep", sleep)
        assert d.wait(d.last_updated(), 3600.0) is False
        assert pauses[0] == 0.0005
        assert pauses == sorted(pauses)
        assert pauses[-1] == 0.005


def test_a_key_that_is_no_text_is_refused_where_it_is_written(file: Path) -> None:
    with SqliteDict[str, int](file, encoding=JSONEncoding) as d:
        program = sqlite3.connect(file, isolation_level=None)
        with pytest.raises(sqlite3.IntegrityError):
            program.execute(
                "INSERT INTO durabledict_entries (keyspace, key, value) VALUES ('default', ?, '1')",
                (b"abc",),
            )
        program.close()
        assert d == {}


def test_a_row_that_another_program_copies(file: Path) -> None:
    """With the nonce of a single write of ours; one of many at once is on the page of caveats."""
    with SqliteDict[str, int](file, encoding=JSONEncoding) as d:
        d["a"] = 1
        d["a"] = 2
        program = sqlite3.connect(file, isolation_level=None)
        program.execute(
            "INSERT INTO durabledict_entries (keyspace, key, nonce, value) "
            "SELECT keyspace, 'copy', nonce, value FROM durabledict_entries"
        )
        program.close()
        assert d == {"a": 2, "copy": 2}


def test_a_rename_that_replaces_another_row(file: Path) -> None:
    with SqliteDict[str, int](file, encoding=JSONEncoding) as d:
        d.update(a=1, b=2, c=3)
        assert list(d) == ["a", "b", "c"]
        program = sqlite3.connect(file, isolation_level=None)
        program.execute("UPDATE OR REPLACE durabledict_entries SET key = 'b' WHERE key = 'a'")
        program.close()
        assert list(d.items()) == list(d.durables().items()) == [("c", 3), ("b", 1)]


def test_a_file_that_cannot_be_opened_again_is_reported_once(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteDict[str, int](file) as d:
        d["k"] = 1
        new = file.with_name("new")
        SqliteDict[str, int](new).close()
        os.replace(new, file)

        def refuse(*_: object) -> None:
            raise sqlite3.OperationalError("the log of another file")

        with monkeypatch.context() as patch:
            patch.setattr(sqliteshared, "require_own_log", refuse)
            d._file.index.look_at = 0.0
            for _ in range(3):
                with pytest.raises(sqlite3.OperationalError, match="another file"):
                    d["k"]
        assert caplog.text.count("is opened again") == 1
        assert d == {}


def test_the_sqlite3_shell(file: Path) -> None:
    with SqliteDict[str, int](file, encoding=JSONEncoding) as d:
        d.update(a=1, b=2)
        assert d["a"] == 1
        subprocess.run(
            [
                "sqlite3",
                file,
                "UPDATE durabledict_entries SET value = '3' WHERE key = 'a';"
                "DELETE FROM durabledict_entries WHERE key = 'b';"
                "INSERT INTO durabledict_entries (keyspace, key, value)"
                " VALUES ('default', 'c', '4');",
            ],
            check=True,
            timeout=PATIENCE,
        )
        reloads = d.stats.reloads
        assert d == {"a": 3, "c": 4}
        assert d.stats.reloads == reloads
