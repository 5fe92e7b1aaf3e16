"""Groups (rule 5.8): in chains, under every interleaving, between processes, and what they cost."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from durabledict import MemoryDict
from durabledict.errors import DecodingError
from durabledict.ext.sqlalchemy import sync_sessions
from durabledict.stamps import MemoryCache
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ShoveStore,
    SqlAlchemyStore,
    ThreadLocalStore,
    layers,
)
from durabledict.stores.cells import new_token, pack_record, payload_of, record_of, tags_of
from durabledict.stores.groups import ANY, token_name
from durabledict.stores.keys import locate
from durabledict.testing.things import Grouped, Listed, Misnamed, Thing
from durabledict.testing.tools import in_thread

from .chaininterleavings import Done, Operation, World, _runs, stepped
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer
from .test_chain import SixMethods, messages
from .wrappedstore import WrappedStore


class Model(DeclarativeBase):
    pass


class Row(Model):
    __tablename__ = "rows_with_groups"
    __stockpyle_keys__ = ["id"]

    id: Mapped[int] = mapped_column(primary_key=True)
    zone: Mapped[int]
    value: Mapped[str]

    @property
    def __stockpyle_groups__(self) -> list[str]:
        return [f"zone-{self.zone}"]


KEY, NAME = {"id": 1}, {"zone": 1, "name": "x"}


@pytest.fixture(params=["memory", "memcached", "redis", "a dict", "files"])
def cache(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return ProcessMemoryStore()
    if request.param == "memcached":
        return request.getfixturevalue("memcached")
    if request.param == "redis":
        return request.getfixturevalue("on_redis")
    if request.param == "a dict":
        return DurableDictStore(MemoryDict())
    return ShoveStore(uri=f"file://{request.getfixturevalue('tmp_path')}")


def value_of(store: Any, klass: Any = Grouped, key: Any = None) -> Any:
    found = store.get(klass, key or KEY)
    return None if found is None else found.value


# -- chains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("klass", "group"), [(Grouped, "zone-1"), (Listed, "listed")])
@pytest.mark.parametrize("key", [KEY, NAME], ids=["first key", "other key"])
def test_a_chain_asks_the_last_store_what_is_in_a_group(
    cache: Any, klass: Any, group: str, key: Any
) -> None:
    last = SixMethods()
    chain = ChainedStore([cache, last])
    chain.put(klass(1, value="old"))
    assert value_of(cache, klass) == "old"
    # As the SQL of another program does it.
    last.batch_put([klass(1, value="new")])
    chain.invalidate_group("another one")
    assert value_of(chain, klass, key) == "old"
    chain.invalidate_group(group)
    assert value_of(cache, klass) is None
    assert value_of(chain, klass, key) == "new"
    # And the cache has it again, if it takes two gets by another key.
    assert value_of(chain, klass, key) == "new"
    assert value_of(cache, klass) == "new"
    asked = last.asked["get"]
    assert value_of(chain, klass, key) == "new"
    assert last.asked["get"] == asked


def test_every_layer_is_told_and_the_last_keeps_what_it_has(
    memcached: MemcacheStore, on_redis: RedisStore
) -> None:
    stores = [ProcessMemoryStore(), memcached, on_redis, ProcessMemoryStore()]
    chain = ChainedStore(stores)
    chain.batch_put([Grouped(1), Thing(2, name="y")])
    chain.invalidate_group("zone-1")
    assert [store.get(Grouped, KEY) is None for store in stores] == [True, True, True, False]
    assert [store.get(Thing, {"id": 2}) is None for store in stores] == [False] * 4
    # Where the last one is a cache as well, it can be told, too.
    assert chain.get(Grouped, KEY) is not None
    chain.invalidate_group("zone-1", durable=True)
    assert [store.get(Grouped, KEY) for store in stores] == [None] * 4
    assert chain.get(Grouped, KEY) is None


def test_a_chain_in_a_chain_is_a_cache_as_a_whole() -> None:
    inner = ChainedStore([ProcessMemoryStore(), ProcessMemoryStore()])
    last = SixMethods()
    outer = ChainedStore([inner, last])
    outer.put(Grouped(1, value="old"))
    last.batch_put([Grouped(1, value="new")])
    assert value_of(outer) == "old"
    outer.invalidate_group("zone-1")
    assert value_of(outer) == "new"


def test_a_store_of_six_methods_has_no_groups_and_no_objects_with_them() -> None:
    first, last = SixMethods(), SixMethods()
    with pytest.raises(NotImplementedError, match=r"SixMethods.*does not keep groups"):
        first.invalidate_group("zone-1")
    chain = ChainedStore([first, last])
    chain.batch_put([Grouped(1, value="old"), Thing(2, name="y")])
    assert first.get(Thing, {"id": 2}) is not None
    assert first.get(Grouped, KEY) is None
    assert value_of(chain) == "old"
    assert first.get(Grouped, KEY) is None
    last.batch_put([Grouped(1, value="new")])
    chain.invalidate_group("zone-1")
    assert value_of(chain) == "new"


def test_what_is_no_group_is_refused_by_a_chain(caplog: pytest.LogCaptureFixture) -> None:
    cache, last = ProcessMemoryStore(), SixMethods()
    chain = ChainedStore([cache, last])
    with pytest.raises(TypeError, match="group="):
        chain.invalidate_group([])
    chain.put(Misnamed(1, value="no list"))
    # It lasts, and is not cached; the cache is not taken for one that is down.
    assert cache.get(Misnamed, KEY) is None
    assert any("is not cached" in message for message in messages(caplog))
    assert not any("passed over" in message for message in messages(caplog))
    assert value_of(chain, Misnamed) == "no list"


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_a_layer_that_was_down_is_told_later(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """And is not read before (rule 5.2)."""
    cache = request.getfixturevalue("memcached" if kind == "memcached" else "on_redis")
    memory, last = ProcessMemoryStore(), SixMethods()
    chain = ChainedStore([memory, cache, last])
    chain.put(Grouped(1, value="old"))
    last.batch_put([Grouped(1, value="new")])
    monkeypatch.setattr(layers, "backoff", lambda attempts: 1000.0)

    def down(*arguments: Any, **named: Any) -> Any:
        raise ConnectionError("down")

    with monkeypatch.context() as outage:
        for name in ("_write", "_read_many"):
            outage.setattr(cache, name, down)
        chain.invalidate_group("zone-1")
        assert value_of(memory) is None
        assert value_of(chain) == "new"
    # It answers again, and holds the old object still; this chain does not ask it.
    assert value_of(cache) == "old"
    memory._forget_all()
    assert value_of(chain) == "new"
    assert value_of(cache) == "old"
    for layer in chain._layers:
        layer._retry_at = 0.0
    memory._forget_all()
    assert value_of(chain) == "new"
    assert value_of(chain) == "new"
    assert value_of(cache) == "new"
    assert any("passed over" in message for message in messages(caplog))


def test_a_layer_that_cannot_be_told_is_not_read(
    monkeypatch: pytest.MonkeyPatch, on_redis: RedisStore
) -> None:
    """Though it answers: a replica, say, which takes no writes."""
    last = SixMethods()
    chain = ChainedStore([on_redis, last])
    chain.put(Grouped(1, value="old"))
    last.batch_put([Grouped(1, value="new")])

    def read_only(*arguments: Any) -> Any:
        raise ConnectionError("read only")

    monkeypatch.setattr(on_redis, "_write", read_only)
    chain.invalidate_group("zone-1")
    for _ in range(3):
        chain._layers[0]._retry_at = 0.0
        assert value_of(chain) == "new"


@pytest.mark.parametrize(("klass", "group"), [(Grouped, "zone-1"), (Listed, "listed")])
def test_a_chain_does_not_cache_what_was_created_before(cache: Any, klass: Any, group: str) -> None:
    """`get_or_create` on a chain: each layer is asked for its tokens before the creator runs."""
    last = DurableDictStore(MemoryDict())
    chain = ChainedStore([cache, last])

    def create() -> Any:
        chain.invalidate_group(group)
        return klass(1, value="old")

    found = chain.get_or_create(klass, KEY, create)
    assert found is not None
    assert cache.get(klass, KEY) is None
    # The last Store was not told, and has it. With durable=True it would not.
    assert value_of(chain, klass) == "old"
    chain.invalidate_group(group, durable=True)
    assert value_of(chain, klass) is None
    chain.get_or_create(klass, KEY, lambda: klass(1, value="new"))
    assert value_of(cache, klass) == "new"


def test_a_cache_that_is_down_does_not_keep_a_creator_from_working(
    monkeypatch: pytest.MonkeyPatch, on_redis: RedisStore
) -> None:
    """Though it is there again for the put: nobody knows what was invalidated in between."""
    chain = ChainedStore([on_redis, ProcessMemoryStore()])
    moments = on_redis._moments

    def down(*arguments: Any) -> Any:
        raise ConnectionError("down")

    with monkeypatch.context() as outage:
        outage.setattr(on_redis, "_moments", down)
        assert chain.get_or_create(Grouped, KEY, lambda: Grouped(1)) == Grouped(1)
    assert on_redis._moments == moments
    assert on_redis.get(Grouped, KEY) is None
    assert chain.get(Grouped, KEY) == on_redis.get(Grouped, KEY) == Grouped(1)


def test_more_than_can_be_remembered_is_everything(
    monkeypatch: pytest.MonkeyPatch, on_redis: RedisStore
) -> None:
    monkeypatch.setattr(layers, "MISSED", 5)
    cache, last = on_redis, SixMethods()
    chain = ChainedStore([cache, last])
    chain.batch_put([Grouped(1, value="old"), Thing(2, name="y", value="old")])
    last.batch_put([Grouped(1, value="new"), Thing(2, name="y", value="new")])
    with monkeypatch.context() as outage:
        outage.setattr(cache, "invalidate_group", lambda group: 1 / 0)
        for number in range(7):
            chain.invalidate_group(f"zone-{number}")
            chain._layers[0]._retry_at = 0.0
    assert value_of(chain) == value_of(chain, Thing, {"id": 2}) == "new"


def test_what_sessions_commit_has_its_groups(memcached: MemcacheStore) -> None:
    """They are told with the object; who changes rows past the session invalidates."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Model.metadata.create_all(engine)
    last = SqlAlchemyStore(engine=engine)
    chain = ChainedStore([memcached, last])
    sessions = sessionmaker(engine)
    stop = sync_sessions(sessions, chain)
    with sessions.begin() as session:
        session.add_all([Row(id=1, zone=1, value="old"), Row(id=2, zone=2, value="old")])
    assert value_of(memcached, Row) == "old"
    with engine.begin() as connection:
        connection.execute(update(Row).values(value="new"))
    chain.invalidate_group("zone-1")
    assert value_of(memcached, Row) is None
    assert value_of(chain, Row) == value_of(memcached, Row) == "new"
    assert value_of(chain, Row, {"id": 2}) == "old"
    # A database has nothing to invalidate, and keeps its rows.
    last.invalidate_group("zone-2")
    assert value_of(last, Row, {"id": 2}) == "new"
    with pytest.raises(TypeError, match="group="):
        last.invalidate_group([])
    stop()
    engine.dispose()


