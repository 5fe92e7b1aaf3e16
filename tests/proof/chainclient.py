"""A `ChainedStore` in the place of a dict: objects in Redis, and below that in an SQLite file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from durabledict import SqliteDict
from durabledict.stores import ChainedStore, DurableDictStore, RedisStore

from .clients import KEYSPACE, TIMEOUT, Client
from .entries import BALLAST, KEYS

__all__ = ["LIFETIME", "ChainClient", "ChainMapping"]

#: Seconds for which the cache may hold an object: the bound where it could not be told of a put.
LIFETIME = 1.0


class Entry:
    """An object with one key."""

    __stockpyle_keys__ = ["key"]

    def __init__(self, key: str, value: Any) -> None:
        self.key = key
        self.value = value


class ChainMapping:
    """What the processes do with a dict, done with a chain.

    :param kind: the class of the objects

    """

    stale_since = None

    def __init__(self, store: Any, kind: Any = Entry) -> None:
        self.store = store
        self.kind = kind

    def __setitem__(self, key: str, value: Any) -> None:
        self.store.put(self.kind(key=key, value=value))

    def update(self, entries: Mapping[str, Any]) -> None:
        self.store.batch_put([self.kind(key=key, value=value) for key, value in entries.items()])

    def pop(self, key: str, default: Any) -> Any:
        self.store.delete(self.kind(key=key, value=None))
        return default

    def get(self, key: str) -> Any:
        found = self.store.get(self.kind, {"key": key})
        return None if found is None else found.value

    def copy(self) -> dict[str, Any]:
        keys = [*KEYS, *BALLAST]
        found = self.store.batch_get(self.kind, [{"key": key} for key in keys])
        return {entry.key: entry.value for entry in found if entry is not None}

    def sync(self) -> bool:
        return False


class ChainClient(Client):
    counts = False

    def open(self, **options: Any) -> Any:
        import sqlite3

        import redis

        self.errors = (sqlite3.Error,)  # the cache's are not raised
        self._client = redis.Redis(
            port=self.place["port"], socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT
        )
        cache = RedisStore(self._client, lifetime_cb=lambda entry: LIFETIME)
        self._dict = SqliteDict[str, Any](self.place["path"], KEYSPACE, timeout=TIMEOUT, **options)
        return ChainMapping(ChainedStore([cache, DurableDictStore(self._dict)]))

    def entries(self, d: Any) -> dict[str, Any]:
        entries: dict[str, Any] = d.copy()
        return entries
