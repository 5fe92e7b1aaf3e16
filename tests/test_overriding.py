"""`testing.override` as a decorator; what it shows is in the suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durabledict import EncodingError, JSONEncoding, MemoryDict, PickleEncoding, SqliteDict
from durabledict.testing import override


def test_a_function_is_shown_the_values_at_each_call() -> None:
    d = MemoryDict[str, int]()
    d["a"] = 1

    @override(d, a=2)
    def read(more: int) -> int:
        return d["a"] + more

    assert (read(1), read(2), d["a"]) == (3, 4, 1)


def test_a_coroutine_is_shown_the_values_while_it_runs() -> None:
    d = MemoryDict[str, int]()
    d["a"] = 1

    @override(d, a=2)
    async def read() -> int:
        await asyncio.sleep(0)
        return d["a"]

    assert asyncio.run(read()) == 2
    assert d["a"] == 1


def test_what_does_not_run_in_one_go_is_refused() -> None:
    d = MemoryDict[str, int]()

    def generate() -> Iterator[int]:
        yield d["a"]

    class Tests:
        pass

    for refused in (generate, Tests):
        with pytest.raises(TypeError, match="with override"):
            override(d, a=2)(refused)


def test_one_value_that_the_new_encoding_refuses_does_not_stop_migrate(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    with SqliteDict[str, Any](file) as d:
        d.update(refused={1}, taken=[2])
    with SqliteDict[str, Any](file, encoding=JSONEncoding, old_encoding=PickleEncoding) as d:
        with pytest.raises(EncodingError, match="'refused'"):
            d.migrate()
        assert d == {"refused": {1}, "taken": [2]}
    with SqliteDict[str, Any](file, encoding=JSONEncoding) as d:
        assert d == {"taken": [2]}
        assert list(d.undecodable) == ["refused"]
