"""Commands for many keys in one round trip to each server, on connections of our own.

The connections are those of `redisservers`: the caller's pool may have no connection left, may
decode replies, and its retries are not ours.
"""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    TryAgainError,
)

from ..redisconnection import nothing_was_sent
from ..redisprimary import ASKING, PAUSES, classified
from ..redisscripts import Script, pack
from ..redisservers import Server, servers_of

__all__ = ["Call", "Pipe", "call", "run"]


class Call:
    """One command about one key, packed.

    :param key: the key
    :param packed: the command
    :param in_full: the same for a server that has not met the script
    :param reads: it may be sent again after it may have run

    """

    __slots__ = ("in_full", "key", "packed", "reads")

    def __init__(
        self, key: str, packed: bytes, in_full: bytes | None = None, reads: bool = False
    ) -> None:
        self.key = key
        self.packed = packed
        self.in_full = in_full
        self.reads = reads


def call(key: str, command: bytes, *arguments: bytes) -> Call:
    """Return a command whose first argument is the key."""
    return Call(key, pack((command, key.encode(), *arguments)), reads=command == b"GET")


def run(key: str, script: Script, *arguments: bytes) -> Call:
    """Return the call of a script on one key."""
    rest = (b"1", key.encode(), *arguments)
    return Call(key, pack((b"EVALSHA", script.sha, *rest)), pack((b"EVAL", script.text, *rest)))


class Pipe:
    """What a Store asks of a client's servers.

    :param client: a `redis.Redis` (of Sentinel's, too) or a `redis.cluster.RedisCluster`
    :raises TypeError: another class, or an asyncio client

    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._servers = servers_of(client, "client")
        self._enter()

    def _enter(self) -> None:
        self._servers.enter(self)
        self._leave = weakref.finalize(self, self._servers.leave, id(self))
        # The end of the interpreter closes sockets by itself, and waits for no lock.
        self._leave.atexit = False

    def _look(self) -> None:
        if self._servers.process != os.getpid():
            # A forked child leaves the parent its connections (rule 0.9).
            self._leave.detach()
            self._servers = servers_of(self._client)
            self._enter()

    def close(self) -> None:
        """Leave the connections, which are closed with their last user; a call takes them again."""
        self._leave()
        self._enter()

    def ask(self, calls: Sequence[Call]) -> list[Any]:
        """Return the reply to each call. One round trip to each server that has some of the keys.

        What a server refused, because a slot has moved or it is loading, is sent again. What was
        sent and not answered is sent again, once, if it reads.

        :raises redis.exceptions.RedisError: a server refused one of them, or cannot be asked

        """
        self._look()
        replies: list[Any] = [None] * len(calls)
        waiting = list(range(len(calls)))
        pauses = iter(PAUSES)
        may_be_lost = True
        while waiting:
            refused: list[int] = []
            error: Exception | None = None
            for server, positions in self._by_server(calls, waiting):
                try:
                    told = self._ask_server(server, [calls[place] for place in positions])
                except ConnectionError as met:
                    reads = all(calls[place].reads for place in positions)
                    if not may_be_lost or not (reads or nothing_was_sent(met)):
                        raise
                    server.drop()
                    error, may_be_lost = met, False
                    refused += positions
                    continue
                for place, reply in zip(positions, told, strict=True):
                    problem = classified(reply)
                    if isinstance(problem, AskError) and not isinstance(problem, MovedError):
                        reply = self._ask_there(problem, calls[place])
                        problem = classified(reply)
                    if problem is None:
                        replies[place] = reply
                    elif _may_pass(problem):
                        refused.append(place)
                        error = problem
                    else:
                        raise problem
            waiting = refused
            if error is not None:
                pause = next(pauses, None)
                if pause is None:
                    raise error
                time.sleep(pause)
                self._servers.refresh()
        return replies

    def remove_all(self, prefix: str) -> None:
        """Remove every key that begins so; all keys of the servers are looked at, in steps."""
        self._look()
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        for server in self._servers.all_servers():
            cursor = b"0"
            while True:
                request = pack((b"SCAN", cursor, b"MATCH", pattern.encode(), b"COUNT", b"1000"))
                (reply,) = server.ask((request,), server.timeout)
                if isinstance(reply, Exception):
                    raise reply
                cursor, keys = reply
                # Each by itself: on a cluster they are in different slots.
                server.ask(tuple(pack((b"UNLINK", key)) for key in keys), server.timeout)
                if cursor == b"0":
                    break

    def _by_server(
        self, calls: Sequence[Call], waiting: Sequence[int]
    ) -> list[tuple[Server, list[int]]]:
        found: dict[int, tuple[Server, list[int]]] = {}
        for place in waiting:
            server = self._servers.server_for(calls[place].key)
            found.setdefault(id(server), (server, []))[1].append(place)
        return list(found.values())

    def _ask_there(self, pointing: AskError, one: Call) -> Any:
        """Ask the node that a slot is on its way to."""
        there = self._servers.server_at(pointing.host, pointing.port)
        # In full: it may be the first time that this node meets the script.
        sent = (ASKING, one.in_full or one.packed)
        return there.ask(sent, there.timeout)[1]

    @staticmethod
    def _ask_server(server: Server, calls: Sequence[Call]) -> list[Any]:
        # However many: a server reads on while its replies wait to be read.
        told = server.ask(tuple(each.packed for each in calls), server.timeout)
        unknown = [place for place, reply in enumerate(told) if isinstance(reply, NoScriptError)]
        if unknown:
            again = tuple(calls[place].in_full or calls[place].packed for place in unknown)
            for place, reply in zip(unknown, server.ask(again, server.timeout), strict=True):
                told[place] = reply
        return told


def _may_pass(problem: Exception) -> bool:
    """Whether a refusal is one of a cluster or a server that changes, and may go differently."""
    # MovedError is an AskError.
    return isinstance(
        problem, (AskError, BusyLoadingError, ClusterDownError, ReadOnlyError, TryAgainError)
    )
