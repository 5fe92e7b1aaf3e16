"""The backends of the proof, by their names."""

from __future__ import annotations

from .backends import Backend, RedisBackend, ReplicaBackend, SqliteBackend
from .chain import ChainBackend, SqlChainBackend
from .manyservers import DjangoBackend, ZookeeperBackend

__all__ = ["BACKENDS"]

_ALL: tuple[type[Backend], ...] = (
    SqliteBackend,
    RedisBackend,
    ReplicaBackend,
    DjangoBackend,
    ZookeeperBackend,
    ChainBackend,
    SqlChainBackend,
)

BACKENDS: dict[str, type[Backend]] = {backend.name: backend for backend in _ALL}
