"""What a process of its own does that is told what to do: one function after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["serve"]


def serve(requests: Any, told: Callable[[BaseException], object]) -> None:
    """Answer requests until their pipe is closed, with what each function returned or raised.

    :param requests: the end of a pipe on which functions come, with their arguments; an answer is
        whether it returned, and what
    :param told: makes the answer of an exception

    """
    while True:
        try:
            function, arguments = requests.recv()
        except EOFError:
            return
        try:
            requests.send((True, function(*arguments)))
        except BaseException as error:
            requests.send((False, told(error)))
