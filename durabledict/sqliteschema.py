"""The tables of an SQLite file of durable dicts, and the triggers that keep them true.

docs/internals.rst, rules 1.1 and 1.7. The triggers run in the transaction of whoever writes, with
this library or without it: so the sqlite3 shell leaves a commit behind as well.
"""

from __future__ import annotations

from .errors import DurableDictError
from .sqliteconnection import Connection

__all__ = ["REMOVED", "create", "exists", "require"]

#: A file says in durabledict_schema which version of all this it has.
SCHEMA_VERSION = 2

#: A reader that is further behind reloads.
COMMITS_KEPT = 1_000
#: One commit in so many takes the old ones away: each time would cost a write another page.
TRIM_EACH = 64

#: What our own removals put into the nonce of a row before they delete it.
REMOVED = -1

TABLES = ("durabledict_schema", "durabledict_entries", "durabledict_commits")

# A write of this library puts a nonce into each row, a negative one where it adds the row of the
# commit itself. Another program knows nothing of nonces, and leaves the one that is there.
STATEMENTS = (
    "CREATE TABLE durabledict_schema (version INTEGER NOT NULL)",
    """
    CREATE TABLE durabledict_entries (
        id INTEGER PRIMARY KEY,  -- rows are inserted in its order
        keyspace TEXT NOT NULL CHECK (typeof(keyspace) = 'text'),
        key TEXT NOT NULL CHECK (typeof(key) = 'text'),
        nonce INTEGER,  -- of the commit that wrote the value; NULL: another program inserted it
        value BLOB NOT NULL,
        UNIQUE (keyspace, key)
    )
    """,
    """
    CREATE TABLE durabledict_commits (
        keyspace TEXT NOT NULL,
        version INTEGER NOT NULL,
        nonce INTEGER NOT NULL,
        written,  -- the keys: text is one, a blob is a list in JSON; both NULL: they are not listed
        removed,
        PRIMARY KEY (keyspace, version)
    ) WITHOUT ROWID
    """,
    # Rows that we insert have a negative nonce. INSERT OR REPLACE deletes one and says nothing: so
    # the key is "removed" as well.
    """
    CREATE TRIGGER durabledict_inserted AFTER INSERT ON durabledict_entries
    WHEN NEW.nonce IS NULL OR NEW.nonce >= 0
    BEGIN
        INSERT INTO durabledict_commits (keyspace, version, nonce, written, removed)
        SELECT NEW.keyspace, coalesce(max(version), 0) + 1, random() & 0x3fffffffffffffff,
               NEW.key, NEW.key
        FROM durabledict_commits WHERE keyspace = NEW.keyspace;
    END
    """,
    """
    CREATE TRIGGER durabledict_updated AFTER UPDATE ON durabledict_entries
    WHEN NEW.nonce >= 0 OR NEW.nonce IS OLD.nonce
    BEGIN
        INSERT INTO durabledict_commits (keyspace, version, nonce, written) VALUES (
            NEW.keyspace,
            (SELECT coalesce(max(version), 0) + 1 FROM durabledict_commits
             WHERE keyspace = NEW.keyspace),
            CASE WHEN NEW.nonce IS OLD.nonce THEN random() & 0x3fffffffffffffff ELSE NEW.nonce END,
            NEW.key
        );
    END
    """,
    # As if it was removed and written under the other name: so it goes to the end of the order.
    """
    CREATE TRIGGER durabledict_renamed AFTER UPDATE OF keyspace, key ON durabledict_entries
    WHEN NEW.keyspace IS NOT OLD.keyspace OR NEW.key IS NOT OLD.key
    BEGIN
        INSERT INTO durabledict_commits (keyspace, version, nonce, removed)
        SELECT OLD.keyspace, coalesce(max(version), 0) + 1, random() & 0x3fffffffffffffff, OLD.key
        FROM durabledict_commits WHERE keyspace = OLD.keyspace;
        -- UPDATE OR REPLACE may have deleted a row of the new name.
        INSERT INTO durabledict_commits (keyspace, version, nonce, removed)
        SELECT NEW.keyspace, coalesce(max(version), 0) + 1, random() & 0x3fffffffffffffff, NEW.key
        FROM durabledict_commits WHERE keyspace = NEW.keyspace;
        UPDATE durabledict_entries SET id = (SELECT max(id) + 1 FROM durabledict_entries)
        WHERE id = NEW.id;
    END
    """,
    f"""
    CREATE TRIGGER durabledict_deleted AFTER DELETE ON durabledict_entries
    WHEN OLD.nonce IS NOT {REMOVED}
    BEGIN
        INSERT INTO durabledict_commits (keyspace, version, nonce, removed)
        SELECT OLD.keyspace, coalesce(max(version), 0) + 1, random() & 0x3fffffffffffffff, OLD.key
        FROM durabledict_commits WHERE keyspace = OLD.keyspace;
    END
    """,
    f"""
    CREATE TRIGGER durabledict_trimmed AFTER INSERT ON durabledict_commits
    WHEN NEW.version % {TRIM_EACH} = 0
    BEGIN
        DELETE FROM durabledict_commits
        WHERE keyspace = NEW.keyspace AND version <= NEW.version - {COMMITS_KEPT};
    END
    """,
)


def exists(connection: Connection) -> bool:
    """Whether the file has any of the tables."""
    return bool(_tables(connection))


def create(connection: Connection) -> None:
    """Make the tables, inside a transaction."""
    for statement in STATEMENTS:
        connection.rows(statement)
    connection.rows("INSERT INTO durabledict_schema (version) VALUES (?)", (SCHEMA_VERSION,))


def require(path: str, connection: Connection) -> None:
    """Refuse a file whose tables are not ours, or of another version.

    :raises ValueError: other programs' tables by these names
    :raises DurableDictError: another version, which the message names beside the one known

    """
    tables = _tables(connection)
    versions = (
        connection.rows("SELECT * FROM durabledict_schema")
        if "durabledict_schema" in tables
        else []
    )
    if len(versions) != 1 or len(versions[0]) != 1 or not isinstance(versions[0][0], int):
        raise ValueError(
            f"{path} holds tables of other programs by the names {', '.join(tables)}; "
            "nothing was changed"
        )
    if versions[0][0] != SCHEMA_VERSION:
        raise DurableDictError(
            f"{path} has tables of version {versions[0][0]}; this durabledict knows version "
            f"{SCHEMA_VERSION}"
        )


def _tables(connection: Connection) -> list[str]:
    names = ", ".join(f"'{name}'" for name in TABLES)
    rows = connection.rows(
        f"SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ({names})"
    )
    return [name for (name,) in rows]
