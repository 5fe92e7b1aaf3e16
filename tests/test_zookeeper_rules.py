"""Rules of ZookeeperDict, each broken on a real server at the point where it matters.

The numbers are those of docs/internals.rst. Those of writes are in test_zookeeper_writes.py and
test_zookeeper_transactions.py, what requests cost is in test_zookeeper_requests.py, and every order
of what may happen, without a server, in test_zookeeper_tree.py.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kazoo.exceptions import ConnectionLoss
from kazoo.protocol.serialization import Exists, GetData
from kazoo.protocol.states import Callback, KazooState

from durabledict.testing.tools import in_thread
from durabledict.zookeeper import ATTEMPTS
from durabledict.zookeeperfetch import NARROW_ROUNDS, ROUNDS
from durabledict.zookeeperrequests import MultiRead, SetWatches

from .servers import PATIENCE, wait_until
from .zookeeperstore import Cut, Dict, Store, hook, hook_request, is_native, started_in_thread


@pytest.fixture
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for the library: rounds end by their number, however long they take."""
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: 1000.0)


# -- 4.0: stamps ----------------------------------------------------------------------------------


def test_each_write_of_another_is_another_stamp(store: Store) -> None:
    store.put(a=1, b=1)
    d = store.open(autosync=False)
    writes: list[Callable[[], object]] = [
        lambda: None,
        lambda: store.put(a=2),
        lambda: store.put(c=1),
        lambda: store.remove("b"),
        lambda: store.put(a=3, d=1),
    ]
    for number, write in enumerate(writes):
        stamp = d.last_updated()
        assert d.last_updated() == stamp
        write()
        assert (d.last_updated() == stamp) is (number == 0)
        assert d.sync() is (number > 0)
        assert d.cache_expired is None
    assert d == store.truth()


def test_an_older_answer_never_replaces_a_newer_value(store: Store) -> None:
    """Two threads: one was slow to take its answer."""
    store.put(k=1)
    d = store.open()
    store.put(k=2)
    store.tell(d)
    with hook(d._tree, "accept", before=lambda: in_thread(lambda: d.update(k=3)), times=1):
        assert d["k"] == 3
    store.check(d, "k")


# -- 4.1: marks, and batches ----------------------------------------------------------------------


@pytest.mark.parametrize("autosync", [True, False])
def test_an_event_only_marks(store: Store, autosync: bool) -> None:
    store.put(a=1, b=1)
    d = store.open(autosync=autosync)
    fetched, held = d.stats.keys_fetched, dict(d._tree.held)
    store.put(a=2, c=1)
    store.remove("b")
    store.tell(d)
    assert dict(zip(*d._lists(), strict=True)) == {"a": 1, "b": 1}
    assert d._tree.held == held
    assert d.stats.keys_fetched == fetched
    assert is_native(d) is not autosync
    d.sync()
    assert d.copy() == {"a": 2, "c": 1}
    assert d.stats.keys_fetched == fetched + 2


def reads(d: Dict) -> dict[str, Callable[[], object]]:
    return {"read": d.copy, "sync": d.sync, "by force": lambda: d.sync(force=True)}


@pytest.mark.parametrize("name", ["read", "sync", "by force"])
@pytest.mark.parametrize("one_by_one", [True, False], ids=["one by one", "in two halves"])
def test_a_batch_that_is_torn_across_a_transaction_is_asked_for_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, one_by_one: bool
) -> None:
    """It lands between two requests of one batch: the first answer is older than the second."""
    store.put(a=1, b=1, c=1, d=1)
    d = store.open()
    if one_by_one:
        d._client.read_one_by_one()
    else:
        monkeypatch.setattr("durabledict.zookeeperfetch.READ_AT_ONCE", 2)
    store.put(a=2, b=2, c=2, d=2)
    store.tell(d)

    def land() -> None:
        d.connection.exists("/")  # what was sent before is answered
        store.put(a=3, b=3, c=3, d=3)

    kinds = (GetData, MultiRead)
    with hook_request(d.connection, *kinds, before=land, times=1, first=2) as requests:
        reads(d)[name]()
    assert dict(zip(*d._lists(), strict=True)) == dict.fromkeys("abcd", 3)
    assert len(requests) >= 3
    store.check(d, *"abcd")


