"""Values to bytes and back; what hostile and damaged payloads do, and do not."""

from __future__ import annotations

import base64
import collections
import copy
import copyreg
import dataclasses
import datetime
import decimal
import enum
import hashlib
import hmac
import importlib
import json
import math
import os
import pickle
import shlex
import traceback
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import durabledict
from durabledict import basicencodings, encoding
from durabledict.encoding import (
    CompressedEncoding,
    DefaultEncoding,
    Encoder,
    JSONEncoding,
    NoOpEncoding,
    PickleEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
)
from durabledict.errors import DecodingError, EncoderError, EncodingError

# A busy machine is no failure of the code.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

OLD_PAYLOADS = json.loads(
    (Path(__file__).parent / "data" / "durabledict-0.9-payloads.json").read_text()
)["cases"]
OLD_MODULES = {"datetime": datetime, "decimal": decimal, "collections": collections}
OLD_CLASSES = [
    datetime.datetime,
    datetime.date,
    decimal.Decimal,
    collections.OrderedDict,
]


class Color(enum.Enum):
    RED = 1


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Rule:
    name: str
    limit: int = 0

    class Inner:
        pass


class Slotted:
    __slots__ = ("value",)


class Stateful:
    calls: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        self.calls.append(state)


def helper() -> str:
    return "called"


def slotted() -> type:
    return Slotted


class OldStyle:
    def __reduce__(self) -> Any:
        return object.__reduce__(self)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Any str that JSON can carry; the others are tested on their own.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=4)
    ),
    max_leaves=12,
)
PICKLE_VALUES = st.recursive(
    JSON_VALUES
    | st.text(st.characters())
    | st.binary()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.frozensets(st.integers(), max_size=1)  # one item, so that `repr` tells sets apart
    | st.binary().map(bytearray),
    lambda values: st.lists(values, max_size=4).map(tuple) | st.lists(values, max_size=4),
    max_leaves=8,
)
PICKLES: list[Any] = [
    PickleEncoding,
    PickleEncoding(),
    RestrictedPickleEncoding(),
    SignedEncoding("secret"),
    SignedEncoding(b"secret").bind("keyspace", ("key", 1)),
    SignedEncoding(["new", b"old"], RestrictedPickleEncoding()),
    CompressedEncoding(),
    CompressedEncoding(minimum=0, level=9),
    SignedEncoding("secret", CompressedEncoding(minimum=0)).bind("keyspace", "key"),
    CompressedEncoding(SignedEncoding("secret"), minimum=0).bind("keyspace", "key"),
]
JSONS: list[Any] = [
    JSONEncoding,
    JSONEncoding(),
    SignedEncoding("secret", JSONEncoding),
    CompressedEncoding(JSONEncoding(), minimum=0),
    CompressedEncoding(SignedEncoding("secret", JSONEncoding()), minimum=0),
]


def exactly(value: Any) -> str:
    return f"{type(value)} {value!r}"


# Every encoding


@pytest.mark.parametrize("codec", PICKLES, ids=repr)
@relaxed
@given(value=PICKLE_VALUES)
@example(value="x" * 1000)
def test_pickled_values_come_back(codec: Any, value: Any) -> None:
    payload = codec.encode(value)
    assert type(payload) is bytes
    assert exactly(codec.decode(payload)) == exactly(value)
    assert exactly(codec.decode(memoryview(payload))) == exactly(value)
    assert exactly(codec.decode(bytearray(payload))) == exactly(value)


@pytest.mark.parametrize("codec", JSONS, ids=repr)
@relaxed
@given(value=JSON_VALUES)
@example(value="x" * 1000)
@example(value="\U0001f600")
def test_json_values_come_back(codec: Any, value: Any) -> None:
    assert exactly(codec.decode(codec.encode(value))) == exactly(value)


@pytest.mark.parametrize("codec", PICKLES + JSONS, ids=repr)
@relaxed
@given(value=PICKLE_VALUES)
@example(value="\ud800")
@example(value="\ud83d\ude00")
@example(value="\U0001f600")
@example(value=math.inf)
@example(value=-0.0)
def test_immutable_types_need_no_decoding(codec: Any, value: Any) -> None:
    if type(value) in codec.immutable:
        try:
            payload = codec.encode(value)
        except EncodingError:
            return
        assert exactly(codec.decode(payload)) == exactly(value)