# -- races ----------------------------------------------------------------------------------------


WRITE_PAST = Operation("write past")
GET, NAMED = Operation("get"), Operation("get named")
PUT, INVALIDATE = Operation("put", 2), Operation("invalidate")

#: Steps in a store of bytes, each a request.
CELLS = (
    *("_read_many", "_add_tokens", "_write", "_remove", "_remove_if", "_read_or_claim"),
    *("_mark_cells", "_settle_cells"),
)
#: Steps in memory.
IN_MEMORY = ("_peek", "_claim", "_mark", "_settle", "invalidate_group")


class GroupWorld(World):
    """A durable Store that is written past the chain, and then its group is invalidated."""

    def __init__(self, caches: Sequence[Any], klass: Any, group: str) -> None:
        super().__init__([], first=None)
        self.klass, self.group = klass, group
        self.durable.put(klass(1, value=0))
        self.caches = list(caches)
        self.chain().get(klass, KEY)
        for cache in self.caches:
            is_memory = isinstance(cache, ProcessMemoryStore)
            stepped(cache, IN_MEMORY if is_memory else CELLS)

    def perform(self, operation: Operation) -> Any:
        chain = self.chain()
        if operation.kind == "write past":
            self.durable.batch_put([self.klass(1, value=1)])
            chain.invalidate_group(self.group)
        elif operation.kind == "invalidate":
            chain.invalidate_group(self.group)
        elif operation.kind == "put":
            chain.put(self.klass(1, value=operation.value))
        else:
            return value_of(chain, self.klass, KEY if operation.kind == "get" else NAME)
        return None

    def check(self, done: Sequence[Done]) -> None:
        lasting = self.durable.get(self.klass, KEY)
        for cache in self.caches:
            cached = cache.get(self.klass, KEY)
            assert cached is None or cached == lasting, (cached, lasting)
        for each in done:
            invalidated = [d for d in done if d.operation is WRITE_PAST and d.ended < each.began]
            if invalidated and "get" in each.operation.kind:
                assert each.result != 0


