"""A lock in ZooKeeper: an ephemeral znode that holds the token.

It is held by the session, not for a time: the servers remove it when they have not heard of its
holder for the session's timeout. It is no child of the keyspace's znode, whose children are the
entries and are watched, but of one beside it: ``/settings:locks`` for ``/settings``.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from kazoo.exceptions import ConnectionLoss, NodeExistsError, NoNodeError, SessionExpiredError

from .locks import Lease
from .zookeeperclient import Client

__all__ = ["ZookeeperLease", "folder_of"]


def folder_of(path: str) -> str | None:
    """Return the znode under which the locks of a keyspace are; None: there is no place beside it.

    >>> folder_of("/settings"), folder_of("/")
    ('/settings:locks', None)

    """
    return None if path == "/" else f"{path}:locks"


class ZookeeperLease(Lease):
    """A lock in ZooKeeper. Its znode has the ACL that the client gives to all that it makes.

    :param path: of the znode

    """

    def __init__(self, seconds: float, identity: Hashable, client: Client, path: str) -> None:
        super().__init__(seconds, identity)
        self._client = client
        self._path = path

    def __repr__(self) -> str:
        return f"ZookeeperLease({self._path!r})"

    def acquire(self, token: bytes) -> bool:
        """Make the znode: one request, and a few for the first lock of a keyspace."""
        kazoo = self._client.ready()
        try:
            self._answer(kazoo.create_async(self._path, token, ephemeral=True, makepath=True))
        except NodeExistsError:
            return False
        return True

    def renew(self, token: bytes) -> bool:
        """Tell whether the znode is still there, and this session's. One request."""
        return self._version(token) is not None

    def release(self, token: bytes) -> bool:
        """Remove the znode: one request that looks, and one that removes it.

        Where that fails it is done when the client is connected again: the znode does not expire as
        long as the session lasts.

        """
        try:
            return self._remove(token)
        except Exception:
            _Removal(self._client.kazoo, self._path, token).begin()
            raise

    def _remove(self, token: bytes) -> bool:
        version = self._version(token)
        if version is None:
            return False
        # It is this session's: nobody else can have made it anew unless the session ended, and
        # with that what is sent here fails.
        try:
            self._answer(self._client.kazoo.delete_async(self._path, version))
        except NoNodeError:
            return False
        return True

    def holder(self) -> bytes | None:
        """Return the token that holds the lock. One request."""
        try:
            held: bytes = self._answer(self._client.ready().get_async(self._path))[0]
        except NoNodeError:
            return None
        return held

    def _version(self, token: bytes) -> int | None:
        """Return the version of the znode, if it is one's own."""
        for is_last in (False, False, True):
            kazoo = self._client.ready()
            try:
                found = self._answer(kazoo.get_async(self._path))
            except (NoNodeError, SessionExpiredError):
                return None
            except ConnectionLoss:
                # A process that was stopped finds out by its first request. It only asks.
                if is_last:
                    raise
            else:
                return _own_version(kazoo, token, found)
        return None

    def _answer(self, asked: Any) -> Any:
        self._client.wait([asked])
        return asked.get()


class _Removal:
    """Removes a znode of this session, however often the connection is lost meanwhile.

    On kazoo's threads, which send what is asked for in an outage when that is over. It ends with
    the session, or with the client.

    """

    def __init__(self, kazoo: Any, path: str, token: bytes) -> None:
        self._kazoo = kazoo
        self._path = path
        self._token = token

    def begin(self) -> None:
        self._kazoo.get_async(self._path).rawlink(self._seen)

    def _seen(self, asked: Any) -> None:
        if self._is_answered(asked):
            version = _own_version(self._kazoo, self._token, asked.value)
            if version is not None:
                self._kazoo.delete_async(self._path, version).rawlink(self._is_answered)

    def _is_answered(self, asked: Any) -> bool:
        """Whether there is an answer; where the connection was lost, begin anew."""
        if isinstance(asked.exception, ConnectionLoss):
            self.begin()
        return asked.exception is None


def _own_version(kazoo: Any, token: bytes, found: Any) -> int | None:
    """Return the version of a znode, if it is this session's, with this token."""
    held, stat = found
    session = kazoo.client_id[0] if kazoo.client_id else None
    return int(stat.version) if held == token and stat.ephemeralOwner == session else None