def test_which_types_need_no_decoding() -> None:
    plain = {int, str, float, bool, type(None)}
    assert PickleEncoding.immutable == plain | {bytes}
    assert RestrictedPickleEncoding().immutable == plain | {bytes}
    assert JSONEncoding.immutable == plain
    assert SignedEncoding("secret", JSONEncoding).immutable == plain
    assert CompressedEncoding().immutable == plain | {bytes}


def test_the_default_is_pickle() -> None:
    assert DefaultEncoding is PickleEncoding


@pytest.mark.parametrize("name", encoding.__all__)
def test_every_encoding_is_found_where_it_is_documented(name: str) -> None:
    assert getattr(durabledict, name) is getattr(encoding, name)
    # Also by a pickle that holds an encoding, wherever in the package its class stands now.
    named = b"\x80\x02cdurabledict.encoding\n" + name.encode() + b"\n."
    assert pickle.loads(named) is getattr(encoding, name)
    assert pickle.loads(pickle.dumps(getattr(encoding, name))) is getattr(encoding, name)


@pytest.mark.parametrize("codec", [*PICKLES, *JSONS, NoOpEncoding, NoOpEncoding()], ids=repr)
def test_every_encoding_is_an_encoder(codec: Any) -> None:
    assert isinstance(codec, Encoder)
    assert not isinstance(object(), Encoder)


@pytest.mark.parametrize(
    ("codec", "text", "aliases", "executes_code"),
    [
        (PickleEncoding, False, False, True),
        (RestrictedPickleEncoding(), False, False, False),
        (JSONEncoding, True, False, False),
        (NoOpEncoding, None, True, False),
        (SignedEncoding("secret"), False, False, False),
        (SignedEncoding("secret", JSONEncoding), False, False, False),
        (CompressedEncoding(), False, False, True),
        (CompressedEncoding(JSONEncoding), False, False, False),
        (CompressedEncoding(SignedEncoding("secret")), False, False, False),
        (CompressedEncoding(NoOpEncoding), False, False, False),
    ],
    ids=repr,
)
def test_what_a_dict_reads_of_an_encoding(
    codec: Any, text: bool | None, aliases: bool, executes_code: bool
) -> None:
    assert codec.text is text
    assert codec.aliases is aliases
    assert codec.executes_code is executes_code


def test_which_encodings_refuse_what_is_not_signed() -> None:
    signed = SignedEncoding("secret")
    for codec in (signed, signed.bind("a", "b"), CompressedEncoding(signed)):
        assert codec.signs is True
    others: list[Any] = [PickleEncoding, RestrictedPickleEncoding(), JSONEncoding]
    for other in (*others, CompressedEncoding()):
        assert other.signs is False


def test_readable_repr() -> None:
    assert repr(PickleEncoding()) == "PickleEncoding()"
    assert repr(JSONEncoding()) == "JSONEncoding()"
    assert repr(NoOpEncoding()) == "NoOpEncoding()"
    assert repr(RestrictedPickleEncoding([decimal.Decimal, "a.B"])) == (
        "RestrictedPickleEncoding(allow=['decimal.Decimal', 'a.B'])"
    )
    assert repr(CompressedEncoding()) == "CompressedEncoding(inner=PickleEncoding)"
    assert repr(SignedEncoding("x", CompressedEncoding(JSONEncoding()))) == (
        "SignedEncoding(inner=CompressedEncoding(inner=JSONEncoding()))"
    )


# PickleEncoding


def test_pickle_protocol_is_fixed() -> None:
    assert PickleEncoding.encode(1)[:2] == b"\x80\x05"
    assert RestrictedPickleEncoding().encode(1)[:2] == b"\x80\x05"


@pytest.mark.parametrize("case", OLD_PAYLOADS, ids=lambda case: case["name"])
@pytest.mark.parametrize(
    "codec", [PickleEncoding, RestrictedPickleEncoding(OLD_CLASSES)], ids=["any", "restricted"]
)
def test_what_0_9_wrote_is_read(codec: Any, case: dict[str, str]) -> None:
    expected = eval(case["expected"], dict(OLD_MODULES))
    text = case["payload"]
    for payload in (text, text.encode(), text.replace("\n", "\r\n"), text.replace("\n", "")):
        assert exactly(codec.decode(payload)) == exactly(expected)
    # The pickle itself, as somebody may have stored it without the base64.
    assert exactly(codec.decode(base64.b64decode(text))) == exactly(expected)


def test_all_of_what_0_9_wrote_was_tried() -> None:
    assert len(OLD_PAYLOADS) == 16


