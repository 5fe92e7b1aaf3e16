"""Ask for what is marked, until the answers together are one state of the tree.

docs/internals.rst, section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from kazoo.exceptions import (
    ConnectionLoss,
    NoAuthError,
    NoNodeError,
    SessionExpiredError,
    UnimplementedError,
)
from kazoo.protocol.serialization import Exists, GetChildren2, GetData
from kazoo.protocol.states import ZnodeStat

from . import reading
from .changes import Undecodable
from .errors import DecodingError
from .zookeeperanswers import Answer, Asking, Held, Listing, Moment, Plan, Watch
from .zookeeperclient import Client
from .zookeepernames import Place
from .zookeeperrequests import MultiRead, SetWatches
from .zookeepertree import Tree

__all__ = ["Fetcher"]

#: Pairs of a key and a payload -> key -> value, or `Undecodable`.
Decode = Callable[[list[tuple[Any, bytes]]], dict[Any, Any]]

#: A znode that was asked for, and its data and stat, or the error that there was instead.
Outcome = tuple[str, Watch, Any]

#: How often what was marked meanwhile is asked for again, within the time that an answer may take.
#: Then it would be applied as it is: each key is right, and what is still marked is for the next
#: read.
ROUNDS = 40

#: After so many, all that is held is asked for along with it: then nothing else can be marked. That
#: takes long to come about by itself where others write to many keys all the time.
NARROW_ROUNDS = 8

#: Znodes that are read by one request. A server makes the answer in its memory, and that may be a
#: megabyte for each. Twice as many in each further round of a sync: what has to be asked for again
#: is what others write all the time, and to be one state it has to be read by one request.
READ_AT_ONCE = 100

#: The bytes that such an answer may have, as far as is known: the default heap of a server is a
#: gigabyte. What is more than that is not read at one moment.
ANSWER_LIMIT = 32 << 20

#: What such a request has beside its paths, and for each path.
REQUEST_OVERHEAD = 64
OVERHEAD = 14

#: Requests that are under way at once; each is an object of a kilobyte until it is answered.
BURST = 5_000


class Round(NamedTuple):
    """What came of asking once."""

    answers: list[Answer] | None  # None: the connection was lost meanwhile
    is_one_state: bool  # for sure, though something may be marked


LOST = Round(None, False)


class Fetcher:
    """Brings a tree up to the store, for one dict; one thread at a time.

    :param limit: the bytes that a request may have

    """

    def __init__(self, tree: Tree, client: Client, place: Place, limit: int) -> None:
        self._tree = tree
        self._client = client
        self._place = place
        self._limit = limit
        # How many znodes a request of this round reads.
        self._at_once = READ_AT_ONCE

    def fetch(self, decode: Decode, wait: bool) -> object:
        """Ask for the marked keys, and hand the answers to the tree.

        One request for one key, two for each hundred of more, all sent at once, and one for the
        list of children where that is marked, whatever the number of keys.

        :param decode: of the dict, which this is not to keep alive
        :param wait: for a connection that was lost
        :return: what was replaced, to be kept until no lock is held
        :raises ConnectionLoss: there is none

        """
        replaced: list[object] = []
        under_way = self._tree.under_way()
        if under_way:
            self._client.ready(wait)
            self._client.wait(under_way)
            self._tree.arm()
        last: Round | None = None
        hot: set[str] = set()
        for number in self._rounds():
            plan = self._tree.plan(hot=hot)
            if plan is None:
                break
            # What has changed meanwhile will change again. Asked for together, all that do are one
            # state, and this comes to an end.
            hot.update(plan.names)
            if number >= NARROW_ROUNDS:
                hot.update(self._tree.held_names())
            last = self._round(plan, wait, decode, replaced)
            if last.is_one_state:
                break
        _require_answers(last)
        return replaced

    def reload(self, decode: Decode, wait: bool, for_copy: bool) -> tuple[int, dict[str, Any]]:
        """Ask for every key; return the stamp, and name -> value, or `Undecodable`, of one state.

        :param for_copy: the entries become the local copy; else the tree keeps them as news
        :raises ConnectionLoss: there is none

        """
        loaded: dict[str, Answer] = {}
        replaced: list[object] = []
        hot: set[str] = set()
        plan: Plan | None = self._tree.plan(everything=True)
        last: Round | None = None
        for number in self._rounds():
            if plan is None:
                break
            last = self._round(plan, wait, decode, replaced, everything=True, for_copy=for_copy)
            loaded.update((answer.name, answer) for answer in last.answers or ())
            if number > 0:
                hot.update(plan.names)
            if number >= NARROW_ROUNDS:
                hot.update(self._tree.held_names())
            done, plan = plan, self._tree.plan(hot=hot)
            if last.is_one_state:
                break
        _require_answers(last)
        return self._tree.reloaded(done, loaded.values(), for_copy)

    def _rounds(self) -> Iterator[int]:
        ends = reading.monotonic() + self._client.timeout
        for number in range(ROUNDS):
            if number > NARROW_ROUNDS and reading.monotonic() > ends:
                return  # where keys come and go by the thousand, a read is to end, too
            self._at_once = READ_AT_ONCE << number
            yield number

    def _round(
        self,
        plan: Plan,
        wait: bool,
        decode: Decode,
        replaced: list[object],
        *,
        everything: bool = False,
        for_copy: bool = False,
    ) -> Round:
        """Ask once. A connection that is lost meanwhile is waited for by the next round.

        :param everything: decode also what is held

        """
        self._client.ready(wait)
        try:
            outcomes, listing, moment = self._ask_for(plan)
            decoded = self._decoded(outcomes, decode, everything)
            self._client.wait_for_events(moment.reached)
        except UnimplementedError:
            self._client.read_one_by_one()
            return LOST  # for such a server closes the connection
        except (ConnectionLoss, SessionExpiredError):
            return LOST
        is_one_state = self._tree.accept(plan, decoded, listing, moment, replaced, reload=for_copy)
        return LOST if is_one_state is None else Round(decoded, is_one_state)

    def _ask_for(self, plan: Plan) -> tuple[list[Outcome], Listing | None, Moment]:
        """Send what a plan says, and wait for the answers."""
        names = frozenset(plan.names)
        asking = self._tree.watches_to_read(plan.names, anew=plan.everything)
        if not plan.children:
            outcomes, moment = self._read(asking, names, [])
            return outcomes, None, moment
        # Sent with the others, and the first: what is created after it, its watch tells.
        child_watch = self._tree.child_watch_to_read()
        moment = self._moment(names, [], lists=True)
        listed = self._client.send(
            GetChildren2(self._client.full_path(self._place.path), child_watch),
            moment,
        )
        last = moment
        outcomes, earlier = [], [child_watch, *(each.watch for each in asking)]
        if asking:
            outcomes, last = self._read(asking, names, [child_watch], lists=True, first=[listed])
        else:
            self._client.wait([listed])
        if isinstance(listed.exception, NoNodeError):
            listing, last = self._without_place(plan, child_watch, earlier[1:])
            return outcomes, listing, last
        found, stat = listed.get()
        names_there = frozenset(filter(self._place.is_entry, found))
        listing = Listing(child_watch, names_there, stat.pzxid, stat.czxid)
        new = [name for name in listing.names - names if name not in self._tree.held]
        if new:
            more, last = self._read(
                self._tree.watches_to_read(new), names.union(new), earlier, lists=True
            )
            outcomes += more
        # If all is as it was when the list was made, what has changed since does not matter: where
        # keys come and go all the time, there is always something.
        is_of_list = all(
            found[1].mzxid <= moment.zxid
            if isinstance(found, tuple)
            else isinstance(found, NoNodeError) and name not in listing.names
            for name, _, found in outcomes
        )
        return outcomes, listing, moment if is_of_list else last

    def _without_place(
        self, plan: Plan, watch: Watch, earlier: Sequence[Watch]
    ) -> tuple[Listing, Moment]:
        """Return what is listed where there is no such place: this watch tells when there is."""
        moment = self._moment(frozenset(plan.names), earlier, lists=True)
        path = self._client.full_path(self._place.path)
        exists = self._client.send(Exists(path, watch), moment)
        self._client.wait([exists])
        if exists.get() is not None:
            watch.fired = True  # it was made in between: the list has to be asked for again
            moment.is_unmarked = False
        return Listing(watch, frozenset(), plan.newest), moment

    def _read(
        self,
        asking: Sequence[Asking],
        names: Set[str],
        earlier: Sequence[Watch],
        lists: bool = False,
        first: Sequence[Any] = (),
    ) -> tuple[list[Outcome], Moment]:
        """Ask for znodes, arm their watches, and wait for the answers.

        :param names: all that are asked for in this round, also by requests before these
        :param earlier: the watches of those before
        :param first: requests before these that are to be waited for, too
        :return: also the moment of the last answer

        """
        parts = list(self._parts(asking))
        behind = [each.watch for part in parts[:-1] for each in part]
        moment = self._moment(names, [*earlier, *behind], lists)
        under_way = list(first)
        sent: list[tuple[list[Asking], list[Any]]] = []
        for number, part in enumerate(parts, 1):
            requests = self._send(part, moment if number == len(parts) else None)
            sent.append((part, requests))
            under_way += requests
            if len(under_way) >= BURST:
                self._client.wait(under_way)
                under_way = []
        if under_way:
            self._client.wait(under_way)
        outcomes: list[Outcome] = []
        for part, requests in sent:
            if len(part) == 1:
                [(name, watch, _)] = part
                outcomes.append((name, watch, requests[0].exception or requests[0].value))
            else:
                *_, found = [request.get() for request in requests]
                outcomes += [
                    (each.name, each.watch, one) for each, one in zip(part, found, strict=True)
                ]
        return outcomes, moment

    def _parts(self, asking: Sequence[Asking]) -> Iterator[list[Asking]]:
        """Divide what is to be read into what one request reads."""
        most = self._at_once if self._client.reads_many else 1
        part: list[Asking] = []
        size, answer = REQUEST_OVERHEAD, 0
        for each in asking:
            path = self._client.full_path(self._place.path_of(each.name))
            own = OVERHEAD + len(path.encode())
            held = self._tree.held.get(each.name)
            data = 0 if held is None else held.size
            is_full = len(part) == most or size + own > self._limit or answer + data > ANSWER_LIMIT
            if part and is_full:
                yield part
                part, size, answer = [], REQUEST_OVERHEAD, 0
            part.append(each)
            size += own
            answer += data
        if part:
            yield part

    def _send(self, part: list[Asking], moment: Moment | None) -> list[Any]:
        """Ask for some znodes, and arm their watches before that; the last request reads."""
        paths = [self._client.full_path(self._place.path_of(each.name)) for each in part]
        if len(part) == 1:
            # By one request, where it is two for more.
            return [self._client.send(GetData(paths[0], part[0].watch), moment)]
        new = [(path, each.watch) for path, each in zip(paths, part, strict=True) if each.is_new]
        arming = [self._client.send(SetWatches(self._client.kazoo, new))] if new else []
        return [*arming, self._client.send(MultiRead(paths), moment)]

    def _moment(self, names: Set[str], earlier: Sequence[Watch], lists: bool) -> Moment:
        reached = self._client.kazoo.handler.event_object()
        return Moment(self._tree, reached, names, earlier, lists)

    def _decoded(self, outcomes: list[Outcome], decode: Decode, everything: bool) -> list[Answer]:
        """Turn answers into values, of those versions that are not held.

        :param everything: decode the others, too

        """
        answers: list[Answer] = []
        fresh: list[tuple[str, Watch, Any, bytes]] = []
        for name, watch, found in outcomes:
            if not isinstance(found, Exception):
                payload, stat = found
                digest = hash(payload or b"")
                if everything or self._tree.is_news(name, stat, digest):
                    fresh.append((name, watch, stat, payload or b""))
                else:
                    answers.append(Answer(name, watch, stat, digest))
            elif isinstance(found, NoNodeError):
                answers.append(Answer(name, watch))
            elif isinstance(found, NoAuthError):
                answers.append(self._unreadable(name, watch, found))
            else:
                raise found
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
        # numbers. A `get` arms no watch then: the next version may be heard of by force alone.
        modified: Any = int(held.modified) + 0.5
        stat = ZnodeStat(held.created, modified, *(9 * [0]))
        reason = DecodingError(f"key {self._place.key(name)!r}: this client may not read its znode")
        reason.__cause__ = error
        return Answer(name, watch, stat, 0, Undecodable(reason))


def _require_answers(last: Round | None) -> None:
    if last is not None and last.answers is None:
        raise ConnectionLoss("the connection to ZooKeeper was lost again and again")
