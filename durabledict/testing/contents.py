"""The suite: a durable dict is a dict, and what it holds is what was stored."""

from __future__ import annotations

import copy
import datetime
import enum
import json
from typing import Any

from ..errors import EncodingError
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
    """What is in the dict: keys and values, with one client, and as a second client sees them."""

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
        syncing = self.open(autosync=3600.0)
        assert per_key <= set(vars(type(syncing)))

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

    def test_many_threads_may_use_one_dict(self) -> None:
        d = self.open()
        d["k"] = 1
        assert in_thread(lambda: d["k"]) == 1
        in_thread(lambda: d.update(l=2))
        assert d["l"] == 2
