"""The connections through a `TcpProxy`, and the faults that it makes in them."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from . import resp
from .servers import PATIENCE

if TYPE_CHECKING:
    from .tcpproxy import TcpProxy

__all__ = [
    "BlackHole",
    "CutReply",
    "CutRequest",
    "Fault",
    "HalfClose",
    "HoldReply",
    "HoldRequest",
    "Link",
    "Watch",
]


class Fault:
    """What happens to one request and to its reply; here: nothing."""

    def __init__(self, match: bytes = b"", times: int | None = 1) -> None:
        self.match = match
        self.times = times
        self.hits = 0
        self._seen = threading.Event()
        self._released = threading.Event()

    def request(self, link: Link, data: bytes) -> None:
        link.forward_request(data, self)
        self._seen.set()

    def reply(self, link: Link, data: bytes) -> None:
        link.to_client(data)

    def wait(self, patience: float = PATIENCE) -> None:
        """Wait until it has happened once."""
        if not self._seen.wait(patience):
            raise TimeoutError(f"no request with {self.match!r} in {patience:g} s")

    def release(self) -> None:
        """Let go what is held, now and later."""
        self._released.set()

    def _hold(self, link: Link) -> None:
        link.held.add(self)
        self._seen.set()
        self._released.wait()
        link.held.discard(self)


class Watch(Fault):
    """Sees requests, and leaves them to other faults."""

    def see(self) -> None:
        self._seen.set()


class CutRequest(Fault):
    def request(self, link: Link, data: bytes) -> None:
        link.cut()
        self._seen.set()


class CutReply(Fault):
    def __init__(self, match: bytes, times: int | None, after: int, reset: bool) -> None:
        super().__init__(match, times)
        self.after = after
        self.reset = reset

    def request(self, link: Link, data: bytes) -> None:
        link.forward_request(data, self)

    def reply(self, link: Link, data: bytes) -> None:
        link.to_client(data[: self.after])
        link.cut(self.reset)
        self._seen.set()


class HoldReply(Fault):
    def request(self, link: Link, data: bytes) -> None:
        link.forward_request(data, self)

    def reply(self, link: Link, data: bytes) -> None:
        self._hold(link)
        link.to_client(data)


class HoldRequest(Fault):
    def request(self, link: Link, data: bytes) -> None:
        self._hold(link)
        link.forward_request(data, None)


class HalfClose(Fault):
    """The client sees the end of the replies, though the server still gets its requests."""

    def request(self, link: Link, data: bytes) -> None:
        link.forward_request(data, self)

    def reply(self, link: Link, data: bytes) -> None:
        link.lost = True
        link.end(link.client)
        self._seen.set()


class BlackHole(Fault):
    """From the request on, nothing goes through that connection, in no direction."""

    def request(self, link: Link, data: bytes) -> None:
        link.lost = link.deaf = True
        self._seen.set()


class Link:
    """One connection of a client, and that to the server which belongs to it."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.lost = False  # Replies are dropped.
        self.deaf = False  # Requests are dropped.
        self.is_cut = False
        self.client_port = 0
        self.held: set[Fault] = set()  # Those that hold something of it back now.
        self._faults: deque[Fault | None] = deque()  # One for each reply that is to come.
        self._lock = threading.Lock()
        self._pumping = 2
        for end in (client, server):
            # Else a small message may wait 40 ms for the acknowledgement of the one before.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.threads = [
            threading.Thread(target=self._pump, args=arguments, daemon=True)
            for arguments in (
                (client, server, self._on_request),
                (server, client, self._on_reply),
            )
        ]

    def _pump(
        self, source: socket.socket, drain: socket.socket, on_message: Callable[[bytes], None]
    ) -> None:
        try:
            for message in self._messages(source):
                on_message(message)
            if not (self.deaf or self.is_cut):
                self.end(drain)
        except OSError:
            self.cut()
        finally:
            self._close()

    def _messages(self, source: socket.socket) -> Iterator[bytes]:
        data = bytearray()
        while chunk := source.recv(1 << 18):
            data += chunk
            self.proxy.count(source is self.client, len(chunk))
            while data and (length := self.proxy.split(data)) is not None:
                yield bytes(data[:length])
                del data[:length]
        if data:
            yield bytes(data)  # One that its sender did not finish.

    def _on_request(self, data: bytes) -> None:
        fault = self.proxy.fault_for(data)
        if self.deaf:
            return
        if fault is None:
            self.forward_request(data, None)
        else:
            fault.request(self, data)

    def _on_reply(self, data: bytes) -> None:
        if self.lost:
            return
        if self.proxy.split is resp.message_length and resp.is_push(data):
            self.to_client(data)
            return
        fault = self._faults.popleft() if self._faults else None
        if fault is None:
            self.to_client(data)
        else:
            fault.reply(self, data)

    def forward_request(self, data: bytes, fault: Fault | None) -> None:
        # Before the reply can come. Of a protocol that is not known nobody can tell which reply is
        # whose, so it is the next one.
        if self.proxy.knows_replies or fault is not None:
            self._faults.append(fault)
        self.server.sendall(data)

    def to_client(self, data: bytes) -> None:
        if not self.lost:
            self.client.sendall(data)

    @staticmethod
    def end(drain: socket.socket, how: int = socket.SHUT_WR) -> None:
        try:
            drain.shutdown(how)
        except OSError:
            pass  # It is closed already.

    def cut(self, reset: bool = False) -> None:
        """End both connections, by an end of data for the client or by a reset."""
        self.is_cut = True
        if reset:
            # Its close is a reset then. That has to wait until no thread reads from it.
            linger = struct.pack("ii", 1, 0)
            try:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            except OSError:
                pass  # It is closed already.
        self.end(self.client, socket.SHUT_RD if reset else socket.SHUT_RDWR)
        self.end(self.server, socket.SHUT_RDWR)

    def _close(self) -> None:
        with self._lock:
            self._pumping -= 1
            last = not self._pumping
        if last:
            self.client.close()
            self.server.close()
            self.proxy.forget(self)
