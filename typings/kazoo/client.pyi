import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from kazoo.exceptions import ZookeeperError
from kazoo.interfaces import IAsyncResult, IHandler, _Event
from kazoo.protocol.serialization import CheckVersion, Create, Delete, SetData
from kazoo.protocol.states import WatchedEvent, ZnodeStat
from kazoo.recipe import watchers
from kazoo.retry import KazooRetry
from kazoo.security import ACL
from typing_extensions import Self

T = TypeVar("T")

_Watch = Callable[[WatchedEvent], object]
_Listener = Callable[[str], object]  # Is called with a KazooState.

class KazooClient:
    logger: logging.Logger | logging.LoggerAdapter[Any]
    handler: IHandler
    auth_data: set[tuple[str, str]]
    default_acl: Sequence[ACL] | None
    randomize_hosts: bool
    hosts: list[tuple[str, int]]
    chroot: str
    use_ssl: bool
    verify_certs: bool
    check_hostname: bool
    certfile: str | None
    keyfile: str | None
    keyfile_password: str | None
    ca: str | None
    state: str
    state_listeners: set[_Listener]
    read_only: bool | None
    last_zxid: int
    def __init__(
        self,
        hosts: str | list[str] = "127.0.0.1:2181",
        timeout: float = 10.0,
        client_id: tuple[int, bytes] | None = None,
        handler: IHandler | None = None,
        default_acl: Sequence[ACL] | None = None,
        auth_data: Iterable[tuple[str, str]] | None = None,
        sasl_options: Mapping[str, str] | None = None,
        read_only: bool | None = None,
        randomize_hosts: bool = True,
        connection_retry: KazooRetry | Mapping[str, Any] | None = None,
        command_retry: KazooRetry | Mapping[str, Any] | None = None,
        logger: logging.Logger | logging.LoggerAdapter[Any] | None = None,
        keyfile: str | None = None,
        keyfile_password: str | None = None,
        certfile: str | None = None,
        ca: str | None = None,
        use_ssl: bool = False,
        verify_certs: bool = True,
        check_hostname: bool = False,
    ) -> None: ...
    @property
    def client_state(self) -> str: ...
    @property
    def client_id(self) -> tuple[int, bytes] | None: ...
    @property
    def connected(self) -> bool: ...
    def set_hosts(self, hosts: str | list[str], randomize_hosts: bool | None = None) -> None: ...
    def add_listener(self, listener: _Listener) -> None: ...
    def remove_listener(self, listener: _Listener) -> None: ...
    def start(self, timeout: float | None = 15) -> None: ...
    def start_async(self) -> _Event: ...
    def stop(self) -> None: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...
    def command(self, cmd: bytes = b"ruok") -> str: ...
    def server_version(self, retries: int = 3) -> tuple[int, ...]: ...
    def retry(self, func: Callable[..., T], *args: object, **kwargs: object) -> T: ...
    def unchroot(self, path: str) -> str: ...
    def add_auth(self, scheme: str, credential: str) -> bool: ...
    def add_auth_async(self, scheme: str, credential: str) -> IAsyncResult[bool]: ...
    def sync(self, path: str) -> str: ...
    def sync_async(self, path: str) -> IAsyncResult[str]: ...
    @overload
    def create(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Sequence[ACL] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        makepath: bool = False,
        include_data: Literal[False] = False,
    ) -> str: ...
    @overload
    def create(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Sequence[ACL] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        makepath: bool = False,
        *,
        include_data: Literal[True],
    ) -> tuple[str, ZnodeStat]: ...
    @overload
    def create_async(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Sequence[ACL] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        makepath: bool = False,
        include_data: Literal[False] = False,
    ) -> IAsyncResult[str]: ...
    @overload
    def create_async(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Sequence[ACL] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        makepath: bool = False,
        *,
        include_data: Literal[True],
    ) -> IAsyncResult[tuple[str, ZnodeStat]]: ...
    # The path when it is created, else True.
    def ensure_path(self, path: str, acl: Sequence[ACL] | None = None) -> str | Literal[True]: ...
    def ensure_path_async(
        self, path: str, acl: Sequence[ACL] | None = None
    ) -> IAsyncResult[str | Literal[True]]: ...
    def exists(self, path: str, watch: _Watch | None = None) -> ZnodeStat | None: ...
    def exists_async(
        self, path: str, watch: _Watch | None = None
    ) -> IAsyncResult[ZnodeStat | None]: ...
    # The value is None where another client wrote none, which is not an empty one.
    def get(self, path: str, watch: _Watch | None = None) -> tuple[bytes | None, ZnodeStat]: ...
    def get_async(
        self, path: str, watch: _Watch | None = None
    ) -> IAsyncResult[tuple[bytes | None, ZnodeStat]]: ...
    @overload
    def get_children(
        self, path: str, watch: _Watch | None = None, include_data: Literal[False] = False
    ) -> list[str]: ...
    @overload
    def get_children(
        self, path: str, watch: _Watch | None = None, *, include_data: Literal[True]
    ) -> tuple[list[str], ZnodeStat]: ...
    @overload
    def get_children_async(
        self, path: str, watch: _Watch | None = None, include_data: Literal[False] = False
    ) -> IAsyncResult[list[str]]: ...
    @overload
    def get_children_async(
        self, path: str, watch: _Watch | None = None, *, include_data: Literal[True]
    ) -> IAsyncResult[tuple[list[str], ZnodeStat]]: ...
    def get_acls(self, path: str) -> tuple[list[ACL], ZnodeStat]: ...
    def get_acls_async(self, path: str) -> IAsyncResult[tuple[list[ACL], ZnodeStat]]: ...
    def set_acls(self, path: str, acls: Sequence[ACL], version: int = -1) -> ZnodeStat: ...
    def set_acls_async(
        self, path: str, acls: Sequence[ACL], version: int = -1
    ) -> IAsyncResult[ZnodeStat]: ...
    def set(self, path: str, value: bytes | None, version: int = -1) -> ZnodeStat: ...
    def set_async(
        self, path: str, value: bytes | None, version: int = -1
    ) -> IAsyncResult[ZnodeStat]: ...
    def delete(self, path: str, version: int = -1, recursive: bool = False) -> bool | None: ...
    def delete_async(self, path: str, version: int = -1) -> IAsyncResult[bool]: ...
    def transaction(self) -> TransactionRequest: ...
    # Private: takes any request, and what is told of its answer.
    def _call(self, request: object, async_object: object) -> bool | None: ...
    def DataWatch(  # noqa: N802
        self, path: str, func: Callable[..., object] | None = None
    ) -> watchers.DataWatch: ...
    def ChildrenWatch(  # noqa: N802
        self,
        path: str,
        func: Callable[..., object] | None = None,
        allow_session_lost: bool = True,
        send_event: bool = False,
    ) -> watchers.ChildrenWatch: ...

# Of a create, a set_data, a delete or a check; or why the transaction was not done.
_Result = str | ZnodeStat | Literal[True] | ZookeeperError

class TransactionRequest:
    client: KazooClient
    operations: list[Create | Delete | SetData | CheckVersion]
    committed: bool
    def __init__(self, client: KazooClient) -> None: ...
    def create(
        self,
        path: str,
        value: bytes = b"",
        acl: Sequence[ACL] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
    ) -> None: ...
    def delete(self, path: str, version: int = -1) -> None: ...
    def set_data(self, path: str, value: bytes, version: int = -1) -> None: ...
    def check(self, path: str, version: int) -> None: ...
    def commit(self) -> list[_Result]: ...
    def commit_async(self) -> IAsyncResult[list[_Result]]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
