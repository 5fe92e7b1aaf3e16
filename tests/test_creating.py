"""`get_or_create` and `get_or_compute`: what the suites do not ask of every Store and dict."""

from __future__ import annotations

import os
import pickle
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from durabledict import MemoryDict, RedisDict, SqliteDict, creating
from durabledict.locks import Mutex
from durabledict.stores import (
    BaseStore,
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ThreadLocalStore,
)
from durabledict.stores.cells import marker
from durabledict.stores.keys import locate
from durabledict.testing.computing import together, waiting
from durabledict.testing.things import Automobile, Car, Thing
from durabledict.testing.tools import in_thread

from .servers import wait_until

KEY = {"id": 1}
NAME = {"zone": 1, "name": "x"}


class SixMethods(BaseStore):
    """What a user has written who knows nothing of all this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a name that many a class has
        self.things: dict[Any, Any] = {}

    def put(self, obj: Any) -> None:
        with self._lock:
            self.things[obj.id] = obj

    def get(self, klass: Any, key: Any) -> Any:
        with self._lock:
            return self.things.get(key["id"])

    def delete(self, obj: Any) -> None:
        with self._lock:
            self.things.pop(obj.id, None)

    def batch_put(self, objs: Any) -> None:
        for obj in objs:
            self.put(obj)

    def batch_get(self, klass: Any, keys: Any) -> Any:
        return [self.get(klass, key) for key in keys]

    def batch_delete(self, objs: Any) -> None:
        for obj in objs:
            self.delete(obj)


@pytest.mark.parametrize("kind", ["Store", "dict", "six methods"])
def test_one_of_a_thousand_threads_creates(kind: str) -> None:
    calls = []

    def creator() -> Thing:
        calls.append(1)
        wait_until(lambda: waiting() == 999, "all others wait", 60)
        return Thing(1)

    if kind == "dict":
        d = MemoryDict[str, Thing]()
        found = together(1000, lambda: d.get_or_compute("k", creator))
    else:
        store = ProcessMemoryStore() if kind == "Store" else SixMethods()
        found = together(1000, lambda: store.get_or_create(Thing, KEY, creator))
    assert len(calls) == 1
    assert all(each is found[0] for each in found)
    assert not creating._flights


def test_a_thread_local_store_has_one_for_each_thread() -> None:
    store = ThreadLocalStore()
    calls: list[int] = []

    def creator() -> Thing:
        calls.append(1)
        return Thing(1)

    def make() -> Any:
        assert store.get_or_create(Thing, KEY, creator) == Thing(1)
        return store.get_or_create(Thing, KEY, creator)

    assert len({id(each) for each in [make(), in_thread(make)]}) == 2
    assert len(calls) == 2


def test_a_store_of_six_methods_refuses_a_lifetime() -> None:
    with pytest.raises(TypeError, match="lifetime=: a SixMethods keeps objects for ever"):
        SixMethods().get_or_create(Thing, KEY, lambda: Thing(1), lifetime=5)
    chain = ChainedStore([ProcessMemoryStore(), SixMethods()])
    assert chain.get_or_create(Thing, KEY, lambda: Thing(1), lifetime=5) == Thing(1)


def test_a_lifetime_reaches_every_layer(memcached: MemcacheStore, tmp_path: Path) -> None:
    """Each layer of a chain has its own callback, which is not asked."""
    with SqliteDict[Any, Any](tmp_path / "x") as d:
        layers: list[Any] = [ProcessMemoryStore(), memcached, DurableDictStore(d)]
        for layer in layers:
            layer.lifetime_cb = lambda obj: 1 / 0
        chain = ChainedStore(layers)
        chain.get_or_create(Thing, KEY, lambda: Thing(1), lifetime=100)
        assert [layer.get(Thing, KEY) for layer in layers] == [Thing(1)] * 3
        assert layers[0]._records.currsize == 1
        with pytest.raises(ZeroDivisionError):
            chain.put(Thing(1))


def test_a_chain_serves_what_has_expired(tmp_path: Path) -> None:
    """From whichever layer has it, while another thread creates it anew."""
    from durabledict import reading
    from durabledict.stores import lifetime

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        d = stack.enter_context(SqliteDict[Any, Any](tmp_path / "x"))
        chain = ChainedStore([ProcessMemoryStore(), DurableDictStore(d)])
        options: dict[str, Any] = {"lifetime": 10, "serve_expired": True}
        chain.get_or_create(Thing, KEY, lambda: Thing(1, value="old"), **options)
        monotonic, wall = reading.monotonic() + 11, lifetime.now() + 11
        patch.setattr(reading, "monotonic", lambda: monotonic)
        patch.setattr(lifetime, "now", lambda: wall)
        assert chain.get(Thing, KEY) is None

        def creator() -> Thing:
            for key in (KEY, NAME):
                address = locate(Thing, key)
                assert chain._get_expired(address, 10).value == "old"
            found = in_thread(lambda: chain.get_or_create(Thing, KEY, lambda: None, **options))
            assert found.value == "old"
            return Thing(1, value="new")

        made = chain.get_or_create(Thing, KEY, creator, **options)
        assert made is not None
        assert made.value == "new"
        found = chain.get(Thing, KEY)
        assert found is not None
        assert found.value == "new"


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_a_server_keeps_what_has_expired_for_one_more_lifetime(
    kind: str, memcached: MemcacheStore, redis_client: Any
) -> None:
    """The record says when it is over, and the server forgets it later."""
    from durabledict.stores import lifetime

    store: Any = memcached if kind == "memcached" else RedisStore(redis_client)
    options: dict[str, Any] = {"lifetime": 100, "serve_expired": True}
    store.get_or_create(Thing, KEY, lambda: Thing(1, value="old"), **options)
    assert store.get(Thing, KEY).value == "old"
    if kind == "redis":
        (key,) = redis_client.keys("*id=*")
        assert 100 < redis_client.ttl(key) <= 200
    with pytest.MonkeyPatch.context() as patch:
        wall = lifetime.now
        patch.setattr(lifetime, "now", lambda: wall() + 101)
        assert store.get(Thing, KEY) is store.get(Thing, NAME) is None

        def creator() -> Thing:
            for key in (KEY, NAME):
                found = in_thread(lambda: store.get_or_create(Thing, KEY, lambda: None, **options))
                assert found.value == "old"
                assert store._get_expired(locate(Thing, key), 100).value == "old"
            return Thing(1, name="y", value="new")

        assert store.get_or_create(Thing, KEY, creator, **options).value == "new"
        assert store.get(Thing, KEY).value == "new"
        assert store.get(Thing, NAME) is None
        assert store.get(Thing, {"zone": 1, "name": "y"}).value == "new"


@pytest.mark.parametrize("kind", ["memory", "memcached", "redis"])
def test_a_marker_of_a_creator_that_is_gone_is_in_nobodys_way(
    kind: str, memcached: MemcacheStore, redis_client: Any
) -> None:
    """Who has the lock takes its place; one of a writer stays, and nothing is stored."""
    stores: dict[str, Any] = {
        "memory": ProcessMemoryStore(),
        "memcached": memcached,
        "redis": RedisStore(redis_client),
    }
    store = stores[kind]
    address = locate(Thing, KEY)
    assert store._reserve(address)[0] is None
    made = store.get_or_create(Thing, KEY, lambda: Thing(1, value="created"))
    assert store.get(Thing, KEY) == made
    store.delete(made)
    (proof,) = store._mark([store._place(address)], 60).values()
    assert proof
    assert store.get_or_create(Thing, KEY, lambda: Thing(1)) == Thing(1)
    assert store.get(Thing, KEY) is None
    assert marker(b"F") != marker(b"F")


def test_a_get_of_a_manual_dict_finds_what_others_have_created(redis_client: Any) -> None:
    """Once it was found under the lock: else each call would ask for the lock again."""
    with RedisDict[Any, Any]("x", redis_client) as d:
        DurableDictStore(d).put(Thing(1))
        assert len(d) == 2
        with RedisDict[Any, Any]("x", redis_client, autosync=False) as manual:
            store = DurableDictStore(manual)
            manual.sync()
            DurableDictStore(d).put(Thing(2, name="y"))
            assert store.get(Thing, {"id": 2}) is None
            assert store.get_or_create(Thing, {"id": 2}, lambda: None) == Thing(2, name="y")
            assert store.get(Thing, {"id": 2}) == Thing(2, name="y")


def test_a_creator_leaves_nothing_behind_that_raises(
    memcached: MemcacheStore, redis_client: Any
) -> None:
    """Neither the lock nor the marker: a chain over the Store can fill it at once."""
    stores: list[Any] = [ProcessMemoryStore(), memcached, RedisStore(redis_client)]
    for store in stores:
        with pytest.raises(ZeroDivisionError):
            store.get_or_create(Thing, KEY, lambda: 1 / 0)
        lasting = ProcessMemoryStore()
        lasting.put(Thing(1, value="below"))
        assert ChainedStore([store, lasting]).get(Thing, KEY) is not None
        assert store.get(Thing, KEY) == Thing(1, value="below")
    assert redis_client.keys("*lock*") == []


def test_an_object_that_is_too_large_is_the_creators_error(memcached: MemcacheStore) -> None:
    with pytest.raises(ValueError, match="memcached takes items of"):
        memcached.get_or_create(Thing, KEY, lambda: Thing(1, value="x" * 3_000_000))
    assert memcached.get_or_create(Thing, KEY, lambda: Thing(1)) == Thing(1)


def test_an_object_of_a_subclass_is_where_it_belongs(memcached: MemcacheStore) -> None:
    """Polymorphic: it is found as what was asked for."""
    for store in (
        ProcessMemoryStore(polymorphic=True),
        MemcacheStore(client=memcached._client, polymorphic=True, prefix="p:"),
    ):
        key = {"license_plate": "1"}
        for _ in range(2):
            assert store.get_or_create(Automobile, key, lambda: Car("1")) == Car("1")
        assert store.get(Car, key) == store.get(Automobile, key) == Car("1")
        store.delete(Car("1"))
        assert store.get_or_create(Automobile, key, lambda: Car("1")) == Car("1")


def test_a_store_that_forgets_at_once_hands_out_what_was_created() -> None:
    """It was there while they waited; they do not create it one after the other."""

    class Forgetful(SixMethods):
        def put(self, obj: Any) -> None:
            return

    calls = []

    def creator() -> Thing:
        calls.append(1)
        wait_until(lambda: waiting() == 9, "all others wait")
        return Thing(1)

    store = Forgetful()
    assert together(10, lambda: store.get_or_create(Thing, KEY, creator)) == [Thing(1)] * 10
    assert len(calls) == 1


def test_another_store_over_the_same_server_tells_of_reentry(memcached: MemcacheStore) -> None:
    """Two Stores with one client have one lock."""
    other = MemcacheStore(client=memcached._client)

    def creator() -> Any:
        return other.get_or_create(Thing, KEY, lambda: Thing(1), timeout=5)

    with pytest.raises(RuntimeError, match="this very thread"):
        memcached.get_or_create(Thing, KEY, creator)


def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    """Nobody in it leads what is under way there."""
    store = ProcessMemoryStore()

    def creator() -> Thing:
        child = os.fork()
        if child == 0:
            try:
                made = in_thread(lambda: store.get_or_create(Thing, KEY, lambda: Thing(1)))
                os._exit(made != Thing(1))
            finally:
                os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return Thing(1)

    assert store.get_or_create(Thing, KEY, creator) == Thing(1)


def test_a_lock_may_be_taken_by_hand(memcached: MemcacheStore) -> None:
    """And is the one that a creator has."""
    with Mutex(memcached._lease(locate(Thing, KEY).name)), pytest.raises(TimeoutError):
        in_thread(lambda: memcached.get_or_create(Thing, KEY, lambda: Thing(1), timeout=0))


# -- the known comparison of Beaker and dogpile ---------------------------------------------------


class Counted:
    """Counts how often its objects are pickled and unpickled."""

    __stockpyle_keys__ = ["id"]
    pickles = unpickles = 0

    def __init__(self, id: int) -> None:
        self.id = id

    def __getstate__(self) -> dict[str, Any]:
        Counted.pickles += 1
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Counted.unpickles += 1
        vars(self).update(state)


@pytest.mark.parametrize(("was_there", "limit"), [(False, 2), (True, 3)])
def test_what_creating_reading_and_recreating_costs(
    was_there: bool, limit: int, memcached: MemcacheStore
) -> None:
    """Create, read, expire, recreate, read: at most 2 pickles, and 2 unpickles, or 3."""

    def get() -> Any:
        return memcached.get_or_create(Counted, {"id": 1}, lambda: Counted(1), lifetime=100)

    if was_there:
        memcached.put(Counted(1))
    Counted.pickles = Counted.unpickles = 0
    get()  # creates, or finds what was there
    get()
    memcached._remove(locate(Counted, {"id": 1}).name)  # as when it has expired, but at once
    get()  # creates anew
    get()
    assert Counted.pickles <= 2
    assert Counted.unpickles <= limit
    assert pickle.loads(pickle.dumps(Counted(2))).id == 2


def test_a_closed_dict_asks_for_no_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it has it returns; for what it has not it is as a write is."""
    d: SqliteDict[str, int] = SqliteDict(tmp_path / "a.sqlite")
    d["a"] = 1
    d.close()
    assert d.get_or_compute("a", lambda: 2) == 1
    with pytest.raises(RuntimeError, match="closed"):
        d.get_or_compute("b", lambda: 2)
    assert caplog.records == []
