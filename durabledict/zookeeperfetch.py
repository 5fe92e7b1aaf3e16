"""Ask for what is marked, until the answers together are one state of the tree.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, NoAuthError, NoNodeError
from kazoo.protocol.states import ZnodeStat

from .changes import Undecodable
from .errors import DecodingError
from .zookeeperclient import Client
from .zookeepernames import Place
from .zookeepertree import Answer, Held, Listing, Plan, Tree, Watch

__all__ = ["Fetcher"]

#: Pairs of a key and a payload -> key -> value, or `Undecodable`.
Decode = Callable[[list[tuple[Any, bytes]]], dict[Any, Any]]

#: How often what was marked meanwhile is asked for again. Then it would be applied as it is: each
#: key is right, and what is still marked is for the next read.
ROUNDS = 40

#: Requests that are under way at once; each is an object of a kilobyte until it is answered.
BURST = 5_000


class Round(NamedTuple):
    """What came of asking once."""

    answers: list[Answer] | None  # None: the connection was lost meanwhile
    is_one_state: bool  # for sure, though something is marked


class Fetcher:
    """Brings a tree up to the store, for one dict; one thread at a time."""

    def __init__(self, tree: Tree, client: Client, place: Place) -> None:
        self._tree = tree
        self._client = client
        self._place = place

    def fetch(self, decode: Decode, wait: bool) -> object:
        """Ask for the marked keys, and hand the answers to the tree.

        One request for each of them, all sent at once, and one for the list of children where that
        is marked, whatever the number of keys.

        :param decode: of the dict, which this is not to keep alive
        :param wait: for a connection that was lost
        :return: what was replaced, to be kept until no lock is held

        """
        replaced: list[object] = []
        under_way = self._tree.under_way()
        if under_way:
            self._client.ready(wait)
            self._client.wait(under_way)
            self._tree.arm()
        hot: set[str] = set()
        for number in range(ROUNDS):
            plan = self._tree.plan(hot=hot)
            if plan is None:
                break
            hot.update(plan.names)
            kazoo = self._client.ready(wait)
            if self._round(plan, kazoo, decode, replaced, twice=number > 0).is_one_state:
                break
        return replaced

    def reload(self, decode: Decode, wait: bool, for_copy: bool) -> tuple[int, dict[str, Any]]:
        """Ask for every key; return the stamp, and name -> value, or `Undecodable`, of one state.

        :param for_copy: the entries become the local copy; else the tree keeps them as news

        """
        loaded: dict[str, Answer] = {}
        replaced: list[object] = []
        plan = self._tree.plan(everything=True)
        complete = False
        hot: set[str] = set()
        for number in range(ROUNDS):
            if plan is None:
                break
            answers, is_one_state = self._round(
                plan,
                self._client.ready(wait),
                decode,
                replaced,
                everything=True,
                for_copy=for_copy,
                twice=number > 0,
            )
            complete = answers is not None
            loaded.update((answer.name, answer) for answer in answers or ())
            if number > 0:
                hot.update(plan.names)
            last, plan = plan, self._tree.plan(hot=hot)
            if is_one_state:
                break
        if not complete:
            raise ConnectionLoss("the connection to ZooKeeper was lost again and again")
        return self._tree.reloaded(last, loaded.values(), for_copy)

    def _round(
        self,
        plan: Plan,
        kazoo: KazooClient,
        decode: Decode,
        replaced: list[object],
        *,
        everything: bool = False,
        for_copy: bool = False,
        twice: bool = False,
    ) -> Round:
        """Ask once.

        :param everything: decode also what is held
        :param twice: look at the versions a second time, right behind: where others write all the
            time something is marked always, by the time that the answers are here

        """
        again: dict[str, Any] = {}

        def look_again() -> list[Any]:
            names = [*plan.names, *new] if twice else []
            again.update((name, kazoo.exists_async(self._place.path_of(name))) for name in names)
            if twice:
                again[""] = kazoo.exists_async(self._place.path)
            return list(again.values())

        new: list[str] = []
        listing: Listing | None = None
        asked = [self._watched(name) for name in plan.names]
        if plan.children:
            # Sent with the others, and the first: what is created after it, its watch tells.
            watch = self._tree.watch_to_read()
            children = kazoo.get_children_async(self._place.path, watch=watch, include_data=True)
            answers = self._get(kazoo, asked, children)
            listing = self._listing(kazoo, plan, watch, children)
            held, sent = self._tree.held, set(plan.names)
            new = [name for name in listing.names if name not in held and name not in sent]
            answers += self._get(kazoo, [self._watched(name) for name in new], then=look_again)
        else:
            answers = self._get(kazoo, asked, then=look_again)
        decoded = self._decoded(answers, decode, everything)
        # Whatever was done before the last answer, its events have been heard after this. So if
        # nothing is marked then, these answers and what is held are one state (rule 4.1).
        self._client.barrier()
        accepted = self._tree.accept(plan, decoded, listing, replaced, reload=for_copy)
        if not accepted:
            return Round(None, False)
        place = again.pop("").value if twice else None
        is_one_state = twice and self._tree.is_one_state(
            {
                name: answer.value[1].mzxid if answer.successful() else None
                for name, _, answer in answers
            },
            {name: getattr(answer.value, "mzxid", None) for name, answer in again.items()},
            listing is not None and getattr(place, "pzxid", None) == listing.changed,
        )
        return Round(decoded, is_one_state)

    def _watched(self, name: str) -> tuple[str, Watch]:
        return name, self._tree.watch_to_read(name)

    def _get(
        self,
        kazoo: KazooClient,
        watches: list[tuple[str, Watch]],
        first: Any = None,
        then: Callable[[], list[Any]] = list,
    ) -> list[tuple[str, Watch, Any]]:
        """Ask for znodes, and arm their watches with the same requests.

        :param first: a request that was sent before them
        :param then: sends others after them

        """
        asked: list[tuple[str, Watch, Any]] = []
        sent = [] if first is None else [first]
        for begin in range(0, len(watches), BURST) or [0]:
            burst = [
                (name, watch, kazoo.get_async(self._place.path_of(name), watch=watch))
                for name, watch in watches[begin : begin + BURST]
            ]
            sent += [result for _, _, result in burst]
            if begin + BURST >= len(watches):
                sent += then()
            if sent:
                self._client.wait(sent)
            asked += burst
            sent = []
        return asked

    def _listing(self, kazoo: KazooClient, plan: Plan, watch: Watch, answer: Any) -> Listing:
        if not isinstance(answer.exception, NoNodeError):
            names, stat = answer.get()
            return Listing(watch, frozenset(filter(self._place.is_entry, names)), stat.pzxid)
        # There is no such place. This watch tells when there is one.
        exists = kazoo.exists_async(self._place.path, watch=watch)
        self._client.wait([exists])
        if exists.get() is not None:
            watch.fired = True  # it was made in between: the list has to be asked for again
        return Listing(watch, frozenset(), plan.newest)

    def _decoded(
        self, asked: list[tuple[str, Watch, Any]], decode: Decode, everything: bool
    ) -> list[Answer]:
        """Turn answers into values, of those versions that are not held.

        :param everything: decode the others, too

        """
        answers: list[Answer] = []
        fresh: list[tuple[str, Watch, Any, bytes]] = []
        for name, watch, result in asked:
            error = result.exception
            if error is None:
                payload, stat = result.value
                digest = hash(payload or b"")
                if everything or self._tree.is_news(name, stat, digest):
                    fresh.append((name, watch, stat, payload or b""))
                else:
                    answers.append(Answer(name, watch, stat, digest))
            elif isinstance(error, NoNodeError):
                answers.append(Answer(name, watch))
            elif isinstance(error, NoAuthError):
                answers.append(self._unreadable(name, watch, error))
            else:
                raise error
        keys = [self._place.key(name) for name, _, _, _ in fresh]
        values = decode(
            [(key, payload) for key, (_, _, _, payload) in zip(keys, fresh, strict=True)]
        )
        answers += [
            Answer(name, watch, stat, hash(payload), values[key])
            for key, (name, watch, stat, payload) in zip(keys, fresh, strict=True)
        ]
        return answers

    def _unreadable(self, name: str, watch: Watch, error: Exception) -> Answer:
        """Return the answer for a znode that this client may not read: it harms itself only."""
        held = self._tree.held.get(name, Held(0, 0, 0, 0))
        # Its version is not known, only that it is another one than the one held: zxids are whole
        # numbers. No watch is armed, so that its next version is heard of by force alone.
        modified: Any = int(held.modified) + 0.5
        stat = ZnodeStat(held.created, modified, *(9 * [0]))
        reason = DecodingError(f"key {self._place.key(name)!r}: this client may not read its znode")
        reason.__cause__ = error
        return Answer(name, watch, stat, 0, Undecodable(reason))
