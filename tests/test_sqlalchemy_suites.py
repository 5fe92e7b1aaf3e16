"""The suite of Stores over `SqlAlchemyStore`, and over chains that end with it.

The suite's own classes are mapped for as long as a test takes. What SQL does otherwise than a
Store under names, the tests that are written anew here say: keys are of the columns' types, and any
column is one; two rows may have the same; what is not mapped is ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import (
    Column,
    Engine,
    MetaData,
    PickleType,
    String,
    Table,
    TypeDecorator,
)
from sqlalchemy.orm import registry

from durabledict import NonUniqueKeyError
from durabledict.keys import decode_key, encode_key
from durabledict.stores import (
    BaseStore,
    ChainedStore,
    MemcacheStore,
    ProcessMemoryStore,
    RedisStore,
    SqlAlchemyStore,
)
from durabledict.testing import StoreSuite
from durabledict.testing.things import (
    Automobile,
    Car,
    Empty,
    Keyless,
    Person,
    Thing,
    Unpicklable,
)

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .sqlmodels import database


class KeyColumn(TypeDecorator[Any]):
    """Text that holds ints as well as text, as the suite's keys are."""

    impl = String
    cache_ok = True
    sort_key_function = staticmethod(repr)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return encode_key(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return decode_key(value)


class SqlSuite(StoreSuite):
    """The suite, with its classes mapped to a database that is empty."""

    shares_keys = False
    kind = "sqlite"
    engine: Engine

    @pytest.fixture(autouse=True)
    def _database(
        self,
        tmp_path: Path,
        postgres_server: PostgresServer,
        memcached_server: MemcachedServer,
        redis_client: redis.Redis,
    ) -> Any:
        memcached_server.flush()
        self.memcached, self.client = memcached_server, redis_client
        with database(self.kind, tmp_path, postgres_server) as engine:
            self.engine = engine
            tables = MetaData()
            mappers = registry(metadata=tables)
            for klass in (Thing, Person, Empty, Unpicklable):
                self._map(mappers, klass, "id", "zone", "name", "value")
            self._map(mappers, Automobile, "license_plate")
            self._map(mappers, Car, "license_plate", "owner")
            tables.create_all(engine)
            with engine.begin() as connection:
                for table in tables.sorted_tables:
                    connection.execute(table.delete())
            yield
            mappers.dispose()

    def _map(self, mappers: registry, klass: type, first: str, *names: str) -> None:
        columns = [Column(first, KeyColumn, primary_key=True)]
        columns += [Column(n, PickleType if n == "value" else KeyColumn) for n in names]
        table = Table(f"suite_{klass.__name__.lower()}", mappers.metadata, *columns)
        mappers.map_imperatively(klass, table)

    def durable(self) -> SqlAlchemyStore:
        return SqlAlchemyStore(engine=self.engine)

    def factory(self, place: Path, **options: Any) -> BaseStore:
        return self.durable()

    # -- what SQL does otherwise ------------------------------------------------------------------

    def test_keys_may_be_of_many_kinds(self) -> None:
        """Of those that the column takes."""
        store = self.open()
        values = [0, "", "0", 1, "1", -1, 1.5, b"1", b"", "None", "a/b", "%41", "A", "a", " ", "é"]
        things = [Thing(value, name=place, value=place) for place, value in enumerate(values)]
        store.batch_put(things)
        found = self.reader(store).batch_get(Thing, [{"id": value} for value in values])
        assert [thing.value for thing in found] == list(range(len(values)))
        store.batch_delete(things)
        assert not any(store.batch_get(Thing, [{"id": value} for value in values]))

    def test_a_key_that_is_not_indexed_says_what_is(self) -> None:
        """Any column is a key; what is not mapped is not there."""
        store = self.open()
        store.put(Thing(1, value=[1]))
        for method in (store.get, store.delete_key, lambda k, key: store.batch_get(k, [key])):
            with pytest.raises(KeyError, match="'id', 'zone', 'name', 'value'"):
                method(Thing, {"owner": 1})
            with pytest.raises(TypeError, match="a dict of attributes"):
                method(Thing, 5)
            assert not any(method(Keyless, {"id": 1}) or [])

    def test_an_object_without_keys_is_refused(self) -> None:
        """What is not mapped is ignored."""
        self.open().batch_put([Keyless()])

    def test_a_key_that_another_object_took_is_that_ones(self) -> None:
        """Both have it, unless the database forbids that: then it leads to none of them."""
        store = self.open()
        store.batch_put([Thing(1, name="both"), Thing(2, name="both")])
        with pytest.raises(NonUniqueKeyError):
            self.durable().get(Thing, {"zone": 1, "name": "both"})
        store.delete(Thing(1))
        assert store.get(Thing, {"zone": 1, "name": "both"}) == Thing(2, name="both")

    def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(self) -> None:
        """By the column's type: nothing of the batch is stored."""
        store = self.open()
        with pytest.raises(Exception, match="a key cannot be of type"):
            store.batch_put([Thing(1), Thing(object())])
        assert store.get(Thing, {"id": 1}) is None


class TestOnSqlite(SqlSuite):
    capabilities = frozenset({"copies", "keeps_for_ever", "shared", "threads"})


class TestOnPostgres(TestOnSqlite):
    kind = "postgresql"


class TestChainOfMemcached(SqlSuite):
    capabilities = frozenset({"copies", "shared", "threads"})

    def factory(self, place: Path, **options: Any) -> BaseStore:
        cache = MemcacheStore([f"127.0.0.1:{self.memcached.port}"])
        return ChainedStore([cache, self.durable()])


class TestChainOfMemcachedOnPostgres(TestChainOfMemcached):
    kind = "postgresql"


class TestChainOfAll(SqlSuite):
    """Memory in front of memcached in front of Redis in front of PostgreSQL."""

    capabilities = frozenset({"threads"})
    kind = "postgresql"

    def factory(self, place: Path, **options: Any) -> BaseStore:
        cache = MemcacheStore([f"127.0.0.1:{self.memcached.port}"])
        memory = ProcessMemoryStore(lifetime_cb=lambda obj: 60)
        return ChainedStore([memory, cache, RedisStore(self.client), self.durable()])
