"""`ChainedStore`: what it asks of which layer, what it costs, and what it passes over."""

from __future__ import annotations

import copy
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from durabledict import MemoryDict
from durabledict.errors import EncodingError
from durabledict.stores import (
    BaseStore,
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ShoveStore,
    layers,
)
from durabledict.stores.base import Key
from durabledict.stores.cells import pack_record
from durabledict.stores.keys import locate
from durabledict.testing import StoreSuite
from durabledict.testing.things import Automobile, Car, Empty, Keyless, Thing, Unpicklable
from durabledict.testing.tools import Clock

from . import scenarios
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer
from .tcpproxy import TcpProxy, each_chunk

NAME = {"zone": 1, "name": "x"}


class SixMethods(BaseStore):
    """A Store that a user wrote: it counts what it is asked, and can be made to fail."""

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self.objects: dict[Any, Any] = {}
        self.asked: Counter[str] = Counter()
        self.keys: list[Any] = []
        self.error: Exception | None = None

    def _count(self, name: str) -> None:
        self.asked[name] += 1
        if self.error is not None:
            raise self.error

    def put(self, obj: Any) -> None:
        self.batch_put([obj])

    def get(self, klass: Any, key: Key) -> Any:
        return self.batch_get(klass, [key])[0]

    def delete(self, obj: Any) -> None:
        self.batch_delete([obj])

    def batch_put(self, objs: Iterable[Any]) -> None:
        self._count("put")
        for obj in objs:
            self.objects[type(obj), obj.id] = copy.copy(obj)

    def batch_get(self, klass: Any, keys: Iterable[Key]) -> list[Any]:
        self._count("get")
        asked = list(keys)
        self.keys += asked
        return [self._find(klass, key) for key in asked]

    def _find(self, klass: Any, key: Key) -> Any:
        for obj in self.objects.values():
            if type(obj) is klass and all(getattr(obj, n) == value for n, value in key.items()):
                return copy.copy(obj)
        return None

    def batch_delete(self, objs: Iterable[Any]) -> None:
        self._count("delete")
        for obj in objs:
            self.objects.pop((type(obj), obj.id), None)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


# -- what is asked of whom ------------------------------------------------------------------------


def test_a_miss_fills_the_layers_that_missed() -> None:
    first, second, last = ProcessMemoryStore(), ProcessMemoryStore(), ProcessMemoryStore()
    last.put(Thing(1))
    chain = ChainedStore([first, second, last])
    assert chain.get(Thing, {"id": 1}) is last.get(Thing, {"id": 1})
    assert first.get(Thing, {"id": 1}) is second.get(Thing, {"id": 1}) is last.get(Thing, {"id": 1})


def test_a_miss_by_another_key_fills_them_too() -> None:
    first, second, last = ProcessMemoryStore(), ProcessMemoryStore(), ProcessMemoryStore()
    last.put(Thing(1))
    assert ChainedStore([first, second, last]).get(Thing, NAME) is not None
    for store in (first, second):
        assert store.get(Thing, NAME) is store.get(Thing, {"id": 1}) is last.get(Thing, NAME)


def test_a_batch_asks_each_next_layer_only_for_what_is_missing() -> None:
    first, second, last = ProcessMemoryStore(), ProcessMemoryStore(), SixMethods()
    for place, store in enumerate((first, second, last)):
        store.batch_put([Thing(number, name=number) for number in range(place, 4, 3)])
    keys = [{"id": number} for number in (3, 2, 1, 0, 7)]
    found = ChainedStore([first, second, last]).batch_get(Thing, keys)
    assert [thing and thing.id for thing in found] == [3, 2, 1, 0, None]
    assert last.keys == [{"id": 2}, {"id": 7}]
    assert first.batch_get(Thing, keys)[:4] == found[:4]


def test_a_falsy_object_is_found_in_the_first_layer() -> None:
    first, last = ProcessMemoryStore(), SixMethods()
    chain = ChainedStore([first, last])
    chain.put(Empty(1))
    assert chain.get(Empty, {"id": 1}) is first.get(Empty, {"id": 1})
    assert last.asked["get"] == 0


def test_a_missing_object_leaves_no_marker() -> None:
    first, last = ProcessMemoryStore(), ProcessMemoryStore()
    chain = ChainedStore([first, last])
    assert chain.get(Thing, {"id": 1}) is None
    assert first._markers == {}
    last.put(Thing(1))
    assert chain.get(Thing, {"id": 1}) is not None
    assert first.get(Thing, {"id": 1}) is not None


