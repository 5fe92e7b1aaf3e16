"""Tell an exception that a signal's handler raised from one of the code in whose middle it came.

A time limit, as that of a task queue, raises in the middle of whatever runs. Where that is the
`decode` of a payload, it is none of the payload's.
"""

from __future__ import annotations

from itertools import pairwise
from types import FrameType, TracebackType

__all__ = ["raise_interruption"]


def raise_interruption(error: BaseException) -> None:
    """Raise what a signal's handler raised, if that is `error` or what it was raised from.

    Of what `PyThreadState_SetAsyncExc` raises in a thread, and of a handler that is written in C,
    nothing tells.

    """
    cause: BaseException | None = error
    while cause is not None:
        if _comes_from_handler(cause.__traceback__):
            raise cause
        cause = cause.__cause__


def _comes_from_handler(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if _is_of_handler(traceback.tb_frame):
            return True
        traceback = traceback.tb_next
    return False


def _is_of_handler(frame: FrameType) -> bool:
    """Whether a frame is that of a function which was given a number, and the frame below its own.

    So Python calls a handler, and nobody else anything. `signal.getsignal` would not do: a handler
    may be any callable, and the function of its frame that of a decorator.

    """
    below, names = frame.f_back, frame.f_code.co_varnames
    given: list[object] = []
    # One more than there are: `*arguments`.
    for name in names[: frame.f_code.co_argcount + 1] if below is not None else ():
        value = frame.f_locals.get(name)
        given += value if isinstance(value, tuple) else (value,)
    return any(isinstance(number, int) and other is below for number, other in pairwise(given))
