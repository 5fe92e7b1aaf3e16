"""What reads and syncs of a `SettingsDict` cost while nothing changes: one get of the cache."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from durabledict import DurableDict

from .djangocounts import Counted, counted
from .djangoproject import Project
from .measure import Statement, compare
from .reads import entries
from .tables import Row

__all__ = ["django_reads", "read_counts"]

KEY = "setting.500"


def django_reads(project: Project) -> Iterator[Row]:
    """Measure strict reads, and syncs that find nothing, beside a `get` on the same client."""
    from django.core.cache import cache

    from durabledict.ext.django import SettingsDict

    client = project.memcached.client()
    try:
        d = SettingsDict[str, str]("reads", cache=client)
        d.update(entries(1_000))
        over_django = SettingsDict[str, str]("reads over Django's cache")
        over_django.update(entries(1_000))
        getting = Statement("c.get(key)", c=client, key=d.cache_key)
        getting_by_django = Statement("c.get(key)", c=cache, key=over_django.cache_key)

        def rows() -> Iterator[Row]:
            for what, source, limit in (
                ("d[k], autosync=True", "d[k]", 1.3),
                ("sync(), nothing changed", "d.sync()", None),
            ):
                measured = compare(getting, Statement(source, d=d, k=KEY), pick=median)
                yield Row(what, "pymemcache Client.get", measured, limit)
            reading = Statement("d[k]", d=over_django, k=KEY)
            measured = compare(getting_by_django, reading, rounds=10, pick=median)
            yield Row("d[k], autosync=True", "django cache.get", measured)

        yield from project.beside_memcached(rows)
    finally:
        client.close()


def read_counts(project: Project) -> Iterator[Counted]:
    """Count what they take."""
    from durabledict.ext.django import SettingsDict

    d = SettingsDict[str, str]("counted reads")
    d.update(entries(1_000))
    d.sync()
    yield _of_nothing_new(project, "d[k], autosync=True", d)
    d.autosync = False
    took = counted(project.memcached, d.sync)
    yield Counted("sync(), nothing changed", took, sql=0, cache=1)


def _of_nothing_new(project: Project, what: str, d: DurableDict[str, str]) -> Counted:
    return Counted(what, counted(project.memcached, lambda: d[KEY]), sql=0, cache=1)
