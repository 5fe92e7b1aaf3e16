"""ZookeeperDict leaves nothing behind, however often it does a thing: watches above all.

They are counted on the server, in kazoo's client, and in the dict.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.protocol.serialization import Exists
from kazoo.security import make_acl

from durabledict import MISSING

from .servers import HOST, PATIENCE, wait_until
from .zookeeperproxy import ZookeeperProxy
from .zookeeperreaders import RECONNECT, AnyDict, until_available
from .zookeeperservers import ZookeeperServer, started

READ_ONLY = make_acl("world", "anyone", read=True, admin=True)

#: As many keys the actions below write at the most, and less than the times that they are done.
FEW = 3

START = dict.fromkeys("abcdefgh", 0)


class Counts(NamedTuple):
    """What there is of a dict, and of the client that it uses."""

    server: int  # watches on the server, of that client
    data: int  # in the client: those that it would call
    children: int
    paths: int  # in the client, with or without any watch
    listeners: int
    held: int  # in the dict
    threads: int
    files: int

    def is_no_more_than(self, other: Counts) -> bool:
        """Return whether it has not grown with the times that something was done.

        A key that this dict writes may have one watch more in the client: one whose answer came too
        late, or was of another's write. The next write takes it away.

        """
        allowed = other._replace(data=other.data + FEW)
        return all(mine <= others for mine, others in zip(self, allowed, strict=True))


Watchers = Mapping[str, Collection[Any]]


def watchers(client: KazooClient) -> tuple[Watchers, Watchers]:
    """Return what a client would call, by path, when the data of a znode or its children change."""
    attributes = vars(client)
    return attributes["_data_watchers"], attributes["_child_watchers"]


def armed(of_paths: Watchers) -> int:
    """Return for how many paths there is any."""
    return sum(map(bool, of_paths.values()))


class Place:
    """A dict whose leavings are counted, another one at the same place, and what is between."""

    def __init__(
        self,
        server: ZookeeperServer,
        proxy: ZookeeperProxy,
        path: str,
        client: KazooClient,
        other_client: KazooClient,
    ) -> None:
        self.server = server
        self.proxy = proxy
        self.path = path
        self.client = client
        self.other_client = other_client
        self.d = AnyDict(path, client)
        self.other = AnyDict(path, other_client, autosync=False)
        self.numbers = iter(range(1 << 40))

    def write(self, key: str = "a") -> None:
        self.other[key] = next(self.numbers)

    def counts(self) -> Counts:
        """Count, after all that was marked has been asked for."""
        until_available(self.d.sync)
        for client in (self.client, self.other_client):
            # By its answer the events before it are taken out of the client, and the watch of the
            # answer before it is in: kazoo enters that when it has handed the answer out.
            until_available(partial(client.sync, self.path))
        gc.collect()
        data, children = watchers(self.client)
        held = (value for value in vars(self.d._tree).values() if hasattr(value, "__len__"))
        return Counts(
            # Of that client it has one for each path, however many there are in the client.
            server=self.server.watches() - sum(map(armed, watchers(self.other_client))),
            data=sum(map(len, data.values())),
            children=sum(map(len, children.values())),
            paths=len(data) + len(children),
            listeners=len(self.client.state_listeners),
            held=sum(map(len, held)),
            threads=threading.active_count(),
            files=len(os.listdir("/proc/self/fd")),
        )


@pytest.fixture
def place(zookeeper_server: ZookeeperServer, zookeeper_path: str) -> Iterator[Place]:
    with (
        ZookeeperProxy(zookeeper_server.port) as proxy,
        started(
            zookeeper_server.client(hosts=f"{HOST}:{proxy.port}", connection_retry=RECONNECT)
        ) as client,
        started(zookeeper_server.client()) as other_client,
    ):
        place = Place(zookeeper_server, proxy, zookeeper_path, client, other_client)
        with place.d, place.other:
            place.other.update(START)
            yield place


def own_write(place: Place) -> None:
    place.d["a"] = next(place.numbers)


def in_turn(*actions: Callable[[Place], object]) -> Callable[[Place], None]:
    def act(place: Place) -> None:
        for action in actions:
            action(place)

    return act


def another_write(place: Place) -> None:
    place.write()


def sync(place: Place) -> None:
    place.d.sync()


def read(place: Place) -> None:
    place.d.copy()


def come_and_go(place: Place) -> None:
    number = next(place.numbers)
    place.d[f"own {number}"] = number
    place.other[f"other {number}"] = number
    place.d.sync()
    del place.d[f"own {number}"]
    del place.other[f"other {number}"]


def transactions(place: Place) -> None:
    number = next(place.numbers)
    place.d.update(dict.fromkeys("abc", number))
    place.d.replace_all({**START, "a": number})
    place.d.clear()
    place.d.update(START)


def too_large(place: Place) -> None:
    with pytest.raises(ValueError, match=r"jute\.maxbuffer"):
        place.d["a"] = "x" * 2_000_000


def not_allowed(place: Place) -> None:
    place.other_client.set_acls(f"{place.path}/h", [READ_ONLY])
    with pytest.raises(NoAuthError):
        place.d["h"] = 1
    with pytest.raises(NoAuthError):
        place.d.update(h=1, a=1)


def not_equal(place: Place) -> None:
    assert not place.d.compare_and_set("a", "never", 1)
    assert not place.d.compare_and_set("a", MISSING, 1)


def interrupted_by(interrupt: Callable[[Place], object]) -> Callable[[Place], None]:
    """Count one up, which fails at the first time, since somebody else did something."""

    def act(place: Place) -> None:
        calls: list[int] = []

        def add(number: int) -> int:
            calls.append(number)
            if len(calls) == 1:
                interrupt(place)
            return number + 1

        place.d.sync()
        place.d.compute("b", add)
        assert len(calls) == 2

    return act


def remove_another(place: Place) -> None:
    """Which makes the proofs of all keys void, but tells nothing of them."""
    place.other["z"] = 1
    del place.other["z"]


def void_proof(place: Place) -> None:
    place.d.sync()
    _, proof = place.d._fetch("b")
    remove_another(place)
    place.d._compare_and_set("b", next(place.numbers), proof)


def is_there_already(place: Place) -> None:
    """As somebody else has made it in between."""
    place.d.sync()
    assert place.d._compare_and_set("a", 1, MISSING) is None


def open_and_close(place: Place) -> None:
    with AnyDict(place.path, place.client, autosync="strict") as d:
        assert d.copy()


def open_watch_and_close(place: Place) -> None:
    with AnyDict(place.path, place.client, autosync=False) as d, d.watch(interval=60):
        place.write()
        number = place.other["a"]
        wait_until(lambda: d["a"] == number, "the watch brings it")


def open_write_and_close(place: Place) -> None:
    """The requests that arm watches are still under way."""
    with AnyDict(place.path, place.client) as d:
        d["a"] = next(place.numbers)
        assert d.copy()
        d.update(a=next(place.numbers), b=0)
    place.client.sync(place.path)


def open_in_vain(place: Place) -> None:
    with pytest.raises(TypeError):
        AnyDict(place.path, place.client, autosync="no such word")


def reconnect(place: Place) -> None:
    place.proxy.cut()
    wait_until(lambda: not place.d._tree._armed, "it is lost")
    until_available(place.d.copy)


def begin_anew(place: Place) -> None:
    place.server.expire(place.client)
    until_available(place.d.sync)


ACTIONS: dict[str, Callable[[Place], object]] = {
    "sync": sync,
    "forced sync": lambda place: place.d.sync(force=True),
    "what another writes": in_turn(another_write, sync),
    "own write": own_write,
    "own write and read": in_turn(own_write, read),
    "own write and sync": in_turn(own_write, sync),
    "both write": in_turn(own_write, another_write, read),
    "keys that come and go": come_and_go,
    "transactions": transactions,
    "transactions and reads": in_turn(transactions, read),
    "value too large": too_large,
    "write refused": not_allowed,
    "write refused, and read": in_turn(not_allowed, read),
    "compare_and_set of another value": not_equal,
    "compare_and_set that is too late": interrupted_by(lambda place: place.write("b")),
    "compare_and_set with a void proof": void_proof,
    "compare_and_set of what is there": is_there_already,
    "pop and setdefault": lambda place: (place.d.pop("c"), place.d.setdefault("c", 0)),
    "dict opened and closed": open_and_close,
    "dict opened, watched and closed": open_watch_and_close,
    "dict opened, written and closed": open_write_and_close,
    "dict opened in vain": open_in_vain,
    "reconnect": reconnect,
    "new session": begin_anew,
}

SLOW = {"reconnect": 4, "new session": 4, "value too large": 4}


def grown_no_more(place: Place, first: Counts) -> Counts:
    """Return the counts, when the threads of connections that were cut have ended."""
    counts: list[Counts] = []

    def is_no_more() -> bool:
        counts.append(place.counts())
        return counts[-1].is_no_more_than(first)

    try:
        wait_until(is_no_more, "it is no more than before")
    except TimeoutError:
        pass
    assert counts[-1].is_no_more_than(first), (first, counts[-1])
    return counts[-1]


@pytest.fixture(autouse=True, scope="module")
def young() -> None:
    """Have what the tests before have left not be looked at by each collection of garbage."""
    gc.collect()
    gc.freeze()


def repeat(place: Place, action: str, times: int) -> None:
    # At first something may be made that is made once.
    for _ in range(3):
        ACTIONS[action](place)
        place.counts()
    # Those of a connection that was cut go when the server has heard of it.
    wait_until(lambda: place.counts().server == len(place.d) + 1, "each znode has one watch")
    first = place.counts()
    for _ in range(times):
        ACTIONS[action](place)
    print(f"{times} x {action}: {grown_no_more(place, first)}")


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_left_of(place: Place, action: str) -> None:
    repeat(place, action, SLOW.get(action, 8))


#: As often as these are done in a day or two, by one process.
OFTEN = {"sync": 10_000, "own write": 1_000, "reconnect": 100, "new session": 100}


@pytest.mark.long
@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_left_however_often(place: Place, action: str) -> None:
    repeat(place, action, OFTEN.get(action, 100 if action in SLOW else 1_000))


@pytest.mark.long
def test_nothing_is_left_of_them_all(place: Place) -> None:
    """10,000 syncs and 100 reconnects, and between them whatever else a program does."""
    everything = [action for name, action in ACTIONS.items() if name not in SLOW]
    for number in range(101):
        for _ in range(100):
            place.d.sync()
        everything[number % len(everything)](place)
        reconnect(place)
        if not number:
            for action in everything:
                action(place)
            first = place.counts()
    last = grown_no_more(place, first)
    print(f"10,000 syncs and 100 reconnects: {last}")


def test_nothing_is_left_in_the_client_of_dicts_without_a_place(
    zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    """What tells of the place being made is kept with the watches on data."""
    with started(zookeeper_server.client()) as client:
        for _ in range(3):
            with AnyDict(zookeeper_path, client) as d:
                assert not d.copy()
        assert not any(map(armed, watchers(client)))


def test_a_watch_that_is_taken_out_at_once_is_not_entered_later(
    zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    """kazoo goes on behind the answer that it has handed out, and by then the dict is closed."""
    closed = threading.Event()
    with started(zookeeper_server.client()) as client:
        call = client._call

        def wait_behind_answer(request: Any, result: Any) -> bool | None:
            if request.type == Exists.type:
                hand_out = result.set

                def hand_out_and_wait(value: object = None) -> None:
                    hand_out(value)
                    assert closed.wait(PATIENCE)

                result.set = hand_out_and_wait
            return call(request, result)

        vars(client)["_call"] = wait_behind_answer
        try:
            with AnyDict(zookeeper_path, client) as d:
                assert not d.copy()
        finally:
            closed.set()
            vars(client)["_call"] = call
        client.sync(zookeeper_path)  # it has done with the answer
        assert not any(map(armed, watchers(client)))


def test_a_watch_whose_answer_comes_after_the_end_is_not_entered(place: Place) -> None:
    with AnyDict(place.path, place.client) as d:
        place.write()
        d.sync()  # an own write after that arms its watch at once
        held = place.proxy.hold(b"<getData")
        d["a"] = next(place.numbers)
        held.wait()
        before = set(watchers(place.client)[0][f"{place.path}/a"])
    held.release()
    place.client.sync(place.path)
    assert before.issuperset(watchers(place.client)[0][f"{place.path}/a"])
