"""The backends of the proof, by their names."""

from __future__ import annotations

from .backends import Backend, RedisBackend, ReplicaBackend, SqliteBackend

__all__ = ["BACKENDS"]

BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend for backend in (SqliteBackend, RedisBackend, ReplicaBackend)
}
