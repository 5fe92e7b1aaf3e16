"""`get_or_create` and `get_or_compute` between real processes, over each store they may share."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .creations import (
    KINDS,
    RENEWALS,
    Journal,
    Processes,
    create,
    one_of_many,
    opened,
    stall_all,
    wait_all,
)
from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .sqlmodels import Base, postgres_url
from .zookeeperservers import ZookeeperServer

PROCESSES = 8

_paths = itertools.count(1)


@pytest.fixture(scope="module")
def processes(django_project: None) -> Iterator[Processes]:
    running = Processes(PROCESSES)
    yield running
    running.close()


@pytest.fixture
def where(
    tmp_path: Path,
    memcached_server: MemcachedServer,
    redis_url: str,
    postgres_server: PostgresServer,
    zookeeper_server: ZookeeperServer,
    django_project: None,
) -> Iterator[dict[str, str]]:
    from sqlalchemy import create_engine

    from tests.djangoapp.models import Plain

    memcached_server.flush()
    database = "created"
    postgres_server.create_database(database)
    places = {
        "memcached": f"127.0.0.1:{memcached_server.port}",
        "redis": redis_url,
        "zookeeper": zookeeper_server.hosts,
        "path": f"/created-{next(_paths)}",
        "SQLite": f"sqlite:///{tmp_path / 'sql'}",
        "PostgreSQL": postgres_url(postgres_server, database),
        "file": str(tmp_path / "file"),
    }
    for kind in ("SQLite", "PostgreSQL"):
        engine = create_engine(places[kind])
        Base.metadata.create_all(engine)
        engine.dispose()
    yield places
    Plain.objects.all().delete()
    postgres_server.drop_database(database)


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_eight_processes_creates(
    kind: str, where: dict[str, str], tmp_path: Path, processes: Processes
) -> None:
    journal = Journal(tmp_path, kind)
    found = processes.run(one_of_many, kind, where, tmp_path, PROCESSES)
    assert journal.count("creates") == 1
    assert len(set(found)) == 1
    assert found[0].startswith("by ")
    with opened(kind, where) as owner:
        assert create(kind, owner, lambda: "not there") == found[0]


def test_a_creator_that_is_stopped_for_longer_than_its_lease_overwrites_nothing(
    where: dict[str, str], tmp_path: Path, processes: Processes
) -> None:
    """Over each store: it gets its own value back, and what is younger stays."""
    processes.start(wait_all, where, tmp_path)
    journals = {kind: Journal(tmp_path, kind) for kind in KINDS}
    for journal in journals.values():
        journal.wait_for("begins")
    renewing = Journal(tmp_path, RENEWALS)
    renewing.wait_for("waits")
    processes.send(signal.SIGSTOP)
    try:
        for kind in KINDS:
            with opened(kind, where) as owner:
                assert create(kind, owner, lambda: "young") == "young"
        for journal in (renewing, *journals.values()):
            journal.note("go on")
    finally:
        processes.send(signal.SIGCONT)
    assert processes.answer() == dict.fromkeys(KINDS, "old")
    for kind in KINDS:
        with opened(kind, where) as owner:
            assert create(kind, owner, lambda: "not there") == "young", kind


def test_a_creator_that_is_killed_costs_the_others_its_lease(
    where: dict[str, str], tmp_path: Path, processes: Processes
) -> None:
    """Over each store: the lock of who is killed ends, and another one creates."""
    processes.start(stall_all, where, tmp_path)
    journals = {kind: Journal(tmp_path, kind) for kind in KINDS}
    for journal in journals.values():
        journal.wait_for("stalls")
    processes.kill()
    for kind, journal in journals.items():
        with opened(kind, where) as owner:
            assert create(kind, owner, lambda: "created") == "created"
            assert create(kind, owner, lambda: "not there") == "created"
        assert journal.count("stalls") == 1
