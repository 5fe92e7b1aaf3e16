"""RedisDict on a Redis cluster: each keyspace in one slot, wherever that goes.

Slots are moved step by step, so that each test stands between two steps as long as it needs.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import TryAgainError

from durabledict import DurableDict, RedisDict
from durabledict.redisconnection import OwnConnection
from durabledict.redisprimary import Primary
from durabledict.testing import DurableDictSuite

from .fewsequences import FewSequences
from .redisclusters import ClusterServers, SlotMigration
from .redisservers import RedisServer
from .servers import HOST, PATIENCE, wait_until
from .test_redis_clients import everything_works

AnyDict = RedisDict[Any, Any]

UNREACHABLE = RedisDict.unavailable

_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    """One for all tests that leave its nodes alone; each takes keyspaces of its own."""
    with ClusterServers() as servers:
        yield servers


@pytest.fixture
def client(cluster: ClusterServers) -> Iterator[RedisCluster]:
    with closing(cluster.client()) as client:
        yield client


def reading_from_replicas(cluster: ClusterServers) -> RedisCluster:
    with warnings.catch_warnings():
        # Newer releases of redis-py have another word for it besides.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cluster.client(read_from_replicas=True)


@contextmanager
def closing(client: RedisCluster) -> Iterator[RedisCluster]:
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def keyspace() -> str:
    return f"keyspace{next(_numbers)}"


def nodes_of(client: Any) -> list[Any]:
    """The nodes that a client knows; its methods have no types."""
    return list(client.get_nodes())


def keys_of(keyspace: str) -> list[bytes]:
    return [
        keyspace.encode(),
        f"{{{keyspace}}}:changes".encode(),
        f"{{{keyspace}}}:last_updated".encode(),
    ]


# -- the dict operations --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_clients(cluster: ClusterServers) -> Iterator[list[RedisCluster]]:
    with closing(cluster.client()) as one, closing(cluster.client()) as two:
        yield [one, two]


class TestOnACluster(FewSequences, DurableDictSuite):
    capabilities = frozenset({"strict", "compare_and_set", "delta", "push", "shared", "aliasing"})
    modes = (True,)

    @pytest.fixture(autouse=True)
    def _choose_clients(self, two_clients: list[RedisCluster]) -> None:
        # In turn: a dict shares its connections with some of the others, and not with all.
        self._clients = itertools.cycle(two_clients)

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return AnyDict(str(place), next(self._clients), **options)


def test_many_keyspaces_are_spread_over_the_nodes(
    cluster: ClusterServers, client: RedisCluster, keyspace: str
) -> None:
    names = [f"{keyspace}-{number}" for number in range(50)]
    dicts = [AnyDict(name, client) for name in names]
    for number, d in enumerate(dicts):
        d.update(number=number, name=d.keyspace)
    owners = {cluster.owner(name.encode()).port for name in names}
    assert len(owners) == len(cluster.nodes)
    with closing(cluster.client()) as other:
        for number, name in enumerate(names):
            with AnyDict(name, other) as d:
                assert d == {"number": number, "name": name}
    for number, d in enumerate(dicts):
        assert d["number"] == number
        d.close()


MAKE: dict[str, Callable[[ClusterServers], RedisCluster]] = {
    "bytes": lambda cluster: cluster.client(),
    "text": lambda cluster: cluster.client(decode_responses=True),
    "RESP3": lambda cluster: cluster.client(protocol=3),
    "reads from replicas": reading_from_replicas,
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_cluster_client_with_any_settings_works(
    cluster: ClusterServers, keyspace: str, make: Callable[[ClusterServers], RedisCluster]
) -> None:
    """Rules 2.5 and 2.6: settings of the connections are the dict's own."""
    with closing(make(cluster)) as client:
        settings = {
            node.name: dict(node.redis_connection.connection_pool.connection_kwargs)
            for node in nodes_of(client)
        }
        with AnyDict(keyspace, client) as one, AnyDict(keyspace, client) as two:
            everything_works(one, two)
        for node in nodes_of(client):
            assert settings[node.name] == node.redis_connection.connection_pool.connection_kwargs


