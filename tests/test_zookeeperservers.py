"""The ZooKeeper servers and the proxy that other tests use do what they say."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import EventType, KazooState, WatchedEvent

from . import jute, zookeeperservers
from .jute import Request
from .serverprocesses import is_alive, is_refused, left_by_a_killed_process
from .servers import HOST, PATIENCE, ServerError, free_port, wait_until
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import Ensemble, ZookeeperServer, started

ROOT = Path(__file__).parent.parent


# Of the tools of the tests, which fail by themselves where they do not work.
pytestmark = pytest.mark.long


def value(client: KazooClient, path: str) -> bytes | None:
    return client.get(path)[0]


def wait_until_connected(client: KazooClient) -> None:
    wait_until(lambda: client.connected, "the client is connected again")


class TestServer:
    def test_it_serves(
        self, zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
    ) -> None:
        assert zookeeper_server.mode() == "standalone"
        assert zookeeper_server.answers()
        zookeeper_client.create(zookeeper_path, b"1")
        assert value(zookeeper_client, zookeeper_path) == b"1"

    @pytest.mark.parametrize("time", ["once", "again"])
    def test_every_test_has_a_path_of_its_own(
        self, zookeeper_client: KazooClient, zookeeper_path: str, time: str
    ) -> None:
        zookeeper_client.create(zookeeper_path)

    def test_nothing_of_it_is_left(self) -> None:
        with ZookeeperServer() as server:
            pid, folder, port = server.pid, server.folder, server.port
            assert is_alive(pid)
            assert not is_refused(port)
        assert not is_alive(pid)
        assert not folder.exists()
        assert is_refused(port)
        # Where Java keeps what it measures of a process.
        assert not list(Path("/tmp").glob(f"hsperfdata_*/{pid}"))

    def test_nothing_of_it_is_left_when_the_process_of_the_tests_is_killed(self) -> None:
        folder, (pid,) = left_by_a_killed_process(ZookeeperServer)
        wait_until(lambda: not is_alive(pid), "the server has ended")
        wait_until(lambda: not folder.exists(), "its folder is gone")

    @pytest.mark.parametrize("force_sync", [False, True])
    def test_killed_it_starts_again_with_its_data(self, force_sync: bool) -> None:
        with ZookeeperServer(force_sync=force_sync) as server:
            port = server.port
            with started(server.client()) as client:
                client.create("/a", b"1")
            server.kill()
            assert is_refused(port)
            server.start()
            assert server.port == port
            with started(server.client()) as client:
                assert value(client, "/a") == b"1"
                client.set("/a", b"2")
            server.stop()
            assert not server.running
            assert is_refused(port)
            server.restart()
            assert server.port == port
            with started(server.client()) as client:
                assert value(client, "/a") == b"2"

    def test_a_client_goes_on_when_it_starts_again(self) -> None:
        with ZookeeperServer() as server, started(server.client(timeout=3)) as client:
            client.create("/a", b"1")
            server.restart()
            # Where the machine is busy its session may have expired: then it has another one.
            assert client.retry(client.get, "/a")[0] == b"1"

    def test_paused_it_answers_nothing(
        self, zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
    ) -> None:
        zookeeper_client.create(zookeeper_path, b"1")
        zookeeper_server.pause()
        try:
            read = zookeeper_client.get_async(zookeeper_path)
            with pytest.raises(KazooTimeoutError):
                read.get(timeout=0.1)
            with pytest.raises(TimeoutError):
                zookeeper_server.four_letter("ruok", patience=0.1)
            assert zookeeper_server.paused
        finally:
            zookeeper_server.resume()
        assert read.get(timeout=PATIENCE)[0] == b"1"
        assert zookeeper_server.four_letter("ruok") == "imok"
        assert not zookeeper_server.paused

    def test_paused_it_can_be_killed(self) -> None:
        with ZookeeperServer() as server:
            server.pause()
            server.restart()
            assert server.answers()
            assert not server.paused

    def test_it_takes_another_port_when_one_is_taken(
        self, zookeeper_server: ZookeeperServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also when it is another such server that answers there."""
        ports = iter([zookeeper_server.port, free_port(), free_port()])
        monkeypatch.setattr("tests.servers.free_port", lambda: next(ports))
        with ZookeeperServer() as second:
            assert second.port != zookeeper_server.port
            second.kill()
            second.port = zookeeper_server.port
            assert not second.answers()

    def test_its_settings(self) -> None:
        with (
            ZookeeperServer(
                "maxSessionTimeout=5000", java=["-Djava.library.path=/nowhere"]
            ) as server,
            started(server.client(timeout=10)),
        ):
            lines = server.four_letter("conf").splitlines()
            assert "maxSessionTimeout=5000" in lines
            assert "maxClientCnxns=0" in lines
            assert ",to=5000," in server.four_letter("cons")
            assert "java.library.path=/nowhere" in server.four_letter("envi").splitlines()

    def test_it_shows_its_log_when_it_does_not_start(self) -> None:
        server = ZookeeperServer("tickTime=often")
        with pytest.raises(ServerError, match=r'(?s)status 2.*"often"'), server:
            pass
        assert not server.folder.exists()

    @pytest.mark.parametrize("missing", ["java", "zookeeper.jar"])
    def test_the_lack_of_a_server_is_an_error(
        self, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        if missing == "java":
            monkeypatch.setattr(shutil, "which", lambda _: None)
        else:
            monkeypatch.setattr(zookeeperservers, "DEBIAN", tmp_path)
        zookeeperservers._program.cache_clear()
        server = ZookeeperServer()
        said = rf"{missing}.*make test.*packages.*apt-get install libzookeeper-java"
        with pytest.raises(ServerError, match=said), server:
            pass
        assert not server.folder.exists()

    def test_it_counts(self) -> None:
        with ZookeeperServer() as server, started(server.client()) as client:
            assert server.connections() == 1
            assert client.client_id is not None
            assert server.sessions() == {client.client_id[0]}
            client.exists("/a", watch=lambda event: None)
            client.get_children("/", watch=lambda event: None)
            assert server.watches() == 2
            with started(server.client()) as other:
                assert server.connections() == 2
                assert len(server.sessions()) == 2
                received = server.packets_received()
                other.exists("/a", watch=lambda event: None)
                assert server.packets_received() == received + 2
                assert server.watches() == 3
            wait_until(lambda: server.connections() == 1, "one connection is left")
            assert server.watches() == 2
            assert server.sessions() == {client.client_id[0]}
            assert server.outstanding() == 0

    def test_nothing_of_a_client_is_left(self, zookeeper_server: ZookeeperServer) -> None:
        threads = threading.active_count()
        files = len(os.listdir("/proc/self/fd"))
        with started(zookeeper_server.client()) as client:
            assert client.connected
            assert threading.active_count() > threads
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) == files

    def test_the_options_of_a_client(
        self, zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
    ) -> None:
        zookeeper_client.create(f"{zookeeper_path}/a", b"1", makepath=True)
        with started(zookeeper_server.client(chroot=zookeeper_path, timeout=5)) as client:
            assert value(client, "/a") == b"1"
            assert ",to=5000," in zookeeper_server.four_letter("cons")


