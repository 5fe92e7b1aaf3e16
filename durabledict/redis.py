"""`RedisDict`: a hash in Redis or Valkey, with a stream that tells which keys changed.

docs/internals.rst, section 2, has the protocol; the numbers in comments are its rules. The parts:
`redisscripts` is what runs in the server, `redisprimary` gets requests to the server that holds the
keyspace, over the connections of `redisservers`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

try:
    import redis  # noqa: F401  # for the message where it is missing
except ModuleNotFoundError as error:
    raise ImportError(
        "RedisDict needs the package redis: pip install redis, or install durabledict with its "
        "extra [redis]",
        name=error.name,
    ) from error
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from . import coder, reading, redisquestions
from .base import Changes, Commit, ConnectionDurableDict, Undecodable
from .bytekeys import bytes_of, key_of
from .changes import chained
from .encoding import DefaultEncoding
from .errors import MISSING, Missing
from .hiding import kind_of
from .locks import LEASE, Lease
from .redisconnection import nothing_was_sent
from .redisload import delta, load
from .redisprimary import Primary
from .redisscripts import COMPARE_AND_SET, FIND, LOAD, REPLACE, SET, WRITE, Script
from .redisservers import client_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .base import Options

__all__ = ["RedisDict"]

K = TypeVar("K")
V = TypeVar("V")

#: Number and nonce of a commit. (0, 0): never written and empty. (0, size, counter): what 0.9
#: wrote, its number of entries and 0.9's own counter. (number, nonce, size): a hash that has
#: another number of entries than that commit left.
Stamp = tuple[int, ...]

logger = logging.getLogger("durabledict.redis")

#: What the mirror holds, unless somebody else has written to it.
IDENTIFIER = re.compile(rb"\d{1,20}-\d{1,20}")

NEVER_WRITTEN: Stamp = (0, 0)

#: Scripts count in floating point, which goes so far.
LAST_NUMBER = 2**53 - 1

#: Seconds after which a strict read has the server's role and number of entries looked at, too.
LOOK_INTERVAL = 1.0

#: A commit of more keys, or of more bytes of keys and payloads, is several: the server serves
#: nobody else meanwhile.
COMMIT_KEYS = 200_000
COMMIT_BYTES = 64_000_000

#: Keys and payloads below this need no look at the server's limits, which cannot be set lower.
SURELY_TAKEN = 1_000_000

#: The share of all keys above which a reload is cheaper than a delta.
CHEAPER_THAN_RELOAD = b"0.6"


class RedisDict(ConnectionDurableDict[K, V]):
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
    :raises ValueError: on a cluster, a keyspace whose keys cannot be in one slot
    :raises TypeError: one of the three keys holds something else; no client of redis-py's
    :raises redis.exceptions.RedisError: the server cannot be asked

    """

    __slots__ = ("_heard", "_listens", "_look_at", "_owned", "_primary", "_replicas", "_woken")

    unavailable = (
        ConnectionError,
        TimeoutError,
        ReadOnlyError,
        ClusterDownError,
        TryAgainError,
        RedisClusterException,
    )

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
        self._primary = Primary(connection, keyspace)
        self._owned: Any = None
        self._look_at = -math.inf
        self._listens = True
        self._woken = False
        self._heard: tuple[int, Stamp, int, int, Any] | None = None
        try:
            super().__init__(keyspace, connection, autosync, encoding, old_encoding, **options)
        except BaseException:
            self._primary.close()
            raise

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

    # -- reading ------------------------------------------------------------------------------

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
                return _stamp(told)
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
        stamp = _stamp(last)
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
        return _stamp(news[0])

    def sync(
        self, *, force: bool = False, signal: object = None, sender: object = None, **named: object
    ) -> bool:
        """Compare stamps and, when they differ, bring the local copy up to date.

        As `DurableDict.sync`; each also sees that the server is still the primary, in the same
        round trip.

        """
        self._look_at = -math.inf
        return super().sync(force=force, signal=signal, sender=sender, **named)

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded, as of one moment; a large hash is fetched in chunks."""
        self._examine()
        loaded: dict[K, V | Undecodable] = self._explained(
            load, self._primary, self._decoded, _keys
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
        removed = _keys(absent)
        with self._copy_lock:
            expected += sum(not self._is_held(key) for key in written)
            expected -= sum(self._is_held(key) for key in removed)
            if size != expected and generation == self._generation:
                return None
        return Changes(_stamp(reached), written, removed)

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        field = bytes_of(key)
        if len(field) > SURELY_TAKEN:
            redisquestions.require_taken(self._primary, (field,))
        payload = self._explained(redisquestions.payload, self._primary, field)
        if payload is None:
            if self._is_held(key):
                self._look_at = -math.inf  # the copy has what is not there: the next sync looks
            return MISSING, MISSING
        return self._decode(payload, key), payload

    def _decoded(self, fields: list[bytes], payloads: list[bytes]) -> dict[Any, Any]:
        return self._decode_all(list(zip(_keys(fields), payloads, strict=True)))

    # -- writing ------------------------------------------------------------------------------

    def persist(self, key: K, value: V) -> Commit[K, V] | None:
        """Store one entry: one script call."""
        payload, stored = self._prepare(key, value)
        synced = self.last_synced
        return self._run_write(
            SET,
            (bytes_of(key), coder.as_bytes(key, payload, "Redis")),
            {key: stored},
            follows=synced[:2] if synced is not None and synced[0] < LAST_NUMBER else NEVER_WRITTEN,
        )

    def depersist(self, key: K) -> Commit[K, V] | None:
        """Remove one entry: one script call."""
        return self._run_write(WRITE, (b"0", bytes_of(key)), {}, [key])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        """Store several entries: one script call and one commit for each 200,000, or 64 MB."""
        payloads, written = self._prepare_all(entries)
        flat = self._flat(payloads)
        parts = _parts([len(flat[i]) + len(flat[i + 1]) for i in range(0, len(flat), 2)])
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
                for first, last in _parts(list(map(len, fields)))
            ]
        )

    def _run_parts(
        self, parts: list[tuple[tuple[bytes, ...], dict[K, Any], list[K]]]
    ) -> Commit[K, V] | None:
        """Run WRITE for one part after the other; what can be refused here is before the first."""
        for arguments, _, _ in parts:
            self._require_taken(arguments)
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
        if len(entries) > COMMIT_KEYS:
            return super()._replace_all(entries)
        payloads, written = self._prepare_all(entries)
        return self._run_write(REPLACE, self._flat(payloads), written)

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        old = (b"0", b"") if proof is MISSING else (b"1", proof)
        new: tuple[bytes, ...] = (b"0",)
        written: dict[K, Any] = {}
        if not isinstance(value, Missing):
            payload, stored = self._prepare(key, value)
            new, written = (b"1", coder.as_bytes(key, payload, "Redis")), {key: stored}
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
        self._require_taken(arguments)
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
        before, after = reply[0] and _stamp(reply[0]), reply[1] and _stamp(reply[1])
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

    def _require_taken(self, arguments: tuple[bytes, ...]) -> None:
        if arguments and max(map(len, arguments)) > SURELY_TAKEN:
            redisquestions.require_taken(self._primary, arguments)

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

    def _flat(self, payloads: Mapping[K, Any]) -> tuple[bytes, ...]:
        flat: list[bytes] = []
        for key, payload in payloads.items():
            flat += bytes_of(key), coder.as_bytes(key, payload, "Redis")
        return tuple(flat)

    def _explained(self, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except ResponseError as error:
            redisquestions.explain(self._primary, error)
            raise

    # -- waiting, closing, forking ------------------------------------------------------------

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

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        return self._primary.lease(name, seconds)

    def close(self) -> None:
        """End the watch; close the connections if no other dict uses them."""
        super().close()
        self._primary.close()
        if self._owned is not None:
            self._owned.close()


def _stamp(identifier: bytes) -> Stamp:
    number, _, nonce = identifier.partition(b"-")
    return int(number), int(nonce)


def _keys(fields: list[bytes]) -> list[Any]:
    """Return the keys of many fields: all at once where none has a tag or a line break.

    One by one takes a third of the time of a first load.

    """
    together = b"\n".join(fields)
    if not (together[:1] == b"~" or b"\n~" in together):
        try:
            keys = together.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            keys = []
        if len(keys) == len(fields):
            return keys
    return [key_of(field) for field in fields]


def _parts(sizes: list[int]) -> list[tuple[int, int]]:
    """Return where each commit of a large write begins and ends.

    :param sizes: the bytes of each entry

    """
    if len(sizes) <= COMMIT_KEYS and sum(sizes) <= COMMIT_BYTES:
        return [(0, len(sizes))]
    parts, first, size = [], 0, 0
    for place, own in enumerate(sizes):
        if place > first and (place - first == COMMIT_KEYS or size + own > COMMIT_BYTES):
            parts.append((first, place))
            first, size = place, 0
        size += own
    return [*parts, (first, len(sizes))]


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
