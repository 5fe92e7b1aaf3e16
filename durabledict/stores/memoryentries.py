"""What a `ProcessMemoryStore` holds: records with what leads to them, and markers, under a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import reading
from ..stampcaches import call_after_fork
from .expiring import expiring_entries
from .guarded import SPOILED_LIFE, GuardedStore
from .memorygroups import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NOBODYS", "READERS", "WRITERS", "MemoryEntries"]

#: Markers that are kept before those that have expired are looked for.
MARKERS = 1000

#: Who set a marker.
WRITERS, READERS, NOBODYS = "writer", "reader", "nobody"


class MemoryEntries(GuardedStore):
    """Entries in memory, which are found without a lock as long as none of them expires.

    Its methods are called with the lock held (`_locked`), but for `_find`, `_find_kept`,
    `_have_expire` and `_take_marker`; none of them calls code of the user's.

    """

    maxsize: int | None

    def _begin_empty(self) -> None:
        # What is dropped while the lock is held: what it refers to is freed after that.
        self._gone: list[Any] = []
        # entry of a first key -> (object, entries of its other keys, when it is not for `get` any
        # more, tokens of its groups, lifetime)
        self._records: Any = {}
        self._find: Callable[[Any], Any] = self._records.get
        # token of a group -> entries of its records: so they need not be looked for
        self._members: dict[Token, set[Any]] = {}
        # entry of another key -> entry of the first
        self._pointers: dict[Any, Any] = {}
        # entry of a first key -> (who set it, proof, when it expires)
        self._markers: dict[Any, tuple[str, object, float]] = {}
        self._lock = threading.RLock()
        call_after_fork(self)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; what was dropped meanwhile is freed after it (finalizers run code)."""
        with self._lock:
            yield
            gone, self._gone = self._gone, []
        del gone

    def _have_expire(self) -> None:
        """Keep objects from now on for as long as their lifetimes."""
        with self._lock:
            if type(self._records) is dict:
                records = expiring_entries(self.maxsize, self._forget_pointers)
                records.update(self._records)
                self._records, self._find = records, self._find_living

    def _find_living(self, entry: Any) -> Any:
        record = self._find_kept(entry)
        if record is not None and record[2] is not None and record[2] <= reading.monotonic():
            return None  # kept for `get_or_create` alone
        return record

    def _find_kept(self, entry: Any) -> Any:
        with self._lock:
            try:
                return self._records[entry]
            except KeyError:
                return None

    # -- records ----------------------------------------------------------------------------------

    def _store(
        self,
        entry: Any,
        obj: Any,
        pointers: tuple[Any, ...],
        tokens: tuple[Token, ...] | None,
        lifetime: float | None,
        keeps: bool,
    ) -> None:
        self._remove(entry)
        self._pointers.pop(entry, None)
        if lifetime is not None and lifetime <= 0:
            return
        if tokens is None or not all(token.is_valid for token in tokens):
            return
        ends = None
        if lifetime is not None and keeps:
            ends, lifetime = reading.monotonic() + lifetime, 2 * lifetime
        self._records[entry] = (obj, pointers, ends, tokens, lifetime)
        for token in tokens:
            self._members.setdefault(token, set()).add(entry)
        for pointer in pointers:
            # As where names are in a store: what stands there is replaced, a record too.
            self._remove(pointer)
            self._pointers[pointer] = entry

    def _remove(self, entry: Any) -> None:
        try:
            record = self._records.pop(entry, None)
        except KeyError:
            record = None  # expired at this very moment
        if record is not None:
            self._forget_pointers(entry, record)

    def _forget_pointers(self, entry: Any, record: Any) -> None:
        self._gone.append(record)
        for pointer in record[1]:
            if self._pointers.get(pointer) == entry:
                self._pointers.pop(pointer)
        for token in record[3]:
            members = self._members.get(token)
            if members is not None:
                members.discard(entry)
                if not members:
                    del self._members[token]

    # -- markers (rule 5.1) -----------------------------------------------------------------------

    def _spoil_one(self, place: Any, now: float) -> None:
        self._remove(place)
        self._set_marker(place, NOBODYS, object(), now + SPOILED_LIFE)

    def _marker(self, entry: Any, now: float) -> tuple[str, object, float] | None:
        found = self._markers.get(entry)
        return found if found is not None and now < found[2] else None

    def _set_marker(self, entry: Any, kind: str, proof: object, expires: float) -> None:
        self._markers[entry] = (kind, proof, expires)
        if len(self._markers) > MARKERS:
            now = reading.monotonic()
            living = {e: m for e, m in self._markers.items() if now < m[2]}
            # Only if that helps: else each marker would cost a look at all of them.
            if len(living) <= MARKERS // 2:
                self._markers = living

    def _take_marker(self, entry: Any, proof: Any) -> bool:
        with self._lock:
            was = self._markers.get(entry)
            if was is None or was[1] is not proof:
                return False
            del self._markers[entry]
            return True

    def _after_fork(self) -> None:
        # A thread that is no more may hold it.
        self._lock = threading.RLock()
