"""The first load of a large hash: in chunks, so that it is never in memory twice (rule 2.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError, ResponseError

from .redisprimary import Primary
from .redisscripts import DELTA, LOAD, pack

__all__ = ["delta", "load"]

Decode = Callable[[list[bytes], list[bytes]], dict[Any, Any]]
Keys = Callable[[list[bytes]], list[Any]]

#: A hash of not more entries than this is fetched in one reply.
WHOLE = b"2000"

#: How many entries the server is asked for at a time: the most, and at first; and about how many
#: bytes a chunk is to have. Others wait while the server makes one.
CHUNK = 2000
FIRST_CHUNK = 100
CHUNK_BYTES = 1_000_000

#: How often a load in chunks is begun anew, before the server is asked for all in one reply.
TRIES = 3

IDENTITY = (pack((b"INFO", b"server")), pack((b"INFO", b"replication")))


def load(
    primary: Primary,
    decode: Decode,
    keys_of: Keys,
) -> dict[Any, Any]:
    """Return all entries, decoded, as they were at one moment after this call began.

    One round trip for a small hash; else one for each chunk, and two more.

    :param decode: makes entries of fields and their payloads
    :param keys_of: makes keys of fields

    """
    last, _, entries = primary.run(LOAD, WHOLE)
    if entries is not None:
        return decode(entries[::2], entries[1::2])
    for _ in range(TRIES):
        loaded = _load_in_chunks(primary, decode, keys_of, last)
        if loaded is not None:
            return loaded
        last, _, _ = primary.run(LOAD, b"-1")
    entries = primary.run(LOAD, b"1e15")[2]
    return decode(entries[::2], entries[1::2])


def _load_in_chunks(
    primary: Primary,
    decode: Decode,
    keys_of: Keys,
    since: bytes | None,
) -> dict[Any, Any] | None:
    """Scan, then bring what was scanned up to one moment.

    On one connection: a cursor means nothing to another server, which skips what it does not know
    in silence. A demoted primary takes over another one's data under a connection that stays open,
    which its replication id tells.

    :param since: the id of the last commit before the scan
    :return: None if something else than commits happened to the hash meanwhile

    """
    server = primary.server
    connection, era = server.take(server.timeout)
    found: dict[Any, Any] = {}
    try:
        identity = _identity(connection.ask(*IDENTITY))
        cursor = b"0"
        count = FIRST_CHUNK
        connection.begin(pack((b"HSCAN", primary.keys[0], cursor, b"COUNT", b"%d" % count)))
        while True:
            (reply,) = connection.end()
            if isinstance(reply, Exception):
                raise reply
            cursor, fields = reply
            if cursor != b"0":
                count = min(CHUNK, 1 + count * CHUNK_BYTES // (1 + sum(map(len, fields))))
                # The server makes the next chunk while this one is decoded.
                connection.begin(pack((b"HSCAN", primary.keys[0], cursor, b"COUNT", b"%d" % count)))
            found.update(decode(fields[::2], fields[1::2]))
            if cursor == b"0":
                break
        if identity != _identity(connection.ask(*IDENTITY)):
            return None
    except (ConnectionError, ResponseError):
        return None  # the next try, and after them the whole, says what is the matter
    finally:
        server.give(connection, era, server.timeout)
    if since is None:
        # What 0.9 wrote, and no commit since: the number of entries has to tell.
        last, size, _ = primary.run(LOAD, b"-1")
        return found if last is None and size == len(found) else None
    news = delta(primary, since, b"1e9")
    if news is None:
        return None
    _, size, fields, payloads, absent = news
    found.update(decode(fields, payloads))
    for key in keys_of(absent):
        found.pop(key, None)
    return found if size == len(found) else None


def delta(
    primary: Primary, since: bytes, share: bytes
) -> tuple[bytes, int, list[bytes], list[bytes], list[bytes]] | None:
    """Return the id that is reached, the number of entries, and what changed since.

    That is: the fields written, their payloads, and the fields that are gone.

    One round trip for each 20,000 keys. None: what happened since is not known.

    :param since: the id of a commit
    :param share: the part of all keys above which a reload is cheaper

    """
    payloads: dict[bytes, bytes | None] = {}
    more = b"1"
    while more == b"1":
        reply = primary.run(DELTA, since, b"20000", share)
        if reply is None:
            return None
        # A key of an earlier page that was written after it is in this one again.
        since, more, size, fields, values = reply
        payloads.update(zip(fields, values, strict=True))
        if more == b"1" and len(payloads) > float(share) * size:
            return None
    present = {field: payload for field, payload in payloads.items() if payload is not None}
    absent = [field for field in payloads if field not in present]
    return since, size, list(present), list(present.values()), absent


def _identity(replies: list[Any]) -> list[bytes]:
    """Return what a restart or a change of roles changes; nothing where INFO is refused."""
    lines = b"\n".join(reply for reply in replies if isinstance(reply, bytes)).splitlines()
    return [line for line in lines if line.startswith((b"run_id:", b"role:", b"master_replid:"))]
