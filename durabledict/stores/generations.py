"""A random token in each memcached server, which is a part of all names: a new one empties it.

memcached cannot remove what begins with a prefix. So when more was missed than can be told one by
one, a new generation makes all older names unknown (rule 5.2 of docs/internals.rst). The token is
read with every request, in the same round trip: whoever finds a new one asks again under it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pymemcache.exceptions import MemcacheServerError

from .metacommands import Reply, exchange

__all__ = ["TRIES", "Generations", "not_kept"]

#: New generations that a request is repeated for.
TRIES = 8


class Generations:
    """The generations of the servers of one Store, as this process knows them.

    :param name: what they are stored under

    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._known: dict[Any, str] = {}

    def of(self, node: Any) -> str:
        """Return a server's generation; one or two requests where it is not known yet."""
        known = self._known.get(node.server)
        if known is None:
            key = node.key_prefix + self.name.encode()
            fresh = _new()
            # `add`: of several that find none, one makes it.
            exchange(node, [b"ms %b %d ME\r\n%b\r\n" % (key, len(fresh), fresh)])
            (reply,) = exchange(node, [b"mg %b v\r\n" % key])
            known = self._known[node.server] = (reply.value or fresh).decode("ascii", "replace")
        return known

    def is_still(self, node: Any, told: bytes | None) -> bool:
        """Whether what was read together with a request is the generation it was sent under."""
        known = self._known.get(node.server)
        if told is not None and known == told.decode("ascii", "replace"):
            return True
        # Another process has begun a new one; or the server was emptied, and has none.
        self._known.pop(node.server, None)
        return False

    def exchange(
        self, node: Any, commands: Callable[[str], list[list[bytes]]]
    ) -> list[list[Reply]]:
        """Send commands, and again where there was a new generation. One round trip.

        What a generation that is over was told does no harm, and is not read.

        :param commands: of a generation, several for each name
        :return: the replies in the same order
        :raises MemcacheServerError: the server does not keep its generation

        """
        key = node.key_prefix + self.name.encode()
        for _ in range(TRIES):
            several = commands(self.of(node))
            flat = [each for some in several for each in some]
            # Last: one that begins in between has been begun before this is answered.
            *told, last = exchange(node, [*flat, b"mg %b v\r\n" % key])
            if self.is_still(node, last.value if last.status == b"VA" else None):
                replies = iter(told)
                return [[next(replies) for _ in some] for some in several]

        raise not_kept(node)

    def renew(self, node: Any) -> None:
        """Begin a new generation."""
        key, fresh = node.key_prefix + self.name.encode(), _new()
        exchange(node, [b"ms %b %d\r\n%b\r\n" % (key, len(fresh), fresh)])
        self._known[node.server] = fresh.decode()


def not_kept(node: Any) -> MemcacheServerError:
    """Return what is raised where a server does not keep its generation from a moment ago."""
    return MemcacheServerError(f"the server {node.server} keeps nothing: has it any memory?")


def _new() -> bytes:
    return os.urandom(8).hex().encode()
