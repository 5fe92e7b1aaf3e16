"""The statements of a `SqliteDict`, and those that are made of several.

docs/internals.rst, rules 1.1 and 1.7. `place` is the keyspace in the form that the tables have.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from .bytekeys import not_utf8
from .errors import MISSING
from .keys import decode_key
from .sqliteconnection import Connection
from .sqliteschema import REMOVED

__all__ = [
    "COMMIT",
    "ENTRY",
    "LOG",
    "OVERWRITE",
    "OVERWRITTEN",
    "PROOF",
    "STAMP",
    "forget_inherited_nonces",
    "form_there",
    "has_tagged_keys",
    "key_of",
    "new_nonce",
    "payload_of",
    "read_entries",
    "remove",
    "store",
]

STAMP = """
    SELECT version, nonce FROM durabledict_commits WHERE keyspace = ?
    ORDER BY version DESC LIMIT 1
"""
PROOF = "SELECT 1 FROM durabledict_commits WHERE keyspace = ? AND version = ? AND nonce = ?"
LOG = """
    SELECT version, nonce, written, removed FROM durabledict_commits
    WHERE keyspace = ? AND version > ? ORDER BY version
"""
# Cast, because a key that is no UTF-8 comes, and goes, as bytes.
ENTRY = """
    SELECT id, key, value FROM durabledict_entries WHERE keyspace = ? AND key = CAST(? AS TEXT)
"""
PAYLOAD = """
    SELECT value FROM durabledict_entries WHERE keyspace = ? AND key = CAST(? AS TEXT)
"""
# All rows in their order, or those of one keyspace by the index: a third slower, but for a small
# keyspace in a large file.
ENTRIES = "SELECT key, value FROM durabledict_entries {} WHERE keyspace = ? ORDER BY id"
KEYSPACES = """
    SELECT (SELECT min(keyspace) FROM durabledict_entries),
           (SELECT max(keyspace) FROM durabledict_entries)
"""
TAGGED = """
    SELECT 1 FROM durabledict_entries WHERE keyspace = ? AND key >= '~' LIMIT 1
"""
# An entry keeps its row, and so its place, when its value changes.
UPSERT = """
    INSERT INTO durabledict_entries (keyspace, key, nonce, value) VALUES (?, CAST(? AS TEXT), ?, ?)
    ON CONFLICT (keyspace, key) DO UPDATE SET value = excluded.value, nonce = excluded.nonce
"""
# So many rows in one statement take half the time that they take one by one. Each has four
# values, and SQLite was built with a limit of 999 for long.
ROWS_AT_ONCE = 200
ROW = "(?, CAST(? AS TEXT), ?, ?)"
UPSERT_MANY = UPSERT.replace(ROW, ", ".join([ROW] * ROWS_AT_ONCE))
# A transaction of its own: the trigger adds the commit.
OVERWRITE = "UPDATE durabledict_entries SET value = ?, nonce = ? WHERE keyspace = ? AND key = ?"
OVERWRITTEN = "SELECT 1 FROM durabledict_commits WHERE keyspace = ? AND nonce = ?"
# First marked: a removal that is not is another program's, and the trigger adds a commit for it.
MARK = f"""
    UPDATE durabledict_entries SET nonce = {REMOVED}
    WHERE keyspace = ? AND key = CAST(? AS TEXT)
"""
DELETE = "DELETE FROM durabledict_entries WHERE keyspace = ? AND key = CAST(? AS TEXT)"
COMMIT = """
    INSERT INTO durabledict_commits (keyspace, version, nonce, written, removed)
    VALUES (?, ?, ?, ?, ?)
"""

# Drawn by the hundred: one system call less for each write.
_nonces: list[int] = []
_drawn_in = os.getpid()


def new_nonce() -> int:
    """Return 62 random bits; but neither 0 nor 1, whose negatives mean something else in a row."""
    try:
        return _nonces.pop()
    except IndexError:
        drawn: list[int] = [(bits >> 2) + 2 for bits in struct.unpack("=128Q", os.urandom(1024))]
        _nonces.extend(drawn[1:])
        return drawn[0]


def forget_inherited_nonces() -> None:
    """Draw new ones in a forked child: those of its parent are its parent's."""
    global _drawn_in
    if _drawn_in != os.getpid():
        _nonces.clear()
        _drawn_in = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_inherited_nonces)


def read_entries(connection: Connection, place: str) -> list[tuple[Any, Any]]:
    """Return key and payload of each entry, in the order of insertion."""
    ((first, last),) = connection.rows(KEYSPACES)
    alone = first == last == place
    return connection.rows(ENTRIES.format("NOT INDEXED" if alone else ""), (place,))


def has_tagged_keys(connection: Connection, place: str) -> bool:
    """Whether there may be keys that `decode_key` gives as something else than their text."""
    return bool(connection.rows(TAGGED, (place,)))


def form_there(connection: Connection, place: str, text: str) -> str | bytes:
    """Return what is in the table for a key: text that is no UTF-8, where others wrote that."""
    raw = not_utf8(decode_key(text)) if text[:1] == "~" else None
    if raw is None or payload_of(connection, place, raw) is MISSING:
        return text
    return raw


def payload_of(connection: Connection, place: str, text: str | bytes) -> Any:
    """Return the payload of a key, or MISSING."""
    rows = connection.rows(PAYLOAD, (place, text))
    return rows[0][0] if rows else MISSING


def key_of(text: str | bytes) -> Any:
    """Return the key that a text stands for; what is no UTF-8 is shown as Python shows it."""
    return decode_key(text if isinstance(text, str) else text.decode("utf-8", "surrogateescape"))


def store(
    connection: Connection, place: str, nonce: int, payloads: Mapping[str | bytes, Any]
) -> None:
    """Write entries, inside a transaction that adds the row of the commit itself."""
    rows = [(place, key, -nonce, payload) for key, payload in payloads.items()]
    whole = len(rows) - len(rows) % ROWS_AT_ONCE
    # A list: no signal handler, which could close the connection, comes into the statement.
    together = [
        tuple(chain.from_iterable(rows[first : first + ROWS_AT_ONCE]))
        for first in range(0, whole, ROWS_AT_ONCE)
    ]
    connection.executemany(UPSERT_MANY, together)
    connection.executemany(UPSERT, rows[whole:])


def remove(connection: Connection, place: str, keys: Iterable[str | bytes]) -> None:
    """Remove entries, inside a transaction that adds the row of the commit itself."""
    rows = [(place, key) for key in keys]
    connection.executemany(MARK, rows)
    connection.executemany(DELETE, rows)
