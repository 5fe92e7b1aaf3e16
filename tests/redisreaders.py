"""Readers of every kind for one keyspace, to be compared with what the server really holds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import redis

from durabledict import RedisDict
from durabledict.keys import decode_key
from durabledict.redisprimary import key_names

from .servers import HOST, PATIENCE, wait_until
from .sqliteprocesses import Other

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KEYSPACE", "Keyspace", "close_far", "entries", "open_far", "sync_far"]

KEYSPACE = "settings"


def entries(client: redis.Redis, keyspace: str = KEYSPACE) -> dict[Any, Any]:
    """What the hash holds, past the library: its own decoding aside, by HGETALL alone."""
    raw: Any = client.hgetall(keyspace)
    return {decode_key(field.decode()): pickle.loads(payload) for field, payload in raw.items()}


# What the functions below keep in their process.
_far: dict[str, Any] = {}


def open_far(port: int) -> None:
    client = redis.Redis(host=HOST, port=port, socket_timeout=PATIENCE)
    _far["client"], _far["dict"] = client, RedisDict[Any, Any](KEYSPACE, client, autosync=False)


def sync_far() -> dict[Any, Any]:
    _far["dict"].sync()
    return dict(_far["dict"])


def close_far() -> None:
    _far.pop("dict").close()
    _far.pop("client").close()


class Keyspace:
    """A writer, and readers: a strict one, a manual one, one under watch, perhaps a far one.

    :param port: of the server
    :param other: the process of the far one, which stays when this ends

    """

    def __init__(self, port: int, other: Other | None = None) -> None:
        self.port = port
        self.other = other
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.hash, self.stream, self.mirror = key_names(KEYSPACE)
        with self._stack as opening:
            self.raw: Any = self.client()
            self.writer = self.open()
            self.second_writer = self.open(autosync=False)
            self.strict = self.open()
            self.manual = self.open(autosync=False)
            self.watched = self.open(autosync=False)
            opening.callback(self.watched.watch(interval=0.1).stop)
            if self.other is not None:
                self.other(open_far, self.port)
                opening.callback(self.other, close_far)
            self._stack = opening.pop_all()  # all are open: they stay so until the end
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, **options: Any) -> redis.Redis:
        client = redis.Redis(host=HOST, port=self.port, **{"socket_timeout": PATIENCE, **options})
        self._stack.callback(client.close)
        return client

    def open(self, client: redis.Redis | None = None, **options: Any) -> RedisDict[Any, Any]:
        """Open one more dict, with connections of its own."""
        opened = RedisDict[Any, Any](KEYSPACE, client or self.client(), **options)
        self._stack.callback(opened.close)
        return opened

    def truth(self) -> dict[Any, Any]:
        return entries(self.raw)

    def stamp(self) -> bytes:
        stamp: Any = self.raw.get(self.mirror)
        assert isinstance(stamp, bytes)
        return stamp

    def ids(self) -> list[bytes]:
        """The ids in the stream, oldest first."""
        told: Any = self.raw.xrange(self.stream)
        return [identifier for identifier, _ in told]

    def check(self, expected: dict[Any, Any] | None = None) -> None:
        """Every reader tells what the server holds, after its next sync; the writers as well."""
        truth = self.truth()
        assert expected is None or truth == expected
        for reader in (self.strict, self.manual, self.writer, self.second_writer):
            reader.sync()
            assert dict(reader) == truth
            assert dict.__len__(reader) == len(truth)
        if self.other is not None:
            assert self.other(sync_far) == truth
        # At once, and not key by key: the watch may be removing some.
        wait_until(lambda: self.watched.copy() == truth, "the watch brings what the server holds")

    def check_strict(self, expected: dict[Any, Any] | None = None) -> None:
        """The strict one tells it without a sync, where nobody has touched the stamps."""
        assert dict(self.strict.items()) == self.truth()
        self.check(expected)

    def outlive(self, fault: Callable[[], object]) -> None:
        """Let a fault happen, and see that all tell the truth then, and after each later write."""
        fault()
        self.check()
        self.writer["after"] = "the fault"
        self.check()
        self.second_writer.update({"after": "that", "second": 2})
        self.check_strict()
        if "second" in self.truth():
            del self.writer["second"]
        self.check_strict()
        self.writer.compute("count", lambda count: count + 1, default=0)
        self.second_writer["after"] = "all"
        self.check_strict()