def explore(make: Callable[[], World], operations: Sequence[Operation]) -> int:
    count = 0
    for world, done in _runs(make, operations, False):
        world.check(done)
        count += 1
    return count


KINDS = [(Grouped, "zone-1"), (Listed, "listed")]


@pytest.mark.parametrize(("klass", "group"), KINDS)
@pytest.mark.parametrize("pair", [(GET, WRITE_PAST), (NAMED, WRITE_PAST)], ids=str)
def test_no_fill_brings_back_what_was_invalidated(
    pair: Sequence[Operation], klass: Any, group: str
) -> None:
    """Two caches in memory; the get may find them full, or empty, or the first one empty."""
    for emptied in ((), (0,), (0, 1)):

        def make(emptied: Sequence[int] = emptied) -> World:
            world = GroupWorld([ProcessMemoryStore(), ProcessMemoryStore()], klass, group)
            for place in emptied:
                world.caches[place]._forget_all()
            return world

        assert explore(make, pair) > 3


@pytest.mark.parametrize("operations", [(GET, GET, WRITE_PAST), (PUT, INVALIDATE)], ids=str)
def test_nor_do_others_beside_it(operations: Sequence[Operation]) -> None:
    def make() -> World:
        return GroupWorld([ProcessMemoryStore()], Grouped, "zone-1")

    assert explore(make, operations) > 3


