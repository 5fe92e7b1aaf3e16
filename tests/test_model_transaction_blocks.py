"""What a block does for its transaction: docs/internals.rst, rule 3.3."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from durabledict import reading

from .servers import wait_until
from .transactions import (
    ALIASES,
    OnPurposeError,
    OtherProcess,
    OtherThread,
    assert_nothing_is_left,
    database,
    filled_with,
    glance,
    look,
    opened,
    savepoint,
    stamp_of,
    writers,
)

pytestmark = pytest.mark.usefixtures("django_project")

filled = partial(filled_with, {"a": 1})


# -- before the SQL -------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True])
def test_the_callback_is_registered_and_the_stamp_opened_before_the_sql(manual: bool) -> None:
    from django.db import connection, transaction

    d = filled()
    seen: list[tuple[str, int, int]] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append((sql.split()[0], len(connection.run_on_commit), writers(d)))
        return execute(sql, params, many, context)

    if manual:
        transaction.set_autocommit(False)
    try:
        with connection.execute_wrapper(watch):
            if manual:
                d["a"] = 2
                transaction.commit()
            else:
                with transaction.atomic():
                    d["a"] = 2
    finally:
        if manual:
            transaction.rollback()
            transaction.set_autocommit(True)
    assert seen
    assert {what[1:] for what in seen} == {(1, 1)}
    assert_nothing_is_left(d)


def test_a_block_opens_its_stamp_once_and_ends_it_once() -> None:
    from django.db import transaction

    d = filled()
    before = stamp_of(d) or 0
    with transaction.atomic():
        for number in range(5):
            d["a"] = number
            d.update(b=number)
        assert stamp_of(d) == before + 1
    assert stamp_of(d) == before + (1 << 16)


@pytest.mark.parametrize("alias", ALIASES)
def test_a_needless_touch_costs_a_reload_and_is_no_change(alias: str, thread: OtherThread) -> None:
    from django.db import transaction

    d = filled(alias)
    heard: list[Any] = []
    d.on_change(lambda *change: heard.append(change))
    reloads = d.stats.reloads
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        d["a"] = 2
        raise OnPurposeError
    assert d == {"a": 1}
    assert thread.call(d.copy) == {"a": 1}
    assert d.stats.reloads == reloads + 1
    assert heard == []


@pytest.mark.parametrize("autosync", [True, False])
def test_changes_are_heard_once_and_only_of_what_was_committed(autosync: bool) -> None:
    from django.db import transaction

    d = filled(autosync=autosync)
    heard: list[Any] = []
    d.on_change(
        lambda *change: heard.append((*change, transaction.get_connection().in_atomic_block))
    )
    with transaction.atomic():
        d["a"] = 2
        with pytest.raises(OnPurposeError), transaction.atomic():
            d["a"] = 3
            assert d["a"] == 3
            raise OnPurposeError
        assert d["a"] == 2
        assert heard == []
    assert d["a"] == 2
    assert heard == [("a", 1, 2, False)]
    with transaction.atomic():
        d["a"] = 4
        d["a"] = 5
        assert heard[1:] == []
    assert heard[1:] == [("a", 2, 5, False)]
    with pytest.raises(OnPurposeError), transaction.atomic():
        d["a"] = 6
        raise OnPurposeError
    assert d["a"] == 5
    assert heard[2:] == []


# -- however it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("place", ["before", "after"])
def test_callbacks_of_others_that_raise(
    robust: bool, place: str, process: OtherProcess, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import transaction

    d = filled()
    called: list[dict[str, int]] = []

    def fail() -> None:
        called.append(d.copy())  # it sees what is committed, whether ours was called or not
        raise OnPurposeError

    def act() -> None:
        with transaction.atomic():
            if place == "before":
                transaction.on_commit(fail, robust=robust)
            d["a"] = 2
            if place == "after":
                transaction.on_commit(fail, robust=robust)

    if robust:
        act()
    else:
        with pytest.raises(OnPurposeError):
            act()
    assert called == [{"a": 2}]
    assert process.call(look, "default") == d == {"a": 2}
    assert_nothing_is_left(d)
    assert not [record for record in caplog.records if record.name.startswith("durabledict")]


def test_the_finalizer_ends_the_stamp_and_forgets_what_was_synced() -> None:
    from django.db import connection, transaction

    d = filled()
    before = stamp_of(d) or 0
    with transaction.atomic():
        d["a"] = 2
        connection.run_on_commit.clear()  # as Django does in all four cases
        assert stamp_of(d) == before + (1 << 16)
        assert d.last_synced is None
        assert d._transactions == 0
    assert d == {"a": 2}


def test_a_callback_that_is_called_in_the_transaction_touches_and_stays() -> None:
    from django.db import connection, transaction

    d = filled()
    before = stamp_of(d) or 0
    with transaction.atomic():
        d["a"] = 2
        (entry,) = connection.run_on_commit
        entry[1]()  # captureOnCommitCallbacks(execute=True)
        assert stamp_of(d) == before + 1 + (1 << 16)
        assert d == {"a": 2}
        transaction.set_rollback(True)
    del entry
    assert d == {"a": 1}
    assert_nothing_is_left(d)


def _kept(alias: str) -> tuple[Any, Any]:
    """Return a dict whose transaction was rolled back, and what keeps its block alive."""
    from django.db import connections, transaction

    d = filled(alias)
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        d["a"] = 2
        kept = list(connections[alias].run_on_commit)
        raise OnPurposeError
    return d, kept


@pytest.mark.parametrize("alias", ALIASES)
def test_a_block_that_somebody_keeps_is_finished_by_the_next_comparison(
    alias: str, thread: OtherThread, process: OtherProcess
) -> None:
    d, kept = _kept(alias)
    assert writers(d) == 1
    assert thread.call(d.copy) == {"a": 1}
    assert_nothing_is_left(d)
    assert process.call(look, alias) == {"a": 1}
    stamp = stamp_of(d)
    kept.clear()
    gc.collect()
    assert stamp_of(d) == stamp


def _change(alias: str, value: str) -> None:
    from .djangoapp.models import Plain

    Plain.objects.using(alias).filter(key="a").update(value=value)


def test_while_a_block_is_kept_others_look_each_second(
    process: OtherProcess, thread: OtherThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    d, kept = _kept("default")
    now = [1000.0]
    monkeypatch.setattr(reading, "monotonic", lambda: now[0])
    # Another dict of this process, which looks for blocks of its own.
    other = opened("default")
    assert other == {"a": 1} == process.call(look, "default")
    _change("default", "7")  # as a commit whose touch never comes
    assert other == {"a": 1}
    now[0] += 0.9
    assert other == {"a": 1}
    now[0] += 0.2
    assert other == {"a": 7}
    wait_until(
        lambda: process.call(glance, "default") == {"a": 7}, "the other process sees it", 10.0
    )
    kept.clear()
    assert d == {"a": 7}
    assert_nothing_is_left(d)


def test_a_traceback_that_is_kept_keeps_no_block() -> None:
    from django.db import DatabaseError, connection, transaction

    from .djangoapp.models import Plain

    d = filled()
    errors: list[Exception] = []

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        raise DatabaseError("on purpose")

    try:
        with transaction.atomic():
            d["a"] = 2
            with connection.execute_wrapper(fail):
                d["a"] = 3
    except DatabaseError as error:
        errors.append(error)
    assert errors[0].__traceback__ is not None
    assert_nothing_is_left(d)
    assert d == {"a": 1}
    assert Plain.objects.get().value == "1"


@pytest.mark.parametrize("alias", ALIASES)
def test_a_commit_that_fails_is_of_unknown_outcome(
    alias: str, process: OtherProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError, connections, transaction

    d = filled(alias)
    connection: Any = connections[alias]
    for really in (True, False):
        commit = connection._commit

        def lost(really: bool = really, commit: Callable[[], None] = commit) -> None:
            if really:
                commit()
            raise OperationalError("the connection was lost")

        with monkeypatch.context() as patched:
            patched.setattr(connection, "_commit", lost)
            with pytest.raises(OperationalError), transaction.atomic(using=alias):
                d["a"] = 2 if really else 3
        assert d == {"a": 2} == process.call(look, alias) == database(alias)
        assert_nothing_is_left(d)


@pytest.mark.parametrize("alias", ALIASES)
def test_a_write_after_the_connection_was_closed_is_refused_and_leaves_nothing(alias: str) -> None:
    from django.db import DatabaseError, InterfaceError, connections, transaction

    d = filled(alias)
    with transaction.atomic(using=alias):
        d["a"] = 2
        connections[alias].close()
        writes: list[Callable[[], Any]] = [lambda: d.update(a=3), lambda: d.__setitem__("a", 3)]
        for write in writes:
            with pytest.raises((DatabaseError, InterfaceError)):
                write()
        assert writers(d) == 0
    assert d == {"a": 1}
    assert_nothing_is_left(d)


def test_in_a_broken_transaction_writes_are_refused(process: OtherProcess) -> None:
    from django.db import IntegrityError, transaction

    from .djangoapp.models import Plain

    d = filled()
    with pytest.raises(IntegrityError), transaction.atomic():
        d["b"] = 2
        try:
            Plain.objects.create(key="a", value="2")
        finally:
            with pytest.raises(transaction.TransactionManagementError):
                d["c"] = 3
    assert d == {"a": 1} == process.call(look, "default")
    assert_nothing_is_left(d)


# -- without autocommit ---------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ALIASES)
def test_without_autocommit_each_commit_is_told_of(alias: str, process: OtherProcess) -> None:
    from django.db import connections, transaction

    d = filled(alias)
    transaction.set_autocommit(False, using=alias)
    try:
        for number in (2, 3, 4):
            d["a"] = number
            assert process.call(look, alias) == {"a": number - 1}
            transaction.commit(using=alias)
            assert process.call(look, alias) == {"a": number}
            assert writers(d) == 0
            d["a"] = 0
            transaction.rollback(using=alias)
            assert process.call(look, alias) == {"a": number} == d
            transaction.rollback(using=alias)
    finally:
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)
    assert_nothing_is_left(d)
    connection: Any = connections[alias]
    assert connection.commit.__self__ is connection


@pytest.mark.parametrize("alias", ["default", "sqlite"])
def test_a_connection_that_never_commits_by_itself(alias: str, process: OtherProcess) -> None:
    from django.db import connections

    d = filled(alias)
    connection = connections[alias]
    connection.close()
    connection.settings_dict["AUTOCOMMIT"] = False
    try:
        d["a"] = 2  # this connects
        assert process.call(look, alias) == {"a": 1}
        connection.commit()
        assert process.call(look, alias) == {"a": 2} == d
        d["a"] = 3
        connection.close()
        assert process.call(look, alias) == {"a": 2} == d
    finally:
        connection.close()
        connection.settings_dict["AUTOCOMMIT"] = True
    assert_nothing_is_left(d)


def test_sqlite_that_commits_without_a_word(process: OtherProcess) -> None:
    from django.db import transaction

    d = filled("sqlite")
    transaction.set_autocommit(False, using="sqlite")
    d["a"] = 2
    transaction.set_autocommit(True, using="sqlite")  # commits, and no callback runs
    assert d == {"a": 2} == process.call(look, "sqlite")
    # Django still has the callback. The next transaction is another one.
    with transaction.atomic(using="sqlite"):
        d["a"] = 3
        assert writers(d) == 1
    assert d == {"a": 3} == process.call(look, "sqlite")
    assert_nothing_is_left(d)


# -- savepoints by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("autosync", [True, False])
@pytest.mark.parametrize("sql", [None, "rollback to savepoint one", " ROLLBACK TO one"])
def test_savepoints_that_django_does_not_know(alias: str, autosync: bool, sql: str | None) -> None:
    from django.db import connections, transaction

    d = filled(alias, autosync)
    with transaction.atomic(using=alias):
        d["b"] = 2
        with connections[alias].cursor() as cursor:
            if sql is None:
                name = savepoint(alias)
            else:
                cursor.execute("SAVEPOINT one")
            d["a"] = 9
            assert d == {"a": 9, "b": 2}
            if sql is None:
                transaction.savepoint_rollback(name, using=alias)
            else:
                cursor.execute(sql)
        assert d == {"a": 1, "b": 2}
        d["c"] = 3
        assert d == {"a": 1, "b": 2, "c": 3}
    assert d == {"a": 1, "b": 2, "c": 3} == database(alias)
    assert_nothing_is_left(d)


# -- signals --------------------------------------------------------------------------------------


def test_a_save_that_fails_ends_its_stamp(process: OtherProcess) -> None:
    """Outside of a transaction, by the next signal or the end of the request."""
    from django.core.signals import request_finished
    from django.db import IntegrityError

    from .djangoapp.models import Plain

    d = filled()
    for end in (lambda: request_finished.send(sender=None), lambda: Plain.objects.create(key="b")):
        with pytest.raises(IntegrityError):
            Plain.objects.create(key="a", value="2")
        assert writers(d) == 1
        end()
        assert writers(d) == 0
    assert_nothing_is_left(d)


@pytest.mark.parametrize("alias", ALIASES)
def test_a_receiver_that_reads_before_the_sql(alias: str) -> None:
    from django.db import transaction
    from django.db.models.signals import pre_delete, pre_save

    from .djangoapp.models import Plain

    d = filled(alias)
    seen: list[dict[str, int]] = []

    def read(**named: object) -> None:
        seen.append(d.copy())

    for signal in (pre_save, pre_delete):
        signal.connect(read, sender=Plain)
    try:
        with transaction.atomic(using=alias):
            row = Plain(key="b", value="2")
            row.save(using=alias)
            assert d == {"a": 1, "b": 2}
            row.delete(using=alias)
            assert d == {"a": 1}
            d["a"] = 3
            assert d == {"a": 3}
    finally:
        for signal in (pre_save, pre_delete):
            signal.disconnect(read, sender=Plain)
    assert seen == [{"a": 1}, {"a": 1, "b": 2}, {"a": 1}]
    assert_nothing_is_left(d)


def test_flush_in_a_transaction() -> None:
    from django.core.management import call_command
    from django.db import transaction

    d, manual = filled(), filled(autosync=False)
    with transaction.atomic():
        assert d == manual == {"a": 1}
        d["b"] = 2
        call_command("flush", interactive=False, verbosity=0)
        assert d == {} == database("default")
        assert manual == {}
        transaction.set_rollback(True)
    assert d == manual == {"a": 1}
    assert_nothing_is_left(d)


# -- signals of a dict's own writes ---------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("autosync", [True, False])
def test_a_receiver_that_writes_another_row(inside: bool, autosync: bool) -> None:
    from contextlib import nullcontext

    from django.db import transaction
    from django.db.models.signals import post_save

    from .djangoapp.models import Plain

    d = filled(autosync=autosync)

    def also(instance: Any, **named: object) -> None:
        if instance.key == "a":
            Plain.objects.create(key="of the receiver", value="5")

    post_save.connect(also, sender=Plain)
    try:
        with transaction.atomic() if inside else nullcontext():
            d["a"] = 2
            if autosync:
                assert d == {"a": 2, "of the receiver": 5}
    finally:
        post_save.disconnect(also, sender=Plain)
    assert d == {"a": 2, "of the receiver": 5}
    assert_nothing_is_left(d)


@pytest.mark.parametrize("autosync", [True, False])
def test_a_receiver_that_writes_the_dict(autosync: bool) -> None:
    from django.db import transaction
    from django.db.models.signals import post_save

    from .djangoapp.models import Plain

    d = filled(autosync=autosync)

    def also(instance: Any, **named: object) -> None:
        if instance.key == "a":
            d["one"] = 1
            d.update(two=2)

    post_save.connect(also, sender=Plain)
    try:
        with transaction.atomic():
            d["a"] = 2
            assert d == {"a": 2, "one": 1, "two": 2}
        d["a"] = 3
    finally:
        post_save.disconnect(also, sender=Plain)
    assert d == {"a": 3, "one": 1, "two": 2}
    assert_nothing_is_left(d)