def test_so_is_that_of_the_first_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabledict.zookeeperfetch.READ_AT_ONCE", 1)
    store.put(a=1, b=1)
    client = store.client()

    def land() -> None:
        client.exists("/")
        store.put(a=2, b=2)

    with hook_request(client, GetData, before=land, times=1, first=2):
        d = store.open(client)
    assert dict(zip(*d._lists(), strict=True)) == {"a": 2, "b": 2}
    store.check(d, "a", "b")


def test_a_batch_in_which_a_key_comes_and_another_goes_is_one_state(store: Store) -> None:
    """The list is the first request: what the transaction adds, it does not have."""
    store.put(a=1, b=1)
    d = store.open()
    store.put(b=2)
    store.put(c=1)
    store.tell(d)

    def land() -> None:
        d.connection.exists("/")
        store.put(a=2, b=3, d=1)
        store.remove("c")

    seen: list[dict[Any, Any]] = []
    d.on_change(lambda key, old, new: seen.append(dict(zip(*d._lists(), strict=True))))
    with hook_request(d.connection, SetWatches, GetData, before=land, times=1):
        assert d.copy() == {"a": 2, "b": 3, "d": 1}
    assert seen == [{"a": 2, "b": 3, "d": 1}] * 3
    store.check(d, "a", "b", "c", "d")


def test_while_others_write_all_the_time_what_is_read_at_one_moment_is_one_state(
    store: Store,
) -> None:
    """Rule 4.1: by the time that the answer is here, something is marked again, always."""
    store.put(a=0, b=0, c=0)
    d = store.open()
    numbers = itertools.count(1)
    store.put(a=-1, b=-1)
    store.tell(d)

    def land() -> None:
        number = next(numbers)
        store.put(a=number, b=number)
        store.tell(d)

    with hook(d._client, "wait_for_events", before=land) as rounds:
        assert d["a"] == -1
    # What was marked by the moment of the answer, the answer shows.
    assert len(rounds) == 1
    assert dict(zip(*d._lists(), strict=True)) == {"a": -1, "b": -1, "c": 0}
    assert not d._is_told()
    assert d.copy() == {"a": 1, "b": 1, "c": 0}
    store.check(d, "a", "b")


def test_what_others_write_again_and_again_is_asked_for_together(store: Store) -> None:
    """Rule 4.1: what has changed during the sync is asked for with what changes next."""
    store.put(a=0, b=0, c=0)
    d = store.open()
    numbers = itertools.count(1)
    store.put(a=-1)
    store.tell(d)

    def land() -> None:
        # Each time it is another, that the request on its way does not ask for.
        number = next(numbers)
        store.put(**{"abc"[number % 3]: number})
        store.tell(d)

    with hook_request(d.connection, SetWatches, GetData, before=land) as rounds:
        state = d.copy()
    assert len(rounds) <= 4
    assert state == store.truth()
    store.check(d, "a", "b", "c")


