"""`ProcessMemoryStore`: the live objects, in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from .. import reading
from ..locks import Mutex
from ..stamps import Stamp
from .base import Key
from .classstamps import ClassStamps
from .groups import Tokens, all_groups_of, groups_of, may_have_groups, token_name, tokens_now
from .guarded import CREATION_LIFE, Peeked, Settlement
from .keys import Address, addresses_of, entry_of, index_of, matches
from .lifetime import LifetimeCallback, checked_callback, keeps_expired, lifetime_of
from .memoryentries import NOBODYS, READERS, WRITERS, MemoryEntries
from .memorygroups import MemoryGroups, Tagged, Token

__all__ = ["ProcessMemoryStore"]

T = TypeVar("T")

logger = logging.getLogger("durabledict.stores")


class ProcessMemoryStore(MemoryEntries):
    """Keeps objects in the memory of this process: a get returns the very object that was put.

    >>> class Foo:
    ...     __stockpyle_keys__ = ["key"]
    ...     def __init__(self, key):
    ...         self.key = key
    >>> store = ProcessMemoryStore()
    >>> foo = Foo("my_unique_key_123")
    >>> store.put(foo)
    >>> store.get(Foo, {"key": "my_unique_key_123"}) is foo
    True
    >>> store.get(Foo, {"name": "x"})
    Traceback (most recent call last):
    durabledict.stores.keys.NotIndexedError: Foo is not indexed by 'name'; it is by 'key'

    So a change to the object is seen by all who got it. One whose key attributes were changed is
    not found under the old ones any more, and under the new ones when it is put again.

    :param polymorphic: objects are also found as what their base classes are
    :param lifetime_cb: a function of an object that returns its lifetime: seconds, a timedelta, a
        datetime, or None for ever; 0 or the past: it is not kept
    :param maxsize: when there are as many objects, the one that was used longest ago goes
    :param stamp: a cache that processes share, in which each class has a stamp: a client of
        pymemcache or redis-py, a cache of Django's or its alias. A put or delete here, or through
        a chain that has this Store, raises it, two requests; a get compares it, one request, and
        forgets the class's objects when another process has raised it, and once a minute. Objects
        with groups have one more, for all groups: a get of such an object compares that, too
    :raises ImportError: for the last two, cachetools is not installed

    """

    shared = False

    def __init__(
        self,
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        maxsize: int | None = None,
        *,
        stamp: Any = None,
    ) -> None:
        if maxsize is not None and (type(maxsize) is not int or maxsize < 1):
            raise ValueError(f"maxsize={maxsize!r}: write a number of objects, 1 or more")
        self.polymorphic = polymorphic
        self.lifetime_cb = checked_callback(lifetime_cb)
        self.maxsize = maxsize
        self.stamp = stamp
        self._stamps = None if stamp is None else ClassStamps(stamp)
        # class -> the stamp under which its objects are kept
        self._known: dict[type, Stamp | None] = {}
        self._begin_empty()
        self._groups = MemoryGroups()
        if lifetime_cb is not None or maxsize is not None:
            self._have_expire()

    def get(self, klass: type[T], key: Key) -> T | None:
        """Return the object, or None."""
        if self._stamps is not None:
            self._compare(klass)
        return self._get(klass, key)

    def _get(self, klass: type[T], key: Key) -> T | None:
        entry = entry_of(klass, key)
        found = self._find(entry)
        if found is None:
            first = self._pointers.get(entry)
            found = None if first is None else self._find(first)
            if found is None:
                return None
        if found[3] and not self._is_valid(found[3]):
            return None
        obj: T = found[0]
        try:
            for name, value in zip(entry[1], entry[2], strict=True):
                if getattr(obj, name) != value:
                    return None
        except AttributeError:
            return None
        return obj

    def batch_get(self, klass: type[T], keys: Iterable[Key]) -> list[T | None]:
        """Return an object or None for each key."""
        wanted = list(keys)
        if self._stamps is not None and wanted:
            self._compare(klass)
        return [self._get(klass, key) for key in wanted]

    def put(self, obj: Any) -> None:
        """Keep the object, as it is."""
        self.batch_put([obj])

    def batch_put(self, objs: Iterable[Any]) -> None:
        """Keep the objects; those before one that cannot be kept are not kept either."""
        objs = list(objs)
        self._put_as_of(objs, tokens_now(self, objs))

    def _put_as_of(self, objs: Iterable[Any], tokens: Tokens) -> None:
        prepared = [self._prepare(obj, tokens) for obj in objs]
        announcement = self._announce(record[1] for record in prepared)
        with self._locked():
            for record in prepared:
                self._markers.pop(record[0], None)
                self._store(*record)
        self._announced(announcement)

    def delete(self, obj: Any) -> None:
        """Forget the object with the first key of this one."""
        self.batch_delete([obj])

    def batch_delete(self, objs: Iterable[Any]) -> None:
        """Forget objects."""
        gone = list(objs)
        entries = [addresses_of(obj, False)[0].entry for obj in gone]
        announcement = self._announce(gone)
        with self._locked():
            for entry in entries:
                self._markers.pop(entry, None)
                self._remove(entry)
        self._announced(announcement)

    def _prepare(
        self, obj: Any, before: Tokens
    ) -> tuple[Any, Any, tuple[Any, ...], tuple[Token, ...] | None, float | None, bool]:
        lifetime = lifetime_of(obj, self.lifetime_cb)
        if lifetime is not None:
            self._have_expire()
        first, *others = [each.entry for each in addresses_of(obj, self.polymorphic)]
        tokens = self._groups.tokens_for(groups_of(obj), before)
        pointers = tuple(entry for entry in others if entry != first)
        return first, obj, pointers, tokens, lifetime, keeps_expired(obj)

    def _prepared_or_none(self, obj: Any, before: Tokens) -> Any:
        try:
            return self._prepare(obj, before)
        except Exception as error:
            # The object is where it lasts already. That it is not cached is no reason to raise.
            logger.warning("%s: %s is not cached: %s", self, type(obj).__qualname__, error)
            return None

    # -- groups (rule 5.8) ------------------------------------------------------------------------

    def invalidate_group(self, group: Any) -> None:
        """Have no object of a group be found any more.

        With a `stamp`, in no other process either: it is raised, one request, and objects of all
        groups are forgotten there. Without one, in this process.

        """
        self._drop(self._groups.invalidate([token_name(group)]))
        if self._stamps is not None:
            self._stamps.touch([Tagged])

    def _drop(self, tokens: Iterable[Token]) -> None:
        with self._locked():
            for token in tokens:
                for entry in list(self._members.get(token, ())):
                    self._remove(entry)

    def _is_valid(self, tokens: tuple[Token, ...]) -> bool:
        if self._stamps is not None:
            self._compare_groups()
        for token in tokens:
            if not token.is_valid:
                # Here too: it may have been invalidated in another thread.
                self._drop([token])
                return False
        return True

    def _compare_groups(self) -> None:
        """Forget all objects with groups, if another process may have invalidated one."""
        if self._stamps is None:
            return
        stamp = self._stamps.read(Tagged)
        if stamp is None or self._known.get(Tagged) != stamp:
            self._drop(self._groups.invalidate_all())
            self._known[Tagged] = stamp

    def _tokens_before(self, klass: type) -> Tokens:
        if not may_have_groups(klass):
            return {}
        self._know_groups()
        return self._groups.now()

    def _tokens_of(self, objs: Iterable[Any]) -> Tokens:
        names = all_groups_of(objs)
        if not names:
            return {}
        self._know_groups()
        return self._groups.add(names)

    def _know_groups(self) -> None:
        if Tagged not in self._known:
            # What is put is kept only under a stamp that is known.
            self._compare_groups()

    # -- stamps (rule 5.3) ------------------------------------------------------------------------

    def _compare(self, klass: type) -> None:
        """Forget the objects of a class if others may have written some. One request."""
        if self._stamps is None:
            return
        index_of(klass)
        stamp = self._stamps.read(klass)
        if stamp is not None and self._known.get(klass) == stamp:
            return
        with self._locked():
            # Whatever is stored from now on was read after this stamp was: who reads or writes
            # now finds its marker gone.
            for entry in [entry for entry in self._records if issubclass(entry[0], klass)]:
                self._remove(entry)
            for entry, (kind, _, _) in list(self._markers.items()):
                if kind != NOBODYS and issubclass(entry[0], klass):
                    del self._markers[entry]
            self._known[klass] = stamp

    def _announce(self, objs: Iterable[Any]) -> Any:
        if self._stamps is None:
            return None
        classes = {a.klass for obj in objs for a in addresses_of(obj, self.polymorphic)}
        for klass in classes - self._known.keys():
            # What is put is kept only under a stamp that is known.
            self._compare(klass)
        return self._stamps.begin(classes)

    def _announced(self, announcement: Any) -> None:
        if self._stamps is None or announcement is None:
            return
        for klass, write in self._stamps.end(announcement).items():
            with self._lock:
                # Nobody else has written: what is here is as new as it was.
                if write.before is not None and self._known.get(klass) == write.before:
                    self._known[klass] = write.after

    def _touch(self, places: Iterable[Any]) -> None:
        if self._stamps is not None:
            self._stamps.touch({base for place in places for base in self._classes(place[0])})

    def _classes(self, klass: type) -> list[type]:
        """Return the classes as which objects of one are found."""
        bases = klass.__mro__[1:] if self.polymorphic else ()
        return [klass, *(base for base in bases if getattr(base, "__stockpyle_keys__", None))]

    # -- for `get_or_create` --------------------------------------------------------------------

    _keeps_lifetimes = True

    def _reserve(self, address: Address) -> tuple[Any, Any]:
        entry = address.entry
        if self._stamps is not None:
            self._compare(address.klass)
        found = self._get(address.klass, address.key)
        if found is not None or address.names != index_of(address.klass).keys[0]:
            return found, None
        with self._locked():
            now = reading.monotonic()
            was = self._marker(entry, now)
            if was is not None and was[0] != READERS:
                return None, (entry, None)  # somebody is writing it
            proof = object()
            self._set_marker(entry, READERS, proof, now + CREATION_LIFE)
        return None, (entry, proof)

    def _put_reserved(self, obj: Any, proof: Any, mutex: Mutex) -> bool | None:
        record = self._prepare(obj, tokens_now(self, [obj]))
        if record[3] is None:
            # Who waits for it may have come after an invalidation.
            if proof is not None:
                self._take_marker(*proof)
            return False
        if record[4] is not None and record[4] <= 0:
            return None
        if proof is None or proof[0] != record[0]:
            if not mutex.still_held():
                return False
            self.batch_put([obj])
            if proof is not None:
                self._take_marker(*proof)
            return True
        if proof[1] is None:
            return None
        announcement = self._announce([obj])
        with self._locked():
            own = self._take_marker(*proof)
            if own:
                self._store(*record)
        self._announced(announcement)
        return own

    def _unreserve(self, address: Address, proof: Any) -> None:
        self._take_marker(*proof)

    def _get_expired(self, address: Address, lifetime: Any) -> Any:
        entry = address.entry
        with self._lock:
            record = self._find_kept(self._pointers.get(entry, entry))
        if record is not None and record[3] and not self._is_valid(record[3]):
            return None
        found = None if record is None else record[0]
        return found if found is not None and matches(found, address) else None

    # -- for chains -----------------------------------------------------------------------------

    def _place(self, address: Address) -> Any:
        return address.entry

    def _peek(self, klass: type, keys: Sequence[Key], life: float) -> Peeked:
        objects = self.batch_get(klass, keys)
        if any(obj is None for obj in objects):
            return Peeked(objects, {}, False, self._tokens_before(klass))
        return Peeked(objects, {}, False)

    def _mark(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        proofs: dict[Any, Any] = {}
        with self._locked():
            now = reading.monotonic()
            for place in places:
                proof = object()
                was = self._marker(place, now)
                if was is None or was[0] != WRITERS:
                    proofs[place] = proof
                self._remove(place)
                self._set_marker(place, WRITERS, proof, now + life)
        return proofs

    def _claim(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        proofs: dict[Any, Any] = {}
        with self._locked():
            now = reading.monotonic()
            for place in places:
                if self._marker(place, now) is None and self._find(place) is None:
                    proofs[place] = proof = object()
                    self._set_marker(place, READERS, proof, now + life)
        return proofs

    def _settle(self, settlements: Iterable[Settlement], *, writes: bool) -> None:
        prepared = [
            (each, None if each.obj is None else self._prepared_or_none(each.obj, each.tokens))
            for each in settlements
        ]
        with self._locked():
            now = reading.monotonic()
            for (place, _, proof, _, _), record in prepared:
                was = self._marker(place, now)
                if was is not None and proof is not None and was[1] is proof:
                    del self._markers[place]
                    if record is not None:
                        self._store(*record)
                elif writes:
                    self._spoil_one(place, now)

    def _spoil(self, places: Iterable[Any]) -> None:
        spoiled = list(places)
        with self._locked():
            now = reading.monotonic()
            for place in spoiled:
                self._spoil_one(place, now)
        self._touch(spoiled)

    def _forget_all(self) -> None:
        with self._locked():
            for entry in list(self._records):
                self._remove(entry)
            # So nobody stores what was read before.
            self._markers.clear()
        if self._stamps is not None:
            self._stamps.touch_all()
