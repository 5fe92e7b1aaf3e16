"""What hits of a region of dogpile.cache cost, over a dict and over dogpile's own backends."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from dogpile.cache import make_region

from durabledict import MemoryDict, RedisDict
from durabledict.ext.dogpile import SharedInvalidation
from durabledict.stores import RedisStore
from tests.redisservers import RedisServer

from .measure import Statement, compare
from .tables import Row

__all__ = ["region_rows"]

#: The value: a little more than a number.
VALUE = {"id": 1, "name": "item 1", "tags": ["a", "b", "c"]}

#: Keys of a get_multi.
MANY = 100

VALUES = {f"item-{number}": VALUE for number in range(MANY)}


def region_rows() -> Iterator[Row]:
    """Measure hits beside those of dogpile.cache.redis and dogpile.cache.memory."""
    with RedisServer() as server:
        yield from _on_redis(server)
    region = make_region().configure("dogpile.cache.memory")
    ours = _region(MemoryDict[str, Any](autosync=False))
    yield Row(
        "region hit, MemoryDict, manual",
        "dogpile.cache.memory",
        compare(_hit(region), _hit(ours)),
    )


def _on_redis(server: RedisServer) -> Iterator[Row]:
    theirs = make_region().configure("dogpile.cache.redis", arguments={"url": server.url})
    theirs.set_multi(VALUES)
    with (
        RedisDict[str, Any].from_url(server.url, "watched", autosync=False) as watched,
        RedisDict[str, Any].from_url(server.url, "strict") as strict,
        RedisStore(server.url) as store,
    ):
        watched.watch()
        against = "dogpile.cache.redis"
        over_watched = _region(watched)
        invalidated = _region(watched, SharedInvalidation(watched))
        for what, region, limit in (
            ("RedisDict, watch", over_watched, 0.1),
            ("watch, invalidation", invalidated, 0.1),
            ("RedisDict, strict", _region(strict), None),
            (
                "RedisStore",
                make_region().configure("durabledict.store", arguments={"store": store}),
                None,
            ),
        ):
            region.set("k", VALUE)
            measured = compare(_hit(theirs), _hit(region), pick=median)
            yield Row(f"region hit, {what}", against, measured, limit)
        over_watched.set_multi(VALUES)
        measured = compare(_many(theirs), _many(over_watched), pick=median)
        yield Row(f"get_multi, {MANY}, RedisDict, watch", against, measured)
    theirs.actual_backend.reader_client.close()


def _region(d: Any, invalidation: SharedInvalidation | None = None) -> Any:
    return make_region().configure(
        "durabledict.dict",
        arguments={"dict": d, "invalidation": invalidation},
        region_invalidator=invalidation,
    )


def _hit(region: Any) -> Statement:
    region.set("k", VALUE)
    return Statement("get_or_create('k', create)", get_or_create=region.get_or_create, create=dict)


def _many(region: Any) -> Statement:
    return Statement("get_multi(keys)", get_multi=region.get_multi, keys=list(VALUES))
