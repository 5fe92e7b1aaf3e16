"""What a strict read costs: `d[k]` with autosync=True, which asks the file whether it changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from durabledict import MemoryDict, SqliteDict

from .measure import Statement, compare
from .peers import peers
from .reads import entries
from .tables import Row

__all__ = ["stores"]

# What is asked of a strict read, beside a read of this peer.
LIMITS = {"diskcache.Index": 0.1}


def stores(folder: str) -> Iterator[Row]:
    """Measure strict reads beside reads of what else keeps a mapping in a file."""
    held = entries(1_000)
    path = os.path.join(folder, "strict.sqlite")
    memory: MemoryDict[str, str] = MemoryDict()
    memory.update(held)
    with SqliteDict[str, str](path) as d, peers(folder, held, "FULL") as others:
        d.update(held)
        with _another_process(path):
            for peer in others:
                measured = compare(
                    peer.reading("setting.500"), Statement("d[k]", d=d, k="setting.500"), rounds=30
                )
                yield Row(
                    "d[k], autosync=True, SqliteDict", peer.name, measured, LIMITS.get(peer.name)
                )
        in_memory = Statement("d[k]", d=memory, k="setting.500")
        measured = compare(in_memory, Statement("d[k]", d=d, k="setting.500"))
        yield Row("d[k], autosync=True, SqliteDict", "MemoryDict", measured)


@contextmanager
def _another_process(path: str) -> Iterator[None]:
    """Keep the file open in another process, which so may write to it at any time."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stores", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        if child.stdout.readline() != b"open\n":
            raise RuntimeError(f"the other process did not open {path}")
        yield
        # To leave the block closes the child's standard input, and that ends it.


if __name__ == "__main__":
    with SqliteDict[str, str](sys.argv[1]) as opened:
        print("open", flush=True)
        sys.stdin.read()
