"""Every interleaving of processes that put, get and delete through one cache, step by step.

A step is one request to the cache or to the durable Store. The code that runs is the library's,
each process in a greenlet that stops before each of its steps; `explore` runs it once for every
order of the steps. A process that is killed is never resumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import greenlet  # type: ignore[import-untyped]  # it has no types

from durabledict.stores import ChainedStore, ProcessMemoryStore
from durabledict.testing.things import Thing

__all__ = ["Operation", "World", "explore", "stepped"]

KEY = {"id": 1}

#: The requests to a cache layer.
REQUESTS = ("_peek", "_mark", "_claim", "_settle", "_spoil")
OPERATIONS = ("batch_put", "batch_get", "batch_delete")


def _step() -> None:
    """Stop here until the process is to go on; at once where nobody explores."""
    current = greenlet.getcurrent()
    if current.parent is not None:
        current.parent.switch()


def stepped(store: Any, names: Sequence[str]) -> Any:
    """Make a step of each of these methods of one Store."""
    for name in names:
        setattr(store, name, _after_a_step(getattr(store, name)))
    return store


def _after_a_step(method: Callable[..., Any]) -> Callable[..., Any]:
    def stepping(*arguments: Any, **named: Any) -> Any:
        _step()
        return method(*arguments, **named)

    return stepping


class Operation:
    """One process that does one thing.

    :param kind: ``"put"``, ``"delete"``, ``"get"`` or ``"get named"``; or ``"evict"``
    :param value: what is put

    """

    def __init__(self, kind: str, value: int = 0, name: str = "x") -> None:
        self.kind = kind
        self.value = value
        self.name = name

    def __repr__(self) -> str:
        return f"{self.kind} {self.value}"


class Done:
    """What an operation did: when it began and ended, and what it returned."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.began = self.ended = 10**6
        self.result: Any = None
        self.killed = False


class World:
    """A durable Store and cache layers in front of it, with one object in them or none.

    :param caches: the layers
    :param first: the value of the object that is there at the beginning
    :param warm: whether the caches hold it, too

    """

    def __init__(self, caches: Sequence[Any], first: int | None = 0, warm: bool = False) -> None:
        self.caches = list(caches)
        self.durable = ProcessMemoryStore()
        if first is not None:
            self.durable.put(Thing(1, value=first))
        if warm:
            self.chain().get(Thing, KEY)
        self.first = first
        for cache in self.caches:
            stepped(cache, REQUESTS)
        stepped(self.durable, OPERATIONS)

    def chain(self) -> ChainedStore:
        """Return the chain as one more process has it."""
        return ChainedStore([*self.caches, self.durable])

    def perform(self, operation: Operation) -> Any:
        """Do it, in the process that calls."""
        chain = self.chain()
        if operation.kind == "put":
            chain.put(Thing(1, name=operation.name, value=operation.value))
        elif operation.kind == "delete":
            chain.delete(Thing(1))
        elif operation.kind == "evict":
            _step()
            for cache in self.caches:
                cache._forget_all()
                cache._markers.clear()
        else:
            key = KEY if operation.kind == "get" else {"zone": 1, "name": operation.name}
            found = chain.get(Thing, key)
            return None if found is None else found.value
        return None

    def check(self, done: Sequence[Done]) -> None:
        """No cache holds anything but what the durable Store holds; and all that was read fits."""
        lasting = self.durable.get(Thing, KEY)
        for cache in self.caches:
            cached = cache.get(Thing, KEY)
            assert cached is None or cached == lasting, (cached, lasting)
        for name in "xy":
            key = {"name": name, "zone": 1}
            assert self.chain().get(Thing, key) == self.durable.get(Thing, key)
        last = Operation("get")
        final = Done(last)
        final.began, final.ended = 10**7, 10**7 + 1
        final.result = None if lasting is None else lasting.value
        assert self._fits([*(d for d in done if d.operation.kind != "evict"), final])

    def _fits(self, done: list[Done]) -> bool:
        """Whether there is an order in which all this could have happened one after the other."""
        killed = [each for each in done if each.killed and "get" not in each.operation.kind]
        others = [each for each in done if not each.killed]
        for count in range(len(killed) + 1):
            for some in itertools.combinations(killed, count):
                for order in itertools.permutations([*others, *some]):
                    if _is_in_time(order) and self._explains(order):
                        return True
        return False

    def _explains(self, order: Sequence[Done]) -> bool:
        value, name = self.first, "x"
        for each in order:
            operation = each.operation
            if operation.kind == "put":
                value, name = operation.value, operation.name
            elif operation.kind == "delete":
                value = None
            elif operation.kind == "get" and each.result != value:
                return False
            elif operation.kind == "get named":
                expected = value if name == operation.name else None
                if each.result != expected:
                    return False
        return True


def _is_in_time(order: Sequence[Done]) -> bool:
    """Whether nothing that had ended before another thing began comes after it."""
    return all(
        not later.ended < earlier.began
        for place, earlier in enumerate(order)
        for later in order[place + 1 :]
    )


def explore(
    make: Callable[[], World], operations: Sequence[Operation], *, kills: bool = False
) -> int:
    """Run operations in every order of their steps, and check each; return how many there are.

    :param make: a new world
    :param kills: also kill one of them before each of its steps

    """
    count = 0
    for world, done in _runs(make, operations, kills):
        try:
            world.check(done)
        except AssertionError as error:
            raise AssertionError(f"{list(operations)}: {error}") from error
        count += 1
    return count


def _runs(
    make: Callable[[], World], operations: Sequence[Operation], kills: bool
) -> Iterator[tuple[World, list[Done]]]:
    open_choices: list[list[tuple[int, bool]]] = [[]]
    while open_choices:
        prefix = open_choices.pop()
        world = make()
        done = [Done(operation) for operation in operations]
        running = {number: greenlet.greenlet(world.perform) for number in range(len(operations))}
        taken: list[tuple[int, bool]] = []
        may_kill = kills
        while running:
            options = [(number, False) for number in running]
            if may_kill:
                options += [(number, True) for number in running if done[number].began < 10**6]
            if len(taken) < len(prefix):
                choice = prefix[len(taken)]
            else:
                choice = options[0]
                open_choices += [[*taken, other] for other in options[1:]]
            taken.append(choice)
            number, is_killed = choice
            if is_killed:
                done[number].killed, may_kill = True, False
                del running[number]
                continue
            if done[number].began == 10**6:
                done[number].began = len(taken)
                result = running[number].switch(operations[number])
            else:
                result = running[number].switch()
            if running[number].dead:
                done[number].ended, done[number].result = len(taken), result
                del running[number]
        yield world, done
