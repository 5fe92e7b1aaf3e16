"""Every interleaving of processes that write and read under one stamp, step by step.

A step is one request to the cache or to the store. The code that runs is the library's, each
process in a thread that stops before each of its steps; `explore` runs it once for every order of
the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from durabledict.stamps import CacheStamp, MemoryCache, Stamp
from durabledict.testing.tools import PATIENCE, Clock

__all__ = ["Process", "RedisLikeCache", "World", "explore"]


class Killed(BaseException):
    """The process is no more."""


class SteppedCache(MemoryCache):
    """A cache whose every request is a step."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self._step = step

    def get(self, key: str) -> int | None:
        self._step()
        return super().get(key)

    def add(self, key: str, number: int) -> bool:
        self._step()
        return super().add(key, number)

    def increase(self, key: str, by: int) -> int | None:
        self._step()
        return super().increase(key, by)

    def put(self, key: str, number: int) -> None:
        self._step()
        super().put(key, number)

    def evict(self) -> None:
        """Forget the stamp; as all else that is done to it, no step of a process."""
        self._numbers.pop("k", None)

    @property
    def number(self) -> int | None:
        return MemoryCache.get(self, "k")

    def replace(self, number: int) -> None:
        """Put a number, as somebody else would."""
        MemoryCache.put(self, "k", number)


class RedisLikeCache(SteppedCache):
    """One that makes a key which was not there, as INCRBY does."""

    def increase(self, key: str, by: int) -> int | None:
        self._step()
        MemoryCache.add(self, key, 0)
        return MemoryCache.increase(self, key, by)


class Process:
    """One process with a copy of the store: what the library's dicts do, without the dict.

    The store is a list of what was written, in order: of two writes of one key the later counts.

    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.stamp = CacheStamp(world.cache, "k", verify=world.verify)
        self.copy: tuple[str, ...] = ()
        self.synced: Stamp | None = None
        self.generation = 0
        self.has_threads = False

    def read(self) -> None:
        """Read strictly: every write that was acknowledged before has to be there."""
        acknowledged = set(self.world.acknowledged)
        while True:
            generation = self.generation
            found = self.stamp.read()
            if found is not None and found == self.synced:
                break
            self.world.step()
            loaded = tuple(self.world.store)
            if self.has_threads:
                self.world.step()
            if self.generation == generation:  # rule 0.3
                self._apply(loaded, found)
                break
        missing = acknowledged - set(self.copy)
        assert not missing, f"{self.name} misses {missing}"

    def _apply(self, copy: tuple[str, ...], synced: Stamp | None) -> None:
        self.generation += 1
        self.copy, self.synced = copy, synced

    def write(self, value: str, looks: bool = False) -> None:
        """Write and acknowledge; `looks`: as a transaction that reads between write and commit."""
        opening = self.stamp.begin()
        self.world.step()
        self.world.store.append(value)
        if looks:
            self.stamp.read(own=1)
        ended = self.stamp.end(opening)
        if ended.before is not None and ended.before == self.synced:
            before = tuple(one for one in self.copy if one != value)
            self._apply((*before, value), ended.after)
        else:
            self._apply(self.copy, None)
        self.world.acknowledged.add(value)


class World:
    """One cache, one store, and the processes that use them.

    :param order: which of those that can go on does, at each step; the first where it has ended

    """

    def __init__(
        self,
        order: list[int],
        *,
        kills: int = 0,
        kind: type[SteppedCache] = SteppedCache,
        verify: float | None = None,
    ) -> None:
        self.order = order
        self.choices: list[int] = []  # how many there were at each step
        self.kills = kills
        self.verify = verify
        self.store: list[str] = []
        self.acknowledged: set[str] = set()
        self.killed: list[str] = []
        self.cache = kind(self.step)
        self._threads: dict[int, tuple[str, threading.Lock]] = {}
        self._arrived = threading.Semaphore(0)
        self._dying: set[str] = set()
        self._errors: list[BaseException] = []
        self._waiting: dict[str, threading.Lock] = {}

    def process(self, name: str) -> Process:
        return Process(self, name)

    def step(self) -> None:
        """Stop here until it is this process's turn; outside of `run` nobody stops."""
        mine = self._threads.get(threading.get_ident())
        if mine is None:
            return
        name, turn = mine
        self._waiting[name] = turn
        self._arrived.release()
        assert turn.acquire(timeout=PATIENCE)
        if name in self._dying:
            raise Killed

    def run(self, **actions: Callable[[], object]) -> None:
        """Run what processes do, to the end of all. Those in capitals are not to be killed."""
        threads = []
        for name, action in actions.items():
            thread = threading.Thread(target=self._live, args=(name, action), daemon=True)
            thread.start()
            threads.append(thread)
            self._await()
        while self._waiting:
            names = sorted(self._waiting)
            mortal = [name for name in names if name.islower()] if self.kills else []
            chosen = self._choose(len(names) + len(mortal))
            if chosen < len(names):
                name = names[chosen]
            else:
                name = mortal[chosen - len(names)]
                self.kills -= 1
                self._dying.add(name)
                self.killed.append(name)
            self._waiting.pop(name).release()
            self._await()
        for thread in threads:
            thread.join(PATIENCE)
        if self._errors:
            raise self._errors[0]

    def _await(self) -> None:
        assert self._arrived.acquire(timeout=PATIENCE)

    def _choose(self, count: int) -> int:
        position = len(self.choices)
        self.choices.append(count)
        return self.order[position] if position < len(self.order) else 0

    def _live(self, name: str, action: Callable[[], object]) -> None:
        turn = threading.Lock()
        turn.acquire()
        self._threads[threading.get_ident()] = (name, turn)
        try:
            action()
        except Killed:
            pass
        except BaseException as error:
            self._errors.append(error)
        finally:
            del self._threads[threading.get_ident()]
            self._arrived.release()


def explore(**options: Any) -> Iterator[World]:
    """Give a world for each order in which the steps can be done; to be run by the caller."""
    order: list[int] = []
    while True:
        world = World(order, **options)
        yield world
        order = [*order, *[0] * (len(world.choices) - len(order))]
        while order and order[-1] + 1 >= world.choices[len(order) - 1]:
            order.pop()
        if not order:
            return
        order[-1] += 1


def settle(clock: Clock, processes: list[Process], seconds: float) -> None:
    """Let time pass, and have every process read."""
    clock.move(seconds)
    for process in processes:
        process.read()
