"""ZookeeperDict where servers are killed, stopped, cut off, late or restored, on real servers.

After each fault every kind of reader is compared with what a plain client is told then.
What leaks when that goes on for long: test_zookeeper_leaks.py.
"""

from __future__ import annotations

import collections
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kazoo.client import KazooClient

from durabledict import MISSING, ZookeeperDict, reading
from durabledict.zookeeperfetch import ROUNDS

from .counters import Counter
from .servers import HOST, PATIENCE, wait_until
from .test_processes import processes, spawning
from .zookeeperlag import lagging
from .zookeeperload import Load, Writer, begin, check, loaded
from .zookeeperproxy import ZookeeperProxy
from .zookeeperreaders import MODES, RECONNECT, AnyDict, Readers, patiently, stored, until_available
from .zookeeperservers import Ensemble, ZookeeperServer, started

#: The timeout of sessions that are to end soon. With a shorter one, kazoo would give up each
#: connection on which a ping is not answered at once.
SHORT = 2.0

#: The modes in which a read asks the servers.
ASKS = ("strict", "seconds")

START = {"a": 1, "b": [2], "c": "three", "d": None}


@pytest.fixture(scope="module")
def all_three() -> Iterator[Ensemble]:
    # One that is late or paused is not given up before the tests end.
    with Ensemble("syncLimit=300") as ensemble:
        yield ensemble


@pytest.fixture
def ensemble(all_three: Ensemble) -> Iterator[Ensemble]:
    """The same one for all tests, with three servers that run."""
    yield all_three
    all_three.mend()


@pytest.fixture
def plain(ensemble: Ensemble) -> Iterator[KazooClient]:
    """A client of the ensemble, past the library."""
    with started(ensemble.client(first=ensemble.leader(), connection_retry=RECONNECT)) as client:
        yield client


def fill(client: KazooClient, path: str) -> None:
    with AnyDict(path, client) as d:
        d.replace_all(START)


def change(client: KazooClient, path: str, mark: Any = "changed") -> dict[str, Any]:
    """Change an entry, remove one, make one, and make one again; return what is there then."""
    with AnyDict(path, client) as d:
        d["a"] = mark
        d.pop("b", None)
        d[f"made {mark}"] = mark
        d.pop("d", None)
        d["d"] = None
        return d.copy()


# -- under load -----------------------------------------------------------------------------------