def test_an_error_of_the_durable_layer_leaves_no_marker_of_a_get() -> None:
    first, last = ProcessMemoryStore(), SixMethods()
    chain = ChainedStore([first, last])
    last.error = OSError("down")
    with pytest.raises(OSError, match="down"):
        chain.get(Thing, {"id": 1})
    assert first._markers == {}


def test_writes_go_to_the_durable_layer_before_the_caches_have_them() -> None:
    first, last = ProcessMemoryStore(), SixMethods()
    chain = ChainedStore([first, last])
    seen: list[Any] = []
    original = last.batch_put

    def look_first(objs: Any) -> None:
        seen.append(first.get(Thing, {"id": 1}))
        original(objs)

    last.batch_put = look_first  # type: ignore[method-assign]  # a hook
    chain.put(Thing(1, value="old"))
    chain.put(Thing(1, value="new"))
    # Not even the old one, while it is not known which of the two is there.
    assert seen == [None, None]
    assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")


def test_lifetimes_differ_layer_by_layer() -> None:
    suite = StoreSuite()
    with suite.clocks() as clock:
        short = ProcessMemoryStore(lifetime_cb=lambda obj: 5)
        long = ProcessMemoryStore(lifetime_cb=lambda obj: 50)
        last = SixMethods()
        chain = ChainedStore([short, long, last])
        chain.put(Thing(1))
        clock.move(6)
        assert short.get(Thing, {"id": 1}) is None
        assert chain.get(Thing, {"id": 1}) == Thing(1)
        assert last.asked["get"] == 0
        assert short.get(Thing, {"id": 1}) == Thing(1)
        clock.move(60)
        assert chain.get(Thing, {"id": 1}) == Thing(1)
        assert last.asked["get"] == 1


def test_a_layer_that_does_not_keep_an_object_does_not_serve_its_predecessor() -> None:
    first = ProcessMemoryStore(lifetime_cb=lambda obj: 0 if obj.value == "secret" else None)
    chain = ChainedStore([first, ProcessMemoryStore()])
    chain.put(Thing(1, value="open"))
    chain.put(Thing(1, value="secret"))
    assert first.get(Thing, {"id": 1}) is None
    found = chain.get(Thing, {"id": 1})
    assert found is not None
    assert found.value == "secret"


# -- layers that differ ---------------------------------------------------------------------------


class Narrow(SixMethods):
    """A layer that knows one key alone."""

    def batch_get(self, klass: Any, keys: Iterable[Key]) -> list[Any]:
        asked = list(keys)
        if any(set(key) != {"id"} for key in asked):
            raise KeyError("only by id")
        return super().batch_get(klass, asked)


def test_a_layer_that_cannot_index_a_key_is_a_miss() -> None:
    for stores in ([Narrow(), ProcessMemoryStore()], [ProcessMemoryStore(), Narrow()]):
        chain = ChainedStore(stores)
        chain.put(Thing(1))
        assert chain.get(Thing, {"id": 1}) == Thing(1)
        assert chain.get(Thing, NAME) == Thing(1)
        assert chain.get(Thing, {"zone": 1, "name": "other"}) is None
    with pytest.raises(KeyError, match="only by id"):
        ChainedStore([Narrow(), Narrow()]).get(Thing, NAME)


class Registered(SixMethods):
    """A layer that knows a class which names no keys itself."""


def test_a_layer_that_cannot_have_a_class_is_passed_over(memcached: MemcacheStore) -> None:
    last = Registered()
    chain = ChainedStore([ProcessMemoryStore(lifetime_cb=lambda obj: 5), memcached, last])
    one = Keyless()
    one.id = 1  # type: ignore[attr-defined]  # as SQLAlchemy's classes get theirs
    chain.put(one)
    found = chain.get(Keyless, {"id": 1})
    assert found is not None
    chain.delete(one)
    assert chain.get(Keyless, {"id": 1}) is None


def test_a_value_without_a_name_is_not_cached_outside(memcached: MemcacheStore) -> None:
    value = frozenset([1])
    chain = ChainedStore([memcached, ProcessMemoryStore()])
    chain.put(Thing(value))
    assert chain.get(Thing, {"id": value}) == Thing(value)
    assert chain.batch_get(Thing, [{"id": value}, {"id": 5}]) == [Thing(value), None]
    with pytest.raises(TypeError, match="frozenset has no name"):
        memcached.put(Thing(value))


