"""The suite, fourth part: random operations on two clients, side by side with a plain dict."""

from __future__ import annotations

from typing import Any

from ..errors import MISSING
from .tools import SuiteBase

__all__ = ["SequenceTests", "run_machine"]


def run_machine(machine: Any, sequences: int, steps: int) -> None:
    """Run a state machine of hypothesis's, each time with the same sequences."""
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    run: Any = run_state_machine_as_test  # which older releases have no types for
    run(
        machine,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class SequenceTests(SuiteBase):
    """Hypothesis drives two clients of one store and a plain dict; all three stay equal."""

    #: How many sequences of how many steps are tried in each autosync mode.
    sequences: tuple[int, int] = (15, 40)

    def run_sequences(self, autosync: bool | float) -> None:
        """Try random sequences; every step is checked against the plain dict."""
        run_machine(_machine(self, autosync), *self.sequences)

    def test_random_operations_strict(self) -> None:
        self.run_sequences(True)

    def test_random_operations_bounded(self) -> None:
        self.run_sequences(3600.0)

    def test_random_operations_manual(self) -> None:
        self.run_sequences(False)


def _machine(suite: SequenceTests, autosync: bool | float) -> Any:
    from hypothesis import strategies
    from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

    keys = strategies.one_of(
        strategies.sampled_from(
            ["a", "b", "c", "", "~int:1", 1, True, 2.0, 2, None, b"a", (1, "a")]
        ),
        strategies.text(max_size=3),
    )
    values = strategies.one_of(
        strategies.none(),
        strategies.booleans(),
        strategies.integers(),
        strategies.text(max_size=5),
        strategies.lists(strategies.integers(), max_size=3),
    )
    entries = strategies.dictionaries(keys, values, max_size=4)
    atomic = "compare_and_set" in suite.capabilities

    class Machine(RuleBasedStateMachine):
        """`which` picks the client that acts; the other one must agree afterwards."""

        def __init__(self) -> None:
            super().__init__()
            self.model: dict[Any, Any] = {}
            self.clients = [suite.fresh(), suite.reader(suite.latest_place)]
            for client in self.clients:
                client.autosync = autosync

        def client(self, which: bool) -> Any:
            client = self.clients[which]
            if autosync is not True or "strict" not in suite.capabilities:
                client.sync()
            return client

        @rule(which=strategies.booleans(), key=keys, value=values)
        def set(self, which: bool, key: Any, value: Any) -> None:
            self.client(which)[key] = value
            self.model[key] = value

        @rule(which=strategies.booleans(), key=keys)
        def delete(self, which: bool, key: Any) -> None:
            try:
                del self.client(which)[key]
            except KeyError:
                assert key not in self.model
            else:
                del self.model[key]

        @rule(which=strategies.booleans(), key=keys, default=values)
        def pop(self, which: bool, key: Any, default: Any) -> None:
            assert self.client(which).pop(key, default) == self.model.pop(key, default)

        @rule(which=strategies.booleans(), key=keys, default=values)
        def setdefault(self, which: bool, key: Any, default: Any) -> None:
            expected = self.model.setdefault(key, default)
            assert self.client(which).setdefault(key, default) == expected

        @rule(which=strategies.booleans(), given=entries)
        def update(self, which: bool, given: dict[Any, Any]) -> None:
            self.client(which).update(given)
            self.model.update(given)

        @rule(which=strategies.booleans(), given=entries)
        def replace_all(self, which: bool, given: dict[Any, Any]) -> None:
            self.client(which).replace_all(given)
            self.model = dict(given)

        @rule(which=strategies.booleans())
        def clear(self, which: bool) -> None:
            self.client(which).clear()
            self.model.clear()

        @rule(which=strategies.booleans())
        def popitem(self, which: bool) -> None:
            try:
                key, value = self.client(which).popitem()
            except KeyError:
                assert not self.model
            else:
                assert self.model.pop(key) == value

        @precondition(lambda self: atomic)
        @rule(which=strategies.booleans(), key=keys, value=values)
        def compute(self, which: bool, key: Any, value: Any) -> None:
            old = self.model.get(key, MISSING)
            got = self.client(which).compute(key, lambda given: (given, value))
            assert got == (old, value)
            self.model[key] = (old, value) if old is not MISSING else (MISSING, value)

        @precondition(lambda self: atomic)
        @rule(which=strategies.booleans(), key=keys, old=values, new=values)
        def compare_and_set(self, which: bool, key: Any, old: Any, new: Any) -> None:
            done = self.client(which).compare_and_set(key, old, new)
            assert done == (key in self.model and self.model[key] == old)
            if done:
                self.model[key] = new

        @rule(which=strategies.booleans(), force=strategies.booleans())
        def sync(self, which: bool, force: bool) -> None:
            self.clients[which].sync(force=force)

        @rule(which=strategies.booleans(), key=keys)
        def read(self, which: bool, key: Any) -> None:
            client = self.client(which)
            assert client.get(key, MISSING) == self.model.get(key, MISSING)
            assert (key in client) == (key in self.model)

        @invariant()
        def all_are_equal(self) -> None:
            for which in (False, True):
                client = self.client(which)
                assert client == self.model
                assert len(client) == len(self.model)
                assert set(client) == set(self.model)
                suite.invariant(client)
            assert suite.other(self.clients[0]) == self.model

    return Machine
