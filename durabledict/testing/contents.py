"""The suite, first part: a durable dict is a dict, and what it holds is what was stored."""

from __future__ import annotations

import copy
import datetime
import enum
import json
import pickle
from typing import Any

from ..changes import Undecodable
from ..errors import MISSING, ConflictError, DecodingError, EncodingError
from .tools import SuiteBase, in_thread, needs, raises

__all__ = ["ContentsTests"]

# Keys of each supported kind, with how the local copy holds them.
KEYS: list[tuple[Any, Any]] = [
    ("plain", "plain"),
    ("", ""),
    ("a/b/../c", "a/b/../c"),
    (".", "."),
    ("..", ".."),
    ("tab\t nul\0 newline\n", "tab\t nul\0 newline\n"),
    ("snow ☃ 😀", "snow ☃ 😀"),
    ("lone \ud800 surrogate", "lone \ud800 surrogate"),
    ("~int:7", "~int:7"),
    ("~str:x", "~str:x"),
    ("~", "~"),
    ("7", "7"),
    (7, 7),
    (-(2**70), -(2**70)),
    (2.5, 2.5),
    (float("inf"), float("inf")),
    (None, None),
    (b"\x00\xff", b"\x00\xff"),
    ((), ()),
    (("zone", 1, (None, b"x")), ("zone", 1, (None, b"x"))),
]

# Values that a careless `if value` takes for absent, and None.
FALSY: list[Any] = [None, 0, False, 0.0, "", b"", [], {}, (), set()]


class Colour(str, enum.Enum):
    """A key that is its value."""

    RED = "red"


class Level(enum.IntEnum):
    """A key that is its value."""

    LOW = 1


class Unpicklable:
    """A value that no encoding takes."""

    def __reduce__(self) -> Any:
        raise ValueError("not to be stored")


