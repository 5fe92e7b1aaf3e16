"""Which server holds a keyspace, and our connections to it: one server, Sentinel, or Cluster.

Everything goes to the primary (rule 2.6). The connections are shared by all dicts of a process
that were given the same client.
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections import defaultdict
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool

from . import reading
from .hiding import hidden, kind_of
from .redisconnection import OwnConnection, nothing_was_sent
from .redisscripts import pack

__all__ = ["Server", "Servers", "client_of", "servers_of"]

#: Seconds that a check waits for its reply. A read waits for it.
CHECK_TIMEOUT = 1.0

#: Seconds after which Sentinel is asked again who the primary is.
SENTINEL_INTERVAL = 1.0

#: Seconds for which the Sentinels are left alone when none has answered.
SENTINEL_PAUSE = 10.0

#: Idle connections that are kept for each timeout: as many as threads are likely to write at once.
KEPT = 64


class Server:
    """One server and our connections to it.

    :param pool: of the client, or of the client's node
    :param greeting: packed commands to send after each connecting

    """

    def __init__(self, pool: Any, greeting: tuple[bytes, ...] = ()) -> None:
        self.pool = pool
        self._greeting = greeting
        #: The client's own timeout: for everything but checks.
        self.timeout: float | None = pool.connection_kwargs.get("socket_timeout")
        limits = [CHECK_TIMEOUT] if self.timeout is None else [CHECK_TIMEOUT, self.timeout]
        self._check_timeout = min(limits)
        self._checks = OwnConnection(pool, self._check_timeout, greeting)
        self._check_lock = threading.Lock()
        self._checking: int | None = None  # the thread that does
        self._checked_era = 0
        self._lock = threading.RLock()  # a finalizer may come in the middle
        self._idle: dict[float | None, list[OwnConnection]] = defaultdict(list)
        # Raised by `drop`: a connection that was in use then is not taken back.
        self._era = 0
        self._confirmed_until = 0.0
        #: Whether somebody has looked for settings that lose entries.
        self.is_examined = False

    def check(self, *requests: bytes) -> list[Any]:
        """Ask on the connection that is held for checks, one caller at a time. One round trip.

        A caller that has waited for its turn as long as for a reply goes its own way: whoever holds
        the connection meets an outage, or was interrupted by what now waits for this caller.

        """
        mine = threading.get_ident()
        # A signal handler, or a finalizer, in the middle of a check of this very thread.
        inside = self._checking == mine
        if inside or not self._check_lock.acquire(timeout=self._check_timeout):
            return self.ask(requests, self._check_timeout)
        try:
            self._checking = mine
            self._close_if_dropped()
            try:
                return self._checks.ask(*requests)
            except ConnectionError as error:
                if nothing_was_sent(error):
                    raise
            # The server had closed it: a restart, or its own timeout. To ask twice does no harm.
            return self._checks.ask(*requests)
        finally:
            self._checking = None
            self._close_if_dropped()
            self._check_lock.release()

    def _close_if_dropped(self) -> None:
        """Close the connection for checks if `drop` was called since. Its lock is held.

        Before a check and after it: a `drop` that comes between the look at the end of one and the
        release of the lock finds the lock taken, and leaves it to the next.

        """
        if self._checked_era != self._era:
            self._checked_era = self._era
            self._checks.close()

    def take(self, timeout: float | None) -> tuple[OwnConnection, int]:
        """Return a connection that is the caller's alone until it is given back, and its era."""
        era, idle = self._era, self._idle[timeout]
        # Without a lock: to pop from a list, or to append to one, is one step.
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if connection.is_usable():
                return connection, era
            connection.close()
        return OwnConnection(self.pool, timeout, self._greeting), era

    def give(self, connection: OwnConnection, era: int, timeout: float | None) -> None:
        """Take a connection back; one that is in the middle of a request is closed."""
        idle = self._idle[timeout]
        if connection.is_free and len(idle) < KEPT and era == self._era:
            idle.append(connection)
        else:
            connection.close()

    def ask(self, requests: tuple[bytes, ...], timeout: float | None) -> list[Any]:
        """Ask on a connection of the caller's own. One round trip."""
        connection, era = self.take(timeout)
        try:
            return connection.ask(*requests)
        finally:
            self.give(connection, era, timeout)

    def is_current(self) -> bool:
        """Whether Sentinel still names the server that the checks go to. It is asked once a second.

        Where no Sentinel answers, the server's own word has to do: to refuse reads because the
        Sentinels are down would make them the weakest part.

        """
        pool = self.pool
        if not isinstance(pool, SentinelConnectionPool) or not pool.is_master:
            return True
        now = reading.monotonic()
        if now < self._confirmed_until:
            return True
        try:
            address = pool.get_master_address()  # type: ignore[no-untyped-call]  # redis-py's
        except MasterNotFoundError:
            # To have them all time out again with each read would make them matter after all.
            self._confirmed_until = reading.monotonic() + SENTINEL_PAUSE
            return True
        if tuple(address) != self._checks.address:
            return False
        self._confirmed_until = now + SENTINEL_INTERVAL
        return True

    def drop(self) -> None:
        """Close all connections, those in use when they are given back."""
        with self._lock:
            self._era += 1
            self._confirmed_until = 0.0
            idle, self._idle = self._idle, defaultdict(list)
        for connections in idle.values():
            # Each is popped by somebody once: by `take`, whose it is then, or here.
            while True:
                try:
                    connection = connections.pop()
                except IndexError:
                    break
                connection.close()
        # Not waited for: this may be a finalizer in the middle of a check. Who holds it closes it.
        if self._check_lock.acquire(blocking=False):
            try:
                self._close_if_dropped()
            finally:
                self._check_lock.release()


