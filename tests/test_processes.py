"""SqliteDict between real processes: freshness, lost updates, creation, spawning, SIGKILL."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabledict import MISSING, ConflictError, SqliteDict

from .counters import Counter

# No test takes that long: it is when a process that hangs becomes a failure.
PATIENCE = 120.0

spawning = multiprocessing.get_context("spawn")


def opened(place: Path, **options: Any) -> SqliteDict[Any, Any]:
    return SqliteDict(place / "x.sqlite", timeout=PATIENCE, **options)


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], results: Any) -> None:
    try:
        results.send((True, function(*arguments)))
    except BaseException:
        results.send((False, traceback.format_exc()))


class Processes:
    """Processes of their own that run one function each."""

    def __init__(self) -> None:
        self._running: list[tuple[Any, Any]] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        receives, sends = spawning.Pipe(duplex=False)
        process = spawning.Process(target=_work, args=(function, arguments, sends), daemon=True)
        process.start()
        sends.close()
        self._running.append((process, receives))
        return process

    def results(self) -> list[Any]:
        """Wait for all and return what they returned."""
        outcomes = []
        for process, receives in self._running:
            assert receives.poll(PATIENCE), "the process hangs"
            good, outcome = receives.recv()
            assert good, outcome
            outcomes.append(outcome)
            process.join(PATIENCE)
        return outcomes

    def end(self) -> None:
        for process, receives in self._running:
            process.kill()
            process.join()
            process.close()
            receives.close()


@contextmanager
def processes() -> Iterator[Processes]:
    made = Processes()
    try:
        yield made
    finally:
        made.end()


# -- strict reads ---------------------------------------------------------------------------------


def publish(place: Path, name: str, stop: Any) -> int:
    acknowledged = Counter(place / name)
    with opened(place, autosync=False) as d:
        number = acknowledged.value
        while not stop.is_set():
            number += 1
            d[name] = number
            acknowledged.value = number
    return number


READS: dict[str, Callable[[Any, str], int]] = {
    "d[k]": lambda d, name: d[name],
    "get": lambda d, name: d.get(name),
    "copy": lambda d, name: d.copy()[name],
    "items": lambda d, name: dict(d.items())[name],
    "iteration": lambda d, name: dict(zip(d, d.values(), strict=False))[name],
}


def test_a_read_is_never_older_than_a_write_acknowledged_before_it(place: Path) -> None:
    names = ["first", "second"]
    counters = [Counter(place / name) for name in names]
    with processes() as others, opened(place) as d:
        d.update(dict.fromkeys(names, 0))
        stop = spawning.Event()
        for name in names:
            others.start(publish, place, name, stop)
        while not all(counter.value for counter in counters):
            assert d["first"] >= 0
        rounds = 0
        while rounds < 400 or d.stats.syncs < 20:  # and the writers do write meanwhile
            rounds += 1
            for read in READS.values():
                for name, counter in zip(names, counters, strict=True):
                    acknowledged = counter.value
                    assert read(d, name) >= acknowledged
        stop.set()
        assert d == dict(zip(names, others.results(), strict=True))


def publish_keys(place: Path, stop: Any) -> None:
    acknowledged = Counter(place / "counter")
    with opened(place, autosync=False) as d:
        number = 0
        while not stop.is_set():
            number += 1
            d.replace_all({number: None})
            acknowledged.value = number


def test_membership_and_length_are_strict_too(place: Path) -> None:
    counter = Counter(place / "counter")
    with processes() as others, opened(place) as d:
        stop = spawning.Event()
        others.start(publish_keys, place, stop)
        while not counter.value:
            assert len(d) <= 1
        for _ in range(1000):
            acknowledged = counter.value
            assert acknowledged - 1 not in d
            assert len(d) == 1
            acknowledged = counter.value
            assert next(iter(d)) >= acknowledged
        stop.set()
        others.results()


# -- nothing is lost, nothing done twice ----------------------------------------------------------


def increment(place: Path, times: int, start: Any) -> None:
    with opened(place) as d:
        start.wait(PATIENCE)
        for _ in range(times):
            d.compute("n", lambda n: n + 1, default=0)


def edit(place: Path, times: int, start: Any) -> None:
    with opened(place, autosync=False) as d:
        start.wait(PATIENCE)
        for _ in range(times):
            while True:
                try:
                    with d.edit("n") as value:
                        value[0] += 1
                    break
                except ConflictError:
                    pass


@pytest.mark.parametrize(("function", "times", "first"), [(increment, 200, 0), (edit, 25, [0])])
def test_increments_are_not_lost(
    place: Path, function: Callable[..., None], times: int, first: Any
) -> None:
    with processes() as others, opened(place) as d:
        d["n"] = first
        start = spawning.Barrier(4)
        for _ in range(4):
            others.start(function, place, times, start)
        others.results()
        assert d["n"] == (4 * times if first == 0 else [4 * times])


def race(place: Path, me: int, start: Any) -> dict[str, Any]:
    with opened(place) as d:
        start.wait(PATIENCE)
        defaults = [d.setdefault(("default", number), me) for number in range(20)]
        start.wait(PATIENCE)
        popped = [number for number in range(50) if d.pop(("pop", number), None) is not None]
        won = [
            number
            for number in range(50)
            if d.compare_and_set(("cas", number), MISSING, me)
            and d.compare_and_set(("cas", number), me, [me])
        ]
        start.wait(PATIENCE)
        items = []
        try:
            while True:
                items.append(d.popitem()[0])
        except KeyError:
            return {"defaults": defaults, "popped": popped, "won": won, "items": items}


def test_each_item_is_taken_by_one_process(place: Path) -> None:
    with processes() as others, opened(place) as d:
        d.update({("pop", number): number for number in range(50)})
        start = spawning.Barrier(4)
        for number in range(4):
            others.start(race, place, number, start)
        results = others.results()
        assert len({tuple(result["defaults"]) for result in results}) == 1
        for name in ("popped", "won"):
            assert sorted(item for result in results for item in result[name]) == list(range(50))
        expected = {("default", n) for n in range(20)} | {("cas", n) for n in range(50)}
        taken = [item for result in results for item in result["items"]]
        assert len(taken) == len(expected)
        assert set(taken) == expected
        assert d == {}


# -- bounded, watched ----------------------------------------------------------------------------


def converge(place: Path, mode: Any, ready: Any) -> list[Any]:
    heard: list[Any] = []
    last = threading.Event()

    def hear(*change: Any) -> None:
        heard.append(change)
        if change[0] == "last":
            last.set()

    with opened(place, autosync=mode) as d:
        d.on_change(hear)
        if mode is False:
            d.watch(interval=2 * PATIENCE)
        ready.wait(PATIENCE)
        while not last.is_set():
            assert mode is not False or last.wait(PATIENCE)
            d.get("last")
        assert d.copy() == {"k": 9, "last": True}
    return heard


@pytest.mark.parametrize("mode", [0.2, False, True])
def test_another_process_converges_and_hears_each_change_once(place: Path, mode: Any) -> None:
    with processes() as others, opened(place) as d:
        d["k"] = -1
        ready = spawning.Barrier(3)
        for _ in range(2):
            others.start(converge, place, mode, ready)
        ready.wait(PATIENCE)
        for number in range(10):
            d["k"] = number
        d["last"] = True
        for heard in others.results():
            assert heard.count(("last", MISSING, True)) == 1
            steps = [(old, new) for key, old, new in heard if key == "k"]
            # Each begins where the one before it ended: none is heard twice, none is lost.
            assert [old for old, _ in steps] == [-1, *(new for _, new in steps[:-1])]
            assert steps[-1][1] == 9
            assert len(heard) == len(steps) + 1


# -- one file -------------------------------------------------------------------------------------


def fill_keyspace(place: Path, keyspace: str, start: Any) -> None:
    with opened(place, keyspace=keyspace) as a, opened(place, keyspace=keyspace) as b:
        start.wait(PATIENCE)
        for number in range(50):
            (a, b)[number % 2]["n"] = keyspace, number
            assert (a, b)[1 - number % 2]["n"] == (keyspace, number)


def test_keyspaces_of_one_file_and_two_dicts_in_one_process(place: Path) -> None:
    keyspaces = ["", "a", "a/b", "\ud800"]
    with processes() as others:
        start = spawning.Barrier(4)
        for keyspace in keyspaces:
            others.start(fill_keyspace, place, keyspace, start)
        others.results()
    for keyspace in keyspaces:
        with opened(place, keyspace=keyspace) as d:
            assert d == {"n": (keyspace, 49)}


def create(place: Path, me: int, start: Any) -> None:
    for number in range(20):
        folder = place / str(number)
        start.wait(PATIENCE)
        with opened(folder) as d:
            d[me] = number


def test_processes_create_a_file_at_the_same_moment(place: Path) -> None:
    for number in range(20):
        (place / str(number)).mkdir()
    with processes() as others:
        start = spawning.Barrier(2)
        for number in range(2):
            others.start(create, place, number, start)
        others.results()
    for number in range(20):
        with opened(place / str(number)) as d:
            assert d == {0: number, 1: number}
        connection = sqlite3.connect(place / str(number) / "x.sqlite")
        assert connection.execute("SELECT version FROM durabledict_schema").fetchall() == [(2,)]
        connection.close()


# -- spawned workers ------------------------------------------------------------------------------


def recipe(place: Path, number: int) -> Any:
    with opened(place) as d:
        return d.compute("n", lambda n: n + number, default=0)


def test_a_dict_is_opened_in_the_worker_not_sent_to_it(place: Path) -> None:
    with opened(place) as d:
        for refused in (lambda: pickle.dumps(d), lambda: spawning.Process(args=(d,)).start()):
            with pytest.raises(TypeError, match="Open it again in the other process"):
                refused()
        d["n"] = 0
        with processes() as others:
            others.start(recipe, place, 1)
            assert others.results() == [1]
        with ProcessPoolExecutor(2, mp_context=spawning) as pool:
            assert max(pool.map(recipe, [place] * 4, [10] * 4)) == 41
        assert d == {"n": 41}


# -- SIGKILL --------------------------------------------------------------------------------------


def write_until_killed(place: Path) -> None:
    acknowledged = Counter(place / "counter")
    with opened(place) as d:
        for number in range(acknowledged.value + 1, 1 << 40):
            d.update({"n": number, number % 100: number})
            acknowledged.value = number


def test_sigkill_loses_no_acknowledged_write(place: Path) -> None:
    counter = Counter(place / "counter")
    with opened(place) as reader:
        for _ in range(2):
            begun = counter.value
            with processes() as others:
                process = others.start(write_until_killed, place)
                while counter.value < begun + 300:
                    assert process.is_alive()
                    reader.get("n")
                os.kill(process.pid, signal.SIGKILL)
                process.join(PATIENCE)
                assert process.exitcode == -signal.SIGKILL
            with opened(place) as d:
                # The last one may have been done and not acknowledged.
                assert d["n"] in (counter.value, counter.value + 1)
                assert d[d["n"] % 100] == d["n"]
                assert reader == d
                connection = sqlite3.connect(d.path)
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                connection.close()
                d["after"] = True