def test_time_of_python_2_whose_state_happens_to_be_utf_8() -> None:
    # Microseconds of 0x03C3A9 make "\xe9" of two bytes, and the state one character too short.
    payload = b"\x80\x02cdatetime\ntime\nU\x06\x0c\x1e\x01\x03\xc3\xa9\x85R."
    expected = datetime.time(12, 30, 1, 0x03C3A9)
    assert PickleEncoding.decode(payload) == expected
    assert RestrictedPickleEncoding([datetime.time]).decode(payload) == expected


def test_errors_of_new_pickles_are_not_tried_again() -> None:
    calls = []

    def loads(payload: bytes, *, encoding: str) -> None:
        calls.append(encoding)
        raise TypeError("an error of the class itself")

    with pytest.raises(TypeError, match="itself"):
        basicencodings.load_pickle(PickleEncoding.encode(1), loads)
    assert calls == ["utf-8"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        "",
        b"hello",
        "hello",
        "caf\xe9",
        b"7",
        b'{"a": 1}',
        b"I7\n.",  # a pickle of protocol 0
        b"gAJL!By4=",
        b"gAJLBy4",  # no padding
        base64.b64encode(b"not a pickle"),
        b"\x01" + bytes(40),
    ],
)
@pytest.mark.parametrize("codec", [PickleEncoding, RestrictedPickleEncoding()], ids=repr)
def test_what_is_no_pickle(codec: Any, payload: Any) -> None:
    with pytest.raises(DecodingError, match="not a pickle"):
        codec.decode(payload)


def test_damaged_pickles_are_errors() -> None:
    whole = PickleEncoding.encode({"a": [1, 2.5, "x"]})
    for end in range(len(whole)):
        for codec in (PickleEncoding, RestrictedPickleEncoding()):
            with pytest.raises((pickle.UnpicklingError, EOFError, DecodingError)):
                codec.decode(whole[:end])


def test_what_does_not_pickle_raises() -> None:
    for codec in (PickleEncoding, RestrictedPickleEncoding(), SignedEncoding("secret")):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            codec.encode(lambda: None)


# Hostile pickles


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def hostile_pickles(command: str) -> dict[str, bytes]:
    line = command.encode()
    call = b"X" + len(line).to_bytes(4, "little") + line + b"\x85R."
    pickles = {
        f"REDUCE, protocol {protocol}": pickle.dumps(Hostile(command), protocol)
        for protocol in range(2, 6)
    }
    return {
        **pickles,
        "GLOBAL": b"\x80\x02cos\nsystem\n" + call,
        "GLOBAL, protocol 4": b"\x80\x04cos\nsystem\n" + call,
        "STACK_GLOBAL": b"\x80\x04" + short("os") + short("system") + b"\x93" + call,
        "dotted STACK_GLOBAL": b"\x80\x04" + short("shutil") + short("os.system") + b"\x93" + call,
        "attribute of an allowed module": (
            b"\x80\x04" + short("dataclasses") + short("sys.modules") + b"\x930"
            + short("os") + short("system") + b"\x93" + call
        ),
        "builtins": b"\x80\x02c__builtin__\neval\n"
        + b"X" + (len(line) + 35).to_bytes(4, "little")
        + b"__import__('os').system(" + repr(command).encode() + b")"
        + b" " * (35 - 27) + b"\x85R.",
        "INST": b"\x80\x02(S'" + line.replace(b"'", b"\\'") + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\nX" + len(line).to_bytes(4, "little") + line + b"o.",
        "BUILD": (
            # An object whose __setstate__ is made os.system, by way of its own dictionary.
            b"\x80\x04" + short(__name__) + short("Rule") + b"\x93)\x81"
            + b"}" + short("__setstate__") + short("os") + short("system") + b"\x93sb"
            + b"X" + len(line).to_bytes(4, "little") + line + b"b."
        ),
        "getattr": (
            b"\x80\x04" + short("builtins") + short("getattr") + b"\x93"
            + b"cos\n_wrap_close\n" + short("__init__") + b"\x86R"
            + b"0cos\nsystem\n" + call
        ),
        "two protocols": b"\x80\x02\x80\x04cos\nsystem\n" + call,
        "in base64": base64.encodebytes(pickle.dumps(Hostile(command), 2)),
        "within a container": pickle.dumps({"a": [Hostile(command)]}, 5),
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile_pickles("true"))
def test_hostile_pickles_run_nothing(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = hostile_pickles(f"touch {shlex.quote(str(marker))}")[name]
    allowed = RestrictedPickleEncoding([Rule, Color, dataclasses.Field, "shutil.Error"])
    for codec in (
        RestrictedPickleEncoding(),
        allowed,
        CompressedEncoding(allowed),
        SignedEncoding("secret"),
        SignedEncoding("secret", CompressedEncoding()),
    ):
        for header in (b"", b"\x01", b"\x02", b"\x03", b"\x01" + bytes(32)):
            with pytest.raises(DecodingError):
                codec.decode(header + payload)
    assert not marker.exists()
    # The payload does what it is feared for, or these tests would show nothing.
    PickleEncoding.decode(payload)
    assert marker.exists()


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02c__builtin__\neval\n.", "builtins.eval"),
        (b"\x80\x04" + short("shutil") + short("os.system") + b"\x93.", "shutil.os.system"),
        (b"\x80\x04" + short("datetime") + short("datetime.now") + b"\x93.", "datetime.now"),
        (b"\x80\x04" + short("copyreg") + short("_reconstructor") + b"\x93.", "_reconstructor"),
        (b"\x80\x02ccopy_reg\n_reconstructor\n.", "copyreg._reconstructor"),
        (b"\x80\x04" + short("") + short("datetime.datetime") + b"\x93.", "datetime.datetime"),
    ],
)
def test_a_refusal_names_what_it_refused_and_how_to_allow_it(payload: bytes, name: str) -> None:
    with pytest.raises(DecodingError, match="allow=") as caught:
        RestrictedPickleEncoding([datetime.datetime]).decode(payload)
    assert name in str(caught.value)


