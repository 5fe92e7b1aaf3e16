"""The memory that an entry takes in the local copy, beside the same entry of a dict.

Each figure is taken in a process of its own, which `python -m benchmarks.memory` is: what a
process did before decides what its allocator still holds.
"""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from collections.abc import Iterator

from durabledict import SqliteDict

from .children import asked
from .measure import Comparison
from .reads import entries
from .tables import Row

__all__ = ["memory"]

COUNT = 100_000


def memory(folder: str) -> Iterator[Row]:
    """Measure the memory of loaded entries, and the most that was in use while loading."""
    path = os.path.join(folder, "memory.sqlite")
    with SqliteDict[str, str](path, autosync=False) as d:
        d.update(entries(COUNT))
    (plain, plain_peak), (durable, durable_peak), (again, again_peak) = (
        asked("benchmarks.memory", kind, path) for kind in ("dict", "SqliteDict", "dict")
    )
    yield Row(
        f"memory an entry, of {COUNT:,}",
        "dict",
        Comparison(plain / COUNT, durable / COUNT, again / COUNT),
        1.15,
        "bytes",
    )
    yield Row(
        "the same, highest while loading",
        "dict",
        Comparison(plain_peak / COUNT, durable_peak / COUNT, again_peak / COUNT),
        unit="bytes",
    )


def _measure(kind: str, path: str) -> tuple[int, int]:
    if kind == "SqliteDict":
        # What the first use of the module and of a connection leaves behind is not an entry's.
        SqliteDict[str, str](path, "another keyspace").close()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loaded = entries(COUNT) if kind == "dict" else SqliteDict[str, str](path, autosync=False)
    after, peak = tracemalloc.get_traced_memory()
    assert len(loaded) == COUNT
    return after - before, peak - before


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
