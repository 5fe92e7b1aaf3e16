"""Transactions that end otherwise than one hopes, and who looks on meanwhile: rules 3.3 and 3.7."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durabledict import modelreads, modelsignals, reading
from durabledict.testing.tools import Clock

from .servers import PATIENCE, wait_until
from .transactions import (
    OtherProcess,
    OtherThread,
    assert_nothing_is_left,
    database,
    fill,
    glance,
    opened,
    writers,
)

both = pytest.mark.parametrize("alias", ["default", "sqlite"])


class OnPurposeError(Exception):
    """What ends a transaction badly."""


@pytest.fixture(autouse=True)
def project(django_project: None) -> None:
    """The tests' Django project."""


def filled(alias: str = "default", autosync: Any = True, **options: Any) -> Any:
    d = opened(alias, autosync, **options)
    fill(d, {"a": 1})
    assert d == {"a": 1}
    return d


def row(key: str = "a", value: int = 2) -> Any:
    from .djangoapp.models import Plain

    return Plain(key=key, value=str(value))


# -- a thread that waits for the transaction of another one ---------------------------------------


def ask(statement: str) -> Any:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement)
        return None if cursor.description is None else cursor.fetchone()


def give_up_after(timeout: str) -> None:
    """Have this thread's connections not wait longer for a lock: the test is not to hang."""
    from django.db import connections

    connection: Any = connections["default"]
    options = {**connection.settings_dict["OPTIONS"], "options": f"-c lock_timeout={timeout}"}
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
    connection.close()


WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{}'::regclass"


@pytest.mark.parametrize("autosync", [True, 60.0, False])
def test_a_transaction_does_not_wait_for_a_read_that_waits_for_it(
    thread: OtherThread, monkeypatch: pytest.MonkeyPatch, autosync: Any
) -> None:
    from django.db import transaction

    from .djangoapp.models import Plain

    monkeypatch.setattr(modelreads, "PATIENCE", 0.05)
    d = filled(autosync=autosync)
    table = Plain._meta.db_table

    def read() -> Any:
        d.sync()
        return d["a"]

    thread.call(give_up_after, f"{PATIENCE:g}s")
    with transaction.atomic():
        ask(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        d._stamp().touch()
        waits = thread.start(read)
        wait_until(lambda: ask(WAITING.format(table)) == (1,), "the other thread waits")
        assert read() == 1
        assert not waits.done()
        d["a"] = 2
        assert read() == 2
        assert not waits.done()
    assert waits.result(PATIENCE) in (1, 2)
    assert read() == thread.call(read) == 2
    assert_nothing_is_left(d)


# -- a cache that fails for a moment --------------------------------------------------------------


@contextmanager
def unanswered(d: Any) -> Iterator[list[str]]:
    """Have the cache fail each request to count, and list these."""
    asked: list[str] = []

    def refuse(self: Any, key: str, by: int) -> int:
        asked.append(key)
        raise ConnectionRefusedError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(d._stamp().cache), "increase", refuse)
        yield asked


@both
@pytest.mark.parametrize("again", [False, True])
def test_a_cache_that_fails_before_a_save_is_told_at_the_commit(
    process: OtherProcess, alias: str, again: bool
) -> None:
    from django.db import transaction

    from .djangoapp.models import Plain

    d, other = filled(alias), opened(alias)
    assert other == process.call(glance, alias) == {"a": 1}
    with transaction.atomic(using=alias):
        saved = Plain.objects.using(alias).get(key="a")
        saved.value = "2"
        with unanswered(d) as asked:
            saved.save()
        assert asked
        assert d == other == {"a": 2}
        assert process.call(glance, alias) == {"a": 1}
        if again:  # now it can be asked
            saved.value = "3"
            saved.save()
            assert d == other == {"a": 3}
            assert writers(d) == 1
    stored = {"a": 3 if again else 2}
    assert d == other == process.call(glance, alias) == stored == database(alias)
    assert_nothing_is_left(d)


@both
def test_nothing_is_told_of_what_is_rolled_back_but_that_something_was(
    process: OtherProcess, alias: str
) -> None:
    from django.db import transaction

    d = filled(alias)
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        with unanswered(d):
            row("b").save(using=alias)
        assert d == {"a": 1, "b": 2}
        raise OnPurposeError
    assert d == process.call(glance, alias) == {"a": 1} == database(alias)
    assert_nothing_is_left(d)


def test_a_writer_that_was_not_counted_is_not_taken_for_another_one(
    thread: OtherThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import transaction

    from .djangoapp.models import Plain

    clock = Clock()
    monkeypatch.setattr(reading, "monotonic", clock)
    d = filled(verify=None)
    with transaction.atomic():
        with unanswered(d):
            row("b").save()
        opening = d._stamp().begin()  # somebody else's, who has not ended when it is read
        assert d == {"a": 1, "b": 2}
        thread.call(lambda: Plain.objects.filter(key="a").update(value="3"))
        clock.move(1.0)
        assert d == {"a": 3, "b": 2}
        d._stamp().end(opening)
    assert d == {"a": 3, "b": 2}
    assert_nothing_is_left(d)


# -- dicts that are made meanwhile ----------------------------------------------------------------


def test_dicts_are_looked_through_while_others_are_made() -> None:
    d = filled()
    made: list[Any] = []

    class Making(weakref.KeyedRef[int, Any]):
        """Has another dict made in the middle of a look through all of them."""

        __slots__ = ()

        def __call__(self) -> Any:
            made.append(opened("default", autosync=False))
            return super().__call__()

    known: Any = modelsignals._dicts
    inner: dict[int, Any] = known.data
    before = inner[id(d)]
    inner[id(d)] = Making(d, known._remove, id(d))
    try:
        assert any(one is d for one in modelsignals.living())
        row("b").save()
    finally:
        inner[id(d)] = before
    assert len(made) > 1
    assert d == {"a": 1, "b": 2}


# -- callbacks of the commit ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("autosync", [True, 60.0, False])
def test_an_earlier_callback_of_the_commit_reads_what_was_committed(
    alias: str, autosync: Any
) -> None:
    from django.db import transaction

    d = filled(alias, autosync)
    seen: list[Any] = []
    with transaction.atomic(using=alias):
        transaction.on_commit(lambda: seen.append(d["a"]), using=alias)
        transaction.on_commit(lambda: seen.append(d.copy()), using=alias)
        d["a"] = 2
        transaction.on_commit(lambda: seen.append(d["a"]), using=alias)
        assert d["a"] == 2
    assert seen == [2, {"a": 2}, 2]
    assert d == {"a": 2}
    assert_nothing_is_left(d)
