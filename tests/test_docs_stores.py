"""Every example of docs/stores.rst runs, those of servers too; its own Store passes the suite."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from durabledict.testing import StoreSuite

from .docpages import run_page
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from folderstore import FolderStore

ROOT = Path(__file__).parents[1]


def test_the_examples_do_what_the_page_says(
    scratch: Path, memcached_server: MemcachedServer, redis_server: RedisServer
) -> None:
    memcached_server.flush()
    redis_server.flush()
    failed, said, names = run_page(
        "stores.rst", {11211: memcached_server.port, 6379: redis_server.port}, least=50
    )
    assert failed == 0, said
    names["persistent_store"]._dict.close()
    names["chained_store"].release()
    names["shared"]._client.close()


class TestFolderStore(StoreSuite):
    capabilities = frozenset(
        {"clock", "copies", "encodes", "groups", "lifetimes", "polymorphic", "shared", "threads"}
    )

    def factory(self, place: Path, **options: Any) -> FolderStore:
        return FolderStore(place / "objects", **options)
