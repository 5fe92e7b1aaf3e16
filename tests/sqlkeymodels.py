"""More mapped classes: with first keys of every kind, and with rows in two tables."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import ForeignKey, Index, Numeric, func
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, synonym

__all__ = [
    "Account",
    "Alias",
    "Animal",
    "Book",
    "Dog",
    "KeyBase",
    "Folded",
    "Late",
    "Money",
    "Shelf",
    "Shouted",
    "Slug",
    "Star",
    "Thing",
]


class KeyBase(DeclarativeBase):
    pass


class Alias(KeyBase):
    """Its first key is a synonym."""

    __tablename__ = "aliases"
    __stockpyle_keys__ = ("alias", "id")

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    value: Mapped[int] = mapped_column(default=0)
    alias = synonym("name")


class Shouted(KeyBase):
    """Its first key is a hybrid: only objects know it."""

    __tablename__ = "shouted"
    __stockpyle_keys__ = ("loud",)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    value: Mapped[int] = mapped_column(default=0)

    @hybrid_property
    def loud(self) -> str:
        return self.name.upper()


class Slug(KeyBase):
    """Its first key is a property, which some objects do not have."""

    __tablename__ = "slugs"
    __stockpyle_keys__ = ("slug",)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    value: Mapped[int] = mapped_column(default=0)

    @property
    def slug(self) -> str:
        assert self.name is not None
        return self.name.lower()


class Late(KeyBase):
    """Its first key is not loaded with it."""

    __tablename__ = "late"
    __stockpyle_keys__ = ("name",)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(deferred=True)
    value: Mapped[int] = mapped_column(default=0)


class Money(KeyBase):
    """The database rounds its first key."""

    __tablename__ = "money"
    __stockpyle_keys__ = ("amount",)

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 2))


class Account(KeyBase):
    """Unique in two ways."""

    __tablename__ = "accounts"
    __stockpyle_keys__ = ("id", "name")

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    value: Mapped[int] = mapped_column(default=0)


class Folded(KeyBase):
    """Unique by an expression."""

    __tablename__ = "folded"
    __stockpyle_keys__ = ("id",)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    value: Mapped[int] = mapped_column(default=0)


Index("folded_name", func.lower(Folded.name), unique=True)


class Shelf(KeyBase):
    __tablename__ = "shelves"
    __stockpyle_keys__ = ("id",)

    id: Mapped[int] = mapped_column(primary_key=True)

    books: Mapped[list[Book]] = relationship(cascade="all, delete-orphan")


class Book(KeyBase):
    """An orphan whose first key nobody has loaded."""

    __tablename__ = "books"
    __stockpyle_keys__ = ("title",)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(deferred=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"))


class Thing(KeyBase):
    """A row of two tables; a query of the class leaves the second one out."""

    __tablename__ = "things"
    __stockpyle_keys__: tuple[Any, ...] = ("id",)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")


class Star(Thing):
    __tablename__ = "stars"
    __stockpyle_keys__ = ("badge",)
    __mapper_args__ = {"polymorphic_identity": "star"}

    id: Mapped[int] = mapped_column(ForeignKey("things.id"), primary_key=True)
    badge: Mapped[str]
    size: Mapped[int] = mapped_column(default=0)


class Animal(KeyBase):
    """The same, and a query brings all by an outer join."""

    __tablename__ = "animals"
    __stockpyle_keys__: tuple[Any, ...] = ("id",)
    __mapper_args__ = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
        "with_polymorphic": "*",
    }

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")


class Dog(Animal):
    __tablename__ = "dogs"
    __stockpyle_keys__ = ("badge",)
    __mapper_args__ = {"polymorphic_identity": "dog"}

    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    badge: Mapped[str]
    size: Mapped[int] = mapped_column(default=0)
