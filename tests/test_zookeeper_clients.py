"""ZookeeperDict with whatever client of kazoo's: who starts and stops it, and what it may do.

It is started if it is not, and left as it was: its settings are read, and none is changed.
"""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import (
    ConnectionLoss,
    InvalidACLError,
    NoAuthError,
    NoNodeError,
    NotReadOnlyCallError,
    OperationTimeoutError,
)
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.states import KazooState, KeeperState, WatchedEvent
from kazoo.retry import KazooRetry
from kazoo.security import (
    ACL,
    CREATOR_ALL_ACL,
    OPEN_ACL_UNSAFE,
    READ_ACL_UNSAFE,
    make_acl,
    make_digest_acl,
)

from durabledict import (
    MISSING,
    DecodingError,
    NoOpEncoding,
    PickleEncoding,
    ZookeeperDict,
    reading,
)
from durabledict.zookeeperclient import NotConnectedError
from durabledict.zookeeperthreads import OwnThreadError

from .servers import HOST, PATIENCE, free_port, wait_until
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import Ensemble, ZookeeperServer, started
from .zookeeperstore import come_to_rest

Dict = ZookeeperDict[Any, Any]

# What a client knows of its connection. All else of it is a setting, or an object of its own.
OF_THE_CONNECTION = {
    "_child_watchers",
    "_data_watchers",
    "_pending",
    "_protocol_version",
    "_queue",
    "_session_id",
    "_session_passwd",
    "_state",
    "last_zxid",
    "state",
}


