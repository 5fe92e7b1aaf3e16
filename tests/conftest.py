"""Let pytest explain the assertions of the public suite as its own, and start servers."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from hypothesis import HealthCheck, settings
from kazoo.client import KazooClient

from durabledict import reading, redisquestions, redisservers
from durabledict.stores import MemcacheStore, RedisStore

from . import djangoproject, sqlitewatch, zookeeperstore
from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .redisservers import RedisServer
from .servers import PATIENCE
from .zookeeperservers import ZookeeperServer, started

if TYPE_CHECKING:
    from durabledict.testing.tools import Clock

    from .transactions import OtherProcess, OtherThread

pytest.register_assert_rewrite("durabledict.testing")

# A machine that is busy may take longer than Hypothesis allows an example, or the making of it.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# Warnings are errors, also that of a socket that nobody closed: who makes a client closes it.

#: The files that take longest. A process takes a whole file, so that one of these that began last
#: would keep one process busy while the others are done.
LONGEST = (
    "test_model_suites",
    "test_zookeeper",
    "test_zookeeper_faults",
    "test_proof",
    "test_memory",
    "test_redis_cluster",
    "test_sqlite",
    "test_sqlite_faults",
    "test_zookeeper_rules",
    "test_redis_cuts",
    "test_redis_faults",
    "test_redis",
    "test_stores",
    "test_zookeeperservers",
    "test_redis_errors",
    "test_load",
    "test_redis_commits",
    "test_redis_failover",
    "test_zookeeper_sizes",
    "test_forks",
    "test_sqlite_backups",
    "test_zookeeper_clients",
    "test_chain_interleaved",
    "test_creation_processes",
    "test_model_transaction_suites",
    "test_django_demo",
    "test_demo",
    "test_redis_forks",
    "test_zookeeper_forks",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; of the others, with those that have the most tests."""
    places = {name: place for place, name in enumerate(LONGEST)}
    tests = Counter(item.path for item in items)
    items.sort(
        key=lambda item: (places.get(item.path.stem, len(places)), -tests[item.path], item.path)
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what stays until the end: ten thousand tests, and modules.

    It would look through them while they are made, and whenever a test collects.

    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the library's bounds; it stands still until the test moves it."""
    from durabledict.testing.tools import Clock

    clock = Clock()
    monkeypatch.setattr(reading, "monotonic", clock)
    return clock


@pytest.fixture(scope="session", autouse=True)
def _no_reply_of_redis_is_late() -> Iterator[None]:
    """Wait for Redis as long as for anything: a busy machine may take a second for a reply.

    That is what the library calls an outage. A test of it sets a time of its own.

    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redisservers, "CHECK_TIMEOUT", PATIENCE)
        patch.setattr(redisquestions, "LATE", PATIENCE)
        yield


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for all tests, with whatever keys they left: see `redis_url`.

    A test that stops or configures a server starts one of its own.

    """
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of that server, without any key or script."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def redis_client(redis_server: RedisServer, redis_url: str) -> Iterator[redis.Redis]:
    """A client of that server, without any key or script."""
    with redis_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    """One server for all tests, with whatever keys they left: `flush` forgets them.

    A test that stops it, or wants options, starts one of its own.

    """
    with MemcachedServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests, each of which creates a database of its own and drops it.

    A test that stops it, or wants settings, starts one of its own.

    """
    # For two-phase commits, which are off by default.
    with PostgresServer(max_prepared_transactions="10") as server:
        yield server


@pytest.fixture(scope="session")
def zookeeper_server() -> Iterator[ZookeeperServer]:
    """One server for all tests, with whatever nodes they left: see `zookeeper_path`.

    A test that stops it, or wants settings, starts one of its own.

    """
    with ZookeeperServer() as server:
        yield server


@pytest.fixture
def memcached(memcached_server: MemcachedServer) -> Iterator[MemcacheStore]:
    """A Store in that server, which is empty."""
    memcached_server.flush()
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"]) as store:
        yield store


@pytest.fixture
def on_redis(redis_client: redis.Redis) -> Iterator[RedisStore]:
    """A Store in the server of Redis, which is empty."""
    with RedisStore(redis_client) as store:
        yield store


numbers_of_paths = itertools.count(1)


@pytest.fixture
def zookeeper_path() -> str:
    """A path that no other test has, so that nothing is there, on any server.

    All are of one length: what fits into a request is not to depend on which tests ran before.

    """
    return f"/test-{next(numbers_of_paths):05}"


@pytest.fixture
def zookeeper_client(zookeeper_server: ZookeeperServer) -> Iterator[KazooClient]:
    """A client of that server, which is started."""
    with started(zookeeper_server.client()) as client:
        yield client


@pytest.fixture
def store(zookeeper_server: ZookeeperServer, zookeeper_path: str) -> Iterator[zookeeperstore.Store]:
    """A place in that server, for the tests of ZooKeeper; others have a `store` of their own."""
    with zookeeperstore.Store(zookeeper_server, zookeeper_path) as store:
        yield store


@pytest.fixture
def cut(store: zookeeperstore.Store) -> zookeeperstore.Cut:
    """A client of that place whose connection can be lost."""
    return zookeeperstore.Cut(store)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where an SQLite file may come to be."""
    return tmp_path / "x.sqlite"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is such a one: thousands of fsyncs cost nothing there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[sqlitewatch.Watched]]:
    """SqliteDicts note their statements, see `sqlitewatch`."""
    with sqlitewatch.watching(monkeypatch) as watched:
        yield watched


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[sqlitewatch.Failing]]:
    """SqliteDicts do something else than they are told, when a test says so."""
    monkeypatch.setattr("durabledict.sqliteconnection.Connection", sqlitewatch.Failing)
    yield sqlitewatch.Failing
    sqlitewatch.Failing.instead = None


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the paths that os.stat is asked about."""
    return sqlitewatch.paths_asked_of_stat(monkeypatch)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, for examples that create files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def django_project(
    postgres_server: PostgresServer,
    memcached_server: MemcachedServer,
    redis_server: RedisServer,
) -> Iterator[None]:
    """Django, configured and with its tables: see `djangosettings`."""
    # In memory where there is such a folder, so that thousands of fsyncs cost nothing.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="django-", dir=memory) as folder:
        djangoproject.set_up(Path(folder), postgres_server, memcached_server, redis_server)
        with djangoproject.threads_close_connections():
            yield


@pytest.fixture(scope="module")
def process(django_project: None) -> Iterator[OtherProcess]:
    """A process of its own, with its own dicts over the project's models."""
    from .transactions import OtherProcess

    process = OtherProcess()
    yield process
    process.close()


@pytest.fixture
def thread(django_project: None) -> Iterator[OtherThread]:
    """A thread with connections of its own."""
    from .transactions import OtherThread

    thread = OtherThread()
    yield thread
    thread.close()
