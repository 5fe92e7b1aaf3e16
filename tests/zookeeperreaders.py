"""Readers of every kind for one place in ZooKeeper, to be compared with what is stored there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from durabledict import MISSING, ZookeeperDict

from .servers import wait_until
from .zookeeperservers import started

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MODES", "RECONNECT", "AnyDict", "Readers", "patiently", "stored", "until_available"]

AnyDict = ZookeeperDict[Any, Any]

#: For clients: kazoo's own pauses between attempts to connect double up to a minute.
RECONNECT = {"max_tries": -1, "delay": 0.05, "max_delay": 0.2}

#: What a dict is opened with: each way of reading, and what it does in an outage.
MODES: dict[str, dict[str, Any]] = {
    "told": {"autosync": True},
    "told, stale": {"autosync": True, "on_outage": "stale"},
    "strict": {"autosync": "strict"},
    "strict, stale": {"autosync": "strict", "on_outage": "stale"},
    "seconds": {"autosync": 0.05},
    "manual": {"autosync": False},
    "manual, stale": {"autosync": False, "on_outage": "stale"},
    "watched": {"autosync": False, "on_outage": "stale"},
}


def stored(client: KazooClient, path: str) -> dict[str, Any]:
    """Return what a plain client is told when it has asked a majority, past the library.

    By a transaction that only checks, which every server does in its place among the writes: what
    a `sync` waits for is not all that was acknowledged (rule 4.4). The keys have to be texts that
    are names of znodes as they are.

    """
    question = client.transaction()
    question.check("/", -1)
    question.commit()
    try:
        names = client.get_children(path)
    except NoNodeError:
        return {}
    return {name: pickle.loads(client.get(f"{path}/{name}")[0] or b"") for name in names}


@contextmanager
def patiently() -> Iterator[None]:
    """Let the errors pass that mean an outage, and no others."""
    try:
        yield
    except ZookeeperDict.unavailable:
        pass


def until_available(action: Callable[[], Any], what: str = "the servers can be asked") -> Any:
    """Do it, again as long as that is an outage; return what it returned."""
    results: list[Any] = []

    def is_done() -> bool:
        with patiently():
            results.append(action())
        return bool(results)

    wait_until(is_done, what)
    return results[0]


class Readers:
    """A dict in each of the modes, and a plain client that knows what is stored.

    :param path: the place
    :param plain: a client that is started, and that no fault hits
    :param connect: makes clients for the readers
    :param number: how many clients serve them, in turn; None: each has one of its own
    :param options: of all dicts

    """

    def __init__(
        self,
        path: str,
        plain: KazooClient,
        connect: Callable[[], KazooClient],
        *,
        number: int | None = None,
        modes: tuple[str, ...] = tuple(MODES),
        **options: Any,
    ) -> None:
        self.path = path
        self.plain = plain
        self.all: dict[str, AnyDict] = {}
        self.clients: list[KazooClient] = []
        #: What the watched one told its callbacks: key -> the newest value.
        self.heard: dict[Any, Any] = {}
        self._connect = connect
        self._number = number or len(modes)
        self._modes = modes
        self._options = options
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as opening:
            self.clients += [
                opening.enter_context(started(self._connect())) for _ in range(self._number)
            ]
            for mode, client in zip(self._modes, cycle(self.clients), strict=False):
                opened = AnyDict(self.path, client, **{**self._options, **MODES[mode]})
                self.all[mode] = opening.enter_context(opened)
            if "watched" in self.all:
                watched = self.all["watched"]
                self.heard.update(watched)
                watched.on_change(lambda key, old, new: self.heard.__setitem__(key, new))
                watched.watch(interval=0.5)
            self._stack = opening.pop_all()  # all are open: they stay so until the end
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stored(self) -> dict[str, Any]:
        return stored(self.plain, self.path)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Let no answer take long, where it is known that there will be none."""
        clients = [reader._client for reader in self.all.values()]
        patience = clients[0].timeout
        for client in clients:
            client.timeout = 0.05
        try:
            yield
        finally:
            for client in clients:
                client.timeout = patience

    def lost(self) -> bool:
        """Return whether each of the clients has noticed that it has no connection."""
        return not any(client.connected for client in self.clients)

    def check(self, expected: dict[str, Any] | None = None) -> None:
        """See that each equals what is stored after its next sync, and without any in the end."""
        truth = self.stored()
        assert expected is None or truth == expected
        for mode, reader in self.all.items():

            def is_synced(reader: AnyDict = reader) -> bool:
                with patiently():
                    reader.sync()
                    # In an outage "stale" has no error for it.
                    return reader.stale_since is None
                return False

            wait_until(is_synced, f"the {mode} one can sync")
            # The local copy, past the reads that look again: a sync is enough.
            assert dict(dict.items(reader)) == truth, mode
            assert not reader.undecodable
        for mode in ("told", "told, stale", "strict", "strict, stale", "seconds"):
            if mode in self.all:
                reader = self.all[mode]
                assert until_available(reader.copy) == truth, mode
        if "watched" in self.all:
            wait_until(lambda: self.present() == truth, "the callbacks have heard of it")

    def check_outage(self, expected: dict[str, Any], asks: Collection[str]) -> None:
        """See what they do when no answer comes.

        :param expected: what was stored when they heard of the servers for the last time
        :param asks: the modes in which a read asks the servers; others have it from their copy

        """
        for mode, reader in self.all.items():
            serves = reader.on_outage == "stale"
            if mode == "seconds":
                wait_until(lambda: reader.checked_age > 0.05, "its time is over")
            if mode in asks and not serves:
                with pytest.raises(ZookeeperDict.unavailable):
                    reader.copy()
            else:
                assert reader.copy() == expected, mode
            if serves:
                assert reader.sync() is False
                assert reader.stale_since is not None
                assert reader.copy() == expected
            else:
                with pytest.raises(ZookeeperDict.unavailable):
                    reader.sync()

    def check_told(self, *modes: str) -> None:
        """See that those come to it by themselves, when they have been told."""
        truth = self.stored()
        for mode in modes or ("told", "told, stale", "watched"):
            if mode in self.all:
                reader = self.all[mode]

                def is_up_to_date(reader: AnyDict = reader) -> bool:
                    with patiently():
                        return reader.copy() == truth and reader.stale_since is None
                    return False

                wait_until(is_up_to_date, f"the {mode} one has come to what is stored")

    def present(self) -> dict[Any, Any]:
        """Return what the callbacks of the watched one add up to."""
        return {key: value for key, value in dict(self.heard).items() if value is not MISSING}
