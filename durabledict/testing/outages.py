"""The suite: a store that cannot be asked."""

from __future__ import annotations

import gc
import math
import traceback
import weakref
from datetime import datetime, timedelta, timezone
from typing import Any

from ..outage import FIRST_RETRY, LONGEST_RETRY
from ..reading import Syncing
from .tools import SuiteBase, needs, raises

__all__ = ["OutageTests"]


class OutageTests(SuiteBase):
    """Outages: who is told, what is served meanwhile, and when it is tried again."""

    @needs("!told")
    def test_an_outage_reaches_the_reader(self) -> None:
        d = self.open()
        d["k"] = 1
        with self.down(d):
            reads: list[Any] = [lambda: d["k"], lambda: list(d), lambda: len(d), lambda: d.copy()]
            for read in reads:
                with raises(d.unavailable, "cannot be asked"):
                    read()
            writes: list[Any] = [
                lambda: d.__setitem__("k", 2), lambda: d.update(k=2), lambda: d.__delitem__("k"),
                lambda: d.setdefault("k", 2), lambda: d.popitem(),
            ]  # fmt: skip
            for write in writes:
                with raises(d.unavailable, "cannot be asked"):
                    write()
            assert repr(d) == "{'k': 1}"
        assert d["k"] == 1
        assert d.stale_since is None

    @needs("!told")
    def test_an_outage_is_waited_out_with_a_stale_copy(self) -> None:
        with self.clock() as clock, self.logged() as records:
            d = self.open(on_outage="stale")
            d["k"] = 1
            clock.move(3.0)
            began = datetime.now(timezone.utc)
            with self.down(d) as calls:
                for _ in range(100):
                    assert (d["k"], d.get("x"), "k" in d, len(d), list(d)) == (
                        1,
                        None,
                        True,
                        1,
                        ["k"],
                    )
                assert len(calls) == 1
                assert len(records) == 1
                assert d.checked_age == 3.0
                since = d.stale_since
                assert since is not None
                assert began <= since <= datetime.now(timezone.utc)
                for number in range(2, 20):
                    waited = 0.0
                    while len(calls) < number:
                        clock.move(0.01)
                        waited += 0.01
                        assert d["k"] == 1
                    shortest = min(FIRST_RETRY * 2 ** (number - 2), LONGEST_RETRY)
                    assert shortest - 0.02 <= waited <= shortest * 1.25 + 0.02
                assert d.stale_since == since
                assert len(records) == 1
                assert d.sync() is False
                writes: list[Any] = [
                    lambda: d.__setitem__("k", 2), lambda: d.update(k=2),
                    lambda: d.__delitem__("k"), lambda: d.setdefault("k", 2),
                ]  # fmt: skip
                for write in writes:
                    with raises(d.unavailable):
                        write()
            clock.move(LONGEST_RETRY * 1.25)
            assert d["k"] == 1
            assert d.stale_since is None
            assert d.checked_age == 0
            with self.down(d):
                assert d["k"] == 1
            assert len(records) == 2

    @needs("!told")
    def test_how_long_a_stale_copy_is_served_can_be_bounded(self) -> None:
        for autosync in (self.strictest, 1.0, False):
            with self.clock() as clock:
                d = self.open(autosync=autosync, on_outage="stale", max_stale=60.0)
                d["k"] = 1
                d.sync()
                clock.move(50.0)
                with self.down(d):
                    assert d.sync() is False
                    assert d["k"] == 1
                    clock.move(9.9)
                    assert d["k"] == 1
                    clock.move(0.2)
                    reads: list[Any] = [
                        lambda d=d: d["k"],
                        lambda d=d: list(d),
                        lambda d=d: d.sync(),
                    ]
                    for read in reads:
                        with raises(d.unavailable):
                            read()
                    clock.move(0.01)
                    with raises(d.unavailable):
                        d.get("k")
                clock.move(LONGEST_RETRY * 1.25)
                assert d["k"] == 1

    @needs("!told")
    def test_a_store_that_failed_is_left_alone_past_the_bound_too(self) -> None:
        with self.clock() as clock:
            d = self.open(on_outage="stale", max_stale=1.0)
            clock.move(0.95)
            with self.down(d) as calls:
                d.get("k")
                clock.move(0.06)
                with raises(d.unavailable):
                    d.get("k")
                assert len(calls) == 1

    @needs("shared")
    def test_a_manual_dict_mends_itself_after_a_bounded_outage(self) -> None:
        with self.clock() as clock:
            d = self.open(autosync=False, on_outage="stale", max_stale=60.0)
            b = self.open()
            assert not issubclass(type(d), Syncing)
            with self.down(d):
                assert d.sync() is False
                assert issubclass(type(d), Syncing)
            b["k"] = 1
            assert "k" not in d
            clock.move(1.0)
            assert d["k"] == 1
            assert not issubclass(type(d), Syncing)

    def test_outage_options_are_checked(self) -> None:
        with raises(ValueError, "on_outage", "raise", "stale"):
            self.open(on_outage="ignore")
        with raises(ValueError, "max_stale", "stale"):
            self.open(max_stale=5.0)
        refused: list[Any] = ["5", True, [], -1, math.nan]
        for bad in refused:
            with raises(TypeError, "max_stale"):
                self.open(on_outage="stale", max_stale=bad)
        d = self.open(on_outage="stale", max_stale=timedelta(seconds=5))
        assert (d.on_outage, d.max_stale) == ("stale", 5.0)

    def test_sync_can_be_connected_to_a_signal(self) -> None:
        d = self.open()
        assert d.sync(signal=object(), sender=object(), environ={}, scope=None) is False
        with raises(TypeError, "environ"):
            d.sync(environ={})
        with self.logged() as records, self.down(d):
            assert d.sync(signal=object(), sender=object(), environ={}) is False
            assert d.sync(signal=object()) is False
            with raises(d.unavailable):
                d.sync()
        assert len(records) == 1
        assert d.stats.failures == 3
        assert d.sync(signal=object()) is False
        assert d.stale_since is None

    @needs("!told")
    def test_an_interrupted_comparison_is_no_outage(self) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        d = self.open(on_outage="stale")
        with self.hook(d, "last_updated", before=interrupt):
            for _ in range(2):
                with raises(KeyboardInterrupt):
                    d.get("k")
        assert d.stale_since is None

    @needs("!told")
    def test_an_error_that_is_kept_holds_nobodys_variables(self) -> None:
        class Big:
            pass

        def handle(d: Any) -> weakref.ref[Big]:
            big = Big()
            with raises(d.unavailable):
                d.get("k")
            return weakref.ref(big)

        policies: list[dict[str, Any]] = [{}, {"on_outage": "stale", "max_stale": 0.0}]
        for options in policies:
            with self.clock() as clock:
                d = self.open(**options)
                clock.move(1.0)
                with self.down(d):
                    references = [handle(d), handle(d)]
                assert d.stale_since is not None
                gc.collect()
                assert [reference() for reference in references] == [None, None]

    @needs("!told")
    def test_an_error_that_is_raised_again_does_not_grow(self) -> None:
        with self.clock() as clock:
            d = self.open(on_outage="stale", max_stale=1.0)
            clock.move(2.0)
            lengths = []
            with self.down(d) as calls:
                for _ in range(4):
                    try:
                        d.get("k")
                    except d.unavailable as error:
                        lengths.append(len(list(traceback.walk_tb(error.__traceback__))))
            assert len(calls) == 1
            assert len(lengths) == 4
            assert lengths[1] == lengths[2] == lengths[3]