class TestExpiry:
    def test_a_session_expires(
        self, zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
    ) -> None:
        states: Queue[str] = Queue()
        with started(zookeeper_server.client()) as client:
            session = client.client_id
            assert session is not None
            client.create(zookeeper_path, b"1", ephemeral=True)
            client.add_listener(states.put)
            zookeeper_server.expire(client)
            assert zookeeper_client.exists(zookeeper_path) is None
            heard = [states.get(timeout=PATIENCE) for _ in range(3)]
            while heard[-3:] != [KazooState.SUSPENDED, KazooState.LOST, KazooState.CONNECTED]:
                heard.append(states.get(timeout=PATIENCE))
            assert client.client_id is not None
            assert client.client_id[0] != session[0]
            assert session[0] not in zookeeper_server.sessions()

    def test_a_client_without_a_session(self, zookeeper_server: ZookeeperServer) -> None:
        client = zookeeper_server.client()
        with pytest.raises(ServerError, match="not connected"):
            zookeeper_server.expire(client)
        client.close()

    def test_a_session_expires_of_which_nothing_is_heard(
        self, zookeeper_server: ZookeeperServer
    ) -> None:
        with (
            ZookeeperProxy(zookeeper_server.port) as proxy,
            started(zookeeper_server.client(hosts=f"{HOST}:{proxy.port}", timeout=1)) as client,
        ):
            session = client.client_id
            assert session is not None
            proxy.black_hole()
            wait_until(lambda: session[0] not in zookeeper_server.sessions(), "it has expired")
            proxy.mend()
            wait_until(
                lambda: client.client_id is not None and client.client_id[0] != session[0],
                "the client has another session",
            )


