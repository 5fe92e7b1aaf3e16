"""Which keys are good, and which have to be asked for: what events tell, and what a loss takes.

Memory alone, like `zookeepertree`. docs/internals.rst, section 4, has the rules whose numbers stand
in the comments.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .zookeeperanswers import Asking, Held, Watch

__all__ = ["Marks"]


class Marks:
    """The versions held, the watches armed, and the keys marked.

    `number` is the stamp: it is raised by everything that is marked and by all news. So a copy of
    stamp `number` holds all that the session was told (rule 4.0).

    :param on_mark: called after something was marked, also on a thread of the client's, with the
        number before that (None: by an own write), and whether the connection is lost

    """

    def __init__(self, on_mark: Callable[[int | None, bool], object]) -> None:
        #: Also what `wait` waits for. Held for memory operations only; no other lock is taken
        #: under it.
        self.lock = threading.Condition()
        self.number = 1
        #: How many events have come: that an answer takes long is no outage while they do.
        self.events = 0
        self.held: dict[str, Held] = {}
        self._on_mark = weakref.WeakMethod(on_mark)
        self._reference = weakref.ref(self)
        # Raised whenever the client has dropped all watches: what was asked before arms nothing.
        self._epoch = 0
        self._armed: dict[str, Watch] = {}
        self._child_watch: Watch | None = None
        # The keys to ask for, those that are being asked for included, until the answer is here.
        self._dirty: set[str] = set()
        self._children_dirty = True
        # Those of them that no event has marked, but an own write that has used up their watch.
        self._unarmed: set[str] = set()
        self._is_list_unarmed = False
        # name -> the watch that an own write has sent along, whose answer is still to come
        self._arming: dict[str, tuple[Watch, Any]] = {}
        self._is_new_session = True

    def watch(self, name: str | None = None) -> Watch:
        """Return a watch to be armed; it counts from when its answer is handed in."""
        return Watch(self._reference, name)

    def watches_to_read(self, names: Iterable[str], anew: bool = False) -> list[Asking]:
        """Return the watches that are armed, or else new ones to be armed.

        The client keeps each one that it was given until its event: a reload of what is not marked
        is not to bring another.

        :param anew: arm also those that are armed. A server keeps the event back where the client
            may not read the znode when it is written, and the watch is used up all the same

        """
        with self.lock:
            asking = [self._watch_to_read(name, self._armed.get(name)) for name in names]
        return [each._replace(is_new=True) for each in asking] if anew else asking

    def child_watch_to_read(self) -> Watch:
        """Return the same for the list of children."""
        with self.lock:
            return self._watch_to_read(None, self._child_watch).watch

    def _watch_to_read(self, name: str | None, armed: Watch | None) -> Asking:
        if armed is None or armed.fired:
            return Asking(name or "", Watch(self._reference, name), True)
        return Asking(name or "", armed, False)

    def armed(self) -> list[Watch]:
        """Return the watches that are armed, or are being armed."""
        with self.lock:
            armed = [*self._armed.values(), *(watch for watch, _ in self._arming.values())]
            return armed if self._child_watch is None else [*armed, self._child_watch]

    # -- marks --------------------------------------------------------------------------------

    def hear(self, watch: Watch, lost: bool) -> None:
        """Mark what an event tells of. Nothing is applied here (rule 4.1)."""
        with self.lock:
            self.events += 1
            watch.fired = True
            if watch.name is None:
                current = self._child_watch is watch
            else:
                current = self._armed.get(watch.name) is watch
            if not current:
                return  # whoever asked after this event has its answer, or marks the key itself
            before = self.number
            if lost:
                self._lose()
            elif watch.name is None:
                self._child_watch = None
                self._children_dirty = True
            else:
                del self._armed[watch.name]
                self._dirty.add(watch.name)
            self._raise_number()
        self._tell(before, lost)

    def lose(self, session: bool = False) -> None:
        """Mark everything: the client has dropped all its watches (rule 4.2).

        :param session: the session ended with the connection. The next one may be with a server
            that was restored from a backup, whose numbers began anew: no version counts any more

        """
        with self.lock:
            before = self.number
            self._lose()
            self._is_new_session |= session
            self._raise_number()
        self._tell(before, lost=True)

    def _lose(self) -> None:
        self._epoch += 1
        self._armed.clear()
        self._arming.clear()
        self._child_watch = None
        self._dirty.update(self.held)
        self._children_dirty = True
        self._unarmed.clear()
        self._is_list_unarmed = False

    def _raise_number(self) -> None:
        self.number += 1
        self.lock.notify_all()

    def _tell(self, before: int | None, lost: bool = False) -> None:
        on_mark = self._on_mark()
        if on_mark is not None:
            on_mark(before, lost)

    def after_fork(self) -> None:
        """Mark everything in a child, which has no watches, and no session yet."""
        self.lock = threading.Condition()
        self.lose(session=True)