@pytest.mark.parametrize("name", ["read", "sync", "by force"])
def test_where_that_is_more_than_a_request_reads_it_reads_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Rule 4.1: what several requests read is never one state while others write all the time."""
    monkeypatch.setattr("durabledict.zookeeperfetch.READ_AT_ONCE", 2)
    keys = [f"{number}{half}" for number in range(9) for half in "ab"]
    store.put(**dict.fromkeys(keys, 0))
    d = store.open()
    numbers = itertools.count(1)
    store.put(**dict.fromkeys(keys, -1))
    store.tell(d)

    def land() -> None:
        number = next(numbers)
        d.connection.exists("/")  # what was sent before is answered
        store.put(**dict.fromkeys((f"{number % 9}a", f"{number % 9}b"), number))

    with hook_request(d.connection, MultiRead, GetData, before=land) as requests:
        reads(d)[name]()
    state = dict(zip(*d._lists(), strict=True))
    assert all(state[f"{number}a"] == state[f"{number}b"] for number in range(9))
    assert len(requests) < 40
    store.check(d, "0a", "8b")


def test_where_each_time_it_is_another_key_all_are_asked_for(store: Store) -> None:
    """Rule 4.1: what is held and was not asked for has to be of the same state, too."""
    keys = [f"{number}{half}" for number in range(50) for half in "ab"]
    store.put(**dict.fromkeys(keys, 0))
    d = store.open()
    numbers = itertools.count(1)
    store.put(**{"0a": -1, "0b": -1})
    store.tell(d)

    def land() -> None:
        number = next(numbers) % 50
        store.put(**{f"{number}a": number, f"{number}b": number})
        store.tell(d)

    with hook_request(d.connection, SetWatches, GetData, before=land) as rounds:
        state = d.copy()
    assert all(state[f"{number}a"] == state[f"{number}b"] for number in range(50))
    assert len(rounds) <= 12
    store.check(d, "0a", "49b")


def test_while_keys_come_all_the_time_it_is_the_state_of_the_list(store: Store) -> None:
    store.put(k=0)
    d = store.open()
    numbers = itertools.count(1)

    def land() -> None:
        store.put(**{f"{next(numbers)}": 0})

    land()
    store.tell(d)
    with hook_request(d.connection, GetData, before=land) as requests:
        assert d.copy() == {"k": 0, "1": 0}
    assert len(requests) == 1
    store.check(d, "k", "1", "2")


def test_so_it_is_during_a_load_by_several_requests(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabledict.zookeeperfetch.READ_AT_ONCE", 3)
    store.put(a=0, b=0, c=0, d=0, e=0)
    client = store.client()
    numbers = itertools.count(1)

    def land() -> None:
        number = next(numbers)
        store.put(**{"abc"[number % 3]: number})
        store.tell_client(client)

    with hook_request(client, MultiRead, GetData, before=land) as requests:
        d = store.open(client)
    assert len(requests) <= 8
    assert dict(zip(*d._lists(), strict=True)) == store.truth()
    store.check(d, "a", "b", "c")


def test_a_first_load_that_others_tear_each_time_ends(store: Store) -> None:
    store.put(a=0, b=0)
    client = store.client()
    numbers = itertools.count(1)

    def land() -> None:
        number = next(numbers)
        store.put(a=number, b=number)
        client.sync(store.path)

    original = client.handler.dispatch_callback
    try:
        # Of the question to the leader.
        def dispatch(callback: Callback) -> None:
            if threading.current_thread() is threading.main_thread():
                land()
            original(callback)

        vars(client.handler)["dispatch_callback"] = dispatch
        d = store.open(client)
    finally:
        del vars(client.handler)["dispatch_callback"]
    assert next(numbers) < 20
    assert d.copy() == store.truth()
    store.check(d, "a", "b")


def test_keys_that_are_gone_are_those_that_are_not_listed(store: Store) -> None:
    store.put(a=1, b=1, c=1)
    d = store.open()
    store.remove("a", "c")
    store.tell(d)
    assert d.copy() == {"b": 1}
    store.check(d, "a", "b", "c")


def test_a_key_removed_and_made_again_between_two_syncs_is_one_change(store: Store) -> None:
    store.put(a=1, b=1)
    d = store.open(autosync=False)
    changes: list[tuple[Any, ...]] = []
    d.on_change(lambda *change: changes.append(change))
    store.remove("a", "b")
    store.put(a=2)
    store.put(b=1)
    d.sync()
    assert d == {"a": 2, "b": 1}
    assert changes == [("a", 1, 2)]
    store.check(d, "a", "b")


def test_a_key_made_again_after_the_list_was_made_stays(store: Store) -> None:
    """Rule 4.1: the list does not have it, and is older than it."""
    store.put(k=1)
    d = store.open()
    changes: list[tuple[Any, ...]] = []
    d.on_change(lambda *change: changes.append(change))
    store.remove("k")
    store.tell(d)

    def land() -> None:
        d.connection.exists("/")  # the list is answered
        store.put(k=2)

    with hook_request(d.connection, GetData, before=land, times=1):
        assert d["k"] == 2
    assert changes == [("k", 1, 2)]
    store.check(d, "k")


@pytest.mark.usefixtures("_unhurried")
def test_so_it_does_in_the_last_round(store: Store) -> None:
    """Each list is without it, and when it is asked for it is there: it is never missing."""
    store.put(k=0)
    d = store.open()
    changes: list[tuple[Any, ...]] = []
    d.on_change(lambda *change: changes.append(change))
    store.remove("k")
    store.tell(d)
    numbers = itertools.count(1)

    def make() -> None:
        d.connection.exists("/")
        store.put(k=next(numbers))

    def remove() -> None:
        store.remove("k")
        store.tell(d)  # so that it is asked for along with the list

    with (
        hook_request(d.connection, GetData, before=make),
        hook(d._tree, "accept", after=remove) as rounds,
    ):
        assert d["k"] == ROUNDS
    assert len(rounds) == ROUNDS
    assert changes == [("k", 0, ROUNDS)]
    assert "k" not in d
    store.check(d, "k")


def test_a_sync_ends_in_time_however_much_others_write(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each list is without a key that is there when it is asked for: no batch is one state."""
    now = 1000.0
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: now)
    store.put(k=0)
    d = store.open(autosync=False, timeout=3.0)
    store.remove("k")
    store.tell(d)
    numbers = itertools.count(1)

    def make() -> None:
        nonlocal now
        now += 0.25
        d.connection.exists("/")
        store.put(k=next(numbers))

    def remove() -> None:
        store.remove("k")
        store.tell(d)

    with (
        hook_request(d.connection, GetData, before=make),
        hook(d._tree, "accept", after=remove) as rounds,
    ):
        d._fetcher.fetch(d._decode_all, True)
    assert NARROW_ROUNDS < len(rounds) == 3.0 / 0.25 + 1 < ROUNDS
    store.check(d, "k")


def test_a_key_removed_after_the_list_was_made_is_gone(store: Store) -> None:
    store.put(a=1)
    d = store.open()
    store.put(k=1)
    store.tell(d)
    # The list has it, so it is asked for.
    with hook_request(d.connection, GetData, before=lambda: store.remove("k"), times=1):
        assert d.copy() == {"a": 1}
    store.check(d, "a", "k")


def test_a_place_that_is_made_and_removed_by_others(store: Store) -> None:
    d = store.open()
    assert d == {}
    for number in range(3):
        store.put(a=number)
        store.tell(d)
        assert d == {"a": number}
        store.raw.delete(store.path, recursive=True)
        store.tell(d)
        assert d == {}


def test_a_place_that_is_made_between_two_requests(store: Store) -> None:
    client = store.client()
    with hook_request(client, Exists, before=lambda: store.put(a=1), times=1):
        d = store.open(client)
    assert dict(zip(*d._lists(), strict=True)) == {"a": 1}
    assert d == {"a": 1}
    store.check(d, "a")


@pytest.mark.parametrize("autosync", [True, "strict", False])
def test_servers_that_cannot_read_many_znodes_are_asked_for_each(
    store: Store, cut: Cut, autosync: Any
) -> None:
    """Those before ZooKeeper 3.6: they refuse that once, and close the connection."""
    refused = cut.proxy.refuse_operation("multiRead")
    store.put(**{str(number): number for number in range(20)})
    with store.open(cut.client, autosync=autosync) as d:
        assert refused.hits == 1
        for number in range(3):
            store.put(**dict.fromkeys("147", number), new=number)
            store.tell(d)
            d.sync()
            assert d == store.truth()
        store.check(d, "1", "4", "new")
    other = store.open(cut.client, autosync=autosync)
    assert other == store.truth()
    assert refused.hits == 1


def test_a_znode_that_is_made_between_arming_and_reading(store: Store) -> None:
    """That its watch could not be armed is told by an event, before the answer."""
    store.put(a=1, b=1)
    d = store.open()
    store.put(a=2, b=2)
    store.tell(d)

    def make() -> None:
        d.connection.exists("/")  # what arms the watches is answered
        store.put(a=3)

    with (
        hook_request(d.connection, SetWatches, before=lambda: store.remove("a"), times=1),
        hook_request(d.connection, MultiRead, before=make, times=1) as requests,
    ):
        d.copy()
    assert requests
    store.check(d, "a", "b")


