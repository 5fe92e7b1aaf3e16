"""`BaseDictionaryStore`: a Store over whatever holds bytes under names.

One record, many keys: an object is stored once, under its first key. Its other keys, and with
``polymorphic=True`` those of its base classes, are pointers to it. Records are written before their
pointers; a read through a pointer checks that the object still has the attributes asked for, and a
pointer is only removed while it leads to the very record (rule 5.4 of docs/internals.rst).
"""

from __future__ import annotations

import logging
import pickle
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .. import coder
from ..basicencodings import PickleEncoding
from ..errors import DecodingError
from . import lifetime as clock
from .base import Key
from .cells import (
    RECORD,
    Tags,
    pack_pointer,
    pack_record,
    payload_of,
    payload_start,
    pointer_of,
    record_of,
)
from .groups import Tokens, tokens_now
from .keys import Address, addresses_of, locate_all, matches
from .lifetime import LifetimeCallback, checked_callback, lifetime_of
from .reserving import Prepared, ReservingStore, Writing

__all__ = ["BaseDictionaryStore", "stale_pointers"]

T = TypeVar("T")

logger = logging.getLogger("durabledict.stores")

#: How a record begins that does not say itself when it expires.
UNLIMITED = RECORD + bytes(8)

#: How every pickle since protocol 2 begins.
PICKLE = b"\x80"


