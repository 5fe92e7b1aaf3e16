"""RedisDict that serves its copy while the server is down: no read fails, and it recovers alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durabledict import RedisDict

from .redisservers import RedisServer
from .servers import wait_until


class Readers:
    """Threads that read one dict as fast as they can, and note what they get."""

    def __init__(self, d: RedisDict[str, int], threads: int) -> None:
        self.dict = d
        self.last: list[int] = [0] * threads
        self.reads: list[int] = [0] * threads
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, args=[place]) for place in range(threads)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _read(self, place: int) -> None:
        while not self._stop.is_set():
            try:
                self.last[place] = self.dict["n"]
            except BaseException as error:
                self.errors.append(error)
            self.reads[place] += 1

    def go_on(self, times: int = 100) -> None:
        """Wait until each has read as often again."""
        goals = [reads + times for reads in self.reads]
        wait_until(
            lambda: all(reads >= goal for reads, goal in zip(self.reads, goals, strict=True)),
            "every thread has read on",
        )


def warnings(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING and "cannot be asked" in record.getMessage()
    ]


@pytest.mark.parametrize("autosync", [True, 0.01])
def test_no_read_fails_while_the_server_is_down_and_each_outage_is_told_once(
    autosync: bool | float, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        RedisServer("--appendonly", "yes", "--appendfsync", "always") as server,
        server.client() as one,
        server.client() as two,
        RedisDict[str, int]("k", one, autosync=autosync, on_outage="stale", max_stale=30) as strict,
        RedisDict[str, int]("k", one, autosync=autosync, on_outage="stale", max_stale=30) as more,
        RedisDict[str, int]("k", two) as writer,
    ):
        writer["n"] = 1
        readers = [Readers(strict, 2), Readers(more, 2)]
        for d in (strict, more):
            d.sync()
        with readers[0].running(), readers[1].running():
            for outage in (1, 2):
                for each in readers:
                    each.go_on()
                assert [each.dict.stale_since for each in readers] == [None, None]
                server.kill()
                for each in readers:
                    wait_until(lambda each=each: each.dict.stale_since, "the outage is noticed")  # type: ignore[misc]  # mypy#12557
                    each.go_on()
                    assert each.dict.stale_since is not None
                    assert each.last == [outage] * 2
                server.start()
                writer["n"] = outage + 1
                for each in readers:
                    wait_until(
                        lambda each=each, new=outage + 1: each.last == [new] * 2,  # type: ignore[misc]  # mypy#12557
                        "the readers show what was written since",
                    )
                    assert each.dict.stale_since is None
                assert len(warnings(caplog)) == 2 * outage
        assert [error for each in readers for error in each.errors] == []
        assert {record.name for record in warnings(caplog)} != set()
