"""Who looks on while a Django transaction is open: this thread, another one, another process."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from durabledict import JSONEncoding

from .servers import PATIENCE
from .serving import serve

if TYPE_CHECKING:
    from durabledict import ModelDict

__all__ = [
    "OnPurposeError",
    "OtherProcess",
    "OtherThread",
    "assert_nothing_is_left",
    "database",
    "fill",
    "filled_with",
    "glance",
    "look",
    "opened",
    "other_threads",
    "savepoint",
    "stamp_of",
    "writers",
]

spawning = multiprocessing.get_context("spawn")

#: READ COMMITTED, REPEATABLE READ, and SQLite's one kind.
ALIASES = ["default", "repeatable", "sqlite"]


class OnPurposeError(Exception):
    """What ends a transaction badly."""


def opened(alias: str, autosync: Any = True, **options: Any) -> ModelDict[Any, Any]:
    """Return a dict over `Plain` whose values are JSON, as they stand in the column."""
    from durabledict import ModelDict

    from .djangoapp.models import Plain

    return ModelDict(Plain, autosync=autosync, encoding=JSONEncoding, using=alias, **options)


def database(alias: str) -> dict[str, Any]:
    """Return the rows as this thread's connection sees them."""
    from .djangoapp.models import Plain

    rows = Plain.objects.using(alias).values_list("key", "value")
    return {key: JSONEncoding.decode(value) for key, value in rows}


def fill(d: ModelDict[Any, Any], entries: dict[str, Any]) -> None:
    """Make the rows exactly these, of whatever class they were, and have the dict know them."""
    from .djangoapp.models import Plain, PlainChild

    PlainChild.objects.using(d._alias).all().delete()
    Plain.objects.using(d._alias).all().delete()
    d.sync()
    d.update(entries)


def filled_with(
    entries: dict[str, Any], alias: str = "default", autosync: Any = True, **options: Any
) -> Any:
    """Return a dict over `Plain` whose rows are exactly these."""
    d = opened(alias, autosync, **options)
    fill(d, entries)
    assert d == entries
    return d


def savepoint(alias: str) -> str:
    """Make a savepoint by hand, and return its name; newer versions of Django name it anew."""
    from django.db import transaction

    make: Any = getattr(transaction, "savepoint_create", None) or transaction.savepoint
    name: str = make(using=alias)
    return name


def writers(d: ModelDict[Any, Any]) -> int:
    """Return how many writers the stamp says are at work: its low 16 bits."""
    return (stamp_of(d) or 0) % (1 << 16)


def stamp_of(d: ModelDict[Any, Any]) -> int | None:
    """Return the number that is the stamp."""
    stamp = d._stamp()
    return stamp.cache.get(stamp.key)


def assert_nothing_is_left(d: ModelDict[Any, Any]) -> None:
    """A transaction has left nothing on the connection, in the dict, or in the stamp."""
    from django.db import connections

    connection = connections[d._alias]
    assert connection.run_on_commit == []
    assert connection.execute_wrappers == []
    assert "commit" not in connection.__dict__
    assert d._transactions == 0
    assert [block for block in d._blocks if not block._finished] == []
    assert writers(d) == 0
    d.get("any key")
    assert (object.__getattribute__(d, "__class__") is d._native_class) or d.autosync is not False
    assert (type(d) is d._native_class) == (d.autosync is False)


# What another process holds.
_dicts: dict[Any, Any] = {}


def glance(alias: str, sync: bool = False, autosync: Any = True) -> dict[str, Any]:
    """Return the entries of a dict of this process's own, made at the first call. One read."""
    d = _dicts.get((alias, autosync))
    if d is None:
        d = _dicts[alias, autosync] = opened(alias, autosync)
    if sync:
        d.sync()
    entries: dict[str, Any] = d.copy()
    return entries


def look(alias: str, sync: bool = False, autosync: Any = True) -> dict[str, Any]:
    """Return the same, read as a whole and one by one, where nothing changes meanwhile."""
    entries = glance(alias, sync, autosync)
    d = _dicts[alias, autosync]
    assert {key: d[key] for key in entries} == entries
    return entries


def _serve(requests: Any) -> None:
    import django

    django.setup()
    serve(requests, lambda _: traceback.format_exc())


class OtherProcess:
    """A process of its own, with its own dicts, that runs one function after another."""

    def __init__(self) -> None:
        self._requests, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of a module's, and return what it returned."""
        self._requests.send((function, arguments))
        assert self._requests.poll(PATIENCE), "the process hangs"
        good, outcome = self._requests.recv()
        assert good, outcome
        return outcome

    def close(self) -> None:
        self._requests.close()
        self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()
        self._process.close()


class OtherThread:
    """A thread with connections of its own, that runs one function after another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function, and return what it returned."""
        return self._pool.submit(function, *arguments).result(PATIENCE)

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Begin to run a function; its `result` is waited for later."""
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        from django.db import connections

        self._pool.submit(connections.close_all).result(PATIENCE)
        self._pool.shutdown()


@contextmanager
def other_threads(number: int) -> Iterator[list[OtherThread]]:
    """Threads that end."""
    threads = [OtherThread() for _ in range(number)]
    try:
        yield threads
    finally:
        for thread in threads:
            thread.close()
