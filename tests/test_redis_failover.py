"""RedisDict where another server becomes the primary: a virtual IP, a replica, Sentinel.

An address that moves is a `TcpProxy`, which sends new connections to another server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ReadOnlyError, TimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool

from durabledict import RedisDict
from durabledict.redisservers import SENTINEL_PAUSE

from .redisclusters import SentinelServers
from .redisservers import RedisServer, wait_until_linked
from .servers import HOST, PATIENCE, free_port, wait_until
from .tcpproxy import TcpProxy

AnyDict = RedisDict[Any, Any]

#: One row for each way in which a read may come to a comparison.
MODES: list[Any] = [True, 3600.0, False]


class Pair:
    """A primary, its replica, and the address under which clients know the primary."""

    def __init__(self) -> None:
        self._cleanup = ExitStack()

    def __enter__(self) -> Pair:
        with self._cleanup:
            self.old = self._cleanup.enter_context(RedisServer())
            self.new = self._cleanup.enter_context(RedisServer(replica_of=self.old))
            self.address = self._cleanup.enter_context(TcpProxy(self.old.port))
            wait_until_linked(self.new)
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def client(self) -> redis.Redis:
        """A client of the address."""
        client = redis.Redis(port=self.address.port, socket_timeout=PATIENCE)
        self._cleanup.callback(client.close)
        return client

    def dict(self, client: redis.Redis | None = None, **options: Any) -> AnyDict:
        d = AnyDict("k", client or self.client(), **options)
        self._cleanup.callback(d.close)
        return d

    def dict_at(self, server: RedisServer, **options: Any) -> AnyDict:
        client = server.client()
        self._cleanup.callback(client.close)
        return self.dict(client, **options)

    def wait_until_replicated(self) -> None:
        def offset(server: RedisServer) -> str:
            return server.info("replication")["master_repl_offset"]

        wait_until(lambda: offset(self.old) == offset(self.new), "the replica has everything")

    def promote(self) -> None:
        assert self.new.ask("REPLICAOF NO ONE") == b"+OK"

    def demote(self) -> None:
        """Make a replica of the old primary, one that cannot reach its primary."""
        assert self.old.ask(f"REPLICAOF {HOST} {free_port()}") == b"+OK"

    def move(self, *, cut: bool = True) -> None:
        self.address.server_port = self.new.port
        if cut:
            self.address.cut()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


def last_id(server: RedisServer) -> tuple[int, int]:
    with server.client() as client:
        info: Any = client.xinfo_stream("{k}:changes")
    number, nonce = info["last-generated-id"].decode().split("-")
    return int(number), int(nonce)


def stored(server: RedisServer) -> dict[Any, Any]:
    with server.client() as client, AnyDict("k", client) as d:
        return dict(d)


# -- a replica that lags is promoted --------------------------------------------------------------


@pytest.mark.parametrize("ahead", [None, "old", "new"])
def test_a_promoted_replica_that_lagged_is_what_readers_show(pair: Pair, ahead: str | None) -> None:
    """Rules 0.2 and 2.2: its numbers are those of lost commits, with other nonces.

    :param ahead: whose stream got an entry with a number far ahead, as of a wrong clock

    """
    writer = pair.dict()
    writer.update(dict.fromkeys(range(20), 0))
    readers = [pair.dict(autosync=mode) for mode in MODES]
    watching = pair.dict(autosync=False)
    watching.watch(interval=0.2)
    pair.wait_until_replicated()
    pair.promote()
    # Nobody will ever see these again.
    for number in range(5):
        writer[number] = "lost"
    writer["lost"] = 1
    del writer[19]
    for reader in readers:
        reader.sync()
        assert reader["lost"] == 1
    at_new = pair.dict_at(pair.new)
    for number in range(3, 9):
        at_new[number] = "kept"
    del at_new[10]
    if ahead is not None:
        server = pair.old if ahead == "old" else pair.new
        with server.client() as client:
            client.xadd("{k}:changes", {"1": b"k0"}, id="9000000-5")
        (writer if ahead == "old" else at_new)["after"] = ahead
        for reader in readers:
            reader.sync()
    else:
        assert last_id(pair.old)[0] == last_id(pair.new)[0]
        assert last_id(pair.old) != last_id(pair.new)
    pair.move()
    expected = stored(pair.new)
    assert "lost" not in expected
    for reader in readers:
        assert reader.sync() is True
        assert reader == expected
        assert dict(reader) == expected
    wait_until(lambda: watching.copy() == expected, "the watch has seen it")
    writer["again"] = 1
    at_new.sync()
    assert at_new == writer == {**expected, "again": 1}
    for reader in readers:
        reader.sync()
        assert reader == at_new


def test_a_strict_read_follows_without_a_sync(pair: Pair) -> None:
    reader, writer = pair.dict(), pair.dict()
    writer.update(a=1, b=1)
    assert reader["a"] == 1
    pair.wait_until_replicated()
    pair.promote()
    writer["a"] = "lost"
    assert reader["a"] == "lost"
    pair.dict_at(pair.new)["b"] = 2
    assert last_id(pair.old)[0] == last_id(pair.new)[0]
    pair.move()
    assert reader["a"] == 1
    assert reader["b"] == 2


def test_a_commit_that_was_lost_is_not_taken_for_the_one_with_its_number(pair: Pair) -> None:
    """Rule 0.4: the writer's own view, too, is the new primary's."""
    writer = pair.dict(autosync=False)
    writer["a"] = 1
    pair.wait_until_replicated()
    pair.promote()
    writer["b"] = "lost"
    at_new = pair.dict_at(pair.new)
    at_new["c"] = 1
    pair.move()
    try:
        writer["d"] = 1
    except ConnectionError:
        writer["d"] = 1  # the first one met the end of a connection that was used a moment ago
    assert writer == at_new == {"a": 1, "c": 1, "d": 1}


# -- a connection to a primary that was demoted ---------------------------------------------------


def test_a_held_connection_to_a_demoted_primary_is_left_within_a_second(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.6: the connection stays, and the server goes on answering."""
    now = 1000.0
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: now)
    reader, writer = pair.dict(), pair.dict()
    writer["a"] = 1
    assert reader["a"] == 1
    reader.sync()
    pair.wait_until_replicated()
    pair.promote()
    pair.demote()
    pair.move(cut=False)
    pair.dict_at(pair.new)["a"] = 2
    now += 0.9
    assert reader["a"] == 1  # the window that the docs state
    now += 0.2
    assert reader["a"] == 2
    now += 0.9
    assert reader["a"] == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_sync_leaves_a_demoted_primary_at_once(pair: Pair, mode: Any) -> None:
    """Rule 2.6."""
    reader = pair.dict(autosync=mode)
    reader["a"] = 1
    pair.wait_until_replicated()
    pair.promote()
    pair.demote()
    pair.move(cut=False)
    pair.dict_at(pair.new)["a"] = 2
    assert reader.sync() is True
    assert reader["a"] == 2


