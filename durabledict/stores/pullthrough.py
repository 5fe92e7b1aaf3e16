"""One get through the cache layers: what each of them has, and what fills those above.

`ChainedStore` does it for each get that its first layer does not answer (rule 5.1 of
docs/internals.rst); `writethrough` is the other direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import BaseStore, Key
from .keys import first_address
from .layers import Layer, Look

__all__ = ["PullThrough"]


class PullThrough:
    """A get that is under way.

    :param layers: the layers, the fastest first
    :param last: the Store below them
    :param klass: the class of the objects
    :param wanted: their keys

    """

    def __init__(
        self, layers: Sequence[Layer], last: BaseStore, klass: type, wanted: Sequence[Key]
    ) -> None:
        self._layers = layers
        self._last = last
        self._klass = klass
        self._wanted = wanted
        self._found: list[Any] = [None] * len(wanted)
        # Which layer, or Store, each was found in.
        self._sources: list[Any] = [None] * len(wanted)
        # What each layer told, and the places in `wanted` that it was asked for.
        self._looks: list[tuple[Layer, Look, list[int]]] = []

    def get(self, first: Look | None) -> list[Any]:
        """Return an object or None for each key, and fill the layers that did not have it.

        :param first: what the first layer told, where it has been asked already
        :raises KeyError: no layer is indexed by these attributes

        """
        missing = list(range(len(self._wanted)))
        try:
            for layer in self._layers:
                if not missing:
                    break
                look = first or layer.look(self._klass, self._keys(missing))
                first = None
                self._looks.append((layer, look, missing))
                missing = self._take(look.objects, missing, layer)
            if missing:
                self._take(self._ask_last(self._keys(missing)), missing, self._last)
            again = self._claim()
        except BaseException:
            for layer, look, _ in self._looks:
                layer.fill(look, [])
            raise
        for layer, look, asked in self._looks:
            objs = [self._found[place] for place in asked]
            missed = [o for o, had in zip(objs, look.objects, strict=True) if had is None]
            layer.fill(look, [again.get(id(obj), obj) for obj in missed if obj is not None])
        return self._found

    def _keys(self, places: list[int]) -> list[Key]:
        return [self._wanted[place] for place in places]

    def _take(self, told: Sequence[Any], places: list[int], source: Layer | BaseStore) -> list[int]:
        """Take what was told; return the places that are still without an object."""
        for place, obj in zip(places, told, strict=True):
            if obj is not None:
                self._found[place], self._sources[place] = obj, source
        return [place for place in places if self._found[place] is None]

    def _ask_last(self, keys: list[Key]) -> Sequence[Any]:
        try:
            return self._last.batch_get(self._klass, keys)
        except KeyError:
            if any(look.answered for _, look, _ in self._looks):
                return [None] * len(keys)
            raise

    def _claim(self) -> dict[int, Any]:
        """Put markers for what was found by another key than its first, and read that once more.

        Before it was found, nobody could know where its record is. So what was read then may be
        older than the marker.

        :return: what was read, by the `id` of the object that was found

        """
        found, sources = self._found, self._sources
        needed: dict[int, int] = {}
        for layer, look, asked in self._looks:
            objs = {
                id(found[place]): place
                for place, had in zip(asked, look.objects, strict=True)
                if had is None and found[place] is not None
            }
            for obj in layer.claim(look, [found[place] for place in objs.values()]):
                needed[id(obj)] = objs[id(obj)]
        again: dict[int, Any] = {}
        groups: dict[tuple[int, type], list[int]] = {}
        for place in needed.values():
            groups.setdefault((id(sources[place]), type(found[place])), []).append(place)
        for (_, klass), places in groups.items():
            keys = [first_address(found[place]).key for place in places]
            told = _told(sources[places[0]], klass, keys)
            for place, obj in zip(places, told, strict=True):
                again[id(found[place])] = obj
        return again


def _told(source: Any, klass: type, keys: Sequence[Key]) -> Sequence[Any]:
    """Ask the last Store, or a layer, which may be down since it was asked before."""
    if not isinstance(source, Layer):
        told: Sequence[Any] = source.batch_get(klass, keys)
        return told
    look = source.look(klass, keys)
    source.fill(look, [])
    return look.objects
