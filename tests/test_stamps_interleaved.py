"""Stamps under every order of their steps, and in a backend of four methods (rule 3.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from durabledict import Commit, DurableDict
from durabledict.keys import decode_key, encode_key
from durabledict.stamps import GOOD, LEAST, CacheStamp, MemoryCache, Stamp
from durabledict.testing.tools import Clock, in_thread

from .stampinterleavings import RedisLikeCache, SteppedCache, World, explore, settle

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache()


Fault = Callable[[World], None]


def evicted(world: World) -> None:
    world.cache.evict()


def made_by_incrby(world: World) -> None:
    world.cache.replace(1)


def replaced(world: World) -> None:
    world.cache.replace(LEAST + (7 << 20))


def disturb(world: World, fault: Fault) -> None:
    world.step()
    fault(world)


def interleave(
    clock: Clock,
    writers: int,
    readers: int,
    fault: Fault | None = None,
    *,
    threads: bool = False,
    **options: Any,
) -> int:
    """Check every order; return how many there are.

    A process that is killed may have written what no stamp tells of. Its readers have a second if
    the stamp is undisturbed, else until `verify`.

    :param threads: a second thread of the first process reads

    """
    runs = 0
    for world in explore(**options):
        runs += 1
        processes = [world.process(name) for name in "abc"[:writers] + "rst"[:readers]]
        actions: dict[str, Callable[[], object]] = {}
        if threads:
            processes[0].has_threads = True
            actions["THREAD"] = processes[0].read
        for process in processes:
            process.read()
            if process.name in "abc":
                looks = threads and process is processes[0]
                actions[process.name] = partial(process.write, process.name, looks)
            else:
                actions[process.name.upper()] = process.read
        if fault is not None:
            actions["FAULT"] = partial(disturb, world, fault)
        world.run(**actions)
        alive = [process for process in processes if process.name not in world.killed]
        told = fault is None or not world.killed
        for seconds in (0.0, GOOD, 60.0):
            settle(clock, alive, seconds)
            if seconds == 60.0 or (told and seconds == GOOD):
                for process in alive:
                    assert process.copy == tuple(world.store), (world.order, world.killed)
    return runs


class TestInterleavings:
    """Every order of the steps, each a request to the cache or to the store."""

    @pytest.fixture(autouse=True)
    def quiet(self) -> Iterator[None]:
        logging.disable()
        yield
        logging.disable(logging.NOTSET)

    def test_two_writers_and_a_reader(self, clock: Clock) -> None:
        assert interleave(clock, 2, 1) > 150

    def test_a_writer_and_two_readers(self, clock: Clock) -> None:
        assert interleave(clock, 1, 2) > 20

    def test_one_is_killed_at_each_step(self, clock: Clock) -> None:
        assert interleave(clock, 2, 1, kills=1) > 600

    def test_both_are_killed(self, clock: Clock) -> None:
        assert interleave(clock, 2, 1, kills=2, verify=60.0) > 700

    @pytest.mark.parametrize("kind", [SteppedCache, RedisLikeCache])
    @pytest.mark.parametrize("fault", [evicted, made_by_incrby, replaced])
    def test_the_stamp_is_lost_at_each_step(
        self, clock: Clock, fault: Fault, kind: type[SteppedCache]
    ) -> None:
        assert interleave(clock, 1, 1, fault, kind=kind) > 30

    @pytest.mark.parametrize("kind", [SteppedCache, RedisLikeCache])
    @pytest.mark.parametrize("fault", [evicted, replaced])
    def test_the_stamp_is_lost_and_a_writer_killed(
        self, clock: Clock, fault: Fault, kind: type[SteppedCache]
    ) -> None:
        assert interleave(clock, 1, 1, fault, kind=kind, kills=1, verify=60.0) > 100

    def test_two_writers_lose_the_stamp(self, clock: Clock) -> None:
        assert interleave(clock, 2, 0, replaced) > 200

    def test_a_thread_reads_while_another_writes(self, clock: Clock) -> None:
        assert interleave(clock, 2, 0, threads=True) > 100

    @pytest.mark.long
    def test_three_writers(self, clock: Clock) -> None:
        assert interleave(clock, 3, 0) == 1680

    @pytest.mark.long
    @pytest.mark.parametrize("kind", [SteppedCache, RedisLikeCache])
    @pytest.mark.parametrize("fault", [evicted, replaced])
    def test_two_writers_and_a_reader_lose_the_stamp(
        self, clock: Clock, fault: Fault, kind: type[SteppedCache]
    ) -> None:
        assert interleave(clock, 2, 1, fault, kind=kind) > 3000


class StampedFolder(DurableDict[Any, Any]):
    """The example of docs/own_backend.rst: files, and their stamp in a cache."""

    def __init__(self, folder: Path, cache: Any, **options: Any) -> None:
        self.folder = folder
        self.stamp = CacheStamp(cache, f"folder:{folder}")
        super().__init__(**options)

    def persist(self, key: Any, value: Any) -> Commit[Any, Any]:
        payload, stored = self._prepare(key, value)
        with self.stamp.writing() as write:
            (self.folder / quote(encode_key(key), safe="")).write_bytes(payload)
        return Commit(write.before, write.after, {key: stored})

    def depersist(self, key: Any) -> None:
        with self.stamp.writing():
            (self.folder / quote(encode_key(key), safe="")).unlink(missing_ok=True)

    def durables(self) -> dict[Any, Any]:
        keys = {path: decode_key(unquote(path.name)) for path in self.folder.iterdir()}
        return {key: self._decode(path.read_bytes(), key) for path, key in keys.items()}

    def last_updated(self) -> Stamp | None:
        return self.stamp.read()


class TestOwnBackend:
    @pytest.fixture
    def opened(self, tmp_path: Path, cache: MemoryCache) -> Callable[..., StampedFolder]:
        return lambda **options: StampedFolder(tmp_path, cache, **options)

    def test_two_share_a_folder(self, opened: Callable[..., StampedFolder]) -> None:
        one, two = opened(), opened()
        one["a"] = 1
        assert two["a"] == 1
        two.replace_all({"b": [2], ("c", 1): None})
        assert one == {"b": [2], ("c", 1): None}
        assert one.pop("b") == [2]
        assert "b" not in two
        assert one.setdefault(("c", 1), 5) is None
        del two[("c", 1)]
        assert not one
        assert in_thread(lambda: two.copy()) == {}

    def test_it_loads_nothing_after_its_own_writes(
        self, opened: Callable[..., StampedFolder]
    ) -> None:
        one, two = opened(), opened()
        assert one == two == {}
        reloads = one.stats.reloads
        for number in range(5):
            one["n"] = number
            assert one["n"] == number
        assert one.stats.reloads == reloads
        two["m"] = 1
        one["n"] = 5
        assert one == two == {"n": 5, "m": 1}

    def test_a_manual_one_waits_for_sync(self, opened: Callable[..., StampedFolder]) -> None:
        one, manual = opened(), opened(autosync=False)
        one["a"] = 1
        assert "a" not in manual
        assert manual.sync() is True
        assert manual["a"] == 1
        assert manual.sync() is False

    def test_a_lost_stamp_costs_a_reload(
        self, opened: Callable[..., StampedFolder], cache: MemoryCache
    ) -> None:
        one, two = opened(), opened()
        one["a"] = 1
        assert two["a"] == 1
        cache._numbers.clear()
        one["a"] = 2
        assert two["a"] == 2

    def test_who_is_killed_before_it_can_say_so_is_seen_within_a_second(
        self, opened: Callable[..., StampedFolder], clock: Clock
    ) -> None:
        one = opened()
        one["a"] = 1
        killed = opened()
        killed.stamp.begin()
        (killed.folder / "b").write_bytes((killed.folder / "a").read_bytes())
        clock.move(1.0)
        assert one["b"] == 1
