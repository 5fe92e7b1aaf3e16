"""Locks: what a lease of each store promises, and the mutex over it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import sqlalchemy

from durabledict import MemoryDict, RedisDict, SqliteDict, ZookeeperDict
from durabledict.cacheleases import DjangoLease
from durabledict.locks import Lease, Mutex, ProcessLease
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ShoveStore,
    SqlAlchemyStore,
)
from durabledict.testing.tools import in_thread

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .servers import wait_until
from .sqlmodels import postgres_url
from .zookeeperservers import ZookeeperServer

KINDS = [
    "SqliteDict",
    "RedisDict",
    "ZookeeperDict",
    "MemcacheStore",
    "RedisStore",
    "DurableDictStore",
    "SQLite",
    "PostgreSQL",
    "ChainedStore",
    "Django",
    "MemoryDict",
]

#: Whose lock ends by itself; that of ZooKeeper ends with the session, that of a process never.
EXPIRING = [kind for kind in KINDS if kind not in ("ZookeeperDict", "MemoryDict")]

Opener = Callable[..., Lease]


@pytest.fixture
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Opener]]:
    """Return a function that opens the lease of a name, each time in a client of its own."""
    with ExitStack() as stack:

        def file() -> Any:
            return stack.enter_context(SqliteDict[Any, Any](tmp_path / "x", synchronous="OFF"))

        def redis_client() -> Any:
            url = request.getfixturevalue("redis_server").url
            return stack.enter_context(closing(redis.Redis.from_url(url)))

        def memcached() -> Any:
            server: MemcachedServer = request.getfixturevalue("memcached_server")
            return stack.enter_context(MemcacheStore([f"127.0.0.1:{server.port}"]))

        def sql(url: str) -> Any:
            return stack.enter_context(SqlAlchemyStore(url))

        def postgres() -> str:
            return postgres_url(request.getfixturevalue("postgres_server"), "postgres")

        def django() -> Any:
            request.getfixturevalue("django_project")
            from django.core.cache.backends.filebased import FileBasedCache

            from durabledict.djangocaches import DjangoCache

            return DjangoCache(FileBasedCache(str(tmp_path / "cache"), {}))

        def zookeeper() -> Any:
            server: ZookeeperServer = request.getfixturevalue("zookeeper_server")
            path = request.getfixturevalue("zookeeper_path")
            d: Any = ZookeeperDict(path, server.client())
            return stack.enter_context(closing(d))

        single = MemoryDict[Any, Any]()
        owners: dict[str, Callable[[], Any]] = {
            "SqliteDict": file,
            "RedisDict": lambda: stack.enter_context(RedisDict[Any, Any]("x", redis_client())),
            "ZookeeperDict": zookeeper,
            "MemcacheStore": memcached,
            "RedisStore": lambda: RedisStore(redis_client()),
            "DurableDictStore": lambda: DurableDictStore(file()),
            "SQLite": lambda: sql(f"sqlite:///{tmp_path / 'sql'}"),
            "PostgreSQL": lambda: sql(
                postgres_url(request.getfixturevalue("postgres_server"), "postgres")
            ),
            "ChainedStore": lambda: ChainedStore(
                [ProcessMemoryStore(lifetime_cb=lambda obj: 5), memcached(), ShoveStore({})]
            ),
            "MemoryDict": lambda: single,
        }

        def of_kind(kind: str) -> Opener:
            if kind == "Django":
                return lambda name, seconds=30.0: django().lease(name.encode().hex(), seconds)
            return lambda name, seconds=30.0: owners[kind]()._lease(name, seconds)

        if "redis_server" in request.fixturenames:
            request.getfixturevalue("redis_server").flush()
        yield of_kind


@pytest.fixture(autouse=True)
def _emptied(memcached_server: MemcachedServer, redis_url: str) -> None:
    memcached_server.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_is_one_tokens(kind: str, opener: Callable[[str], Opener]) -> None:
    """Whoever has another token neither takes, renews nor releases it; other names are free."""
    one, two, other = (opener(kind)(name) for name in ("ü lock/{a}", "ü lock/{a}", "b"))
    assert not one.is_held()
    assert one.acquire(b"1" * 16)
    assert two.is_held()
    assert not two.acquire(b"2" * 16)
    assert other.acquire(b"3" * 16)
    assert not two.renew(b"2" * 16)
    assert not two.release(b"2" * 16)
    assert one.renew(b"1" * 16)
    assert one.renew(b"1" * 16)
    assert one.release(b"1" * 16)
    assert not one.renew(b"1" * 16)
    assert not one.release(b"1" * 16)
    assert not two.is_held()
    assert two.acquire(b"4" * 16)
    assert not one.renew(b"1" * 16)
    assert two.release(b"4" * 16)
    assert other.release(b"3" * 16)


@pytest.mark.parametrize("kind", EXPIRING)
def test_a_lease_that_is_not_renewed_is_anybodys(
    kind: str, opener: Callable[[str], Opener]
) -> None:
    """And then it is not its former holder's to renew, nor to release."""
    one, two = opener(kind)("a", 0.2), opener(kind)("a")
    assert one.acquire(b"1" * 16)
    wait_until(lambda: two.acquire(b"2" * 16), "the lease ended", 10)
    assert not one.renew(b"1" * 16)
    assert not one.release(b"1" * 16)
    assert two.release(b"2" * 16)


