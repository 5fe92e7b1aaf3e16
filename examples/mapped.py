"""The classes of docs/sqlalchemy.rst: mapped as usual, with keys where caches are to have them."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class MyMappedObject(Base):
    __tablename__ = "my_mapped_objects"
    __stockpyle_keys__ = ("id", "foobar")

    id: Mapped[int] = mapped_column(primary_key=True)
    foobar: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str | None]

    def __repr__(self) -> str:
        return f"MyMappedObject(id={self.id}, foobar={self.foobar}, name={self.name!r})"


class AuditLine(Base):
    """Its objects are in another database."""

    __tablename__ = "audit_lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
