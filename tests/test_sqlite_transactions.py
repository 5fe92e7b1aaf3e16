"""Transactions of SqliteDict: commits in doubt, busy files, and exceptions in the middle."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from durabledict import SqliteDict
from durabledict.sqlitefile import Transaction
from durabledict.sqlitestatements import OVERWRITE

from .sqlitewatch import PATIENCE, Failing, plain, query


class TestTransactions:
    def test_a_busy_file_is_waited_for_so_long_and_no_longer(self, file: Path) -> None:
        with SqliteDict[str, int](file, timeout=0.1) as hasty, plain(file) as other:
            hasty["k"] = 1
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                hasty["k"] = 2
            assert hasty["k"] == 1
            with SqliteDict[str, int](file, timeout=PATIENCE) as patient:
                waits = threading.Event()
                original = patient.persist

                def persist(key: str, value: int) -> Any:
                    waits.set()
                    return original(key, value)

                patient.persist = persist  # type: ignore[method-assign]  # a hook
                thread = threading.Thread(target=patient.__setitem__, args=("k", 3))
                thread.start()
                assert waits.wait(PATIENCE)
                assert hasty["k"] == 1
                other.execute("COMMIT")
                thread.join(PATIENCE)
                assert not thread.is_alive()
                assert patient["k"] == hasty["k"] == 3

    def test_rule_0_4_a_commit_that_was_done_is_reported_as_done(
        self, file: Path, failing: Any
    ) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:

            def fail_after(connection: Failing, sql: str, *values: Any) -> None:
                connection.execute(sql, *values)
                raise sqlite3.OperationalError("disk I/O error")

            # A new key is a transaction, a new value of one that is there a single statement.
            for number, at in enumerate(["COMMIT", OVERWRITE]):
                failing.at, failing.instead = at, fail_after
                d["k"] = number
                assert failing.instead is None
                assert d == other == {"k": number}
                assert d.last_synced == d.last_updated()

    @pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), MemoryError()])
    @pytest.mark.parametrize("autosync", [True, False])
    @pytest.mark.parametrize("at", ["COMMIT", OVERWRITE])
    def test_rule_0_4_a_commit_that_was_not_done_is_raised(
        self, file: Path, failing: Any, error: BaseException, autosync: bool, at: str
    ) -> None:
        with SqliteDict[str, int](file, autosync=autosync) as d:
            d["k"] = 1
            reloads = d.stats.reloads

            def fail(connection: Failing, sql: str, *values: Any) -> None:
                raise error

            if at == "COMMIT":
                d._known = None  # or it would be a single statement
            failing.at, failing.instead = at, fail
            with pytest.raises(type(error)):
                d["k"] = 2
            assert d["k"] == 1
            assert d.stats.reloads == reloads + 1
            d["k"] = 3
            assert d["k"] == 3
            assert query(file, "SELECT count(*) FROM durabledict_commits") == [(2,)]

    @pytest.mark.parametrize("autosync", [True, False])
    def test_a_write_that_was_refused_is_no_doubt(self, file: Path, autosync: bool) -> None:
        with (
            SqliteDict[str, int](file, autosync=autosync, timeout=0.01) as d,
            plain(file) as other,
        ):
            d["k"] = 1
            reloads = d.stats.reloads
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                d["k"] = 2
            other.execute("ROLLBACK")
            assert d.last_synced == d.last_updated()
            assert d["k"] == 1
            assert d.stats.reloads == reloads

    def test_an_interrupt_as_the_transaction_begins_leaves_none_open(
        self, file: Path, failing: Any
    ) -> None:
        """The lock is taken, and Python has not come to the next line."""
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, timeout=0.1) as other:
            d["k"] = 1
            left: list[Failing] = []

            def interrupt(connection: Failing, sql: str, *_: Any) -> None:
                sqlite3.Connection.execute(connection, sql)
                left.append(connection)
                raise KeyboardInterrupt

            for at in ("BEGIN IMMEDIATE", "BEGIN"):
                failing.at, failing.instead = at, interrupt
                with pytest.raises(KeyboardInterrupt):
                    if at == "BEGIN":
                        d.changes(d.last_updated())
                    else:
                        d._known = None  # or it would be a single statement
                        d["k"] = 2
                assert not left.pop().in_transaction
            other["k"] = 3
            assert d["k"] == other["k"] == 3

    def test_an_interrupt_after_the_commit_is_raised(self, file: Path, failing: Any) -> None:
        """Though the write is done: it is no error of the store's that could be explained away."""
        with SqliteDict[str, int](file) as d:

            def interrupt(connection: Failing, sql: str, *_: Any) -> None:
                sqlite3.Connection.execute(connection, sql)
                raise KeyboardInterrupt

            failing.at, failing.instead = "COMMIT", interrupt
            with pytest.raises(KeyboardInterrupt):
                d["k"] = 1
            assert d == {"k": 1}

    def test_an_error_of_begin_that_is_no_lock_is_raised_at_once(
        self, file: Path, failing: Any
    ) -> None:
        with SqliteDict[str, int](file, timeout=PATIENCE) as d:
            attempts: list[str] = []

            def fail(connection: Failing, sql: str, *_: Any) -> None:
                attempts.append(sql)
                failing.instead = fail
                raise sqlite3.OperationalError("disk I/O error")

            failing.at, failing.instead = "BEGIN IMMEDIATE", fail
            with pytest.raises(sqlite3.OperationalError, match="disk"):
                d["k"] = 1
            failing.instead = None
            assert len(attempts) == 1
            assert d == {}

    def test_a_read_in_the_middle_of_a_transaction_leaves_it_open(self, file: Path) -> None:
        """A finalizer's, or a signal handler's."""
        with SqliteDict[str, int](file) as d:
            d["k"] = 1
            states = []

            def work(transaction: Transaction) -> None:
                d._known = None
                d._glimpse = None
                assert d["k"] == 1
                states.append(transaction.connection.in_transaction)

            d._file.write(work)
            assert states == [True]
            with d._file.use() as connection:
                assert not connection.in_transaction

    def test_a_transaction_that_an_interrupt_left_open_is_ended_by_the_next_use(
        self, file: Path
    ) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, timeout=0.1) as other:
            d["k"] = 1
            with d._file.use() as connection:
                connection.execute("BEGIN IMMEDIATE")
            d._known = None
            d.sync()
            other["k"] = 2
            assert d["k"] == 2

    @pytest.mark.parametrize(
        "at", ["COMMIT", "\n    SELECT version, nonce", "\n    INSERT INTO durabledict_commits"]
    )
    def test_an_interrupt_leaves_no_transaction_open(
        self, file: Path, failing: Any, at: str
    ) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file, timeout=0.1) as other:
            d["k"] = 1
            left: list[Failing] = []

            def interrupt(connection: Failing, sql: str, *_: Any) -> None:
                assert connection.in_transaction
                left.append(connection)
                raise KeyboardInterrupt

            failing.at, failing.instead = at, interrupt
            d._known = None  # or it would be a single statement
            with pytest.raises(KeyboardInterrupt):
                d["k"] = 2
            assert not left[0].in_transaction
            other["k"] = 3
            assert d["k"] == other["k"] == 3

    def test_an_interrupt_in_a_delta_leaves_no_snapshot_open(
        self, file: Path, failing: Any
    ) -> None:
        with SqliteDict[str, int](file) as d, SqliteDict[str, int](file) as other:
            other["k"] = 1
            assert d["k"] == 1
            other["k"] = 2

            def interrupt(connection: Failing, sql: str, *_: Any) -> None:
                assert connection.in_transaction
                raise KeyboardInterrupt

            failing.at, failing.instead = "\n    SELECT id, key", interrupt
            with pytest.raises(KeyboardInterrupt):
                d["k"]
            other["k"] = 3
            assert d["k"] == 3
