"""What a page that reads 50 settings costs: from a manual `SettingsDict` with the signal, and from
django-constance with its database backend and its cache, on the same servers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

from .djangocounts import Counted, Counts, counted
from .djangoproject import SETTINGS, Project
from .measure import Statement, compare
from .tables import Row
from .writes import new_values

__all__ = ["Page", "django_pages", "page_counts", "settings_page"]

READS = f"a page with {len(SETTINGS)} settings"
PEER = "django-constance"


@dataclass(frozen=True)
class Page:
    """A page, and what it reads its settings from.

    :param path: the path of its URL
    :param handler: Django's, for WSGI
    :param prepare: connects the signal for this page, and takes it from the other
    :param change: changes one of the settings, as another process would

    """

    path: str
    handler: Callable[..., Any]
    prepare: Callable[[], object]
    change: Callable[[], object]

    def visit(self) -> bytes:
        """Return what Django answers; it is asked as by a server, so that it sends its signals."""
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": self.path,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(),
            "wsgi.url_scheme": "http",
        }
        response = self.handler(environ, lambda status, headers: None)
        try:
            return b"".join(response)
        finally:
            response.close()

    def visiting(self, changed: bool) -> Statement:
        """Return the statement that visits it, right after a change or not."""
        return Statement(
            "page.visit()",
            untimed="page.change(); page.prepare()" if changed else "page.prepare()",
            page=self,
        )


def settings_page() -> Page:
    """Return the page that reads a `SettingsDict`."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.signals import request_started

    from durabledict.ext.django import SettingsDict

    from .djangoviews import flags

    writer = SettingsDict[str, str](flags.keyspace)
    writer.replace_all(SETTINGS)
    names, values = cycle(SETTINGS), new_values()
    return Page(
        "/durabledict",
        WSGIHandler(),
        lambda: request_started.connect(flags.sync),
        lambda: writer.__setitem__(next(names), next(values)),
    )


def _constance_page() -> Page:
    """Return the page that reads django-constance.

    :raises ImportError: it is not installed

    """
    from constance import config
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.signals import request_started

    from .djangoviews import flags

    names, values = cycle(SETTINGS), new_values()
    page = Page(
        "/constance",
        WSGIHandler(),
        lambda: request_started.disconnect(flags.sync),
        lambda: setattr(config, next(names), next(values)),
    )
    page.visit()  # which stores the defaults
    return page


def django_pages(project: Project) -> Iterator[Row]:
    """Measure both pages in turns, when nothing changed and right after a change."""
    ours, theirs = settings_page(), _constance_page()

    def rows() -> Iterator[Row]:
        for what, changed in ((READS, False), ("the same, right after a change", True)):
            measured = compare(
                theirs.visiting(changed), ours.visiting(changed), rounds=15, pick=median
            )
            yield Row(what, PEER, measured, 1.0)

    yield from project.beside_both(rows)


def page_counts(project: Project) -> Iterator[Counted]:
    """Count what both pages take; ours has to be ahead, of a change with the page after it too."""
    ours, theirs = settings_page(), _constance_page()

    def both(page: Page) -> None:
        page.change()
        page.visit()

    steps: tuple[tuple[str, Callable[[Page], object], Callable[[Page], object]], ...] = (
        (READS, Page.visit, Page.visit),
        ("right after a change", lambda page: page.change(), Page.visit),
        ("the change, and that page", Page.visit, both),
    )
    for what, before, action in steps:
        took = [_took(project, page, before, action) for page in (ours, theirs)]
        yield Counted(f"{what}, SettingsDict", took[0], took[1].sql, took[1].cache)
        yield Counted(f"{what}, {PEER}", took[1])


def _took(
    project: Project,
    page: Page,
    before: Callable[[Page], object],
    action: Callable[[Page], object],
) -> Counts:
    page.prepare()
    before(page)
    return counted(project.memcached, lambda: action(page))
