"""Every example of docs/dogpile.rst runs, those with servers too."""

from __future__ import annotations

import sys
from pathlib import Path

from .docpages import run_page
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "examples"))


def test_the_examples_do_what_the_page_says(
    scratch: Path, memcached_server: MemcachedServer, redis_server: RedisServer
) -> None:
    memcached_server.flush()
    redis_server.flush()
    failed, said, names = run_page(
        "dogpile.rst", {11211: memcached_server.port, 6379: redis_server.port}, least=40
    )
    names["watched"].close()
    names["chain"].release()
    assert failed == 0, said
