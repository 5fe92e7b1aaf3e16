"""SqliteDict where something goes wrong, or somebody else is at work, in real processes.

Processes that are killed or stopped, backups that are restored, full disks, locks that do not go
away, and other programs that write, check and tidy the file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import math
import os
import pickle
import resource
import signal
import sqlite3
import struct
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from durabledict import JSONEncoding, SqliteDict
from durabledict.keys import encode_key
from durabledict.sqliteschema import COMMITS_KEPT, TRIM_EACH

from .counters import Counter
from .scenarios import Signal, ended_well, fork
from .test_processes import PATIENCE, READS, opened, processes, publish, spawning


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is such a one: thousands of fsyncs cost nothing there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def file_of(place: Path) -> Path:
    return place / "x.sqlite"


def beside(place: Path) -> list[Path]:
    """The two files that SQLite makes beside the file."""
    return [place / "x.sqlite-wal", place / "x.sqlite-shm"]


def plain(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE))


def sound(place: Path) -> None:
    """Check the file."""
    with plain(file_of(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def stored(place: Path, **options: Any) -> list[tuple[Any, Any]]:
    """What a dict that is opened now holds, in its order."""
    with opened(place, **options) as fresh:
        return list(fresh.items())


def until(condition: Callable[[], object]) -> None:
    """Ask again and again until it holds."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it does not come to that"
        time.sleep(0.002)


# -- other processes ------------------------------------------------------------------------------


class Other:
    """A process of its own that runs one function after the other, as it is told.

    Between two of them it does nothing, and keeps what they put into `mine`.

    """

    def __init__(self) -> None:
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.start(function, *arguments)
        return self.result()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._pipe.send((function, arguments))

    def result(self) -> Any:
        assert self._pipe.poll(PATIENCE), "the process hangs"
        good, outcome = self._pipe.recv()
        if not good:
            raise outcome
        return outcome

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _serve(pipe: Any) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            outcome = True, function(*arguments)
        except Exception as error:
            traceback.print_exc()  # the exception goes to the other side without it
            outcome = False, error
        pipe.send(outcome)


# What the functions below keep in their process.
mine: dict[str, Any] = {}


def open_mine(name: str, place: Path, options: dict[str, Any]) -> None:
    mine[name] = opened(place, **options)


def use(name: str, method: str, *arguments: Any) -> Any:
    return getattr(mine[name], method)(*arguments)


def items(name: str) -> list[tuple[Any, Any]]:
    return list(mine[name].items())


def reloads(name: str) -> int:
    stats = mine[name].stats
    return int(stats.reloads)


def write_mine(name: str, entries: dict[Any, Any]) -> None:
    for key, value in entries.items():
        mine[name][key] = value


def execute(place: Path, sql: str, *values: Any) -> list[Any]:
    """Run a statement on a connection that stays open, as a program without durabledict does."""
    connection = mine.get("plain")
    if connection is None:
        connection = mine["plain"] = sqlite3.connect(
            file_of(place), isolation_level=None, timeout=PATIENCE
        )
    rows: list[Any] = connection.execute(sql, values).fetchall()
    return rows


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


# -- a backup is restored -------------------------------------------------------------------------

# So many that each quarter has pages of its own.
KEYS = 200


def contents(state: str, keys: int = KEYS) -> dict[int, Any]:
    return {number: (state, number, "-" * 400) for number in range(keys)}


