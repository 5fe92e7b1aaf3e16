"""A lock in Redis: a key that holds the token, and expires."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

from .locks import Lease
from .redisscripts import pack

__all__ = ["RedisLease"]

# In full each time: they are shorter than the trouble with a server that does not know them. Run
# twice, because its answer was lost, each says the same the second time, or that the lock is gone.
RENEW = b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2])"
RELEASE = b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"


class RedisLease(Lease):
    """A lock in Redis; the lease is counted by the server's clock, in milliseconds.

    A failover may lose it, as any write that no replica has yet.

    :param ask: sends packed commands about the key, together, and returns their replies
    :param key: what holds the token

    """

    def __init__(
        self, seconds: float, identity: Hashable, key: bytes, ask: Callable[..., list[Any]]
    ) -> None:
        super().__init__(seconds, identity)
        self._key = key
        self._ask = ask
        self._milliseconds = b"%d" % max(1, math.ceil(seconds * 1000))

    def __repr__(self) -> str:
        return f"RedisLease({self._key.decode('utf-8', 'replace')!r})"

    def acquire(self, token: bytes) -> bool:
        """Take the lock: SET NX, and a GET that tells whose it is. One round trip."""
        taking = pack((b"SET", self._key, token, b"NX", b"PX", self._milliseconds))
        replies = self._ask(taking, pack((b"GET", self._key)))
        _whole(replies[0])
        return bool(_whole(replies[1]) == token)

    def renew(self, token: bytes) -> bool:
        """Begin the lease anew, in one step with the look whose it is."""
        return self._run(RENEW, token, self._milliseconds)

    def release(self, token: bytes) -> bool:
        """Give the lock up, in one step with the look whose it is."""
        return self._run(RELEASE, token)

    def holder(self) -> bytes | None:
        """Return the token that holds the lock: one GET."""
        found: bytes | None = _whole(self._ask(pack((b"GET", self._key)))[0])
        return found

    def _run(self, script: bytes, *arguments: bytes) -> bool:
        reply = self._ask(pack((b"EVAL", script, b"1", self._key, *arguments)))[0]
        return bool(_whole(reply))


def _whole(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply
