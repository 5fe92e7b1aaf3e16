"""What is special to `MemcacheStore` and `RedisStore`: names, sizes, lifetimes, clusters, forks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheUnknownCommandError
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError, ResponseError

from durabledict import JSONEncoding, MemoryDict
from durabledict.errors import DecodingError
from durabledict.stores import ChainedStore, DurableDictStore, MemcacheStore, RedisStore
from durabledict.stores.cells import pack_pointer
from durabledict.stores.memcache import _ttl
from durabledict.stores.metacommands import exchange
from durabledict.testing.things import Grouped, Thing

from . import scenarios
from .memcachedserver import MemcachedServer
from .redisclusters import ClusterServers
from .redisservers import RedisServer
from .tcpproxy import TcpProxy, each_chunk

NAME = {"zone": 1, "name": "x"}
DAY = 60 * 60 * 24


def address(server: MemcachedServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def memcached(memcached_server: MemcachedServer) -> MemcachedServer:
    memcached_server.flush()
    return memcached_server


# -- memcached ------------------------------------------------------------------------------------


CLIENTS: dict[str, Callable[[int], Any]] = {
    "Client": lambda port: Client(("127.0.0.1", port)),
    "a prefix": lambda port: Client(("127.0.0.1", port), key_prefix=b"app:"),
    "text keys": lambda port: Client(("127.0.0.1", port), allow_unicode_keys=True),
    "PooledClient": lambda port: PooledClient(("127.0.0.1", port), max_pool_size=1),
    "HashClient": lambda port: HashClient([("127.0.0.1", port)]),
    "of two": lambda port: HashClient([("127.0.0.1", port), ("localhost", port)], ignore_exc=True),
    "pooling": lambda port: HashClient([("127.0.0.1", port)], use_pooling=True, key_prefix=b"a:"),
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_any_client_of_pymemcache(memcached: MemcachedServer, kind: str) -> None:
    with closing(CLIENTS[kind](memcached.port)) as client:
        before = dict(vars(client))
        chain = ChainedStore([MemcacheStore(client=client), DurableDictStore(MemoryDict())])
        chain.batch_put([Thing(number, name=number) for number in range(20)])
        for key in ({"id": 7}, {"zone": 1, "name": 7}):
            assert chain.get(Thing, key) == Thing(7, name=7)
        store: Any = chain._stores[0]
        assert store.get(Thing, {"id": 7}) == Thing(7, name=7)
        chain.delete(Thing(7, name=7))
        assert store.get(Thing, {"id": 7}) is None
        # The caller's client is as it was, and not connected.
        assert {name: vars(client)[name] for name in before} == before
        store.release()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "servers="),
        ({"servers": ["a:1"], "client": 5}, "servers="),
        ({"servers": "localhost:11211"}, "write a list"),
        ({"servers": 11211}, "write a list"),
        ({"servers": []}, "name one"),
        ({"client": 5}, "pymemcache"),
    ],
)
def test_what_is_no_server_is_refused(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MemcacheStore(**options)


def test_names_that_memcached_does_not_take_are_hashed(memcached: MemcachedServer) -> None:
    with closing(memcached.client()) as client:
        for prefix in ("durabledict:", "with spaces ", "ü", "x" * 300, "\n"):
            with MemcacheStore([address(memcached)], prefix=prefix) as store:
                for value in ("short", "long" * 100, "with spaces\r\n\x00", "ü" * 20):
                    store.put(Thing(value))
                    assert store.get(Thing, {"id": value}) == Thing(value)
                store.put(Thing("readable"))
        generation = client.get("durabledict:generation").decode()
        assert client.get(
            f"durabledict:durabledict.testing.things.Thing/id=readable@{generation}"
        ).startswith(b"R\x01")


def test_prefixes_part_stores(memcached: MemcachedServer) -> None:
    stores = [MemcacheStore([address(memcached)], prefix=prefix) for prefix in ("a:", "b:")]
    stores[0].put(Thing(1))
    assert stores[1].get(Thing, {"id": 1}) is None
    for store in stores:
        store.release()


@pytest.mark.parametrize("size", [1_100_000, 3_000_000])
def test_what_is_too_large_is_refused_with_both_sizes(
    memcached: MemcachedServer, size: int
) -> None:
    with MemcacheStore([address(memcached)]) as store:
        with pytest.raises(ValueError, match=rf"{size // 1000000},\d+,\d+ bytes.*1,048,576 bytes"):
            store.put(Thing(1, value="x" * size))
        assert store.get(Thing, {"id": 1}) is None
        store.put(Thing(1, value="x" * 1_000_000))
        assert store.get(Thing, NAME) is not None


def test_lifetimes_as_memcached_takes_them(memcached: MemcachedServer) -> None:
    now = time.time()
    assert (_ttl(None), _ttl(0.001), _ttl(1.5), _ttl(30 * DAY)) == (0, 1, 2, 30 * DAY)
    assert now + 31 * DAY - 1 < _ttl(31 * DAY) < now + 31 * DAY + 60
    # Of moments after January 2038 memcached thinks that they have passed (seen).
    assert _ttl(1_000_000_000) == _ttl(1e300) == 0
    with MemcacheStore([address(memcached)], lifetime_cb=lambda obj: obj.value) as store:
        for days in (1, 30, 31, 400):
            store.put(Thing(1, value=days * DAY))
            with closing(memcached.client()) as client:
                generation = store._generations.of(client)
                key = store._key(store._names(Thing(1))[0]) + "@" + generation
                (reply,) = exchange(client, [f"mg {key} t\r\n".encode()])
            assert days * DAY - 60 < int(reply.flags[b"t"]) <= days * DAY + 60


def test_an_emptied_server_is_noticed(memcached: MemcachedServer) -> None:
    with MemcacheStore([address(memcached)]) as store:
        store.put(Thing(1))
        memcached.flush()
        assert store.get(Thing, {"id": 1}) is None
        store.put(Thing(1))
        assert store.get(Thing, NAME) == Thing(1)


def test_a_server_that_was_restarted_is_connected_to_again() -> None:
    with MemcachedServer() as server, MemcacheStore([address(server)]) as store:
        store.put(Thing(1))
        server.restart()
        store.put(Thing(2))
        assert store.batch_get(Thing, [{"id": 1}, {"id": 2}]) == [None, Thing(2)]


def test_a_connection_that_breaks_off_is_not_used_again(memcached: MemcachedServer) -> None:
    """Nor is half an answer taken for that to the next request."""
    with (
        TcpProxy(memcached.port, each_chunk) as proxy,
        MemcacheStore([f"127.0.0.1:{proxy.port}"]) as store,
    ):
        store.put(Thing(1, value="x" * 1000))
        for after in (0, 3, 40, 700):
            proxy.cut_reply(b"id=", after=after)
            with pytest.raises(Exception):  # noqa: B017  # pymemcache's, or the socket's
                store.get(Thing, {"id": 1})
            assert store.get(Thing, {"id": 1}) == Thing(1, value="x" * 1000)
            proxy.cut_reply(b"ms ", after=after % 5)
            with pytest.raises(Exception):  # noqa: B017  # see above
                store.put(Thing(1, value="x" * 1000))
            assert store.batch_get(Thing, [{"id": 1}]) == [Thing(1, value="x" * 1000)]


def test_large_batches(memcached: MemcachedServer) -> None:
    with MemcacheStore([address(memcached)]) as store:
        things = [Thing(number, name=number) for number in range(5000)]
        chain = ChainedStore([store, DurableDictStore(MemoryDict())])
        chain.batch_put(things)
        assert store.batch_get(Thing, [{"id": number} for number in range(5000)]) == things
        chain.batch_delete(things)
        assert not any(store.batch_get(Thing, [{"zone": 1, "name": n} for n in range(5000)]))


def test_a_server_without_meta_commands_is_told_of() -> None:
    class Node:
        """A server of 2015."""

        sock: Any

    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"ERROR\r\n")
        node = Node()
        node.sock = ours
        with pytest.raises(MemcacheUnknownCommandError, match=r"1\.6"):
            exchange(node, [b"mg a v\r\n"])
        theirs.sendall(b"CLIENT_ERROR bad\r\n")
        with pytest.raises(Exception, match="CLIENT_ERROR bad"):
            exchange(node, [b"mg a v\r\n"])
        theirs.sendall(b"SERVER_ERROR out of memory\r\n")
        with pytest.raises(Exception, match="out of memory"):
            exchange(node, [b"mg a v\r\n"])
        theirs.sendall(b"VA 10 c5\r\nabc")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Exception):  # noqa: B017  # a connection that is closed
            exchange(node, [b"mg a v\r\n"])


# -- Redis ----------------------------------------------------------------------------------------


def test_lifetimes_as_redis_counts_them(redis_client: redis.Redis) -> None:
    lives = {1: 0.25, 2: 500, 3: 400 * DAY, 4: None}
    store = RedisStore(redis_client, lifetime_cb=lambda obj: lives[obj.id])
    store.batch_put([Thing(number, name=number) for number in lives])
    left = {
        number: redis_client.pttl(store.prefix + store._names(Thing(number))[0])
        for number in (2, 3, 4)
    }
    assert 400_000 < left[2] <= 500_000
    assert 399 * DAY * 1000 < left[3] <= 400 * DAY * 1000
    assert left[4] == -1
    store.release()


def test_a_url_opens_a_store(redis_server: RedisServer, redis_url: str) -> None:
    with RedisStore(redis_url) as store:
        store.put(Thing(1))
        assert store.get(Thing, NAME) == Thing(1)
        assert repr(store) == "RedisStore(prefix='durabledict:')"


@pytest.mark.parametrize("client", [5, None, {}])
def test_what_is_no_client_of_redis_is_refused(client: Any) -> None:
    # Not its repr: that of a URL or a client has its password.
    what = "None" if client is None else f"an? {type(client).__name__}"
    with pytest.raises(TypeError, match=rf"^client is {what}: pass a redis\.Redis"):
        RedisStore(client)


@pytest.mark.parametrize("prefix", [5, None, b"bytes"])
def test_what_is_no_prefix_is_refused(prefix: Any) -> None:
    message = re.escape(f"prefix={prefix!r}: write a str")
    with pytest.raises(TypeError, match=message):
        RedisStore("redis://127.0.0.1:1", prefix=prefix)
    with pytest.raises(TypeError, match=message):
        MemcacheStore(["127.0.0.1:1"], prefix=prefix)


@pytest.mark.parametrize(
    "options",
    [{"decode_responses": True}, {"protocol": 3}, {"max_connections": 1}, {"socket_timeout": 5}],
)
def test_a_client_with_any_settings_works(redis_server: RedisServer, options: Any) -> None:
    redis_server.flush()
    with redis_server.client(**options) as client, RedisStore(client) as store:
        chain = ChainedStore([store, DurableDictStore(MemoryDict())])
        chain.put(Thing(1, value="ü\x80"))
        assert store.get(Thing, NAME) == chain.get(Thing, {"id": 1}) == Thing(1, value="ü\x80")


def test_a_key_that_holds_something_else_is_an_error(redis_client: redis.Redis) -> None:
    with RedisStore(redis_client) as store:
        name = store.prefix + store._names(Thing(1))[0]
        redis_client.lpush(name, "a list")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            store.get(Thing, {"id": 1})


def test_nothing_stays_in_redis(redis_client: redis.Redis) -> None:
    """Neither of changed keys nor of deleted objects; not of a chain either."""
    with RedisStore(redis_client) as store:
        for each in (store, ChainedStore([store, DurableDictStore(MemoryDict())])):
            for number in range(5):
                each.put(Thing(1, name="same"))
                store.put(Thing(1, name=number))
            store.delete(Thing(1, name="last"))
            each.put(Thing(1))
            each.delete(Thing(1))
            assert redis_client.keys() == []


def test_a_lost_answer_is_asked_for_again_and_a_write_is_not(redis_server: RedisServer) -> None:
    redis_server.flush()
    with (
        TcpProxy(redis_server.port) as proxy,
        redis.Redis(port=proxy.port) as client,
        RedisStore(client) as store,
    ):
        store.put(Thing(1))
        proxy.cut_after(b"GET")
        assert store.get(Thing, {"id": 1}) == Thing(1)
        seen = proxy.watch(b"\nSET\r")
        proxy.cut_after(b"\nSET\r")
        with pytest.raises(ConnectionError):
            store.put(Thing(1, value="new"))
        sent = seen.hits
        assert sent <= 2  # record and pointer, sent together
        proxy.cut()
        store.put(Thing(1, value="newer"))  # nothing was sent on the connection that was cut
        assert store.get(Thing, {"id": 1}) == Thing(1, value="newer")


def test_a_server_that_forgot_its_scripts(redis_client: redis.Redis) -> None:
    with RedisStore(redis_client) as store:
        chain = ChainedStore([store, DurableDictStore(MemoryDict())])
        for value in range(3):
            redis_client.script_flush()
            chain.put(Thing(1, value=value))
            assert store.get(Thing, {"id": 1}) == Thing(1, value=value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers() as servers:
        yield servers


@pytest.fixture
def cluster_client(cluster: ClusterServers) -> Iterator[RedisCluster]:
    with closing(cluster.client()) as client:
        yield client


def test_a_batch_on_a_cluster_is_one_round_trip_to_each_node(
    cluster: ClusterServers, cluster_client: RedisCluster
) -> None:
    store = RedisStore(cluster_client, prefix="batch:")
    chain = ChainedStore([store, DurableDictStore(MemoryDict())])
    things = [Thing(number, name=number) for number in range(60)]
    chain.batch_put(things)
    nodes: list[int] = []
    original = store._pipe._ask_server

    def ask(server: Any, calls: Any) -> Any:
        nodes.append(len(calls))
        return original(server, calls)

    store._pipe._ask_server = ask  # type: ignore[method-assign]  # to count
    assert chain.batch_get(Thing, [{"id": number} for number in range(60)]) == things
    assert len(nodes) == len(cluster.nodes)
    assert sum(nodes) == 60
    assert chain.batch_get(Thing, [{"zone": 1, "name": n} for n in range(60)]) == things
    assert len(nodes) == 3 * len(cluster.nodes)
    chain.batch_delete(things)
    store._forget_all()
    assert not any(store.batch_get(Thing, [{"id": number} for number in range(60)]))
    store.release()


def test_forget_all_on_a_cluster_forgets_what_has_the_prefix(
    cluster_client: RedisCluster,
) -> None:
    stores = [RedisStore(cluster_client, prefix=prefix) for prefix in ("for[g]et*:", "forget:")]
    for store in stores:
        store.batch_put([Thing(number, name=number) for number in range(30)])
    stores[0]._forget_all()
    keys = [{"id": number} for number in range(30)]
    assert not any(stores[0].batch_get(Thing, keys))
    assert all(stores[1].batch_get(Thing, keys))
    for store in stores:
        store.release()


def test_groups_on_a_cluster(cluster_client: RedisCluster) -> None:
    """Tokens and records are on different nodes."""
    with RedisStore(cluster_client) as store:
        chain = ChainedStore([store, DurableDictStore(MemoryDict())])
        keys = [{"id": number} for number in range(30)]
        chain.batch_put([Grouped(number, number % 3, number) for number in range(30)])
        assert None not in store.batch_get(Grouped, keys)
        store.invalidate_group("zone-1")
        gone = [obj is None for obj in store.batch_get(Grouped, keys)]
        assert gone == [number % 3 == 1 for number in range(30)]
        for _ in range(2):
            assert None not in chain.batch_get(Grouped, keys)
        assert None not in store.batch_get(Grouped, keys)


def test_a_slot_that_moves_is_followed(
    cluster: ClusterServers, cluster_client: RedisCluster
) -> None:
    with RedisStore(cluster_client, prefix="{moving}") as store:
        chain = ChainedStore([store, DurableDictStore(MemoryDict())])
        things = [Thing(number, name=number) for number in range(10)]
        keys = [{"id": number} for number in range(10)]
        chain.batch_put(things)
        migration = cluster.migration(b"{moving}")
        migration.begin()
        moved = migration.keys()
        migration.move(*[key for key in moved if key[-1:] in b"01234"])
        # Some are still here, some there already; then all are there.
        assert store.batch_get(Thing, keys) == things
        chain.put(Thing(1, name=1, value="new"))
        assert store.get(Thing, {"id": 1}) == Thing(1, name=1, value="new")
        migration.move()
        migration.finish()
        assert store.batch_get(Thing, keys)[2:] == things[2:]
        chain.put(Thing(2, name=2, value="new"))
        assert store.get(Thing, {"zone": 1, "name": 2}) == Thing(2, name=2, value="new")


# -- both -----------------------------------------------------------------------------------------


def opened(kind: str, where: str, **options: Any) -> Any:
    return RedisStore(where, **options) if kind == "redis" else MemcacheStore([where], **options)


@pytest.fixture(params=["redis", "memcached"])
def place(
    request: pytest.FixtureRequest, memcached: MemcachedServer, redis_url: str
) -> tuple[str, str]:
    return request.param, redis_url if request.param == "redis" else address(memcached)


def forks(kind: str, where: str) -> None:
    store = opened(kind, where)
    store.put(Thing(1))

    def child() -> None:
        assert store.get(Thing, {"id": 1}) == Thing(1)
        store.put(Thing(os.getpid(), name=os.getpid()))
        assert store.get(Thing, {"id": os.getpid()}) == Thing(os.getpid(), name=os.getpid())

    pids = [scenarios.fork(child) for _ in range(2)]
    for number in range(200):
        store.put(Thing(2, name="y", value=number))
        assert store.get(Thing, {"id": 2}) == Thing(2, name="y", value=number)
    scenarios.ended_well(*pids)
    # A connection that a child had closed would be dead.
    found = store.batch_get(Thing, [{"id": pid} for pid in pids])
    assert [thing.id for thing in found] == pids
    store.release()


def test_a_forked_child_has_connections_of_its_own(place: tuple[str, str]) -> None:
    scenarios.run(forks, *place)


def test_a_payload_copied_from_another_name_is_refused(place: tuple[str, str]) -> None:
    from durabledict import SignedEncoding

    with opened(*place, encoding=SignedEncoding("secret" * 6)) as store:
        store.batch_put([Thing(1, name="a"), Thing(2, name="b")])
        names = [store._names(Thing(number))[0] for number in (1, 2)]
        cells = store._read_many(names)
        store._write_many([(names[1], cells[names[0]], None)])
        with pytest.raises(DecodingError, match="id="):
            store.get(Thing, {"id": 2})
        # And under another prefix, which is the keyspace.
    with opened(*place, encoding=SignedEncoding("secret" * 6), prefix="other:") as other:
        other._write_many([(names[0], cells[names[0]], None)])
        with pytest.raises(DecodingError, match="id="):
            other.get(Thing, {"id": 1})


def test_a_chain_checks_what_it_is_led_to(place: tuple[str, str]) -> None:
    with opened(*place) as store:
        chain = ChainedStore([store, DurableDictStore(MemoryDict())])
        chain.batch_put([Thing(1), Thing(2, name="y")])
        names = [store._names(Thing(number))[0] for number in (1, 2)]
        store._write_many([(store._names(Thing(1))[1][0], pack_pointer(names[1]), None)])
        assert store._peek(Thing, [NAME], 5).objects == [None]
        assert chain.get(Thing, NAME) == Thing(1)


def test_old_encoding_reads_what_was_there(place: tuple[str, str]) -> None:
    class Attributes(JSONEncoding):
        @staticmethod
        def encode(value: Any) -> str:
            return JSONEncoding.encode(vars(value))

        @staticmethod
        def decode(payload: Any) -> Any:
            return Thing(**JSONEncoding.decode(payload))

    with opened(*place) as old:
        old.put(Thing(1, value="ü"))
    with opened(*place, encoding=Attributes, old_encoding=old.encoding) as new:
        assert new.get(Thing, {"id": 1}) == Thing(1, value="ü")
        new.put(Thing(1, value="é"))
        assert new.get(Thing, NAME) == Thing(1, value="é")
    with opened(*place, encoding=Attributes) as new:
        assert new.get(Thing, {"id": 1}) == Thing(1, value="é")
