"""What is asked of a tree of znodes, and what comes back: plans, watches, answers, moments.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kazoo.protocol.states import EventType, WatchedEvent, ZnodeStat

from .errors import MISSING

if TYPE_CHECKING:
    from .zookeepermarks import Marks
    from .zookeepertree import Tree

__all__ = ["Answer", "Asking", "Held", "Listing", "Moment", "Plan", "Ticket", "Watch"]


class Watch:
    """One watch on a znode's data, or (without a name) on the list of children.

    Each request that arms one brings a new object, so that an event can be told from the event of
    the watch before it (rule 4.3). ZooKeeper's client holds it, so it must not hold the tree.

    """

    __slots__ = ("_tree", "fired", "is_dropped", "name")

    def __init__(self, tree: weakref.ref[Marks], name: str | None) -> None:
        self._tree = tree
        self.name = name
        self.fired = False
        #: Whether the client is not to call it any more.
        self.is_dropped = False

    def __call__(self, event: WatchedEvent) -> None:
        """Mark what changed; called on a thread of the client's, which must not wait."""
        tree = self._tree()
        if tree is not None:
            tree.hear(self, lost=event.type == EventType.NONE)


class Held(NamedTuple):
    """The version of a znode whose value is known."""

    created: int  # czxid: another incarnation of the node has another one
    modified: float  # mzxid; a fraction where it is not known
    digest: int  # of the payload
    epoch: int  # the connection on which it was read
    size: int = 0  # of the payload, in bytes


class Answer(NamedTuple):
    """What `get` said of one znode. Without a stat: it is not there."""

    name: str
    watch: Watch
    stat: ZnodeStat | None = None
    digest: int = 0
    value: Any = MISSING  # MISSING: not decoded, since this version is held


class Listing(NamedTuple):
    """What `get_children` said, as of `changed`, when the last child came or went (pzxid)."""

    watch: Watch
    names: frozenset[str]
    changed: int
    place: int = 0  # czxid of the place; 0: there is none


class Asking(NamedTuple):
    """A znode that is to be read."""

    name: str
    watch: Watch
    is_new: bool  # the watch is not armed yet, as far as is known


class Moment:
    """What was marked at the moment of an answer: at its place among the events.

    :param reached: an event that is set then
    :param names: of all that was asked for
    :param earlier: the watches of what was read before that answer, and not by it
    :param lists: whether the list of children was among that

    """

    __slots__ = (
        "_earlier",
        "_lists",
        "_names",
        "_tree",
        "is_unmarked",
        "reached",
        "writes",
        "zxid",
    )

    def __init__(
        self, tree: Tree, reached: Any, names: Set[str], earlier: Collection[Watch], lists: bool
    ) -> None:
        self._tree = tree
        self.reached = reached
        #: The last transaction that the server had done.
        self.zxid = 0
        self._names = names
        self._earlier = earlier
        self._lists = lists
        #: Whether nothing was marked then but what that answer shows.
        self.is_unmarked = False
        #: How many own writes were taken up to then.
        self.writes = -1

    def take(self) -> None:
        """Note it; this is the moment."""
        self.is_unmarked, self.writes = self._tree.look(self._names, self._earlier, self._lists)
        self.reached.set()


@dataclass(slots=True)
class Plan:
    """What has to be asked for, and the connection on which that was said."""

    epoch: int
    names: list[str]
    children: bool
    newest: int  # czxid of the newest znode held: what came after it, came after the plan
    everything: bool = False  # also what is not marked, and watches that should be armed


class Ticket(NamedTuple):
    """When an own write began."""

    applied: int  # the stamp of the local copy
    epoch: int
    lists: bool  # whether others have changed the list of children before it
    dropped: object  # to be kept until no lock is held
    disarmed: Watch | None = None  # for the client to drop, before the write is sent
