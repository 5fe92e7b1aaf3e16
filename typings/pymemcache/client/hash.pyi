from collections.abc import Iterable
from typing import Any

from .base import _Commands

class HashClient(_Commands):
    clients: dict[str, Any]
    def __init__(
        self,
        servers: Iterable[str | tuple[str, int]],
        *,
        use_pooling: bool = False,
        ignore_exc: bool = False,
        **options: Any,
    ) -> None: ...
