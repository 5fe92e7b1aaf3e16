"""The entries held in this process: a dict that others may change while it is read.

Three rules of docs/internals.rst live here. Everything that touches several entries happens under
one re-entrant lock, held for memory operations only (rule 0.5). An apply is one `dict.update` in
C, then the removals, with the old values kept alive until the lock is released, since their
finalizers run code. A reader of several entries takes lists under the same lock and goes on
without it, so that it sees one state and never "dictionary changed size during iteration".
"""

from __future__ import annotations

import copy
import reprlib
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Generic, NoReturn, TypeVar

from .changes import Difference
from .errors import MISSING, DecodingError, Missing
from .notify import ChangeFeed
from .reading import ItemsView, KeysView, ValuesView

__all__ = ["LocalCopy"]

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")


class LocalCopy(dict[K, V], Generic[K, V]):
    """A dict of which every read shows one state, whatever other threads apply to it."""

    # Everything is in slots, here and in the classes below: Python looks every method up in the
    # instance's __dict__ first, and where that is empty, d.get(k) takes two thirds of the time.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_copy_lock",
        "_covered",
        "_feed",
        "_generation",
        "_good_until",
        "_key_list",
        "_overrides",
        "_twin",
        "_twin_used",
        "_undecodable",
        "_value_list",
        "last_synced",
    )

    _good_until: float

    def __init__(self) -> None:
        self._copy_lock = threading.RLock()
        # Raised by every apply: who read the store in between knows that its answer is old.
        self._generation = 0
        # The stamp of the state that is held; None = unknown.
        self.last_synced: Any = None
        self._undecodable: dict[K, DecodingError] = {}
        self._feed: ChangeFeed[K, V] = ChangeFeed()
        # key -> what the store holds, for keys that `testing.override` covers
        self._covered: dict[K, V | Missing] = {}
        self._overrides: list[Mapping[K, V | Missing]] = []
        # The keys and values of the present state, made by the first iteration over it. Never
        # changed once made: iterators go on over them.
        self._key_list: list[K] | None = None
        self._value_list: list[V] | None = None
        self._twin: dict[K, V] | None = None
        self._twin_used = False

    # -- one state ----------------------------------------------------------------------------

    def _begin_read(self) -> Mapping[K, V] | None:
        """Check first (syncing class), or do nothing; return an open transaction's entries."""
        return None

    def _keys(self) -> list[K]:
        """Return the keys of one state, not to be changed. Never `list(self)`: it asks us again.

        The list is kept until an apply changes the keys: making it takes longer than going
        through it, and it is 8 bytes an entry.

        """
        with self._copy_lock:
            if self._key_list is None:
                self._key_list = list(dict.keys(self))
            return self._key_list

    def _lists(self) -> tuple[list[K], list[V]]:
        """Return the keys and the values of one state, not to be changed."""
        with self._copy_lock:
            if self._value_list is None:
                self._value_list = list(dict.values(self))
            return self._keys(), self._value_list

    def _one_state(self) -> tuple[list[K], list[V]]:
        overlay = self._begin_read()
        if overlay is not None:
            return list(overlay.keys()), list(overlay.values())
        return self._lists()

    def _plain(self) -> dict[K, V]:
        """Return the local copy as a plain dict, without checking.

        CPython copies a dict as one block of memory, a hundredth of what building it costs, but
        not a subclass with an `__iter__` of its own. So the first copy leaves a plain twin
        behind, each apply keeps it in step, and later copies are of the twin. It costs a second
        table (not second values), and is dropped by the second apply after the last copy.
        `make bench`, row "copy", has the figures.

        """
        with self._copy_lock:
            if self._twin is None:
                self._twin = dict(zip(*self._lists(), strict=False))
            self._twin_used = True
            return self._twin.copy()

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys of one state. One comparison."""
        overlay = self._begin_read()
        if overlay is not None:
            return iter(list(overlay))
        return iter(self._keys())

    def __reversed__(self) -> Iterator[K]:
        """Iterate over the keys of one state, last first. One comparison."""
        return reversed(self._one_state()[0])

    def keys(self) -> KeysView[K]:  # type: ignore[override]  # not a C view: it shows one state
        """Return the keys of one state. One comparison, at the call; O(N)."""
        return KeysView(*self._one_state())

    def values(self) -> ValuesView[V]:  # type: ignore[override]  # as above
        """Return the values of one state. One comparison, at the call; O(N)."""
        return ValuesView(*self._one_state())

    def items(self) -> ItemsView[K, V]:  # type: ignore[override]  # as above
        """Return the pairs of one state. One comparison, at the call; O(N)."""
        return ItemsView(*self._one_state())

    def copy(self) -> dict[K, V]:
        """Return a plain dict with the entries of one state.

        One comparison. This is the form to hand to C libraries, which read a dict's memory past
        every method: `json.dumps(d.copy())`.

        """
        overlay = self._begin_read()
        return self._plain() if overlay is None else dict(overlay)

    def __copy__(self) -> dict[K, V]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[K, V]:
        return copy.deepcopy(self.copy(), memo)

    @classmethod
    def fromkeys(cls, iterable: Iterable[Any], value: Any = None, /) -> dict[Any, Any]:
        """Return a plain dict, as `dict.fromkeys` does: no store is named that could hold it."""
        return dict.fromkeys(iterable, value)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"cannot pickle {type(self).__name__!r} object: it is bound to this process's "
            "connection to the store. Open it again in the other process (pass the URL or path, "
            "and call durabledict.open there), or pickle d.copy()"
        )

    # -- comparing and merging ----------------------------------------------------------------

    # The copy is compared, not the dict under its lock: `==` of the values is the user's code.

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return NotImplemented
        return self.copy() == other

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __or__(self, other: dict[K2, V2]) -> dict[K | K2, V | V2]:
        """Return a plain dict with the entries of both. One comparison."""
        if not isinstance(other, dict):
            return NotImplemented
        mine: dict[Any, Any] = self.copy()
        mine.update(other.copy() if isinstance(other, LocalCopy) else other)
        return mine

    def __ror__(self, other: dict[K2, V2]) -> dict[K | K2, V | V2]:
        """Return a plain dict with the entries of both. One comparison."""
        if not isinstance(other, dict):
            return NotImplemented
        theirs: dict[Any, Any] = dict(other)
        theirs.update(self.copy())
        return theirs

    @reprlib.recursive_repr("{...}")
    def __repr__(self) -> str:
        """Show the local copy. No I/O; never raises."""
        try:
            entries = dict(zip(*self._lists(), strict=False))
        except AttributeError:
            return "{}"  # a debugger shows an object whose constructor has not run
        try:
            return repr(entries)
        except Exception:
            # Some object's __repr__ is broken. A debugger or a log line that shows the dict
            # is not the place to find that out.
            pairs = (f"{_shown(key)}: {_shown(value)}" for key, value in entries.items())
            return "{" + ", ".join(pairs) + "}"

    # -- applying -----------------------------------------------------------------------------

    def _apply(self, difference: Difference[K, V], stamp: object) -> object:
        """Apply under the lock, which the caller holds, and set `last_synced` last.

        :return: what was replaced; the caller keeps it until it has released the lock, because
            dropping the last reference to a value runs its finalizer

        """
        written, removed = difference.written, difference.removed
        if self._covered:
            written, removed = self._divert(written, removed)
        # A first load has no old values: to note a hundred thousand absent ones takes longer than
        # to apply it.
        wanted = self._feed.wanted
        first = not (wanted or dict.__len__(self))
        get = dict.get
        touched = chain(written, removed) if removed else written
        old = {} if first else {key: get(self, key, MISSING) for key in touched}
        # Taken away until they are in step again: what is raised midway (a signal's exception, no
        # memory) must not leave one behind that is wrong for ever.
        twin, self._twin = self._twin, None
        key_list, self._key_list = self._key_list, None
        value_list, self._value_list = self._value_list, None
        # These were gone from the store for a while, so they may be so here for a moment.
        moved = [key for key in difference.moved if key in written] if difference.moved else []
        for key in moved:
            dict.pop(self, key, None)
        # Written first: an entry that moved to another key is never missing under both.
        dict.update(self, written)
        for key in removed:
            dict.pop(self, key, None)
        self._twin = self._follow(twin, moved, written, removed)
        if key_list is not None and not (
            first or moved or removed or any(value is MISSING for value in old.values())
        ):
            self._key_list = key_list
        if difference.complete:
            self._undecodable = difference.undecodable
        elif self._undecodable or difference.undecodable:
            gone = {*difference.written, *difference.removed}
            left = {k: error for k, error in self._undecodable.items() if k not in gone}
            self._undecodable = {**left, **difference.undecodable}
        if wanted:
            self._feed.put([(key, value, written.get(key, MISSING)) for key, value in old.items()])
        self._generation += 1
        self.last_synced = stamp
        return old, twin, value_list

    def _follow(
        self,
        twin: dict[K, V] | None,
        moved: Collection[K],
        written: Mapping[K, V],
        removed: Collection[K],
    ) -> dict[K, V] | None:
        """Bring the twin in step; None when nothing was copied since the last apply."""
        if twin is None or not self._twin_used:
            return None
        self._twin_used = False
        for key in moved:
            twin.pop(key, None)
        twin.update(written)
        for key in removed:
            twin.pop(key, None)
        return twin

    def _divert(self, written: dict[K, V], removed: list[K]) -> tuple[dict[K, V], list[K]]:
        """Keep covered keys as they are; remember what the store says about them."""
        seen = {key: value for key, value in written.items() if key not in self._covered}
        gone = [key for key in removed if key not in self._covered]
        self._covered.update((key, written[key]) for key in written if key in self._covered)
        self._covered.update((key, MISSING) for key in removed if key in self._covered)
        return seen, gone

    # -- overriding (testing.override) --------------------------------------------------------

    def _store_side(self, key: K) -> V | Missing:
        """Return what the store holds under `key` as far as this copy knows, overrides aside."""
        if key in self._covered:
            return self._covered[key]
        return dict.get(self, key, MISSING)

    # What the store has as far as this copy knows, undecodable keys included. The lock is held.

    def _number_held(self) -> int:
        number = dict.__len__(self) + len(self._undecodable)
        for key, value in self._covered.items():
            number += (value is not MISSING) - dict.__contains__(self, key)
        return number

    def _is_held(self, key: K) -> bool:
        return self._store_side(key) is not MISSING or key in self._undecodable

    def _keys_held(self) -> list[K]:
        shown = {*dict.keys(self), *self._covered, *self._undecodable}
        return [key for key in shown if self._is_held(key)]

    def _show_overrides(self) -> object:
        """Show `_overrides`, the last one on top, over the store's entries. The lock is held.

        :return: what was replaced, to be kept until the lock is released

        """
        shown: dict[K, V | Missing] = {}
        for layer in self._overrides:
            shown.update(layer)
        uncovered = {key: value for key, value in self._covered.items() if key not in shown}
        self._covered = {key: self._store_side(key) for key in shown}
        shown.update(uncovered)
        old = {key: dict.get(self, key, MISSING) for key in shown}
        dict.update(self, {k: v for k, v in shown.items() if not isinstance(v, Missing)})
        for key, value in shown.items():
            if isinstance(value, Missing):
                dict.pop(self, key, None)
        dropped = self._twin, self._value_list
        self._twin = self._key_list = self._value_list = None
        return old, dropped


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} object at {id(value):#x}>"
