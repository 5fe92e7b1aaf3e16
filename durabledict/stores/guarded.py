"""What a chain needs of a cache layer so that no slow writer leaves an old object in it.

The protocol is rule 5.1 of docs/internals.rst: markers that are set before the durable write, and
replaced afterwards by whoever set them, if nobody else has interfered.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from .base import BaseStore, Key
from .groups import Tokens
from .keys import Address

__all__ = ["CREATION_LIFE", "SPOILED_LIFE", "GuardedStore", "Peeked", "Settlement"]

#: Seconds for which a creator's marker stands: what takes longer is not stored.
CREATION_LIFE = 3600.0

#: Seconds for which nothing is cached under a key that two writers wrote at once.
SPOILED_LIFE = 2.0


class Settlement(NamedTuple):
    """What is to come in the place of a marker.

    :param place: where the record is; see `GuardedStore._place`
    :param obj: the object; None: nothing
    :param proof: what shows that the marker is one's own; None: another writer's was there when
        it was set, or it could not be set
    :param gone: the object that was deleted, whose other keys are to go, too
    :param tokens: of `_tokens_before` or `_tokens_of`, from before the object was made: where
        these do not show that none of its groups was invalidated since, it is not stored

    """

    place: Any
    obj: Any
    proof: Any
    gone: Any = None
    tokens: Tokens = MappingProxyType({})


class Peeked(NamedTuple):
    """What a look into a layer brought.

    :param objects: an object or None for each key
    :param claims: the proofs of markers that were set on the way, as `_claim` sets them: in the
        places of records that were not there, by the first key or where a pointer led
    :param followed: whether pointers led to records, so that it took two requests; only then are
        there claims, and all that could be made
    :param tokens: as of `_tokens_before`, where something was not there

    """

    objects: list[Any]
    claims: dict[Any, Any]
    followed: bool
    tokens: Tokens = MappingProxyType({})


class GuardedStore(BaseStore):
    """A Store that can compare and set, and so can be a cache layer that is never left behind.

    These methods are for chains. A batch is one request of each of them, where the store can; a
    `_peek` by a key other than the first is two.

    """

    @abstractmethod
    def _place(self, address: Address) -> Any:
        """Return where the record with this first key is: something to hash.

        :raises TypeError: it cannot be here

        """

    @abstractmethod
    def _peek(self, klass: type, keys: Sequence[Key], life: float) -> Peeked:
        """Return an object or None for each key; what cannot be decoded is logged, and None."""

    def _announce(self, objs: Iterable[Any]) -> Any:
        """Tell other processes that these are about to be written; return what `_announced` takes.

        Where they see what is put here, there is nothing to tell.

        """
        return None

    def _announced(self, announcement: Any) -> None:
        """Tell them that it is done."""

    @abstractmethod
    def _mark(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        """Put a writer's marker in place of whatever is there, for `life` seconds.

        :return: the proof for each place, but none where another writer's marker was

        """

    @abstractmethod
    def _claim(self, places: Iterable[Any], life: float) -> dict[Any, Any]:
        """Put a reader's marker where there is nothing at all; return the proofs of those."""

    @abstractmethod
    def _settle(self, settlements: Iterable[Settlement], *, writes: bool) -> None:
        """Replace markers by objects, where they are still one's own.

        :param writes: where one is not, nothing is to be served for `SPOILED_LIFE`. For a reader,
            nothing is done there; where it has no proof, what leads to the object is stored, and
            not the object: that needs none, since it is checked when it is read

        """

    @abstractmethod
    def _spoil(self, places: Iterable[Any]) -> None:
        """Remove what is there, and serve nothing from there for `SPOILED_LIFE` seconds."""

    @abstractmethod
    def _forget_all(self) -> None:
        """Remove everything, or see to it that nobody reads it any more."""
