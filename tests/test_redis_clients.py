"""RedisDict with whatever client of redis-py: each works, and is left as it was.

The dict makes connections of its own with the client's settings (rules 2.5 and 2.7).
"""

from __future__ import annotations

import gc
import math
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis.backoff import AbstractBackoff, ExponentialBackoff
from redis.cache import CacheConfig, CacheFactory
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

import durabledict
from durabledict import RedisDict, redisservers

from . import output_of
from .redisservers import Certificates, RedisServer
from .servers import HOST, PATIENCE, wait_until

NAME = "of-the-tests"

Make = Callable[[RedisServer], Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that asks for a password, and has TLS and a second user."""
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with RedisServer(password="secret", tls=certificates) as one:
        with one.client() as client:
            client.acl_setuser(
                "somebody", True, passwords="+theirs", keys="*", categories=["+@all"]
            )
        yield one


@pytest.fixture(autouse=True)
def _empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def connections(server: RedisServer, name: str = NAME) -> set[str]:
    """The ids of the connections that have that name."""
    rows = [
        dict(word.split("=", 1) for word in line.split())
        for line in server.ask("CLIENT LIST").decode().splitlines()
    ]
    return {row["id"] for row in rows if row["name"] == name}


def picture(thing: Any) -> Any:
    """What there is of a pool or its settings, to be compared: values, and who the objects are."""
    if thing is None or isinstance(thing, (str, bytes, int, float)):
        return thing
    if isinstance(thing, dict):
        return {key: picture(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing), [picture(value) for value in thing]
    if isinstance(thing, (set, frozenset)):
        return type(thing), {id(value) for value in thing}
    if isinstance(thing, queue.Queue):
        return id(thing), [picture(value) for value in thing.queue]
    if isinstance(thing, (Retry, AbstractBackoff)):
        return id(thing), picture(vars(thing))
    return type(thing), id(thing)


def picture_of_client(client: redis.Redis) -> Any:
    pool = client.connection_pool
    settings = picture(pool.connection_kwargs)
    return picture(vars(client)), picture(vars(pool)), settings


def everything_works(one: RedisDict[Any, Any], two: RedisDict[Any, Any]) -> None:
    """Read, write, sync and watch, from two dicts with the same keyspace."""
    heard = threading.Event()
    one["k"] = {"n": 1}
    assert two["k"] == {"n": 1}
    two.update({number: str(number) for number in range(2500)})
    assert len(one) == 2501
    assert one.sync(force=True) is False
    assert two.pop(7) == "7"
    assert one.compute("k", lambda value: value["n"] + 1) == 2
    assert two.setdefault("k", 3) == 2
    del two["k"]
    assert "k" not in one
    one.replace_all({"caf\xe9": b"\xff\x00", 1: None})
    assert two == {"caf\xe9": b"\xff\x00", 1: None}
    two.on_change(lambda key, _, value: heard.set() if (key, value) == ("w", 1) else None)
    with two.watch(interval=PATIENCE):
        one["w"] = 1
        assert heard.wait(PATIENCE)
    one.clear()
    assert not two
    assert one.wait(one.last_synced, 0.001) is False


def over_pool(server: RedisServer, **options: Any) -> redis.Redis:
    options = {"host": HOST, "port": server.port, "password": server.password, **options}
    return redis.Redis.from_pool(redis.ConnectionPool(**options))


def over_tls(server: RedisServer) -> redis.Redis:
    assert server.tls is not None
    return redis.Redis(
        host=HOST,
        port=server.tls_port,
        password=server.password,
        ssl=True,
        ssl_ca_certs=str(server.tls.authority),
    )


def with_retries(server: RedisServer) -> redis.Redis:
    with warnings.catch_warnings():
        # Since version 6 of redis-py the second of them has no effect, and is warned of.
        warnings.simplefilter("ignore", DeprecationWarning)
        return server.client(retry=Retry(ExponentialBackoff(), 7), retry_on_timeout=True)


def with_cache(server: RedisServer) -> redis.Redis:
    """With settings of a client-side cache, which a server before 7.4 does not take."""
    client = redis.Redis(host=HOST, port=server.port, password=server.password, protocol=3)
    pool = client.connection_pool
    pool.cache = CacheFactory(CacheConfig(max_size=100)).get_cache()
    pool.connection_kwargs["cache"] = pool.cache
    return client


CLIENTS: dict[str, Make] = {
    "bytes": lambda server: server.client(),
    "text": lambda server: server.client(decode_responses=True),
    "latin-1": lambda server: server.client(decode_responses=True, encoding="latin-1"),
    "RESP2": lambda server: server.client(protocol=2),
    "RESP3": lambda server: server.client(protocol=3),
    "RESP3 and text": lambda server: server.client(protocol=3, decode_responses=True),
    "Python's parser of RESP2": lambda server: over_pool(server, parser_class=_RESP2Parser),
    "Python's parser of RESP3": lambda server: over_pool(
        server, parser_class=_RESP3Parser, protocol=3
    ),
    "single_connection_client": lambda server: server.client(single_connection_client=True),
    "own retries": with_retries,
    "retry_on_error": lambda server: server.client(retry_on_error=[redis.BusyLoadingError]),
    "health checks": lambda server: server.client(health_check_interval=1),
    "timeouts": lambda server: server.client(
        socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, socket_keepalive=True
    ),
    "username": lambda server: server.client(username="somebody", password="theirs"),
    "TLS": over_tls,
    "unix socket": lambda server: redis.Redis(
        unix_socket_path=str(server.unix), password=server.password
    ),
    "another database": lambda server: server.client(db=3),
    "a name": lambda server: server.client(client_name=NAME),
    "client-side cache": with_cache,
}


@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
def test_any_client_works_and_is_left_as_it_was(server: RedisServer, make: Make) -> None:
    """Its pool is asked for settings alone: no connection is made in it, or taken from it."""
    with make(server) as client:
        before = picture_of_client(client)
        with RedisDict[Any, Any]("k", client) as one, RedisDict[Any, Any]("k", client) as two:
            everything_works(one, two)
        assert picture_of_client(client) == before
        if "cache" not in client.connection_pool.connection_kwargs:
            assert client.ping() is True


# A client with a cache may not be able to connect to this server.
CONNECTING = {name: make for name, make in CLIENTS.items() if make is not with_cache}


@pytest.mark.parametrize("make", CONNECTING.values(), ids=CONNECTING)
def test_a_client_that_is_in_use_goes_on(server: RedisServer, make: Make) -> None:
    with make(server) as client:
        client.set("other", "1")
        before = picture_of_client(client)
        with RedisDict[Any, Any]("k", client) as one, RedisDict[Any, Any]("k", client) as two:
            everything_works(one, two)
            assert client.get("other") in ("1", b"1")
        after = picture_of_client(client)
        assert after == before


def test_a_client_side_cache_gives_no_old_answer(server: RedisServer) -> None:
    """Reads go past it to the server, also to one that is too old for the client itself."""
    with (
        with_cache(server) as client,
        server.client() as plain,
        RedisDict[str, int]("k", client) as one,
        RedisDict[str, int]("k", plain) as two,
    ):
        for number in range(100):
            two["n"] = number
            assert one["n"] == number


@pytest.mark.parametrize("timeout", [1, None])
def test_a_pool_of_one_connection_that_is_in_use_is_enough(
    server: RedisServer, timeout: int | None
) -> None:
    make: Any = redis.BlockingConnectionPool  # which has no types
    pool = make(max_connections=1, timeout=timeout, host=HOST, port=server.port, password="secret")
    with redis.Redis.from_pool(pool) as client, client.pipeline() as pipeline:
        pipeline.watch("something")
        before = picture_of_client(client)
        with RedisDict[Any, Any]("k", client) as one, RedisDict[Any, Any]("k", client) as two:
            everything_works(one, two)
        assert picture_of_client(client) == before
        pipeline.multi()
        pipeline.set("something", "1")
        assert pipeline.execute() == [True]


def test_an_error_reply_to_a_check_does_not_wait_for_the_pool(server: RedisServer) -> None:
    """It is raised as it is: a pool that has no connection to give is another error."""
    with server.client() as admin:
        admin.acl_setuser("limited", True, passwords="+theirs", keys="*", categories=["+@all"])
        make: Any = redis.BlockingConnectionPool  # which has no types
        pool = make(
            max_connections=1,
            timeout=0.01,
            host=HOST,
            port=server.port,
            username="limited",
            password="theirs",
        )
        with redis.Redis.from_pool(pool) as client, client.pipeline() as pipeline:
            pipeline.watch("something")
            with RedisDict[str, int]("k", client, on_outage="stale") as d:
                d["a"] = 1
                admin.acl_setuser("limited", True, commands=["-get"])
                d._look_at = math.inf
                with pytest.raises(NoPermissionError):
                    d["a"]
        admin.acl_deluser("limited")


def test_a_wrong_password_is_the_drivers_error(server: RedisServer) -> None:
    with server.client(password="wrong") as client, pytest.raises(AuthenticationError):
        RedisDict("k", client)


def test_the_database_is_the_clients(server: RedisServer) -> None:
    with server.client(db=3) as third, server.client() as first:
        with RedisDict[str, int]("k", third) as d:
            d["a"] = 1
        assert first.exists("k") == 0
        assert third.hlen("k") == 1
        with RedisDict[str, int]("k", first) as other:
            assert other == {}


def test_text_is_sent_as_utf_8_whatever_the_clients_encoding(server: RedisServer) -> None:
    """So that clients with another encoding share a keyspace, its name included."""
    with (
        server.client(encoding="latin-1", decode_responses=True) as latin,
        server.client() as plain,
        RedisDict[str, int]("caf\xe9", latin) as one,
        RedisDict[str, int]("caf\xe9", plain) as two,
    ):
        one["\xfc"] = 1
        assert two["\xfc"] == 1
        assert plain.hlen("caf\xe9".encode()) == 1


# -- opening --------------------------------------------------------------------------------------


def url_of(server: RedisServer, scheme: str) -> str:
    return {"redis": server.url, "rediss": server.tls_url, "unix": server.unix_url}[scheme]


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_a_url_opens_a_dict_with_a_client_of_its_own(server: RedisServer, scheme: str) -> None:
    url = url_of(server, scheme)
    named = url + ("&" if "?" in url else "?") + f"client_name={NAME}"
    one = RedisDict[Any, Any].from_url(named, "k")
    two = durabledict.open(named, keyspace="k", autosync=False)
    assert type(one) is not type(two)  # one is strict, the other manual
    assert isinstance(two, RedisDict)
    assert not two.autosync
    one["a"] = 1
    assert two.sync() is True
    assert two == {"a": 1}
    assert one.connection is not two.connection
    one.connection.ping()
    assert connections(server)
    one.close()
    two.close()
    wait_until(lambda: not connections(server), "the connections are closed")


def test_a_url_names_the_database(server: RedisServer) -> None:
    with RedisDict[str, int].from_url(server.url[:-1] + "5", "k") as d, server.client(db=5) as five:
        d["a"] = 1
        assert five.hlen("k") == 1


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_the_keyspace_is_needed(server: RedisServer, scheme: str) -> None:
    with pytest.raises(TypeError, match=rf"^{scheme}:// needs keyspace="):
        durabledict.open(url_of(server, scheme))


def test_an_unknown_option_is_named_with_the_known_ones(server: RedisServer) -> None:
    with pytest.raises(TypeError, match=r"no option 'keyspaec'; there are: keyspace,.*wait"):
        durabledict.open(server.url, keyspace="k", keyspaec="k")


def test_a_url_that_cannot_be_opened_leaves_no_connection(server: RedisServer) -> None:
    with server.client() as client:
        client.set("k", "1")
    with pytest.raises(TypeError, match="'k' holds a string, not a hash"):
        durabledict.open(f"{server.url}?client_name={NAME}", keyspace="k")
    gc.collect()
    wait_until(lambda: not connections(server), "the connections are closed")


@pytest.mark.parametrize("connection", [None, "redis://localhost", object()])
def test_what_is_no_client_is_refused(connection: object) -> None:
    with pytest.raises(TypeError, match=r"pass a redis\.Redis or a redis\.cluster\.RedisCluster"):
        RedisDict("k", connection)


def test_who_passes_a_url_is_told_of_open() -> None:
    with pytest.raises(
        TypeError, match=r"^connection is a str: .*; a URL is for durabledict\.open$"
    ):
        RedisDict("k", "redis://localhost")


def test_an_asyncio_client_is_refused(server: RedisServer) -> None:
    import redis.asyncio

    for single in (False, True):
        client = redis.asyncio.Redis(port=server.port, single_connection_client=single)
        with pytest.raises(TypeError, match=r"a Redis of redis\.asyncio, which .*workers\.rst"):
            RedisDict("k", client)


@pytest.mark.parametrize("keyspace", [None, b"k", 1])
def test_a_keyspace_is_text(server: RedisServer, keyspace: Any) -> None:
    with server.client() as client, pytest.raises(TypeError, match="and the client after"):
        RedisDict(keyspace, client)


@pytest.mark.parametrize(
    "use",
    [
        "from durabledict import RedisDict",
        "import durabledict; durabledict.RedisDict",
        "import durabledict; durabledict.open('redis://localhost', keyspace='k')",
        "import durabledict; durabledict.open('rediss://localhost', keyspace='k')",
        "import durabledict; durabledict.open('unix:///nowhere', keyspace='k')",
    ],
)
def test_without_the_driver_the_error_names_the_remedy(use: str) -> None:
    program = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "redis":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import durabledict
durabledict.open("memory://")
try:
    {use}
except ImportError as error:
    print(error.name, error)
"""
    said = output_of(program)
    assert said.startswith("redis ")
    assert "pip install redis" in said
    assert "extra [redis]" in said


# -- who shares connections, and who closes them --------------------------------------------------


def test_dicts_with_one_client_share_connections_which_go_with_the_last(
    server: RedisServer,
) -> None:
    with server.client(client_name=NAME) as client:
        dicts = [RedisDict[str, int](str(number), client) for number in range(10)]
        for d in dicts:
            d["a"] = 1
            assert d["a"] == 1
            d.sync(force=True)
        # One that is held for checks, and one for all else.
        shared = connections(server)
        assert len(shared) == 2
        for d in dicts[1:]:
            d.close()
        assert connections(server) == shared
        dicts[0]["a"] = 2
        assert connections(server) == shared
        dicts[0].close()
        wait_until(lambda: not connections(server), "the last one's close ends the connections")


def test_dicts_with_two_clients_share_nothing(server: RedisServer) -> None:
    with server.client(client_name=NAME) as first, server.client(client_name=NAME) as second:
        with RedisDict[str, int]("k", first), RedisDict[str, int]("k", second) as d:
            d["a"] = 1
            both = connections(server)
        wait_until(lambda: not connections(server), "the connections are closed")
    assert len(both) >= 3


def test_a_dict_that_is_forgotten_leaves_its_connections(server: RedisServer) -> None:
    with server.client(client_name=NAME) as client:
        forgotten = RedisDict[str, int]("k", client)
        kept = RedisDict[str, int]("k", client)
        forgotten["a"] = kept["a"] = 1
        del forgotten
        gc.collect()
        assert len(connections(server)) == 2
        del kept
        gc.collect()
        wait_until(lambda: not connections(server), "the connections are closed")


def test_a_client_that_is_forgotten_with_its_dict_leaves_nothing(server: RedisServer) -> None:
    d = RedisDict[str, int]("k", server.client(client_name=NAME))
    d["a"] = 1
    assert connections(server)
    del d
    gc.collect()
    wait_until(lambda: not connections(server), "the connections are closed")


def test_a_dict_that_could_not_be_made_leaves_its_connections(server: RedisServer) -> None:
    with server.client(client_name=NAME) as client:
        client.set("k", "1")
        client.connection_pool.disconnect()
        with pytest.raises(TypeError):
            RedisDict("k", client)
        gc.collect()
        wait_until(lambda: not connections(server), "the connections are closed")


def test_a_closed_dict_reads_on_and_another_one_opens_anew(server: RedisServer) -> None:
    with server.client(client_name=NAME) as client:
        first = RedisDict[str, int]("k", client)
        first["a"] = 1
        first.close()
        first.close()
        assert first["a"] == 1
        with pytest.raises(RuntimeError, match="closed"):
            first["a"] = 2
        with RedisDict[str, int]("k", client) as second:
            assert second == {"a": 1}
        wait_until(lambda: not connections(server), "the connections are closed")


def test_many_threads_leave_a_few_connections(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redisservers, "KEPT", 8)
    with server.client(client_name=NAME) as client, RedisDict[int, int]("k", client) as d:
        barrier = threading.Barrier(32)

        def write(number: int) -> None:
            barrier.wait(PATIENCE)
            for _ in range(5):
                d[number] = number

        threads = [threading.Thread(target=write, args=[number]) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert d == {number: number for number in range(32)}
        # Eight that are kept, and the one for checks.
        wait_until(lambda: len(connections(server)) <= 9, "the connections too many are closed")


def test_a_watch_gives_its_connection_back(server: RedisServer) -> None:
    with server.client(client_name=NAME) as client, RedisDict[str, int]("k", client) as d:
        d["a"] = 1
        for _ in range(5):
            with d.watch(interval=PATIENCE):
                pass
        wait_until(lambda: len(connections(server)) <= 3, "no connection of a watch is left")
