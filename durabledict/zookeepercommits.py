"""Send what writes to the tree of one dict, and tell the tree what was written.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kazoo.client import TransactionRequest
from kazoo.protocol.serialization import GetData
from kazoo.protocol.states import ZnodeStat

from .changes import Commit
from .zookeeperanswers import Held, Ticket, Watch
from .zookeeperclient import Client
from .zookeepernames import Place
from .zookeepersizes import Entry
from .zookeepertree import Tree

__all__ = ["Commits"]

#: The entries of a transaction whose watches are armed along with it. For more, that takes longer
#: than the transaction itself, and is left to the next sync.
ARMED_AT_ONCE = 16


class Commits:
    """What goes before and after each request that writes."""

    def __init__(self, tree: Tree, client: Client, place: Place) -> None:
        self._tree = tree
        self._client = client
        self._place = place

    def arm(self, entries: list[Entry]) -> dict[str, tuple[Watch, Any]]:
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
            path = self._client.full_path(self._place.path_of(entry.name))
            arming[entry.name] = watch, self._client.send(GetData(path, watch))
        return arming

    def disarm(self, arming: Mapping[str, tuple[Watch, Any]]) -> None:
        """Take back what was sent along with a write that was refused."""
        if arming:
            self._client.wait([result for _, result in arming.values()])
        for name, (watch, _) in arming.items():
            self._client.drop(self._place.path_of(name), watch)

    def run(
        self,
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
            arming = self.arm(entries)
            self._client.wait([answer])
            if answer.exception is None:
                # As after any write: what others wrote before it is marked now.
                self._client.barrier()
            results: list[Any] = answer.get()
        except BaseException:
            self._tree.doubt([*(entry.name for entry in entries), *removed])
            raise
        return results, arming

    def wrote(
        self,
        ticket: Ticket,
        stored: list[tuple[Entry, ZnodeStat]],
        removals: Collection[tuple[Any, str]] = (),
        stat: ZnodeStat | None = None,
        lists: bool = False,
        arming: Mapping[str, tuple[Watch, Any]] | None = None,
    ) -> Commit[Any, Any]:
        """Tell the tree of what is stored (rule 4.3).

        :param stat: of any znode that the transaction wrote, where it removes some
        :param arming: what arms the watches again; where that is nothing, the next sync will

        """
        before, after, _kept = self._tree.wrote(
            ticket,
            [
                (
                    entry.name,
                    Held(
                        znode.czxid,
                        znode.mzxid,
                        hash(entry.payload),
                        ticket.epoch,
                        len(entry.payload),
                    ),
                    entry.value,
                )
                for entry, znode in stored
            ],
            removed=[name for _, name in removals],
            # Without a number it counts as the newest. What another has made again since is found
            # in the list, which is asked for after each removal.
            zxid=float("inf") if stat is None else stat.mzxid,
            lists=lists or bool(removals),
            arming=arming,
        )
        written = {entry.key: entry.value for entry, _ in stored}
        return Commit(before, after, written, [key for key, _ in removals])
