"""What others write into the stores themselves, past the library: one key is harmed at most.

Real stores, written by their own drivers: SQLite, Redis, ZooKeeper. docs/internals.rst, rules 6.3
and 6.4.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException

from durabledict import (
    DurableDictError,
    PickleEncoding,
    RedisDict,
    RestrictedPickleEncoding,
    SqliteDict,
    ZookeeperDict,
)
from durabledict.bytekeys import bytes_of, key_of
from durabledict.keys import canonical_key, decode_key, encode_key
from durabledict.redisprimary import key_names
from durabledict.sqlitelog import packed, unpacked
from durabledict.zookeepernames import decode_name, encode_name

from .hostile import Canary, damaged, hostile_pickles, put_row
from .test_keys import KEYS, exactly
from .zookeeperservers import ZookeeperServer, started

relaxed = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

few = settings(relaxed, max_examples=10)

SAFE = RestrictedPickleEncoding()
GOOD: dict[str, Any] = {"a": 1, "b": [2], "c/d": None}

#: Payloads of which none is a value to a restricted pickle, or all that it says is harmless.
PAYLOADS = st.one_of(st.binary(max_size=40), hostile_pickles(), hostile_pickles().flatmap(damaged))
TAGS = st.sampled_from(["~int:", "~str:", "~tuple:", "~utf8:", "~bytes:", "~float:", "~none"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
HOSTILE_TEXTS = st.one_of(TEXTS, st.builds(str.__add__, TAGS, TEXTS))


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as made:
        yield made


def assert_the_others_are_there(d: Any, good: dict[Any, Any], keys: set[Any]) -> None:
    """See that each key is a value or undecodable, and the good ones what they were."""
    held = d.copy()
    assert {key: held.get(key) for key in good} == good
    assert set(held) | set(d.undecodable) == set(good) | keys
    for key in good:
        assert d[key] == good[key]
    d["written after"] = 1
    assert d["written after"] == 1
    assert d.compute("a", lambda value: value + 1) == 2
    d["a"] = 1
    for key in keys:
        del d[key]
        assert key not in d
        d[key] = 5
        assert d[key] == 5
        del d[key]
    del d["written after"]
    assert d == good
    assert not d.undecodable


# -- SQLite ---------------------------------------------------------------------------------------


ROW_VALUES = st.one_of(
    PAYLOADS,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    HOSTILE_TEXTS,
    st.just(True),
)
# As other programs do: text, or bytes that are said to be text.
ROW_KEYS = st.one_of(HOSTILE_TEXTS, st.binary(max_size=8))


@given(rows=st.dictionaries(ROW_KEYS, ROW_VALUES, max_size=6))
@relaxed
def test_rows_of_another_program(
    tmp_path_factory: pytest.TempPathFactory, canary: Canary, rows: dict[Any, Any]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "d.sqlite"
    with (
        SqliteDict[Any, Any](path, encoding=SAFE, synchronous="OFF") as d,
        SqliteDict[Any, Any](path, encoding=SAFE, autosync=False) as late,
    ):
        d.update(GOOD)
        late.sync()
        for key, value in rows.items():
            put_row.run(
                path,
                "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) "
                "VALUES ('default', CAST(? AS TEXT), ?)",
                key,
                value,
            )
        keys = {_shown(key) for key in rows} - set(GOOD)
        good = {key: value for key, value in GOOD.items() if key not in set(map(_shown, rows))}
        late.sync()
        assert late.copy() == d.copy()
        assert set(late.undecodable) == set(d.undecodable)
        for key, value in GOOD.items():
            d[key] = value
        assert_the_others_are_there(d, {**GOOD, **good}, keys)
    assert not canary.sang()


def _shown(key: str | bytes) -> Any:
    raw = key.encode() if isinstance(key, str) else key
    return decode_key(raw.decode("utf-8", "surrogateescape"))


FIELDS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    HOSTILE_TEXTS,
    st.binary(max_size=10),
    st.sampled_from(
        [
            b"[",
            b"{}",
            b"5",
            b'"a"',
            b"[1]",
            b"[null]",
            b"[[]]",
            b'["\\ud800"]',
            b"[" * 100_000,
            b"9" * 5000,
            b"[" + b"9" * 5000 + b"]",
        ]
    ),
    st.lists(TEXTS, min_size=2).map(packed),
)


@given(field=FIELDS)
def test_the_field_of_a_commit_is_a_list_of_keys_or_unknown(field: Any) -> None:
    keys = unpacked(field)
    assert keys is None or all(isinstance(key, (str, bytes)) for key in keys)


@given(written=FIELDS, removed=FIELDS)
@relaxed
def test_commits_of_another_program(
    tmp_path_factory: pytest.TempPathFactory, written: Any, removed: Any
) -> None:
    """A commit that does not say which keys it changed costs a reload, and nothing else."""
    path = tmp_path_factory.mktemp("commits") / "d.sqlite"
    with SqliteDict[Any, Any](path, synchronous="OFF") as d:
        d.update(GOOD)
        assert d == GOOD
        put_row.run(path, "UPDATE durabledict_entries SET value = ? WHERE key = 'b'", b"\x80\x04N.")
        # As if this were what it said.
        put_row.run(
            path,
            "INSERT INTO durabledict_commits SELECT keyspace, max(version) + 1, 5, ?, ? "
            "FROM durabledict_commits",
            written,
            removed,
        )
        assert d["b"] is None
        assert d == {**GOOD, "b": None}
        d["e"] = 1
        assert d == {**GOOD, "b": None, "e": 1}


@pytest.mark.parametrize(
    "stamp",
    [
        ("'text'", "5"),
        ("1e300", "5"),
        ("x'00ff'", "5"),
        ("100", "'text'"),
        ("100", "1.5"),
        ("9223372036854775807", "5"),
    ],
)
def test_a_commit_that_is_none_of_ours_is_named(tmp_path: Path, stamp: tuple[str, str]) -> None:
    path = tmp_path / "d.sqlite"
    with SqliteDict[Any, Any](path) as d, SqliteDict[Any, Any](path, "other") as other:
        d.update(GOOD)
        other["a"] = 1
        put_row.run(
            path,
            "INSERT INTO durabledict_commits "
            f"VALUES ('default', {stamp[0]}, {stamp[1]}, 'a', NULL)",
        )
        with pytest.raises(DurableDictError, match="durabledict_commits"):
            d["a"] = 5
        # The other keyspace does not notice, and when it is gone, all is well again.
        other["b"] = 2
        assert other == {"a": 1, "b": 2}
        put_row.run(path, f"DELETE FROM durabledict_commits WHERE version = {stamp[0]}")
        assert d == GOOD
        d["a"] = 5
        assert d["a"] == 5


def closed_file(path: Path) -> Path:
    """Make a file with the good entries, which nobody has open."""
    with SqliteDict[Any, Any](path, synchronous="OFF") as d:
        d.update(GOOD)
    return path


@given(noise=st.binary(min_size=1, max_size=200), place=st.integers(0, 4096))
@few
def test_a_damaged_file_is_an_error_of_sqlite(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int
) -> None:
    path = closed_file(tmp_path_factory.mktemp("damage") / "d.sqlite")
    with path.open("r+b") as file:
        file.seek(place)
        file.write(noise)
    try:
        with SqliteDict[Any, Any](path, encoding=SAFE) as d:
            d.copy()
            d["a"] = 1
    except (sqlite3.DatabaseError, ValueError, DurableDictError):
        pass  # as documented: not a database, malformed, or another version


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@given(noise=st.binary(max_size=200))
@few
def test_noise_in_the_files_beside_it(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, noise: bytes
) -> None:
    path = closed_file(tmp_path_factory.mktemp("beside") / "d.sqlite")
    Path(f"{path}{suffix}").write_bytes(noise)
    with SqliteDict[Any, Any](path, encoding=SAFE) as d:
        assert d == GOOD
        d["e"] = 1
    with SqliteDict[Any, Any](path, encoding=SAFE) as d:
        assert d == {**GOOD, "e": 1}


# -- Redis ----------------------------------------------------------------------------------------


REDIS_FIELDS = st.one_of(
    HOSTILE_TEXTS.map(str.encode),
    st.binary(max_size=8),
    st.sampled_from([b"\xff", b'~str:"\\udcff"', b"~utf8:edb3bf", b"~\xff", b"a\nb", b"\n", b""]),
)


@given(fields=st.dictionaries(REDIS_FIELDS, PAYLOADS, max_size=6))
@relaxed
def test_fields_of_another_program(
    redis_client: redis.Redis, canary: Canary, fields: dict[bytes, bytes]
) -> None:
    redis_client.flushall()
    with (
        RedisDict[Any, Any]("settings", redis_client, encoding=SAFE) as d,
        RedisDict[Any, Any]("settings", redis_client, autosync=False, encoding=SAFE) as late,
    ):
        d.update(GOOD)
        late.sync()
        for field, payload in fields.items():
            redis_client.hset("settings", field, payload)
        # Who writes to the hash alone is found out by the number of entries, or by force.
        for each in (d, late):
            each.sync(force=True)
        assert late.copy() == d.copy()
        assert set(late.undecodable) == set(d.undecodable)
        for key, value in GOOD.items():
            d[key] = value
        keys = {key_of(field) for field in fields} - set(GOOD)
        assert_the_others_are_there(d, GOOD, keys)
        # Nothing is left that the dict does not show.
        assert redis_client.hlen("settings") == len(GOOD)
    assert not canary.sang()


ESCAPES = st.text('~str:"\\udcf\udcff\ud83d\u00e9n', max_size=14)
ESCAPED = st.one_of(
    ESCAPES,
    ESCAPES.map(encode_key),
    ESCAPES.map(encode_key).map(encode_key),
    ESCAPES.map(encode_key).map(encode_key).map(encode_key),
)


@given(
    raw=st.one_of(
        REDIS_FIELDS, st.binary(), ESCAPED.map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_any_bytes_are_those_of_one_key(raw: bytes) -> None:
    assert bytes_of(key_of(raw)) == raw


@given(key=st.one_of(ESCAPED, KEYS))
def test_any_key_has_bytes_of_its_own(key: Any) -> None:
    assert exactly(key_of(bytes_of(key))) == exactly(canonical_key(key))


def _array(*items: bytes) -> bytes:
    return bytes([0x90 + len(items)]) + b"".join(items)


#: What a stream's entry may list: msgpack that is no list of texts, and what is no msgpack.
LISTS = st.one_of(
    st.binary(max_size=12),
    st.binary(max_size=12).map(lambda rest: b"m" + rest),
    st.sampled_from(
        [
            b"",
            b"k",
            b"*",
            b"m",
            b"m\xc0",
            b"m" + _array(b"\xc0"),  # nil
            b"m" + _array(b"\xa1b", b"\xc0", b"\xa1b"),
            b"m" + _array(b"\xcb\x7f\xf8" + bytes(6)),  # NaN
            b"m" + _array(b"\x05"),
            b"m" + _array(b"\xc3"),
            b"m" + _array(_array(b"\xa1b")),
            b"m\x81\xa1a\xa1b",  # a map
            b"m" + b"\x91" * 1000,
            b"m\xdd\xff\xff\xff\xff",
            b"m" + _array(b"\xa1b") + b"\xc1",
            b"k\xff\xfe",
            b"k" + b"x" * 5000,
        ]
    ),
)


@given(
    written=LISTS,
    name=st.sampled_from([b"1", b"0", b"", b"-1", b"nan", b"1.0", b"x"]),
    step=st.integers(1, 2),
)
@relaxed
def test_entries_of_the_stream_of_another_program(
    redis_client: redis.Redis, written: bytes, name: bytes, step: int
) -> None:
    """An entry that does not say which keys it changed costs a reload, and nothing else."""
    redis_client.flushall()
    _, stream, mirror = key_names("settings")
    with RedisDict[Any, Any]("settings", redis_client) as d:
        d.update(GOOD)
        assert d.last_synced is not None
        number = d.last_synced[0] + step
        redis_client.hset("settings", "b", PickleEncoding.encode(None))
        redis_client.xadd(stream, {name: written}, id=f"{number}-5")
        redis_client.set(mirror, f"{number}-5")
        # It is said that only "b" was changed, or nothing: then only what is said is fetched.
        says_something = name == b"1" and written[:1] == b"k" and written != b"kb" and step == 1
        d.sync()
        if not says_something:
            assert d == {**GOOD, "b": None}
        d["e"] = 1
        d.sync(force=True)
        assert d == {**GOOD, "b": None, "e": 1}


@pytest.mark.parametrize(
    "told", [b"", b"text", b"9" * 5000 + b"-5", b"5-" + b"9" * 5000, b"-", b"1-2-3", b"\xff"]
)
def test_a_mirror_that_holds_something_else(redis_client: redis.Redis, told: bytes) -> None:
    with RedisDict[Any, Any]("settings", redis_client) as d:
        d.update(GOOD)
        redis_client.set(key_names("settings")[2], told)
        assert d == GOOD
        redis_client.hset("settings", "b", PickleEncoding.encode(None))
        d.sync(force=True)
        assert d["b"] is None
        d["e"] = 1
        assert d == {**GOOD, "b": None, "e": 1}


def test_a_counter_of_0_9_with_thousands_of_digits(redis_client: redis.Redis) -> None:
    redis_client.hset("settings", "a", PickleEncoding.encode(1))
    redis_client.set("settingslast_updated", "9" * 5000)
    with RedisDict[Any, Any]("settings", redis_client) as d:
        assert d == {"a": 1}


# -- ZooKeeper ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(zookeeper_server: ZookeeperServer) -> Iterator[KazooClient]:
    with started(zookeeper_server.client()) as made:
        yield made


NAMES = st.one_of(
    HOSTILE_TEXTS,
    st.builds("~name:{}".format, st.text("%2FfEe~name:aA0", max_size=12)),
    st.text("~%:\ta\u0300 -", min_size=1, max_size=6),
)


@given(
    children=st.dictionaries(NAMES, PAYLOADS, max_size=5),
    place=st.binary(max_size=20),
    number=st.integers(0, 2**60),
)
@few
def test_children_of_another_program(
    client: KazooClient, canary: Canary, children: dict[str, bytes], place: bytes, number: int
) -> None:
    path = f"/hostile-{number}"
    if client.exists(path):
        client.delete(path, recursive=True)
    with ZookeeperDict[Any, Any](path, client, "strict", encoding=SAFE) as d:
        d.update(GOOD)
        client.set(path, place)
        made = set()
        for name, payload in children.items():
            try:
                client.create(f"{path}/{name}", payload)
                made.add(name)
            except (KazooException, ValueError):
                pass  # ZooKeeper takes no such name, or it is there
            except UnicodeError:
                pass
        keys = {decode_name(name) for name in made if "/" not in name} - set(GOOD)
        assert_the_others_are_there(d, GOOD, keys)
    client.delete(path, recursive=True)
    assert not canary.sang()


def test_a_name_that_is_an_escape_a_thousand_times_is_told_soon() -> None:
    """Each level is looked at, and of a megabyte it can have more than a thousand."""
    name = "~name:"
    while len(name) < 200_000:
        longer = "~name:%7E" + name[1:].replace("%", "%25")
        name = longer
    key = decode_name(name)
    assert encode_name(key) == name