def test_the_leader_is_killed_under_load(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """And comes back as a follower; what a client had under way is lost, or was done once."""
    firsts = cycle(ensemble.servers)

    def connect() -> KazooClient:
        return ensemble.client(first=next(firsts), connection_retry=RECONNECT)

    with loaded(plain, zookeeper_path, connect) as (load, _):
        leader = ensemble.leader()
        leader.kill()
        load.goes_on()
        leader.start()
        ensemble.wait_for_quorum()


def test_sessions_expire_under_load(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """Rule 4.2: one after the other, with whatever was on its way."""
    firsts = cycle(ensemble.servers)
    proxies: list[ZookeeperProxy] = []
    with ExitStack() as stack:

        def connect() -> KazooClient:
            proxy = stack.enter_context(ZookeeperProxy(next(firsts).port))
            proxies.append(proxy)
            return KazooClient(hosts=f"{HOST}:{proxy.port}", connection_retry=RECONNECT)

        with loaded(plain, zookeeper_path, connect) as (_, clients):
            for client, proxy in zip(clients, proxies, strict=True):
                identity = client.client_id
                assert identity is not None
                # Else its server, from which another takes the session over, would leave out the
                # answer to what is on its way, and go on with the next: kazoo does not take that.
                cut_off(proxy)
                wait_until(lambda: not client.connected, "it is cut off")
                with started(KazooClient(hosts=ensemble.hosts, client_id=identity, timeout=9)):
                    pass
                # The server that has ended it may be ahead of the leader.
                leader = ensemble.leader()
                wait_until(lambda: identity[0] not in leader.sessions(), "the session is over")
                proxy.mend()
                wait_until(
                    lambda: client.client_id not in (None, identity),
                    "it has a new session",
                )


# -- a client that is cut off ---------------------------------------------------------------------


def cut_off(proxy: ZookeeperProxy) -> None:
    proxy.refuse()
    proxy.cut()


CUTS: dict[str, Callable[[ZookeeperProxy], None]] = {
    "cut": cut_off,
    "black hole": ZookeeperProxy.black_hole,
}


@pytest.mark.parametrize("lasts", ["shorter than the session", "longer than the session"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_client_is_cut_off(
    zookeeper_server: ZookeeperServer,
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    cut: str,
    lasts: str,
) -> None:
    """Rule 4.2: no event tells of what is written meanwhile; all is asked for afterwards."""
    longer = lasts == "longer than the session"
    timeout = SHORT if longer else 60.0
    fill(zookeeper_client, zookeeper_path)
    with ZookeeperProxy(zookeeper_server.port) as proxy:

        def connect() -> KazooClient:
            return zookeeper_server.client(
                hosts=f"{HOST}:{proxy.port}", timeout=timeout, connection_retry=RECONNECT
            )

        with Readers(zookeeper_path, zookeeper_client, connect, number=1) as readers:
            readers.check(START)
            client = readers.clients[0]
            session = client.client_id
            assert session is not None
            CUTS[cut](proxy)
            if cut == "cut":
                wait_until(readers.lost, "the client has noticed")
            truth = change(zookeeper_client, zookeeper_path)
            if longer:
                wait_until(
                    lambda: session[0] not in zookeeper_server.sessions(), "the session is over"
                )
                wait_until(readers.lost, "the client has noticed")
            # A told one asks nothing before it has noticed.
            asks = (*ASKS, "told") if readers.lost() else ASKS
            with readers.impatient():
                readers.check_outage(START, asks)
                for reader in readers.all.values():
                    with pytest.raises(ZookeeperDict.unavailable):
                        reader["a"] = "never"
            proxy.mend()
            readers.check_told()
            readers.check(truth)
            assert client.client_id is not None
            assert (client.client_id != session) == longer


@pytest.fixture
def proxy(zookeeper_server: ZookeeperServer) -> Iterator[ZookeeperProxy]:
    with ZookeeperProxy(zookeeper_server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(zookeeper_server: ZookeeperServer, proxy: ZookeeperProxy) -> Callable[[], KazooClient]:
    """Makes clients that go through the proxy."""
    return lambda: zookeeper_server.client(hosts=f"{HOST}:{proxy.port}", connection_retry=RECONNECT)


@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize("operation", ["sync", "getChildren2", "setWatches", "multiRead"])
def test_the_connection_is_lost_at_each_request_of_a_sync(
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    proxied: Callable[[], KazooClient],
    operation: str,
    fault: str,
) -> None:
    """Rule 4.2: answers of before count no more, whichever they are."""
    fill(zookeeper_client, zookeeper_path)
    modes = ("told", "strict", "manual, stale")
    with Readers(zookeeper_path, zookeeper_client, proxied, modes=modes) as readers:
        readers.check(START)
        for mode, reader in readers.all.items():
            truth = change(zookeeper_client, zookeeper_path, f"under {mode}")
            lost = getattr(proxy, fault)(f"<{operation}".encode())
            with patiently():
                reader.sync()
                # It asks again, unless it is not to wait for the next connection.
                assert reader.stale_since is not None or dict(dict.items(reader)) == truth
            assert lost.hits == 1
            assert synced(reader) == truth
        readers.check_told()
        readers.check()


@pytest.mark.parametrize("session", ["the same session", "a new session"])
def test_the_connection_is_lost_between_the_answers_and_their_use(
    zookeeper_server: ZookeeperServer,
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    proxied: Callable[[], KazooClient],
    session: str,
) -> None:
    """Rule 4.2: the watches that they armed are gone, and nothing tells of what came then."""
    fill(zookeeper_client, zookeeper_path)
    with started(proxied()) as client, AnyDict(zookeeper_path, client) as d:
        d.copy()
        decode = d._fetcher._decoded

        def lose(*arguments: Any, **named: Any) -> Any:
            d._fetcher._decoded = decode  # type: ignore[method-assign]  # the hook runs once
            answers = decode(*arguments, **named)
            epoch = d._tree._epoch
            if session == "a new session":
                zookeeper_server.expire(client)
            else:
                proxy.cut()
            wait_until(lambda: d._tree._epoch > epoch and client.connected, "it was lost")
            change(zookeeper_client, zookeeper_path, "unseen")
            return answers

        change(zookeeper_client, zookeeper_path)
        wait_until(lambda: d._tree.number != d.last_synced, "it was told")
        d._fetcher._decoded = lose  # type: ignore[method-assign]  # a hook
        until_available(d.copy)
        assert until_available(d.copy) == stored(zookeeper_client, zookeeper_path)
        change(zookeeper_client, zookeeper_path, "seen")
        wait_until(lambda: d.copy() == stored(zookeeper_client, zookeeper_path), "it was told")


def synced(reader: AnyDict) -> dict[Any, Any]:
    """Return what it holds after its next sync that reaches the servers."""

    def is_over() -> bool:
        with patiently():
            reader.sync()
            return reader.stale_since is None
        return False

    wait_until(is_over, "a sync reaches the servers")
    return dict(dict.items(reader))


#: What it writes, the request in which, and what is stored by it.
WRITES: dict[str, tuple[Callable[[AnyDict], object], str, dict[str, Any]]] = {
    "set": (lambda d: d.update(a=2), "multi", {"a": 2}),
    "set one": (lambda d: d.__setitem__("a", 2), "setData /", {"a": 2}),
    "make": (lambda d: d.__setitem__("e", 2), "multi", {"e": 2}),
    "make many": (lambda d: d.update(e=2, f=2, a=2), "multi", {"a": 2, "e": 2, "f": 2}),
    "remove": (lambda d: d.__delitem__("a"), "multi", {"a": ...}),
    "clear": (lambda d: d.clear(), "multi", dict.fromkeys(START, ...)),
    "replace": (lambda d: d.replace_all({"x": 1}), "multi", {**dict.fromkeys(START, ...), "x": 1}),
    "compute": (lambda d: d.compute("a", lambda a: a + 1), "multi", {"a": 2}),
    "setdefault": (lambda d: d.setdefault("e", 2), "multi", {"e": 2}),
    "pop": (lambda d: d.pop("a"), "multi", {"a": ...}),
}


@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize("write", WRITES)
def test_the_connection_is_lost_at_a_write(
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    proxied: Callable[[], KazooClient],
    write: str,
    fault: str,
) -> None:
    """Rule 0.4: the caller is told, it is not sent again, and what became of it is looked up."""
    action, request, changes = WRITES[write]
    done = {key: value for key, value in {**START, **changes}.items() if value is not ...}
    with started(proxied()) as client:
        for autosync in (True, False):
            fill(zookeeper_client, zookeeper_path)
            with AnyDict(zookeeper_path, client, autosync=autosync) as d:
                d.sync()
                lost = getattr(proxy, fault)(f"<{request}".encode())
                with pytest.raises(ZookeeperDict.unavailable):
                    action(d)
                assert lost.hits == 1
                # The next read looks, whichever the mode.
                truth = done if fault == "cut_after" else START
                assert until_available(d.copy) == truth
                assert stored(zookeeper_client, zookeeper_path) == truth
                assert d.sync() is False


def test_the_owner_of_a_client_stops_it_and_starts_it_again(
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    proxied: Callable[[], KazooClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dict that has started it meanwhile would let kazoo wait for the end of its own thread."""
    fill(zookeeper_client, zookeeper_path)
    begun = threading.Event()
    with started(proxied()) as client, AnyDict(zookeeper_path, client, autosync=False) as d:
        close_safely: Any = vars(KazooClient)["_safe_close"]

        def begin_to_start(of: KazooClient) -> None:
            begun.set()
            close_safely(of)

        with d.watch(interval=0.05):
            proxy.refuse()
            client.stop()
            failures = d.stats.failures
            wait_until(
                lambda: d.stats.failures > failures or client.handler.running, "it has tried"
            )
            monkeypatch.setattr(KazooClient, "_safe_close", begin_to_start)
            owner = threading.Thread(target=client.start, args=[PATIENCE], daemon=True)
            owner.start()
            assert begun.wait(PATIENCE)
            proxy.mend()
            owner.join(PATIENCE)
            assert not owner.is_alive(), "kazoo waits for ever"
            truth = change(zookeeper_client, zookeeper_path)
            wait_until(lambda: d == truth, "the watch brings it")


# -- how old a copy may be ------------------------------------------------------------------------


class Clock:
    """The time by which bounds are counted, ahead of the true one as far as the test wants it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reading, "monotonic", clock)
    return clock


@pytest.mark.parametrize("told", ["told of nothing", "told of a change"])
@pytest.mark.parametrize("cut", CUTS)
def test_max_stale_counts_from_when_the_server_was_last_heard(
    zookeeper_server: ZookeeperServer,
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    clock: Clock,
    cut: str,
    told: str,
) -> None:
    """Rule 0.6: an hour without any news, under `autosync=True`, is no hour of doubt."""
    fill(zookeeper_client, zookeeper_path)
    client = zookeeper_server.client(
        hosts=f"{HOST}:{proxy.port}", timeout=SHORT, connection_retry=RECONNECT
    )
    stale: dict[str, Any] = {"on_outage": "stale", "max_stale": 60.0}
    with started(client), AnyDict(zookeeper_path, client, **stale) as d:
        assert d.copy() == START
        clock.ahead += 3600
        stamp = d.last_synced
        if told == "told of a change":
            change(zookeeper_client, zookeeper_path)
            assert d.wait(stamp, PATIENCE)
        CUTS[cut](proxy)
        heard = clock()
        wait_until(lambda: not client.connected, "the client has noticed")
        d._client.timeout = 0.3  # where it is known that there will be no answer
        # The age that is told is at the least how long nothing was heard.
        assert d.copy() == START
        assert clock() - d.checked_age <= heard
        assert d.checked_age < 60
        clock.ahead += 60
        with pytest.raises(ZookeeperDict.unavailable):
            d.copy()
        with pytest.raises(ZookeeperDict.unavailable):
            d.sync()
        d._client.timeout = PATIENCE
        proxy.mend()
        wait_until(lambda: served(d) == stored(zookeeper_client, zookeeper_path), "it recovers")


def served(d: AnyDict) -> dict[Any, Any] | None:
    """Return what a read gives, None in an outage."""
    with patiently():
        return d.copy()
    return None


def test_max_stale_of_a_copy_that_was_never_compared(
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    proxied: Callable[[], KazooClient],
) -> None:
    """There is none to serve, whatever the bound."""
    proxy.refuse()
    with AnyDict(zookeeper_path, proxied(), on_outage="stale", timeout=0.3) as d:
        with pytest.raises(ZookeeperDict.unavailable):
            d.copy()
        with pytest.raises(ZookeeperDict.unavailable):
            d.sync()
        d._client.timeout = PATIENCE
        proxy.mend()
        fill(zookeeper_client, zookeeper_path)
        wait_until(lambda: served(d) == START, "it recovers")


# -- a follower that is late ----------------------------------------------------------------------


def test_a_paused_follower(ensemble: Ensemble, plain: KazooClient, zookeeper_path: str) -> None:
    """A client of it that knows no other server; it says nothing, and what it says then is old."""
    paused = ensemble.followers()[0]
    fill(plain, zookeeper_path)

    def connect() -> KazooClient:
        return paused.client(connection_retry=RECONNECT)

    with Readers(zookeeper_path, plain, connect, number=1) as readers:
        readers.check(START)
        paused.pause()
        truth = change(plain, zookeeper_path)
        with readers.impatient():
            readers.check_outage(START, ASKS)
        paused.resume()
        readers.check_told()
        readers.check(truth)


def test_a_client_of_a_paused_follower_goes_on_at_another_server(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    paused = ensemble.followers()[0]
    fill(plain, zookeeper_path)
    modes = ("told", "strict", "manual, stale", "watched")

    def connect() -> KazooClient:
        return ensemble.client(first=paused, timeout=SHORT, connection_retry=RECONNECT)

    with Readers(zookeeper_path, plain, connect, number=1, modes=modes) as readers:
        readers.check(START)
        paused.pause()
        truth = change(plain, zookeeper_path)
        readers.check_told()
        readers.check(truth)
        paused.resume()
        change(plain, zookeeper_path, "after that")
        readers.check_told()
        readers.check()


def test_a_follower_that_lags(ensemble: Ensemble, plain: KazooClient, zookeeper_path: str) -> None:
    """It serves reads as ever, and knows no better; what asks the leader waits."""
    fill(plain, zookeeper_path)
    with lagging(ensemble) as lag:

        def connect() -> KazooClient:
            return lag.server.client(connection_retry=RECONNECT)

        with Readers(zookeeper_path, plain, connect, number=1) as readers:
            readers.check(START)
            lag.begin()
            truth = change(plain, zookeeper_path)
            with readers.impatient():
                readers.check_outage(START, ASKS)
                # Its own write is done all the same: only nobody can say so.
                with pytest.raises(ZookeeperDict.unavailable):
                    readers.all["told"]["own"] = 1
            lag.end()
            readers.check_told()
            readers.check({**truth, "own": 1})


def connection_requests(server: ZookeeperServer) -> int:
    """Return how many clients have asked it for a session, those that it refused included."""
    return int(server.stats()["zk_connection_request_count"])


def test_a_client_that_moves_to_a_follower_that_lags_never_reads_backwards(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """The server takes no client that has seen more than it has itself."""
    fill(plain, zookeeper_path)
    with lagging(ensemble) as lag:
        other = next(server for server in ensemble.followers() if server is not lag.server)

        def connect() -> KazooClient:
            return ensemble.client(
                hosts=f"{other.hosts},{lag.server.hosts}", connection_retry=RECONNECT
            )

        with Readers(zookeeper_path, plain, connect, number=1) as readers:
            readers.check(START)
            assert lag.server.connections() == 0
            lag.begin()
            truth = change(plain, zookeeper_path)
            readers.check(truth)
            other.kill()
            wait_until(readers.lost, "they have noticed")
            asked = connection_requests(lag.server)
            for number in range(1, 4):
                wait_until(lambda: connection_requests(lag.server) >= asked + number, "refused")
                with readers.impatient():
                    readers.check_outage(truth, (*ASKS, "told"))
            lag.end()
            readers.check_told()
            readers.check(truth)
            assert lag.server.connections() == 1
            change(plain, zookeeper_path, "after that")
            readers.check_told()
            readers.check()


# -- two clients, one key -------------------------------------------------------------------------


def count_up(hosts: str, path: str, times: int, start: Any) -> tuple[int, int]:
    """Add one so many times; return how often it was done, and how often nobody could say."""
    unknown = 0
    with (
        started(KazooClient(hosts=hosts, connection_retry=RECONNECT)) as client,
        AnyDict(path, client) as d,
    ):
        start.wait(PATIENCE)
        for _ in range(times):
            try:
                d.compute("n", lambda n: n + 1, default=0)
            except ZookeeperDict.unavailable:
                unknown += 1
    return times - unknown, unknown


def take_away(hosts: str, path: str, times: int, start: Any) -> int:
    """Remove the counter again and again; return what was in it, in sum, less what was given."""
    taken = 0
    with started(KazooClient(hosts=hosts)) as client, AnyDict(path, client) as d:
        start.wait(PATIENCE)
        for number in range(times):
            taken += d.pop("n", 0)
            # Another znode, whose version is 0 again, and that begins with another number.
            if d.compare_and_set("n", MISSING, number):
                taken -= number
    return taken


def test_two_processes_count_up_one_key(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """Rule 4.5."""
    with processes() as others, AnyDict(zookeeper_path, plain, quorum=True) as d:
        start = spawning.Barrier(2)
        for server in ensemble.followers():
            others.start(count_up, server.hosts, zookeeper_path, 150, start)
        assert others.results() == [(150, 0)] * 2
        d.sync()
        assert d == {"n": 300} == stored(plain, zookeeper_path)


def test_a_process_counts_up_what_another_one_takes_away(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """Rule 4.5: made again it begins with version 0, and is not what it was."""
    with processes() as others:
        start = spawning.Barrier(2)
        counts, takes = ensemble.followers()
        others.start(count_up, counts.hosts, zookeeper_path, 150, start)
        others.start(take_away, takes.hosts, zookeeper_path, 150, start)
        (added, unknown), taken = others.results()
        assert (added, unknown) == (150, 0)
        assert taken + stored(plain, zookeeper_path).get("n", 0) == 150


def test_two_processes_count_up_while_the_leader_is_killed(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """Rule 0.4: nothing acknowledged is lost, and nothing is sent a second time."""
    with processes() as others:
        start = spawning.Barrier(3)
        for _ in range(2):
            others.start(count_up, ensemble.hosts, zookeeper_path, 200, start)
        leader = ensemble.leader()
        start.wait(PATIENCE)
        wait_until(lambda: stored(plain, zookeeper_path).get("n", 0) >= 20, "they count")
        leader.kill()
        results = others.results()
        added = sum(result[0] for result in results)
        unknown = sum(result[1] for result in results)
        counted = until_available(lambda: stored(plain, zookeeper_path))["n"]
        assert added <= counted <= added + unknown


def test_threads_write_through_one_dict(
    zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """Rules 0.3 and 4.3: what one has written no answer to another's question takes away."""
    failures: list[BaseException] = []
    ended = threading.Event()
    with (
        started(zookeeper_server.client()) as client,
        AnyDict(zookeeper_path, client) as d,
        AnyDict(zookeeper_path, zookeeper_client, autosync=False) as other,
    ):

        def write(name: str) -> None:
            for number in range(20):
                d[name] = number
                assert d[name] == number
                assert name in d.copy()
                if number % 3 == 0:
                    del d[name]
                    assert name not in d
                    assert name not in d.copy()
                assert d.compute(f"{name}, counted", lambda count: count + 1, default=0) > number

        def read() -> None:
            while not ended.is_set():
                d.sync(force=True)
                ended.wait(0.01)

        def disturb() -> None:
            for number in range(1 << 40):
                other.update(dict.fromkeys([f"x{number % 7}", "y"], number))
                other.pop(f"x{(number + 3) % 7}", None)
                if ended.wait(0.01):
                    return

        def run(action: Callable[..., None], *arguments: str) -> None:
            try:
                action(*arguments)
            except BaseException as error:
                failures.append(error)

        writers = [threading.Thread(target=run, args=[write, name]) for name in ("a", "b", "c")]
        others = [threading.Thread(target=run, args=[action]) for action in (read, disturb)]
        for thread in (*writers, *others):
            thread.start()
        for thread in writers:
            thread.join(PATIENCE)
        ended.set()
        for thread in others:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in (*writers, *others))
        assert failures == []
        d.sync()
        assert dict(d) == stored(zookeeper_client, zookeeper_path)


def test_a_thread_makes_an_entry_after_the_list_that_another_one_got(
    zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """Rule 4.1: a list that is older than the entry says nothing of it."""
    fill(zookeeper_client, zookeeper_path)
    heard: list[Any] = []
    with started(zookeeper_server.client()) as client, AnyDict(zookeeper_path, client) as d:
        d.on_change(lambda *change: heard.append(change))
        decode = d._fetcher._decoded
        writer = threading.Thread(target=d.__setitem__, args=["own", 1])

        def write(*arguments: Any, **named: Any) -> Any:
            d._fetcher._decoded = decode  # type: ignore[method-assign]  # the hook runs once
            answers = decode(*arguments, **named)
            writer.start()
            wait_until(lambda: "own" in d._tree.held, "it is stored")
            return answers

        change(zookeeper_client, zookeeper_path)
        d._fetcher._decoded = write  # type: ignore[method-assign]  # a hook
        d.sync()
        writer.join(PATIENCE)
        assert not writer.is_alive()
        assert d["own"] == 1
        d.sync()
        assert d == stored(zookeeper_client, zookeeper_path)
    assert [new for key, _, new in heard if key == "own"] == [1]


# -- made again between two syncs -----------------------------------------------------------------


def put(client: KazooClient, path: str, value: Any) -> None:
    """Make a znode as another program would."""
    client.create(path, pickle.dumps(value), makepath=True)


Step = Callable[[KazooClient, str], object]


def in_turn(*steps: Step) -> Step:
    def take(client: KazooClient, path: str) -> None:
        for step in steps:
            step(client, path)

    return take


def made(value: Any, key: str = "a") -> Step:
    return lambda client, path: put(client, f"{path}/{key}", value)


def again(value: Any, key: str = "a") -> Step:
    return in_turn(lambda client, path: client.delete(f"{path}/{key}"), made(value, key))


def without_place(client: KazooClient, path: str) -> None:
    client.delete(path, recursive=True)


AGAIN: dict[str, Step] = {
    "with another value": again(2),
    "with the same value": again(START["a"]),
    "twice": in_turn(again(2), again(3)),
    "and removed": in_turn(again(2), lambda client, path: client.delete(f"{path}/a")),
    "and changed": in_turn(again(2), lambda client, path: client.set(f"{path}/a", pickle.dumps(3))),
    "by a dict": change,
    "and all others": in_turn(*(again("again", key) for key in START)),
    "the place, too": in_turn(without_place, made(2)),
    "the place, with the same": in_turn(
        without_place, *(made(value, key) for key, value in START.items())
    ),
    "the place, empty": in_turn(without_place, lambda client, path: client.create(path)),
    "the place, not": without_place,
    "the place, twice": in_turn(without_place, made(0, "x"), without_place, made(1, "x")),
}


@pytest.mark.parametrize("away", [False, True], ids=["connected", "away"])
@pytest.mark.parametrize("what", AGAIN)
def test_a_node_is_made_again_between_two_syncs(
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    proxy: ZookeeperProxy,
    proxied: Callable[[], KazooClient],
    what: str,
    away: bool,
) -> None:
    """Versions begin with 0 again, and events come once; while a client is away, none comes."""
    fill(zookeeper_client, zookeeper_path)
    modes = ("told", "strict", "manual", "watched")
    with Readers(zookeeper_path, zookeeper_client, proxied, number=1, modes=modes) as readers:
        readers.check(START)
        if away:
            cut_off(proxy)
        AGAIN[what](zookeeper_client, zookeeper_path)
        proxy.mend()
        readers.check_told()
        readers.check()
        # The watches are armed on what is there now.
        for number in range(2):
            with AnyDict(zookeeper_path, zookeeper_client) as d:
                d.update(a=number, z=number)
            readers.check_told()
        readers.check()


# -- transactions ---------------------------------------------------------------------------------


class Judge:
    """Sees each state of one reader, in a thread of its own."""

    def __init__(self, states: Callable[[], dict[str, Any]]) -> None:
        self.states = states
        self.seen: set[Any] = set()
        self.broken: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def see(self, state: dict[str, Any]) -> None:
        if len({*state.values()}) != 1:
            self.broken.append(state)
        self.seen.update(state.values())

    def _run(self) -> None:
        while not self._stop.is_set():
            self.see(self.states())
            self._stop.wait(0.0005)

    def __enter__(self) -> Judge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def synced_copy(d: AnyDict) -> Callable[[], dict[str, Any]]:
    def states() -> dict[str, Any]:
        d.sync()
        return d.copy()

    return states


@contextmanager
def judged(ensemble: Ensemble, path: str) -> Iterator[list[Judge]]:
    """Let a reader of each kind judge all states that it sees; at the end none was broken."""
    with ExitStack() as stack:

        def opened(server: ZookeeperServer, autosync: Any) -> AnyDict:
            client = stack.enter_context(started(server.client()))
            # In time, a sync that never finds one state would come to its end with none.
            d = AnyDict(path, client, autosync=autosync, timeout=PATIENCE)
            return stack.enter_context(d)

        places = [*ensemble.servers, ensemble.servers[0]]
        told, strict, manual, watched = map(opened, places, (True, "strict", False, False))
        # What a callback sees is judged in the thread of the watch.
        heard = Judge(watched.copy)
        watched.on_change(lambda *_: heard.see(watched.copy()))
        watched.watch(interval=0.2)
        judges = [
            stack.enter_context(Judge(states))
            for states in (told.copy, strict.copy, synced_copy(manual))
        ]
        yield [*judges, heard]
    assert [judge.broken[:1] for judge in (*judges, heard)] == [[]] * 4


def transact(d: AnyDict, number: int) -> None:
    """Write the number to all entries at once; each third time one goes, and another comes."""
    keys = set(d) or {*"abcde", "x"}
    if number % 3 == 0:
        keys ^= {"x", "y"}
    d.replace_all(dict.fromkeys(keys, number))


def test_no_batch_sees_half_a_transaction(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """Rule 4.1: so many in a row that a batch always comes to an end."""
    with AnyDict(zookeeper_path, plain) as writer:
        transact(writer, 0)
        with judged(ensemble, zookeeper_path) as judges:
            # The events of one may come in two batches.
            burst = (ROUNDS - 1) // 2
            for last in range(burst, 120, burst):
                for number in range(last - burst + 1, last + 1):
                    transact(writer, number)
                for judge in judges:
                    wait_until(lambda: last in judge.seen, "it has seen the last one")


@pytest.mark.long
def test_no_batch_sees_half_a_transaction_however_many_there_are(
    ensemble: Ensemble, plain: KazooClient, zookeeper_path: str
) -> None:
    """Rule 4.1: though something has always changed when a batch is there."""
    with AnyDict(zookeeper_path, plain) as writer:
        transact(writer, 0)
        with judged(ensemble, zookeeper_path) as judges:
            for number in range(1, 5001):
                transact(writer, number)
            for judge in judges:
                wait_until(lambda: number in judge.seen, "it has seen the last one")
            print([len(judge.seen) for judge in judges], "states seen")


# -- restored from a backup -----------------------------------------------------------------------


class Backup:
    """A copy of what servers had, made while they run."""

    def __init__(self, servers: Sequence[ZookeeperServer]) -> None:
        self.servers = servers
        for server in servers:
            shutil.copytree(server.data, server.folder / "backup")

    def restore(self) -> None:
        for server in self.servers:
            server.kill()
        for server in self.servers:
            shutil.rmtree(server.data)
            (server.folder / "backup").rename(server.data)
        with ThreadPoolExecutor() as threads:
            list(threads.map(ZookeeperServer.start, self.servers))


@contextmanager
def stopped(*clients: KazooClient) -> Iterator[None]:
    """Let clients begin anew: a server takes none that has seen more than it has itself.

    They are not to try while it starts: see `ZookeeperServer`.

    """
    for client in clients:
        client.stop()
    yield
    for client in clients:
        client.start(PATIENCE)


def test_a_server_is_restored_from_a_backup() -> None:
    """Rule 4.2: its numbers go back, and count for a new session only as what they are."""
    # The watched one would not let its client rest.
    modes = tuple(mode for mode in MODES if mode != "watched")
    with ZookeeperServer() as server, started(server.client()) as plain:
        fill(plain, "/k")
        backup = Backup([server])
        with Readers("/k", plain, server.client, number=2, modes=modes) as readers:
            for number in range(5):
                change(plain, "/k", number)
            readers.check()
            with stopped(plain, *readers.clients):
                backup.restore()
            readers.check_told()
            readers.check(START)
            # Up to the numbers that were there before, and past them.
            for number in range(7):
                change(plain, "/k", [number])
                readers.check_told()
                readers.check()


def test_a_server_is_restored_under_a_session_that_it_still_knows() -> None:
    """Rule 4.2: the session goes on when the numbers are as high as they were: other writes."""
    with (
        ZookeeperServer() as server,
        ZookeeperProxy(server.port) as proxy,
        started(server.client()) as plain,
    ):

        def connect() -> KazooClient:
            return server.client(
                hosts=f"{HOST}:{proxy.port}", timeout=60.0, connection_retry=RECONNECT
            )

        fill(plain, "/k")
        with Readers("/k", plain, connect, number=1) as readers:
            sessions = [client.client_id for client in readers.clients]
            backup = Backup([server])
            put(plain, "/k/lost", "lost")
            plain.delete("/k/d")
            for _ in range(10):
                plain.set("/k/a", pickle.dumps("lost"))
            number = plain.set("/k/b", pickle.dumps("lost")).mzxid
            plain.set("/k/c", pickle.dumps("lost"))
            readers.check()
            cut_off(proxy)
            with stopped(plain):
                backup.restore()
            while plain.set("/k", b"").mzxid < number - 1:
                pass
            # The very same number as before, of another write.
            assert plain.set("/k/b", pickle.dumps("found")).mzxid == number
            proxy.mend()
            while readers.lost():
                plain.set("/k", b"")
            assert [client.client_id for client in readers.clients] == sessions
            readers.check_told()
            readers.check({**START, "b": "found"})
            for again in range(2):
                change(plain, "/k", again)
                readers.check_told()
                readers.check()


def test_an_ensemble_is_restored_under_sessions_that_it_still_knows() -> None:
    """Rule 4.2: its new leader begins with higher numbers, but the znodes have their old ones."""
    with (
        Ensemble() as ensemble,
        ZookeeperProxy(ensemble.servers[0].port) as proxy,
        started(ensemble.client()) as plain,
    ):

        def connect() -> KazooClient:
            return ensemble.client(
                hosts=f"{HOST}:{proxy.port}", timeout=60.0, connection_retry=RECONNECT
            )

        fill(plain, "/k")
        with Readers("/k", plain, connect, number=1) as readers:
            sessions = [client.client_id for client in readers.clients]
            backup = Backup(ensemble.servers)
            for number in range(3):
                change(plain, "/k", number)
            readers.check()
            cut_off(proxy)
            with stopped(plain):
                backup.restore()
                ensemble.wait_for_quorum()
            proxy.mend()
            wait_until(lambda: not readers.lost(), "they are connected again")
            assert [client.client_id for client in readers.clients] == sessions
            readers.check_told()
            readers.check(START)
            for number in range(2):
                change(plain, "/k", number)
                readers.check_told()
                readers.check()


@pytest.mark.parametrize("after", ["_decoded", "_round"])
def test_a_server_is_restored_in_the_middle_of_a_reload(after: str) -> None:
    """Rule 4.2: what was loaded before counts no more."""
    with (
        ZookeeperServer() as server,
        started(server.client()) as plain,
        started(server.client()) as client,
    ):
        fill(plain, "/k")
        backup = Backup([server])
        for number in range(5):
            change(plain, "/k", number)
        with AnyDict("/k", client, timeout=PATIENCE) as d:
            load = getattr(d._fetcher, after)

            def restore_after_it(*arguments: Any, **named: Any) -> Any:
                setattr(d._fetcher, after, load)
                answers = load(*arguments, **named)
                with stopped(plain, client):
                    backup.restore()
                return answers

            setattr(d._fetcher, after, restore_after_it)
            # What was loaded is what there was at that moment; the next read hears of the rest.
            until_available(lambda: d.sync(force=True))
            assert until_available(d.copy) == START
            for number in range(7):
                truth = change(plain, "/k", [number])
                assert synced(d) == truth


# -- for long -------------------------------------------------------------------------------------

#: The seconds for which faults come by chance.
LONG = 180


def work(hosts: str, path: str, names: list[str], mine: str, folder: Path) -> dict[str, Any]:
    """Write, and read in all ways, until told to stop; return the tally, and what it saw."""
    logging.getLogger().addHandler(logging.NullHandler())  # kazoo tells of each connection
    counters = {name: Counter(folder / name) for name in names}

    def acknowledged() -> dict[str, int]:
        return {name: counter.value for name, counter in counters.items()}

    def connect() -> KazooClient:
        return KazooClient(hosts=hosts, timeout=3.0, connection_retry=RECONNECT)

    def publish(number: int) -> None:
        counters[mine].value = number

    with (
        started(connect()) as client,
        AnyDict(path, client) as d,
        Readers(path, client, connect, number=3, quorum=True) as readers,
        Load([Writer(mine, d, publish)], readers.all, acknowledged) as load,
    ):
        stop = folder / "stop"
        while not stop.exists():
            load.raise_failure()
            time.sleep(0.05)
        load.end()
        # The servers run again, and nobody writes: each comes to what is stored.
        (folder / f"{mine} has ended").touch()
        wait_until(
            lambda: all((folder / f"{name} has ended").exists() for name in names), "all end"
        )
        until_available(readers.check)
        looks = {mode: (looker.looks, looker.errors) for mode, looker in load.lookers.items()}
        return {"tally": load.tallies()[0], "looks": looks}


class Chance:
    """Does something to an ensemble, and to the proxies before it, and mends it again."""

    def __init__(self, ensemble: Ensemble, proxies: list[ZookeeperProxy], seed: int) -> None:
        self.ensemble = ensemble
        self.proxies = proxies
        self.random = Random(seed)
        self.done = collections.Counter[str]()
        self.faults: dict[str, Callable[[], Callable[[], object]]] = {
            "leader killed": self.kill_leader,
            "server killed": lambda: self.kill(self.server()),
            "two servers killed": self.kill_two,
            "server stopped": lambda: self.stop(self.server()),
            "server paused": lambda: self.pause(self.server()),
            "leader paused": lambda: self.pause(self.ensemble.leader()),
            "connections cut": self.cut,
            "connections reset": lambda: self.cut(reset=True),
            "cut off": self.cut_off,
            "black hole": self.black_hole,
            "all cut off": self.cut_all_off,
        }

    def server(self) -> ZookeeperServer:
        return self.random.choice(self.ensemble.servers)

    def strike(self) -> None:
        name = self.random.choice([*self.faults])
        self.done[name] += 1
        mend = self.faults[name]()
        # Shorter than a session, or longer.
        time.sleep(self.random.choice([0, 0.05, 0.3, 1, 5]))
        mend()
        self.ensemble.wait_for_quorum()
        time.sleep(self.random.choice([0, 0.1, 0.5, 1]))

    def kill_leader(self) -> Callable[[], object]:
        return self.kill(self.ensemble.leader())

    def kill(self, server: ZookeeperServer) -> Callable[[], object]:
        server.kill()
        return server.start

    def kill_two(self) -> Callable[[], object]:
        both = self.random.sample(self.ensemble.servers, 2)
        for server in both:
            server.kill()

        def start() -> None:
            for server in both:
                server.start()

        return start

    def stop(self, server: ZookeeperServer) -> Callable[[], object]:
        server.stop()
        return server.start

    def pause(self, server: ZookeeperServer) -> Callable[[], object]:
        server.pause()
        return server.resume

    def cut(self, *, reset: bool = False) -> Callable[[], object]:
        proxy = self.random.choice(self.proxies)
        proxy.cut(reset=reset)
        return proxy.mend

    def cut_off(self) -> Callable[[], object]:
        proxy = self.random.choice(self.proxies)
        cut_off(proxy)
        return proxy.mend

    def black_hole(self) -> Callable[[], object]:
        proxy = self.random.choice(self.proxies)
        proxy.black_hole()
        return proxy.mend

    def cut_all_off(self) -> Callable[[], object]:
        for proxy in self.proxies:
            cut_off(proxy)

        def mend() -> None:
            for proxy in self.proxies:
                proxy.mend()

        return mend


@pytest.mark.long
def test_nothing_is_lost_whatever_happens(tmp_path: Path) -> None:
    """Faults by chance, for minutes, over an ensemble with readers and writers in processes."""
    seed = int(os.environ.get("SEED", "0")) or Random().randrange(1 << 30)
    print("seed", seed)
    names = [f"process {number}" for number in range(3)]
    with ExitStack() as stack:
        ensemble = stack.enter_context(Ensemble())
        proxies = [stack.enter_context(ZookeeperProxy(server.port)) for server in ensemble.servers]
        plain = stack.enter_context(started(ensemble.client(connection_retry=RECONNECT)))
        begin(plain, "/k", names)
        others = stack.enter_context(processes())
        for number, name in enumerate(names):
            ports = [proxy.port for proxy in (proxies * 2)[number : number + 3]]
            hosts = ",".join(f"{HOST}:{port}" for port in ports)
            others.start(work, hosts, "/k", names, name, tmp_path)
        counters = [Counter(tmp_path / name) for name in names]
        wait_until(lambda: all(counter.value for counter in counters), "all write")
        chance = Chance(ensemble, proxies, seed)
        ends = time.monotonic() + LONG
        while time.monotonic() < ends:
            chance.strike()
            reached = [counter.value for counter in counters]
            wait_until(
                lambda reached=reached: all(  # type: ignore[misc]  # mypy#12557
                    counter.value > before
                    for counter, before in zip(counters, reached, strict=True)
                ),
                "all go on",
            )
        (tmp_path / "stop").touch()
        results = others.results()
        tallies = [result["tally"] for result in results]
        for result in results:
            print(result)
        print(dict(chance.done))
        check(tallies, until_available(lambda: stored(plain, "/k")))
