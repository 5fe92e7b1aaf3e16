"""A transaction whose cache fails, whose neighbours are threads, or that is forked: rule 3.3."""

from __future__ import annotations

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from .servers import PATIENCE, free_port, wait_until
from .transactions import (
    OnPurposeError,
    OtherProcess,
    OtherThread,
    assert_nothing_is_left,
    database,
    fill,
    filled_with,
    glance,
    look,
    opened,
    other_threads,
    stamp_of,
    writers,
)

pytestmark = pytest.mark.usefixtures("django_project")

filled = partial(filled_with, {"a": 1})


# -- the cache ------------------------------------------------------------------------------------


def test_without_a_cache_nothing_is_written(caplog: pytest.LogCaptureFixture) -> None:
    from django.db import transaction
    from pymemcache.client.base import Client

    d = opened("default", cache=Client(("127.0.0.1", free_port())), on_outage="stale")
    fill(opened("default"), {"a": 1})
    with transaction.atomic():
        writes: list[Callable[[], Any]] = [lambda: d.update(a=2), lambda: d.__setitem__("a", 2)]
        for write in (*writes, d.clear):
            with pytest.raises(OSError):
                write()
        assert d == {"a": 1}
    assert database("default") == {"a": 1}
    assert d._transactions == 0


def test_a_cache_that_goes_away_in_the_block_does_not_break_the_commit(
    process: OtherProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import transaction

    d = filled()
    cache = type(d._stamp().cache)
    with caplog.at_level(logging.WARNING, "durabledict.models"), monkeypatch.context() as patched:
        with transaction.atomic():
            d["a"] = 2

            def refuse(*arguments: object) -> None:
                raise ConnectionRefusedError

            patched.setattr(cache, "increase", refuse)
            patched.setattr(cache, "put", refuse)
        assert "its readers cannot be told" in caplog.text
    assert d == {"a": 2} == database("default")
    assert writers(d) == 1
    wait_until(
        lambda: process.call(glance, "default") == {"a": 2}, "the other process sees it", 10.0
    )
    d._stamp().renew()


@pytest.mark.parametrize("alias", ["default", "repeatable", "sqlite"])
@pytest.mark.parametrize("autosync", [True, False])
def test_a_stamp_in_the_very_database(alias: str, autosync: bool) -> None:
    """In Django's database cache the stamp is rolled back with the rest."""
    from django.db import connections, transaction

    d = opened(alias, autosync, cache="database")
    fill(d, {"a": 1})
    with transaction.atomic(using=alias):
        d["a"] = 2
        with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
            d["a"] = 3
            raise OnPurposeError
        assert d == {"a": 2}
    assert d == {"a": 2}
    ends: list[Callable[[], Any]] = [lambda: None, connections[alias].close]
    for end in ends:
        with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
            d["a"] = 3
            assert d == {"a": 3}
            end()
            raise OnPurposeError
        assert d == {"a": 2} == database(alias)
    assert_nothing_is_left(d)


# -- threads, forks, the garbage collector --------------------------------------------------------


def test_a_commit_waits_for_the_thread_that_ends_its_stamp(
    thread: OtherThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connection, transaction

    d = filled()
    cache = type(d._stamp().cache)
    increase = cache.increase
    begun, go_on = threading.Event(), threading.Event()

    def slowly(self: Any, key: str, by: int) -> Any:
        if by > 1 and threading.get_ident() != me:
            begun.set()
            assert go_on.wait(PATIENCE)
        return increase(self, key, by)

    me = threading.get_ident()
    order: list[str] = []

    def let_go_on() -> None:
        order.append("ended")
        go_on.set()

    def earlier() -> None:
        # Committed, and our callback has not run: the other thread's read finishes the block.
        monkeypatch.setattr(cache, "increase", slowly)
        reads.append(thread.start(d.copy))
        assert begun.wait(PATIENCE)
        threading.Timer(0.1, let_go_on).start()

    reads: list[Any] = []
    with transaction.atomic():
        transaction.on_commit(earlier)
        d["a"] = 2
    order.append("committed")
    assert order == ["ended", "committed"]
    assert reads[0].result(PATIENCE) == {"a": 2} == d
    assert connection.execute_wrappers == []
    assert_nothing_is_left(d)


def test_of_two_writes_of_one_process_the_later_one_is_kept(
    thread: OtherThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is told of after the second one (rule 3.1)."""
    d = filled()
    cache = type(d._stamp().cache)
    increase = cache.increase
    me = threading.get_ident()

    def second_one_first(self: Any, key: str, by: int) -> Any:
        if by > 1 and threading.get_ident() == me:
            monkeypatch.setattr(cache, "increase", increase)
            thread.call(d.__setitem__, "a", 3)
        return increase(self, key, by)

    monkeypatch.setattr(cache, "increase", second_one_first)
    d["a"] = 2
    assert database("default") == {"a": 3}
    assert d == {"a": 3}
    d.autosync = False
    assert d == {"a": 3}


def test_of_two_commits_of_one_process_the_later_one_is_kept(thread: OtherThread) -> None:
    from django.db import transaction

    d = filled()

    def second() -> None:
        with transaction.atomic():
            d["a"] = 3

    with transaction.atomic():
        transaction.on_commit(lambda: thread.call(second))
        d["a"] = 2
    assert database("default") == {"a": 3}
    assert d == {"a": 3}
    d.autosync = False
    assert d == {"a": 3}
    assert_nothing_is_left(d)


def test_threads_in_transactions_at_the_same_time(process: OtherProcess) -> None:
    from django.db import transaction

    d = filled()
    together = threading.Barrier(4)

    def act(me: int) -> None:
        for number in range(15):
            together.wait(PATIENCE)
            try:
                with transaction.atomic():
                    d[str(me)] = number
                    assert d[str(me)] == number
                    if number % 5 == me % 5:
                        raise OnPurposeError
                    d.update({f"{me}.{number}": number})
                    assert len(d) >= number
            except OnPurposeError:
                assert d.get(str(me), -1) < number
            else:
                assert d[str(me)] == number

    with other_threads(4) as threads:
        acts = [one.start(act, me) for me, one in enumerate(threads)]
        for one in acts:
            one.result(2 * PATIENCE)
    assert d == database("default") == process.call(look, "default")
    assert_nothing_is_left(d)


def test_blocks_are_looked_through_under_the_lock_under_which_they_are_added() -> None:
    """Of a set that changes meanwhile, Python makes an error."""
    from django.db import transaction

    looked: list[bool] = []

    class Watched(weakref.WeakSet[Any]):
        def add(self, item: Any) -> None:
            looked.append(d._copy_lock._is_owned())
            super().add(item)

        def __iter__(self) -> Iterator[Any]:
            looked.append(d._copy_lock._is_owned())
            return super().__iter__()

    d = filled()
    d._blocks = Watched()
    with transaction.atomic(), other_threads(1) as (thread,):
        d["a"] = 2
        assert thread.call(d.copy) == {"a": 1}
    # To add one; then before the other thread's read, and in its comparison.
    assert looked == [True, True, True]


def test_a_forked_child_does_not_end_its_parents_transaction() -> None:
    from django.db import connections, transaction

    d = filled()
    connection: Any = connections["default"]
    with transaction.atomic():
        d["a"] = 2
        before = stamp_of(d)
        pid = os.fork()
        if pid == 0:
            try:
                connection.run_on_commit.clear()
                gc.collect()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert stamp_of(d) == before
    assert d == {"a": 2}
    assert_nothing_is_left(d)


def test_the_garbage_collector_in_the_middle_of_a_request_to_the_cache() -> None:
    """The finalizer of a block that a cycle kept must not ask a cache that is being asked."""
    from django.core.cache import caches
    from django.db import connection, transaction

    d, other = filled(cache="locmem"), filled("sqlite", cache="locmem")
    collected: list[int] = []

    def read() -> None:
        with pytest.raises(OnPurposeError), transaction.atomic():
            d["a"] = 2
            gc.disable()  # the cycle is not to be collected before
            cycle: list[Any] = [connection.run_on_commit[0]]
            cycle.append(cycle)
            raise OnPurposeError
        del cycle
        cache: Any = caches["locmem"]
        asked = cache._has_expired

        def collecting(key: str) -> Any:
            collected.append(gc.collect())  # in the middle of a get, under the lock of the cache
            return asked(key)

        cache._has_expired = collecting
        assert d._transactions == 1
        assert other == {"a": 1}

    # One that hangs must not hold up the end of the tests.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    gc.enable()
    assert any(collected)
    assert not thread.is_alive()
    wait_until(lambda: d._transactions == 0, "the dict is told")
    assert writers(d) == 0
    assert d == {"a": 1}
    assert_nothing_is_left(d)