def test_a_write_leaves_a_demoted_primary_at_once(pair: Pair) -> None:
    """Rule 2.7: READONLY came before anything ran, so the write is sent to the new one."""
    writer = pair.dict()
    writer["a"] = 1
    pair.wait_until_replicated()
    pair.promote()
    pair.demote()
    pair.move(cut=False)
    writer["b"] = 2
    writer.update(c=3)
    assert writer.compute("a", lambda value: value + 1) == 2
    assert stored(pair.new) == writer == {"a": 2, "b": 2, "c": 3}
    assert last_id(pair.new)[0] == 4


def test_a_forced_sync_and_a_delta_do_not_read_a_demoted_primary(pair: Pair) -> None:
    """Rule 2.6: whatever is fetched, not the stamp alone, comes from the primary."""
    reader = pair.dict(autosync=False)
    reader["a"] = 1
    # One that is idle, and would be taken for the load.
    assert reader.sync(force=True) is False
    pair.wait_until_replicated()
    pair.promote()
    pair.demote()
    pair.move(cut=False)
    pair.dict_at(pair.new).update(a=2, b=2)
    assert reader.sync(force=True) is True
    assert reader == {"a": 2, "b": 2}


def test_a_watch_leaves_a_demoted_primary(pair: Pair) -> None:
    """Rule 2.8: its XREAD waits there; the comparison after each interval tells."""
    reader = pair.dict(autosync=False)
    reader["a"] = 1
    watch = reader.watch(interval=0.2)
    pair.wait_until_replicated()
    pair.promote()
    pair.demote()
    pair.move(cut=False)
    at_new = pair.dict_at(pair.new)
    at_new["a"] = 2
    wait_until(lambda: reader.copy() == {"a": 2}, "the watch has found the new primary")
    at_new["a"] = 3
    wait_until(lambda: reader.copy() == {"a": 3}, "the watch goes on there")
    assert watch.running


