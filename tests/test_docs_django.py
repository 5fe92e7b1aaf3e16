"""Every example of docs/backends/django.rst runs, over PostgreSQL and memcached."""

from __future__ import annotations

import doctest
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "backends" / "django.rst"

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str) -> list[str]:
    """Return the Python files, or parts of files, that the page shows."""
    found = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def limit(django_project: None) -> Iterator[Any]:
    """The model of the page, with its table."""
    from django.db import connection, models

    (source,) = [block for block in blocks(PAGE.read_text()) if "models.Model" in block]
    space: dict[str, Any] = {"models": models, "__name__": "tests.djangoapp.models"}
    exec(source, space)
    with connection.schema_editor() as editor:
        editor.create_model(space["Limit"])
    yield space["Limit"]
    with connection.schema_editor() as editor:
        editor.delete_model(space["Limit"])


def test_the_examples_do_what_the_page_says(limit: Any) -> None:
    from django.core.signals import request_started
    from django.test import override_settings

    from durabledict.ext.django.models import Setting

    (settings,) = [block for block in blocks(PAGE.read_text()) if "DURABLEDICTS" in block]
    space: dict[str, Any] = {}
    exec(settings.replace("shop.Limit", "djangoapp.Limit"), space)
    names: dict[str, Any] = {"Limit": limit}
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), names, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 20
    said: list[str] = []
    with override_settings(DURABLEDICTS=space["DURABLEDICTS"]):
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        try:
            runner.run(test, out=said.append, clear_globs=False)
        finally:
            request_started.disconnect(test.globs["flags"].sync)
            Setting.objects.all().delete()
    assert not runner.failures, "".join(said)
