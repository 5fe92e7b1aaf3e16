"""The suite: read-modify-write, so that no update is lost."""

from __future__ import annotations

import datetime
import threading
from functools import partial
from typing import Any

from ..errors import MISSING, ConflictError
from .tools import PATIENCE, SuiteBase, needs, raises

__all__ = ["ModifyingTests"]


class ModifyingTests(SuiteBase):
    """`compare_and_set`, `compute` and `edit`."""

    @needs("compare_and_set")
    def test_compare_and_set(self) -> None:
        d, b = self.open(), self.reader()
        assert d.compare_and_set("k", MISSING, [1]) is True
        assert d.compare_and_set("k", MISSING, [2]) is False
        assert d.compare_and_set("k", [2], [3]) is False
        assert d.compare_and_set("k", [1], None) is True
        assert d.compare_and_set("k", 0, 1) is False
        assert d.compare_and_set("k", None, 1) is True
        assert d.compare_and_set("k", 1.0, 2) is True
        self.check(b, {"k": 2})
        assert d.compare_and_set("k", 3, MISSING) is False
        assert d.compare_and_set("k", 2, MISSING) is True
        assert d.compare_and_set("k", MISSING, MISSING) is True
        self.check(b, {})

    @needs("compare_and_set")
    def test_compare_and_set_compares_values_not_payloads(self) -> None:
        d = self.open()
        word = str(12345)
        d["k"] = [word, word]  # one object twice: the pickle says so
        assert d.compare_and_set("k", [str(12345), str(12345)], "done") is True
        assert self.seen(d)["k"] == "done"

    @needs("compare_and_set", "shared")
    def test_compare_and_set_that_fails_leaves_a_manual_dict_in_sync(self) -> None:
        """Or a caller that takes `old` from the dict would try for ever."""
        a, b = self.open(autosync=False), self.reader()
        a["k"] = 1
        b["k"] = 2
        assert a["k"] == 1
        assert a.compare_and_set("k", a["k"], 3) is False
        assert a["k"] == 2
        assert a.compare_and_set("k", a["k"], 3) is True

    @needs("compare_and_set", "shared")
    def test_compare_and_set_reads_again_when_somebody_else_wrote_the_same(self) -> None:
        a, b = self.open(), self.open()
        a["k"] = 1
        overtake = partial(b.__setitem__, "k", 1.0)  # equal, and another payload
        with self.hook(a, "_fetch", after=overtake, times=1) as fetched:
            assert a.compare_and_set("k", 1, 2) is True
        assert len(fetched) == 2
        self.check(b, {"k": 2})

    @needs("compare_and_set")
    def test_compute(self) -> None:
        d, b = self.open(), self.reader()
        assert d.compute("n", lambda n: n + 1, default=0) == 1
        assert d.compute("n", lambda n: n + 1) == 2
        assert d.compute("list", lambda value: [*value, 1], default=[]) == [1]
        assert d.compute("none", lambda value: None) is None
        assert d.compute("absent", lambda value: value) is MISSING
        self.check(b, {"n": 2, "list": [1], "none": None})
        assert d.compute("n", lambda n: MISSING) is MISSING
        with raises(ZeroDivisionError):
            d.compute("list", lambda value: 1 / 0)
        self.check(b, {"list": [1], "none": None})

    @needs("compare_and_set", "shared")
    def test_compute_runs_again_when_somebody_else_wrote(self) -> None:
        a, b = self.open(), self.reader()
        a["n"] = 10
        runs = []

        def increment(n: int) -> int:
            runs.append(n)
            if len(runs) < 3:
                b["n"] = n + 100
            return n + 1

        assert a.compute("n", increment) == 211
        assert runs == [10, 110, 210]
        self.check(b, {"n": 211})
        self.check(a, {"n": 211})

    @needs("compare_and_set", "delta", "shared")
    def test_what_was_not_written_is_no_reason_to_reload(self) -> None:
        a, b = self.open(autosync=False), self.open()
        a["n"] = 1
        reloads = a.stats.reloads
        with self.hook(a, "_fetch", after=lambda: b.update(n=10), times=1):
            assert a.compute("n", lambda n: n + 1) == 11
        assert a.stats.reloads == reloads

    @needs("compare_and_set")
    def test_compute_may_change_what_it_is_given(self) -> None:
        d, default = self.open(), [0]
        d["k"] = [1]
        held = d["k"]

        def refuse(value: list[int]) -> list[int]:
            value.append(2)
            raise ZeroDivisionError

        with raises(ZeroDivisionError):
            d.compute("k", refuse)
        with raises(ZeroDivisionError):
            d.compute("x", refuse, default=default)
        assert held == [1]
        assert default == [0]
        self.check(d, {"k": [1]})

    @needs("compare_and_set", "shared")
    def test_increments_from_threads_of_two_clients_are_not_lost(self) -> None:
        a, b = self.open(), self.open(autosync=False)

        def increment(d: Any) -> None:
            for _ in range(25):
                d.compute("n", lambda n: n + 1, default=0)

        threads = [threading.Thread(target=increment, args=(d,)) for d in (a, b, a, b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        self.check(a, {"n": 100})
        self.check(b, {"n": 100})

    @needs("compare_and_set")
    def test_edit(self) -> None:
        d, b = self.open(), self.reader()
        d["tags"] = ["a"]
        with d.edit("tags") as tags:
            tags.append("b")
            assert d["tags"] == ["a"]
        self.check(b, {"tags": ["a", "b"]})
        with raises(ZeroDivisionError), d.edit("tags") as tags:
            tags.clear()
            raise ZeroDivisionError
        self.check(d, {"tags": ["a", "b"]})
        with raises(KeyError, "'x'"), d.edit("x"):
            pass

    @needs("compare_and_set", "shared")
    def test_edit_that_meets_another_write_is_a_conflict(self) -> None:
        a, b = self.open(), self.reader()
        a["tags"] = ["a"]
        with raises(ConflictError, "'tags'"), a.edit("tags") as tags:
            tags.append("mine")
            b["tags"] = ["theirs"]
        self.check(a, {"tags": ["theirs"]})
        with raises(ConflictError), a.edit("tags") as tags:
            del b["tags"]
        self.check(a, {})

    @needs("compare_and_set", "shared")
    def test_a_conflict_brings_the_others_write_into_a_manual_dict(self) -> None:
        a, b = self.open(autosync=False), self.open()
        a["k"] = [1]
        with raises(ConflictError), a.edit("k"):
            b["k"] = [2]
        assert a["k"] == [2]

    @needs("compare_and_set")
    def test_edit_refuses_what_cannot_be_changed_in_place(self) -> None:
        d = self.open()
        day = datetime.date(2020, 1, 1)
        values: list[Any] = [1, 1.5, "s", b"b", True, None, (1,), frozenset(), day]
        for value in values:
            d["k"] = value
            with raises(TypeError, "compute", type(value).__name__), d.edit("k"):
                pass

    @needs("!compare_and_set")
    def test_without_compare_and_set_the_error_names_what_to_write(self) -> None:
        d = self.open()
        d["k"] = [1]
        actions: list[Any] = [
            lambda: d.compare_and_set("k", 1, 2),
            lambda: d.compute("k", lambda value: value),
            lambda: d.edit("k").__enter__(),
        ]
        for action in actions:
            with raises(NotImplementedError, "_fetch", "_compare_and_set"):
                action()
        self.check(d, {"k": [1]})

    @needs("compare_and_set")
    def test_after_close_nothing_is_modified(self) -> None:
        d = self.open()
        d["k"] = [1]
        d.close()
        actions: list[Any] = [
            lambda: d.compare_and_set("k", [1], 2),
            lambda: d.compare_and_set("k", 0, 2),
            lambda: d.compare_and_set("x", MISSING, MISSING),
            lambda: d.compute("k", lambda value: value),
            lambda: d.compute("x", lambda value: value),
            lambda: d.edit("k").__enter__(),
        ]
        for action in actions:
            with raises(RuntimeError, "closed"):
                action()
        assert d == {"k": [1]}
