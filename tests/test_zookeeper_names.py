"""Keys as the names of znodes, past the library and on a real server; and what 0.9 left there."""

from __future__ import annotations

import base64
import datetime
import decimal
import itertools
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kazoo.client import KazooClient
from kazoo.exceptions import BadArgumentsError, NotEmptyError
from kazoo.security import make_digest_acl

from durabledict import PickleEncoding, ZookeeperDict
from durabledict.errors import DecodingError
from durabledict.keys import canonical_key
from durabledict.zookeepernames import decode_name, encode_name

from .test_keys import KEYS, TAGGED_TEXT, VALID_TEXT, exactly
from .zookeeperservers import ZookeeperServer, started
from .zookeeperstore import Dict, Store, payload

OLD_PAYLOADS = json.loads(
    (Path(__file__).parent / "data" / "durabledict-0.9-payloads.json").read_text()
)["cases"]

# A busy machine is no failure of the code.
relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# As PathUtils.validatePath of ZooKeeper's has them: in the units of UTF-16.
FORBIDDEN_UNITS = [
    (0x00, 0x1F),
    (0x7F, 0x9F),
    (0xD800, 0xF8FF),
    (0xFFF0, 0xFFFF),
]
SPECIAL = ["/", ".", "..", "zookeeper", "~", "~name:", "%", "%2F"]

# The first and the last character of each class, and those beside them.
EDGES = [
    *map(chr, (0x00, 0x01, 0x09, 0x0A, 0x1F, 0x20, 0x7E, 0x7F, 0x80, 0x9F, 0xA0)),
    *map(chr, (0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xF8FF, 0xF900)),
    *map(chr, (0xFFEF, 0xFFF0, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1F600, 0x10FFFF)),
    *SPECIAL,
]

# What mixes that with the texts of tags.
TEXTS = st.lists(st.one_of(st.sampled_from(EDGES), VALID_TEXT, TAGGED_TEXT), max_size=4).map(
    "".join
)
ESCAPES = st.builds(
    "~name:{}".format, st.one_of(TEXTS, st.text("%2FfEe~name:aA0", max_size=12), TAGGED_TEXT)
)
ANY_KEYS = st.one_of(TEXTS, ESCAPES, KEYS, st.tuples(TEXTS, st.integers()))


def is_taken(name: str) -> bool:
    """Whether ZooKeeper takes this for the name of a znode, by its own rules."""
    units = [
        int.from_bytes(pair, "big")
        for pair in re.findall(rb"(?s)..", name.encode("utf-16-be", "surrogatepass"))
    ]
    forbidden = any(low <= unit <= high for unit in units for low, high in FORBIDDEN_UNITS)
    return not forbidden and "/" not in name and name not in ("", ".", "..")


# -- names alone ----------------------------------------------------------------------------------


@relaxed
@given(ANY_KEYS, st.booleans())
@example("", True)
@example("zookeeper", True)
@example("~name:zookeeper", True)
@example("~name:%7A%6F%6F%6B%65%65%70%65%72", False)
@example("~name:", False)
@example("~name:%7Ename:", False)
@example("~name:~name:", False)
@example(("\ud83d\ude00", "\U0001f600\ud800"), False)
def test_every_key_comes_back(key: Any, in_root: bool) -> None:
    name = encode_name(key, in_root)
    assert is_taken(name)
    assert not (in_root and name == "zookeeper")
    assert exactly(decode_name(name, in_root)) == exactly(canonical_key(key))


@relaxed
@given(st.one_of(ESCAPES, TEXTS, ANY_KEYS.map(encode_name)), st.booleans())
@example("~name:a", False)
@example("~name:%2f", False)
@example("~name:%2F", False)
@example("~name:%ED%A0%80", False)
@example("~name:%", False)
@example("~name:%7Aookeeper", True)
@example("~name:%7A%6F%6F%6B%65%65%70%65%72", True)
@example("~name:%7A%6F%6F%6B%65%65%70%65%72", False)
def test_every_name_comes_back(name: str, in_root: bool) -> None:
    """Of whatever znode, by whomever it was made."""
    if is_taken(name) and not (in_root and name == "zookeeper"):
        assert encode_name(decode_name(name, in_root), in_root) == name


