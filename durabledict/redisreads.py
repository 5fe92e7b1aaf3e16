"""How a `RedisDict` is read: its stamp, a load, what changed, and how it hears of that.

docs/internals.rst, section 2, has the protocol; the numbers in comments are its rules.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from . import reading, redisquestions
from .base import Changes, ConnectionDurableDict, Undecodable
from .bytekeys import bytes_of
from .errors import MISSING, Missing
from .rediscommits import IDENTIFIER, NEVER_WRITTEN, Stamp, keys_of, stamp_of
from .redisload import delta, load
from .redisprimary import Primary
from .redisscripts import LOAD

__all__ = ["RedisReads"]

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger("durabledict.redis")

#: Seconds after which a strict read has the server's role and number of entries looked at, too.
LOOK_INTERVAL = 1.0

#: The share of all keys above which a reload is cheaper than a delta.
CHEAPER_THAN_RELOAD = b"0.6"


class RedisReads(ConnectionDurableDict[K, V]):
    """A dict that can tell its stamp and load its entries; see `RedisDict`."""

    __slots__ = ("_heard", "_listens", "_look_at", "_primary", "_woken")

    unavailable = (
        ConnectionError,
        TimeoutError,
        ReadOnlyError,
        ClusterDownError,
        TryAgainError,
        RedisClusterException,
    )

    def __init__(self, keyspace: str, connection: Any, *args: Any, **options: Any) -> None:
        self._primary = Primary(connection, keyspace)
        self._look_at = -math.inf
        self._listens = True
        self._woken = False
        self._heard: tuple[int, Stamp, int, int, Any] | None = None
        try:
            super().__init__(keyspace, connection, *args, **options)
        except BaseException:
            self._primary.close()
            raise

    # -- comparing ----------------------------------------------------------------------------

    def last_updated(self) -> Stamp:
        """Return the number and nonce of the last commit.

        One GET. Once a second a script in its place, with ROLE, which also tells the server's role
        and the number of entries.

        """
        synced = self.last_synced
        woken, self._woken, self._heard = self._woken, False, None
        if synced is not None and synced[0] and reading.monotonic() < self._look_at:
            stamp = self._hear() if woken else None
            if stamp is not None:
                return stamp
            told = self._explained(self._primary.mirror)
            if told is not None and IDENTIFIER.fullmatch(told):
                return stamp_of(told)
        return self._look()

    def _look(self) -> Stamp:
        """Read the stamp from the stream itself, and what else has to be looked at."""
        with self._copy_lock:
            generation, synced, held = self._generation, self.last_synced, self._number_held()
        now = reading.monotonic()
        last, size, _ = self._explained(self._primary.look, LOAD, b"-1")
        self._look_at = now + LOOK_INTERVAL
        if last is None:
            if not size:
                return NEVER_WRITTEN
            # Not in the script: on a cluster it may be in another slot, and 0.9 knew no cluster.
            counter = self._explained(redisquestions.counter, self._primary)
            return (0, size, counter)
        stamp = stamp_of(last)
        if stamp == synced and size != held and generation == self._generation:
            # Entries came or went without a commit: the server evicted the hash, say (rule 2.2).
            return (*stamp, size)
        return stamp

    def _hear(self) -> Stamp | None:
        """Fetch what changed together with the stamp, since `wait` said that something did.

        Kept for the `changes` that follows in this thread, and for no other: an answer counts only
        for who asked before it (rule 0.6).

        """
        with self._copy_lock:
            synced, generation, held = self.last_synced, self._generation, self._number_held()
        if synced is None or not synced[0]:
            return None
        news = self._explained(delta, self._primary, b"%d-%d" % synced[:2], CHEAPER_THAN_RELOAD)
        if news is None:
            return None
        self._heard = threading.get_ident(), synced, generation, held, news
        return stamp_of(news[0])

    def sync(
        self, *, force: bool = False, signal: object = None, sender: object = None, **named: object
    ) -> bool:
        """Compare stamps and, when they differ, bring the local copy up to date.

        As `DurableDict.sync`; each also sees that the server is still the primary, in the same
        round trip.

        """
        self._look_at = -math.inf
        return super().sync(force=force, signal=signal, sender=sender, **named)

    def wait(self, since: Any, timeout: float) -> bool:
        """Return True when the stamp is no longer `since`, False after `timeout` seconds.

        The server tells: an XREAD that blocks, on a connection of its own.

        """
        if not self._listens:
            return super().wait(since, timeout)
        last = b"0-0" if since is None or not since[0] else b"%d-%d" % since[:2]
        try:
            self._woken = self._explained(
                redisquestions.wait_for_commit,
                self._primary,
                last,
                timeout,
                self._interrupted.is_set,
            )
        except NoPermissionError as error:
            logger.warning("the watch polls, since this user may not wait: %s", error)
            self._listens = False
            return super().wait(since, timeout)
        if not self._woken:
            # What no entry tells of, the look does: that this is no primary any more, say.
            self._look_at = -math.inf
        return self._woken

    # -- fetching -----------------------------------------------------------------------------

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded, as of one moment; a large hash is fetched in chunks."""
        self._examine()
        loaded: dict[K, V | Undecodable] = self._explained(
            load, self._primary, self._decoded, keys_of
        )
        return loaded

    def _examine(self) -> None:
        """Warn, once for each client, of a setting that takes entries away."""
        server = self._primary.server
        if server.is_examined:
            return
        policy, limit = redisquestions.eviction(self._primary)
        server.is_examined = True
        if policy.startswith("allkeys") and limit:
            logger.warning(
                "this Redis server evicts keys when it holds %d bytes (maxmemory-policy %s), also "
                "those of durable dicts: set maxmemory-policy to noeviction or volatile-lru",
                limit,
                policy,
            )

    def changes(self, since: Stamp) -> Changes[K, V] | None:
        """Return what the commits after `since` changed: one round trip, whatever the hash's size.

        None when the very commit that gave `since` is not in the stream, or one after it is not;
        when one does not list its keys; when more than half of all keys changed; and when the hash
        has another number of entries than it should.

        """
        if not since[0]:
            return None
        heard, self._heard = self._heard, None
        if heard is not None and heard[:2] == (threading.get_ident(), since):
            _, _, generation, expected, news = heard
        else:
            with self._copy_lock:
                generation, expected = self._generation, self._number_held()
            news = self._explained(delta, self._primary, b"%d-%d" % since[:2], CHEAPER_THAN_RELOAD)
        if news is None:
            return None
        reached, size, fields, payloads, absent = news
        written = self._decoded(fields, payloads)
        removed = keys_of(absent)
        with self._copy_lock:
            expected += sum(not self._is_held(key) for key in written)
            expected -= sum(self._is_held(key) for key in removed)
            if size != expected and generation == self._generation:
                return None
        return Changes(stamp_of(reached), written, removed)

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        field = bytes_of(key)
        redisquestions.require_taken(self._primary, (field,))
        payload = self._explained(redisquestions.payload, self._primary, field)
        if payload is None:
            if self._is_held(key):
                self._look_at = -math.inf  # the copy has what is not there: the next sync looks
            return MISSING, MISSING
        return self._decode(payload, key), payload

    def _decoded(self, fields: list[bytes], payloads: list[bytes]) -> dict[Any, Any]:
        return self._decode_all(list(zip(keys_of(fields), payloads, strict=True)))

    def _explained(self, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except ResponseError as error:
            redisquestions.explain(self._primary, error)
            raise
