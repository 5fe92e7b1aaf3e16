from collections.abc import Sequence
from typing import NamedTuple

from kazoo.security import ACL

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
