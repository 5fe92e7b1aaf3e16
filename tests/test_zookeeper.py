"""ZookeeperDict: the conformance suite, and what is special to it while nothing goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient

from durabledict import DurableDict, ZookeeperDict
from durabledict.testing import DurableDictSuite

from .fewsequences import FewSequences
from .servers import PATIENCE
from .zookeeperservers import ZookeeperServer


@pytest.fixture(scope="module")
def suite_client(zookeeper_server: ZookeeperServer) -> Iterator[KazooClient]:
    """One client for all tests: to start one takes longer than most of them."""
    # It is not to lose its connection where the machine pauses for some seconds.
    client = zookeeper_server.client(timeout=PATIENCE)
    client.start(PATIENCE)
    yield client
    client.stop()
    client.close()


class ZookeeperSuite(FewSequences, DurableDictSuite):
    @pytest.fixture(autouse=True)
    def client(self, suite_client: KazooClient) -> None:
        self._client = suite_client

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        patient = {"timeout": PATIENCE, **options}
        return ZookeeperDict("/suite" + str(place), self._client, **patient)


class TestZookeeperDict(ZookeeperSuite):
    capabilities = frozenset(
        {"told", "own_stamps", "compare_and_set", "delta", "push", "shared", "aliasing"}
    )


class TestStrictZookeeperDict(ZookeeperSuite):
    strictest = "strict"
    capabilities = frozenset(
        {"strict", "own_stamps", "compare_and_set", "delta", "push", "shared", "aliasing"}
    )

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return super().factory(place, **{"quorum": True, **options})


# CPython's test of popitem takes 16,000 entries one by one, each of them four requests. So it runs
# with one of the ways of reading, and in the others it is one of the long tests.
for _suite in (TestZookeeperDict, TestStrictZookeeperDict):
    for _name in (name for name in dir(_suite) if name.startswith("test_mapping_popitem_")):
        pytest.mark.long(getattr(_suite, _name))