def test_an_address_that_stays_with_a_replica_is_an_outage(pair: Pair) -> None:
    """Rule 2.6: what a replica has may be old."""
    client = pair.old.client()
    strict, stale = pair.dict(client), pair.dict(client, on_outage="stale")
    strict["a"] = 1
    assert stale["a"] == 1
    pair.promote()
    pair.demote()
    with pytest.raises(ReadOnlyError, match="replica"):
        strict.sync()
    with pytest.raises(ReadOnlyError):
        strict["a"] = 2
    with pytest.raises(ReadOnlyError):
        strict["a"]
    assert stale.sync() is False
    assert stale["a"] == 1
    assert stale.stale_since is not None
    with pytest.raises(ReadOnlyError):
        AnyDict("k", client)
    # It is the primary again.
    assert pair.old.ask("REPLICAOF NO ONE") == b"+OK"
    strict["a"] = 3
    stale.sync()
    assert stale["a"] == strict["a"] == 3
    assert stale.stale_since is None


# -- acknowledged by replicas ---------------------------------------------------------------------


def test_what_a_replica_acknowledged_survives_the_promotion(pair: Pair) -> None:
    """Rule 0.8."""
    writer = pair.dict(wait=(1, int(1000 * PATIENCE)))
    for number in range(50):
        writer[number] = number
    writer.update(dict.fromkeys(range(50, 3000), "many"))
    del writer[7]
    assert writer.pop(8) == 8
    assert writer.compute(9, lambda value: -value) == -9
    assert writer.setdefault("new", 1) == 1
    expected = dict(writer)
    pair.old.kill()
    pair.promote()
    pair.move()
    assert stored(pair.new) == expected
    assert writer.sync() in (True, False)
    assert writer == expected