def settings(client: KazooClient) -> dict[str, Any]:
    """What a caller may have set, with what is in the collections, to be compared."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list, set)) else value
        for name, value in vars(client).items()
        if name not in OF_THE_CONNECTION
    } | {
        name: vars(vars(client)["_connection"])[name] for name in ("retry_sleeper", "sasl_options")
    }


def everything_works(one: Dict, two: Dict) -> None:
    """Read, write, sync and watch, from two dicts with the same keyspace."""
    heard = threading.Event()
    one["k"] = {"n": 1}
    two.sync()
    assert two["k"] == {"n": 1}
    two.update({number: str(number) for number in range(50)})
    assert one.sync() is True
    assert len(one) == 51
    assert one.sync(force=True) is False
    assert two.pop(7) == "7"
    assert one.compute("k", lambda value: value["n"] + 1) == 2
    assert two.setdefault("k", 3) == 2
    assert one.setdefault("l", 4) == 4
    del two["k"]
    one.replace_all({"caf\xe9": b"\xff\x00", 1: None})
    two.sync()
    assert two == {"caf\xe9": b"\xff\x00", 1: None}
    two.on_change(lambda key, _, value: heard.set() if (key, value) == ("w", 1) else None)
    with two.watch(interval=PATIENCE):
        one["w"] = 1
        assert heard.wait(PATIENCE)
    one.clear()
    two.sync()
    assert not two


@pytest.fixture
def admin(zookeeper_server: ZookeeperServer) -> Iterator[KazooClient]:
    """Somebody else, who changes what there is, and looks at it."""
    with started(zookeeper_server.client()) as client:
        yield client


NewClient = Callable[..., KazooClient]


@pytest.fixture
def new_client(zookeeper_server: ZookeeperServer) -> Iterator[NewClient]:
    """Makes clients that are not started; at the end they are stopped, whoever started them."""
    clients: list[KazooClient] = []

    def make(**options: Any) -> KazooClient:
        clients.append(zookeeper_server.client(**options))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()
        client.close()


@pytest.fixture
def proxy(zookeeper_server: ZookeeperServer) -> Iterator[ZookeeperProxy]:
    with ZookeeperProxy(zookeeper_server.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _no_threads_are_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: before.issuperset(threading.enumerate()), "the threads have ended")


# -- who starts it, and who stops it --------------------------------------------------------------


def test_a_client_that_is_not_started_is_stopped_with_the_last_dict(
    zookeeper_server: ZookeeperServer, new_client: NewClient, zookeeper_path: str
) -> None:
    before = settings(client := new_client())
    threads = set(threading.enumerate())
    one, two = Dict(zookeeper_path, client), Dict(zookeeper_path + "-2", client)
    assert client.client_id is not None
    session = client.client_id[0]
    assert session in zookeeper_server.sessions()
    one["a"] = two["a"] = 1
    one.close()
    assert client.connected
    two["a"] = 2
    assert two.sync() is False
    two.close()
    assert not client.connected
    assert threads.issuperset(threading.enumerate())
    assert session not in zookeeper_server.sessions()
    assert settings(client) == before
    assert (one["a"], two["a"]) == (1, 2)
    # And once more: the next one to need it starts it.
    with Dict(zookeeper_path, client) as three:
        assert three == {"a": 1}
        assert client.connected
    assert not client.connected


def test_a_client_that_its_caller_started_is_left_running(
    zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    with started(zookeeper_server.client()) as client:
        session, before = client.client_id, settings(client)
        for _ in range(2):
            with Dict(zookeeper_path, client) as one, Dict(zookeeper_path, client) as two:
                everything_works(one, two)
            assert settings(client) == before
            assert client.connected
            assert client.client_id == session


def test_closing_twice_counts_once(new_client: NewClient, zookeeper_path: str) -> None:
    client = new_client()
    with Dict(zookeeper_path, client) as one, Dict(zookeeper_path, client) as two:
        one.close()
        one.close()
        assert client.connected
        two["a"] = 1
        with Dict(zookeeper_path, client):
            pass
        assert client.connected
    assert not client.connected


def test_dicts_of_two_clients_have_nothing_in_common(
    new_client: NewClient, zookeeper_path: str
) -> None:
    one = Dict(zookeeper_path, new_client())
    two = Dict(zookeeper_path, new_client())
    one.close()
    two["a"] = 1
    two.close()
    assert not one.connection.connected
    assert not two.connection.connected


@pytest.mark.parametrize("is_started", [False, True])
def test_what_cannot_be_opened_leaves_the_client_as_it_was(
    new_client: NewClient, admin: KazooClient, zookeeper_path: str, is_started: bool
) -> None:
    admin.create(zookeeper_path, acl=[make_acl("world", "anyone", write=True)])
    client = new_client()
    if is_started:
        client.start(PATIENCE)
    before = settings(client)
    with pytest.raises(NoAuthError):
        Dict(zookeeper_path, client)
    assert settings(client) == before
    assert client.connected is is_started
    with Dict(zookeeper_path + "-2", client) as other:
        other["a"] = 1
        with pytest.raises(NoAuthError):
            Dict(zookeeper_path, client)
        other["a"] = 2
        assert client.connected
    assert client.connected is is_started


@pytest.mark.parametrize("autosync", [True, False, "strict", PATIENCE])
def test_a_closed_dict_reads_on_and_writes_no_more(
    zookeeper_client: KazooClient, zookeeper_path: str, autosync: bool | str | float
) -> None:
    d = Dict(zookeeper_path, zookeeper_client, autosync)
    other = Dict(zookeeper_path, zookeeper_client)
    d.update(a=1, b=2)
    d.close()
    other["a"] = 3
    other.sync()
    assert (d["a"], d.copy(), len(d), "b" in d) == (1, {"a": 1, "b": 2}, 2, True)
    for write in WRITES.values():
        with pytest.raises(RuntimeError, match=r"^this ZookeeperDict is closed$"):
            write(d)
    for ask in (d.sync, d.watch):
        with pytest.raises(RuntimeError, match="closed"):
            ask()
    assert d.copy() == {"a": 1, "b": 2}
    assert other == {"a": 3, "b": 2}
    other.close()


def test_a_dict_that_is_forgotten_is_held_by_nothing(
    zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """The client has its listener and its watches, which do not keep it alive."""
    with Dict(zookeeper_path, zookeeper_client) as other:
        forgotten = Dict(zookeeper_path, zookeeper_client)
        forgotten["a"] = 1
        gone = weakref.ref(forgotten), weakref.ref(forgotten._tree)
        del forgotten
        come_to_rest(zookeeper_client)
        gc.collect()
        assert [reference() for reference in gone] == [None, None]
        other["a"] = 2
        other.sync()
        assert other == {"a": 2}


@pytest.mark.parametrize("last", [False, True])
def test_a_dict_that_is_dropped_without_close_needs_its_client_no_more(
    zookeeper_server: ZookeeperServer, new_client: NewClient, zookeeper_path: str, last: bool
) -> None:
    """Dropping stops no client, whoever is the last: that could wait, and on any thread."""
    client = new_client()
    dropped, kept = Dict(zookeeper_path, client), Dict(zookeeper_path + "-2", client)
    assert client.client_id is not None
    session = client.client_id[0]
    if last:
        kept.close()
    del dropped
    gc.collect()
    assert client.connected
    if last:
        # The next one to be closed stops it.
        kept = Dict(zookeeper_path, client)
    kept["a"] = 1
    kept.close()
    assert not client.connected
    assert session not in zookeeper_server.sessions()


def test_a_client_is_started_once_by_many_threads(
    new_client: NewClient, zookeeper_path: str
) -> None:
    client = new_client()
    barrier = threading.Barrier(8)

    def opened(number: int) -> Dict:
        barrier.wait(PATIENCE)
        return Dict(f"{zookeeper_path}-{number}", client)

    with ThreadPoolExecutor(8) as threads:
        dicts = list(threads.map(opened, range(8)))
        list(threads.map(lambda d: d.update(a=1), dicts))
        assert [d.copy() for d in dicts] == [{"a": 1}] * 8
        assert client.connected
        list(threads.map(Dict.close, dicts))
    assert not client.connected


@pytest.mark.parametrize("autosync", [True, False, "strict", PATIENCE])
def test_a_client_that_its_caller_stops_and_starts_again(
    zookeeper_server: ZookeeperServer,
    admin: KazooClient,
    zookeeper_path: str,
    autosync: bool | str | float,
) -> None:
    """It has another session then, which has been told of nothing."""
    with (
        started(zookeeper_server.client()) as client,
        Dict(zookeeper_path, client, autosync) as d,
    ):
        d.update(changed=1, removed=1, same=1)
        client.stop()
        with Dict(zookeeper_path, admin) as other:
            other["changed"] = 2
            other["new"] = 2
            del other["removed"]
        client.start(PATIENCE)
        if autosync in (False, PATIENCE):
            assert d.sync() is True
        assert d == {"changed": 2, "new": 2, "same": 1}
        d["own"] = 3
        with Dict(zookeeper_path, admin) as other:
            other["new"] = 3
            assert other["own"] == 3
        assert d.sync() is True
        assert d["new"] == 3
        d.close()
        assert client.connected


@pytest.mark.parametrize("autosync", [True, False, "strict", PATIENCE])
def test_a_client_that_its_caller_stops_stays_stopped(
    zookeeper_server: ZookeeperServer, zookeeper_path: str, autosync: bool | str | float
) -> None:
    """Whoever started it may want the process to end; no read and no watch starts it again."""
    with (
        started(zookeeper_server.client()) as client,
        # A client that is stopped brings no answer: nobody waits for it until the time is up.
        Dict(zookeeper_path, client, autosync, timeout=2 * PATIENCE) as d,
        Dict(zookeeper_path, client, autosync, on_outage="stale") as stale,
    ):
        d["a"] = 1
        stale.sync()
        watch = d.watch(interval=PATIENCE)
        failures = d.stats.failures
        client.stop()
        # It is woken by the end of the session.
        wait_until(lambda: d.stats.failures > failures, "the watch has tried to sync")
        assert not client.handler.running
        with pytest.raises(NotConnectedError, match=f"{HOST}:{zookeeper_server.port}"):
            d.sync()
        with pytest.raises(NotConnectedError):
            d["a"] = 2
        assert stale["a"] == 1
        assert stale.sync() is False
        assert not client.handler.running
        assert watch.running
        client.start(PATIENCE)
        d.sync()
        assert d == {"a": 1}
        d["a"] = 2
        stale.sync()
        assert stale == {"a": 2}
        d.close()
        stale.close()
        assert client.connected


def test_on_a_thread_of_the_clients_nothing_is_asked(
    new_client: NewClient, zookeeper_path: str
) -> None:
    """It would wait for itself; the other work of that thread goes on."""
    client = new_client()
    with Dict(zookeeper_path, client, "strict") as d:
        d["a"] = 1
        raised: list[type[BaseException]] = []
        done = threading.Event()

        def work(event: WatchedEvent) -> None:
            for action in (lambda: d["a"], d.sync, lambda: d.update(a=2), d.clear):
                try:
                    action()
                except Exception as error:
                    raised.append(type(error))
            done.set()

        client.get(zookeeper_path + "/a", watch=work)
        d["a"] = 3
        assert done.wait(PATIENCE)
        assert raised == [OwnThreadError] * 4
        assert d["a"] == 3


def test_the_last_dict_may_be_closed_on_a_thread_of_the_clients(
    new_client: NewClient, admin: KazooClient, zookeeper_path: str
) -> None:
    """By whoever listens for the end of the session, say; that thread has to end for it."""
    before = set(threading.enumerate())
    client = new_client()
    d = Dict(zookeeper_path, client)
    d["a"] = 1
    raised: list[BaseException] = []
    done = threading.Event()

    def close(event: WatchedEvent) -> None:
        try:
            d.close()
        except BaseException as error:
            raised.append(error)
        done.set()

    client.get(zookeeper_path + "/a", watch=close)
    admin.set(zookeeper_path + "/a", b"")
    assert done.wait(PATIENCE)
    assert raised == []
    # The one that stops the client included.
    wait_until(lambda: before.issuperset(threading.enumerate()), "the threads have ended")
    assert not client.handler.running
    assert d["a"] == 1
    with pytest.raises(RuntimeError, match="closed"):
        d["a"] = 2


# -- its settings ---------------------------------------------------------------------------------


Make = Callable[[ZookeeperServer], KazooClient]


def with_password(server: ZookeeperServer) -> KazooClient:
    return server.client(
        default_acl=[make_digest_acl("user", "password", all=True)],
        auth_data=[("digest", "user:password")],
    )


CLIENTS: dict[str, Make] = {
    "plain": lambda server: server.client(),
    "several hosts": lambda server: server.client(hosts=f"{server.hosts},{server.hosts}"),
    "hosts in a list": lambda server: server.client(hosts=[server.hosts, server.hosts]),
    "in order": lambda server: server.client(randomize_hosts=False),
    "chroot": lambda server: server.client(chroot="/zookeeper"),
    "password": with_password,
    "default_acl": lambda server: server.client(default_acl=OPEN_ACL_UNSAFE),
    "read_only": lambda server: server.client(read_only=True),
    "timeout": lambda server: server.client(timeout=60),
    "retries": lambda server: server.client(
        connection_retry=KazooRetry(max_tries=7), command_retry={"max_tries": 7, "delay": 0.01}
    ),
    "logger": lambda server: server.client(logger=logging.getLogger("somebody's")),
    "handler": lambda server: server.client(handler=SequentialThreadingHandler()),
}


@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
def test_any_client_works_and_is_left_as_it_was(
    zookeeper_server: ZookeeperServer, zookeeper_path: str, make: Make
) -> None:
    client = make(zookeeper_server)
    before = settings(client)
    with Dict(zookeeper_path, client) as one, Dict(zookeeper_path, client) as two:
        everything_works(one, two)
    assert settings(client) == before
    assert not client.connected


def test_a_client_that_is_in_use_goes_on(
    zookeeper_server: ZookeeperServer, admin: KazooClient, zookeeper_path: str
) -> None:
    """With listeners and watches of its caller's, some on the very znodes of the dict."""
    states: list[str] = []
    data: list[bytes | None] = []
    lists: list[list[str]] = []
    with started(zookeeper_server.client()) as client:
        client.create(zookeeper_path)
        client.create(zookeeper_path + "/k", b"")
        client.add_listener(states.append)
        client.DataWatch(zookeeper_path + "/k", lambda value, _: data.append(value))
        client.ChildrenWatch(zookeeper_path, lambda names: lists.append(sorted(names)))
        before = settings(client)
        with Dict(zookeeper_path, client) as d:
            d.clear()
            wait_until(lambda: lists[-1] == [], "the caller's watch has told of the removal")
            with Dict(zookeeper_path, admin) as other:
                other["k"] = 1
            wait_until(lambda: lists[-1] == ["k"], "the caller's watch has told")
            d.sync()
            assert d == {"k": 1}
        admin.set(zookeeper_path + "/k", b"2")
        wait_until(lambda: data[-1] == b"2", "the caller's watch goes on")
        assert settings(client) == before
        assert states == []


