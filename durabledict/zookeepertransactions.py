"""Write and remove many entries of one dict at once, in transactions.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kazoo.client import KazooClient, TransactionRequest
from kazoo.exceptions import (
    BadVersionError,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from kazoo.protocol.serialization import Create, Delete, SetData
from kazoo.protocol.states import ZnodeStat
from kazoo.security import OPEN_ACL_UNSAFE

from .changes import Commit
from .zookeeperanswers import Ticket, Watch
from .zookeeperclient import Client
from .zookeepercommits import Commits
from .zookeepererrors import failure_of, named
from .zookeepernames import Place
from .zookeepersizes import Entry, Part, Sizes
from .zookeepertree import Tree

__all__ = ["Transactions"]

#: Operations that fail where another client has created or removed a znode: then all of them are
#: looked at again, with one request.
SURPRISES = ("set", "create", "number", "delete")

#: What ZooKeeper takes for "whatever version is there".
ANY_VERSION = -1


class Transactions:
    """Writes and removes many entries at once, for one dict, and tells its tree.

    A removal raises the version of the place's own data, in the same transaction: a znode that is
    removed and made again begins at version 0, and the version of the place tells a
    compare-and-set that it is not the same one (rule 4.5).

    Each write takes the stamp of the local copy that it is made from, None where that is unknown.

    """

    def __init__(
        self, tree: Tree, client: Client, place: Place, sizes: Sizes, commits: Commits
    ) -> None:
        self._tree = tree
        self._client = client
        self._place = place
        self._sizes = sizes
        self._commits = commits
        # The place's own data, their version, and its czxid, as they were read or written last.
        self._place_data: tuple[bytes, int, int] | None = None
        # The connection (its epoch) on which it was found that the client may not write the
        # place's own data, and not what it has created. On the next one it may have been allowed.
        self._place_refused_on: int | None = None
        self._own_refused_on: int | None = None

    def parts(self, entries: Iterable[Entry], removals: Iterable[tuple[Any, str]]) -> list[Part]:
        """Return what has to be written as parts for `transact`, as few as the limit allows.

        :raises ValueError: an entry that is too large; nothing was sent

        """
        return self._sizes.parts(entries, removals, self._data_of_place)

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
            self._forget_former_place()
            if removals and self._place_data is None:
                self._place_data = self._read_place(kazoo)
                if self._place_data is None:
                    removals = []  # there is no place, so there is nothing in it
            if not (part.entries or removals):
                return Commit(self._tree.number, self._tree.number)
            ticket = self._tree.begin(applied)
            request, steps = self._request(kazoo, ticket, part.entries, exists, removals)
            names = [name for _, name in removals]
            results, arming = self._commits.run(request, part.entries, names)
            failure = failure_of(results)
            if failure is None:
                return self._done(ticket, part.entries, exists, removals, steps, results, arming)
            self._commits.disarm(arming)
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
                    raise named(error, key)
                removals = [each for each in removals if each[1] != name]
            elif what == "place" and isinstance(error, (BadVersionError, NoNodeError)):
                self._place_data = None
            elif what == "place" and isinstance(error, NoAuthError):
                self.may_not_write_place(ticket)
            elif what == "number" and isinstance(error, NoAuthError):
                self._own_refused_on = ticket.epoch  # by the client's default_acl
            else:
                raise named(error, self._place.key(name))

    def _request(
        self,
        kazoo: KazooClient,
        ticket: Ticket,
        entries: list[Entry],
        exists: Mapping[str, bool],
        removals: list[tuple[Any, str]],
    ) -> tuple[TransactionRequest, list[tuple[str, str]]]:
        """Return a transaction, and for each of its operations what it does to which name."""
        request = kazoo.transaction()
        # By the request's own methods each path would be normalized anew, which takes as long as
        # all that is done here.
        add = request.operations.append
        prefix = kazoo.chroot + self._place.path_of("")
        acl = kazoo.default_acl or OPEN_ACL_UNSAFE
        steps: list[tuple[str, str]] = []
        sets_place = bool(removals) and self.may_write_place(ticket)
        may_write_own = self._own_refused_on != ticket.epoch
        tells_number = may_write_own and not sets_place and not any(exists.values())
        for entry in entries:
            name = entry.name
            if exists[name]:
                add(SetData(prefix + name, entry.payload, ANY_VERSION))
                steps.append(("set", name))
                continue
            # Created empty, and set below: no other operation tells the transaction's number.
            is_empty = tells_number and entry is entries[0]
            add(Create(prefix + name, b"" if is_empty else entry.payload, acl, 0))
            steps.append(("create", name))
        if sets_place and self._place_data is not None:
            data, version, _ = self._place_data
            request.set_data(self._place.path, data, version)
            steps.append(("place", ""))
        if tells_number and entries:
            add(SetData(prefix + entries[0].name, entries[0].payload, ANY_VERSION))
            steps.append(("number", ""))
        for _, name in removals:
            add(Delete(prefix + name, ANY_VERSION))
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
        stat = next((result for result in results if isinstance(result, ZnodeStat)), None)
        if removals and ("place", "") in steps and self._place_data is not None:
            written = results[steps.index(("place", ""))]
            self._place_data = self._place_data[0], written.version, written.czxid
        lists = not all(exists.values())
        if stat is None and lists:
            # Nothing tells the number of what was created.
            self._tree.doubt(exists)
            written = {entry.key: entry.value for entry in entries}
            return Commit(None, None, written, [key for key, _ in removals])
        number = stat.mzxid if stat else 0
        made = ZnodeStat(number, number, *(9 * [0]))
        stored = [
            (entry, result if exists[entry.name] else made)
            for entry, result in zip(entries, results, strict=False)
        ]
        return self._commits.wrote(ticket, stored, removals, stat, lists=lists, arming=arming)

    def may_write_place(self, ticket: Ticket) -> bool:
        """Whether the client may write the place's own data, as far as is known."""
        return self._place_refused_on != ticket.epoch

    def may_not_write_place(self, ticket: Ticket) -> None:
        """Do without that, until the connection is made anew."""
        self._place_refused_on = ticket.epoch

    def _forget_former_place(self) -> None:
        """Forget the data of a place that was removed: one made since may be at that version."""
        created = self._tree.place_created
        if self._place_data is not None and created not in (None, self._place_data[2]):
            self._place_data = None

    def _data_of_place(self) -> bytes:
        self._forget_former_place()
        if self._place_data is None:
            self._place_data = self._read_place(self._client.ready())
        return b"" if self._place_data is None else self._place_data[0]

    def _read_place(self, kazoo: KazooClient) -> tuple[bytes, int, int] | None:
        read = kazoo.get_async(self._place.path)
        self._client.wait([read])
        if isinstance(read.exception, NoNodeError):
            return None
        data, stat = read.get()
        return data or b"", stat.version, stat.czxid

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
