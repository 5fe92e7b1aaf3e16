"""What is proved of, each with its servers, its faults, and a way to look past the library.

SQLite and Redis are here, those with more servers in `manyservers`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from durabledict.redisscripts import COMPARE_AND_SET

from ..redisservers import RedisServer
from ..servers import HOST, wait_until
from ..tcpproxy import TcpProxy, each_chunk
from .clients import KEYSPACE
from .disks import fill_disk, small_disk
from .faults import Kind, limited_files, of_connections, of_processes, of_server, stopped
from .processes import Part, Workers

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Backend", "RedisBackend", "ReplicaBackend", "SqliteBackend"]

#: For three writers, and a reader of each kind.
PARTS = (
    Part("strict", writes=True),
    Part("seconds", writes=True),
    Part("manual", writes=True),
    Part("strict"),
    Part("seconds"),
    Part("manual"),
    Part("stale"),
    Part("watched"),
)


class Backend(ABC):
    """Servers of a proof's own, from the beginning of `with` to its end."""

    name = ""
    parts: tuple[Part, ...] = PARTS

    #: What a strict read sees: "linearizable", or all that was "acknowledged" before it began.
    promise = "linearizable"

    #: Seconds after the last fault in which what is under way comes to its end.
    calm = 0.1

    def __init__(self) -> None:
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        with self.stack:
            self.start()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @abstractmethod
    def start(self) -> None:
        """Start what there is to start; `stack` closes it."""

    @abstractmethod
    def place(self) -> dict[str, Any]:
        """Return what a process has to know to open its dict, for JSON."""

    @abstractmethod
    def stored(self) -> dict[str, Any]:
        """Return what the store holds, past the library."""

    @abstractmethod
    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        """Give the faults that can be made."""

    def environment(self) -> dict[str, str]:
        """Return what the processes need in theirs."""
        return {}

    def folder(self) -> Path:
        """Make a folder that is removed at the end, in memory where that is possible."""
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        return Path(
            self.stack.enter_context(tempfile.TemporaryDirectory(prefix="proof-", dir=memory))
        )


class SqliteBackend(Backend):
    """One file."""

    name = "sqlite"

    def start(self) -> None:
        folder = self.folder()
        self.disk = self.stack.enter_context(small_disk(folder))
        self.path = folder / "proof.sqlite"
        self.backup = self.path.with_name("backup.sqlite")

    def place(self) -> dict[str, Any]:
        return {"path": str(self.path)}

    def _connect(self, path: Path) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(path, isolation_level=None, timeout=30))

    def stored(self) -> dict[str, Any]:
        with self._connect(self.path) as connection:
            rows = connection.execute(
                "SELECT key, value FROM durabledict_entries WHERE keyspace = ?", [KEYSPACE]
            ).fetchall()
        return {key: json.loads(payload) for key, payload in rows}

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        yield from of_processes(workers, random)
        yield Kind("no file can grow", limited_files(workers, 100_000))
        if self.disk:
            yield Kind("the disk is full", lambda: fill_disk(self.path.parent))
        yield Kind("a checkpoint", lambda: self._execute("PRAGMA wal_checkpoint(TRUNCATE)"))
        yield Kind("a vacuum", lambda: self._execute("VACUUM"))
        yield Kind("the log of changes is emptied", self._forget_commits)
        yield Kind("an older backup is restored into the file", self._restore_into, loses=True)
        # Who has the old file open looks once a second.
        yield Kind(
            "an older backup takes the place of the file",
            self._restore_by_name,
            loses=True,
            grace=1.5,
        )

    def _execute(self, statement: str) -> None:
        try:
            with self._connect(self.path) as connection:
                connection.execute(statement)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise  # else: somebody wrote all the time

    def _forget_commits(self) -> None:
        """Remove all commits but the last one, whose number and nonce are the stamp."""
        self._execute(
            "DELETE FROM durabledict_commits WHERE version < "
            "(SELECT max(version) FROM durabledict_commits)"
        )

    def _back_up(self) -> None:
        self.backup.unlink(missing_ok=True)
        with self._connect(self.path) as source, self._connect(self.backup) as target:
            source.backup(target)
        time.sleep(0.7)  # what is written now will be lost

    def _restore_into(self) -> None:
        self._back_up()
        with self._connect(self.backup) as source, self._connect(self.path) as target:
            source.backup(target)

    def _restore_by_name(self) -> None:
        self._back_up()
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink()
        os.replace(self.backup, self.path)


