"""The encodings at work in dicts, over payloads that somebody else put into the store."""

from __future__ import annotations

import collections
import datetime
import decimal
import json
import logging
import os
import pickle
import sqlite3
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import durabledict
from durabledict import (
    CompressedEncoding,
    DecodingError,
    DurableDict,
    EncodingError,
    JSONEncoding,
    MemoryDict,
    NoOpEncoding,
    PickleEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
    SqliteDict,
    coder,
)
from durabledict.keys import decode_key, encode_key

OLD_PAYLOADS = json.loads(
    (Path(__file__).parent / "data" / "durabledict-0.9-payloads.json").read_text()
)["cases"]
OLD_MODULES = {"datetime": datetime, "decimal": decimal, "collections": collections}
OLD_CLASSES = [datetime.datetime, datetime.date, decimal.Decimal, collections.OrderedDict]

AnyDict = DurableDict[Any, Any]


class Memory:
    """Dicts over one storage, and the storage itself."""

    def __init__(self, folder: Path) -> None:
        self.payloads: dict[Any, Any] = {}

    def open(self, **options: Any) -> AnyDict:
        return MemoryDict(storage=self.payloads, **options)

    def put(self, key: Any, payload: Any) -> None:
        self.payloads[key] = payload

    def raw(self) -> dict[Any, Any]:
        return dict(self.payloads)

    def close(self) -> None:
        pass


class Sqlite:
    """Dicts over one file, and the file as plain sqlite3 shows it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "test.sqlite"
        self.dicts = [SqliteDict[Any, Any](self.path)]

    def open(self, **options: Any) -> AnyDict:
        self.dicts.append(SqliteDict(self.path, **options))
        return self.dicts[-1]

    def execute(self, sql: str, *values: Any) -> list[Any]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def put(self, key: Any, payload: Any) -> None:
        self.execute(
            "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)",
            "default",
            encode_key(key),
            payload,
        )

    def raw(self) -> dict[Any, Any]:
        rows = self.execute("SELECT key, value FROM durabledict_entries")
        return {decode_key(key): payload for key, payload in rows}

    def close(self) -> None:
        for each in self.dicts:
            each.close()


@pytest.fixture(params=[Memory, Sqlite], ids=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Sqlite]:
    made = Sqlite(tmp_path)
    yield made
    made.close()


def state(place: Any, d: AnyDict) -> Any:
    """All that an operation which sends nothing leaves alone."""
    return place.raw(), d.last_updated(), d.copy(), dict(d.undecodable)


def assert_only_this_key_is_harmed(d: AnyDict, key: Any, others: dict[Any, Any]) -> DecodingError:
    assert list(d.undecodable) == [key]
    for read in (d.__getitem__, d.get, d.__contains__, d.setdefault, d.pop):
        with pytest.raises(DecodingError) as caught:
            read(key)
        assert repr(key) in str(caught.value)
    assert d == others
    for other, value in others.items():
        assert d[other] == value
    return d.undecodable[key]


# What 0.9 stored


@pytest.mark.parametrize("form", ["text", "bytes"])
@pytest.mark.parametrize(
    "encoding", [PickleEncoding, RestrictedPickleEncoding(OLD_CLASSES)], ids=["any", "restricted"]
)
def test_a_dict_reads_what_0_9_stored(place: Any, encoding: Any, form: str) -> None:
    expected = {case["name"]: eval(case["expected"], dict(OLD_MODULES)) for case in OLD_PAYLOADS}
    for case in OLD_PAYLOADS:
        payload = case["payload"]
        place.put(case["name"], payload if form == "text" else payload.encode())
    d = place.open(encoding=encoding)
    assert len(expected) == 16
    assert d == expected
    assert {key: type(value) for key, value in d.items()} == {
        key: type(value) for key, value in expected.items()
    }
    assert d.migrate() == 16
    assert all(payload[:2] == b"\x80\x05" for payload in place.raw().values())
    assert place.open(encoding=encoding) == expected


# From one encoding to another


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (PickleEncoding, JSONEncoding, "JSONDecodeError: "),
        (JSONEncoding, PickleEncoding, "not a pickle"),
        (JSONEncoding, SignedEncoding("secret"), "the header is missing"),
        (PickleEncoding, CompressedEncoding(), "the header is missing"),
    ],
    ids=["pickle to json", "json to pickle", "json to signed", "pickle to compressed"],
)
def test_moving_from_one_encoding_to_another(place: Any, old: Any, new: Any, reason: str) -> None:
    before = place.open(encoding=old)
    before.update({"a": [1, "x"], ("b", 1): {"y": None}, "c": 7})
    place.put("neither", "{neither")
    both = place.open(encoding=new, old_encoding=old)
    values = {"a": [1, "x"], ("b", 1): {"y": None}, "c": 7}
    error = assert_only_this_key_is_harmed(both, "neither", values)
    assert reason in str(error)
    assert error.__cause__ is not None

    # What is written is new; what is not, stays as it is.
    was = place.raw()
    both["c"] = values["c"] = 8
    both["d"] = values["d"] = [9]
    now = place.raw()
    assert {key for key in now if now[key] != was.get(key)} == {"c", "d"}
    assert type(now["c"]) is type(now["d"]) is (str if new is JSONEncoding else bytes)
    only_new = place.open(encoding=new)
    assert set(only_new.undecodable) == {"a", ("b", 1), "neither"}
    assert only_new == {"c": 8, "d": [9]}

    # All is new, but what nobody can read.
    assert both.migrate() == 4
    only_new.sync(force=True)
    assert_only_this_key_is_harmed(only_new, "neither", values)
    assert place.raw()["neither"] == "{neither"
    assert both == values


def test_what_is_written_is_never_of_the_old_encoding(place: Any) -> None:
    class Old(PickleEncoding):
        @staticmethod
        def encode(value: Any) -> bytes:
            raise AssertionError("encoded in the old encoding")

    place.put("a", PickleEncoding.encode([1]))
    d = place.open(encoding=JSONEncoding, old_encoding=Old)
    d["b"] = [2]
    d.update(c=[3])
    assert d.setdefault("d", [4]) == [4]
    assert d.compute("a", lambda value: [*value, 5]) == [1, 5]
    assert place.raw() == {"a": "[1,5]", "b": "[2]", "c": "[3]", "d": "[4]"}


class WithHeader(JSONEncoding):
    """Text of somebody's own that can be told from other text."""

    @staticmethod
    def recognizes(payload: str) -> bool:
        return payload.startswith("{")


