"""How the values of a region of dogpile.cache are kept: in a dict, and in a Store.

=================  ===================================  ===============================
what               in a dict                            in a Store
=================  ===================================  ===============================
a `CachedValue`    ``(payload, metadata)``, the         `CacheRecord.value` is
                   generation in the metadata           ``(payload, metadata)``
bytes              bytes with a header, the generation  `CacheRecord.value` is those
                   in it                                bytes
=================  ===================================  ===============================

So it takes no class of dogpile's to read them, and JSON or a restricted pickle will do; a payload
is pickled once, by the dict or the Store. What has none of these forms was not written by a region:
that is a miss.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..stores.base import BaseStore

__all__ = [
    "GENERATION",
    "CacheRecord",
    "Entry",
    "check_record",
    "content_of",
    "entry_of",
    "from_dict",
    "is_metadata",
    "to_dict",
]

#: The format of bytes with a header. A newer one is a miss.
FORMAT = 1

_HEADER = b"dogpile" + bytes([FORMAT])

#: Where the metadata of a value has its generation.
GENERATION = "durabledict"


class CacheRecord:
    """What a Store keeps of one value of a region.

    It may be subclassed, so that two regions in one Store do not share their keys; for a
    `SqlAlchemyStore` a mapped class with these three attributes takes its place.

    :param key: as the region's key mangler gave it
    :param value: payload and metadata, or bytes where the region has a serializer
    :param generation: in which it was created; "" where no `SharedInvalidation` is used

    """

    __stockpyle_keys__ = ("key",)

    def __init__(self, key: Any, value: Any = None, generation: str = "") -> None:
        self.key = key
        self.value = value
        self.generation = generation

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key={self.key!r})"


class Entry(NamedTuple):
    """A value of a region, wherever it is kept.

    :param content: payload and metadata, or bytes
    :param generation: in which it was created; "" for none

    """

    content: tuple[Any, Mapping[str, Any]] | bytes
    generation: str


def content_of(value: Any) -> tuple[Any, Mapping[str, Any]] | bytes | None:
    """Return what a region gave as the content of an entry; None: it is nothing of a region's."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 2:
        payload, metadata = value
        if isinstance(metadata, Mapping) and "ct" in metadata:
            return payload, metadata
    return None


def is_metadata(found: Any) -> bool:
    """Whether metadata that somebody has stored are what dogpile can compute with."""
    if not isinstance(found, Mapping):
        return False
    # It takes the version for granted, and subtracts the time from another one.
    return "v" in found and type(found.get("ct")) in (int, float)


def to_dict(entry: Entry) -> Any:
    """Return the value of a dict that holds an entry."""
    content, generation = entry
    if isinstance(content, bytes):
        mark = generation.encode("ascii")
        return b"%b%c%b%b" % (_HEADER, len(mark), mark, content)
    payload, metadata = content
    return payload, {**metadata, GENERATION: generation} if generation else dict(metadata)


def from_dict(value: Any) -> Entry | None:
    """Return the entry that a value of a dict holds; None: it holds none."""
    content = content_of(value)
    if isinstance(content, tuple):
        return entry_of(content, content[1].get(GENERATION, ""))
    if content is None or not content.startswith(_HEADER) or len(content) == len(_HEADER):
        return None
    begin = len(_HEADER) + 1
    end = begin + content[begin - 1]
    return Entry(content[end:], content[begin:end].decode("ascii", "replace"))


def entry_of(content: Any, generation: Any) -> Entry | None:
    """Return an entry of what was stored; None: no region has written that."""
    if isinstance(content, tuple) and not is_metadata(content[1]):
        return None
    return Entry(content, generation) if isinstance(generation, str) else None


def check_record(store: BaseStore, record: Any) -> None:
    """Refuse a Store that would keep nothing of records of this class.

    :raises TypeError: a `SqlAlchemyStore`, and a class that is not mapped

    """
    # Only where somebody has imported it: it needs SQLAlchemy.
    module = sys.modules.get("durabledict.stores.sqlalchemy")
    if module is None or not isinstance(store, module.SqlAlchemyStore):
        return
    if not hasattr(record, "__mapper__"):
        raise TypeError(
            f"record={record.__qualname__}: a SqlAlchemyStore keeps mapped classes alone; pass "
            "one that has the columns key, value and generation"
        )
