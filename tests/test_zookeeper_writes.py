"""Own writes of ZookeeperDict and strict reads beside them, stopped where it matters.

The numbers are those of the rules of docs/internals.rst, as in test_zookeeper_rules.py.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from kazoo.exceptions import ConnectionLoss, OperationTimeoutError
from kazoo.protocol.serialization import GetData
from kazoo.security import make_acl

from durabledict import MISSING
from durabledict.testing.tools import in_thread

from .servers import PATIENCE, wait_until
from .zookeeperstore import (
    Cut,
    Dict,
    Store,
    hook,
    hook_request,
    is_native,
    payload,
    started_in_thread,
)

# -- 4.3: own writes ------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Dict], object]] = {
    "set": lambda d: d.__setitem__("k", "own"),
    "create": lambda d: d.__setitem__("new", "own"),
    "delete": lambda d: d.__delitem__("k"),
    "update": lambda d: d.update(k="own", new="own"),
    "compare_and_set": lambda d: d.compare_and_set("k", 1, "own"),
    "compute": lambda d: d.compute("new", lambda value: "own", default=0),
    "setdefault": lambda d: d.setdefault("new", "own"),
    "pop": lambda d: d.pop("k"),
    "replace_all": lambda d: d.replace_all({"l": 1, "new": "own"}),
    "clear": lambda d: d.clear(),
}


@pytest.mark.parametrize("synced", ["never", "before", "after", "both"])
@pytest.mark.parametrize("name", WRITES)
def test_an_own_write_uses_up_no_watch(store: Store, name: str, synced: str) -> None:
    """That is to say: what another writes next is seen, without a question to the leader."""
    store.put(k=1, l=1)
    d = store.open()
    if synced in ("before", "both"):
        store.put(l=2)
        d.sync()
        d.sync()
    WRITES[name](d)
    if synced in ("after", "both"):
        d.sync()
    for key, number in itertools.product(("k", "l", "new"), range(2)):
        store.put(**{key: number})
        store.tell(d)
        assert d[key] == number
    for key in ("k", "l", "new"):
        store.remove(key)
        store.tell(d)
        assert key not in d
    assert d == {}


@pytest.mark.parametrize("name", WRITES)
def test_nor_under_a_watch(store: Store, name: str) -> None:
    store.put(k=1, l=1)
    d = store.open(autosync=False)
    with d.watch(interval=PATIENCE):
        WRITES[name](d)
        for key, number in itertools.product(("k", "l", "new"), range(2)):
            store.put(**{key: number})
            wait_until(lambda: dict(d) == store.truth(), "the watch brings it")
        store.remove("k", "l", "new")
        wait_until(lambda: dict(d) == {}, "the watch brings the removals")


def test_another_writes_between_an_own_write_and_the_watch_that_goes_with_it(
    store: Store,
) -> None:
    """The answer to the request that arms it is of another version than was written."""
    store.put(k=1)
    d = store.open()
    store.put(k=2)
    assert d.sync() is True

    def land() -> None:
        d.connection.exists("/")
        store.put(k="theirs")

    with hook_request(d.connection, GetData, before=land, times=1) as requests:
        d["k"] = "own"
    assert requests
    assert d["k"] == "theirs"
    store.check(d, "k")


def test_another_writes_before_an_own_write_of_the_same_key(store: Store) -> None:
    """And of another one, in a transaction: neither is lost behind the own one."""
    store.put(k=1, l=1)
    d = store.open()
    with hook(d.connection, "set_async", before=lambda: store.put(k=2, l=2), times=1):
        d["k"] = "own"
    assert d.copy() == {"k": "own", "l": 2}
    store.check(d, "k", "l")


@contextmanager
def busy(store: Store, d: Dict) -> Iterator[threading.Event]:
    """Have the thread that calls the watches wait for an event; all others come after it."""
    comes, done = threading.Event(), threading.Event()

    def work(event: object) -> None:
        comes.set()
        done.wait(PATIENCE)

    elsewhere = store.raw.create(store.path + "-elsewhere", b"")
    d.connection.get(elsewhere, watch=work)
    store.raw.set(elsewhere, b"1")
    assert comes.wait(PATIENCE)
    try:
        yield done
    finally:
        done.set()


@pytest.mark.parametrize("name", ["set", "update"])
def test_what_others_wrote_before_an_own_write_is_heard_before_it_is_applied(
    store: Store, name: str
) -> None:
    """Rule 0.3: else it would pass for unchanged. Their events wait behind another watch."""
    store.put(k=0, l=0)
    d = store.open(autosync=False)
    with busy(store, d) as done:
        store.put(l=1)
        with hook(d._client, "barrier", before=done.set, times=1):
            started_in_thread(lambda: WRITES[name](d))()
    assert dict(d) == {**store.truth(), "k": "own"}
    assert d["l"] == 1
    store.check(d, "k", "l")


def test_own_writes_of_many_keys_leave_their_watches_to_the_next_sync(store: Store) -> None:
    d = store.open()
    for value in range(2):
        d.update({str(number): value for number in range(50)})
        d.sync()
    d.update({str(number): 2 for number in range(50)})
    for key in ("0", "25", "49"):
        store.put(**{key: "theirs"})
        store.tell(d)
        assert d[key] == "theirs"


# -- 4.4: strict reads ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["strict", "sync"])
def test_every_acknowledged_write_is_seen_without_sleeping(store: Store, way: str) -> None:
    store.put(k=-1)
    d = store.open(autosync="strict" if way == "strict" else False)
    for number in range(300):
        store.raw.set(store.path_of("k"), payload(number))
        if way == "sync":
            assert d.sync() is True
        assert d["k"] == number


@pytest.mark.parametrize("way", ["strict", "sync", "seconds"])
def test_such_a_read_waits_until_its_events_are_heard(store: Store, way: str) -> None:
    """They wait in a queue behind what other watches of the same client do."""
    store.put(k=0)
    autosync = {"strict": "strict", "sync": False, "seconds": 1e-9}[way]
    d = store.open(autosync=autosync)

    def look() -> Any:
        if way == "sync":
            d.sync()
        return d["k"]

    with busy(store, d) as done:
        store.put(k=1)
        with hook(d._client, "barrier", before=done.set, times=1):
            assert started_in_thread(look)() == 1


THREADS = ["watch", "listener", "completion"]


@pytest.mark.parametrize("where", THREADS)
def test_on_a_thread_of_kazoos_a_sync_raises(store: Store, where: str, cut: Cut) -> None:
    """It would wait for itself."""
    store.put(k=0)
    d = store.open(cut.client, autosync=False)
    asks: list[Callable[[], object]] = [
        d.sync,
        lambda: d.sync(force=True),
        lambda: d.__setitem__("k", "theirs"),
        lambda: d.update(a=1),
        lambda: d.pop("k"),
        lambda: d.compute("k", lambda value: value),
        d.clear,
        d.last_updated,
    ]
    raised: list[str] = []
    done = threading.Event()

    def ask(*_: object) -> None:
        for action in asks:
            try:
                action()
            except RuntimeError as error:
                raised.append(str(error))
        done.set()

    if where == "watch":
        cut.client.get(store.path_of("k"), watch=ask)
        store.put(k=1)
    elif where == "completion":
        cut.client.get_async(store.path_of("k")).rawlink(ask)
    else:
        cut.client.add_listener(ask)
        with cut.away():
            assert done.wait(PATIENCE)
            cut.client.remove_listener(ask)
    assert done.wait(PATIENCE)
    assert len(raised) == len(asks)
    assert all("a thread of kazoo's" in text for text in raised)
    store.check(d, "k")


@pytest.mark.parametrize("marked", [False, True])
def test_a_read_there_asks_nothing_or_raises(store: Store, marked: bool) -> None:
    store.put(k=0)
    d = store.open()
    elsewhere = store.raw.create(store.path + "-elsewhere", b"")
    answers: queue.Queue[Any] = queue.Queue()

    def read(event: object) -> None:
        try:
            answers.put(d["k"])
        except RuntimeError as error:
            answers.put(error)

    d.connection.get(elsewhere, watch=read)
    if marked:
        store.put(k=1)
        store.tell(d)
    store.raw.set(elsewhere, b"1")
    answer = answers.get(timeout=PATIENCE)
    assert isinstance(answer, RuntimeError) if marked else answer == 0
    assert d["k"] == int(marked)
    store.check(d, "k")


def test_changes_are_told_on_no_thread_of_kazoos(store: Store) -> None:
    """So a callback may ask."""
    store.put(k=0)
    d = store.open(autosync=False)
    told: queue.Queue[Any] = queue.Queue()
    d.on_change(lambda key, old, new: told.put((key, old, new, d.sync())))
    with d.watch(interval=PATIENCE):
        store.put(k=1)
        assert told.get(timeout=PATIENCE) == ("k", 0, 1, False)


# -- 0.3 and 0.4: own writes beside a sync, and of unknown outcome --------------------------------


STEPS: dict[str, Callable[[Dict], tuple[Any, str]]] = {
    "before the plan": lambda d: (d._tree, "plan"),
    "before the events are heard": lambda d: (d._client, "wait_for_events"),
    "before the answers are taken": lambda d: (d._tree, "accept"),
    "before the news are taken": lambda d: (d._tree, "news"),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_own_write_beside_the_sync_of_another_thread(store: Store, name: str) -> None:
    """Rule 0.3."""
    store.put(a=0, b=0)
    d = store.open()
    for number in range(1, 4):
        store.put(a=number)
        store.tell(d)
        writes: list[Callable[[], Any]] = []

        def write(number: int = number, writes: list[Any] = writes) -> None:
            over = threading.Event()
            with hook(d, "_take", after=over.set):
                writes.append(started_in_thread(lambda: d.update(b=number)))
                assert over.wait(PATIENCE)

        with hook(*STEPS[name](d), before=write, times=1):
            assert d["a"] == number
        for result in writes:
            result()
        assert d.copy() == {"a": number, "b": number}
    store.check(d, "a", "b")


def test_threads_that_write_and_read_one_dict_beside_another_client(store: Store) -> None:
    """Rule 0.3: each sees its own writes at once, and all is right in the end."""
    d, other = store.open(), store.open()

    def write(name: str) -> None:
        for number in range(40):
            d[name] = number
            assert d[name] == number
            if number % 10 == 5:
                del d[name]
                assert name not in d
            d.update({name: -number, "both": (name, number)})
            assert d[name] == -number

    def write_other() -> None:
        for number in range(80):
            other["theirs"] = number
            other.pop("both", None)

    results = [
        started_in_thread(function)
        for function in (lambda: write("a"), lambda: write("b"), write_other)
    ]
    for result in results:
        result()
    store.tell(d)
    assert d.copy() == store.truth()
    store.check(d, "a", "b", "both", "theirs")


REQUESTS = {
    "set": b"<setData",
    "create": b"<multi>",
    "delete": b"<multi>",
    "update": b"<multi>",
    "compare_and_set": b"<multi>",
    "compute": b"<multi>",
    "setdefault": b"<multi>",
    "pop": b"<multi>",
    "replace_all": b"<multi>",
    "clear": b"<multi>",
}


@pytest.mark.parametrize("autosync", [True, False])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_of_unknown_outcome_is_raised_and_what_is_there_is_loaded(
    store: Store, cut: Cut, name: str, done: bool, autosync: bool
) -> None:
    """Rule 0.4: and it is not sent again."""
    store.put(k=1, l=1)
    d = store.open(cut.client, autosync=autosync)
    fault = (cut.proxy.cut_after if done else cut.proxy.cut_before)(REQUESTS[name])
    with cut.proxy.logging() as log, pytest.raises(ConnectionLoss):
        WRITES[name](d)
    fault.wait()
    writes = [request for request in log if f"<{request.operation}".encode() in REQUESTS[name]]
    assert len(writes) == 1
    truth = store.truth()
    assert (truth == {"k": 1, "l": 1}) is not done
    assert dict(d.items()) == truth
    store.check(d, "k", "l", "new")


def test_a_write_that_arrives_late_is_seen_when_it_does(store: Store) -> None:
    """Rule 0.4: that there was no answer in time does not say that it was not done."""
    proxy = store.proxy()
    store.put(k=1)
    d = store.open(store.client(proxy.port))
    held = proxy.hold_request(b"<setData")
    patience, d._client.timeout = d._client.timeout, 0.05
    with pytest.raises(OperationTimeoutError):
        d["k"] = 2
    d._client.timeout = patience
    assert store.truth() == {"k": 1}
    held.release()
    wait_until(lambda: store.truth() == {"k": 2}, "the request arrives")
    assert d["k"] == 2
    store.check(d, "k")


def test_a_write_that_was_refused_leaves_the_copy_good(store: Store) -> None:
    store.put(k=1)
    d = store.open()
    with pytest.raises(ValueError, match="jute"):
        d["k"] = "x" * 2_000_000
    assert is_native(d)
    with pytest.raises(KeyError):
        del d["none"]
    assert d.copy() == {"k": 1}
    assert d.stats.reloads == 1
    store.check(d, "k")


REMOVALS: dict[str, Callable[[Dict], object]] = {
    "del": lambda d: d.__delitem__("k"),
    "pop": lambda d: d.pop("k"),
    "compute": lambda d: d.compute("k", lambda value: MISSING),
    "clear": lambda d: d.clear(),
}


@pytest.mark.parametrize("autosync", [True, False])
@pytest.mark.parametrize("may_write_place", [True, False])
@pytest.mark.parametrize("name", REMOVALS)
def test_a_key_that_another_makes_again_beside_its_removal_is_there(
    store: Store, name: str, may_write_place: bool, autosync: bool
) -> None:
    """Rule 4.3: also where no answer tells the number of the removal, as it raises no version."""
    store.put(k=1)
    if not may_write_place:
        acl = make_acl("world", "anyone", read=True, create=True, delete=True)
        store.raw.set_acls(store.path, [acl])
    d = store.open(autosync=autosync)
    d["other"] = 1
    del d["other"]  # By now it knows what it may.

    def made_again() -> None:
        store.put(k=2)
        in_thread(d.sync)
        assert dict.get(d, "k") == 2

    # The removal is done, and its answer is about to be handed to the tree.
    with hook(d._tree_transactions._commits, "run", after=made_again, times=1):
        REMOVALS[name](d)
    assert d.copy() == {"k": 2}
    store.check(d, "k")


# -- on_change ------------------------------------------------------------------------------------


def test_changes_are_told_in_the_order_in_which_they_were_applied(store: Store) -> None:
    """Own ones and others', of several threads: each begins where the last one of its key ended."""
    d, other = store.open(), store.open(autosync=False)
    told: list[tuple[str, Any, Any]] = []
    d.on_change(lambda *change: told.append(change))

    def write(writer: Dict, name: str) -> None:
        for number in range(60):
            writer["shared"] = (name, number)
            writer[name] = number
            d.get(name)
            if number % 7 == 3:
                writer.pop("shared", None)

    results = [
        started_in_thread(partial(write, *arguments))
        for arguments in ((d, "a"), (d, "b"), (other, "c"))
    ]
    for result in results:
        result()
    store.tell(d)
    d.sync()
    copy: dict[str, Any] = {}
    for key, old, new in told:
        assert copy.get(key, MISSING) == old
        copy[key] = new
    assert {key: value for key, value in copy.items() if value is not MISSING} == d.copy()
    assert d.copy() == store.truth()
    for name in "ab":
        numbers = [new for key, _, new in told if key == name]
        assert numbers == sorted(numbers)