@pytest.mark.parametrize("new", [JSONEncoding, WithHeader])
def test_pickles_under_an_encoding_of_text_are_said_to_be_pickles(place: Any, new: Any) -> None:
    place.put("a", PickleEncoding.encode([1]))
    place.put("b", "[2]")
    d = place.open(encoding=new)
    error = assert_only_this_key_is_harmed(d, "a", {"b": [2]})
    assert "a pickle, not text: old_encoding=PickleEncoding reads it" in str(error)
    assert place.open(encoding=new, old_encoding=PickleEncoding) == {"a": [1], "b": [2]}


def test_a_value_that_cannot_be_written_is_not_rescued_by_the_old_encoding(place: Any) -> None:
    d = place.open(encoding=JSONEncoding, old_encoding=PickleEncoding)
    d["a"] = 1
    before = state(place, d)
    with pytest.raises(EncodingError, match="key 'b'"):
        d["b"] = {1, 2}
    assert state(place, d) == before


# Signed payloads

SEALED: list[Callable[[Any], Any]] = [
    SignedEncoding,
    lambda secret: CompressedEncoding(SignedEncoding(secret)),
    lambda secret: CompressedEncoding(SignedEncoding(secret), minimum=0),
    lambda secret: SignedEncoding(secret, CompressedEncoding(minimum=0)),
]
sealed_by = pytest.mark.parametrize(
    "sealed", SEALED, ids=["signed", "compressed", "compressed always", "signed over compressed"]
)


@sealed_by
def test_a_payload_copied_from_another_key_is_refused(place: Any, sealed: Any) -> None:
    d = place.open(encoding=sealed("secret"))
    d.update({"limit": [1], "admins": ["ann"], 1: "int", "1": "str"})
    place.put("limit", place.raw()["admins"])
    d.sync(force=True)
    others = {"admins": ["ann"], 1: "int", "1": "str"}
    assert "signature" in str(assert_only_this_key_is_harmed(d, "limit", others))
    # A key and the text that looks like it are two places.
    place.put(1, place.raw()["1"])
    d = place.open(encoding=sealed("secret"))
    assert set(d.undecodable) == {"limit", 1}
    # And it is mended by a write.
    d["limit"] = [2]
    d[1] = "again"
    assert place.open(encoding=sealed("secret")) == {**others, "limit": [2], 1: "again"}


