"""The tokens of groups in memory, which say of themselves whether they are valid still."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

from ..stampcaches import call_after_fork
from .groups import ANY, Tokens

__all__ = ["MemoryGroups", "Tagged", "Token"]


class Tagged:
    """What stands in the place of a class in the stamps: all objects with groups, of any class."""


class Token:
    """The token of a group; its records share it, so that one assignment invalidates them all."""

    __slots__ = ("__weakref__", "is_valid")

    def __init__(self) -> None:
        self.is_valid = True


class MemoryGroups:
    """The valid tokens of some Stores in memory, by the names of groups.

    A token is forgotten with the last record that has it: names of groups do not pile up.

    """

    def __init__(self) -> None:
        self._tokens: weakref.WeakValueDictionary[str, Token] = weakref.WeakValueDictionary()
        self._any = object()
        # Re-entrant: a finalizer may use the Store in the middle.
        self._lock = threading.RLock()
        call_after_fork(self)

    def _after_fork(self) -> None:
        # A thread that is no more may hold it.
        self._lock = threading.RLock()

    def now(self) -> Tokens:
        """Return what `tokens_for` takes later, to tell whether something was invalidated."""
        return {ANY: self._any}

    def add(self, names: Iterable[str]) -> dict[str, Token]:
        """Return the tokens of groups; what has none gets one."""
        found = {}
        with self._lock:
            for name in names:
                token = self._tokens.get(name)
                if token is None:
                    token = self._tokens[name] = Token()
                found[name] = token
        return found

    def tokens_for(self, names: Iterable[str], before: Tokens) -> tuple[Token, ...] | None:
        """Return the tokens of groups; None: one may have been invalidated since `before`."""
        with self._lock:
            missing = [name for name in names if name not in before]
            if missing and self._any is not before.get(ANY):
                return None
            known = {**before, **self.add(missing)}
        return tuple([known[name] for name in names])

    def invalidate(self, names: Iterable[str]) -> list[Token]:
        """Invalidate groups, and return the tokens that they had."""
        with self._lock:
            self._any = object()
            gone = [token for name in names if (token := self._tokens.pop(name, None)) is not None]
            for token in gone:
                token.is_valid = False
        return gone

    def invalidate_all(self) -> list[Token]:
        """Invalidate every group."""
        with self._lock:
            return self.invalidate(list(self._tokens.keys()))
