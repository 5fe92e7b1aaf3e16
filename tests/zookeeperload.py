"""Load on one place in ZooKeeper: writers that know what was acknowledged, readers that judge it.

Whatever happens to the servers and the connections meanwhile: no acknowledged write is lost, no
reader sees a number go back, or half of a transaction, and the only errors are those that mean an
outage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient

from durabledict import ZookeeperDict

from .servers import PATIENCE, wait_until
from .zookeeperreaders import AnyDict, Readers
from .zookeeperservers import started

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TOTAL", "Load", "Looker", "Tally", "Writer", "begin", "check", "loaded", "pair"]

#: The key that all writers count up.
TOTAL = "total"

#: The seconds between two reads of one reader, and after an error.
PACE = 0.01


def pair(name: str) -> list[str]:
    """Return the keys that a writer writes in one transaction."""
    return [f"{name}, one", f"{name}, other"]


@dataclass
class Tally:
    """What a writer has done, by its own account; sent from process to process."""

    name: str
    tried: int = 0
    acknowledged: int = 0
    added: int = 0
    #: Additions of which it does not know whether they were stored.
    unknown: int = 0
    errors: int = 0
    kinds: set[str] = field(default_factory=set)


class Writer:
    """Writes its number, then that as a pair, and adds one to the total, again and again.

    :param publish: gets each number that was acknowledged

    """

    def __init__(
        self, name: str, d: AnyDict, publish: Callable[[int], object] = lambda number: None
    ) -> None:
        self.d = d
        self.tally = Tally(name)
        self._publish = publish

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.write(stop)

    def write(self, stop: threading.Event) -> None:
        tally = self.tally
        tally.tried += 1
        adding = False
        try:
            self.d[tally.name] = tally.tried
            tally.acknowledged = tally.tried
            self._publish(tally.tried)
            self.d.update(dict.fromkeys(pair(tally.name), tally.tried))
            adding = True
            self.d.compute(TOTAL, lambda total: total + 1, default=0)
            tally.added += 1
        except ZookeeperDict.unavailable as error:
            tally.kinds.add(type(error).__name__)
            tally.errors += 1
            tally.unknown += adding
            stop.wait(PACE)


class Looker:
    """Reads again and again, and judges each state that it sees.

    :param acknowledged: what was acknowledged by now, for a reader that promises as much: with
        several servers, one that asks a majority
    :param syncs: whether it calls `sync` before it looks

    """

    def __init__(
        self, d: AnyDict, acknowledged: Callable[[], Mapping[str, int]], *, syncs: bool = False
    ) -> None:
        self.d = d
        self.acknowledged = acknowledged
        self.syncs = syncs
        # What is served in an outage may be old.
        self.is_strict = (d.autosync == "strict" or syncs) and d.on_outage == "raise"
        self.looks = 0
        self.errors = 0
        self.seen: dict[str, int] = {}

    def look(self) -> None:
        acknowledged = dict(self.acknowledged())
        try:
            if self.syncs:
                self.d.sync()
            state = self.d.copy()
        except ZookeeperDict.unavailable:
            self.errors += 1
            assert self.d.on_outage == "raise", "one that serves an old copy raises nothing"
            return
        self.looks += 1
        for name, number in self.seen.items():
            assert state.get(name, -1) >= number, f"{name} goes back: {state} after {self.seen}"
        for name, number in acknowledged.items():
            one, other = (state.get(key) for key in pair(name))
            assert one == other, f"half of a transaction of {name}: {state}"
            if self.is_strict:
                assert state.get(name, -1) >= number, f"{name} is older than {acknowledged}"
        self.seen = state

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.look()
            stop.wait(PACE)


class Load:
    """Writers and lookers, each in a thread of its own, from the beginning of `with` to its end.

    :param readers: by their mode
    :param acknowledged: name -> number, also of other processes; else of these writers

    """

    def __init__(
        self,
        writers: Iterable[Writer],
        readers: Mapping[str, AnyDict],
        acknowledged: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self.writers = list(writers)
        self.lookers = {
            mode: Looker(d, acknowledged or self._acknowledged, syncs=mode.startswith("manual"))
            for mode, d in readers.items()
        }
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        works = [writer.work for writer in self.writers]
        works += [looker.work for looker in self.lookers.values()]
        self._threads = [threading.Thread(target=self._run, args=[work]) for work in works]

    def _acknowledged(self) -> dict[str, int]:
        return {writer.tally.name: writer.tally.acknowledged for writer in self.writers}

    def _run(self, work: Callable[[threading.Event], None]) -> None:
        try:
            work(self._stop)
        except BaseException as error:
            self.failures.append(error)
            self._stop.set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let all come to their end; raise what went wrong in any of them."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "one hangs"
        self.raise_failure()

    def raise_failure(self) -> None:
        for failure in self.failures:
            raise failure

    def tallies(self) -> list[Tally]:
        return [writer.tally for writer in self.writers]

    def goes_on(self, times: int = 2) -> None:
        """Wait until each writer has written so many times more, and each looker has looked."""
        writes = [(writer.tally, writer.tally.added + times) for writer in self.writers]
        looks = [(looker, looker.looks + times) for looker in self.lookers.values()]

        def has_gone_on() -> bool:
            self.raise_failure()
            return all(tally.added >= goal for tally, goal in writes) and all(
                looker.looks >= goal for looker, goal in looks
            )

        wait_until(has_gone_on, f"all writers and readers have done {times} rounds more")


def check(tallies: Iterable[Tally], truth: Mapping[str, Any]) -> None:
    """See that nothing acknowledged is missing in what is stored, and nothing was done twice."""
    tallies = list(tallies)
    for tally in tallies:
        assert tally.acknowledged <= truth[tally.name] <= tally.tried
        one, other = (truth[key] for key in pair(tally.name))
        assert one == other <= tally.tried
    added = sum(tally.added for tally in tallies)
    assert added <= truth[TOTAL] <= added + sum(tally.unknown for tally in tallies)


@contextmanager
def loaded(
    plain: KazooClient, path: str, connect: Callable[[], KazooClient]
) -> Iterator[tuple[Load, list[KazooClient]]]:
    """Give the load of three writers, and of a reader of each kind.

    At the end all of them go on, and then it is seen that nothing is lost, and that each reader
    equals what is stored.

    :param connect: makes the clients: one for each writer, and three for the readers
    :return: also the clients

    """
    names = [f"writer {number}" for number in range(3)]
    begin(plain, path, names)
    with ExitStack() as stack:
        clients = [stack.enter_context(started(connect())) for _ in names]
        # They read in other ways, too: an own write is applied to what was read before it.
        modes: tuple[Any, ...] = (True, False, "strict")
        writers = [
            Writer(name, stack.enter_context(AnyDict(path, client, autosync=mode)))
            for name, client, mode in zip(names, clients, modes, strict=True)
        ]
        # With a majority's answer: of the leader's own clients, one that asks it by a `sync` may
        # miss what a writer of another server was told a moment ago (rule 4.4).
        readers = stack.enter_context(Readers(path, plain, connect, number=3, quorum=True))
        with Load(writers, readers.all) as load:
            load.goes_on()
            yield load, clients + readers.clients
            load.goes_on()
        check(load.tallies(), readers.stored())
        readers.check()


def begin(client: KazooClient, path: str, names: Iterable[str]) -> None:
    """Store the numbers with which the writers of these names begin."""
    keys = [key for name in names for key in (name, *pair(name))]
    with AnyDict(path, client) as d:
        d.update(dict.fromkeys([*keys, TOTAL], 0))
