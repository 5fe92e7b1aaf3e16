"""What ZookeeperDict asks of its server: how often, and what is sent together.

Counted in a proxy between the two. The numbers are the rules of docs/internals.rst.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durabledict import ZookeeperDict
from durabledict.testing.tools import in_thread

from .jute import Request
from .servers import PATIENCE, wait_until
from .zookeeperproxy import ZookeeperProxy
from .zookeeperstore import Cut, Dict, Store, hook, is_native, started_in_thread

SIZES = [10, 200]


class Asked:
    """A store, and what the dicts that are opened through `port` ask of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cut = Cut(store)
        self.proxy: ZookeeperProxy = self.cut.proxy

    def fill(self, size: int) -> None:
        self.store.put(**{str(number): number for number in range(size)})

    def open(self, **options: Any) -> Dict:
        return self.store.open(self.cut.client, **options)

    @contextmanager
    def exactly(self, **expected: int) -> Iterator[list[Request]]:
        """Expect so many requests of these kinds, and no others."""
        with self.proxy.logging() as log:
            yield log
            self.cut.client.exists("/")  # what was sent before it has come to the proxy now
        log.remove(Request("exists", "/"))
        assert Counter(request.operation for request in log) == expected


def reading(number: int) -> dict[str, int]:
    """The requests that read so many znodes, and arm watches that are not armed."""
    hundreds, rest = divmod(number, 100)
    hundreds += rest > 1
    together = {"setWatches": hundreds, "multiRead": hundreds} if hundreds else {}
    return {**together, "getData": 1} if rest == 1 else together


@pytest.fixture
def asked(store: Store) -> Asked:
    return Asked(store)


def synced(d: Dict, asked: Asked) -> None:
    """Let the dict hear of something: an own write after that arms its watch at once."""
    asked.store.put(other=object.__hash__(d))
    d.sync()


# -- reads ----------------------------------------------------------------------------------------

READS: dict[str, Callable[[Dict], object]] = {
    "d[k]": lambda d: d["1"],
    "get": lambda d: d.get("none"),
    "in": lambda d: "1" in d,
    "len": len,
    "for": list,
    "items": lambda d: d.items(),
    "copy": lambda d: d.copy(),
    "==": lambda d: d == {},
}


@pytest.mark.parametrize("autosync", [True, False])
def test_while_nothing_is_told_reads_ask_nothing(asked: Asked, autosync: bool) -> None:
    asked.fill(10)
    d = asked.open(autosync=autosync)
    for _ in range(2):
        with asked.exactly():
            assert is_native(d)
            for _ in range(100):
                for read in READS.values():
                    read(d)
        d["1"] = 1
        d.sync()


def test_a_strict_read_is_one_question_to_the_leader(asked: Asked) -> None:
    asked.fill(10)
    d = asked.open(autosync="strict")
    with asked.exactly(sync=100):
        for _ in range(100):
            assert d["1"] == 1
    with asked.exactly(sync=1):
        assert d.sync() is False


def test_with_seconds_it_is_one_in_that_time(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: now)
    asked.fill(10)
    d = asked.open(autosync=10.0)
    for _ in range(3):
        with asked.exactly():
            for _ in range(100):
                assert d["1"] == 1
        now += 10.0
        with asked.exactly(sync=1):
            for _ in range(100):
                assert d["1"] == 1


def test_sixteen_strict_reads_at_once_are_two_questions(asked: Asked) -> None:
    """Rule 0.6: the answer that is held is older than the later reads."""
    asked.fill(2)
    d = asked.open(autosync="strict")
    held = asked.proxy.hold(b"<sync")
    came: list[None] = []
    lock = d._sync_mutex

    class Counted:
        def __enter__(self) -> None:
            came.append(None)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    mutex: Any = Counted()
    with asked.exactly(sync=2, getData=1):
        first = started_in_thread(lambda: d["1"])
        held.wait()
        asked.store.put(**{"1": "new"})
        d._sync_mutex = mutex
        results = [started_in_thread(lambda: d["1"]) for _ in range(15)]
        wait_until(lambda: len(came) == 15, "all threads wait")
        held.release()
        # The server did the first one's `sync` before the write, but its event was quicker.
        assert first() in (1, "new")
        assert [result() for result in results] == ["new"] * 15
    d._sync_mutex = lock


