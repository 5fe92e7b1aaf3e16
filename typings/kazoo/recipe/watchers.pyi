from collections.abc import Callable
from typing import Any, TypeVar

from kazoo.client import KazooClient

F = TypeVar("F", bound=Callable[..., object])

class DataWatch:
    # The function is called with the value, its ZnodeStat, and if it takes that the WatchedEvent.
    def __init__(
        self,
        client: KazooClient,
        path: str,
        func: Callable[..., object] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None: ...
    def __call__(self, func: F) -> F: ...

class ChildrenWatch:
    # The function is called with the names, and with send_event also with the WatchedEvent.
    def __init__(
        self,
        client: KazooClient,
        path: str,
        func: Callable[..., object] | None = None,
        allow_session_lost: bool = True,
        send_event: bool = False,
    ) -> None: ...
    def __call__(self, func: F) -> F: ...
