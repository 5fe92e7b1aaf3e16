"""One apply, step by step: what readers without a lock may meet, and what an interrupt leaves."""

from __future__ import annotations

from typing import Any

import pytest

from durabledict import MemoryDict, MemoryStorage
from durabledict.testing.tools import SuiteBase

hook = SuiteBase().hook


def pair() -> tuple[Any, Any]:
    storage = MemoryStorage()
    return MemoryDict(storage=storage, autosync=False), MemoryDict(storage=storage)


class Spy:
    """Stands in place of `dict`, and writes down each state that a dict passes through."""

    def __init__(self, watched: Any) -> None:
        self.watched = watched
        self.states: list[dict[Any, Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return dict(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        method = getattr(dict, name)
        if name not in ("update", "pop", "clear", "__setitem__", "__delitem__"):
            return method

        def noted(durable: Any, *arguments: Any) -> Any:
            result = method(durable, *arguments)
            if durable is self.watched:
                pairs = zip(dict.keys(durable), dict.values(durable), strict=True)
                self.states.append(dict(pairs))
            return result

        return noted


@pytest.mark.parametrize("force", [False, True])
def test_an_apply_is_one_update_and_then_the_removals(
    force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair()
    b.update({"stays": 0, "old name": 1, "x": 0})
    a.sync()
    b.replace_all({"stays": 5, "new name": 1, "y": 6})
    spy = Spy(a)
    monkeypatch.setattr("durabledict.localcopy.dict", spy, raising=False)
    a.sync(force=force)
    monkeypatch.undo()
    assert spy.states[0] == {"stays": 5, "old name": 1, "x": 0, "new name": 1, "y": 6}
    assert all("new name" in state for state in spy.states)
    assert spy.states[-1] == a.copy() == {"stays": 5, "new name": 1, "y": 6}


def test_the_stamp_is_set_when_all_else_is_done() -> None:
    a, b = pair()
    b["k"] = 1
    before = a.last_synced
    seen: list[Any] = []
    with hook(a, "_follow", before=lambda: seen.append(a.last_synced)):
        a.sync()
    assert seen == [before]
    assert a.last_synced != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_raised_in_the_middle_of_an_apply_leaves_every_reader_right(
    error: type[BaseException],
) -> None:
    def interrupt() -> None:
        raise error

    for autosync in (True, False):
        d: Any = MemoryDict(autosync=autosync)
        d.update(k=1, gone=1)
        d.copy()
        d.items()
        with hook(d, "_follow", before=interrupt), pytest.raises(error):
            d.replace_all({"k": 2, "new": 2})
        expected = {"k": 2, "new": 2}
        assert dict(d.items()) == d.copy() == dict(d) == expected
        assert list(d) == list(d.copy())
        assert d.last_synced == d.last_updated()


class Counted:
    """A lock that counts how often it was taken."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.times = 0

    def __enter__(self) -> None:
        self.times += 1
        self.lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self.lock.release()


def test_the_lists_of_one_state_are_taken_under_the_lock() -> None:
    for read in (lambda d: d.items(), lambda d: iter(d), lambda d: d.copy(), lambda d: repr(d)):
        d: Any = MemoryDict(autosync=False)
        d["k"] = 1
        d._copy_lock = lock = Counted(d._copy_lock)
        read(d)
        assert lock.times


def test_the_twin_is_dropped_when_nobody_copies_any_more() -> None:
    d: Any = MemoryDict(autosync=False)
    d.copy()
    d["k"] = 1
    assert d._twin == {"k": 1}
    d["k"] = 2
    assert d._twin is None
    assert d.copy() == {"k": 2}


def test_the_list_of_keys_is_kept_until_the_keys_change() -> None:
    d: Any = MemoryDict(autosync=False)
    d.update(a=1, b=2)
    keys = d._keys()
    d["a"] = 3
    assert d._keys() is keys
    assert list(d.items()) == [("a", 3), ("b", 2)]
    d["c"] = 4
    assert d._keys() == ["a", "b", "c"]
    del d["a"]
    assert d._keys() == ["b", "c"]
    assert keys == ["a", "b"]
