"""The class of docs/dogpile.rst: the values of a region as rows of a table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import PickleType
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class CacheRow(Base):
    __tablename__ = "cache"
    __stockpyle_keys__ = ("key",)

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(PickleType, nullable=True)
    generation: Mapped[str | None]