class RedisBackend(Backend):
    """One server that waits for its disk, behind a proxy."""

    name = "redis"

    def start(self) -> None:
        self.server = self.stack.enter_context(
            RedisServer("--appendonly", "yes", "--appendfsync", "always")
        )
        self.proxy = self.stack.enter_context(TcpProxy(self.server.port))

    def place(self) -> dict[str, Any]:
        return {"port": self.proxy.port}

    def stored(self) -> dict[str, Any]:
        with self.server.client() as client:
            entries: Any = client.hgetall(KEYSPACE)
        return {key.decode(): json.loads(payload) for key, payload in entries.items()}

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        yield from of_processes(workers, random)
        yield from of_server("the server", lambda: self.server, random)
        yield from of_connections("the server", [self.proxy], random)
        yield Kind("the answers to additions are cut off", self._cut_additions)
        yield from self.of_keys(workers, random)

    def _cut_additions(self) -> None:
        self.proxy.cut_after(COMPARE_AND_SET.sha, times=3)
        time.sleep(0.5)
        self.proxy.mend()

    def of_keys(self, workers: Workers, random: Random) -> Iterator[Kind]:
        """Give what is done to the keys, past the library."""
        stream, mirror = f"{{{KEYSPACE}}}:changes", f"{{{KEYSPACE}}}:last_updated"

        def ask(*words: str | int) -> Any:
            with self.server.client() as client:
                return client.execute_command(*words)

        def rewind() -> None:
            old = ask("GET", mirror)
            time.sleep(0.3)
            ask("SET", mirror, old or "1-1")

        def trim_unseen() -> None:
            readers = [worker for worker in workers.ready() if not worker.part.writes]
            with stopped(random.choice(readers)):
                time.sleep(0.5)
                ask("XTRIM", stream, "MAXLEN", 1)

        def fill() -> None:
            ask("CONFIG", "SET", "maxmemory", "1")
            time.sleep(1.0)
            ask("CONFIG", "SET", "maxmemory", "0")

        def restore() -> None:
            keys = (KEYSPACE, stream, mirror)
            with self.server.client() as client:
                with client.pipeline() as pipeline:
                    for key in keys:
                        pipeline.dump(key)
                    backup = pipeline.execute()
                time.sleep(0.7)  # what is written now will be lost
                with client.pipeline() as pipeline:
                    for key, payload in zip(keys, backup, strict=True):
                        pipeline.delete(key)
                        if payload is not None:
                            pipeline.restore(key, 0, payload)
                    pipeline.execute()

        yield Kind("the stamp is evicted", lambda: ask("DEL", mirror))
        # Which is found out within a second, or by the next write.
        yield Kind("the stamp is set back", rewind, blind=True, grace=1.2)
        yield Kind("the stream is trimmed", lambda: ask("XTRIM", stream, "MAXLEN", 1))
        yield Kind("the stream is trimmed while a reader sleeps", trim_unseen)
        yield Kind("the stream is emptied", lambda: ask("XTRIM", stream, "MAXLEN", 0))
        yield Kind("the server is full", fill)
        yield Kind("an older backup is restored", restore, loses=True)
        yield Kind("all keys are flushed", lambda: ask("FLUSHALL"), loses=True)


class ReplicaBackend(RedisBackend):
    """A primary and a replica, which lags when it is promoted, behind one address."""

    name = "replica"

    def start(self) -> None:
        options = ("--appendonly", "yes", "--appendfsync", "always")
        self.server = self.stack.enter_context(RedisServer(*options))
        self.replica = self.stack.enter_context(RedisServer(*options))
        self.proxy = self.stack.enter_context(TcpProxy(self.server.port))
        self.link = self.stack.enter_context(TcpProxy(self.server.port, split=each_chunk))
        self._follow()

    def _follow(self) -> None:
        """Have the replica follow the primary, through a proxy."""
        self.link.server_port = self.server.port
        self.link.cut()
        self.link.mend()
        self.replica.ask(f"REPLICAOF {HOST} {self.link.port}")
        wait_until(
            lambda: self.replica.replication().get("master_link_status") == "up",
            "the replica is linked",
        )

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        yield from of_processes(workers, random)
        yield from of_server("the primary", lambda: self.server, random)
        yield from of_server("the replica", lambda: self.replica, random)
        yield from of_connections("the primary", [self.proxy], random)
        yield Kind("a replica that lags is promoted", lambda: self._promote(True), loses=True)
        # The connections to the old one go on, until it is noticed that it is a replica now.
        yield Kind(
            "the primary is demoted under its connections",
            lambda: self._promote(False),
            loses=True,
            grace=1.5,
        )

    def _promote(self, kill: bool) -> None:
        self.link.black_hole()
        time.sleep(0.5)
        old, new = self.server, self.replica
        if kill:
            old.kill()
        else:
            old.ask(f"REPLICAOF {HOST} {self.link.port}")
        new.ask("REPLICAOF NO ONE")
        self.server, self.replica = new, old
        self.proxy.server_port = new.port
        if kill:
            self.proxy.cut()
            old.start()
        self._follow()