# -- 4.2: losing the connection -------------------------------------------------------------------


@pytest.mark.parametrize("autosync", [True, "strict", False])
@pytest.mark.parametrize("what", ["set", "create", "remove", "replace", "nothing"])
def test_what_was_written_while_the_connection_was_lost_is_seen(
    store: Store, cut: Cut, autosync: Any, what: str
) -> None:
    """No watch tells of it: kazoo drops them all, and the session stays the same."""
    store.put(**{str(number): number for number in range(20)})
    d = store.open(cut.client, autosync=autosync)
    syncs, fetched = d.stats.syncs, d.stats.keys_fetched
    with cut.away():
        if what in ("set", "replace"):
            store.put(**{"7": "seven"})
        if what in ("create", "replace"):
            store.put(new=1)
        if what in ("remove", "replace"):
            store.remove("8")
    if autosync is False:
        assert d.sync() is (what != "nothing")
    assert dict(d.items()) == store.truth()
    # All are asked for, and of what has stayed the same nothing is decoded.
    changed = {"set": 1, "create": 1, "remove": 0, "replace": 2, "nothing": 0}[what]
    assert d.stats.keys_fetched == fetched + changed
    assert d.stats.syncs == syncs + 1
    assert d.stats.reloads == 1
    store.check(d, "7", "8", "9", "new")


def test_a_watch_sees_what_was_written_meanwhile(store: Store, cut: Cut) -> None:
    store.put(a=1, b=1)
    d = store.open(cut.client, autosync=False)
    with d.watch(interval=PATIENCE):
        for number in range(3):
            with cut.away():
                store.put(a=number, new=number)
            wait_until(lambda: dict(d) == store.truth(), "the watch brings it")
            store.put(b=number)
            wait_until(lambda: dict(d) == store.truth(), "the watch brings this, too")


def test_answers_from_before_a_loss_are_thrown_away(store: Store, cut: Cut) -> None:
    """They came in time, but what they have armed is not armed any more."""
    store.put(a=1, b=1)
    d = store.open(cut.client)
    store.put(a=2)
    store.tell(d)

    def lose() -> None:
        with cut.away():
            store.put(a=3, b=3)

    with hook(d._tree, "accept", before=lose, times=1) as rounds:
        assert d.copy() == {"a": 3, "b": 3}
    assert len(rounds) > 1
    store.check(d, "a", "b")


def test_a_loss_during_the_first_load(store: Store, cut: Cut) -> None:
    store.put(a=1, b=1)

    def lose() -> None:
        with cut.away():
            store.put(a=2, c=2)

    # The watches are armed, and the answer is not there yet.
    with hook_request(cut.client, MultiRead, before=lose, times=1) as requests:
        d = store.open(cut.client)
    assert len(requests) == 2
    assert d.copy() == store.truth() == {"a": 2, "b": 1, "c": 2}
    store.check(d, "a", "b", "c")


@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize(
    "operation", ["sync", "getChildren2", "setWatches", "multiRead", "getData"]
)
def test_a_read_whose_connection_is_lost_meanwhile_asks_again(
    store: Store, cut: Cut, operation: str, fault: str
) -> None:
    """To read twice does no harm; a write is never sent twice."""
    store.put(a=1, b=1)
    d = store.open(cut.client, autosync="strict")
    store.put(a=2, b=2)
    store.put(c=1)
    store.tell(d)
    lost = getattr(cut.proxy, fault)(f"<{operation}".encode())
    assert d.copy() == {"a": 2, "b": 2, "c": 1}
    assert lost.hits == 1
    store.check(d, "a", "b", "c")


@pytest.mark.usefixtures("_unhurried")
def test_a_connection_that_is_lost_again_and_again_is_an_outage(store: Store, cut: Cut) -> None:
    """And what is held is not taken for the answer."""
    store.put(a=1, b=1)
    d = store.open(cut.client, autosync="strict")
    store.put(a=2, b=2)
    store.tell(d)
    lost = cut.proxy.cut_before(b"<multiRead", times=None)
    with pytest.raises(ConnectionLoss):
        d.copy()
    with pytest.raises(ConnectionLoss):
        d.sync(force=True)
    assert lost.hits == 2 * ROUNDS
    leader = cut.proxy.cut_before(b"<sync", times=None)
    with pytest.raises(ConnectionLoss):
        d.copy()
    assert leader.hits == ATTEMPTS


