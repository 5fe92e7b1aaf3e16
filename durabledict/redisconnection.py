"""A connection of our own to a Redis server, made as the client's pool makes its connections.

It is outside the pool's accounting, so that a pool of one connection is enough, and its settings
differ in what matters here: RESP2, bytes, no retries. redis-py's own retries would run a write
twice (rule 0.4).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, ReadOnlyError, ResponseError
from redis.retry import Retry

from . import reading

__all__ = ["OwnConnection", "nothing_was_sent"]

# Settings that do not fit: notifications of maintenance need RESP3, and would change a connection
# in the middle of a request; a parser may be for RESP3 alone.
_LEFT_OUT = ("maint", "oss_cluster_maint", "orig_", "cache", "event_dispatcher", "parser_class")


#: Seconds after an answer for which a connection is taken to be open.
RECENTLY = 0.002

#: Seconds to spin before sleeping until a reply comes. Of so many requests, twice so many
#: are timed, and spinning has to be faster by this factor; see `_end_spinning`.
SPIN = 0.0001
PERIOD = 1000
TRIALS = 8
FASTER = 0.9

sched_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: None)  # not on Windows


class OwnConnection:
    """One connection, on which one request is under way at a time.

    A reply that was not read to its end would make every later answer one too old, for ever. So
    `_unread` is set before a request is sent and cleared after its complete reply; found set, the
    connection is made anew.

    :param pool: the pool of the caller's client, which is asked for its settings alone
    :param timeout: seconds to wait for a reply; None: without end
    :param greeting: packed commands to send after each connecting

    """

    def __init__(self, pool: Any, timeout: float | None, greeting: tuple[bytes, ...] = ()) -> None:
        settings = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if not name.startswith(_LEFT_OUT)
        }
        settings.update(
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            retry_on_timeout=False,
            health_check_interval=0,
            socket_timeout=timeout,
        )
        if timeout is not None:
            # To connect takes no longer than a reply may.
            connecting = settings.get("socket_connect_timeout") or timeout
            settings["socket_connect_timeout"] = min(connecting, timeout)
        self._connection = pool.connection_class(**settings)
        self._send = self._connection.send_packed_command
        self._read = self._connection.read_response
        self._greeting = greeting
        self._unread = False
        self._is_connected = False
        self._surely_open_until = -math.inf
        self._spins = False
        self._place = -1
        self._fastest = [math.inf, math.inf]

    @property
    def address(self) -> tuple[Any, Any]:
        """The host and port, which under Sentinel are known once it is connected."""
        return getattr(self._connection, "host", None), getattr(self._connection, "port", None)

    def connect(self) -> None:
        """Connect if it is not. What is raised here has `nothing_was_sent`."""
        if self.is_free:
            return
        self.close()
        try:
            self._connection.connect()
            self._is_connected = True
            if self._greeting:
                self.ask(*self._greeting)
        except BaseException as error:
            self.close()
            # Noted on the exception itself, which is the driver's own and goes to the caller.
            error.nothing_was_sent = True  # type: ignore[attr-defined]  # a note of ours
            raise

    @property
    def is_free(self) -> bool:
        """Whether it is connected and no request is under way."""
        return self._is_connected and not self._unread

    def is_usable(self) -> bool:
        """Whether it is free, and the server has not closed it, or said a word, since."""
        if self._unread or not self._is_connected:
            return False
        if reading.monotonic() < self._surely_open_until:
            return True  # to look takes a tenth of a write's time
        try:
            return not self._connection.can_read(0)
        except ConnectionError:
            return False

    def begin(self, *requests: bytes) -> None:
        """Send packed requests. Every one of their replies is then to be read."""
        if self._unread or not self._is_connected:
            self.connect()
        self._unread = True
        self._send(requests, check_health=False)

    def can_read(self, timeout: float) -> bool:
        """Wait for the beginning of a reply."""
        return bool(self._connection.can_read(timeout))

    def end(self, count: int = 1) -> list[Any]:
        """Read the replies of what was sent; an error reply is an entry of the list."""
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(self._read(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
                if str(error).startswith("Protocol error"):
                    self.close()  # as the server does
                    return replies + [error] * (count - len(replies))
            except ConnectionError as error:
                # redis-py closed the connection over an error reply: so there are no more.
                refusal = _error_reply(error)
                self.close()
                return replies + [refusal] * (count - len(replies))
        self._unread = False
        return replies

    def ask(self, *requests: bytes) -> list[Any]:
        """Send packed requests together and return their replies. One round trip."""
        self.begin(*requests)
        place = self._place = (self._place + 1) % PERIOD
        if place < 2 * TRIALS:
            sent = reading.monotonic()
            replies = self._end_spinning(len(requests)) if place % 2 else self.end(len(requests))
            took = reading.monotonic() - sent
            self._fastest[place % 2] = min(self._fastest[place % 2], took)
            if place == 2 * TRIALS - 1:
                asleep, spinning = self._fastest
                self._spins = spinning < FASTER * asleep
                self._fastest = [math.inf, math.inf]
        elif self._spins:
            replies = self._end_spinning(len(requests))
        else:
            replies = self.end(len(requests))
        self._surely_open_until = reading.monotonic() + RECENTLY
        return replies

    def _end_spinning(self, count: int) -> list[Any]:
        """Spin for a moment before sleeping until the reply comes.

        To fall asleep and be woken takes more than half of a round trip to a server on another core
        of the same machine: a strict read takes 73 us so, and 45 us by spinning. In between, the
        processor is offered to others. Over a network, or where the server needs this very core,
        spinning is no faster; so a few of a thousand requests are timed in either way, and the
        others go the faster one.

        """
        ends = reading.monotonic() + SPIN
        while not self._connection.can_read(0) and reading.monotonic() < ends:
            sched_yield()
        return self.end(count)

    def close(self) -> None:
        """Close it; the next request connects again."""
        self._is_connected = self._unread = False
        self._connection.disconnect()


def _error_reply(error: ConnectionError) -> Exception:
    """Return the error reply that redis-py made a lost connection of.

    :raises redis.exceptions.ConnectionError: there was none

    """
    if isinstance(error, BusyLoadingError):
        return error
    # So does Sentinel's class of connections with READONLY.
    if isinstance(error.__context__, ReadOnlyError):
        return error.__context__
    raise error


def nothing_was_sent(error: BaseException) -> bool:
    """Whether an error came before anything was sent, so that it is no unknown outcome."""
    return getattr(error, "nothing_was_sent", False)
