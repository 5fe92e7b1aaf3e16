"""What a `RedisDict` asks its server beside commits, loads and deltas: each is one request."""

from __future__ import annotations

from collections.abc import Callable

from redis.exceptions import AskError, NoPermissionError, ResponseError, TimeoutError

from . import reading
from .errors import DurableDictError
from .redisprimary import Primary, classified, has_tag
from .redisscripts import FORMAT, pack

__all__ = [
    "counter",
    "eviction",
    "explain",
    "held_types",
    "payload",
    "require_taken",
    "wait_for_commit",
]

#: Seconds between two looks of a wait at whether it was interrupted.
INTERRUPT_INTERVAL = 0.05

#: Seconds that the reply to an XREAD may come late.
LATE = 1.0

#: Keys and payloads below this need no look at the server's limits, which cannot be set lower.
SURELY_TAKEN = 1_000_000

#: Settings that limit the size of a key or a payload, and their defaults.
LIMITS = {"proto-max-bulk-len": 512 * 2**20, "client-query-buffer-limit": 2**30}


def wait_for_commit(
    primary: Primary, since: bytes, timeout: float, is_interrupted: Callable[[], bool]
) -> bool:
    """Wait until there is a later commit than `since`, or what is to be looked at (rule 2.8).

    From that very id on, never from "$": what was written since the last sync is heard.

    :return: False when there is none after `timeout` seconds, the wait was interrupted, or the
        keyspace is not on this server any more

    """
    server = primary.server
    connection, era = server.take(server.timeout)
    milliseconds = b"%d" % max(1, timeout * 1000)
    try:
        connection.begin(
            pack(
                (
                    *(b"XREAD", b"COUNT", b"1", b"BLOCK", milliseconds),
                    *(b"STREAMS", primary.keys[1], since),
                )
            )
        )
        ends = reading.monotonic() + timeout + LATE
        while not connection.can_read(INTERRUPT_INTERVAL):
            if is_interrupted():
                return False
            if reading.monotonic() > ends:
                raise TimeoutError("no reply to XREAD in time")
        (reply,) = connection.end()
    finally:
        server.give(connection, era, server.timeout)
    refusal = classified(reply)
    if isinstance(refusal, AskError):  # or MovedError
        primary.refresh()
        return False
    if refusal is not None and str(refusal).startswith("UNBLOCKED"):
        return False  # it has become a replica
    if refusal is not None:
        raise refusal
    return reply is not None


def payload(primary: Primary, field: bytes) -> bytes | None:
    """Return one payload. One HGET."""
    payload: bytes | None = primary.ask(pack((b"HGET", primary.keys[0], field)))[0]
    return payload


def counter(primary: Primary) -> int:
    """Return the counter that 0.9 raised with each write, where it can be in the same slot."""
    if primary.is_cluster and not has_tag(primary.names[0]):
        return 0
    try:
        told = primary.ask(pack((b"GET", primary.keys[0] + b"last_updated")))[0]
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return 0  # a dict of that name lives there: 0.9 could not count
    # Of 64 bits, as Redis counts.
    return int(told) if told is not None and told.isdigit() and len(told) <= 20 else 0


def held_types(primary: Primary) -> str:
    """Say what the three keys hold."""
    try:
        replies = primary.ask(*(pack((b"TYPE", key)) for key in primary.keys))
    except NoPermissionError:
        replies = []
    held = [
        f"{name!r} holds a {reply.decode()}, not a {wanted}"
        for name, reply, wanted in zip(
            primary.names, replies, ("hash", "stream", "string"), strict=False
        )
        if reply not in (b"none", wanted.encode())
    ]
    return ", ".join(held) or "one of its keys holds another type"


def explain(primary: Primary, error: ResponseError) -> None:
    """Raise what an error reply means for a dict, where that is more than it says.

    :raises TypeError: one of the three keys holds something else
    :raises DurableDictError: a newer library wrote to the keyspace

    """
    text, keyspace = str(error), primary.names[0]
    if "WRONGTYPE" in text:
        raise TypeError(
            f"keyspace {keyspace!r} is used for something else: {held_types(primary)}"
        ) from error
    if "DURABLEDICTFORMAT" in text:
        raise DurableDictError(
            f"keyspace {keyspace!r} has format {text.split()[1]}, and this library knows formats "
            f"up to {FORMAT}: a newer durabledict writes to it"
        ) from error


def eviction(primary: Primary) -> tuple[str, int]:
    """Return the server's eviction policy, and the bytes from which on it evicts; 0: none."""
    try:
        (told,) = primary.ask(pack((b"INFO", b"memory")))
    except ResponseError:
        return "", 0  # the user may not ask
    lines = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
    return lines.get("maxmemory_policy", ""), int(lines.get("maxmemory", 0))


def require_taken(primary: Primary, arguments: tuple[bytes, ...]) -> None:
    """See that the server takes arguments of these sizes: one beyond them ends the connection.

    One CONFIG GET for each limit, and none for small arguments.

    :raises ValueError: it does not; it names both sizes

    """
    size = max(map(len, arguments), default=0)
    if size <= SURELY_TAKEN:
        return
    for name, limit in LIMITS.items():
        try:
            told = primary.ask(pack((b"CONFIG", b"GET", name.encode())))[0]
        except ResponseError:
            told = []  # the user may not ask: the default
        limit = int(told[1]) if told else limit
        if size > limit:
            raise ValueError(
                f"{size} bytes are more than the {limit} that the server takes ({name})"
            )
