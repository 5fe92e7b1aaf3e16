"""How a Store finds objects, one or many, by each of their keys: a part of `StoreSuite`."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .things import Automobile, Car, Empty, Person, Thing, fields_of
from .tools import needs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StoreKeyTests"]


class StoreKeyTests:
    """The tests; `open` and `reader` are those of `StoreSuite`."""

    open: Callable[..., Any]
    reader: Callable[..., Any]

    # -- one object -------------------------------------------------------------------------------

    def test_an_object_is_found_by_each_of_its_keys(self) -> None:
        """The order of names in a query does not matter."""
        store = self.open()
        thing = Thing(1, 2, "a", [3])
        store.put(thing)
        other = self.reader(store)
        for key in ({"id": 1}, {"zone": 2, "name": "a"}, {"name": "a", "zone": 2}):
            assert other.get(Thing, key) == thing
            assert other.batch_get(Thing, [key]) == [thing]
        assert other.get(Thing, {"id": 2}) is None
        assert other.get(Thing, {"zone": 2, "name": "b"}) is None

    def test_a_put_replaces_and_a_delete_removes(self) -> None:
        """Both by the first key; a second delete does no harm."""
        store = self.open()
        store.put(Thing(1, value="old"))
        store.put(Thing(1, value="new"))
        assert self.reader(store).get(Thing, {"id": 1}).value == "new"
        store.delete(Thing(1))
        store.delete(Thing(1))
        assert self.reader(store).get(Thing, {"id": 1}) is None
        assert self.reader(store).get(Thing, {"zone": 1, "name": "x"}) is None

    def test_delete_key_removes_by_any_key(self) -> None:
        """Also what is not there."""
        store = self.open()
        store.batch_put([Thing(1, 1, "a"), Thing(2, 1, "b")])
        store.delete_key(Thing, {"id": 1})
        store.delete_key(Thing, {"name": "b", "zone": 1})
        store.delete_key(Thing, {"id": 3})
        assert store.batch_get(Thing, [{"id": 1}, {"id": 2}]) == [None, None]

    def test_a_falsy_object_is_found(self) -> None:
        """None alone is nothing."""
        store = self.open()
        store.put(Empty(1))
        for key in ({"id": 1}, {"zone": 1, "name": "x"}):
            found = self.reader(store).get(Empty, key)
            assert found == Empty(1)
            assert not found

    def test_keys_may_be_of_many_kinds(self) -> None:
        """Values that are equal in Python are one key; text and numbers are not."""
        store = self.open()
        values = [
            *(
                None,
                0,
                "",
                "0",
                1,
                "1",
                -1,
                1.5,
                b"1",
                b"",
                "None",
                "~int:1",
                "a/b",
                "a&b=c",
                "%41",
            ),
            *("A", "a", " ", "\n", "\x00", "é", "日本", "\ud800", "x" * 300, (1, "a"), ("1", "a")),
            *(uuid.UUID(int=5), Decimal("2.25"), date(2020, 1, 2), datetime(2020, 1, 2, 3, 4)),  # noqa: DTZ001  # a key
        ]
        things = [Thing(value, name=place, value=place) for place, value in enumerate(values)]
        store.batch_put(things)
        found = self.reader(store).batch_get(Thing, [{"id": value} for value in values])
        assert [thing.value for thing in found] == list(range(len(values)))
        assert store.get(Thing, {"id": True}).value == store.get(Thing, {"id": 1.0}).value == 4
        store.batch_delete(things)
        assert not any(store.batch_get(Thing, [{"id": value} for value in values]))

    def test_an_inherited_key_is_one(self) -> None:
        """Objects of two classes with the same values are two."""
        store = self.open()
        store.batch_put([Thing(1, value="thing"), Person(1, value="person")])
        assert store.get(Person, {"id": 1}).value == "person"
        assert store.get(Thing, {"name": "x", "zone": 1}).value == "thing"

    # -- many -------------------------------------------------------------------------------------

    def test_a_batch_keeps_the_order(self) -> None:
        """None for what is missing; the same key twice; any iterable."""
        store = self.open()
        things = [Thing(number, name=str(number)) for number in range(30)]
        store.batch_put(iter(things))
        other = self.reader(store)
        keys = [{"id": number} for number in (5, 99, 0, 5, 29)]
        assert other.batch_get(Thing, iter(keys)) == [
            things[5],
            None,
            things[0],
            things[5],
            things[29],
        ]
        named: list[Any] = [{"name": "3", "zone": 1}, {"zone": 1, "name": "no"}, {"id": 4}]
        assert other.batch_get(Thing, named) == [things[3], None, things[4]]
        store.batch_delete(iter(things[:10]))
        assert other.batch_get(Thing, keys) == [None, None, None, None, things[29]]

    def test_zero_items_are_nothing(self) -> None:
        """To any batch verb."""
        store = self.open()
        store.batch_put([])
        store.batch_delete([])
        assert store.batch_get(Thing, []) == []

    def test_the_last_of_two_in_a_batch_is_stored(self) -> None:
        """As if they were put one after the other."""
        store = self.open()
        store.batch_put([Thing(1, name="a", value=1), Thing(1, name="b", value=2)])
        assert self.reader(store).get(Thing, {"id": 1}).value == 2
        assert store.get(Thing, {"zone": 1, "name": "a"}) is None
        assert store.get(Thing, {"zone": 1, "name": "b"}).value == 2

    def test_classes_are_mixed_in_a_batch(self) -> None:
        """Puts and deletes take objects of any classes."""
        store = self.open()
        store.batch_put([Thing(1), Car("B 1"), Empty(1)])
        assert store.get(Car, {"license_plate": "B 1"}) == Car("B 1")
        store.batch_delete([Thing(1), Car("B 1")])
        assert store.get(Car, {"owner": "nobody"}) is None
        assert store.get(Empty, {"id": 1}) == Empty(1)

    def test_what_the_caller_hands_in_stays_as_it_is(self) -> None:
        """Keys, lists and objects."""
        store = self.open()
        thing, key = Thing(1), {"name": "x", "zone": 1}
        things, keys = [thing], [key]
        store.batch_put(things)
        store.batch_get(Thing, keys)
        assert fields_of(thing) == {"id": 1, "zone": 1, "name": "x", "value": None}
        assert list(key.items()) == [("name", "x"), ("zone", 1)]
        assert (things, keys) == ([thing], [key])

    # -- alternate keys ---------------------------------------------------------------------------

    def test_no_ghost_stays_under_an_old_key(self) -> None:
        """A changed key, put again, is found under the new one alone."""
        store = self.open()
        thing = Thing(1, name="old")
        store.put(thing)
        thing.name = "new"
        store.put(thing)
        other = self.reader(store)
        assert other.get(Thing, {"zone": 1, "name": "old"}) is None
        assert other.get(Thing, {"zone": 1, "name": "new"}) == thing
        store.delete(thing)
        for name in ("old", "new"):
            assert other.get(Thing, {"zone": 1, "name": name}) is None

    def test_a_delete_of_a_changed_object_leaves_no_ghost(self) -> None:
        """The old key goes though the object does not have it any more."""
        store = self.open()
        store.put(Thing(1, name="old"))
        store.delete(Thing(1, name="new"))
        store.put(Thing(1, name="third"))
        assert store.get(Thing, {"zone": 1, "name": "old"}) is None
        assert store.get(Thing, {"zone": 1, "name": "new"}) is None
        assert store.get(Thing, {"zone": 1, "name": "third"}) == Thing(1, name="third")

    def test_two_objects_swap_their_keys(self) -> None:
        """One by one, and in a batch."""
        store = self.open()
        for swap in (lambda pair: [store.put(each) for each in pair], store.batch_put):
            a, b = Thing(1, name="a"), Thing(2, name="b")
            store.batch_put([a, b])
            swapped = [Thing(1, name="b"), Thing(2, name="a")]
            swap(swapped)
            other = self.reader(store)
            assert other.get(Thing, {"zone": 1, "name": "b"}) == swapped[0]
            assert other.get(Thing, {"zone": 1, "name": "a"}) == swapped[1]
        store.delete(swapped[0])
        assert store.get(Thing, {"zone": 1, "name": "a"}) == swapped[1]
        assert store.get(Thing, {"zone": 1, "name": "b"}) is None

    def test_a_key_that_another_object_took_is_that_ones(self) -> None:
        """And stays so when the first object is deleted."""
        store = self.open()
        store.put(Thing(1, name="mine"))
        store.put(Thing(2, name="mine"))
        assert store.get(Thing, {"zone": 1, "name": "mine"}) == Thing(2, name="mine")
        store.delete(Thing(1, name="mine"))
        assert store.get(Thing, {"zone": 1, "name": "mine"}) == Thing(2, name="mine")

    # -- base classes -----------------------------------------------------------------------------

    def test_an_object_is_of_its_own_class_alone(self) -> None:
        """Unless the Store is polymorphic."""
        store = self.open()
        store.put(Car("B 1"))
        assert store.get(Automobile, {"license_plate": "B 1"}) is None

    @needs("polymorphic")
    def test_a_car_is_an_automobile(self) -> None:
        """In a polymorphic Store."""
        store = self.open(polymorphic=True)
        store.batch_put([Car("B 1"), Automobile("B 2")])
        other = self.reader(store, polymorphic=True)
        keys = [{"license_plate": "B 1"}, {"license_plate": "B 2"}, {"license_plate": "B 3"}]
        assert other.batch_get(Automobile, keys) == [Car("B 1"), Automobile("B 2"), None]
        assert other.batch_get(Car, keys) == [Car("B 1"), None, None]
        store.delete(Car("B 1"))
        assert other.batch_get(Automobile, keys) == [None, Automobile("B 2"), None]

    @needs("polymorphic")
    def test_a_delete_of_a_base_class_leaves_an_object_of_a_subclass(self) -> None:
        """Though it has the same key there: it is another object."""
        store = self.open(polymorphic=True)
        store.put(Car("B 1"))
        store.batch_delete([Automobile("B 1"), Automobile("B 2")])
        other = self.reader(store, polymorphic=True)
        assert other.get(Car, {"license_plate": "B 1"}) == Car("B 1")
        assert other.get(Automobile, {"license_plate": "B 1"}) == Car("B 1")
        store.put(Automobile("B 2"))
        store.delete(Automobile("B 2"))
        assert other.get(Automobile, {"license_plate": "B 2"}) is None

    @needs("polymorphic")
    def test_an_object_of_a_subclass_takes_the_place_of_another(self) -> None:
        """Among the objects of the base class; what led to the other one leads to nothing."""
        store = self.open(polymorphic=True)
        store.put(Thing(1, name="a"))
        store.put(Person(1, name="b"))
        other = self.reader(store, polymorphic=True)
        assert other.get(Thing, {"zone": 1, "name": "a"}) is None
        for key in ({"id": 1}, {"zone": 1, "name": "b"}):
            assert other.get(Thing, key) == other.get(Person, key) == Person(1, name="b")
