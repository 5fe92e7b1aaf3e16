"""What a read of a `ZookeeperDict` costs: of the local copy, and with ZooKeeper's `sync` before."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from durabledict import ZookeeperDict
from tests.zookeeperservers import ZookeeperServer, started

from .measure import Statement, compare
from .reads import Plain, entries
from .tables import Row
from .zookeeperserver import each_placement, fill, path_of

__all__ = ["zookeeper_reads"]

KEY = "setting.500"
FOLDER = "/reads"
PIPELINED = "asked = c.sync_async(path); got = c.get_async(path); asked.get(); got.get()"


def zookeeper_reads(server: ZookeeperServer) -> Iterator[Row]:
    """Measure reads beside those of a dict, and strict ones beside the same requests by hand."""
    held = entries(1_000)
    with started(server.client()) as client:
        fill(client, FOLDER, held)
        with ZookeeperDict[str, str](FOLDER, client) as d:
            yield _local(d, held)
    yield from each_placement(server, lambda: _strict(server))


def _local(d: ZookeeperDict[str, str], held: dict[str, str]) -> Row:
    plain = Plain(held)
    assert d == held
    measured = compare(
        Statement("d[k]", unroll=10, d=plain, k=KEY),
        Statement("d[k]", unroll=10, d=d, k=KEY),
        rounds=40,
    )
    # Else it would be the class that looks whether something was told.
    wrong = "" if type(d) is ZookeeperDict else "something was told"
    return Row("d[k], autosync=True", "empty subclass of dict", measured, 4.0, wrong=wrong)


def _strict(server: ZookeeperServer) -> Iterator[Row]:
    with started(server.client()) as client, started(server.client()) as own:
        names: dict[str, Any] = {"c": client, "path": path_of(FOLDER, KEY)}
        with ZookeeperDict[str, str](FOLDER, own, autosync="strict") as d:
            for what, by_hand in (
                ("sync, then get", "c.sync(path); c.get(path)"),
                ("sync and get, pipelined", PIPELINED),
            ):
                measured = compare(
                    Statement(by_hand, **names), Statement("d[k]", d=d, k=KEY), pick=median
                )
                yield Row('d[k], autosync="strict"', what, measured)
            measured = compare(
                Statement("c.sync(path)", **names), Statement("d.sync()", d=d), pick=median
            )
            yield Row("sync(), nothing changed", "KazooClient.sync", measured)
