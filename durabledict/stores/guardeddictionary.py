"""A Store over bytes under names that can compare and set: what memcached's and Redis's share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DecodingError
from . import lifetime as clock
from .base import Key
from .cells import Tags, is_record, pack_pointer, payload_of, pointer_of
from .dictionary import BaseDictionaryStore
from .groups import ANY, Tokens, groups_named_by, has_sound_groups, may_have_groups
from .guarded import GuardedStore, Peeked, Settlement
from .keys import Address, index_of, locate_all, matches
from .reserving import Prepared, Writing

__all__ = ["Expired", "GuardedDictionaryStore", "SettledCell", "has_expired"]

logger = logging.getLogger("durabledict.stores")


class SettledCell(NamedTuple):
    """What is to come in the place of a marker, as bytes.

    :param name: of the record
    :param cell: the record; None: nothing
    :param lifetime: in seconds; None: for ever
    :param proof: of `_mark_cells` or `_read_or_claim`; None: the marker is not one's own alone

    """

    name: str
    cell: bytes | None
    lifetime: float | None
    proof: Any


class Expired(NamedTuple):
    """The proof of a record that has expired, and is kept for those who create it anew.

    A reader may put what is below in its place, and leaves it where there is nothing.

    :param proof: as of a marker

    """

    proof: Any


def has_expired(cell: bytes) -> bool:
    """Whether a cell is a record that has expired."""
    try:
        found = payload_of(cell)
    except DecodingError:
        return False
    return found is not None and bool(found[0]) and found[0] <= clock.now()


class GuardedDictionaryStore(BaseDictionaryStore, GuardedStore):
    """Makes of four operations on bytes what a chain needs of a layer.

    :param prefix: what all names begin with
    :param args: those of `BaseDictionaryStore`, as `encodings`
    :raises TypeError: a prefix that is no str

    """

    expires_natively = True

    def __init__(self, prefix: str, *args: Any, **encodings: Any) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f'prefix={prefix!r}: write a str, "objects:" say')
        super().__init__(*args, **encodings)
        self.keyspace = self.prefix = prefix

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prefix={self.prefix!r})"

    # One is a batch of one: the requests of a batch are a subclass's to write.

    def _read(self, name: str) -> bytes | None:
        return self._read_many([name]).get(name)

    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        self._write_many([(name, cell, lifetime)])

    def _remove(self, name: str) -> None:
        self._remove_many([name])

    # Tokens are read in one request, and those that a class names together with its objects.

    def _read_tokens(self, names: Iterable[str]) -> dict[str, bytes]:
        return dict(self._read_many(names))

    def _beside(self, klass: type) -> tuple[str, ...]:
        return groups_named_by(klass)

    def _tokens_before(self, klass: type) -> Tokens:
        if not may_have_groups(klass):
            return {}
        return self._add_tokens(dict.fromkeys([*groups_named_by(klass), ANY]))

    @abstractmethod
    def _mark_cells(self, names: Sequence[str], life: float) -> dict[str, Any]:
        """Put writers' markers; return the proofs, but none where another writer's was."""

    @abstractmethod
    def _read_or_claim(
        self, names: Sequence[str], life: float
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Return what there is, and the proofs of readers' markers put where there is nothing.

        Where there is a record that has expired, its own proof, as `Expired`.

        """

    @abstractmethod
    def _settle_cells(
        self,
        settled: Sequence[SettledCell],
        pointers: Sequence[Writing],
        removed: Mapping[str, bytes],
        writes: bool,
    ) -> None:
        """Replace one's own markers; then write pointers, and remove those that are still these."""

    @abstractmethod
    def _spoil_cells(self, names: Sequence[str]) -> None:
        """Put nobody's markers, which expire soon."""

    def _place(self, address: Address) -> str:
        return address.name

    def _peek(self, klass: type, keys: Sequence[Key], life: float) -> Peeked:
        addresses = locate_all(klass, keys)
        names = [address.name for address in addresses]
        has_groups = may_have_groups(klass)
        beside = (*groups_named_by(klass), ANY) if has_groups else ()
        cells, tokens = self._read_beside(dict.fromkeys(names), beside)
        objects: list[Any] = []
        led: list[tuple[int, str]] = []
        # An invalid one, as well, would be in the way of every fill.
        broken = self._take_invalidated(cells, tokens)
        for place, (name, address) in enumerate(zip(names, addresses, strict=True)):
            cell = cells.get(name)
            obj = None
            if cell is not None:
                target = self._target(name, cell) if cell[:1] == b"P" else None
                if target is None:
                    obj = self._seen(name, cell, address, broken)
                else:
                    led.append((place, target))
            objects.append(obj)
        if broken:
            # Else it would be in the way of every fill, and be logged at each get.
            self._remove_if(broken)
        if has_groups and ANY not in tokens and (led or any(obj is None for obj in objects)):
            tokens.update(self._add_tokens([ANY]))
        if not led:
            return Peeked(objects, {}, False, tokens)
        # In the same request what is missing by its first key: else it would take one more.
        first = index_of(klass).keys[0]
        led += [
            (place, name)
            for place, (name, address) in enumerate(zip(names, addresses, strict=True))
            if name not in cells and address.names == first
        ]
        records, claims = self._read_or_claim(list(dict.fromkeys(t for _, t in led)), life)
        broken = self._take_invalidated(records, tokens)
        for place, target in led:
            cell = records.get(target)
            if cell is not None:
                objects[place] = self._seen(target, cell, addresses[place], broken)
        if broken:
            self._remove_if(broken)
        return Peeked(objects, claims, True, tokens)

    def _take_invalidated(self, cells: dict[str, bytes], tokens: Tokens) -> dict[str, bytes]:
        return {name: cells.pop(name) for name in self._invalidated(cells, tokens)}

    def _target(self, name: str, cell: bytes) -> str | None:
        try:
            return pointer_of(cell)
        except DecodingError as error:
            logger.warning("%s: what is stored under %r is passed over: %s", self, name, error)
            return None

    def _seen(self, name: str, cell: bytes, address: Address, broken: dict[str, bytes]) -> Any:
        try:
            obj = self._decode(name, cell)
        except DecodingError as error:
            # The layers below have it: only a store that is alone has to tell its reader.
            logger.warning("%s: what is stored under %r is passed over: %s", self, name, error)
            if is_record(cell):  # one of a newer format is for others to read
                broken[name] = cell
            return None
        return obj if obj is not None and matches(obj, address) else None

    def _mark(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        names = list(places)
        return self._mark_cells(names, life) if names else {}

    def _claim(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        names = list(places)
        return self._read_or_claim(names, life)[1] if names else {}

    def _settle(self, settlements: Iterable[Settlement], *, writes: bool) -> None:
        settled: list[SettledCell] = []
        pointers: list[Writing] = []
        removed: dict[str, bytes] = {}
        told = list(settlements)
        tags = self._tags_as_of(told)
        for place, obj, proof, gone, _ in told:
            prepared = None if obj is None else self._prepared_or_none(obj, tags[id(obj)])
            if isinstance(proof, Expired):
                if prepared is None or prepared.cell is None:
                    continue
                proof = proof.proof
            if prepared is None or prepared.cell is None:
                settled.append(SettledCell(place, None, None, proof))
            else:
                settled.append(SettledCell(place, prepared.cell, prepared.lifetime, proof))
                if proof is not None or not writes:
                    pointers += [
                        (name, pack_pointer(place), prepared.lifetime) for name in prepared.pointers
                    ]
            if gone is not None:
                removed.update({name: pack_pointer(place) for name in self._names(gone)[1]})
        if settled:
            self._settle_cells(settled, pointers, removed, writes)

    def _tags_as_of(self, settlements: Iterable[Settlement]) -> dict[int, Tags | None]:
        """Return the tags of the objects, each as of its tokens."""
        moments: dict[int, tuple[Tokens, list[Any]]] = {}
        tags: dict[int, Tags | None] = {}
        for each in settlements:
            if each.obj is not None and has_sound_groups(each.obj):
                moments.setdefault(id(each.tokens), (each.tokens, []))[1].append(each.obj)
            else:
                tags[id(each.obj)] = None
        for tokens, objs in moments.values():
            tags.update(self._tags_for(objs, tokens))
        return tags

    def _prepared_or_none(self, obj: Any, tags: Tags | None) -> Prepared | None:
        try:
            return self._prepare(obj, tags)
        except Exception as error:
            # The object is where it lasts already. That it is not cached is no reason to raise.
            logger.warning("%s: %s is not cached: %s", self, type(obj).__qualname__, error)
            return None

    def _spoil(self, places: Iterable[Any]) -> None:
        names = list(places)
        if names:
            self._spoil_cells(names)
