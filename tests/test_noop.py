"""`NoOpEncoding` over stores of bytes or text: who writes has what everybody reads."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from kazoo.client import KazooClient

from durabledict import MISSING, DurableDict, JSONEncoding, NoOpEncoding, RedisDict, ZookeeperDict
from durabledict.errors import EncodingError

WAYS = {
    "set": lambda d, value: d.__setitem__("k", value),
    "update": lambda d, value: d.update(k=value),
    "setdefault": lambda d, value: d.setdefault("k", value),
    "replace_all": lambda d, value: d.replace_all({"k": value}),
    "compare_and_set": lambda d, value: d.compare_and_set("k", MISSING, value),
    "get_or_compute": lambda d, value: d.get_or_compute("k", lambda: value),
}


@pytest.fixture(params=["redis", "zookeeper"])
def two(request: pytest.FixtureRequest) -> Any:
    def opened(encoding: Any) -> list[DurableDict[str, Any]]:
        if request.param == "redis":
            client: redis.Redis = request.getfixturevalue("redis_client")
            return [RedisDict("k", client, encoding=encoding) for _ in range(2)]
        kazoo: KazooClient = request.getfixturevalue("zookeeper_client")
        path = request.getfixturevalue("zookeeper_path")
        return [ZookeeperDict(path, kazoo, "strict", encoding) for _ in range(2)]

    return opened


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", ["text", b"bytes", bytearray(b"array")])
def test_in_a_store_of_bytes_who_writes_has_bytes_as_well(two: Any, way: str, value: Any) -> None:
    writer, reader = two(NoOpEncoding)
    with writer, reader:
        WAYS[way](writer, value)
        read = reader["k"]
        assert type(read) is bytes
        assert type(writer["k"]) is bytes
        assert writer["k"] == read


@pytest.mark.parametrize("way", WAYS)
def test_what_writes_text_gives_it_back(two: Any, way: str) -> None:
    writer, reader = two(JSONEncoding)
    with writer, reader:
        for value in ("text", [1, (2,)]):
            WAYS[way](writer, value)
            assert writer["k"] == reader["k"] != MISSING
            del writer["k"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_bytes_is_refused_by_name(two: Any, way: str) -> None:
    writer, reader = two(NoOpEncoding)
    with writer, reader:
        with pytest.raises(EncodingError, match=r"key 'k' is of type int: .* holds str or bytes"):
            WAYS[way](writer, 5)
        assert writer == reader == {}
