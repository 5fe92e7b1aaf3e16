"""How reads check: the views of one state, and the syncing class.

An instance of a dict class is of one of two classes at any time. In the *native* class, the one
that the programmer wrote, `d[k]`, `get`, `in` and `len` are the C dict's own. In the *syncing*
class, made once for each native class by `syncing_class`, the same four check first. The
dict moves itself between the two (`validity.py`) under its lock; docs/internals.rst, "Native and
syncing", says when and why.
"""

from __future__ import annotations

import threading
from collections.abc import ItemsView as AbstractItemsView
from collections.abc import Iterator, Mapping
from collections.abc import KeysView as AbstractKeysView
from collections.abc import ValuesView as AbstractValuesView

# Read through this module's name by everything that measures a bound in seconds, so that a test
# can put a clock of its own in one place.
from time import monotonic
from types import MappingProxyType
from typing import Any, Generic, TypeVar

__all__ = ["ItemsView", "KeysView", "Syncing", "ValuesView", "monotonic", "syncing_class"]

K = TypeVar("K")
V = TypeVar("V")


class _OneState(Generic[K, V]):
    """The entries of one state, as two lists: making them is ten times cheaper than a dict.

    A dict is built only when something is looked up in the view.

    """

    def __init__(self, keys: list[K], values: list[V]) -> None:
        self._keys = keys
        self._values = values
        self._built: dict[K, V] | None = None

    @property
    def mapping(self) -> Mapping[K, V]:
        """The state that this view shows, read-only, as `dict_keys.mapping` has it."""
        return MappingProxyType(self._lookup())

    def _lookup(self) -> dict[K, V]:
        if self._built is None:
            self._built = dict(zip(self._keys, self._values, strict=False))
        return self._built

    def __len__(self) -> int:
        return len(self._keys)


class KeysView(_OneState[K, Any], AbstractKeysView[K]):
    """The keys of one state of a durable dict.

    Unlike a plain dict's view it does not follow later changes: making a view is one read, and
    one read shows one state.

    """

    def __contains__(self, key: object) -> bool:
        return key in self._lookup()

    def __iter__(self) -> Iterator[K]:
        return iter(self._keys)

    def __reversed__(self) -> Iterator[K]:
        return reversed(self._keys)

    def __repr__(self) -> str:
        return f"dict_keys({self._keys!r})"


class ValuesView(_OneState[Any, V], AbstractValuesView[V]):
    """The values of one state of a durable dict; see `KeysView`."""

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def __iter__(self) -> Iterator[V]:
        return iter(self._values)

    def __reversed__(self) -> Iterator[V]:
        return reversed(self._values)

    def __repr__(self) -> str:
        return f"dict_values({self._values!r})"


class ItemsView(_OneState[K, V], AbstractItemsView[K, V]):
    """The (key, value) pairs of one state of a durable dict; see `KeysView`."""

    def __contains__(self, item: object) -> bool:
        pairs: Any = self._lookup().items()
        return item in pairs

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return zip(self._keys, self._values, strict=False)

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return zip(reversed(self._keys), reversed(self._values), strict=False)

    def __repr__(self) -> str:
        return f"dict_items({list(self)!r})"


class Syncing:
    """Marks the syncing classes.

    It also swallows `__init_subclass__`: a user's class that registers its subclasses did not
    mean this one.

    """

    __slots__ = ()

    def __init_subclass__(cls, **options: object) -> None:
        pass


# Re-entrant, since a metaclass of the user's runs under it, and may make a dict.
_making = threading.RLock()


def after_fork() -> None:
    """Replace a lock that a thread of the parent may have held."""
    global _making
    _making = threading.RLock()


def syncing_class(native: type) -> type:
    """Return the syncing class of `native`, made at the first call.

    Costs two attribute look-ups once it is made.

    """
    made = native.__dict__.get("_syncing_class")
    if made is None:
        with _making:
            made = native.__dict__.get("_syncing_class")
            if made is None:
                made = _make_syncing_class(native)
                native._syncing_class = made  # type: ignore[attr-defined]  # type's own namespace
    return made


def _make_syncing_class(native: Any) -> type:
    # The native readers are captured here and called directly. `super()` would look the class
    # of the object up at the time of the call, when another thread may just have moved the object
    # to the native class ("obj must be an instance or subtype of type"), and it costs a third more.
    native_getitem = native.__getitem__
    native_get = native.get
    native_contains = native.__contains__
    native_len = native.__len__

    # One comparison of two floats decides on the fast way; everything else that may matter (a
    # transaction's overlay, an undecodable key, a copy not yet filled) makes `_good_until` lie in
    # the past, so that it costs nothing while it is not there. A strict dict's always does; where
    # the backend has something that is cheap to look at, `_is_unchanged` spares it the rest.
    def __getitem__(self: Any, key: Any) -> Any:  # noqa: N807  # becomes the class's
        if (now := monotonic()) >= self._good_until and not self._is_unchanged(now):
            overlay = self._before_read(key)
            if overlay is not None:
                return overlay[key]
        return native_getitem(self, key)

    def get(self: Any, key: Any, default: Any = None, /) -> Any:
        if (now := monotonic()) >= self._good_until and not self._is_unchanged(now):
            overlay = self._before_read(key)
            if overlay is not None:
                return overlay.get(key, default)
        return native_get(self, key, default)

    def __contains__(self: Any, key: Any) -> bool:  # noqa: N807  # as above
        if (now := monotonic()) >= self._good_until and not self._is_unchanged(now):
            overlay = self._before_read(key)
            if overlay is not None:
                return key in overlay
        return native_contains(self, key)  # type: ignore[no-any-return]  # of an Any class

    def __len__(self: Any) -> int:  # noqa: N807  # as above
        if (now := monotonic()) >= self._good_until and not self._is_unchanged(now):
            overlay = self._before_read()
            if overlay is not None:
                return len(overlay)
        return native_len(self)  # type: ignore[no-any-return]  # of an Any class

    def _begin_read(self: Any) -> Mapping[Any, Any] | None:
        if (now := monotonic()) >= self._good_until and not self._is_unchanged(now):
            return self._before_read()  # type: ignore[no-any-return]  # of an Any class
        return None

    namespace = {
        "__slots__": (),
        "__module__": native.__module__,
        "__qualname__": native.__qualname__,
        "__doc__": native.__doc__,
        "__getitem__": __getitem__,
        "get": get,
        "__contains__": __contains__,
        "__len__": __len__,
        "_begin_read": _begin_read,
        # The programmer's class is what `d.__class__` and `isinstance` are asked about.
        "__class__": property(lambda self: native),
        "_native_of": native,
    }
    for function in (__getitem__, get, __contains__, __len__, _begin_read):
        function.__qualname__ = f"{native.__qualname__}.{function.__name__}"
    return type(native)(native.__name__, (Syncing, native), namespace)  # type: ignore[no-any-return]  # of an Any class
