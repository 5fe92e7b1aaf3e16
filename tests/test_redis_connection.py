"""A `RedisDict`'s own connections: when they look for a reply, and what a wake-up brings along."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from durabledict import RedisDict, reading, redisconnection, redisscripts
from durabledict.redisconnection import PERIOD, TRIALS, OwnConnection
from durabledict.redisscripts import pack

PING = pack((b"PING",))


class Clock:
    """A clock that stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def connection(redis_client: redis.Redis) -> Iterator[OwnConnection]:
    connection = OwnConnection(redis_client.connection_pool, 5.0)
    yield connection
    connection.close()


def timed(
    connection: OwnConnection, clock: Clock, monkeypatch: pytest.MonkeyPatch, asleep: float
) -> list[str]:
    """Make a request take a second with a look, and `asleep` seconds without; note which it was."""
    ways: list[str] = []
    end, look = connection.end, connection._end_spinning

    def end_asleep(count: int = 1) -> list[Any]:
        ways.append("asleep")
        clock.now += asleep
        return end(count)

    def end_spinning(count: int) -> list[Any]:
        before, length = clock.now, len(ways)
        replies = look(count)
        clock.now, ways[length:] = before + 1.0, ["spinning"]
        return replies

    monkeypatch.setattr(connection, "end", end_asleep)
    monkeypatch.setattr(connection, "_end_spinning", end_spinning)
    return ways


@pytest.mark.parametrize(
    ("asleep", "chosen"), [(2.0, "spinning"), (0.5, "asleep"), (1.0, "asleep")]
)
def test_the_faster_way_of_waiting_for_a_reply_is_taken(
    connection: OwnConnection,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    asleep: float,
    chosen: str,
) -> None:
    connection.connect()
    ways = timed(connection, clock, monkeypatch, asleep)
    for _ in range(2 * TRIALS + 5):
        assert connection.ask(PING) == [b"PONG"]
    assert ways == ["asleep", "spinning"] * TRIALS + [chosen] * 5


def test_which_way_is_faster_is_asked_again(
    connection: OwnConnection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have moved to another core, or this process to the server's."""
    connection.connect()
    ways = timed(connection, clock, monkeypatch, 2.0)
    for _ in range(PERIOD):
        connection.ask(PING)
    assert ways[-1] == "spinning"
    monkeypatch.undo()
    monkeypatch.setattr(reading, "monotonic", clock)
    ways = timed(connection, clock, monkeypatch, 0.5)
    for _ in range(2 * TRIALS + 1):
        connection.ask(PING)
    assert ways[-1] == "asleep"


def test_a_look_ends_when_the_reply_does_not_come(
    connection: OwnConnection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    yielded: list[float] = []

    def pass_on() -> None:
        yielded.append(clock.now)
        clock.now += redisconnection.SPIN / 4

    connection.connect()
    monkeypatch.setattr(redisconnection, "sched_yield", pass_on)
    monkeypatch.setattr(connection, "can_read", lambda timeout: False)
    monkeypatch.setattr(connection._connection, "can_read", lambda timeout: False)
    connection.begin(PING)
    assert connection._end_spinning(1) == [b"PONG"]
    assert len(yielded) in (4, 5)  # as the floats round


def test_a_drop_that_finds_a_check_about_to_end_is_heard_by_the_next(
    redis_client: redis.Redis,
) -> None:
    """Else that one is answered by the server that was left (rule 2.6)."""
    with RedisDict[str, int]("s", redis_client) as d:
        server = d._primary.server
        request = pack((b"CLIENT", b"ID"))
        before = server.check(request)
        with server._check_lock:  # past its own look, and not yet released
            server.drop()
        assert server.check(request) != before


# -- what a wake-up brings along -------------------------------------------------------------------


@pytest.fixture
def pair(redis_client: redis.Redis) -> Iterator[tuple[RedisDict[str, int], RedisDict[str, int]]]:
    with (
        RedisDict[str, int]("s", redis_client) as writer,
        RedisDict[str, int]("s", redis_client, autosync=False) as reader,
    ):
        writer["k"] = 1
        reader.sync()
        yield writer, reader


def test_a_wake_up_fetches_stamp_and_changes_in_one_request(
    pair: tuple[RedisDict[str, int], RedisDict[str, int]],
) -> None:
    writer, reader = pair
    writer["k"] = 2
    assert reader.wait(reader.last_synced, 5.0) is True
    asked = Asked(reader)
    assert reader._compare() is True
    assert reader.copy() == {"k": 2}
    assert asked.scripts == ["DELTA"]


def test_what_a_wake_up_brought_is_for_the_thread_that_asked(
    pair: tuple[RedisDict[str, int], RedisDict[str, int]],
) -> None:
    """Another one's question may be older than its own read (rule 0.6)."""
    writer, reader = pair
    since = reader.last_synced
    writer["k"] = 2
    assert reader.wait(since, 5.0) is True
    thread = threading.Thread(target=reader.last_updated)
    thread.start()
    thread.join(30.0)
    writer["k"] = 3
    changes = reader.changes(since)
    assert changes is not None
    assert changes.written == {"k": 3}


def test_what_a_wake_up_brought_is_gone_with_the_next_stamp(
    pair: tuple[RedisDict[str, int], RedisDict[str, int]],
) -> None:
    writer, reader = pair
    since = reader.last_synced
    writer["k"] = 2
    assert reader.wait(since, 5.0) is True
    second = reader.last_updated()
    writer["k"] = 3
    assert reader.last_updated() != second
    changes = reader.changes(since)
    assert changes is not None
    assert changes.written == {"k": 3}


def test_a_wake_up_by_what_cannot_be_told_reloads(
    pair: tuple[RedisDict[str, int], RedisDict[str, int]], redis_client: redis.Redis
) -> None:
    writer, reader = pair
    redis_client.xadd("{s}:changes", {"somebody": "else"})
    assert reader.wait(reader.last_synced, 5.0) is True
    reloads = reader.stats.reloads
    writer["k"] = 2
    assert reader._compare() is True
    assert reader.copy() == {"k": 2}
    assert reader.stats.reloads == reloads + 1


def test_a_wait_without_a_commit_has_the_next_check_look_at_the_server(
    pair: tuple[RedisDict[str, int], RedisDict[str, int]],
) -> None:
    """That it is a replica by now, no entry tells (rule 2.6)."""
    _, reader = pair
    assert reader.wait(reader.last_synced, 0.001) is False
    assert reader._look_at == -math.inf


class Asked:
    """Notes the scripts that a dict has run."""

    def __init__(self, durable: RedisDict[Any, Any]) -> None:
        names = {
            script: name
            for name, script in vars(redisscripts).items()
            if isinstance(script, redisscripts.Script)
        }
        self.scripts: list[str] = []
        primary: Any = durable._primary
        run = primary.run

        def noted(script: Any, *arguments: Any, **options: Any) -> Any:
            self.scripts.append(names[script])
            return run(script, *arguments, **options)

        primary.run = noted
