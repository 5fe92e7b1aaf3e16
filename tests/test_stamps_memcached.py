"""Stamps over every client of pymemcache, on real servers (rules 3.1 and 3.2)."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from importlib import import_module
from typing import Any

import pytest
from pymemcache import Client, HashClient, PooledClient

from durabledict import memcachedcaches
from durabledict.stamps import WRITERS, CacheStamp, Stamp
from durabledict.testing.tools import Clock

from .memcachedserver import MemcachedServer
from .servers import HOST, PATIENCE, wait_until
from .stampcases import (
    answered,
    check_held,
    check_lost,
    check_unavailable,
    read,
    write_from_eight_threads,
)
from .tcpproxy import TcpProxy, each_chunk

KEY = "stamp"

# Neither has types.
SERDES: Any = import_module("pymemcache.serde")
RETRYING: Any = import_module("pymemcache.client.retrying")

Address = tuple[str, int]
Make = Callable[..., Any]


class JSONSerde:
    def serialize(self, key: Any, value: Any) -> tuple[Any, int]:
        return json.dumps(value), 2

    def deserialize(self, key: Any, value: Any, flags: int) -> Any:
        return json.loads(value)


class PicklesEverything:
    def serialize(self, key: Any, value: Any) -> tuple[Any, int]:
        return pickle.dumps(value), 1

    def deserialize(self, key: Any, value: Any, flags: int) -> Any:
        return pickle.loads(value)


class TakesNoBytes(JSONSerde):
    def serialize(self, key: Any, value: Any) -> tuple[Any, int]:
        assert not isinstance(value, bytes)
        return super().serialize(key, value)


def to_text(key: Any, value: Any) -> tuple[Any, int]:
    return repr(value), 1


def of_text(key: Any, value: Any, flags: int) -> Any:
    return f"{value} {flags}"


class OwnClient(Client):
    """A subclass of the user's."""

    def get(self, key: str | bytes, default: Any = None) -> Any:
        return super().get(key, default)


