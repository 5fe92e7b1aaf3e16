"""What asking the store costs: strict reads, writes, loads and syncs. For information."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Iterator
from itertools import count

import diskcache
import sqlitedict

from durabledict import MemoryDict, SqliteDict

from .measure import Row, Statement, compare
from .reads import entries

__all__ = ["stores"]

UPSERT = """
    INSERT INTO entries (key, value) VALUES (?, ?)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""


def stores(folder: str) -> Iterator[Row]:
    """Measure what has no limit."""
    yield from _strict_reads(folder)
    yield from _writes(folder)
    yield from _loads(folder)
    yield from _syncs(folder)


def _strict_reads(folder: str) -> Iterator[Row]:
    held = entries(1_000)
    index: diskcache.Index[str, str] = diskcache.Index(os.path.join(folder, "diskcache"), held)
    other = sqlitedict.SqliteDict(os.path.join(folder, "sqlitedict.sqlite"), journal_mode="WAL")
    other.update(held)
    other.commit()
    in_file: SqliteDict[str, str] = SqliteDict(os.path.join(folder, "strict.sqlite"))
    in_memory: MemoryDict[str, str] = MemoryDict()
    try:
        for name, d in (("SqliteDict", in_file), ("MemoryDict", in_memory)):
            d.update(held)
            for against, baseline in (("diskcache.Index", index), ("sqlitedict", other)):
                measured = compare(
                    Statement("d[k]", d=baseline, k="setting.500"),
                    Statement("d[k]", d=d, k="setting.500"),
                )
                yield Row(f"d[k], autosync=True, {name}", against, measured)
    finally:
        in_file.close()
        other.close()
        index.cache.close()


def _connected(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL").fetchall()
    connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB)")
    return connection


def _writes(folder: str) -> Iterator[Row]:
    bare = _connected(os.path.join(folder, "bare.sqlite"))
    # A different value each time: SQLite writes nothing where a row stays as it is.
    values = map(str, count())
    with SqliteDict[str, str](os.path.join(folder, "writes.sqlite"), autosync=False) as d:
        d.update(entries(1_000))
        bare.executemany(
            UPSERT, [(key, pickle.dumps(value)) for key, value in entries(1_000).items()]
        )
        measured = compare(
            Statement(
                "bare.execute(UPSERT, (k, dumps(next(v))))",
                bare=bare,
                UPSERT=UPSERT,
                dumps=pickle.dumps,
                k="setting.500",
                v=values,
            ),
            Statement("d[k] = next(v)", d=d, k="setting.500", v=values),
        )
        yield Row("d[k] = v, SqliteDict", "sqlite3 upsert and commit", measured)
    bare.close()


def _loads(folder: str) -> Iterator[Row]:
    path, bare_path = (os.path.join(folder, name) for name in ("load.sqlite", "bare-load.sqlite"))
    with SqliteDict[str, str](path, autosync=False) as d:
        d.update(entries(100_000))
    bare = _connected(bare_path)
    bare.execute("BEGIN")
    bare.executemany(
        UPSERT, [(key, pickle.dumps(value)) for key, value in entries(100_000).items()]
    )
    bare.execute("COMMIT")
    measured = compare(
        Statement(
            "{key: loads(value) for key, value in bare.execute('SELECT key, value FROM entries')}",
            bare=bare,
            loads=pickle.loads,
        ),
        Statement("d = SqliteDict(path, autosync=False)", SqliteDict=SqliteDict, path=path),
        rounds=7,
    )
    bare.close()
    yield Row("open and load 100,000, SqliteDict", "SELECT and pickle.loads", measured)


def _syncs(folder: str) -> Iterator[Row]:
    syncs, opened = [], []
    for held in (1_000, 100_000):
        path = os.path.join(folder, f"sync-{held}.sqlite")
        writer: SqliteDict[str, str] = SqliteDict(path, autosync=False)
        writer.update(entries(held))
        reader: SqliteDict[str, str] = SqliteDict(path, autosync=False)
        opened += [writer, reader]
        syncs.append(
            Statement("d.sync()", untimed="w[k] = v", d=reader, w=writer, k="setting.500", v="new")
        )
    few, many = syncs
    yield Row("sync() after 1 of 100,000 changed", "1 of 1,000", compare(few, many))
    unchanged = Statement("d.sync()", d=opened[-1])
    yield Row("sync() when nothing changed", "1 of 1,000", compare(few, unchanged))
    for d in opened:
        d.close()
