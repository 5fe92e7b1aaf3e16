"""Run the examples of a page of the docs over private servers, at the ports that they are told."""

from __future__ import annotations

import doctest
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DOCS", "run_page"]

DOCS = Path(__file__).parents[1] / "docs"

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(name: str, ports: Mapping[int, int], least: int) -> tuple[int, str, dict[str, Any]]:
    """Run a page; return how many examples failed, what was said, and the names that it made.

    :param ports: those on the page, each of which has to be there, and those of our servers
    :param least: the page has more examples than so many

    """
    text = (DOCS / name).read_text()
    for there, here in ports.items():
        text, replaced = re.subn(rf"\b{there}\b", str(here), text)
        assert replaced
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert len(test.examples) > least
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    return result.failed, "".join(said), test.globs