class BaseDictionaryStore(ReservingStore):
    """A Store over something that holds bytes under names; a subclass says how.

    Three methods are needed: `_read`, `_write` and `_remove`. Those of many names have defaults
    that go name by name, and `_remove_if` has one that is not atomic.

    A get is one read; two by a key other than the first. Where the class has one key, a put is one
    write, and otherwise a read before it and one or two writes after it; so is a delete. What was
    put is not read back: of an encoding that refuses what it has encoded itself, the get will tell.
    An object with groups is one more read, of their tokens, at a put and at a get.

    :param polymorphic: objects are also found as what their base classes are
    :param lifetime_cb: a function of an object that returns its lifetime: seconds, a timedelta, a
        datetime, or None for ever; 0 or the past: it is not kept
    :param encoding: turns objects into bytes and back
    :param old_encoding: reads payloads that are not of `encoding`; nothing is written in it
    :param allow_unsigned: allow a pickle as `old_encoding` of a signed encoding

    """

    #: Whether `_write` has the store itself forget what has expired.
    expires_natively: bool = False

    #: What signatures are bound to, beside the name; see `SignedEncoding`.
    keyspace: str = "durabledict.stores"

    def __init__(
        self,
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        *,
        encoding: Any = PickleEncoding,
        old_encoding: Any = None,
        allow_unsigned: bool = False,
    ) -> None:
        coder.check_encodings(encoding, old_encoding, allow_unsigned)
        self.polymorphic = polymorphic
        self.lifetime_cb = checked_callback(lifetime_cb)
        self.encoding = encoding
        self._pickles = encoding is PickleEncoding
        self.old_encoding = old_encoding

    # -- what a subclass supplies ---------------------------------------------------------------

    @abstractmethod
    def _read(self, name: str) -> bytes | None:
        """Return what is stored under a name, or None."""

    @abstractmethod
    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        """Store something under a name.

        :param lifetime: seconds after which the store may forget it; None: never

        """

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove what is stored under a name, if there is something."""

    def _read_many(self, names: Iterable[str]) -> Mapping[str, bytes]:
        """Return what is stored, by name; a name without anything is left out."""
        return self._read_each(names)

    def _write_many(self, writings: Iterable[Writing]) -> None:
        """Store many, in this order."""
        for name, cell, lifetime in writings:
            self._write(name, cell, lifetime)

    def _remove_many(self, names: Iterable[str]) -> None:
        """Remove many."""
        for name in names:
            self._remove(name)

    def _remove_if(self, cells: Mapping[str, bytes]) -> None:
        """Remove the names under which still is what is given here.

        Best in one atomic step each: as it is written here, what another process writes in between
        is removed, too.

        """
        found = self._read_many(cells)
        self._remove_many([name for name, cell in cells.items() if found.get(name) == cell])

    # -- the six operations -----------------------------------------------------------------------

    def get(self, klass: type[T], key: Key) -> T | None:
        """Return the object, or None: one read, two by a key other than the first.

        :raises KeyError: the class is not indexed by these attributes
        :raises DecodingError: it cannot be decoded, or was refused

        """
        return self.batch_get(klass, [key])[0]

    def batch_get(self, klass: type[T], keys: Iterable[Key]) -> list[T | None]:
        """Return an object or None for each key, with as many requests as one takes."""
        addresses = locate_all(klass, keys)
        if not addresses:
            return []
        names = {address.name: None for address in addresses}
        cells, tokens = self._read_beside(names, self._beside(klass))
        targets = _targets(cells)
        records = dict(self._read_many(dict.fromkeys(targets.values()))) if targets else {}
        for name in self._invalidated({**cells, **records} if records else cells, tokens):
            cells.pop(name, None)
            records.pop(name, None)
        return [self._found(address, cells, targets, records) for address in addresses]

    def put(self, obj: Any) -> None:
        """Store an object under all its keys.

        :raises EncodingError: it cannot be encoded; nothing was stored

        """
        self.batch_put([obj])

    def batch_put(self, objs: Iterable[Any]) -> None:
        """Store objects, with as many requests as one takes; all are encoded before any is sent."""
        objs = list(objs)
        self._put_as_of(objs, tokens_now(self, objs))

    def _put_as_of(self, objs: Iterable[Any], tokens: Tokens) -> None:
        objs = list(objs)
        tags = self._tags_for(objs, tokens)
        prepared = {each.name: each for each in (self._prepare(o, tags[id(o)]) for o in objs)}
        kept = [each for each in prepared.values() if each.cell is not None]
        gone = [each for each in prepared.values() if each.cell is None]
        if kept:
            self._put_prepared(kept)
        if gone:
            self._delete_prepared([(each.name, each.pointers) for each in gone])

    def delete(self, obj: Any) -> None:
        """Remove the object with the first key of this one, and what leads to it."""
        self.batch_delete([obj])

    def batch_delete(self, objs: Iterable[Any]) -> None:
        """Remove objects, with as many requests as one takes."""
        names = [self._names(obj) for obj in objs]
        if names:
            self._delete_prepared(names)

    # -- how they do it ---------------------------------------------------------------------------

    def _names(self, obj: Any) -> tuple[str, tuple[str, ...]]:
        """Return the name of an object's record, and those of the pointers to it."""
        first, *others = [address.name for address in addresses_of(obj, self.polymorphic)]
        return first, tuple(name for name in dict.fromkeys(others) if name != first)

    def _beside(self, klass: type) -> tuple[str, ...]:
        """Return names of tokens to be read together with objects of a class."""
        return ()

    def _read_beside(
        self, names: Mapping[str, None], beside: tuple[str, ...]
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return what there is under names, and tokens."""
        cells = dict(self._read_many({**names, **dict.fromkeys(beside)} if beside else names))
        return cells, {name: cells.pop(name) for name in beside if name in cells}

    def _prepare(self, obj: Any, tags: Tags | None = ()) -> Prepared:
        """Encode an object.

        :param tags: None: it is not to be kept
        :raises EncodingError: naming what it is stored under

        """
        name, pointers = self._names(obj)
        lifetime = lifetime_of(obj, self.lifetime_cb)
        if tags is None or (lifetime is not None and lifetime <= 0):
            return Prepared(name, pointers, None, lifetime)
        expires = 0.0
        keeps = lifetime is not None and clock.keeps_expired(obj)
        if lifetime is not None and (keeps or not self.expires_natively):
            expires = clock.now() + lifetime
        if lifetime is not None and keeps:
            lifetime = min(2 * lifetime, clock.FAR)
        payload = coder.encode(self.encoding, self.keyspace, name, obj)
        return Prepared(name, pointers, pack_record(expires, pointers, payload, tags), lifetime)

    def _read_before(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the records that are about to go; what cannot be read is in nobody's way."""
        found: dict[str, bytes] = {}
        try:
            if names:
                found.update(self._read_many(names))
        except DecodingError:
            for name in names:
                try:
                    found.update(self._read_many([name]))
                except DecodingError:
                    pass
        return found

    def _put_prepared(self, prepared: Sequence[Prepared]) -> None:
        several = [each.name for each in prepared if each.pointers]
        before = self._read_before(several)
        self._write_many([(each.name, each.cell or b"", each.lifetime) for each in prepared])
        pointers = _pointer_writings(prepared)
        if pointers:
            self._write_many(pointers)
        stale = stale_pointers(before, {each.name: each.pointers for each in prepared})
        if stale:
            self._remove_if(stale)

    def _delete_prepared(self, names: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        # With polymorphic=True another object's pointer may have the name of this one's record.
        several = [name for name, pointers in names if pointers or self.polymorphic]
        before = self._read_before(several)
        records = [name for name, _ in names if not _is_pointer(before.get(name))]
        if records:
            self._remove_many(records)
        stale = {pointer: pack_pointer(name) for name, pointers in names for pointer in pointers}
        stale.update(stale_pointers(before, {}))
        if stale:
            self._remove_if(stale)

    def _found(
        self,
        address: Address,
        cells: Mapping[str, bytes],
        targets: Mapping[str, str],
        records: Mapping[str, bytes],
    ) -> Any:
        """Return the object for an address, out of what was read; None: it is not there."""
        name = targets.get(address.name, address.name)
        cell = records.get(name) if address.name in targets else cells.get(name)
        if cell is None:
            return None
        obj = self._decode(name, cell)
        return obj if matches(obj, address) else None

    def _decode(self, name: str, cell: bytes) -> Any:
        """Return the object of a record; None: it has expired, or is no record.

        :raises DecodingError: naming what it is stored under

        """
        if self._pickles and self.expires_natively and cell[:10] == UNLIMITED:
            payload = cell[payload_start(cell) :]
            if payload[:1] == PICKLE:
                # In a third of the time.
                try:
                    return pickle.loads(payload)
                except Exception:
                    pass  # read once more below, the careful way, which raises and names the record
        try:
            record = payload_of(cell)
        except DecodingError as error:
            raise _undecodable(name, error) from error
        if record is None:
            return None
        expires, payload = record
        if expires and expires <= clock.now():
            return None
        return coder.decode(self.encoding, self.old_encoding, self.keyspace, name, payload)


def _is_pointer(cell: bytes | None) -> bool:
    try:
        return cell is not None and pointer_of(cell) is not None
    except DecodingError:
        return False


def _targets(cells: Mapping[str, bytes]) -> dict[str, str]:
    """Return where the pointers lead."""
    found = {}
    for name, cell in cells.items():
        try:
            target = pointer_of(cell)
        except DecodingError as error:
            raise _undecodable(name, error) from error
        if target is not None:
            found[name] = target
    return found


def _undecodable(name: str, error: DecodingError) -> DecodingError:
    return DecodingError(f"the value of key {name!r} cannot be decoded: {error}")


def _pointer_writings(prepared: Iterable[Prepared]) -> list[Writing]:
    return [
        (pointer, pack_pointer(each.name), each.lifetime)
        for each in prepared
        for pointer in each.pointers
    ]


def stale_pointers(
    before: Mapping[str, bytes], kept: Mapping[str, tuple[str, ...]]
) -> dict[str, bytes]:
    """Return the pointers of records that were replaced, but for those that stay."""
    found = {}
    for name, cell in before.items():
        try:
            record = record_of(cell)
        except DecodingError:
            continue  # of a newer format: what leads to it is checked when it is read
        for pointer in record.pointers if record is not None else ():
            if pointer not in kept.get(name, ()):
                found[pointer] = pack_pointer(name)
    return found
