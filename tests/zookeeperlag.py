"""A follower of an ensemble that serves what it has, while nothing of its leader reaches it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .proxyfaults import Link
from .servers import HOST
from .tcpproxy import TcpProxy, each_chunk
from .zookeeperservers import Ensemble, EnsembleServer

__all__ = ["Lag", "lagging"]


class LaggingLink(Link):
    """Holds what comes from the leader, and all after it, as long as it is told to."""

    proxy: LeaderProxy

    def to_client(self, data: bytes) -> None:
        self.proxy.flows.wait()
        super().to_client(data)


class LeaderProxy(TcpProxy):
    """Between a follower and the port at which another member serves followers, if it leads."""

    def __init__(self, server_port: int, flows: threading.Event) -> None:
        super().__init__(server_port, split=each_chunk)
        self.flows = flows

    def make_link(self, client: socket.socket, server: socket.socket) -> Link:
        return LaggingLink(self, client, server)


class Lag:
    """A follower that can be held where it is.

    Neither it nor its leader notices before the time of `syncLimit`: the ensemble has to be one
    with a long one.

    """

    def __init__(self, server: EnsembleServer, flows: threading.Event) -> None:
        self.server = server
        self._flows = flows

    def begin(self) -> None:
        """Let it hear of no commit any more, and of no answer to what is asked of the leader."""
        self._flows.clear()

    def end(self) -> None:
        """Let it hear of all that it missed, in order."""
        self._flows.set()


@contextmanager
def lagging(ensemble: Ensemble) -> Iterator[Lag]:
    """Make one of the followers one that may lag; it is restarted for that, and at the end."""
    follower = ensemble.followers()[0]
    settings = follower.settings
    flows = threading.Event()
    flows.set()
    with ExitStack() as stack:

        def through_proxy(line: str) -> str:
            member = re.fullmatch(rf"server\.(\d+)={HOST}:(\d+):(\d+)", line)
            if member is None or int(member[1]) == follower.number:
                return line
            proxy = stack.enter_context(LeaderProxy(int(member[2]), flows))
            return f"server.{member[1]}={HOST}:{proxy.port}:{member[3]}"

        try:
            follower.settings = tuple(map(through_proxy, settings))
            follower.restart()
            ensemble.wait_for_quorum()
            yield Lag(follower, flows)
        finally:
            flows.set()
            follower.settings = settings
            follower.restart()
            ensemble.wait_for_quorum()
