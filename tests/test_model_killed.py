"""A process that is killed in the middle of a write leaves no reader behind (rule 3.1)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durabledict.stamps import DEAD, CacheStamp
from durabledict.testing.tools import Clock

from .memcachedserver import MemcachedServer
from .transactions import OtherProcess, database, fill, opened, writers


@pytest.fixture(scope="module")
def process(django_project: None) -> Iterator[OtherProcess]:
    process = OtherProcess()
    yield process
    process.close()


# -- in the process that is killed ----------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def assign(d: Any, point: str) -> None:
    d["a"] = 2


def add(d: Any, point: str) -> None:
    d["b"] = 2


def delete(d: Any, point: str) -> None:
    del d["a"]


def update(d: Any, point: str) -> None:
    d.update(a=2, b=2)


def pop(d: Any, point: str) -> None:
    d.pop("a")


def assign_in_atomic(d: Any, point: str) -> None:
    from django.db import transaction

    with transaction.atomic(using=d.using):
        d["a"] = 2
        if point == "not committed":
            die()


def save(d: Any, point: str) -> None:
    from .djangoapp.models import Plain

    Plain(key="b", value="2").save(using=d.using)


def save_in_atomic(d: Any, point: str) -> None:
    from django.db import transaction

    with transaction.atomic(using=d.using):
        save(d, point)
        if point == "not committed":
            die()


WRITES: dict[str, tuple[Callable[[Any, str], None], dict[str, int]]] = {
    "d[k] = v": (assign, {"a": 2}),
    "d[k] = v, a new one": (add, {"a": 1, "b": 2}),
    "del d[k]": (delete, {}),
    "update": (update, {"a": 2, "b": 2}),
    "pop": (pop, {}),
    "d[k] = v in atomic": (assign_in_atomic, {"a": 2}),
    "Model.save": (save, {"a": 1, "b": 2}),
    "Model.save in atomic": (save_in_atomic, {"a": 1, "b": 2}),
}


def killed(alias: str, write: str, point: str) -> int:
    """Write in a child, which is killed at that point, and return how it ended."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        begin, end = CacheStamp.begin, CacheStamp.end

        def begin_and_die(self: CacheStamp) -> int:
            number = begin(self)
            die()
            return number

        def die_before(self: CacheStamp, opening: int) -> Any:
            die()

        def end_and_die(self: CacheStamp, opening: int) -> Any:
            end(self, opening)
            die()

        d = opened(alias)
        d.sync()
        if point == "begun":
            CacheStamp.begin = begin_and_die  # type: ignore[method-assign]  # a hook, in this child
        elif point == "written":
            CacheStamp.end = die_before  # type: ignore[method-assign]  # a hook, in this child
        elif point == "ended":
            CacheStamp.end = end_and_die  # type: ignore[method-assign]  # a hook, in this child
        WRITES[write][0](d, point)
    finally:
        os._exit(1)  # it was to be killed before


# -- in this one ----------------------------------------------------------------------------------


CASES = [
    (write, point)
    for write in WRITES
    for point in ("begun", "not committed", "written", "ended")
    if point != "not committed" or "atomic" in write
]


@pytest.mark.parametrize("alias", ["default", "sqlite"])
@pytest.mark.parametrize(("write", "point"), CASES)
def test_who_reads_after_a_second_sees_what_the_table_holds(
    process: OtherProcess,
    clock: Clock,
    memcached_server: MemcachedServer,
    alias: str,
    write: str,
    point: str,
) -> None:
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    before = {"a": 1}
    # Without `verify`, which would find it in the end whatever the stamp says.
    d, timed = opened(alias, verify=None), opened(alias, 0.5, verify=None)
    d._stamp().renew()
    fill(d, before)
    assert d == timed == before

    assert process.call(killed, alias, write, point) == -signal.SIGKILL
    stored = WRITES[write][1] if point in ("written", "ended") else before
    assert database(alias) == stored
    assert writers(d) == (0 if point == "ended" else 1)
    if point == "ended":
        assert d == stored
    else:
        assert d in (before, stored)
    clock.move(1.0)
    assert d == timed == stored
    for _ in range(int(DEAD) + 1):
        clock.move(1.0)
        assert d == stored
    # It is not for ever that a second is all: now the stamp is like any other.
    assert writers(d) == 0
    assert d == timed == stored
    gets = int(memcached_server.stats()["cmd_get"])
    with CaptureQueriesContext(connections[alias]) as queries:
        clock.move(30.0)
        assert d.get("a") == stored.get("a")
    assert len(queries) == 0
    assert memcached_server.stats()["cmd_get"] == gets + 1


@pytest.mark.parametrize("alias", ["default", "sqlite"])
def test_who_writes_meanwhile_is_seen_at_once(
    process: OtherProcess, clock: Clock, alias: str
) -> None:
    d, other = opened(alias, verify=None), opened(alias, verify=None)
    d._stamp().renew()
    fill(d, {"a": 1})
    assert d == {"a": 1}
    assert process.call(killed, alias, "d[k] = v", "written") == -signal.SIGKILL
    for number in range(3, 10):
        other["a"] = number
        assert d == other == {"a": number}
        clock.move(0.1)
    for _ in range(int(DEAD) + 1):
        clock.move(1.0)
        assert d == {"a": 9}
    assert writers(d) == 0
