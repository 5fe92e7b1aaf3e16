"""`RedisDict`: a hash in Redis or Valkey, with a stream that tells which keys changed.

docs/internals.rst, section 2, has the protocol; the numbers in comments are its rules. The parts:
`redisscripts` is what runs in the server, `redisprimary` gets requests to the server that holds the
keyspace, over the connections of `redisservers`; `redisreads` is how the dict is read, and here is
how it is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .extras import raise_if_missing

try:
    import redis  # noqa: F401  # for the message where it is missing
except ModuleNotFoundError as error:
    raise_if_missing(error, "RedisDict needs", "redis", extra="redis")
    raise
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
)

from . import rediscommits, redisquestions
from .base import Commit
from .bytekeys import bytes_of, key_of
from .changes import chained
from .encoding import DefaultEncoding
from .errors import MISSING, Missing
from .hiding import kind_of
from .locks import LEASE, Lease
from .rediscommits import LAST_NUMBER, NEVER_WRITTEN, Stamp, flattened, parts_of, stamp_of
from .redisconnection import nothing_was_sent
from .redisreads import RedisReads
from .redisscripts import COMPARE_AND_SET, FIND, REPLACE, SET, WRITE, Script
from .redisservers import client_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .base import Options

__all__ = ["RedisDict"]

K = TypeVar("K")
V = TypeVar("V")


class RedisDict(RedisReads[K, V]):
    """A durable dict in a Redis hash. Strict reads are linearizable on one primary.

    >>> import redis
    >>> from durabledict import RedisDict
    >>> settings = RedisDict("settings", redis.Redis())  # doctest: +SKIP

    A strict read costs one GET, a write one script call, whatever the number of keys; a sync after
    somebody else's writes fetches what changed. The connections are the dict's own, made with the
    client's settings and shared by all dicts with that client, which itself is left as it is.

    What a write survives is the server's to say: with ``appendonly yes`` and
    ``appendfsync always`` a power failure, with `wait` most failovers. See docs/backends/redis.rst.

    :param keyspace: the name of the hash; a hash that 0.9 wrote is read, and adopted by the first
        write. Beside it are ``{keyspace}:changes`` and ``{keyspace}:last_updated``
    :param connection: a `redis.Redis`, also one of Sentinel's, or a `redis.cluster.RedisCluster`
    :param wait: ``(replicas, milliseconds)``: a write is acknowledged when that many replicas have
        it. Where they are fewer in that time its outcome is unknown: a `redis.TimeoutError`
    :param autosync: see `DurableDict`, as `encoding`, `old_encoding`, and the other options
    :raises ValueError: a keyspace with half a pair of braces; on a cluster, one whose keys cannot
        be in one slot
    :raises TypeError: one of the three keys holds something else; no client of redis-py's
    :raises redis.exceptions.RedisError: the server cannot be asked

    """

    __slots__ = ("_owned", "_replicas")

    _holds_bytes = "Redis"

    def __init__(
        self,
        keyspace: str,
        connection: Any,
        autosync: bool | float | timedelta = True,
        encoding: Any = DefaultEncoding,
        old_encoding: Any = None,
        *,
        wait: tuple[int, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(keyspace, str):
            raise TypeError(
                f"keyspace is {kind_of(keyspace)}: write a str, the name of the hash, and the "
                "client after it"
            )
        self._replicas = None if wait is None else _checked_wait(wait)
        self._owned: Any = None
        super().__init__(keyspace, connection, autosync, encoding, old_encoding, **options)

    @classmethod
    def from_url(cls, url: str, keyspace: str, **options: Any) -> Self:
        """Open ``redis://host:port/db``, ``rediss://`` or ``unix://`` with a client of its own.

        :param url: as `redis.Redis.from_url` takes it
        :param keyspace: the name of the hash
        :param options: the other parameters of the class
        :raises ValueError: redis-py cannot read the URL

        """
        client = client_of(url)
        try:
            opened = cls(keyspace, client, **options)
        except BaseException:
            client.close()
            raise
        opened._owned = client
        return opened

    # -- writing ------------------------------------------------------------------------------

    def persist(self, key: K, value: V) -> Commit[K, V] | None:
        """Store one entry: one script call."""
        payload, stored = self._prepare(key, value)
        synced = self.last_synced
        return self._run_write(
            SET,
            (bytes_of(key), payload),
            {key: stored},
            follows=synced[:2] if synced is not None and synced[0] < LAST_NUMBER else NEVER_WRITTEN,
        )

    def depersist(self, key: K) -> Commit[K, V] | None:
        """Remove one entry: one script call."""
        return self._run_write(WRITE, (b"0", bytes_of(key)), {}, [key])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        """Store several entries: one script call and one commit for each 200,000, or 64 MB."""
        payloads, written = self._prepare_all(entries)
        flat = flattened(payloads)
        parts = parts_of([len(flat[i]) + len(flat[i + 1]) for i in range(0, len(flat), 2)])
        if len(parts) == 1:
            return self._run_write(WRITE, (b"%d" % len(payloads), *flat), written)
        keys = list(written)
        return self._run_parts(
            [
                (
                    (b"%d" % (last - first), *flat[2 * first : 2 * last]),
                    {key: written[key] for key in keys[first:last]},
                    [],
                )
                for first, last in parts
            ]
        )

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V] | None:
        """Remove several entries: one script call and one commit for each 200,000, or 64 MB."""
        gone = list(dict.fromkeys(keys))
        fields = list(map(bytes_of, gone))
        return self._run_parts(
            [
                ((b"0", *fields[first:last]), {}, gone[first:last])
                for first, last in parts_of(list(map(len, fields)))
            ]
        )

    def _run_parts(
        self, parts: list[tuple[tuple[bytes, ...], dict[K, Any], list[K]]]
    ) -> Commit[K, V] | None:
        """Run WRITE for one part after the other; what can be refused here is before the first."""
        for arguments, _, _ in parts:
            redisquestions.require_taken(self._primary, arguments)
        commits: list[Commit[K, V] | None] = []
        try:
            for arguments, written, removed in parts:
                commits.append(self._run_write(WRITE, arguments, written, removed))
        except BaseException:
            if commits:
                self._doubt()  # the error of this one may be a refusal, but those before are done
            raise
        return chained(commits)

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        if len(entries) > rediscommits.COMMIT_KEYS:
            return super()._replace_all(entries)
        payloads, written = self._prepare_all(entries)
        return self._run_write(REPLACE, flattened(payloads), written)

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        old = (b"0", b"") if proof is MISSING else (b"1", proof)
        new: tuple[bytes, ...] = (b"0",)
        written: dict[K, Any] = {}
        if not isinstance(value, Missing):
            payload, stored = self._prepare(key, value)
            new, written = (b"1", payload), {key: stored}
        arguments = (bytes_of(key), *old, *new)
        return self._run_write(COMPARE_AND_SET, arguments, written, [] if written else [key])

    def _run_write(
        self,
        script: Script,
        arguments: tuple[bytes, ...],
        written: dict[K, Any],
        removed: Iterable[K] = (),
        follows: Stamp | None = None,
    ) -> Commit[K, V] | None:
        """Run a script that makes one commit.

        :param written: the values as stored, of the keys that it may write
        :param removed: the keys that it may remove, where they are known
        :param follows: for SET: the commit after which it is likely to be
        :return: None where the script declined

        """
        redisquestions.require_taken(self._primary, arguments)
        nonce = int.from_bytes(os.urandom(8), "big") >> 1
        after: Stamp | None = None
        if follows is not None:
            after = (follows[0] + 1, nonce)
            arguments = (*arguments, b"%d-%d" % follows, b"%d-%d" % after)
        number = b"%d" % nonce
        try:
            reply = self._primary.write(script, (number, *arguments), self._replicas)
        except ResponseError as error:
            redisquestions.explain(self._primary, error)
            raise
        except (ConnectionError, TimeoutError) as error:
            if self._was_refused(error) or not self._was_done(number):
                raise
            # Done, and what was before it is not known: the sync that follows tells (rule 0.4).
            return Commit(None, None, written, list(removed))
        if self._replicas is not None:
            reply, acknowledged = reply
            self._require_acknowledged(reply, acknowledged)
        if reply is None:
            return None
        if reply == 1:
            return Commit(follows, after, written)
        before, after = reply[0] and stamp_of(reply[0]), reply[1] and stamp_of(reply[1])
        if reply[2] == b"*":
            return self._cleared(before, after)
        if before == after:
            if any(map(self._is_held, removed)) or (script is REPLACE and not arguments):
                # Or is it the copy that has what is not there? The sync that follows looks.
                self._look_at = -math.inf
                return Commit(None, None)
            written = {}
        elif len(reply) > 3:
            written = {key: written[key] for key in map(key_of, reply[3])}
        return Commit(before, after, written, [key_of(field) for field in reply[2]])

    def _require_acknowledged(self, reply: Any, acknowledged: Any) -> None:
        """See that enough replicas have a commit, if one was made.

        :raises redis.exceptions.TimeoutError: it may be lost with the primary

        """
        replicas, milliseconds = self._replicas or (0, 0)
        made = reply == 1 or (reply is not None and reply[0] != reply[1])
        if made and not (isinstance(acknowledged, int) and acknowledged >= replicas):
            raise TimeoutError(
                f"replicas that acknowledged a write within {milliseconds} ms: {acknowledged}, not "
                f"{replicas}; it is done on the primary, and may be lost with it"
            )

    def _cleared(self, before: Stamp | None, after: Stamp | None) -> Commit[K, V]:
        """Return the commit of a `clear`, of which the server does not tell the keys again."""
        with self._copy_lock:
            if self.last_synced is None or self.last_synced != before:
                return Commit(None, after)
            # Whenever the copy has this stamp again, these are its keys.
            return Commit(before, after, {}, self._keys_held())

    def _was_done(self, nonce: bytes) -> bool:
        """Whether a commit is in the stream. That it is not proves nothing: it may still come."""
        try:
            return self._primary.run(FIND, nonce) is not None
        except (*self.unavailable, ResponseError):
            return False

    def _was_refused(self, error: Exception) -> bool:
        """Whether nothing may still arrive: the server said no, or was not reached."""
        # An error midway through a script comes after its commit was recorded, if at all: so the
        # next check sees it.
        refusals = (ResponseError, BusyLoadingError, RedisClusterException, TypeError, ValueError)
        return nothing_was_sent(error) or isinstance(error, refusals) or super()._was_refused(error)

    # -- the rest -----------------------------------------------------------------------------

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        return self._primary.lease(name, seconds)

    def close(self) -> None:
        """End the watch; close the connections if no other dict uses them."""
        super().close()
        self._primary.close()
        if self._owned is not None:
            self._owned.close()


def _checked_wait(wait: tuple[int, int]) -> tuple[int, int]:
    """Return the number of replicas and the milliseconds.

    :raises TypeError: no pair of numbers
    :raises ValueError: nothing to wait for, or no end

    """
    if not (isinstance(wait, tuple) and [type(number) for number in wait] == [int, int]):
        raise TypeError(f"wait={wait!r}: write (replicas, milliseconds), (1, 100) say")
    replicas, milliseconds = wait
    if replicas < 1 or milliseconds < 1:
        raise ValueError(f"wait={wait!r}: at least one replica and one millisecond")
    return replicas, milliseconds
