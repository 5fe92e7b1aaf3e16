"""Processes that create one thing at once, over each store that they may share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from durabledict import renewals
from durabledict.locks import Lease
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    SqlAlchemyStore,
)
from durabledict.testing.things import Thing

from .servers import wait_until
from .serving import serve
from .sqlmodels import Word

__all__ = [
    "DICTS",
    "KINDS",
    "RENEWALS",
    "STORES",
    "Journal",
    "Processes",
    "create",
    "opened",
    "stall_all",
    "wait_all",
]

DICTS = ("SqliteDict", "RedisDict", "ZookeeperDict", "ModelDict")
STORES = ("MemcacheStore", "RedisStore", "SQLite", "PostgreSQL", "DurableDictStore", "ChainedStore")
KINDS = (*DICTS, *STORES)

#: The journal of what renews the leases of a process.
RENEWALS = "renewals"

#: The lease of who is going to be killed, in seconds.
SHORT = 1.0

#: The same for a lock of ZooKeeper, which ends with the session. Of any other process it is not to
#: end, however long that gets no turn.
SHORT_SESSION, LONG_SESSION = 2.0, 60.0

# All of them are forked from one that has imported this module, which takes longest.
forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload([__name__])


class Journal:
    """What processes tell each other: words in a file, each written in one step."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._path = folder / f"journal of {kind}"
        self._path.touch()

    def note(self, word: str) -> None:
        with open(self._path, "a") as file:
            file.write(word + "\n")

    def count(self, word: str) -> int:
        return self._path.read_text().split("\n").count(word)

    def wait_for(self, word: str, number: int = 1) -> None:
        wait_until(lambda: self.count(word) >= number, f"{number} x {word!r}", 60)


@contextmanager
def opened(kind: str, where: dict[str, str], session: float = LONG_SESSION) -> Iterator[Any]:
    """Open the dict or Store of that kind."""
    with ExitStack() as stack:
        if kind == "ModelDict":
            import django

            django.setup()
            from durabledict import ModelDict
            from tests.djangoapp.models import Plain

            yield stack.enter_context(ModelDict(Plain.objects))
        elif kind in ("RedisDict", "RedisStore"):
            import redis

            client: Any = stack.enter_context(closing(redis.Redis.from_url(where["redis"])))
            if kind == "RedisStore":
                yield stack.enter_context(RedisStore(client))
            else:
                from durabledict import RedisDict

                yield stack.enter_context(RedisDict("created", client))
        elif kind == "ZookeeperDict":
            from kazoo.client import KazooClient

            from durabledict import ZookeeperDict

            client = KazooClient(where["zookeeper"], timeout=session)
            yield stack.enter_context(ZookeeperDict(where["path"], client))
        elif kind in ("SQLite", "PostgreSQL"):
            yield stack.enter_context(SqlAlchemyStore(where[kind]))
        elif kind == "MemcacheStore":
            yield stack.enter_context(MemcacheStore([where["memcached"]]))
        else:
            from durabledict import SqliteDict

            # Each kind in a keyspace of its own: they are used at once.
            file = SqliteDict[Any, Any](where["file"], kind, synchronous="OFF")
            d = stack.enter_context(file)
            if kind == "SqliteDict":
                yield d
                return
            lasting = DurableDictStore(d)
            if kind == "DurableDictStore":
                yield lasting
                return
            cache = stack.enter_context(MemcacheStore([where["memcached"]], prefix="chain:"))
            memory = ProcessMemoryStore(lifetime_cb=lambda obj: 5)
            yield ChainedStore([memory, cache, lasting])


def create(kind: str, owner: Any, creator: Callable[[], str]) -> str:
    """Get what is there, or create it; return its text."""
    if kind in DICTS:
        return str(owner.get_or_compute("key", creator))
    if kind in ("SQLite", "PostgreSQL"):
        return str(owner.get_or_create(Word, {"id": 1}, lambda: Word(id=1, text=creator())).text)
    made = owner.get_or_create(Thing, {"id": 1}, lambda: Thing(1, value=creator()))
    return str(made.value)


