"""What a Store promises of groups: a part of `StoreSuite`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..stores.keys import locate
from .computing import together, waiting
from .things import Grouped, Listed, Misnamed, Thing
from .tools import needs, raises, until

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GroupTests"]

NAME = {"zone": 1, "name": "x"}


class GroupTests:
    """The tests; `clocks`, `open` and `reader` are those of `StoreSuite`."""

    clocks: Callable[[], Any]
    open: Callable[..., Any]
    reader: Callable[..., Any]

    @needs("groups")
    def test_a_group_is_invalidated_whatever_its_number(self) -> None:
        """By each key of its objects, in every process; others stay."""
        store = self.open()
        store.batch_put([Grouped(number, number % 2, number) for number in range(40)])
        store.put(Thing(100))
        other = self.reader(store)
        keys = [{"id": number} for number in range(40)]
        assert None not in other.batch_get(Grouped, keys)
        store.invalidate_group("zone-1")
        for reader in (store, other):
            found = reader.batch_get(Grouped, keys)
            assert [obj is not None for obj in found] == [number % 2 == 0 for number in range(40)]
            assert reader.get(Grouped, {"zone": 1, "name": 7}) is None
            assert reader.get(Grouped, {"id": 7}) is None
            assert reader.get(Grouped, {"zone": 0, "name": 8}) == Grouped(8, 0, 8)
            assert reader.get(Thing, {"id": 100}) == Thing(100)

    @needs("groups")
    def test_objects_that_are_put_one_by_one_are_of_one_group(self) -> None:
        """By several processes: a put does not invalidate the others."""
        store = self.open()
        other = self.reader(store)
        for number in range(4):
            (store, other)[number % 2].put(Grouped(number, name=number))
        keys = [{"id": number} for number in range(4)]
        assert None not in store.batch_get(Grouped, keys)
        store.invalidate_group("zone-1")
        assert other.batch_get(Grouped, keys) == [None] * 4

    @needs("groups")
    def test_what_is_put_after_it_is_found(self) -> None:
        """Until the next time, and by the process that did not invalidate."""
        store = self.open()
        other = self.reader(store)
        for value in range(3):
            other.put(Grouped(1, value=value))
            assert store.get(Grouped, {"id": 1}) == other.get(Grouped, NAME)
            assert store.get(Grouped, {"id": 1}).value == value
            store.invalidate_group("zone-1")
            assert other.get(Grouped, {"id": 1}) is None

    @needs("groups")
    def test_an_object_of_several_groups_goes_with_each(self) -> None:
        """Whichever is invalidated."""
        store = self.open()
        for group in ("zone-1", "a", ("b", 2), 3):
            store.put(Grouped(1, value=["a", ("b", 2), 3]))
            store.invalidate_group("none of them")
            assert self.reader(store).get(Grouped, {"id": 1}) is not None
            store.invalidate_group(group)
            assert self.reader(store).get(Grouped, {"id": 1}) is None, group

    @needs("groups")
    def test_a_class_may_list_its_groups(self) -> None:
        """For all of its objects."""
        store = self.open()
        for group in ("listed", ("of", 2)):
            things = [Listed(number, name=number) for number in range(5)]
            store.batch_put(things)
            keys = [{"id": number} for number in range(5)]
            assert self.reader(store).batch_get(Listed, keys) == things
            assert store.get(Listed, {"zone": 1, "name": 2}) == Listed(2, name=2)
            store.invalidate_group(group)
            assert self.reader(store).batch_get(Listed, keys) == [None] * 5
            assert store.get(Listed, {"zone": 1, "name": 2}) is None

    @needs("groups")
    def test_the_groups_are_those_of_the_last_put(self) -> None:
        """An object that has left a group does not go with it."""
        store = self.open()
        store.put(Grouped(1, zone=1))
        store.put(Grouped(1, zone=2))
        store.invalidate_group("zone-1")
        assert self.reader(store).get(Grouped, {"id": 1}) == Grouped(1, zone=2)
        store.invalidate_group("zone-2")
        assert self.reader(store).get(Grouped, {"id": 1}) is None

    @needs("groups")
    def test_an_invalid_object_can_be_deleted(self) -> None:
        """And what took its other key stays."""
        store = self.open()
        store.put(Grouped(1))
        store.invalidate_group("zone-1")
        store.put(Grouped(2))
        store.delete(Grouped(1))
        assert self.reader(store).get(Grouped, NAME) == Grouped(2)
        store.delete(Grouped(2))
        assert self.reader(store).get(Grouped, NAME) is None

    @needs("groups")
    def test_a_group_that_nothing_has_can_be_invalidated(self) -> None:
        """It does no harm."""
        store = self.open()
        store.invalidate_group("zone-1")
        store.put(Grouped(1))
        assert self.reader(store).get(Grouped, {"id": 1}) == Grouped(1)

    @needs("groups", "lifetimes")
    def test_what_is_put_while_its_group_is_invalidated_is_not_found(self) -> None:
        """Its tokens are read first: it may have been made of what is out of date."""
        invalidated: list[Any] = []

        def invalidate_now(obj: Any) -> None:
            if invalidated:
                self.reader(store).invalidate_group(invalidated.pop())

        store = self.open(lifetime_cb=invalidate_now)
        for put in (store.put, lambda obj: store.batch_put([obj])):
            store.put(Grouped(1, value="old"))
            invalidated.append("zone-1")
            put(Grouped(1, value="made before"))
            assert not invalidated
            assert store.get(Grouped, {"id": 1}) is None
            # Of another group there is nothing to fear.
            invalidated.append("zone-2")
            put(Grouped(1, value="new"))
            assert store.get(Grouped, {"id": 1}).value == "new"

    @needs("groups")
    def test_what_was_made_before_is_not_kept(self) -> None:
        """By whoever makes objects at a miss: tokens first, then the object, then the put."""
        store = self.open()
        for klass, group in ((Grouped, "zone-1"), (Listed, "listed")):
            before = store._tokens_before(klass)
            store._put_as_of([klass(1)], before)
            assert self.reader(store).get(klass, {"id": 1}) == klass(1)
            before = store._tokens_before(klass)
            self.reader(store).invalidate_group(group)
            store._put_as_of([klass(1)], before)
            assert store.get(klass, {"id": 1}) is None
            store._put_as_of([klass(1)], store._tokens_before(klass))
            assert store.get(klass, {"id": 1}) == klass(1)

    @needs("groups")
    def test_what_is_created_goes_with_its_group(self) -> None:
        """And is created once more."""
        store = self.open()
        for klass, group in ((Grouped, "zone-1"), (Listed, "listed")):
            for value in range(3):
                creator = partial(klass, 1, value=value)
                assert store.get_or_create(klass, {"id": 1}, creator).value == value
                assert store.get_or_create(klass, NAME, lambda: None).value == value
                assert self.reader(store).get(klass, {"id": 1}).value == value
                self.reader(store).invalidate_group(group)

    @needs("groups")
    def test_what_was_being_created_while_its_group_was_invalidated_is_not_kept(self) -> None:
        """By each key: its creator gets it, and the next caller creates."""
        store = self.open()
        for klass, group in ((Grouped, "zone-1"), (Listed, "listed")):
            for key in ({"id": 1}, NAME):

                def create(klass: Any = klass, group: str = group) -> Any:
                    self.reader(store).invalidate_group(group)
                    return klass(1, value="made of what was there before")

                assert store.get_or_create(klass, key, create) is not None
                assert self.reader(store).get(klass, key) is None
                created = store.get_or_create(klass, key, lambda k=klass: k(1, value="new"))
                assert created.value == "new"
                assert self.reader(store).get(klass, key).value == "new"
                store.delete(klass(1))

    @needs("groups", "threads")
    def test_who_waits_for_what_was_invalidated_creates(self) -> None:
        """One after the other: each may have come after the invalidation."""
        store = self.open()
        created: list[Any] = []

        def create() -> Any:
            created.append(None)
            if len(created) == 1:
                until(lambda: waiting() == 2, "the others wait")
                self.reader(store).invalidate_group("zone-1")
                return Grouped(1, value="old")
            return Grouped(1, value="new")

        found = together(3, lambda: store.get_or_create(Grouped, {"id": 1}, create).value)
        assert sorted(found) == ["new", "new", "old"]
        assert len(created) == 2

    @needs("groups", "lifetimes", "clock")
    def test_what_is_invalid_is_not_served_as_expired(self) -> None:
        """Expired is out of date by its age, invalid by what somebody knows."""
        with self.clocks() as clock:
            store = self.open()
            for group, expected in (("zone-2", "old"), ("zone-1", "new")):
                old = partial(Grouped, 1, value="old")
                store.get_or_create(Grouped, {"id": 1}, old, lifetime=10, serve_expired=True)
                clock.move(15)
                store.invalidate_group(group)
                found = store._get_expired(locate(Grouped, {"id": 1}), 10)
                assert (found is not None) == (expected == "old")
                store.delete(Grouped(1))

    @needs("groups")
    def test_what_are_no_groups_is_refused(self) -> None:
        """Nothing is stored."""
        store = self.open()
        with raises(TypeError, "group=", "object"):
            store.invalidate_group(object())
        for value, message in (("a", "write a list"), (b"a", "write a list"), ([[]], "group=[]")):
            with raises(TypeError, message):
                store.put(Misnamed(1, value=value))
        assert store.get(Misnamed, {"id": 1}) is None
        store.put(Misnamed(1, value=[]))
        assert store.get(Misnamed, {"id": 1}) == Misnamed(1, value=[])