def test_what_is_refused_is_not_imported(tmp_path: Path, monkeypatch: Any) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    payload = b"\x80\x04" + short("hostile_module") + short("x") + b"\x93."
    with pytest.raises(DecodingError):
        RestrictedPickleEncoding([Rule]).decode(payload)
    assert not marker.exists()
    importlib.import_module("hostile_module")
    assert marker.exists()


def test_persistent_ids_are_refused() -> None:
    for payload in (b"\x80\x02Pname\n.", b"\x80\x04" + short("name") + b"Q."):
        for allow in ([], [Rule]):
            with pytest.raises(DecodingError, match="persistent"):
                RestrictedPickleEncoding(allow).decode(payload)
            # After a class, which only the unpickler written in Python loads.
            rule = f"c{__name__}\nRule\n0".encode() if allow else b""
            with pytest.raises(DecodingError, match="persistent"):
                RestrictedPickleEncoding(allow).decode(payload[:2] + rule + payload[2:])


@pytest.mark.parametrize("known", [False, True], ids=["first use", "in the cache of pickle"])
def test_extension_codes_are_refused_unless_allowed(known: bool) -> None:
    payloads = [b"\x80\x02\x82\xf0.", b"\x80\x02\x83\xf0\x00.", b"\x80\x02\x84\xf0\x00\x00\x00."]
    for payload in payloads:
        with pytest.raises(ValueError, match="extension code"):
            RestrictedPickleEncoding([Rule]).decode(payload)
    copyreg.add_extension(__name__, "helper", 0xF0)
    try:
        if known:
            assert PickleEncoding.decode(payloads[0]) is helper
        for payload in payloads:
            with pytest.raises(DecodingError, match="helper"):
                RestrictedPickleEncoding([Rule]).decode(payload)
            with pytest.raises(DecodingError, match="extension code 241"):
                RestrictedPickleEncoding([Rule]).decode(payload.replace(b"\xf0", b"\xf1"))
            allowed = RestrictedPickleEncoding([f"{__name__}.helper"])
            assert allowed.decode(payload) is helper
    finally:
        copyreg.remove_extension(__name__, "helper", 0xF0)


def test_a_payload_cannot_change_an_allowed_class() -> None:
    for kind in ("Rule", "Slotted", "Stateful", "Color"):
        found = short(__name__) + short(kind) + b"\x93"
        for state in (
            b"}" + short("limit") + b"K\x07s",
            b"N}" + short("limit") + b"K\x07s\x86",
        ):
            payload = b"\x80\x04" + found + state + b"b."
            with pytest.raises(DecodingError, match="would change"):
                RestrictedPickleEncoding([Rule, Slotted, Stateful, Color]).decode(payload)
    assert Rule.limit == 0
    assert not hasattr(Color, "limit")
    assert Stateful.calls == []
    # It would, without the guard.
    PickleEncoding.decode(
        b"\x80\x04" + short(__name__) + short("Slotted") + b"\x93"
        b"N}" + short("limit") + b"K\x07s\x86b."
    )
    assert Slotted.limit == 7  # type: ignore[attr-defined]  # the payload has set it
    del Slotted.limit  # type: ignore[attr-defined]  # as above


