"""RedisDict: the conformance suite, and what is special to it while nothing goes wrong."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from durabledict import DurableDict, RedisDict
from durabledict.bytekeys import bytes_of
from durabledict.keys import encode_key
from durabledict.rediscommits import keys_of
from durabledict.testing import DurableDictSuite

from .fewsequences import FewSequences
from .redisservers import RedisServer


class TestRedisDict(FewSequences, DurableDictSuite):
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
    fields = [bytes_of(key) for key in keys]
    assert fields == [encode_key(key).encode() for key in keys]
    assert keys_of(fields) == keys
    assert keys_of([*fields, b"\xff"]) == [*keys, "\udcff"]


def test_a_field_that_is_no_utf_8_is_replaced_and_removed_by_its_key(
    redis_client: redis.Redis,
) -> None:
    """0.9 under Python 2 could write one."""
    redis_client.hset("k", mapping={b"caf\xe9": pickle.dumps(1), "x": pickle.dumps(2)})
    with RedisDict[str, int]("k", redis_client) as d:
        (odd,) = set(d) - {"x"}
        d[odd] = 3
        assert redis_client.hkeys("k") == [b"caf\xe9", b"x"]
        reloads = d.stats.reloads
        assert d.sync() is False
        assert (d[odd], d.stats.reloads) == (3, reloads)
        del d[odd]
        assert d.copy() == {"x": 2}
        assert redis_client.hkeys("k") == [b"x"]


@given(st.text(st.characters(exclude_categories=()), max_size=4))
def test_a_field_is_read_as_the_key_that_it_was_made_of(key: str) -> None:
    assert keys_of([bytes_of(key), b"x"]) == [key, "x"]


# CPython's longest tests, in the modes in which other backends take them, too.
for _name in ("test_mapping_popitem_bounded", "test_mapping_popitem_manual"):
    pytest.mark.long(getattr(TestRedisDict, _name))
