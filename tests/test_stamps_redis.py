"""Stamps over redis-py's clients, on real servers (rules 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.retry import Retry

from durabledict.stamps import LEAST, WRITERS, CacheStamp, Stamp
from durabledict.testing.tools import Clock

from .redisclusters import ClusterServers, SentinelServers
from .redisservers import RedisServer
from .servers import HOST, wait_until
from .stampcases import (
    answered,
    check_held,
    check_lost,
    check_unavailable,
    read,
    write_from_eight_threads,
)
from .tcpproxy import TcpProxy

KEY = "stamp"

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decoded": {"decode_responses": True},
    "RESP3": {"protocol": 3},
    "RESP3, decoded": {"protocol": 3, "decode_responses": True},
    "one connection": {"max_connections": 1},
    "single": {"single_connection_client": True},
    "retries": {"retry": Retry(NoBackoff(), 5), "retry_on_error": [redis.ConnectionError]},
}


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that the test stops or configures."""
    with RedisServer() as server:
        yield server


def settings_of(client: Any) -> Any:
    """What a client and its pool are made of, and which connections that has."""
    pool = client.connection_pool
    return (
        dict(vars(client)),
        dict(pool.connection_kwargs),
        list(pool._available_connections),
        list(pool._in_use_connections),
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_every_client_holds_a_stamp_and_stays_as_it_is(redis_url: str, options: str) -> None:
    with redis.Redis.from_url(redis_url, **OPTIONS[options]) as client:
        before = settings_of(client)
        held = check_held(client, KEY)
        assert settings_of(client) == before
        assert int(client.get(KEY) or 0) // WRITERS == held.number
        assert client.ttl(KEY) == -1


@pytest.mark.parametrize("wrong", [redis.asyncio.Redis(), redis.ConnectionPool()])
def test_what_is_no_client_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"pass a redis\.Redis or a redis\.cluster\.RedisCluster"):
        CacheStamp(wrong, KEY)


def test_a_read_is_one_get_and_a_write_two_incrby(
    redis_server: RedisServer, redis_client: redis.Redis, clock: Clock
) -> None:
    stamp = CacheStamp(redis_client, KEY)
    read(stamp)
    with stamp.writing():
        pass
    with redis_server.counting() as calls:
        for _ in range(10):
            read(stamp)
    assert calls == {"get": 10}
    with redis_server.counting() as calls:
        for _ in range(5):
            with stamp.writing():
                pass
    assert calls == {"incrby": 10}
    with redis_server.counting() as calls:
        clock.move(1.0)
        for _ in range(5):
            read(stamp)
        stamp.touch()
        stamp.renew()
    assert calls == {"get": 5, "role": 1, "incrby": 1, "set": 1}


class TestLost:
    @pytest.mark.parametrize("way", ["FLUSHALL", "DEL", "restart"])
    def test_the_stamp_is_gone(self, own: RedisServer, way: str) -> None:
        def lose() -> None:
            if way == "restart":
                own.restart()
            else:
                own.ask("FLUSHALL" if way == "FLUSHALL" else f"DEL {KEY}")

        with own.client() as client:
            check_lost(client, KEY, lose)

    def test_two_writers_meet_where_there_is_none(self, redis_client: redis.Redis) -> None:
        """INCRBY made the key for the one, and the other adds to that."""
        stamp, reader = CacheStamp(redis_client, KEY), CacheStamp(redis_client, KEY)
        redis_client.incrby(KEY, 1)
        first, second = stamp.begin(), stamp.begin()
        known = read(reader)
        stamp.end(first)
        stamp.end(second)
        assert read(reader) not in (None, known)
        assert int(redis_client.get(KEY) or 0) % WRITERS == 0

    @pytest.mark.parametrize(
        "garbage", [b"text", b"", b"5", b"-5", b"1.5", b"9" * 30, b"\xff", b"9223372036854775807"]
    )
    def test_something_else_is_in_its_place(
        self, redis_client: redis.Redis, garbage: bytes
    ) -> None:
        stamp, other = CacheStamp(redis_client, KEY), CacheStamp(redis_client, KEY)
        known = read(stamp)
        redis_client.set(KEY, garbage)
        second = read(stamp)
        assert second != known
        redis_client.set(KEY, garbage)
        with other.writing():
            pass
        assert read(stamp) not in (known, second)
        opening = other.begin()
        redis_client.set(KEY, garbage)
        other.end(opening)
        assert read(stamp) != known

    def test_a_list_in_its_place_is_an_error_and_stays(self, redis_client: redis.Redis) -> None:
        stamp = CacheStamp(redis_client, KEY)
        opening = stamp.begin()
        redis_client.delete(KEY)
        redis_client.rpush(KEY, "mine")
        for action in (stamp.read, stamp.begin, stamp.touch, lambda: stamp.end(opening)):
            with pytest.raises(ResponseError, match="WRONGTYPE"):
                action()
        assert redis_client.lrange(KEY, 0, -1) == [b"mine"]

    def test_a_number_that_was_set_back_is_bounded_by_verify(
        self, redis_client: redis.Redis, clock: Clock
    ) -> None:
        stamp = CacheStamp(redis_client, KEY, verify=60.0)
        known = read(stamp)
        old: Any = redis_client.get(KEY)
        with CacheStamp(redis_client, KEY).writing():
            pass
        redis_client.set(KEY, old)
        clock.move(60.0)
        assert read(stamp) != known


