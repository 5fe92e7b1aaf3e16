"""ZookeeperDict in forked children: a client of their own, and the parent's left alone (rule 0.9).

A client has threads, which a child does not inherit, and a connection, which is the parent's. Each
scenario runs in an interpreter of its own, because a test process that forks beside threads is
warned of since Python 3.12. A failed assertion in a child makes its exit status 1.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.retry import KazooRetry
from kazoo.security import CREATOR_ALL_ACL

import durabledict
from durabledict import ZookeeperDict, forking, zookeeperclient
from durabledict.zookeeperclient import NotConnectedError
from durabledict.zookeepertwins import twin

from .scenarios import (
    PATIENCE,
    Stop,
    ended_well,
    everything_works,
    fork,
    held_by_a_thread,
    run,
    watch_goes_on_in_both,
)
from .servers import HOST, free_port, wait_until
from .zookeeperservers import ZookeeperServer, started
from .zookeeperstore import come_to_rest

Dict = ZookeeperDict[Any, Any]


def server_at(port: int) -> ZookeeperServer:
    """The server of the tests, to be asked, from the interpreter of a scenario."""
    server = ZookeeperServer(port=port)
    server.folder.rmdir()  # It is never started here.
    return server


@contextmanager
def undisturbed(d: Dict, server: ZookeeperServer) -> Iterator[None]:
    """See that the parent keeps its session and its connection, and is told as before."""
    client, states = d.connection, list[str]()
    client.add_listener(states.append)
    session = client.client_id
    yield
    assert client.client_id == session
    assert session[0] in server.sessions()
    # It still hears by itself what others write.
    with started(server.client()) as other, Dict(d.keyspace, other) as writer:
        writer["told"] = os.getpid()
        heard = Dict(d.keyspace, client)
        writer["told"] = 0
        wait_until(lambda: heard["told"] == 0, "the parent is told")
        del writer["told"]
        heard.close()
    d.sync()
    everything_works(d)
    assert states == []
    assert client.client_id == session
    client.remove_listener(states.append)


def both_go_on(port: int, path: str) -> None:
    for autosync in (True, False, "strict", PATIENCE):
        goes_on(server_at(port), f"{path}-{autosync}", autosync)


def goes_on(server: ZookeeperServer, path: str, autosync: Any) -> None:
    d = Dict(path, server.client(), autosync)
    d["k"] = 1
    parents = server.sessions()
    own = d.connection.client_id[0]

    def child() -> None:
        for is_first in (True, False):
            with Dict(path, server.client()) as other:
                other["k"] = 2
            if autosync in (False, PATIENCE):
                d.sync()
            elif autosync is True and not is_first:
                wait_until(lambda: d["k"] == 2, "the child is told")
            # What others write is seen, by the very first read as well.
            assert d["k"] == 2
            d["k"] = 1
            everything_works(d)
            d.sync()
        assert len(server.sessions() - parents) == 1
        d.close()
        # Those of children that were killed may have ended meanwhile.
        assert {own} <= server.sessions() <= parents
        assert threading.active_count() == 1
        assert d["k"] == 1

    with undisturbed(d, server):
        for _ in range(2):
            ended_well(fork(child))
    d.close()
    assert d["k"] == 1


def many_at_once(port: int, path: str) -> None:
    """From a process whose threads write while it forks, and of whose children one forks, too."""
    server = server_at(port)
    d = Dict(path, server.client())
    d["n"] = 0

    def work(name: object) -> None:
        for turn in range(10):
            d[name] = turn
            assert d[name] == turn
            d.compute("n", lambda n: n + 1)

    def parent_of_another() -> None:
        work("child")
        pid = fork(partial(work, "grandchild"))
        work("child")
        ended_well(pid)

    stop = threading.Event()
    turns: list[int] = []

    def write(number: int) -> None:
        while not stop.is_set():
            d[number] = d.compute("n", lambda n: n + 1)
            turns.append(number)

    threads = [threading.Thread(target=write, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        pids = []
        for child in (parent_of_another, partial(work, "another"), partial(work, "a third")):
            begun = len(turns)
            wait_until(lambda: len(turns) > begun, "the threads write")
            pids.append(fork(child))
        work("parent")
        ended_well(*pids)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    d.sync()
    assert d["n"] == len(turns) + 10 * 6
    d.close()


def ends_of_a_child(port: int, path: str) -> None:
    """However it ends, used or not, with or without the finalizers of its interpreter."""
    server = server_at(port)
    d = Dict(path, server.client())
    d["k"] = 1

    def closes() -> None:
        d.close()
        assert d["k"] == 1
        with pytest.raises(RuntimeError, match="closed"):
            d["k"] = 2

    def is_killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    ends: list[tuple[Callable[[], object], int]] = [
        (closes, 0),
        (sys.exit, 0),
        (partial(os._exit, 7), 7),
        (is_killed, -signal.SIGKILL),
    ]
    with undisturbed(d, server):
        for uses in (False, True):
            for end, status in ends:
                pid = os.fork()
                if pid == 0:
                    signal.alarm(int(PATIENCE))
                    if uses:
                        everything_works(d)
                    end()
                    sys.exit()
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    d.close()


def child_forgets(port: int, path: str) -> None:
    """Rule 0.9: what was inherited stays referenced and open, also when its dict is gone."""
    server = server_at(port)
    client = server.client()
    dicts = [Dict(path, client)]
    dicts[0]["k"] = 1
    session = client.client_id

    def child(uses: bool) -> None:
        if uses:
            everything_works(dicts[0])
            come_to_rest(dicts[0]._client.kazoo)
        gone = weakref.ref(dicts[0]), weakref.ref(dicts[0]._tree)
        dicts.clear()
        gc.collect()
        assert [reference() for reference in gone] == [None, None]

    for uses in (False, True):
        ended_well(fork(partial(child, uses)))
    assert client.client_id == session
    with undisturbed(dicts[0], server):
        pass
    dicts[0].close()


def dicts_of_one_client(port: int, path: str) -> None:
    server = server_at(port)
    client = server.client()
    one, two = Dict(path, client), Dict(f"{path}-2", client)
    unused = Dict(f"{path}-4", client)
    dropped = [Dict(f"{path}-{number}", client) for number in (5, 6)]
    one["k"] = two["k"] = 1
    parents = server.sessions()

    def child() -> None:
        one["k"] = two["k"] = 2
        # Dropped without `close`, one that was used here, and one that still counts in the parent.
        dropped[0]["k"] = 2
        dropped.clear()
        gc.collect()
        # Opened here with a client whose threads are the parent's.
        three = Dict(f"{path}-3", client, "strict")
        three["k"] = 3
        assert len(server.sessions() - parents) == 1
        one.close()
        one.close()
        unused.close()
        two["k"] = 4
        two.close()
        assert three["k"] == 3
        three.close()
        assert server.sessions() <= parents
        # And once more: the first one to need it starts another.
        with Dict(f"{path}-3", client) as three:
            assert three == {"k": 3}
        assert server.sessions() <= parents
        assert threading.active_count() == 1

    def first_of_all() -> None:
        with Dict(f"{path}-3", client) as three:
            assert three == {"k": 3}
        assert server.sessions() <= parents

    with undisturbed(unused, server):
        unused["k"] = 1
        ended_well(fork(child))
        ended_well(fork(first_of_all))
    assert one.sync()
    assert (one["k"], two["k"]) == (2, 4)
    for d in (one, two, unused, *dropped):
        assert client.connected
        d.close()
    assert not client.connected


def watch_runs(port: int, path: str) -> None:
    server = server_at(port)
    watch_goes_on_in_both(Dict(path, server.client(), False), Dict(path, server.client()))


def locks_are_held(port: int, path: str) -> None:
    """By a thread of the parent, which the child does not have."""
    d = Dict(path, server_at(port).client())
    d["k"] = 1
    client = d._client
    for lock in (
        zookeeperclient._sharing,
        client._share.lock,
        d._tree.lock,
        d._sync_mutex,
        d._copy_lock,
    ):
        with held_by_a_thread(lock):
            ended_well(fork(partial(everything_works, d)), fork(d.close))
    everything_works(d)
    d.close()


def requests_are_under_way(port: int, path: str) -> None:
    """A thread of the parent is in the middle of a sync or a write, which is the parent's alone."""
    server = server_at(port)
    d = Dict(path, server.client())
    d["k"] = 1
    other = Dict(path, server.client())
    for part, name, action in (
        (d._client, "wait", d.sync),
        (d._client, "barrier", d.sync),
        (d._client, "wait_for_events", d.sync),
        (d._tree, "accept", d.sync),
        (d._tree, "news", d.sync),
        (d._client, "wait", lambda: d.update(k=1)),
        (d._client, "barrier", lambda: d.__setitem__("k", 1)),
        (d._tree, "wrote", lambda: d.__setitem__("k", 1)),
        (d._tree, "wrote", lambda: d.update(k=1)),
    ):
        other["k"] = 2
        other["k"] = 1
        stop = Stop()
        original = getattr(part, name)
        stop.before(part, name)
        with stop.by(action):
            ended_well(fork(partial(everything_works, d)))
        setattr(part, name, original)
    d.sync()
    everything_works(d)
    for each in (d, other):
        each.close()


