"""`DurableDictStore`: objects in any DurableDict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..base import DurableDict
from ..basicencodings import PickleEncoding
from ..changes import Undecodable
from ..errors import MISSING, DecodingError
from ..hiding import kind_of
from ..locks import LEASE, Lease
from ..memory import MemoryDict
from .cells import new_token, pack_pointer
from .dictionary import BaseDictionaryStore, stale_pointers
from .lifetime import LifetimeCallback
from .reserving import Prepared, Writing

__all__ = ["DurableDictStore"]


class DurableDictStore(BaseDictionaryStore):
    """Keeps objects in a DurableDict: bytes under readable names.

    A get costs what a read of the dict costs, and a put what its writes do: the records of a batch
    are one commit, and their pointers another. A batch of gets is one comparison, and one copy of
    the dict, which takes longer the more entries there are. Expired objects are not served; they
    stay in the dict until they are put or deleted.

    >>> from durabledict import MemoryDict
    >>> class Foo:
    ...     __stockpyle_keys__ = ["key"]
    ...     def __init__(self, key):
    ...         self.key = key
    >>> d = MemoryDict()
    >>> store = DurableDictStore(d)
    >>> store.get(Foo, {"key": 1}) is None
    True
    >>> DurableDictStore({})
    Traceback (most recent call last):
    TypeError: durable_dict is a dict: pass a DurableDict; for other mappings there is ShoveStore

    :param durable_dict: the dict; it stays the caller's, who closes it
    :param encoding: turns objects into bytes. The default is that of the dict, or PickleEncoding
        where that keeps objects as they are. What comes out is a value of the dict, and so goes
        through the dict's encoding, too
    :raises TypeError: no DurableDict; for other mappings there is `ShoveStore`

    The other parameters are those of `BaseDictionaryStore`.

    """

    def __init__(
        self,
        durable_dict: DurableDict[Any, Any],
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        *,
        encoding: Any = None,
        old_encoding: Any = None,
        allow_unsigned: bool = False,
    ) -> None:
        if not isinstance(durable_dict, DurableDict):
            raise TypeError(
                f"durable_dict is {kind_of(durable_dict)}: pass a DurableDict; for other "
                "mappings there is ShoveStore"
            )
        if encoding is None:
            encoding = durable_dict.encoding
            if getattr(encoding, "aliases", False):
                encoding = PickleEncoding
        super().__init__(
            polymorphic,
            lifetime_cb,
            encoding=encoding,
            old_encoding=old_encoding,
            allow_unsigned=allow_unsigned,
        )
        self._dict = durable_dict
        self.keyspace = durable_dict.keyspace

    @property
    def shared(self) -> bool:  # type: ignore[override]  # the dict knows
        """Whether other processes see the dict."""
        return not isinstance(self._dict, MemoryDict)

    def _reserve_cell(self, name: str) -> tuple[bytes | None, Any]:
        if not self._dict._has_compare_and_set():
            return super()._reserve_cell(name)
        self._dict._require_open()
        cell, proof = self._dict._fetch(name)
        if isinstance(cell, Undecodable):
            raise cell.error.with_traceback(None)
        found = cell if isinstance(cell, bytes) else None
        if found is not None and dict.get(self._dict, name) != found:
            # Gets of a manual dict do not ask: they are to see it, too.
            self._dict._catch_up()
        return found, (cell, proof)

    def _put_if(self, prepared: Prepared, token: Any) -> bool:
        before, proof = token
        name, pointers, cell, lifetime = prepared
        set_if = self._dict._compare_and_set
        if self._dict._write(set_if, name, cell, proof, conditional=True) is None:
            self._dict._catch_up()
            return False
        if pointers:
            self._write_many([(pointer, pack_pointer(name), lifetime) for pointer in pointers])
        if isinstance(before, bytes):
            stale = stale_pointers({name: before}, {name: pointers})
            if stale:
                self._remove_if(stale)
        return True

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        # Another name than those of `get_or_compute`, though the dict has both.
        return self._dict._lease(f"store:{name}", seconds)

    def _read(self, name: str) -> bytes | None:
        cell = self._dict.get(name)
        return cell if isinstance(cell, bytes) else None

    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        self._dict[name] = cell

    def _remove(self, name: str) -> None:
        # `pop` would decode it first, and what cannot be decoded is to be removed, too.
        try:
            del self._dict[name]
        except KeyError:
            pass

    def _read_many(self, names: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(names)
        if len(wanted) == 1:
            return super()._read_many(wanted)
        # One comparison of stamps, and not one for each name.
        contents = self._dict.copy()
        undecodable = self._dict.undecodable
        found = {}
        for name in wanted:
            if name in undecodable:
                raise undecodable[name]
            cell = contents.get(name)
            if isinstance(cell, bytes):
                found[name] = cell
        return found

    def _write_many(self, writings: Iterable[Writing]) -> None:
        self._dict.update({name: cell for name, cell, _ in writings})

    def _add_tokens(self, names: Iterable[str]) -> dict[str, bytes]:
        return {name: self._dict.setdefault(name, new_token()) for name in names}

    def _remove_if(self, cells: Mapping[str, bytes]) -> None:
        for name, cell in cells.items():
            try:
                self._dict.compare_and_set(name, cell, MISSING)
            except DecodingError:
                pass  # not this very cell, then
            except NotImplementedError:
                super()._remove_if({name: cell})
