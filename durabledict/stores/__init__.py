"""Put, get and delete Python objects by the attributes that identify them.

In one Store, or through a chain of caches::

    store = ChainedStore([ProcessMemoryStore(lifetime_cb=lambda obj: 5), RedisStore(client)])
    store.put(obj)
    store.get(Foo, {"key": 1})

A Store's module is imported when its name is first used, and its driver with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import BaseStore
from .keys import NotIndexedError
from .memory import ProcessMemoryStore
from .threadlocal import ThreadLocalStore

if TYPE_CHECKING:
    from .chained import ChainedStore
    from .dictionary import BaseDictionaryStore
    from .durable import DurableDictStore
    from .memcache import MemcacheStore as MemcacheStore
    from .redis import RedisStore as RedisStore
    from .shove import ShoveStore
    from .sqlalchemy import SqlAlchemyStore as SqlAlchemyStore

__all__ = [
    "BaseDictionaryStore",
    "BaseStore",
    "ChainedStore",
    "DurableDictStore",
    "NotIndexedError",
    "ProcessMemoryStore",
    "ShoveStore",
    "ThreadLocalStore",
]
# Without the Stores that need a driver, which "from durabledict.stores import *" would import.

_STORES = {
    "BaseDictionaryStore": "dictionary",
    "ChainedStore": "chained",
    "DurableDictStore": "durable",
    "MemcacheStore": "memcache",
    "RedisStore": "redis",
    "ShoveStore": "shove",
    "SqlAlchemyStore": "sqlalchemy",
}


def __getattr__(name: str) -> Any:
    if name not in _STORES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_STORES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_STORES})