WRITES: dict[str, Any] = {
    "set": lambda d: d.__setitem__("a", 2),
    "update": lambda d: d.update(a=2),
    "compare_and_set": lambda d: d.compare_and_set("a", 1, 2),
    "replace_all": lambda d: d.replace_all({"a": 2}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_no_replica_acknowledged_in_time_is_of_unknown_outcome(pair: Pair, write: Any) -> None:
    """Rule 0.8: it is done on the primary, and may be lost with it."""
    writer = pair.dict(wait=(1, 20))
    patient = pair.dict(wait=(1, int(1000 * PATIENCE)))
    patient["a"] = 1
    writer.sync()
    pair.new.pause()
    with pytest.raises(TimeoutError, match=r"replicas.*acknowledged.*within 20 ms"):
        write(writer)
    assert writer["a"] == 2
    with pytest.raises(TimeoutError):
        del writer["a"]
    assert "a" not in writer
    pair.new.resume()
    patient["b"] = 1
    assert writer == {"b": 1}


def test_a_write_that_changes_nothing_needs_no_replica(pair: Pair) -> None:
    writer = pair.dict(wait=(1, 20))
    wait_until_linked(pair.new)
    pair.new.pause()
    with pytest.raises(KeyError):
        del writer["nothing"]
    assert writer.compare_and_set("nothing", 1, 2) is False
    writer.clear()
    assert writer.pop("nothing", None) is None
    pair.new.resume()


# -- Sentinel -------------------------------------------------------------------------------------


@pytest.fixture
def sentinels() -> Iterator[SentinelServers]:
    with SentinelServers() as servers:
        yield servers


def client_of(servers: SentinelServers) -> redis.Redis:
    """One that does not wait long for what does not answer."""
    options = {"socket_timeout": 2.0, "retry": Retry(NoBackoff(), 0)}
    sentinel: Any = servers.sentinel(sentinel_kwargs=options)
    client: redis.Redis = sentinel.master_for(servers.name, **options)
    return client


class Writer(threading.Thread):
    """Writes one number after the other, and remembers which were acknowledged."""

    def __init__(self, d: AnyDict) -> None:
        super().__init__()
        self.d = d
        self.acknowledged: list[int] = []
        self.failed = 0
        self._stopping = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        number = 0
        try:
            while not self._stopping.wait(0.002):
                number += 1
                try:
                    self.d[number] = number
                except (ConnectionError, TimeoutError, ReadOnlyError):
                    self.failed += 1
                else:
                    self.acknowledged.append(number)
        except BaseException as error:
            self.error = error

    def goes_on(self) -> None:
        """Wait until it has written some more."""
        reached = len(self.acknowledged)
        wait_until(lambda: self.error or len(self.acknowledged) >= reached + 20, "it writes on")
        assert self.error is None

    def stop(self) -> None:
        self._stopping.set()
        self.join(PATIENCE)
        assert self.error is None


def follows(reader: AnyDict, key: Any, value: Any) -> bool:
    """Whether a reader shows what the new primary has; an outage is not over."""
    try:
        reader.sync()
        return bool(reader.get(key) == value)
    except (ConnectionError, TimeoutError, ReadOnlyError):
        return False


def is_replica(server: RedisServer) -> bool:
    return server.replication().get("master_link_status") == "up"


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_everybody_follows_a_failover(
    sentinels: SentinelServers, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.6: the old primary ends, or stops and comes back as if nothing had been."""
    monkeypatch.setattr("durabledict.redisquestions.LATE", 2.0)
    with ExitStack() as cleanup:

        def opened(**options: Any) -> AnyDict:
            client = cleanup.enter_context(client_of(sentinels))
            return cleanup.enter_context(AnyDict("k", client, **options))

        strict, manual = opened(), opened(autosync=False)
        stale, watching = opened(on_outage="stale"), opened(autosync=False)
        watching.watch(interval=0.2)
        readers = [strict, manual, stale, watching]
        strict["before"] = 1
        assert stale["before"] == 1
        # To a replica that is new, nothing is sent until it has said that it is ready.
        wait_until(lambda: sentinels.replica.ask("HLEN k") == b":1", "the replica has it")
        writer = Writer(opened())
        writer.start()
        cleanup.callback(writer._stopping.set)
        writer.goes_on()
        if how == "kill":
            sentinels.primary.kill()
        else:
            sentinels.primary.pause()
        # Nobody is the primary.
        stale._look_at = -1.0
        assert stale["before"] == 1
        with pytest.raises((ConnectionError, TimeoutError)):
            strict.sync()
        assert stale.stale_since is not None
        sentinels.fail_over_to(sentinels.replica)
        if how == "pause":
            # It is still a primary, as far as it knows.
            sentinels.primary.resume()
            for reader in readers:
                reader._primary.server._confirmed_until = 0.0
        writer.goes_on()
        reached = len(writer.acknowledged)
        writer.goes_on()
        writer.stop()
        last = writer.acknowledged[-1]
        for reader in readers:
            wait_until(lambda reader=reader: follows(reader, last, last), "the reader follows")  # type: ignore[misc]  # mypy sees no default in a lambda
        expected = stored(sentinels.replica)
        assert {*writer.acknowledged[reached:]} <= {*expected}
        for reader in readers:
            reader.sync()
            assert reader == expected
        if how == "kill":
            # It comes back empty, and is a primary until Sentinel tells it otherwise.
            sentinels.primary.start()
        while not is_replica(sentinels.primary):
            for reader in readers:
                reader._look_at = -1.0
                assert reader["before"] == 1
        with sentinels.primary.counting() as calls:
            strict["again"] = 1
            for reader in readers:
                reader.sync()
                assert reader["again"] == 1
        # What is replicated counts there, too: that is SET, XADD and HSET.
        assert not {"get", "evalsha", "eval", "hgetall", "hget"} & {
            name for name, count in calls.items() if count
        }


def test_without_any_sentinel_reads_and_writes_go_on(sentinels: SentinelServers) -> None:
    """Rule 2.6: else the Sentinels would be the weakest part."""
    with client_of(sentinels) as client, AnyDict("k", client) as d:
        d["a"] = 1
        d.sync(force=True)
        for server in sentinels.sentinels:
            server.kill()
        with sentinels.primary.client() as plain, AnyDict("k", plain) as other:
            for number in range(3):
                other["a"] = number
                d._look_at = -1.0
                d._primary.server._confirmed_until = 0.0
                assert d["a"] == number
                d["b"] = number
                assert d.sync(force=True) is False
            assert other["b"] == 2


def test_sentinels_that_do_not_answer_are_left_alone_for_a_while(
    sentinels: SentinelServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each look waits for them, which takes seconds with the retries of redis-py."""
    now = 1000.0
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: now)
    with client_of(sentinels) as client, AnyDict("k", client) as d:
        pool: Any = client.connection_pool
        d["a"] = 1
        d.sync(force=True)
        asked: list[float] = []

        def ask() -> None:
            asked.append(now)
            raise MasterNotFoundError("no Sentinel answers")

        monkeypatch.setattr(pool, "get_master_address", ask)
        now += 5.0
        for _ in range(10):
            assert d.sync() is False
        assert asked == [1005.0]
        now += SENTINEL_PAUSE
        assert d["a"] == 1
        assert asked == [1005.0, 1005.0 + SENTINEL_PAUSE]


def test_a_client_of_a_replica_is_refused(sentinels: SentinelServers) -> None:
    """`Sentinel.slave_for` gives clients of replicas, whose data may be old (rule 2.6)."""
    sentinel: Any = sentinels.sentinel()
    with sentinel.slave_for(sentinels.name) as client, pytest.raises(ReadOnlyError, match="old"):
        AnyDict("k", client)


class Fake:
    """A manager of sentinels that names whichever server it is told to."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.asked = 0

    def discover_master(self, name: str) -> tuple[str, int]:
        assert name == "m"
        self.asked += 1
        return HOST, self.server.port


def test_a_primary_that_sentinel_names_no_more_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 2.6: cut off from the others it is still a primary, by its own word."""
    now = 1000.0
    monkeypatch.setattr("durabledict.reading.monotonic", lambda: now)
    with RedisServer() as a, RedisServer() as b:
        for server, value in ((a, "a"), (b, "b")):
            with server.client() as client, AnyDict("k", client) as d:
                d["k"] = value
        fake = Fake(a)
        pool: Any = SentinelConnectionPool("m", fake)  # type: ignore[no-untyped-call]  # redis-py has no types
        with redis.Redis(connection_pool=pool) as client, AnyDict("k", client) as d:
            assert d["k"] == "a"
            asked = fake.asked
            for _ in range(5):
                assert d.sync() is False
            assert fake.asked == asked
            fake.server = b
            now += 1.0
            assert d["k"] == "b"
            assert d.last_synced is not None
            fake.server = a
            now += 1.0
            assert d.sync() is True
            assert dict(d) == {"k": "a"}
            assert fake.asked > asked
        pool.disconnect()
