"""Every example of docs/dogpile.rst runs, those with servers too."""

from __future__ import annotations

import doctest
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .memcachedserver import MemcachedServer
from .redisservers import RedisServer

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "examples"))

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_the_examples_do_what_the_page_says(
    scratch: Path, memcached_server: MemcachedServer, redis_server: RedisServer
) -> None:
    memcached_server.flush()
    redis_server.flush()
    text = (ROOT / "docs" / "dogpile.rst").read_text()
    for there, here in ((11211, memcached_server.port), (6379, redis_server.port)):
        text, replaced = re.subn(rf"\b{there}\b", str(here), text)
        assert replaced
    test = doctest.DocTestParser().get_doctest(text, {}, "dogpile.rst", "dogpile.rst", 0)
    assert len(test.examples) > 40
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    names: dict[str, Any] = test.globs
    names["watched"].close()
    names["chain"].release()
    assert result.failed == 0, "".join(said)
