"""The cache layers of a chain: what each does before and after a durable write, and at a miss.

Nothing here raises what a layer raises: a cache that is down is logged, and passed over until it
answers and has been told what it missed (rules 5.1 and 5.2 of docs/internals.rst).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from .. import reading
from ..outage import backoff
from .base import BaseStore, Key
from .guarded import GuardedStore, Settlement
from .keys import addresses_of, index_of, locate

__all__ = ["Layer", "Look", "Write", "layer_of"]

logger = logging.getLogger("durabledict.stores")

#: Places whose change a layer missed that are remembered one by one.
MISSED = 1000


class Write:
    """A put or delete that is under way, as one layer knows it.

    :param objects: the objects by their places in the layer
    :param proofs: of the markers
    :param missed: whether the layer could not be told

    """

    __slots__ = ("missed", "objects", "proofs")

    def __init__(self, objects: dict[Any, Any]) -> None:
        self.objects = objects
        self.proofs: dict[Any, Any] = {}
        self.missed = False


class Look:
    """What a layer told at a get, and what is to be settled when the layers below have told theirs.

    :param objects: an object or None for each key
    :param answered: whether the layer could be asked at all

    """

    __slots__ = ("answered", "claims", "followed", "objects", "tried")

    def __init__(self, objects: list[Any], answered: bool) -> None:
        self.objects = objects
        self.answered = answered
        self.claims: dict[Any, Any] = {}
        #: Places that a marker was to be put into: not twice.
        self.tried: set[Any] = set()
        self.followed = False


class Layer(ABC):
    """One cache layer.

    :param store: the Store
    :param life: seconds that a marker stands

    """

    def __init__(self, store: BaseStore, life: float) -> None:
        self.store: Any = store
        self.life = life
        self._lock = threading.Lock()
        # place -> object: changes that the layer missed, and is to be told.
        self._missed: dict[Any, Any] = {}
        # The same of writes that are not over: told at their end, by themselves.
        self._under_way: dict[int, Write] = {}
        self._attempts = 0
        self._retry_at = 0.0
        self._overflowed = False

    # -- outages ----------------------------------------------------------------------------------

    @property
    def is_away(self) -> bool:
        """Whether it failed a moment ago, and is left alone for now."""
        return self._attempts > 0 and reading.monotonic() < self._retry_at

    def is_readable(self) -> bool:
        """Whether it may be read: it is there, and has been told all that it missed."""
        if self.is_away:
            return False
        if self._missed or self._overflowed:
            self._deliver()
        return not (self._missed or self._under_way or self._overflowed)

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._attempts += 1
            self._retry_at = reading.monotonic() + backoff(self._attempts)
            is_first = self._attempts == 1
        level = logging.WARNING if is_first else logging.DEBUG
        logger.log(level, "the cache layer %r is passed over: %s", self.store, error)

    def _answered(self) -> None:
        if self._attempts:
            with self._lock:
                self._attempts = 0
            logger.info("the cache layer %r answers again", self.store)

    def _deliver(self) -> None:
        """Tell the layer what it missed."""
        with self._lock:
            missed = dict(self._missed)
            overflowed = self._overflowed
        try:
            if overflowed:
                self._forget_all()
            if missed:
                self._forget(missed)
        except Exception as error:
            self._failed(error)
            return
        self._answered()
        with self._lock:
            for place, obj in missed.items():
                # One that was missed once more meanwhile stays.
                if self._missed.get(place) is obj:
                    del self._missed[place]
            if overflowed:
                self._overflowed = False

    def _miss(self, write: Write) -> None:
        with self._lock:
            self._missed.update(write.objects)
            if len(self._missed) > MISSED:
                self._missed.clear()
                self._overflowed = True

    # -- writes -----------------------------------------------------------------------------------

    def begin(self, objs: Iterable[Any]) -> Write:
        """Before the durable write: see that nobody fills the layer with what is there now."""
        write = Write(self._placed(objs))
        if not write.objects:
            return write
        if not self.is_away:
            try:
                write.proofs = self._begin(write.objects)
            except Exception as error:
                self._failed(error)
            else:
                self._answered()
                return write
        # From now on nobody of this process reads it.
        write.missed = True
        with self._lock:
            self._under_way[id(write)] = write
        return write

    def end(self, write: Write, deleted: bool) -> None:
        """After it: store the objects, or remove them."""
        if not write.objects:
            return
        if not self.is_away:
            try:
                if write.missed:
                    self._forget(write.objects)
                else:
                    self._end(write, deleted)
            except Exception as error:
                self._failed(error)
            else:
                self._answered()
                self._close(write)
                return
        self._miss(write)
        self._close(write)

    def abandon(self, write: Write) -> None:
        """After a durable write that failed: whether it was done is not known."""
        if write.missed:
            self._miss(write)
            self._close(write)

    def _close(self, write: Write) -> None:
        if write.missed:
            with self._lock:
                del self._under_way[id(write)]

    # -- reads ------------------------------------------------------------------------------------

    def look(self, klass: type, keys: Sequence[Key]) -> Look:
        """Ask for objects; what is not there is None."""
        nothing = Look([None] * len(keys), False)
        if not self.is_readable():
            return nothing
        try:
            look = self._look(klass, keys)
        except (KeyError, TypeError) as error:
            # A key or a class that it cannot have is a miss.
            logger.debug("the cache layer %r cannot be asked for %s: %s", self.store, klass, error)
            return nothing
        except Exception as error:
            self._failed(error)
            return nothing
        self._answered()
        return look

    def fill(self, look: Look, objs: Sequence[Any]) -> None:
        """Store what the layers below had, and take back the markers of what they had not."""
        if not look.answered:
            return
        try:
            self._fill(look, self._placed(objs))
        except Exception as error:
            # A marker that stays expires: nothing to be told later.
            self._failed(error)

    def claim(self, look: Look, objs: Sequence[Any]) -> list[Any]:
        """Put markers for objects that were found by another key than their first.

        :return: those that are to be read once more, now, by their first key

        """
        return []

    def _placed(self, objs: Iterable[Any]) -> dict[Any, Any]:
        """Return the objects that the layer can have, by their places."""
        found = {}
        for obj in objs:
            try:
                found[self._place(obj)] = obj
            except (KeyError, TypeError, AttributeError) as error:
                logger.debug("the cache layer %r cannot have %r: %s", self.store, type(obj), error)
        return found

    # -- what kinds of layers differ in -----------------------------------------------------------

    @abstractmethod
    def _place(self, obj: Any) -> Any: ...

    @abstractmethod
    def _begin(self, objects: dict[Any, Any]) -> dict[Any, Any]: ...

    @abstractmethod
    def _end(self, write: Write, deleted: bool) -> None: ...

    @abstractmethod
    def _forget(self, objects: dict[Any, Any]) -> None: ...

    @abstractmethod
    def _forget_all(self) -> None: ...

    @abstractmethod
    def _look(self, klass: type, keys: Sequence[Key]) -> Look: ...

    @abstractmethod
    def _fill(self, look: Look, objects: dict[Any, Any]) -> None: ...


class GuardedLayer(Layer):
    """A layer that can compare and set."""

    store: GuardedStore

    def _place(self, obj: Any) -> Any:
        return self.store._place(addresses_of(obj, False)[0])

    def _begin(self, objects: dict[Any, Any]) -> dict[Any, Any]:
        return self.store._mark(objects, self.life)

    def _end(self, write: Write, deleted: bool) -> None:
        self.store._settle(
            [
                Settlement(place, None, write.proofs.get(place), obj)
                if deleted
                else Settlement(place, obj, write.proofs.get(place))
                for place, obj in write.objects.items()
            ],
            writes=True,
        )

    def _forget(self, objects: dict[Any, Any]) -> None:
        self.store._spoil(objects)

    def _forget_all(self) -> None:
        self.store._forget_all()

    def _look(self, klass: type, keys: Sequence[Key]) -> Look:
        objects, claims, followed = self.store._peek(klass, keys, self.life)
        look = Look(objects, True)
        look.claims, look.followed = dict(claims), followed
        look.tried.update(claims)
        if None not in objects:
            return look
        first = index_of(klass).keys[0]
        for key, obj in zip(keys, objects, strict=True):
            if obj is None and len(key) == len(first):
                address = locate(klass, key)
                if address.names == first:
                    look.tried.add(self.store._place(address))
        missing = look.tried - claims.keys()
        if missing:
            # Before the layers below are read: so what is written from now on is noticed.
            look.claims.update(self.store._claim(missing, self.life))
        return look

    def claim(self, look: Look, objs: Sequence[Any]) -> list[Any]:
        """Put markers for objects that were found by another key than their first."""
        if not look.answered or look.followed:
            return []
        placed = {p: obj for p, obj in self._placed(objs).items() if p not in look.tried}
        if not placed:
            return []
        try:
            claims = self.store._claim(placed, self.life)
        except Exception as error:
            self._failed(error)
            return []
        look.tried.update(placed)
        look.claims.update(claims)
        return [placed[place] for place in claims]

    def _fill(self, look: Look, objects: dict[Any, Any]) -> None:
        settlements = [
            Settlement(place, objects.get(place), proof) for place, proof in look.claims.items()
        ]
        if look.followed:
            # Of these only the pointers: the next read finds the way, and claims the record.
            settlements += [
                Settlement(place, obj, None)
                for place, obj in objects.items()
                if place not in look.tried
            ]
        if settlements:
            self.store._settle(settlements, writes=False)


class UnguardedLayer(Layer):
    """A layer with the six operations alone: how long it may be wrong, its lifetimes say."""

    def _place(self, obj: Any) -> Any:
        return addresses_of(obj, False)[0].entry

    def _begin(self, objects: dict[Any, Any]) -> dict[Any, Any]:
        self.store.batch_delete(list(objects.values()))
        return {}

    def _end(self, write: Write, deleted: bool) -> None:
        objs = list(write.objects.values())
        if deleted:
            self.store.batch_delete(objs)
        else:
            self.store.batch_put(objs)

    def _forget(self, objects: dict[Any, Any]) -> None:
        self.store.batch_delete(list(objects.values()))

    def _forget_all(self) -> None:
        raise NotImplementedError(
            f"{self.store!r} was down for more than {MISSED} changes, and cannot forget all it has"
        )

    def _look(self, klass: type, keys: Sequence[Key]) -> Look:
        return Look(list(self.store.batch_get(klass, keys)), True)

    def _fill(self, look: Look, objects: dict[Any, Any]) -> None:
        if objects:
            self.store.batch_put(list(objects.values()))


def layer_of(store: BaseStore, life: float) -> Layer:
    """Return the layer that a Store makes."""
    return (GuardedLayer if isinstance(store, GuardedStore) else UnguardedLayer)(store, life)