@pytest.mark.parametrize("keyspace", ["a}b", "", "}", "{}a", "a{}b"])
def test_a_keyspace_without_one_slot_is_refused(client: RedisCluster, keyspace: str) -> None:
    """Rule 2.9."""
    with pytest.raises(ValueError, match=r"would not be in one slot; write a part of it in braces"):
        AnyDict(keyspace, client)


@pytest.mark.parametrize("keyspace", ["a", "{a}", "x{a}y", "{{a}}"])
def test_all_keys_of_a_keyspace_are_in_one_slot(client: RedisCluster, keyspace: str) -> None:
    """Rule 2.9."""
    with AnyDict(keyspace, client) as d:
        assert len({key_slot(key) for key in d._primary.keys}) == 1
        d["a"] = 1
        assert d.sync(force=True) is False
        assert d == {"a": 1}
        d.clear()


@pytest.fixture(scope="module")
def any_client(cluster: ClusterServers) -> Iterator[RedisCluster]:
    """For a hypothesis test, which takes no fixture of a function."""
    with closing(cluster.client()) as client:
        yield client


def test_a_keyspace_is_in_one_slot_or_refused(any_client: RedisCluster) -> None:
    """Rule 2.9."""

    @given(st.text(alphabet="{}a:", max_size=8) | st.text(max_size=8))
    def check(keyspace: str) -> None:
        try:
            primary = Primary(any_client, keyspace)
        except ValueError:
            assert "}" in keyspace or "{" in keyspace or not keyspace
        else:
            assert len({key_slot(key) for key in primary.keys}) == 1
            primary.close()

    check()


# -- slots that move ------------------------------------------------------------------------------


class Moving:
    """A keyspace, dicts that use it, and the migration of its slot."""

    def __init__(self, cluster: ClusterServers, keyspace: str) -> None:
        self._cleanup = ExitStack()
        self.cluster = cluster
        self.keyspace = keyspace
        # Dicts with clients of their own, which learn of the move each by itself.
        self.strict, self.manual = self.opened(), self.opened(autosync=False)
        self.watching = self.opened(autosync=False)
        self.writer = self.opened()
        self.writer.update({number: number for number in range(10)})
        self.watching.watch(interval=0.2)
        self.turns = 0
        self.agree()
        self.migration: SlotMigration = cluster.migration(keyspace.encode())

    def opened(self, **options: Any) -> AnyDict:
        client = self._cleanup.enter_context(closing(self.cluster.client()))
        return self._cleanup.enter_context(AnyDict(self.keyspace, client, **options))

    def agree(self) -> None:
        """Write in several ways; everybody sees it."""
        self.turns += 1
        turn = f"turn {self.turns}"
        self.writer["turn"] = turn
        self.writer.update({turn: 1, "many": list(range(self.turns))})
        assert self.strict["turn"] == turn
        assert self.writer.compute("count", lambda count: count + 1, default=0) == self.turns
        self.manual.sync()
        assert self.manual == self.strict == self.writer
        assert dict(self.manual) == dict(self.writer)
        expected = dict(self.writer)
        wait_until(lambda: self.watching.copy() == expected, "the watch has seen it")
        assert self.manual.sync(force=True) is False
        with self.opened() as fresh:
            assert fresh == expected

    def close(self) -> None:
        self._cleanup.close()


@pytest.fixture
def moving(cluster: ClusterServers, keyspace: str) -> Iterator[Moving]:
    moving = Moving(cluster, keyspace)
    yield moving
    moving.close()


def test_a_slot_that_has_moved_is_followed(moving: Moving) -> None:
    """Rule 2.7: MOVED came before anything ran, so it is asked again, at the right node."""
    moving.migration.begin()
    moving.migration.move()
    moving.migration.finish()
    moving.agree()
    assert moving.cluster.owner(moving.keyspace.encode()) is moving.migration.target


