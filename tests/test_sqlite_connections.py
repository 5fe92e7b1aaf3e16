"""The connections of SqliteDict: one for each thread, and who closes them, and when."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durabledict import SqliteDict, sqliteconnection
from durabledict.sqliteconnection import Connection

from .sqlitewatch import PATIENCE, Failing, query


class Noted(Connection):
    """A connection that says by whom it was used, and that it was closed."""

    made: list[Noted] = []

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.threads: set[int] = set()
        self.closed = False
        Noted.made.append(self)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.threads.add(threading.get_ident())
        return super().execute(*arguments)

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Noted]]:
    monkeypatch.setattr(sqliteconnection, "Connection", Noted)
    yield Noted.made
    Noted.made.clear()


class TestConnections:
    def test_each_thread_has_its_own_which_ends_with_it(
        self, file: Path, noted: list[Noted]
    ) -> None:
        with SqliteDict[Any, int](file) as d:
            together = threading.Barrier(3)

            def use(number: int) -> None:
                d[number] = number
                together.wait(PATIENCE)
                assert len(d) == 3

            threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert d == {0: 0, 1: 1, 2: 2}
            # The first is the anchor, the second that of this thread.
            assert [len(connection.threads) for connection in noted] == [1] * 5
            assert [connection.closed for connection in noted] == [False, False, True, True, True]
        assert all(connection.closed for connection in noted)

    def test_close_closes_those_of_other_threads(self, file: Path, noted: list[Noted]) -> None:
        d = SqliteDict[str, int](file)
        wrote, closed = threading.Event(), threading.Event()
        refused: list[str] = []

        def use() -> None:
            d["k"] = 1
            wrote.set()
            assert closed.wait(PATIENCE)
            try:
                d["k"] = 2
            except RuntimeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        assert wrote.wait(PATIENCE)
        d.close()
        assert [connection.closed for connection in noted] == [True, True, True]
        closed.set()
        thread.join(PATIENCE)
        assert len(refused) == 1
        assert [connection.closed for connection in noted] == [True, True, True]
        assert not [name for name in os.listdir(file.parent) if name != file.name]

    def test_none_is_opened_after_close(self, file: Path, noted: list[Noted]) -> None:
        """By a thread that was on its way when another one closed the dict."""
        d = SqliteDict[str, int](file)
        d.close()
        with pytest.raises(RuntimeError, match="closed"), d._file.use():
            pass
        assert all(connection.closed for connection in noted)

    def test_one_that_is_opened_as_the_dict_closes_is_closed(
        self, file: Path, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with SqliteDict[str, int](file) as other:  # keeps the anchor open
            d = SqliteDict[str, int](file)
            connections: Any = d._file._connections
            connect = connections.shared.connect

            def closed_meanwhile() -> Any:
                connection = connect()
                d.close()
                return connection

            monkeypatch.setattr(connections.shared, "connect", closed_meanwhile)
            refused: list[str] = []

            def use() -> None:
                try:
                    d["k"] = 1
                except RuntimeError as error:
                    refused.append(str(error))

            thread = threading.Thread(target=use)
            thread.start()
            thread.join(PATIENCE)
            assert len(refused) == 1
            assert noted[-1].closed
            assert other == {}

    def test_those_of_another_process_are_left_alone(self, file: Path, noted: list[Noted]) -> None:
        """As after a fork that Python did not see."""
        d = SqliteDict[str, int](file)
        connections = d._file._connections
        process, connections.process = connections.process, -1
        connections.shut(noted[1])  # as at the end of a thread
        d.close()
        assert [connection.closed for connection in noted] == [False, False]
        connections.process = process
        connections.close()
        assert [connection.closed for connection in noted] == [True, True]

    def test_a_dict_that_is_dropped_closes_them(self, file: Path, noted: list[Noted]) -> None:
        d = SqliteDict[str, int](file)
        d["k"] = 1
        del d
        gc.collect()
        assert [connection.closed for connection in noted] == [True, True]

    def test_a_dict_that_cannot_be_opened_closes_them(self, file: Path, noted: list[Noted]) -> None:
        query(file, "CREATE TABLE durabledict_commits (a)")
        with pytest.raises(ValueError):
            SqliteDict(file)
        with pytest.raises(TypeError) as caught:
            SqliteDict(file.with_name("y.sqlite"), autosync=1)
        # At once, though the traceback still holds the dict.
        assert noted[-1].closed
        assert caught.tb is not None
        del caught
        gc.collect()
        assert len(noted) == 4
        assert all(connection.closed for connection in noted)

    def test_close_waits_until_another_thread_is_done_with_its_own(
        self, file: Path, failing: Any
    ) -> None:
        with SqliteDict[str, int](file) as writer:
            writer["k"] = 1
            d = SqliteDict[str, int](file)
            in_a_call, closing_began, states = threading.Event(), threading.Event(), []
            file_of_d: Any = d._file
            close = file_of_d.close

            def close_noted() -> None:
                closing_began.set()
                close()

            file_of_d.close = close_noted

            def close_meanwhile(connection: Failing, sql: str, *_: Any) -> None:
                in_a_call.set()
                assert closing_began.wait(PATIENCE)
                states.append((d._is_closed, connection.is_shut))

            writer["k"] = 2
            failing.at, failing.instead = "\n    SELECT version, nonce", close_meanwhile
            results: list[Any] = []
            thread = threading.Thread(target=lambda: results.append(d["k"]))
            thread.start()
            assert in_a_call.wait(PATIENCE)
            d.close()
            thread.join(PATIENCE)
            assert states == [(True, False)]
            assert results in ([1], [2])

    def test_closing_while_other_threads_use_it(self, file: Path) -> None:
        """Reads go on from the local copy; writers are told; SQLite, called late, would crash."""
        for _ in range(4):
            d = SqliteDict[Any, Any](file)
            d.update(dict.fromkeys(range(50), "x"))
            closing_began = threading.Event()
            errors: list[BaseException] = []
            refused: list[str] = []

            def read(d: Any = d, closed: Any = closing_began, errors: Any = errors) -> None:
                try:
                    rounds = 0
                    while rounds < 20:
                        rounds += closed.is_set()
                        assert d[7] == "x"
                        assert len(d) >= 50
                        assert d.get("absent") is None
                        assert len(list(d)) >= 50
                except BaseException as error:
                    errors.append(error)

            def write(d: Any = d, errors: Any = errors, refused: Any = refused) -> None:
                try:
                    while True:
                        d["written"] = 1
                except RuntimeError as error:
                    refused.append(str(error))
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=read) for _ in range(3)]
            threads += [threading.Thread(target=write) for _ in range(2)]
            for thread in threads:
                thread.start()
            d.get("k")
            d.close()
            closing_began.set()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
            assert not errors
            assert len(refused) == 2
            assert all("closed" in text for text in refused)
