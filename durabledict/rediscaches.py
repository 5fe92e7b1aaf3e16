"""A client of redis-py as the place of a stamp, through connections of our own.

What finds the server, and repeats a request where that is safe, is `redisprimary`'s: the client's
own retries would run an INCRBY twice, and its pool may have no connection left (rule 3.2).
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from . import reading
from .locks import Lease
from .redisprimary import ROLE, Primary
from .redisscripts import pack
from .redisservers import servers_of
from .stampcaches import StampCache, as_number

__all__ = ["RedisCache"]

#: Seconds after which a server is asked again whether it is the primary.
LOOK = 1.0


class RedisCache(StampCache):
    """A client of redis-py: of one server, of Sentinel's, or of a cluster.

    :param client: the client. Everything goes to the primary, also where the client's own reads go
        to replicas, which lag
    :raises TypeError: another class of that package, or an asyncio client

    """

    unavailable = (
        ConnectionError,
        TimeoutError,
        ReadOnlyError,
        OutOfMemoryError,
        ClusterDownError,
        TryAgainError,
        RedisClusterException,
        OSError,
    )

    def __init__(self, client: Any) -> None:
        servers_of(client)
        self._client = client
        self._places: dict[str, _Place] = {}

    @property
    def identity(self) -> object:
        """The client."""
        return id(self._client)

    def _place(self, key: str) -> _Place:
        place = self._places.get(key)
        if place is None:
            place = self._places.setdefault(key, _Place(self._client, key))
        return place

    def check_key(self, key: str) -> None:
        """Refuse a key with a brace that tells a cluster no slot."""
        super().check_key(key)
        self._place(key)

    def get(self, key: str) -> int | None:
        """Return the number: one GET, and once a second a ROLE with it."""
        return as_number(self._place(key).get())

    def add(self, key: str, number: int) -> bool:
        """Put a number if there is none: SET NX."""
        return self._place(key).send(b"SET", b"%d" % number, b"NX") is not None

    def increase(self, key: str, by: int) -> int | None:
        """Add to the number: INCRBY, which makes a key that was not there, with a low number."""
        try:
            return int(self._place(key).send(b"INCRBY", b"%d" % by))
        except ResponseError as error:
            if "not an integer" in str(error) or "overflow" in str(error):
                return None
            raise

    def put(self, key: str, number: int) -> None:
        """Put a number: SET."""
        self._place(key).send(b"SET", b"%d" % number)

    def lease(self, key: str, seconds: float) -> Lease | None:
        """Return a lock in Redis."""
        return self._place(key).lease("", seconds)


class _Place(Primary):
    """One key on its primary."""

    def __init__(self, client: Any, key: str) -> None:
        super().__init__(client, key)
        self._key = key.encode("utf-8", "surrogateescape")
        self._get = pack((b"GET", self._key))
        self._look_at = 0.0

    def get(self) -> Any:
        """Return what is there.

        A primary that was demoted goes on answering on the connection that is held to it, with old
        stamps. So it is asked once a second what it is (rule 2.6).

        :raises redis.exceptions.ReadOnlyError: the server is a replica

        """
        for _ in range(2):
            now = reading.monotonic()
            looks = now >= self._look_at
            more = (ROLE,) if looks and self._asks_role else ()
            told, *roles = self._check(self._get, *more)
            if isinstance(told, Exception):
                return self.ask(self._get)[0]  # where what can be done about it is done
            if not looks:
                return told
            role = roles[0] if roles else None
            if isinstance(role, ResponseError):
                self._asks_role, role = False, None  # the user may not
            if self._is_primary(role):
                self._look_at = now + LOOK
                return told
            self._find_again()
        raise ReadOnlyError(
            "the server that the client is connected to is a replica, whose stamp may be old"
        )

    def send(self, command: bytes, *arguments: bytes) -> Any:
        """Send a command that is never sent twice (rule 2.7), and return its answer."""
        return self.ask(pack((command, self._key, *arguments)), writes=True)[0]
