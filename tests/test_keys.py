"""Keys to text and back."""

from __future__ import annotations

import enum
import json
import math
import sys
import time
from collections import namedtuple
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from durabledict.keys import canonical_key, decode_key, encode_key

# A busy machine is no failure of the code.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ANY_TEXT = st.text(st.characters())  # lone surrogates included
VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.one_of(
    ANY_TEXT,
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.binary(),
    st.sampled_from(["~none", "~int:1", "~int:01", "~tuple:[]", '~str:"~none"', "~", "~str:"]),
)
KEYS = st.recursive(SCALARS, lambda keys: st.lists(keys, max_size=4).map(tuple), max_leaves=12)
TAGGED_TEXT = st.builds(
    "{}{}{}".format,
    st.sampled_from(["~int", "~float", "~none", "~bytes", "~tuple", "~str", "~utf8", "~"]),
    st.sampled_from([":", "", "::", ":["]),
    st.one_of(
        VALID_TEXT,
        st.text("0123456789abcdefx-+._ e"),
        st.integers().map(str),
        st.floats().map(repr),
        st.binary().map(bytes.hex),
        st.text('[]"\\~int:1,{}u0'),
        st.recursive(st.text("~int:1"), st.lists).map(json.dumps),
    ),
)


class Color(str, enum.Enum):
    RED = "red"
    TAG = "~int:1"


class Level(enum.IntEnum):
    LOW = 1


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


class PlainEnumeration(enum.Enum):
    RED = "red"


class Text(str):
    def __str__(self) -> str:
        return "something else"


class Number(int):
    pass


class Ratio(float):
    pass


class Data(bytes):
    def __bytes__(self) -> bytes:
        return b"something else"


class CaseInsensitive(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class Unequal(int):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = int.__hash__


class HashedElsewhere(tuple[Any, ...]):
    def __hash__(self) -> int:
        return 7


Point = namedtuple("Point", "x y")

CANONICAL: list[tuple[Any, Any]] = [
    ("a/b", "a/b"),
    (7, 7),
    (True, 1),
    (False, 0),
    (1.0, 1),
    (-0.0, 0),
    (1.5, 1.5),
    (1e300, int(1e300)),
    (math.inf, math.inf),
    (-math.inf, -math.inf),
    (None, None),
    (b"\x00\xff", b"\x00\xff"),
    ((), ()),
    ((True, (2.0, "x"), None), (1, (2, "x"), None)),
    (Color.RED, "red"),
    (Level.LOW, 1),
    (Permission.READ | Permission.WRITE, 3),
    (Text("x"), "x"),
    (Number(5), 5),
    (Ratio(2.0), 2),
    (Ratio(2.5), 2.5),
    (Data(b"x"), b"x"),
    (Point(1.0, Color.RED), (1, "red")),
]


def exactly(key: Any) -> Any:
    """Return `key` with its types, which `==` alone would not compare."""
    if isinstance(key, tuple):
        return tuple, tuple(exactly(item) for item in key)
    return type(key), repr(key)


@pytest.mark.parametrize(("key", "canonical"), CANONICAL, ids=repr)
def test_canonical_key(key: Any, canonical: Any) -> None:
    result = canonical_key(key)
    assert exactly(result) == exactly(canonical)
    assert result == key
    assert hash(result) == hash(key)
    assert {result: 1}[key] == 1
    assert encode_key(key) == encode_key(canonical)
    assert exactly(decode_key(encode_key(key))) == exactly(canonical)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ([1], "'list'"),
        ({}, "'dict'"),
        (object(), "'object'"),
        (Decimal(1), "'Decimal'"),
        (1 + 0j, "'complex'"),
        (bytearray(b"x"), "'bytearray'"),
        (frozenset(), "'frozenset'"),
        (PlainEnumeration.RED, "'PlainEnumeration'"),
        (CaseInsensitive("X"), "'CaseInsensitive'"),
        (Unequal(1), "'Unequal'"),
        (HashedElsewhere((1,)), "'HashedElsewhere'"),
        (float("nan"), "NaN"),
        (Ratio("nan"), "NaN"),
        ((1, (2, [3])), "'list'"),
        ((1, float("nan")), "NaN"),
    ],
    ids=lambda value: type(value).__name__,  # the same in each process: no addresses
)
@pytest.mark.parametrize("function", [canonical_key, encode_key])
def test_unsupported_keys_are_type_errors_that_name_the_type(
    function: Any, key: Any, name: str
) -> None:
    with pytest.raises(TypeError, match=name):
        function(key)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("", ""),
        ("a/b\x00\n", "a/b\x00\n"),
        ("caf\xe9 \U0001f600", "caf\xe9 \U0001f600"),
        ("~", "~"),
        ("~home", "~home"),
        ("~int:01", "~int:01"),
        (1, "~int:1"),
        (-12, "~int:-12"),
        (2**2048 - 1, f"~int:{2**2048 - 1}"),
        (2**2048, f"~int:{2**2048:#x}"),
        (-(2**2048), f"~int:{-(2**2048):#x}"),
        (1.5, "~float:1.5"),
        (math.inf, "~float:inf"),
        (None, "~none"),
        (b"", "~bytes:"),
        (b"\x00\xff", "~bytes:00ff"),
        ((), "~tuple:[]"),
        ((1, "a", ("b", None)), '~tuple:["~int:1","a",["b","~none"]]'),
        (("caf\xe9", "~int:1"), '~tuple:["caf\\u00e9","~str:\\"~int:1\\""]'),
        ("~int:1", '~str:"~int:1"'),
        ("~none", '~str:"~none"'),
        ('~str:"~int:1"', '~str:"~str:\\"~int:1\\""'),
        ("\ud800", '~str:"\\ud800"'),
        ("\ud83d\ude00", "~utf8:eda0bdedb880"),
    ],
)
def test_encoded_form(key: Any, text: str) -> None:
    assert encode_key(key) == text
    assert exactly(decode_key(text)) == exactly(key)