# -- syncs ----------------------------------------------------------------------------------------

# How a change comes to be seen, and which questions to the leader that takes.
WAYS: dict[str, tuple[Any, dict[str, int]]] = {
    "told": (True, {}),
    "strict": ("strict", {"sync": 1}),
    "sync": (False, {"sync": 1}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_a_changed_value_is_one_request_whatever_the_size(
    asked: Asked, way: str, size: int
) -> None:
    autosync, syncs = WAYS[way]
    asked.fill(size)
    d = asked.open(autosync=autosync)
    for value in range(3):
        asked.store.put(**{"7": value})
        asked.store.tell(d)
        with asked.exactly(getData=1, **syncs) as log:
            if way == "sync":
                assert d.sync() is True
            assert d["7"] == value
        assert Request("getData", asked.store.path_of("7"), watch=True) in log
    asked.store.put(**{"3": "three", "4": "four", "5": "five"})
    asked.store.tell(d)
    with asked.exactly(**reading(3), **syncs):
        if way == "sync":
            assert d.sync() is True
        assert d["3"] == "three"
    assert d.stats.reloads == 1
    assert d.stats.keys_fetched == size + 6
    assert d.copy() == asked.store.truth()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_comes_or_goes_is_one_more_for_the_list(
    asked: Asked, way: str, size: int
) -> None:
    autosync, syncs = WAYS[way]
    asked.fill(size)
    d = asked.open(autosync=autosync)
    for value in range(2):
        asked.store.put(new=value)
        asked.store.tell(d)
        with asked.exactly(getChildren2=1, getData=1, **syncs) as log:
            if way == "sync":
                assert d.sync() is True
            assert d["new"] == value
        assert Request("getChildren2", asked.store.path, watch=True) in log
        asked.store.remove("new")
        asked.store.tell(d)
        with asked.exactly(getChildren2=1, getData=1, **syncs):
            if way == "sync":
                assert d.sync() is True
            assert "new" not in d
    assert d.stats.reloads == 1
    assert d.copy() == asked.store.truth()


def test_a_changed_value_under_a_watch_is_one_request(asked: Asked) -> None:
    """The thread that an event has woken asks no leader."""
    asked.fill(50)
    d = asked.open(autosync=False)
    with d.watch(interval=PATIENCE):
        asked.store.put(ready=1)
        wait_until(lambda: "ready" in d, "the watch runs")
        wait_until(lambda: d._is_told(), "it has seen all")
        for value in range(5):
            with asked.exactly(getData=1):
                asked.store.put(**{"7": value})
                wait_until(lambda: d["7"] == value, "the watch brings it")


def test_a_sync_beside_own_writes_of_another_thread_loads_nothing_anew(asked: Asked) -> None:
    """Rule 0.3: its round is lost, and what is new since it began is still known."""
    asked.fill(200)
    d = asked.open(autosync=False)
    d["0"] = "own"  # uses up a watch, so that there is something to ask for

    def write() -> None:
        in_thread(lambda: d.__setitem__("1", "own"))
        in_thread(lambda: d.__setitem__("2", "own"))

    with hook(d, "changes", before=write, times=1), asked.proxy.counting() as calls:
        d.sync()
    assert calls["getData"] <= 6
    assert calls["getChildren2"] == 0
    assert d.stats.reloads == 1
    asked.store.check(d, "0", "1", "2")


@pytest.mark.parametrize("one_by_one", [True, False])
def test_many_changes_are_asked_for_at_once(asked: Asked, one_by_one: bool) -> None:
    """Nobody waits for one answer before the next question."""
    asked.fill(250)
    d = asked.open()
    if one_by_one:
        d._client.read_one_by_one()
    asked.store.put(**{str(number): -number for number in range(250)})
    asked.store.tell(d)
    operation, number = (b"<getData", 250) if one_by_one else (b"<multiRead", 3)
    held = asked.proxy.hold(operation)
    seen = asked.proxy.watch(operation)
    result = started_in_thread(lambda: d["7"])
    held.wait()
    wait_until(lambda: seen.hits == number, "all are asked for")
    held.release()
    assert result() == -7


def test_so_many_are_under_way_at_once_and_no_more(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an object in the client until it is answered."""
    monkeypatch.setattr("durabledict.zookeeperfetch.BURST", 10)
    asked.fill(25)
    d = asked.open()
    d._client.read_one_by_one()
    asked.store.put(**{str(number): -number for number in range(25)})
    asked.store.tell(d)
    held = asked.proxy.hold(b"<getData")
    seen = asked.proxy.watch(b"<getData")
    behind = asked.proxy.watch(b"<exists")
    waits = threading.Event()
    with hook(d._client, "wait", before=waits.set):
        result = started_in_thread(lambda: d["7"])
        # A request of this thread's would come between them while they are being sent.
        assert waits.wait(PATIENCE)
        asked.cut.client.exists_async("/")
        behind.wait()
        assert seen.hits == 10
        held.release()
        assert result() == -7
    assert seen.hits == 25


@pytest.mark.parametrize("first", ["list", "key"])
def test_so_is_the_list_along_with_them(asked: Asked, first: str) -> None:
    asked.fill(3)
    d = asked.open()
    asked.store.put(**{"1": "one", "new": 1})
    asked.store.tell(d)
    requests = {"list": b"<getChildren2", "key": f"<getData {asked.store.path_of('1')}>".encode()}
    held = asked.proxy.hold(requests.pop(first))
    (other,) = requests.values()
    seen = asked.proxy.watch(other)
    result = started_in_thread(d.copy)
    held.wait()
    seen.wait()
    held.release()
    assert result() == asked.store.truth()


@pytest.mark.parametrize("size", SIZES)
def test_a_first_load_is_two_requests_for_each_hundred_keys(asked: Asked, size: int) -> None:
    asked.fill(size)
    with asked.exactly(sync=1, getChildren2=1, **reading(size)) as log:
        d = asked.open()
    assert Request("getChildren2", asked.store.path, watch=True) in log
    with asked.exactly():
        assert len(d) == size
    # It arms all watches once more: that they are armed is known only from what was told.
    with asked.exactly(sync=1, getChildren2=1, **reading(size)):
        d.sync(force=True)


def test_with_servers_that_read_one_znode_it_is_one_request_a_key(asked: Asked) -> None:
    asked.fill(10)
    other: Dict = asked.store.open(asked.cut.client, autosync=False)
    other._client.read_one_by_one()
    with asked.exactly(sync=1, getChildren2=1, getData=10) as log:
        asked.open()
    assert all(request.watch for request in log if request.operation != "sync")
    with asked.exactly(sync=1, getChildren2=1, getData=10):
        other.sync(force=True)


def test_opening_makes_the_empty_place_and_nothing_else(asked: Asked) -> None:
    path = asked.store.path
    with asked.exactly(sync=2, getChildren2=2, exists=3, create=1):
        d = asked.open()
    made = asked.store.raw.exists(path)
    assert made is not None
    with asked.exactly(sync=1, getChildren2=1):
        asked.open()
    with asked.exactly():
        assert d == {}
        assert d.get("a") is None
    with asked.exactly(sync=1):
        assert d.sync() is False
    d.clear()
    d.replace_all({})
    d.update({})
    assert d.pop("a", None) is None
    with pytest.raises(KeyError):
        del d["a"]
    assert asked.store.raw.exists(path) == made


@pytest.mark.parametrize("size", SIZES)
def test_after_a_loss_all_is_asked_for_and_nothing_is_decoded(asked: Asked, size: int) -> None:
    """Rule 4.2: to arm the watches. No leader is asked."""
    asked.fill(size)
    d = asked.open()
    fetched = d.stats.keys_fetched
    for _ in range(2):
        with asked.cut.away():
            pass
        with asked.exactly(getChildren2=1, **reading(size)):
            assert d["7"] == 7
        with asked.exactly():
            assert d["8"] == 8
    assert d.stats.keys_fetched == fetched
    assert d.stats.reloads == 1


@pytest.mark.parametrize("whose", ["own", "others'"])
def test_an_answer_is_no_larger_than_a_server_can_make(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Where others write all the time, all is asked for at once: that may be a gigabyte."""
    monkeypatch.setattr("durabledict.zookeeperfetch.ANSWER_LIMIT", 4_000)
    entries = {f"k{number}": "x" * 900 for number in range(10)}
    asked.store.put(**(entries if whose == "others'" else dict.fromkeys(entries, "")))
    d = asked.open()
    if whose == "own":
        d.update(entries)
    with asked.cut.away():
        pass
    with asked.exactly(getChildren2=1, setWatches=3, multiRead=3):
        assert d.copy() == entries


# -- writes ---------------------------------------------------------------------------------------


def test_a_write_is_one_request(asked: Asked) -> None:
    """In a row: nobody asks in between."""
    asked.fill(10)
    d = asked.open()
    with asked.exactly(setData=20):
        for number in range(20):
            d["7"] = number
    with asked.exactly(multi=1):
        d["new"] = 1
    with asked.exactly(setData=1):
        d["new"] = 2
    assert d.copy() == asked.store.truth()


def test_after_a_sync_it_is_two_sent_together(asked: Asked) -> None:
    """Rule 4.3: the second arms the watch that the first uses up, and nobody waits for it."""
    asked.fill(10)
    d = asked.open()
    synced(d, asked)
    with asked.exactly(setData=1, getData=1) as log:
        d["7"] = 1
    assert log[-1] == Request("getData", asked.store.path_of("7"), watch=True)
    with asked.exactly():
        assert d["7"] == 1  # the answer is there, or waited for
        assert is_native(d)
    d["7"] = 2
    assert d["7"] == 2
    with asked.exactly(multi=1, getData=1, getChildren2=1):
        d["new"] = 1
        assert d["new"] == 1
    held = asked.proxy.hold(b"<setData")
    arms = asked.proxy.watch(b"<getData")
    result = started_in_thread(lambda: d.__setitem__("7", 3))
    held.wait()
    arms.wait()
    held.release()
    result()
    assert d.copy() == asked.store.truth()


def test_of_its_own_write_a_client_tells_nobody(asked: Asked) -> None:
    """Rule 4.3: the write would have to wait until that is heard."""
    asked.fill(2)
    d, other = asked.open(), asked.open()
    assert d["1"] == other["1"] == 1
    events, others = d._tree.events, other._tree.events
    d["1"] = "own"
    assert d._tree.events == events
    wait_until(lambda: other._tree.events > others, "the other dict hears of it")
    assert d["1"] == other["1"] == "own"
    # The sync of that read has armed a watch again.
    other["1"] = "other's"
    wait_until(lambda: d._tree.events > events, "the event")
    assert d["1"] == "other's"


def test_a_write_does_not_wait_for_the_watch_that_it_arms(asked: Asked) -> None:
    """The next read does, and asks no more."""
    asked.fill(2)
    d = asked.open()
    synced(d, asked)
    held = asked.proxy.hold(b"<getData")
    waits = threading.Event()
    with asked.exactly(setData=1, getData=1):
        d["1"] = "own"
        held.wait()
        assert dict.__getitem__(d, "1") == "own"
        with hook(d._tree, "under_way", after=waits.set):
            result = started_in_thread(lambda: d["1"])
            assert waits.wait(PATIENCE)
        held.release()
        assert result() == "own"


def test_a_read_after_a_write_that_armed_nothing_asks_for_that_key(asked: Asked) -> None:
    asked.fill(10)
    d = asked.open()
    d["7"] = 1
    with asked.exactly(getData=1):
        assert d["7"] == 1
    with asked.exactly():
        assert d["7"] == 1


@pytest.mark.parametrize("size", [1, 10, 500])
def test_update_is_one_transaction_whatever_the_number(asked: Asked, size: int) -> None:
    asked.fill(3)
    d = asked.open()
    with asked.exactly(multi=1):
        d.update({str(number): -number for number in range(3)})
    with asked.exactly(multi=1):
        d.update({f"new-{number}": number for number in range(size)})
    with asked.exactly(multi=1):
        d.update({f"new-{number}": -number for number in range(size)})
    assert d.sync() is False
    with asked.exactly(multi=1, **({"getData": size} if size <= 16 else {})):
        d.update({f"new-{number}": number for number in range(size)})
    assert d.copy() == asked.store.truth()


@pytest.mark.parametrize("size", [10, 500])
def test_replace_all_is_a_sync_and_a_transaction_of_the_difference(asked: Asked, size: int) -> None:
    asked.fill(3)
    d = asked.open()
    wanted = {str(number): number for number in range(size)}
    with asked.exactly(sync=1, multi=1):
        d.replace_all(wanted)
    d.sync()
    with asked.exactly(sync=1):
        d.replace_all(wanted)  # no difference
    other: Dict = asked.store.open()
    other.update({str(number): "theirs" for number in range(3)})
    asked.store.tell(d)
    # What the others wrote is asked for, and put back.
    with asked.exactly(sync=1, multi=1, getData=3, **reading(3)):
        d.replace_all(wanted)
    # Once, what removals write along with them is read.
    with asked.exactly(sync=1, getData=1, multi=1):
        d.replace_all({"1": 1})
    d.update(wanted)
    d.sync()
    with asked.exactly(sync=1, multi=1):
        d.clear()
    assert asked.store.truth() == d.copy() == {}


def test_what_the_other_methods_cost(asked: Asked) -> None:
    asked.fill(10)
    d = asked.open()
    read = {"sync": 1, "getData": 2}
    with asked.exactly(multi=1, getData=1):
        del d["0"]
    with asked.exactly(multi=1):
        del d["1"]
    costs: list[tuple[Callable[[], object], dict[str, int]]] = [
        (lambda: d.setdefault("2", 0), {"sync": 1}),
        (lambda: d.setdefault("new", 0), {"sync": 2, "getData": 2, "multi": 1}),
        (lambda: d.pop("new"), {**read, "multi": 1}),
        (lambda: d.pop("new", None), read),
        (lambda: d.compare_and_set("2", 2, 0), {**read, "multi": 1}),
        (lambda: d.compare_and_set("2", 2, 0), read),
        (lambda: d.compute("2", lambda value: value + 1), {**read, "multi": 1}),
        (lambda: d.compute("new", lambda value: value + 1, 0), {**read, "multi": 1}),
        (lambda: d.last_updated(), {"sync": 1}),
        (lambda: d.cache_expired, {"sync": 1}),
    ]
    for number, (action, cost) in enumerate(costs):
        # What an own write leaves to the next sync is not part of what it costs, nor what it does
        # about it when there was one.
        d.copy()
        d._tree.is_asked_for = False
        with asked.exactly(**cost):
            action()
        assert d.copy() == asked.store.truth(), number


def test_a_compare_and_set_reads_all_that_it_needs_in_one_round_trip(asked: Asked) -> None:
    asked.fill(2)
    d = asked.open()
    held = asked.proxy.hold(b"<sync")
    reads = asked.proxy.watch(b"<getData")
    result = started_in_thread(lambda: d.compute("1", lambda value: value + 1))
    held.wait()
    wait_until(lambda: reads.hits == 2, "the znode and its place are asked for")
    held.release()
    assert result() == 2


def test_threads_may_share_a_client_of_several_dicts(asked: Asked) -> None:
    """Each has watches of its own, and a request of one marks nothing of another."""
    asked.fill(10)
    one, two = asked.open(), asked.open(autosync=False)
    other = ZookeeperDict[Any, Any](asked.store.path + "-other", asked.cut.client)
    with other:
        other["7"] = 7
        with asked.exactly():
            assert one["7"] == 7
        asked.store.put(**{"7": "new"})
        asked.store.tell(one)
        with asked.exactly(getData=1):
            assert one["7"] == "new"
            assert two["7"] == 7
        with asked.exactly(sync=1, getData=1):
            assert two.sync() is True
        assert other["7"] == 7
