"""`ZookeeperDict`: a znode a key, whose watches tell which key changed.

docs/internals.rst, section 4, has the protocol; the numbers in comments are its rules. The parts:
`zookeepertree` is what is known here of the tree, `zookeeperfetch` asks for what is not,
`zookeeperwrites` and `zookeepertransactions` write, in requests of the size that ZooKeeper takes
(`zookeepersizes`), sent by `zookeepercommits`, and all go through the caller's client, see
`zookeeperclient`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from .extras import raise_if_missing

try:
    from kazoo.client import KazooClient
except ModuleNotFoundError as error:
    raise_if_missing(error, "ZookeeperDict needs", "kazoo", extra="zookeeper")
    raise
from kazoo.exceptions import (
    ConnectionLoss,
    KazooException,
    NotReadOnlyCallError,
    SessionExpiredError,
)

from . import reading
from .base import Changes, Commit, ConnectionDurableDict, Undecodable
from .changes import Difference, chained
from .encoding import DefaultEncoding
from .errors import MISSING, Missing
from .hiding import hidden, kind_of
from .locks import LEASE, Lease
from .options import seconds
from .zookeeperclient import Client
from .zookeepercommits import Commits
from .zookeepererrors import REFUSALS, UNAVAILABLE
from .zookeeperfetch import Fetcher
from .zookeeperleases import ZookeeperLease, folder_of
from .zookeepernames import Place, checked_path, encode_name
from .zookeepersizes import REQUEST_LIMIT, Entry, Sizes, checked_limit
from .zookeepertransactions import Transactions
from .zookeepertree import Tree
from .zookeeperwrites import Proof, Writer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .base import Options

__all__ = ["ZookeeperDict"]

logger = logging.getLogger("durabledict.zookeeper")

K = TypeVar("K")
V = TypeVar("V")

#: How often the leader is asked, where the connection is lost meanwhile.
ATTEMPTS = 5


class ZookeeperDict(ConnectionDurableDict[K, V]):
    """A durable dict in ZooKeeper: a znode a key, and a watch on each.

    >>> from kazoo.client import KazooClient
    >>> from durabledict import ZookeeperDict
    >>> settings = ZookeeperDict("/settings", KazooClient("127.0.0.1:2181"))  # doctest: +SKIP

    What each way of reading promises:

    ====================  =========================================================================
    ``autosync=True``     own writes, and all that the session was told, never backwards. While
                          nothing was told a read costs nothing; then, one request a changed key.
                          Another client's write may not have been told of yet
    ``"strict"``          every write that was acknowledged anywhere before the read began:
                          ZooKeeper's ``sync``, one round trip to the leader. What a leader does
                          not know, see `quorum`
    seconds               at most one ``sync`` in that time
    False, and `sync`     as "strict", at each call of `sync`
    ====================  =========================================================================

    A write costs one round trip; `update`, `clear` and `replace_all` are transactions, as few as
    the size of a request allows. What other clients wrote costs one request for one key, two for
    each hundred of more, and one for the list of keys when some came or went, whatever the number
    of keys.

    :param keyspace: the path of the znode whose children are the entries, as 0.9 had them. Where
        there is none it is made, empty; by the first write, where this client may not
    :param connection: a `kazoo.client.KazooClient`. One that is not started is started, and
        stopped again by `close`; its ACLs, chroot and `read_only` count
    :param timeout: the seconds that an answer may take; a connection that was lost is waited for
        as long
    :param request_limit: the bytes that a request may have, the servers' ``jute.maxbuffer``
    :param quorum: ask a majority of the servers, by an empty transaction that they log, as dear as
        a write, where else ZooKeeper's ``sync`` asks the leader alone. That one misses what is
        written while a leader that was given up does not know it yet; and for a client of the
        leader's own, now and then, what was acknowledged in the last milliseconds
    :param autosync: see above; and `DurableDict`, as for `encoding`, `old_encoding`, and the other
        options
    :raises TypeError: no path, no client of kazoo's, an option of another type
    :raises ValueError: a path that ZooKeeper does not take, a limit that is none
    :raises kazoo.exceptions.KazooException: the servers cannot be asked

    """

    __slots__ = (
        "_client",
        "_fetcher",
        "_has_asked",
        "_loaded",
        "_place",
        "_sizes",
        "_tree",
        "_tree_transactions",
        "_writer",
    )

    unavailable = UNAVAILABLE

    _holds_bytes = "ZooKeeper"
    _autosync_words = ("strict",)
    _hears = True

    def __init__(
        self,
        keyspace: str,
        connection: KazooClient,
        autosync: bool | float | timedelta | str = True,
        encoding: Any = DefaultEncoding,
        old_encoding: Any = None,
        *,
        timeout: float | timedelta = 5.0,
        request_limit: int = REQUEST_LIMIT,
        quorum: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(connection, KazooClient):
            raise TypeError(
                f"connection is {kind_of(connection)}: write a kazoo.client.KazooClient, or use "
                "durabledict.open('zookeeper://host:port/path')"
            )
        limit = seconds(timeout)
        if limit is None or limit <= 0:
            raise TypeError(f"timeout={timeout!r}: write seconds above 0, or a timedelta")
        largest = checked_limit(request_limit)
        if not isinstance(quorum, bool):
            raise TypeError(f"quorum={quorum!r}: write True (ask a majority) or False (the leader)")
        path = checked_path(keyspace)
        self._place = Place(path, in_root=path == "/" and not connection.chroot)
        # The stamp of what `durables` has loaded for the local copy.
        self._loaded = 0
        # Whether the comparison that is being made has asked the leader.
        self._has_asked = False
        self._tree = Tree(self._marked)
        tree = self._tree
        self._client = Client(connection, limit, tree.lose, lambda: tree.events, quorum)
        asked = self._tree, self._client, self._place
        self._fetcher = Fetcher(*asked, largest)
        self._sizes = Sizes(self._client, self._place, largest)
        commits = Commits(*asked)
        self._tree_transactions = Transactions(*asked, self._sizes, commits)
        self._writer = Writer(*asked, self._sizes, commits, self._tree_transactions)
        try:
            super().__init__(path, connection, autosync, encoding, old_encoding, **options)
            # The root, which always is, was created by no transaction.
            if self._filled and self._tree.place_created == 0 and not self._place.in_root:
                self._make_place()
        except BaseException:
            self._client.release()
            raise

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Open ``zookeeper://host:port,host:port/path`` with a client of its own.

        :param url: the servers, and the path that is the keyspace
        :param options: the other parameters of the class
        :raises ValueError: no host, or no path

        """
        parts = _parsed(url)
        path = unquote(parts.path)
        if not parts.netloc or "@" in parts.netloc or not path.strip("/"):
            raise ValueError(f"{hidden(url)!r}: write zookeeper://host:port,host:port/path")
        if parts.query or parts.fragment:
            raise ValueError(f"{hidden(url)!r}: write %3F and %23 for the ? and # of a path")
        return cls(path, KazooClient(parts.netloc), **options)

    # -- reading ------------------------------------------------------------------------------

    def last_updated(self) -> int:
        """Return the number of what the session was told, after a question to the leader.

        One round trip: ZooKeeper's `sync`, or a majority's answer with `quorum`, after which this
        session has been told of every write that was acknowledged before, and has heard of it.

        """
        self._ask_leader()
        self._has_asked = True
        return self._tree.number

    def _make_place(self) -> None:
        """Make the empty place, as 0.9 did: others are to be able to create entries in it."""
        try:
            made = self._client.ready(self._waits()).ensure_path_async(self._place.path)
            self._client.wait([made])
            made.get()
            self._compare()  # or the first read would have to ask for what was made
        except KazooException as error:
            # May not, or cannot now: it can be read all the same, and the first write needs it.
            logger.debug("%s was not made: %r", self._place.path, error)

    def _ask_leader(self) -> None:
        for _ in range(ATTEMPTS):
            self._client.ready(self._waits())
            asked = self._client.ask(self._place.path)
            self._client.wait([asked])
            if not isinstance(asked.exception, (ConnectionLoss, SessionExpiredError)):
                break  # else the next connection is waited for, and asked
        try:
            asked.get()
        except NotReadOnlyCallError:
            # Of servers that are cut off, a client that is `read_only` wants what they have.
            if self._filled or self._autosync is not True:
                raise
        self._client.barrier()

    def _synchronize(self, force: bool, told: bool = False) -> bool:
        self._tree.is_syncing = True
        try:
            return super()._synchronize(force, told)
        finally:
            self._tree.is_syncing = False

    def _ask(self, since: Any, stamp: Any, force: bool) -> tuple[Difference[K, V], Any]:
        difference, reached = super()._ask(since, stamp, force)
        if difference.complete and reached is not None:
            # With an older one, what was loaded would not be known to be in the copy.
            reached = self._loaded
        return difference, reached

    def _waits(self) -> bool:
        """Whether to wait for a connection that was lost: not where there is a copy to serve."""
        return not (self._filled and self._on_outage == "stale")

    def _told_stamp(self) -> int:
        self._has_asked = False
        return self._tree.number

    def _is_told(self) -> bool:
        return bool(self._tree.number == self.last_synced)

    def _compare_told(self, unless: Callable[[], bool] | None = None) -> bool:
        return self._compare(unless=unless, told=True)

    def changes(self, since: Any) -> Changes[K, V] | None:
        """Return what changed since a stamp, by reading the keys of which events told.

        One key is one request, more are two for each hundred, and one for the list of keys, when
        some came or went. None in a new session, whose servers may be of another history.

        """
        with self._sync_mutex:
            if not self._tree.remembers(since):
                return self._unknown(since)
            kept = self._fetcher.fetch(self._decode_all, self._waits())
            news = self._tree.news(since)
        del kept
        if news is None:
            return self._unknown(since)
        stamp, fresh, _kept = news
        named = [(self._place.key(name), value) for name, value in fresh.items()]
        return Changes(
            stamp,
            {key: value for key, value in named if value is not MISSING},
            [key for key, value in named if value is MISSING],
        )

    def _unknown(self, since: Any) -> Changes[K, V] | None:
        # Where another thread's write was applied meanwhile, this answer is thrown away, and the
        # next question is from there.
        return None if self.last_synced == since else Changes(since, {}, [])

    def durables(self) -> dict[K, V | Undecodable]:
        """Return all entries, decoded, as of one state: two requests for each hundred keys."""
        with self._sync_mutex:
            for_copy = self._is_inside()
            if not (for_copy and self._has_asked):
                self._ask_leader()
            self._has_asked = False
            stamp, entries = self._fetcher.reload(self._decode_all, self._waits(), for_copy)
            if for_copy:
                self._loaded = stamp
        return {self._place.key(name): value for name, value in entries.items()}

    def _fetch(self, key: K) -> tuple[V | Missing | Undecodable, Any]:
        payload, proof = self._writer.read(self._place.name(key))
        if payload is None:
            return MISSING, MISSING
        return self._decode(payload, key), proof

    # -- writing ------------------------------------------------------------------------------

    def persist(self, key: K, value: V) -> Commit[K, V]:
        """Store one entry: one request, and one that is not waited for where reads follow."""
        return self._writer.set(self._entry(key, value), self.last_synced)

    def depersist(self, key: K) -> Commit[K, V] | None:
        """Remove one entry: one transaction."""
        return self.depersist_many([key])

    def persist_many(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        """Store several entries: one transaction for each megabyte."""
        return self._transact(self._many(entries), [])

    def depersist_many(self, keys: Iterable[K]) -> Commit[K, V] | None:
        """Remove several entries: one transaction for each megabyte of their names."""
        return self._transact([], [(key, self._place.name(key)) for key in dict.fromkeys(keys)])

    def _replace_all(self, entries: Mapping[K, V]) -> Commit[K, V] | None:
        wanted = {entry.name: entry for entry in self._many(entries)}
        self._sizes.require_taken(wanted.values())
        # What others have stored up to now is to be removed, too.
        self._compare()
        held = dict(self._tree.held)
        # By what is stored, not by the local copy, whose values the caller may have changed.
        changed = [
            entry
            for name, entry in wanted.items()
            if name not in held or held[name].digest != hash(entry.payload)
        ]
        removals = [(self._place.key(name), name) for name in held if name not in wanted]
        # A znode that is no entry, but a folder of somebody else's, stays.
        return self._transact(changed, removals, self._undecodable.__contains__)

    def _compare_and_set(self, key: K, value: V | Missing, proof: Any) -> Commit[K, V] | None:
        if isinstance(value, Missing):
            return self._writer.remove_if(key, self._place.name(key), proof, self.last_synced)
        entry = self._entry(key, value)
        if not isinstance(proof, Proof):
            return self._writer.add(entry, self.last_synced)
        return self._writer.replace(entry, proof, self.last_synced)

    def _transact(
        self,
        entries: list[Entry],
        removals: list[tuple[K, str]],
        may_stay: Callable[[Any], bool] = lambda key: False,
    ) -> Commit[K, V] | None:
        commits: list[Commit[K, V]] = []
        applied = self.last_synced
        try:
            for part in self._tree_transactions.parts(entries, removals):
                commits.append(self._tree_transactions.transact(part, applied, may_stay=may_stay))
                # As if it were applied already: the next one is made from there.
                applied = commits[-1].after
        except BaseException:
            if commits:
                self._doubt()  # the error of this one may be a refusal, but those before are done
            raise
        return chained(commits or [Commit(self._tree.number, self._tree.number)])

    def _was_refused(self, error: Exception) -> bool:
        return isinstance(error, REFUSALS) or super()._was_refused(error)

    def _entry(self, key: K, value: V) -> Entry:
        payload, stored = self._prepare(key, value)
        return Entry(key, self._place.name(key), payload, stored)

    def _many(self, entries: Mapping[K, V]) -> list[Entry]:
        payloads, stored = self._prepare_all(entries)
        return [
            Entry(key, self._place.name(key), payload, stored[key])
            for key, payload in payloads.items()
        ]

    # -- being told ---------------------------------------------------------------------------

    def _marked(self, before: int | None, lost: bool) -> None:
        """Let the next read ask for what was marked; called on a thread of kazoo's, too.

        Until now a copy of which nothing was told was good: an outage counts from here. But how
        long a server was silent before the client gave it up is known only to be less than the
        session's timeout.

        """
        if self._autosync is not True:
            return
        with self._copy_lock:
            if before is not None and before == self.last_synced:
                heard = reading.monotonic() - (self._client.session_timeout if lost else 0.0)
                self._freshness.sent = max(self._freshness.sent, heard)
            self._settle()

    def wait(self, since: Any, timeout: float) -> bool:
        """Return True when the stamp is no longer `since`: when an event came."""
        tree = self._tree
        with tree.lock:
            tree.lock.wait_for(lambda: tree.number != since or self._interrupted.is_set(), timeout)
            return bool(tree.number != since)

    def _interrupt_wait(self) -> None:
        super()._interrupt_wait()
        with self._tree.lock:
            self._tree.lock.notify_all()

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        folder = folder_of(self._place.path)
        if folder is None:
            return super()._lease(name, seconds)
        path = f"{folder}/{encode_name(name)}"
        identity = ("zookeeper", id(self.connection), path)
        return ZookeeperLease(seconds, identity, self._client, path)

    # -- closing, forking ---------------------------------------------------------------------

    def close(self) -> None:
        """End the watch; stop the client if it was started here, and no other dict uses it."""
        super().close()
        for watch in self._tree.armed():
            path = self._place.path
            self._client.drop(
                path if watch.name is None else self._place.path_of(watch.name), watch
            )
        self._client.release()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._client.after_fork()
        self._tree.after_fork()


def _parsed(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        pass  # whose message may have a password that is there by mistake
    raise ValueError(f"{hidden(url)!r}: write zookeeper://host:port,host:port/path")
