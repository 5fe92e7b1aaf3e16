"""A place in ZooKeeper for the tests of its rules: dicts, and programs that know no dicts."""

from __future__ import annotations

import itertools
import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from kazoo.client import KazooClient
from kazoo.protocol.states import Callback, KazooState

from durabledict import MISSING, ZookeeperDict
from durabledict.reading import Syncing
from durabledict.zookeepernames import Place

from .servers import HOST, PATIENCE
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import ZookeeperServer, started

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = [
    "AT_ONCE",
    "Cut",
    "Dict",
    "Store",
    "come_to_rest",
    "hook",
    "hook_request",
    "is_native",
    "payload",
    "started_in_thread",
]

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
        """Return one more client, started; through the proxy at `port`, if there is one.

        All that listens to it from now on hears of what is to come, and not of its start.

        """
        # With the session that kazoo asks for, a pause of three seconds ends a connection.
        defaults = {"timeout": PATIENCE, "connection_retry": AT_ONCE}
        hosts = f"{HOST}:{port or self.server.port}"
        client = self._stack.enter_context(
            started(KazooClient(**{"hosts": hosts, **defaults, **options}))
        )
        # kazoo says that it is connected before it has told its listeners.
        come_to_rest(client)
        return client

    def open(self, client: KazooClient | None = None, **options: Any) -> Dict:
        opened = Dict(self.path, client or self.client(), **{"timeout": PATIENCE, **options})
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
        come_to_rest(client, self.path)

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


def come_to_rest(client: KazooClient, path: str = "/") -> None:
    """Wait until a client has heard of everything, and its threads have let go of that."""
    client.sync(path)
    heard = threading.Event()
    client.handler.dispatch_callback(Callback("watch", heard.set, ()))
    assert heard.wait(PATIENCE)


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
        if isinstance(getattr(request, "asked", request), kinds):
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