def test_a_payload_cannot_change_members_of_enumerations_or_functions() -> None:
    red = short(__name__) + short("Color") + b"\x93K\x01\x85R"
    state = b"}" + short("_value_") + b"K\x07sb."
    with pytest.raises(DecodingError, match="would change"):
        RestrictedPickleEncoding([Color]).decode(b"\x80\x04" + red + state)
    assert Color.RED.value == 1
    function = short(__name__) + short("helper") + b"\x93"
    with pytest.raises(DecodingError, match="would change"):
        RestrictedPickleEncoding([f"{__name__}.helper"]).decode(b"\x80\x04" + function + state)
    assert not vars(helper)
    # A class that an allowed function returned is not the payload's own either.
    result = short(__name__) + short("slotted") + b"\x93)R"
    state = b"N}" + short("limit") + b"K\x07s\x86b."
    with pytest.raises(DecodingError, match="would change"):
        RestrictedPickleEncoding([f"{__name__}.slotted"]).decode(b"\x80\x04" + result + state)
    assert not hasattr(Slotted, "limit")


def test_classes_of_builtin_types_cannot_be_changed_either() -> None:
    for kind in (set, frozenset, complex, bytearray, datetime.datetime, decimal.Decimal):
        payload = b"\x80\x04" + short(kind.__module__) + short(kind.__qualname__) + b"\x93"
        payload += b"N}" + short("extra") + b"K\x07s\x86b."
        with pytest.raises((TypeError, DecodingError)):
            RestrictedPickleEncoding([datetime.datetime, decimal.Decimal]).decode(payload)
        assert not hasattr(kind, "extra")