def test_a_dict_that_is_closed_leaves_no_more_watches_the_longer_it_lived(
    zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    """kazoo has a set of them for each path, which an event empties: one that stays grows."""
    with started(zookeeper_server.client()) as client, Dict(zookeeper_path, client) as d:
        d.update({number: number for number in range(3)})
        for _ in range(10):
            d.sync(force=True)
        for kind in ("_data_watchers", "_child_watchers"):
            assert {len(watches) for watches in vars(client)[kind].values()} <= {0, 1, 2}


# -- one that cannot be reached -------------------------------------------------------------------


def test_nobody_listens(zookeeper_path: str) -> None:
    port = free_port()
    client = KazooClient(f"{HOST}:{port}")
    before = settings(client)
    said = rf"^no connection to ZooKeeper \({HOST}:{port}\) within 0\.05 s$"
    with pytest.raises(ConnectionLoss, match=said) as caught:
        Dict(zookeeper_path, client, timeout=0.05)
    assert isinstance(caught.value, NotConnectedError)
    assert isinstance(caught.value, ZookeeperDict.unavailable)
    assert settings(client) == before
    assert not client.handler.running


def test_a_started_client_that_cannot_be_reached_is_left_trying(
    new_client: NewClient, proxy: ZookeeperProxy, zookeeper_path: str
) -> None:
    proxy.refuse()
    client = new_client(hosts=f"{HOST}:{proxy.port}")
    connected = client.start_async()
    before = settings(client)
    said = rf"^there is no connection to ZooKeeper \({HOST}:{proxy.port}\)$"
    with pytest.raises(NotConnectedError, match=said):
        Dict(zookeeper_path, client, timeout=0.05)
    assert client.handler.running
    proxy.mend()
    assert connected.wait(PATIENCE)
    with Dict(zookeeper_path, client) as d:
        d["a"] = 1
    assert settings(client) == before


@pytest.mark.parametrize("is_started", [False, True])
def test_a_server_that_answers_nothing(
    new_client: NewClient, proxy: ZookeeperProxy, zookeeper_path: str, is_started: bool
) -> None:
    proxy.black_hole()
    # A connection that is not answered is given up after the timeout of the session.
    client = new_client(hosts=f"{HOST}:{proxy.port}", timeout=0.4)
    if is_started:
        client.start_async()
    with pytest.raises(NotConnectedError):
        Dict(zookeeper_path, client, timeout=0.05)
    assert client.handler.running is is_started


@pytest.mark.parametrize("what", [b"<sync", b"<getChildren2"])
def test_an_answer_that_does_not_come_in_time(
    new_client: NewClient, proxy: ZookeeperProxy, zookeeper_path: str, what: bytes
) -> None:
    held = proxy.hold(what)
    client = new_client(hosts=f"{HOST}:{proxy.port}")
    said = rf"^no answer from ZooKeeper \({HOST}:{proxy.port}\) within 0\.2 s$"
    with started(client):
        with pytest.raises(OperationTimeoutError, match=said):
            Dict(zookeeper_path, client, timeout=0.2)
        held.release()
        with Dict(zookeeper_path, client) as d:
            d["a"] = 1


def test_an_answer_is_waited_for_as_long_as_events_come(
    admin: KazooClient,
    new_client: NewClient,
    proxy: ZookeeperProxy,
    zookeeper_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transaction that removes ten thousand keys has as many events before its answer."""
    held = proxy.hold_request(b"<create")
    names = [*"abcde"]
    with started(new_client(hosts=f"{HOST}:{proxy.port}")) as client:
        for name in names:
            admin.create(f"{zookeeper_path}/{name}", b"1", makepath=True)
        with Dict(zookeeper_path, client, encoding=NoOpEncoding) as d:
            events = d._client._events

            def one_more() -> int:
                before = events()
                if not names:
                    d._client.timeout = PATIENCE
                    held.release()
                    return before + 1
                admin.set(f"{zookeeper_path}/{names.pop()}", b"2")
                wait_until(lambda: events() > before, "the event")
                return events()

            monkeypatch.setattr(d._client, "_events", one_more)
            d._client.timeout = 0.01
            made = client.create_async(f"{zookeeper_path}/new", b"1")
            d._client.wait([made])
            assert not names
            assert made.get() == f"{zookeeper_path}/new"


def test_events_are_waited_for_as_long_as_they_come(
    admin: KazooClient, new_client: NewClient, zookeeper_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a read would fail that follows the removal of ten thousand keys."""
    running, going_on = threading.Event(), threading.Event()

    def watch(event: WatchedEvent) -> None:
        running.set()
        assert going_on.wait(PATIENCE)

    with (
        started(new_client()) as client,
        Dict(zookeeper_path, client, autosync="strict", encoding=NoOpEncoding) as d,
    ):
        d["a"] = b"1"
        client.get(f"{zookeeper_path}/a", watch=watch)
        admin.set(f"{zookeeper_path}/a", b"2")
        assert running.wait(PATIENCE)
        d._client.timeout = 0.01
        with pytest.raises(OperationTimeoutError, match="has kept it busy"):
            d._client.barrier()
        came = iter(range(5))

        def one_more() -> int:
            number = next(came, 5)
            if number == 5:
                d._client.timeout = PATIENCE
                going_on.set()
            return number

        monkeypatch.setattr(d._client, "_events", one_more)
        d._client.barrier()
        assert d["a"] == b"2"


@pytest.mark.parametrize("autosync", [True, False, "strict", PATIENCE])
def test_stale_opens_all_the_same_and_is_empty_until_there_is_a_server(
    new_client: NewClient,
    admin: KazooClient,
    proxy: ZookeeperProxy,
    zookeeper_path: str,
    autosync: bool | str | float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Dict(zookeeper_path, admin) as other:
        other["a"] = 1
    proxy.refuse()
    client = new_client(hosts=f"{HOST}:{proxy.port}")
    before = settings(client)
    with Dict(zookeeper_path, client, autosync, on_outage="stale", timeout=0.1) as d:
        assert [row.message for row in caplog.records if row.name == "durabledict.sync"] == [
            "the store of this ZookeeperDict cannot be asked (NotConnectedError: no connection to "
            f"ZooKeeper ({HOST}:{proxy.port}) within 0.1 s); nothing has been loaded yet"
        ]
        assert repr(d) == "{}"
        assert d.stale_since is not None
        # There is no copy that could be served.
        for read in (lambda: d["a"], d.copy, lambda: len(d), d.sync):
            with pytest.raises(NotConnectedError):
                read()
        with pytest.raises(NotConnectedError):
            d["b"] = 2
        proxy.mend()
        d._client.timeout = PATIENCE
        wait_until(lambda: is_synced(d), "it has tried again")
        assert d == {"a": 1}
        assert d.stale_since is None
        d["b"] = 2
        assert admin.exists(zookeeper_path + "/b") is not None
    assert settings(client) == before
    assert not client.handler.running


def is_synced(d: Dict) -> bool:
    try:
        d.sync()
    except NotConnectedError:
        return False
    return True


def lose_connection(client: KazooClient, proxy: ZookeeperProxy) -> None:
    """Return when the client has noticed, which may be connected again by then."""
    states: list[str] = []
    client.add_listener(states.append)
    proxy.cut()
    wait_until(lambda: KazooState.SUSPENDED in states, "the loss was noticed")
    client.remove_listener(states.append)


@pytest.mark.parametrize("on_outage", ["raise", "stale"])
def test_a_client_in_the_middle_of_connecting_is_waited_for(
    new_client: NewClient, proxy: ZookeeperProxy, zookeeper_path: str, on_outage: str
) -> None:
    held = proxy.hold(b"<connect>")
    client = new_client(hosts=f"{HOST}:{proxy.port}")
    client.start_async()
    held.wait()
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(
            Dict, zookeeper_path, client, on_outage=on_outage, timeout=PATIENCE
        )
        # It waits when it listens for the connection.
        wait_until(lambda: client.state_listeners, "the dict waits")
        assert not opening.done()
        held.release()
        with opening.result(PATIENCE) as d:
            assert d.stale_since is None
            d["a"] = 1
            # Each loss is waited for anew.
            lose_connection(client, proxy)
            d["a"] = 2
            assert d.sync() is False
    assert client.connected


class ConnectingClient(KazooClient):
    """One that connects in the very moment after it was asked whether it is connected."""

    is_asked = False

    @property
    def connected(self) -> bool:
        if self.is_asked:
            return super().connected
        self.is_asked = True
        assert self.start_async().wait(PATIENCE)
        wait_until(lambda: self.state == KazooState.CONNECTED, "its listeners have heard")
        return False


def test_a_loss_is_waited_for_from_when_it_was(
    proxy: ZookeeperProxy,
    zookeeper_path: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """And not from when the client was connecting, however long ago that was."""
    client = ConnectingClient(f"{HOST}:{proxy.port}")
    client.handler.start()
    request.addfinalizer(client.close)
    request.addfinalizer(client.stop)
    with (
        Dict(zookeeper_path, client, timeout=PATIENCE) as d,
        ThreadPoolExecutor(1) as threads,
    ):
        now = reading.monotonic
        monkeypatch.setattr(reading, "monotonic", lambda: now() + 1000)
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not client.connected, "the loss was noticed")
        writing = threads.submit(d.__setitem__, "a", 1)
        waiters = vars(vars(d._client._connected)["_cond"])["_waiters"]
        wait_until(lambda: writing.done() or waiters, "it waits, or has given up")
        proxy.mend()
        writing.result(PATIENCE)
        assert d == {"a": 1}


def test_its_errors_survive_pickling_and_copying() -> None:
    for error in (NotConnectedError("nobody"), OwnThreadError("ours")):
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(same) is type(error)
            assert same.args == error.args
    assert issubclass(OwnThreadError, RuntimeError)
    assert not issubclass(OwnThreadError, ZookeeperDict.unavailable)


# -- threads that share a dict --------------------------------------------------------------------


def test_threads_read_what_they_wrote(zookeeper_client: KazooClient, zookeeper_path: str) -> None:
    """Also while others sync, whose answers are older."""
    with Dict(zookeeper_path, zookeeper_client) as d:
        wrong: list[tuple[int, int, int]] = []

        def work(number: int) -> None:
            for turn in range(20):
                d.sync()
                d[number] = turn
                if (value := d[number]) != turn:
                    wrong.append((number, turn, value))
                d.compute("n", lambda n: n + 1, 0)

        with ThreadPoolExecutor(5) as threads:
            list(threads.map(work, range(5)))
        assert wrong == []
        assert d.pop("n") == 5 * 20
        assert d == dict.fromkeys(range(5), 19)


def test_a_reload_that_is_not_applied_leaves_nothing_unread(
    zookeeper_client: KazooClient,
    admin: KazooClient,
    zookeeper_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not, where another thread's write was applied since the question (rule 0.3)."""
    with (
        Dict(zookeeper_path, zookeeper_client, False) as d,
        Dict(zookeeper_path, admin) as other,
    ):
        d["a"] = 1
        d["own"] = 0
        d.sync()
        d["own"] = 1  # So that there is something to ask for.
        changes = Dict.changes
        writing = threading.Thread(target=d.update, kwargs={"own": 2})

        def reload(self: Dict, since: Any) -> Any:
            if self is not d:
                return changes(self, since)
            monkeypatch.undo()
            writing.start()
            writing.join(PATIENCE)
            other["a"] = 2
            return None

        monkeypatch.setattr(ZookeeperDict, "changes", reload)
        d.sync()
        assert d == {"a": 2, "own": 2}
        assert d.sync() is False


# -- access control lists -------------------------------------------------------------------------


WRITES: dict[str, Callable[[Dict], object]] = {
    "set": lambda d: d.__setitem__("a", 9),
    "new key": lambda d: d.__setitem__("new", 9),
    "update": lambda d: d.update(a=9, new=9),
    "del": lambda d: d.__delitem__("a"),
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("new", 9),
    "compute": lambda d: d.compute("a", lambda value: value + 1),
    "compare_and_set": lambda d: d.compare_and_set("a", 1, MISSING),
    "clear": lambda d: d.clear(),
    "replace_all": lambda d: d.replace_all({"a": 9, "new": 9}),
}


def world(**permissions: bool) -> list[ACL]:
    return [make_acl("world", "anyone", **permissions)]


def tree_of(client: KazooClient, path: str) -> dict[str, tuple[bytes | None, int]]:
    """What is stored: name -> data and version, those of the place itself under no name."""
    tree = {}
    for name in ["", *client.get_children(path)]:
        data, stat = client.get(f"{path}/{name}".rstrip("/"))
        tree[name] = (data, stat.version)
    return tree


@pytest.mark.parametrize("is_started", [False, True])
def test_every_znode_gets_the_clients_default_acl(
    new_client: NewClient, admin: KazooClient, zookeeper_path: str, is_started: bool
) -> None:
    acl = [make_digest_acl("user", "password", all=True), make_acl("world", "anyone", read=True)]
    client = new_client(default_acl=acl, auth_data=[("digest", "user:password")])
    if is_started:
        client.start(PATIENCE)
    place = f"{zookeeper_path}/between/place"
    with Dict(place, client) as d:
        d["set"] = 1
        d.update(update=1, another=1)
        d.setdefault("setdefault", 1)
        assert d.compare_and_set("compare_and_set", MISSING, 1)
        d.replace_all({**d, "replace_all": 1})
        d["set"] = 2
        d.update(update=2, both=2)
        names = list(d)
    assert len(names) == 7
    admin.add_auth("digest", "user:password")  # To be shown its own entry as it is.
    for path in (zookeeper_path, f"{zookeeper_path}/between", place):
        assert set(admin.get_acls(path)[0]) == set(acl)
    for name in names:
        assert set(admin.get_acls(f"{place}/{name}")[0]) == set(acl)


def test_only_who_has_the_password_reads_and_writes(
    zookeeper_server: ZookeeperServer,
    new_client: NewClient,
    admin: KazooClient,
    zookeeper_path: str,
) -> None:
    client = new_client(default_acl=CREATOR_ALL_ACL, auth_data=[("digest", "user:password")])
    with Dict(zookeeper_path, client) as d, Dict(zookeeper_path, client) as other:
        everything_works(d, other)
        d["a"] = 1
        with pytest.raises(NoAuthError):
            Dict(zookeeper_path, admin)
    # One that says who it is only when it is connected.
    with started(zookeeper_server.client(default_acl=CREATOR_ALL_ACL)) as late:
        with pytest.raises(NoAuthError):
            Dict(zookeeper_path, late)
        with Dict(zookeeper_path + "-2", late) as d, pytest.raises(InvalidACLError):
            d["a"] = 1  # Whoever makes it, is nobody.
        late.add_auth("digest", "user:password")
        with Dict(zookeeper_path, late) as d:
            assert d == {"a": 1}


def test_a_znode_that_may_not_be_read_harms_itself_only(
    zookeeper_client: KazooClient, admin: KazooClient, zookeeper_path: str
) -> None:
    with Dict(zookeeper_path, zookeeper_client) as d:
        d.update(a=1, b=2)
        admin.create(zookeeper_path + "/secret", b"x", acl=world(write=True, admin=True))
        d.sync()
        with Dict(zookeeper_path, zookeeper_client) as opened:
            for each in (d, opened):
                assert each == {"a": 1, "b": 2}
                assert len(each) == 2
                assert "a" in each
                assert list(each.undecodable) == ["secret"]
                said = "^key 'secret': this client may not read its znode$"
                for _ in range(2):
                    with pytest.raises(DecodingError, match=said) as caught:
                        each["secret"]
                    assert isinstance(caught.value.__cause__, NoAuthError)
                for write in (
                    lambda: each.pop("secret"),
                    lambda: each.compute("secret", lambda value: value),
                    lambda: each.compare_and_set("secret", 1, 2),
                ):
                    with pytest.raises((DecodingError, NoAuthError)):
                        write()
                assert each == {"a": 1, "b": 2}
        d["a"] = 3
        assert d == {"a": 3, "b": 2}
        # It is asked for once, and not again at each sync.
        fetched = d.stats.keys_fetched
        assert d.sync() is False
        assert d.stats.keys_fetched == fetched
        # Whether it may be removed is a matter of the place.
        d.replace_all({"a": 4})
        assert d == {"a": 4}
        assert not d.undecodable
        assert admin.get_children(zookeeper_path) == ["a"]


def test_a_znode_that_may_not_be_read_any_more_and_then_again(
    zookeeper_client: KazooClient, admin: KazooClient, zookeeper_path: str
) -> None:
    """Nobody is told of a change of who may: a reload sees it, again and again."""
    path = zookeeper_path + "/a"
    with Dict(zookeeper_path, zookeeper_client) as d:
        d.update(a=1, b=2)
        d.sync()  # What was just written may still have to be asked for.
        for number in range(3):
            admin.set_acls(path, world(write=True, admin=True))
            assert d.sync() is False
            assert d.sync(force=True) is True
            assert d == {"b": 2}
            assert list(d.undecodable) == ["a"]
            admin.set_acls(path, OPEN_ACL_UNSAFE)
            if number == 1:
                data, _ = admin.get(zookeeper_path + "/b")
                admin.set(path, data)  # In secret, as far as this client is concerned.
            assert d.sync(force=True) is True
            assert d == {"a": 2 if number else 1, "b": 2}
            assert not d.undecodable
        with Dict(zookeeper_path, admin) as other:
            other["a"] = 5
        assert d.sync() is True
        assert d == {"a": 5, "b": 2}


def test_what_is_written_while_it_may_not_be_read_is_told_to_nobody(
    zookeeper_client: KazooClient, admin: KazooClient, zookeeper_path: str
) -> None:
    """A server may keep that event back, and the watch is used up: docs/backends/zookeeper.rst."""
    path = zookeeper_path + "/a"
    with Dict(zookeeper_path, zookeeper_client) as d:
        d.update(a=1, b=2)
        d.sync()
        admin.set_acls(path, world(write=True, admin=True))
        admin.set(path, admin.get(zookeeper_path + "/b")[0])
        admin.set_acls(path, OPEN_ACL_UNSAFE)
        d.sync(force=True)
        assert d == {"a": 2, "b": 2}
        with Dict(zookeeper_path, admin) as other:
            other["a"] = 5
        assert d.sync() is True
        assert d == {"a": 5, "b": 2}


def test_a_lost_connection_tells_what_may_be_read_now(
    zookeeper_server: ZookeeperServer,
    admin: KazooClient,
    proxy: ZookeeperProxy,
    zookeeper_path: str,
) -> None:
    """After it every znode is asked for, so that it is seen without a reload."""
    with (
        started(zookeeper_server.client(hosts=f"{HOST}:{proxy.port}")) as client,
        Dict(zookeeper_path, client) as d,
    ):
        d.update(a=1, b=2)
        unreadable = world(write=True, admin=True)
        # Also of what a reload has found so before, and otherwise again.
        for acl in (unreadable, OPEN_ACL_UNSAFE):
            admin.set_acls(zookeeper_path + "/a", acl)
            assert d.sync(force=True) is True
        reloads = d.stats.reloads
        for acl, entries in 2 * [(unreadable, {"b": 2}), (OPEN_ACL_UNSAFE, {"a": 1, "b": 2})]:
            admin.set_acls(zookeeper_path + "/a", acl)
            lose_connection(client, proxy)
            assert d.sync() is True
            assert d == entries
            assert list(d.undecodable) == [key for key in ("a", "b") if key not in entries]
        assert d.stats.reloads == reloads


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_place_that_may_not_be_written(
    zookeeper_client: KazooClient, admin: KazooClient, zookeeper_path: str, write: Any
) -> None:
    admin.create(zookeeper_path, b"of somebody", acl=world(all=True))
    with Dict(zookeeper_path, admin) as writer:
        writer.update(a=1, b=2)
    for name in ("a", "b"):
        admin.set_acls(f"{zookeeper_path}/{name}", [*READ_ACL_UNSAFE, *ALL_TO_USER])
    admin.set_acls(zookeeper_path, [*READ_ACL_UNSAFE, *ALL_TO_USER])
    before = tree_of(admin, zookeeper_path)
    with Dict(zookeeper_path, zookeeper_client) as d:
        assert d == {"a": 1, "b": 2}
        failures = d.stats.failures
        with pytest.raises(NoAuthError, match=r"key '.*': this client may not write its znode"):
            write(d)
        assert tree_of(admin, zookeeper_path) == before
        assert d == {"a": 1, "b": 2}
        assert d.sync() is False
        # A refusal is no outage, and leaves nothing to doubt.
        assert d.stats.failures == failures
        assert d.stats.reloads == 1
        # What others write is heard of all the same.
        admin.add_auth("digest", "user:password")
        admin.delete(zookeeper_path + "/b")
        for number in (2, 3):
            admin.set(zookeeper_path + "/a", PickleEncoding.encode(number))
            assert d.sync() is True
            assert d == {"a": number}


ALL_TO_USER = [make_digest_acl("user", "password", all=True)]


def test_a_place_whose_own_data_may_not_be_written(
    zookeeper_client: KazooClient, admin: KazooClient, zookeeper_path: str
) -> None:
    """A removal is to raise the version of the place's data (rule 4.5), and does without."""
    admin.create(zookeeper_path, b"of somebody", acl=world(read=True, create=True, delete=True))
    removals: list[Callable[[Dict], object]] = [
        lambda d: d.__delitem__("a"),
        lambda d: d.pop("a"),
        lambda d: d.compare_and_set("a", 1, MISSING),
        lambda d: d.compute("a", lambda value: MISSING),
        lambda d: d.replace_all({"b": 2}),
    ]
    for removal in removals:
        for first in (False, True):
            with Dict(zookeeper_path, zookeeper_client) as d:
                d.update(a=1, b=2)
                if first:
                    del d["b"]  # By now it knows.
                    d["b"] = 2
                removal(d)
                assert d == {"b": 2}
                assert d.sync() is False
                assert admin.get_children(zookeeper_path) == ["b"]
    with Dict(zookeeper_path, zookeeper_client) as d:
        d.clear()
        assert d == {}
        with pytest.raises(KeyError):
            del d["b"]
        assert not d.compare_and_set("b", 2, MISSING)
    data, stat = admin.get(zookeeper_path)
    assert (data, stat.version, stat.numChildren) == (b"of somebody", 0, 0)


def test_what_was_refused_is_tried_again_when_the_connection_is_made_anew(
    zookeeper_client: KazooClient,
    new_client: NewClient,
    admin: KazooClient,
    proxy: ZookeeperProxy,
    zookeeper_path: str,
) -> None:
    """An ACL may have been changed meanwhile. Before, it would cost a request at each write."""

    def version() -> int:
        return admin.get(zookeeper_path)[1].version

    admin.create(zookeeper_path, acl=world(read=True, create=True, delete=True, admin=True))
    client = new_client(hosts=f"{HOST}:{proxy.port}", default_acl=READ_ACL_UNSAFE)
    with Dict(zookeeper_path, client) as d, Dict(zookeeper_path, zookeeper_client) as writer:
        writer.update(a=1, b=2, c=3, d=4)
        d.sync()
        with proxy.counting() as refused:
            del d["a"]
            d["new"] = 1
        assert refused["multi"] == 4
        with proxy.counting() as known:
            d.compute("b", lambda value: MISSING)
            d["newer"] = 1
        assert known["multi"] == 2
        assert version() == 0
        admin.set_acls(zookeeper_path, OPEN_ACL_UNSAFE)
        client.default_acl = OPEN_ACL_UNSAFE
        lose_connection(client, proxy)
        d.sync()
        with proxy.counting() as tried:
            del d["c"]
            d.compute("d", lambda value: MISSING)
        assert tried["multi"] == 2
        assert version() == 2
        with proxy.counting() as numbered:
            d["newest"] = 1
        # It would have to ask, if it had not been told the number of that.
        assert numbered == {"multi": 1}
        assert d == {"new": 1, "newer": 1, "newest": 1}
        assert d.sync() is False


def test_a_place_to_which_may_be_added_and_no_more(
    zookeeper_client: KazooClient, admin: KazooClient, zookeeper_path: str
) -> None:
    admin.create(zookeeper_path, acl=world(read=True, create=True))
    with Dict(zookeeper_path, zookeeper_client) as d:
        d["a"] = 1
        d.update(b=2, c=3)
        d["a"] = 4
        removals: list[Callable[[], object]] = [
            d.clear,
            lambda: d.pop("b"),
            lambda: d.replace_all({"d": 4}),
        ]
        for removal in removals:
            with pytest.raises(NoAuthError):
                removal()
        assert d == {"a": 4, "b": 2, "c": 3}
        assert d.sync() is False


def test_znodes_that_nobody_may_change_once_they_are_made(
    new_client: NewClient, admin: KazooClient, zookeeper_path: str
) -> None:
    """A transaction of new entries writes no znode twice, or else not in a way that is refused."""
    admin.create(zookeeper_path)
    client = new_client(default_acl=READ_ACL_UNSAFE)
    with Dict(zookeeper_path, client) as d:
        d["a"] = 1
        d.update(b=2, c=3)
        d.setdefault("d", 4)
        with pytest.raises(NoAuthError):
            d.update(a=2)
        with pytest.raises(NoAuthError):
            d["b"] = 3
        assert d == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert d.sync() is False
        d.clear()
        assert d == {}


# -- chroots, and the root ------------------------------------------------------------------------


def test_clients_with_different_chroots_meet_in_one_tree(
    zookeeper_server: ZookeeperServer, admin: KazooClient, zookeeper_path: str
) -> None:
    admin.create(f"{zookeeper_path}/a/b", makepath=True)
    with (
        started(zookeeper_server.client(chroot=zookeeper_path)) as upper,
        started(zookeeper_server.client(chroot=f"{zookeeper_path}/a")) as lower,
        Dict("/a/b", upper) as one,
        Dict("b", lower) as two,
        Dict(f"{zookeeper_path}/a/b", admin) as three,
        Dict("/a", upper) as above,
    ):
        for pair in ((one, two), (two, three), (three, one)):
            everything_works(*pair)
        one["k"] = 1
        # One that they share the client with is another place.
        above.sync()
        assert list(above) == ["b"] or list(above.undecodable) == ["b"]
        assert admin.get_children(f"{zookeeper_path}/a/b") == ["k"]
        # What a client is told of has the path as the client sees it.
        two["k"] = 2
        one.sync()
        three.sync()
        assert one == two == three == {"k": 2}


def test_the_root_of_a_chroot(
    new_client: NewClient, admin: KazooClient, zookeeper_path: str
) -> None:
    admin.create(zookeeper_path)
    client = new_client(chroot=zookeeper_path)
    with Dict("/", client) as one, Dict("/", client) as two:
        everything_works(one, two)
        one.update({"k": 1, "zookeeper": 2, "": 3, "/": 4})
        assert one == {"k": 1, "zookeeper": 2, "": 3, "/": 4}
        with Dict(zookeeper_path, admin) as other:
            assert other == one
        assert sorted(admin.get_children(zookeeper_path)) == [
            "k",
            "zookeeper",
            "~name:",
            "~name:%2F",
        ]
        assert one.compute("zookeeper", lambda value: value + 1) == 3
        two.clear()
        one.sync()
        assert one == {}


def test_the_root_itself(zookeeper_path: str, own_server: ZookeeperServer) -> None:
    """ZooKeeper's own folder is no entry, and is not touched."""
    with started(own_server.client()) as client:
        with Dict("/", client) as one, Dict("/", client) as two:
            everything_works(one, two)
            assert client.get_children("/") == ["zookeeper"]
            one.update({"k": 1, "zookeeper": 2})
            two.sync()
            assert two == {"k": 1, "zookeeper": 2}
            assert not one.undecodable
            assert sorted(client.get_children("/")) == [
                "k",
                "zookeeper",
                "~name:%7A%6F%6F%6B%65%65%70%65%72",
            ]
            assert one.pop("zookeeper") == 2
            with pytest.raises(KeyError):
                del one["zookeeper"]
            two.replace_all({})
        assert client.get_children("/") == ["zookeeper"]
        assert sorted(client.get_children("/zookeeper")) == ["config", "quota"]


def test_a_chroot_that_is_not_there_is_made_by_the_first_write(
    zookeeper_server: ZookeeperServer, admin: KazooClient, zookeeper_path: str
) -> None:
    with started(zookeeper_server.client()) as client:
        client.chroot = zookeeper_path  # As kazoo's own, without its warning.
        with Dict("/", client) as root, Dict("/a/b", client) as d:
            assert root == d == {}
            d["k"] = 1
            root.sync()
            assert d == {"k": 1}
            assert list(root.undecodable) == ["a"] or list(root) == ["a"]
        assert admin.get_children(f"{zookeeper_path}/a/b") == ["k"]
        # kazoo makes no more than the last part of a chroot.
        client.chroot = f"{zookeeper_path}/not/there"
        with Dict("/", client) as d:
            assert d == {}
            with pytest.raises(NoNodeError):
                d["k"] = 1
            assert d == {}


@pytest.fixture(scope="module")
def own_server() -> Iterator[ZookeeperServer]:
    """One of whose root a test may make what it likes."""
    with ZookeeperServer() as server:
        yield server


# -- servers that are cut off from the others -----------------------------------------------------


@contextmanager
def without_quorum(ensemble: Ensemble) -> Iterator[ZookeeperServer]:
    leader, followers = ensemble.leader(), ensemble.followers()
    for server in followers:
        server.kill()
    wait_until(lambda: leader.mode() == "read-only", "the last one gives what it has")
    yield leader
    for server in followers:
        server.start()
    ensemble.wait_for_quorum()


def test_a_read_only_client_reads_what_a_server_has_that_is_cut_off(zookeeper_path: str) -> None:
    with (
        # Without sessions of its own such a server takes no client of kazoo's.
        Ensemble("localSessionsEnabled=true", java=["-Dreadonlymode.enabled=true"]) as ensemble
    ):
        with started(ensemble.client()) as client, Dict(zookeeper_path, client) as d:
            d.update(a=1, b=2)
        earlier = ensemble.client(timeout=4, read_only=True)
        were_open = [Dict(zookeeper_path, earlier, on_outage=way) for way in ("raise", "stale")]
        session = earlier.client_id
        with without_quorum(ensemble) as last:
            wait_until(
                lambda: earlier.client_state == KeeperState.CONNECTED_RO, "it is connected again"
            )
            # Not in the session that it had, so that all is to be loaded, which takes a leader.
            assert earlier.client_id != session
            with pytest.raises(NotReadOnlyCallError):
                were_open[0]["a"]
            assert were_open[1]["a"] == 1
            assert were_open[1].stale_since is not None
            client = ensemble.client(first=last, timeout=4, read_only=True)
            before = settings(client)
            d = Dict(zookeeper_path, client)
            assert client.client_state == KeeperState.CONNECTED_RO
            reads_and_does_not_write(d)
            with Dict(zookeeper_path + "-2", client) as nothing:
                assert nothing == {}
            with Dict(zookeeper_path, client, on_outage="stale") as stale:
                stale.autosync = "strict"
                assert stale["a"] == 1
                assert stale.stale_since is not None
                assert stale.sync() is False
            for autosync in ("strict", False, PATIENCE):
                with pytest.raises(NotReadOnlyCallError):
                    Dict(zookeeper_path, client, autosync)
            assert d == {"a": 1, "b": 2}
        wait_until(
            lambda: client.client_state == KeeperState.CONNECTED, "it has found one that writes"
        )
        assert d == {"a": 1, "b": 2}
        d["a"] = 3
        assert d.sync() is False
        d.close()
        assert settings(client) == before
        wait_until(lambda: earlier.client_state == KeeperState.CONNECTED, "so has the earlier one")
        for d in were_open:
            assert d == {"a": 3, "b": 2}
            d.close()


def reads_and_does_not_write(d: Dict) -> None:
    assert d == {"a": 1, "b": 2}
    assert d["a"] == 1
    for write in WRITES.values():
        with pytest.raises(NotReadOnlyCallError):
            write(d)
        assert d == {"a": 1, "b": 2}
    for force in (False, True):
        with pytest.raises(NotReadOnlyCallError):
            d.sync(force=force)
        assert d == {"a": 1, "b": 2}
    d.autosync = "strict"
    with pytest.raises(NotReadOnlyCallError):
        d["a"]
    d.autosync = True
    assert d["a"] == 1
