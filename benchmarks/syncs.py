"""What a sync costs: as much as what changed, whatever is held."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

from durabledict import DurableDict, SqliteDict

from .measure import Statement, compare
from .reads import entries
from .tables import Row
from .writes import in_random_order, new_values

__all__ = ["pair", "sync_after_one_change", "syncs"]

# An update holds its entries several times; a million at once would need a large machine.
BATCH = 100_000


def syncs(folder: str) -> Iterator[Row]:
    """Measure syncs of few and of many entries; the limit says that it makes no difference."""
    with pair(folder, 1_000) as few:
        for number in (100_000, 1_000_000):
            with pair(folder, number) as many:
                measured = compare(sync_after_one_change(*few), sync_after_one_change(*many))
                yield Row(f"sync(), 1 of {number:,} changed", "1 of 1,000", measured, 2.0)
        nothing = Statement("d.sync()", d=few[1])
        measured = compare(sync_after_one_change(*few), nothing)
        yield Row("sync() when nothing changed", "1 of 1,000", measured)


@contextmanager
def pair(folder: str, number: int) -> Iterator[tuple[SqliteDict[str, str], SqliteDict[str, str]]]:
    """Open a dict of so many entries twice: one that writes, one that syncs."""
    path = os.path.join(folder, f"sync-{number}.sqlite")
    with ExitStack() as stack:
        # What is measured is the other dict; its writer need not wait for the disk.
        writer: SqliteDict[str, str] = SqliteDict(path, autosync=False, synchronous="NORMAL")
        stack.enter_context(writer)
        if len(writer) < number:
            items = iter(entries(number).items())
            while batch := dict(islice(items, BATCH)):
                writer.update(batch)
        reader: SqliteDict[str, str] = SqliteDict(path, autosync=False)
        yield writer, stack.enter_context(reader)


def sync_after_one_change(
    writer: DurableDict[str, str], reader: DurableDict[str, str]
) -> Statement:
    """Return the statement that syncs, after one entry was written untimed."""
    return Statement(
        "d.sync()",
        untimed="w[next(k)] = next(v)",
        d=reader,
        w=writer,
        k=in_random_order(writer),
        v=new_values(),
    )
