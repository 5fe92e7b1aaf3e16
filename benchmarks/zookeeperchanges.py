"""What reads a folder in which another client changes one entry: a dict, or as 0.9 did it.

0.9 counted what its watches told, whichever key it was. When the count had grown, a read asked for
the list of keys and then for each value, one after the other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from typing import Any

from kazoo.client import KazooClient
from kazoo.protocol.states import Callback

from durabledict import ZookeeperDict
from tests.servers import HOST, PATIENCE
from tests.zookeeperservers import started

from .reads import entries
from .zookeeperserver import fill, path_of

__all__ = ["KINDS", "OLD", "STRICT", "SYNC", "TOLD", "Action", "Old", "Reader", "hear", "reader"]

KEY = "setting.5"
NEW_KEY = "new"

TOLD, STRICT, SYNC = "d[k], autosync=True", 'd[k], autosync="strict"', "sync()"
OLD = "d[k], durabledict 0.9"

Action = Callable[[], object]

# Never one that an earlier reader of the same folder has left.
new_values = map("changed {}".format, count())


@dataclass(frozen=True)
class Reader:
    """What reads a folder, and what changes it, which returns when the reader has heard of it.

    :param read: reads an entry, or only syncs; nothing else asks the server
    :param change: another client writes an entry that is there
    :param add: another client makes one more
    :param remove: another client removes that

    """

    read: Action
    change: Action
    add: Action
    remove: Action


class Old:
    """A mapping that follows a folder as 0.9 did, but for the base64 around its pickles."""

    def __init__(self, client: KazooClient, folder: str) -> None:
        self._client = client
        self._folder = folder
        self._told = self._synced = 0
        self._held: dict[str, Any] = {}
        client.ChildrenWatch(folder, self._tell)

    def __getitem__(self, key: str) -> Any:
        told = self._told
        if told != self._synced:
            self._held = self._load()
            self._synced = told
        return self._held[key]

    def _tell(self, _: object) -> None:
        self._told += 1

    def _load(self) -> dict[str, Any]:
        client, loaded = self._client, {}
        for name in client.retry(client.get_children, self._folder):
            path = path_of(self._folder, name)
            payload, _ = client.retry(client.get, path, watch=self._tell)
            loaded[name] = pickle.loads(payload or b"")
        return loaded


@contextmanager
def _old(client: KazooClient, folder: str) -> Iterator[Action]:
    held = Old(client, folder)
    yield lambda: held[KEY]


@contextmanager
def _durable(
    client: KazooClient, folder: str, *, autosync: bool | str, syncs: bool = False
) -> Iterator[Action]:
    with ZookeeperDict[str, str](folder, client, autosync=autosync) as d:
        yield d.sync if syncs else lambda: d[KEY]


#: Each opens a folder, and gives what reads it.
KINDS: dict[str, Callable[[KazooClient, str], AbstractContextManager[Action]]] = {
    TOLD: partial(_durable, autosync=True),
    STRICT: partial(_durable, autosync="strict"),
    SYNC: partial(_durable, autosync=False, syncs=True),
    OLD: _old,
}


@contextmanager
def reader(kind: str, number: int, writer: KazooClient, port: int) -> Iterator[Reader]:
    """Open a folder of so many entries, which nobody else has.

    :param kind: one of `KINDS`
    :param writer: the client that changes it
    :param port: where the reader's own client connects to

    """
    folder, held = f"/changes-{list(KINDS).index(kind)}-{number}", entries(number)
    fill(writer, folder, held)
    keys = cycle(held)
    new = path_of(folder, NEW_KEY)
    with started(KazooClient(f"{HOST}:{port}")) as client, KINDS[kind](client, folder) as read:
        read()

        def heard(action: Action) -> Action:
            def act() -> None:
                action()
                hear(client)

            return act

        yield Reader(
            read,
            heard(lambda: writer.set(path_of(folder, next(keys)), pickle.dumps(next(new_values)))),
            heard(lambda: writer.create(new, pickle.dumps("new"))),
            heard(lambda: writer.delete(new)),
        )


def hear(client: KazooClient) -> None:
    """Wait until a client's watches have handled every event of a write that is done."""
    # Events come before the answer to what was asked after them,
    client.sync("/")
    # and what is queued behind them comes when they were handled.
    handled = client.handler.event_object()
    client.handler.dispatch_callback(Callback("watch", handled.set, ()))
    handled.wait(PATIENCE)
