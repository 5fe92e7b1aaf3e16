"""A region of dogpile.cache over Stores."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import redis
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from sqlalchemy import PickleType, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from durabledict import MemoryDict, PickleEncoding, RestrictedPickleEncoding, SignedEncoding
from durabledict.ext.dogpile import CacheRecord, SharedInvalidation
from durabledict.stores import (
    ChainedStore,
    DurableDictStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    ShoveStore,
    SqlAlchemyStore,
    ThreadLocalStore,
)

from .memcachedserver import MemcachedServer


def region_over(store: Any, **arguments: Any) -> Any:
    return make_region().configure("durabledict.store", arguments={"store": store, **arguments})


class Base(DeclarativeBase):
    pass


class CacheRow(Base):
    __tablename__ = "cache"
    __stockpyle_keys__ = ("key",)

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(PickleType, nullable=True)
    generation: Mapped[str | None]


class OtherRecord(CacheRecord):
    """Of another region in the same Store."""


@pytest.mark.parametrize(
    "kind",
    ["memory", "thread", "dict", "folder", "memcached", "redis", "chain"],
)
def test_every_store_will_do(
    kind: str, tmp_path: Path, memcached_server: MemcachedServer, redis_url: str
) -> None:
    memcached_server.flush()
    stores: dict[str, Any] = {
        "memory": ProcessMemoryStore,
        "thread": ThreadLocalStore,
        "dict": lambda: DurableDictStore(MemoryDict()),
        "folder": lambda: ShoveStore(uri=str(tmp_path / "cache")),
        "memcached": lambda: MemcacheStore([f"127.0.0.1:{memcached_server.port}"]),
        "redis": lambda: RedisStore(redis_url),
        "chain": lambda: ChainedStore(
            [ProcessMemoryStore(lifetime_cb=lambda obj: 60), RedisStore(redis_url)]
        ),
    }
    with stores[kind]() as store:
        region = region_over(store)
        assert region.get_or_create("a", lambda: {"x": [1]}) == {"x": [1]}
        assert region.get_or_create("a", lambda: 2) == {"x": [1]}
        region.set_multi({"b": None, "c": b"bytes", 4: "four"})
        assert region.get_multi(["a", "b", "c", "d", 4]) == [
            {"x": [1]},
            None,
            b"bytes",
            NO_VALUE,
            "four",
        ]
        region.delete_multi(["a", "d"])
        region.delete("b")
        assert region.get_multi(["a", "b", "c"]) == [NO_VALUE, NO_VALUE, b"bytes"]
        bytes_region: Any = make_region(
            serializer=pickle.dumps, deserializer=pickle.loads
        ).configure("durabledict.store", arguments={"store": store})
        assert bytes_region.get("c") is NO_VALUE
        bytes_region.set("c", (1, 2))
        assert bytes_region.get_multi(["c", "x"]) == [(1, 2), NO_VALUE]


def test_rows_of_a_mapped_class_are_records_in_sql(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/cache.sqlite")
    with SqlAlchemyStore(engine=engine) as store:
        with pytest.raises(TypeError, match="pass one that has the columns key, value and gen"):
            region_over(store)
        with pytest.raises(TypeError, match="pass one that has the columns key, value and gen"):
            SharedInvalidation(store)
        Base.metadata.create_all(engine)
        invalidation = SharedInvalidation(store, record=CacheRow)
        region: Any = make_region().configure(
            "durabledict.store",
            arguments={"store": store, "record": CacheRow, "invalidation": invalidation},
            region_invalidator=invalidation,
        )
        region.set_multi({"a": [1], "b": 2})
        assert region.get_multi(["a", "b", "c"]) == [[1], 2, NO_VALUE]
        region.delete("b")
        assert region.get("b") is NO_VALUE
        region.invalidate()
        assert region.get("a") is NO_VALUE
        assert region.get_or_create("a", lambda: 3) == 3
        assert region.get("a") == 3
    engine.dispose()


def test_a_live_store_keeps_the_objects_themselves() -> None:
    region = region_over(ProcessMemoryStore())
    value = [1]
    region.set("k", value)
    assert region.get("k") is value


def test_regions_with_records_of_their_own_do_not_share_keys(redis_url: str) -> None:
    with RedisStore(redis_url) as store:
        one, two = region_over(store), region_over(store, record=OtherRecord)
        one.set("k", 1)
        two.set("k", 2)
        assert (one.get("k"), two.get("k")) == (1, 2)
        two.delete("k")
        assert one.get("k") == 1


class Counting(ProcessMemoryStore):
    """Counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, int]] = []

    def batch_get(self, klass: Any, keys: Any) -> Any:
        self.batches.append(("get", len(keys)))
        return super().batch_get(klass, keys)

    def batch_put(self, objs: Any) -> None:
        self.batches.append(("put", len(objs)))
        super().batch_put(objs)

    def batch_delete(self, objs: Any) -> None:
        self.batches.append(("delete", len(objs)))
        super().batch_delete(objs)


def test_a_multi_is_one_batch_and_an_empty_one_none() -> None:
    store = Counting()
    region = region_over(store)
    region.set_multi({str(n): n for n in range(50)})
    region.get_multi(["1", "x"])
    region.delete_multi(["1", "2", "x"])
    region.delete("3")
    assert store.batches == [("put", 50), ("get", 2), ("delete", 3), ("delete", 1)]
    store.batches.clear()
    assert region.backend.get_multi([]) == []
    region.backend.set_multi({})
    region.backend.delete_multi([])
    assert store.batches == []


def test_an_undecodable_value_is_a_miss(redis_client: redis.Redis) -> None:
    def region_with(secret: str) -> Any:
        encoding = SignedEncoding(secret, PickleEncoding)
        return region_over(RedisStore(redis_client, encoding=encoding))

    region_with("a secret of some length").set_multi({"a": 1, "b": 2})
    region = region_with("another secret of some length")
    region.set("c", 3)
    assert region.get("a") is NO_VALUE
    assert region.get_multi(["a", "b", "c"]) == [NO_VALUE, NO_VALUE, 3]
    assert region.get_or_create("a", lambda: 4) == 4
    assert region.get("a") == 4
    region.delete("b")


def test_a_restricted_pickle_has_to_allow_the_records_class(redis_client: redis.Redis) -> None:
    encoding = RestrictedPickleEncoding(allow=[CacheRecord])
    region = region_over(RedisStore(redis_client, encoding=encoding))
    region.set("k", {"a": [1]})
    assert region.get("k") == {"a": [1]}


def test_a_record_shows_its_key() -> None:
    assert repr(OtherRecord("k")) == "OtherRecord(key='k')"
