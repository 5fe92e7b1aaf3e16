"""What RedisDict asks of its server: how often, under which names, and what 0.9 left there.

Counted at the server, or in a proxy between it and the dict. Rule 2.5 is about the checks.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from durabledict import PickleEncoding, RedisDict
from durabledict.redisprimary import key_names

from .redisservers import RedisServer
from .servers import PATIENCE, wait_until
from .tcpproxy import TcpProxy

OLD_PAYLOADS = json.loads(
    (Path(__file__).parent / "data" / "durabledict-0.9-payloads.json").read_text()
)["cases"]

# As it is sent; the text of a script names it in another form.
GET = b"$3\r\nGET\r\n"


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[redis.Redis]:
    """A client through the proxy."""
    with redis.Redis(port=proxy.port, socket_timeout=PATIENCE) as client:
        yield client


def opened(client: redis.Redis, keyspace: str = "k", **options: Any) -> RedisDict[Any, Any]:
    """A dict that has looked, and does not do so again in the course of a test."""
    d = RedisDict[Any, Any](keyspace, client, **options)
    d["n"] = 0
    d.sync()
    d._look_at = math.inf
    return d


@contextmanager
def requests(proxy: TcpProxy, number: int) -> Iterator[None]:
    before = proxy.requests
    yield
    assert proxy.requests - before == number


# -- reads ----------------------------------------------------------------------------------------


def test_a_strict_read_is_one_get(
    redis_server: RedisServer, proxy: TcpProxy, client: redis.Redis
) -> None:
    """Rule 2.5."""
    with opened(client) as d:
        with redis_server.counting() as calls, requests(proxy, 100):
            for _ in range(100):
                assert d["n"] == 0
        assert calls == {"get": 100}


def test_a_manual_read_asks_nothing(proxy: TcpProxy, client: redis.Redis) -> None:
    with opened(client, autosync=False) as d, requests(proxy, 0):
        assert d["n"] == 0
        assert len(d) == 1
        assert "other" not in d


class Counted:
    """A lock that counts who came to it."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.came = 0
        self._counting = threading.Lock()

    def __enter__(self) -> None:
        with self._counting:
            self.came += 1
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_sixteen_reads_at_once_are_two_gets(
    redis_server: RedisServer, proxy: TcpProxy, client: redis.Redis
) -> None:
    """Rules 0.6 and 2.5."""
    with opened(client) as d:
        lock: Any = Counted(d._sync_mutex)
        d._sync_mutex = lock
        gets = proxy.watch(GET)
        held = proxy.hold(GET)
        with redis_server.client() as other, RedisDict[str, int]("k", other) as writer:
            read: list[int] = []
            first = threading.Thread(target=lambda: read.append(d["n"]))
            first.start()
            held.wait()
            # The answer that is held is older than this: only the first read may use it.
            writer["n"] = 1
            later: list[int] = []
            threads = [threading.Thread(target=lambda: later.append(d["n"])) for _ in range(15)]
            for thread in threads:
                thread.start()
            wait_until(lambda: lock.came == 16, "all threads wait")
            held.release()
            for thread in (first, *threads):
                thread.join(PATIENCE)
            assert later == [1] * 15
            assert gets.hits == 2


# -- writes ---------------------------------------------------------------------------------------


