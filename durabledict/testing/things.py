"""Classes of objects that the suite of Stores puts and gets."""

from __future__ import annotations

import threading
from typing import Any

__all__ = [
    "Automobile",
    "Car",
    "Empty",
    "Grouped",
    "Keyless",
    "Listed",
    "Misnamed",
    "Person",
    "Thing",
    "Unpicklable",
    "Valued",
    "fields_of",
]


def fields_of(obj: object) -> dict[str, Any]:
    """Return what an object holds, without what a mapper of SQL adds to it."""
    return {name: value for name, value in vars(obj).items() if not name.startswith("_")}


class Valued:
    """What the classes here have in common."""

    def __init__(self, id: Any, zone: Any = 1, name: Any = "x", value: Any = None) -> None:
        self.id = id
        self.zone = zone
        self.name = name
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and fields_of(other) == fields_of(self)

    __hash__ = None  # type: ignore[assignment]  # as of most objects that are compared

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.zone!r}, {self.name!r}, {self.value!r})"


class Thing(Valued):
    """An object with a first key, a key of two attributes, and a value."""

    __stockpyle_keys__ = ["id", ("zone", "name")]


class Person(Thing):
    """A class that inherits its keys."""


class Empty(Thing):
    """Objects that are falsy."""

    def __len__(self) -> int:
        return 0


class Automobile:
    """A base class, which has keys of its own."""

    __stockpyle_keys__ = ["license_plate"]

    def __init__(self, license_plate: str) -> None:
        self.license_plate = license_plate

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and fields_of(other) == fields_of(self)

    __hash__ = None  # type: ignore[assignment]  # see above


class Car(Automobile):
    """One of its subclasses, with a key more."""

    __stockpyle_keys__ = ["license_plate", "owner"]

    def __init__(self, license_plate: str, owner: str = "nobody") -> None:
        super().__init__(license_plate)
        self.owner = owner


class Grouped(Valued):
    """Objects with groups: that of its zone, and those that its value names, if it is a list."""

    __stockpyle_keys__ = ["id", ("zone", "name")]

    @property
    def __stockpyle_groups__(self) -> list[Any]:
        more = self.value if isinstance(self.value, list) else []
        return [f"zone-{self.zone}", *more]


class Listed(Valued):
    """A class whose objects are all of the same two groups."""

    __stockpyle_keys__ = ["id", ("zone", "name")]
    __stockpyle_groups__ = ["listed", ("of", 2)]


class Misnamed(Valued):
    """Objects whose groups are whatever the value is."""

    __stockpyle_keys__ = ["id", ("zone", "name")]

    @property
    def __stockpyle_groups__(self) -> Any:
        return self.value


class Keyless:
    """A class that does not say what identifies its objects."""


class Unpicklable(Thing):
    """Objects that no encoding can encode."""

    def __init__(self, id: Any) -> None:
        super().__init__(id, name=f"of {id}")
        self.lock = threading.Lock()
