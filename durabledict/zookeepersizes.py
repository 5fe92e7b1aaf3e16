"""How large a request is, and what a request of the size that ZooKeeper takes may have in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kazoo.security import ACL, OPEN_ACL_UNSAFE

from .zookeeperclient import Client
from .zookeepernames import Place

__all__ = ["REQUEST_LIMIT", "Entry", "Part", "Sizes", "checked_limit"]

#: The largest request that a server takes, as long as its `jute.maxbuffer` is the default one.
REQUEST_LIMIT = 0xFFFFF

#: What a request has beside its operations, and an operation of a transaction beside its path, its
#: data and its ACLs: numbers, and the lengths of those.
REQUEST_OVERHEAD = 17
OVERHEAD = 25


def checked_limit(request_limit: object) -> int:
    """Return `request_limit` as it is.

    :raises TypeError: no int; the message says what to write
    :raises ValueError: one that is not above 0

    """
    if not isinstance(request_limit, int) or isinstance(request_limit, bool):
        raise TypeError(f"request_limit={request_limit!r}: write bytes as an int, 4_194_304 say")
    if request_limit <= 0:
        raise ValueError(f"request_limit={request_limit!r}: write bytes above 0")
    return request_limit


class Entry(NamedTuple):
    """An entry on its way into the store."""

    key: Any
    name: str
    payload: bytes
    value: Any  # as reading the payload gives it


class Part(NamedTuple):
    """What one transaction writes and removes."""

    entries: list[Entry]
    removals: list[tuple[Any, str]]


class Sizes:
    """What fits into one request of a dict.

    :param limit: the bytes that a request may have

    """

    def __init__(self, client: Client, place: Place, limit: int) -> None:
        self._client = client
        self._place = place
        self._limit = limit

    def parts(
        self,
        entries: Iterable[Entry],
        removals: Iterable[tuple[Any, str]],
        place_data: Callable[[], bytes],
    ) -> list[Part]:
        """Return what has to be written as transactions of the size that a server takes.

        Removals come last, so that an entry that moves to another key is never missing.

        :param place_data: returns what the place itself holds; called if anything is removed
        :raises ValueError: an entry that is too large; nothing was sent

        """
        parts, size = [Part([], [])], REQUEST_OVERHEAD
        for entry, own in self._taken(entries):
            if size + own > self._limit and parts[-1].entries:
                parts.append(Part([], []))
                size = REQUEST_OVERHEAD
            parts[-1].entries.append(entry)
            size += own
        gone = [each for each in removals if not self.fits_nowhere(each[1])]
        # With each removal goes what the place itself has (rule 4.5).
        data = place_data() if gone else b""
        with_place = OVERHEAD + self._size_of_path("") + len(data)
        size += with_place
        for key, name in gone:
            own = OVERHEAD + self._size_of_path(name)
            if size + own > self._limit and (parts[-1].entries or parts[-1].removals):
                parts.append(Part([], []))
                size = REQUEST_OVERHEAD + with_place
            parts[-1].removals.append((key, name))
            size += own
        return [part for part in parts if part.entries or part.removals]

    def require_taken(self, entries: Iterable[Entry]) -> None:
        """See that each entry fits into a request.

        :raises ValueError: with the size of the value, and the limit

        """
        self._taken(entries)

    def fits_nowhere(self, name: str) -> bool:
        """Whether no request can have this name, so that there is no such znode."""
        return REQUEST_OVERHEAD + OVERHEAD + self._size_of_path(name) > self._limit

    def _taken(self, entries: Iterable[Entry]) -> list[tuple[Entry, int]]:
        """Return each with the bytes that it takes in a request beside others."""
        prefix = self._size_of_path("")
        # Two operations where the entry is made to tell the transaction's number.
        beside = 2 * (OVERHEAD + prefix) + self._size_of_acls()
        taken: list[tuple[Entry, int]] = []
        for entry in entries:
            _, name, payload, _ = entry
            own = 2 * (len(name) if name.isascii() else len(name.encode())) + beside + len(payload)
            if REQUEST_OVERHEAD + own > self._limit:
                raise ValueError(
                    f"the value of key {entry.key!r} is {len(payload):,} bytes as stored, "
                    f"{REQUEST_OVERHEAD + own:,} with its request: ZooKeeper takes "
                    f"{self._limit:,} (jute.maxbuffer; where the servers take more, say "
                    "request_limit=...)"
                )
            taken.append((entry, own))
        return taken

    def _size_of_path(self, name: str) -> int:
        return len((self._client.kazoo.chroot + self._place.path_of(name)).encode())

    def _size_of_acls(self) -> int:
        acls = self._client.kazoo.default_acl
        return _size_of(acls) if acls else SIZE_OF_OPEN_ACL


def _size_of(acls: Iterable[ACL]) -> int:
    return 4 + sum(12 + len(each.id.scheme.encode()) + len(each.id.id.encode()) for each in acls)


SIZE_OF_OPEN_ACL = _size_of(OPEN_ACL_UNSAFE)
