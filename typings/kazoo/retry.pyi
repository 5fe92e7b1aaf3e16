from collections.abc import Callable
from typing import TypeVar

from kazoo.exceptions import KazooException

T = TypeVar("T")

class ForceRetryError(Exception): ...
class RetryFailedError(KazooException): ...
class InterruptedError(RetryFailedError): ...

class KazooRetry:
    RETRY_EXCEPTIONS: tuple[type[Exception], ...]
    EXPIRED_EXCEPTIONS: tuple[type[Exception], ...]
    max_tries: int | None
    delay: float
    backoff: float
    max_jitter: float
    max_delay: float
    deadline: float | None
    sleep_func: Callable[[float], object]
    retry_exceptions: tuple[type[Exception], ...]
    interrupt: Callable[[], bool] | None
    def __init__(
        self,
        max_tries: int | None = 1,
        delay: float = 0.1,
        backoff: float = 2,
        max_jitter: float = 0.4,
        max_delay: float = 60.0,
        ignore_expire: bool = True,
        sleep_func: Callable[[float], object] = ...,
        deadline: float | None = None,
        interrupt: Callable[[], bool] | None = None,
    ) -> None: ...
    def reset(self) -> None: ...
    def copy(self) -> KazooRetry: ...
    def __call__(self, func: Callable[..., T], *args: object, **kwargs: object) -> T: ...
