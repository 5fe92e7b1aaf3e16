"""The tests' Django project: real servers, set up once, since Django can be so once a process."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .redisservers import RedisServer

__all__ = ["DATABASE", "set_up", "threads_close_connections"]

DATABASE = "tests"


def set_up(
    folder: Path, postgres: PostgresServer, memcached: MemcachedServer, redis: RedisServer
) -> None:
    """Configure Django in this process and in those that are started from it; make the tables."""
    postgres.create_database(DATABASE)
    addresses: dict[str, Any] = {
        "postgres": postgres.django_settings(DATABASE),
        "sqlite": str(folder / "tests.sqlite"),
        "files": str(folder / "cache"),
        "memcached": memcached.port,
        "redis": redis.port,
    }
    os.environ["DURABLEDICT_TESTS"] = json.dumps(addresses)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.djangosettings"

    import django
    from django.core.management import call_command

    django.setup()
    for alias in ("default", "sqlite"):
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        call_command("createcachetable", database=alias, verbosity=0)


@contextmanager
def threads_close_connections() -> Iterator[None]:
    """See to it that a thread closes its connections at its end.

    As Django does at the end of a request. Else they are closed whenever the garbage is collected,
    with a warning, that is with an error in whatever test runs then.

    """
    from django.db import connections

    run = threading.Thread.run

    def run_and_close(thread: threading.Thread) -> None:
        try:
            run(thread)
        finally:
            connections.close_all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "run", run_and_close)
        yield
