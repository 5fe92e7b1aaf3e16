"""The classes of docs/stores.rst: ordinary ones, which say what identifies their objects."""

from __future__ import annotations

from typing import Any


class Foo:
    __stockpyle_keys__ = ["key", ("zap", "bar")]

    def __init__(self, key: Any, zap: int = 0, bar: Any = 0) -> None:
        self.key = key
        self.zap = zap
        self.bar = bar

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foo) and vars(other) == vars(self)

    def __repr__(self) -> str:
        return f"Foo({self.key!r}, {self.zap!r}, {self.bar!r})"


class Automobile:
    __stockpyle_keys__ = ["license_plate"]

    def __init__(self, license_plate: str) -> None:
        self.license_plate = license_plate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.license_plate!r})"


class Car(Automobile):
    pass


class Truck(Automobile):
    pass