@pytest.mark.parametrize(("klass", "group"), KINDS)
@pytest.mark.parametrize(
    "pair", [(GET, WRITE_PAST), (NAMED, WRITE_PAST), (PUT, INVALIDATE)], ids=str
)
def test_on_servers(
    memcached: MemcacheStore,
    on_redis: RedisStore,
    pair: Sequence[Operation],
    klass: Any,
    group: str,
) -> None:
    """Each request is a step."""
    for store in (memcached, on_redis):

        def make(store: Any = store) -> World:
            for name in CELLS:
                vars(store).pop(name, None)
            store._forget_all()
            world = GroupWorld([store], klass, group)
            if pair[0] is not PUT:
                # So that the get finds nothing in the cache.
                store._remove_many([store._place(locate(klass, KEY))])
            return world

        assert explore(make, pair) > 10


def test_what_a_chain_puts_while_its_group_is_invalidated_is_not_cached(cache: Any) -> None:
    """Its tokens are read before the durable write."""
    last = SixMethods()
    chain = ChainedStore([cache, last])
    put = last.batch_put

    def put_and_invalidate(objs: Any) -> None:
        put(objs)
        chain.invalidate_group("zone-1")

    last.batch_put = put_and_invalidate  # type: ignore[method-assign]  # a hook
    chain.batch_put([Grouped(1), Grouped(2, zone=2)])
    assert cache.get(Grouped, KEY) is None
    assert cache.get(Grouped, {"id": 2}) is not None
    assert chain.get(Grouped, KEY) == cache.get(Grouped, KEY) == Grouped(1)


