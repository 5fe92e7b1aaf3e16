"""How single operations spread, each timed by itself: the fastest round hides the slow ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

from durabledict import SqliteDict

from .measure import Statement
from .reads import entries
from .syncs import pair, sync_after_one_change
from .tables import Spread
from .wakeup import Wakeups
from .writes import in_random_order, new_values

__all__ = ["spreads"]

READS = 200_000
WRITES = 10_000
SYNCS = 5_000


def spreads(folder: str, woken: Wakeups) -> Iterator[Spread]:
    """Measure all; reads are of 1,000 entries.

    :param woken: what was measured of wake-ups

    """
    yield Spread("the clock itself", Statement("pass").one_by_one(READS))
    for autosync in (False, 1.0, True):
        path = os.path.join(folder, f"spread-{autosync}.sqlite")
        with SqliteDict[str, str](path, autosync=autosync) as d:
            d.update(entries(1_000))
            reading = Statement("d[k]", d=d, k="setting.500")
            yield Spread(f"d[k], autosync={autosync}", reading.one_by_one(READS))
    for synchronous in ("FULL", "NORMAL"):
        path = os.path.join(folder, f"spread-{synchronous}.sqlite")
        with SqliteDict[str, str](path, autosync=False, synchronous=synchronous) as d:
            d.update(entries(1_000))
            writing = Statement("d[next(k)] = next(v)", d=d, k=in_random_order(d), v=new_values())
            yield Spread(f"d[k] = v, {synchronous}", writing.one_by_one(WRITES))
    with pair(folder, 1_000) as (writer, reader):
        syncing = sync_after_one_change(writer, reader)
        yield Spread("sync(), 1 of 1,000 changed", syncing.one_by_one(SYNCS))
    for kind, name in (("loop", "bare loop"), ("watch", "watch()")):
        yield Spread(f"wake-up, {name}", woken.busy[kind])
        yield Spread(f"the same, {name}, after idling", woken.idle[kind])
