"""`StoreSuite`: every promise that all Stores share, as one pytest class.

A Store of one's own subclasses it with a factory and what it can do::

    class TestFolderStore(StoreSuite):
        capabilities = frozenset({"copies", "shared"})

        def factory(self, place, **options):
            return FolderStore(place, **options)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import reading
from ..errors import DecodingError, EncodingError
from ..stores import lifetime
from .collecting import collect
from .creating import CreatingTests
from .groups import GroupTests
from .storekeys import StoreKeyTests
from .storelifetimes import LifetimeTests
from .things import Keyless, Thing, Unpicklable
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


class StoreSuite(StoreKeyTests, LifetimeTests, CreatingTests, GroupTests):
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
