"""`get_or_compute`: of all who find nothing, one creates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .. import creating, renewals
from ..errors import MISSING
from .tools import PATIENCE, SuiteBase, in_thread, needs, raises, until

__all__ = ["ComputingTests", "lease_with", "lose_all", "together", "waiting"]

THREADS = 200


def together(number: int, function: Callable[[], Any]) -> list[Any]:
    """Run a function in many threads at once; return what each returned, or raised."""
    outcomes: list[Any] = []
    gate = threading.Barrier(number)

    def run() -> None:
        gate.wait(PATIENCE)
        try:
            outcomes.append(function())
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the thread hangs: it waits for what nobody creates"
    return outcomes


def waiting() -> int:
    """Return how many threads of this process wait for what another one creates."""
    flights: list[Any] = list(creating._flights.values())
    return sum(len(flight.landed._cond._waiters) for flight in flights)


def lose_all() -> None:
    """Make this process lose every lock that it holds, as if it had stalled for too long."""
    for held in list(renewals._renewer.held.values()):
        token = held.mutex.token
        assert token is not None
        assert held.mutex.lease.release(token)
        held.mutex._lose("the test says so")


def lease_with(
    make: Callable[..., Any], method: str, before: Callable[[], object]
) -> Callable[..., Any]:
    """Return a `_lease` that makes the leases of `make`, and calls `before` before a method."""

    def lease(*arguments: Any) -> Any:
        made = make(*arguments)
        original = getattr(made, method)

        def hooked(*given: Any) -> Any:
            before()
            return original(*given)

        setattr(made, method, hooked)
        return made

    return lease


class ComputingTests(SuiteBase):
    """Each test begins with a key that is missing."""

    def test_what_is_there_is_not_created(self) -> None:
        """None, and what is falsy, is there as well."""
        d = self.open()
        for value in (None, 0, "", [1]):
            d["k"] = value
            assert d.get_or_compute("k", lambda: 1 / 0) == value

    def test_what_is_missing_is_created_and_stored(self) -> None:
        """For every way of reading, and for other clients."""
        for mode in (self.strictest, 3600.0, False):
            d = self.fresh(autosync=mode)
            assert d.get_or_compute("k", lambda: [1]) == [1]
            assert d == {"k": [1]}
            assert d.get_or_compute("k", lambda: [2]) == [1]
            assert self.other(d) == {"k": [1]}

    def test_missing_is_returned_and_not_stored(self) -> None:
        """But None is a value as any other."""
        d = self.open()
        assert d.get_or_compute("k", lambda: MISSING) is MISSING
        assert "k" not in d
        assert d.get_or_compute("k", lambda: None) is None
        assert self.other(d) == {"k": None}

    def test_a_manual_dict_finds_what_others_have_stored(self) -> None:
        """The key is missing in its copy, and not in the store."""
        d = self.open(autosync=False)
        self.reader()["k"] = "theirs"
        assert d.get_or_compute("k", lambda: "mine") == "theirs"
        self.check(d, {"k": "theirs"})

    def test_one_of_many_threads_creates(self) -> None:
        """And all get what it has created."""
        d, calls = self.open(), []

        def creator() -> str:
            calls.append(1)
            until(lambda: waiting() == THREADS - 1, "all others wait")
            return "created"

        assert together(THREADS, lambda: d.get_or_compute("k", creator)) == ["created"] * THREADS
        assert len(calls) == 1
        self.check(d, {"k": "created"})

    def test_other_keys_are_created_meanwhile(self) -> None:
        """By the creator itself, too."""
        d = self.open()

        def inner() -> int:
            made: int = d.get_or_compute("b", lambda: 1)
            return made + int(in_thread(lambda: d.get_or_compute("c", lambda: 1)))

        assert d.get_or_compute("a", inner) == 2
        self.check(d, {"a": 2, "b": 1, "c": 1})

    @needs("shared", "compare_and_set")
    def test_one_of_two_clients_creates(self) -> None:
        """By the lock of the store: each client asks for it by itself."""
        one, two = self.open(), self.open(autosync=False)
        begun, calls = threading.Event(), []

        def creator() -> str:
            calls.append(1)
            begun.set()
            until(asked.is_set, "the other client finds the lock taken")
            return "created"

        asked = threading.Event()
        found: list[Any] = []

        def other() -> None:
            begun.wait(PATIENCE)
            found.append(two.get_or_compute("k", creator))

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        with self.replaced(two, "_lease", lease_with(two._lease, "wait", asked.set)):
            assert one.get_or_compute("k", creator) == "created"
            thread.join(PATIENCE)
        assert found == ["created"]
        assert len(calls) == 1
        self.check(two, {"k": "created"})

    def test_who_gets_the_lock_looks_once_more(self) -> None:
        """Another one may have stored it since the first look, and be done."""
        d, calls = self.open(), []
        other = self.reader()

        def store_theirs() -> None:
            in_thread(lambda: other.update(k="theirs"))

        with self.replaced(d, "_lease", lease_with(d._lease, "acquire", store_theirs)):
            assert d.get_or_compute("k", lambda: calls.append(1)) == "theirs"
        assert not calls
        self.check(d, {"k": "theirs"})

    def test_a_creator_that_raises_raises_in_its_own_caller(self) -> None:
        """One of those who wait creates, and the lock is free."""
        d, calls = self.open(), []

        def creator() -> str:
            calls.append(1)
            if len(calls) == 1:
                until(lambda: waiting() == 3, "all others wait")
                raise ZeroDivisionError
            return "created"

        outcomes = together(4, lambda: d.get_or_compute("k", creator))
        assert len(calls) == 2
        assert outcomes.count("created") == 3
        assert sum(isinstance(each, ZeroDivisionError) for each in outcomes) == 1
        self.check(d, {"k": "created"})

    def test_a_creator_that_asks_for_its_own_key_is_told_so(self) -> None:
        """It would wait for itself."""
        d = self.open()
        with raises(RuntimeError, "'k'", "this very thread"):
            d.get_or_compute("k", lambda: d.get_or_compute("k", lambda: 1))
        assert d.get_or_compute("k", lambda: "created") == "created"

    def test_who_does_not_want_to_wait_does_not(self) -> None:
        """A thread of this process, and where others have the lock."""
        d = self.open()

        def creator() -> str:
            for timeout in (0, 0.01):
                with raises(TimeoutError, "'k'"):
                    in_thread(lambda: d.get_or_compute("k", lambda: 1, timeout=timeout))
            return "created"

        assert d.get_or_compute("k", creator, timeout=0) == "created"
        for wrong in (-1, "1", True, float("nan")):
            with raises(TypeError, "timeout="):
                d.get_or_compute("l", lambda: 1, timeout=wrong)
            with raises(TypeError, "lease="):
                d.get_or_compute("l", lambda: 1, lease=wrong)

    @needs("compare_and_set")
    def test_what_was_written_meanwhile_stays(self) -> None:
        """Its caller gets what it has created, and those who wait what is there."""
        d = self.open()
        other = self.reader()

        def creator() -> str:
            until(lambda: waiting() == 1, "the other one waits")
            other["k"] = "theirs"
            return "mine"

        assert sorted(together(2, lambda: d.get_or_compute("k", creator))) == ["mine", "theirs"]
        self.check(d, {"k": "theirs"})

    def test_a_creator_that_has_lost_the_lock_stores_nothing(self) -> None:
        """Another one has it by then, or will."""
        d, calls = self.open(), []

        def creator() -> str:
            calls.append(1)
            if len(calls) == 1:
                lose_all()
            return f"created {len(calls)}"

        with self.logged() as records:
            assert d.get_or_compute("k", creator) == "created 1"
        assert [record.name for record in records] == ["durabledict.locks"]
        assert "k" not in self.other(d)
        assert d.get_or_compute("k", creator) == "created 2"

    def test_no_lock_of_the_dict_is_held_while_a_creator_runs(self) -> None:
        """Other threads read, write and sync."""
        d = self.open()

        def creator() -> str:
            def use() -> None:
                d["other"] = 1
                assert d["other"] == 1
                d.sync(force=True)
                d.pop("other")

            in_thread(use)
            return "created"

        assert d.get_or_compute("k", creator) == "created"
        self.check(d, {"k": "created"})
