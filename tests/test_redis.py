"""RedisDict: the conformance suite, and what is special to it while nothing goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from durabledict import DurableDict, RedisDict
from durabledict.keys import encode_key
from durabledict.redis import _field, _keys
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


TEXTS = st.text(max_size=3) | st.sampled_from(["", "~int:1", "~", "a\n~b", "\n", "é", "~none"])


@given(st.lists(TEXTS | st.integers(), unique=True, max_size=6))
def test_many_fields_are_the_keys_that_each_of_them_is(keys: list[Any]) -> None:
    """Fields are decoded together where they can be; what is no UTF-8 is among the others."""
    fields = [_field(key) for key in keys]
    assert fields == [encode_key(key).encode() for key in keys]
    assert _keys(fields) == keys
    assert _keys([*fields, b"\xff"]) == [*keys, "\udcff"]