def test_a_lease_of_zookeeper_leaves_no_entry(opener: Callable[[str], Opener]) -> None:
    one = opener("ZookeeperDict")("a")
    assert one.acquire(b"1" * 16)
    path, client = vars(one)["_path"], vars(one)["_client"]
    keyspace = path.rpartition(":locks/")[0]
    with closing(ZookeeperDict[Any, Any](keyspace, client.kazoo, "strict")) as d:
        d["k"] = 1
        assert d == {"k": 1}
        assert client.kazoo.get_children(keyspace) == ["k"]
    assert one.release(b"1" * 16)


def test_sqlite_ends_leases_when_its_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward: it is over. Back: no lease is longer than it is, so it is over as well."""
    for jump in (31.0, -100.0):
        with SqliteDict[Any, Any](tmp_path / "x") as d:
            lease = d._lease("a", 30.0)
            assert lease.acquire(b"1" * 16)
            with monkeypatch.context() as patch:
                patch.setattr("durabledict.sqliteleases.now", lambda jump=jump: time.time() + jump)
                assert not lease.is_held()
            assert lease.release(b"1" * 16)


def test_a_lock_in_a_file_is_no_news_of_its_keyspace(tmp_path: Path) -> None:
    with SqliteDict[Any, Any](tmp_path / "x") as d:
        before = d.last_updated()
        with Mutex(d._lease("a")):
            assert d.last_updated() == before
            assert d == {}


# -- the mutex ------------------------------------------------------------------------------------


class Scripted(ProcessLease):
    """A lease that says what it is told to, as of a store."""

    def __init__(self, owner: object, seconds: float = 0.06) -> None:
        super().__init__(owner, "x")
        self.seconds = seconds
        self.renewals: list[bytes] = []
        self.answer: Any = True

    def release(self, token: bytes) -> bool:
        self.answer = True
        return super().release(token)

    def renew(self, token: bytes) -> bool:
        self.renewals.append(token)
        if isinstance(self.answer, Exception):
            raise self.answer
        return bool(self.answer)


def test_a_mutex_is_used_as_a_lock() -> None:
    owner = object()
    one, two = (Mutex(ProcessLease(owner, "a")) for _ in range(2))
    assert one.acquire()
    assert one.locked()
    assert two.locked()
    assert one.is_mine
    assert two.is_mine
    assert not in_thread(lambda: two.is_mine)
    assert not in_thread(lambda: two.acquire(blocking=False))
    assert not in_thread(lambda: two.acquire(timeout=0.01))
    assert not two.acquire(blocking=False)
    one.release()
    assert not one.locked()
    with two:
        assert two.locked()
    with pytest.raises(RuntimeError, match="not held"):
        two.release()
    wrong: list[tuple[bool, float]] = [(False, 1), (True, -2)]
    for blocking, timeout in wrong:
        with pytest.raises(ValueError, match="timeout"):
            one.acquire(blocking, timeout)


def test_to_take_it_twice_in_one_thread_is_an_error() -> None:
    """But where another thread may release it: then that is waited for."""
    owner = object()
    with Mutex(ProcessLease(owner, "a")), pytest.raises(RuntimeError, match="this very thread"):
        Mutex(ProcessLease(owner, "a")).acquire()
    handed = Mutex(ProcessLease(owner, "a"), any_thread=True)
    handed.acquire()
    threading.Timer(0.01, handed.release).start()
    again = Mutex(ProcessLease(owner, "a"), any_thread=True)
    assert again.acquire(timeout=30)
    again.release()


def test_one_thread_of_a_process_asks_the_store() -> None:
    owner, asking, most = object(), 0, 0

    class Counting(ProcessLease):
        def acquire(self, token: bytes) -> bool:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            time.sleep(0.001)
            taken = super().acquire(token)
            asking -= 1
            return taken

    inside = []

    def work() -> None:
        with Mutex(Counting(owner, "a")):
            inside.append(1)
            assert len(inside) == 1
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_one_thread_renews_all_that_is_held_and_then_ends() -> None:
    leases = [Scripted(object()) for _ in range(3)]
    mutexes = [Mutex(lease) for lease in leases]
    for mutex in mutexes:
        mutex.acquire()
    wait_until(lambda: all(len(lease.renewals) > 2 for lease in leases), "all were renewed")

    def renewing() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "durabledict-leases"]

    # One that has renewed for an earlier test may be about to end.
    wait_until(lambda: len(renewing()) == 1, "one thread renews")
    (thread,) = renewing()
    for mutex, lease in zip(mutexes, leases, strict=True):
        assert set(lease.renewals) == {mutex.token}
        assert not mutex.is_lost
        mutex.release()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("answer", [False, ConnectionError("away")])
def test_a_lost_lease_is_logged_and_not_raised(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lease = Scripted(object())
    with Mutex(lease) as mutex:
        lease.answer = answer
        wait_until(lambda: mutex.is_lost and caplog.records, "it is lost, and logged")
        assert not mutex.still_held()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "was lost while it was held" in caplog.text
    with mutex:
        assert not mutex.is_lost


def test_a_store_that_is_down_is_the_callers_error_and_holds_nobody_up() -> None:
    owner = object()

    class Down(ProcessLease):
        down = True

        def acquire(self, token: bytes) -> bool:
            super().acquire(token)  # done, and the answer is lost
            if self.down:
                raise ConnectionError
            return True

    with pytest.raises(ConnectionError):
        Mutex(Down(owner, "a")).acquire()
    assert not ProcessLease(owner, "a").is_held()
    with Mutex(ProcessLease(owner, "a")):
        pass


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """It neither releases nor renews its parent's, and has to ask for it as any process."""
    with SqliteDict[Any, Any](tmp_path / "x") as d:
        mutex, waits = Mutex(d._lease("a")), Mutex(ProcessLease(object(), "b"))
        waits.acquire()
        mutex.acquire()
        child = os.fork()
        if child == 0:
            try:
                problems = [
                    mutex.token is not None,
                    mutex.is_mine,
                    Mutex(d._lease("a")).acquire(blocking=False),
                    not waits.acquire(blocking=False),
                ]
                mutex.release()
                problems.append(not d._lease("a").is_held())
                os._exit(sum(1 << place for place, found in enumerate(problems) if found))
            finally:
                os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert mutex.still_held()
        mutex.release()
        waits.release()