@relaxed
@given(ANY_KEYS, ANY_KEYS, st.booleans())
@example("a/b", "~name:a%2Fb", False)
@example("~name:%2F", "/", False)
@example(1, "~int:1", False)
@example(1, True, False)
@example("~name:zookeeper", "zookeeper", True)
def test_equal_keys_and_only_those_share_a_name(one: Any, other: Any, in_root: bool) -> None:
    assert (encode_name(one, in_root) == encode_name(other, in_root)) == (one == other)


@relaxed
@given(VALID_TEXT)
def test_a_key_that_zookeeper_takes_is_its_own_name(key: str) -> None:
    """As 0.9 had it, and other programs have."""
    if is_taken(key) and not key.startswith("~"):
        assert encode_name(key) == key


def test_the_names_of_some_keys() -> None:
    names = {
        "theme": "theme",
        "Straße ☃": "Straße ☃",
        "%2F": "%2F",
        "...": "...",
        1: "~int:1",
        "a/b": "~name:a%2Fb",
        "a%/b": "~name:a%25%2Fb",
        ".": "~name:%2E",
        "..": "~name:%2E%2E",
        "": "~name:",
        "😀": "~name:%F0%9F%98%80",
        "\uf8ff": "~name:%EF%A3%BF",
        ("a/b", 1): '~name:~tuple:["a%2Fb","~int:1"]',
        "~name:a%2Fb": "~name:%7Ename:a%252Fb",
    }
    for key, name in names.items():
        assert encode_name(key) == name
        assert decode_name(name) == key
    assert encode_name("zookeeper") == "zookeeper"
    assert encode_name("zookeeper", in_root=True) == "~name:%7A%6F%6F%6B%65%65%70%65%72"


def test_a_name_that_is_no_escape_is_a_key_of_its_own() -> None:
    for name in ("~name:a", "~name:%2f", "~name:%61", "~name:%", "~name:a%2Fb%", "~name:%ED%A0%80"):
        assert decode_name(name) == name
        assert encode_name(name) == name


def test_an_escape_of_an_escape_of_an_escape() -> None:
    name, names = "/", []
    for _ in range(50):
        name = encode_name(name)
        names.append(name)
        assert is_taken(name)
    assert len(set(names)) == 50
    for shorter, longer in itertools.pairwise(names):
        assert decode_name(longer) == shorter
    assert len(names[-1]) < 10_000


def test_a_key_of_a_class_that_cannot_be_stored() -> None:
    with pytest.raises(TypeError, match="object"):
        encode_name(object())


# -- on a server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(zookeeper_server: ZookeeperServer) -> Iterator[KazooClient]:
    """For the tests of hypothesis, which takes no fixture of a function."""
    with started(zookeeper_server.client()) as client:
        yield client


KEYS_OF_EDGES: list[Any] = [
    *EDGES,
    *(f"a{edge}b" for edge in EDGES),
    *(edge * 3 for edge in EDGES),
    *(("tuple", edge) for edge in EDGES),
    *(f"~name:{edge}" for edge in EDGES),
    "",
    "...",
    " ",
    "a b",
    "a//b",
    "/a",
    "a/",
    "a/./b",
    "~int:1",
    1,
    -1,
    1.5,
    None,
    b"",
    b"\x00\xff",
    (),
    ((), (1, ("a/b",))),
]
KEYS_OF_EDGES = list(dict.fromkeys(KEYS_OF_EDGES))


def test_a_real_server_takes_every_class_of_characters(store: Store) -> None:
    """In each way of writing, and hands it back to another client and another program."""
    d, other = store.open(), store.open(autosync="strict")
    for number, key in enumerate(KEYS_OF_EDGES):
        d[key] = number
        assert d[key] == number
    expected = {key: number for number, key in enumerate(KEYS_OF_EDGES)}
    assert d.copy() == other.copy() == store.truth() == expected
    assert store.open().copy() == expected
    d.update(dict.fromkeys(KEYS_OF_EDGES, "updated"))
    assert other.copy() == dict.fromkeys(KEYS_OF_EDGES, "updated")
    for key in KEYS_OF_EDGES[::7]:
        assert d.compute(key, lambda value: value + "!") == other[key] == "updated!"
        assert d.pop(key) == "updated!"
        assert key not in other
        assert d.setdefault(key, 1) == other[key] == 1
        del d[key]
        assert key not in other
    d.clear()
    assert other.copy() == store.truth() == {}