def test_a_loss_between_the_answer_to_an_own_write_and_its_apply(store: Store, cut: Cut) -> None:
    store.put(a=1, b=1)
    d = store.open(cut.client)

    def lose() -> None:
        with cut.away():
            store.put(a=3, b=3)

    with hook(d._tree, "wrote", before=lose, times=1):
        d["a"] = 2
    assert d.copy() == {"a": 3, "b": 3}
    store.check(d, "a", "b")


def test_a_read_waits_for_a_connection_that_was_lost(store: Store, cut: Cut) -> None:
    """Also before anybody was told of the loss."""
    store.put(a=1)
    d = store.open(cut.client, autosync="strict")
    with cut.away():
        pass
    assert d["a"] == 1
    told = threading.Event()
    with hook(cut.client, "_make_state_change", before=lambda: told.wait(PATIENCE), times=1) as on:
        cut.proxy.cut()
        wait_until(lambda: on, "the connection is lost")
        store.put(a=2)
        with hook(d._client._connected, "wait", before=told.set):
            assert started_in_thread(lambda: d["a"])() == 2
    store.check(d, "a")


def expire(store: Store, d: Dict) -> None:
    """End the session, and wait for the next one: by then all listeners have heard of it."""
    states: queue.Queue[str] = queue.Queue()
    d.connection.add_listener(states.put)
    store.server.expire(d.connection)
    for state in (KazooState.LOST, KazooState.CONNECTED):
        while states.get(timeout=PATIENCE) != state:
            pass
    d.connection.remove_listener(states.put)


def test_a_session_that_expired_is_loaded_anew(store: Store) -> None:
    store.put(a=1, b=1)
    d = store.open()
    expire(store, d)
    store.put(a=2, c=1)
    store.remove("b")
    assert d.copy() == {"a": 2, "c": 1}
    assert d.stats.reloads == 2
    store.check(d, "a", "b", "c")


@pytest.mark.parametrize("name", ["accept", "reloaded", "plan"])
def test_an_own_write_while_all_is_loaded_anew(store: Store, name: str) -> None:
    """Rule 0.3: it cannot be applied to a copy that has not what was loaded."""
    store.put(a=1, b=1)
    d = store.open()
    expire(store, d)
    store.put(a=2)
    writes: list[Callable[[], Any]] = []

    def write() -> None:
        # To its end, unless it waits for the sync that is under way.
        over = threading.Event()
        with hook(d, "_take", after=over.set):
            writes.append(started_in_thread(lambda: d.update(b=2)))
            assert over.wait(PATIENCE)

    with hook(d._tree, name, before=write, times=1):
        assert d["a"] == 2
    for result in writes:
        result()
    assert d.copy() == {"a": 2, "b": 2}
    store.check(d, "a", "b")


def test_own_writes_before_and_while_all_is_loaded_anew(store: Store) -> None:
    """Rule 0.3: the first ones make the news unknown, and the last one is made from them."""
    store.put(a=1, b=1)
    d = store.open(autosync=False)
    d["b"] = 2
    results: list[Callable[[], Any]] = []

    def write(*values: int) -> None:
        # To its end, unless it waits for the sync that is under way.
        over = threading.Event()

        def writes() -> None:
            for value in values:
                d["b"] = value
            over.set()

        with hook(d, "_take", after=over.set, first=len(values)):
            results.append(started_in_thread(writes))
            assert over.wait(PATIENCE)

    def write_two() -> None:
        write(3, 4)
        store.put(a=2)

    with (
        hook(d, "changes", before=write_two, times=1),
        hook(d._tree, "reloaded", before=lambda: write(5), times=1),
    ):
        assert d.sync() is True
    for result in results:
        result()
    assert d.copy() == store.truth()
    store.check(d, "a", "b")
