"""Write single entries of one dict, and compare and set them.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from kazoo.exceptions import BadVersionError, NoAuthError, NodeExistsError, NoNodeError

from .changes import Commit
from .zookeeperclient import Client
from .zookeepercommits import Commits
from .zookeepererrors import failure_of, named
from .zookeepernames import Place
from .zookeepersizes import Entry, Part, Sizes
from .zookeepertransactions import Transactions
from .zookeepertree import Tree

__all__ = ["Proof", "Writer"]

logger = logging.getLogger("durabledict.zookeeper")


class Proof(NamedTuple):
    """What a znode's value was read from, for a compare-and-set (rule 4.5)."""

    place: int  # the version of the place's data, which each removal raises
    place_data: bytes
    created: int
    version: int


class Writer:
    """Writes one entry at a time, and tells the tree.

    Each write takes the stamp of the local copy that it is made from, None where that is unknown.

    """

    def __init__(
        self,
        tree: Tree,
        client: Client,
        place: Place,
        sizes: Sizes,
        commits: Commits,
        transactions: Transactions,
    ) -> None:
        self._tree = tree
        self._client = client
        self._place = place
        self._sizes = sizes
        self._commits = commits
        self._transactions = transactions

    # -- one entry ----------------------------------------------------------------------------

    def set(self, entry: Entry, applied: int | None) -> Commit[Any, Any]:
        """Store an entry: one request, and one that nobody waits for (see `Commits.arm`)."""
        self._sizes.require_taken([entry])
        if entry.name in self._tree.held:
            commit = self._set(entry, applied)
            if commit is not None:
                return commit
        return self._transactions.transact(Part([entry], []), applied)

    def add(self, entry: Entry, applied: int | None) -> Commit[Any, Any] | None:
        """Store an entry that is not there; return None when it is."""
        self._sizes.require_taken([entry])
        try:
            return self._transactions.transact(Part([entry], []), applied, may_replace=False)
        except NodeExistsError:
            return None

    def _set(self, entry: Entry, applied: int | None) -> Commit[Any, Any] | None:
        """Store an entry in the znode that is there; return None when there is none."""
        kazoo = self._client.ready()
        path = self._place.path_of(entry.name)
        ticket = self._tree.begin(applied, entry.name)
        try:
            if ticket.disarmed is not None:
                self._client.drop(path, ticket.disarmed)
            stored = kazoo.set_async(path, entry.payload)
            arming = self._commits.arm([entry])
            self._client.wait([stored])
            if stored.exception is not None:
                self._commits.disarm(arming)
            if isinstance(stored.exception, NoNodeError):
                return None
            if stored.exception is not None:
                raise named(stored.exception, entry.key)
            stat = stored.get()
            # What others wrote before this is marked now, or it would pass for unchanged.
            self._client.barrier()
        except BaseException:
            self._tree.doubt([entry.name])
            raise
        return self._commits.wrote(ticket, [(entry, stat)], arming=arming)

    # -- compare and set ----------------------------------------------------------------------

    def read(self, name: str) -> tuple[bytes | None, Proof | None]:
        """Return what the leader has under a name, and a proof of it; None where there is nothing.

        Three requests in one round trip.

        """
        kazoo = self._client.ready()
        if self._sizes.fits_nowhere(name):
            return None, None
        # The place before the znode: what is removed after that makes the proof void.
        asked: list[Any] = [
            self._client.ask(self._place.path),
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
        self._sizes.require_taken([entry])
        good: Proof | None = proof
        while good is not None:
            kazoo = self._client.ready()
            request = kazoo.transaction()
            request.check(self._place.path, good.place)
            request.set_data(self._place.path_of(entry.name), entry.payload, good.version)
            ticket = self._tree.begin(applied)
            results, arming = self._commits.run(request, [entry])
            failure = failure_of(results)
            if failure is None:
                if results[1].czxid != proof.created:
                    logger.warning(
                        "key %r was removed and made again by another program than durabledict, "
                        "while a compare-and-set was on its way: it is overwritten",
                        entry.key,
                    )
                return self._commits.wrote(ticket, [(entry, results[1])], arming=arming)
            self._commits.disarm(arming)
            good = self._still_good(entry.name, proof, *failure)
        return None

    def remove_if(
        self, key: Any, name: str, proof: Proof, applied: int | None
    ) -> Commit[Any, Any] | None:
        """Remove an entry if what is there is what was read; return None if it is not."""
        good: Proof | None = proof
        while good is not None:
            kazoo = self._client.ready()
            ticket = self._tree.begin(applied)
            may_write_place = self._transactions.may_write_place(ticket)
            request = kazoo.transaction()
            if may_write_place:
                request.set_data(self._place.path, good.place_data, good.place)
            else:
                request.check(self._place.path, good.place)
            request.delete(self._place.path_of(name), good.version)
            results, _ = self._commits.run(request, [], [name])
            failure = failure_of(results)
            if failure is None:
                stat = results[0] if may_write_place else None
                return self._commits.wrote(ticket, [], [(key, name)], stat)
            if may_write_place and failure[0] == 0 and isinstance(failure[1], NoAuthError):
                self._transactions.may_not_write_place(ticket)
            else:
                good = self._still_good(name, proof, *failure)
        return None

    def _still_good(self, name: str, proof: Proof, place: int, error: Exception) -> Proof | None:
        """Return the proof as it is now, where the write failed for another key's removal only.

        :param place: the operation that failed: 0 is that on the place

        """
        if not isinstance(error, (BadVersionError, NoNodeError)):
            raise named(error, self._place.key(name))
        _, fresh = self.read(name) if place == 0 else (None, None)
        if fresh is None or (fresh.created, fresh.version) != (proof.created, proof.version):
            return None
        return fresh
