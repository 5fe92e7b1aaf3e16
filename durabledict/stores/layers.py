"""The cache layers of a chain: what each does before and after a durable write, and at a miss.

Nothing here raises what a layer raises: a cache that is down is logged, and passed over until it
answers and has been told what it missed (rules 5.1 and 5.2 of docs/internals.rst).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .. import reading
from ..outage import backoff
from ..stampcaches import call_after_fork
from .base import BaseStore, Key
from .groups import Tokens, has_sound_groups, token_name, tokens_now

__all__ = ["MISSED", "Layer", "Look", "Write", "has_none"]

logger = logging.getLogger("durabledict.stores")

#: Places whose change a layer missed that are remembered one by one.
MISSED = 1000


class Write:
    """A put or delete that is under way, as one layer knows it.

    :param objects: the objects by their places in the layer
    :param proofs: of the markers
    :param missed: whether the layer could not be told
    :param announcement: what other processes were told, who have a layer of their own
    :param tokens: of the groups, from before the write

    """

    __slots__ = ("announcement", "missed", "objects", "proofs", "tokens")

    def __init__(self, objects: dict[Any, Any]) -> None:
        self.objects = objects
        self.proofs: dict[Any, Any] = {}
        self.missed = False
        self.announcement: Any = None
        self.tokens: Tokens = {}


class Look:
    """What a layer told at a get, and what is to be settled when the layers below have told theirs.

    :param objects: an object or None for each key
    :param answered: whether the layer could be asked at all

    """

    __slots__ = ("answered", "claims", "followed", "objects", "tokens", "tried")

    def __init__(self, objects: list[Any], answered: bool) -> None:
        self.objects = objects
        self.answered = answered
        self.claims: dict[Any, Any] = {}
        #: Places that a marker was to be put into: not twice.
        self.tried: set[Any] = set()
        self.followed = False
        #: Of groups, from before the layers below were asked.
        self.tokens: Tokens = {}


class Layer(ABC):
    """One cache layer.

    :param store: the Store
    :param life: seconds that a marker stands

    """

    def __init__(self, store: BaseStore, life: float) -> None:
        self.store: Any = store
        self.life = life
        #: Whether what it holds may be handed out; None: all may.
        self.is_whole: Callable[[Any], bool] | None = None
        # Re-entrant: a signal handler, or a finalizer, may use the chain in the middle.
        self._lock = threading.RLock()
        # place -> object: changes that the layer missed, and is to be told.
        self._missed: dict[Any, Any] = {}
        # Groups whose invalidation it missed, by the names of their tokens; and when, so to speak.
        self._missed_groups: dict[str, tuple[Any, object]] = {}
        # The same of writes that are not over: told at their end, by themselves.
        self._under_way: dict[int, Write] = {}
        self._attempts = 0
        self._retry_at = 0.0
        self._overflowed = False
        call_after_fork(self)

    def _after_fork(self) -> None:
        # A thread that is no more may hold it, or have been in the middle of a write.
        self._lock = threading.RLock()
        for write in self._under_way.values():
            self._miss(write)
        self._under_way.clear()

    # -- outages ----------------------------------------------------------------------------------

    @property
    def is_away(self) -> bool:
        """Whether it failed a moment ago, and is left alone for now."""
        return self._attempts > 0 and reading.monotonic() < self._retry_at

    def is_readable(self) -> bool:
        """Whether it may be read: it is there, and has been told all that it missed."""
        if self.is_away:
            return False
        if self._missed or self._missed_groups or self._overflowed:
            self._deliver()
        return not (self._missed or self._missed_groups or self._under_way or self._overflowed)

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._attempts += 1
            self._retry_at = reading.monotonic() + backoff(self._attempts)
            is_first = self._attempts == 1
        level = logging.WARNING if is_first else logging.DEBUG
        logger.log(level, "the cache layer %r is passed over: %s", self.store, error)

    def _answered(self) -> None:
        if self._attempts:
            with self._lock:
                self._attempts = 0
            logger.info("the cache layer %r answers again", self.store)

    def _deliver(self) -> None:
        """Tell the layer what it missed."""
        with self._lock:
            missed, groups = dict(self._missed), dict(self._missed_groups)
            overflowed = self._overflowed
        try:
            if overflowed:
                self._forget_all()
            if missed:
                self._forget(missed)
            for group, _ in groups.values():
                self._invalidate_group(group)
        except Exception as error:
            self._failed(error)
            return
        self._answered()
        with self._lock:
            for place, obj in missed.items():
                # One that was missed once more meanwhile stays.
                if self._missed.get(place) is obj:
                    del self._missed[place]
            for name, one in groups.items():
                if self._missed_groups.get(name) is one:
                    del self._missed_groups[name]
            if overflowed:
                self._overflowed = False

    def forget_all(self) -> None:
        """See to it that nobody of this process reads what it holds now."""
        with self._lock:
            self._overflowed = True
        if not self.is_away:
            self._deliver()

    def _miss(self, write: Write) -> None:
        with self._lock:
            self._missed.update(write.objects)
            self._bound()

    def _bound(self) -> None:
        if len(self._missed) + len(self._missed_groups) > MISSED:
            self._missed.clear()
            self._missed_groups.clear()
            self._overflowed = True

    # -- groups -----------------------------------------------------------------------------------

    def invalidate_group(self, group: Any) -> None:
        """Have no object of a group be found in it any more; if it is down, it is told later."""
        if not self.is_away:
            try:
                self._invalidate_group(group)
            except Exception as error:
                self._failed(error)
            else:
                self._answered()
                return
        with self._lock:
            self._missed_groups[token_name(group)] = (group, object())
            self._bound()

    def _invalidate_group(self, group: Any) -> None:
        if self.keeps_groups:
            self.store._invalidate_as_layer(group)

    @property
    def keeps_groups(self) -> bool:
        """Whether it can have objects with groups: it is able to invalidate them."""
        return type(self.store).invalidate_group is not BaseStore.invalidate_group

    def _tokens_of(self, objs: Iterable[Any]) -> Tokens:
        return tokens_now(self.store, [obj for obj in objs if has_sound_groups(obj)])

    # -- writes -----------------------------------------------------------------------------------

    def begin(self, objs: Iterable[Any]) -> Write:
        """Before the durable write: see that nobody fills the layer with what is there now."""
        write = Write(self._placed(objs))
        if not write.objects:
            return write
        if not self.is_away:
            try:
                self._begin(write)
            except Exception as error:
                self._failed(error)
            else:
                self._answered()
                return write
        # From now on nobody of this process reads it.
        write.missed = True
        with self._lock:
            self._under_way[id(write)] = write
        return write

    def end(self, write: Write, deleted: bool) -> None:
        """After it: store the objects, or remove them."""
        if not write.objects:
            return
        if not self.is_away:
            try:
                if write.missed:
                    self._forget(write.objects)
                else:
                    self._end(write, deleted)
            except Exception as error:
                self._failed(error)
            else:
                self._answered()
                self._close(write)
                return
        self.lose(write)

    def abandon(self, write: Write) -> None:
        """After a durable write that failed: whether it was done is not known."""
        if write.missed:
            self.lose(write)
        else:
            self._give_up(write)

    def lose(self, write: Write) -> None:
        """After a durable write that the layer cannot be told of now: it is told later."""
        self._miss(write)
        self._close(write)
        self._give_up(write)

    def _give_up(self, write: Write) -> None:
        announcement, write.announcement = write.announcement, None
        if announcement is not None:
            try:
                self.store._announced(announcement)
            except Exception as error:
                # Readers look again each second, and take the writer for dead after a minute.
                self._failed(error)

    def _close(self, write: Write) -> None:
        with self._lock:
            self._under_way.pop(id(write), None)

    # -- reads ------------------------------------------------------------------------------------

    def look(self, klass: type, keys: Sequence[Key]) -> Look:
        """Ask for objects; what is not there is None."""
        nothing = Look([None] * len(keys), False)
        if not self.is_readable():
            return nothing
        try:
            look = self._look(klass, keys)
            if self.is_whole is not None:
                self._drop_parts(look, self.is_whole)
        except (KeyError, TypeError) as error:
            # A key or a class that it cannot have is a miss.
            logger.debug("the cache layer %r cannot be asked for %s: %s", self.store, klass, error)
            return nothing
        except Exception as error:
            self._failed(error)
            return nothing
        self._answered()
        return look

    def _drop_parts(self, look: Look, is_whole: Callable[[Any], bool]) -> None:
        """Take for missing, and forget, what is not whole any more."""
        parts = [obj for obj in look.objects if obj is not None and not is_whole(obj)]
        if parts:
            dropped = {id(obj) for obj in parts}
            look.objects = [None if id(obj) in dropped else obj for obj in look.objects]
            logger.info("the cache layer %r had %d objects of another form", self.store, len(parts))
            self._forget(self._placed(parts))

    def fill(self, look: Look, objs: Sequence[Any]) -> None:
        """Store what the layers below had, and take back the markers of what they had not."""
        if not look.answered:
            return
        try:
            self._fill(look, self._placed(objs))
        except Exception as error:
            # A marker that stays expires: nothing to be told later.
            self._failed(error)

    def claim(self, look: Look, objs: Sequence[Any]) -> list[Any]:
        """Put markers for objects that were found by another key than their first.

        :return: those that are to be read once more, now, by their first key

        """
        return []

    def _placed(self, objs: Iterable[Any]) -> dict[Any, Any]:
        """Return the objects that the layer can have, by their places."""
        found = {}
        for obj in objs:
            try:
                found[self._place(obj)] = obj
            except Exception as error:
                # No key, no such attribute, no value of a key; or a column that was not loaded.
                logger.debug("the cache layer %r cannot have %r: %s", self.store, type(obj), error)
        return found

    # -- what kinds of layers differ in -----------------------------------------------------------

    @abstractmethod
    def _place(self, obj: Any) -> Any: ...

    @abstractmethod
    def _begin(self, write: Write) -> None: ...

    @abstractmethod
    def _end(self, write: Write, deleted: bool) -> None: ...

    @abstractmethod
    def _forget(self, objects: dict[Any, Any]) -> None: ...

    @abstractmethod
    def _forget_all(self) -> None: ...

    @abstractmethod
    def _look(self, klass: type, keys: Sequence[Key]) -> Look: ...

    @abstractmethod
    def _fill(self, look: Look, objects: dict[Any, Any]) -> None: ...


def has_none(objects: Sequence[Any]) -> bool:
    """Whether one of them is None. (`in` would ask each object whether it equals None.)"""
    return bool([True for obj in objects if obj is None])
