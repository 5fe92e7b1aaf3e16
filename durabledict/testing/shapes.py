"""The suite: what a durable dict gives out: copies, merges, views, its text."""

from __future__ import annotations

import copy
import pickle
from typing import Any

from .tools import SuiteBase, needs, raises

__all__ = ["ShapesTests"]


class ShapesTests(SuiteBase):
    """Copies, comparisons and merges; views and iteration; repr and pickling."""

    def test_copies_are_plain_dicts(self) -> None:
        d = self.open()
        d["k"] = [1]
        for made in (
            d.copy(),
            copy.copy(d),
            d | {},
            {} | d,
            type(d).fromkeys("k"),
            d.fromkeys("k"),
        ):
            assert type(made) is dict
        assert d.copy() == {"k": [1]}
        deep = copy.deepcopy(d)
        assert type(deep) is dict
        assert deep["k"] is not d["k"]
        first, second = d.copy(), d.copy()
        first["x"] = 1
        assert second == {"k": [1]} == d.copy()
        d["l"] = 2
        assert d.copy() == {"k": [1], "l": 2}
        d.pop("k")
        assert d.copy() == {"l": 2}
        assert d.copy() == {"l": 2}

    def test_merging(self) -> None:
        d, other = self.open(), self.fresh()
        d.update(a=1, b=2)
        other.update(b=3, c=4)
        assert d | {"b": 3} == {"a": 1, "b": 3}
        assert {"b": 3} | d == {"b": 2, "a": 1}
        assert d | other == {"a": 1, "b": 3, "c": 4}
        assert next(iter({"z": 0} | d)) == "z"
        for bad in (5, [("a", 1)]):
            with raises(TypeError):
                d | bad
            with raises(TypeError):
                bad | d
        self.check(d, {"a": 1, "b": 2})

    def test_comparing(self) -> None:
        d, other = self.open(), self.fresh()
        d["k"] = other["k"] = [1]
        assert d == {"k": [1]}
        assert d == {"k": [1]}
        assert d == other
        assert not d != other  # noqa: SIM202  # the other operator
        assert d != {"k": [2]}
        assert d != {"k": [2]}
        assert d != [("k", [1])]
        assert d != None  # noqa: E711  # the operator is the test
        with raises(TypeError):
            hash(d)
        with raises(TypeError):
            d < other  # noqa: B015  # that is the test

    @needs("strict")
    def test_another_durable_dict_is_read_once(self) -> None:
        d, other = self.open(), self.fresh()
        d["k"] = 1
        other.update({number: number for number in range(10)})
        operations: list[Any] = [
            lambda: d == other, lambda: d != other, lambda: d | other, lambda: d.update(other),
        ]  # fmt: skip
        for operation in operations:
            assert self.comparisons(other, operation) == 1

    def test_pickling_is_refused_with_a_hint(self) -> None:
        d = self.open()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with raises(TypeError, "durabledict.open", "d.copy()"):
                pickle.dumps(d, protocol)

    # -- views and iteration ------------------------------------------------------------------

    def test_views(self) -> None:
        d = self.open()
        d.update({"a": 1, "b": [2]})
        keys, values, items = d.keys(), d.values(), d.items()
        assert (set(keys), len(keys), "a" in keys, "x" in keys) == ({"a", "b"}, 2, True, False)
        assert keys & {"a", "x"} == {"a"}
        assert keys | {"x"} == {"a", "b", "x"}
        assert keys - {"a"} == {"b"}
        assert keys ^ {"a", "x"} == {"b", "x"}
        assert keys == {"a", "b"}
        assert keys.isdisjoint({"x"})
        assert sorted(map(repr, values)) == ["1", "[2]"]
        assert [2] in values
        assert ("b", [2]) in items
        assert ("b", [3]) not in items
        assert dict(items) == {"a": 1, "b": [2]}
        assert list(reversed(keys)) == list(reversed(d)) == list(keys)[::-1]
        assert list(reversed(items)) == list(items)[::-1]
        assert list(reversed(values)) == list(values)[::-1]
        assert list(zip(keys, values, strict=True)) == list(items)
        assert keys.mapping == {"a": 1, "b": [2]}
        assert repr(keys) == f"dict_keys({list(keys)!r})"
        assert repr(values) == f"dict_values({list(values)!r})"
        assert repr(items) == f"dict_items({list(items)!r})"

    def test_a_view_shows_one_state(self) -> None:
        d = self.open()
        d.update(a=1, b=2)
        keys, items, walk = d.keys(), d.items(), iter(d)
        d["c"] = 3
        del d["a"]
        assert set(keys) == {"a", "b"}
        assert dict(items) == {"a": 1, "b": 2}
        assert set(walk) == {"a", "b"}
        assert set(d) == {"b", "c"}

    def test_writing_while_iterating(self) -> None:
        d = self.open()
        d.update({str(number): number for number in range(10)})
        for key in d:
            del d[key]
            d[f"new {key}"] = 1
        assert len(d) == 10

    def test_repr_does_no_io_and_never_raises(self) -> None:
        d = self.open()
        d["k"] = 1
        with self.down(d) as calls:
            assert repr(d) == str(d) == "{'k': 1}"
        assert not calls
        d.close()
        assert repr(d) == "{'k': 1}"

    def test_repr_of_an_object_whose_constructor_has_not_run(self) -> None:
        """As a debugger shows it."""
        native = self.open().__class__
        assert repr(native.__new__(native)) == "{}"
