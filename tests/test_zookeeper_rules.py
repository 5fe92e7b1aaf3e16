"""The rules of ZookeeperDict, each broken on a real server at the point where it matters.

The numbers are those of docs/internals.rst. What requests cost is in test_zookeeper_requests.py,
and every order of what may happen, without a server, in test_zookeeper_tree.py.
"""

from __future__ import annotations

import itertools
import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, OperationTimeoutError
from kazoo.protocol.serialization import Exists, GetData
from kazoo.protocol.states import Callback, KazooState
from kazoo.security import make_acl

from durabledict import MISSING, ConflictError, ZookeeperDict
from durabledict.reading import Syncing
from durabledict.testing.tools import in_thread
from durabledict.zookeeper import ATTEMPTS
from durabledict.zookeeperfetch import NARROW_ROUNDS, ROUNDS
from durabledict.zookeepernames import Place
from durabledict.zookeeperrequests import MultiRead, SetWatches

from .servers import HOST, PATIENCE, wait_until
from .test_sqlite_faults import Other
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import ZookeeperServer, started

if TYPE_CHECKING:
    from typing_extensions import Self

Dict = ZookeeperDict[Any, Any]

# kazoo's own waits up to half a second before it connects again.
AT_ONCE = {"max_tries": -1, "delay": 0.005, "max_delay": 0.05, "max_jitter": 0.0}


def payload(value: object) -> bytes:
    """What the library stores, so that it finds no difference."""
    return pickle.dumps(value, protocol=5)


class Store:
    """A place on a server: dicts with clients of their own, and a program that knows no dicts."""

    def __init__(self, server: ZookeeperServer, path: str) -> None:
        self.server = server
        self.path = path
        self._place = Place(path, in_root=False)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.raw = self.client()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def proxy(self) -> ZookeeperProxy:
        return self._stack.enter_context(ZookeeperProxy(self.server.port))

    def client(self, port: int | None = None, **options: Any) -> KazooClient:
        """Return one more client, started; through the proxy at `port`, if there is one."""
        hosts = f"{HOST}:{port or self.server.port}"
        client = KazooClient(**{"hosts": hosts, "connection_retry": AT_ONCE, **options})
        return self._stack.enter_context(started(client))

    def open(self, client: KazooClient | None = None, **options: Any) -> Dict:
        opened = Dict(self.path, client or self.client(), **options)
        self._stack.callback(opened.close)
        return opened

    # What the other program does.

    def path_of(self, key: object) -> str:
        return self._place.path_of(self._place.name(key))

    def put(self, **values: object) -> None:
        """Write these in one transaction."""
        self.raw.ensure_path(self.path)
        there = set(self.raw.get_children(self.path))
        with self.raw.transaction() as transaction:
            for key, value in values.items():
                if key in there:
                    transaction.set_data(self.path_of(key), payload(value))
                else:
                    transaction.create(self.path_of(key), payload(value))

    def remove(self, *keys: str) -> None:
        """Remove these in one transaction, if they are there."""
        there = set(self.raw.get_children(self.path))
        with self.raw.transaction() as transaction:
            for key in there.intersection(keys):
                transaction.delete(self.path_of(key))

    def truth(self) -> dict[Any, Any]:
        """What is there, past the library: its names aside."""
        return {
            self._place.key(name): pickle.loads(self.raw.get(f"{self.path}/{name}")[0] or b"")
            for name in self.raw.get_children(self.path)
        }

    def tell(self, d: Dict) -> None:
        """Wait until the client of a dict has heard of everything."""
        self.tell_client(d.connection)

    def tell_client(self, client: KazooClient) -> None:
        client.sync(self.path)
        heard = threading.Event()
        client.handler.dispatch_callback(Callback("watch", heard.set, ()))
        assert heard.wait(PATIENCE)

    def check(self, d: Dict, *keys: str) -> None:
        """See that a dict is right, and hears of each change of these keys from now on."""
        d.sync()
        assert d.copy() == self.truth()
        for number, key in itertools.product(range(2), keys):
            for value in (("checked", number), MISSING):
                if value is MISSING:
                    self.remove(key)
                else:
                    self.put(**{key: value})
                self.tell(d)
                if d.autosync is False:
                    # Of what it was not told of, it would not ask here, either.
                    d.sync()
                assert d.get(key, MISSING) == value
        assert d.copy() == self.truth()


@pytest.fixture
def store(zookeeper_server: ZookeeperServer, zookeeper_path: str) -> Iterator[Store]:
    with Store(zookeeper_server, zookeeper_path) as store:
        yield store


@contextmanager
def hook(
    owner: Any,
    name: str,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
    times: int = 10**9,
    first: int = 1,
) -> Iterator[list[tuple[Any, ...]]]:
    """Act before or after a method of that object, at some of its calls.

    :param first: the number of the first call that counts
    :return: a list that grows by the arguments of each call

    """
    original = getattr(owner, name)
    calls: list[tuple[Any, ...]] = []

    def hooked(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        counts = first <= len(calls) < first + times
        if counts:
            before()
        result = original(*arguments, **options)
        if counts:
            after()
        return result

    setattr(owner, name, hooked)
    try:
        yield calls
    finally:
        delattr(owner, name)


@contextmanager
def hook_request(
    client: KazooClient,
    *kinds: type,
    before: Callable[[], object] = lambda: None,
    times: int = 10**9,
    first: int = 1,
) -> Iterator[list[Any]]:
    """Act before a client sends a request of these kinds; what is sent by that does not count.

    :return: a list that grows by each of these requests

    """
    original = client._call
    requests: list[Any] = []

    def call(request: object, result: object) -> bool | None:
        if isinstance(request, kinds):
            requests.append(request)
            if first <= len(requests) < first + times:
                before()
        return original(request, result)

    vars(client)["_call"] = call
    try:
        yield requests
    finally:
        vars(client)["_call"] = original


def started_in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run a function in another thread; return one that waits for what it returns or raises."""
    outcome: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            outcome.put((True, function()))
        except BaseException as error:
            outcome.put((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        good, value = outcome.get(timeout=PATIENCE)
        thread.join()
        if not good:
            raise value
        return value

    return result


def is_native(d: Dict) -> bool:
    return not issubclass(type(d), Syncing)


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


class Cut:
    """A client through a proxy, whose connection can be lost for a while."""

    def __init__(self, store: Store) -> None:
        self.proxy = store.proxy()
        self.client = store.client(self.proxy.port)
        self.states: queue.Queue[str] = queue.Queue()
        self.client.add_listener(self.states.put)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Be without a connection; at the end the client is let in again, into its session."""
        session = self.client.client_id
        held = self.proxy.hold_request(b"<connect>")
        self.proxy.cut()
        assert self.states.get(timeout=PATIENCE) == KazooState.SUSPENDED
        held.wait()
        yield
        held.release()
        assert self.states.get(timeout=PATIENCE) == KazooState.CONNECTED
        assert self.client.client_id == session
        assert self.states.empty()


@pytest.fixture
def cut(store: Store) -> Cut:
    return Cut(store)


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
    (record,) = caplog.records
    assert "'k' was removed and made again by another program" in record.getMessage()
    assert d["k"] == 2
    store.check(d, "k")


@pytest.mark.parametrize("name", ["setdefault", "compute", "compare_and_set"])
def test_a_key_is_added_once_also_where_the_place_is_made_meanwhile(
    store: Store, name: str
) -> None:
    """There was no place, so that it cannot be added; and then another has added it."""
    d, other = store.open(), store.open()

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
        for number, state in enumerate(states):
            if number % 6 == 5:
                writer.clear()
            writer.replace_all(state)
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
