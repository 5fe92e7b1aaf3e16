"""Write to the tree of one dict: single znodes, and transactions as large as ZooKeeper takes them.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from kazoo.client import KazooClient, TransactionRequest
from kazoo.exceptions import (
    BadVersionError,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
)
from kazoo.protocol.states import ZnodeStat
from kazoo.security import OPEN_ACL_UNSAFE

from .changes import Commit
from .zookeeperclient import Client
from .zookeepernames import Place
from .zookeepertree import Answer, Ticket, Tree, Watch

__all__ = ["REQUEST_LIMIT", "Entry", "Part", "Proof", "Writer"]

logger = logging.getLogger("durabledict.zookeeper")

#: The largest request that a server takes, as long as its `jute.maxbuffer` is the default one.
REQUEST_LIMIT = 0xFFFFF

#: What a request has beside its operations, and an operation of a transaction beside its path, its
#: data and its ACLs: numbers, and the lengths of those.
REQUEST_OVERHEAD = 17
OVERHEAD = 25


#: The entries of a transaction whose watches are armed along with it. For more, that takes longer
#: than the transaction itself, and is left to the next sync.
ARMED_AT_ONCE = 16


#: Operations that fail where another client has created or removed a znode: then all of them are
#: looked at again, with one request.
SURPRISES = ("set", "create", "number", "delete")


class Entry(NamedTuple):
    """An entry on its way into the store."""

    key: Any
    name: str
    payload: bytes
    value: Any  # as reading the payload gives it


class Proof(NamedTuple):
    """What a znode's value was read from, for a compare-and-set (rule 4.5)."""

    place: int  # the version of the place's data, which each removal raises
    place_data: bytes
    created: int
    version: int


class Part(NamedTuple):
    """What one transaction writes and removes."""

    entries: list[Entry]
    removals: list[tuple[Any, str]]


