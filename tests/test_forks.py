"""Dicts in forked children: no half-held lock, connections of their own, nothing of the parent's.

Each scenario runs in an interpreter of its own, because a test process that forks beside threads
is warned of since Python 3.12. A failed assertion in a child makes its exit status 1.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    MISSING,
    MemoryDict,
    MemoryStorage,
    SqliteDict,
    forking,
    sqliteconnection,
    sqlitereads,
)
from durabledict.reading import Syncing
from durabledict.sqliteconnection import Connection

from .scenarios import (
    PATIENCE,
    Signal,
    Stop,
    end,
    ended_well,
    everything_works,
    fork,
    held_by_a_thread,
    run,
)
from .test_subclassing import FourMethods, Table


def opened(kind: str, place: Path, **options: Any) -> Any:
    if kind == "memory":
        return MemoryDict(storage=MemoryStorage.named(str(place)), **options)
    return SqliteDict(place / "x.sqlite", timeout=PATIENCE, **options)


def is_syncing(d: object) -> bool:
    return issubclass(type(d), Syncing)


# -- locks that a thread of the parent holds ------------------------------------------------------


def copy_lock_is_held(kind: str, place: Path) -> None:
    d = opened(kind, place)
    d["k"] = 1
    with held_by_a_thread(d._copy_lock):
        ended_well(fork(partial(everything_works, d)))
    everything_works(d)


def apply_is_half_done(kind: str, place: Path) -> None:
    d = opened(kind, place, autosync=False)
    d.update(k=0, other=0)
    stop = Stop()
    # Entries have been changed, the stamp has not.
    stop.before(d, "_follow")

    def child() -> None:
        reloads = d.stats.reloads
        assert is_syncing(d)
        assert d["k"] == 1
        assert d.stats.reloads == reloads + 1
        assert not is_syncing(d)
        d.replace_all({"k": 1})
        everything_works(d)

    with stop.by(lambda: d.update(k=1)):
        ended_well(fork(child))
    assert d["k"] == 1


def sync_mutex_is_held(kind: str, place: Path) -> None:
    d, other = opened(kind, place), opened(kind, place)
    other["k"] = 1
    stop = Stop()
    stop.before(d, "last_updated")

    def child() -> None:
        # A new thread may get the number of the one that is no more.
        assert d._sync_owner is None
        everything_works(d)

    with stop.by(lambda: d["k"]):
        ended_well(fork(child))
    everything_works(d)


def subscriptions_are_being_changed(kind: str, place: Path) -> None:
    d = opened(kind, place)
    heard: list[Any] = []

    def child() -> None:
        d.on_change(lambda *change: heard.append(change))
        d["k"] = 1
        assert heard == [("k", MISSING, 1)]

    with held_by_a_thread(d._feed._edit):
        ended_well(fork(child))


def callbacks_are_being_delivered(kind: str, place: Path) -> None:
    d = opened(kind, place)
    heard: list[Any] = []
    stop = Stop()

    def hear(*change: Any) -> None:
        heard.append(change)
        stop.here()

    d.on_change(hear)

    def child() -> None:
        heard.clear()
        d["child"] = 2
        d.on_change(lambda *change: heard.append("another callback"))
        assert heard == [("child", MISSING, 2)]

    with stop.by(lambda: d.update(k=1)):
        ended_well(fork(child))
    d["l"] = 2
    heard_of = [key for key, _, _ in heard]
    assert heard_of == (["k", "child", "l"] if kind == "sqlite" else ["k", "l"])


def a_callback_forks(kind: str, place: Path) -> None:
    d = opened(kind, place)
    pids: list[int] = []

    def hear(key: Any, old: Any, new: Any) -> None:
        if key == "fork":
            pids.append(os.fork())

    d.on_change(hear)
    try:
        d["fork"] = 1
        del d["fork"]  # the parent, and the child once more: whoever comes first
    except KeyError:
        assert kind == "sqlite"
    if 0 in pids:
        end(lambda: d.update(k=1))
    ended_well(*pids)
    if kind == "sqlite":
        assert d["k"] == 1


def a_class_is_being_made(kind: str, place: Path) -> None:
    """The first dict of a class makes its syncing class, under a lock of the whole process."""
    native = MemoryDict if kind == "memory" else SqliteDict
    stop = Stop()

    class Meta(type):
        def __init__(cls, name: str, bases: Any, namespace: Any) -> None:
            super().__init__(name, bases, namespace)
            stop.here()

    class First(native, metaclass=Meta):  # type: ignore[misc,valid-type]  # one of two
        pass

    class Second(native):  # type: ignore[misc,valid-type]  # one of two
        pass

    arguments = () if kind == "memory" else (place / "x.sqlite",)

    def child() -> None:
        d = Second(*arguments)
        d["k"] = 1
        everything_works(d)

    with stop.by(lambda: First(*arguments)):
        ended_well(fork(child))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    "scenario",
    [
        copy_lock_is_held,
        apply_is_half_done,
        sync_mutex_is_held,
        subscriptions_are_being_changed,
        callbacks_are_being_delivered,
        a_callback_forks,
        a_class_is_being_made,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_a_thread_of_the_parent_holds_what_the_child_needs(
    scenario: Callable[[str, Path], None], kind: str, tmp_path: Path
) -> None:
    run(scenario, kind, tmp_path)


# -- SQLite ---------------------------------------------------------------------------------------


def transaction_is_open(place: Path) -> None:
    """SQLite keeps a process's locks in memory: a child that inherited one would wait for ever."""
    d = opened("sqlite", place)
    d["k"] = 1
    stop = Stop()
    in_transaction: list[bool] = []
    original = d._stamp

    def stopping(connection: sqlite3.Connection) -> Any:
        if threading.current_thread() is stop.thread:
            in_transaction.append(connection.in_transaction)
        stop.here()
        return original(connection)

    d._stamp = stopping
    d._known = None
    # The transaction ends when the fork has begun, whether the fork waits for it or not.
    os.register_at_fork(before=stop.goes_on.set)
    with stop.by(lambda: d.update(parent=1)):
        child = fork(lambda: d.update(child=1))
    ended_well(child)
    assert in_transaction[0]
    assert d == {"k": 1, "parent": 1, "child": 1}
    sound(place)


