"""Which keys a commit touched, as one field of its row.

docs/internals.rst, rule 1.1. One row a commit and not one a key: a write then touches two pages of
the file, the entry's and this one's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection

__all__ = ["packed", "trim", "unpacked"]

Field = str | bytes | None

#: A commit that touched more keys does not say which: its readers reload.
MOST_KEYS = 20_000
#: So many bytes of keys the commits of a keyspace hold together, those with a short list aside.
LOG_BYTES = 4_000_000
#: After a commit with a list of more bytes the lists are added up, and the oldest taken away.
LONG_LIST = 4_096

TRIM_BY_SIZE = f"""
    DELETE FROM durabledict_commits WHERE keyspace = ? AND version < ? AND version <= (
        SELECT max(version) FROM (
            SELECT version, sum(coalesce(length(written), 0) + coalesce(length(removed), 0))
                OVER (ORDER BY version DESC) AS bytes
            FROM durabledict_commits WHERE keyspace = ?
        ) WHERE bytes > {LOG_BYTES}
    )
"""


def trim(connection: sqlite3.Connection, place: str, version: int, *fields: Field) -> None:
    """Take away the oldest lists after a commit with a long one, inside its transaction.

    :param place: the keyspace, as the table has it
    :param version: the commit's, which is left
    :param fields: the commit's

    """
    if sum(len(field or "") for field in fields) > LONG_LIST:
        connection.execute(TRIM_BY_SIZE, (place, version, place))


def packed(keys: Collection[str | bytes]) -> Field:
    """Return the field for these keys, as the table of entries has them.

    One key is itself. Several are a list in JSON, as bytes. A key that is not UTF-8, which another
    program wrote, comes as bytes.

    >>> packed(["theme"]), packed(["a", "b"]), packed([])
    ('theme', b'["a", "b"]', None)

    :raises OverflowError: so many keys that a reload is cheaper than their list

    """
    if not keys:
        return None
    if len(keys) == 1:
        (key,) = keys
        if isinstance(key, str):
            return key
    if len(keys) > MOST_KEYS:
        raise OverflowError(f"{len(keys)} keys, and at most {MOST_KEYS} are listed")
    texts = [
        key if isinstance(key, str) else key.decode("utf-8", "surrogateescape") for key in keys
    ]
    field = json.dumps(texts).encode("ascii")
    if len(field) > LOG_BYTES:
        raise OverflowError(f"a list of {len(field)} bytes, and at most {LOG_BYTES} are kept")
    return field


def unpacked(field: object) -> list[str | bytes] | None:
    """Return the keys of such a field; None: another program put something else there.

    >>> unpacked("theme"), unpacked(b'["a", "b"]'), unpacked(None)
    (['theme'], ['a', 'b'], [])

    """
    if field is None:
        return []
    if isinstance(field, str):
        return [field]
    if not isinstance(field, bytes):
        return None
    if not field.isascii():
        return [field]  # a trigger's: one key, which is not UTF-8
    try:
        listed = json.loads(field)
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        return None
    try:
        return [_stored(text) for text in listed]
    except UnicodeEncodeError:
        return None  # a surrogate that stands for no byte


def _stored(text: str) -> str | bytes:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # No key of ours has a surrogate: so it is one that came as bytes.
        return text.encode("utf-8", "surrogateescape")
    return text
