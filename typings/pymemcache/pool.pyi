from collections.abc import Callable
from typing import Any

class ObjectPool:
    max_size: int
    def __init__(
        self,
        obj_creator: Callable[[], Any],
        after_remove: Callable[[Any], object] | None = None,
        max_size: int | None = None,
        idle_timeout: int = 0,
        lock_generator: Callable[[], Any] | None = None,
    ) -> None: ...
    def clear(self) -> None: ...