# -- other processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_another_process_invalidates(
    request: pytest.FixtureRequest,
    memcached_server: MemcachedServer,
    redis_server: RedisServer,
    kind: str,
) -> None:
    store = request.getfixturevalue("memcached" if kind == "memcached" else "on_redis")
    things = [Grouped(number, name=number) for number in range(2000)]
    store.batch_put(things)
    opened = (
        f"MemcacheStore(['127.0.0.1:{memcached_server.port}'])"
        if kind == "memcached"
        else f"RedisStore({redis_server.url!r})"
    )
    code = (
        "from durabledict.stores import MemcacheStore, RedisStore\n"
        f"with {opened} as store:\n    store.invalidate_group('zone-1')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    keys = [{"id": number} for number in range(2000)]
    assert store.batch_get(Grouped, keys) == [None] * 2000


def test_memory_hears_of_it_by_a_stamp() -> None:
    """Objects with groups are forgotten, and no others."""
    stamp, last = MemoryCache(), SixMethods()
    memories = [ProcessMemoryStore(stamp=stamp) for _ in range(2)]
    here, there = [ChainedStore([memory, last]) for memory in memories]
    here.batch_put([Grouped(1, value="old"), Thing(2, name="y", value="old")])
    assert value_of(there) == value_of(there, Thing, {"id": 2}) == "old"
    last.batch_put([Grouped(1, value="new"), Thing(2, name="y", value="new")])
    asked = last.asked["get"]
    assert value_of(there) == value_of(here) == "old"
    assert last.asked["get"] == asked
    here.invalidate_group("zone-1")
    assert value_of(there) == value_of(here) == "new"
    assert value_of(there, Thing, {"id": 2}) == "old"


def test_memory_does_not_keep_what_was_read_before_another_process_invalidated() -> None:
    """Though another thread has compared the stamp meanwhile."""
    stamp, last = MemoryCache(), SixMethods()
    memories = [ProcessMemoryStore(stamp=stamp) for _ in range(2)]
    here, there = [ChainedStore([memory, last]) for memory in memories]
    last.batch_put([Grouped(1, value="old"), Grouped(2, name="y")])
    assert there.get(Grouped, {"id": 2}) is not None
    found = last._find

    def find(klass: Any, key: Any) -> Any:
        obj = found(klass, key)
        if key == KEY and obj.value == "old":
            last.batch_put([Grouped(1, value="new")])
            here.invalidate_group("zone-1")
            in_thread(lambda: there.get(Grouped, {"id": 2}))
        return obj

    last._find = find  # type: ignore[method-assign]  # a hook
    assert value_of(there) == "old"
    assert value_of(there) == "new"


def test_threads_invalidate_for_each_other() -> None:
    store = ThreadLocalStore()
    store.put(Grouped(1))
    in_thread(lambda: store.invalidate_group("zone-1"))
    assert store.get(Grouped, KEY) is None
    assert not store._mine._records
    store.put(Grouped(1))
    in_thread(lambda: store.invalidate_group("zone-1"))
    assert store._get_expired(locate(Grouped, KEY), None) is None
    chain = ChainedStore([store, SixMethods()])
    chain.put(Grouped(1))
    assert store.get(Grouped, KEY) is not None
    in_thread(lambda: chain.invalidate_group("zone-1"))
    assert chain.get(Grouped, KEY) is not None
    assert store.get(Grouped, KEY) is not None


# -- what is kept ---------------------------------------------------------------------------------


def test_an_evicted_token_invalidates_its_group(
    memcached: MemcacheStore, memcached_server: MemcachedServer
) -> None:
    memcached.batch_put([Grouped(1), Grouped(2, zone=2)])
    memcached._remove(token_name("zone-1"))
    assert memcached.get(Grouped, KEY) is None
    # A new token is another one.
    memcached.put(Grouped(3, name="z"))
    assert memcached.get(Grouped, KEY) is None
    assert memcached.get(Grouped, {"id": 3}) == Grouped(3, name="z")
    assert memcached.get(Grouped, {"id": 2}) is not None


def test_an_evicted_token_of_all_groups_keeps_nothing_that_was_read_before(
    memcached: MemcacheStore,
) -> None:
    last = SixMethods()
    chain = ChainedStore([memcached, last])
    last.batch_put([Grouped(1)])
    found = last._find

    def find(klass: Any, key: Any) -> Any:
        memcached._remove(ANY)
        return found(klass, key)

    last._find = find  # type: ignore[method-assign]  # a hook
    assert chain.get(Grouped, KEY) == Grouped(1)
    assert memcached.get(Grouped, KEY) is None
    last._find = found  # type: ignore[method-assign]  # without it
    assert chain.get(Grouped, KEY) == memcached.get(Grouped, KEY) == Grouped(1)


def test_nothing_piles_up_in_memory() -> None:
    store = ProcessMemoryStore(maxsize=10)
    for number in range(100):
        store.put(Grouped(number, zone=number))
        if number % 3:
            store.invalidate_group(f"zone-{number}")
    gc.collect()
    assert len(store._members) == len(store._records) <= 10
    assert len(store._groups._tokens) == len(store._records)
    assert all(store._members.values())
    store.batch_delete([Grouped(number, zone=number) for number in range(100)])
    assert not store._members
    assert not store._pointers


def test_nothing_stays_that_was_put_while_its_group_was_invalidated() -> None:
    store = ProcessMemoryStore(lifetime_cb=lambda obj: store.invalidate_group("zone-1"))
    store.put(Grouped(1))
    assert not store._records
    assert not store._pointers


def test_a_record_names_its_tokens() -> None:
    tags = (("!group/a", new_token()), ("!group/b", new_token()))
    cell = pack_record(5.5, ("p", "q"), b"payload \n", tags)
    assert tags_of(cell) == tags
    assert payload_of(cell) == (5.5, b"payload \n")
    record = record_of(cell)
    assert record is not None
    assert record.pointers == ("p", "q")
    assert tags_of(pack_record(0.0, ("p",), b"x")) == tags_of(b"") == tags_of(new_token()) == ()
    assert payload_of(new_token()) is None
    for broken in (cell[:5], cell[:16], b"T\x02......................"):
        with pytest.raises(DecodingError, match=r"cut off|format 2"):
            tags_of(broken)


def test_a_broken_record_is_told_of(on_redis: RedisStore, redis_client: redis.Redis) -> None:
    on_redis.put(Grouped(1))
    (name,) = [key for key in redis_client.scan_iter() if b"id=" in key]
    redis_client.set(name, (redis_client.get(name) or b"")[:15])
    with pytest.raises(DecodingError, match="cut off"):
        on_redis.get(Grouped, KEY)
    chain = ChainedStore([on_redis, ProcessMemoryStore()])
    assert chain.get(Grouped, KEY) is None
    chain.put(Grouped(1))
    assert on_redis.get(Grouped, KEY) == Grouped(1)


def test_pointers_of_a_tagged_record_go_with_it(on_redis: RedisStore) -> None:
    """Also when a chain replaces it: the script finds their names."""
    chain = ChainedStore([on_redis, ProcessMemoryStore()])
    chain.put(Grouped(1, name="old"))
    chain.put(Grouped(1, name="new"))
    assert on_redis._read(_name("old")) is None
    assert on_redis._read(_name("new")) is not None


def _name(name: str) -> str:
    return locate(Grouped, {"zone": 1, "name": name}).name


# -- requests -------------------------------------------------------------------------------------


def counted(store: Any) -> list[Any]:
    """Note each request of a Store."""
    asked: list[Any] = []
    where, name = (
        (store._connections, "ask_nodes")
        if isinstance(store, MemcacheStore)
        else (store._pipe, "ask")
    )
    method = getattr(where, name)

    def ask(*arguments: Any) -> Any:
        asked.append(arguments)
        return method(*arguments)

    setattr(where, name, ask)
    return asked


def cost(asked: list[Any], action: Callable[..., Any], *arguments: Any) -> int:
    before = len(asked)
    action(*arguments)
    return len(asked) - before


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_requests(request: pytest.FixtureRequest, kind: str) -> None:
    store = request.getfixturevalue("memcached" if kind == "memcached" else "on_redis")
    asked = counted(store)
    keys = [{"id": number} for number in range(50)]
    base: dict[Any, Any] = {}
    for klass in (Thing, Grouped, Listed):
        things = [klass(number, zone=number % 3, name=number) for number in range(50)]
        store.batch_put(things)
        last = SixMethods()
        chain = ChainedStore([store, last])
        base[klass] = [
            cost(asked, store.get, klass, KEY),
            cost(asked, store.batch_get, klass, keys),
            cost(asked, store.get, klass, {"zone": 1, "name": 1}),
            cost(asked, store.batch_put, things),
            cost(asked, chain.get, klass, KEY),
            cost(asked, chain.batch_put, things),
        ]
    plain = base[Thing]
    # A hit is one more, and none where the class lists its groups; a put is one more.
    assert base[Grouped] == [each + 1 for each in plain]
    assert base[Listed] == [*plain[:3], plain[3] + 1, plain[4], plain[5] + 1]
    assert cost(asked, store.invalidate_group, "zone-1") == 2


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_requests_of_a_miss(request: pytest.FixtureRequest, kind: str) -> None:
    """Two more where the groups are known only with the object, none where the class has a list."""
    store = request.getfixturevalue("memcached" if kind == "memcached" else "on_redis")
    asked = counted(store)
    costs = []
    for klass in (Thing, Grouped, Listed):
        last = SixMethods()
        last.batch_put([klass(1), klass(2, name="y")])
        chain = ChainedStore([store, last])
        # The first one makes the tokens.
        chain.get(klass, {"id": 2})
        costs.append(cost(asked, chain.get, klass, KEY))
        assert store.get(klass, KEY) is not None
    assert costs == [3, 5, 3]


def test_a_get_in_memory_holds_no_lock(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does an invalidation while a finalizer of what it forgets runs."""
    caplog.set_level(logging.DEBUG)
    store = ProcessMemoryStore()
    done: list[Any] = []

    class Final(Grouped):
        def __del__(self) -> None:
            done.append(in_thread(lambda: store.put(Thing(5))))

    store.put(Final(1))
    store.invalidate_group("zone-1")
    gc.collect()
    assert done
    assert store.get(Thing, {"id": 5}) is not None


class Wrapped(WrappedStore):
    """A Store of six methods whose author wrote `invalidate_group` as well."""

    def __init__(self) -> None:
        super().__init__()
        self.invalidated: list[Any] = []

    def invalidate_group(self, group: Any) -> None:
        self.invalidated.append(group)
        self.store.invalidate_group(group)


def test_a_store_of_ones_own_may_keep_groups() -> None:
    cache, last = Wrapped(), SixMethods()
    chain = ChainedStore([cache, last])
    chain.put(Grouped(1, value="old"))
    assert value_of(cache) == "old"
    last.batch_put([Grouped(1, value="new")])
    chain.invalidate_group("zone-1")
    assert cache.invalidated == ["zone-1"]
    assert value_of(chain) == "new"
