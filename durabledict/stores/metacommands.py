"""memcached's commands, many in one request: the meta commands (of 1.6 or later), and `get`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownCommandError,
)

__all__ = ["TOO_LARGE", "Reply", "exchange", "get_many"]

#: Bytes to ask a socket for at once.
CHUNK = 1 << 18

#: Of the size of an item: memcached takes none of more than a gigabyte.
MOST_DIGITS = 10

TOO_LARGE = b"SERVER_ERROR object too large for cache"


class Reply(NamedTuple):
    """The answer to one command.

    :param status: ``HD`` and ``VA``: done; ``EN`` and ``NF``: not there; ``NS``: not stored;
        ``EX``: somebody else wrote; or `TOO_LARGE`
    :param flags: what comes with it, by its letter: ``{b"c": b"5"}``
    :param value: what is stored, where that was asked for

    """

    status: bytes
    flags: dict[bytes, bytes]
    value: bytes


def exchange(node: Any, commands: Iterable[bytes]) -> list[Reply]:
    """Send commands to one server, together, and return the answer to each. One round trip.

    On an exception the connection is to be closed: answers may be left in it.

    :param node: a client of pymemcache for that server, which is nobody else's meanwhile
    :param commands: complete, with their data; none with the flag ``q``
    :raises pymemcache.exceptions.MemcacheError: the server could not do one of them

    """
    sent = list(commands)
    if node.sock is None:
        node._connect()
    node.sock.sendall(b"".join(sent))
    with node.sock.makefile("rb") as stream:
        replies = [_reply(stream) for _ in sent]
    for reply in replies:
        if reply.status.startswith(b"SERVER_ERROR") and not _is_too_large(reply):
            raise MemcacheServerError(reply.status.decode("ascii", "replace"))
    return [r._replace(status=TOO_LARGE) if _is_too_large(r) else r for r in replies]


def get_many(node: Any, keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return what is stored under many keys. One round trip.

    In half of the time that pymemcache takes, which looks for the end of each line and value in
    a buffer of 4,096 bytes.

    :param node: as for `exchange`

    """
    if node.sock is None:
        node._connect()
    sock = node.sock
    sock.sendall(b"get %b\r\n" % b" ".join(keys))
    found: dict[bytes, bytes] = {}
    data, begin = b"", 0
    while True:
        chunk = sock.recv(CHUNK)
        if not chunk:
            raise MemcacheUnexpectedCloseError()
        data = data[begin:] + chunk if data else chunk
        begin = 0
        while (end := data.find(b"\r\n", begin)) >= 0:
            words = data[begin:end].split(b" ")
            if words[0] != b"VALUE":
                break
            end += 2
            after = end + _size(words, 3)
            if after + 2 > len(data):
                break
            found[words[1]] = data[end:after]
            begin = after + 2
        else:
            continue
        if words[0] == b"END":
            return found
        if words[0] != b"VALUE":
            raise MemcacheServerError(data[begin:end].decode("ascii", "replace"))


def _is_too_large(reply: Reply) -> bool:
    # A write by `ms` says it shorter.
    return reply.status.startswith(b"SERVER_ERROR") and b"too large" in reply.status


def _size(words: list[bytes], place: int) -> int:
    """Return the bytes of a value, of the line before it.

    :raises MemcacheServerError: it says none, or more than any item has

    """
    size = words[place] if place < len(words) else b""
    if not size.isdigit() or len(size) > MOST_DIGITS:
        line = b" ".join(words)[:100].decode("ascii", "replace")
        raise MemcacheServerError(f"memcached does not say the size of a value: {line}")
    return int(size)


def _reply(stream: Any) -> Reply:
    line: bytes = stream.readline()
    if not line.endswith(b"\r\n"):
        raise MemcacheUnexpectedCloseError()
    if line.startswith(b"SERVER_ERROR"):
        return Reply(line.rstrip(), {}, b"")
    if line.startswith(b"ERROR"):
        raise MemcacheUnknownCommandError("the server has no meta commands: memcached 1.6 has them")
    if line.startswith(b"CLIENT_ERROR"):
        raise MemcacheClientError(line.rstrip().decode("ascii", "replace"))
    words = line.split()
    value = b""
    if not words:
        raise MemcacheServerError("an empty line is no answer of memcached's")
    status, flags = words[0], words[1:]
    if status == b"VA":
        size = _size(words, 1)
        del flags[0]
        value = stream.read(size + 2)
        if not value.endswith(b"\r\n") or len(value) != size + 2:
            raise MemcacheUnexpectedCloseError()
        value = value[:-2]
    return Reply(status, {word[:1]: word[1:] for word in flags}, value)