class TestOutage:
    def test_down_is_an_exception(self, own: RedisServer) -> None:
        with own.client() as client:
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            opening = stamp.begin()
            own.kill()
            actions: list[Callable[[], object]] = [stamp.read, stamp.begin, stamp.touch]
            actions += [stamp.renew, lambda: stamp.end(opening)]
            for action in actions:
                with pytest.raises(stamp.unavailable):
                    action()
            own.start()
            assert read(stamp) != known

    def test_a_server_that_does_not_answer_is_one(self, own: RedisServer) -> None:
        with own.client(socket_timeout=0.05) as client:
            stamp = CacheStamp(client, KEY)
            answered(stamp)
            own.pause()
            check_unavailable(stamp)
            own.resume()

            def is_touched() -> bool:
                known = answered(stamp)  # no late answer
                try:
                    stamp.touch()
                except stamp.unavailable:
                    return False  # a busy machine was not in time
                assert answered(stamp).number == known.number + 1
                return True

            wait_until(is_touched, "a touch is answered in time")

    def test_a_restart_is_no_error(self, own: RedisServer) -> None:
        with own.client() as client:
            stamp = CacheStamp(client, KEY)
            for action in (stamp.read, stamp.begin, stamp.touch, stamp.renew):
                read(stamp)
                own.restart()
                action()

    def test_a_server_that_is_full_is_one(self, own: RedisServer) -> None:
        with own.client() as client:
            stamp = CacheStamp(client, KEY)
            own.ask("CONFIG SET maxmemory 1")
            with pytest.raises(OutOfMemoryError):
                stamp.read()
            assert OutOfMemoryError in stamp.unavailable

    def test_a_server_that_became_a_replica_is_one(self, own: RedisServer, clock: Clock) -> None:
        """It would go on answering, on the connection that is held to it."""
        with own.client() as client:
            stamp = CacheStamp(client, KEY)
            read(stamp)
            own.ask("REPLICAOF 127.0.0.1 1")
            clock.move(1.0)
            with pytest.raises(ReadOnlyError):
                stamp.read()
            with pytest.raises(ReadOnlyError):
                stamp.begin()
            assert ReadOnlyError in stamp.unavailable
            own.ask("REPLICAOF NO ONE")
            read(stamp)

    def test_a_user_who_may_not_ask_for_the_role_reads_all_the_same(
        self, redis_server: RedisServer, redis_client: redis.Redis, clock: Clock
    ) -> None:
        redis_client.acl_setuser(
            "stamps", enabled=True, nopass=True, keys=["*"], commands=["+get", "+set", "+incrby"]
        )
        with redis.Redis(HOST, redis_server.port, username="stamps", password="") as client:
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            clock.move(1.0)
            assert read(stamp) == known
        redis_client.acl_deluser("stamps")

    @pytest.mark.parametrize("retries", ["defaults", "retries"])
    @pytest.mark.parametrize("reset", [False, True])
    def test_an_incrby_that_was_not_answered_is_not_sent_again(
        self,
        redis_server: RedisServer,
        redis_client: redis.Redis,
        clock: Clock,
        retries: str,
        reset: bool,
    ) -> None:
        """Run twice, it would hide another writer that is at work."""
        with (
            TcpProxy(redis_server.port) as proxy,
            redis.Redis(HOST, proxy.port, **OPTIONS[retries]) as client,
        ):
            stamp = CacheStamp(client, KEY)
            known = read(stamp)
            other = CacheStamp(redis_client, KEY)
            opening = other.begin()
            mine = stamp.begin()
            proxy.cut_after(b"INCRBY", reset=reset)
            with pytest.raises(stamp.unavailable):
                stamp.end(mine)
            assert int(redis_client.get(KEY) or 0) % WRITERS == 1
            assert read(stamp) != known
            other.end(opening)
            assert int(redis_client.get(KEY) or 0) % WRITERS == 0