def test_what_is_of_one_process_says_so(tmp_path: Path) -> None:
    """A chain takes the lowest lock that others see."""
    with SqliteDict[Any, Any](tmp_path / "x") as d:
        in_file = DurableDictStore(d)
        for store in (ProcessMemoryStore(), ShoveStore({}), SqlAlchemyStore("sqlite://")):
            assert isinstance(store._lease("a"), ProcessLease)
            chain = ChainedStore([in_file, store])
            assert chain._lease("a").identity == in_file._lease("a").identity
            store.release()
    assert isinstance(ChainedStore([ProcessMemoryStore()])._lease("a"), ProcessLease)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'sql'}")
    routed = SqlAlchemyStore(sessionmaker=sqlalchemy.orm.sessionmaker(engine))
    assert not isinstance(routed._lease("a"), ProcessLease)
    engine.dispose()
    assert DjangoLease(0.5, "x", "k", lambda: None).seconds == 1


def test_postgres_is_asked_for_its_own_clock(postgres_server: PostgresServer) -> None:
    with SqlAlchemyStore(postgres_url(postgres_server, "postgres")) as store:
        lease = store._lease("clock", 30.0)
        assert lease.acquire(b"1" * 16)
        with cast("Any", store._engine).connect() as connection:
            (left,) = connection.execute(
                sqlalchemy.text(
                    "SELECT expires - extract(epoch from clock_timestamp()) "
                    "FROM durabledict_locks_sql WHERE name = :name"
                ),
                {"name": vars(lease)["_name"]},
            ).one()
        assert 0 < left <= 30
        assert lease.release(b"1" * 16)


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
def test_who_comes_second_in_a_strict_database_gets_no_error(
    level: Any, postgres_server: PostgresServer
) -> None:
    """Its UPDATE waits for the row that another one takes, whatever the engine's isolation is."""
    url = postgres_url(postgres_server, "postgres")
    engine = sqlalchemy.create_engine(url, isolation_level=level)
    lease = SqlAlchemyStore(engine=engine)._lease(level, 0.001)
    assert lease.acquire(b"1" * 16)
    wait_until(lambda: not lease.is_held(), "it has expired")
    update = "UPDATE durabledict_locks_sql SET expires = expires + 60 WHERE name = :name"
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND query LIKE 'UPDATE durabledict_locks_sql%'"
    )
    found: list[Any] = []

    def second() -> None:
        try:
            found.append(lease.acquire(b"2" * 16))
        except Exception as error:
            found.append(error)

    with engine.connect() as first, engine.connect() as looking:
        first.execute(sqlalchemy.text(update), {"name": vars(lease)["_name"]})
        thread = threading.Thread(target=second)
        thread.start()

        def waits() -> bool:
            number = looking.execute(sqlalchemy.text(waiting)).scalar()
            looking.rollback()
            return number == 1

        wait_until(waits, "the second one waits")
        first.commit()
        thread.join(30)
    assert found == [False]
    engine.dispose()