@relaxed
@given(KEYS)
@example("\ud83d\ude00")
@example(("\ud83d\ude00", "\U0001f600\ud800"))
def test_every_key_comes_back(key: Any) -> None:
    text = encode_key(key)
    text.encode("utf-8")
    assert exactly(decode_key(text)) == exactly(canonical_key(key))


@relaxed
@given(st.one_of(VALID_TEXT, TAGGED_TEXT, KEYS.map(encode_key)))
def test_every_text_comes_back(text: str) -> None:
    assert encode_key(decode_key(text)) == text


@relaxed
@given(KEYS, KEYS)
@example(1, True)
@example((1.0, 0), (True, -0.0))
@example(1e300, int(1e300))
@example(1, "1")
@example("~int:1", 1)
@example("~none", None)
@example(b"1", "1")
@example(("a",), ("a", ()))
def test_equal_keys_and_only_those_share_a_text(one: Any, other: Any) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)


@relaxed
@given(KEYS)
def test_canonical_key_equals_the_key_and_is_its_own(key: Any) -> None:
    canonical = canonical_key(key)
    assert canonical == key
    assert hash(canonical) == hash(key)
    assert exactly(canonical_key(canonical)) == exactly(canonical)


@pytest.mark.parametrize(
    "text",
    [
        "~int:",
        "~int:1 ",
        "~int:+1",
        "~int:1_0",
        "~int:-0",
        "~int:0x10",
        "~int:\u0661",
        "~int:" + "9" * 700,
        "~int:" + "9" * 1_000_000,
        "~float:1.0",
        "~float:1e5",
        "~float:nan",
        "~float:Infinity",
        "~float:1.50",
        "~none:",
        "~None",
        "~bytes:0",
        "~bytes:AB",
        "~bytes:00 ff",
        "~bytes:zz",
        "~str:x",
        '~str:"x"',
        '~str:"\\u007eint:1"',
        "~str:[]",
        "~str:1",
        "~tuple:",
        "~tuple:[1]",
        "~tuple:[null]",
        "~tuple:{}",
        "~tuple:1",
        "~tuple:null",
        '~tuple:"x"',
        '~tuple:["x", "y"]',
        '~tuple:["~tuple:[]"]',
        '~tuple:["caf\xe9"]',
        "~tuple:[NaN]",
        "~tuple:[" + "1" * 5000 + "]",
        "~utf8:" + b"plain".hex(),
        "~utf8:eda080",
        "~utf8:ff",
        "~tuple:" + "[" * 65 + "]" * 65,
        "~tuple:" + "[" * 1_000_000,
        "~tuple:" + '[{"a":' * 100_000,
        "~tuple:" + '{"a":' * 100_000,
        '~tuple:["' + '\\"[' * 300_000,
        '~str:"' + '\\"[' * 300_000,
    ],
    ids=lambda text: text[:24],
)
def test_what_is_not_canonical_is_plain_text(text: str) -> None:
    assert decode_key(text) == text
    assert encode_key(text) == text


def quote_without_growth(text: str) -> str:
    """Return a JSON string whose quotes, unlike canonical ones, do not double at each level."""
    escaped = text.replace("\\", "\\u005c").replace('"', "\\u0022")
    return f'"{escaped}"'


@pytest.mark.parametrize("tag", ["~str:{}", "~tuple:[{}]"])
@pytest.mark.parametrize("escape", [json.dumps, quote_without_growth])
def test_tags_within_tags_take_no_exponential_time(tag: str, escape: Any) -> None:
    text = "~int:1"
    while len(text) < 100_000:
        text = tag.format(escape(text))
    started = time.process_time()
    assert encode_key(decode_key(text)) == text
    assert time.process_time() - started < 10


def test_tuples_have_a_depth_limit_that_does_not_depend_on_the_stack() -> None:
    key: tuple[Any, ...] = ()
    for _ in range(63):
        key = (key,)
    assert decode_key(encode_key(key)) == key
    for function in (canonical_key, encode_key):
        with pytest.raises(TypeError, match="64 deep"):
            function((key,))
    # Brackets within strings are not depth.
    assert decode_key(encode_key(("[" * 100 + '\\"', "{" * 100))) == ("[" * 100 + '\\"', "{" * 100)


def test_nested_tuples_do_not_grow_by_quoting() -> None:
    key: tuple[Any, ...] = ('"',)
    for _ in range(40):
        key = (key,)
    assert len(encode_key(key)) < 120


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="no limit in this Python")
def test_large_integers_do_not_depend_on_the_limit_for_decimals() -> None:
    keys = [10**700, -(10**5000), 2**2047, -(2**2048) + 1, 10**616]
    texts = [encode_key(key) for key in keys]
    before = sys.get_int_max_str_digits()
    try:
        for limit in (640, 0):
            sys.set_int_max_str_digits(limit)
            assert [encode_key(key) for key in keys] == texts
            assert [decode_key(text) for text in texts] == keys
            started = time.process_time()
            for digits in (5000, 2_000_000):
                assert decode_key("~int:" + "9" * digits) == "~int:" + "9" * digits
            assert time.process_time() - started < 2
    finally:
        sys.set_int_max_str_digits(before)


def test_str_and_int_come_back_themselves() -> None:
    text, number = "a" * 1000, 10**20
    assert canonical_key(text) is text
    assert encode_key(text) is text
    assert decode_key(text) is text
    assert canonical_key(number) is number
