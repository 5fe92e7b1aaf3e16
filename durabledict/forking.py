"""Tell every dict of this process that it is now in a forked child (rule 0.9)."""

from __future__ import annotations

import logging
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from . import reading

if TYPE_CHECKING:
    from .syncing import SyncedCopy

__all__ = ["register"]

logger = logging.getLogger("durabledict.forking")

# Not a WeakSet: dicts have no hash.
_living: dict[int, weakref.ref[SyncedCopy[Any, Any]]] = {}


def register(durable: SyncedCopy[Any, Any]) -> None:
    """Have `durable._after_fork` called in every child, as long as the dict is alive."""
    _living[id(durable)] = weakref.ref(durable, partial(_forget, id(durable)))


def _forget(identity: int, _: object) -> None:
    _living.pop(identity, None)


def _mark_all() -> None:
    reading.after_fork()
    for reference in list(_living.values()):
        durable = reference()
        if durable is not None:
            try:
                durable._after_fork()
            except Exception:
                # The others must be marked all the same, or they hang at their first lock.
                logger.exception("a %s cannot be used in this process", type(durable).__name__)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_all)
