"""Cells, names, replies, stamps and records that others wrote where Stores and regions look.

docs/internals.rst, rules 6.1, 6.3 and 6.4.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE, CantDeserializeException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError

from durabledict import MemoryDict, RestrictedPickleEncoding, SignedEncoding
from durabledict.errors import DecodingError
from durabledict.ext.dogpile import SharedInvalidation
from durabledict.stampcaches import as_number
from durabledict.stamps import LEAST, CacheStamp
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    RedisStore,
    ShoveStore,
    cells,
    metacommands,
)
from durabledict.stores.keys import locate
from durabledict.testing.things import Grouped, Thing

from .hostile import Canary, damaged, hostile_pickles
from .memcachedserver import MemcachedServer

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
few = settings(relaxed, max_examples=30)


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as made:
        yield made


@pytest.fixture
def memcached(memcached_server: MemcachedServer) -> MemcachedServer:
    memcached_server.flush()
    return memcached_server


# -- cells ----------------------------------------------------------------------------------------


GOOD_CELLS = [
    cells.pack_pointer("tests.Thing/id=1"),
    cells.pack_record(0.0, (), b"payload"),
    cells.pack_record(5.0, ("a", "b"), b"payload"),
    cells.pack_record(0.0, ("a",), b"payload", (("!group/x", b"G\x01ab"),)),
    cells.marker(b"M"),
    cells.new_token(),
]
CELLS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"R\x01", b"T\x01", b"P\x01", b"P\x02", b"R\x02", b"T\x02", b"P", b"R"]
    ).flatmap(lambda head: st.binary(max_size=30).map(lambda rest: head + rest)),
    st.sampled_from(GOOD_CELLS).flatmap(damaged),
)


@given(cell=CELLS)
@example(cell=b"R\x01" + bytes(8) + b"\xff\xff\xff\xff")
@example(cell=b"T\x01" + bytes(8) + b"\x00\x00\x00\x00\xff\xff\xff\xff")
@relaxed
def test_a_cell_is_taken_apart_or_refused(cell: bytes) -> None:
    for take in (
        cells.is_marker,
        cells.is_record,
        cells.pointer_of,
        cells.payload_of,
        cells.record_of,
        cells.tags_of,
    ):
        try:
            taken: Any = take(cell)
        except DecodingError:
            continue
        names: list[str] = []
        if take is cells.pointer_of and taken is not None:
            names = [taken]
        elif take is cells.record_of and taken is not None:
            names = list(taken.pointers)
        elif take is cells.tags_of:
            names = [name for name, _ in taken]
        for name in names:
            assert cells.is_name(name), name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a\r\nflush_all",
        "a\x00b",
        "a\x7fb",
        "\u00e9",
        "../a",
        "a/../b",
        "a/..",
        "..",
        ".",
        "a/./b",
        "/etc/passwd",
        "a//b",
        "a\\..\\b",
    ],
)
def test_what_is_no_name_leads_nowhere(name: str) -> None:
    assert not cells.is_name(name)
    with pytest.raises(DecodingError):
        cells.pointer_of(b"P\x01" + name.encode())


@pytest.mark.parametrize(
    "value", ["..", ".", "a/b", "../..", "", " ", "\r\n", "\u00e9", "\\", None, 1, b"/", (1, "..")]
)
def test_every_name_of_an_object_is_one(value: Any) -> None:
    for key in ({"id": value}, {"zone": value, "name": value}):
        assert cells.is_name(locate(Thing, key).name)


# -- Stores ---------------------------------------------------------------------------------------


class Raw:
    """A Store, and a way past it to what it holds."""

    def __init__(self, store: Any, put: Any) -> None:
        self.store = store
        self.put = put


@contextmanager
def over_memcached(memcached: MemcachedServer, encoding: Any) -> Iterator[Raw]:
    with closing(memcached.client()) as client:
        store = MemcacheStore([f"127.0.0.1:{memcached.port}"], encoding=encoding)
        raw = memcached.client()

        def put(name: str, cell: bytes) -> None:
            generation = store._generations.of(client)
            raw.set(f"{store._key(name)}@{generation}", cell)

        try:
            yield Raw(store, put)
        finally:
            store.release()
            raw.close()


@pytest.fixture(params=["memcached", "redis", "files", "dict"])
def raw(
    request: pytest.FixtureRequest,
    memcached: MemcachedServer,
    redis_client: redis.Redis,
    tmp_path: Path,
) -> Iterator[Raw]:
    encoding = RestrictedPickleEncoding(allow=[Thing, Grouped])
    if request.param == "memcached":
        with over_memcached(memcached, encoding) as made:
            yield made
    elif request.param == "redis":
        store = RedisStore(redis_client, encoding=encoding)
        yield Raw(store, lambda name, cell: redis_client.set(f"durabledict:{name}", cell))
        store.release()
    elif request.param == "files":
        folder = tmp_path / "folder"
        (tmp_path / "outside").write_bytes(cells.pack_record(0.0, (), b"\x80\x04N."))
        files = ShoveStore(str(folder), encoding=encoding)

        def put(name: str, cell: bytes) -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cell)

        yield Raw(files, put)
    else:
        held: dict[str, Any] = {}
        yield Raw(ShoveStore(held, encoding=encoding), held.__setitem__)


PAYLOADS = st.one_of(st.binary(max_size=30), hostile_pickles())
RECORDS = st.one_of(
    CELLS,
    st.builds(
        cells.pack_record,
        st.floats(),
        st.lists(st.text(max_size=8).filter(lambda name: name < "\ud800"), max_size=2).map(tuple),
        PAYLOADS,
    ).filter(bool),
)


@given(cell=RECORDS.filter(lambda cell: len(cell) < 1000))
@example(cell=b"P\x01a b")
@example(cell=b"P\x01x\r\nflush_all\r\nmn")
@example(cell=b"P\x01../outside")
@example(cell=b"P\x01../../../../../../dev/zero")
@example(cell=b"R\x01" + bytes(8) + b"\x00\x00\x00\x03\xff\xfe\xff" + b"\x80\x04N.")
@example(cell=b"R\x01" + bytes(8) + b"\x00\x00\x00\x05a\r\nbc" + b"\x80\x04N.")
@example(cell=b"T\x01" + bytes(8) + b"\x00\x00\x00\x00\x00\x00\x00\x05a\r\rb \x80\x04N.")
@few
def test_a_hostile_cell_harms_its_own_object_only(raw: Raw, canary: Canary, cell: bytes) -> None:
    store = raw.store
    name, other = locate(Thing, {"id": 1}).name, locate(Thing, {"zone": 1, "name": "x"}).name
    for place in (name, other):
        store.put(Thing(1, name="x"))
        store.put(Thing(2, name="y", value=[2]))
        raw.put(place, cell)
        for key in ({"id": 1}, {"zone": 1, "name": "x"}):
            try:
                found = store.get(Thing, key)
            except DecodingError:
                pass
            else:
                assert found is None or found == Thing(1, name="x")
            # What was left in a connection would be the answer to this one.
            assert store.get(Thing, {"id": 2}) == Thing(2, name="y", value=[2])
            assert store.get(Thing, {"zone": 1, "name": "y"}) == Thing(2, name="y", value=[2])
        store.put(Thing(1, name="x", value="new"))
        assert store.get(Thing, {"id": 1}) == Thing(1, name="x", value="new")
        raw.put(name, cell)
        store.delete(Thing(1, name="x"))
        assert store.get(Thing, {"id": 1}) is None
        assert store.get(Thing, {"id": 2}) == Thing(2, name="y", value=[2])
    assert not canary.sang()


@given(cell=RECORDS.filter(lambda cell: len(cell) < 1000))
@example(cell=b"R\x01" + bytes(8) + b"\x00\x00\x00\x03\xff\xfe\xff" + b"\x80\x04N.")
@few
def test_a_chain_reads_past_a_hostile_cell(
    redis_client: redis.Redis, canary: Canary, cell: bytes
) -> None:
    encoding = RestrictedPickleEncoding(allow=[Thing])
    first = RedisStore(redis_client, encoding=encoding)
    chain = ChainedStore([first, DurableDictStore(MemoryDict())])
    thing = Thing(1, name="x")
    for address in ({"id": 1}, {"zone": 1, "name": "x"}):
        chain.put(thing)
        redis_client.set(f"durabledict:{locate(Thing, address).name}", cell)
        if not cells.is_marker(cell):
            assert chain.get(Thing, address) == thing
        redis_client.set(f"durabledict:{locate(Thing, address).name}", cell)
        newer = Thing(1, name="x", value=5)
        chain.put(newer)
        assert chain.get(Thing, {"id": 1}) == newer
        chain.delete(newer)
        assert chain.get(Thing, {"id": 1}) is None
    assert not canary.sang()
    first.release()


def test_tags_with_names_that_are_none_invalidate(redis_client: redis.Redis) -> None:
    """Nobody can say that such a group was not invalidated."""
    store = RedisStore(redis_client)
    store.put(Grouped(1))
    name = f"durabledict:{locate(Grouped, {'id': 1}).name}"
    cell: Any = redis_client.get(name)
    redis_client.set(name, cell.replace(b"!group/zone-1", b"!group/zone\t1"))
    assert store.get(Grouped, {"id": 1}) is None
    store.release()


@pytest.mark.parametrize("kind", ["memcached", "redis", "files", "dict"])
def test_a_record_copied_to_another_place_is_refused(
    kind: str,
    memcached: MemcachedServer,
    redis_client: redis.Redis,
    tmp_path: Path,
    canary: Canary,
) -> None:
    signed = SignedEncoding("secret")
    thing = Thing(1, name="x", value=canary)
    address = locate(Thing, {"id": 1})
    one: Any
    other: Any
    if kind == "memcached":
        server = [f"127.0.0.1:{memcached.port}"]
        one = MemcacheStore(server, prefix="one:", encoding=signed)
        other = MemcacheStore(server, prefix="two:", encoding=signed)
    elif kind == "redis":
        one = RedisStore(redis_client, prefix="one:", encoding=signed)
        other = RedisStore(redis_client, prefix="two:", encoding=signed)
    elif kind == "files":
        one = other = ShoveStore(str(tmp_path), encoding=signed)
    else:
        one = other = ShoveStore({}, encoding=signed)
    one.put(thing)
    cell = one._read_many([address.name])[address.name]
    second = locate(Thing, {"id": 2}).name
    other._write_many([(second, cell, None)])
    with pytest.raises(DecodingError, match="signature"):
        other.get(Thing, {"id": 2})
    if one is not other:
        other._write_many([(address.name, cell, None)])
        with pytest.raises(DecodingError, match="signature"):
            other.get(Thing, {"id": 1})
    assert not canary.sang()
    for each in (one, other):
        each.release()


# -- what memcached says --------------------------------------------------------------------------


LINES = st.one_of(
    st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"") + b"\r\n"),
    st.sampled_from(
        [
            b"\r\n",
            b" \r\n",
            b"HD\r\n",
            b"HD c5 f1\r\n",
            b"VA 2 c5\r\nab\r\n",
            b"VA\r\n",
            b"VA x\r\nab\r\n",
            b"VA -5\r\nab\r\n",
            b"VA 99999999999\r\nab\r\n",
            b"VA " + b"9" * 5000 + b"\r\n",
            b"VA 2\r\nabcd\r\n",
            b"EN\r\n",
            b"END\r\n",
            b"VALUE k 0 2\r\nab\r\n",
            b"VALUE\r\n",
            b"VALUE k\r\n",
            b"VALUE k 0 x\r\n",
            b"VALUE k 0 -20\r\n",
            b"VALUE k 0 " + b"9" * 5000 + b"\r\n",
            b"ERROR\r\n",
            b"CLIENT_ERROR \xff\r\n",
            b"SERVER_ERROR \xff\r\n",
            b"SERVER_ERROR object too large for cache\r\n",
        ]
    ),
)


class Speaker:
    """Says something, whatever it is asked, and ends the connection."""

    def __init__(self) -> None:
        self.says = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1 << 16)
                    connection.sendall(self.says)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1 << 16)  # until the other side has closed it
                except OSError:
                    pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    with closing(Speaker()) as made:
        yield made


@given(said=st.lists(LINES, max_size=4).map(b"".join), count=st.integers(1, 3))
@example(said=b"VALUE k 0 -20\r\n" + b"x" * 100, count=1)
@relaxed
def test_whatever_memcached_says_is_an_answer_or_its_error(
    speaker: Speaker, said: bytes, count: int
) -> None:
    speaker.says = said
    for ask in (
        lambda node: metacommands.exchange(node, [b"mn\r\n"] * count),
        lambda node: metacommands.get_many(node, [b"k"]),
    ):
        with closing(Client(("127.0.0.1", speaker.port), timeout=10)) as node:
            try:
                ask(node)
            except (MemcacheError, OSError):
                pass  # what every user of these takes for an outage


# -- stamps ---------------------------------------------------------------------------------------


class Odd:
    def __int__(self) -> int:
        raise RuntimeError("no number")


NUMBERS: list[Any] = [
    float("inf"),
    float("nan"),
    float(LEAST * 2),
    True,
    "9" * 5000,
    b"9" * 5000,
    b"\xff",
    "",
    -1,
    -(10**30),
    [],
    {},
    Odd(),
    b"1e30",
]


@pytest.mark.parametrize("answer", NUMBERS, ids=lambda answer: repr(answer)[:20])
def test_what_is_no_stamp_is_told(answer: Any) -> None:
    number = as_number(answer)
    assert number is not None
    assert number < LEAST


@given(
    answer=st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.lists(st.integers(), max_size=2),
        st.complex_numbers(),
    )
)
def test_any_answer_is_a_number_or_none(answer: Any) -> None:
    number = as_number(answer)
    assert number is None or type(number) is int
    if isinstance(answer, (float, complex, list, bool)):
        assert number == -1


@pytest.mark.parametrize("alias", ["default", "database", "files", "redis", "locmem"])
@pytest.mark.parametrize("value", NUMBERS[:-1], ids=lambda value: repr(value)[:20])
def test_a_cache_of_djangos_that_holds_something_else(
    django_project: None, alias: str, value: Any
) -> None:
    from django.conf import settings as django_settings
    from django.core.cache import caches

    if alias not in django_settings.CACHES:
        pytest.skip(f"no such cache: {list(django_settings.CACHES)}")
    stamp = CacheStamp(alias, "hostile")
    before = stamp.read()
    caches[alias].set("hostile", value, timeout=None)
    after = stamp.read()
    assert after is not None
    assert after != before
    with stamp.writing():
        pass
    assert stamp.read() not in (None, before, after)
    # And while it holds that, a write is heard of as well.
    caches[alias].set("hostile", value, timeout=None)
    with stamp.writing():
        pass
    assert stamp.read() is not None


# -- regions of dogpile ---------------------------------------------------------------------------


META = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.dictionaries(
        st.sampled_from(["ct", "v", "durabledict", "x"]),
        st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3), st.lists(st.none())),
    ),
)
REGION_VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.binary(),
    st.tuples(st.integers(), META),
    st.lists(META, max_size=3),
    st.binary(max_size=20).map(lambda rest: b"dogpile\x01" + rest),
    st.sampled_from(
        [
            b"dogpile\x01\x00" + b"[" * 100_000 + b"|x",
            b'dogpile\x01\x00{"ct": "x", "v": 2}|5',
            b'dogpile\x01\x00{"ct": 1e400, "v": 2}|5',
            b'dogpile\x01\x00{"ct": 5}|5',
            b'dogpile\x01\x00{"ct": 5, "v": 2}|\xff',
            b"dogpile\x01\x00" + b"9" * 5000 + b"|x",
            b"dogpile\x01\xffab",
        ]
    ),
)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("serialized", [False, True])
@given(value=REGION_VALUES, tokens=st.tuples(REGION_VALUES, REGION_VALUES))
@example(value=None, tokens=(None, None))
@example(value=None, tokens=("x" * 1000, "\x80"))
@example(value=None, tokens=(b"\xff", b"5"))
@settings(few, max_examples=20)
def test_a_region_creates_anew_what_is_none_of_its_values(
    shared: bool, serialized: bool, value: Any, tokens: tuple[Any, Any]
) -> None:
    d = MemoryDict[str, Any]()
    arguments: dict[str, Any] = {"dict": d}
    options: dict[str, Any] = {"expiration_time": 3600}
    if shared:
        invalidation = SharedInvalidation(d)
        arguments["invalidation"] = options["region_invalidator"] = invalidation
        d["durabledict.ext.dogpile:hard"], d["durabledict.ext.dogpile:soft"] = tokens
    if serialized:
        import json

        options["serializer"] = lambda payload: json.dumps(payload).encode()

        def deserialized(payload: bytes) -> Any:
            try:
                return json.loads(payload)
            except ValueError as error:
                raise CantDeserializeException from error  # as dogpile wants it to be told

        options["deserializer"] = deserialized
    region = make_region(
        **{name: options.pop(name) for name in ("serializer", "deserializer") if name in options}
    ).configure("durabledict.dict", arguments=arguments, **options)
    region.set("good", [1])
    if isinstance(value, bytes) and not (serialized and shared):
        return  # bytes are for the region, or a proxy, to parse
    d["k"] = value
    found = region.get("k")
    if found is NO_VALUE:
        assert region.get_or_create("k", lambda: [2]) == [2]
    assert region.get("good") == [1]
    region.set("k", [3])
    assert region.get("k") == [3]