@sealed_by
def test_a_payload_copied_from_another_keyspace_is_refused(file: Sqlite, sealed: Any) -> None:
    test = file.open(keyspace="test", encoding=sealed("secret"))
    live = file.open(keyspace="live", encoding=sealed("secret"))
    test.update(admin="everybody", limit=1)
    live.update(admin="ann", limit=1)
    copy = """
        UPDATE durabledict_entries SET value = (
            SELECT value FROM durabledict_entries WHERE keyspace = 'test' AND key = 'admin'
        ) WHERE keyspace = 'live' AND key = 'admin'
    """
    file.execute(copy)
    live.sync(force=True)
    test.sync(force=True)
    assert test == {"admin": "everybody", "limit": 1}
    assert "signature" in str(assert_only_this_key_is_harmed(live, "admin", {"limit": 1}))


class Hostile:
    """Makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@sealed_by
def test_a_hostile_pickle_in_the_store_is_not_executed(
    place: Any, sealed: Any, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Hostile(marker))
    attacks = {
        "as it is": hostile,
        "signed header": b"\x01" + bytes(32) + hostile,
        "compressed header": b"\x03" + hostile,
        "compressed": b"\x02" + zlib.compress(hostile),
        "both": b"\x03\x01" + bytes(32) + hostile,
        "both, compressed": b"\x02" + zlib.compress(b"\x01" + bytes(32) + hostile),
        "other secret": sealed("another").bind("", "other secret").encode(Hostile(marker)),
    }
    for key, payload in attacks.items():
        place.put(key, payload)
    d = place.open(encoding=sealed("secret"), old_encoding=JSONEncoding)
    d["fine"] = [1]
    assert d == {"fine": [1]}
    assert set(d.undecodable) == set(attacks)
    assert d.migrate() == 1
    d.clear()
    assert not marker.exists()
    # It does what it is feared for, or this test would show nothing.
    place.put("as it is", hostile)
    place.open(encoding=PickleEncoding)
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_is_refused_is_not_for_the_old_encoding_to_run(
    place: Any, tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Hostile(marker), protocol)
    place.put("a", PickleEncoding.encode([1]))
    place.put("hostile", hostile)
    restricted = RestrictedPickleEncoding()
    d = place.open(encoding=restricted, old_encoding=PickleEncoding)
    assert_only_this_key_is_harmed(d, "hostile", {"a": [1]})
    assert d.migrate() == 1
    assert not marker.exists()
    place.open(encoding=PickleEncoding)
    assert marker.exists()


@sealed_by
def test_a_secret_is_rotated(place: Any, sealed: Any) -> None:
    values = {"a": [1], "b": "text", ("c", 2): None}
    place.open(encoding=sealed("old")).update(values)

    both = place.open(encoding=sealed(["new", "old"]))
    assert both == values
    both["a"] = values["a"] = [2]
    assert set(place.open(encoding=sealed("new")).undecodable) == {"b", ("c", 2)}
    assert both.migrate() == 3

    assert place.open(encoding=sealed(["new"])) == values
    assert set(place.open(encoding=sealed("old")).undecodable) == set(values)


class Recorded:
    """An old encoding that runs no code, and remembers what it was asked about."""

    executes_code = False
    text = None

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def encode(self, value: Any) -> bytes:
        raise AssertionError("nothing is written in the old encoding")

    def decode(self, payload: Any) -> Any:
        self.asked.append(payload)
        return PickleEncoding.decode(payload)


class Unsigned(Recorded):
    executes_code = True


@sealed_by
@pytest.mark.parametrize(
    "old",
    [PickleEncoding, PickleEncoding(), CompressedEncoding(), Unsigned()],
    ids=["class", "instance", "compressed", "own"],
)
def test_unsigned_pickles_are_no_old_encoding(place: Any, sealed: Any, old: Any) -> None:
    with pytest.raises(ValueError, match="allow_unsigned=True"):
        place.open(encoding=sealed("secret"), old_encoding=old)


def test_an_encoding_that_does_not_say_what_it_runs_is_taken_for_the_worse(place: Any) -> None:
    class Own:
        encode = staticmethod(JSONEncoding.encode)
        decode = staticmethod(JSONEncoding.decode)

    with pytest.raises(ValueError, match="allow_unsigned=True"):
        place.open(encoding=SignedEncoding("secret"), old_encoding=Own)


@pytest.mark.parametrize(
    "old",
    [JSONEncoding, RestrictedPickleEncoding(), SignedEncoding("old"), None],
    ids=["json", "restricted", "signed", "none"],
)
def test_old_encodings_that_run_nothing_are_allowed(
    place: Any, old: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place.open(encoding=SignedEncoding("secret"), old_encoding=old)
    place.open(encoding=PickleEncoding, old_encoding=PickleEncoding)
    assert caplog.records == []


@sealed_by
def test_unsigned_pickles_are_allowed_when_asked_for_and_logged(
    place: Any, sealed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("a", PickleEncoding.encode([1]))
    place.put("b", "gAJLBy4=\n")
    d = place.open(encoding=sealed("secret"), old_encoding=PickleEncoding, allow_unsigned=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name.startswith("durabledict")
    assert "PickleEncoding" in record.getMessage()
    assert "migrate()" in record.getMessage()
    assert d == {"a": [1], "b": 7}
    assert d.migrate() == 2
    assert place.open(encoding=sealed("secret")) == {"a": [1], "b": 7}


@sealed_by
def test_a_wrong_signature_is_never_handed_to_the_old_encoding(place: Any, sealed: Any) -> None:
    encoding, old = sealed("secret"), Unsigned()
    pickled = PickleEncoding.encode([1])
    writer = place.open(encoding=encoding)
    writer.update(copied=[1], cut=[2], damaged=[3], other=[4])
    raw = place.raw()
    place.put("copied", raw["other"])
    place.put("cut", raw["cut"][:20])
    place.put("damaged", raw["damaged"][:-1] + b"!")
    place.put("header alone", raw["other"][:1])
    place.put("header and pickle", raw["other"][:1] + pickled)
    place.put("other secret", sealed("another").encode([5]))
    place.put("as text", (raw["other"][:1] + b"x" * 40).decode())
    place.put("unsigned", pickled)

    d = place.open(encoding=encoding, old_encoding=old, allow_unsigned=True)
    assert d == {"other": [4], "unsigned": [1]}
    assert len(d.undecodable) == 7
    assert set(old.asked) == {pickled}


# What is no encoding

NO_ENCODINGS: list[Any] = [7, "json", b"x", object(), object, json, lambda value: value]


# Names that are the same in each process: no addresses.
@pytest.mark.parametrize("given", NO_ENCODINGS, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("option", ["encoding", "old_encoding"])
def test_what_is_no_encoding_is_a_type_error(place: Any, option: str, given: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^{option}=.* has no encode\(\) and decode\(\): write .*JSONEncoding"
    ):
        place.open(**{option: given})


def test_none_is_no_encoding_but_no_old_one_either(place: Any) -> None:
    with pytest.raises(TypeError, match="encoding=None has no"):
        place.open(encoding=None)
    place.open(old_encoding=None)


@pytest.mark.parametrize(
    "given", [SignedEncoding, CompressedEncoding, RestrictedPickleEncoding, Recorded]
)
@pytest.mark.parametrize("option", ["encoding", "old_encoding"])
def test_a_class_that_needs_an_instance_is_a_type_error(
    place: Any, option: str, given: Any
) -> None:
    with pytest.raises(TypeError, match=rf"^{option}={given.__name__} .* write .*\(\.\.\.\)"):
        place.open(**{option: given})


# Every shape of an encoding


class Upper:
    """Static methods alone, and nothing else of the contract."""

    @staticmethod
    def encode(value: str) -> bytes:
        return value.upper().encode()

    @staticmethod
    def decode(payload: bytes) -> str:
        assert type(payload) is bytes
        return payload.decode()


class ByClass:
    @classmethod
    def encode(cls, value: str) -> bytes:
        return Upper.encode(value)

    @classmethod
    def decode(cls, payload: bytes) -> str:
        return Upper.decode(payload)


class ByInstance:
    def encode(self, value: str, *options: str) -> bytes:
        return Upper.encode(value)

    def decode(self, payload: bytes, strict: bool = True) -> str:
        return Upper.decode(payload)


@pytest.mark.parametrize(
    "encoding",
    [Upper, Upper(), ByClass, ByClass(), ByInstance()],
    ids=["static", "instance of it", "class methods", "instance of that", "instance"],
)
def test_classes_and_instances_are_encodings(place: Any, encoding: Any) -> None:
    d = place.open(encoding=encoding)
    d["a"] = "shout"
    assert place.raw() == {"a": b"SHOUT"}
    # The local copy holds what was stored.
    assert d == {"a": "SHOUT"}
    assert place.open(encoding=encoding) == {"a": "SHOUT"}
    with pytest.raises(EncodingError, match="key 'b'"):
        d["b"] = 7


def test_a_class_whose_methods_do_not_tell_what_they_take_is_an_encoding(place: Any) -> None:
    class Numbers:
        encode = staticmethod(JSONEncoding.encode)
        decode = staticmethod(int)

    d = place.open(encoding=Numbers, old_encoding=Numbers)
    d["a"] = 7
    assert place.open(encoding=Numbers) == {"a": 7}


class Bound:
    """An encoding with a `bind` of its own."""

    def __init__(self, place: Any = None) -> None:
        self.place = place

    def bind(self, keyspace: str, key: Any) -> Bound:
        return Bound((keyspace, key))

    def encode(self, value: Any) -> str:
        return json.dumps([*self.place, value])

    def decode(self, payload: bytes) -> Any:
        keyspace, key, value = json.loads(payload)
        assert (keyspace, key) == self.place
        return value


def test_an_encoding_is_bound_to_each_key(file: Sqlite) -> None:
    d = file.open(keyspace="settings", encoding=Bound(), old_encoding=JSONEncoding)
    d["a"] = [1]
    d.update(b=2)
    assert file.raw() == {"a": '["settings", "a", [1]]', "b": '["settings", "b", 2]'}
    # An old encoding, too.
    again = file.open(keyspace="settings", encoding=JSONEncoding, old_encoding=Bound())
    assert again == {"a": ["settings", "a", [1]], "b": ["settings", "b", 2]}
    file.execute("UPDATE durabledict_entries SET value = '[\"elsewhere\",\"a\",0]' WHERE key = 'a'")
    d = file.open(keyspace="settings", encoding=Bound())
    assert_only_this_key_is_harmed(d, "a", {"b": 2})
    assert file.open(keyspace="settings", encoding=PickleEncoding, old_encoding=Bound()) == {"b": 2}


# Text and bytes


def test_text_is_stored_as_text_and_bytes_as_bytes(file: Sqlite) -> None:
    file.open(keyspace="json", encoding=JSONEncoding)["a"] = "caf\xe9"
    file.open(keyspace="pickle", encoding=PickleEncoding)["a"] = "caf\xe9"
    file.open(keyspace="signed", encoding=SignedEncoding("secret", JSONEncoding))["a"] = "caf\xe9"
    rows = file.execute("SELECT keyspace, typeof(value), value FROM durabledict_entries")
    assert [row[:2] for row in rows] == [("json", "text"), ("pickle", "blob"), ("signed", "blob")]
    assert rows[0][2] == '"caf\\u00e9"'


def test_an_encoding_is_handed_its_own_kind_whatever_the_store_gives(place: Any) -> None:
    class Told:
        def __init__(self, text: bool | None) -> None:
            self.text = text

        def encode(self, value: Any) -> Any:
            raise NotImplementedError

        def decode(self, payload: Any) -> Any:
            return type(payload)

    place.put("text", "caf\xe9")
    place.put("bytes", "caf\xe9".encode())
    for text, handed in (
        (True, {"text": str, "bytes": str}),
        (False, {"text": bytes, "bytes": bytes}),
        (None, {"text": str, "bytes": bytes}),
    ):
        assert place.open(encoding=Told(text)) == handed
        assert place.open(encoding=PickleEncoding, old_encoding=Told(text)) == handed


def test_a_payload_that_is_neither_text_nor_utf_8_harms_one_key() -> None:
    """Not even the question whether it bears a header may raise."""
    encoding: Any
    for encoding, payload in ((SignedEncoding("secret"), "\ud800"), (JSONEncoding, b"\xff")):
        storage: dict[Any, Any] = {"bad": payload, "good": "[1]"}
        d = MemoryDict[str, Any](encoding=encoding, old_encoding=JSONEncoding, storage=storage)
        assert_only_this_key_is_harmed(d, "bad", {"good": [1]})
    # What an encoding for text cannot be handed is not of its form: the old one is asked.
    for encoding in (JSONEncoding, Headed()):
        payloads: dict[Any, Any] = {"old": PickleEncoding.encode(b"\xff"), "new": "[1]"}
        assert MemoryDict[str, Any](
            encoding=encoding, old_encoding=PickleEncoding, storage=payloads
        ) == {"old": b"\xff", "new": [1]}


class Headed(JSONEncoding):
    """A text encoding that knows its payloads by their first character."""

    @staticmethod
    def recognizes(payload: str) -> bool:
        return payload[0] == "["


def test_an_encoding_that_fails_to_recognize_harms_one_key(place: Any) -> None:
    old = Recorded()
    place.put("empty", "")
    place.put("bad", "[1")
    place.put("good", "[1]")
    d = place.open(encoding=Headed(), old_encoding=old)
    assert d == {"good": [1]}
    assert set(d.undecodable) == {"empty", "bad"}
    assert old.asked == []


# Errors of the encodings


class Failing:
    """Raises what it is told to, for values that say so."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode(self, value: Any) -> str:
        if value == "encode":
            raise self.error
        return json.dumps(value)

    def decode(self, payload: bytes) -> Any:
        value = json.loads(payload)
        if value == "decode":
            raise self.error
        return value