def test_what_cannot_be_encoded_is_not_cached(
    memcached: MemcacheStore, caplog: pytest.LogCaptureFixture
) -> None:
    last = ProcessMemoryStore()
    chain = ChainedStore([memcached, last])
    chain.put(Unpicklable(1))
    assert chain.get(Unpicklable, {"id": 1}) is last.get(Unpicklable, {"id": 1})
    assert any("is not cached" in message for message in messages(caplog))
    with pytest.raises(EncodingError):
        memcached.put(Unpicklable(1))


def test_what_is_too_large_is_not_cached(memcached: MemcacheStore) -> None:
    last = ProcessMemoryStore()
    chain = ChainedStore([memcached, last])
    chain.put(Thing(1, value="small"))
    chain.put(Thing(1, value="x" * 2_000_000))
    for _ in range(2):
        assert chain.get(Thing, {"id": 1}) is last.get(Thing, {"id": 1})


def test_an_undecodable_record_in_a_cache_is_a_miss(
    on_redis: RedisStore, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    chain = ChainedStore([on_redis, ProcessMemoryStore()])
    chain.put(Thing(1))
    (name,) = [key for key in redis_client.scan_iter() if b"id=" in key]
    redis_client.set(name, (redis_client.get(name) or b"")[:-5])
    assert chain.batch_get(Thing, [{"id": 1}, NAME]) == [Thing(1), Thing(1)]
    assert any("passed over" in message for message in messages(caplog))
    redis_client.set(name, b"R\x7f")
    assert chain.get(Thing, {"id": 1}) == Thing(1)
    with pytest.raises(ValueError, match=r"format 127; this durabledict knows formats up to 1"):
        on_redis.get(Thing, {"id": 1})
    chain.put(Thing(1, value="mended"))
    assert on_redis.get(Thing, {"id": 1}) == Thing(1, value="mended")


@pytest.mark.parametrize("key", [{"id": 1}, NAME], ids=["first key", "other key"])
@pytest.mark.parametrize("layer", ["on_redis", "memcached"])
def test_an_undecodable_record_in_a_cache_makes_room(
    request: pytest.FixtureRequest, layer: str, key: Key
) -> None:
    """Else it would be a miss until it expires, and no get would fill the cache."""
    cache = request.getfixturevalue(layer)
    chain = ChainedStore([cache, ProcessMemoryStore()])
    chain.put(Thing(1))
    name = locate(Thing, {"id": 1}).name
    cache._write(name, pack_record(0.0, (), b"broken"), None)
    with pytest.raises(ValueError, match="cannot be decoded"):
        cache.get(Thing, key)
    for _ in range(2):
        assert chain.get(Thing, key) == Thing(1)
    assert cache.get(Thing, key) == Thing(1)


def test_one_bad_value_is_no_outage_of_a_layer_without_compare_and_set() -> None:
    """What cannot be decoded is a miss, and replaced; what cannot be encoded is not cached."""
    cells: dict[str, Any] = {}
    cache, last = ShoveStore(cells), ProcessMemoryStore()
    chain = ChainedStore([cache, last])
    chain.batch_put([Thing(1, name="a"), Thing(2, name="b")])
    (name,) = [name for name in cells if "id=~int:1" in name]
    cells[name] = cells[name][:-5]
    assert chain.batch_get(Thing, [{"id": 1}, {"id": 2}]) == [
        Thing(1, name="a"),
        Thing(2, name="b"),
    ]
    assert cache.get(Thing, {"id": 1}) == Thing(1, name="a")
    unpicklable = Unpicklable(3)
    chain.batch_put([unpicklable, Thing(4, name="d")])
    assert chain.get(Unpicklable, {"id": 3}) is unpicklable
    assert cache.get(Thing, {"id": 4}) == Thing(4, name="d")
    assert not chain._layers[0].is_away


def test_a_car_is_found_as_an_automobile() -> None:
    first, last = ProcessMemoryStore(polymorphic=True), ProcessMemoryStore(polymorphic=True)
    chain = ChainedStore([first, last])
    last.put(Car("B 1"))
    for _ in range(2):
        assert chain.get(Automobile, {"license_plate": "B 1"}) is not None
    assert first.get(Automobile, {"license_plate": "B 1"}) is last.get(Car, {"owner": "nobody"})
    chain.delete(Car("B 1"))
    assert chain.get(Automobile, {"license_plate": "B 1"}) is None


def test_the_hook_of_a_users_store_decides_what_the_caller_gets() -> None:
    class Binding(SixMethods):
        def _before_stockpyle_deserialize(self, obj: Any) -> Any:
            bound = copy.copy(obj)
            bound.value = "bound"
            return bound

    class Looking(SixMethods):
        seen: list[Any] = []

        def _before_stockpyle_deserialize(self, obj: Any) -> Any:
            self.seen.append(obj.id)

    first, last = ProcessMemoryStore(), Binding()
    chain = ChainedStore([first, Looking(), last])
    chain.batch_put([Thing(1), Thing(2, name="y")])
    assert chain.get(Thing, {"id": 1}) == Thing(1, value="bound")
    found = chain.batch_get(Thing, [{"id": 2}, {"id": 3}])
    assert found == [Thing(2, name="y", value="bound"), None]
    assert Looking.seen == [1, 2]
    # What is cached is what was found.
    assert first.get(Thing, {"id": 1}) == Thing(1)


def test_delete_key_removes_from_all_layers() -> None:
    first, last = ProcessMemoryStore(), ProcessMemoryStore()
    chain = ChainedStore([first, last])
    chain.put(Thing(1))
    chain.delete_key(Thing, NAME)
    assert first.get(Thing, {"id": 1}) is last.get(Thing, {"id": 1}) is None
    first.put(Thing(2))
    chain.delete_key(Thing, {"id": 2})
    assert first.get(Thing, {"id": 2}) is None
    chain.delete_key(Thing, {"id": 3})
    assert first._markers == {}
    with pytest.raises(KeyError, match="not indexed by 'value'"):
        chain.delete_key(Thing, {"value": 1})


def test_delete_key_removes_what_has_the_key_in_the_durable_layer() -> None:
    """A cache that is old names another object, which is not to be lost."""
    cache, last = ProcessMemoryStore(lifetime_cb=lambda obj: 60), ProcessMemoryStore()
    chain = ChainedStore([cache, last])
    chain.put(Thing(1, name="x"))
    last.batch_put([Thing(1, name="y"), Thing(2, name="x")])  # as another process does
    chain.delete_key(Thing, NAME)
    assert last.get(Thing, {"id": 1}) == chain.get(Thing, {"id": 1}) == Thing(1, name="y")
    assert last.get(Thing, {"id": 2}) is chain.get(Thing, NAME) is None


def test_delete_key_by_what_the_durable_layer_does_not_index() -> None:
    class Narrow(SixMethods):
        def batch_get(self, klass: Any, keys: Iterable[Key]) -> list[Any]:
            asked = list(keys)
            if any("id" not in key for key in asked):
                raise KeyError("by id alone")
            return super().batch_get(klass, asked)

    cache, last = ProcessMemoryStore(), Narrow()
    chain = ChainedStore([cache, last])
    chain.batch_put([Thing(1), Thing(2, name="y")])
    last.put(Thing(2, name="z"))  # as another process does
    chain.delete_key(Thing, NAME)
    chain.delete_key(Thing, {"zone": 1, "name": "y"})
    assert chain.get(Thing, {"id": 1}) is None
    assert chain.get(Thing, {"id": 2}) == Thing(2, name="z")


def test_a_chain_of_one_and_a_chain_in_a_chain() -> None:
    inner = ChainedStore([ProcessMemoryStore()])
    chain = ChainedStore([ProcessMemoryStore(), inner])
    chain.put(Thing(1))
    assert inner.get(Thing, NAME) is chain.get(Thing, {"id": 1})


@pytest.mark.parametrize(
    ("stores", "error", "message"),
    [
        ([], ValueError, "at least one Store"),
        ([ProcessMemoryStore()] * 2, ValueError, "twice"),
        ([ProcessMemoryStore(), {}], TypeError, "a dict is no Store: .*ShoveStore"),
    ],
)
def test_what_is_no_chain_is_refused(stores: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ChainedStore(stores)


@pytest.mark.parametrize("life", [0, -1, "10", None, True])
def test_what_is_no_life_of_a_marker_is_refused(life: Any) -> None:
    with pytest.raises(ValueError, match="marker_life"):
        ChainedStore([ProcessMemoryStore()], marker_life=life)


# -- warnings (rule 5.3) --------------------------------------------------------------------------


def test_a_layer_of_this_process_before_a_shared_one_is_warned_of(
    caplog: pytest.LogCaptureFixture, memcached: MemcacheStore
) -> None:
    ChainedStore([ProcessMemoryStore(), memcached])
    assert "lifetime_cb" in messages(caplog)[0]
    caplog.clear()
    ChainedStore([ProcessMemoryStore(lifetime_cb=lambda obj: 5), memcached])
    ChainedStore([memcached, ProcessMemoryStore()])
    ChainedStore([ProcessMemoryStore(), DurableDictStore(MemoryDict())])
    assert messages(caplog) == []


def test_a_layer_that_cannot_compare_and_set_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ChainedStore([ShoveStore({}), ProcessMemoryStore()])
    assert "cannot compare and set" in messages(caplog)[0]
    caplog.clear()
    ChainedStore([ProcessMemoryStore(), ShoveStore({})])
    assert messages(caplog) == []


# -- costs ----------------------------------------------------------------------------------------


@contextmanager
def counting(server: Any, store_at: Callable[[int], Any]) -> Iterator[tuple[Any, TcpProxy]]:
    split = each_chunk if isinstance(server, MemcachedServer) else None
    with TcpProxy(server.port, *([split] if split else [])) as proxy, store_at(proxy.port) as store:
        store.get(Thing, {"id": -1})  # connected, and the generation known
        yield store, proxy


KINDS: dict[str, Callable[[int], Any]] = {
    "memcached": lambda port: MemcacheStore([f"127.0.0.1:{port}"]),
}


def trips(proxy: TcpProxy, action: Callable[[], object]) -> int:
    before = proxy.requests
    action()
    return proxy.requests - before


def test_requests_to_memcached(memcached_server: MemcachedServer) -> None:
    memcached_server.flush()
    things = [Thing(number, name=number) for number in range(50)]
    keys = [{"id": number} for number in range(50)]
    named = [{"zone": 1, "name": number} for number in range(50)]
    with counting(memcached_server, KINDS["memcached"]) as (store, proxy):
        last = ProcessMemoryStore()
        last.batch_put(things)
        chain = ChainedStore([store, last])
        # Three to fill, one to hit, two by another key; the same for one and for fifty.
        assert trips(proxy, lambda: chain.batch_get(Thing, keys)) == 3
        assert trips(proxy, lambda: chain.batch_get(Thing, keys)) == 1
        assert trips(proxy, lambda: chain.batch_get(Thing, named)) == 2
        assert trips(proxy, lambda: chain.get(Thing, keys[0])) == 1
        assert trips(proxy, lambda: chain.batch_put(things)) == 2
        assert trips(proxy, lambda: chain.batch_get(Thing, named)) == 2
        assert trips(proxy, lambda: chain.batch_delete(things)) == 2
        assert trips(proxy, lambda: chain.batch_get(Thing, keys)) == 3
        last.batch_put(things)
        assert trips(proxy, lambda: chain.batch_get(Thing, named)) == 3
        assert trips(proxy, lambda: chain.batch_get(Thing, named)) == 2
        # Some pointers lead to records, some to none, some are not there.
        last.batch_put([Thing(number, name=number) for number in range(50, 60)])
        store._remove_many([store._names(thing)[0] for thing in things[:10]])
        mixed = [{"zone": 1, "name": number} for number in range(70)]
        for _ in range(3):
            assert trips(proxy, lambda: chain.batch_get(Thing, mixed)) <= 3
        found = store.batch_get(Thing, mixed)
        assert [thing and thing.id for thing in found] == [*range(60), *[None] * 10]
        # By both keys in one batch, some missing by each.
        store._remove_many([store._names(thing)[0] for thing in things[:10]])
        both: list[Any] = [{"id": 5}, {"id": 99}, *named[:3], *named[20:25]]
        assert trips(proxy, lambda: chain.batch_get(Thing, both)) == 3
        assert trips(proxy, lambda: store.batch_get(Thing, both[:1] + both[2:])) == 2
        assert store.get(Thing, {"id": 5}) == things[5]


def test_requests_to_redis(redis_server: RedisServer, redis_url: str) -> None:
    things = [Thing(number, name=number) for number in range(50)]
    keys = [{"id": number} for number in range(50)]
    named = [{"zone": 1, "name": number} for number in range(50)]
    with redis_server.client() as client, RedisStore(client) as store:
        asked: list[int] = []
        original = store._pipe.ask

        def ask(calls: Any) -> Any:
            asked.append(len(calls))
            return original(calls)

        store._pipe.ask = ask  # type: ignore[method-assign]  # to count round trips

        def trips(action: Callable[[], object]) -> int:
            asked.clear()
            action()
            return len(asked)

        last = ProcessMemoryStore()
        chain = ChainedStore([store, last])
        last.batch_put(things)
        assert trips(lambda: chain.batch_get(Thing, keys)) == 3
        assert trips(lambda: chain.batch_get(Thing, keys)) == 1
        assert trips(lambda: chain.batch_get(Thing, named)) == 2
        assert trips(lambda: chain.batch_put(things)) == 2
        assert trips(lambda: chain.batch_delete(things)) == 2
        last.batch_put(things)
        assert trips(lambda: chain.batch_get(Thing, named)) == 3
        # Alone: one for a batch, whatever it holds.
        assert trips(lambda: store.batch_put(things)) == 1
        assert trips(lambda: store.batch_get(Thing, keys)) == 1
        assert trips(lambda: store.batch_get(Thing, named)) == 2


class Counting:
    """An encoding that counts."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def encode(self, value: Any) -> bytes:
        self.done["pickles"] += 1
        return pickle.dumps(value)

    def decode(self, payload: bytes) -> Any:
        self.done["unpickles"] += 1
        return pickle.loads(payload)


def test_pickles_and_unpickles_of_one_put_and_two_gets(memcached_server: MemcachedServer) -> None:
    encoding = Counting()
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"], encoding=encoding) as store:
        store.put(Thing(1))
        assert store.get(Thing, {"id": 1}) == store.get(Thing, {"id": 1}) == Thing(1)
        assert encoding.done == {"pickles": 1, "unpickles": 2}
        encoding.done.clear()
        chain = ChainedStore([ProcessMemoryStore(lifetime_cb=lambda obj: 3600), store])
        chain.put(Thing(1))
        assert chain.get(Thing, {"id": 1}) == chain.get(Thing, NAME) == Thing(1)
        assert encoding.done == {"pickles": 1}


# -- a layer that is down (rule 5.2) --------------------------------------------------------------


@contextmanager
def cached(
    last: BaseStore,
) -> Iterator[tuple[ChainedStore, TcpProxy, Clock, MemcacheStore, MemcachedServer]]:
    """Put something old into a chain of a memcached of its own, behind a proxy, and of `last`."""
    with (
        MemcachedServer() as server,
        TcpProxy(server.port, each_chunk) as proxy,
        MemcacheStore([f"127.0.0.1:{proxy.port}"]) as store,
        StoreSuite().clocks() as clock,
    ):
        chain = ChainedStore([store, last])
        chain.put(Thing(1, value="old"))
        yield chain, proxy, clock, store, server


def down(proxy: TcpProxy) -> None:
    proxy.refuse()
    proxy.cut()


def test_a_cache_that_is_down_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    last = ProcessMemoryStore()
    with cached(last) as (chain, proxy, clock, store, _):
        down(proxy)
        for number in range(5):
            chain.put(Thing(1, value=number))
            assert chain.get(Thing, {"id": 1}) == Thing(1, value=number)
            clock.move(10)
        chain.delete(Thing(1))
        assert chain.get(Thing, {"id": 1}) is None
        assert chain.batch_get(Thing, [NAME]) == [None]
        # One line, not a dozen.
        assert len([m for m in messages(caplog) if "passed over" in m]) == 1
        last.put(Thing(1, value="now"))
        proxy.mend()
        clock.move(10)
        # It is told what it missed before it is read: "old" would be there.
        assert chain.get(Thing, {"id": 1}) == Thing(1, value="now")
        assert store.get(Thing, {"id": 1}) is None
        assert chain._layers[0]._missed == {}


def test_a_cache_that_was_down_at_the_end_of_a_put_is_told_later() -> None:
    last = SixMethods()
    with cached(last) as (chain, proxy, clock, _, server):
        original = last.batch_put

        def put_and_lose(objs: Any) -> None:
            original(objs)
            down(proxy)

        last.batch_put = put_and_lose  # type: ignore[method-assign]  # a hook
        chain.put(Thing(1, value="new"))
        assert len(chain._layers[0]._missed) == 1
        proxy.mend()
        clock.move(10)
        assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")
        assert chain._layers[0]._missed == {}
        assert server.stats()["curr_items"]


def test_a_cache_that_comes_back_during_a_put_is_told_at_its_end() -> None:
    last = SixMethods()
    with cached(last) as (chain, proxy, clock, store, _):
        down(proxy)
        original = last.batch_put

        def come_back(objs: Any) -> None:
            # Somebody reads while the put is under way: what is there still is not to be cached.
            proxy.mend()
            clock.move(10)
            assert chain.get(Thing, {"id": 1}) == Thing(1, value="old")
            original(objs)
            # Nor is it read: it has not been told of the new one.
            assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")

        last.batch_put = come_back  # type: ignore[method-assign]  # a hook
        chain.put(Thing(1, value="new"))
        assert store.get(Thing, {"id": 1}) is None
        assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")
        assert chain._layers[0]._missed == {}
        assert chain._layers[0]._under_way == {}


def test_a_durable_write_that_fails_while_a_cache_is_down() -> None:
    last = SixMethods()
    with cached(last) as (chain, proxy, clock, *_):
        down(proxy)
        last.error = OSError("unknown outcome")
        with pytest.raises(OSError, match="unknown outcome"):
            chain.put(Thing(1, value="new"))
        last.error = None
        last.objects[Thing, 1].value = "new"  # it was done all the same
        proxy.mend()
        clock.move(10)
        assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_after_too_many_missed_changes_a_new_generation_begins(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MISSED", 10)
    suite = StoreSuite()
    server: Any = MemcachedServer() if kind == "memcached" else RedisServer()
    with server, suite.clocks() as clock:
        split = each_chunk if kind == "memcached" else None
        with TcpProxy(server.port, *([split] if split else [])) as proxy:
            address = f"127.0.0.1:{proxy.port}"
            client: Any = redis.Redis(port=proxy.port)
            store: Any = MemcacheStore([address]) if kind == "memcached" else RedisStore(client)
            direct: Any = (
                MemcacheStore([f"127.0.0.1:{server.port}"])
                if kind == "memcached"
                else RedisStore(redis.Redis(port=server.port))
            )
            last = SixMethods()
            chain = ChainedStore([store, last])
            other = ChainedStore([direct, last])
            chain.batch_put([Thing(number, name=number) for number in range(30)])
            assert other.get(Thing, {"id": 0}) == Thing(0, name=0)
            assert last.asked["get"] == 0
            down(proxy)
            for number in range(20):
                chain.put(Thing(number, name=number, value="new"))
            assert chain._layers[0]._overflowed
            proxy.mend()
            clock.move(10)
            # All are unknown now, here and to the other process.
            for each in (chain, other):
                found = each.batch_get(Thing, [{"id": number} for number in range(30)])
                assert [thing and thing.value for thing in found] == ["new"] * 20 + [None] * 10
            assert not chain._layers[0]._overflowed
            asked = last.asked["get"]
            assert other.get(Thing, {"id": 5}) == Thing(5, name=5, value="new")
            assert last.asked["get"] == asked
            for one in (store, direct):
                one.release()
                one._client.close()


def test_a_store_that_cannot_be_released_keeps_no_other_from_it() -> None:
    released: list[str] = []

    class Failing(SixMethods):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def release(self) -> None:
            released.append(self.name)
            raise OSError(self.name)

    class Last(SixMethods):
        def release(self) -> None:
            released.append("last")

    with pytest.raises(OSError, match="first"):
        ChainedStore([Failing("first"), Failing("second"), Last()]).release()
    assert released == ["first", "second", "last"]


def test_a_users_layer_that_was_down_for_too_long_is_not_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "MISSED", 3)
    suite = StoreSuite()
    with suite.clocks() as clock:
        cache, last = SixMethods(), SixMethods()
        chain = ChainedStore([cache, last])
        cache.error = OSError("down")
        chain.batch_put([Thing(number, name=number) for number in range(5)])
        cache.error = None
        clock.move(10)
        asked = cache.asked["get"]
        assert chain.get(Thing, {"id": 1}) == Thing(1, name=1)
        assert cache.asked["get"] == asked


def test_a_users_layer_is_told_what_it_missed() -> None:
    suite = StoreSuite()
    with suite.clocks() as clock:
        cache, last = SixMethods(), SixMethods()
        chain = ChainedStore([cache, last])
        chain.put(Thing(1, value="old"))
        cache.error = OSError("down")
        chain.put(Thing(1, value="new"))
        cache.error = None
        clock.move(10)
        assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")
        assert cache.objects[Thing, 1].value == "new"
        assert cache.asked["delete"] == 3


def test_errors_of_the_durable_layer_are_raised() -> None:
    cache, last = ProcessMemoryStore(), SixMethods()
    chain = ChainedStore([cache, last])
    chain.put(Thing(1))
    last.error = OSError("down")
    actions: list[Callable[[], object]] = [
        lambda: chain.put(Thing(1, value="new")),
        lambda: chain.delete(Thing(1)),
        lambda: chain.get(Thing, {"id": 2}),
        lambda: chain.delete_key(Thing, {"id": 1}),
    ]
    for action in actions:
        with pytest.raises(OSError, match="down"):
            action()
    # Whether it was done is not known: so nothing is served from the caches.
    assert cache.get(Thing, {"id": 1}) is None


class Interrupted(BaseException):
    """What a signal handler raises, or gevent at a timeout."""


@pytest.mark.parametrize("moment", ["begin", "write", "end"])
def test_an_interrupted_put_leaves_no_layer_unread(moment: str) -> None:
    away, cache, last = SixMethods(), SixMethods(), SixMethods()
    chain = ChainedStore([away, cache, last])
    chain.put(Thing(1, value="old"))
    away.error = OSError("down")

    def interrupt(objs: Iterable[Any]) -> None:
        raise Interrupted

    verb = "batch_delete" if moment == "begin" else "batch_put"
    broken: Any = last if moment == "write" else cache
    setattr(broken, verb, interrupt)
    with pytest.raises(Interrupted):
        chain.put(Thing(1, value="new"))
    delattr(broken, verb)
    away.error = None
    expected = "new" if moment == "end" else "old"
    with StoreSuite().clocks() as clock:
        clock.move(10**9)
        for _ in range(2):
            away.asked.clear()
            assert chain.get(Thing, {"id": 1}) == Thing(1, value=expected)
    assert away.asked["get"] == 1
    assert away.objects[Thing, 1] == Thing(1, value=expected)


def forks_during_a_write() -> None:
    logging.disable()
    away, last = SixMethods(), SixMethods()
    chain = ChainedStore([away, last])
    chain.put(Thing(1, value="old"))

    def child() -> None:
        away.error = None
        with StoreSuite().clocks() as clock:
            clock.move(10**9)
            assert chain.get(Thing, {"id": 1}) == Thing(1, value="new")
            assert away.objects[Thing, 1] == Thing(1, value="new")

    def put(objs: Iterable[Any]) -> None:
        SixMethods.batch_put(last, objs)
        scenarios.ended_well(scenarios.fork(child))

    away.error = OSError("down")
    last.batch_put = put  # type: ignore[method-assign]  # a hook
    chain.put(Thing(1, value="new"))


def test_a_child_forked_during_a_write_reads_the_layer_that_was_down() -> None:
    scenarios.run(forks_during_a_write)


def test_a_cache_that_goes_down_between_two_requests_of_a_get() -> None:
    """What it told is handed out, and not stored above it."""

    class Flapping(SixMethods):
        def batch_get(self, klass: Any, keys: Iterable[Key]) -> list[Any]:
            found = super().batch_get(klass, keys)
            self.error = OSError("down")
            return found

    first, middle, last = ProcessMemoryStore(), Flapping(), SixMethods()
    middle.batch_put([Thing(1)])
    chain = ChainedStore([first, middle, last])
    assert chain.get(Thing, NAME) == Thing(1)
    assert first.get(Thing, {"id": 1}) is None
    assert first._markers == {}


@pytest.mark.parametrize("stores", [None, 5, ProcessMemoryStore()])
def test_a_chain_is_made_of_a_list(stores: Any) -> None:
    with pytest.raises(
        TypeError, match=r"stores is (None|an int|a ProcessMemoryStore): write a list"
    ):
        ChainedStore(stores)
