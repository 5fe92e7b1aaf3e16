"""The queue of changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from durabledict import MISSING
from durabledict.notify import ChangeFeed


@pytest.fixture
def feed() -> ChangeFeed[str, Any]:
    return ChangeFeed()


def test_one_function_subscribed_twice_is_two_subscriptions(feed: ChangeFeed[str, Any]) -> None:
    heard: list[Any] = []

    def hear(*change: Any) -> None:
        heard.append(change)

    first, second = feed.subscribe(hear), feed.subscribe(hear)
    feed.put([("k", MISSING, 1)])
    first()
    feed.deliver()
    assert heard == [("k", MISSING, 1)]
    feed.put([("k", 1, 2)])
    feed.deliver()
    assert heard[1:] == [("k", 1, 2)]
    second()
    assert not feed.wanted


def test_what_unsubscribed_hears_nothing_that_is_queued(feed: ChangeFeed[str, Any]) -> None:
    heard: list[Any] = []
    end = feed.subscribe(lambda *change: heard.append(change))
    feed.put([("k", MISSING, 1)])
    end()
    feed.deliver()
    assert heard == []


def test_what_subscribed_later_hears_nothing_from_before(feed: ChangeFeed[str, Any]) -> None:
    early: list[Any] = []
    late: list[Any] = []
    feed.subscribe(lambda *change: early.append(change))
    feed.put([("k", MISSING, 1)])
    feed.subscribe(lambda *change: late.append(change))
    feed.deliver()
    assert (len(early), late) == (1, [])


def test_only_what_differs_is_told(feed: ChangeFeed[str, Any]) -> None:
    heard: list[Any] = []
    feed.subscribe(lambda *change: heard.append(change))
    feed.put([("k", 1, 2), ("k", 2, 2), ("k", 1, True), ("l", [1], [1])])
    feed.deliver()
    assert heard == [("k", 1, 2), ("k", 1, True)]


def test_a_change_that_is_queued_at_the_last_moment_is_delivered(
    feed: ChangeFeed[str, Any],
) -> None:
    heard: list[Any] = []
    feed.subscribe(lambda *change: heard.append(change[0]))

    class Late:
        """A lock that another thread finds taken just before it is released."""

        def __init__(self) -> None:
            self.lock, self.late = threading.Lock(), True

        def acquire(self, blocking: bool) -> bool:
            return self.lock.acquire(blocking=blocking)

        def release(self) -> None:
            if self.late:
                self.late = False
                feed.put([("late", MISSING, 1)])
                feed.deliver()
            self.lock.release()

    feed._delivering = Late()  # type: ignore[assignment]  # all that it needs of a lock
    feed.put([("k", MISSING, 1)])
    feed.deliver()
    assert heard == ["k", "late"]


def test_an_interrupt_takes_no_other_change_along(feed: ChangeFeed[str, Any]) -> None:
    heard: list[Any] = []

    def interrupt(key: str, old: Any, new: Any) -> None:
        heard.append(key)
        if key == "a":
            raise KeyboardInterrupt

    feed.subscribe(interrupt)
    feed.put([(key, MISSING, 1) for key in "abc"])
    with pytest.raises(KeyboardInterrupt):
        feed.deliver()
    feed.deliver()
    assert heard == ["a", "b", "c"]


def test_a_finalizer_may_unsubscribe_while_somebody_subscribes(
    feed: ChangeFeed[str, Any],
) -> None:
    end = feed.subscribe(print)
    with feed._edit:  # in the middle of a subscribe
        end()
    assert not feed.wanted
