"""Where a message of the Redis protocol ends; requests and replies, RESP2 and RESP3."""

from __future__ import annotations

__all__ = ["is_push", "message_length"]

# What is followed by that many bytes, and by that many messages (of a map: twice as many).
BYTES = b"$=!"
MESSAGES = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}


def message_length(data: bytes | bytearray) -> int | None:
    """Return the length of the message at the beginning of `data`, None when it goes on."""
    place = 0
    left = 1
    while left:
        line = data.find(b"\r\n", place)
        if line < 0:
            return None
        kind = bytes(data[place : place + 1])
        left -= 1
        if kind in BYTES:
            length = int(data[place + 1 : line])
            # -1 is the null of RESP2, which has no bytes that follow.
            place = line + 2 + (length + 2 if length >= 0 else 0)
        else:
            # An inline command, a number or a status is one line.
            if kind in MESSAGES:
                left += max(int(data[place + 1 : line]), 0) * MESSAGES[kind]
            if kind == b"|":
                left += 1  # Attributes stand before the message that they belong to.
            place = line + 2
    return place if place <= len(data) else None


def is_push(reply: bytes) -> bool:
    """Return whether it is no reply, but what the server tells of itself."""
    return reply.startswith(b">")