VALUES = [
    Color.RED,
    Permission.READ | Permission.WRITE,
    Rule("a", 7),
    {"rules": [Rule("a"), Rule("b", 2)], "at": datetime.date(2024, 2, 29)},
    datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
    datetime.timedelta(seconds=1.5),
    decimal.Decimal("1.10"),
    uuid.UUID(int=7),
    collections.OrderedDict(a=1, b=2),
    Rule,
    Rule.Inner,
]
VALUE_CLASSES: list[type] = [
    Color,
    Permission,
    Rule,
    Rule.Inner,
    datetime.datetime,
    datetime.date,
    datetime.timezone,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
    collections.OrderedDict,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("by_name", [False, True], ids=["classes", "names"])
def test_allowed_classes_are_loaded(value: Any, by_name: bool) -> None:
    allow: list[Any] = [
        f"{kind.__module__}.{kind.__qualname__}" if by_name else kind for kind in VALUE_CLASSES
    ]
    codec = RestrictedPickleEncoding(allow)
    loaded = codec.decode(codec.encode(value))
    assert loaded == value
    assert type(loaded) is type(value)
    assert codec.decode(pickle.dumps(value, 4)) == value
    with pytest.raises(DecodingError, match="allow="):
        RestrictedPickleEncoding().decode(codec.encode(value))


def test_builtin_containers_are_allowed_by_default() -> None:
    value = [{1}, frozenset({2}), 3j, bytearray(b"4"), (5,), {6: 7}, b"8"]
    for protocol in range(3, 6):
        assert RestrictedPickleEncoding().decode(pickle.dumps(value, protocol)) == value


def test_names_of_python_2_are_mapped_before_they_are_compared() -> None:
    payload = pickle.dumps(collections.UserDict(a=1), 2)
    assert b"UserDict\nIterableUserDict" in payload
    loaded = RestrictedPickleEncoding([collections.UserDict]).decode(payload)
    assert loaded == {"a": 1}
    # A payload of Python 3 says what it means.
    with pytest.raises(DecodingError, match=r"__builtin__\.set"):
        RestrictedPickleEncoding().decode(b"\x80\x04c__builtin__\nset\n.")


def test_a_name_may_be_what_a_class_was_called_before(monkeypatch: Any) -> None:
    payload = PickleEncoding.encode(Rule("a")).replace(b"\x8c\x04Rule", b"\x8c\x05Rules")
    monkeypatch.setattr(importlib.import_module(__name__), "Rules", Rule, raising=False)
    payload = payload[:2] + payload[2 + 9 :]  # without the frame, whose length has changed
    assert RestrictedPickleEncoding([f"{__name__}.Rules"]).decode(payload) == Rule("a")
    with pytest.raises(DecodingError, match="Rules"):
        RestrictedPickleEncoding([Rule]).decode(payload)


def test_functions_are_loaded_only_by_their_exact_name() -> None:
    payload = pickle.dumps(OldStyle(), 2)
    assert b"_reconstructor" in payload
    with pytest.raises(DecodingError, match="_reconstructor"):
        RestrictedPickleEncoding([OldStyle, object]).decode(payload)
    allowed = RestrictedPickleEncoding([OldStyle, object, "copyreg._reconstructor"])
    assert type(allowed.decode(payload)) is OldStyle


@pytest.mark.parametrize("item", [helper, 7, None, list[int], b"a.B", os])
def test_allow_takes_classes_and_names_only(item: Any) -> None:
    with pytest.raises(TypeError, match="classes or their names"):
        RestrictedPickleEncoding([Rule, item])


@pytest.mark.parametrize("allow", [Rule, "a.B"])
def test_allow_takes_a_list(allow: Any) -> None:
    with pytest.raises(TypeError, match="list"):
        RestrictedPickleEncoding(allow)


# JSONEncoding and NoOpEncoding


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, [-math.inf], "\ud800", "\ud83d\ude00", {"\udfff": 1}]
)
def test_json_is_standard_json(value: Any) -> None:
    with pytest.raises(EncodingError) as caught:
        JSONEncoding.encode(value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_json_is_ascii_text() -> None:
    assert JSONEncoding.encode("caf\xe9 \U0001f600") == '"caf\\u00e9 \\ud83d\\ude00"'
    assert JSONEncoding.encode("\\ud800") == '"\\\\ud800"'


def test_json_reads_what_others_wrote() -> None:
    assert JSONEncoding.decode(' {"caf\xe9": [1, 2.0]} ') == {"caf\xe9": [1, 2.0]}
    assert JSONEncoding.decode('"\xe9"'.encode()) == "\xe9"
    assert math.isnan(JSONEncoding.decode("NaN"))


def test_json_errors() -> None:
    with pytest.raises(TypeError):
        JSONEncoding.encode({1, 2})
    for payload in ("", "{", "gAJLBy4=\n", "x"):
        with pytest.raises(json.JSONDecodeError):
            JSONEncoding.decode(payload)


def test_no_op_hands_over_the_object_itself() -> None:
    value = object()
    for codec in (NoOpEncoding, NoOpEncoding()):
        assert codec.encode(value) is value
        assert codec.decode(value) is value


# SignedEncoding


class Untouched:
    """An encoding that must not be asked to decode."""

    @staticmethod
    def encode(value: Any) -> bytes:
        return PickleEncoding.encode(value)

    @staticmethod
    def decode(payload: bytes) -> Any:
        raise AssertionError("decoded before the signature was checked")


def test_the_signature_is_an_hmac_of_place_and_payload() -> None:
    codec = SignedEncoding("secr\xe9t").bind("key\xe9space", 7)
    body = PickleEncoding.encode("value")
    message = b"".join(
        (b"\x01", bytes(7) + b"\x0a", "key\xe9space".encode(), bytes(7) + b"\x06", b"~int:7", body)
    )
    digest = hmac.new("secr\xe9t".encode(), message, hashlib.sha256).digest()
    assert codec.encode("value") == b"\x01" + digest + body


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("a", "c")),
        (("a", "b"), ("c", "b")),
        (("a", "b"), ("ab", "")),
        (("a", "bc"), ("ab", "c")),
        (("a", 1), ("a", "1")),
        (("a", "~int:1"), ("a", 1)),
        (("a", None), ("a", "")),
        (("a", "b"), None),
        (None, ("a", "b")),
    ],
)
def test_a_payload_copied_from_another_place_is_refused(one: Any, other: Any) -> None:
    codec = SignedEncoding("secret", Untouched)
    there = codec.bind(*one) if one else codec
    here = codec.bind(*other) if other else codec
    with pytest.raises(DecodingError, match="signature"):
        here.decode(there.encode("value"))


def test_equal_keys_are_one_place() -> None:
    codec = SignedEncoding("secret")
    assert codec.bind("a", 1).decode(codec.bind("a", True).encode("value")) == "value"
    with pytest.raises(TypeError, match="'list'"):
        codec.bind("a", [])


def test_rebinding_replaces_the_place_and_leaves_the_original() -> None:
    codec = SignedEncoding("secret")
    unbound = codec.encode("value")
    bound = codec.bind("a", "b")
    assert bound.bind("a", "c").encode(1) == codec.bind("a", "c").encode(1)
    assert codec.encode("value") == unbound
    assert type(bound) is SignedEncoding
    assert bound.inner is codec.inner


