"""The backends of the proof with several servers: ZooKeeper, and PostgreSQL with memcached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from kazoo.client import KazooClient

from ..djangoproject import DATABASE
from ..memcachedserver import MemcachedServer
from ..postgresserver import PostgresServer
from ..servers import HOST, wait_until
from ..tcpproxy import TcpProxy, each_chunk
from ..zookeeperproxy import ZookeeperProxy
from ..zookeeperservers import Ensemble, started
from .backends import Backend
from .clients import KEYSPACE
from .disks import copy_folder
from .faults import Kind, of_connections, of_processes, of_server
from .processes import ROOT, Part, Workers

__all__ = ["DjangoBackend", "ZookeeperBackend"]


class ZookeeperBackend(Backend):
    """Three servers, each behind a proxy."""

    name = "zookeeper"
    parts = (
        Part("strict", writes=True),
        Part("asking", writes=True),
        Part("manual", writes=True),
        Part("strict"),
        Part("asking"),
        Part("seconds"),
        Part("manual"),
        Part("stale"),
        Part("watched"),
    )
    calm = 0.5

    def start(self) -> None:
        self.ensemble = self.stack.enter_context(Ensemble(force_sync=True))
        self.proxies = [
            self.stack.enter_context(ZookeeperProxy(server.port))
            for server in self.ensemble.servers
        ]

    def place(self) -> dict[str, Any]:
        return {"hosts": ",".join(f"{HOST}:{proxy.port}" for proxy in self.proxies)}

    def stored(self) -> dict[str, Any]:
        self.ensemble.wait_for_quorum()
        with started(self.ensemble.client()) as client:
            client.sync(f"/{KEYSPACE}")
            names = client.get_children(f"/{KEYSPACE}")
            payloads = {name: client.get(f"/{KEYSPACE}/{name}")[0] for name in names}
        return {name: json.loads(payload or b"") for name, payload in payloads.items()}

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        yield from of_processes(workers, random)
        yield from of_connections("a server", self.proxies, random)
        leader, follower = self.ensemble.leader, lambda: random.choice(self.ensemble.followers())
        own = [
            *of_server("the leader", leader, random),
            *of_server("a follower", follower, random),
            Kind("the leader is stopped until another leads", lambda: self._depose(random)),
            Kind("two servers are killed, and started again", lambda: self._kill_two(random)),
            Kind("a session expires", lambda: self._expire(workers, random)),
            # Its new leader counts from a higher number than any that was seen: clients stay.
            Kind("an older backup is restored", self._restore, loses=True),
        ]
        for kind in own:
            kind.strike = partial(self._until_quorum, kind.strike)
            yield kind

    def _until_quorum(self, strike: Callable[[], object]) -> None:
        """Make a fault; what comes next finds all three at work."""
        strike()
        self.ensemble.wait_for_quorum()

    def _depose(self, random: Random) -> None:
        leader = self.ensemble.leader()
        leader.pause()
        self.ensemble.wait_for_quorum()
        time.sleep(random.uniform(0.0, 1.0))  # in which the others are written to
        leader.resume()

    def _kill_two(self, random: Random) -> None:
        both = random.sample(self.ensemble.servers, 2)
        for server in both:
            server.kill()
        time.sleep(random.choice([0.0, 1.0]))
        for server in both:
            server.start()

    def _restore(self) -> None:
        servers = self.ensemble.servers
        for server in servers:
            copy_folder(server.data, server.folder / "backup")
        time.sleep(0.7)  # what is written now will be lost
        for server in servers:
            server.kill()
        for server in servers:
            shutil.rmtree(server.data)
            (server.folder / "backup").rename(server.data)
            server.start()

    def _expire(self, workers: Workers, random: Random) -> None:
        wait_until(workers.ready, "one has a session")
        session = workers.session(random.choice(workers.ready()))
        self.ensemble.expire(cast(KazooClient, SimpleNamespace(client_id=session)))


class DjangoBackend(Backend):
    """`SettingsDict` on PostgreSQL, its stamp in memcached, each behind a proxy."""

    name = "django"
    promise = "acknowledged"

    #: The seconds after which its readers reload in any case.
    verify = 2.0
    calm = 2.5

    def start(self) -> None:
        self.postgres = self.stack.enter_context(PostgresServer())
        self.memcached = self.stack.enter_context(MemcachedServer())
        self.postgres.create_database(DATABASE)
        self._migrate()
        self.to_postgres, self.to_memcached = (
            self.stack.enter_context(TcpProxy(port, split=each_chunk))
            for port in (self.postgres.port, self.memcached.port)
        )

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "django", "migrate", "--skip-checks", "--run-syncdb"]
        command += ["--verbosity", "0"]
        environment = self._environment(self.postgres.port, self.memcached.port)
        subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)

    def _environment(self, postgres: int, memcached: int) -> dict[str, str]:
        folder = self.folder()
        addresses: dict[str, Any] = {
            "postgres": {**self.postgres.django_settings(DATABASE), "PORT": postgres},
            "sqlite": str(folder / "tests.sqlite"),
            "files": str(folder / "cache"),
            "memcached": memcached,
            "redis": 0,  # of a cache that is not used
        }
        return {
            "DURABLEDICT_TESTS": json.dumps(addresses),
            "DJANGO_SETTINGS_MODULE": "tests.djangosettings",
        }

    def environment(self) -> dict[str, str]:
        return self._environment(self.to_postgres.port, self.to_memcached.port)

    def place(self) -> dict[str, Any]:
        return {"verify": self.verify, "stamp": KEYSPACE}

    def stored(self) -> dict[str, Any]:
        query = "SELECT key, value FROM durabledict_setting WHERE keyspace = %s"
        rows = self.postgres.sql(query, DATABASE, [KEYSPACE])
        return {key: json.loads(payload) for key, payload in rows}

    def faults(self, workers: Workers, random: Random) -> Iterator[Kind]:
        # What was acknowledged while the cache could not be told is seen after a second.
        untold: dict[str, Any] = {"blind": True}
        kinds = [
            *of_processes(workers, random),
            *of_server("PostgreSQL", lambda: self.postgres, random),
            *of_connections("PostgreSQL", [self.to_postgres], random),
            *of_server("memcached", lambda: self.memcached, random, **untold),
            *of_connections("memcached", [self.to_memcached], random, **untold),
            Kind("all stamps are flushed", self.memcached.flush),
            Kind("the stamp is evicted", self._evict),
            Kind("an older backup is restored", self._restore, loses=True),
            # Which is found out by the next write, or after `verify` seconds.
            Kind("the stamp is set back", self._rewind, blind=True, grace=self.verify),
        ]
        for kind in kinds:
            if kind.blind and not kind.grace:
                kind.grace = 1.2
            yield kind

    @property
    def _stamp(self) -> str:
        return f":1:{KEYSPACE}"  # as Django names it

    def _evict(self) -> None:
        client = self.memcached.client()
        client.delete(self._stamp)
        client.close()

    def _restore(self) -> None:
        """Put a backup back, and say so, as after each write past the dict."""
        server = self.postgres
        backup = server.folder / "backup"
        server.back_up(backup)
        time.sleep(0.7)  # what is written now will be lost
        server.kill()
        shutil.rmtree(server.data)
        backup.rename(server.data)
        server.start()
        self._evict()

    def _rewind(self) -> None:
        client = self.memcached.client()
        old = client.get(self._stamp)
        time.sleep(0.3)
        if old is not None:
            client.set(self._stamp, old)
        client.close()
