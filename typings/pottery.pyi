from typing import Any

from redis import Redis

class RedisDict:
    def __init__(self, *, redis: Redis, key: str) -> None: ...
    def __setitem__(self, key: str, value: Any) -> None: ...
