"""What a `SqliteDict` is compared with: a table written by hand, and other durable mappings.

Each is opened the way its documentation shows. What a write to it survives differs, and so does
who may write beside it; docs/benchmarks.rst says how.
"""

from __future__ import annotations

import dbm
import os
import pickle
import shelve
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

import diskcache
import sqlitedict

from .peer import Peer

__all__ = ["SELECT", "UPSERT", "bare_table", "connected", "peers"]

CREATE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB)"
SELECT = "SELECT value FROM entries WHERE key = ?"
UPSERT = """
    INSERT INTO entries (key, value) VALUES (?, ?)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""


@contextmanager
def peers(folder: str, held: Mapping[str, str], synchronous: str) -> Iterator[list[Peer]]:
    """Open all peers, each holding these entries.

    :param synchronous: of the table by hand; the others do not leave the choice, or hide it

    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(bare_table(os.path.join(folder, "bare.sqlite"), held, synchronous)),
            stack.enter_context(_index(folder, held)),
            stack.enter_context(_sqlitedict(folder, held)),
            stack.enter_context(_shelf(folder, held)),
        ]


def connected(path: str, synchronous: str) -> sqlite3.Connection:
    """Return a connection as `SqliteDict` has one, to a file with a table of entries."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute(f"PRAGMA synchronous = {synchronous}").fetchall()
    connection.execute(CREATE)
    return connection


@contextmanager
def bare_table(path: str, held: Mapping[str, str], synchronous: str) -> Iterator[Peer]:
    """Open a table of pickled values, read and written by hand."""
    with closing(connected(path, synchronous)) as connection:
        with connection:
            connection.executemany(
                UPSERT, ((key, pickle.dumps(value)) for key, value in held.items())
            )
        yield Peer(
            "SELECT and pickle.loads",
            "loads(c.execute(SELECT, (k,)).fetchone()[0])",
            "c.execute(UPSERT, (next(k), dumps(next(v)))); c.commit()",
            {
                "c": connection,
                "SELECT": SELECT,
                "UPSERT": UPSERT,
                "dumps": pickle.dumps,
                "loads": pickle.loads,
            },
        )


@contextmanager
def _index(folder: str, held: Mapping[str, str]) -> Iterator[Peer]:
    index: diskcache.Index[str, str] = diskcache.Index(os.path.join(folder, "diskcache"), held)
    with closing(index.cache):
        yield Peer("diskcache.Index", "d[k]", "d[next(k)] = next(v)", {"d": index})


@contextmanager
def _sqlitedict(folder: str, held: Mapping[str, str]) -> Iterator[Peer]:
    path = os.path.join(folder, "sqlitedict.sqlite")
    with closing(sqlitedict.SqliteDict(path, journal_mode="WAL")) as d:
        d.update(held)
        d.commit()
        yield Peer("sqlitedict", "d[k]", "d[next(k)] = next(v); d.commit()", {"d": d})


@contextmanager
def _shelf(folder: str, held: Mapping[str, str]) -> Iterator[Peer]:
    path = os.path.join(folder, "shelf")
    with shelve.open(path) as shelf:
        shelf.update(held)
        shelf.sync()
        yield Peer(
            # It depends on how Python was built which of them there is.
            f"shelve ({dbm.whichdb(path)})",
            "d[k]",
            "d[next(k)] = next(v); d.sync()",
            {"d": shelf},
        )