def snapshot_is_open(place: Path) -> None:
    d, other = opened("sqlite", place, autosync=False), opened("sqlite", place)
    other["k"] = 1
    stop = Stop()
    stop.before(sqlitereads, "unpacked")  # in the read transaction of the delta
    original = d.last_updated
    d.last_updated = lambda: other.last_updated()
    d.sync()
    other["k"] = 2
    checkpointed, read = Signal(), Signal()

    def child() -> None:
        d.last_updated = original
        assert other["k"] == 2
        connection = plain(place)
        connection.execute("BEGIN")
        before = connection.execute("SELECT key, value FROM durabledict_entries").fetchall()
        read.give()
        checkpointed.wait()
        after = connection.execute("SELECT key, value FROM durabledict_entries").fetchall()
        connection.close()
        assert before == after
        d["child"] = 1

    os.register_at_fork(before=stop.goes_on.set)
    with stop.by(d.sync):
        pid = fork(child)
        read.wait()
        for number in range(50):
            other[str(number)] = "x" * 1000
        # Not to the end: the child still reads.
        plain(place).execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        other.clear()
        checkpointed.give()
    ended_well(pid)
    d.last_updated = original
    d.sync()
    assert d == {"child": 1}
    sound(place)


def parent_closes(place: Path) -> None:
    """The last to close a file in WAL mode removes the log: it must know of the child."""
    d = opened("sqlite", place)
    d["k"] = 1
    child_is_there, closed = Signal(), Signal()

    def child() -> None:
        assert d["k"] == 1
        d["before"] = 1
        child_is_there.give()
        closed.wait()
        d["after"] = 1
        assert d == {"k": 1, "before": 1, "after": 1}

    pid = fork(child)
    child_is_there.wait()
    d.close()
    closed.give()
    ended_well(pid)
    assert opened("sqlite", place) == {"k": 1, "before": 1, "after": 1}
    sound(place)


def parent_closes_and_opens_again(place: Path) -> None:
    """Whoever opens a file first makes its shared memory new: it must know of the child."""
    d = opened("sqlite", place)
    d["k"] = 0
    turn_of_child, turn_of_parent = Signal(), Signal()

    def child() -> None:
        for _ in range(5):
            turn_of_child.wait()
            d.compute("k", lambda value: value + 1)
            turn_of_parent.give()

    pid = fork(child)
    d.close()
    for number in range(5):
        turn_of_child.give()
        turn_of_parent.wait()
        with opened("sqlite", place) as again:
            assert again["k"] == 2 * number + 1
            again.compute("k", lambda value: value + 1)
    ended_well(pid)
    assert opened("sqlite", place) == {"k": 10}
    sound(place)


