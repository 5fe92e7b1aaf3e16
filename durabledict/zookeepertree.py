"""What this process knows of one tree of znodes: answers and own writes become news.

Memory alone: nothing here sends a request, and no user's code runs under the lock. Requests go out
in `zookeeperfetch` and `zookeepercommits`, which hand their answers in here. docs/internals.rst,
section 4, has the rules whose numbers stand in the comments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any

from .errors import MISSING
from .zookeeperanswers import Answer, Held, Listing, Moment, Plan, Ticket, Watch
from .zookeepernews import News

__all__ = ["Tree"]


class Tree(News):
    """What this process knows of one place, and the news that are not yet applied.

    :param on_mark: called after something was marked, also on a thread of the client's, with the
        number before that (None: by an own write), and whether the connection is lost

    """

    def __init__(self, on_mark: Callable[[int | None, bool], object]) -> None:
        super().__init__(on_mark)
        #: czxid of the place when its children were listed last. 0: there was none; None: not yet.
        self.place_created: int | None = None
        #: Whether somebody has asked for what is marked since the last own write.
        self.is_asked_for = False
        # name -> the zxid of an own removal that no request sent since has confirmed
        self._removed: dict[str, float] = {}
        self._newest = 0
        # How many own writes were taken.
        self._writes = 0
        #: Whether a sync is under way, which needs all news since the copy that it began with.
        self.is_syncing = False

    # -- asking -------------------------------------------------------------------------------

    def under_way(self) -> list[Any]:
        """Return the requests of own writes whose answers nobody has taken."""
        with self.lock:
            self.is_asked_for = True
            return [result for _, result in self._arming.values()]

    def arm(self) -> None:
        """Take those of them that are there: they arm watches (rule 4.3).

        Where it is not the version that was written, the key stays marked.

        """
        with self.lock:
            for name, (watch, result) in list(self._arming.items()):
                if not result.ready():
                    continue
                del self._arming[name]
                held = self.held.get(name)
                if held is None or watch.fired or result.exception is not None:
                    continue
                _, stat = result.value
                if stat.mzxid == held.modified:
                    self._armed[name] = watch
                    self._dirty.discard(name)
                    self._unarmed.discard(name)

    def plan(self, everything: bool = False, hot: Collection[str] = ()) -> Plan | None:
        """Return what has to be asked for, or None. One at a time: the dict sees to that.

        :param everything: also for keys that are not marked
        :param hot: keys to be asked for again, if anything is marked

        """
        with self.lock:
            # A request that is sent from now on sees these removals.
            self._removed.clear()
            if everything and self._is_new_session:
                self.held = {}
                self._armed.clear()
                self._arming.clear()
                self._dirty.clear()
                self._unarmed.clear()
            if not (everything or self._dirty or self._children_dirty):
                return None
            names = list(self._dirty.union(self.held if everything else hot))
            children = everything or self._children_dirty
            return Plan(self._epoch, names, children, self._newest, everything)

    def held_names(self) -> list[str]:
        """Return the names of all whose version is known."""
        with self.lock:
            return list(self.held)

    def look(self, names: Set[str], earlier: Iterable[Watch], lists: bool) -> tuple[bool, int]:
        """Tell whether nothing is marked but what an answer shows that is given at this moment.

        :param names: of all that was asked for
        :param earlier: the watches of what was read before that answer, and not by it
        :param lists: whether the list of children was among that
        :return: also how many own writes were taken up to now

        """
        with self.lock:
            unmarked = (
                self._dirty <= names
                and (lists or not self._children_dirty)
                and not any(watch.fired for watch in earlier)
            )
            return unmarked, self._writes

    def accept(
        self,
        plan: Plan,
        answers: Iterable[Answer],
        listing: Listing | None,
        moment: Moment,
        replaced: list[object],
        reload: bool = False,
    ) -> bool | None:
        """Take the answers to a plan; return None if the connection was lost meanwhile.

        :param moment: when the last of them was given
        :param replaced: gets what was replaced, to be kept until no lock is held
        :param reload: the values go to the dict by another way, and are no news
        :return: whether all that is held now was there at that moment (rule 4.1)

        """
        with self.lock:
            if plan.epoch != self._epoch:
                return None
            if reload:
                # What is loaded is no news: no copy of before has it, nor may an own write be
                # applied to one (rule 0.3).
                self._raise_number()
                self._forgotten = self.number
            doubtful = [
                answer.name for answer in answers if not self._take_answer(answer, replaced, reload)
            ]
            if listing is not None:
                self._accept_listing(listing, replaced)
            self.lock.notify_all()
            return (
                moment.is_unmarked
                and moment.writes == self._writes
                and self.held.keys().isdisjoint(doubtful)
            )

    def _take_answer(self, answer: Answer, replaced: list[object], reload: bool) -> bool:
        """Take one answer; return False where the znode has to be asked for again."""
        name, stat = answer.name, answer.stat
        if stat is None:
            # That it is gone is for the list of children to say, which knows when (`pzxid`).
            if name in self.held:
                self._dirty.add(name)
                self._children_dirty = True
                return False
            self._dirty.discard(name)
            return True
        is_news = self.is_news(name, stat, answer.digest)
        if stat.mzxid <= self._removed.get(name, 0) or (answer.value is MISSING and is_news):
            # Asked before an own removal that is done, or no longer the version it was compared
            # with: it is asked for again.
            self._dirty.add(name)
            return False
        if answer.watch.fired:
            self._dirty.add(name)
            self.number += 1
        else:
            self._armed[name] = answer.watch
            self._dirty.discard(name)
            self._unarmed.discard(name)
        held = self.held.get(name)
        if held is not None and not is_news:
            if int(held.modified) > stat.mzxid:
                return True
            self.held[name] = held._replace(epoch=self._epoch)
            if not reload:
                return True
        self.held[name] = Held(stat.czxid, stat.mzxid, answer.digest, self._epoch, stat.dataLength)
        self._newest = max(self._newest, stat.czxid)
        if reload:
            replaced.append(self._news.pop(name, None))
        else:
            self._put_news(name, answer.value, replaced)
        return True

    def _accept_listing(self, listing: Listing, replaced: list[object]) -> None:
        self.place_created = listing.place
        for name in [name for name in self.held if name not in listing.names]:
            # What was created after the list was made is none of its business.
            held = self.held[name]
            if held.created <= listing.changed or held.epoch != self._epoch:
                self._drop(name, replaced)
        if listing.watch.fired:
            self._children_dirty = True
            self._raise_number()
        else:
            self._child_watch = listing.watch
            self._children_dirty = self._is_list_unarmed = False
        new = [name for name in listing.names if name not in self.held]
        if new:
            self._dirty.update(new)

    # -- own writes ---------------------------------------------------------------------------

    def begin(self, applied: int | None, name: str | None = None) -> Ticket:
        """Note that an own write is about to be sent.

        :param applied: the stamp of the local copy, where it is known
        :param name: of the znode, where it is but one that is written. Its watch counts as fired
            from now on, as the write will use it up: an event of one's own would be waited for
            before the write is done, and to be woken for that takes half as long as the write

        """
        with self.lock:
            lists = self._children_dirty and not self._is_list_unarmed
            dropped = [] if self.is_syncing else self._drop_news(applied or 0)
            watch = self._armed.pop(name, None) if name is not None else None
            if name is not None and watch is not None:
                # As at its event: what another does to the znode from now on is not heard of.
                watch.fired = True
                self._dirty.add(name)
                self._unarmed.add(name)
                self._raise_number()
            ticket = Ticket(applied or 0, self._epoch, lists, dropped, watch)
        if watch is not None:
            self._tell(None)
        return ticket

    def wrote(
        self,
        ticket: Ticket,
        written: Collection[tuple[str, Held, Any]],
        *,
        removed: Collection[str] = (),
        zxid: float = float("inf"),
        lists: bool = False,
        arming: Mapping[str, tuple[Watch, Any]] | None = None,
    ) -> tuple[int | None, int | None, object]:
        """Take what an own write did; return the stamps before and after it, if they are known.

        An own write uses up the watches of what it writes, and the event of that cannot be told
        from another's (rule 4.3). It need not be: the answer to the write is newer than every event
        of a watch that was armed before it.

        :param written: name, version and value of the znodes as stored: they are marked, until a
            watch is armed by what is under way, or by the next sync
        :param arming: name -> a watch, and the request that arms it
        :param removed: the names of the znodes removed, at `zxid`
        :param lists: the list of children changed, and its watch is used up
        :return: also what was replaced, to be kept until no lock is held

        """
        replaced: list[object] = []
        names = {name for name, _, _ in written}
        own = names.union(removed)
        with self.lock:
            self._writes += 1
            known = (
                ticket.epoch == self._epoch
                and ticket.applied >= self._forgotten
                and not self._is_new_session
            )
            if known:
                for name in names:
                    self._armed.pop(name, None)
                self._arming.update(arming or {})
                self._dirty.update(names)
                known = self._take_written(written, replaced)
            else:
                self._dirty.update(own)
            for name in removed if known else ():
                if name in self.held and self.held[name].modified > zxid:
                    known = False
                    continue
                self._removed[name] = zxid
                if name in self.held:
                    self._drop(name, replaced)
            if known:
                self._unarmed.update(names)
            if lists:
                self._child_watch = None
                # Whether another has changed it meanwhile does not matter: it is asked for.
                self._is_list_unarmed = not ticket.lists
                self._children_dirty = True
            known = (
                known
                and self._children_dirty == self._is_list_unarmed
                and len(self._dirty) == len(self._unarmed)  # of which the latter are a part
                and not self._has_news_beside(own, ticket.applied)
            )
            self.is_asked_for = False
            self.lock.notify_all()
            stamp = self._stamp()
            if not known:
                self._raise_number()
            marked = self.number != stamp
        if marked:
            self._tell(None)
        return (ticket.applied, stamp, replaced) if known else (None, None, replaced)

    def _has_news_beside(self, own: Collection[str], applied: int) -> bool:
        """Whether there are news since the stamp `applied` that are not of these names."""
        for name in reversed(self._news):
            if self._news[name][0] <= applied:
                return False
            if name not in own:
                return True
        return False

    def _take_written(
        self, written: Iterable[tuple[str, Held, Any]], replaced: list[object]
    ) -> bool:
        """Take the versions that an own write has made, as `_take_answer` takes those of answers.

        :return: whether all are news: what others did after this write may be known before it

        """
        all_held, all_news = self.held, self._news
        all_are_news = True
        for name, new, value in written:
            held = all_held.get(name)
            # Of a connection before this one a version may say nothing; then all is marked anyway.
            is_news = held is None or new.modified > held.modified
            if not is_news or new.modified <= self._removed.get(name, 0):
                all_are_news = False
                continue
            all_held[name] = new
            self._newest = max(self._newest, new.created)
            self.number += 1
            replaced.append(all_news.pop(name, None))
            all_news[name] = (self.number, value)
        return all_are_news

    def doubt(self, names: Iterable[str]) -> None:
        """Mark keys whose write has failed: what became of it is for the next sync to see."""
        with self.lock:
            names = set(names)
            self._dirty.update(names)
            self._unarmed.difference_update(names)
            self._children_dirty, self._is_list_unarmed = True, False
            self._raise_number()
        self._tell(None)