def test_it_takes_every_single_character(store: Store) -> None:
    """Each of the Basic Multilingual Plane, and some above it; a thousand in one key."""
    characters = list(map(chr, [*range(0x10000), *range(0x10000, 0x110000, 0x301)]))
    keys = ["".join(characters[begin : begin + 1000]) for begin in range(0, len(characters), 1000)]
    d = store.open()
    d.update(dict.fromkeys(keys, 1))
    assert store.open().copy() == dict.fromkeys(keys, 1)
    d.clear()


def test_it_refuses_what_is_escaped(store: Store) -> None:
    """No more is escaped than has to be."""
    store.put(a=1)
    for low, high in FORBIDDEN_UNITS:
        for unit in {low, high, (low + high) // 2}:
            if 0xD800 <= unit <= 0xDFFF:
                continue  # UTF-8 has none of them
            with pytest.raises(BadArgumentsError):
                store.raw.create(f"{store.path}/a{chr(unit)}b")
    for character in ("\U00010000", "😀", "\U0010ffff"):
        with pytest.raises(BadArgumentsError):
            store.raw.create(f"{store.path}/a{character}b")
    for unit in (0x20, 0x7E, 0xA0, 0xD7FF, 0xF900, 0xFFEF):
        store.raw.create(f"{store.path}/a{chr(unit)}b", payload(unit))
        assert encode_name(f"a{chr(unit)}b") == f"a{chr(unit)}b"


@settings(relaxed, max_examples=30)
@given(st.lists(ANY_KEYS, max_size=12, unique_by=encode_name))
def test_any_keys_live_in_one_dict(client: KazooClient, keys: list[Any]) -> None:
    wanted = {canonical_key(key): repr(key) for key in keys}
    with Dict("/names", client) as d:
        d.replace_all(wanted)
        assert d.copy() == wanted
        with Dict("/names", client) as again:
            assert again.copy() == wanted
            assert sorted(map(repr, again)) == sorted(map(repr, wanted))


@pytest.mark.parametrize("length", [256, 10_000, 100_000])
@pytest.mark.parametrize("letter", ["x", "☃", "/", "😀"])
def test_very_long_keys(store: Store, length: int, letter: str) -> None:
    key = letter * (length // len(encode_name(letter).encode()))
    d, other = store.open(), store.open(autosync="strict")
    d[key] = 1
    assert other[key] == 1
    d.update({key: 2})
    assert other[key] == 2
    assert d.compute(key, lambda value: value + 1) == 3
    assert other.copy() == {key: 3}
    assert d.pop(key) == 3
    assert other == {}


def test_a_key_that_fits_into_no_request_is_refused(store: Store) -> None:
    d = store.open()
    d["a"] = 1
    key = "x" * (1 << 20)
    for write in (
        lambda: d.__setitem__(key, 1),
        lambda: d.update({key: 1}),
        lambda: d.setdefault(key, 1),
        lambda: d.replace_all({key: 1}),
        lambda: d.compute(key, lambda value: 1, default=0),
    ):
        with pytest.raises(ValueError, match="1,048,575"):
            write()
    # There is no such key.
    with pytest.raises(KeyError):
        del d[key]
    assert d.pop(key, None) is None
    assert d.compare_and_set(key, 1, 2) is False
    assert d.get(key) is None
    assert d.copy() == store.truth() == {"a": 1}


def test_directly_under_the_root_zookeepers_own_folder_is_no_entry(store: Store) -> None:
    """Nor is it touched; and `d["zookeeper"]` is a key as any other."""
    d = ZookeeperDict[Any, Any]("/", store.client(), autosync=False)
    before = store.raw.get("/zookeeper")
    own = [child for child in store.raw.get_children("/") if child != "zookeeper"]
    with d:
        assert "zookeeper" not in d
        assert "zookeeper" not in d.undecodable
        assert {*d, *d.undecodable} == {decode_name(name, in_root=True) for name in own}
        d["zookeeper"] = 1
        d["zookeeper/x"] = 2
        d.update({"zookeeper": 3})
        with ZookeeperDict[Any, Any]("/", store.client()) as other:
            assert (other["zookeeper"], other["zookeeper/x"]) == (3, 2)
            assert other.pop("zookeeper") == 3
        d.sync()
        assert "zookeeper" not in d
        del d["zookeeper/x"]
    assert store.raw.get("/zookeeper") == before
    assert sorted(store.raw.get_children("/")) == sorted([*own, "zookeeper"])


def test_in_a_chroot_zookeeper_is_a_name_as_any_other(store: Store) -> None:
    store.put(a=1)
    client = store.client(hosts=f"{store.server.hosts}{store.path}")
    with ZookeeperDict[Any, Any]("/", client) as d:
        d["zookeeper"] = 1
        assert d == {"a": 1, "zookeeper": 1}
    assert store.truth() == {"a": 1, "zookeeper": 1}


@pytest.mark.parametrize(
    ("keyspace", "path"),
    [("{}", "{}"), ("{}/", "{}"), ("/{}//deep/er/", "{}/deep/er"), ("{}/ Straße", "{}/ Straße")],
)
def test_the_paths_of_keyspaces(store: Store, keyspace: str, path: str) -> None:
    with ZookeeperDict[str, int](keyspace.format(store.path), store.client()) as d:
        d["a"] = 1
        assert store.raw.get_children(path.format(store.path)) == ["a"]
        assert d == {"a": 1}


@pytest.mark.parametrize("keyspace", ["/a/../b", "/./a", "/a\x00", "/a/\uf8ff", "/😀", "a/\ud800"])
def test_a_keyspace_that_is_no_path(store: Store, keyspace: str) -> None:
    with pytest.raises(ValueError, match="no path that ZooKeeper takes"):
        ZookeeperDict(keyspace, store.raw)


# -- what is there already ------------------------------------------------------------------------


def old(value: Any) -> bytes:
    """A payload as 0.9 made it under Python 3."""
    return base64.encodebytes(pickle.dumps(value, protocol=2))


def test_every_payload_of_0_9_is_read_from_its_tree(store: Store) -> None:
    names = {
        "datetime": datetime,
        "decimal": decimal,
        "OrderedDict": OrderedDict,
        "collections": __import__("collections"),
    }
    store.raw.ensure_path(store.path)
    for case in OLD_PAYLOADS:
        store.raw.create(f"{store.path}/{case['name']}", case["payload"].encode())
    for d in (store.open(), store.open(encoding=PickleEncoding, autosync="strict")):
        assert not d.undecodable
        assert set(d) == {case["name"] for case in OLD_PAYLOADS}
        for case in OLD_PAYLOADS:
            assert d[case["name"]] == eval(case["expected"], dict(names))


def test_opening_leaves_what_0_9_wrote_as_it_was(store: Store) -> None:
    store.raw.create(f"{store.path}/a", old(1), makepath=True)
    before = store.raw.get(f"{store.path}/a"), store.raw.get(store.path)
    d = store.open()
    assert d == {"a": 1}
    assert d.sync(force=True) is False
    assert (store.raw.get(f"{store.path}/a"), store.raw.get(store.path)) == before


def test_what_a_process_of_0_9_goes_on_writing_is_seen(store: Store) -> None:
    """It sets a znode, or makes or deletes one: watches tell of that whoever does it."""
    store.raw.ensure_path(store.path)
    d = store.open()
    for number in range(3):
        store.raw.create(f"{store.path}/a", old(number))
        store.tell(d)
        assert d == {"a": number}
        store.raw.set(f"{store.path}/a", old("set"))
        store.tell(d)
        assert d["a"] == "set"
        store.raw.delete(f"{store.path}/a")
        store.tell(d)
        assert d == {}


def test_a_tree_of_0_9_is_migrated(store: Store) -> None:
    for number in range(20):
        store.raw.create(f"{store.path}/{number}", old([number]), makepath=True)
    d, other = store.open(), store.open(autosync="strict")
    d["1"] = "new"
    assert d.migrate() == 20
    expected = {str(number): "new" if number == 1 else [number] for number in range(20)}
    assert other.copy() == d.copy() == store.truth() == expected
    assert store.raw.get(f"{store.path}/7")[0] == payload([7])


FOREIGN = {
    "no payload": b"",
    "no pickle": b"{'json': 1}",
    "half a pickle": payload(list(range(100)))[:50],
    "of an unknown class": b"cnowhere\nNothing\n.",
    "binary": b"\x00\x01\xff" * 100,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_child_harms_itself_only(
    store: Store, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(a=1, b=2)
    store.raw.create(f"{store.path}/foreign", FOREIGN[name])
    d = store.open()
    assert d.copy() == {"a": 1, "b": 2}
    assert set(d.undecodable) == {"foreign"}
    with pytest.raises(DecodingError, match="'foreign'"):
        d["foreign"]
    assert d["a"] == 1
    said = [record.getMessage() for record in caplog.records if record.name == "durabledict.sync"]
    assert [text[:13] for text in said] == ["key 'foreign'"]
    # Others write beside it, and it becomes another one, good, and bad again.
    store.put(a=3, c=1)
    store.tell(d)
    assert d.copy() == {"a": 3, "b": 2, "c": 1}
    store.put(foreign="good")
    store.tell(d)
    assert d["foreign"] == "good"
    assert not d.undecodable
    store.raw.set(f"{store.path}/foreign", FOREIGN[name])
    store.tell(d)
    assert "foreign" not in d.copy()
    assert set(d.undecodable) == {"foreign"}
    store.remove("foreign")
    store.tell(d)
    assert "foreign" not in d
    assert not d.undecodable
    assert d.copy() == {"a": 3, "b": 2, "c": 1}


def test_a_foreign_child_can_be_overwritten_and_removed(store: Store) -> None:
    store.put(a=1)
    for name, foreign in FOREIGN.items():
        store.raw.create(f"{store.path}/{name}", foreign)
    d = store.open()
    first, second, *others = FOREIGN
    d[first] = 1
    assert d[first] == 1
    del d[second]
    assert set(d.undecodable) == set(others)
    d.replace_all({"b": 1})
    assert not d.undecodable
    assert d.copy() == store.truth() == {"b": 1}


def test_a_folder_of_somebody_elses_stays(store: Store) -> None:
    """A child with children of its own, which is no entry."""
    store.put(a=1)
    store.raw.create(f"{store.path}/folder/child", b"theirs", makepath=True)
    d = store.open()
    assert set(d.undecodable) == {"folder"}
    d.clear()
    assert store.raw.get(f"{store.path}/folder/child")[0] == b"theirs"
    d.replace_all({"b": 1})
    assert d.copy() == {"b": 1}
    assert sorted(store.raw.get_children(store.path)) == ["b", "folder"]
    with pytest.raises(NotEmptyError, match="key 'folder': its znode has children of its own"):
        del d["folder"]
    assert d.copy() == {"b": 1}


def test_a_child_that_may_not_be_read_harms_itself_only(store: Store) -> None:
    """Its ACL lets in the one who made it."""
    store.put(a=1, b=1)
    owner = store.client(auth_data=[("digest", "user:secret")])
    acl = [make_digest_acl("user", "secret", all=True)]
    owner.create(f"{store.path}/secret", payload("secret"), acl=acl)
    d = store.open()
    assert d.copy() == {"a": 1, "b": 1}
    assert set(d.undecodable) == {"secret"}
    with pytest.raises(DecodingError, match=r"'secret'.*may not read"):
        d["secret"]
    store.put(a=2)
    store.tell(d)
    assert d["a"] == 2
    assert store.open(owner)["secret"] == "secret"
    owner.set_acls(f"{store.path}/secret", d.connection.get_acls(f"{store.path}/a")[0])
    d.sync(force=True)
    assert d["secret"] == "secret"
    assert not d.undecodable


def test_a_name_that_looks_like_an_escape_was_made_by_another(store: Store) -> None:
    """It is a key of its own, beside the one that is written so."""
    store.raw.create(f"{store.path}/~name:a", payload(1), makepath=True)
    store.raw.create(f"{store.path}/~name:%2f", payload(2))
    d = store.open()
    d["/"] = 3
    assert d == {"~name:a": 1, "~name:%2f": 2, "/": 3}
    for key in list(d):
        d[key] = [key]
    assert store.truth() == {key: [key] for key in ("~name:a", "~name:%2f", "/")}
    assert len(store.raw.get_children(store.path)) == 3


def test_children_that_come_and_go_by_themselves(store: Store) -> None:
    """Ephemeral ones, and those that are numbered."""
    store.put(a=1)
    d = store.open()
    theirs = store.client()
    path = theirs.create(f"{store.path}/n-", payload(1), ephemeral=True, sequence=True)
    store.tell(d)
    assert d == {"a": 1, path.rpartition("/")[2]: 1}
    theirs.stop()
    store.tell(d)
    assert d == {"a": 1}