def nothing_of_the_parents_is_used(how: str, place: Path) -> None:
    reads, writes = os.pipe()

    class Recording(Connection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.process = os.getpid()
            super().__init__(*arguments, **named)

        def _note(self, name: str) -> None:
            if os.getpid() != self.process:
                os.write(writes, f"{name} ".encode())

        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            self._note("execute")
            return super().execute(*arguments)

        def executemany(self, *arguments: Any) -> sqlite3.Cursor:
            self._note("executemany")
            return super().executemany(*arguments)

        def close(self) -> None:
            self._note("close")
            super().close()

        def __del__(self) -> None:
            if not self.is_shut:
                self._note("finalizer")

    vars(sqliteconnection)["Connection"] = Recording  # what the file opens from now on
    d, dropped = opened("sqlite", place), opened("sqlite", place, keyspace="dropped")
    d["k"] = 1
    parked = Stop()

    def thread() -> None:
        d["thread"] = 1
        parked.here()
        d.compute("thread", lambda value: value + 1)

    with parked.by(thread):
        pid = os.fork()
        if pid == 0:
            parked.reached.clear()
            assert d == {"k": 1, "thread": 1}
            del dropped
            d["child"] = 1
            if how == "closes":
                d.close()
            if how == "_exit":
                os._exit(0)
            sys.exit()
        ended_well(pid)
        d["parent"] = 1
        dropped["k"] = 1
    assert d == {"k": 1, "thread": 2, "child": 1, "parent": 1}
    os.close(writes)
    assert os.read(reads, 1000) == b""
    vars(sqliteconnection)["Connection"] = Connection
    d.close()
    dropped.close()
    sound(place)


def plain(place: Path) -> sqlite3.Connection:
    return sqlite3.connect(place / "x.sqlite", isolation_level=None, timeout=PATIENCE)


def sound(place: Path) -> None:
    """Check the file, and that nobody's lock was left in it."""
    connection = plain(place)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
    connection.close()


def parent_loads_before_it_forks_workers(place: Path) -> None:
    d = opened("sqlite", place)
    d["hits"] = 0
    watched = opened("sqlite", place, keyspace="watched", autosync=False)
    done, all_done = Signal(), Signal()
    workers = {f"worker {number}" for number in range(4)}

    def work(number: int) -> None:
        assert d["hits"] >= 0
        for _ in range(25):
            d.compute("hits", lambda hits: hits + 1)
        d[f"worker {number}"] = os.getpid()
        watched[f"worker {number}"] = os.getpid()
        done.give()
        all_done.wait()
        assert d["hits"] == 100
        assert {*d} == {"hits", *workers}
        watched.sync()
        assert {*watched} == workers

    pids: dict[int, int] = {}
    for number in range(4):
        pids[number] = fork(partial(work, number))
    done.wait(4)
    all_done.give(4)
    ended_well(*pids.values())
    assert d == {"hits": 100, **{f"worker {number}": pid for number, pid in pids.items()}}
    sound(place)


def grandchildren(place: Path) -> None:
    d = opened("sqlite", place)
    d["n"] = 0

    def generation(left: int) -> None:
        d.compute("n", lambda n: n + 1)
        pids = [fork(partial(generation, left - 1)) for _ in range(2)] if left else []
        d.compute("n", lambda n: n + 1)
        ended_well(*pids)
        d.compute("n", lambda n: n + 1)

    generation(2)
    assert d == {"n": 21}
    sound(place)


def child_closes(place: Path) -> None:
    d = opened("sqlite", place)
    d["k"] = 1

    def child() -> None:
        used: list[Connection] = []

        def use() -> None:
            with d._file.use() as connection:
                used.append(connection)
            assert d["k"] == 1

        use()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert [connection.is_shut for connection in used] == [False, True]
        d.close()
        assert [connection.is_shut for connection in used] == [True, True]

    ended_well(fork(child))
    d["k"] = 2
    d.close()
    sound(place)


def a_closed_dict_stays_closed(place: Path) -> None:
    d = opened("sqlite", place)
    d["k"] = 1
    d.close()

    def child() -> None:
        assert d["k"] == 1
        with pytest.raises(RuntimeError, match="closed"):
            d["k"] = 2

    ended_well(fork(child))


def forked_past_the_hooks(place: Path) -> None:
    """As an embedding C program does it; SQLite would take the parent's locks for the child's."""
    d = opened("sqlite", place)
    d["k"] = 1
    assert d["k"] == 1
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        assert d["k"] == 1  # nothing was written since, and the file was looked at a moment ago
        d._file.index.look_at = -math.inf  # a second later
        for use in (lambda: d["k"], lambda: d.update(child=1), d.sync):
            with pytest.raises(RuntimeError, match="fork hooks"):
                use()
        os._exit(0)
    ended_well(child)
    assert d == {"k": 1}


def a_fork_hook_uses_a_dict(place: Path) -> None:
    """One that runs while no connection may be opened gets an error and does not hang."""
    d = opened("sqlite", place)
    d["k"] = 1
    gate = sqliteconnection._gate
    gate.before_fork()
    try:
        with pytest.raises(RuntimeError, match="fork hook"):
            d["k"]
    finally:
        gate.after_fork_in_parent()
    assert d == {"k": 1}


@pytest.mark.parametrize(
    "scenario",
    [
        forked_past_the_hooks,
        a_fork_hook_uses_a_dict,
        transaction_is_open,
        snapshot_is_open,
        parent_closes,
        parent_closes_and_opens_again,
        parent_loads_before_it_forks_workers,
        grandchildren,
        child_closes,
        a_closed_dict_stays_closed,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_an_sqlite_file_is_shared_with_the_child(
    scenario: Callable[[Path], None], tmp_path: Path
) -> None:
    run(scenario, tmp_path)


@pytest.mark.parametrize("how", ["exits", "_exit", "closes"])
def test_the_child_neither_uses_nor_closes_what_the_parent_opened(how: str, tmp_path: Path) -> None:
    run(nothing_of_the_parents_is_used, how, tmp_path)


# -- memory ---------------------------------------------------------------------------------------


def storage_is_locked(place: Path) -> None:
    d = opened("memory", place)
    d["k"] = 1
    with held_by_a_thread(d.storage.changed):
        ended_well(fork(partial(everything_works, d)))
    everything_works(d)


def writers_take_turns(place: Path) -> None:
    """Without compare-and-set in the store, a writer holds a lock while it asks."""
    d = FourMethods(Table())
    d["k"] = 1
    stop = Stop()
    stop.before(d, "persist")

    def child() -> None:
        vars(d).pop("persist")
        d["k"] = 2
        assert d.setdefault("l", 3) == 3
        assert d == {"k": 2, "l": 3}

    with stop.by(lambda: d.update(parent=1)):
        ended_well(fork(child))
    assert d == {"k": 1, "parent": 1}


def commit_is_half_done(place: Path) -> None:
    """The parent's commit may have written its entries, and not yet said which."""
    stop = Stop()

    class Slow(MemoryStorage):
        def commit(self, written: Any, removed: Any) -> tuple[object, ...]:
            self.entries.update(written)
            stop.here()
            return super().commit(written, removed)

    storage = Slow()
    writer = MemoryDict[str, int](storage=storage)
    readers = [MemoryDict[str, int](storage=storage, autosync=mode) for mode in (True, False)]
    writer["k"] = 1
    for reader in readers:
        reader.sync()

    def child() -> None:
        for reader in readers:
            reloads = reader.stats.reloads
            reader.sync()
            assert reader == {"k": 2}
            assert reader.stats.reloads == reloads + 1
            writer["k"] = 3
            reader.sync()
            assert reader == {"k": 3}
            assert reader.stats.reloads == reloads + 1
            writer["k"] = 2

    with stop.by(lambda: writer.update(k=2)):
        ended_well(fork(child))
    assert readers[0] == {"k": 2}


@pytest.mark.parametrize(
    "scenario",
    [storage_is_locked, commit_is_half_done, writers_take_turns],
    ids=lambda scenario: scenario.__name__,
)
def test_a_thread_of_the_parent_uses_the_memory_storage(
    scenario: Callable[[Path], None], tmp_path: Path
) -> None:
    run(scenario, tmp_path)


# -- watches --------------------------------------------------------------------------------------


def watch_restarts(kind: str, place: Path) -> None:
    d, other = opened(kind, place, autosync=False), opened(kind, place)
    other["k"] = 1
    changed = threading.Event()
    heard: list[Any] = []

    def hear(*change: Any) -> None:
        heard.append(change)
        changed.set()

    d.on_change(hear)
    # The interval is too long to help: the thread itself has to hear of the change.
    watch = d.watch(interval=2 * PATIENCE)
    assert changed.wait(PATIENCE)
    assert not is_syncing(d)
    child_watches = Signal()

    def child() -> None:
        heard.clear()
        changed.clear()
        assert is_syncing(d)
        assert not watch.running
        assert d["k"] == 1
        assert not is_syncing(d)
        child_watches.give()
        if kind == "memory":
            other["k"] = 2
        assert changed.wait(PATIENCE)
        assert heard == [("k", 1, 2)]
        assert d["k"] == 2
        assert not is_syncing(d)
        d.close()

    pid = fork(child)
    child_watches.wait()
    changed.clear()
    other["k"] = 2
    assert changed.wait(PATIENCE)
    ended_well(pid)
    assert watch.running
    assert heard == [("k", MISSING, 1), ("k", 1, 2)]
    d.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_the_childs_watch_restarts_at_its_first_read(kind: str, tmp_path: Path) -> None:
    run(watch_restarts, kind, tmp_path)


def watched() -> tuple[Any, Any]:
    """A dict with a watch that waits, and the watch."""
    d: Any = MemoryDict(autosync=False)
    waits = threading.Event()
    original = d.wait

    def wait(since: Any, timeout: float) -> bool:
        waits.set()
        return bool(original(since, timeout))

    d.wait = wait
    watch = d.watch(interval=4 * PATIENCE)
    assert waits.wait(PATIENCE)
    return d, watch


def watch_restarts_once(place: Path) -> None:
    uses: list[Callable[[Any], object]] = [
        lambda d: d.get("k"), lambda d: len(d), lambda d: list(d), lambda d: d.sync(),
    ]  # fmt: skip
    for use in uses:
        d, watch = watched()

        def child(d: Any = d, watch: Any = watch, use: Any = use) -> None:
            assert not watch.running
            use(d)
            assert watch.running
            assert not is_syncing(d)
            first = watch._thread
            for again in uses:
                again(d)
            assert watch._thread is first

        ended_well(fork(child))
        d.close()


def inherited_handle_stops_the_restarted_watch(place: Path) -> None:
    d, watch = watched()
    inherited = watch._stopping

    def child() -> None:
        d.get("k")
        assert watch._stopping is not inherited  # whose lock the parent's thread may have held
        thread = watch._thread
        assert thread.is_alive()
        watch.stop()
        assert not thread.is_alive()
        assert not watch.running
        d.get("k")
        assert not watch.running

    ended_well(fork(child))
    assert watch.running
    d.close()


def watch_is_replaced_in_the_child(place: Path) -> None:
    d, watch = watched()

    def child() -> None:
        again = d.watch(interval=4 * PATIENCE)
        d.get("k")
        assert again.running
        assert not watch.running
        assert threading.active_count() == 2
        d.close()
        assert threading.active_count() == 1

    ended_well(fork(child))
    d.close()


def watch_that_was_stopped_does_not_come_back(place: Path) -> None:
    d, watch = watched()
    watch.stop()

    def child() -> None:
        assert not is_syncing(d)
        d.get("k")
        d.sync()
        assert not watch.running
        assert threading.active_count() == 1

    ended_well(fork(child))
    d.close()


def watch_is_interrupted_in_the_parent(place: Path) -> None:
    """The interrupt is for the parent's thread: the child's would spin."""
    d, _ = watched()
    d._interrupted.set()

    def child() -> None:
        d.get("k")
        assert not d._interrupted.is_set()

    ended_well(fork(child))
    d.close()


@pytest.mark.parametrize(
    "scenario",
    [
        watch_restarts_once,
        inherited_handle_stops_the_restarted_watch,
        watch_is_replaced_in_the_child,
        watch_that_was_stopped_does_not_come_back,
        watch_is_interrupted_in_the_parent,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_the_handle_of_a_watch_goes_on_working(
    scenario: Callable[[Path], None], tmp_path: Path
) -> None:
    run(scenario, tmp_path)


def test_dicts_that_are_gone_are_not_marked() -> None:
    d = MemoryDict[str, int]()
    identity = id(d)
    assert forking._living[identity]() is d
    del d
    gc.collect()
    assert identity not in forking._living
