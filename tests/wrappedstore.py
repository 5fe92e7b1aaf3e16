"""A Store as a user writes it, of the six methods and nothing else."""

from __future__ import annotations

from typing import Any

from durabledict.stores import BaseStore, ProcessMemoryStore

__all__ = ["WrappedStore"]


class WrappedStore(BaseStore):
    """Hands its six methods on to a Store in memory."""

    def __init__(self) -> None:
        self.store = ProcessMemoryStore()

    def put(self, obj: Any) -> None:
        self.store.put(obj)

    def get(self, klass: Any, key: Any) -> Any:
        return self.store.get(klass, key)

    def delete(self, obj: Any) -> None:
        self.store.delete(obj)

    def batch_put(self, objs: Any) -> None:
        self.store.batch_put(objs)

    def batch_get(self, klass: Any, keys: Any) -> Any:
        return self.store.batch_get(klass, keys)

    def batch_delete(self, objs: Any) -> None:
        self.store.batch_delete(objs)
