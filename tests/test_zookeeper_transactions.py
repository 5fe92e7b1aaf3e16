"""Compare-and-set and transactions of ZookeeperDict, beside other writers and processes.

The numbers are those of the rules of docs/internals.rst, as in test_zookeeper_rules.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss

from durabledict import MISSING, ConflictError

from .sqliteprocesses import Other
from .zookeeperstore import Dict, Store, hook, payload, started_in_thread

# -- 4.5: compare and set, and transactions -------------------------------------------------------


def same_again(store: Store, writer: Dict) -> None:
    """Remove a key and make it again, so that its znode has the version that it had."""
    _, before = store.raw.get(store.path_of("k"))
    writer["k"] = writer.pop("k")
    _, after = store.raw.get(store.path_of("k"))
    assert after.version == before.version
    assert after.czxid != before.czxid


def edit(d: Any) -> None:
    with d.edit("k") as value:
        value.append(2)


#: Writes of the key "k" that look at its value first, and take it for [1].
LOOKING: dict[str, Callable[[Any], Any]] = {
    "compare_and_set": lambda d: d.compare_and_set("k", [1], [2]),
    "removal": lambda d: d.compare_and_set("k", [1], MISSING),
    "edit": edit,
    "compute": lambda d: d.compute("k", lambda value: [*value, 2]),
    "pop": lambda d: d.pop("k"),
}

#: What they return where it is.
DONE = {"compare_and_set": True, "removal": True, "edit": None, "compute": [1, 2], "pop": [1]}


@pytest.mark.parametrize("what", LOOKING)
def test_a_znode_removed_and_made_again_is_another_one(store: Store, what: str) -> None:
    """Between the read and the write of it: its version is the same (ABA)."""
    writer, d = store.open(), store.open()
    writer["k"] = [1]
    d.sync()
    with ExitStack() as stack:
        commits = stack.enter_context(hook(d, "_compare_and_set"))
        stack.enter_context(
            hook(d._writer, "read", after=lambda: same_again(store, writer), times=1)
        )
        if what == "edit":
            with pytest.raises(ConflictError):
                edit(d)
        else:
            assert LOOKING[what](d) == DONE[what]
    # Refused the first time.
    assert len(commits) == (1 if what == "edit" else 2)
    store.check(writer, "k")
    store.check(d, "k")


@pytest.mark.parametrize("what", LOOKING)
def test_one_written_meanwhile_is_another_one_also_if_another_key_was_removed(
    store: Store, what: str
) -> None:
    writer, d = store.open(), store.open()
    writer.update(k=[1], l=1)
    d.sync()

    def land() -> None:
        writer["k"] = [5]
        del writer["l"]

    with hook(d._writer, "read", after=land, times=1):
        if what == "edit":
            with pytest.raises(ConflictError):
                edit(d)
        else:
            refused = {"compare_and_set": False, "removal": False, "compute": [5, 2], "pop": [5]}
            assert LOOKING[what](d) == refused[what]
    expected = {"compute": {"k": [5, 2]}, "pop": {}}.get(what, {"k": [5]})
    assert d.copy() == store.truth() == expected
    store.check(d, "k", "l")


@pytest.mark.parametrize("what", LOOKING)
def test_the_removal_of_another_key_refuses_nothing(store: Store, what: str) -> None:
    """Though it raises the version that tells of removals: nothing is done twice."""
    writer, d = store.open(), store.open()
    writer.update(k=[1], l=1, m=1)
    d.sync()
    others = iter("lm")
    with ExitStack() as stack:
        commits = stack.enter_context(hook(d, "_compare_and_set"))
        stack.enter_context(
            hook(d._writer, "read", after=lambda: writer.pop(next(others)), times=2)
        )
        assert LOOKING[what](d) == DONE[what]
    assert len(commits) == 1
    assert set(store.truth()) == (set() if what in ("removal", "pop") else {"k"})
    store.check(d, "k", "l")


def test_made_again_by_another_program_it_is_overwritten_and_that_is_said(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(k=1)
    d = store.open()

    def same() -> None:
        store.remove("k")
        store.put(k=1)

    with hook(d._writer, "read", after=same, times=1):
        assert d.compare_and_set("k", 1, 2) is True
    # kazoo, which may tell of its connection, is none of this.
    (record,) = (record for record in caplog.records if record.name == "durabledict.zookeeper")
    assert "'k' was removed and made again by another program" in record.getMessage()
    assert d["k"] == 2
    store.check(d, "k")


@pytest.mark.parametrize("name", ["setdefault", "compute", "compare_and_set"])
def test_a_key_is_added_once_also_where_the_place_is_made_meanwhile(
    store: Store, name: str
) -> None:
    """There was no place, so that it cannot be added; and then another has added it."""
    d, other = store.open(), store.open()
    store.raw.delete(store.path)  # opening has made it

    def land() -> None:
        other["k"] = [0]

    with hook(d.connection, "get_children_async", before=land, times=1) as calls:
        if name == "setdefault":
            assert d.setdefault("k", [1]) == [0]
        elif name == "compute":
            assert d.compute("k", lambda value: [*value, 1], default=[]) == [0, 1]
        else:
            assert d.compare_and_set("k", MISSING, [1]) is False
    assert calls
    assert store.truth() == {"k": [0, 1] if name == "compute" else [0]}
    store.check(d, "k")


# What the functions below keep in their process.
_far: dict[str, Any] = {}


def open_far(hosts: str, path: str) -> None:
    client = KazooClient(hosts=hosts)
    _far["dict"] = Dict(path, client, autosync=False)


def count_far(times: int) -> None:
    for _ in range(times):
        _far["dict"].compute("n", lambda number: number + 1, default=0)


def close_far() -> None:
    _far.pop("dict").close()


def test_no_count_is_lost_between_threads_and_processes(store: Store) -> None:
    """Beside another that takes the number away, and puts the key there again."""
    times = 40
    near = store.open()
    taker = store.open()
    taken = [0]

    def take() -> None:
        for _ in range(times):
            taken[0] += taker.pop("n", 0)
            taker.setdefault("n", 0)

    with Other() as other:
        other(open_far, store.server.hosts, store.path)
        _far["dict"] = near
        results = [
            started_in_thread(function)
            for function in (lambda: count_far(times), lambda: count_far(times), take)
        ]
        other.start(count_far, times)
        for result in results:
            result()
        other.result()
        other(close_far)
    _far.clear()
    assert taken[0] + store.truth()["n"] == 3 * times
    store.check(near, "n")
    store.check(taker, "n")


def test_update_clear_and_replace_all_are_transactions(store: Store) -> None:
    """All that they write has one number, and so no other client sees a part of it."""
    d = store.open()

    def numbers() -> set[int]:
        names = store.raw.get_children(store.path)
        return {store.raw.get(f"{store.path}/{name}")[1].mzxid for name in names}

    d.update({str(number): 0 for number in range(100)})
    assert len(numbers()) == 1
    d.update({str(number): 1 for number in range(150)})
    assert len(numbers()) == 1
    d.replace_all({str(number): 2 for number in range(120, 200)})
    (written,) = numbers()
    _, place = store.raw.get(store.path)
    assert place.pzxid == written  # that of the removals
    d.clear()
    stat = store.raw.exists(store.path)
    assert stat is not None
    assert stat.numChildren == 0
    assert stat.pzxid == stat.mzxid  # one transaction, which also writes the place


def test_another_client_sees_a_transaction_at_once_or_not_at_all(store: Store) -> None:
    d, writer = store.open(), store.open(autosync=False)
    states = [{str(n): value for n in range(value % 3, 12)} for value in range(60)]
    seen: list[dict[str, int]] = []
    ended = threading.Event()

    def write() -> None:
        try:
            for number, state in enumerate(states):
                if number % 6 == 5:
                    writer.clear()
                writer.replace_all(state)
        finally:
            ended.set()

    result = started_in_thread(write)
    while not ended.is_set():
        seen.append(d.copy())
        ended.wait(0.001)  # else the writer waits for this thread
    result()
    store.tell(d)
    assert d.copy() == states[-1]
    for state in seen:
        assert state == {} or state in states
    order = [states.index(state) for state in seen if state]
    assert order == sorted(order)


LIMIT = 3000


def test_what_is_larger_than_a_request_is_split_and_additions_come_first(store: Store) -> None:
    """Rule 4.5; also each part fits into a request, and there are no more than it takes."""
    proxy = store.proxy()
    lengths: list[int] = []
    d = store.open(store.client(proxy.port), request_limit=LIMIT)
    d.update({f"old-{number}": "x" * 500 for number in range(20)})
    new = {f"new-{number}": "y" * 500 for number in range(20)}
    original = proxy.fault_for

    def measured(request: bytes) -> Any:
        lengths.append(len(request) - 4)
        return original(request)

    vars(proxy)["fault_for"] = measured
    states: list[set[str]] = []
    with hook(
        d._tree_transactions, "transact", after=lambda: states.append(set(store.truth()))
    ) as parts:
        d.replace_all(new)
    del vars(proxy)["fault_for"]
    assert len(states) == len(parts) > 2
    assert max(lengths) <= LIMIT
    assert len(parts) <= 2 + 2 * sum(map(len, map(payload, new.values()))) // LIMIT
    for state in states:
        # Nothing is removed before all is there.
        assert all(name in state for name in new) or sum(n[0] == "o" for n in state) == 20
    assert store.truth() == new
    store.check(d, "old-1", "new-1")


def test_a_part_that_fails_leaves_the_next_read_to_load_what_is_there(store: Store) -> None:
    """Rule 0.4: the transactions before it are done."""
    proxy = store.proxy()
    d = store.open(store.client(proxy.port), request_limit=LIMIT)
    d["old"] = 1
    with (
        hook(
            d._tree_transactions, "transact", before=lambda: proxy.cut_before(b"<multi>"), first=2
        ),
        pytest.raises(ConnectionLoss),
    ):
        d.update({f"new-{number}": "y" * 500 for number in range(20)})
    assert 1 < len(d) < 21
    assert d.copy() == store.truth()
    store.check(d, "old", "new-1")


LARGE: dict[str, Callable[[Dict, str], object]] = {
    "set": lambda d, value: d.__setitem__("k", value),
    "update": lambda d, value: d.update(k=value, l=1),
    "setdefault": lambda d, value: d.setdefault("k", value),
    "compute": lambda d, value: d.compute("k", lambda _: value, default=0),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_value_that_is_taken_is_taken_by_the_server(store: Store, name: str) -> None:
    """As a new one, and in place of another."""
    d = store.open()
    size = 0xFFFFF - 500 - len(store.path_of("k"))
    for letter in "xy":
        if name == "setdefault":
            d.pop("k", None)
        LARGE[name](d, letter * size)
        assert d["k"] == letter * size
        assert store.truth()["k"] == letter * size
    del d["k"]
    with pytest.raises(ValueError, match=r"1,04\d,\d\d\d.*1,048,575"):
        LARGE[name](d, "z" * (size + 500))
    assert d.get("k") is None
    store.check(d, "k")


def test_two_values_of_which_each_fits_are_two_requests(store: Store) -> None:
    d = store.open()
    values = {name: name * 600_000 for name in "ab"}
    d.update(values)
    assert d.copy() == store.truth() == values
    d.replace_all({name: name * 700_000 for name in "abc"})
    assert {name: len(value) for name, value in store.truth().items()} == dict.fromkeys(
        "abc", 700_000
    )
    assert d.copy() == store.truth()
