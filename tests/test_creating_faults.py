"""`get_or_create` where something breaks in the middle: a store, a connection, the creator."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis

from durabledict import MemoryDict, RedisDict, SqliteDict, ZookeeperDict, creating, locks, renewals
from durabledict.cacheleases import MemcachedLease
from durabledict.locks import Mutex
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ShoveStore,
    SqlAlchemyStore,
)
from durabledict.stores.keys import locate
from durabledict.testing.things import Thing
from durabledict.testing.tools import in_thread

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .servers import PATIENCE, free_port, wait_until
from .sqlmodels import Base, Word, postgres_url
from .test_creating import SixMethods
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import ZookeeperServer

KEY = {"id": 1}
NAME = {"zone": 1, "name": "x"}


@pytest.fixture
def memcached(memcached_server: MemcachedServer) -> Iterator[MemcacheStore]:
    memcached_server.flush()
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"]) as store:
        yield store


# -- who asks for what it is creating itself ------------------------------------------------------


def two_clients(
    kind: str, request: pytest.FixtureRequest, place: Path, stack: ExitStack
) -> list[Any]:
    """Return two dicts or Stores over one store that have a client each."""
    get = request.getfixturevalue
    if kind == "memcached":
        get("memcached")
        server: MemcachedServer = get("memcached_server")
        stores: list[Any] = [MemcacheStore([f"127.0.0.1:{server.port}"]) for _ in range(2)]
    elif kind == "RedisStore":
        get("redis_client")
        stores = [RedisStore(get("redis_url")) for _ in range(2)]
    elif kind == "RedisDict":
        get("redis_client")
        clients = [redis.Redis.from_url(get("redis_url")) for _ in range(2)]
        for client in clients:
            stack.enter_context(closing(client))
        stores = [RedisDict("twice", client) for client in clients]
    elif kind == "ZookeeperDict":
        zookeeper: ZookeeperServer = get("zookeeper_server")
        path = get("zookeeper_path")
        stores = [ZookeeperDict(path, zookeeper.client()) for _ in range(2)]
    elif kind == "SqliteDict":
        (place / "other").symlink_to(place)
        stores = [SqliteDict(place / "x"), SqliteDict(place / "other" / "x")]
    else:
        url = f"sqlite:///{place / 'sql'}"
        if kind == "PostgreSQL":
            postgres: PostgresServer = get("postgres_server")
            postgres.create_database("twice")
            stack.callback(postgres.drop_database, "twice")
            url = postgres_url(postgres, "twice")
        stores = [SqlAlchemyStore(url) for _ in range(2)]
        Base.metadata.create_all(stores[0]._engine)
    for store in stores:
        stack.enter_context(store)
    return stores


@pytest.mark.parametrize(
    "kind",
    [
        "memcached",
        "RedisStore",
        "RedisDict",
        "ZookeeperDict",
        "SqliteDict",
        "SQLite",
        "PostgreSQL",
    ],
)
def test_reentry_by_another_client_is_an_error_and_no_deadlock(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It is the lock in the store that says who holds it, not the object that asks."""
    with ExitStack() as stack:
        one, two = two_clients(kind, request, tmp_path, stack)

        def create(owner: Any, creator: Callable[[], Any]) -> Any:
            if isinstance(owner, SqlAlchemyStore):
                return owner.get_or_create(Word, KEY, creator, timeout=PATIENCE)
            if hasattr(owner, "get_or_compute"):
                return owner.get_or_compute("k", creator, timeout=PATIENCE)
            return owner.get_or_create(Thing, KEY, creator, timeout=PATIENCE)

        with pytest.raises(RuntimeError, match="this very thread"):
            create(one, lambda: create(two, lambda: None))
        with Mutex(one._lease("x")), pytest.raises(RuntimeError, match="this very thread"):
            Mutex(two._lease("x")).acquire(timeout=PATIENCE)
        with Mutex(one._lease("x")):
            assert not in_thread(lambda: Mutex(two._lease("x")).acquire(timeout=0.01))
    assert not locks._threads


