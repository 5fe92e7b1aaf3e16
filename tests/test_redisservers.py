"""The servers and the proxy that other tests use do what they say."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, TryAgainError
from redis.retry import Retry

from . import redisservers
from .proxiedclients import client_through
from .redisclusters import SLOTS, ClusterServers, SentinelServers
from .redisservers import Certificates, RedisServer, wait_until_linked
from .serverprocesses import is_alive, is_refused, left_by_a_killed_process
from .servers import HOST, PATIENCE, Server, ServerError, free_port, wait_until
from .tcpproxy import TcpProxy, each_chunk

ROOT = Path(__file__).parent.parent


class TestServer:
    def test_it_answers_on_every_way(self, tmp_path: Path) -> None:
        with RedisServer(tls=Certificates(tmp_path), password="secret") as server:
            for url in (server.url, server.unix_url, server.tls_url):
                with redis.Redis.from_url(url) as client:
                    assert client.ping() is True
            with server.client() as client:
                client.set("a", "1")
                assert client.get("a") == b"1"

    def test_nothing_of_it_is_left(self) -> None:
        with RedisServer() as server:
            pid, folder, port = server.pid, server.folder, server.port
            assert is_alive(pid)
            assert not is_refused(port)
        assert not is_alive(pid)
        assert not folder.exists()
        assert is_refused(port)

    def test_nothing_of_it_is_left_when_the_process_of_the_tests_is_killed(self) -> None:
        folder, (pid,) = left_by_a_killed_process(RedisServer)
        wait_until(lambda: not is_alive(pid), "the server has ended")
        wait_until(lambda: not folder.exists(), "its folder is gone")

    def test_killed_it_starts_again_with_its_file(self) -> None:
        with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
            port = server.port
            with server.client() as client:
                client.set("a", "1")
                server.kill()
                assert is_refused(port)
                server.restart()
                assert server.port == port
                assert client.get("a") == b"1"

    def test_stopped_it_saves(self) -> None:
        with RedisServer("--save", "3600 1") as server, server.client() as client:
            client.set("a", "1")
            server.stop()
            assert not server.running
            server.start()
            assert client.get("a") == b"1"

    def test_paused_it_answers_nothing(self) -> None:
        options = {"socket_timeout": 0.1, "retry": Retry(NoBackoff(), 0)}
        with (
            RedisServer() as server,
            server.client() as patient,
            server.client(**options) as client,
        ):
            assert patient.ping() is True
            server.pause()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            server.resume()
            assert patient.ping() is True

    def test_it_takes_another_port_when_one_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with RedisServer() as first:
            ports = iter([first.port, free_port(), free_port(), free_port()])
            monkeypatch.setattr(redisservers, "free_port", lambda *_: next(ports))
            with RedisServer() as second:
                assert second.port != first.port

    def test_it_shows_its_log_when_it_does_not_start(self) -> None:
        server = RedisServer("--no-such-option", "1")
        with pytest.raises(ServerError, match=r"(?s)status 1.*FATAL CONFIG FILE ERROR"), server:
            pass
        assert not server.folder.exists()

    def test_the_lack_of_a_server_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda _: None)
        redisservers._binary.cache_clear()
        server = RedisServer()
        with pytest.raises(ServerError, match=r"make test.*package redis-server"), server:
            pass
        assert not server.folder.exists()

    def test_it_counts_commands(self, redis_server: RedisServer, redis_url: str) -> None:
        with redis_server.client() as client:
            client.ping()
            with redis_server.counting() as calls:
                client.set("a", "1")
                client.get("a")
                client.get("a")
                client.info()
                client.config_get("save")
        assert calls == {"set": 1, "get": 2, "info": 1, "config|get": 1}

    def test_the_one_of_the_session_is_empty_for_every_test(
        self, redis_server: RedisServer, redis_client: redis.Redis
    ) -> None:
        assert redis_client.dbsize() == 0
        redis_client.set("a", "1")
        redis_server.flush()
        assert redis_client.dbsize() == 0

    def test_the_child_of_a_fork_does_not_end_it(self, redis_server: RedisServer) -> None:
        assert isinstance(redis_server, Server)
        pid = os.fork()
        if pid == 0:
            try:
                redis_server.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert redis_server.running
        assert redis_server.folder.exists()


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[TcpProxy]:
    before = set(threading.enumerate())
    with TcpProxy(redis_server.port) as proxy:
        yield proxy
    # Of those that were there before, some may have ended.
    assert set(threading.enumerate()) <= before
    assert proxy.open_connections == 0
    assert is_refused(proxy.port)


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[redis.Redis]:
    """A client that does not try again, which would hide the faults."""
    with redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0), socket_timeout=PATIENCE) as one:
        one.ping()
        yield one


class TestProxy:
    def test_it_lets_through_and_counts(self, proxy: TcpProxy, client: redis.Redis) -> None:
        gets = proxy.watch(b"GET")
        # No random bytes: one megabyte in sixteen has a GET in it.
        value = bytes(range(128, 256)) * (1 << 13)
        before = proxy.requests
        client.set("a", value)
        assert client.get("a") == value
        with client.pipeline(transaction=False) as pipeline:
            for key in ("a", "b", "c"):
                pipeline.get(key)
            assert pipeline.execute() == [value, None, None]
        assert gets.hits == 4
        assert proxy.requests - before == 5
        assert proxy.bytes_from_client > len(value)
        assert proxy.bytes_from_server > 2 * len(value)
        assert (proxy.connections, proxy.open_connections) == (1, 1)

    def test_cut_before(
        self, proxy: TcpProxy, client: redis.Redis, redis_client: redis.Redis
    ) -> None:
        proxy.cut_before(b"SET")
        with pytest.raises(redis.ConnectionError):
            client.set("a", "1")
        assert redis_client.get("a") is None

    @pytest.mark.parametrize("reset", [False, True])
    def test_cut_after(
        self, proxy: TcpProxy, client: redis.Redis, redis_client: redis.Redis, reset: bool
    ) -> None:
        proxy.cut_after(b"INCR", reset=reset)
        assert client.set("a", "1") is True
        with pytest.raises(redis.ConnectionError, match="reset by peer" if reset else "closed"):
            client.incr("a")
        assert redis_client.get("a") == b"2"
        assert client.incr("a") == 3
        assert proxy.connections == 2

    @pytest.mark.parametrize("after", [0, 3, 10])
    def test_cut_reply(self, proxy: TcpProxy, client: redis.Redis, after: int) -> None:
        client.set("a", b"x" * 100)
        proxy.cut_reply(b"GET", after=after)
        with socket.create_connection((HOST, proxy.port), PATIENCE) as plain:
            plain.sendall(b"GET a\r\n")
            with plain.makefile("rb") as stream:
                assert stream.read() == b"$100\r\nxxxxxxxx"[:after]
        proxy.cut_reply(b"GET", after=after)
        with pytest.raises(redis.ConnectionError):
            client.get("a")
        assert client.get("a") == b"x" * 100

    def test_cut_reply_in_a_pipeline(self, proxy: TcpProxy, client: redis.Redis) -> None:
        """It is the reply to that request, though the others come together with it."""
        proxy.cut_reply(b"two", after=2)
        with socket.create_connection((HOST, proxy.port), PATIENCE) as plain:
            plain.sendall(b"ECHO one\r\nECHO two\r\nECHO three\r\n")
            with plain.makefile("rb") as stream:
                assert stream.read() == b"$3\r\none\r\n$3"

    def test_hold(self, proxy: TcpProxy, client: redis.Redis, redis_client: redis.Redis) -> None:
        with ThreadPoolExecutor() as threads:
            held = proxy.hold(b"INCR")
            future = threads.submit(client.incr, "a")
            held.wait()
            assert redis_client.get("a") == b"1"
            assert not future.done()
            held.release()
            assert future.result(PATIENCE) == 1

            held = proxy.hold_request(b"INCR")
            future = threads.submit(client.incr, "a")
            held.wait()
            assert redis_client.get("a") == b"1"
            assert not future.done()
            held.release()
            assert future.result(PATIENCE) == 2

    @pytest.mark.parametrize("fault", ["hold", "hold_request"])
    def test_what_is_held_does_not_arrive_after_the_end(
        self, redis_server: RedisServer, redis_client: redis.Redis, fault: str
    ) -> None:
        with (
            TcpProxy(redis_server.port) as proxy,
            socket.create_connection((HOST, proxy.port), PATIENCE) as plain,
        ):
            held = getattr(proxy, fault)(b"INCR")
            plain.sendall(b"INCR a\r\n")
            held.wait()
            proxy.close()
            assert plain.recv(1) == b""
        assert redis_client.get("a") == (b"1" if fault == "hold" else None)

    def test_half_close(self, proxy: TcpProxy, redis_client: redis.Redis) -> None:
        proxy.half_close(b"INCR")
        with socket.create_connection((HOST, proxy.port), PATIENCE) as plain:
            plain.sendall(b"INCR a\r\n")
            assert plain.recv(1) == b""
            plain.sendall(b"INCR a\r\n")
            wait_until(lambda: redis_client.get("a") == b"2", "the server got the second one")

    def test_a_client_that_sends_no_more_still_gets_its_reply(self, proxy: TcpProxy) -> None:
        with socket.create_connection((HOST, proxy.port), PATIENCE) as plain:
            plain.sendall(b"ECHO a\r\nECHO b\r\n")
            plain.shutdown(socket.SHUT_WR)
            with plain.makefile("rb") as stream:
                assert stream.read() == b"$1\r\na\r\n$1\r\nb\r\n"

    def test_swallow(self, proxy: TcpProxy, redis_client: redis.Redis) -> None:
        swallowed = proxy.swallow(b"INCR")
        with client_through(proxy, socket_timeout=0.1, retry=Retry(NoBackoff(), 0)) as client:
            with pytest.raises(redis.TimeoutError):
                client.incr("a")
            swallowed.wait()
            assert redis_client.get("a") is None
            assert client.incr("a") == 1

    def test_black_hole_and_mend(self, proxy: TcpProxy, redis_client: redis.Redis) -> None:
        """Nothing comes through, not even what the server says of itself."""
        with (
            socket.create_connection((HOST, proxy.port), PATIENCE) as old,
            old.makefile("rb") as stream,
        ):
            old.sendall(b"SUBSCRIBE c\r\n")
            subscribed = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
            assert stream.read(len(subscribed)) == subscribed
            proxy.black_hole()
            redis_client.publish("c", "unheard")
            with socket.create_connection((HOST, proxy.port), 0.1) as new:
                new.sendall(b"PING\r\n")
                with pytest.raises(TimeoutError):
                    new.recv(1)
            proxy.mend()
            assert stream.read() == b""
        with socket.create_connection((HOST, proxy.port), PATIENCE) as new:
            new.sendall(b"PING\r\n")
            assert new.recv(7) == b"+PONG\r\n"

    def test_refuse_and_cut_and_mend(self, proxy: TcpProxy, client: redis.Redis) -> None:
        proxy.refuse()
        assert is_refused(proxy.port)
        assert client.ping() is True
        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        proxy.mend()
        assert client.ping() is True

    def test_a_push_is_not_a_reply(self, proxy: TcpProxy, redis_client: redis.Redis) -> None:
        with (
            socket.create_connection((HOST, proxy.port), PATIENCE) as plain,
            plain.makefile("rb") as stream,
        ):
            plain.sendall(b"HELLO 3\r\nCLIENT TRACKING ON BCAST\r\n")
            while stream.readline() != b"+OK\r\n":
                pass
            held = proxy.hold(b"ECHO")
            redis_client.set("a", "1")
            wait_until(lambda: redis_client.get("a") == b"1", "it is written")
            assert stream.readline() == b">2\r\n"
            plain.sendall(b"ECHO x\r\n")
            held.wait()
            redis_client.set("a", "2")
            held.release()
            said = b"".join(iter(stream.readline, b"x\r\n"))
            assert said.endswith(b"$1\r\n")

    def test_any_protocol(self, redis_server: RedisServer, tmp_path: Path) -> None:
        with (
            RedisServer(tls=Certificates(tmp_path)) as server,
            TcpProxy(server.tls_port, split=each_chunk) as proxy,
        ):
            url = server.tls_url.replace(str(server.tls_port), str(proxy.port))
            with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
                assert client.ping() is True
                proxy.cut_after()
                with pytest.raises(redis.ConnectionError):
                    client.ping()


class TestReplica:
    def test_it_has_what_is_written_to_its_primary(self) -> None:
        with RedisServer(password="secret") as primary, primary.client() as writer:
            writer.set("a", "1")
            with RedisServer(replica_of=primary) as replica, replica.client() as reader:
                wait_until_linked(replica)
                assert reader.get("a") == b"1"
                writer.set("a", "2")
                assert writer.wait(1, 1000 * int(PATIENCE)) == 1
                assert reader.get("a") == b"2"
                with pytest.raises(redis.ReadOnlyError):
                    reader.set("a", "3")


class TestSentinel:
    def test_the_client_follows_the_primary(self) -> None:
        with SentinelServers() as servers:
            pids = [server.pid for server in [servers.primary, servers.replica, *servers.sentinels]]
            assert servers.primary_address() == (HOST, servers.primary.port)
            with servers.client() as client:
                client.set("a", "1")
                assert client.wait(1, 1000 * int(PATIENCE)) == 1
                servers.primary.kill()
                servers.fail_over_to(servers.replica)
                assert servers.primary_address() == (HOST, servers.replica.port)
                assert client.get("a") == b"1"
                client.set("a", "2")
        assert not any(map(is_alive, pids))


@pytest.fixture(scope="class")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers() as servers:
        pids = [node.pid for node in servers.nodes]
        yield servers
    assert not any(map(is_alive, pids))


class TestCluster:
    def test_every_slot_has_an_owner(self, cluster: ClusterServers) -> None:
        with cluster.client() as client:
            assert len(client.get_primaries()) == 3
            assert len(client.nodes_manager.slots_cache) == SLOTS
            for number in range(100):
                client.set(f"key {number}", number)
            assert client.get("key 99") == b"99"

    def test_a_migration_stops_between_its_steps(self, cluster: ClusterServers) -> None:
        one, two = b"{tag}one", b"{tag}two"
        with cluster.client() as client:
            client.mset_nonatomic({one: 1, two: 2})
            migration = cluster.migration(one)
            source, target = migration.source, migration.target
            assert cluster.owner(one) is source
            migration.begin()
            assert sorted(migration.keys()) == [one, two]
            migration.move(one)
            with source.client() as direct:
                assert direct.get(two) == b"2"
                with pytest.raises(AskError):
                    direct.get(one)
                with pytest.raises(TryAgainError):
                    direct.mget(one, two)
            assert client.get(one) == b"1"
            migration.move()
            assert migration.keys() == []
            migration.finish()
            assert cluster.owner(one) is target
            with source.client() as direct, pytest.raises(MovedError):
                direct.get(one)
            assert client.mget([one, two]) == [b"1", b"2"]