ERRORS = [
    KeyError("k"),
    RecursionError("too deep"),
    AttributeError("x"),
    MemoryError(),
    StopIteration(),
    OSError("no"),
]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@each_error
def test_whatever_encode_raises_is_an_encoding_error(place: Any, error: Exception) -> None:
    d = place.open(encoding=Failing(error))
    d["a"] = 1
    before = state(place, d)
    writes: list[Callable[[], Any]] = [
        lambda: d.__setitem__(("b", 1), "encode"),
        lambda: d.update({"c": 2, ("b", 1): "encode"}),
        lambda: d.setdefault(("b", 1), "encode"),
        lambda: d.replace_all({"c": 2, ("b", 1): "encode"}),
        lambda: d.compute(("b", 1), lambda value: "encode", default=0),
        lambda: d.compare_and_set(("b", 1), durabledict.MISSING, "encode"),
    ]
    for write in writes:
        with pytest.raises(EncodingError) as caught:
            write()
        assert caught.value.__cause__ is error
        assert "('b', 1)" in str(caught.value)
        assert type(error).__name__ in str(caught.value)
        assert state(place, d) == before


@each_error
def test_whatever_decode_raises_is_a_decoding_error(place: Any, error: Exception) -> None:
    place.put("a", "1")
    place.put(("b", 1), '"decode"')
    d = place.open(encoding=Failing(error))
    refused = assert_only_this_key_is_harmed(d, ("b", 1), {"a": 1})
    assert refused.__cause__ is error
    assert type(error).__name__ in str(refused)
    # Also as the old one; then it is the new one that gives the reason.
    d = place.open(encoding=PickleEncoding, old_encoding=Failing(error))
    refused = assert_only_this_key_is_harmed(d, ("b", 1), {"a": 1})
    assert "not a pickle" in str(refused)