def one_of_many(kind: str, where: dict[str, str], folder: Path, number: int) -> str:
    """Create, in one of so many processes; the creator waits until all others have to wait."""
    journal = Journal(folder, kind)
    with opened(kind, where) as owner:
        make = owner._lease

        def lease(name: str, *seconds: float) -> Lease:
            made: Lease = make(name, *seconds)
            wait = made.wait
            told: list[int] = []

            def waits(length: float) -> None:
                if not told:
                    told.append(1)
                    journal.note("waits")
                wait(length)

            replace(made, "wait", waits)
            return made

        replace(owner, "_lease", lease)

        def creator() -> str:
            journal.note("creates")
            journal.wait_for("waits", number - 1)
            return f"by {os.getpid()}"

        journal.note("ready")
        journal.wait_for("ready", number)
        return create(kind, owner, creator)


def replace(owner: Any, name: str, new: Any) -> None:
    """Put something in place of a method of one object, of a dict with slots, too."""
    object.__setattr__(owner, name, new)


def stall_all(where: dict[str, str], folder: Path) -> None:
    """Begin to create, over each store, and never end; this process is killed."""
    threads = [threading.Thread(target=stall, args=(kind, where, folder)) for kind in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stall(kind: str, where: dict[str, str], folder: Path) -> None:
    journal = Journal(folder, kind)
    with opened(kind, where, SHORT_SESSION) as owner:
        make = owner._lease
        replace(owner, "_lease", lambda name, *seconds: make(name, SHORT))

        def creator() -> str:
            journal.note("stalls")
            time.sleep(600)
            return "never"

        create(kind, owner, creator)


def wait_all(where: dict[str, str], folder: Path) -> dict[str, str]:
    """Begin to create, over each store, with short leases; return what became of it.

    The creators end when they are told to, and what renews the leases goes on then; this process is
    stopped meanwhile. In the middle of a renewal it would have a lock of the database's own, for
    which nobody waits so long.

    """
    found: dict[str, str] = {}
    renewing, renew = Journal(folder, RENEWALS), renewals._renewer.renew

    def renew_late(held: Any) -> bool:
        renewing.note("waits")
        renewing.wait_for("go on")
        return renew(held)

    def create_late(kind: str) -> None:
        journal = Journal(folder, kind)

        def creator() -> str:
            journal.note("begins")
            journal.wait_for("go on")
            return "old"

        with opened(kind, where, SHORT_SESSION) as owner:
            make = owner._lease
            replace(owner, "_lease", lambda name, *seconds: make(name, SHORT))
            try:
                found[kind] = create(kind, owner, creator)
            except Exception as error:
                found[kind] = repr(error)

    threads = [threading.Thread(target=create_late, args=(kind,)) for kind in KINDS]
    replace(renewals._renewer, "renew", renew_late)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        del renewals._renewer.renew
    return found


def _serve(requests: Any) -> None:
    serve(requests, repr)


class Processes:
    """Processes that run functions for us, one after the other: to start one takes a second."""

    def __init__(self, number: int) -> None:
        self._ends: list[Any] = []
        self._running: list[Any] = []
        for _ in range(number):
            self._add()

    def _add(self) -> None:
        ours, theirs = forking.Pipe()
        process = forking.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._ends.append(ours)
        self._running.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a function in all of them at once; return what each returned."""
        for end in self._ends:
            end.send((function, arguments))
        outcomes = []
        for end in self._ends:
            assert end.poll(90), "the process hangs"
            outcomes.append(end.recv())
        assert all(good for good, _ in outcomes), outcomes
        return [outcome for _, outcome in outcomes]

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin to run a function in the first of them."""
        self._ends[0].send((function, arguments))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the first of them."""
        os.kill(self._running[0].pid, number)

    def answer(self) -> Any:
        """Return what the function has returned that was started."""
        assert self._ends[0].poll(90), "the process hangs"
        good, outcome = self._ends[0].recv()
        assert good, outcome
        return outcome

    def kill(self) -> None:
        """Kill the first of them; the next test finds another one in its place."""
        process, end = self._running.pop(0), self._ends.pop(0)
        process.kill()
        process.join()
        process.close()
        end.close()
        self._add()

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._running:
            process.join(5)
            process.kill()
            process.join()
            process.close()
