"""RedisDict in forked children: connections of their own, and the parent's left open (rule 0.9).

Each scenario runs in an interpreter of its own, because a test process that forks beside threads
is warned of since Python 3.12. A failed assertion in a child makes its exit status 1.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import redis

from durabledict import RedisDict, redisservers

from .redisclusters import ClusterServers
from .scenarios import (
    ended_well,
    everything_works,
    fork,
    held_by_a_thread,
    run,
    watch_goes_on_in_both,
)
from .servers import wait_until

NAME = "of-the-scenario"


def opened(url: str, keyspace: str = "k", **options: Any) -> Any:
    client = redis.Redis.from_url(url, client_name=NAME)
    return RedisDict[Any, Any](keyspace, client, **options)


def connections(url: str) -> set[str]:
    """The ids of the connections of this scenario, the children's included."""
    with redis.Redis.from_url(url) as client:
        rows: Any = client.client_list()
    return {row["id"] for row in rows if row["name"] == NAME}


def inodes(numbers: Iterable[int]) -> dict[int, int]:
    """What is open under these numbers: another socket may come under one that was given up."""
    return {number: os.fstat(number).st_ino for number in numbers}


def sockets_of(d: Any) -> dict[int, int]:
    """The sockets of a dict that is not in use: the one for checks, and those for all else."""
    server = d._primary.server
    idle = [connection for kept in server._idle.values() for connection in kept]
    return inodes(each._connection._sock.fileno() for each in (server._checks, *idle))


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
    wait_until(lambda: connections(url) == parents, "the child's are closed, and no other")
    d["parent"] = 1
    assert d == {"k": 1, "child": 1, "parent": 1}
    assert connections(url) == parents


def child_forgets(url: str) -> None:
    """Rule 0.9: what was inherited stays referenced and open, also when its dict is gone."""
    dicts = [opened(url)]
    dicts[0]["k"] = 1
    assert dicts[0]["k"] == 1
    parents = connections(url)
    held = sockets_of(dicts[0])
    assert len(held) == 2

    def child(uses: bool) -> None:
        if uses:
            everything_works(dicts[0])
        gone = weakref.ref(dicts[0]), weakref.ref(dicts[0].connection)
        dicts.clear()
        gc.collect()
        assert [reference() for reference in gone] == [None, None]
        assert inodes(held) == held

    for uses in (False, True):
        ended_well(fork(partial(child, uses)))
        wait_until(lambda: connections(url) == parents, "the child's are closed, and no other")
    everything_works(dicts[0])
    assert connections(url) == parents


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
    """The parent's thread waits in an XREAD."""
    watch_goes_on_in_both(opened(url, autosync=False), opened(url), partial(connections, url))


def register_is_locked(url: str) -> None:
    """A thread of the parent makes a dict, that is it holds the lock of the register."""
    d = opened(url)
    d["k"] = 1
    with held_by_a_thread(redisservers._lock):
        ended_well(fork(partial(everything_works, d)))
    everything_works(d)


def connection_is_in_use(url: str) -> None:
    """A thread of the parent is in the middle of a request, or of a check."""
    d = opened(url)
    d["k"] = 1
    server = d._primary.server
    for lock in (server._check_lock, server._lock, d._primary._servers._lock):
        with held_by_a_thread(lock):
            ended_well(fork(partial(everything_works, d)))
            ended_well(fork(d.close))
    connection, era = server.take(server.timeout)
    connection.connect()
    ended_well(fork(partial(everything_works, d)))
    server.give(connection, era, server.timeout)
    everything_works(d)


def forked_past_the_hooks(url: str) -> None:
    """As an embedding C program does it: the id of the process tells."""
    dicts = [opened(url)]
    dicts[0]["k"] = 1
    assert dicts[0]["k"] == 1
    parents = connections(url)
    held = sockets_of(dicts[0])
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        status = 1
        try:
            everything_works(dicts[0])
            assert len(connections(url)) > len(parents)
            dicts.pop().close()
            gc.collect()
            assert inodes(held) == held
            status = 0
        finally:
            os._exit(status)
    ended_well(child)
    wait_until(lambda: connections(url) == parents, "the child's are closed, and no other")
    everything_works(dicts[0])


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
