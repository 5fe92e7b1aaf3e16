"""Stamps between real processes: forked ones, and writers that are killed (rules 3.1 and 0.9)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from pymemcache import Client, HashClient, PooledClient

from durabledict import memcachedcaches
from durabledict.stamps import DEAD, CacheStamp, Stamp
from durabledict.testing.tools import Clock

from . import not_measured
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer
from .scenarios import Signal, ended_well, fork, run
from .servers import HOST, PATIENCE
from .stampcases import read

ROOT = Path(__file__).parent.parent
KEY = "stamp"

KINDS: dict[str, Callable[..., Any]] = {
    "Client": Client,
    "PooledClient": PooledClient,
    "HashClient": lambda server: HashClient([server]),
}


def sockets(connections: Any) -> list[Any]:
    return [node.sock for one, _ in connections._free for node in memcachedcaches._nodes(one)]


def both_go_on(kind: str, port: int) -> None:
    client = KINDS[kind]((HOST, port))
    stamp = CacheStamp(client, KEY)
    read(stamp)
    connections = memcachedcaches._registered[client]
    (parents,) = sockets(connections)
    inode = os.fstat(parents.fileno()).st_ino
    asked, answered = Signal(), Signal()

    def child(uses: bool) -> None:
        if uses:
            for _ in range(50):
                with stamp.writing():
                    read(stamp)
            (own,) = [
                node.sock for one, _ in connections._free for node in memcachedcaches._nodes(one)
            ]
            assert own.fileno() != parents.fileno()
        else:
            connections.close()
        assert os.fstat(parents.fileno()).st_ino == inode
        answered.give()
        asked.wait()

    pids = [fork(partial(child, uses)) for uses in (True, True, False)]
    for _ in range(50):
        with stamp.writing():
            read(stamp)
    answered.wait(3)
    first = read(stamp)
    assert read(stamp) == first
    assert sockets(connections) == [parents]
    asked.give(3)
    ended_well(*pids)
    with stamp.writing() as write:
        pass
    assert write.before == first
    client.close()
    connections.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_leaves_the_parent_its_connection(
    memcached_server: MemcachedServer, kind: str
) -> None:
    memcached_server.flush()
    run(both_go_on, kind, memcached_server.port)


def both_go_on_over_redis(url: str) -> None:
    stamp = CacheStamp(redis.Redis.from_url(url), KEY)
    first = read(stamp).number

    def work() -> None:
        for _ in range(50):
            with stamp.writing():
                read(stamp)

    pids = [fork(work) for _ in range(2)]
    work()
    ended_well(*pids)
    assert read(stamp) == Stamp(first + 150, 0, 0)


def test_so_it_is_over_redis(redis_url: str) -> None:
    run(both_go_on_over_redis, redis_url)


WRITER = """
import os, signal, sys
from durabledict.stamps import CacheStamp

kind, port, path, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if kind == "memcached":
    from pymemcache import Client
    client = Client(("127.0.0.1", port))
else:
    from redis import Redis
    client = Redis(port=port)
stamp = CacheStamp(client, "stamp")

def may_die(step):
    if step == steps:
        os.kill(os.getpid(), signal.SIGKILL)

may_die(0)
opening = stamp.begin()
may_die(1)
open(path, "w").write("new")
may_die(2)
stamp.end(opening)
may_die(3)
"""


@pytest.fixture(params=["memcached", "redis"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """A server and a client of it."""
    server = request.getfixturevalue(f"{request.param}_server")
    server.flush()
    with closing(server.client()) as client:
        yield server, client


@pytest.mark.parametrize("steps", range(4))
def test_a_process_that_is_killed_between_two_steps_leaves_nobody_stale(
    place: tuple[Any, Any], clock: Clock, tmp_path: Path, steps: int
) -> None:
    server, client = place
    kind = "redis" if isinstance(server, RedisServer) else "memcached"
    path = tmp_path / "store"
    path.write_text("old")
    stamp = CacheStamp(client, KEY, verify=None)
    held, text = read(stamp), path.read_text()
    done = subprocess.run(
        [sys.executable, "-c", WRITER, kind, str(server.port), str(path), str(steps)],
        cwd=ROOT,
        env=not_measured(),
        timeout=PATIENCE,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == ("new" if steps >= 2 else "old")
    loads = 0
    for seconds in range(int(DEAD) + 3):
        found = read(stamp)
        if found != held:
            held, text = found, path.read_text()
            loads += 1
        if seconds >= (1 if steps < 3 else 0):
            assert text == path.read_text()
        clock.move(1.0)
    # It is not for ever that a second is all.
    assert loads == {0: 0, 3: 1}.get(steps, DEAD + 1)
    assert read(stamp) == held
