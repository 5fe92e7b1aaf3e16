"""SqliteDict where something goes wrong, or somebody else is at work, in real processes.

Processes that are killed or stopped, full disks, locks that do not go away, and other connections
that check and tidy the file. Backups are in test_sqlite_backups.py, what other programs write in
test_sqlite_programs.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from durabledict import SqliteDict
from durabledict.sqliteschema import COMMITS_KEPT, TRIM_EACH

from .counters import Counter
from .scenarios import Signal, ended_well, fork
from .sqliteprocesses import (
    Other,
    beside,
    execute,
    file_of,
    items,
    open_mine,
    reloads,
    sound,
    stored,
    until,
    use,
    write_mine,
)
from .sqlitewatch import plain
from .test_processes import PATIENCE, READS, opened, processes, publish, spawning

# -- SIGKILL --------------------------------------------------------------------------------------


class Model(dict[int, Any]):
    """A dict that has the one method more that `write` needs."""

    def replace_all(self, entries: dict[int, Any]) -> None:
        for key in [key for key in self if key not in entries]:
            del self[key]
        self.update(entries)


def write(number: int, d: Any) -> None:
    """Do the write of this number: one transaction, the same for a SqliteDict and for a model."""
    chance = Random(number)

    def entry() -> tuple[int, Any]:
        return chance.randrange(40), (number, bytes(chance.randrange(3000)))

    kind = chance.choice(["set", "set", "update", "update", "remove", "replace"])
    if kind == "remove" and d:
        del d[chance.choice(sorted(d))]
    elif kind == "update":
        d.update(dict(entry() for _ in range(10)))
    elif kind == "replace":
        d.replace_all(dict(entry() for _ in range(20)))
    else:
        key, value = entry()
        d[key] = value


def write_until_killed(place: Path, done: int) -> None:
    acknowledged = Counter(place / "acknowledged")
    with opened(place, autosync=False) as d:
        if done % 2:
            # So that many are killed in the middle of a checkpoint.
            with d._file.use() as connection:
                connection.rows("PRAGMA wal_autocheckpoint = 5")
        for number in count(done + 1):
            write(number, d)
            acknowledged.value = number


def fork_writer(place: Path, done: int) -> int:
    """Start a writer in a process that has imported everything and opened nothing: it is cheap."""
    pid = os.fork()
    if pid == 0:
        try:
            write_until_killed(place, done)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid


def kill(pid: int) -> int:
    """Kill a child of this process; return how it ended."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def writers_of(entries: list[tuple[Any, Any]]) -> list[tuple[Any, int]]:
    """For each key the number of the write that it is from: short enough to be shown."""
    return [(key, number) for key, (number, _) in entries]


def kill_many(place: Path, times: int, *, readers: bool) -> None:
    """Kill writers, and compare with a model after each.

    :param readers: whether two dicts are open all the time: without them the next to open the file
        has to recover it

    """
    acknowledged = Counter(place / "acknowledged")
    chance = Random(times)
    model = Model()
    done = 0
    with ExitStack() as stack:
        nursery = stack.enter_context(Other())
        lasting = [
            stack.enter_context(opened(place, autosync=autosync))
            for autosync in ((True, False) if readers else ())
        ]
        for _ in range(times):
            begun = acknowledged.value = done
            pid = nursery(fork_writer, place, done)
            if chance.random() < 0.5:
                target = begun + chance.randrange(1, 60)
                until(partial(acknowledged.has_come_to, target))
            else:
                # Also while it opens the file: at a time, since nothing tells of these moments.
                time.sleep(chance.uniform(0.0, 0.02))
            assert nursery(kill, pid) == -signal.SIGKILL
            done = acknowledged.value
            for number in range(begun + 1, done + 1):
                write(number, model)
            found = stored(place, autosync=False)
            if found != list(model.items()):
                # The last one may have been done, wholly, and not acknowledged.
                done += 1
                write(done, model)
            assert writers_of(found) == writers_of(list(model.items())), f"at {done}"
            assert found == list(model.items())
            for reader in lasting:
                if not reader.autosync:
                    reader.sync()
                assert list(reader.items()) == found
            sound(place)
            if lasting:
                # The dead one's locks are gone, and what is written now has a history.
                done += 1
                write(done, model)
                write(done, chance.choice(lasting))
    assert done > 5 * times
    assert stored(place) == list(model.items())


