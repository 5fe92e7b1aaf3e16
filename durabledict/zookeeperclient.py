"""The caller's KazooClient: started if it is not, asked with a limit, and made anew after a fork.

Nothing of it is changed. kazoo's own `retry` is not used: it would send a write a second time that
was done the first time (rule 0.4).
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, OperationTimeoutError
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.states import Callback, KazooState

from . import reading
from .zookeeperanswers import Moment, Watch
from .zookeeperrequests import Armed, PlacedResult
from .zookeeperthreads import is_own_thread, refuse_own_thread
from .zookeepertwins import hosts_of, twin

__all__ = ["Client", "NotConnectedError"]

logger = logging.getLogger("durabledict.zookeeper")

#: The seconds after which it is looked whether the client was stopped, whose threads call nobody
#: back then.
LOOK_AGAIN = 0.05


class NotConnectedError(ConnectionLoss):
    """There is no connection, so nothing was sent."""


@dataclass
class _Shared:
    """What the dicts with one client have in common."""

    # Held while the client is started: the others wait for that.
    lock: threading.RLock = field(default_factory=threading.RLock)
    # Weak, so that a dict that is dropped without `close` is none of them any more: it says so by
    # being gone, in whatever thread, and no lock is taken for that.
    users: weakref.WeakSet[Client] = field(default_factory=weakref.WeakSet)
    is_ours: bool = False  # started by one of them
    is_callers: bool = False  # was running when one of them came
    # Whether its servers can read many znodes at one moment, as far as it is known.
    reads_many: bool = True
    # The process in which the caller's client has its threads, if it has any.
    made_in: int = field(default_factory=os.getpid)
    # The client of this process, where `os.fork` has left the caller's in the parent.
    process: int = 0
    twin: KazooClient | None = None


_shared: weakref.WeakKeyDictionary[KazooClient, _Shared] = weakref.WeakKeyDictionary()
_sharing = threading.RLock()

# Clients that a fork left without their threads: never closed, since their sockets are the
# parent's (rule 0.9).
_left_behind: list[KazooClient] = []


def _after_fork() -> None:
    global _sharing
    _sharing = threading.RLock()
    for share in list(_shared.values()):
        share.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Client:
    """One dict's use of a client.

    :param connection: the caller's client
    :param timeout: the seconds that an answer may take, and that a lost connection is waited for
    :param on_loss: called, on a thread of the client's, when it has lost its connection, with
        whether the session is lost as well
    :param events: how many events of the dict's watches have come
    :param quorum: as `ZookeeperDict` has it

    """

    def __init__(
        self,
        connection: KazooClient,
        timeout: float,
        on_loss: Callable[[bool], object],
        events: Callable[[], int],
        quorum: bool = False,
    ) -> None:
        self.timeout = timeout
        self._events = events
        self._quorum = quorum
        self._connection = connection
        self._on_loss = weakref.WeakMethod(on_loss)
        self._kazoo = connection
        self._listener: _Listener | None = None
        self._is_released = False
        self._lost_at = -float("inf")
        self._connected = connection.handler.event_object()
        with _sharing:
            share = self._share = _shared.setdefault(connection, _Shared())
            # Of another process, it has no threads here: `ready` takes its twin.
            self._process = self._marked_process = share.made_in
            if self._process == os.getpid():
                share.users.add(self)
                share.is_callers = connection.handler.running and not share.is_ours

    @property
    def kazoo(self) -> KazooClient:
        """The client that serves this process."""
        return self._kazoo

    @property
    def reads_many(self) -> bool:
        """Whether the servers take `MultiRead`, as far as it is known."""
        return self._share.reads_many

    def read_one_by_one(self) -> None:
        """Note that they do not: they are older than ZooKeeper 3.6."""
        self._share.reads_many = False

    @property
    def session_timeout(self) -> float:
        """The seconds after which the servers forget a client that is silent, as it asked for."""
        return float(vars(self._connection).get("_session_timeout", 10_000)) / 1000

    # -- the connection -----------------------------------------------------------------------

    def ready(self, wait: bool = True) -> KazooClient:
        """Return the client, started and connected.

        A connection that was lost is waited for, until `timeout` seconds after the loss: an
        election is not to be an outage, and in an outage no read is to hang.

        :param wait: False: not at all
        :raises OwnThreadError: on a thread of kazoo's, which would wait for itself
        :raises NotConnectedError: there is no connection; nothing was sent

        """
        refuse_own_thread()
        if self._process != os.getpid():
            self._move_to_this_process()
        kazoo = self._kazoo
        if self._listener is None:
            self._listener = _Listener(self)
            kazoo.add_listener(self._listener)
        if kazoo.connected:
            return kazoo
        if not kazoo.handler.running:
            if self._share.is_callers and kazoo is self._connection:
                raise NotConnectedError(
                    f"the client of ZooKeeper ({hosts_of(kazoo)}) was stopped by whoever started it"
                )
            self._start()
            return kazoo
        if self._lost_at == -float("inf"):
            # Started by somebody and not there yet, or just lost, and the listener is to hear.
            self._lost_at = reading.monotonic()
        left = self._lost_at + self.timeout - reading.monotonic()
        # Before the look at the connection: where that comes back after it, this is set again.
        self._connected.clear()
        if not kazoo.connected and wait and left > 0:
            self._connected.wait(left)
        if not kazoo.connected:
            raise NotConnectedError(f"there is no connection to ZooKeeper ({hosts_of(kazoo)})")
        # It may have connected before that was noted, and the next loss is waited for anew.
        self._lost_at = -float("inf")
        return kazoo

    def _start(self) -> None:
        kazoo = self._kazoo
        with self._share.lock:
            if kazoo.handler.running:
                return
            self._share.is_ours = True
            try:
                kazoo.start(self.timeout)
            except kazoo.handler.timeout_exception as error:
                raise NotConnectedError(
                    f"no connection to ZooKeeper ({hosts_of(kazoo)}) within {self.timeout:g} s"
                ) from error

    def _heard(self, state: str) -> bool:
        """Note a change of the connection's state; kazoo calls this on its own thread."""
        if state == KazooState.CONNECTED:
            self._connected.set()
            self._lost_at = -float("inf")
            return False
        self._connected.clear()
        if self._lost_at == -float("inf"):
            self._lost_at = reading.monotonic()
        on_loss = self._on_loss()
        if on_loss is not None:
            on_loss(state == KazooState.LOST)
        return on_loss is None

    def after_fork(self) -> None:
        """Note that the dict is marked in this child."""
        self._marked_process = os.getpid()

    def _move_to_this_process(self) -> None:
        """Take a client of this process's own: the caller's threads have stayed in the parent."""
        on_loss = self._on_loss()
        if self._marked_process != os.getpid() and on_loss is not None:
            on_loss(True)  # a fork in C, which runs no hooks of Python's
        with _sharing:
            share = self._share
            _left_behind.append(self._kazoo)
            if share.process != os.getpid() or share.twin is None:
                share.process, share.twin = os.getpid(), twin(self._connection)
                # Another set, of which those that stay with the parent's client are no part.
                share.users, share.is_ours = weakref.WeakSet(), True
            share.users.add(self)
            self._kazoo = share.twin
            self._process = os.getpid()
            self._listener = None
            self._lost_at = -float("inf")
            self._connected = self._kazoo.handler.event_object()

    def release(self) -> None:
        """Leave the client alone; stop it if it was started here and nobody else uses it."""
        with _sharing:
            share = self._share
            if self._process != os.getpid() or self._is_released:
                return
            self._is_released = True
            if self._listener is not None:
                self._kazoo.remove_listener(self._listener)
            share.users.discard(self)
            if share.users or not share.is_ours:
                return
            share.is_ours = False
            kazoo, share.twin = self._kazoo, None
        if is_own_thread():
            # It has to end, and would wait for itself.
            threading.Thread(target=_stop, args=[kazoo]).start()
        else:
            _stop(kazoo)

    # -- requests -----------------------------------------------------------------------------

    def wait(self, results: Sequence[Any]) -> None:
        """Wait until all these requests, sent in this order, have their answers.

        :raises OperationTimeoutError: nothing came in time; what is asked for may still be done

        """
        # They are answered in order, so that waiting for the last wakes this thread once. All the
        # same each is looked at: kazoo hands some answers on through another thread.
        for result in (results[-1], *results):
            came = -1
            while not result.ready():
                # A first load of many is not to fail because it takes long; nor is a transaction
                # that removes many, whose events come before its answer.
                before, came = came, self._events() + sum(each.ready() for each in results)
                if came == before:
                    raise OperationTimeoutError(
                        f"no answer from ZooKeeper ({hosts_of(self._kazoo)}) "
                        f"within {self.timeout:g} s"
                    )
                result.wait(self.timeout)

    def ask(self, path: str) -> Any:
        """Ask for what was acknowledged before; return the result, to be waited for (rule 4.4).

        The answer of a majority may hold an error of the path, which does not matter.

        """
        if not self._quorum:
            return self._kazoo.sync_async(path)
        question = self._kazoo.transaction()
        question.check(path, -1)
        return question.commit_async()

    def drop(self, path: str, watch: Watch) -> None:
        """Take a watch out of the client, which would keep it until its event.

        kazoo has no public way. The set that it keeps them in stays, as its thread may be about to
        add to it; the server's watch stays as well, and fires once, for nobody. One whose answer is
        still to come is not entered any more.

        """
        watch.is_dropped = True
        # That of the list is with the others where there is no place yet.
        for kind in ("_data_watchers", "_child_watchers"):
            kept = vars(self._kazoo).get(kind, {})
            kept.get(self.full_path(path), set()).discard(watch)

    def full_path(self, path: str) -> str:
        """Return a path as the servers have it, below the client's chroot."""
        return (self._kazoo.chroot + path).rstrip("/") or "/"

    def send(self, request: object, moment: Moment | None = None) -> Any:
        """Send a request, as kazoo has no method for it; return its result, to be waited for.

        kazoo has no public way. Where the request arms a watch, that is entered before the result
        is there.

        :param moment: taken at the answer's place among the events: when those that came before it
            have been heard, and none of those that come after it (rule 4.1)

        """
        kazoo = self._kazoo
        result: Any = kazoo.handler.async_result()
        on_success: Callable[[], object] = _nothing
        if getattr(request, "watcher", None) is not None:
            request = armed = Armed(kazoo, request)
            on_success = armed.enter
        on_answer = _nothing if moment is None else partial(self._note, moment)
        kazoo._call(request, PlacedResult(result, on_success, on_answer))
        return result

    def _note(self, moment: Moment) -> None:
        # That of the answer, as long as this thread reads no other.
        moment.zxid = self._kazoo.last_zxid
        self._in_place(moment.take)

    def _in_place(self, action: Callable[[], object]) -> None:
        if self._all_is_heard():
            action()
        else:
            self._kazoo.handler.dispatch_callback(Callback("watch", action, ()))

    def _all_is_heard(self) -> bool:
        # Two switches of threads are spared, a tenth of a write. Other handlers than this one do
        # not count what of their queue is done.
        handler = self._kazoo.handler
        return (
            isinstance(handler, SequentialThreadingHandler)
            and handler.callback_queue.unfinished_tasks == 0
        )

    def barrier(self) -> None:
        """Wait until the events that came before the last answer have been heard (rule 4.4).

        By a callback through the queue in which the client hands them to watches.

        """
        if not self._all_is_heard():
            passed = self._kazoo.handler.event_object()
            self._in_place(passed.set)
            self.wait_for_events(passed)

    def wait_for_events(self, passed: Any) -> None:
        """Wait until this is set, which is done behind the events.

        :raises ConnectionLoss: the client was stopped
        :raises OperationTimeoutError: a watch of the program's own is running

        """
        came, ends = self._events(), reading.monotonic() + self.timeout
        while not passed.wait(min(self.timeout, LOOK_AGAIN)):
            if not self._kazoo.handler.running:
                raise ConnectionLoss(
                    f"the client of ZooKeeper ({hosts_of(self._kazoo)}) was stopped"
                )
            if reading.monotonic() < ends:
                continue
            before, came = came, self._events()
            ends = reading.monotonic() + self.timeout
            if came == before:
                raise OperationTimeoutError(
                    f"a watch of this client's has kept it busy for {self.timeout:g} s"
                )


class _Listener:
    """Hears of the connection for a `Client`, which it does not keep alive."""

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)
        self._kazoo = weakref.ref(client.kazoo)

    def __call__(self, state: str) -> bool:
        """Pass it on; return True to hear no more."""
        client = self._client()
        return client is None or client.kazoo is not self._kazoo() or client._heard(state)


def _nothing() -> None:
    """Do nothing at an answer that nobody else is to hear of."""


def _stop(client: KazooClient) -> None:
    client.stop()
    client.close()
