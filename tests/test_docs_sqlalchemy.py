"""Every example of docs/sqlalchemy.rst runs, those with memcached too."""

from __future__ import annotations

import sys
from pathlib import Path

from .docpages import run_page
from .memcachedserver import MemcachedServer

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "examples"))


def test_the_examples_do_what_the_page_says(
    scratch: Path, memcached_server: MemcachedServer
) -> None:
    memcached_server.flush()
    failed, said, names = run_page("sqlalchemy.rst", {11211: memcached_server.port}, least=40)
    names["store"].release()
    for engine in names["engines"].values():
        engine.dispose()
    assert failed == 0, said