@each_error
def test_what_cannot_be_read_back_is_not_stored(place: Any, error: Exception) -> None:
    d = place.open(encoding=Failing(error))
    d["a"] = 1
    before = state(place, d)
    with pytest.raises(EncodingError, match="could be encoded, but not be read back") as caught:
        d["b"] = "decode"
    assert "key 'b'" in str(caught.value)
    assert str(caught.value).count("'b'") == 1
    assert type(error).__name__ in str(caught.value)
    assert state(place, d) == before


def test_what_ends_the_program_is_not_swallowed(place: Any) -> None:
    d = place.open(encoding=Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        d["a"] = "encode"
    assert place.raw() == {}


def test_a_class_that_is_not_allowed_is_refused_before_anything_is_sent(place: Any) -> None:
    d = place.open(encoding=RestrictedPickleEncoding([datetime.date]))
    d["since"] = datetime.date(2030, 1, 2)
    before = state(place, d)
    with pytest.raises(
        EncodingError, match=r"could be encoded, but not be read back: .* add 'uuid\.UUID'"
    ) as caught:
        d["id"] = uuid.UUID(int=1)
    assert "key 'id'" in str(caught.value)
    with pytest.raises(EncodingError, match="key 'id'"):
        d.update(a=1, id=[uuid.UUID(int=1)])
    assert state(place, d) == before


# What the local copy holds


class Counting:
    """Counts what is decoded."""

    immutable = frozenset({int, str})

    def __init__(self) -> None:
        self.decoded: list[Any] = []

    def encode(self, value: Any) -> str:
        return json.dumps(value)

    def decode(self, payload: bytes) -> Any:
        self.decoded.append(payload.decode())
        return json.loads(payload)


class Number(int):
    pass


def test_immutable_values_are_not_decoded_after_a_write(place: Any) -> None:
    encoding = Counting()
    d = place.open(encoding=encoding)
    d["a"] = 7
    d.update(b="text", c=8)
    assert d.setdefault("d", 9) == 9
    assert d == {"a": 7, "b": "text", "c": 8, "d": 9}
    assert encoding.decoded == []
    # By the exact type: one that is derived may carry more than what is stored, as may the rest.
    d["e"] = Number(7)
    assert type(d["e"]) is int
    d.update(f=[1], g=True)
    assert encoding.decoded == ["7", "[1]", "true"]


def test_an_encoding_that_names_no_immutable_types_decodes_them_all(place: Any) -> None:
    d = place.open(encoding=Upper)
    d["a"] = "text"
    assert d["a"] == "TEXT"


def test_the_local_copy_holds_what_was_stored(place: Any) -> None:
    d = place.open(encoding=JSONEncoding, autosync=False)
    value: dict[Any, Any] = {"sizes": (1, 2), 3: [4]}
    d["a"] = value
    stored = {"sizes": [1, 2], "3": [4]}
    assert d["a"] == stored
    value["sizes"] = ()
    value[3].append(5)
    assert d["a"] == stored
    assert d.setdefault("b", (1,)) == [1]
    d.replace_all({"c": (2,)})
    assert dict.copy(d) == {"c": [2]}
    d.sync(force=True)
    assert d == {"c": [2]}


def test_no_op_holds_the_object_itself() -> None:
    value = [1]
    d = MemoryDict[str, Any](encoding=NoOpEncoding)
    d["a"] = value
    assert d["a"] is value


# Secrets


def frames_of_the_library(error: BaseException | None) -> str:
    """The local variables of its frames; those of a test hold the secrets, of course."""
    shown = []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if Path(frame.f_code.co_filename).parent == Path(coder.__file__).parent:
                # Not the dict, whose repr is of values and may not be asked for yet.
                shown += [
                    repr(value)
                    for value in frame.f_locals.values()
                    if not isinstance(value, DurableDict)
                ]
        error = error.__cause__
    return "\n".join(shown)


def test_no_message_contains_the_secret(place: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets: list[str | bytes] = ["hunter2", b"hunter3"]
    signed = SignedEncoding(secrets, JSONEncoding)
    place.put("unsigned", '"x"')
    place.put("header", b"\x01" + bytes(40))
    place.put("compressed", b"\x03\x01" + bytes(40))
    errors: list[BaseException] = []
    for encoding in (signed, CompressedEncoding(signed)):
        with pytest.raises(ValueError, match="allow_unsigned") as refused:
            place.open(encoding=encoding, old_encoding=Unsigned())
        with pytest.raises(TypeError, match="old_encoding") as no_encoding:
            place.open(encoding=encoding, old_encoding=[encoding])
        d = place.open(encoding=encoding, old_encoding=SignedEncoding("hunter4"))
        assert len(d.undecodable) == 3
        with pytest.raises(EncodingError) as failed:
            d["a"] = {1, 2}
        errors += [refused.value, no_encoding.value, failed.value, *d.undecodable.values()]
    old = CompressedEncoding(SignedEncoding("hunter5"))
    place.open(encoding=signed, old_encoding=Loud(old), allow_unsigned=True)

    logged = [record.getMessage() + repr(record.args) for record in caplog.records]
    assert any("allow_unsigned" in message for message in logged)
    assert len(errors) == 12
    # Those that are kept have no traceback, which would keep the caller's variables as well.
    for error in errors:
        raised = not isinstance(error, DecodingError)
        assert raised is ("coder.py" in repr(traceback.extract_tb(error.__traceback__)))
    for error in errors:
        logged += [str(error), repr(error), frames_of_the_library(error)]
    for text in logged:
        assert "hunter" not in text


class Loud(CompressedEncoding):
    """Taken for an encoding that runs code, so that its repr is logged."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.executes_code = True
