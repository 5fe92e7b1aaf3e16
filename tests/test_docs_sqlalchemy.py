"""Every example of docs/sqlalchemy.rst runs, those with memcached too."""

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
    scratch: Path, memcached_server: MemcachedServer
) -> None:
    memcached_server.flush()
    text = (ROOT / "docs" / "sqlalchemy.rst").read_text()
    text, replaced = re.subn(r"\b11211\b", str(memcached_server.port), text)
    assert replaced
    test = doctest.DocTestParser().get_doctest(text, {}, "sqlalchemy.rst", "sqlalchemy.rst", 0)
    assert len(test.examples) > 40
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    names: dict[str, Any] = test.globs
    names["store"].release()
    for engine in names["engines"].values():
        engine.dispose()
    assert result.failed == 0, "".join(said)