def never_connected(port: int, path: str) -> None:
    """Where nobody could be reached, the child tries by itself."""
    logging.disable()  # That is logged, and the output of a scenario is empty.
    client = KazooClient(f"{HOST}:{free_port()}")
    d = Dict(path, client, on_outage="stale", timeout=0.05)

    def child() -> None:
        with pytest.raises(NotConnectedError):
            d["k"] = 1
        with pytest.raises(NotConnectedError):
            d["k"]
        client.set_hosts(f"{HOST}:{port}")  # Of the parent's client, which is not this one.
        with pytest.raises(NotConnectedError):
            d["k"] = 1
        d.close()

    ended_well(fork(child))
    client.set_hosts(f"{HOST}:{port}")
    d._client.timeout = PATIENCE
    d["k"] = 1
    d.close()


def the_same_settings(port: int, path: str) -> None:
    server = server_at(port)
    with started(server.client()) as admin:
        admin.create(path)
    client = server.client(
        chroot=path,
        default_acl=CREATOR_ALL_ACL,
        timeout=7,
        logger=logging.getLogger("somebody's"),
        connection_retry=KazooRetry(max_tries=5),
    )
    client.start()
    client.add_auth("digest", "user:password")
    d = Dict("/", client)
    d["k"] = 1

    def child() -> None:
        everything_works(d)
        d["child"] = 2
        with started(server.client()) as somebody, pytest.raises(NoAuthError):
            somebody.get(f"{path}/child")
        own = d._client.kazoo
        assert own is not client
        for name in (
            *("auth_data", "chroot", "default_acl", "hosts", "logger", "read_only"),
            *("randomize_hosts", "use_ssl", "verify_certs", "_session_timeout"),
        ):
            assert vars(own)[name] == vars(client)[name]
        assert vars(own)["_conn_retry"].max_tries == 5
        assert type(own.handler) is type(client.handler)
        d.close()

    before = dict(vars(client))
    ended_well(fork(child))
    assert {name for name, value in vars(client).items() if before[name] is not value} <= {
        "last_zxid"
    }
    d.sync()
    assert d == {"k": 1, "child": 2}
    d.close()
    client.stop()
    client.close()


