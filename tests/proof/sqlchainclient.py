"""A `ChainedStore` in the place of a dict: rows in memcached, and below that in PostgreSQL."""

from __future__ import annotations

from typing import Any

from pymemcache import PooledClient
from sqlalchemy import JSON
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from durabledict.stores import ChainedStore, MemcacheStore, SqlAlchemyStore

from ..servers import HOST
from .chainclient import LIFETIME, ChainMapping
from .clients import TIMEOUT, Client

__all__ = ["Base", "Row", "SqlChainClient"]


class Base(DeclarativeBase):
    pass


class Row(Base):
    """An object with one key."""

    __tablename__ = "proof"
    __stockpyle_keys__ = ["key"]

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


class SqlChainClient(Client):
    counts = False

    def open(self, **options: Any) -> Any:
        self.errors = (OperationalError, InterfaceError)  # the cache's are not raised
        client = PooledClient(
            (HOST, self.place["memcached"]), connect_timeout=TIMEOUT, timeout=TIMEOUT
        )
        cache = MemcacheStore(client=client, lifetime_cb=lambda row: LIFETIME)
        rows = SqlAlchemyStore(self.place["uri"])
        return ChainMapping(ChainedStore([cache, rows]), Row)

    def entries(self, d: Any) -> dict[str, Any]:
        entries: dict[str, Any] = d.copy()
        return entries
