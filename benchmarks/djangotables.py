"""The tables of `ModelDict` and `SettingsDict`, over servers that are started for them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import django
import psycopg

from .djangocounts import Counted, print_counts
from .djangopage import django_pages, page_counts
from .djangoproject import Project, project
from .djangoreads import django_reads, read_counts
from .djangosyncs import django_syncs, sync_counts
from .djangowrites import django_writes, write_counts
from .printing import print_rows
from .tables import Row

__all__ = ["django_tables"]


def django_tables() -> list[str]:
    """Print the tables; return which limits were missed."""
    with project() as servers:
        print(
            f"\nDjango {django.get_version()}, PostgreSQL {_version(servers)} by psycopg "
            f"{psycopg.__version__}, memcached {servers.memcached.stats()['version']} by "
            f"pymemcache {version('pymemcache')}.\nRatios, in turns as well; the median round "
            "counts. Pinned: client and servers are kept on one core;\ntwo cores: on one each.\n"
        )
        missed = print_rows(_rows(servers))
        print("\nSQL statements, and keys that memcached was asked for or to change.\n")
        missed += print_counts(_counts(servers))
    return missed


def _version(servers: Project) -> str:
    return str(servers.postgres.sql("SHOW server_version")[0][0]).split()[0]


def _rows(servers: Project) -> Iterator[Row]:
    for rows in (django_reads, django_syncs, django_writes, django_pages):
        yield from rows(servers)


def _counts(servers: Project) -> Iterator[Counted]:
    for counts in (read_counts, sync_counts, write_counts, page_counts):
        yield from counts(servers)
