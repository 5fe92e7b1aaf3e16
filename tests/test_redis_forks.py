"""RedisDict in forked children: connections of their own, and the parent's left open (rule 0.9).

Each scenario runs in an interpreter of its own, because a test process that forks beside threads
is warned of since Python 3.12. A failed assertion in a child makes its exit status 1.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from durabledict import RedisDict, redisservers

from .redisclusters import ClusterServers
from .servers import wait_until
from .test_forks import PATIENCE, Signal, Stop, ended_well, everything_works, fork

ROOT = Path(__file__).parent.parent

NAME = "of-the-scenario"


def opened(url: str, keyspace: str = "k", **options: Any) -> Any:
    client = redis.Redis.from_url(url, client_name=NAME)
    return RedisDict[Any, Any](keyspace, client, **options)


def connections(url: str) -> set[str]:
    """The ids of the connections of this scenario, the children's included."""
    with redis.Redis.from_url(url) as client:
        rows: Any = client.client_list()
    return {row["id"] for row in rows if row["name"] == NAME}


def both_go_on(url: str) -> None:
    d = opened(url)
    d["k"] = 1
    assert d["k"] == 1
    parents = connections(url)

    def child() -> None:
        everything_works(d)
        own = connections(url) - parents
        assert own
        assert connections(url) >= parents
        d.close()
        wait_until(lambda: connections(url) == parents, "the child's are closed, and no other")

    ended_well(fork(child))
    assert connections(url) == parents
    everything_works(d)
    assert connections(url) == parents


def both_at_once(url: str) -> None:
    """Were a connection shared, one would read the other's replies."""
    d = opened(url)
    d["n"] = 0
    processes = 4

    def work(number: int) -> None:
        for turn in range(50):
            d[number] = turn
            assert d[number] == turn
            d.compute("n", lambda n: n + 1)

    pids = [fork(partial(work, number)) for number in range(processes)]
    work(processes)
    ended_well(*pids)
    assert d["n"] == 50 * (processes + 1)


def child_exits(url: str) -> None:
    """Its interpreter's end runs finalizers."""
    d = opened(url)
    d["k"] = 1
    parents = connections(url)
    pid = os.fork()
    if pid == 0:
        d["child"] = 1
        sys.exit()
    ended_well(pid)
    assert connections(url) == parents
    d["parent"] = 1
    assert d == {"k": 1, "child": 1, "parent": 1}
    assert connections(url) == parents


def child_forgets(url: str) -> None:
    """Rule 0.9: what was inherited stays referenced, also when its dict is gone."""
    dicts = [opened(url)]
    dicts[0]["k"] = 1
    parents = connections(url)

    def child() -> None:
        dicts.clear()
        gc.collect()

    ended_well(fork(child))
    assert connections(url) == parents
    everything_works(dicts[0])


def child_closes_what_it_never_used(url: str) -> None:
    d = opened(url)
    d["k"] = 1
    parents = connections(url)

    def child() -> None:
        d.close()
        assert d["k"] == 1
        with pytest.raises(RuntimeError, match="closed"):
            d["k"] = 2

    ended_well(fork(child))
    assert connections(url) == parents
    everything_works(d)


def dicts_of_one_client(url: str) -> None:
    client = redis.Redis.from_url(url, client_name=NAME)
    one, two = RedisDict[str, int]("1", client), RedisDict[str, int]("2", client)
    one["a"] = two["a"] = 1
    parents = connections(url)

    def child() -> None:
        one["a"] = two["a"] = 2
        assert len(connections(url) - parents) <= 2
        three = RedisDict[str, int]("3", client)
        three["a"] = 3
        one.close()
        two["a"] = 4
        two.close()
        three.close()
        wait_until(lambda: connections(url) == parents, "the child's are closed")

    ended_well(fork(child))
    assert (one["a"], two["a"]) == (2, 4)
    assert connections(url) == parents


def grandchildren(url: str) -> None:
    d = opened(url)
    d["n"] = 0

    def generation(left: int) -> None:
        d.compute("n", lambda n: n + 1)
        pids = [fork(partial(generation, left - 1)) for _ in range(2)] if left else []
        d.compute("n", lambda n: n + 1)
        ended_well(*pids)

    generation(2)
    assert d["n"] == 14


