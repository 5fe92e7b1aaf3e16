from collections.abc import Mapping
from typing import Any

from redis import Redis

class RedisDict:
    def __init__(self, namespace: str = ..., *, redis: Redis) -> None: ...
    def update(self, dic: Mapping[str, Any]) -> None: ...
