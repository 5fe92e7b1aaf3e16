"""A `TcpProxy` that knows the protocol of ZooKeeper, and what passes through it."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from . import jute
from .jute import Request
from .proxyfaults import Fault, Link
from .tcpproxy import TcpProxy

__all__ = ["ZookeeperProxy"]

# They come with time, and not because of what a test does.
PING = Request("ping")

# As org.apache.zookeeper.KeeperException.Code has it.
UNIMPLEMENTED = -6


class ZookeeperLink(Link):
    def _on_reply(self, data: bytes) -> None:
        if jute.is_event(data):
            self.to_client(data)  # It belongs to no request, so that no fault waits for it.
        else:
            super()._on_reply(data)


class Unimplemented(Fault):
    """Answer as a server that does not know the operation, and closes the connection."""

    def reply(self, link: Link, data: bytes) -> None:
        header = data[4:16] + struct.pack("!i", UNIMPLEMENTED)
        link.to_client(struct.pack("!i", len(header)) + header)
        link.cut()


class ZookeeperProxy(TcpProxy):
    """Also lists the requests that came; a fault can wait for an operation, and for its path.

    What `match` is looked for in begins with the name of the request in brackets:
    `proxy.hold(b"<multi>")`, `proxy.cut_after(b"<setData /folder/name>")`, or the beginning of
    that, `proxy.watch(b"<getData /folder/")`. Without any `match`, a fault may hit a ping.

    """

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port, split=jute.message_length)
        self.log: list[Request] = []

    def make_link(self, client: socket.socket, server: socket.socket) -> Link:
        return ZookeeperLink(self, client, server)

    def fault_for(self, request: bytes) -> Fault | None:
        parsed = jute.parse_request(request)
        self.log.append(parsed)
        return super().fault_for(str(parsed).encode() + request)

    def refuse_operation(self, name: str) -> Fault:
        """Be a server that does not know this operation."""
        return self._make(Unimplemented(f"<{name}>".encode(), None))

    @contextmanager
    def logging(self) -> Iterator[list[Request]]:
        """Give a list that at the end has the requests that came meanwhile, without the pings."""
        requests: list[Request] = []
        begin = len(self.log)
        yield requests
        requests += [request for request in self.log[begin:] if request != PING]

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Give a Counter that at the end has those requests by their operations."""
        calls = Counter[str]()
        with self.logging() as requests:
            yield calls
        calls.update(request.operation for request in requests)
