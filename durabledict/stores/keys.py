"""What identifies an object: the keys that its class names, and the names they are stored under.

A class names its keys in ``__stockpyle_keys__``: names of attributes, and tuples of names that
identify an object together. The first is where an object's record is stored; the others, and with
``polymorphic=True`` those of the base classes, point to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from .words import word

__all__ = [
    "Address",
    "Index",
    "NotIndexedError",
    "addresses_of",
    "entry_of",
    "first_address",
    "index_of",
    "locate",
    "locate_all",
    "matches",
]

#: Orders of names that one class remembers: queries in more orders are answered, only slower.
ORDERS = 100

#: An address as a key of a dict: a class, names and values.
Entry = tuple[type, tuple[str, ...], tuple[Any, ...]]


class NotIndexedError(KeyError):
    """A query for attributes that do not identify objects of the class; a `KeyError`."""

    def __str__(self) -> str:
        # That of KeyError would put the sentence between quotes.
        return str(self.args[0])


class Address:
    """One key of one object: a class, the names of its attributes, and their values.

    :param klass: the class that is asked for
    :param names: the attributes, in the order in which the class names them
    :param values: what they are

    """

    __slots__ = ("_name", "klass", "names", "values")

    def __init__(self, klass: type, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.klass = klass
        self.names = names
        self.values = values
        self._name: str | None = None

    @property
    def entry(self) -> Entry:
        """The same as a key of a dict."""
        return self.klass, self.names, self.values

    @property
    def name(self) -> str:
        """The name that stores outside of this process have it under: ASCII without spaces.

        :raises TypeError: a value that has no name; it says which have

        """
        name = self._name
        if name is None:
            labels = index_of(self.klass).labels[self.names]
            if len(labels) == 1:
                name = labels[0] + word(self.names[0], self.values[0])
            else:
                words = map(word, self.names, self.values)
                name = "&".join(map(str.__add__, labels, words))
            self._name = name
        return name

    @property
    def key(self) -> dict[str, Any]:
        """The query that finds it."""
        return dict(zip(self.names, self.values, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.entry == other.entry

    def __hash__(self) -> int:
        return hash(self.entry)

    def __repr__(self) -> str:
        return f"{self.klass.__qualname__} {self.key!r}"


class Index:
    """The keys of one class.

    :param klass: the class
    :raises NotIndexedError: it names no keys
    :raises TypeError: what it names is no list of names and tuples of names

    """

    def __init__(self, klass: type) -> None:
        declared = getattr(klass, "__stockpyle_keys__", None)
        if declared is None:
            raise NotIndexedError(
                f"{klass.__qualname__} does not say what identifies its objects: give it "
                '__stockpyle_keys__ = ["id"], say'
            )
        if isinstance(declared, str) or not isinstance(declared, Sequence) or not declared:
            raise TypeError(
                f"{klass.__qualname__}.__stockpyle_keys__ = {declared!r}: write a list of names "
                'and tuples of names, as in ["id", ("zone", "name")]'
            )
        found: list[tuple[str, ...]] = []
        for key in declared:
            names = (key,) if isinstance(key, str) else key
            if not isinstance(names, Sequence) or not names or not all(map(_is_name, names)):
                raise TypeError(f"{klass.__qualname__}.__stockpyle_keys__ names {key!r}")
            found.append(tuple(names))
        #: Each key's names as the class orders them; the first is that of the record.
        self.keys: tuple[tuple[str, ...], ...] = tuple(dict.fromkeys(found))
        self.orders: dict[tuple[str, ...], tuple[str, ...]] = {key: key for key in self.keys}
        self._sets = {frozenset(key): key for key in reversed(self.keys)}
        self._title = klass.__qualname__
        stem = f"{quote(f'{klass.__module__}.{klass.__qualname__}', safe='')}/"
        #: What stands before each value in the name of a key.
        self.labels = {
            key: tuple(
                f"{'' if place else stem}{quote(name, safe='')}=" for place, name in enumerate(key)
            )
            for key in self.keys
        }

    def ordered(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of a query in the class's own order.

        :raises NotIndexedError: no key has these names

        """
        try:
            found = self._sets.get(frozenset(names))
        except TypeError:
            found = None
        if found is None or len(found) != len(names):
            wanted = names[0] if len(names) == 1 else names
            known = ", ".join(repr(k[0] if len(k) == 1 else k) for k in self.keys)
            raise NotIndexedError(f"{self._title} is not indexed by {wanted!r}; it is by {known}")
        if len(self.orders) < ORDERS:
            self.orders[names] = found
        return found


