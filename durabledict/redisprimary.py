"""One keyspace on its primary: requests that find it, and are repeated where that is safe.

What a server refused before it ran anything (a script it has not met, a slot that has moved, a
server that is still loading) is sent again. What was sent and not answered is sent again only if
it reads (rules 2.5 and 2.7).
"""

from __future__ import annotations

import os
import re
import time
import weakref
from typing import Any

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from .redisconnection import nothing_was_sent
from .redisleases import RedisLease
from .redisscripts import Caller, Script, pack
from .redisservers import Server, Servers, servers_of

__all__ = ["Primary", "classified", "has_tag", "key_names"]

#: Seconds to pause before a request is repeated that the server could not take yet.
PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)

ROLE = pack((b"ROLE",))
ASKING = pack((b"ASKING",))

# A server before version 7 wraps the error of a command in a script.
_WRAPPED = re.compile(r"Error running script.*?\b(READONLY|OOM|WRONGTYPE|NOPERM) (.*)", re.DOTALL)
_CLASSES = {"READONLY": ReadOnlyError, "OOM": OutOfMemoryError, "NOPERM": NoPermissionError}


def key_names(keyspace: str) -> tuple[str, str, str]:
    """Return the names of hash, stream and mirror, which in a cluster are in one slot (rule 2.9).

    >>> key_names("flags"), key_names("{app}flags")
    (('flags', '{flags}:changes', '{flags}:last_updated'),
    ('{app}flags', '{app}flags::changes', '{app}flags::last_updated'))

    """
    # Two colons: the keyspaces "a" and "{a}" are not to share their stream.
    stem = f"{keyspace}:" if has_tag(keyspace) else f"{{{keyspace}}}"
    return keyspace, f"{stem}:changes", f"{stem}:last_updated"


def has_tag(keyspace: str) -> bool:
    """Whether a part of the keyspace decides on its slot."""
    return re.match(r"[^{]*\{[^}]+\}", keyspace) is not None


def is_balanced(keyspace: str) -> bool:
    """Whether each brace of the keyspace has its other half.

    >>> is_balanced("{app}flags"), is_balanced("{{a}}"), is_balanced("a}b"), is_balanced("}{")
    (True, True, False, False)

    """
    depth = 0
    for character in keyspace:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


