"""How a process of the proof opens its dict, by the name of the backend and where it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from durabledict import JSONEncoding

__all__ = ["KEYSPACE", "TIMEOUT", "Client", "client_of"]

#: The seconds that a client waits for an answer: shorter than the faults, which are to be noticed.
TIMEOUT = 1.0

#: Where they are in the store, of those that can have several.
KEYSPACE = "proof"


class Client:
    """A dict of this process's own.

    :param place: what the backend says of its servers

    """

    #: What an outage raises, and a server that refuses; anything else is a surprise.
    errors: tuple[type[BaseException], ...] = ()

    #: Whether a read with `autosync=True` sees all that was acknowledged; else what it was told of.
    is_strict = True

    #: Whether there is `compute`.
    counts = True

    def __init__(self, place: dict[str, Any]) -> None:
        self.place = place

    def open(self, **options: Any) -> Any:
        """Return the dict."""
        raise NotImplementedError

    def entries(self, d: Any) -> dict[str, Any]:
        """Return the local copy, past the reads, which would look again."""
        return dict(dict.items(d))

    def session(self) -> tuple[int, bytes] | None:
        """Return the number and the password of the session, where there is such a thing."""
        return None


class SqliteClient(Client):
    def open(self, **options: Any) -> Any:
        import sqlite3

        from durabledict import SqliteDict

        self.errors = (sqlite3.Error,)
        path = Path(self.place["path"])
        return SqliteDict(path, KEYSPACE, encoding=JSONEncoding, timeout=TIMEOUT, **options)


class RedisClient(Client):
    def open(self, **options: Any) -> Any:
        import redis

        from durabledict import RedisDict

        self.errors = (redis.RedisError, OSError)
        # Its own retries are on: the dict has to switch them off (rule 0.4).
        self._client = redis.Redis(
            port=self.place["port"], socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT
        )
        return RedisDict(KEYSPACE, self._client, encoding=JSONEncoding, **options)


class ZookeeperClient(Client):
    is_strict = False

    def open(self, **options: Any) -> Any:
        from kazoo.client import KazooClient
        from kazoo.exceptions import KazooException
        from kazoo.handlers.threading import KazooTimeoutError

        from durabledict import ZookeeperDict

        logging.getLogger("kazoo").addHandler(logging.NullHandler())  # it tells of each connection
        self.errors = (KazooException, KazooTimeoutError, OSError)
        reconnect = {"max_tries": -1, "delay": 0.05, "max_delay": 0.2}
        self._client = KazooClient(
            hosts=self.place["hosts"], timeout=3.0, connection_retry=reconnect
        )
        self._client.start(30.0)
        # The leader alone does not know all that was acknowledged: of that nothing is proved.
        options |= {"encoding": JSONEncoding, "timeout": 2.0, "quorum": True}
        return ZookeeperDict(f"/{KEYSPACE}", self._client, **options)

    def session(self) -> tuple[int, bytes] | None:
        session: tuple[int, bytes] | None = self._client.client_id
        return session


class DjangoClient(Client):
    def open(self, **options: Any) -> Any:
        import django
        from django.db import Error
        from pymemcache.exceptions import MemcacheError

        django.setup()

        from durabledict.ext.django import SettingsDict

        self.errors = (Error, MemcacheError, OSError)
        return SettingsDict(KEYSPACE, encoding=JSONEncoding, verify=self.place["verify"], **options)


_CLIENTS: dict[str, type[Client]] = {
    "sqlite": SqliteClient,
    "redis": RedisClient,
    "replica": RedisClient,
    "zookeeper": ZookeeperClient,
    "django": DjangoClient,
}


def client_of(backend: str, place: dict[str, Any]) -> Client:
    """Return what opens a dict of that backend."""
    if backend == "chain":
        from .chainclient import ChainClient  # which is none of a dict, and made of several

        return ChainClient(place)
    if backend == "sqlchain":
        from .sqlchainclient import SqlChainClient

        return SqlChainClient(place)
    return _CLIENTS[backend](place)
