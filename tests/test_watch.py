"""The rounds of a watch, run here instead of in its thread, with a clock that does not tick."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from durabledict import MemoryDict, MemoryStorage, watch
from durabledict.testing.tools import SuiteBase

logged = SuiteBase().logged


class Rounds:
    """Stands in place of the event that stops a watch: it stops it after some rounds."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.pauses: list[float] = []

    def is_set(self) -> bool:
        return self.left <= 0

    def wait(self, timeout: float) -> None:
        self.pauses.append(timeout)


def watched(storage: MemoryStorage | None = None) -> Any:
    return MemoryDict(autosync=False, storage=storage)


def run(d: Any, number: int, sync: Callable[[int], bool]) -> tuple[list[str], list[float]]:
    """Run so many rounds; return what was done in them, and the pauses."""
    rounds = Rounds(number)
    done: list[str] = []

    def wait(since: Any, timeout: float) -> bool:
        assert since == d.last_synced
        assert timeout == 7.0
        done.append("wait")
        return True

    def noted(woken: bool) -> bool:
        rounds.left -= 1
        done.append("sync")
        return sync(number - rounds.left)

    d.wait, d._sync_watched = wait, noted
    watch._run(weakref.ref(d), rounds, 7.0)  # type: ignore[arg-type]  # as much as it needs
    return done, rounds.pauses


def fail_at(*numbers: int, error: BaseException) -> Callable[[int], bool]:
    def sync(number: int) -> bool:
        if number in numbers:
            raise error
        return True

    return sync


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "backoff", lambda attempts: float(attempts))


def test_the_first_round_compares_and_the_others_wait_first() -> None:
    done, pauses = run(watched(), 3, lambda number: True)
    assert done == ["sync", "wait", "sync", "wait", "sync"]
    assert pauses == []


def test_a_stamp_that_never_stays_does_not_keep_a_core_busy() -> None:
    _, pauses = run(watched(), 4, lambda number: number == 2)
    assert pauses == [watch.BREATHER] * 2  # after the third and the fourth: woken for nothing


@pytest.mark.usefixtures("no_jitter")
def test_after_a_failure_it_pauses_and_compares_before_it_waits() -> None:
    d = watched()
    rounds = fail_at(2, 3, error=OSError())
    with logged() as records:
        done, pauses = run(d, 5, rounds)
    assert done == ["sync", "wait", "sync", "sync", "sync", "wait", "sync"]
    assert pauses[:2] == [1.0, 2.0]
    assert len(pauses) == 2
    assert not records  # an outage is for the dict to tell


@pytest.mark.usefixtures("no_jitter")
def test_pauses_begin_anew_after_a_success() -> None:
    _, pauses = run(watched(), 6, fail_at(1, 2, 4, error=OSError()))
    assert pauses == [1.0, 2.0, 1.0]


@pytest.mark.usefixtures("no_jitter")
@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(), KeyboardInterrupt()])
def test_a_bug_is_logged_and_tried_again(error: BaseException) -> None:
    with logged() as records:
        done, pauses = run(watched(), 4, fail_at(2, error=error))
    assert done == ["sync", "wait", "sync", "sync", "wait", "sync"]
    assert pauses == [1.0]
    assert [record.exc_info is not None for record in records] == [True]


def test_a_watch_that_is_stopped_while_it_waits_compares_no_more() -> None:
    d = watched()
    rounds = Rounds(1)
    synced: list[int] = []

    def wait(since: Any, timeout: float) -> bool:
        rounds.left = 0
        return False

    d.wait, d._sync_watched = wait, lambda woken: synced.append(1)
    watch._run(weakref.ref(d), rounds, 7.0)  # type: ignore[arg-type]  # as much as it needs
    assert synced == [1]


@pytest.mark.usefixtures("no_jitter")
@pytest.mark.parametrize("error", [None, OSError(), ZeroDivisionError()])
def test_nothing_keeps_the_dict_alive_while_it_pauses(error: BaseException | None) -> None:
    d = watched()
    rounds = Rounds(5)
    reference = weakref.ref(d)
    held: list[Any] = [d]

    def pause(timeout: float) -> None:
        held.clear()
        gc.collect()
        rounds.left = 0
        assert reference() is None

    def sync(woken: bool) -> bool:
        if error is not None:
            raise error.with_traceback(None)
        return False

    d.wait, d._sync_watched = lambda since, timeout: True, sync
    rounds.wait = pause  # type: ignore[method-assign]  # a hook
    del d
    with logged() as records:
        watch._run(reference, rounds, 7.0)  # type: ignore[arg-type]  # as much as it needs
        records.clear()
    assert not held


def test_the_thread_does_not_keep_the_process_alive() -> None:
    with watched().watch(interval=3600.0) as running:
        assert running._thread.daemon
    assert not running.running
