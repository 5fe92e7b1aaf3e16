"""How long to wait, what is told, and a store that is away when the dict is opened."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest

from durabledict import MemoryDict
from durabledict.outage import FIRST_RETRY, LONGEST_RETRY, Freshness, backoff, bare
from durabledict.testing.tools import SuiteBase, in_thread

stopped_clock = SuiteBase().clock


class Down(MemoryDict[Any, Any]):
    """A dict whose store can be away."""

    down = False

    def last_updated(self) -> Any:
        if self.down:
            raise OSError("down")
        return super().last_updated()


class Unborn(Down):
    """A dict whose store is away from the beginning."""

    down = True


def test_waits_differ_and_have_an_end() -> None:
    assert len({backoff(3) for _ in range(20)}) > 1
    assert LONGEST_RETRY <= backoff(10_000) <= LONGEST_RETRY * 1.25


def test_waits_begin_anew_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
    with stopped_clock() as clock:
        freshness = Freshness()
        for number in range(5):
            freshness.failed(OSError())
            assert freshness.retry_at == clock.now + FIRST_RETRY * 2**number
        freshness.succeeded(clock.now)
        assert freshness.retry_at == -math.inf
        freshness.failed(OSError())
        assert freshness.retry_at == clock.now + FIRST_RETRY


def test_an_answer_to_an_older_question_makes_a_copy_no_older() -> None:
    freshness = Freshness()
    freshness.succeeded(5.0)
    freshness.succeeded(3.0)
    assert freshness.sent == 5.0


def test_an_outage_that_is_over_before_it_is_told_does_not_hide_the_next() -> None:
    freshness = Freshness()
    for _ in range(2):
        freshness.failed(OSError())
        freshness.succeeded(1.0)
        assert freshness.first_report()
    freshness.failed(OSError())
    assert freshness.first_report()
    freshness.failed(OSError())
    assert not freshness.first_report()


def test_an_outage_that_another_thread_ends_is_told_and_the_next_one_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    d: Any = Down(on_outage="stale")
    compare = d._compare

    def flap(**options: Any) -> bool:
        try:
            return bool(compare(**options))
        except OSError:
            d.down = False
            in_thread(compare)
            raise

    d.down, d._compare = True, flap
    d.get("k")
    assert d.stale_since is None
    del d._compare
    d.down = True
    d.get("k")
    assert len(caplog.records) == 2


def test_an_outage_that_another_thread_told_of_and_ended_is_not_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a thread that shared the failure, and comes to report it when all is over."""
    d: Any = Down(on_outage="stale")
    may_serve = d._may_serve

    def told_and_ended_meanwhile() -> bool:
        del d._may_serve
        in_thread(d.sync)
        assert len(caplog.records) == 1
        d.down = False
        in_thread(d.sync)
        return bool(may_serve())

    d.down, d._may_serve = True, told_and_ended_meanwhile
    d.get("k")
    assert d.stale_since is None
    assert len(caplog.records) == 1
    d.down = True
    d.get("k")
    assert len(caplog.records) == 2


def test_what_nobody_has_noted_is_told_unless_it_is_part_of_an_outage() -> None:
    """What a write meets when it is done already."""
    freshness = Freshness()
    for _ in range(2):
        assert freshness.first_report(noted=False)
    freshness.failed(OSError())
    assert freshness.first_report(noted=False)
    assert not freshness.first_report(noted=False)
    assert not freshness.first_report()


class OddError(Exception):
    """An error that cannot be copied as errors are."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_an_error_that_is_kept_is_alike() -> None:
    for error in (OSError(5, "down"), OddError("a", "b"), KeyError("k")):
        try:
            raise error
        except Exception as raised:
            kept = bare(raised)
        assert kept is not error
        assert type(kept) is type(error)
        assert str(kept) == str(error)
        assert kept.__traceback__ is None
        assert kept.__context__ is None
        assert kept.__cause__ is None


def test_opening_in_an_outage_is_refused_or_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="down"):
        Unborn()
    assert not caplog.records
    Unborn(on_outage="stale")
    assert len(caplog.records) == 1
    assert caplog.messages[0].endswith("(OSError: down); nothing has been loaded yet")


def test_an_outage_is_told_with_the_age_of_the_copy(caplog: pytest.LogCaptureFixture) -> None:
    d = Down(on_outage="stale")
    d.down = True
    assert len(d) == 0
    assert re.search(r"\(OSError: down\); the local copy is \d+\.\d s old$", caplog.messages[0])


def test_a_copy_that_was_never_filled_is_not_served() -> None:
    with stopped_clock() as clock:
        d = Unborn(on_outage="stale")
        reads: list[Any] = [
            lambda: d["k"], lambda: d.get("k"), lambda: len(d), lambda: list(d), d.copy, d.sync,
        ]  # fmt: skip
        for read in reads:
            with pytest.raises(OSError, match="down"):
                read()
            clock.move(2 * LONGEST_RETRY)
        d.down = False
        assert d.copy() == {}
