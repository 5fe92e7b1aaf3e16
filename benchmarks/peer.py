"""What the dicts are compared with, each as a statement that reads and one that writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .measure import Statement

__all__ = ["Peer"]


@dataclass(frozen=True)
class Peer:
    """Something that a dict is compared with.

    :param name: in the tables
    :param read: the statement that reads the key `k`
    :param write: the statement that writes the next one of the values `v` to the next one of the
        keys `k`, and does not return before the write is as durable as this peer makes it
    :param names: what the other names in both stand for

    """

    name: str
    read: str
    write: str
    names: Mapping[str, Any]

    def reading(self, key: str) -> Statement:
        """Return the statement that reads the value of a key."""
        return Statement(self.read, **self.names, k=key)

    def writing(self, keys: Iterator[str], values: Iterator[str]) -> Statement:
        """Return the statement that writes the next value to the next key."""
        return Statement(self.write, **self.names, k=keys, v=values)
