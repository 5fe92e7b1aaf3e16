"""The order in which the files of tests begin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .conftest import LONGEST, pytest_collection_modifyitems


def test_the_longest_files_are_there() -> None:
    assert len(set(LONGEST)) == len(LONGEST)
    assert [name for name in LONGEST if not (Path(__file__).parent / f"{name}.py").exists()] == []


def test_the_longest_files_begin_and_the_order_within_a_file_stays() -> None:
    names = ["test_a::1", "test_b::2", "test_b::1", f"{LONGEST[1]}::1", f"{LONGEST[0]}::1"]
    items: list[Any] = [
        SimpleNamespace(path=Path(name.partition("::")[0] + ".py"), name=name) for name in names
    ]
    pytest_collection_modifyitems(items)
    assert [item.name for item in items] == [names[4], names[3], "test_b::2", "test_b::1", names[0]]
