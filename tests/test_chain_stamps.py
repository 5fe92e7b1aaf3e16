"""`stamp=`: a layer in memory hears of what other processes write (rule 5.3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pymemcache.client.base import Client

from durabledict.stamps import MemoryCache
from durabledict.stores import ChainedStore, MemcacheStore, ProcessMemoryStore, ThreadLocalStore
from durabledict.testing import StoreSuite
from durabledict.testing.things import Automobile, Car, Thing
from durabledict.testing.tools import in_thread

from .chaininterleavings import REQUESTS, Done, Operation, World, explore, stepped
from .memcachedserver import MemcachedServer
from .tcpproxy import TcpProxy, each_chunk

NAME = {"zone": 1, "name": "x"}


class Outage(MemoryCache):
    """A cache that can be down, and counts what it is asked."""

    is_down = False
    asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.is_down:
            raise OSError("down")

    def get(self, key: str) -> int | None:
        self._ask()
        return super().get(key)

    def increase(self, key: str, by: int) -> int | None:
        self._ask()
        return super().increase(key, by)


def processes(
    cache: Any, count: int = 2, **options: Any
) -> tuple[list[ChainedStore], list[ProcessMemoryStore], ProcessMemoryStore]:
    """Return the chains of several processes, their layers, and the durable Store of all."""
    last = ProcessMemoryStore(**options)
    memories = [ProcessMemoryStore(stamp=cache, **options) for _ in range(count)]
    return [ChainedStore([memory, last]) for memory in memories], memories, last


def value_of(store: Any) -> Any:
    return store.get(Thing, {"id": 1}).value


def test_another_process_hears_of_a_put_and_a_delete() -> None:
    (here, there), memories, _ = processes(MemoryCache())
    here.put(Thing(1, value=1))
    assert value_of(there) == 1
    here.put(Thing(1, value=2))
    assert there.batch_get(Thing, [NAME]) == [Thing(1, value=2)]
    there.delete(Thing(1))
    assert here.get(Thing, {"id": 1}) is memories[0].get(Thing, NAME) is None


def test_own_writes_leave_the_other_objects() -> None:
    cache = Outage()
    (here, _), memories, _ = processes(cache)
    here.batch_put([Thing(1), Thing(2, name="y")])
    first = memories[0].get(Thing, {"id": 1})
    assert first is not None
    here.put(Thing(2, name="y", value="new"))
    here.delete(Thing(3))
    assert memories[0].get(Thing, {"id": 1}) is first
    before = cache.asked
    here.get(Thing, {"id": 1})
    here.batch_get(Thing, [{"id": 1}, {"id": 2}])
    assert cache.asked - before == 2
    here.put(Thing(1))
    assert cache.asked - before == 4


def test_an_own_write_does_not_hide_anothers() -> None:
    (here, there), _, _ = processes(MemoryCache())
    here.put(Thing(1, value="old"))
    there.put(Thing(1, value="new"))
    here.put(Thing(2, name="y"))
    assert value_of(here) == "new"


def test_a_base_class_hears_of_its_subclasses() -> None:
    (here, there), _, _ = processes(MemoryCache(), polymorphic=True)
    here.put(Car("B 1", "old"))
    for klass in (Automobile, Car):
        assert there.get(klass, {"license_plate": "B 1"}) == Car("B 1", "old")
    here.put(Car("B 1", "new"))
    for klass in (Automobile, Car):
        assert there.get(klass, {"license_plate": "B 1"}) == Car("B 1", "new")


def test_what_was_read_before_others_wrote_is_not_kept() -> None:
    """A thread compares, and so forgets, while another one is about to store."""
    (here, there), memories, last = processes(MemoryCache())
    here.put(Thing(1, value="old"))
    there.get(Thing, {"id": 2})
    read = last.batch_get

    def overtaken(klass: Any, keys: Any) -> Any:
        last.batch_get = read  # type: ignore[method-assign]  # the hook has done its work
        found = read(klass, keys)
        here.put(Thing(1, value="new"))
        in_thread(lambda: there.get(Thing, {"id": 2}))
        return found

    last.batch_get = overtaken  # type: ignore[method-assign]  # a hook
    there.get(Thing, {"id": 1})
    assert memories[1].get(Thing, {"id": 1}) is None
    assert value_of(there) == "new"


def test_a_cache_of_stamps_that_is_down() -> None:
    """The layer is passed over; what was written meanwhile is told afterwards."""
    cache = Outage()
    (here, there), memories, _ = processes(cache)
    here.put(Thing(1, value="old"))
    there.get(Thing, {"id": 1})
    with StoreSuite().clocks() as clock:
        cache.is_down = True
        here.put(Thing(1, value="new"))
        for chain in (here, there):
            assert value_of(chain) == "new"
        cache.is_down = False
        clock.move(10)
        here.get(Thing, {"id": 2})
        for chain in (there, here):
            assert value_of(chain) == "new"
        here._layers[0]._overflowed = True
        there.get(Thing, {"id": 1})
        here.get(Thing, {"id": 2})
        known = memories[1]._known[Thing]
        there.get(Thing, {"id": 1})
        assert memories[1]._known[Thing] != known


def test_a_durable_write_that_fails_is_told_of() -> None:
    cache = MemoryCache()
    (here, there), memories, last = processes(cache)
    here.put(Thing(1))

    def fail(objs: Any) -> None:
        raise OSError("down")

    last.batch_put = fail  # type: ignore[method-assign]  # an outage
    there.get(Thing, {"id": 1})
    known = memories[1]._known[Thing]
    with pytest.raises(OSError, match="down"):
        here.put(Thing(1, value="new"))
    there.get(Thing, {"id": 1})
    now = memories[1]._known[Thing]
    assert now is not None
    assert now != known
    assert now.pending == 0  # nobody is at work


def test_a_store_by_itself_tells_of_its_writes() -> None:
    cache = MemoryCache()
    here, there = (ProcessMemoryStore(stamp=cache) for _ in range(2))
    for store in (here, there):
        store.put(Thing(1))
    assert here.get(Thing, {"id": 1}) is None
    assert there.get(Thing, {"id": 1}) == Thing(1)
    here.put(Thing(1))
    there.delete(Thing(1))
    assert here.get(Thing, {"id": 1}) is None


def test_threads_hear_of_each_other() -> None:
    chain = ChainedStore([ThreadLocalStore(stamp=MemoryCache()), ProcessMemoryStore()])
    chain.put(Thing(1, value=1))
    in_thread(lambda: chain.put(Thing(1, value=2)))
    assert value_of(chain) == 2


def test_requests_to_memcached(memcached_server: MemcachedServer) -> None:
    memcached_server.flush()
    with TcpProxy(memcached_server.port, each_chunk) as proxy:
        client = Client(("127.0.0.1", proxy.port))
        (here, there), _, _ = processes(client)
        for chain in (here, there):
            chain.put(Thing(1))
            chain.get(Thing, {"id": 1})
        keys = [{"id": number} for number in range(50)]

        def requests(action: Callable[[], object]) -> int:
            before = proxy.requests
            action()
            return proxy.requests - before

        assert requests(lambda: there.get(Thing, {"id": 1})) == 1
        assert requests(lambda: there.batch_get(Thing, keys)) == 1
        assert requests(lambda: there.batch_put([Thing(1), Thing(2, name="y")])) == 2
        assert requests(lambda: there.delete(Thing(1))) == 2
        assert here.get(Thing, {"id": 2}) == Thing(2, name="y")
        client.close()


def test_the_warning_names_both_remedies(
    caplog: pytest.LogCaptureFixture, memcached_server: MemcachedServer
) -> None:
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"]) as memcached:
        ChainedStore([ProcessMemoryStore(), memcached])
        ChainedStore([ThreadLocalStore(), ProcessMemoryStore()])
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == 2
        for message, what in zip(warned, ("process", "thread"), strict=True):
            assert "lifetime_cb=" in message
            assert "stamp=" in message
            assert f"of this {what} alone" in message
        caplog.clear()
        ChainedStore([ProcessMemoryStore(stamp=MemoryCache()), memcached])
        ChainedStore([ThreadLocalStore(stamp=MemoryCache()), ProcessMemoryStore()])
        ChainedStore([ThreadLocalStore(lifetime_cb=lambda obj: 5), ProcessMemoryStore()])
        ChainedStore([ThreadLocalStore(), ThreadLocalStore()])
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_what_is_no_cache_is_refused() -> None:
    with pytest.raises(TypeError, match="a stamp is kept in"):
        ProcessMemoryStore(stamp={})


class StampedWorld(World):
    """Each operation is in a process with a layer of its own, or all are in one process."""

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        cache = MemoryCache()
        self.memories = [ProcessMemoryStore(stamp=cache) for _ in range(count)]
        super().__init__([])
        self.shape = iter(shape)
        for memory in self.memories:
            ChainedStore([memory, self.durable]).get(Thing, {"id": 1})
            stepped(memory, REQUESTS)
            # A request to the cache is a step, too.
            stepped(memory._stamps, ("read", "begin", "end"))

    def perform(self, operation: Operation) -> Any:
        self.caches = [self.memories[next(self.shape)]]
        return super().perform(operation)

    def check(self, done: Sequence[Done]) -> None:
        for memory in self.memories:
            self.caches = [memory]
            super().check(done)


GET, PUT, OTHER_PUT, DELETE = (
    Operation("get"),
    Operation("put", 1),
    Operation("put", 2),
    Operation("delete"),
)


@pytest.mark.parametrize(
    ("operations", "shape"),
    [
        ((PUT, GET), (0, 1)),
        ((DELETE, GET), (0, 1)),
        ((PUT, OTHER_PUT), (0, 1)),
        ((PUT, DELETE), (0, 1)),
        ((PUT, GET), (0, 0)),
        ((PUT, OTHER_PUT), (0, 0)),
    ],
    ids=str,
)
def test_under_every_interleaving(operations: Sequence[Operation], shape: Sequence[int]) -> None:
    assert explore(lambda: StampedWorld(2, shape), operations) > 10
