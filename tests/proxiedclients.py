"""Clients of Redis through a `TcpProxy`, which time out over what that keeps back, and only then.

A test of what is late has a short timeout. On a busy machine any other reply may take as long.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

import redis
from redis.connection import Connection

from .servers import HOST, PATIENCE
from .tcpproxy import TcpProxy

__all__ = ["client_through"]

#: Seconds between two looks at whether the proxy keeps something back.
INTERVAL = 0.005


def client_through(proxy: TcpProxy, **options: Any) -> redis.Redis:
    """Return a client, to be closed by the caller.

    The timeouts are those of the options; that of a reply begins when the proxy keeps it back, or
    the request.

    """

    class Patient(Connection):
        def read_response(self, *arguments: Any, **named: Any) -> Any:
            _wait_for_reply(proxy, self)
            return super().read_response(*arguments, **named)

    pool = redis.ConnectionPool(
        connection_class=Patient, host=HOST, port=proxy.port, protocol=2, **options
    )
    return redis.Redis.from_pool(pool)


def _wait_for_reply(proxy: TcpProxy, connection: Any) -> None:
    """Return when a reply has begun to come, or will not come for the time being."""
    sock = connection._sock
    port = sock.getsockname()[1]
    ends = time.monotonic() + PATIENCE
    while not proxy.keeps_back(port) and time.monotonic() < ends:
        # It is looked at, and not read: an end or a reset is for the client to find.
        if _is_readable(sock, 0) or connection.can_read(0) or _is_readable(sock, INTERVAL):
            return


def _is_readable(sock: socket.socket, seconds: float) -> bool:
    poll = select.poll()  # which takes any descriptor, also where a process has many
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
