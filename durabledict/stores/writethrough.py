"""One write through the cache layers: what is told them before it is durable, and what after.

`ChainedStore` does it around each put and delete, and the bridge to sessions of SQLAlchemy around
each commit (rules 5.1 and 5.6 of docs/internals.rst).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .layers import Layer, Write

__all__ = ["WriteThrough"]


class WriteThrough:
    """A write that is under way; `begin` once or more often, then `end` or `abandon` once.

    Nothing is raised that a layer raises.

    :param layers: the layers, the fastest first

    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self._writes: list[tuple[Layer, Write, bool]] = []
        self._everything = False

    def begin(
        self, objs: Iterable[Any], deleted: Iterable[Any] = (), *, everything: bool = False
    ) -> None:
        """Before anybody can see the write: put markers, one request to each layer.

        :param objs: the objects as they will be stored
        :param deleted: those that will be gone, with the first key that they had
        :param everything: nobody knows what else will be: at the end all is forgotten

        """
        self._everything |= everything
        for given, gone in ((list(deleted), True), (list(objs), False)):
            for layer in self.layers if given else ():
                self._writes.append((layer, layer.begin(given), gone))

    def end(self) -> None:
        """After it is durable: put the objects in place of the markers, the last layer first."""
        writes, self._writes = self._writes, []
        try:
            while writes:
                layer, write, gone = writes[-1]
                layer.end(write, gone)
                writes.pop()
        except BaseException:
            # A KeyboardInterrupt, or a timeout of gevent's: what no layer raises by itself.
            for layer, write, _ in writes:
                layer.lose(write)
            raise
        finally:
            self._forget_what_nobody_knows()

    def abandon(self) -> None:
        """After it failed, or where nobody can tell: markers stay until they expire."""
        writes, self._writes = self._writes, []
        for layer, write, _ in writes:
            layer.abandon(write)
        self._forget_what_nobody_knows()

    def _forget_what_nobody_knows(self) -> None:
        everything, self._everything = self._everything, False
        if everything:
            self.forget_all()

    def forget_all(self) -> None:
        """Have the layers forget everything: nobody knows what they hold that is old."""
        for layer in self.layers:
            layer.forget_all()