class Servers:
    """The servers behind one client, for this process.

    :param client: a `redis.Redis` (of Sentinel's, too) or a `redis.cluster.RedisCluster`

    """

    def __init__(self, client: Any) -> None:
        self.process = os.getpid()
        self.is_cluster = isinstance(client, RedisCluster)
        # Weakly, or the register below would keep the client alive.
        self._client = weakref.ref(client)
        self._lock = threading.RLock()
        self._servers: dict[str, Server] = {}
        self._users: set[int] = set()
        #: Raised when the slots may have moved.
        self.era = 0

    def server_for(self, key: str) -> Server:
        """Return the server that holds a key: the primary of its slot."""
        if not self.is_cluster:
            return self._server("", None)
        node = self._cluster().get_node_from_key(key)
        return self._server(node.name, node)

    def all_servers(self) -> list[Server]:
        """Return the primaries: together they hold all keys."""
        if not self.is_cluster:
            return [self._server("", None)]
        return [self._server(node.name, node) for node in self._cluster().get_primaries()]

    def server_at(self, host: str, port: int) -> Server:
        """Return the server at an address that another one named (ASK)."""
        node = self._cluster().get_node(host=host, port=port)
        if node is None:
            self.refresh()
            node = self._cluster().get_node(host=host, port=port)
        if node is None:
            raise ConnectionError(f"the cluster does not know {host}:{port}, where it sent us")
        return self._server(node.name, node)

    def refresh(self) -> None:
        """Have the client ask the cluster who holds which slot, as its own commands do."""
        if self.is_cluster:
            self._cluster().nodes_manager.initialize()
        self.era += 1

    def _cluster(self) -> Any:
        return self._client()

    def _server(self, name: str, node: Any) -> Server:
        with self._lock:
            server = self._servers.get(name)
            client: Any = self._client()
            if node is not None:
                client = node.redis_connection or client.get_redis_connection(node)
            # The cluster's client makes a node's pool anew after a change.
            if server is None or server.pool is not client.connection_pool:
                # A client that reads from replicas says READONLY on each connection: then a
                # primary that has become a replica would go on answering.
                greeting = () if node is None else (pack((b"READWRITE",)),)
                server = self._servers[name] = Server(client.connection_pool, greeting)
            return server

    def enter(self, user: object) -> None:
        """Note that somebody uses the connections."""
        with self._lock:
            self._users.add(id(user))

    def leave(self, identity: int) -> None:
        """Close the connections when nobody uses them any more."""
        if self.process != os.getpid():
            return  # they are the parent's, and so may be the lock
        with self._lock:
            self._users.discard(identity)
            unused = [] if self._users else list(self._servers.values())
        for server in unused:
            server.drop()


_registered: weakref.WeakKeyDictionary[Any, Servers] = weakref.WeakKeyDictionary()
_lock = threading.RLock()
# What a forked child has inherited: kept, and never closed, since the sockets are the parent's.
_inherited: list[Servers] = []


def servers_of(client: Any, parameter: str = "connection") -> Servers:
    """Return what all dicts with this client share.

    :param parameter: what the caller calls it, for the message
    :raises TypeError: it is no client of redis-py's

    """
    waits = inspect.iscoroutinefunction(getattr(client, "execute_command", None))
    if waits or not (isinstance(client, RedisCluster) or hasattr(client, "connection_pool")):
        raise TypeError(
            f"{parameter} is {kind_of(client)}"
            + (" of redis.asyncio, which cannot be used here: " if waits else ": ")
            + "pass a redis.Redis or a redis.cluster.RedisCluster"
            + (" (docs/workers.rst says how a dict fits coroutines)" if waits else "")
            + ("; a URL is for durabledict.open" if isinstance(client, str) else "")
        )
    with _lock:
        servers = _registered.get(client)
        if servers is not None and servers.process != os.getpid():
            _inherited.append(servers)
            servers = None
        if servers is None:
            servers = _registered[client] = Servers(client)
        return servers


def client_of(url: str) -> redis.Redis:
    """Return a client for a URL, the caller's to close.

    :raises ValueError: redis-py cannot read it; the message has no part that may be a password

    """
    reason = ""
    try:
        return redis.Redis.from_url(url)
    except ValueError as error:
        # Others tell the part that was taken for the port, say.
        if str(error).startswith(("Invalid value for", "Redis URL must specify")):
            reason = f" ({error})"
    # Out here, so that redis-py's own error is no context of it.
    raise ValueError(
        f"{hidden(url)!r} is no URL of a Redis server{reason}: write "
        "redis://user:password@host:port/db, and / ? # @ [ in a password as %2F %3F %23 %40 %5B"
    )


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    # A dict that is forgotten in the child is not to close the parent's sockets.
    _inherited.extend(_registered.values())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
