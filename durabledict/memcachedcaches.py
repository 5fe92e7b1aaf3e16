"""A client of pymemcache as the place of a stamp, through connections of our own.

They are made of the client's settings, and differ from it in what matters here: numbers are stored
as digits, whatever its serde; every command waits for its answer; an outage is an exception,
whatever `ignore_exc` says. So the client is left as it is, another thread may use it meanwhile, and
what breaks off in the middle of one of its requests does not reach ours (rule 3.2).
"""

from __future__ import annotations

import copy
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pymemcache import Client, HashClient, PooledClient
from pymemcache.client import base
from pymemcache.exceptions import MemcacheClientError, MemcacheError

from .cacheleases import MemcachedLease
from .hiding import kind_of
from .locks import Lease
from .stampcaches import StampCache, as_number

__all__ = ["MemcachedCache", "connections_of"]

T = TypeVar("T")

#: Connections that are kept: as many as threads are likely to ask at once.
KEPT = 64

#: Seconds after an answer for which a connection is taken to be open.
RECENTLY = 0.002

# What the nodes' clients are not to be made with: pools are for those who share a connection.
_OF_POOLS = ("max_pool_size", "pool_idle_timeout", "lock_generator")

_NOT_ASKED = object()


class MemcachedCache(StampCache):
    """A client of pymemcache: Client, PooledClient, HashClient, or one of them that retries.

    :param client: the client
    :raises TypeError: another class of that package

    """

    unavailable = (MemcacheError, OSError)

    def __init__(self, client: Any) -> None:
        while type(client).__name__ == "RetryingClient":
            # It would repeat an `incr` that was done and not answered (rule 0.4).
            client = vars(client)["_client"]
        if not isinstance(client, (Client, PooledClient, HashClient)):
            raise TypeError(
                f"cache is {kind_of(client)}: pass a Client, PooledClient or HashClient of "
                "pymemcache"
            )
        self._client: Any = client
        self._connections = connections_of(client)
        self.nodes = len(client.clients) if isinstance(client, HashClient) else 1

    @property
    def identity(self) -> object:
        """The client."""
        return id(self._client)

    def check_key(self, key: str) -> None:
        """Refuse a key with spaces, say, before an outage could be made of it."""
        super().check_key(key)
        check: Any = vars(base)["check_key_helper"]
        try:
            check(key, self._client.allow_unicode_keys, self._client.key_prefix)
        except MemcacheError as error:
            raise ValueError(f"memcached does not take the key {key!r}: {error}") from error

    def get(self, key: str) -> int | None:
        """Return the number: one get."""
        return as_number(self._connections.ask("get", key))

    def add(self, key: str, number: int) -> bool:
        """Put a number if there is none."""
        return bool(self._connections.ask("add", key, b"%d" % number, noreply=False))

    def increase(self, key: str, by: int) -> int | None:
        """Add to the number and return it, or None."""
        try:
            answer: int | None = self._connections.ask("incr", key, by, noreply=False)
        except MemcacheClientError as error:
            if "non-numeric" in str(error):
                return None
            raise
        return answer

    def put(self, key: str, number: int) -> None:
        """Put a number."""
        if not self._connections.ask("set", key, b"%d" % number, noreply=False):
            raise MemcacheError(f"the stamp under {key!r} was not stored")

    def lease(self, key: str, seconds: float) -> Lease | None:
        """Return a lock in memcached."""
        return self._connections.lease(key, seconds)


