"""A TCP proxy between a client and a server, with faults that hit just the request one means.

Use: `with TcpProxy(server.port) as proxy:` and connect to `proxy.port`. The methods of the proxy
that make a fault return it. A fault waits for the next request that contains `match` (every
request contains `b""`), on whichever connection, and happens once, or `times` times (None: until
`mend`). Of several faults that match, the one made first happens.

"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import resp
from .proxyfaults import (
    BlackHole,
    CutReply,
    CutRequest,
    Fault,
    HalfClose,
    HoldReply,
    HoldRequest,
    Link,
    Watch,
)
from .servers import HOST, PATIENCE, free_port

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TcpProxy", "each_chunk"]


def each_chunk(data: bytes | bytearray) -> int | None:
    """Split a protocol that is not known, or that is encrypted: what comes together is one."""
    return len(data) or None


class TcpProxy:
    """Listens on `port`, and connects to `server_port` for every client that comes.

    `split` returns the length of the first message in what came, None when it is not complete;
    for a protocol that it does not know, or an encrypted one: `each_chunk`.

    """

    def __init__(
        self,
        server_port: int,
        split: Callable[[bytes | bytearray], int | None] = resp.message_length,
    ) -> None:
        self.server_port = server_port
        self.split = split
        self.knows_replies = split is not each_chunk
        self.port = 0
        self.connections = 0  # Those that came, also if they are gone.
        self.requests = 0
        self.bytes_from_client = 0
        self.bytes_from_server = 0
        self._links: set[Link] = set()
        self._threads: list[threading.Thread] = []
        self._waiting: list[Fault] = []
        self._made: list[Fault] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._links)

    def keeps_back(self, client_port: int) -> bool:
        """Whether something is held, or lost, of the connection that came from that port."""
        return any(
            link.client_port == client_port and (link.deaf or link.held)
            for link in self._all_links()
        )

    # Faults of one request.

    def cut_before(self, match: bytes = b"", *, times: int | None = 1) -> Fault:
        """Cut the connection before the server gets the request."""
        return self._make(CutRequest(match, times))

    def cut_after(self, match: bytes = b"", *, reset: bool = False, times: int | None = 1) -> Fault:
        """Cut the connection when the server has done the request: its reply never arrives.

        That is, when it replies, so that what the test looks at next has surely happened.

        """
        return self.cut_reply(match, after=0, reset=reset, times=times)

    def cut_reply(
        self,
        match: bytes = b"",
        *,
        after: int,
        reset: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Cut the connection after that many bytes of the reply."""
        return self._make(CutReply(match, times, after, reset))

    def hold(self, match: bytes = b"", *, times: int | None = 1) -> Fault:
        """Hold the reply back until `release`; `wait` waits until it is here."""
        return self._make(HoldReply(match, times))

    def hold_request(self, match: bytes = b"", *, times: int | None = 1) -> Fault:
        """Hold the request back until `release`; `wait` waits until it is here."""
        return self._make(HoldRequest(match, times))

    def half_close(self, match: bytes = b"", *, times: int | None = 1) -> Fault:
        """End the replies in place of this one; the server gets requests all the same."""
        return self._make(HalfClose(match, times))

    def swallow(self, match: bytes = b"", *, times: int | None = 1) -> Fault:
        """Let nothing through the connection any more, from this request on; it stays open."""
        return self._make(BlackHole(match, times))

    def watch(self, match: bytes = b"", *, times: int | None = None) -> Fault:
        """Do nothing but count such requests (`hits`), and wait for one (`wait`)."""
        return self._make(Watch(match, times))

    # Faults of everything.

    def cut(self, *, reset: bool = False) -> None:
        """Cut all connections that there are."""
        for link in self._all_links():
            link.cut(reset)

    def black_hole(self) -> None:
        """Let nothing through any connection, old or new, until `mend`; they stay open."""
        self._make(BlackHole(b"", None), first=True)
        for link in self._all_links():
            link.lost = link.deaf = True

    def refuse(self) -> None:
        """Refuse new connections, until `mend`; those that there are stay."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        # The closing of a socket does not wake the thread that waits for it: a client does.
        with socket.create_connection((HOST, self.port), PATIENCE):
            assert self._acceptor is not None
            self._acceptor.join()
        listener.close()

    def mend(self) -> None:
        """End all faults: release what is held, and cut the connections that lost something."""
        with self._lock:
            self._waiting.clear()
            made, self._made = self._made, []
        for link in self._all_links():
            if link.lost or link.deaf:
                link.cut()
        for fault in made:
            fault.release()
        self._listen()

    def close(self) -> None:
        self.refuse()
        with self._lock:
            self._waiting.clear()
        # What is held is not to arrive: released after the connections are cut.
        self.cut()
        for fault in self._made:
            fault.release()
        for thread in self._threads:
            thread.join()

    # For the connections.

    def make_link(self, client: socket.socket, server: socket.socket) -> Link:
        return Link(self, client, server)

    def fault_for(self, request: bytes) -> Fault | None:
        found: Fault | None = None
        with self._lock:
            self.requests += 1
            for fault in list(self._waiting):
                if fault.match not in request:
                    continue
                if found is not None and not isinstance(fault, Watch):
                    continue
                fault.hits += 1
                if fault.hits == fault.times:
                    self._waiting.remove(fault)
                if isinstance(fault, Watch):
                    fault.see()  # when it is counted: a test looks at that at once
                else:
                    found = fault
        return found

    def count(self, from_client: bool, length: int) -> None:
        with self._lock:
            if from_client:
                self.bytes_from_client += length
            else:
                self.bytes_from_server += length

    def forget(self, link: Link) -> None:
        with self._lock:
            self._links.discard(link)

    def _make(self, fault: Fault, first: bool = False) -> Fault:
        with self._lock:
            self._made.append(fault)
            self._waiting.insert(0 if first else len(self._waiting), fault)
        return fault

    def _all_links(self) -> list[Link]:
        with self._lock:
            return list(self._links)

    def _listen(self) -> None:
        if self._listener is not None:
            return
        # The port stays when it listens again. It is not one that the system would give away.
        while self._listener is None:
            port = self.port or free_port()
            try:
                self._listener = socket.create_server((HOST, port))
            except OSError:
                if self.port:
                    raise
            else:
                self.port = port
        self._acceptor = threading.Thread(target=self._accept, args=[self._listener], daemon=True)
        self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, (_, client_port) = listener.accept()
            if self._listener is not listener:
                client.close()
                return
            try:
                server = socket.create_connection((HOST, self.server_port), PATIENCE)
            except OSError:
                client.close()  # As of a server that dies as it accepts.
                continue
            server.settimeout(None)
            link = self.make_link(client, server)
            link.client_port = client_port  # as accepted: it may be gone by now
            with self._lock:
                self.connections += 1
                self._links.add(link)
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                self._threads += link.threads
                # Under the lock: a thread is alive in the list, or has been.
                for thread in link.threads:
                    thread.start()
