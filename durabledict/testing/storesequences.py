"""Random operations on a Store, side by side with plain dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .things import Thing, fields_of

if TYPE_CHECKING:
    from .stores import StoreSuite

__all__ = ["Model", "run_sequences"]


class Model:
    """What a Store is to do.

    Two objects may have the same second key for a while: then the last one put is found under it.
    Whether the other one is, when that is gone, is left open: a cache may know it still.

    """

    def __init__(self) -> None:
        self.things: dict[int, Thing] = {}
        self.owners: dict[str, int] = {}
        self.contested: set[str] = set()

    def put(self, thing: Thing) -> None:
        """Store a copy."""
        self._leave(thing.id)
        if self.owners.get(thing.name) is not None:
            self.contested.add(thing.name)
        self.things[thing.id] = Thing(**fields_of(thing))
        self.owners[thing.name] = thing.id

    def delete(self, number: int) -> None:
        """Remove one."""
        self._leave(number)
        self.things.pop(number, None)

    def _leave(self, number: int) -> None:
        old = self.things.get(number)
        if old is not None and self.owners.get(old.name) == number:
            del self.owners[old.name]

    def check_named(self, name: str, found: Thing | None) -> None:
        """Compare what was found under a second key."""
        owner = self.owners.get(name)
        if owner is not None:
            assert found == self.things[owner]
        elif name not in self.contested:
            assert found is None
        else:
            assert found is None or (found.name == name and found == self.things[found.id])


def run_sequences(suite: StoreSuite) -> None:
    """Try random sequences; every step is checked against the model."""
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    examples, steps = suite.sequences
    run: Any = run_state_machine_as_test  # which older releases have no types for
    run(
        _machine(suite),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _machine(suite: StoreSuite) -> Any:
    from hypothesis import strategies
    from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

    numbers = strategies.integers(0, 4)
    letters, values = strategies.sampled_from("abc"), strategies.integers(0, 99)
    if suite.shares_keys:
        names = letters
        things = strategies.builds(Thing, numbers, strategies.just(1), names, values)
    else:
        names = strategies.builds("{}{}".format, numbers, letters)
        things = strategies.builds(
            lambda number, letter, value: Thing(number, 1, f"{number}{letter}", value),
            *(numbers, letters, values),
        )

    class Machine(RuleBasedStateMachine):
        """`which` picks the Store that acts; the other one must agree afterwards."""

        def __init__(self) -> None:
            super().__init__()
            self.model = Model()
            first = suite.open()
            self.stores = [first, suite.reader(first)]
            # What the sequence before has left there.
            first.batch_delete([Thing(number) for number in range(5)])

        @rule(which=strategies.booleans(), thing=things)
        def put(self, which: bool, thing: Thing) -> None:
            self.stores[which].put(thing)
            self.model.put(thing)

        @rule(which=strategies.booleans(), given=strategies.lists(things, max_size=4))
        def batch_put(self, which: bool, given: list[Thing]) -> None:
            # One of each number: of two in a batch the suite has a test of its own.
            distinct = list({thing.id: thing for thing in given}.values())
            self.stores[which].batch_put(distinct)
            # A batch is stored before what it replaces is cleared away.
            for thing in distinct:
                self.model._leave(thing.id)
            for thing in distinct:
                self.model.put(thing)

        @rule(which=strategies.booleans(), thing=things)
        def delete(self, which: bool, thing: Thing) -> None:
            self.stores[which].delete(thing)
            self.model.delete(thing.id)

        @rule(which=strategies.booleans(), given=strategies.lists(numbers, max_size=4))
        def batch_delete(self, which: bool, given: list[int]) -> None:
            self.stores[which].batch_delete([Thing(number) for number in given])
            for number in given:
                self.model.delete(number)

        @rule(which=strategies.booleans(), number=numbers)
        def delete_key(self, which: bool, number: int) -> None:
            self.stores[which].delete_key(Thing, {"id": number})
            self.model.delete(number)

        @rule(which=strategies.booleans(), name=names)
        def get_named(self, which: bool, name: str) -> None:
            found = self.stores[which].get(Thing, {"zone": 1, "name": name})
            self.model.check_named(name, found)

        @rule(which=strategies.booleans(), given=strategies.lists(names, max_size=4))
        def batch_get_named(self, which: bool, given: list[str]) -> None:
            keys = [{"name": name, "zone": 1} for name in given]
            for name, found in zip(given, self.stores[which].batch_get(Thing, keys), strict=True):
                self.model.check_named(name, found)

        @invariant()
        def both_hold_what_the_model_holds(self) -> None:
            keys = [{"id": number} for number in range(5)]
            expected = [self.model.things.get(number) for number in range(5)]
            for store in self.stores:
                assert store.batch_get(Thing, keys) == expected
                assert [store.get(Thing, key) for key in keys[:2]] == expected[:2]

    return Machine
