"""Whether this is a thread of kazoo's, which brings the answers that others wait for."""

from __future__ import annotations

import sys
import types

__all__ = ["OwnThreadError", "is_own_thread", "refuse_own_thread"]

#: Modules whose frames are on the stack of kazoo's own threads, below what they call.
OWN_MODULES = ("kazoo.handlers.", "kazoo.protocol.")


class OwnThreadError(RuntimeError):
    """On a thread of kazoo's, where nothing can be waited for; nothing was sent."""


def refuse_own_thread() -> None:
    """Refuse to wait on a thread of kazoo's, which brings what would be waited for.

    :raises OwnThreadError: this is one

    """
    if is_own_thread():
        raise OwnThreadError(
            "on a thread of kazoo's (in a watch, a listener or a callback) a ZookeeperDict "
            "cannot ask the server: that thread is the one to bring the answer. Hand the work "
            "to a thread of your own"
        )


def is_own_thread() -> bool:
    """Whether this is a thread of kazoo's."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(OWN_MODULES):
            return True
        frame = frame.f_back
    return False
