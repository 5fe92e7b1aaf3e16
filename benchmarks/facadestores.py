"""What gets of the keyed-object facade cost, beside dogpile.cache and the bare client."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from itertools import chain
from typing import Any

from dogpile.cache import make_region

from durabledict.stores import ChainedStore, MemcacheStore, ProcessMemoryStore
from tests.memcachedserver import MemcachedServer

from .creations import creation_amounts, creation_rows, pickle_amounts
from .dogpileregions import region_rows
from .measure import Statement, compare
from .printing import print_amounts, print_rows
from .sqlobjects import sql_rows
from .tables import Amount, Row

__all__ = ["Item", "facade_tables"]

#: Objects of a batch.
BATCH = 100


class Item:
    """An object with two keys and a little more."""

    __stockpyle_keys__ = ["id", ("zone", "name")]

    def __init__(self, number: int) -> None:
        self.id = number
        self.zone = number % 7
        self.name = f"item {number}"
        self.tags = ["a", "b", "c"]


def facade_tables() -> list[str]:
    """Print the tables of `durabledict.stores`; return which limits were missed."""
    print(
        f"\nThe keyed-object facade, dogpile.cache {version('dogpile.cache')}. Ratios, in turns.\n"
    )
    missed = print_rows(chain(_rows(), creation_rows()))
    print("\nPickles and unpickles of one put and two gets.\n")
    missed += print_amounts(chain(_pickles(), pickle_amounts()))
    print("\nOf all who find nothing, one creates.\n")
    missed += print_amounts(creation_amounts())
    print("\nRegions of dogpile.cache. Ratios, in turns.\n")
    missed += print_rows(region_rows())
    print(f"\nObjects of SQLAlchemy {version('SQLAlchemy')}. Ratios, in turns.\n")
    return missed + print_rows(sql_rows())


def _rows() -> Iterator[Row]:
    item = Item(1)
    plain, expiring = ProcessMemoryStore(), ProcessMemoryStore(lifetime_cb=lambda obj: 3600)
    region = make_region().configure("dogpile.cache.memory")
    region.set("k", item)
    against = Statement("get('k', create)", get=region.get_or_create, create=lambda: item)
    for what, store in (("", plain), (", lifetime_cb", expiring)):
        store.put(item)
        get = Statement("get(Item, {'id': 1})", get=store.get, Item=Item)
        measured = compare(against, get)
        yield Row(f"ProcessMemoryStore.get{what}", "dogpile get_or_create", measured, 0.6)
        chain = ChainedStore([store, ProcessMemoryStore()])
        measured = compare(get, Statement("get(Item, {'id': 1})", get=chain.get, Item=Item))
        yield Row(f"ChainedStore.get, memory{what}", "the layer's own get", measured, 1.3)
    with MemcachedServer() as server:
        yield from _on_memcached(server)


def _on_memcached(server: MemcachedServer) -> Iterator[Row]:
    with (
        MemcacheStore([f"127.0.0.1:{server.port}"]) as store,
        closing(server.client()) as client,
    ):
        items = [Item(number) for number in range(BATCH)]
        chain = ChainedStore([store, ProcessMemoryStore()])
        chain.batch_put(items)
        names = {f"item-{number}": pickle.dumps(items[number]) for number in range(BATCH)}
        client.set_many(names)
        keys: list[Any] = [{"id": number} for number in range(BATCH)]
        bare = Statement(
            "[loads(v) for v in get_many(names).values()]",
            loads=pickle.loads,
            get_many=client.get_many,
            names=list(names),
        )
        measured = compare(
            bare, Statement("get(Item, keys)", get=chain.batch_get, Item=Item, keys=keys)
        )
        yield Row(f"ChainedStore.batch_get, {BATCH}, memcached", "get_many, loads", measured, 1.5)
        one = Statement("get(Item, {'id': 1})", get=store.get, Item=Item)
        measured = compare(one, Statement("get(Item, {'id': 1})", get=chain.get, Item=Item))
        yield Row("ChainedStore.get, memcached", "the layer's own get", measured, 1.3)


class _Counting:
    """Pickles, and counts."""

    def __init__(self) -> None:
        self.pickles = self.unpickles = 0

    def encode(self, value: Any) -> bytes:
        self.pickles += 1
        return pickle.dumps(value)

    def decode(self, payload: bytes) -> Any:
        self.unpickles += 1
        return pickle.loads(payload)


def _pickles() -> Iterator[Amount]:
    with MemcachedServer() as server:
        for what, limits in (("memcached", (1, 2)), ("memory in front of memcached", (1, 0))):
            counting = _Counting()
            with MemcacheStore([f"127.0.0.1:{server.port}"], encoding=counting) as last:
                front = [ProcessMemoryStore(lifetime_cb=lambda obj: 3600)]
                store = ChainedStore([*front, last] if "front" in what else [last])
                store.put(Item(1))
                for _ in range(2):
                    store.get(Item, {"id": 1})
            yield Amount(f"pickles, {what}", counting.pickles, limits[0], "")
            yield Amount(f"unpickles, {what}", counting.unpickles, limits[1], "")