class _Connections:
    """Our connections to the servers of one client, for this process.

    A request has one for itself: those that are not in use are in a list, and to pop from it or to
    append to it is one step. So threads do not wait for each other, and a finalizer may come in the
    middle of a request. Over several nodes there is one for all, since who is in the middle of
    finding out which node is down decides where a key is; then threads take turns.

    """

    def __init__(self, client: Any) -> None:
        # Weakly, or the register below would keep the client alive.
        self._client = weakref.ref(client)
        self._begin()

    def _begin(self) -> None:
        # Each with the moment of its last answer.
        self._free: list[tuple[Any, float]] = []
        client: Any = self._client()
        self._names = _names_of(client)
        self._turn = threading.RLock() if len(self._names) > 1 else None
        self.process = os.getpid()

    def ask(self, command: str, key: str, *arguments: Any, **named: Any) -> Any:
        """Send one command and return its answer.

        :raises ConnectionError: a HashClient leaves the key's node alone for a moment

        """
        self._look()
        if self._turn is None:
            return self._ask_one(lambda one: getattr(one, command)(key, *arguments, **named))
        with self._turn:
            return self._ask_one_of_several(command, key, *arguments, **named)

    def lease(self, key: str, seconds: float) -> MemcachedLease:
        """Return a lock under a key."""
        # Not the client itself, which is referred to weakly here: these live as long as it does.
        return MemcachedLease(seconds, ("memcached", id(self), key), key, self.ask)

    def ask_nodes(self, keys: Iterable[str], function: Callable[[Any, list[str]], T]) -> list[T]:
        """Call a function with the client of each node that has some of the keys, and these keys.

        :return: what it returned, in no order
        :raises ConnectionError: a HashClient leaves a node alone for a moment

        """
        self._look()
        if self._turn is None:
            wanted = list(keys)
            return [self._ask_one(lambda one: function(one, wanted))]
        with self._turn:
            one = self._take()
            try:
                return [
                    self._ask_node(one, node, function, wanted)
                    for node, wanted in _by_node(one, keys)
                ]
            except BaseException:
                _close(one)
                raise
            finally:
                self._give(one, 1)

    def ask_all(self, function: Callable[[Any], T]) -> list[T]:
        """Call a function with the client of each node."""
        self._look()
        if self._turn is None:
            return [self._ask_one(function)]
        with self._turn:
            one = self._take()
            try:
                return [function(node) for node in list(one.clients.values())]
            except BaseException:
                _close(one)
                raise
            finally:
                self._give(one, 1)

    @staticmethod
    def _ask_node(
        one: Any, node: Any, function: Callable[[Any, list[str]], T], wanted: list[str]
    ) -> T:
        answer: Any = one._safely_run_func(node, function, _NOT_ASKED, node, wanted)
        if answer is _NOT_ASKED:
            raise ConnectionError(f"the node of {wanted[0]!r} failed a moment ago")
        return answer  # type: ignore[no-any-return]  # of pymemcache's

    def _look(self) -> None:
        """Begin anew in a forked child, and when servers were added."""
        if self.process != os.getpid():
            # A forked child leaves the parent its connections (rule 0.9).
            _inherited.append(self._free)
            self._begin()
        if self._names and _names_of(self._client()) != self._names:
            self.close()
            self._begin()

    def _ask_one(self, function: Callable[[Any], T]) -> T:
        one = self._take()
        try:
            answer = function(one)
        except BaseException:
            # An answer that was not read would be taken for that to the next request, and so on
            # for ever. (pymemcache itself closes at an Exception, and at nothing else.)
            one.close()
            raise
        self._give(one, KEPT)
        return answer

    def _ask_one_of_several(self, command: str, key: str, *arguments: Any, **named: Any) -> Any:
        one = self._take()
        try:
            answer = one._run_cmd(command, key, _NOT_ASKED, *arguments, **named)
        except BaseException:
            _close(one)
            raise
        finally:
            self._give(one, 1)
        if answer is _NOT_ASKED:
            # For a second after an error it answers without asking, as if there were nothing: a
            # write would go on, and nobody be told of it.
            raise ConnectionError(f"the node of {key!r} failed a moment ago")
        return answer

    def _take(self) -> Any:
        try:
            one, answered = self._free.pop()
        except IndexError:
            return _twin(self._client())
        if time.monotonic() - answered > RECENTLY:
            for node in _nodes(one):
                # Restarted, or tired of an idle connection: no reason for an error.
                if node.sock is not None and _has_something_to_say(node.sock):
                    node.close()
        return one

    def _give(self, one: Any, kept: int) -> None:
        if len(self._free) < kept:
            self._free.append((one, time.monotonic()))
        else:
            _close(one)

    def close(self) -> None:
        """Close those that are not in use; in a forked child they stay as they are."""
        if self.process != os.getpid():
            _inherited.append(self._free)
            return
        while self._free:
            try:
                one, _ = self._free.pop()
            except IndexError:
                break
            _close(one)


def _names_of(client: Any) -> frozenset[Any]:
    return frozenset(client.clients) if isinstance(client, HashClient) else frozenset()


def _twin(client: Any) -> Any:
    """Return a client with the same servers and settings, but with a connection of its own."""
    if isinstance(client, HashClient):
        nodes = list(client.clients.values())
        if len(nodes) == 1:
            # There is nobody to fail over to, and so nothing to remember of its failures.
            return _twin(nodes[0])
        return _twin_of_several(client)
    one: Any = client._create_client() if isinstance(client, PooledClient) else copy.copy(client)  # type: ignore[attr-defined]  # not in the stub
    one.sock = None
    one.serde = _Digits()
    one.ignore_exc = False
    return one


def _twin_of_several(client: Any) -> Any:
    twin = copy.copy(client)
    twin.ignore_exc = twin.use_pooling = False
    # For a node that is taken back after it was dead.
    twin.default_kwargs = {
        **{name: value for name, value in client.default_kwargs.items() if name not in _OF_POOLS},
        "serde": _Digits(),
    }
    twin.clients = {name: _twin(node) for name, node in list(client.clients.items())}
    # What is down, it finds out by itself.
    twin.hasher = copy.deepcopy(client.hasher)
    for server in list(client._dead_clients):
        twin.hasher.add_node(client._make_client_key(server))
    twin._failed_clients, twin._dead_clients = {}, {}
    return twin


def _by_node(one: Any, keys: Iterable[str]) -> list[tuple[Any, list[str]]]:
    found: dict[int, tuple[Any, list[str]]] = {}
    for key in keys:
        node = one._get_client(key)
        found.setdefault(id(node), (node, []))[1].append(key)
    return list(found.values())


def _nodes(one: Any) -> list[Any]:
    return list(one.clients.values()) if isinstance(one, HashClient) else [one]


def _close(one: Any) -> None:
    for node in _nodes(one):
        node.close()


def _has_something_to_say(sock: Any) -> bool:
    """Whether a server has closed an idle connection, or sent what nobody asked for."""
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class _Digits:
    """Stores bytes as they are, so that they can be added to."""

    @staticmethod
    def serialize(key: Any, value: Any) -> tuple[Any, int]:
        return value, 0

    @staticmethod
    def deserialize(key: Any, value: Any, flags: int) -> Any:
        return value


_registered: weakref.WeakKeyDictionary[Any, _Connections] = weakref.WeakKeyDictionary()
_registering = threading.RLock()
# What a forked child has inherited: kept, and never closed, since the sockets are the parent's.
_inherited: list[Any] = []


def connections_of(client: Any) -> _Connections:
    """Return what all stamps in this client share; closed when the client is gone."""
    with _registering:
        found = _registered.get(client)
        if found is None:
            found = _registered[client] = _Connections(client)
            weakref.finalize(client, found.close)
        return found


def _after_fork() -> None:
    global _registering
    _registering = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
