"""What comes in the middle: a signal handler that syncs, an error of the reload after a write."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from durabledict import MemoryDict, MemoryStorage, PickleEncoding

from .test_subclassing import FourMethods, Table


@pytest.mark.parametrize("own", [True, False], ids=["own write", "sync"])
def test_a_sync_in_the_middle_of_an_apply_is_made_up_for_by_the_next_read(own: bool) -> None:
    storage = MemoryStorage()
    d: Any = MemoryDict[str, int](storage=storage, autosync=False)
    other = MemoryDict[str, int](storage=storage)
    other["k"] = 0
    d.sync()
    follow = d._follow

    def interrupted(*arguments: Any) -> Any:
        # As a signal handler runs: in this thread, with the lock of the dict held.
        del d._follow
        other["late"] = 1
        assert d.sync() is False
        return follow(*arguments)

    d._follow = interrupted
    if own:
        d["k"] = 1
    else:
        other["k"] = 1
        d.sync()
    assert d["late"] == 1
    assert type(d) is MemoryDict
    comparisons = d.stats.comparisons
    assert d["k"] == 1
    assert d.stats.comparisons == comparisons


def test_a_key_error_after_a_pop_is_not_taken_for_nothing_there() -> None:
    d: Any = FourMethods(Table())
    d["k"] = 1
    pop = d._pop

    def failing() -> Any:
        del d.durables
        raise KeyError("a row vanished")

    def popped(key: Any) -> Any:
        value = pop(key)
        d.durables = failing
        return value

    d._pop = popped
    with pytest.raises(KeyError, match="a row vanished"):
        d.pop("k", "default")
    assert "k" not in d


def test_an_undecodable_value_holds_nobodys_variables() -> None:
    raw: Any = MemoryDict()
    d: Any = MemoryDict(storage=raw.storage, encoding=PickleEncoding, autosync=False)
    raw["bad"] = b"garbage"

    class Big:
        pass

    def handle() -> Any:
        big = Big()
        d.sync(force=True)
        return weakref.ref(big)

    reference = handle()
    gc.collect()
    assert list(d.undecodable) == ["bad"]
    assert reference() is None