# -- what comes in the middle ---------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["queue", "renewal"])
def test_a_finalizer_may_create_something_in_the_middle(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lock of ours is held at that moment is held by the same thread."""
    module, name = {"queue": (locks, "_Queue"), "renewal": (renewals, "_Held")}[moment]
    real, inner = getattr(module, name), ProcessMemoryStore()
    made: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        if not made:
            made.append(None)
            made.append(inner.get_or_create(Thing, KEY, lambda: Thing(1)))
        return real(*arguments)

    monkeypatch.setattr(module, name, interrupted)
    store = ProcessMemoryStore()
    thread = threading.Thread(
        target=store.get_or_create, args=(Thing, KEY, lambda: Thing(1)), daemon=True
    )
    thread.start()
    thread.join(PATIENCE)
    assert made == [None, Thing(1)]
    assert store.get(Thing, KEY) == Thing(1)


def test_an_interrupt_before_a_creator_leads_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupting(dict[Any, Any]):
        def setdefault(self, *arguments: Any) -> Any:
            super().setdefault(*arguments)
            raise KeyboardInterrupt

    store = ProcessMemoryStore()
    flights = Interrupting()
    with monkeypatch.context() as patch:
        patch.setattr(creating, "_flights", flights)
        with pytest.raises(KeyboardInterrupt):
            store.get_or_create(Thing, KEY, lambda: Thing(1))
    assert not flights


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_creator_that_is_interrupted_leaves_nothing_behind(
    error: type[BaseException], memcached: MemcacheStore, redis_client: Any, tmp_path: Path
) -> None:
    def creator() -> Any:
        raise error

    with SqliteDict[Any, Any](tmp_path / "x") as d:
        for store in (ProcessMemoryStore(), memcached, RedisStore(redis_client)):
            with pytest.raises(error):
                store.get_or_create(Thing, KEY, creator)
            assert store.get_or_create(Thing, KEY, lambda: Thing(1), timeout=0) == Thing(1)
        with pytest.raises(error):
            d.get_or_compute("k", creator)
        assert d.get_or_compute("k", lambda: 1, timeout=0) == 1
    assert not creating._flights
    assert not locks._threads


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("end", ["returns", "raises"])
def test_a_child_that_is_forked_in_a_creator_leaves_all_to_its_parent(
    end: str, memcached: MemcacheStore
) -> None:
    """It stores nothing, and does not take away what its parent has reserved."""
    parent = os.getpid()

    def creator() -> Thing:
        child = os.fork()
        if child == 0 and end == "raises":
            raise SystemExit
        if child != 0:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return Thing(1, value="parent's" if child != 0 else "child's")

    try:
        made = memcached.get_or_create(Thing, KEY, creator)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert made is not None
    found = memcached.get(Thing, KEY)
    assert found is not None
    assert found.value == made.value == "parent's"


# -- a store that is down -------------------------------------------------------------------------


def test_the_creators_error_is_told_though_the_store_is_down_by_then(
    memcached: MemcacheStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had reserved there cannot be taken back, which is logged."""

    def down(*arguments: Any) -> Any:
        raise ConnectionError("down")

    def creator() -> Any:
        monkeypatch.setattr(memcached, "_ask", down)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        memcached.get_or_create(Thing, KEY, creator)
    assert "stays until it expires: down" in caplog.text


def test_a_chain_does_without_the_lock_of_a_cache_that_is_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where its last Store has none: as a get or a put of the chain does without the cache."""
    with MemcacheStore([f"127.0.0.1:{free_port()}"]) as cache:
        chain = ChainedStore([cache, ShoveStore({})])
        assert chain.get_or_create(Thing, KEY, lambda: Thing(1, value="made")) is not None
        found = chain.get(Thing, KEY)
        assert found is not None
        assert found.value == "made"
        assert not chain._lease("x").is_held()
    assert "is done without" in caplog.text


def test_a_chain_stores_though_the_cache_with_its_lock_goes_down_meanwhile() -> None:
    with MemcachedServer() as server, MemcacheStore([f"127.0.0.1:{server.port}"]) as cache:
        chain = ChainedStore([cache, ShoveStore({})])

        def creator() -> Thing:
            assert chain._lease("x").acquire(b"1" * 16)
            server.stop()
            return Thing(1)

        assert chain.get_or_create(Thing, KEY, creator) == chain.get(Thing, KEY) == Thing(1)


@pytest.mark.parametrize("when", ["at the release", "at the question", "at the answer"])
def test_a_lock_in_zookeeper_is_released_when_the_connection_is_back(
    when: str,
    zookeeper_server: ZookeeperServer,
    zookeeper_path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session lasts, and its znode with it: nobody else could take the lock for ever."""
    with ExitStack() as stack:
        proxy = stack.enter_context(ZookeeperProxy(zookeeper_server.port))
        clients = [
            zookeeper_server.client(hosts=f"127.0.0.1:{proxy.port}", timeout=60.0),
            zookeeper_server.client(),
        ]
        one, two = (
            stack.enter_context(ZookeeperDict[Any, Any](zookeeper_path, client))
            for client in clients
        )
        assert one == two == {}
        mutex, other = Mutex(one._lease("a")), two._lease("a")
        with mutex:  # so that its folder is there
            assert other.is_held()
        if when == "at the release":
            mutex.acquire()
            proxy.refuse()
            proxy.cut()
            wait_until(lambda: not clients[0].connected, "the client has noticed")
            one._client.timeout = 0.0
            mutex.release()
            assert "could not be released" in caplog.text
            one._client.timeout = 10.0
            proxy.mend()
        else:
            fault = proxy.cut_before if when == "at the question" else proxy.cut_after
            lost = fault(f"<create {zookeeper_path}:locks/".encode())
            with pytest.raises(ZookeeperDict.unavailable):
                mutex.acquire()
            assert lost.hits == 1
        wait_until(lambda: not other.is_held(), "it was released", 20)
        assert clients[0].client_id is not None
        with Mutex(other):
            assert not mutex.acquire(blocking=False)


def test_a_renewal_at_that_moment_does_not_keep_memcached_from_a_release(
    memcached: MemcacheStore,
) -> None:
    """Nor does it make another renewal of one's own look like a loss."""
    lease: Any = memcached._lease("a")
    again: Any = memcached._lease("a")
    assert isinstance(lease, MemcachedLease)
    token, ask = b"1" * 16, lease._ask

    def interleaved(command: str, *arguments: Any, **named: Any) -> Any:
        found = ask(command, *arguments, **named)
        if command == "gets":
            lease._ask = ask
            assert again.renew(token)
        return found

    assert lease.acquire(token)
    lease._ask = interleaved
    assert lease.renew(token)
    lease._ask = interleaved
    assert lease.release(token)
    assert not lease.is_held()


# -- what is stored, and what is not --------------------------------------------------------------


def test_who_was_overtaken_leads_no_other_key_astray(redis_client: redis.Redis) -> None:
    """Neither the record of the younger one is overwritten, nor another object's pointer."""
    store = RedisStore(redis_client)

    def creator() -> Thing:
        store.put(Thing(1, name="other"))
        store.put(Thing(2, name="x"))
        return Thing(1, name="x")

    assert store.get_or_create(Thing, KEY, creator) == Thing(1, name="x")
    found = store.get(Thing, NAME)
    assert found is not None
    assert found.id == 2


def test_a_lifetime_is_not_that_of_what_is_put_meanwhile() -> None:
    """By a callback, in the middle of the put: of another object of the same class."""
    d = MemoryDict[Any, Any]()
    other = ProcessMemoryStore()
    d.on_change(lambda *change: other.put(Thing(2)))
    store = DurableDictStore(d)
    store.get_or_create(Thing, KEY, lambda: Thing(1), lifetime=-1, serve_expired=True)
    store.get_or_create(Thing, KEY, lambda: Thing(1), lifetime=100, serve_expired=True)
    assert other.get(Thing, {"id": 2}) == Thing(2)
    assert type(other._records) is dict  # of which none expires


@pytest.mark.parametrize("kind", ["memcached", "redis", "memory"])
@pytest.mark.parametrize("key", [KEY, NAME])
def test_what_is_kept_for_creators_alone_is_in_no_readers_way(
    kind: str, key: dict[str, Any], memcached: MemcacheStore, redis_client: Any
) -> None:
    """A chain fills the cache again from below, though an expired record is there still."""
    from durabledict import reading
    from durabledict.stores import lifetime

    stores: dict[str, Any] = {
        "memcached": memcached,
        "redis": RedisStore(redis_client),
        "memory": ProcessMemoryStore(),
    }
    cache, last = stores[kind], ByAnyKey()
    chain = ChainedStore([cache, last])
    options: dict[str, Any] = {"lifetime": 100, "serve_expired": True}
    made = chain.get_or_create(Thing, KEY, lambda: Thing(1, name="x", value="old"), **options)
    assert made is not None
    with pytest.MonkeyPatch.context() as patch:
        monotonic, wall = reading.monotonic, lifetime.now
        patch.setattr(reading, "monotonic", lambda: monotonic() + 101)
        patch.setattr(lifetime, "now", lambda: wall() + 101)
        assert cache.get(Thing, KEY) is None
        last.things.clear()
        assert chain.get(Thing, key) is None
        # What is there for those who create it anew was not taken away.
        assert cache._get_expired(locate(Thing, KEY), 100) is not None
        last.put(Thing(1, name="x", value="new"))
        for _ in range(3):
            found = chain.get(Thing, key)
            assert found is not None
            assert found.value == "new"
        assert cache.get(Thing, KEY).value == "new"


class ByAnyKey(SixMethods):
    def get(self, klass: Any, key: Any) -> Any:
        for obj in self.things.values():
            if all(getattr(obj, name) == value for name, value in key.items()):
                return obj
        return None
