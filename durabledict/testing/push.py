"""The suite: `watch` and `on_change`."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from datetime import timedelta
from typing import Any

from ..errors import MISSING
from ..reading import Syncing
from .tools import PATIENCE, SuiteBase, in_thread, needs, raises

__all__ = ["PushTests"]


class PushTests(SuiteBase):
    """The background thread that syncs, and the callbacks that hear of changes."""

    # -- watch --------------------------------------------------------------------------------

    @needs("shared", "push")
    def test_watch_brings_others_writes_into_a_manual_dict(self) -> None:
        a, b = self.open(autosync=False), self.open()
        heard: dict[Any, threading.Event] = {n: threading.Event() for n in range(5)}
        a.on_change(lambda key, old, new: heard[key].set())
        with a.watch(interval=3600.0) as watch:
            assert watch.running
            for number, event in heard.items():
                b[number] = number
                assert event.wait(PATIENCE)
                assert a[number] == number
                assert not issubclass(type(a), Syncing)
        assert not watch.running
        b["unheard"] = 1
        assert "unheard" not in a

    @needs("shared")
    def test_watch_compares_after_each_interval_even_if_no_message_comes(self) -> None:
        a, b = self.open(autosync=False), self.open()
        heard = threading.Event()
        a.on_change(lambda key, old, new: heard.set())
        asked = threading.Event()

        def deaf(since: Any, timeout: float) -> bool:
            assert timeout == 0.05
            asked.set()
            a._interrupted.wait(timeout)
            return False

        a.wait = deaf
        a.watch(interval=timedelta(seconds=0.05))
        assert asked.wait(PATIENCE)
        b["k"] = 1
        assert heard.wait(PATIENCE)

    @needs("shared")
    def test_watch_survives_an_outage_and_reports_it_once(self) -> None:
        a, b = self.open(autosync=False), self.open()
        failed, heard = threading.Event(), threading.Event()
        a.on_change(lambda key, old, new: heard.set())

        def fail() -> None:
            failed.set()
            raise self.outage(a)

        with self.logged() as records:
            with self.hook(a, "last_updated", before=fail):
                a.watch(interval=0.05)
                assert failed.wait(PATIENCE)
                while a.stats.failures < 2:
                    threading.Event().wait(0.01)
                assert a.stale_since is not None
            b["k"] = 1
            assert heard.wait(PATIENCE)
        assert len(records) == 1
        assert a.stale_since is None

    def test_watch_ends_with_the_dict(self) -> None:
        d = self.open(autosync=False)
        watch = d.watch(interval=3600.0)
        again = d.watch(interval=0.05)
        assert not watch.running
        assert again.running
        d.close()
        assert not again.running
        refused: list[Any] = [0, -1.0, True, "5", math.nan, None]
        for bad in refused:
            with raises(TypeError, "interval"):
                self.open().watch(interval=bad)

    def test_a_watch_that_replaces_another_waits(self) -> None:
        """An interrupt meant for the first would make the second spin."""
        d = self.open(autosync=False)
        first = d.watch(interval=3600.0)
        second = d.watch(interval=3600.0)
        assert not d._interrupted.is_set()
        first.stop()
        assert not d._interrupted.is_set()
        assert second.running
        d.close()
        assert not second.running

    def test_nothing_keeps_a_watched_dict_alive(self) -> None:
        d = self.factory(self.place, autosync=False)
        thread = d.watch(interval=0.05)._thread
        reference = weakref.ref(d)
        del d
        thread.join(PATIENCE)
        assert not thread.is_alive()
        gc.collect()
        assert reference() is None

    # -- callbacks ----------------------------------------------------------------------------

    @needs("shared")
    def test_on_change_hears_own_writes_and_others(self) -> None:
        a, b = self.open(), self.open()
        heard: list[Any] = []
        end = a.on_change(lambda key, old, new: heard.append((key, old, new)))
        a["k"] = 1
        a["k"] = 2
        a["k"] = 2
        del a["k"]
        assert heard == [("k", MISSING, 1), ("k", 1, 2), ("k", 2, MISSING)]
        heard.clear()
        b["k"] = [3]
        a.sync()
        b["k"] = [4]
        b["l"] = None
        a.sync()
        a.sync()
        b.clear()
        a.sync()
        assert heard[0] == ("k", MISSING, [3])
        assert sorted(map(repr, heard[1:3])) == ["('k', [3], [4])", "('l', MISSING, None)"]
        assert sorted(map(repr, heard[3:])) == ["('k', [4], MISSING)", "('l', None, MISSING)"]
        end()
        end()
        a["k"] = 5
        assert len(heard) == 5
        with raises(TypeError, "on_change"):
            a.on_change(5)

    @needs("shared")
    def test_a_read_delivers_what_it_brought(self) -> None:
        with self.clock() as clock:
            a, b = self.open(autosync=10.0), self.open()
            heard: list[Any] = []
            a.on_change(lambda *change: heard.append(change))
            b["k"] = 1
            clock.move(10.0)
            a.get("k")
            assert heard == [("k", MISSING, 1)]

    @needs("compare_and_set", "shared")
    def test_a_write_that_was_not_done_delivers_what_it_brought(self) -> None:
        a, b = self.open(autosync=False), self.open()
        heard: list[Any] = []
        a.on_change(lambda *change: heard.append(change))
        b["k"] = 1
        assert a.compare_and_set("k", 0, 2) is False
        assert heard == [("k", MISSING, 1)]

    def test_a_callback_that_raises_harms_nobody(self) -> None:
        d = self.open()
        heard: list[Any] = []

        def broken(key: Any, old: Any, new: Any) -> None:
            raise ZeroDivisionError

        d.on_change(broken)
        d.on_change(lambda key, old, new: heard.append(new))
        with self.logged() as records:
            d["k"] = 1
            d["k"] = 2
        assert d["k"] == 2
        assert heard == [1, 2]
        assert len(records) == 2

    def test_an_interrupt_in_a_callback_is_not_swallowed(self) -> None:
        d = self.open()

        def interrupt(key: Any, old: Any, new: Any) -> None:
            raise KeyboardInterrupt

        d.on_change(interrupt)
        with raises(KeyboardInterrupt):
            d["k"] = 1
        assert d["k"] == 1

    @needs("shared")
    def test_a_callback_that_exits_ends_neither_the_watch_nor_the_other_changes(self) -> None:
        a, b = self.open(autosync=False), self.open()
        heard: list[Any] = []
        all_heard = threading.Event()

        def leave(key: Any, old: Any, new: Any) -> None:
            heard.append(key)
            if len(heard) == 3:
                all_heard.set()
            if len(heard) == 1:
                raise SystemExit

        a.on_change(leave)
        b.update(k=1, l=2, m=3)
        with self.logged() as records, a.watch(interval=0.05) as watch:
            assert all_heard.wait(PATIENCE)
            assert watch.running
        assert sorted(heard) == ["k", "l", "m"]
        assert any(record.exc_info for record in records)

    def test_a_callback_may_write_and_is_called_in_order(self) -> None:
        d = self.open()
        heard: list[Any] = []

        def chain(key: Any, old: Any, new: Any) -> None:
            if new < 5:
                d[key] = new + 1
            heard.append(new)

        d.on_change(chain)
        d["k"] = 1
        assert heard == [1, 2, 3, 4, 5]
        assert d["k"] == 5

    @needs("shared")
    def test_a_callback_may_stop_the_watch_that_calls_it(self) -> None:
        a, b = self.open(autosync=False), self.open()
        results: list[Any] = []

        def stop(key: Any, old: Any, new: Any) -> None:
            try:
                results.append(watch.stop())
            except BaseException as error:
                results.append(error)

        a.on_change(stop)
        watch = a.watch(interval=0.05)
        b["k"] = 1
        watch._thread.join(PATIENCE)
        assert not watch.running
        assert results == [None]

    def test_a_callback_holds_no_lock(self) -> None:
        d = self.open()
        seen: list[Any] = []

        def from_another_thread(key: Any, old: Any, new: Any) -> None:
            seen.append(in_thread(lambda: (d["k"], d.copy(), d.sync())))

        d.on_change(from_another_thread)
        d["k"] = 1
        assert seen == [(1, {"k": 1}, False)]

    @needs("shared")
    def test_changes_that_come_while_another_thread_delivers_are_left_to_it(self) -> None:
        d = self.open()
        inside, goes_on = threading.Event(), threading.Event()
        heard: list[Any] = []

        def slow(key: Any, old: Any, new: Any) -> None:
            heard.append((new, threading.current_thread().name))
            if new == 1:
                inside.set()
                assert goes_on.wait(PATIENCE)

        d.on_change(slow)
        thread = threading.Thread(target=lambda: d.__setitem__("k", 1), name="first")
        thread.start()
        assert inside.wait(PATIENCE)
        d["k"] = 2
        d["k"] = 3
        goes_on.set()
        thread.join(PATIENCE)
        assert heard == [(1, "first"), (2, "first"), (3, "first")]