def test_threads_lose_nothing(redis_client: redis.Redis) -> None:
    write_from_eight_threads(redis_client, KEY)


def test_a_finalizer_in_the_middle_of_a_request(redis_client: redis.Redis) -> None:
    stamp = CacheStamp(redis_client, KEY)
    known = read(stamp)
    calls: list[Any] = []
    place: Any = stamp.cache._place(KEY)  # type: ignore[attr-defined]  # RedisCache's
    connection = place.server._checks
    original = connection.end

    def end(count: int = 1) -> list[Any]:
        if not calls:
            calls.append(None)
            assert not stamp.cache.is_in_use()
            with stamp.writing() as write:
                calls.append(stamp.read())
            calls.append(write.after)
        replies: list[Any] = original(count)
        return replies

    connection.end = end
    connection._spins = False
    stamp.read()
    assert [type(call) for call in calls] == [type(None), Stamp, Stamp]
    assert read(stamp) == Stamp(known.number + 1, 0, 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers() as cluster:
        yield cluster


class TestCluster:
    @pytest.mark.filterwarnings("ignore:.*read_from_replicas.*:DeprecationWarning")
    @pytest.mark.parametrize(
        "options", [{}, {"decode_responses": True}, {"read_from_replicas": True}]
    )
    def test_its_stamps_are_on_their_primaries(
        self, cluster: ClusterServers, options: dict[str, Any]
    ) -> None:
        with cluster.client(**options) as client:
            for number in range(4):
                key = f"{KEY}{number}{len(options)}"
                stamp = CacheStamp(client, key)
                known = read(stamp)
                with stamp.writing() as write:
                    pass
                assert (write.before, write.after) == (known, read(stamp))
                with cluster.owner(key.encode()).client() as node:
                    found: Any = node.get(key)
                    assert int(found) >= LEAST

    def test_a_slot_that_moves(self, cluster: ClusterServers) -> None:
        with cluster.client() as client:
            stamp = CacheStamp(client, "moves")
            known = read(stamp)
            migration = cluster.migration(b"moves")
            opening = stamp.begin()
            migration.begin()
            migration.move(b"moves")
            assert read(stamp).number == known.number
            migration.finish()
            write = stamp.end(opening)
            assert (write.before, write.after) == (known, read(stamp))

    def test_a_key_with_half_a_tag_is_refused(self, cluster: ClusterServers) -> None:
        with cluster.client() as client, pytest.raises(ValueError, match="brace"):
            CacheStamp(client, "a}b")


@pytest.mark.long
def test_sentinel_moves_the_primary() -> None:
    with ExitStack() as stack:
        servers = stack.enter_context(SentinelServers())
        client = stack.enter_context(servers.client())
        replica: Any = servers.sentinel()
        reader = stack.enter_context(replica.slave_for(servers.name))
        stamp = CacheStamp(client, KEY)
        known = read(stamp)
        with pytest.raises(ReadOnlyError):
            CacheStamp(reader, KEY).read()
        servers.sentinels[0].ask(f"SENTINEL FAILOVER {servers.name}")
        servers.wait_until_primary_is(servers.replica)
        # What it still accepts until then is lost, as is anything that Redis acknowledges.
        wait_until(
            lambda: servers.primary.info("replication")["role"] == "slave", "the old one knows"
        )

        def wrote() -> bool:
            try:
                with stamp.writing():
                    return True
            except stamp.unavailable:
                return False

        wait_until(wrote, "the stamp is on the new primary")
        assert read(stamp) != known
        with servers.replica.client() as direct:
            found: Any = direct.get(KEY)
            assert int(found) // WRITERS == read(stamp).number
