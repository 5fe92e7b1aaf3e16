"""`get_or_create` of a Store over bytes under names: what is there, and what shows it still is.

`BaseDictionaryStore` is made of this. A Store that can compare and set overrides `_reserve_cell`
and `_put_if`, so that a creator that was overtaken overwrites nothing (rule 5.7 of
docs/internals.rst).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import coder
from ..locks import Mutex
from . import lifetime as clock
from .cells import Tags, payload_of, pointer_of
from .groups import tokens_now
from .keys import Address, index_of, matches
from .lifetime import LifetimeCallback, lifetime_of, remaining
from .tagging import TaggingStore

__all__ = ["BUSY", "Prepared", "Reservation", "ReservingStore", "Writing"]

#: A name, what is to be stored under it, and for how many seconds (None: for ever).
Writing = tuple[str, bytes, "float | None"]


class Prepared(NamedTuple):
    """An object, ready to be stored.

    :param name: of its record
    :param pointers: names of the pointers to it
    :param cell: the record; None: it is not kept. Its lifetime is over, or a group of it may have
        been invalidated since it was made
    :param lifetime: in seconds; None: for ever

    """

    name: str
    pointers: tuple[str, ...]
    cell: bytes | None
    lifetime: float | None


class Reservation(NamedTuple):
    """What shows that nobody has written a record since it was looked for.

    :param name: of the record
    :param token: for `_put_if`; None: nothing shows it

    """

    name: str
    token: Any


#: A token: somebody else is writing the record at this moment, so what is created is not stored.
BUSY = object()


class ReservingStore(TaggingStore):
    """Creates one object at a time, over what a subclass reads and writes."""

    lifetime_cb: LifetimeCallback | None
    encoding: Any
    old_encoding: Any
    keyspace: str

    @abstractmethod
    def _found(
        self,
        address: Address,
        cells: Mapping[str, bytes],
        targets: Mapping[str, str],
        records: Mapping[str, bytes],
    ) -> Any:
        """Return the object for an address, out of what was read; None: it is not there."""

    @abstractmethod
    def _prepare(self, obj: Any, tags: Tags | None = ()) -> Prepared:
        """Encode an object."""

    @abstractmethod
    def _put_prepared(self, prepared: Sequence[Prepared]) -> None:
        """Store records, and then their pointers."""

    _keeps_lifetimes = True

    def _reserve_cell(self, name: str) -> tuple[bytes | None, Any]:
        """Return what there is under a name, and a token of it for `_put_if`; None: it has none.

        A subclass that can compare and set has a better one.

        """
        return self._read(name), None

    def _put_if(self, prepared: Prepared, token: Any) -> bool:
        """Store a record and its pointers if there still is what a token is of."""
        raise NotImplementedError(f"{type(self).__name__} gives tokens, and has no _put_if()")

    def _unreserve_cell(self, proof: Reservation) -> None:
        """Take back what `_reserve_cell` left under a name, if it left something."""

    def _reserve(self, address: Address) -> tuple[Any, Any]:
        if address.names != index_of(address.klass).keys[0]:
            # Where its record will be, only the object tells.
            return super()._reserve(address)
        name = address.name
        cell, token = self._reserve_cell(name)
        if cell is not None and cell[:1] == b"P":
            found = self.get(address.klass, address.key)
        elif cell is not None and self._invalidated({name: cell}, {}):
            found = None
        else:
            found = self._found(address, {} if cell is None else {name: cell}, {}, {})
        return found, Reservation(name, token)

    def _put_reserved(self, obj: Any, proof: Any, mutex: Mutex) -> bool | None:
        tags = self._tags_for([obj], tokens_now(self, [obj]))[id(obj)]
        if tags is None:
            # Who waits for it may have come after the invalidation.
            if proof is not None:
                self._unreserve_cell(proof)
            return False
        prepared = self._prepare(obj, tags)
        if prepared.cell is None or (proof is not None and proof.token is BUSY):
            return None
        # An object of a subclass is elsewhere than was expected.
        is_there = proof is not None and proof.name == prepared.name
        if is_there and proof.token is not None:
            return self._put_if(prepared, proof.token)
        if not mutex.still_held():
            return False
        self._put_prepared([prepared])
        if proof is not None and not is_there:
            self._unreserve_cell(proof)
        return True

    def _unreserve(self, address: Address, proof: Any) -> None:
        self._unreserve_cell(proof)

    def _get_expired(self, address: Address, lifetime: Any) -> Any:
        name = address.name
        cell = self._read(name)
        target = None if cell is None else pointer_of(cell)
        if target is not None:
            name, cell = target, self._read(target)
        record = None if cell is None else payload_of(cell)
        if cell is None or record is None or self._invalidated({name: cell}, {}):
            return None
        expires, payload = record
        obj = coder.decode(self.encoding, self.old_encoding, self.keyspace, name, payload)
        if not matches(obj, address):
            return None
        over = clock.now() - expires if expires else -1.0
        if over >= 0:
            life = lifetime_of(obj, self.lifetime_cb) if lifetime is None else remaining(lifetime)
            if life is None or over >= life:
                return None
        return obj
