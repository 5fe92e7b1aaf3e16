"""Rule 5.1 under every interleaving: of two and three processes, killed ones, evicted markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

from durabledict.stores import MemcacheStore, ProcessMemoryStore, RedisStore
from durabledict.testing.things import Thing

from .chaininterleavings import Operation, World, explore
from .memcachedserver import MemcachedServer

PUT, OTHER_PUT, DELETE, GET = (
    Operation("put", 1),
    Operation("put", 2),
    Operation("delete"),
    Operation("get"),
)
NAMED, RENAME = Operation("get named"), Operation("put", 3, "y")
EVICT = Operation("evict")

PAIRS = [
    (PUT, OTHER_PUT),
    (PUT, GET),
    (PUT, DELETE),
    (DELETE, GET),
    (DELETE, DELETE),
    (PUT, NAMED),
    (RENAME, NAMED),
    (RENAME, PUT),
    (DELETE, NAMED),
    (GET, GET),
    (GET, NAMED),
]


def in_memory(layers: int = 1, **options: Any) -> Callable[[], World]:
    return lambda: World([ProcessMemoryStore() for _ in range(layers)], **options)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_two_processes(pair: Sequence[Operation]) -> None:
    assert explore(in_memory(warm=True), pair) > 1
    assert explore(in_memory(first=None), pair) > 1


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_one_of_two_processes_is_killed(pair: Sequence[Operation]) -> None:
    assert explore(in_memory(warm=True), pair, kills=True) > 1


@pytest.mark.parametrize(
    "pair",
    [
        (PUT, GET),
        pytest.param((DELETE, GET), marks=pytest.mark.long),
        pytest.param((PUT, OTHER_PUT), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_markers_are_evicted(pair: Sequence[Operation]) -> None:
    assert explore(in_memory(), [*pair, EVICT]) > 10


@pytest.mark.parametrize("pair", [(PUT, GET), (PUT, OTHER_PUT), (DELETE, GET)], ids=str)
def test_two_layers(pair: Sequence[Operation]) -> None:
    assert explore(in_memory(2, warm=True), pair) > 100


@pytest.mark.long
@pytest.mark.parametrize(
    "three", [(PUT, OTHER_PUT, GET), (PUT, DELETE, GET), (PUT, RENAME, NAMED)], ids=str
)
def test_three_processes(three: Sequence[Operation]) -> None:
    assert explore(in_memory(), three) > 1000


ON_SERVERS = [(PUT, OTHER_PUT), (PUT, GET), (DELETE, GET), (RENAME, NAMED)]


@pytest.mark.parametrize("pair", ON_SERVERS, ids=str)
def test_on_redis(redis_client: redis.Redis, pair: Sequence[Operation]) -> None:
    def make() -> World:
        redis_client.flushall()
        return World([RedisStore(redis_client)])

    assert explore(make, pair, kills=pair == (PUT, OTHER_PUT)) > 10


@pytest.mark.parametrize("pair", ON_SERVERS, ids=str)
def test_on_memcached(memcached_server: MemcachedServer, pair: Sequence[Operation]) -> None:
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"]) as store:

        def make() -> World:
            memcached_server.flush()
            for name in ("_peek", "_mark", "_claim", "_settle", "_spoil"):
                vars(store).pop(name, None)
            return World([store])

        assert explore(make, pair, kills=pair == (PUT, OTHER_PUT)) > 10


def test_the_exploration_notices_an_old_object() -> None:
    """A layer that is filled without a marker is found out."""

    class Careless(ProcessMemoryStore):
        def _settle(self, settlements: Any, *, writes: bool) -> None:
            self.batch_put([each.obj for each in settlements if each.obj is not None])

    with pytest.raises(AssertionError, match="Thing"):
        explore(lambda: World([Careless()]), (PUT, GET))
    assert Thing(1) == Thing(1)
