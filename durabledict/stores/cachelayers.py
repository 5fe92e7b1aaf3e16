"""The two kinds of cache layers: those that can compare and set, and those that cannot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..errors import DecodingError, EncodingError
from . import layers
from .base import BaseStore, Key
from .groups import Tokens, groups_of, has_sound_groups
from .guarded import GuardedStore, Settlement
from .keys import addresses_of, index_of, locate
from .layers import Layer, Look, Write, has_none

__all__ = ["layer_of"]

logger = logging.getLogger("durabledict.stores")


class GuardedLayer(Layer):
    """A layer that can compare and set."""

    store: GuardedStore

    def _place(self, obj: Any) -> Any:
        return self.store._place(addresses_of(obj, False)[0])

    def _begin(self, write: Write) -> None:
        write.tokens = self._tokens_of(write.objects.values())
        write.announcement = self.store._announce(write.objects.values())
        write.proofs = self.store._mark(write.objects, self.life)

    def _end(self, write: Write, deleted: bool) -> None:
        self.store._settle(
            [
                Settlement(place, None, write.proofs.get(place), obj)
                if deleted
                else Settlement(place, obj, write.proofs.get(place), tokens=write.tokens)
                for place, obj in write.objects.items()
            ],
            writes=True,
        )
        announcement, write.announcement = write.announcement, None
        if announcement is not None:
            self.store._announced(announcement)

    def _forget(self, objects: dict[Any, Any]) -> None:
        self.store._spoil(objects)

    def _forget_all(self) -> None:
        self.store._forget_all()

    def _look(self, klass: type, keys: Sequence[Key]) -> Look:
        objects, claims, followed, tokens = self.store._peek(klass, keys, self.life)
        look = Look(objects, True)
        look.claims, look.followed, look.tokens = dict(claims), followed, tokens
        look.tried.update(claims)
        if not has_none(objects):
            return look
        first = index_of(klass).keys[0]
        for key, obj in zip(keys, objects, strict=True):
            if obj is None and len(key) == len(first):
                address = locate(klass, key)
                if address.names == first:
                    look.tried.add(self.store._place(address))
        missing = look.tried - claims.keys()
        if missing and not followed:
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
            Settlement(place, objects.get(place), proof, tokens=look.tokens)
            for place, proof in look.claims.items()
        ]
        if look.followed:
            # Of these only the pointers: the next read finds the way, and claims the record.
            settlements += [
                Settlement(place, obj, None, tokens=look.tokens)
                for place, obj in objects.items()
                if place not in look.tried
            ]
        if settlements:
            self.store._settle(settlements, writes=False)


class UnguardedLayer(Layer):
    """A layer with the six operations alone: how long it may be wrong, its lifetimes say."""

    def _place(self, obj: Any) -> Any:
        return addresses_of(obj, False)[0].entry

    def _begin(self, write: Write) -> None:
        write.tokens = self._tokens_of(write.objects.values())
        self.store.batch_delete(list(write.objects.values()))

    def _end(self, write: Write, deleted: bool) -> None:
        objs = list(write.objects.values())
        if deleted:
            self.store.batch_delete(objs)
        else:
            self._put(objs, write.tokens)

    def _forget(self, objects: dict[Any, Any]) -> None:
        self.store.batch_delete(list(objects.values()))

    def _forget_all(self) -> None:
        raise NotImplementedError(
            f"{self.store!r} missed more than {layers.MISSED} changes, and cannot forget all it has"
        )

    def _look(self, klass: type, keys: Sequence[Key]) -> Look:
        try:
            look = Look(list(self.store.batch_get(klass, keys)), True)
        except DecodingError:
            # One by one: what is wrong with one of them is no outage, and is replaced by `_fill`.
            look = Look([self._seen(klass, key) for key in keys], True)
        if has_none(look.objects):
            look.tokens = self.store._tokens_before(klass)
        return look

    def _seen(self, klass: type, key: Key) -> Any:
        try:
            return self.store.get(klass, key)
        except DecodingError as error:
            logger.warning("%r: what is stored under %r is passed over: %s", self.store, key, error)
            return None

    def _fill(self, look: Look, objects: dict[Any, Any]) -> None:
        if objects:
            self._put(list(objects.values()), look.tokens)

    def _put(self, objs: Sequence[Any], tokens: Tokens) -> None:
        # One that cannot invalidate a group does not get what has one.
        had = [o for o in objs if has_sound_groups(o) and (self.keeps_groups or not groups_of(o))]
        try:
            self.store._put_as_of(had, tokens)
        except EncodingError:
            # One by one: the object is where it lasts already, and its not being cached no outage.
            for obj in had:
                try:
                    self.store._put_as_of([obj], tokens)
                except EncodingError as error:
                    logger.warning(
                        "%r: %s is not cached: %s", self.store, type(obj).__qualname__, error
                    )
                    self.store.delete(obj)


def layer_of(store: BaseStore, life: float) -> Layer:
    """Return the layer that a Store makes."""
    return (GuardedLayer if isinstance(store, GuardedStore) else UnguardedLayer)(store, life)
