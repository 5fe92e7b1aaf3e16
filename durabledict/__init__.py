"""Dicts that live in a store many processes share, and never go on serving old data.

>>> from durabledict import MemoryDict, MemoryStorage
>>> storage = MemoryStorage()
>>> settings, elsewhere = MemoryDict(storage=storage), MemoryDict(storage=storage)
>>> settings["theme"] = "dark"
>>> elsewhere["theme"]
'dark'

A backend's module is imported when its name is first used, and its driver with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Changes, Commit, ConnectionDurableDict, DurableDict, Undecodable
from .encoding import (
    CompressedEncoding,
    DefaultEncoding,
    Encoder,
    JSONEncoding,
    NoOpEncoding,
    PickleEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
)
from .errors import (
    MISSING,
    ConflictError,
    DecodingError,
    DurableDictError,
    EncoderError,
    EncodingError,
    NonUniqueKeyError,
)
from .opening import open as open
from .opening import register_scheme

if TYPE_CHECKING:
    from .memory import MemoryDict, MemoryStorage
    from .models import ModelDict as ModelDict
    from .redis import RedisDict as RedisDict
    from .sqlite import SqliteDict
    from .zookeeper import ZookeeperDict as ZookeeperDict

__version__ = "1.0.0.dev0"

__all__ = [
    "MISSING",
    "Changes",
    "Commit",
    "CompressedEncoding",
    "ConflictError",
    "ConnectionDurableDict",
    "DecodingError",
    "DefaultEncoding",
    "DurableDict",
    "DurableDictError",
    "Encoder",
    "EncoderError",
    "EncodingError",
    "JSONEncoding",
    "MemoryDict",
    "MemoryStorage",
    "NoOpEncoding",
    "NonUniqueKeyError",
    "PickleEncoding",
    "RestrictedPickleEncoding",
    "SignedEncoding",
    "SqliteDict",
    "Undecodable",
    "register_scheme",
]
# Without `open`: "from durabledict import *" is not to take Python's own away. And without the
# dicts that need a driver, which it would import.

_BACKENDS = {
    "MemoryDict": "memory",
    "MemoryStorage": "memory",
    "ModelDict": "models",
    "RedisDict": "redis",
    "SqliteDict": "sqlite",
    "ZookeeperDict": "zookeeper",
}


def __getattr__(name: str) -> Any:
    if name not in _BACKENDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_BACKENDS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_BACKENDS})
