"""What the first load of all entries costs, beside the rows read by hand."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import closing

from durabledict import SqliteDict

from .measure import Statement, compare
from .peers import UPSERT, connected
from .reads import entries
from .tables import Row

__all__ = ["loads"]


def loads(folder: str) -> Iterator[Row]:
    """Measure the opening of a file with many entries."""
    held = entries(100_000)
    path, bare_path = (os.path.join(folder, name) for name in ("load.sqlite", "bare-load.sqlite"))
    with SqliteDict[str, str](path, autosync=False) as d:
        d.update(held)
    with closing(connected(bare_path, "FULL")) as bare:
        with bare:
            bare.executemany(UPSERT, ((key, pickle.dumps(value)) for key, value in held.items()))
        measured = compare(
            Statement(
                "d = {k: loads(v) for k, v in bare.execute('SELECT key, value FROM entries')}",
                bare=bare,
                loads=pickle.loads,
            ),
            Statement("d = SqliteDict(path, autosync=False)", SqliteDict=SqliteDict, path=path),
        )
    yield Row("open and load 100,000, SqliteDict", "SELECT and pickle.loads", measured, 1.3)