def test_any_damage_is_refused_before_the_inner_encoding_sees_it() -> None:
    codec = SignedEncoding("secret", Untouched).bind("keyspace", "key")
    payload = codec.encode("value")
    for index in range(len(payload)):
        with pytest.raises(DecodingError):
            codec.decode(payload[:index])
        for bit in range(8):
            damaged = bytearray(payload)
            damaged[index] ^= 1 << bit
            with pytest.raises(DecodingError):
                codec.decode(bytes(damaged))
    others: list[Any] = [payload + b"x", b"x" + payload, b"", "text", payload.hex()]
    for other in others:
        with pytest.raises(DecodingError):
            codec.decode(other)


def test_secrets_can_be_rotated() -> None:
    old, both, new = (
        SignedEncoding("old"),
        SignedEncoding([b"new", "old"]),
        SignedEncoding(("new",)),
    )
    assert both.decode(old.encode(1)) == 1
    assert both.decode(new.encode(1)) == 1
    assert new.decode(both.encode(1)) == 1
    assert both.encode(1) == new.encode(1)
    with pytest.raises(DecodingError):
        new.decode(old.encode(1))
    with pytest.raises(DecodingError):
        old.decode(both.encode(1))


def test_str_and_bytes_secrets_are_the_same() -> None:
    assert SignedEncoding("\xe9").encode(1) == SignedEncoding("\xe9".encode()).encode(1)


@pytest.mark.parametrize("secret", ["", b"", [], (), ["good", ""], [b""]])
def test_empty_secrets_are_refused(secret: Any) -> None:
    with pytest.raises(ValueError, match="secret"):
        SignedEncoding(secret)


@pytest.mark.parametrize("secret", [None, 7, [7], bytearray(b"x"), {"x"}, [None], ["x", ["y"]]])
def test_secrets_of_other_types_are_refused(secret: Any) -> None:
    with pytest.raises(TypeError, match="secret must be bytes"):
        SignedEncoding(secret)


def test_secrets_never_show() -> None:
    secrets = ["hunter2", "older\udc80hunter3"]
    codec = SignedEncoding(secrets, CompressedEncoding())
    bound = codec.bind("keyspace", "key")
    shown = [repr(codec), str(codec), f"{codec}", repr(vars(codec)), repr(vars(bound))]
    for attempt in (
        lambda: bound.decode(codec.encode(1)),
        lambda: codec.decode(b"\x01"),
        lambda: codec.decode(b"hello"),
        lambda: pickle.dumps(codec),
    ):
        with pytest.raises((DecodingError, TypeError)) as caught:
            attempt()
        error = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        # The frames of the library; those of this test hold the secrets, of course.
        shown.append(str(caught.value) + repr(vars(caught.value)))
        shown += [
            repr(frame.locals)
            for frame in error.stack
            if Path(frame.filename).parent == Path(encoding.__file__).parent
        ]
    for text in shown:
        assert "hunter" not in text


@pytest.mark.parametrize("codec", [SignedEncoding("x"), SignedEncoding("x").bind("a", "b")])
def test_signed_encodings_do_not_pickle_but_copy(codec: Any) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for holder in (codec, CompressedEncoding(codec), [codec]):
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(holder, protocol)
    assert copy.copy(codec).decode(codec.encode(1)) == 1
    assert copy.deepcopy({"a": codec})["a"].decode(codec.encode(1)) == 1


def test_a_wrapper_recognizes_its_header_and_nothing_else() -> None:
    signed, compressed = SignedEncoding("x"), CompressedEncoding()
    for kind in (bytes, bytearray, memoryview):
        assert signed.recognizes(kind(signed.encode(1)))
        assert signed.recognizes(kind(b"\x01"))
        assert not signed.recognizes(kind(compressed.encode(1)))
        assert compressed.recognizes(kind(compressed.encode(1)))
        assert compressed.recognizes(kind(compressed.encode("x" * 1000)))
        assert not compressed.recognizes(kind(signed.encode(1)))
        for other in (b"", b"\x80\x05K\x07.", b"gAJLBy4=\n", b'{"a": 1}'):
            assert not signed.recognizes(kind(other))
            assert not compressed.recognizes(kind(other))
    for thing in ("\x01", None, 1, [1]):
        assert not signed.recognizes(thing)


@pytest.mark.parametrize("wrapper", [lambda inner: SignedEncoding("x", inner), CompressedEncoding])
def test_wrappers_refuse_what_is_no_encoding(wrapper: Any) -> None:
    for inner in (None, "pickle", object()):
        with pytest.raises(TypeError, match="encode and decode"):
            wrapper(inner)


