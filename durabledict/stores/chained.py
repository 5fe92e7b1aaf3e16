"""`ChainedStore`: Stores in order, the fastest first, the durable one last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..hiding import kind_of
from ..locks import LEASE, Lease, ProcessLease
from ..options import seconds
from .base import BaseStore, Key
from .cachelayers import layer_of
from .groups import Moments, Tokens, token_name
from .guarded import GuardedStore
from .keys import Address, first_address, matches
from .layerleases import LayerLease
from .layers import Look, has_none
from .memory import ProcessMemoryStore
from .pullthrough import PullThrough
from .threadlocal import ThreadLocalStore
from .writethrough import WriteThrough

__all__ = ["ChainedStore"]

T = TypeVar("T")

logger = logging.getLogger("durabledict.stores")

#: Seconds for which nothing is cached under a key whose writer was killed.
MARKER_LIFE = 10.0


class ChainedStore(BaseStore):
    """Writes through a chain of Stores, and reads from the first of them that has the object.

    >>> class Foo:
    ...     __stockpyle_keys__ = ["key"]
    ...     def __init__(self, key):
    ...         self.key = key
    >>> cache, lasting = ProcessMemoryStore(lifetime_cb=lambda obj: 5), ProcessMemoryStore()
    >>> store = ChainedStore([cache, lasting])
    >>> store.put(Foo(1))
    >>> cache.get(Foo, {"key": 1}) is lasting.get(Foo, {"key": 1}) is not None
    True

    The last Store is the durable one: what it raises, the caller gets. Those before it are caches:
    one that is down is logged and passed over, and is read again when it has been told what it
    missed. A get fills the caches that did not have the object.

    Neither a slow put nor a slow get leaves an old object in a cache, nor brings back one that was
    deleted, where the cache can compare and set; all Stores of this package can but
    DurableDictStore and ShoveStore. Others hold an object no longer than its lifetime: the chain
    warns.

    A batch of hits is one request to each layer, two by a key other than the first; any other batch
    is at most three, whatever its size, and one more where others write the same keys at that
    moment.

    :param stores: the Stores
    :param marker_life: seconds that a put or delete may take. A writer that is killed midway leaves
        its keys uncached for so long
    :raises ValueError: no Stores, or one twice
    :raises TypeError: something that is no Store

    """

    def __init__(self, stores: Iterable[BaseStore], *, marker_life: Any = MARKER_LIFE) -> None:
        if not isinstance(stores, Iterable):
            raise TypeError(f"stores is {kind_of(stores)}: write a list of Stores, fastest first")
        self._stores = list(stores)
        if not self._stores:
            raise ValueError("stores=[]: a chain has at least one Store, the durable one")
        for store in self._stores:
            if not isinstance(store, BaseStore):
                raise TypeError(
                    f"stores: {kind_of(store)} is no Store: put a DurableDict into a "
                    "DurableDictStore, another mapping into a ShoveStore, or subclass BaseStore"
                )
        if len(set(map(id, self._stores))) < len(self._stores):
            # Its own markers would be in the way of what is put.
            raise ValueError(f"stores={self._stores!r}: one of them is there twice")
        life = seconds(marker_life)
        if life is None or life <= 0:
            raise ValueError(f"marker_life={marker_life!r}: write seconds above 0, or a timedelta")
        *caches, self._last = self._stores
        self._layers = [layer_of(store, life) for store in caches]
        self._hooks = [
            store._before_stockpyle_deserialize
            for store in self._stores
            if type(store)._before_stockpyle_deserialize
            is not BaseStore._before_stockpyle_deserialize
        ]
        self._whole: Callable[[Any], bool] | None = None
        if type(self._last)._is_whole is not BaseStore._is_whole:
            self._whole = self._last._is_whole
            for layer in self._layers:
                layer.is_whole = self._whole
        first = self._stores[0]
        # Memory is never down, so that a hit there needs no more than its own `get`.
        is_memory = type(first) is ProcessMemoryStore and first.stamp is None
        self._first_get = first.get if caches and is_memory else None
        self._warn()

    def __repr__(self) -> str:
        return f"ChainedStore({self._stores!r})"

    @property
    def shared(self) -> bool:  # type: ignore[override]  # the last one knows
        """Whether other processes see what is put here."""
        return self._last.shared

    def _warn(self) -> None:
        for place, store in enumerate(self._stores[:-1]):
            if not isinstance(store, GuardedStore):
                logger.warning(
                    "the layer %r cannot compare and set: beside other writers it may hold an old "
                    "object as long as its lifetime",
                    store,
                )
            below = self._stores[place + 1 :]
            remedies = ("lifetime_cb", "stamp")
            if store.shared or any(getattr(store, name, None) is not None for name in remedies):
                continue
            if isinstance(store, ThreadLocalStore):
                what, others = "thread", not all(isinstance(s, ThreadLocalStore) for s in below)
            else:
                what, others = "process", any(each.shared for each in below)
            if others:
                logger.warning(
                    "the layer %r is of this %s alone, in front of one that others write to, and "
                    "never hears of it: give it a lifetime_cb=, lambda obj: 5 say, or a stamp=, a "
                    "client of the memcached or Redis that is to tell of changes",
                    store,
                    what,
                )

    # -- reading ----------------------------------------------------------------------------------

    def get(self, klass: type[T], key: Key) -> T | None:
        """Return the object from the first layer that has it, or None.

        :raises KeyError: no layer is indexed by these attributes

        """
        found: T | None = None
        look: Look | None = None
        if self._first_get is not None:
            try:
                found = self._first_get(klass, key)
            except (KeyError, TypeError):
                pass  # the layers below may know better
            if found is not None and self._whole is not None and not self._whole(found):
                found = None
        elif self._layers:
            look = self._layers[0].look(klass, [key])
            found = look.objects[0]
        if found is None:
            return self._get_many(klass, [key], look)[0]
        return self._handed_out(found) if self._hooks else found

    def batch_get(self, klass: type[T], keys: Iterable[Key]) -> list[T | None]:
        """Return an object or None for each key; each layer is asked for what is still missing.

        :raises KeyError: no layer is indexed by these attributes

        """
        return self._get_many(klass, list(keys))

    def _get_many(
        self, klass: type[T], wanted: list[Key], first: Look | None = None
    ) -> list[T | None]:
        """Return an object or None for each key.

        :param first: what the first layer told, where it has been asked already

        """
        if first is None and wanted and self._layers:
            first = self._layers[0].look(klass, wanted)
        if first is not None and not has_none(first.objects):
            return self._all_handed_out(first.objects)
        pulled = PullThrough(self._layers, self._last, klass, wanted)
        return self._all_handed_out(pulled.get(first))

    def _all_handed_out(self, found: list[Any]) -> list[Any]:
        if not self._hooks:
            return found
        return [obj if obj is None else self._handed_out(obj) for obj in found]

    def _handed_out(self, obj: T) -> T:
        for hook in self._hooks:
            changed = hook(obj)
            if changed is not None:
                obj = changed
        return obj

    # -- writing ----------------------------------------------------------------------------------

    def put(self, obj: Any) -> None:
        """Store the object in the last Store, then in the others."""
        self.batch_put([obj])

    def batch_put(self, objs: Iterable[Any]) -> None:
        """Store the objects in the last Store, then in the others."""
        self._write(list(objs), deleted=False)

    def delete(self, obj: Any) -> None:
        """Remove the object from the last Store, and from the others."""
        self.batch_delete([obj])

    def batch_delete(self, objs: Iterable[Any]) -> None:
        """Remove the objects from the last Store, and from the others."""
        self._write(list(objs), deleted=True)

    def delete_key(self, klass: type, key: Key) -> None:
        """Remove the object that has these attributes from all layers.

        Which one it is, the last Store says. What caches alone find may have other attributes by
        now: they forget it, and it is removed below if it has these still.

        :raises KeyError: no layer is indexed by them

        """
        cached = {}
        for layer in self._layers:
            look = layer.look(klass, [key])
            cached.update({first_address(obj): obj for obj in look.objects if obj is not None})
            layer.fill(look, [])
        gone: list[Any] = []
        try:
            found = self._last.get(klass, key)
        except KeyError:
            if not cached:
                raise
            asked = Address(klass, tuple(key), tuple(key.values()))
            for first in list(cached):
                lasting = self._last.get(first.klass, first.key)
                if lasting is not None and matches(lasting, asked):
                    gone.append(lasting)
                    del cached[first]
        else:
            if found is not None:
                gone.append(found)
                cached.pop(first_address(found), None)
        self._write(gone, deleted=True)
        self._write(list(cached.values()), deleted=True, cached_only=True)

    def _write(self, objs: list[Any], deleted: bool, *, cached_only: bool = False) -> None:
        if not objs:
            return
        writing = WriteThrough(self._layers)
        told = [layer.store for layer in self._layers]
        try:
            if cached_only:
                writing.begin((), objs)
            else:
                self._last._write_through(objs, deleted, writing.begin, told)
        except BaseException:
            writing.abandon()
            raise
        writing.end()

    def invalidate_group(self, group: Any, *, durable: bool = False) -> None:
        """Have no object of a group be served by the caches any more: what is below is asked.

        One or two requests to each, however many objects. A cache that is down is told later, and
        not read before. The last Store keeps what it has: there it is not out of date.

        :param group: as classes name it in ``__stockpyle_groups__``
        :param durable: in the last Store as well, before the caches: if that is a cache, too
        :raises TypeError: it cannot be a group

        """
        token_name(group)
        if durable:
            self._last.invalidate_group(group)
        # From below: else a get fills a cache from the next one, in between.
        for layer in reversed(self._layers):
            layer.invalidate_group(group)

    def _moments(self, klass: type) -> Moments:
        found: dict[int, Tokens] = {}
        for store in self._stores:
            try:
                found.update(store._moments(klass))
            except Exception as error:
                if store is self._last:
                    raise
                logger.warning("the layer %r is passed over: %s", store, error)
                # Nothing of a group is kept there.
                found[id(store)] = {}
        return found

    def _invalidate_as_layer(self, group: Any) -> None:
        self.invalidate_group(group, durable=True)

    @property
    def _keeps_lifetimes(self) -> bool:  # type: ignore[override]  # as the Stores do
        return any(store._keeps_lifetimes for store in self._stores)

    def _get_expired(self, address: Address, lifetime: Any) -> Any:
        for store in self._stores:
            try:
                found = store._get_expired(address, lifetime)
            except KeyError:
                continue  # not indexed there
            except Exception as error:
                if store is self._last:
                    raise
                logger.warning("the layer %r is passed over: %s", store, error)
                continue
            if found is not None and self._last._is_whole(found):
                return self._handed_out(found)
        return None

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        """Return a lock of the lowest Store that has one which other processes see."""
        for store in reversed(self._stores):
            found = store._lease(name, seconds)
            if not isinstance(found, ProcessLease):
                return found if store is self._last else LayerLease(found)
        return super()._lease(name, seconds)

    def _is_whole(self, obj: Any) -> bool:
        return self._last._is_whole(obj)

    def release(self) -> None:
        """Release all Stores of the chain; what the first of them raised is raised at the end."""
        errors = []
        for store in self._stores:
            try:
                store.release()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