def test_own_writes_and_those_of_others_are_told_one_by_one(store: Store) -> None:
    store.put(k=0)
    d = store.open()
    told: list[tuple[Any, ...]] = []
    d.on_change(lambda *change: told.append(change))
    d["k"] = 1
    store.put(k=2)
    store.tell(d)
    d["k"] = 3
    store.put(k=4, new=1)
    store.tell(d)
    assert d["k"] == 4
    del d["new"]
    d.pop("k")
    assert [change for change in told if change[0] == "k"] in (
        [("k", 0, 1), ("k", 1, 2), ("k", 2, 3), ("k", 3, 4), ("k", 4, MISSING)],
        # What was overwritten before anybody asked for it is not seen.
        [("k", 0, 1), ("k", 1, 3), ("k", 3, 4), ("k", 4, MISSING)],
    )
    assert [change for change in told if change[0] == "new"] == [
        ("new", MISSING, 1),
        ("new", 1, MISSING),
    ]


def test_a_removal_leaves_the_data_of_a_place_that_was_made_anew(store: Store) -> None:
    """Rule 4.5: it is at the version that the former one had."""
    store.put(a=1, b=1)
    d = store.open(autosync="strict")
    del d["a"]
    store.raw.delete(store.path, recursive=True)
    store.raw.create(store.path, b"")
    store.raw.set(store.path, b"somebody's")
    store.put(k=1)
    assert d.copy() == {"k": 1}
    del d["k"]
    assert d.copy() == store.truth() == {}
    assert store.raw.get(store.path)[0] == b"somebody's"
