"""`StoreSuite`: every promise that all Stores share, as one pytest class.

A Store of one's own subclasses it with a factory and what it can do::

    class TestFolderStore(StoreSuite):
        capabilities = frozenset({"copies", "shared"})

        def factory(self, place, **options):
            return FolderStore(place, **options)
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import reading
from ..errors import DecodingError, EncodingError
from ..stores import lifetime
from .collecting import collect
from .creating import CreatingTests
from .groups import GroupTests
from .things import Automobile, Car, Empty, Keyless, Person, Thing, Unpicklable, fields_of
from .tools import Clock, in_thread, needs, new_place, raises

if TYPE_CHECKING:
    from ..stores import BaseStore

__all__ = ["STORE_CAPABILITIES", "StoreSuite"]

#: What a Store may say of itself. Tests of what it does not name are not collected.
STORE_CAPABILITIES = {
    "copies": "what is stored is a copy: later changes to the caller's object are not seen",
    "live": "a get returns the very object that was put",
    "shared": "two Stores that the factory opens at one place hold the same objects",
    "lifetimes": "it takes lifetime_cb=",
    "clock": "lifetimes are counted here, by the library's clocks, and not by a server",
    "polymorphic": "it takes polymorphic=",
    "encodes": "it takes encoding=, and raises DecodingError for what it cannot decode",
    "threads": "what one thread puts another one gets",
    "groups": "it has invalidate_group, and finds nothing of a group after that",
    "guarded": "it can compare and set, so that get_or_create overwrites nothing",
    "keeps_for_ever": "nothing of it expires, so that get_or_create refuses a lifetime",
}


def far() -> list[Any]:
    """Return lifetimes that do not end while the tests run; made when they do, in local time."""
    return [
        1_000_000_000,
        60 * 60 * 24 * 31,
        timedelta(days=31),
        timedelta(hours=1),
        3600,
        1.5e6,
        2_000_000_000,
        1e300,
        timedelta.max,
        datetime.max,  # noqa: DTZ901  # what people write for ever
        datetime.now(timezone.utc) + timedelta(days=400),
        datetime.now() + timedelta(hours=1),  # noqa: DTZ005  # local time is what is tested
    ]


def past() -> list[Any]:
    """Return lifetimes that are over."""
    return [
        0,
        -1,
        0.0,
        timedelta(0),
        timedelta(days=-1),
        timedelta.min,
        datetime.min,  # noqa: DTZ901  # and for never
        datetime.now(timezone.utc) - timedelta(hours=1),
        datetime.now() - timedelta(hours=1),  # noqa: DTZ005  # local time is what is tested
    ]


class StoreSuite(CreatingTests, GroupTests):
    """Subclass it, with `factory` and `capabilities`; pytest collects the rest."""

    #: What the Store can do; see `STORE_CAPABILITIES`.
    capabilities: ClassVar[frozenset[str]] = frozenset()

    #: How many sequences of how many steps are tried.
    sequences: tuple[int, int] = (8, 16)

    #: Whether two objects may have the same second key for a while, in those.
    shares_keys: bool = True

    place: Path

    def factory(self, place: Path, **options: Any) -> BaseStore:
        """Open a Store at `place`, a folder that is new in each test."""
        raise NotImplementedError(f"{type(self).__name__} has to define factory(place, **options)")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        collect(cls, STORE_CAPABILITIES)

    def setup_method(self, method: object = None) -> None:
        """Make the place; pytest calls this before each test."""
        self._stack = ExitStack()
        self.place = self._stack.enter_context(new_place())

    def teardown_method(self, method: object = None) -> None:
        """Release the Stores and remove the place."""
        self._stack.close()

    def open(self, **options: Any) -> Any:
        """Open one more Store at the place, released at the end of the test."""
        store = self.factory(self.place, **options)
        self._stack.callback(store.release)
        return store

    def reader(self, store: Any, **options: Any) -> Any:
        """Open a second Store at the place, or return the first where there is no second."""
        return self.open(**options) if "shared" in self.capabilities else store

    @contextmanager
    def clocks(self) -> Iterator[Clock]:
        """Put clocks that stand still in place of the library's."""
        clock, original, wall = Clock(), reading.monotonic, lifetime.now
        began = wall() - clock.now
        reading.monotonic = clock
        lifetime.now = lambda: began + clock()
        try:
            yield clock
        finally:
            reading.monotonic, lifetime.now = original, wall

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

    # -- lifetimes --------------------------------------------------------------------------------

    @needs("lifetimes")
    def test_a_lifetime_of_zero_or_in_the_past_is_not_kept(self) -> None:
        """Not the object, and not what it was to replace."""
        for over in past():
            store = self.open(
                lifetime_cb=lambda obj, over=over: over if obj.value == "over" else None
            )
            store.put(Thing(1, value="first"))
            assert store.get(Thing, {"id": 1}) is not None
            store.put(Thing(1, value="over"))
            assert self.reader(store).get(Thing, {"id": 1}) is None, over
            assert store.get(Thing, {"zone": 1, "name": "x"}) is None

    @needs("lifetimes")
    def test_a_lifetime_in_each_form_is_kept_until_then(self) -> None:
        """Seconds, a timedelta, an aware and a naive datetime; also more than 30 days."""
        lifetimes = far()
        store = self.open(lifetime_cb=lambda obj: lifetimes[obj.id])
        store.batch_put([Thing(place, name=place) for place in range(len(lifetimes))])
        found = self.reader(store).batch_get(
            Thing, [{"id": place} for place in range(len(lifetimes))]
        )
        assert None not in found
        named = [{"zone": 1, "name": place} for place in range(len(lifetimes))]
        assert store.batch_get(Thing, named) == found

    @needs("lifetimes", "clock")
    def test_what_has_expired_is_not_found(self) -> None:
        """By no key, and it can be put again."""
        with self.clocks() as clock:
            moment = datetime.fromtimestamp(lifetime.now(), timezone.utc) + timedelta(seconds=20)
            lives = [20, timedelta(seconds=20), moment, moment.astimezone().replace(tzinfo=None)]
            for life in lives:
                began = clock.now
                if isinstance(life, datetime):
                    life += timedelta(seconds=began - 1000)
                store = self.open(lifetime_cb=lambda obj, life=life: life)
                store.put(Thing(1))
                clock.move(19)
                assert self.reader(store).get(Thing, {"id": 1}) == Thing(1)
                assert store.get(Thing, {"zone": 1, "name": "x"}) == Thing(1)
                clock.move(2)
                assert self.reader(store).get(Thing, {"id": 1}) is None, life
                assert store.get(Thing, {"zone": 1, "name": "x"}) is None
                if not isinstance(life, datetime):
                    store.put(Thing(1))
                    assert store.get(Thing, {"id": 1}) == Thing(1)

    @needs("lifetimes")
    def test_what_is_no_lifetime_is_refused(self) -> None:
        """Before anything is stored."""
        store = self.open(lifetime_cb=lambda obj: "20")
        with raises(TypeError, "'20'", "timedelta"):
            store.put(Thing(1))
        assert store.get(Thing, {"id": 1}) is None
        with raises(TypeError, "lifetime_cb"):
            self.open(lifetime_cb=20)

    # -- bad input --------------------------------------------------------------------------------

    def test_a_key_that_is_not_indexed_says_what_is(self) -> None:
        """A KeyError; for a class without keys, too."""
        store = self.open()
        for method in (store.get, store.delete_key, lambda k, key: store.batch_get(k, [key])):
            with raises(KeyError, "Thing is not indexed by 'value'", "'id'", "('zone', 'name')"):
                method(Thing, {"value": 1})
            with raises(KeyError, "('id', 'zone')"):
                method(Thing, {"id": 1, "zone": 1})
            with raises(KeyError, "()"):
                method(Thing, {})
            with raises(KeyError, "Keyless", "__stockpyle_keys__"):
                method(Keyless, {"id": 1})
            with raises(TypeError, "a dict of attributes"):
                method(Thing, 5)
            with raises(TypeError):
                method(Thing, {"id": [1]})

    def test_an_object_without_keys_is_refused(self) -> None:
        """And one that lacks an attribute."""
        store = self.open()
        incomplete = Thing(1)
        del incomplete.name
        for method in (store.put, lambda obj: store.batch_put([obj])):
            with raises(KeyError, "Keyless"):
                method(Keyless())
            with raises(AttributeError, "name"):
                method(incomplete)
            with raises(TypeError):
                method(Thing([1]))
        assert store.get(Thing, {"id": 1}) is None

    @needs("copies")
    def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(self) -> None:
        """Nothing of the batch is stored."""
        store = self.open()
        store.put(Unpicklable.__mro__[1](1, value="kept"))
        with raises(EncodingError, "Unpicklable", "cannot be encoded"):
            store.batch_put([Thing(1, value="new"), Unpicklable(2)])
        assert self.reader(store).get(Thing, {"id": 1}).value == "kept"

    @needs("copies")
    def test_what_is_stored_is_a_copy(self) -> None:
        """Of the object as it was when it was put."""
        store = self.open()
        thing = Thing(1, value=[1])
        store.put(thing)
        thing.value.append(2)
        found = store.get(Thing, {"id": 1})
        assert found.value == [1]
        found.value.append(3)
        assert store.get(Thing, {"id": 1}).value == [1]

    @needs("live")
    def test_a_get_returns_the_very_object(self) -> None:
        """That was put."""
        store = self.open()
        thing = Thing(1)
        store.put(thing)
        assert store.get(Thing, {"id": 1}) is thing
        assert store.batch_get(Thing, [{"zone": 1, "name": "x"}])[0] is thing
        thing.name = "changed"
        assert store.get(Thing, {"zone": 1, "name": "x"}) is None

    @needs("encodes")
    def test_a_payload_that_was_not_signed_is_refused(self) -> None:
        """One with another secret; and one that was copied from another name is in the tests."""
        from ..encoding import SignedEncoding

        store = self.open(encoding=SignedEncoding("secret " * 6))
        store.batch_put([Thing(1), Thing(2, name="y")])
        assert store.get(Thing, {"zone": 1, "name": "y"}) == Thing(2, name="y")
        forger = self.reader(store, encoding=SignedEncoding("another" * 6))
        if forger is not store:
            for key in ({"id": 1}, {"zone": 1, "name": "x"}):
                with raises(DecodingError, "id="):
                    forger.get(Thing, key)
            forger.put(Thing(1, value="mended"))
            assert forger.get(Thing, {"id": 1}).value == "mended"

    # -- the rest ---------------------------------------------------------------------------------

    def test_it_is_a_context_manager(self) -> None:
        """Which releases; it may be used again."""
        with self.open() as store:
            store.put(Thing(1))
        store.release()
        store.put(Thing(1))
        assert store.get(Thing, {"id": 1}) == Thing(1)

    @needs("threads")
    def test_threads_share_it(self) -> None:
        """What one puts another gets."""
        store = self.open()
        in_thread(lambda: store.put(Thing(1)))
        assert in_thread(lambda: store.get(Thing, {"id": 1})) == Thing(1)
        assert store.get(Thing, {"zone": 1, "name": "x"}) == Thing(1)
        in_thread(lambda: store.delete(Thing(1)))
        assert store.get(Thing, {"id": 1}) is None

    def test_it_does_what_a_plain_model_does(self) -> None:
        """Random sequences of all operations, compared with dicts."""
        from .storesequences import run_sequences

        run_sequences(self)
