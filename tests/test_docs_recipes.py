"""Every recipe of docs/recipes runs, over real servers."""

from __future__ import annotations

import doctest
import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .memcachedserver import MemcachedServer
from .redisservers import RedisServer

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "recipes").glob("*.rst"))

sys.path.insert(0, str(ROOT / "examples"))

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_each_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "recipes.rst").read_text()
    named = re.findall(r"^   recipes/(\w+)$", index, re.MULTILINE)
    assert sorted(named) == [page.stem for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_recipe_does_what_the_page_says(
    page: Path,
    request: pytest.FixtureRequest,
    scratch: Path,
    memcached_server: MemcachedServer,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = page.read_text()
    if "django" in text:
        request.getfixturevalue("django_project")
    memcached_server.flush()
    redis_server.flush()
    for there, here in ((11211, memcached_server.port), (6379, redis_server.port)):
        text = re.sub(rf"\b{there}\b", str(here), text)
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, page.name, 0)
    # A module, as whoever copies the recipe has one: objects of its classes are pickled.
    module = ModuleType(f"recipe_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    test.globs = vars(module)
    assert len(test.examples) > 10
    said: list[str] = []
    try:
        result = doctest.DocTestRunner(optionflags=FLAGS).run(
            test, out=said.append, clear_globs=False
        )
    finally:
        _close(test.globs)
    assert result.failed == 0, "".join(said)
    # None of the chains that a recipe shows is one that the library warns of.
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def _close(names: dict[str, Any]) -> None:
    for value in list(names.values()):
        for end in ("shutdown", "dispose", "release"):
            method = getattr(value, end, None)
            if callable(method) and not isinstance(value, type):
                method()
    if "Setting" in names:
        names["Setting"].objects.filter(keyspace="colours").delete()
