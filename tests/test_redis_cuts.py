"""RedisDict over connections that are cut, late, silent, or left in the middle of a reply."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.connection import Connection

from durabledict import RedisDict, redisreads
from durabledict.redisscripts import (
    COMPARE_AND_SET,
    DELTA,
    FIND,
    LOAD,
    REPLACE,
    SET,
    WRITE,
    Script,
)

from .proxiedclients import client_through
from .redisreaders import KEYSPACE, Keyspace, entries
from .redisservers import RedisServer
from .servers import PATIENCE, wait_until
from .tcpproxy import TcpProxy

START = {"a": 1, "b": 2, "c": 3}

# What the proxy keeps back is late after so many seconds, and nothing else: see `client_through`.
TIMEOUT = 0.2

GET = b"\r\n$3\r\nGET\r\n"

HELD = {"check": GET, "look": LOAD.sha, "delta": DELTA.sha}

Dict = RedisDict[Any, Any]


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(redis_server.port) as made:
        yield made


@pytest.fixture
def keyspace(redis_server: RedisServer, redis_url: str) -> Iterator[Keyspace]:
    with Keyspace(redis_server.port) as made:
        made.writer.update(START)
        yield made


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[redis.Redis]:
    with client_through(proxy, socket_timeout=TIMEOUT) as made:
        yield made


@pytest.fixture
def cut(keyspace: Keyspace, client: redis.Redis) -> Iterator[Dict]:
    """A strict dict through the proxy, whose server knows all scripts."""
    with RedisDict[Any, Any](KEYSPACE, client) as opened:
        warm(opened)
        opened.replace_all(START)
        keyspace.check_strict(START)
        assert dict(opened.items()) == START
        yield opened


def warm(d: Dict) -> None:
    """Have the server meet every script, so that each call is the one meant."""
    d["warm"] = 1
    d["warm"] = 2
    del d["warm"]
    d.setdefault("warm", 0)
    d.compute("warm", lambda value: value)
    d.replace_all(START)
    primary: Any = d._primary
    assert primary.run(FIND, b"0") is None
    assert primary.run(DELTA, b"0-1", b"1", b"1") is None


WRITES: dict[str, tuple[Script, Callable[[Dict], object], dict[Any, Any]]] = {
    "set": (SET, lambda d: d.__setitem__("a", "new"), {**START, "a": "new"}),
    "delete": (WRITE, lambda d: d.__delitem__("a"), {"b": 2, "c": 3}),
    "update": (WRITE, lambda d: d.update({"a": 5, "n": 6}), {**START, "a": 5, "n": 6}),
    "setdefault": (COMPARE_AND_SET, lambda d: d.setdefault("n", 7), {**START, "n": 7}),
    "pop": (COMPARE_AND_SET, lambda d: d.pop("b"), {"a": 1, "c": 3}),
    "compute": (
        COMPARE_AND_SET,
        lambda d: d.compute("c", lambda value: value + 1),
        {**START, "c": 4},
    ),
    "replace_all": (REPLACE, lambda d: d.replace_all({"b": 2, "n": 8}), {"b": 2, "n": 8}),
    "clear": (REPLACE, lambda d: d.clear(), {}),
}

LOSSES: dict[str, Callable[[TcpProxy, bytes], object]] = {
    "the reply is cut": lambda proxy, match: proxy.cut_after(match),
    "the reply is reset": lambda proxy, match: proxy.cut_after(match, reset=True),
    "the reply is cut in the middle": lambda proxy, match: proxy.cut_reply(match, after=2),
    "the reply's end is cut": lambda proxy, match: proxy.cut_reply(match, after=3),
    "the connection is half closed": lambda proxy, match: proxy.half_close(match),
}


# -- writes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", WRITES)
def test_a_write_whose_reply_is_lost_is_found_and_done_once(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, name: str, loss: str
) -> None:
    """Rule 0.4: the write's nonce is in the stream."""
    script, write, expected = WRITES[name]
    commits = len(keyspace.ids())
    LOSSES[loss](proxy, script.sha)
    searched = proxy.watch(FIND.sha)
    write(cut)
    assert searched.hits == 1
    assert len(keyspace.ids()) == commits + 1
    assert dict(cut.items()) == expected
    keyspace.check_strict(expected)
    proxy.mend()
    cut["later"] = 1
    keyspace.check_strict({**expected, "later": 1})


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_does_not_arrive_raises_and_is_not_there(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, name: str
) -> None:
    """Rule 0.4: that it is not found proves nothing, so it is not tried again."""
    script, write, _ = WRITES[name]
    sent = proxy.watch(script.sha)
    proxy.cut_before(script.sha)
    with pytest.raises(redis.ConnectionError):
        write(cut)
    assert sent.hits == 1
    assert dict(cut.items()) == START
    keyspace.check_strict(START)
    write(cut)
    assert dict(cut.items()) == WRITES[name][2]


