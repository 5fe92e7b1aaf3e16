"""Secrets show in no message, log line or `repr`; files have the rights that the umask leaves.

docs/internals.rst, rule 6.5.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import RedisError

import durabledict
from durabledict import (
    MemoryDict,
    RedisDict,
    SignedEncoding,
    SqliteDict,
    ZookeeperDict,
)
from durabledict.ext.dogpile import SharedInvalidation
from durabledict.ext.sqlalchemy import sync_sessions
from durabledict.stamps import CacheStamp
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    RedisStore,
    ShoveStore,
    SqlAlchemyStore,
)

from .redisservers import RedisServer

SECRET = "hunter2"

#: URLs with a password, also where it is not written as it should be.
WITH_PASSWORD = [
    f"redis://:{SECRET}@127.0.0.1:1/0",
    f"redis://user:{SECRET}@127.0.0.1:1/0?keyspace=x",
    f"redis://user:{SECRET}@127.0.0.1:1/0?autosync=5",
    f"redis://:{SECRET}/x@127.0.0.1:1/0",
    f"redis://:x/{SECRET}@127.0.0.1:1/0",
    f"redis://:x#{SECRET}@127.0.0.1:1/0",
    f"redis://:x?{SECRET}@127.0.0.1:1/0",
    f"redis://:{SECRET}\u2100@127.0.0.1:1/0",
    f"redis://:[{SECRET}@127.0.0.1:1/0",
    f"redis://:{SECRET}@127.0.0.1:port/0",
    f"redis://127.0.0.1:1/0?password={SECRET}",
    f"redis://127.0.0.1:1/0?password={SECRET}&keyspace=x",
    f"redis://127.0.0.1:1/0?socket_timeout={SECRET}",
    f"rediss://:{SECRET}@127.0.0.1:1/0",
    f"unix://:{SECRET}@/nowhere/redis.sock",
    f"unix:///nowhere/redis.sock?password={SECRET}",
    f"zookeeper://user:{SECRET}@127.0.0.1:1/path",
    f"zookeeper://user:{SECRET}\u2100@127.0.0.1:1/path",
    f"zookeeper://127.0.0.1:1/path?password={SECRET}",
    f"postgresql://user:{SECRET}@127.0.0.1:1/database",
    f"redis:{SECRET}@127.0.0.1:1",
    f"user:{SECRET}@127.0.0.1",
    f"memory://user:{SECRET}@?x=1",
    f"sqlite://user:{SECRET}@host",
]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the test adds, and in the end all that was logged: none of it has the secret."""
    said: list[str] = []
    with caplog.at_level(logging.DEBUG, "durabledict"):
        yield said
    formatter = logging.Formatter("%(name)s %(message)s")
    said += [
        formatter.format(record) for record in caplog.records if record.name.startswith("durable")
    ]
    for each in said:
        assert SECRET not in each


