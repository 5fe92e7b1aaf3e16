"""What became known of a tree of znodes, and is not yet applied: the news.

Memory alone, like `zookeepertree`. docs/internals.rst, section 4, has the rules whose numbers stand
in the comments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any

from kazoo.protocol.states import ZnodeStat

from .errors import MISSING
from .zookeeperanswers import Answer, Plan
from .zookeepermarks import Marks

__all__ = ["News"]


class News(Marks):
    """The values that became known since a stamp.

    :param on_mark: see `Marks`

    """

    def __init__(self, on_mark: Callable[[int | None, bool], object]) -> None:
        super().__init__(on_mark)
        # name -> the number under which its value, or that it is gone, became known
        self._news: dict[str, tuple[int, Any]] = {}
        # The number up to which news were dropped.
        self._forgotten = 0

    def remembers(self, since: Any) -> bool:
        """Whether the news since a stamp are known: it was given here, and in this session."""
        return (
            not self._is_new_session
            and type(since) is int
            and self._forgotten <= since <= self.number
        )

    def is_news(self, name: str, stat: ZnodeStat, digest: int) -> bool:
        """Whether this version is to take the place of the one held (rule 4.1).

        On one connection versions have an order. After another one it may be a server restored from
        a backup that is asked, and any other version is news (rule 0.2).

        """
        held = self.held.get(name)
        if held is None:
            return True
        if held.epoch != self._epoch:
            # Where numbers began anew, the same one may be of another write.
            return (stat.czxid, stat.mzxid, digest) != held[:3]
        return bool(stat.mzxid > held.modified)

    def reloaded(
        self, plan: Plan, answers: Iterable[Answer], for_copy: bool
    ) -> tuple[int, dict[str, Any]]:
        """Bring a reload up to what happened meanwhile; return its stamp, and name -> value.

        :param for_copy: it becomes the local copy

        """
        entries: dict[str, Any] = {}
        with self.lock:
            if for_copy and plan.epoch == self._epoch:
                self._is_new_session = False
            for answer in answers:
                held = self.held.get(answer.name)
                if held is None or answer.stat is None:
                    continue
                entries[answer.name] = answer.value
                if held.modified > answer.stat.mzxid and answer.name in self._news:
                    entries[answer.name] = self._news[answer.name][1]
            # Own writes that were done meanwhile.
            for name in self.held.keys() - entries.keys():
                if name in self._news:
                    entries[name] = self._news[name][1]
            stamp = self._stamp()
            if for_copy:
                self._forgotten = stamp
        return stamp, entries

    def news(self, since: int) -> tuple[int, dict[str, Any], object] | None:
        """Return the stamp, and name -> value, or MISSING, of what is newer than `since`.

        :return: also what was dropped, to be kept until no lock is held; None where the news are
            not known

        """
        with self.lock:
            if not self.remembers(since):
                return None
            dropped = self._drop_news(since)
            fresh = {name: value for name, (_, value) in self._news.items()}
            return self._stamp(), fresh, dropped

    def _drop_news(self, applied: int) -> list[Any]:
        """Drop what the dict has applied, up to the stamp `applied`."""
        names = list(takewhile(lambda name: self._news[name][0] <= applied, self._news))
        dropped = [self._news.pop(name) for name in names]
        if dropped:
            self._forgotten = max(self._forgotten, dropped[-1][0])
        return dropped

    def _stamp(self) -> int:
        """Return the stamp of all that is known now; what is marked still makes it differ."""
        stamp = self.number
        if self._dirty or self._children_dirty:
            self._raise_number()
        return stamp

    def _drop(self, name: str, replaced: list[object]) -> None:
        del self.held[name]
        self._armed.pop(name, None)
        self._arming.pop(name, None)
        self._dirty.discard(name)
        self._unarmed.discard(name)
        self._put_news(name, MISSING, replaced)

    def _put_news(self, name: str, value: Any, replaced: list[object]) -> None:
        replaced.append(self._news.pop(name, None))
        self.number += 1  # who waits is told at the end: there may be hundreds
        self._news[name] = (self.number, value)