@pytest.mark.parametrize("name", WRITES)
def test_a_write_whose_reply_is_late_is_found(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, name: str
) -> None:
    script, write, expected = WRITES[name]
    held = proxy.hold(script.sha)
    write(cut)
    held.release()
    assert dict(cut.items()) == expected
    keyspace.check_strict(expected)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_arrives_after_it_was_given_up_is_seen(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, name: str
) -> None:
    """Rule 0.4: an error is no proof that nothing is done."""
    script, write, expected = WRITES[name]
    held = proxy.hold_request(script.sha)
    with pytest.raises(redis.TimeoutError):
        write(cut)
    assert dict(cut.items()) == START
    commits = len(keyspace.ids())
    held.release()
    wait_until(lambda: len(keyspace.ids()) > commits, "the request arrives")
    assert dict(cut.items()) == expected
    keyspace.check_strict(expected)


def test_a_write_that_arrives_late_after_others_is_a_commit_of_its_own(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace
) -> None:
    """Rule 2.1: the number is taken when it arrives."""
    held = proxy.hold_request(SET.sha)
    with pytest.raises(redis.TimeoutError):
        cut["a"] = "late"
    cut["b"] = "since"
    keyspace.writer["c"] = "since"
    commits = len(keyspace.ids())
    held.release()
    wait_until(lambda: len(keyspace.ids()) > commits, "the request arrives")
    assert dict(cut.items()) == {"a": "late", "b": "since", "c": "since"}
    keyspace.check_strict()
    numbers = [int(identifier.split(b"-")[0]) for identifier in keyspace.ids()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_write_that_is_not_found_because_nobody_answers_raises_its_own_error(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace
) -> None:
    proxy.cut_after(SET.sha)
    proxy.cut_before(FIND.sha, times=None)
    with pytest.raises(redis.ConnectionError):
        cut["a"] = "done all the same"
    proxy.mend()
    assert cut["a"] == "done all the same"
    keyspace.check_strict({**START, "a": "done all the same"})


@pytest.mark.parametrize("name", ["set", "update", "compute"])
def test_a_write_into_a_black_hole_times_out(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, name: str
) -> None:
    proxy.black_hole()
    with pytest.raises(redis.TimeoutError):
        WRITES[name][1](cut)
    with pytest.raises(redis.TimeoutError):
        cut.sync()
    proxy.mend()
    assert dict(cut.items()) == START
    keyspace.check_strict(START)


def test_compute_over_cut_connections_never_counts_twice(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace
) -> None:
    """Rule 0.4: what was acknowledged is counted, and what was not at most once."""
    cut["count"] = 0
    faults: list[Callable[[bytes], object]] = [
        proxy.cut_before,
        proxy.cut_after,
        lambda match: proxy.cut_reply(match, after=7),
        proxy.half_close,
        lambda match: proxy.cut_after(match, reset=True),
    ]
    acknowledged = errors = 0
    for number in range(60):
        for match in (COMPARE_AND_SET.sha, FIND.sha if number % 3 else b"HGET"):
            faults[(number // (2 if match == FIND.sha else 1)) % len(faults)](match)
        try:
            cut.compute("count", lambda count: count + 1)
            acknowledged += 1
        except redis.ConnectionError:
            errors += 1
        proxy.mend()
        assert acknowledged <= entries(keyspace.raw)["count"] <= acknowledged + errors
    assert acknowledged
    assert errors
    assert cut["count"] == entries(keyspace.raw)["count"]
    keyspace.check_strict()


def test_threads_over_cut_connections_never_count_twice(
    keyspace: Keyspace, proxy: TcpProxy, client: redis.Redis
) -> None:
    keyspace.writer["count"] = 0
    acknowledged, errors = [0, 0, 0], [0, 0, 0]
    dicts = [keyspace.open(client, on_outage="stale") for _ in acknowledged]

    def count(place: int) -> None:
        for _ in range(50):
            try:
                dicts[place].compute("count", lambda count: count + 1)
                acknowledged[place] += 1
            except (redis.ConnectionError, redis.TimeoutError):
                errors[place] += 1

    threads = [threading.Thread(target=count, args=[place]) for place in range(3)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        wait_until(
            lambda seen=seen: (  # type: ignore[misc]  # mypy#12557
                proxy.requests >= seen + 7 or not any(thread.is_alive() for thread in threads)
            ),
            "they ask for something",
        )
        seen = proxy.requests
        proxy.cut()
    counted = entries(keyspace.raw)["count"]
    assert sum(acknowledged) <= counted <= sum(acknowledged) + sum(errors)
    keyspace.check_strict()


# -- reads ----------------------------------------------------------------------------------------


def ask(d: Dict, keyspace: Keyspace, what: str) -> Callable[[], object]:
    """Return a read that has to send the request that is meant."""
    if what == "delta":
        keyspace.writer["a"] = "newer"
    return d.sync if what == "look" else lambda: d["a"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("what", HELD)
def test_a_read_whose_reply_is_lost_asks_again(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, what: str, loss: str
) -> None:
    """Rule 2.5: to ask twice does no harm."""
    read = ask(cut, keyspace, what)
    LOSSES[loss](proxy, HELD[what])
    asked = proxy.watch(HELD[what])
    read()
    assert asked.hits == 2
    for number in range(5):
        keyspace.writer["a"] = number
        assert cut["a"] == number
    keyspace.check_strict()


@pytest.mark.parametrize(
    ("match", "after"),
    [
        *((match, after) for match in (LOAD.sha, DELTA.sha, b"replication") for after in (0, 9)),
        *((b"HSCAN", after) for after in (0, 9, 20, 5000)),
    ],
)
def test_a_load_whose_reply_is_lost_begins_anew(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, match: bytes, after: int
) -> None:
    keyspace.writer.update({number: number for number in range(6000)})
    asked = proxy.watch(match)
    proxy.cut_reply(match, after=after)
    cut.sync(force=True)
    assert asked.hits >= 2
    assert dict(cut.items()) == keyspace.truth()
    keyspace.writer["a"] = "newer"
    assert cut["a"] == "newer"


def check_answers(d: Dict, keyspace: Keyspace) -> None:
    """See that each answer is that to its own question, and none is one too old."""
    for number in range(5):
        keyspace.writer["b"] = number
        assert d["b"] == number
        assert d.last_synced == keyspace.writer.last_synced
    assert dict(d.items()) == keyspace.truth()
    d["c"] = 4
    keyspace.check_strict()


@pytest.mark.parametrize("what", HELD)
def test_no_answer_is_one_too_old_after_a_late_reply(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, what: str
) -> None:
    """Rule 2.5: a connection on which a reply is still to come is not used again."""
    read = ask(cut, keyspace, what)
    held = proxy.hold(HELD[what])
    with pytest.raises(redis.TimeoutError):
        read()
    held.release()
    check_answers(cut, keyspace)


@pytest.mark.parametrize("what", HELD)
def test_a_read_into_a_black_hole_times_out_and_the_next_tells_the_truth(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace, what: str
) -> None:
    read = ask(cut, keyspace, what)
    proxy.black_hole()
    for _ in range(2):
        with pytest.raises(redis.TimeoutError):
            read()
    keyspace.writer["a"] = "meanwhile"
    proxy.mend()
    assert cut["a"] == "meanwhile"
    keyspace.check_strict()


@pytest.fixture
def cut_in_the_end(proxy: TcpProxy) -> Iterator[None]:
    """Who waits without end gets another error, and does not keep the tests waiting."""
    timer = threading.Timer(PATIENCE, proxy.cut)
    timer.start()
    yield
    timer.cancel()
    timer.join()


@pytest.mark.usefixtures("cut_in_the_end")
def test_a_check_has_an_end_where_the_client_waits_for_ever(
    keyspace: Keyspace, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.5."""
    monkeypatch.setattr("durabledict.redisservers.CHECK_TIMEOUT", TIMEOUT)
    with client_through(proxy, socket_timeout=None) as client:
        d = keyspace.open(client)
        assert d["a"] == 1
        d._look_at = math.inf
        swallowed = proxy.swallow(GET)
        with pytest.raises(redis.TimeoutError):
            d["a"]
        assert swallowed.hits == 1
        keyspace.writer["a"] = "meanwhile"
        assert d["a"] == "meanwhile"


@pytest.mark.usefixtures("cut_in_the_end")
@pytest.mark.parametrize("timeout", [None, 10.0])
def test_a_wait_has_an_end_where_the_server_does_not_end_it(
    keyspace: Keyspace, proxy: TcpProxy, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.8.

    :param timeout: the client's

    """
    monkeypatch.setattr("durabledict.redisquestions.LATE", TIMEOUT)
    with client_through(proxy, socket_timeout=timeout) as client:
        d = keyspace.open(client)
        swallowed = proxy.swallow(b"XREAD")
        with pytest.raises(redis.TimeoutError, match="XREAD"):
            d.wait(d.last_synced, 0.01)
        assert swallowed.hits == 1
        keyspace.writer["a"] = "meanwhile"
        assert d.wait(d.last_synced, PATIENCE) is True
        assert d["a"] == "meanwhile"


def test_reads_while_connections_are_refused_raise_and_come_back(
    cut: Dict, proxy: TcpProxy, keyspace: Keyspace
) -> None:
    proxy.refuse()
    proxy.cut()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            len(cut)
        with pytest.raises(redis.ConnectionError):
            cut["a"] = "never"
    keyspace.writer["a"] = "meanwhile"
    proxy.mend()
    assert dict(cut.items()) == {**START, "a": "meanwhile"}
    cut["b"] = "again"
    keyspace.check_strict({**START, "a": "meanwhile", "b": "again"})


def test_an_opening_dict_whose_server_answers_late_raises(
    keyspace: Keyspace, proxy: TcpProxy, client: redis.Redis
) -> None:
    proxy.black_hole()
    with pytest.raises(redis.TimeoutError):
        RedisDict[Any, Any](KEYSPACE, client)
    proxy.mend()
    assert dict(keyspace.open(client).items()) == START


def test_a_watch_survives_cuts_delays_and_silence(
    keyspace: Keyspace, proxy: TcpProxy, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.8: the watch tries again, and asks from what it saw last."""
    monkeypatch.setattr(redisreads, "LOOK_INTERVAL", 0.05)
    monkeypatch.setattr("durabledict.redisquestions.LATE", TIMEOUT)
    d = keyspace.open(client, autosync=False)
    faults: list[Callable[[], object]] = [
        proxy.cut,
        lambda: proxy.cut(reset=True),
        lambda: proxy.cut_reply(b"XREAD", after=5),
        lambda: proxy.half_close(b"XREAD"),
        lambda: proxy.swallow(b"XREAD"),
        lambda: proxy.cut_before(b"XREAD"),
        lambda: proxy.cut_reply(DELTA.sha, after=9),
        lambda: proxy.hold(DELTA.sha),
    ]
    with d.watch(interval=0.1):
        for number, fault in enumerate(faults):
            fault()
            keyspace.writer["a"] = number
            wait_until(
                lambda number=number: d.copy()["a"] == number,  # type: ignore[misc]  # mypy#12557
                "the watch sees it",
            )
            proxy.mend()
    keyspace.check_strict()


# -- left in the middle of a reply ----------------------------------------------------------------


class LeftError(BaseException):
    """As KeyboardInterrupt, which may come anywhere; pytest takes that one for itself."""


class Leaving:
    """Raises once between the sending of a request and the reading of its reply."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Connection.read_response
        self.port = 0
        self.skipped = -1

        def read_response(connection: Connection, *arguments: Any, **named: Any) -> Any:
            if connection.port == self.port and self.skipped >= 0:
                self.skipped -= 1
                if self.skipped < 0:
                    assert connection.can_read(5)  # the reply is there, unread
                    raise LeftError
            return original(connection, *arguments, **named)

        monkeypatch.setattr(Connection, "read_response", read_response)

    def at(self, port: int, skipped: int = 0) -> None:
        """Leave at the next reply from that port, after so many others."""
        self.port, self.skipped = port, skipped

    @property
    def has_left(self) -> bool:
        return self.skipped < 0


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Leaving:
    return Leaving(monkeypatch)


# As a fixture after `leaving`, which has to be there when connections are made.
@pytest.fixture
def left(leaving: Leaving, cut: Dict) -> Dict:
    return cut


@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize("what", HELD)
def test_a_read_that_is_left_unread_shifts_no_later_answer(
    left: Dict, leaving: Leaving, proxy: TcpProxy, keyspace: Keyspace, what: str, skipped: int
) -> None:
    """Rule 2.5: one unread reply would make every later answer one too old, for ever."""
    read = ask(left, keyspace, what)
    leaving.at(proxy.port, skipped)
    try:
        read()
    except LeftError:
        pass
    else:
        # That read had fewer replies: the next one that has more is left.
        with pytest.raises(LeftError):
            while True:
                left.sync()
    assert leaving.has_left
    check_answers(left, keyspace)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_left_unread_is_looked_for_by_the_next_read(
    left: Dict, leaving: Leaving, proxy: TcpProxy, keyspace: Keyspace, name: str
) -> None:
    """Rules 0.4 and 2.5."""
    script, write, expected = WRITES[name]
    # What is read first by these: a comparison, or the value.
    before = {SET: 0, WRITE: 0, REPLACE: 0}.get(script)
    if before is None:
        seen = proxy.watch(script.sha, times=1)
        replies = 0
        while not seen.hits:
            leaving.at(proxy.port, replies)
            with pytest.raises(LeftError):
                write(left)
            replies += 1
    else:
        leaving.at(proxy.port, before)
        with pytest.raises(LeftError):
            write(left)
    assert leaving.has_left
    assert dict(left.items()) == expected
    for number in range(5):
        left["b"] = number
        keyspace.writer["c"] = number
        assert (left["b"], left["c"]) == (number, number)
    keyspace.check_strict()


@pytest.mark.parametrize("skipped", [0, 1, 2, 3, 5, 8])
def test_a_load_that_is_left_unread_shifts_no_later_answer(
    left: Dict, leaving: Leaving, proxy: TcpProxy, keyspace: Keyspace, skipped: int
) -> None:
    keyspace.writer.update({number: number for number in range(4500)})
    leaving.at(proxy.port, skipped)
    with pytest.raises(LeftError):
        while True:
            left.sync(force=True)
    for number in range(5):
        keyspace.writer["b"] = number
        assert left["b"] == number
    left.sync(force=True)
    assert dict(left.items()) == keyspace.truth()
    keyspace.check_strict()