def watch_runs(url: str) -> None:
    """The parent's thread waits in an XREAD; the child starts its own at its first read."""
    d, other = opened(url, autosync=False), opened(url)
    changed = threading.Event()
    d.on_change(lambda *_: changed.set())
    watch = d.watch(interval=2 * PATIENCE)
    other["k"] = 1
    assert changed.wait(PATIENCE)
    parents = connections(url)
    child_watches, child_heard = Signal(), Signal()

    def child() -> None:
        changed.clear()
        assert not watch.running
        assert d["k"] == 1
        assert watch.running
        child_watches.give()
        assert changed.wait(PATIENCE)
        assert d["k"] == 2
        assert connections(url) >= parents
        child_heard.give()
        d.close()

    changed.clear()
    pid = fork(child)
    child_watches.wait()
    other["k"] = 2
    assert changed.wait(PATIENCE)
    child_heard.wait()
    ended_well(pid)
    changed.clear()
    assert watch.running
    other["k"] = 3
    assert changed.wait(PATIENCE)
    assert d["k"] == 3
    d.close()
    other.close()


def register_is_locked(url: str) -> None:
    """A thread of the parent makes a dict, that is it holds the lock of the register."""
    d = opened(url)
    d["k"] = 1
    stop = Stop()

    def hold() -> None:
        with redisservers._lock:
            stop.here()

    with stop.by(hold):
        ended_well(fork(partial(everything_works, d)))
    everything_works(d)


def connection_is_in_use(url: str) -> None:
    """A thread of the parent is in the middle of a request, or of a check."""
    d = opened(url)
    d["k"] = 1
    server = d._primary.server
    for lock in (server._check_lock, server._lock, d._primary._servers._lock):
        stop = Stop()

        def hold(lock: Any = lock, stop: Stop = stop) -> None:
            with lock:
                stop.here()

        with stop.by(hold):
            ended_well(fork(partial(everything_works, d)))
            ended_well(fork(d.close))
    connection, era = server.take(server.timeout)
    connection.connect()
    ended_well(fork(partial(everything_works, d)))
    server.give(connection, era, server.timeout)
    everything_works(d)


def forked_past_the_hooks(url: str) -> None:
    """As an embedding C program does it: the id of the process tells."""
    d = opened(url)
    d["k"] = 1
    assert d["k"] == 1
    parents = connections(url)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        status = 1
        try:
            everything_works(d)
            assert len(connections(url)) > len(parents)
            d.close()
            status = 0
        finally:
            os._exit(status)
    ended_well(child)
    assert connections(url) == parents
    everything_works(d)


SCENARIOS: list[Callable[[str], None]] = [
    both_go_on,
    both_at_once,
    child_exits,
    child_forgets,
    child_closes_what_it_never_used,
    dicts_of_one_client,
    grandchildren,
    watch_runs,
    register_is_locked,
    connection_is_in_use,
    forked_past_the_hooks,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_parent_and_child_have_connections_of_their_own(
    scenario: Callable[[str], None], redis_url: str
) -> None:
    run(scenario, redis_url)


def dict_on_a_cluster(url: str) -> None:
    port = int(url.rpartition(":")[2].partition("/")[0])
    client = redis.RedisCluster(host="127.0.0.1", port=port)
    d = RedisDict[Any, Any]("k", client)
    d["k"] = 1
    ended_well(fork(partial(everything_works, d)))
    everything_works(d)
    d.close()
    client.close()


@pytest.mark.parametrize("scenario", [dict_on_a_cluster], ids=lambda scenario: scenario.__name__)
def test_on_a_cluster_as_well(scenario: Callable[[str], None]) -> None:
    with ClusterServers() as servers:
        run(scenario, servers.url)


def run(scenario: Callable[..., None], url: str) -> None:
    """Run a scenario in an interpreter of its own."""
    program = "import sys; from tests import test_redis_forks as t; t.start(*sys.argv[1:])"
    warnings = ("-W", "ignore::DeprecationWarning")
    command = [sys.executable, *warnings, "-c", program, scenario.__name__, url]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(4 * PATIENCE)
        finally:
            # A child that hangs inside os.fork has had no time to set an alarm.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        output.seek(0)
        text = output.read()
    assert status == 0, text
    assert text == ""


def start(name: str, url: str) -> None:
    # A process that hangs shows where, and is ended; a forked child sets its own alarm.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(2 * int(PATIENCE))
    globals()[name](url)