def test_text_encodings_are_handed_text() -> None:
    class Text:
        text = True

        @staticmethod
        def encode(value: str) -> str:
            return value

        @staticmethod
        def decode(payload: str) -> str:
            assert type(payload) is str
            return payload

    for codec in (SignedEncoding("x", Text), CompressedEncoding(Text), CompressedEncoding(Text())):
        assert codec.decode(codec.encode("caf\xe9" * 100)) == "caf\xe9" * 100


# CompressedEncoding


def test_small_and_incompressible_payloads_are_stored_as_they_are() -> None:
    codec = CompressedEncoding(NoOpEncoding, minimum=128)
    assert codec.encode(b"x" * 127) == b"\x03" + b"x" * 127
    assert codec.encode(b"x" * 128)[:1] == b"\x02"
    random = os.urandom(1000)
    assert codec.encode(random) == b"\x03" + random
    assert len(codec.encode(b"x" * 10_000)) < 100


def test_level_reaches_zlib() -> None:
    data = b"".join(b"%d" % number for number in range(5000))
    for level in (1, 9):
        codec = CompressedEncoding(NoOpEncoding, level=level)
        assert codec.encode(data) == b"\x02" + zlib.compress(data, level)
    assert CompressedEncoding(NoOpEncoding, level=0).encode(data) == b"\x03" + data


def test_damaged_streams_are_refused() -> None:
    codec = CompressedEncoding(NoOpEncoding, minimum=0)
    payload = codec.encode(b"0123456789" * 50)
    assert payload[:1] == b"\x02"
    damaged: list[Any] = [payload[:end] for end in range(1, len(payload))]
    damaged += [payload + b"x", payload + payload[1:], b"\x02" + b"x" * 50, b"\x02"]
    damaged += [b"", b"x", b"\x01" + payload[1:], b"\x04", PickleEncoding.encode(1), "\x03text"]
    damaged += [payload[:-1] + bytes([payload[-1] ^ 1])]
    for each in damaged:
        with pytest.raises(DecodingError):
            codec.decode(each)


def test_a_damaged_stream_keeps_the_error_of_zlib() -> None:
    with pytest.raises(DecodingError, match="zlib") as caught:
        CompressedEncoding().decode(b"\x02" + b"x" * 50)
    assert isinstance(caught.value.__cause__, zlib.error)


def test_maximum_bounds_what_a_payload_can_unfold_to() -> None:
    codec = CompressedEncoding(NoOpEncoding, maximum=10_000)
    assert codec.decode(codec.encode(b"x" * 10_000)) == b"x" * 10_000
    for size in (10_001, 10_000_000):
        with pytest.raises(DecodingError, match="maximum=10000"):
            codec.decode(b"\x02" + zlib.compress(b"x" * size))
    for size in (10_001, 20_000):
        with pytest.raises(EncodingError, match="maximum=10000"):
            codec.encode(b"x" * size)


def test_a_small_payload_cannot_fill_the_memory() -> None:
    import tracemalloc

    bomb = b"\x02" + zlib.compress(bytes(50_000_000))
    codec = CompressedEncoding(NoOpEncoding, maximum=1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodingError):
            codec.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "options", [{"level": 10}, {"level": -2}, {"minimum": -1}, {"maximum": 0}], ids=repr
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        CompressedEncoding(**options)


def test_binding_reaches_the_inner_encoding() -> None:
    codec = CompressedEncoding(SignedEncoding("x", Untouched), level=9, minimum=5, maximum=1000)
    bound = codec.bind("a", "b")
    assert (bound.level, bound.minimum, bound.maximum) == (9, 5, 1000)
    assert type(bound) is CompressedEncoding
    with pytest.raises(DecodingError, match="signature"):
        codec.bind("a", "c").decode(bound.encode(1))
    twice = SignedEncoding("outer", codec)
    assert twice.bind("a", "b").inner.encode(1) == bound.encode(1)
    plain = CompressedEncoding()
    assert plain.bind("a", "b").decode(plain.encode(1)) == 1


@pytest.mark.parametrize("payload", [PickleEncoding.encode("x"), memoryview(b"\x80\x04N.")])
def test_json_over_pickles_says_what_reads_them(payload: Any) -> None:
    with pytest.raises(DecodingError, match="old_encoding=PickleEncoding reads it"):
        JSONEncoding.decode(payload)


def test_errors_are_where_0_9_had_them() -> None:
    assert encoding.EncodingError is EncodingError
    assert encoding.DecodingError is DecodingError
    assert encoding.EncoderError is EncoderError
