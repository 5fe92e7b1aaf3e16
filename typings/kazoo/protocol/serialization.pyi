import struct
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from kazoo.security import ACL

int_struct: struct.Struct
long_struct: struct.Struct
multiheader_struct: struct.Struct
stat_struct: struct.Struct

def write_string(bytes: str) -> bytes: ...
def read_buffer(bytes: bytes, offset: int) -> tuple[bytes | None, int]: ...

# Requests for reading, as the client makes them.

class Exists:
    type: ClassVar[int]
    def __init__(self, path: str, watcher: Callable[..., object] | None) -> None: ...

class GetData:
    type: ClassVar[int]
    def __init__(self, path: str, watcher: Callable[..., object] | None) -> None: ...

class GetChildren2:
    type: ClassVar[int]
    def __init__(self, path: str, watcher: Callable[..., object] | None) -> None: ...

# The operations of a transaction.

class Create(NamedTuple):
    path: str
    data: bytes
    acl: Sequence[ACL]
    flags: int

class Delete(NamedTuple):
    path: str
    version: int

class SetData(NamedTuple):
    path: str
    data: bytes
    version: int

class CheckVersion(NamedTuple):
    path: str
    version: int
