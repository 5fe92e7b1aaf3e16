"""Clients of Redis through a `TcpProxy`, which time out over what that keeps back, and only then.

A test of what is late has a short timeout. On a busy machine any other reply may take as long.
"""

from __future__ import annotations

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
    port = connection._sock.getsockname()[1]
    ends = time.monotonic() + PATIENCE
    while not proxy.keeps_back(port) and time.monotonic() < ends:
        try:
            if connection.can_read(INTERVAL):
                return
        except redis.ConnectionError:
            return  # the end of the connection: it is for the read to say