@pytest.mark.parametrize("readers", [True, False], ids=["with readers", "alone"])
def test_sigkill_at_any_moment_leaves_all_that_was_acknowledged(place: Path, readers: bool) -> None:
    kill_many(place, 100, readers=readers)


@pytest.mark.long
@pytest.mark.parametrize("readers", [True, False], ids=["with readers", "alone"])
def test_sigkill_a_thousand_times(place: Path, readers: bool) -> None:
    kill_many(place, 1000, readers=readers)


# -- other connections ----------------------------------------------------------------------------


def test_the_journal_mode_cannot_be_switched_while_a_dict_is_open(place: Path) -> None:
    with Other() as program:
        with Other() as user:
            user(open_mine, "d", place, {})
            user(write_mine, "d", {"k": 1})
            program(execute, place, "PRAGMA busy_timeout = 10")
            for mode in ("DELETE", "TRUNCATE", "MEMORY", "OFF"):
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    program(execute, place, f"PRAGMA journal_mode = {mode}")
            assert user(items, "d") == [("k", 1)]
        # Its process is gone, and so are all its connections.
        assert program(execute, place, "PRAGMA journal_mode = DELETE") == [("delete",)]
        assert not any(path.exists() for path in beside(place))
        with opened(place) as d:
            with plain(file_of(place)) as connection:
                assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
            assert d == {"k": 1}
            d["k"] = 2
            assert beside(place)[0].exists()


def checkpoint(place: Path, stop: Any) -> int:
    rounds = Counter(place / "rounds")
    with plain(file_of(place)) as connection:
        while not stop.is_set():
            for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
                connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            rounds.value += 1
    return rounds.value


def vacuum(place: Path, stop: Any) -> int:
    rounds = Counter(place / "rounds")
    with plain(file_of(place)) as connection:
        while not stop.is_set():
            connection.execute("VACUUM").fetchall()
            rounds.value += 1
    return rounds.value


def churn(place: Path, stop: Any) -> int:
    """Write what a model can tell, with entries that go and come back."""
    with opened(place, keyspace="churned", autosync=False) as d:
        number = 0
        while not stop.is_set():
            number += 1
            write(number, d)
    return number


@pytest.mark.parametrize("disturb", [checkpoint, vacuum], ids=lambda disturb: disturb.__name__)
def test_no_acknowledged_write_is_missed_beside(
    place: Path, disturb: Callable[[Path, Any], int]
) -> None:
    names = ["first", "second"]
    counters = [Counter(place / name) for name in names]
    rounds = Counter(place / "rounds")
    with (
        processes() as others,
        opened(place) as d,
        opened(place, autosync=False) as manual,
        opened(place, keyspace="churned") as churned,
    ):
        d.update(dict.fromkeys(names, 0))
        stop = spawning.Event()
        for name in names:
            others.start(publish, place, name, stop)
        others.start(churn, place, stop)
        others.start(disturb, place, stop)
        until(lambda: all(counter.value for counter in counters))
        until(lambda: rounds.value)
        reads, begun = 0, rounds.value
        # Until the writers and the other one have come to do something in between.
        while reads < 1000 or rounds.value < begun + 5 or d.stats.syncs < 30:
            for read in READS.values():
                for name, counter in zip(names, counters, strict=True):
                    acknowledged = counter.value
                    assert read(d, name) >= acknowledged
                    reads += 1
        stop.set()
        first, second, last, _ = others.results()
        manual.sync()
        expected = [("first", first), ("second", second)]
        assert list(d.items()) == list(manual.items()) == stored(place) == expected
        model = Model()
        for number in range(1, last + 1):
            write(number, model)
        assert list(churned.items()) == stored(place, keyspace="churned") == list(model.items())
    sound(place)