@pytest.fixture(scope="module")
def all_three() -> Iterator[Ensemble]:
    before = threading.active_count()
    with Ensemble() as ensemble:
        pids = [server.pid for server in ensemble.servers]
        folders = [server.folder for server in ensemble.servers]
        assert threading.active_count() == before
        yield ensemble
        pids += [server.pid for server in ensemble.servers]
    assert not any(map(is_alive, pids))
    assert not any(folder.exists() for folder in folders)


@pytest.fixture
def ensemble(all_three: Ensemble) -> Iterator[Ensemble]:
    """The same one for all tests, with three servers that run."""
    yield all_three
    all_three.mend()


class TestEnsemble:
    def test_one_leads(self, ensemble: Ensemble, zookeeper_path: str) -> None:
        leader, followers = ensemble.leader(), ensemble.followers()
        assert {leader, *followers} == set(ensemble.servers)
        assert [leader.mode(), *(follower.mode() for follower in followers)] == [
            "leader",
            "follower",
            "follower",
        ]
        with started(leader.client()) as writer:
            writer.create(zookeeper_path, b"1")
        for follower in followers:
            with started(follower.client()) as reader:
                reader.sync("/")
                assert value(reader, zookeeper_path) == b"1"

    def test_which_one_a_client_tries_first(self, ensemble: Ensemble) -> None:
        for server in ensemble.servers:
            with started(ensemble.client(first=server)):
                assert server.connections() == 1
            wait_until(lambda: server.connections() == 0, "it is gone")
        with started(ensemble.client()):
            assert [one.connections() for one in ensemble.servers] == [1, 0, 0]
        assert ensemble.hosts == ",".join(f"{HOST}:{one.port}" for one in ensemble.servers)

    def test_the_leader_is_killed(self, ensemble: Ensemble, zookeeper_path: str) -> None:
        leader = ensemble.leader()
        with started(ensemble.client(first=leader)) as client:
            client.create(zookeeper_path, b"1")
            session = client.client_id
            leader.kill()
            assert ensemble.leader() is not leader
            assert len(ensemble.followers()) == 1
            wait_until_connected(client)
            client.set(zookeeper_path, b"2")
            assert client.client_id == session
            leader.start()
            assert len(ensemble.followers()) == 2
            with started(leader.client()) as reader:
                reader.sync("/")
                assert value(reader, zookeeper_path) == b"2"

    def test_the_leader_is_paused(self, ensemble: Ensemble) -> None:
        leader = ensemble.leader()
        leader.pause()
        other = ensemble.leader()
        assert other is not leader
        leader.resume()
        ensemble.wait_for_quorum()
        assert ensemble.leader() is other
        assert leader.mode() == "follower"

    def test_one_alone_does_not_serve(self, ensemble: Ensemble, zookeeper_path: str) -> None:
        last = ensemble.leader()
        others = ensemble.followers()
        with started(last.client()) as client:
            for server in others:
                server.kill()
            wait_until(lambda: last.mode() is None, "it serves no more")
            wait_until(lambda: not client.connected, "the client has noticed")
            # It runs all the same, also when it is started so.
            assert last.running
            last.restart()
            assert last.answers()
            assert last.mode() is None
            others[0].start()
            ensemble.wait_for_quorum()
            wait_until_connected(client)
            client.create(zookeeper_path)

    def test_a_session_expires(self, ensemble: Ensemble, zookeeper_path: str) -> None:
        server = ensemble.followers()[0]
        lost = threading.Event()
        with started(ensemble.client(first=server)) as client:
            session = client.client_id
            client.create(zookeeper_path, ephemeral=True)
            client.add_listener(lambda state: lost.set() if state == KazooState.LOST else None)
            ensemble.expire(client)
            assert session is not None
            assert session[0] not in ensemble.leader().sessions()
            assert lost.wait(PATIENCE)
            wait_until_connected(client)
            client.sync("/")
            assert client.exists(zookeeper_path) is None

    def test_it_shows_the_log_of_one_that_ended(self, ensemble: Ensemble) -> None:
        server = ensemble.followers()[0]
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.ended, "it has ended")
        with pytest.raises(ServerError, match=rf"(?s)it ended: .*{server.folder}"):
            ensemble.wait_for_quorum()

    def test_it_takes_other_ports_when_one_is_taken(
        self, zookeeper_server: ZookeeperServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = [zookeeper_server.port]
        monkeypatch.setattr(
            zookeeperservers, "free_port", lambda: taken.pop() if taken else free_port()
        )
        with Ensemble() as ensemble:
            assert taken == []
            assert zookeeper_server.port not in [server.port for server in ensemble.servers]


@pytest.fixture
def proxy(zookeeper_server: ZookeeperServer) -> Iterator[ZookeeperProxy]:
    before = threading.active_count()
    with ZookeeperProxy(zookeeper_server.port) as proxy:
        yield proxy
    assert threading.active_count() == before
    assert proxy.open_connections == 0


@pytest.fixture
def client(zookeeper_server: ZookeeperServer, proxy: ZookeeperProxy) -> Iterator[KazooClient]:
    """A client through the proxy."""
    with started(zookeeper_server.client(hosts=f"{HOST}:{proxy.port}")) as client:
        yield client


class TestProxy:
    def test_it_names_requests(
        self, proxy: ZookeeperProxy, client: KazooClient, zookeeper_path: str
    ) -> None:
        child = f"{zookeeper_path}/é"
        with proxy.logging() as requests:
            client.create(zookeeper_path, b"1")
            client.create(child, b"x" * 500_000)
            client.get(child)
            client.get(child, watch=lambda event: None)
            client.exists(child)
            client.get_children(zookeeper_path)
            client.get_children(zookeeper_path, include_data=True, watch=lambda event: None)
            client.sync(zookeeper_path)
            client.set(child, b"2")
            client.set_acls(child, client.get_acls(child)[0])
            with client.transaction() as transaction:
                transaction.check(child, 1)
                transaction.delete(child)
            client.delete(zookeeper_path)
            client.add_auth("digest", "user:password")
        assert requests == [
            Request("create", zookeeper_path),
            Request("create", child),
            Request("getData", child),
            Request("getData", child, watch=True),
            Request("exists", child),
            Request("getChildren", zookeeper_path),
            Request("getChildren2", zookeeper_path, watch=True),
            Request("sync", zookeeper_path),
            Request("setData", child),
            Request("getACL", child),
            Request("setACL", child),
            Request("multi"),
            Request("delete", zookeeper_path),
            Request("auth"),
        ]
        with proxy.logging() as requests:
            client.restart()
            client.exists(child)
        operations = [request.operation for request in requests]
        assert operations == ["closeSession", "connect", "auth", "exists"]

    def test_it_counts_without_pings(
        self, proxy: ZookeeperProxy, client: KazooClient, zookeeper_path: str
    ) -> None:
        with proxy.counting() as calls:
            client.exists(zookeeper_path)
            client.exists(zookeeper_path)
            client.sync(zookeeper_path)
            pings = proxy.watch(b"<ping>")
            with socket.create_connection((HOST, proxy.port), PATIENCE) as plain:
                plain.sendall(message(-2, 11))
                pings.wait()
        assert calls == {"exists": 2, "sync": 1}
        assert Request("ping") in proxy.log

    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_it_cuts(
        self,
        proxy: ZookeeperProxy,
        client: KazooClient,
        zookeeper_client: KazooClient,
        zookeeper_path: str,
        fault: str,
    ) -> None:
        client.create(zookeeper_path, b"1")
        getattr(proxy, fault)(f"<setData {zookeeper_path}>".encode())
        assert value(client, zookeeper_path) == b"1"
        with pytest.raises(ConnectionLoss):
            client.set(zookeeper_path, b"2")
        expected = b"1" if fault == "cut_before" else b"2"
        assert value(zookeeper_client, zookeeper_path) == expected
        wait_until_connected(client)
        client.set(zookeeper_path, b"3")

    def test_an_event_is_not_a_reply(
        self,
        proxy: ZookeeperProxy,
        client: KazooClient,
        zookeeper_client: KazooClient,
        zookeeper_path: str,
    ) -> None:
        events: Queue[WatchedEvent] = Queue()
        client.create(zookeeper_path, b"1")
        client.get(zookeeper_path, watch=events.put)
        held = proxy.hold(b"<multi>")
        with ThreadPoolExecutor() as threads:
            going = proxy.hold_request(b"<getChildren ")
            children = threads.submit(client.get_children, zookeeper_path)
            going.wait()
            # Its event comes while a reply is due.
            zookeeper_client.set(zookeeper_path, b"2")
            assert events.get(timeout=PATIENCE).type == EventType.CHANGED
            going.release()
            assert children.result(PATIENCE) == []
            transaction = client.transaction()
            transaction.set_data(zookeeper_path, b"3")
            committed = threads.submit(transaction.commit)
            held.wait()
            assert value(zookeeper_client, zookeeper_path) == b"3"
            assert not committed.done()
            held.release()
            assert len(committed.result(PATIENCE)) == 1

    def test_a_four_letter_word(self, proxy: ZookeeperProxy) -> None:
        for word, begin in {"ruok": b"imok", "srvr": b"Zookeeper version", "envi": b"Env"}.items():
            with (
                socket.create_connection((HOST, proxy.port), PATIENCE) as plain,
                plain.makefile("rb") as stream,
            ):
                plain.sendall(word.encode())
                assert stream.read().startswith(begin)
            assert proxy.log[-1] == Request(word)


def message(*numbers: int, rest: bytes = b"") -> bytes:
    body = struct.pack(f"!{len(numbers)}i", *numbers) + rest
    return struct.pack("!i", len(body)) + body


def text(path: str) -> bytes:
    return struct.pack("!i", len(path.encode())) + path.encode()


class TestJute:
    def test_where_a_message_ends(self) -> None:
        whole = message(1, 4, rest=text("/a") + b"\1")
        for end in range(len(whole)):
            assert jute.message_length(whole[:end]) is None
        assert jute.message_length(whole) == len(whole)
        assert jute.message_length(bytearray(whole + whole[:7])) == len(whole)
        assert jute.message_length(message()) == 4

    @pytest.mark.parametrize(
        "words", [b"ruok", b"imok", b"Zookeeper version: 3", b"\tx /127", b"\n\n\n\n", b"\xff" * 5]
    )
    def test_a_text_is_a_message(self, words: bytes) -> None:
        assert jute.message_length(words) == len(words)

    @pytest.mark.parametrize(
        ("request_bytes", "parsed"),
        [
            (message(0, 3, 5, rest=b"\0" * 33), Request("connect")),
            (message(-2, 11), Request("ping")),
            (message(7, -11), Request("closeSession")),
            (message(7, 4, rest=text("/a") + b"\1"), Request("getData", "/a", watch=True)),
            (message(7, 4, rest=text("/a") + b"\0"), Request("getData", "/a")),
            (message(7, 5, rest=text("/a") + text("\1") + b"\0" * 4), Request("setData", "/a")),
            (message(7, 15, rest=text("/a") + b"\0" * 12), Request("create2", "/a")),
            (message(7, 12345), Request("operation 12345")),
            (b"ruok", Request("ruok")),
            (b"srvr\n", Request("srvr")),
            (message(7, 4)[:9], Request("unfinished")),
            (message(7, 4, rest=text("/a")[:-1]), Request("getData", "/")),
            (message(), Request("unknown")),
            (b"\0", Request("unfinished")),
        ],
    )
    def test_what_a_request_asks_for(self, request_bytes: bytes, parsed: Request) -> None:
        assert jute.parse_request(request_bytes) == parsed

    def test_what_an_event_is(self) -> None:
        assert jute.is_event(message(-1, 0, 0, 0))
        assert not jute.is_event(message(1, 0, 0, 0))
        assert not jute.is_event(message(-2, 0, 0, 0))
        assert not jute.is_event(message())

    def test_a_request_by_name(self) -> None:
        assert str(Request("multi")) == "<multi>"
        assert str(Request("getData", "/a", watch=True)) == "<getData /a>"