def test_a_slot_that_is_about_to_move_is_used_where_it_is(moving: Moving) -> None:
    moving.migration.begin()
    moving.agree()
    moving.migration.move()
    moving.migration.finish()
    moving.agree()


def test_keys_that_have_moved_ahead_of_their_slot_are_asked_for(moving: Moving) -> None:
    """Rule 2.7: ASK, for every request, since the slot may stay where it is."""
    moving.migration.begin()
    moving.migration.move()
    moving.agree()
    moving.agree()
    moving.migration.finish()
    moving.agree()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_keyspace_of_which_some_keys_have_moved_is_waited_for(
    moving: Moving, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.7: TRYAGAIN is repeated, and when it goes on too long it is an outage."""
    keys = keys_of(moving.keyspace)
    moving.migration.begin()
    moving.migration.move(keys[first])
    stale = moving.manual
    before = dict(stale)
    monkeypatch.setattr("durabledict.redisprimary.PAUSES", (0.0,))
    with pytest.raises(TryAgainError):
        moving.writer["turn"] = "refused"
    with pytest.raises(TryAgainError):
        stale.sync()
    assert stale == before
    # Now the rest moves while they wait.
    pauses = iter([moving.migration.move])
    writer, sleep = threading.get_ident(), time.sleep

    def pause(seconds: float) -> None:
        # The thread of the watch pauses as well, and the writer would not wait for that.
        if threading.get_ident() == writer:
            next(pauses, lambda: None)()
        else:
            sleep(seconds)

    monkeypatch.setattr("durabledict.redisprimary.PAUSES", (0.0,) * 20)
    monkeypatch.setattr("time.sleep", pause)
    moving.writer["turn"] = "moved"
    monkeypatch.undo()
    assert moving.strict["turn"] == "moved"
    moving.agree()
    moving.migration.finish()
    moving.agree()


def test_nodes_that_disagree_are_not_asked_without_end(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.7: whoever the client asks for the slots may not have heard of the move yet."""
    asked: list[object] = []

    def initialize(*_: object, **__: object) -> None:
        asked.append(None)
        assert len(asked) < 100, "asked without end"

    moving.migration.begin()
    moving.migration.move()
    moving.migration.finish()
    monkeypatch.setattr(moving.writer.connection.nodes_manager, "initialize", initialize)
    try:
        moving.writer["turn"] = "followed"
    except UNREACHABLE:
        pass
    monkeypatch.undo()
    moving.agree()


def test_nothing_is_lost_or_done_twice_while_a_slot_moves(moving: Moving) -> None:
    """Writers count while the slot goes from node to node."""
    moving.writer["n"] = 0
    done: list[int] = []
    errors: list[BaseException] = []
    stopping = threading.Event()

    def count(d: AnyDict) -> None:
        times = 0
        try:
            while not stopping.is_set():
                d.compute("n", lambda n: n + 1)
                times += 1
                assert d["n"] >= times
        except BaseException as error:
            errors.append(error)
        done.append(times)

    threads = [threading.Thread(target=count, args=[moving.opened()]) for _ in range(3)]
    for thread in threads:
        thread.start()

    def goes_on() -> None:
        reached = moving.strict["n"]
        wait_until(lambda: errors or moving.strict["n"] > reached + 5, "they count on")

    for _ in range(3):
        migration = moving.cluster.migration(moving.keyspace.encode())
        goes_on()
        migration.begin()
        goes_on()
        migration.move()
        goes_on()
        migration.finish()
        goes_on()
    stopping.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert moving.strict["n"] == sum(done)


def test_the_cursor_of_another_node_is_not_used(
    cluster: ClusterServers, keyspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.4: a first load goes on where it began, or anew; it never skips entries."""
    entries = {number: str(number) for number in range(8000)}
    with (
        closing(cluster.client()) as client,
        closing(cluster.client()) as other,
        AnyDict(keyspace, client) as writer,
    ):
        writer.update(entries)
        migration = cluster.migration(keyspace.encode())
        original = OwnConnection.begin
        scanned: list[bytes] = []

        def begin(self: OwnConnection, *requests: bytes) -> None:
            if b"HSCAN" in requests[0]:
                scanned.append(requests[0])
                if len(scanned) == 2:
                    migration.begin()
                    migration.move()
                    migration.finish()
            original(self, *requests)

        monkeypatch.setattr(OwnConnection, "begin", begin)
        with AnyDict(keyspace, other) as reader:
            assert len(scanned) > 2
            assert reader == entries
            writer[1] = "new"
            assert reader[1] == "new"
            assert reader.sync(force=True) is False
            assert len(reader) == 8000


def test_a_first_load_beside_writers_is_complete(
    cluster: ClusterServers, keyspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.4: what was written while it scanned is in the delta."""
    with (
        closing(cluster.client()) as client,
        closing(cluster.client()) as other,
        AnyDict(keyspace, client, autosync=False) as writer,
    ):
        writer.update(dict.fromkeys(range(6000), 0))
        original = OwnConnection.begin
        turns = itertools.count()
        by_writer = threading.local()

        def begin(self: OwnConnection, *requests: bytes) -> None:
            if b"HSCAN" in requests[0] and not hasattr(by_writer, "busy"):
                by_writer.busy = True
                turn = next(turns)
                writer[turn] = "written"
                writer[f"new {turn}"] = 1
                del writer[5999 - turn]
                del by_writer.busy
            original(self, *requests)

        monkeypatch.setattr(OwnConnection, "begin", begin)
        with AnyDict(keyspace, other) as reader:
            monkeypatch.undo()
            assert next(turns) > 2
            assert dict(reader) == dict(writer)
            assert reader.sync(force=True) is False


# -- replicas -------------------------------------------------------------------------------------


@contextmanager
def replica_of(cluster: ClusterServers, primary: RedisServer) -> Iterator[RedisServer]:
    with RedisServer(cluster=True) as server:
        with server.client() as client:
            for node in cluster.nodes:
                client.execute_command("CLUSTER", "MEET", HOST, node.port)
        identity = primary.ask("CLUSTER MYID").decode()

        def follows() -> bool:
            return server.ask(f"CLUSTER REPLICATE {identity}") == b"+OK"

        def is_known() -> bool:
            for node in cluster.nodes:
                with node.client() as client:
                    rows: Any = client.execute_command("CLUSTER", "SLOTS")
                if not any(name[1] == server.port for row in rows for name in row[3:]):
                    return False
            return True

        wait_until(follows, "the replica knows its primary")
        wait_until(
            lambda: server.info("replication").get("master_link_status") == "up",
            "the replica is linked",
        )
        # One that has got nothing yet is not named to clients.
        with primary.client() as client:
            client.set("{k}other", "1")
        wait_until(is_known, "every node says that it is a replica")
        yield server


def exchange(primary: RedisServer, replica: RedisServer) -> None:
    """Have them change places."""
    assert replica.ask("CLUSTER FAILOVER") == b"+OK"
    wait_until(
        lambda: (
            replica.info("replication")["role"] == "master"
            and primary.info("replication")["role"] == "slave"
            and primary.info("replication")["master_link_status"] == "up"
        ),
        "they have changed places",
    )


@contextmanager
def reading_from_a_replica(
    **options: Any,
) -> Iterator[tuple[AnyDict, AnyDict, RedisServer, RedisServer, ClusterServers]]:
    """Open a dict over a client that reads from replicas, and another one that writes.

    :return: both dicts, the primary of their slot, its replica, and the cluster

    """
    with ClusterServers() as cluster:
        primary = cluster.owner(b"k")
        with (
            replica_of(cluster, primary) as replica,
            closing(reading_from_replicas(cluster)) as client,
            closing(cluster.client()) as other,
            AnyDict("k", client, **options) as d,
            AnyDict("k", other) as writer,
        ):
            yield d, writer, primary, replica, cluster


def test_a_primary_that_becomes_a_replica_is_left_by_a_client_that_reads_from_those() -> None:
    """Rule 2.6: with READONLY on its connections the old primary would go on answering."""
    with reading_from_a_replica(autosync=False) as (d, writer, primary, replica, _):
        writer["a"] = "before"
        assert d.sync() is True
        assert d["a"] == "before"
        exchange(primary, replica)
        for number in range(3):
            writer["a"] = number
            assert d.sync() is True
            assert d["a"] == number
        d["a"] = "its own"
        assert writer["a"] == "its own"


def test_a_strict_read_is_never_answered_by_a_primary_that_has_become_a_replica() -> None:
    """Rule 2.6: as above, in between two looks at the server's role."""
    with reading_from_a_replica() as (d, writer, primary, replica, _):
        writer["a"] = "before"
        assert d["a"] == "before"
        d._look_at = math.inf
        exchange(primary, replica)
        with primary.counting() as calls:
            for number in range(3):
                writer["a"] = number
                assert d["a"] == number
        assert calls["get"] == 0


def test_a_client_that_reads_from_replicas_does_not_make_a_dict_do_so() -> None:
    """Rule 2.6, also where the client itself is asked, because the slot has moved."""
    with reading_from_a_replica() as (d, writer, _, replica, cluster):
        client: Any = d.connection
        assert any(node.port == replica.port for node in nodes_of(client))
        with replica.counting() as calls:
            for number in range(20):
                writer["a"] = number
                assert d["a"] == number
                assert d.sync(force=True) is False
        assert not {"get", "evalsha", "eval"} & {name for name, n in calls.items() if n}
        # From here on the client's own GET would be answered by whoever has the slot's data.
        asked: list[Any] = []
        original = client.execute_command

        def execute_command(*arguments: Any, **options: Any) -> Any:
            asked.append(arguments)
            return original(*arguments, **options)

        client.execute_command = execute_command
        migration = cluster.migration(b"k")
        migration.begin()
        migration.move()
        migration.finish()
        writer["a"] = "moved"
        assert d["a"] == "moved"
        assert [arguments for arguments in asked if arguments[0] == "GET"] == []


# -- a node that is down --------------------------------------------------------------------------


def test_a_node_that_is_down_stops_its_own_keyspaces_alone() -> None:
    arguments = (
        *("--cluster-require-full-coverage", "no"),
        *("--appendonly", "yes", "--appendfsync", "always"),
    )
    with ClusterServers(*arguments) as cluster, ExitStack() as cleanup:
        client = cleanup.enter_context(closing(cluster.client()))

        def opened(name: str, **options: Any) -> AnyDict:
            return cleanup.enter_context(AnyDict(name, client, **options))

        names = [f"k{number}" for number in range(12)]
        dicts = {name: opened(name) for name in names}
        for name, d in dicts.items():
            d["name"] = name
        victim = cluster.owner(b"k0")
        gone = [name for name in names if cluster.owner(name.encode()) is victim]
        there = [name for name in names if name not in gone]
        assert gone
        assert there
        stale = opened("k0", on_outage="stale")
        watching = opened("k0", autosync=False)
        watching.watch(interval=0.2)
        victim.kill()
        for name in there:
            assert dicts[name]["name"] == name
            dicts[name]["again"] = 1
            assert dicts[name].sync(force=True) is False
        with pytest.raises(UNREACHABLE):
            dicts["k0"]["name"]
        with pytest.raises(UNREACHABLE):
            dicts["k0"]["name"] = "refused"
        assert stale["name"] == "k0"
        assert stale.sync() is False
        assert stale.stale_since is not None
        assert watching["name"] == "k0"
        for name in there:
            assert dicts[name]["again"] == 1
        victim.start()

        def recovered() -> bool:
            try:
                for name in gone:
                    dicts[name].sync()
            except UNREACHABLE:
                return False
            return True

        wait_until(recovered, "the node is back")
        for name in gone:
            assert dicts[name]["name"] == name
            dicts[name]["again"] = 2
        assert dicts["k0"]["again"] == 2
        wait_until(lambda: stale.get("again") == 2, "the stale reader goes on")
        wait_until(lambda: watching.copy().get("again") == 2, "the watch goes on")