def work_of_a_process(url: str, number: int) -> None:
    with durabledict.open(url) as d:
        for _ in range(5):
            d.compute("n", lambda n: n + 1)
        d[number] = os.getpid()
        assert d[number] == os.getpid()


def opened_by_a_url(port: int, path: str) -> None:
    """With `multiprocessing`, whichever way it makes its processes."""
    url = f"zookeeper://{HOST}:{port}{path}"
    d = durabledict.open(url)
    d["n"] = 0
    fork_context = multiprocessing.get_context("fork")
    spawn_context = multiprocessing.get_context("spawn")
    processes = [
        make(target=work_of_a_process, args=(url, number))
        for number, make in enumerate(
            [fork_context.Process, spawn_context.Process, fork_context.Process]
        )
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    d.sync()
    assert d.pop("n") == 15
    assert d == {number: process.pid for number, process in enumerate(processes)}
    d.close()


def forked_past_the_hooks(port: int, path: str) -> None:
    """As an embedding C program does it: the id of the process tells, at the first request.

    Here those of Python itself run, without which no thread of a client's could start.

    """
    server = server_at(port)
    for autosync in ("strict", True):
        d, other = Dict(path, server.client(), autosync), Dict(path, server.client())
        d["k"] = 1
        d.sync()
        forking._living.clear()

        def child() -> None:
            with Dict(path, server.client()) as writer:
                writer["k"] = 2
            d.sync()
            assert d["k"] == 2
            d["k"] = 1
            everything_works(d)
            other["k"] = 1
            d.close()
            other.close()

        with undisturbed(d, server):
            ended_well(fork(child))
        d.close()
        other.close()


SCENARIOS: list[Callable[[int, str], None]] = [
    both_go_on,
    many_at_once,
    ends_of_a_child,
    child_forgets,
    dicts_of_one_client,
    watch_runs,
    locks_are_held,
    requests_are_under_way,
    never_connected,
    the_same_settings,
    opened_by_a_url,
    forked_past_the_hooks,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_parent_and_child_have_clients_of_their_own(
    scenario: Callable[[int, str], None], zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    run(scenario, zookeeper_server.port, zookeeper_path)


@pytest.mark.parametrize("hosts", ["127.0.0.1:1", "[::1]:1", "[::1]:1,a:2,[fe80::1]:3", "a"])
@pytest.mark.parametrize("chroot", ["", "/a/b"])
def test_a_childs_client_has_the_same_hosts(hosts: str, chroot: str) -> None:
    client = KazooClient(hosts + chroot)
    same = twin(client)
    assert (same.hosts, same.chroot) == (client.hosts, client.chroot)


def test_a_childs_client_checks_host_names_where_kazoo_can() -> None:
    client = KazooClient()
    if "check_hostname" not in vars(client):
        assert twin(client).hosts == client.hosts  # kazoo 2.9: nothing to take over
        return
    client.check_hostname = True
    assert twin(client).check_hostname is True
    del client.check_hostname
    assert twin(client).check_hostname is False