class Primary:
    """What a `RedisDict` asks.

    :param client: the caller's
    :param keyspace: the name of the hash
    :raises TypeError: a client that is not redis-py's, or is asyncio's
    :raises ValueError: a keyspace with half a pair of braces, or, on a cluster, whose three keys
        cannot be in one slot

    """

    def __init__(self, client: Any, keyspace: str) -> None:
        self._client = client
        self._servers = servers_of(client)
        self.names = key_names(keyspace)
        if self._servers.is_cluster and not has_tag(keyspace) and ("}" in keyspace or not keyspace):
            raise ValueError(
                f"keyspace={keyspace!r}: on a cluster its keys would not be in one slot; write a "
                "part of it in braces, as in '{app}settings', or leave the brace out"
            )
        if not is_balanced(keyspace):
            raise ValueError(
                f"keyspace={keyspace!r} has half a pair of braces: what is between two of them "
                "says where a cluster keeps it; write both, as in '{app}settings', or neither"
            )
        hash_, stream, mirror = (name.encode("utf-8", "surrogateescape") for name in self.names)
        self.keys = (hash_, stream, mirror)
        self._get_mirror = pack((b"GET", mirror))
        self._found: tuple[Servers, int, Server] | None = None
        self._asks_role = True
        self._callers: dict[Script, Caller] = {}
        self._enter()

    def _enter(self) -> None:
        self._servers.enter(self)
        self._leave = weakref.finalize(self, self._servers.leave, id(self))
        # The end of the interpreter closes sockets by itself, and waits for no lock.
        self._leave.atexit = False

    @property
    def server(self) -> Server:
        """The server that holds the keyspace, as far as is known."""
        found = self._found
        if found is not None:
            servers, era, server = found
            if era == servers.era and servers.process == os.getpid():
                return server
        return self._find()

    def _find(self) -> Server:
        servers = self._servers
        if servers.process != os.getpid():
            # A forked child leaves the parent its connections (rule 0.9). It finds out by the
            # process's number and not by a hook: that is so where no hook runs, too, and takes no
            # lock that a thread of the parent may have held.
            self._leave.detach()
            servers = self._servers = servers_of(self._client)
            self._enter()
        era = servers.era
        server = servers.server_for(self.names[0])
        # In one step: another thread may read it in between.
        self._found = servers, era, server
        return server

    @property
    def is_cluster(self) -> bool:
        """Whether the keyspace is in one slot of many."""
        return self._servers.is_cluster

    def refresh(self) -> None:
        """Have the client ask again who holds which slot."""
        self._servers.refresh()

    # -- checks -------------------------------------------------------------------------------

    def mirror(self) -> bytes | None:
        """Return what the mirror holds. One GET, on the connection held for checks (rule 2.5)."""
        reply = self._check(self._get_mirror)[0]
        if isinstance(reply, Exception):
            # A slot that moved, a server that is loading: what can be done about it is done there.
            # Not by the client's own GET: its pool may have no connection left.
            reply = self.ask(self._get_mirror)[0]
        told: bytes | None = reply
        return told

    def look(self, script: Script, *arguments: bytes) -> Any:
        """Run a script that reads, on the connection for checks, and see that it is the primary's.

        One round trip; where Sentinel is, two a second.

        :raises redis.exceptions.ReadOnlyError: the server is a replica

        """
        caller = self._caller(script)
        for _ in range(2):
            request = caller.call(arguments)
            told, role = (
                self._check(request, ROLE) if self._asks_role else (*self._check(request), None)
            )
            if isinstance(told, NoScriptError):
                told = self._check(caller.call_in_full(arguments))[0]
            if isinstance(role, ResponseError):
                self._asks_role = False  # the user may not
                role = None
            if isinstance(told, Exception):
                return self.run(script, *arguments)  # where what can be done about it is done
            if not self._is_primary(role):
                self._find_again()
                continue
            return told
        raise ReadOnlyError(
            "the server that the client is connected to is a replica, whose data may be old"
        )

    def _is_primary(self, role: Any) -> bool:
        return (role is None or role[0] == b"master") and self.server.is_current()

    def _check(self, *requests: bytes) -> list[Any]:
        try:
            return self.server.check(*requests)
        except (ConnectionError, TimeoutError):
            # The slot's new primary, or the one that Sentinel names meanwhile.
            if not self._find_again():
                raise
        return self.server.check(*requests)

    def _find_again(self) -> bool:
        """Forget who the primary is; tell whether another one may be found."""
        server = self.server
        server.drop()
        self._servers.refresh()
        return self._servers.is_cluster

    # -- everything else ----------------------------------------------------------------------

    def run(
        self,
        script: Script,
        *arguments: bytes,
        writes: bool = False,
        wait: bytes | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Run a script and return its reply. One round trip.

        :param writes: it is not sent again after it may have run
        :param wait: a packed WAIT, to be sent with it; then the reply is a pair
        :param timeout: seconds to wait for a reply, where it is not the client's own

        """
        caller = self._caller(script)
        more = () if wait is None else (wait,)
        try:
            request = caller.call(arguments)
            replies = self.ask(request, *more, writes=writes, timeout=timeout)
        except NoScriptError:
            request = caller.call_in_full(arguments)
            replies = self.ask(request, *more, writes=writes, timeout=timeout)
        return replies if more else replies[0]

    def _caller(self, script: Script) -> Caller:
        caller = self._callers.get(script)
        if caller is None:
            caller = self._callers[script] = Caller(script, self.keys)
        return caller

    def ask(
        self, *requests: bytes, writes: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Send packed requests together and return their replies. One round trip.

        :raises redis.exceptions.ResponseError: the first one's reply was an error

        """
        try:
            server = self.server
            replies = server.ask(requests, server.timeout if timeout is None else timeout)
        except (ConnectionError, TimeoutError) as error:
            replies = [error]
        if not isinstance(replies[0], Exception):
            return replies
        return self._ask_again(requests, replies, writes, timeout)

    def _ask_again(
        self, sent: tuple[bytes, ...], replies: list[Any], writes: bool, timeout: float | None
    ) -> list[Any]:
        """Repeat what was refused, or lost and may be repeated, as long as that may help."""
        pauses = iter(PAUSES)
        is_last = False
        while True:
            refusal = classified(replies[0])
            if refusal is None:
                return replies
            asked_at: Server | None = None
            prefix: tuple[bytes, ...] = ()
            if isinstance(refusal, AskError):
                pause = next(pauses, None)
                if pause is None:
                    raise ClusterDownError(f"the nodes disagree who holds the slot: {refusal}")
                time.sleep(pause)
                if isinstance(refusal, MovedError):
                    self._servers.refresh()
                else:
                    prefix = (ASKING,)
                # Where it points, and not where the refreshed client would look: the node that it
                # asked may not have heard of the move.
                asked_at = self._servers.server_at(refusal.host, refusal.port)
            elif isinstance(refusal, ReadOnlyError) and not is_last:
                # Demoted since: where the name, or Sentinel, points now is another one.
                self._find_again()
                is_last = True
            elif isinstance(refusal, (BusyLoadingError, ClusterDownError, TryAgainError)):
                pause = next(pauses, None)
                if pause is None:
                    raise refusal
                time.sleep(pause)
            elif self._may_repeat(refusal, writes) and not is_last:
                if not self._find_again() and nothing_was_sent(refusal):
                    raise refusal
                is_last = True
            else:
                raise refusal
            try:
                server = asked_at or self.server
                replies = server.ask(
                    (*prefix, *sent), server.timeout if timeout is None else timeout
                )[len(prefix) :]
            except (ConnectionError, TimeoutError) as error:
                replies = [error]

    @staticmethod
    def _may_repeat(error: Exception, writes: bool) -> bool:
        """Whether an error is a lost connection, and it does no harm if the request had arrived."""
        lost = isinstance(error, ConnectionError)
        return lost and (not writes or nothing_was_sent(error))

    def write(
        self, script: Script, arguments: tuple[bytes, ...], replicas: tuple[int, int] | None
    ) -> Any:
        """Run a script that writes, never twice, and return its reply. One round trip.

        :param replicas: how many have to acknowledge it, and in how many milliseconds; then the
            reply is a pair with the number of those that did

        """
        if replicas is None:
            return self.run(script, *arguments, writes=True)
        number, milliseconds = replicas
        timeout = self.server.timeout
        if timeout is not None:
            timeout += milliseconds / 1000
        wait = pack((b"WAIT", b"%d" % number, b"%d" % milliseconds))
        return self.run(script, *arguments, writes=True, wait=wait, timeout=timeout)

    def lease(self, name: str, seconds: float) -> RedisLease:
        """Return a lock that all who have this keyspace share; it is in the keyspace's slot."""
        key = f"{key_names(self.names[0])[1].removesuffix('changes')}lock:{name}"
        identity = ("redis", id(self._client), key)
        return RedisLease(seconds, identity, key.encode("utf-8", "surrogatepass"), self.ask)

    def close(self) -> None:
        """Leave the connections, which are closed with the last dict that uses them."""
        self._leave()


def classified(reply: Any) -> Exception | None:
    """Return the error that a reply is, if it is one."""
    if not isinstance(reply, Exception):
        return None
    if str(reply).startswith("BUSY "):
        return BusyLoadingError(str(reply))  # with a script: nothing ran
    wrapped = _WRAPPED.search(str(reply))
    if wrapped is None:
        return reply
    return _CLASSES.get(wrapped[1], ResponseError)(f"{wrapped[1]} {wrapped[2]}")