class Writer:
    """Writes for one dict, and tells its tree.

    A removal raises the version of the place's own data, in the same transaction: a znode that is
    removed and made again begins at version 0, and the version of the place tells a
    compare-and-set that it is not the same one (rule 4.5).

    Each write takes the stamp of the local copy that it is made from, None where that is unknown.

    :param limit: the bytes that a request may have

    """

    def __init__(self, tree: Tree, client: Client, place: Place, limit: int) -> None:
        self._tree = tree
        self._client = client
        self._place = place
        self._limit = limit
        # The place's own data and their version, as they were read or written last.
        self._place_data: tuple[bytes, int] | None = None
        self._may_write_place = True
        self._may_write_own = True

    # -- one entry ----------------------------------------------------------------------------

    def set(self, entry: Entry, applied: int | None) -> Commit[Any, Any]:
        """Store an entry: one request, and one that nobody waits for (see `_arm`)."""
        self.require_taken([entry])
        if entry.name in self._tree.held:
            commit = self._set(entry, applied)
            if commit is not None:
                return commit
        return self.transact(Part([entry], []), applied)

    def add(self, entry: Entry, applied: int | None) -> Commit[Any, Any] | None:
        """Store an entry that is not there; return None when it is."""
        self.require_taken([entry])
        try:
            return self.transact(Part([entry], []), applied, may_replace=False)
        except NodeExistsError:
            return None

    def _set(self, entry: Entry, applied: int | None) -> Commit[Any, Any] | None:
        """Store an entry in the znode that is there; return None when there is none."""
        kazoo = self._client.ready()
        ticket = self._tree.begin(applied)
        try:
            stored = kazoo.set_async(self._place.path_of(entry.name), entry.payload)
            arming = self._arm(kazoo, [entry])
            self._client.wait([stored])
            if stored.exception is not None:
                self._disarm(arming)
            if isinstance(stored.exception, NoNodeError):
                return None
            stat = stored.get()
            # What others wrote before this is marked now, or it would pass for unchanged.
            self._client.barrier()
        except BaseException:
            self._tree.doubt([entry.name])
            raise
        return self._wrote(ticket, [(entry, stat)], arming=arming)

    def _arm(self, kazoo: KazooClient, entries: list[Entry]) -> dict[str, tuple[Watch, Any]]:
        """Send the requests that arm the watches which a write on its way uses up.

        Nobody waits for the answers: they are the tree's, for the next sync. Where there was none
        since the last write there will hardly be one after this, and the sync that comes in the
        end can ask itself: so that writes in a row take no more than half as long again as the
        client's own, and writes with a read after each a quarter less than if it asked (see `make
        bench`).

        """
        arming: dict[str, tuple[Watch, Any]] = {}
        wanted = self._tree.is_asked_for and len(entries) <= ARMED_AT_ONCE
        for entry in entries if wanted else ():
            watch = self._tree.watch(entry.name)
            arming[entry.name] = (
                watch,
                kazoo.get_async(self._place.path_of(entry.name), watch=watch),
            )
        return arming

    def _disarm(self, arming: Mapping[str, tuple[Watch, Any]]) -> None:
        """Take back what was sent along with a write that was refused."""
        if arming:
            self._client.wait([result for _, result in arming.values()])
        for name, (watch, _) in arming.items():
            self._client.drop(self._place.path_of(name), watch)

    def _names(self, kazoo: KazooClient) -> frozenset[str]:
        """Return the names of all entries; make the place, if that is what is missing."""
        listed = kazoo.get_children_async(self._place.path)
        self._client.wait([listed])
        if not isinstance(listed.exception, NoNodeError):
            return frozenset(listed.get())
        made = kazoo.ensure_path_async(self._place.path)
        self._client.wait([made])
        made.get()
        return frozenset()

    # -- compare and set ----------------------------------------------------------------------

    def read(self, name: str) -> tuple[bytes | None, Proof | None]:
        """Return what the leader has under a name, and a proof of it; None where there is nothing.

        Three requests in one round trip.

        """
        kazoo = self._client.ready()
        if self._fits_nowhere(name):
            return None, None
        # The place before the znode: what is removed after that makes the proof void.
        asked: list[Any] = [
            kazoo.sync_async(self._place.path),
            kazoo.get_async(self._place.path),
            kazoo.get_async(self._place.path_of(name)),
        ]
        self._client.wait(asked)
        asked[0].get()
        if isinstance(asked[1].exception, NoNodeError) or isinstance(
            asked[2].exception, NoNodeError
        ):
            return None, None
        place_data, place = asked[1].get()
        payload, stat = asked[2].get()
        return payload or b"", Proof(place.version, place_data or b"", stat.czxid, stat.version)

    def replace(self, entry: Entry, proof: Proof, applied: int | None) -> Commit[Any, Any] | None:
        """Store an entry if what is there is what was read; return None if it is not."""
        self.require_taken([entry])
        good: Proof | None = proof
        while good is not None:
            kazoo = self._client.ready()
            request = kazoo.transaction()
            request.check(self._place.path, good.place)
            request.set_data(self._place.path_of(entry.name), entry.payload, good.version)
            ticket = self._tree.begin(applied)
            results, arming = self._commit(kazoo, request, [entry])
            failure = _failure(results)
            if failure is None:
                if results[1].czxid != proof.created:
                    logger.warning(
                        "key %r was removed and made again by another program than durabledict, "
                        "while a compare-and-set was on its way: it is overwritten",
                        entry.key,
                    )
                return self._wrote(ticket, [(entry, results[1])], arming=arming)
            self._disarm(arming)
            good = self._still_good(entry.name, proof, *failure)
        return None

    def remove_if(
        self, key: Any, name: str, proof: Proof, applied: int | None
    ) -> Commit[Any, Any] | None:
        """Remove an entry if what is there is what was read; return None if it is not."""
        good: Proof | None = proof
        while good is not None:
            kazoo = self._client.ready()
            request = kazoo.transaction()
            if self._may_write_place:
                request.set_data(self._place.path, good.place_data, good.place)
            else:
                request.check(self._place.path, good.place)
            request.delete(self._place.path_of(name), good.version)
            ticket = self._tree.begin(applied)
            results, _ = self._commit(kazoo, request, [], [name])
            failure = _failure(results)
            if failure is None:
                return self._wrote(ticket, [], [(key, name)], results[0])
            if failure[0] == 0 and isinstance(failure[1], NoAuthError) and self._may_write_place:
                self._may_write_place = False
            else:
                good = self._still_good(name, proof, *failure)
        return None

    def _still_good(self, name: str, proof: Proof, place: int, error: Exception) -> Proof | None:
        """Return the proof as it is now, where the write failed for another key's removal only.

        :param place: the operation that failed: 0 is that on the place

        """
        if not isinstance(error, (BadVersionError, NoNodeError)):
            raise error
        _, fresh = self.read(name) if place == 0 else (None, None)
        if fresh is None or (fresh.created, fresh.version) != (proof.created, proof.version):
            return None
        return fresh

    # -- transactions -------------------------------------------------------------------------

    def parts(self, entries: Iterable[Entry], removals: Iterable[tuple[Any, str]]) -> list[Part]:
        """Return what has to be written as transactions of the size that a server takes.

        Removals come last, so that an entry that moves to another key is never missing.

        :raises ValueError: an entry that is too large; nothing was sent

        """
        wanted = list(entries)
        self.require_taken(wanted)
        acls = self._size_of_acls()
        parts, size = [Part([], [])], REQUEST_OVERHEAD
        for entry in wanted:
            own = self._size(entry, acls)
            if size + own > self._limit and parts[-1].entries:
                parts.append(Part([], []))
                size = REQUEST_OVERHEAD
            parts[-1].entries.append(entry)
            size += own
        gone = [each for each in removals if not self._fits_nowhere(each[1])]
        if gone and self._place_data is None:
            self._place_data = self._read_place(self._client.ready())
        data, _ = self._place_data or (b"", 0)
        # With each removal goes what the place itself has (rule 4.5).
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

    def transact(
        self,
        part: Part,
        applied: int | None,
        *,
        may_stay: Callable[[Any], bool] = lambda key: False,
        may_replace: bool = True,
    ) -> Commit[Any, Any]:
        """Run one transaction, again for each thing that turns out to be otherwise.

        :param may_stay: whether a key's znode that has children of its own, and so cannot be
            removed, is left where it is
        :param may_replace: whether the entries may be there already
        :raises NodeExistsError: one is, and may not be

        """
        held = self._tree.held
        exists = {entry.name: may_replace and entry.name in held for entry in part.entries}
        removals = list(part.removals)
        while True:
            kazoo = self._client.ready()
            if removals and self._place_data is None:
                self._place_data = self._read_place(kazoo)
                if self._place_data is None:
                    removals = []  # there is no place, so there is nothing in it
            if not (part.entries or removals):
                return Commit(self._tree.number, self._tree.number)
            ticket = self._tree.begin(applied)
            request, steps = self._request(kazoo, part.entries, exists, removals)
            names = [name for _, name in removals]
            results, arming = self._commit(kazoo, request, part.entries, names)
            failure = _failure(results)
            if failure is None:
                return self._done(ticket, part.entries, exists, removals, steps, results, arming)
            self._disarm(arming)
            what, name = steps[failure[0]]
            error = failure[1]
            if isinstance(error, (NoNodeError, NodeExistsError)) and what in SURPRISES:
                if what == "create" and isinstance(error, NodeExistsError) and not may_replace:
                    raise error
                there = self._names(kazoo)
                exists = {name: may_replace and name in there for name in exists}
                gone = [name for _, name in removals if name not in there]
                if gone:
                    self._tree.doubt(gone)
                    removals = [each for each in removals if each[1] in there]
            elif what == "delete":
                key = next(key for key, other in removals if other == name)
                if not (isinstance(error, NotEmptyError) and may_stay(key)):
                    raise error
                removals = [each for each in removals if each[1] != name]
            elif what == "place" and isinstance(error, (BadVersionError, NoNodeError)):
                self._place_data = None
            elif what == "place" and isinstance(error, NoAuthError):
                self._may_write_place = False
            elif what == "number" and isinstance(error, NoAuthError):
                self._may_write_own = False  # what it creates, by the client's default_acl
            else:
                raise error

    def _request(
        self,
        kazoo: KazooClient,
        entries: list[Entry],
        exists: Mapping[str, bool],
        removals: list[tuple[Any, str]],
    ) -> tuple[TransactionRequest, list[tuple[str, str]]]:
        """Return a transaction, and for each of its operations what it does to which name."""
        request = kazoo.transaction()
        steps: list[tuple[str, str]] = []
        path_of = self._place.path_of
        sets_place = bool(removals) and self._may_write_place and self._place_data is not None
        tells_number = self._may_write_own and not sets_place and not any(exists.values())
        for entry in entries:
            if exists[entry.name]:
                request.set_data(path_of(entry.name), entry.payload)
                steps.append(("set", entry.name))
            elif tells_number and entry is entries[0]:
                # Created empty, and set: no other operation tells the transaction's number.
                request.create(path_of(entry.name), b"")
                steps.append(("create", entry.name))
            else:
                request.create(path_of(entry.name), entry.payload)
                steps.append(("create", entry.name))
        if sets_place and self._place_data is not None:
            data, version = self._place_data
            request.set_data(self._place.path, data, version)
            steps.append(("place", ""))
        if tells_number and entries:
            request.set_data(path_of(entries[0].name), entries[0].payload)
            steps.append(("number", ""))
        for _, name in removals:
            request.delete(path_of(name))
            steps.append(("delete", name))
        return request, steps

    def _done(
        self,
        ticket: Ticket,
        entries: list[Entry],
        exists: Mapping[str, bool],
        removals: list[tuple[Any, str]],
        steps: list[tuple[str, str]],
        results: list[Any],
        arming: Mapping[str, tuple[Watch, Any]],
    ) -> Commit[Any, Any]:
        stats = [result for result in results if isinstance(result, ZnodeStat)]
        any_stat = stats[0] if stats else None
        if self._place_data is not None and ("place", "") in steps:
            self._place_data = self._place_data[0], results[steps.index(("place", ""))].version
        if any_stat is None and not all(exists.values()):
            self._tree.doubt(exists)
            written = {entry.key: entry.value for entry in entries}
            return Commit(None, None, written, [key for key, _ in removals])
        number = any_stat.mzxid if any_stat else 0
        made = ZnodeStat(number, number, *(9 * [0]))
        stored = [
            (entry, result if exists[entry.name] else made)
            for entry, result in zip(entries, results, strict=False)
        ]
        lists = not all(exists.values())
        return self._wrote(ticket, stored, removals, any_stat, lists=lists, arming=arming)

    def _commit(
        self,
        kazoo: KazooClient,
        request: TransactionRequest,
        entries: list[Entry],
        removed: Iterable[str] = (),
    ) -> tuple[list[Any], dict[str, tuple[Watch, Any]]]:
        """Run a transaction; return the results of its operations, which may be errors.

        :param entries: those that it writes
        :param removed: the names that it removes
        :return: also the requests under way that arm watches

        """
        try:
            answer = request.commit_async()
            arming = self._arm(kazoo, entries)
            self._client.wait([answer])
            if answer.exception is None:
                # As after any write: what others wrote before it is marked now.
                self._client.barrier()
            results: list[Any] = answer.get()
        except BaseException:
            self._tree.doubt([*(entry.name for entry in entries), *removed])
            raise
        return results, arming

    def _wrote(
        self,
        ticket: Ticket,
        stored: list[tuple[Entry, ZnodeStat]],
        removals: Iterable[tuple[Any, str]] = (),
        stat: Any = None,
        lists: bool = False,
        arming: Mapping[str, tuple[Watch, Any]] | None = None,
    ) -> Commit[Any, Any]:
        """Tell the tree of what is stored (rule 4.3).

        :param stat: of any znode that the transaction wrote
        :param arming: what arms the watches again; where that is nothing, the next sync will

        """
        removals = list(removals)
        spent = self._tree.watch()
        spent.fired = True
        answers = [
            Answer(entry.name, spent, znode, hash(entry.payload), entry.value)
            for entry, znode in stored
        ]
        before, after, _kept = self._tree.wrote(
            ticket,
            answers,
            removed=[name for _, name in removals],
            zxid=stat.mzxid if isinstance(stat, ZnodeStat) else float("inf"),
            lists=lists or bool(removals),
            arming=arming,
        )
        written = {entry.key: entry.value for entry, _ in stored}
        return Commit(before, after, written, [key for key, _ in removals])

    def _read_place(self, kazoo: KazooClient) -> tuple[bytes, int] | None:
        read = kazoo.get_async(self._place.path)
        self._client.wait([read])
        if isinstance(read.exception, NoNodeError):
            return None
        data, stat = read.get()
        return data or b"", stat.version

    # -- sizes --------------------------------------------------------------------------------

    def require_taken(self, entries: Iterable[Entry]) -> None:
        """See that each entry fits into a request.

        :raises ValueError: with the size of the value, and the limit

        """
        acls = self._size_of_acls()
        for entry in entries:
            size = REQUEST_OVERHEAD + self._size(entry, acls)
            if size > self._limit:
                raise ValueError(
                    f"the value of key {entry.key!r} is {len(entry.payload):,} bytes as stored, "
                    f"{size:,} with its request: ZooKeeper takes {self._limit:,} (jute.maxbuffer; "
                    "where the servers take more, say request_limit=...)"
                )

    def _fits_nowhere(self, name: str) -> bool:
        """Whether no request can have this name, so that there is no such znode."""
        return REQUEST_OVERHEAD + OVERHEAD + self._size_of_path(name) > self._limit

    def _size(self, entry: Entry, acls: int) -> int:
        # Two operations where the entry is made to tell the transaction's number.
        return 2 * (OVERHEAD + self._size_of_path(entry.name)) + acls + len(entry.payload)

    def _size_of_path(self, name: str) -> int:
        return len((self._client.kazoo.chroot + self._place.path_of(name)).encode())

    def _size_of_acls(self) -> int:
        acls = self._client.kazoo.default_acl or OPEN_ACL_UNSAFE
        return 4 + sum(
            12 + len(each.id.scheme.encode()) + len(each.id.id.encode()) for each in acls
        )


def _failure(results: list[Any]) -> tuple[int, Exception] | None:
    """Return the operation that failed, and why; the others failed along with it."""
    followed: tuple[int, Exception] | None = None
    for number, error in enumerate(results):
        if isinstance(error, Exception):
            if not isinstance(error, (RolledBackError, RuntimeInconsistency)):
                return number, error
            followed = followed or (number, error)
    return followed
