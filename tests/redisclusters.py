"""Real Redis servers for the tests, several together: under Sentinel, and as a cluster."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import redis
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.sentinel import Sentinel

from .redisservers import RedisServer, wait_until_linked
from .servers import HOST, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ClusterServers", "SentinelServer", "SentinelServers", "SlotMigration"]

SLOTS = 16384

#: Milliseconds without an answer after which a sentinel takes a server for down: as long as nobody
#: is to fail, which a busy machine must not look like, and when somebody has.
PATIENT = 60_000
IMPATIENT = 500


class SentinelServer(RedisServer):
    """One sentinel, by redis-server itself: the program redis-sentinel is no other one."""

    def __init__(self, name: str, primary: RedisServer, quorum: int) -> None:
        super().__init__()
        # A file, since a sentinel keeps what it learns in it.
        (self.folder / "sentinel.conf").write_text(
            f"sentinel monitor {name} {HOST} {primary.port} {quorum}\n"
            f"sentinel down-after-milliseconds {name} {PATIENT}\n"
            f"sentinel failover-timeout {name} 2000\n"
        )

    def command(self) -> list[str]:
        program = super().command()[0]
        command = [program, "sentinel.conf", "--sentinel", "--port", str(self.port)]
        return [*command, "--bind", HOST, "--unixsocket", str(self.unix)]


class SentinelServers:
    """A primary, its replica, and three sentinels that agree on them."""

    name = "tests"

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self.sentinels: list[SentinelServer] = []

    def __enter__(self) -> Self:
        with self._cleanup:
            self.primary = self._cleanup.enter_context(RedisServer())
            self.replica = self._cleanup.enter_context(RedisServer(replica_of=self.primary))
            wait_until_linked(self.replica)
            for _ in range(3):
                server = SentinelServer(self.name, self.primary, quorum=2)
                self.sentinels.append(self._cleanup.enter_context(server))
                # From Redis 7: they find each other in 0.1 s, not 2. Not ping-period also: what
                # a sentinel knows of a replica is good for 5 of those, but it asks once a second.
                server.ask("SENTINEL DEBUG publish-period 100 info-period 200")
            wait_until(
                lambda: all(
                    "slaves=1,sentinels=3" in server.info("sentinel").get("master0", "")
                    for server in self.sentinels
                ),
                "every sentinel knows the replica and both others",
            )
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(HOST, server.port) for server in self.sentinels]

    def sentinel(self, **options: Any) -> Sentinel:
        """Return a client of the sentinels; its connections are closed at the end of all."""
        sentinel = Sentinel(self.addresses, **options)  # type: ignore[no-untyped-call]  # redis-py has no types
        for client in sentinel.sentinels:
            self._cleanup.callback(client.close)
        return sentinel

    def primary_address(self) -> tuple[str, int]:
        """Return what a client asks the sentinels for."""
        sentinel: Any = self.sentinel()  # Its methods have no types.
        host, port = sentinel.discover_master(self.name)
        return str(host), int(port)

    def client(self, **options: Any) -> redis.Redis:
        """Return a client of whichever is the primary; to be closed by the caller."""
        sentinel: Any = self.sentinel()
        client: redis.Redis = sentinel.master_for(self.name, **options)
        return client

    def fail_over_to(self, server: RedisServer) -> None:
        """Have the sentinels notice that the primary is down; return when `server` is it.

        So they do nothing of themselves before, however long a test takes for what comes between.

        """
        self._take_for_down_after(IMPATIENT)
        self.wait_until_primary_is(server)
        self._take_for_down_after(PATIENT)

    def _take_for_down_after(self, milliseconds: int) -> None:
        for sentinel in self.sentinels:
            setting = f"down-after-milliseconds {milliseconds}"
            assert sentinel.ask(f"SENTINEL SET {self.name} {setting}") == b"+OK"

    def wait_until_primary_is(self, server: RedisServer) -> None:
        """Wait until `server` is the primary, and every sentinel that runs says so."""
        wait_until(
            lambda: (
                server.replication().get("role") == "master"
                and all(
                    f"address={HOST}:{server.port}," in sentinel.info("sentinel")["master0"]
                    for sentinel in self.sentinels
                    if sentinel.running
                )
            ),
            f"{server.port} is the primary, and the sentinels say so",
        )


def identity(node: RedisServer) -> bytes:
    """Return the name that the node has in its cluster."""
    return node.ask("CLUSTER MYID")


class SlotMigration:
    """A slot's way from one node to another, step by step, to stop between any two.

    Between `begin` and `finish` the source answers ASK for a key that it does not have, and
    either node TRYAGAIN for several keys of which it has only some. After `finish` the source
    answers MOVED.

    """

    def __init__(
        self, cluster: ClusterServers, slot: int, source: RedisServer, target: RedisServer
    ) -> None:
        self.cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target

    def begin(self) -> None:
        # The target first: until it knows, it would send a client that asks back to the source.
        self._set(self.target, b"IMPORTING", identity(self.source))
        self._set(self.source, b"MIGRATING", identity(self.target))

    def keys(self) -> list[bytes]:
        """Return the keys of the slot that are still in the source."""
        with self.source.client() as client:
            count = client.execute_command("CLUSTER", "COUNTKEYSINSLOT", self.slot)
            keys: list[bytes] = client.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        return keys

    def move(self, *keys: bytes) -> None:
        """Move these keys; without an argument, all that are left."""
        keys = keys or tuple(self.keys())
        if keys:
            with self.source.client() as client:
                target = (HOST, self.target.port, "", 0, 5000)
                client.execute_command("MIGRATE", *target, "KEYS", *keys)

    def finish(self) -> None:
        """Give the slot to the target; every node knows it at once."""
        # The target first, so that the slot always has an owner.
        others = [node for node in self.cluster.nodes if node is not self.target]
        for node in (self.target, *others):
            self._set(node, b"NODE", identity(self.target))

    def _set(self, node: RedisServer, *words: bytes) -> None:
        with node.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", self.slot, *words)


class ClusterServers:
    """A cluster of three primaries without replicas."""

    def __init__(self, *arguments: str, size: int = 3) -> None:
        self._cleanup = ExitStack()
        self.nodes = [RedisServer(*arguments, cluster=True) for _ in range(size)]

    def __enter__(self) -> Self:
        with self._cleanup:
            for node in self.nodes:
                self._cleanup.callback(node.close)
            for number, node in enumerate(self.nodes):
                node.start()
                begin = SLOTS * number // len(self.nodes)
                end = SLOTS * (number + 1) // len(self.nodes)
                with node.client() as client:
                    # Else they agree on who is the older one only after a while.
                    client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                    # Not ADDSLOTSRANGE: Redis 6 does not have it.
                    client.execute_command("CLUSTER", "ADDSLOTS", *range(begin, end))
                    client.execute_command("CLUSTER", "MEET", HOST, self.nodes[0].port)
            wait_until(self._complete, "every node of the cluster knows all slots")
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _complete(self) -> bool:
        for node in self.nodes:
            known = dict(line.split(":") for line in node.ask("CLUSTER INFO").decode().splitlines())
            if (known["cluster_state"], known["cluster_slots_ok"]) != ("ok", str(SLOTS)):
                return False
            # The nodes that are still in handshake have no slots.
            if known["cluster_size"] != str(len(self.nodes)):
                return False
        return True

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def client(self, **options: Any) -> RedisCluster:
        """Return a new client; to be closed by the caller."""
        return RedisCluster(host=HOST, port=self.nodes[0].port, **options)

    def owner(self, key: bytes) -> RedisServer:
        """Return the node that serves the key, as itself sees it."""
        slot = key_slot(key)
        for node in self.nodes:
            with node.client() as client:
                rows = client.execute_command("CLUSTER", "SLOTS")
            for begin, end, (_, _, name, *_), *_ in rows:
                if begin <= slot <= end and name == identity(node):
                    return node
        raise LookupError(f"no node serves slot {slot}")

    def migration(self, key: bytes, target: RedisServer | None = None) -> SlotMigration:
        """Return the migration of the slot of `key`, of which nothing is done yet."""
        source = self.owner(key)
        if target is None:
            target = next(node for node in self.nodes if node is not source)
        return SlotMigration(self, key_slot(key), source, target)