def chain_of(error: BaseException | None) -> list[str]:
    """All that a traceback may print of an error."""
    texts: list[str] = []
    while error is not None:
        texts += [str(error), repr(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    return texts


@pytest.mark.parametrize("url", WITH_PASSWORD)
@pytest.mark.parametrize("options", [{"keyspace": "k"}, {}, {"nonsense": 1, "keyspace": "k"}])
def test_a_url_that_cannot_be_opened(url: str, options: Any, messages: list[str]) -> None:
    with pytest.raises(Exception) as caught:
        durabledict.open(url, **options)
    messages += chain_of(caught.value)


#: Where a client is wanted, and a URL is given.
TAKES_CLIENT: dict[str, Callable[[Any], Any]] = {
    "RedisDict": lambda url: RedisDict("k", url),
    "ZookeeperDict": lambda url: ZookeeperDict("/k", url),
    "RedisStore": RedisStore,
    "MemcacheStore": lambda url: MemcacheStore(client=url),
    "SqlAlchemyStore": lambda url: SqlAlchemyStore(engine=url),
    "SqlAlchemyStore(sessionmaker)": lambda url: SqlAlchemyStore(sessionmaker=url),
    "ChainedStore": lambda url: ChainedStore([url]),
    "DurableDictStore": lambda url: DurableDictStore(url),
    "CacheStamp": lambda url: CacheStamp(url, "k"),
    "SharedInvalidation": lambda url: SharedInvalidation(url),
    "ShoveStore": lambda url: ShoveStore(shove=[url]),  # type: ignore[arg-type]  # what is refused
    "storage": lambda url: MemoryDict(storage=url),
    "sync_sessions": lambda url: sync_sessions(url, url),
}


@pytest.mark.parametrize("name", TAKES_CLIENT)
@pytest.mark.parametrize(
    "url", [WITH_PASSWORD[0], WITH_PASSWORD[10], "postgresql://user:hunter2@127.0.0.1:1/database"]
)
def test_a_url_in_place_of_a_client(
    django_project: None, name: str, url: str, messages: list[str]
) -> None:
    with pytest.raises(Exception) as caught:
        TAKES_CLIENT[name](url).get(dict, {"id": 1})
    messages += chain_of(caught.value)


def test_a_client_whose_repr_shows_all(messages: list[str]) -> None:
    """As that of redis-py does before 7."""

    class Open(redis.asyncio.Redis):
        def __repr__(self) -> str:
            return f"Redis(password={SECRET})"

    makers: list[Callable[[Any], Any]] = [
        lambda client: RedisDict("k", client),
        RedisStore,
        lambda client: CacheStamp(client, "k"),
    ]
    for make in makers:
        with pytest.raises(TypeError) as caught:
            make(Open())
        messages += chain_of(caught.value)


def test_an_outage_of_a_server_with_a_password(messages: list[str]) -> None:
    with RedisServer(password=SECRET) as server:
        d = RedisDict[Any, Any].from_url(server.url, "k", on_outage="stale")
        store = RedisStore(server.url)
        with d:
            d["a"] = 1
            for each in (d, store, d.stats, d._primary, d._primary.server, d._lease("x")):
                messages.append(repr(each))
            server.kill()
            assert d["a"] == 1
            with pytest.raises(RedisError) as caught:
                d["a"] = 2
            messages += chain_of(caught.value)
            with pytest.raises(RedisError) as caught:
                store.get(Thing, {"id": 1})
            messages += chain_of(caught.value)
            messages.append(str(d._freshness.error))
        store.release()


def test_a_wrong_password(messages: list[str]) -> None:
    with RedisServer(password="right") as server:
        url = f"redis://:{SECRET}@127.0.0.1:{server.port}/0"
        with pytest.raises(RedisError) as caught:
            RedisDict.from_url(url, "k")
        messages += chain_of(caught.value)


class Thing:
    __stockpyle_keys__ = ("id",)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket",
        f"s3://key:a/{SECRET}@bucket/path",
        f"sftp://user:{SECRET}@127.0.0.1:1/folder",
        f"ftp://user:{SECRET}@127.0.0.1:1/folder",
        f"nothing://user:{SECRET}@host/folder",
    ],
)
def test_the_keys_of_a_shove_store(url: str, messages: list[str]) -> None:
    try:
        store = ShoveStore(url)
        messages.append(repr(store))
        store.get(Thing, {"id": 1})
    except Exception as error:
        messages += [str(error), repr(error)]


def test_a_password_of_postgresql(messages: list[str]) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/database")
    store = SqlAlchemyStore(engine=engine)
    messages += [repr(store), repr(store._lease("x")), repr(ChainedStore([store]))]


def test_the_secret_of_a_signed_encoding_in_a_dict(tmp_path: Path, messages: list[str]) -> None:
    signed = SignedEncoding(SECRET)
    with SqliteDict[Any, Any](tmp_path / "d.sqlite", encoding=signed) as d:
        d["a"] = 1
        messages += [repr(d), repr(d.encoding), repr(signed.bind("a", "b")), str(vars(signed))]
        with pytest.raises(TypeError) as caught:
            SqliteDict(tmp_path / "d.sqlite", encoding=signed, autosync=signed)  # type: ignore[arg-type]  # what is refused
        messages += chain_of(caught.value)
    with SqliteDict[Any, Any](tmp_path / "d.sqlite", encoding=SignedEncoding("other")) as d:
        messages += [str(error) for error in d.undecodable.values()]
        assert d.undecodable


# -- rights ---------------------------------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_the_files_of_a_sqlite_dict_have_the_rights_that_the_umask_leaves(
    tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    path = tmp_path / "d.sqlite"
    umask(mask)
    with SqliteDict[Any, Any](path) as d:
        d["a"] = 1
        names = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
        assert all(name.exists() for name in names)
        for name in tmp_path.iterdir():
            mode = stat.S_IMODE(name.stat().st_mode)
            assert mode & mask == 0, f"{name} {mode:o}"
            assert mode & 0o133 == 0  # nor more than SQLite itself gives
            assert mode & 0o600 == 0o600


def test_the_files_beside_one_with_narrow_rights_are_as_narrow(
    tmp_path: Path, umask: Callable[[int], int]
) -> None:
    path = tmp_path / "d.sqlite"
    umask(0o022)
    SqliteDict[Any, Any](path).close()
    path.chmod(0o600)
    with SqliteDict[Any, Any](path) as d:
        d["a"] = 1
        for name in tmp_path.iterdir():
            assert stat.S_IMODE(name.stat().st_mode) == 0o600


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_folders_and_files_of_a_shove_store(
    tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    from durabledict.testing.things import Thing

    store = ShoveStore(str(tmp_path / "made" / "here"))
    store.put(Thing(1))
    made = list(tmp_path.rglob("*"))
    assert any(each.is_file() for each in made)
    for each in made:
        assert stat.S_IMODE(each.stat().st_mode) & mask == 0, each