# -- a full disk ----------------------------------------------------------------------------------

# It does not fit into SQLite's cache, so that pages go to the disk before the COMMIT.
BIG = b"-" * 5_000_000

LITTLE = 200_000


@contextmanager
def few_pages(place: Path, d: Any) -> Iterator[None]:
    """The database itself must not grow."""
    with d._file.use() as connection:
        ((pages,),) = connection.rows("PRAGMA page_count")
        connection.rows(f"PRAGMA max_page_count = {pages + 10}")
    yield
    with d._file.use() as connection:
        connection.rows("PRAGMA max_page_count = 4294967294")


@contextmanager
def small_files(place: Path, d: Any) -> Iterator[None]:
    """No file of this process may grow beyond a limit."""
    sizes = [path.stat().st_size for path in (file_of(place), *beside(place))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + LITTLE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def ballast(place: Path, d: Any) -> Iterator[None]:
    """Nearly all of the file system is taken."""
    path = place / "ballast"
    with path.open("wb", buffering=0) as file:
        size = 0
        try:
            while True:
                size += file.write(bytes(1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(size - LITTLE)
    yield
    path.unlink()


def mount_small(place: Path) -> bool:
    """Mount a small file system for this process alone; tell whether that was allowed."""
    clone_newns, ms_rec, ms_private = 0x20000, 0x4000, 1 << 18
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(
        libc.unshare(clone_newns) == 0
        and libc.mount(b"none", b"/", None, ms_rec | ms_private, None) == 0
        and libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=32m") == 0
    )


def fill(place: Path, no_room: Callable[[Path, Any], Any]) -> None:
    with opened(place) as strict, opened(place, autosync=False) as manual:
        strict.update({number: number for number in range(100)})
        for d in (strict, manual):
            d.sync()
            # Room that is free inside the files would do.
            with plain(file_of(place)) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            before = list(d.items())
            with no_room(place, d):
                for big in ({"big": BIG}, {0: 1, 1: BIG}):
                    try:
                        d.update(big)
                    except sqlite3.OperationalError:
                        pass
                    else:
                        raise AssertionError("there was room")
                    assert list(d.items()) == list(d.durables().items()) == before
                    assert d.get(0) == 0
                    assert "big" not in d
                    assert d.last_updated() == strict.last_updated()
                # For little ones there still is room.
                del d[len(before) // 2]
                d[0] = 0
                d["little"] = "-" * 100
                before = [(key, value) for key, value in before if key != len(before) // 2]
                before = [(k, v) for k, v in before if k != "little"] + [("little", "-" * 100)]
                assert list(d.items()) == list(d.durables().items()) == before
            sound(place)
            d["big"] = BIG
            assert strict["big"] == d["big"] == BIG
            del d["big"]
            del d["little"]
            strict.sync()
            manual.sync()
            assert list(strict.items()) == list(manual.items()) == before[:-1]
        assert stored(place) == before[:-1]
    sound(place)


@pytest.mark.parametrize("no_room", [few_pages, small_files], ids=["pages", "file size"])
def test_a_write_for_which_there_is_no_room_leaves_no_trace(
    place: Path, no_room: Callable[[Path, Any], Any]
) -> None:
    with Other() as other:  # since the limit is the whole process's
        other(fill, place, no_room)


@pytest.mark.long  # to mount is forbidden in many a container; the test above is for these
def test_a_full_disk(tmp_path: Path) -> None:
    with Other() as other:
        assert other(mount_small, tmp_path), "this machine forbids to mount a file system"
        other(fill, tmp_path, ballast)


# -- a reader that slept --------------------------------------------------------------------------


def state_of_process(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def stopped(process: Other) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: state_of_process(process.pid) == "T")
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_reader_that_slept_through_the_trimming_reloads(place: Path) -> None:
    names = ["strict", "manual"]
    with Other() as reader, opened(place, autosync=False) as d:
        d.update({number: number for number in range(50)})
        for name in names:
            reader(open_mine, name, place, {"autosync": name == "strict"})
            reader(items, name)
        begun = [reader(reloads, name) for name in names]
        with stopped(reader):
            for number in range(10):
                d[number] = "a few"
        for name in names:
            reader(use, name, "sync")
            assert reader(items, name) == list(d.items()) == stored(place)
        assert [reader(reloads, name) for name in names] == begun
        with stopped(reader):
            for number in range(3100):
                d[number % 50] = number, "many"
                if number % 100 == 0:
                    del d[number % 50]
        assert "many" in d[49]
        with plain(file_of(place)) as connection:
            ((left, oldest, newest),) = connection.execute(
                "SELECT count(*), min(version), max(version) FROM durabledict_commits"
            )
        assert COMMITS_KEPT <= left <= COMMITS_KEPT + TRIM_EACH
        assert oldest > newest - 1500
        # The strict one finds out by itself.
        assert reader(items, "strict") == list(d.items())
        reader(use, "manual", "sync")
        assert reader(items, "manual") == list(d.items()) == stored(place)
        assert [reader(reloads, name) for name in names] == [number + 1 for number in begun]


# -- closed by the last, opened again -------------------------------------------------------------


def open_write_close(place: Path, number: int) -> None:
    with opened(place) as d:
        d["n"] = number


def test_an_idle_reader_sees_what_comes_and_goes(place: Path) -> None:
    with Other() as other, opened(place) as strict, opened(place, autosync=False) as manual:
        for number in range(20):
            other(open_write_close, place, number)
            assert strict["n"] == number
            assert manual.sync() is True
            assert manual["n"] == number
        for number in range(20, 30):
            # This process comes and goes, too.
            with opened(place) as here:
                other(open_write_close, place, number)
                assert here["n"] == number
            assert strict["n"] == number
        strict.close()
        manual.close()
        for number in range(30, 40):
            with opened(place) as here:
                assert here["n"] == number - 1
                other(open_write_close, place, number)
                assert here["n"] == number
            other(open_write_close, place, number)
    sound(place)


def test_a_log_that_begins_anew_is_not_taken_for_the_old(place: Path) -> None:
    """After each checkpoint it has as many pages as before it: only its salts differ."""
    with Other() as other, opened(place) as strict, opened(place, autosync=False) as manual:
        other(open_mine, "d", place, {})
        other(write_mine, "d", {"n": 0, "m": 0})
        for number in range(1, 20):
            other(execute, place, "PRAGMA wal_checkpoint(TRUNCATE)")
            # As long a transaction as the last one, of which nobody here has heard.
            other(write_mine, "d", {"n": number})
            assert strict["n"] == number
            assert manual.sync() is True
            assert manual["n"] == number


def fork_once() -> None:
    ended_well(fork(lambda: None))


def test_an_open_dict_whose_log_was_removed_by_another_process(place: Path) -> None:
    """A fork closes all connections: then another process can be the last to close the file.

    It removes the log and the shared memory, and what it makes anew may look like the old.

    """
    with Other() as reader, Other() as writer:
        writer(open_write_close, place, -1)
        for name in ("strict", "manual"):
            reader(open_mine, name, place, {"autosync": name == "strict"})
        for number in range(10):
            reader(fork_once)
            writer(open_write_close, place, ("first", number))
            assert not any(path.exists() for path in beside(place))
            writer(open_mine, "d", place, {})
            writer(write_mine, "d", {"n": number})
            assert reader(items, "strict") == [("n", number)]
            reader(use, "manual", "sync")
            assert reader(items, "manual") == [("n", number)]
            writer(write_mine, "d", {"n": ("again", number)})
            assert reader(items, "strict") == [("n", ("again", number))]
            writer(use, "d", "close")
    sound(place)


# -- forks ----------------------------------------------------------------------------------------


def fork_many(place: Path) -> list[int]:
    """Fork, and talk with the child through the dict; return how many descriptors are open."""
    descriptors = []
    to_child, to_parent = Signal(), Signal()
    with opened(place) as d:
        for number in range(20):
            d["parent"] = number

            def child(number: int = number) -> None:
                assert d["parent"] == number
                d["child"] = number
                to_parent.give()
                to_child.wait()
                assert d["parent"] == ("again", number)
                d["child"] = "again", number
                assert d == {"parent": ("again", number), "child": ("again", number)}

            pid = fork(child)
            to_parent.wait()
            assert d["child"] == number
            d["parent"] = "again", number
            to_child.give()
            ended_well(pid)
            assert d == {"parent": ("again", number), "child": ("again", number)}
            descriptors.append(len(os.listdir("/proc/self/fd")))
    return descriptors


def test_forks_in_a_row_leak_no_descriptor(place: Path) -> None:
    with Other() as other:
        descriptors = other(fork_many, place)
    assert len(descriptors) == 20
    assert set(descriptors[1:]) == {descriptors[0]}
    sound(place)


# -- locks ----------------------------------------------------------------------------------------


WRITERS = ("thread 0", "thread 1", "first process", "second process")

# On a busy machine, a process that has the lock may be kept from running for as long as a second.
TIMEOUT = 4.0


def write_together(d: SqliteDict[Any, Any], place: Path, name: str) -> int:
    """Write for longer than the timeout, and until all have written."""
    written = Counter(place / name)
    counters = [Counter(place / each) for each in WRITERS]
    ends = time.monotonic() + 1.2 * TIMEOUT
    number = 0
    while time.monotonic() < ends or not all(counter.has_come_to(5) for counter in counters):
        assert time.monotonic() < ends + PATIENCE, "one of them starves"
        number += 1
        d.update({(name, key): number for key in range(20)})
        written.value = number
    return number


def open_and_write_together(place: Path, name: str, start: Any) -> int:
    with SqliteDict[Any, Any](file_of(place), autosync=False, timeout=TIMEOUT) as d:
        start.wait(PATIENCE)
        return write_together(d, place, name)


def test_writers_together_for_longer_than_the_timeout(place: Path) -> None:
    """None of them is told that the database is locked, and none starves."""
    results: dict[str, int] = {}
    with processes() as others, SqliteDict[Any, Any](file_of(place), timeout=TIMEOUT) as d:
        start = spawning.Barrier(3)
        for name in WRITERS[2:]:
            others.start(open_and_write_together, place, name, start)
        start.wait(PATIENCE)

        def run(name: str) -> None:
            results[name] = write_together(d, place, name)

        threads = [threading.Thread(target=run, args=(name,)) for name in WRITERS[:2]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(results) == [*WRITERS[:2]]
        results.update(zip(WRITERS[2:], others.results(), strict=True))
        expected = {(name, key): number for name, number in results.items() for key in range(20)}
        assert d == dict(stored(place)) == expected


def test_a_lock_that_does_not_go_away(place: Path) -> None:
    with (
        Other() as program,
        SqliteDict[Any, Any](file_of(place), timeout=0.2) as strict,
        SqliteDict[Any, Any](file_of(place), timeout=0.2, autosync=False) as manual,
    ):
        strict["k"] = 1
        manual.sync()
        program(execute, place, "BEGIN IMMEDIATE")
        for d in (strict, manual):
            for action in (
                partial(d.update, k=2, l=2),
                partial(d.pop, "k"),
                partial(d.compute, "k", lambda k: k + 1),
                partial(d.replace_all, {}),
            ):
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    action()
            # Readers do not need the lock.
            assert d == {"k": 1}
        program(execute, place, "ROLLBACK")
        assert stored(place) == [("k", 1)]
        for d in (strict, manual):
            assert d.compute("k", lambda k: k + 1) == d["k"]
        assert stored(place) == [("k", 3)]