WRITES: dict[str, Callable[[RedisDict[Any, Any]], object]] = {
    "set": lambda d: d.update(n=1),
    "set one": lambda d: d.__setitem__("n", 1),
    "set a new one": lambda d: d.__setitem__("new", 1),
    "update": lambda d: d.update({str(number): number for number in range(3000)}),
    "update of too many to be listed": lambda d: d.update({str(n): n for n in range(6000)}),
    "del": lambda d: d.__delitem__("n"),
    "clear": lambda d: d.clear(),
    "replace_all": lambda d: d.replace_all({"a": 1}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_one_script_call_and_nothing_else(
    redis_server: RedisServer,
    proxy: TcpProxy,
    client: redis.Redis,
    write: Callable[[RedisDict[Any, Any]], object],
) -> None:
    with RedisDict[str, int]("teacher", client) as teacher:
        teacher["n"] = 0
        write(teacher)  # from now on the server knows the script
    with opened(client, autosync=False) as d:
        with redis_server.counting() as calls, requests(proxy, 1):
            write(d)
        assert calls["evalsha"] == 1
        assert calls["eval"] == 0
        with requests(proxy, 0):
            copy = dict(d)
        assert d.sync(force=True) is False
        assert copy == dict(d)


def test_a_new_script_costs_one_request_more_once(proxy: TcpProxy, client: redis.Redis) -> None:
    with opened(client) as d:
        with requests(proxy, 2):
            d.update(a=1, b=2)
        with requests(proxy, 1):
            d.update(a=2, b=3)


# -- syncs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_delta_is_two_requests_whatever_the_size(
    redis_server: RedisServer, proxy: TcpProxy, client: redis.Redis, size: int
) -> None:
    with redis_server.client() as other, RedisDict[int, int]("k", other, autosync=False) as writer:
        writer.update(dict.fromkeys(range(size), 0))
        with RedisDict[int, int]("k", client) as d:
            writer[3] = 1
            assert d[3] == 1  # from now on the server knows the script
            d._look_at = math.inf
            writer[4] = 1
            with redis_server.counting() as calls, requests(proxy, 2):
                assert d[4] == 1
            assert calls["evalsha"] == 1
            assert calls["hmget"] == 1
            for number in range(500):
                writer[number % size] = number
            with requests(proxy, 2):
                assert d[499 % size] == 499
            del writer[5]
            with redis_server.counting() as calls:
                assert d.sync() is True
            # The look, with ROLE, and the delta.
            assert calls["evalsha"] == 2
            assert calls["role"] == 1
            assert 5 not in d
            assert d.stats.reloads == 1
            assert d.stats.keys_fetched < size + 1000
            assert len(d) == size - 1


def test_a_sync_of_an_unchanged_dict_is_one_round_trip(
    redis_server: RedisServer, proxy: TcpProxy, client: redis.Redis
) -> None:
    """Its two requests are sent together: neither waits for the other's reply."""
    with opened(client) as d:
        with redis_server.counting() as calls, requests(proxy, 2):
            assert d.sync() is False
        assert (calls["evalsha"], calls["role"]) == (1, 1)
        role = proxy.watch(b"ROLE")
        held = proxy.hold(b"EVALSHA")
        thread = threading.Thread(target=d.sync)
        thread.start()
        held.wait()
        role.wait()
        held.release()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_once_a_second_a_read_looks_at_the_role_too(
    redis_server: RedisServer,
    proxy: TcpProxy,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule 2.6."""
    now = 1000.0
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: now)
    with RedisDict[str, int]("k", client) as d:
        d["n"] = 0
        d.sync()
        roles = []
        for _ in range(50):
            with redis_server.counting() as calls:
                assert d["n"] == 0
            roles.append(calls["role"])
            assert calls["get"] == 1
            now += 0.125
        assert sum(roles) == 6


# -- opening --------------------------------------------------------------------------------------


def test_opening_writes_nothing(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    with redis_server.counting() as calls, RedisDict[str, int]("k", redis_client) as d:
        assert d == {}
        assert d.get("a") is None
        assert d.sync() is False
        with d.watch():
            pass
    assert redis_client.dbsize() == 0
    assert not {"set", "hset", "xadd", "incr", "del", "hdel", "xtrim"} & {
        name for name, count in calls.items() if count
    }


# -- what 0.9 wrote -------------------------------------------------------------------------------


def old(value: Any) -> bytes:
    """A payload as 0.9 made it under Python 3."""
    return base64.encodebytes(pickle.dumps(value, protocol=2))


def old_set(client: redis.Redis, key: str, value: Any, keyspace: str = "k") -> None:
    """Write as 0.9 did."""
    client.hset(keyspace, key, old(value))
    client.incr(f"{keyspace}last_updated")


def old_delete(client: redis.Redis, key: str) -> None:
    client.hdel("k", key)
    client.incr("klast_updated")


def test_every_payload_of_0_9_is_read_from_its_hash(redis_client: redis.Redis) -> None:
    names = {
        "datetime": datetime,
        "decimal": decimal,
        "OrderedDict": OrderedDict,
        "collections": __import__("collections"),
    }
    for case in OLD_PAYLOADS:
        redis_client.hset("k", case["name"], case["payload"])
        redis_client.incr("klast_updated")
    with RedisDict[str, Any]("k", redis_client, encoding=PickleEncoding) as d:
        assert not d.undecodable
        assert set(d) == {case["name"] for case in OLD_PAYLOADS}
        for case in OLD_PAYLOADS:
            assert d[case["name"]] == eval(case["expected"], dict(names))


def test_opening_leaves_what_0_9_wrote_as_it_was(redis_client: redis.Redis) -> None:
    old_set(redis_client, "a", 1)
    before = dumped(redis_client)
    with RedisDict[str, int]("k", redis_client) as d:
        assert d == {"a": 1}
        assert d.sync(force=True) is False
    assert dumped(redis_client) == before


def dumped(client: redis.Redis) -> dict[bytes, object]:
    """Everything in the server, as it is."""
    names: Any = client.keys()
    return {name: client.dump(name) for name in names}


@pytest.mark.parametrize("autosync", [True, False])
def test_a_write_of_0_9_is_noticed_by_its_counter(
    redis_client: redis.Redis, autosync: bool
) -> None:
    """Rule 2.3."""
    old_set(redis_client, "a", 1)
    with RedisDict[str, int]("k", redis_client, autosync=autosync) as d:
        assert d == {"a": 1}
        assert d.sync() is False
        old_set(redis_client, "a", 2)  # the number of entries stays
        assert d.sync() is True
        assert d == {"a": 2}
        old_set(redis_client, "b", 3)
        d.sync()
        assert d == {"a": 2, "b": 3}
        old_delete(redis_client, "a")
        d.sync()
        assert d == {"b": 3}
        assert d.sync() is False


@pytest.mark.parametrize("first", ["app", "applast_updated"])
def test_a_keyspace_named_as_the_counter_of_0_9_leaves_both_working(
    redis_client: redis.Redis, first: str
) -> None:
    """Rule 2.3: 0.9 counted under the name of the other one's hash, so it cannot have counted."""
    redis_client.hset("app", "a", pickle.dumps(1))
    second = {"app": "applast_updated", "applast_updated": "app"}[first]
    with RedisDict[str, int](first, redis_client) as one:
        if first == "applast_updated":
            one["k"] = 1
        with RedisDict[str, int](second, redis_client) as two:
            app, other = (one, two) if first == "app" else (two, one)
            other["k"] = 1
            assert app == {"a": 1}
            assert app.sync() is False
            assert app["a"] == 1
            redis_client.hset("app", "b", pickle.dumps(2))
            assert app.sync() is True
            assert app == {"a": 1, "b": 2}
            app["c"] = 3
            other["l"] = 2
            for d, expected in ((app, {"a": 1, "b": 2, "c": 3}), (other, {"k": 1, "l": 2})):
                assert d == expected
                assert d.sync(force=True) is False
                with RedisDict[str, int](d.keyspace, redis_client) as again:
                    assert again == expected


def test_a_strict_read_sees_a_write_of_0_9(redis_client: redis.Redis) -> None:
    """Rule 2.3: as long as there is no stream, each check reads its counter."""
    with RedisDict[str, int]("k", redis_client) as d:
        assert d == {}
        for number in range(5):
            old_set(redis_client, "a", number)
            assert d["a"] == number


def test_the_first_write_adopts_what_0_9_wrote(redis_client: redis.Redis) -> None:
    """Nothing is converted, and from then on there are deltas."""
    for number in range(100):
        old_set(redis_client, str(number), number)
    payload = redis_client.hget("k", "7")
    with (
        RedisDict[str, int]("k", redis_client) as one,
        RedisDict[str, int]("k", redis_client) as two,
    ):
        assert len(two) == 100
        one["new"] = 1
        assert redis_client.hget("k", "7") == payload
        assert redis_client.type("{k}:changes") == b"stream"
        assert two["new"] == 1
        reloads = two.stats.reloads
        one["new"] = 2
        assert two["new"] == 2
        assert two.stats.reloads == reloads
        assert two == one == {**{str(number): number for number in range(100)}, "new": 2}
        assert one.migrate() == 101
        assert redis_client.hget("k", "7") != payload
        assert two == one


def test_once_adopted_a_write_of_0_9_is_heard_by_force_alone(redis_client: redis.Redis) -> None:
    """Rule 2.3: the docs say so."""
    old_set(redis_client, "a", 1)
    with RedisDict[str, int]("k", redis_client) as d:
        d["b"] = 2
        old_set(redis_client, "a", 3)
        assert d.sync() is False
        assert d.sync(force=True) is True
        assert d == {"a": 3, "b": 2}


def test_0_9_reads_on_what_is_written_to_its_hash(redis_client: redis.Redis) -> None:
    """The hash is where it was, under its own name, with a field for each key."""
    old_set(redis_client, "a", 1)
    with RedisDict[str, int]("k", redis_client) as d:
        d["b"] = 2
        assert set(redis_client.hkeys("k")) == {b"a", b"b"}


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyspace", "stream"),
    [
        ("a", "{a}:changes"),
        ("{a}", "{a}::changes"),
        ("x{a}y", "x{a}y::changes"),
        ("a{}b", "{a{}b}:changes"),
        ("", "{}:changes"),
    ],
)
def test_a_dict_works_under_any_name_that_is_no_slip(
    redis_client: redis.Redis, keyspace: str, stream: str
) -> None:
    """Rule 2.9."""
    with RedisDict[str, int](keyspace, redis_client) as d:
        d.update(a=1, b=2)
        mirror = stream.replace("changes", "last_updated")
        names: Any = redis_client.keys()
        assert {name.decode() for name in names} == {keyspace, stream, mirror}
        assert redis_client.hlen(keyspace) == 2
        assert redis_client.xlen(stream) == 1
        with RedisDict[str, int](keyspace, redis_client) as other:
            assert other == {"a": 1, "b": 2}


@pytest.mark.parametrize("keyspace", ["a}b", "a{b", "{a", "a}", "}{", "{a}}"])
def test_half_a_pair_of_braces_is_refused(redis_client: redis.Redis, keyspace: str) -> None:
    """Rule 2.9."""
    redis_client.hset(keyspace, "k", "theirs")
    with pytest.raises(ValueError, match=r"has half a pair of braces.* as in '\{app\}settings'"):
        RedisDict(keyspace, redis_client)
    assert redis_client.keys() == [keyspace.encode()]
    assert redis_client.hgetall(keyspace) == {b"k": b"theirs"}


names_of_keyspaces = st.text(alphabet="{}a:", max_size=8) | st.text(max_size=8)


@given(names_of_keyspaces, names_of_keyspaces)
def test_no_two_keyspaces_share_a_key(one: str, other: str) -> None:
    """Rule 2.9. But for a hash that is named as the other's stream: see the next test."""
    beside = {*key_names(one)[1:]}
    assert len(beside) == 2
    assert one not in beside
    if one != other:
        assert not beside & {*key_names(other)[1:]}


def test_a_keyspace_named_as_anothers_stream_is_refused(redis_client: redis.Redis) -> None:
    with RedisDict[str, int]("a", redis_client) as d:
        d["x"] = 1
        for name, kind in (("{a}:changes", "stream"), ("{a}:last_updated", "string")):
            with pytest.raises(TypeError, match=f"{name}.*holds a {kind}, not a hash"):
                RedisDict(name, redis_client)
        d["x"] = 2
        assert d.sync(force=True) is False