RESTORED = contents("restored")
# Half of it is in the file and half in the log: a log that is read over the backup is a mixture.
LOST = {**contents("lost"), **contents("lost later", KEYS // 4)}


def back_up(source: Path, target: Path) -> None:
    with plain(source) as reads, plain(target) as writes:
        reads.backup(writes)


def prepare(place: Path) -> None:
    """Make a backup, and then write what the restoring of it will undo."""
    with opened(place) as d:
        d.update(RESTORED)
        back_up(file_of(place), place / "backup.sqlite")
        d.update(contents("lost"))


def write_into_the_log(d: SqliteDict[Any, Any], place: Path) -> None:
    with plain(file_of(place)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number, value in contents("lost later", KEYS // 4).items():
        d[number] = value
    assert beside(place)[0].stat().st_size > 100_000
    assert d == LOST


def restore_into(place: Path) -> None:
    """With SQLite's own backup, into the live file."""
    back_up(place / "backup.sqlite", file_of(place))


def restore_by_name(place: Path) -> None:
    for path in beside(place):
        path.unlink()
    os.replace(place / "backup.sqlite", file_of(place))


def restore_by_name_alone(place: Path) -> None:
    """The old file's log, with what was not copied into the file, is left lying there."""
    os.replace(place / "backup.sqlite", file_of(place))
    assert all(path.exists() for path in beside(place))


class Followers:
    """A dict of each mode, and what they showed so far."""

    def __init__(self, place: Path) -> None:
        modes: dict[str, Any] = {"strict": True, "manual": False, "bounded": 0.05, "watched": False}
        self.dicts = {mode: opened(place, autosync=modes[mode]) for mode in modes}
        self.dicts["watched"].watch(interval=1.0)
        self._was_restored: set[str] = set()

    def look(self) -> dict[str, dict[Any, Any]]:
        """Return what each shows. It must be one of the two states, and not go back."""
        shown = {}
        for mode, d in self.dicts.items():
            if mode == "manual":
                d.sync()
            shown[mode] = copy = d.copy()
            of_state = {key: copy[key] for key in copy if isinstance(key, int)}
            if of_state == RESTORED:
                self._was_restored.add(mode)
            else:
                states = sorted({value[0] for value in of_state.values()})
                assert of_state == LOST, f"{mode} is a mixture of {states}"
                assert mode not in self._was_restored, f"{mode} went back"
        return shown

    def wait_lost(self) -> None:
        """Wait for what was written before anything is restored."""

        def all_have_it() -> bool:
            self.dicts["manual"].sync()
            return all(d.copy() == LOST for d in self.dicts.values())

        until(all_have_it)

    def wait_restored(self) -> None:
        until(lambda: self.look() and len(self._was_restored) == len(self.dicts))

    def wait_equal(self, expected: list[tuple[Any, Any]]) -> None:
        until(lambda: all(list(shown.items()) == expected for shown in self.look().values()))

    def write_later(self, name: str) -> None:
        for mode, d in self.dicts.items():
            for number in range(5):
                d[f"{name} {mode} {number}"] = number

    def close(self) -> None:
        for d in self.dicts.values():
            d.close()


def follow(place: Path) -> None:
    mine["followers"] = Followers(place)


@pytest.mark.parametrize(
    "restore",
    [restore_into, restore_by_name, restore_by_name_alone],
    ids=lambda restore: restore.__name__,
)
def test_a_backup_is_restored_under_open_dicts(
    place: Path, restore: Callable[[Path], None]
) -> None:
    prepare(place)
    with (
        Other() as operator,
        Other() as program,
        Other() as there,
        closing(Followers(place)) as here,
    ):
        there(follow, place)
        write_into_the_log(here.dicts["strict"], place)
        # Somebody reads an older state, so that no checkpoint can empty the log.
        program(execute, place, "BEGIN")
        program(execute, place, "SELECT count(*) FROM durabledict_entries")
        for number in range(KEYS // 4):
            here.dicts["strict"][number] = LOST[number]
        here.wait_lost()
        there(use, "followers", "wait_lost")
        there.start(use, "followers", "wait_restored")
        operator.start(restore, place)
        here.wait_restored()
        operator.result()
        there.result()
        here.write_later("here")
        there(use, "followers", "write_later", "there")
        expected = stored(place)
        later = {key for key, _ in expected if isinstance(key, str)}
        assert len(later) == len(expected) - KEYS == 40
        here.wait_equal(expected)
        there(use, "followers", "wait_equal", expected)
        sound(place)
    assert stored(place) == expected
    sound(place)


@pytest.mark.parametrize("autosync", [True, False])
def test_a_process_that_only_writes_notices_a_restored_backup_too(
    place: Path, autosync: bool
) -> None:
    """What it writes after that second is in the file of that name."""
    prepare(place)
    with Other() as operator, opened(place, autosync=autosync) as writer:
        writer["written"] = 0
        operator(restore_by_name, place)
        numbers = count(1)

        def is_in_the_file() -> bool:
            number = next(numbers)
            writer["written"] = number
            in_file = operator(stored_under, place, "written")
            assert in_file in (None, number)
            return in_file is not None

        until(is_in_the_file)
        writer.sync()
        expected: dict[Any, Any] = {**RESTORED, "written": writer["written"]}
        assert dict(stored(place)) == writer == expected
    sound(place)


def stored_under(place: Path, key: str) -> Any:
    return dict(stored(place)).get(key)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_backup_that_is_restored_as_a_connection_is_opened(
    place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the look at the file and the first read: the old log must not be read over it.

    To close such a connection would even write that log into the file, and destroy it.

    """
    prepare(place)
    with Other() as operator, opened(place) as d:
        write_into_the_log(d, place)
        connect: Any = sqlite3.connect
        threads: list[threading.Thread] = []
        shown: list[dict[Any, Any]] = []

        def restoring(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() not in threads:
                return connect(*arguments, **named)
            threads.clear()
            if moment == "before":
                operator(restore_by_name_alone, place)
            connection = connect(*arguments, **named)
            if moment == "after":
                operator(restore_by_name_alone, place)
            return connection

        def read() -> None:
            # A thread opens a connection of its own.
            d.sync(force=True)
            shown.append(d.copy())

        monkeypatch.setattr(sqlite3, "connect", restoring)
        thread = threading.Thread(target=read)
        threads.append(thread)
        thread.start()
        thread.join(PATIENCE)
        assert threads == []
        assert shown in ([LOST], [RESTORED]), "a mixture"
        until(lambda: d.copy() == RESTORED)
        sound(place)
    sound(place)


def look_at(path: Path) -> list[tuple[Any, Any]]:
    with SqliteDict[Any, Any](path) as d:
        return list(d.items())


def test_a_restored_backup_is_not_opened_beside_the_log_of_another_file(place: Path) -> None:
    """By a process that did not have the old file: it only sees who holds which locks."""
    prepare(place)
    with Other() as fresh, opened(place, autosync=False) as idle:
        write_into_the_log(idle, place)
        restore_by_name_alone(place)
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError, match=f"process {os.getpid()} still has"):
                fresh(look_at, file_of(place))
        # Whoever has the old file open mends it, as soon as he looks.
        idle._file.index.look_at = -math.inf
        assert idle.sync()
        assert dict(fresh(look_at, file_of(place))) == idle.copy() == RESTORED
    sound(place)


def remove(place: Path) -> None:
    for path in (file_of(place), *beside(place)):
        path.unlink()


def test_a_file_that_is_removed_is_an_outage_until_it_is_back(place: Path) -> None:
    prepare(place)
    with Other() as operator, opened(place) as strict, opened(place, autosync=False) as manual:
        operator(remove, place)

        def fails(action: Callable[[], object]) -> bool:
            try:
                action()
            except sqlite3.OperationalError:
                return True
            return False

        until(lambda: fails(lambda: strict[0]))
        until(lambda: fails(manual.sync))
        for d in (strict, manual):
            for action in (d.sync, partial(d.update, k=1), partial(d.pop, 0)):
                with pytest.raises(sqlite3.OperationalError):
                    action()
        # An empty file in its place would keep the one that comes back from being noticed.
        assert not file_of(place).exists()
        operator(os.replace, place / "backup.sqlite", file_of(place))
        until(lambda: not fails(lambda: strict[0]))
        until(lambda: not fails(manual.sync))
        assert strict == manual == RESTORED
        strict["k"] = 1
        manual["l"] = 2
        expected: dict[Any, Any] = {**RESTORED, "k": 1, "l": 2}
        assert strict == manual == dict(stored(place)) == expected
    sound(place)


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


# -- descriptors ----------------------------------------------------------------------------------

# struct flock of 64-bit Linux: type, whence, start, length, process.
FLOCK = "@hhqqi4x"

# Where SQLite has its locks: on the file a connection, on the shared memory everybody who maps it.
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510
DEAD_MAN_SWITCH = 128


def holder(path: Path, start: int, length: int) -> int:
    """Return the process, 0 for none, that keeps others from locking these bytes alone.

    For another process than the one that is looked at. To close the file, as this does, takes a
    process's own locks away.

    """
    with path.open("rb+") as file:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def holders(place: Path) -> list[int]:
    """Return who holds the file itself, and who the shared memory."""
    return [
        holder(file_of(place), SHARED_FIRST, SHARED_SIZE),
        holder(beside(place)[1], DEAD_MAN_SWITCH, 1),
    ]


def test_the_locks_are_held_as_long_as_a_dict_is_open(place: Path) -> None:
    """To close any descriptor of the file takes all locks of the process away (rule 1.3)."""
    with Other() as probe, opened(place) as d:
        held = [os.getpid()] * 2
        d["k"] = 1
        assert probe(holders, place) == held

        more = [opened(place), opened(place, keyspace="other"), opened(place, autosync=False)]
        assert probe(holders, place) == held
        more[0]["k"] = 2
        assert d["k"] == 2
        more.pop().close()
        assert probe(holders, place) == held
        del more[0]  # without close()
        assert probe(holders, place) == held

        def work() -> None:
            with opened(place) as own:
                written = own.compute("k", lambda k: k + 1)
                assert d["k"] >= written

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert probe(holders, place) == held
        assert d["k"] == 6

        with d.watch(interval=0.05):
            assert probe(holders, place) == held
        assert probe(holders, place) == held
        d.sync(force=True)

        # The library looks whether the file is still the one under its name.
        for each in (d, more[0]):
            each._file.index.look_at = -math.inf
            assert list(each) == (["k"] if each is d else [])
            assert each.sync() is False
        assert probe(holders, place) == held
        more.pop().close()
        assert d["k"] == 6
        assert probe(holders, place) == held


def open_and_close_past_sqlite(place: Path, name: str) -> None:
    with (place / name).open("rb"):
        pass


def test_a_program_that_closes_a_descriptor_drops_the_locks(place: Path) -> None:
    """It shows that the test above can fail, and why the page of caveats forbids it."""
    with Other() as probe, Other() as careless:
        careless(open_mine, "d", place, {})
        careless(write_mine, "d", {"k": 1})
        assert probe(holders, place) == [careless.pid] * 2
        careless(open_and_close_past_sqlite, place, "x.sqlite")
        assert probe(holders, place) == [0, careless.pid]
        careless(open_and_close_past_sqlite, place, "x.sqlite-shm")
        assert probe(holders, place) == [0, 0]


# -- writes of other programs ---------------------------------------------------------------------

INSERT = "INSERT INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)"
REPLACE = "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)"
UPDATE = "UPDATE durabledict_entries SET value = ? WHERE keyspace = ? AND key = ?"
RENAME = "UPDATE durabledict_entries SET key = ? WHERE keyspace = ? AND key = ?"
DELETE = "DELETE FROM durabledict_entries WHERE keyspace = ? AND key = ?"


class Edited:
    """A keyspace that another program edits, one that it does not, and their readers."""

    def __init__(self, place: Path, encoding: Any) -> None:
        options = {"encoding": encoding} if encoding is not None else {}
        self.place, self.options = place, options
        self.strict = opened(place, **options)
        self.manual = opened(place, autosync=False, **options)
        self.elsewhere = opened(place, keyspace="elsewhere", **options)

    def close(self) -> None:
        for d in (self.strict, self.manual, self.elsewhere):
            d.close()

    def check(self, expected: dict[Any, Any], *, ordered: bool = True) -> None:
        """All have the same, in the same order, and the elsewhere is as it was."""
        assert self.strict.copy() == expected
        assert self.manual.sync() is True
        assert self.manual.copy() == expected
        assert self.manual.sync() is False
        fresh = stored(self.place, **self.options)
        assert dict(fresh) == expected
        if ordered:
            assert list(self.strict.items()) == list(self.manual.items()) == fresh


@pytest.mark.parametrize("how", ["pickle", "JSON"])
def test_writes_of_another_program_are_seen(place: Path, how: str) -> None:
    encode: Any = pickle.dumps if how == "pickle" else json.dumps
    with (
        Other() as program,
        closing(Edited(place, None if how == "pickle" else JSONEncoding)) as edited,
    ):
        edited.strict.update({"a": 1, "b": 2, "c": 3, 4: 4})
        edited.elsewhere.update({"a": "elsewhere"})
        edited.manual.sync()
        stamp = edited.elsewhere.last_updated()
        begun = [d.stats.reloads for d in (edited.strict, edited.manual, edited.elsewhere)]

        program(execute, place, UPDATE, encode(["changed"]), "default", "a")
        edited.check({"a": ["changed"], "b": 2, "c": 3, 4: 4})
        program(execute, place, UPDATE, encode("four"), "default", encode_key(4))
        edited.check({"a": ["changed"], "b": 2, "c": 3, 4: "four"})
        program(execute, place, INSERT, "default", "new", encode("new"))
        edited.check({"a": ["changed"], "b": 2, "c": 3, 4: "four", "new": "new"})
        program(execute, place, DELETE, "default", "b")
        edited.check({"a": ["changed"], "c": 3, 4: "four", "new": "new"})
        # Removed and written again, so it goes to the end.
        program(execute, place, REPLACE, "default", "a", encode("replaced"))
        edited.check({"c": 3, 4: "four", "new": "new", "a": "replaced"})
        # Several of them are seen at once; and what was rolled back is not.
        program(execute, place, "BEGIN")
        program(execute, place, DELETE, "default", "c")
        program(execute, place, INSERT, "default", "c", encode("again"))
        program(execute, place, UPDATE, encode("last"), "default", "new")
        assert edited.strict["c"] == 3
        program(execute, place, "COMMIT")
        edited.check({4: "four", "new": "last", "a": "replaced", "c": "again"})
        program(execute, place, "BEGIN")
        program(execute, place, DELETE, "default", "c")
        program(execute, place, "ROLLBACK")
        assert edited.strict["c"] == "again"
        # A dict goes on from there.
        edited.strict["own"] = 1
        edited.check({4: "four", "new": "last", "a": "replaced", "c": "again", "own": 1})
        program(execute, place, DELETE, "default", encode_key(4))
        edited.check({"new": "last", "a": "replaced", "c": "again", "own": 1})

        assert [d.stats.reloads for d in (edited.strict, edited.manual, edited.elsewhere)] == begun
        assert edited.elsewhere.last_updated() == stamp
        assert edited.elsewhere == {"a": "elsewhere"}
        with opened(place, keyspace="elsewhere", **edited.options) as fresh:
            assert fresh == {"a": "elsewhere"}


def test_a_key_that_another_program_renames(place: Path) -> None:
    with Other() as program, closing(Edited(place, None)) as edited:
        edited.strict.update(a=1, b=2, c=3)
        edited.manual.sync()
        begun = [edited.strict.stats.reloads, edited.manual.stats.reloads]
        program(execute, place, RENAME, "z", "default", "c")
        edited.check({"a": 1, "b": 2, "z": 3})
        # In the middle: a fresh dict has it at the place of its row.
        program(execute, place, RENAME, "y", "default", "a")
        edited.check({"y": 1, "b": 2, "z": 3}, ordered=False)
        # Over to another keyspace.
        sql = "UPDATE durabledict_entries SET keyspace = 'elsewhere' WHERE key = 'b'"
        program(execute, place, sql)
        edited.check({"y": 1, "z": 3}, ordered=False)
        assert edited.elsewhere == {"b": 2}
        assert [edited.strict.stats.reloads, edited.manual.stats.reloads] == begun


def test_a_renamed_key_goes_to_the_end(place: Path) -> None:
    """Local copies have the same order everywhere."""
    with Other() as program, closing(Edited(place, None)) as edited:
        edited.strict.update(a=1, b=2, c=3)
        edited.manual.sync()
        program(execute, place, RENAME, "y", "default", "a")
        edited.check({"y": 1, "b": 2, "c": 3})


@pytest.mark.parametrize("rows", [500, 12_000])
def test_another_program_updates_all_rows_at_once(place: Path, rows: int) -> None:
    with Other() as program, closing(Edited(place, JSONEncoding)) as edited:
        edited.strict.update({str(number): number for number in range(rows)})
        edited.elsewhere["0"] = 0
        edited.manual.sync()
        begun = edited.manual.stats.reloads
        sql = "UPDATE durabledict_entries SET value = CAST(value + 1 AS TEXT) WHERE keyspace = ?"
        program(execute, place, sql, "default")
        edited.check({str(number): number + 1 for number in range(rows)})
        # Each row is a commit of its own, and so many are kept.
        assert edited.manual.stats.reloads == begun + (rows > COMMITS_KEPT)
        program(execute, place, "DELETE FROM durabledict_entries WHERE keyspace = 'default'")
        edited.check({})
        assert edited.elsewhere == {"0": 0}