def _is_name(name: object) -> bool:
    return isinstance(name, str)


# By identity, so that a class made at run time is not kept alive.
_indexes: dict[int, tuple[weakref.ref[type], Index]] = {}


def index_of(klass: type) -> Index:
    """Return the keys of a class; they are read once.

    :raises NotIndexedError: it names none

    """
    identity = id(klass)
    known = _indexes.get(identity)
    if known is None or known[0]() is not klass:
        if not isinstance(klass, type):
            raise TypeError(f"{klass!r}: a class comes first, then the key")
        reference = weakref.ref(klass, lambda gone: _forget(identity, gone))
        known = _indexes[identity] = (reference, Index(klass))
    return known[1]


def _forget(identity: int, gone: weakref.ref[type]) -> None:
    known = _indexes.get(identity)
    if known is not None and known[0] is gone:
        _indexes.pop(identity, None)


def entry_of(klass: type, key: Mapping[str, Any]) -> Entry:
    """Return class, names and values that a query is for; the order of its names does not matter.

    :raises NotIndexedError: the class is not indexed by these attributes
    :raises TypeError: the key is no mapping

    """
    # Each get in memory waits for this: so it is not made of smaller functions.
    known = _indexes.get(id(klass))
    index = known[1] if known is not None and known[0]() is klass else index_of(klass)
    if type(key) is not dict and not isinstance(key, Mapping):
        raise TypeError(f"key={key!r}: write a dict of attributes, {{'id': 1}} say")
    given = tuple(key)
    names = index.orders.get(given) or index.ordered(given)
    if len(names) == 1:
        return klass, names, (key[names[0]],)
    return klass, names, tuple([key[name] for name in names])


def locate(klass: type, key: Mapping[str, Any]) -> Address:
    """Return the address that a query is for.

    :raises NotIndexedError: the class is not indexed by these attributes
    :raises TypeError: the key is no mapping, or a value cannot be hashed

    """
    entry = entry_of(klass, key)
    hash(entry)
    return Address(*entry)


def locate_all(klass: type, keys: Iterable[Mapping[str, Any]]) -> list[Address]:
    """Return the addresses that queries are for; what cannot be hashed is not noticed here.

    :raises NotIndexedError: the class is not indexed by the attributes of one of them

    """
    index = index_of(klass)
    found = []
    for key in keys:
        if type(key) is not dict and not isinstance(key, Mapping):
            raise TypeError(f"key={key!r}: write a dict of attributes, {{'id': 1}} say")
        given = tuple(key)
        names = index.orders.get(given) or index.ordered(given)
        found.append(Address(klass, names, tuple([key[name] for name in names])))
    return found


def addresses_of(obj: object, polymorphic: bool) -> list[Address]:
    """Return every address of an object; that of its record comes first.

    :param polymorphic: also as the base classes that name keys
    :raises NotIndexedError: its class names no keys
    :raises AttributeError: it lacks an attribute that its class names

    """
    klass = type(obj)
    classes = [klass]
    if polymorphic:
        classes += [base for base in klass.__mro__[1:] if getattr(base, "__stockpyle_keys__", None)]
    found = []
    for each in classes:
        for names in index_of(each).keys:
            values = tuple([getattr(obj, name) for name in names])
            hash(values)
            found.append(Address(each, names, values))
    return found


def first_address(obj: object) -> Address:
    """Return the address of an object's record; the errors are those of `addresses_of`."""
    return addresses_of(obj, False)[0]


def matches(obj: object, address: Address) -> bool:
    """Whether an object is one of the class, and has the attributes, that an address names."""
    if not isinstance(obj, address.klass):
        return False
    try:
        # Not by `is` alone: what was decoded is equal, and no more.
        for name, value in zip(address.names, address.values, strict=True):
            if getattr(obj, name) != value:
                return False
    except AttributeError:
        return False
    return True
