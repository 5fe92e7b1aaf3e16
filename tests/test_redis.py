"""RedisDict: the conformance suite, and what is special to it while nothing goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from durabledict import DurableDict, RedisDict
from durabledict.testing import DurableDictSuite

from .redisservers import RedisServer


class TestRedisDict(DurableDictSuite):
    capabilities = frozenset({"strict", "compare_and_set", "delta", "push", "shared", "aliasing"})

    @pytest.fixture(autouse=True)
    def client(self, redis_server: RedisServer) -> Iterator[redis.Redis]:
        self._client = redis_server.client()
        yield self._client
        self._client.close()

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return RedisDict(str(place), self._client, **options)