KINDS: dict[str, Make] = {
    "Client": Client,
    "subclass": OwnClient,
    "PooledClient": PooledClient,
    "PooledClient of one": partial(PooledClient, max_pool_size=1),
    "HashClient": lambda server, **options: HashClient([server], **options),
    "pooled HashClient": lambda server, **options: HashClient(
        [server], use_pooling=True, max_pool_size=1, **options
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "pickle_serde": {"serde": SERDES.pickle_serde},
    "compressed_serde": {"serde": SERDES.compressed_serde},
    "JSON": {"serde": JSONSerde()},
    "pickles": {"serde": PicklesEverything()},
    "no bytes": {"serde": TakesNoBytes()},
    "legacy": {"serializer": to_text, "deserializer": of_text},
    "prefix": {"key_prefix": b"prefix:"},
    "replies": {"default_noreply": False},
    "ignores": {"ignore_exc": True},
    "unicode": {"allow_unicode_keys": True, "key_prefix": "schlüssel:".encode()},
}


@pytest.fixture
def server(memcached_server: MemcachedServer) -> MemcachedServer:
    memcached_server.flush()
    return memcached_server


@pytest.fixture
def address(server: MemcachedServer) -> Address:
    return HOST, server.port


@pytest.fixture
def client(address: Address) -> Iterator[Client]:
    with closing(Client(address)) as client:
        yield client


@pytest.fixture
def own() -> Iterator[MemcachedServer]:
    """A server that the test stops."""
    with MemcachedServer() as server:
        yield server


def settings_of(client: Any) -> Any:
    """What a client is made of, and whether it is connected."""
    found = copy.copy(vars(client))
    found["clients"] = {name: settings_of(one) for name, one in found.get("clients", {}).items()}
    if "client_pool" in found:
        pool = found.pop("client_pool")
        found["pool"] = (id(pool), pool.used, pool.free)
    return found


def raw(server: MemcachedServer, *keys: str) -> list[bytes | None]:
    with closing(server.client()) as client:
        return [client.get(key) for key in keys]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_client_holds_a_stamp_and_stays_as_it_is(
    server: MemcachedServer, address: Address, kind: str, options: str
) -> None:
    with closing(KINDS[kind](address, **OPTIONS[options])) as client:
        before = settings_of(client)
        held = check_held(client, KEY)
        assert settings_of(client) == before
        prefix = OPTIONS[options].get("key_prefix", b"").decode()
        with closing(Client(address, allow_unicode_keys=True)) as other:
            assert int(other.get(prefix + KEY)) // WRITERS == held.number


def test_clients_of_all_kinds_share_one_stamp(address: Address) -> None:
    with ExitStack() as stack:
        clients = [make(address, **each) for make in KINDS.values() for each in OPTIONS.values()]
        for client in clients:
            stack.callback(client.close)
        stamps = [
            CacheStamp(client, KEY) for client in clients if not getattr(client, "key_prefix", b"")
        ]
        first = read(stamps[0]).number
        for ended, stamp in enumerate(stamps, 1):
            with stamp.writing() as write:
                pass
            assert write.after is not None
            assert {read(one).number for one in stamps} == {first + ended}


def test_a_client_that_retries_is_not_to_repeat_an_incr(address: Address) -> None:
    with closing(Client(address)) as client:
        stamp = CacheStamp(RETRYING.RetryingClient(client, attempts=5), KEY)
        assert stamp.identity == CacheStamp(client, KEY).identity
        known = read(stamp)
        stamp.touch()
        assert read(stamp).number == known.number + 1


def test_other_classes_of_the_package_are_refused() -> None:
    with pytest.raises(TypeError, match="pass a Client, PooledClient or HashClient"):
        CacheStamp(SERDES.pickle_serde, KEY)


@pytest.mark.parametrize("key", ["with space", "line\n", "x" * 251, "ü"])
def test_a_key_that_memcached_does_not_take_is_no_outage(client: Client, key: str) -> None:
    with pytest.raises(ValueError, match="memcached does not take the key"):
        CacheStamp(client, key)


def test_a_read_is_one_get_and_a_write_two_incrs(server: MemcachedServer, client: Client) -> None:
    stamp = CacheStamp(client, KEY)
    read(stamp)
    before = server.stats()

    def since(*names: str) -> list[int]:
        after = server.stats()
        return [int(after[name]) - int(before[name]) for name in names]

    for _ in range(10):
        read(stamp)
    assert since("cmd_get", "cmd_set", "incr_hits", "incr_misses") == [10, 0, 0, 0]
    for _ in range(5):
        with stamp.writing():
            pass
    assert since("cmd_get", "cmd_set", "incr_hits", "incr_misses") == [10, 0, 10, 0]
    stamp.touch()
    stamp.renew()
    assert since("cmd_get", "cmd_set", "incr_hits", "incr_misses") == [10, 1, 11, 0]


def test_it_does_not_expire(server: MemcachedServer, client: Client) -> None:
    stamp = CacheStamp(client, KEY)
    for put in (stamp.read, stamp.renew, lambda: stamp.end(stamp.begin())):
        put()
        found = client.raw_command(f"mg {KEY} t").split()
        assert found == [b"HD", b"t-1"]
        client.delete(KEY, noreply=False)


class TestLost:
    """Reloads, and never a reader that stays stale."""

    @pytest.mark.parametrize("way", ["flush", "delete", "restart"])
    def test_the_stamp_is_gone(
        self, own: MemcachedServer, way: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def lose() -> None:
            if way == "flush":
                own.flush()
            elif way == "delete":
                with closing(own.client()) as client:
                    client.delete(KEY)
            else:
                own.restart()

        with closing(PooledClient((HOST, own.port))) as client:
            check_lost(client, KEY, lose)

    def test_it_is_evicted(self) -> None:
        with MemcachedServer("-m", "2") as server, closing(server.client()) as client:
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            # Of the same size: memcached evicts among those.
            fillers = {f"{number:0{len(KEY)}}": b"2305843009213693952" for number in range(40_000)}
            client.set_many(fillers, noreply=True)
            assert client.get(f"{39_999:0{len(KEY)}}") is not None
            assert read(stamp) != known

    @pytest.mark.parametrize("garbage", [b"text", b"", b"5", b"-5", b"1.5", b"9" * 30, b"\xff"])
    def test_something_else_is_in_its_place(self, client: Client, garbage: bytes) -> None:
        stamp, other = CacheStamp(client, KEY), CacheStamp(client, KEY)
        known = read(stamp)
        client.set(KEY, garbage, noreply=False)
        second = read(stamp)
        assert second != known
        client.set(KEY, garbage, noreply=False)
        with other.writing():
            pass
        assert read(stamp) not in (known, second)
        opening = other.begin()
        client.set(KEY, garbage, noreply=False)
        other.end(opening)
        assert read(stamp) not in (known, second)

    def test_a_number_that_was_set_back_is_bounded_by_verify(
        self, client: Client, clock: Clock
    ) -> None:
        stamp = CacheStamp(client, KEY, verify=60.0)
        known = read(stamp)
        old = client.get(KEY)
        with CacheStamp(client, KEY).writing():
            pass
        client.set(KEY, old, noreply=False)
        clock.move(60.0)
        assert read(stamp) != known


class TestOutage:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("ignores", [False, True])
    def test_down_is_an_exception(self, own: MemcachedServer, kind: str, ignores: bool) -> None:
        """Also of a HashClient, which answers as if there were nothing for a second."""
        with closing(KINDS[kind]((HOST, own.port), ignore_exc=ignores)) as client:
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            opening = stamp.begin()
            own.kill()
            for _ in range(6):
                for action in (stamp.read, stamp.begin, stamp.touch, partial(stamp.end, opening)):
                    with pytest.raises(stamp.unavailable):
                        action()
            own.start()
            assert read(stamp) != known

    @pytest.mark.parametrize("kind", ["Client", "PooledClient", "HashClient"])
    def test_a_server_that_does_not_answer_is_one(self, own: MemcachedServer, kind: str) -> None:
        with closing(KINDS[kind]((HOST, own.port), timeout=0.05, ignore_exc=True)) as client:
            stamp = CacheStamp(client, KEY)
            known = answered(stamp)
            own.pause()
            check_unavailable(stamp)
            own.resume()
            # What was sent may be done yet, one after the other; the late answers nobody reads.
            wait_until(lambda: answered(stamp).number != known.number, "something has arrived")
            wait_until(lambda: answered(stamp) == answered(stamp), "all has arrived")

    def test_a_restart_is_no_error(self, own: MemcachedServer) -> None:
        """A connection that the server has closed is made anew before a request, not after one."""
        with closing(Client((HOST, own.port))) as client:
            stamp = CacheStamp(client, KEY)
            for action in (stamp.read, stamp.begin, stamp.touch, stamp.renew):
                read(stamp)
                own.restart()
                action()

    @pytest.mark.parametrize("several", [False, True])
    def test_an_answer_that_nobody_read_is_not_the_next_one(
        self, address: Address, several: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Later, it would be seen that there is something to read.
        monkeypatch.setattr(memcachedcaches, "RECENTLY", PATIENCE)

        class Interrupted(Client):
            interrupts = 0

            def _fetch_cmd(self, name: bytes, keys: Any, *more: Any, **named: Any) -> Any:
                if Interrupted.interrupts and self.sock is not None:
                    Interrupted.interrupts -= 1
                    self.sock.sendall(b"get %b\r\n" % KEY.encode())
                    raise KeyboardInterrupt
                return super()._fetch_cmd(name, keys, *more, **named)  # type: ignore[misc]  # not in the stub

        class Interrupting(HashClient):
            client_class = Interrupted

        with ExitStack() as stack:
            servers = [address]
            if several:
                second = stack.enter_context(MemcachedServer())
                servers.append((HOST, second.port))
            client = Interrupting(servers) if several else Interrupted(address)
            writer = stack.enter_context(closing(HashClient(servers)))
            stack.callback(client.close)
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            Interrupted.interrupts = 1
            with pytest.raises(KeyboardInterrupt):
                stamp.read()
            CacheStamp(writer, KEY).touch()
            assert read(stamp).number == known.number + 1
            stamp.touch()
            assert read(stamp).number == known.number + 2

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_get_that_was_not_answered_is_not_missing(
        self, server: MemcachedServer, kind: str
    ) -> None:
        with (
            TcpProxy(server.port, each_chunk) as proxy,
            closing(KINDS[kind]((HOST, proxy.port), ignore_exc=True)) as client,
        ):
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            proxy.cut_after(b"get")
            with pytest.raises(stamp.unavailable):
                stamp.read()
            assert read(stamp) == known

    def test_an_incr_that_was_not_answered_is_not_sent_again(
        self, server: MemcachedServer, clock: Clock
    ) -> None:
        with (
            TcpProxy(server.port, each_chunk) as proxy,
            closing(Client((HOST, proxy.port))) as client,
        ):
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            proxy.cut_after(b"incr")
            with pytest.raises(stamp.unavailable):
                stamp.begin()
            found = raw(server, KEY)[0]
            assert found is not None
            assert int(found) % WRITERS == 1
            clock.move(1.0)
            assert read(stamp) != known


class TestSeveralNodes:
    @pytest.fixture
    def nodes(self) -> Iterator[list[MemcachedServer]]:
        with ExitStack() as stack:
            yield [stack.enter_context(MemcachedServer()) for _ in range(2)]

    @staticmethod
    def client(nodes: list[MemcachedServer], **options: Any) -> Any:
        addresses = [(HOST, node.port) for node in nodes]
        return HashClient(addresses, **{"retry_attempts": 0, "dead_timeout": 0.3, **options})

    @staticmethod
    def holder(nodes: list[MemcachedServer]) -> MemcachedServer:
        (holder,) = [node for node in nodes if raw(node, KEY)[0] is not None]
        return holder

    def test_verify_is_needed(self, address: Address) -> None:
        with closing(HashClient([address, (HOST, 1)])) as several:
            with pytest.raises(ValueError, match="verify=None over 2 nodes of memcached"):
                CacheStamp(several, KEY, verify=None)
            assert CacheStamp(several, KEY).verify == 60.0
        with closing(HashClient([address])) as one:
            assert CacheStamp(one, KEY, verify=None).verify is None

    @pytest.mark.parametrize("options", [{}, {"use_pooling": True}, {"ignore_exc": True}])
    def test_one_goes_away_and_comes_back(
        self, nodes: list[MemcachedServer], clock: Clock, options: dict[str, Any]
    ) -> None:
        with closing(self.client(nodes, **options)) as client:
            before = settings_of(client)
            sleeper, writer = CacheStamp(client, KEY), CacheStamp(client, KEY)
            known = read(sleeper)
            away = self.holder(nodes)
            with closing(away.client()) as direct:
                old = direct.get(KEY)
                away.kill()
                with pytest.raises(writer.unavailable):
                    writer.begin()

                def wrote() -> bool:
                    try:
                        with writer.writing():
                            return read(writer) != known
                    except writer.unavailable:
                        return False  # it tries the one that is away now and then

                wait_until(wrote, "the other one has the stamp")
                (other,) = [node for node in nodes if node is not away]
                assert raw(other, KEY)[0] is not None
                away.start()
                direct.close()
                direct.set(KEY, old, noreply=False)  # it was never down, but cut off
            wait_until(lambda: read(sleeper) == known, "the node is taken back")
            clock.move(60.0)
            assert read(sleeper) != known
            assert settings_of(client) == before

    def test_it_is_not_asked_for_a_moment_and_says_so(self, nodes: list[MemcachedServer]) -> None:
        """pymemcache answers None for a second then, as if there were no stamp."""
        addresses = [(HOST, node.port) for node in nodes]
        with closing(HashClient(addresses, retry_timeout=60)) as client:
            stamp = CacheStamp(client, KEY)
            read(stamp)
            self.holder(nodes).kill()
            for _ in range(3):
                check_unavailable(stamp)

    def test_all_are_away(self, nodes: list[MemcachedServer]) -> None:
        with closing(self.client(nodes, dead_timeout=60)) as client:
            stamp = CacheStamp(client, KEY)
            for node in nodes:
                node.kill()
            errors = []
            for _ in range(5):
                with pytest.raises(stamp.unavailable) as caught:
                    stamp.read()
                errors.append(str(caught.value))
            assert any("All servers seem to be down" in error for error in errors)

    def test_a_node_that_the_client_takes_for_dead_is_asked(
        self, nodes: list[MemcachedServer]
    ) -> None:
        """What is down, a stamp finds out by itself: all processes look in the same places."""
        with closing(self.client(nodes, dead_timeout=600)) as client:
            keys = [f"{KEY}{number}" for number in range(20)]
            nodes[0].kill()
            for key in keys:
                with suppress(OSError):
                    client.get(key)
            assert list(client._dead_clients) == [(HOST, nodes[0].port)]
            nodes[0].start()
            for key in keys:
                read(CacheStamp(client, key))
            assert any(raw(nodes[0], *keys))
            assert any(raw(nodes[1], *keys))
            assert list(client._dead_clients) == [(HOST, nodes[0].port)]

    def test_a_node_that_was_added_is_asked(self, nodes: list[MemcachedServer]) -> None:
        with closing(self.client(nodes[:1])) as client:
            keys = [f"{KEY}{number}" for number in range(20)]
            stamps = [CacheStamp(client, key) for key in keys]
            for stamp in stamps:
                read(stamp)
            client.add_server((HOST, nodes[1].port))
            for stamp in stamps:
                read(stamp)
            assert any(raw(nodes[1], *keys))


class TestThreads:
    @pytest.mark.parametrize("kind", KINDS)
    def test_eight_at_once_lose_nothing(self, address: Address, kind: str) -> None:
        with closing(KINDS[kind](address)) as client:
            write_from_eight_threads(client, KEY)

    def test_over_several_nodes(self, server: MemcachedServer) -> None:
        with MemcachedServer() as other:
            addresses = [(HOST, server.port), (HOST, other.port)]
            with closing(HashClient(addresses)) as client:
                write_from_eight_threads(client, KEY)

    @pytest.mark.parametrize("several", [False, True])
    def test_a_finalizer_in_the_middle_of_a_request(self, address: Address, several: bool) -> None:
        """It asks on a connection of its own, and takes nobody's answer."""
        calls: list[Stamp | None] = []

        class Interrupted(Client):
            def _extract_value(self, *arguments: Any) -> Any:
                if not calls:
                    calls.append(None)
                    assert not stamp.cache.is_in_use()
                    with stamp.writing() as write:
                        calls.append(stamp.read())
                    calls.append(write.after)
                return super()._extract_value(*arguments)  # type: ignore[misc]  # not in the stub

        class Interrupting(HashClient):
            client_class = Interrupted

        with ExitStack() as stack:
            servers = [address]
            if several:
                second = stack.enter_context(MemcachedServer())
                servers.append((HOST, second.port))
            client = Interrupting(servers) if several else Interrupted(address)
            stack.callback(client.close)
            stamp = CacheStamp(client, KEY)
            stamp.end(stamp.begin())  # so that there is something to read
            known = read(stamp)
            assert len(calls) == 3
            assert calls[2] is not None
            assert calls[2].number == known.number + 1
            assert read(stamp).number == known.number + 1


def test_connections_end_with_their_client(address: Address) -> None:
    """A warning of a socket that nobody closed would fail the test."""
    client = PooledClient(address)
    stamp = CacheStamp(client, KEY)
    read(stamp)
    cache: Any = stamp.cache
    ((one, _),) = cache._connections._free
    sock = one.sock
    assert sock.fileno() >= 0
    del client, stamp, cache, one
    gc.collect()  # the client's pool refers to it
    assert sock.fileno() == -1
