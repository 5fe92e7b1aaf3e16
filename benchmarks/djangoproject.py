"""Django for the benchmarks: servers of their own, settings, and tables.

Django can be configured once in a process: who imports this and calls `project` does that.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.memcachedserver import MemcachedServer
from tests.postgresserver import PostgresServer
from tests.servers import HOST

from .cores import both_ways, each_way, follow
from .tables import Row

__all__ = ["SETTINGS", "Project", "project"]

DATABASE = "benchmarks"

#: What the page reads, and django-constance has to be told of beforehand.
SETTINGS = {f"SETTING_{number}": f"value {number}" for number in range(50)}


@dataclass(frozen=True)
class Project:
    """The servers of a project that is set up.

    :param postgres: has the database of the alias `default`
    :param memcached: has Django's default cache

    """

    postgres: PostgresServer
    memcached: MemcachedServer

    def backend(self) -> int:
        """Return the process of PostgreSQL that serves this thread's connection."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            found: int = cursor.fetchone()[0]
        return found

    def beside_memcached(self, measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """Measure with memcached on another core, on the same one, and anywhere."""
        return each_way(self.memcached.pid, lambda: self._followed(self.memcached.pid, measure))

    def beside_both(self, measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """Measure with PostgreSQL and memcached on this process's only core, and anywhere."""
        leader = self.backend()
        return both_ways(leader, lambda: self._followed(leader, measure))

    def _followed(self, leader: int, measure: Callable[[], Iterable[Row]]) -> list[Row]:
        follow(leader, self.memcached.pid)
        return list(measure())


@contextmanager
def project() -> Iterator[Project]:
    """Start the servers, configure Django, make the tables; at the end stop the servers."""
    # Nothing but the benchmarks decides when dead rows are cleared away.
    with (
        PostgresServer(autovacuum="off") as postgres,
        MemcachedServer() as memcached,
        tempfile.TemporaryDirectory() as folder,
    ):
        postgres.create_database(DATABASE)
        sqlite = os.path.join(folder, "benchmarks.sqlite")
        _configure(postgres.django_settings(DATABASE), sqlite, memcached.port)
        try:
            _make_tables()
            yield Project(postgres, memcached)
        finally:
            _close_all()


def _configure(postgres: dict[str, Any], sqlite: str, port: int) -> None:
    import django
    from django.conf import settings

    constance = importlib.util.find_spec("constance") is not None
    cache = {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": f"{HOST}:{port}",
    }
    settings.configure(
        DEBUG=False,
        SECRET_KEY="of the benchmarks",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="benchmarks.djangoviews",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["durabledict.ext.django", *(["constance"] if constance else [])],
        DATABASES={
            # The connection stays open from one request to the next.
            "default": {**postgres, "CONN_MAX_AGE": None},
            "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": sqlite},
        },
        CACHES={"default": cache},
        CONSTANCE_BACKEND="constance.backends.database.DatabaseBackend",
        CONSTANCE_DATABASE_CACHE_BACKEND="default",
        CONSTANCE_CONFIG={name: (value, "", str) for name, value in SETTINGS.items()},
    )
    django.setup()


def _make_tables() -> None:
    from django.core.management import call_command
    from django.db import connections

    from .djangomodels import MODELS

    for alias in connections:
        call_command("migrate", database=alias, verbosity=0)
        with connections[alias].schema_editor() as editor:
            for model in MODELS:
                editor.create_model(model)


def _close_all() -> None:
    from django.core.cache import caches
    from django.db import connections

    connections.close_all()
    caches.close_all()