class Unreadable:
    """A value whose payload can be written and not be read back."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class ContentsTests(SuiteBase):
    """What is in the dict, with one client, and as a second client sees it."""

    # -- values and keys ----------------------------------------------------------------------

    def test_every_method_of_dict_is_our_own_or_named_here(self) -> None:
        """A method of `dict` that is inherited would write past the store, or read unchecked."""
        native = self.open()._native_class
        classes = native.__mro__[: native.__mro__.index(dict)]
        ours = {name for made in classes for name in vars(made)}
        # Read the local copy alone in the native class; the syncing class has its own.
        per_key = {"__getitem__", "__contains__", "__len__", "get"}
        harmless = {
            "__class__", "__class_getitem__", "__delattr__", "__dir__", "__format__", "__ge__",
            "__getattribute__", "__getstate__", "__gt__", "__init_subclass__", "__le__", "__lt__",
            "__new__", "__reduce__", "__setattr__", "__sizeof__", "__str__", "__subclasshook__",
        }  # fmt: skip
        forgotten = set(dir(dict)) - ours - per_key - harmless
        assert not forgotten
        strict = self.open(autosync=True)
        assert per_key <= set(vars(type(strict)))

    def test_is_a_dict(self) -> None:
        d = self.open()
        d["k"] = 1
        assert isinstance(d, dict)
        assert isinstance(d, d.__class__)
        assert type(d).__name__ == d.__class__.__name__
        assert issubclass(d.__class__, dict)
        assert json.dumps(d.copy()) == '{"k": 1}'

    def test_keys_of_every_supported_kind(self) -> None:
        d, b = self.open(), self.reader()
        for number, (key, _) in enumerate(KEYS):
            d[key] = number
        expected = {held: number for number, (_, held) in enumerate(KEYS)}
        self.check(d, expected)
        self.check(b, expected)
        for key in list(b):
            assert type(key) is type(next(held for _, held in KEYS if held == key))
        for key, _ in KEYS:
            del d[key]
        self.check(b, {})

    def test_keys_that_are_equal_are_one_key(self) -> None:
        d, b = self.open(), self.reader()
        d[1.0] = "float"
        d[True] = "bool"
        d[Level.LOW] = "enum"
        d[(True, 2.0)] = "tuple"
        d[Colour.RED] = "colour"
        self.check(d, {1: "enum", (1, 2): "tuple", "red": "colour"})
        assert {type(key) for key in self.seen(b)} == {int, tuple, str}
        assert type(next(key for key in b if key == "red")) is str
        assert d[Colour.RED] == d["red"] == "colour"
        d.update([(2, "int"), (2.0, "float")])
        assert d[2] == "float"

    def test_a_key_that_cannot_be_stored_is_a_type_error_and_nothing_is_sent(self) -> None:
        d = self.open()
        d["k"] = 1
        stamp = d.last_updated()
        writes: list[Any] = [
            lambda key: d.__setitem__(key, 1),
            lambda key: d.__delitem__(key),
            lambda key: d.update([("x", 1), (key, 2)]),
            lambda key: d.replace_all({"x": 1, key: 2}),
            lambda key: d.setdefault(key, 1),
            lambda key: d.pop(key, 1),
            lambda key: d.compute(key, lambda value: value),
            lambda key: d.compare_and_set(key, 1, 2),
            lambda key: d.edit(key),
            lambda key: d.__ior__([(key, 1)]),
        ]
        for key in (object(), frozenset(), float("nan"), 1j, datetime.date(2020, 1, 1), ("x", 1j)):
            for write in writes:
                with raises(TypeError):
                    write(key)
        for write in writes[:2] + writes[4:9]:
            with raises(TypeError):
                write([])
        assert d.last_updated() == stamp
        self.check(d, {"k": 1})

    def test_falsy_values_and_none_are_ordinary(self) -> None:
        d, b = self.open(), self.reader()
        for number, value in enumerate(FALSY):
            key = str(number)
            d[key] = value
            assert key in self.seen(b)
            assert self.seen(b)[key] == value
            assert b.get(key, "default") == value
            assert d.setdefault(key, "default") == value
            assert d.pop(key, "default") == value
            assert d.setdefault(key, value) == value
            assert d.pop(key) == value
            assert d.pop(key, None) is None
            assert d.pop(key, 0) == 0
        self.check(b, {})

    @needs("aliasing")
    def test_what_is_stored_is_a_copy(self) -> None:
        d, b = self.open(), self.reader()
        value = {"list": [1]}
        d["k"] = value
        d.update(u=value)
        made = d.setdefault("s", value)
        assert made is not value
        value["list"].append(2)
        self.check(d, {"k": {"list": [1]}, "u": {"list": [1]}, "s": {"list": [1]}})
        self.check(b, {"k": {"list": [1]}, "u": {"list": [1]}, "s": {"list": [1]}})
        given = {"x": [1]}
        d.update(given)
        d.replace_all(given)
        given["x"].append(2)
        self.check(d, {"x": [1]})

    def test_the_callers_arguments_are_left_as_they_were(self) -> None:
        d = self.open()
        given = {True: [1], "k": {"a": 1}}
        expected = copy.deepcopy(given)
        d.update(given)
        d.replace_all(given)
        d |= given
        assert d | given == {1: [1], "k": {"a": 1}}
        assert given == expected
        assert [type(key) for key in given] == [bool, str]

    @needs("aliasing")
    def test_a_value_that_cannot_be_encoded_changes_nothing(self) -> None:
        d = self.open()
        d["k"] = 1
        stamp = d.last_updated()
        for bad in (Unpicklable(), Unreadable(), lambda: None, d, self.fresh()):
            with raises(EncodingError, "'bad'"):
                d["bad"] = bad
            with raises(EncodingError, "'bad'"):
                d.setdefault("bad", bad)
            with raises(EncodingError, "'bad'"):
                d.update(bad=bad)
            if "delta" not in self.capabilities:
                continue  # update() is as many writes as it has keys
            with raises(EncodingError, "'bad'"):
                d.update(good=1, bad=bad)
            with raises(EncodingError, "'bad'"):
                d.replace_all({"good": 1, "bad": bad})
        assert d.last_updated() == stamp
        comparisons = self.comparisons(d, lambda: self.check(d, {"k": 1}))
        assert comparisons  # no write in doubt, and still compared

    def test_a_durable_dict_is_no_value(self) -> None:
        d = self.open()
        for bad in (d, self.fresh()):
            with raises(EncodingError, "copy()"):
                d["bad"] = bad
        self.check(d, {})

    # -- writes -------------------------------------------------------------------------------

    def test_each_way_of_writing_reaches_another_client(self) -> None:
        d, b = self.open(), self.reader()
        d["a"] = 1
        self.check(b, {"a": 1})
        d.update({"b": 2}, c=3)
        self.check(b, {"a": 1, "b": 2, "c": 3})
        d.update([("d", 4)])
        d |= {"e": 5}
        d |= [("f", 6)]
        self.check(b, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6})
        del d["a"]
        assert d.pop("b") == 2
        assert d.setdefault("c", 9) == 3
        assert d.setdefault("g", 7) == 7
        self.check(b, {"c": 3, "d": 4, "e": 5, "f": 6, "g": 7})
        key, value = d.popitem()
        assert key not in self.seen(b)
        b[key] = value
        d.replace_all({"c": 3, "h": 8})
        self.check(b, {"c": 3, "h": 8})
        self.check(d, {"c": 3, "h": 8})
        d.clear()
        self.check(b, {})
        self.check(d, {})

    def test_update_takes_what_dict_takes(self) -> None:
        d = self.open()
        d.update()
        d.update({})
        d.update([("a", 1), ("a", 2)], b=3)
        other = self.fresh()
        other["c"] = 4
        assert self.comparisons(other, lambda: d.update(other)) <= 1
        self.check(d, {"a": 2, "b": 3, "c": 4})
        for bad in (42, None, [1], ["abc"]):
            with raises((TypeError, ValueError)):
                d.update(bad)
        with raises(TypeError):
            d.update({}, {})
        with raises(TypeError):
            d |= 5
        self.check(d, {"a": 2, "b": 3, "c": 4})

    def test_zero_items_send_nothing(self) -> None:
        d = self.open()
        d["k"] = 1
        stamp = d.last_updated()
        empties: list[Any] = [{}, [], (), iter([])]
        for empty in empties:
            d.update(empty)
        d |= {}
        assert d.last_updated() == stamp
        d.replace_all({"k": 1})
        self.check(d, {"k": 1})
        d.clear()
        d.clear()
        d.replace_all({})
        self.check(d, {})
        assert self.comparisons(d, lambda: d.update()) == 0

    def test_missing_keys(self) -> None:
        d = self.open()
        reads: list[Any] = [
            lambda: d["x"],
            lambda: d.pop("x"),
            lambda: d.__delitem__("x"),
            d.popitem,
        ]
        for read in reads:
            with raises(KeyError):
                read()
        with raises(KeyError, "'x'"):
            del d["x"]
        assert d.get("x") is None
        assert d.get("x", 1) == d.pop("x", 1) == 1
        with raises(TypeError):
            d.pop("x", 1, 2)
        assert "x" not in d
        self.check(d, {})

    @needs("shared")
    def test_a_write_decides_by_what_the_store_holds_not_by_the_local_copy(self) -> None:
        """A manual dict has not heard of the other client's writes; its own still meet them."""
        a, b = self.open(autosync=False), self.reader()
        b["added"] = 1
        assert a.setdefault("added", 2) == 1
        b["popped"] = 3
        assert a.pop("popped", None) == 3
        b["deleted"] = 4
        del a["deleted"]
        a["gone"] = 5
        del self.seen(b)["gone"]
        with raises(KeyError):
            del a["gone"]
        assert "gone" not in a
        a["gone"] = 5
        del self.seen(b)["gone"]
        assert a.pop("gone", "default") == "default"
        assert "gone" not in a
        b["cleared"] = 6
        a.clear()
        self.check(b, {})
        b["replaced"] = 7
        a.replace_all({"k": 1})
        self.check(b, {"k": 1})
        self.check(a, {"k": 1})

    def test_popitem_takes_every_item_once(self) -> None:
        d, b = self.open(), self.reader()
        expected = {str(number): number for number in range(20)}
        d.update(expected)
        taken: dict[Any, Any] = {}
        while True:
            try:
                key, value = (d if len(taken) % 2 else self.seen(b)).popitem()
            except KeyError:
                break
            assert key not in taken
            taken[key] = value
        assert taken == expected
        self.check(d, {})

    # -- read-modify-write --------------------------------------------------------------------

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

    # -- copies and merges --------------------------------------------------------------------

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

    # -- one bad value ------------------------------------------------------------------------

    def spoil(self, d: Any, key: Any) -> DecodingError:
        """Make the payload of one key one that this client cannot decode."""
        error = DecodingError(f"the value of key {key!r} cannot be decoded: spoilt")
        fetched, changes, durables = d._fetch, d.changes, d.durables

        def noted(entries: Any) -> Any:
            return {k: Undecodable(error) if k == key else v for k, v in entries.items()}

        def spoilt_changes(since: Any) -> Any:
            found = changes(since)
            return (
                None
                if found is None
                else type(found)(found.stamp, noted(found.written), found.removed)
            )

        def spoilt_fetch(k: Any) -> Any:
            value, proof = fetched(k)
            return (Undecodable(error) if k == key and value is not MISSING else value), proof

        d.durables = lambda: noted(durables())
        d.changes = spoilt_changes
        if "compare_and_set" in self.capabilities:
            d._fetch = spoilt_fetch
        return error

    def test_one_bad_value_harms_one_key(self) -> None:
        for autosync in (True, 3600.0, False):
            d = self.open(autosync=autosync)
            d.update(good=1, bad=2)
            self.spoil(d, "bad")
            with self.logged() as records:
                d.sync(force=True)
                d.sync(force=True)
            assert len(records) == 1
            assert "'bad'" in records[0].getMessage()
            assert list(d.undecodable) == ["bad"]
            reads: list[Any] = [
                lambda d: d["bad"],
                lambda d: d.get("bad"),
                lambda d: "bad" in d,
                lambda d: d.setdefault("bad", 3),
                lambda d: d.pop("bad"),
                lambda d: d.pop("bad", None),
            ]
            if "compare_and_set" in self.capabilities:
                reads += [
                    lambda d: d.compute("bad", lambda value: value),
                    lambda d: d.compare_and_set("bad", MISSING, 1),
                    lambda d: d.edit("bad").__enter__(),
                ]
            for read in reads:
                with raises(DecodingError, "'bad'"):
                    read(d)
            assert d["good"] == 1
            assert d.get("absent") is None
            assert (len(d), list(d), d.copy(), list(d.items())) == (
                1, ["good"], {"good": 1}, [("good", 1)],
            )  # fmt: skip
            d["good"] = 5
            assert d["good"] == 5
            assert d.popitem() == ("good", 5)
            with raises(KeyError):
                d.popitem()
            del d["bad"]
            assert not d.undecodable
            assert "bad" not in d
            with raises(KeyError):
                d["bad"]

    def test_a_bad_value_can_be_replaced_and_cleared(self) -> None:
        mends: list[Any] = [
            lambda d: d.clear(),
            lambda d: d.replace_all({"k": 1}),
            lambda d: d.__delitem__("bad"),
        ]
        for mend in mends:
            d = self.open(autosync=False)
            d["bad"] = 2
            self.spoil(d, "bad")
            d.sync(force=True)
            assert list(d.undecodable) == ["bad"]
            mend(d)
            assert not d.undecodable
            assert "bad" not in d
            d.sync(force=True)
            assert not d.undecodable
            d.clear()
        d = self.open(autosync=False)
        d["bad"] = 2
        original = d.durables
        self.spoil(d, "bad")
        d.sync(force=True)
        for name in ("durables", "changes", "_fetch"):
            vars(d).pop(name, None)
        assert d.durables() == original() == {"bad": 2}
        d["bad"] = 3
        assert not d.undecodable
        assert d["bad"] == 3

    # -- closing ------------------------------------------------------------------------------

    def test_after_close_reads_go_on_and_writes_do_not(self) -> None:
        for autosync in (True, 3600.0, False):
            with self.open(autosync=autosync) as d:
                d.clear()
                d["k"] = 1
                d.watch(interval=3600.0)
            assert (d["k"], d.get("k"), "k" in d, len(d), list(d), d.copy()) == (
                1, 1, True, 1, ["k"], {"k": 1},
            )  # fmt: skip
            actions: list[Any] = [
                lambda d=d: d.sync(),
                lambda d=d: d.__setitem__("k", 2),
                lambda d=d: d.__delitem__("k"),
                lambda d=d: d.update(k=2),
                lambda d=d: d.update(),
                lambda d=d: d.setdefault("k", 2),
                lambda d=d: d.pop("k"),
                lambda d=d: d.popitem(),
                lambda d=d: d.clear(),
                lambda d=d: d.replace_all({}),
                lambda d=d: d.watch(),
                lambda d=d: d.migrate(),
            ]
            for action in actions:
                with raises(RuntimeError, "closed"):
                    action()
            d.close()
        assert self.other(self.open()) == {"k": 1}

    def test_migrate_rewrites_everything(self) -> None:
        d, b = self.open(), self.reader()
        entries = {"a": 1, "b": [2], 3: None}
        d.update(entries)
        stamp = d.last_updated()
        assert d.migrate() == 3
        assert d.last_updated() != stamp
        self.check(d, entries)
        self.check(b, entries)

    def test_override(self) -> None:
        from .overriding import override

        d, b = self.open(), self.reader()
        d.update(a=1, b=2)
        stamp = d.last_updated()
        with override(d, {"c": 3}, a="over", b=MISSING) as shown:
            assert shown is d
            assert d["a"] == "over"
            assert "b" not in d
            assert dict(d.items()) == d.copy() == {"a": "over", "c": 3}
            with override(d, a="inner"):
                assert d["a"] == "inner"
            assert d["a"] == "over"
            assert d.last_updated() == stamp
            self.seen(b)["a"] = 5
            b["b"] = 6
            b["d"] = 7
            d.sync()
            assert d.copy() == {"a": "over", "c": 3, "d": 7}
            d.sync(force=True)
            assert d.copy() == {"a": "over", "c": 3, "d": 7}
            assert b["a"] == 5
        self.check(d, {"a": 5, "b": 6, "d": 7})

        @override(d, a="decorated")
        def read() -> Any:
            return d["a"]

        assert read() == "decorated"
        assert d["a"] == 5
        with raises(ZeroDivisionError), override(d, a=0):
            raise ZeroDivisionError
        self.check(d, {"a": 5, "b": 6, "d": 7})
        with raises(TypeError):
            override({}, a=1)

    def test_many_threads_may_use_one_dict(self) -> None:
        d = self.open()
        d["k"] = 1
        assert in_thread(lambda: d["k"]) == 1
        in_thread(lambda: d.update(l=2))
        assert d["l"] == 2
