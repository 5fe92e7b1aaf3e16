"""What writes cost, beside the same rows written by hand."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import count, cycle

from durabledict import SqliteDict

from .measure import Comparison, Statement, compare
from .peer import Peer
from .peers import UPSERT, bare_table, connected, peers
from .reads import entries
from .tables import Row

__all__ = ["in_random_order", "new_values", "writes"]

LIMITS = {"FULL": 1.5, "NORMAL": 2.2}

BY_HAND = """
payloads = {key: dumps(value) for key, value in batch.items()}
c.executemany(UPSERT, payloads.items())
c.commit()
written = {key: loads(payload) for key, payload in payloads.items()}
"""


def writes(folder: str) -> Iterator[Row]:
    """Measure single writes, and one of many entries."""
    for number in (100, 100_000):
        for synchronous, limit in LIMITS.items():
            measured = _single(folder, number, synchronous)
            what = f"d[k] = v, {synchronous}, {number:,} keys"
            yield Row(what, "upsert and commit", measured, limit)
    yield from _beside_peers(folder)
    yield from _updates(folder)


def in_random_order(held: Mapping[str, str]) -> Iterator[str]:
    """Return the keys, again and again: another page of the file each time, if there are many."""
    keys = list(held)
    random.Random(1).shuffle(keys)
    return cycle(keys)


def new_values() -> Iterator[str]:
    """Return a different value each time: SQLite writes nothing where a row stays as it is."""
    return map("value {}".format, count())


def _opened(folder: str, number: int, synchronous: str) -> SqliteDict[str, str]:
    path = os.path.join(folder, f"writes-{number}-{synchronous}.sqlite")
    d: SqliteDict[str, str] = SqliteDict(path, autosync=False, synchronous=synchronous)
    d.update(entries(number))
    return d


def _beside(d: SqliteDict[str, str], peer: Peer, held: Mapping[str, str]) -> Comparison:
    return compare(
        peer.writing(in_random_order(held), new_values()),
        Statement("d[next(k)] = next(v)", d=d, k=in_random_order(held), v=new_values()),
        rounds=10,
        # Long enough to hold some checkpoints, which SQLite makes every thousand pages or so.
        round_seconds=0.1,
    )


def _single(folder: str, number: int, synchronous: str) -> Comparison:
    held = entries(number)
    path = os.path.join(folder, f"bare-{number}-{synchronous}.sqlite")
    with _opened(folder, number, synchronous) as d, bare_table(path, held, synchronous) as bare:
        return _beside(d, bare, held)


def _beside_peers(folder: str) -> Iterator[Row]:
    # A folder of its own: the reads left theirs.
    own = os.path.join(folder, "written")
    os.mkdir(own)
    held = entries(100)
    with _opened(own, 100, "NORMAL") as d, peers(own, held, "NORMAL") as (_, *others):
        for peer in others:
            yield Row("d[k] = v, NORMAL, 100 keys", peer.name, _beside(d, peer, held))


def _updates(folder: str) -> Iterator[Row]:
    number = 10_000
    batches = (dict.fromkeys(entries(number), f"value {turn}") for turn in count())
    path = os.path.join(folder, "bare-update.sqlite")
    with _opened(folder, number, "FULL") as d, closing(connected(path, "FULL")) as connection:
        measured = compare(
            Statement(
                BY_HAND.strip(),
                untimed="batch = next(batches)",
                batches=batches,
                c=connection,
                UPSERT=UPSERT,
                dumps=pickle.dumps,
                loads=pickle.loads,
            ),
            Statement("d.update(batch)", untimed="batch = next(batches)", batches=batches, d=d),
        )
    yield Row(f"update() with {number:,}", "executemany in one commit", measured, 1.5)
