"""`get_or_create` of Stores: of all who find nothing, one creates."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..locks import Mutex
from .computing import lease_with, lose_all, together, waiting
from .things import Person, Thing
from .tools import PATIENCE, in_thread, needs, raises, until

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .tools import Clock

__all__ = ["CreatingTests"]

THREADS = 200
KEY = {"id": 1}
NAME = {"zone": 1, "name": "x"}


class CreatingTests:
    """Each test begins with an object that is missing; a part of `StoreSuite`."""

    if TYPE_CHECKING:
        place: Path

        def open(self, **options: Any) -> Any: ...
        def reader(self, store: Any, **options: Any) -> Any: ...
        def clocks(self) -> AbstractContextManager[Clock]: ...

    def test_what_is_there_is_not_created(self) -> None:
        """By any key."""
        store = self.open()
        store.put(Thing(1, value="there"))
        for key in (KEY, NAME, {"name": "x", "zone": 1}):
            assert store.get_or_create(Thing, key, lambda: 1 / 0).value == "there"

    def test_what_is_missing_is_created_and_put(self) -> None:
        """By any key; it is found by all of them."""
        for number, key in enumerate((KEY, {"zone": 1, "name": 2})):
            store = self.open()
            created = Thing(number + 1, name=number + 1, value="created")
            assert store.get_or_create(Thing, key, lambda: created) == created
            for other in (KEY, {"zone": 1, "name": 1}) if not number else (key, {"id": 2}):
                assert self.reader(store).get(Thing, other) == created
            assert store.get_or_create(Thing, key, lambda: 1 / 0) == created

    def test_a_deleted_object_is_created_again(self) -> None:
        """The lock and what else there was is gone."""
        store = self.open()
        for turn in range(3):
            made = store.get_or_create(Thing, KEY, lambda: Thing(1, value=turn))
            assert made.value == turn
            store.delete(Thing(1))
            assert store.get(Thing, KEY) is None

    def test_none_is_returned_and_not_stored(self) -> None:
        """The creator is asked again the next time."""
        store = self.open()
        assert store.get_or_create(Thing, KEY, lambda: None) is None
        assert store.get(Thing, KEY) is None
        assert store.get_or_create(Thing, KEY, lambda: Thing(1)) == Thing(1)

    def test_another_object_than_was_asked_for_is_refused(self) -> None:
        """It would not be found, and created again and again."""
        store = self.open()
        for wrong in (Thing(2), Thing("1"), "text", Person):
            with raises(ValueError, "{'id': 1}", "is not that"):
                store.get_or_create(Thing, KEY, lambda: wrong)
        assert store.batch_get(Thing, [KEY, {"id": 2}]) == [None, None]
        assert store.get_or_create(Thing, KEY, lambda: Thing(1)) == Thing(1)

    @needs("threads")
    def test_one_of_many_threads_creates(self) -> None:
        """And all get what it has created."""
        for key in (KEY, NAME):
            store, calls = self.open(), []
            store.delete(Thing(1))

            def creator() -> Thing:
                calls.append(1)
                until(lambda: waiting() == THREADS - 1, "all others wait")
                return Thing(1, value="created")

            found = together(THREADS, lambda: store.get_or_create(Thing, key, creator))
            assert found == [Thing(1, value="created")] * THREADS
            assert len(calls) == 1

    @needs("shared")
    def test_one_of_two_clients_creates(self) -> None:
        """Where the Store has a lock that others see."""
        one, two = self.open(), self.open()
        if one._lease("a").identity[:1] == (id(one),):
            return
        begun, asked, calls = threading.Event(), threading.Event(), []

        def creator() -> Thing:
            calls.append(1)
            begun.set()
            until(asked.is_set, "the other client finds the lock taken")
            return Thing(1, value="created")

        two._lease = lease_with(two._lease, "wait", asked.set)
        found: list[Any] = []

        def other() -> None:
            begun.wait(PATIENCE)
            found.append(two.get_or_create(Thing, KEY, creator))

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        assert one.get_or_create(Thing, KEY, creator).value == "created"
        thread.join(PATIENCE)
        assert found == [Thing(1, value="created")]
        assert len(calls) == 1

    @needs("threads")
    def test_who_gets_the_lock_looks_once_more(self) -> None:
        """Another one may have put it since the first look, and be done."""
        store = self.open()

        def put_theirs() -> None:
            in_thread(lambda: store.put(Thing(1, value="theirs")))

        store._lease = lease_with(store._lease, "acquire", put_theirs)
        for key in (KEY, NAME):
            assert store.get_or_create(Thing, key, lambda: 1 / 0).value == "theirs"
            store.delete(Thing(1))

    @needs("threads")
    def test_a_creator_that_raises_raises_in_its_own_caller(self) -> None:
        """One of those who wait creates; and so it is with what cannot be stored."""
        store, calls = self.open(), []

        def creator() -> Thing:
            calls.append(1)
            if len(calls) == 1:
                until(lambda: waiting() == 3, "all others wait")
                raise ZeroDivisionError
            return Thing(1, value="created")

        outcomes = together(4, lambda: store.get_or_create(Thing, KEY, creator))
        assert len(calls) == 2
        assert outcomes.count(Thing(1, value="created")) == 3
        assert sum(isinstance(each, ZeroDivisionError) for each in outcomes) == 1

    def test_a_creator_that_asks_for_its_own_object_is_told_so(self) -> None:
        """By the same Store, and by another one over the same store that has a lock."""
        store = self.open()
        with raises(RuntimeError, "{'id': 1}", "this very thread"):
            store.get_or_create(Thing, KEY, lambda: store.get_or_create(Thing, KEY, None))
        assert store.get_or_create(Thing, KEY, lambda: Thing(1)) == Thing(1)

    @needs("threads")
    def test_who_does_not_want_to_wait_does_not(self) -> None:
        """The error names what is waited for."""
        store = self.open()

        def creator() -> Thing:
            for timeout in (0, timedelta(seconds=0.01)):
                with raises(TimeoutError, "Thing", "{'id': 1}"):
                    in_thread(lambda: store.get_or_create(Thing, KEY, None, timeout=timeout))
            return Thing(1)

        assert store.get_or_create(Thing, KEY, creator, timeout=0) == Thing(1)
        for wrong in (-1, "1", True):
            with raises(TypeError, "timeout="):
                store.get_or_create(Thing, {"id": 2}, None, timeout=wrong)

    @needs("guarded")
    def test_what_was_put_meanwhile_stays(self) -> None:
        """Its caller gets what it has created."""
        store = self.open()

        def creator() -> Thing:
            self.reader(store).put(Thing(1, value="theirs"))
            return Thing(1, value="mine")

        assert store.get_or_create(Thing, KEY, creator).value == "mine"
        assert store.get(Thing, KEY).value == "theirs"

    @needs("guarded", "copies", "!clock")
    def test_a_delete_meanwhile_is_not_taken_back(self) -> None:
        """What was created before it is not stored after it. (In a dict, nobody can tell.)"""
        store = self.open()

        def creator() -> Thing:
            self.reader(store).delete(Thing(1))
            return Thing(1, value="mine")

        assert store.get_or_create(Thing, KEY, creator).value == "mine"
        assert store.get(Thing, KEY) is None

    @needs("guarded")
    def test_a_younger_creator_is_not_overwritten(self) -> None:
        """The older one stalls for so long that its lock is another's."""
        store = self.open()
        if store._lease("a").seconds == float("inf"):
            return  # a lock of this process alone is never lost
        other = self.reader(store)

        def stalls() -> Thing:
            lose_all()
            # Another process, which does not hear of this thread's creation.
            name = next(iter(names))
            with Mutex(other._lease(name)) as mutex:
                found, proof = other._reserve(address)
                assert found is None
                assert other._put_reserved(Thing(1, value="younger"), proof, mutex)
            return Thing(1, value="older")

        from ..stores.keys import locate

        address = locate(Thing, KEY)
        names, make = [], store._lease

        def lease(name: str, *seconds: float) -> Any:
            names.append(name)
            # Another lock in this process, or its threads would wait for each other.
            made = make(name, *seconds)
            made.identity = "another process"
            return made

        store._lease = lease
        assert store.get_or_create(Thing, KEY, stalls).value == "older"
        assert self.reader(store).get(Thing, KEY).value == "younger"

    @needs("lifetimes")
    def test_a_lifetime_is_of_that_object_alone(self) -> None:
        """In place of what the callback says."""
        store = self.open(lifetime_cb=lambda obj: 0)
        moment = datetime.now(timezone.utc) + timedelta(hours=1)
        for number, lifetime in enumerate((100, timedelta(hours=1), moment)):
            key = {"id": number}
            store.get_or_create(Thing, key, lambda: Thing(number, name=number), lifetime=lifetime)
            assert self.reader(store).get(Thing, key) is not None
        store.put(Thing(9))
        assert store.get(Thing, {"id": 9}) is None
        with raises(TypeError, "lifetime"):
            store.get_or_create(Thing, {"id": 9}, None, lifetime="long")

    @needs("lifetimes", "threads")
    def test_what_is_not_kept_is_handed_to_those_who_wait(self) -> None:
        """In this process: the creator runs once for all of them."""
        store, calls = self.open(lifetime_cb=lambda obj: 0), []

        def creator() -> Thing:
            calls.append(1)
            until(lambda: waiting() == 3, "all others wait")
            return Thing(1, value="created")

        found = together(4, lambda: store.get_or_create(Thing, KEY, creator))
        assert found == [Thing(1, value="created")] * 4
        assert len(calls) == 1
        assert store.get(Thing, KEY) is None

    @needs("!lifetimes", "keeps_for_ever")
    def test_a_lifetime_that_means_nothing_is_refused(self) -> None:
        """Rather than that objects stay for ever."""
        store = self.open()
        for options in ({"lifetime": 5}, {"serve_expired": True}):
            with raises(TypeError, next(iter(options)), "for ever"):
                store.get_or_create(Thing, KEY, lambda: Thing(1), **options)

    @needs("lifetimes", "clock")
    def test_an_expired_object_is_created_anew(self) -> None:
        """At its time, for whoever asks."""
        store = self.open()
        with self.clocks() as clock:
            for turn in range(3):
                made = store.get_or_create(Thing, KEY, lambda: Thing(1, value=turn), lifetime=10)
                assert made.value == turn
                clock.move(9)
                assert store.get_or_create(Thing, KEY, None).value == turn
                clock.move(1.5)
                assert store.get(Thing, KEY) is None

    @needs("lifetimes", "clock")
    def test_who_says_so_gets_the_expired_object_meanwhile(self) -> None:
        """And nobody else: a get does not, and who does not say so waits."""
        store = self.open()
        options = {"lifetime": 10, "serve_expired": True}
        with self.clocks() as clock:
            store.get_or_create(Thing, KEY, lambda: Thing(1, value="old"), **options)
            clock.move(5)
            assert store.get(Thing, KEY).value == "old"
            clock.move(6)

            def creator() -> Thing:
                assert store.get(Thing, KEY) is None
                assert store.batch_get(Thing, [KEY, NAME]) == [None, None]
                if "threads" in getattr(self, "capabilities", ()):
                    for key in (KEY,):
                        meanwhile = in_thread(
                            lambda: store.get_or_create(Thing, key, lambda: 1 / 0, **options)
                        )
                        assert meanwhile.value == "old"
                    with raises(TimeoutError):
                        in_thread(lambda: store.get_or_create(Thing, KEY, None, timeout=0))
                return Thing(1, value="new")

            assert store.get_or_create(Thing, KEY, creator, **options).value == "new"
            assert self.reader(store).get(Thing, KEY).value == "new"

    @needs("lifetimes", "clock", "threads")
    def test_an_expired_object_is_served_no_longer_than_its_lifetime(self) -> None:
        """After that it is missing as any other."""
        store = self.open()
        options = {"lifetime": 10, "serve_expired": True}
        with self.clocks() as clock:
            store.get_or_create(Thing, KEY, lambda: Thing(1, value="old"), **options)
            clock.move(21)

            def creator() -> Thing:
                with raises(TimeoutError):
                    in_thread(lambda: store.get_or_create(Thing, KEY, None, timeout=0, **options))
                return Thing(1, value="new")

            assert store.get_or_create(Thing, KEY, creator, **options).value == "new"
