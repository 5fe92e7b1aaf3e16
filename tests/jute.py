"""The protocol of ZooKeeper: where a message ends, and what a request asks for.

A message is its length in 4 bytes, and that many bytes. A request begins with its number (xid) and
its type, but for the one that asks for a session, the first of a connection: it begins with the
version of the protocol, which is 0. A reply begins with the number of its request, and what the
server tells of itself, that something watched has changed, with -1. The four-letter words (`ruok`)
and their answers, after which the server closes the connection, have no length.

"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["OPERATIONS", "Request", "is_event", "message_length", "parse_request"]

# As org.apache.zookeeper.ZooDefs.OpCode names them.
OPERATIONS = {
    -11: "closeSession",
    1: "create",
    2: "delete",
    3: "exists",
    4: "getData",
    5: "setData",
    6: "getACL",
    7: "setACL",
    8: "getChildren",
    9: "sync",
    11: "ping",
    12: "getChildren2",
    13: "check",
    14: "multi",
    15: "create2",
    16: "reconfig",
    17: "checkWatches",
    18: "removeWatches",
    19: "createContainer",
    20: "deleteContainer",
    21: "createTTL",
    22: "multiRead",
    100: "auth",
    101: "setWatches",
    102: "sasl",
    103: "getEphemerals",
    104: "getAllChildrenNumber",
    105: "setWatches2",
    106: "addWatch",
}

# Those whose argument begins with a path; of some the byte after it says whether to watch that.
WITH_PATH = {*range(1, 10), 12, 13, 15, 17, 18, 19, 20, 21, 103, 104, 106}
WITH_WATCH = {3, 4, 8, 12}

# Whatever the first bytes of a text are, read as a length they say more. No message is that long:
# a server takes 1 MiB, unless it is told otherwise.
LONGEST = 1 << 26

CONNECT_XID = 0
EVENT_XID = -1


class Request(NamedTuple):
    """`operation` is as in `OPERATIONS`, or `connect`, or a four-letter word."""

    operation: str
    path: str = ""
    watch: bool = False

    def __str__(self) -> str:
        return f"<{self.operation} {self.path}>" if self.path else f"<{self.operation}>"


def message_length(data: bytes | bytearray) -> int | None:
    """Return the length of the message at the beginning of `data`, None when it goes on."""
    if len(data) < 4:
        return None
    length = _number(data, 0)
    if not 0 <= length <= LONGEST:
        return len(data)  # A four-letter word, or what answers one.
    return 4 + length if len(data) >= 4 + length else None


def parse_request(message: bytes) -> Request:
    """Return what a message from a client asks for."""
    length = message_length(message)
    if length is None:
        return Request("unfinished")
    if not 0 <= _number(message, 0) <= LONGEST:
        return Request(message.decode("ascii", "replace").strip())
    if len(message) < 12:
        return Request("unknown")
    if _number(message, 4) == CONNECT_XID:
        return Request("connect")
    kind = _number(message, 8)
    operation = OPERATIONS.get(kind, f"operation {kind}")
    if kind not in WITH_PATH or len(message) < 16:
        return Request(operation)
    end = 16 + max(_number(message, 12), 0)
    watch = kind in WITH_WATCH and message[end : end + 1] == b"\x01"
    return Request(operation, message[16:end].decode(errors="replace"), watch)


def is_event(reply: bytes) -> bool:
    """Return whether it is no reply, but tells that something watched has changed."""
    return len(reply) >= 8 and _number(reply, 4) == EVENT_XID


def _number(data: bytes | bytearray, place: int) -> int:
    number: int = struct.unpack_from("!i", data, place)[0]
    return number
