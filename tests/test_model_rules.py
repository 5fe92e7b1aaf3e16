"""Races and places that no other test of `ModelDict` comes to, each forced: rules 3.2 to 3.9."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durabledict import JSONEncoding, ModelDict, modelsignals
from durabledict.stamps import ENDED, WRITERS, MemoryCache

from .memcachedserver import MemcachedServer
from .test_model_outages import Failing
from .transactions import ALIASES, OtherThread, database, fill, opened, writers


@pytest.fixture(autouse=True)
def empty_tables(django_project: None) -> Iterator[None]:
    yield
    from tests.djangoapp.models import Binary, Document, Plain

    for alias in ("default", "sqlite"):
        for model in (Plain, Binary, Document):
            model.objects.using(alias).all()._raw_delete(alias)


@contextmanager
def at_statement(
    alias: str, begins: str, act: Callable[[], object], *, after: bool = False
) -> Iterator[list[object]]:
    """Have `act` called once, before or after the next statement about rows that begins so.

    :return: a list of what it returned

    """
    from django.db import connections

    results: list[object] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        meant = not results and sql.startswith(begins) and "djangoapp_" in sql
        if meant and not after:
            results.append(act())
        answer = execute(sql, params, many, context)
        if meant and after:
            results.append(act())
        return answer

    with connections[alias].execute_wrapper(watch):
        yield results
    assert len(results) == 1


def raw(alias: str, sql: str, *arguments: Any) -> None:
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(sql, arguments)


def insert(alias: str, key: str, value: int) -> None:
    """Add a row past every dict, without a signal."""
    raw(alias, "INSERT INTO djangoapp_plain (key, value) VALUES (%s, %s)", key, str(value))


def change(alias: str, key: str, value: int) -> None:
    raw(alias, "UPDATE djangoapp_plain SET value = %s WHERE key = %s", str(value), key)


def remove(alias: str, key: str) -> None:
    raw(alias, "DELETE FROM djangoapp_plain WHERE key = %s", key)


def can_write(alias: str) -> bool:
    """Whether this connection may write to the rows at this moment, without waiting."""
    from django.db import OperationalError, transaction

    from tests.djangoapp.models import Plain

    try:
        if alias == "sqlite":
            raw(alias, "PRAGMA busy_timeout = 0")
            raw(alias, "BEGIN IMMEDIATE")
            raw(alias, "ROLLBACK")
        else:
            with transaction.atomic(using=alias):
                list(Plain.objects.using(alias).select_for_update(nowait=True))
    except OperationalError:
        return False
    return True


# -- what is shared -------------------------------------------------------------------------------


def test_an_empty_load_from_an_older_snapshot_is_not_shared(thread: OtherThread) -> None:
    """Rule 3.4: there is no row that could tell of which state it is."""
    from django.db import transaction

    def add() -> None:
        insert("repeatable", "a", 1)
        opened("repeatable").touch_last_updated()

    d = opened("repeatable")
    fill(d, {})
    assert not d
    with transaction.atomic(using="repeatable"):
        assert database("repeatable") == {}  # its snapshot
        thread.call(add)
        assert list(d) == []
        assert thread.call(list, d) == ["a"]
    assert d == {"a": 1}


@pytest.mark.parametrize("alias", ALIASES)
def test_instances_with_a_write_that_no_signal_told_of_are_not_shared(
    alias: str, thread: OtherThread
) -> None:
    """Rule 3.4: the statement that loads them has to say so, as that of values does."""
    from django.db import transaction

    fill(opened(alias), {"a": 1})
    d = opened(alias, return_instances=True)
    assert d["a"].value == "1"
    with transaction.atomic(using=alias):
        change(alias, "a", 9)
        d.sync(force=True)
        assert d["a"].value == "9"
        assert thread.call(lambda: d["a"].value) == "1"
        transaction.set_rollback(True, using=alias)
    assert d["a"].value == "1"


# -- places ---------------------------------------------------------------------------------------


def test_what_is_of_another_database_is_not_served_in_an_outage(tmp_path: Path) -> None:
    """Rule 3.6: the copy of a development database is none of the test database."""
    from django.db import OperationalError, connections

    cache = Failing()
    fill(opened("sqlite"), {"where": 1})
    d = opened("sqlite", False, cache=cache, on_outage="stale")
    d.sync()
    assert dict.copy(d) == {"where": 1}
    connection = connections["sqlite"]
    connection.close()
    name = connection.settings_dict["NAME"]
    shutil.copy(name, tmp_path / "test.sqlite")
    try:
        connection.settings_dict["NAME"] = str(tmp_path / "test.sqlite")
        connection.ensure_connection()
        connection.close()
        connection.settings_dict["NAME"] = str(tmp_path / "nowhere" / "test.sqlite")
        cache.down = True
        for read in (lambda: d["where"], lambda: d.get("where"), lambda: len(d)):
            with pytest.raises(OperationalError):
                read()
    finally:
        connection.close()
        connection.settings_dict["NAME"] = name
    cache.down = False
    d.sync()
    assert d == {"where": 1}


@pytest.mark.parametrize("autosync", [True, False])
def test_a_stamp_that_was_evicted_is_put_anew(
    autosync: bool, memcached_server: MemcachedServer
) -> None:
    """Rule 3.2: with it goes nothing but the knowledge that nothing is new."""
    from django.db import transaction

    with closing(memcached_server.client()) as client:
        fill(opened("default"), {"a": 1})
        d = opened("default", autosync, cache=client)

        def evicted(value: int) -> int:
            """Lose the stamp, and a write that nobody was told of; return what is read then."""
            change("default", "a", value)
            assert client.delete(d.cache_key, noreply=False)
            if not autosync:
                assert d["a"] != value
                assert d.sync() is True
            found: int = d["a"]
            return found

        d.sync()
        assert evicted(2) == 2
        assert evicted(3) == 3
        client.delete(d.cache_key, noreply=False)
        d["b"] = 1
        assert d == {"a": 3, "b": 1}
        client.delete(d.cache_key, noreply=False)
        assert d.compute("a", lambda value: value + 1) == 4
        d.touch_last_updated()
        with transaction.atomic():
            d["b"] = 2
            client.delete(d.cache_key, noreply=False)
            assert d["b"] == 2
        assert d == {"a": 4, "b": 2}
        assert evicted(5) == 5
        assert d == {"a": 5, "b": 2} == opened("default", cache=client)


# -- writes past the dict -------------------------------------------------------------------------


def test_a_dict_over_a_proxy_hears_of_the_model_itself(django_project: None) -> None:
    """Rule 3.7: also where no dict over that model was ever made."""
    from django.db.models.signals import post_delete, post_save, pre_delete, pre_save

    from tests.djangoapp.models import Plain, PlainProxy

    family = [kind for kind in modelsignals._connected if issubclass(kind, Plain)]
    for kind in family:
        modelsignals._connected.discard(kind)
        for signal in (pre_save, pre_delete, post_save, post_delete):
            signal.disconnect(sender=kind, dispatch_uid="durabledict")
    try:
        d: ModelDict[str, int] = ModelDict(PlainProxy, MemoryCache(), encoding=JSONEncoding)
        assert not d
        Plain.objects.create(key="k", value="1")
        assert d == {"k": 1}
    finally:
        for kind in family:
            modelsignals._connect_class(kind)


def test_two_dicts_of_one_stamp_tell_of_a_save_once(django_project: None) -> None:
    """Rule 3.7: what is told a second time is a write of its own, after which readers reload."""
    from tests.djangoapp.models import Plain

    asked: list[int] = []

    class Counting(MemoryCache):
        def increase(self, key: str, by: int) -> int | None:
            asked.append(by)
            return super().increase(key, by)

    cache = Counting()
    dicts = [opened("default", cache=cache) for _ in range(2)]
    for d in dicts:
        assert not d
    Plain.objects.create(key="k", value="1")
    assert asked == [1, ENDED]
    for d in dicts:
        assert d == {"k": 1}


def test_a_save_in_one_database_is_none_in_another(django_project: None) -> None:
    """Rule 3.7."""
    from tests.djangoapp.models import Plain

    caches = {alias: MemoryCache() for alias in ("default", "sqlite")}
    dicts = {alias: opened(alias, cache=cache) for alias, cache in caches.items()}
    for d in dicts.values():
        assert not d
    numbers = {alias: cache.get(dicts[alias].cache_key) for alias, cache in caches.items()}
    Plain.objects.using("sqlite").create(key="k", value="1")
    assert caches["default"].get(dicts["default"].cache_key) == numbers["default"]
    assert caches["sqlite"].get(dicts["sqlite"].cache_key) == (numbers["sqlite"] or 0) + WRITERS
    assert dicts["sqlite"] == {"k": 1}


def test_the_next_save_ends_the_stamp_of_one_that_failed(django_project: None) -> None:
    """Rule 3.7: also that of another model, while somebody keeps the instance."""
    from django.db import IntegrityError

    from tests.djangoapp.models import Binary, Plain

    first = opened("default", cache=MemoryCache())
    second: ModelDict[str, int] = ModelDict(Binary, MemoryCache())
    first["k"] = 1
    assert not second
    failed = Plain(key="k", value="2")
    with pytest.raises(IntegrityError):
        failed.save()
    assert writers(first) == 1
    Binary.objects.create(key="k", value=b"")
    assert writers(first) == writers(second) == 0
    assert failed.pk is None


# -- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("using", ["default", "sqlite"])
def test_a_json_column_gives_what_comes_back_at_once(using: str) -> None:
    """Rule 3.8: from the local copy too, which shares nothing with what the caller has."""
    from tests.djangoapp.models import Document

    d: ModelDict[int, Any] = ModelDict(Document, MemoryCache(), key_col="number", using=using)
    assert not d
    given: dict[str, Any] = {"a": (1, 2), "b": [3]}
    writes: list[Callable[[int], object]] = [
        lambda key: d.__setitem__(key, given),
        lambda key: d.update({key: given}),
        lambda key: d.setdefault(key, given),
    ]
    for key, write in enumerate(writes):
        given["b"] = [3]
        write(key)
        given["b"].append(4)
        assert d[key] == {"a": [1, 2], "b": [3]}
        assert d.stats.reloads <= 1


# -- compare and set ------------------------------------------------------------------------------

INSIDE = pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])


def maybe_atomic(alias: str, inside: bool) -> Any:
    from django.db import transaction

    return transaction.atomic(using=alias) if inside else nullcontext()


@pytest.mark.parametrize(
    ("alias", "inside"), [("default", False), ("default", True), ("sqlite", False)]
)
def test_a_row_that_somebody_adds_in_between_is_written_over(
    alias: str, inside: bool, thread: OtherThread
) -> None:
    """Rule 3.9: between the SELECT that finds none and the INSERT."""
    d = opened(alias)
    assert not d
    with maybe_atomic(alias, inside):
        with at_statement(alias, "INSERT", lambda: thread.call(insert, alias, "a", 7)):
            d["a"] = 1
        assert d["a"] == 1
    assert d == {"a": 1} == database(alias)


@pytest.mark.parametrize(
    ("alias", "inside"), [("default", False), ("default", True), ("sqlite", False)]
)
@pytest.mark.parametrize("method", ["setdefault", "get_or_create", "compute"])
def test_who_adds_a_row_in_between_was_first(
    method: str, alias: str, inside: bool, thread: OtherThread
) -> None:
    """Rule 3.9: and PostgreSQL goes on with the transaction in which the INSERT collided."""
    d = opened(alias)
    assert not d
    with maybe_atomic(alias, inside):
        with at_statement(alias, "INSERT", lambda: thread.call(insert, alias, "a", 7)):
            if method == "compute":
                d.compute("a", lambda value: value + 1, 0)
            else:
                getattr(d, method)("a", 1)
        expected = 8 if method == "compute" else 7
        assert d["a"] == expected
    assert d == {"a": expected} == database(alias)


@pytest.mark.parametrize("alias", ["default", "sqlite"])
def test_a_row_that_somebody_removes_in_between_is_added(alias: str, thread: OtherThread) -> None:
    """Rule 3.9: between the SELECT that finds it and the UPDATE."""
    d = opened(alias)
    fill(d, {"a": 1})
    with at_statement(alias, "UPDATE", lambda: thread.call(remove, alias, "a")):
        d["a"] = 2
    assert d == {"a": 2} == database(alias)


@pytest.mark.parametrize("method", ["set", "delete"])
def test_a_row_that_a_transaction_has_read_to_write_it_is_locked(
    method: str, thread: OtherThread
) -> None:
    """Rule 3.9: nobody changes it between the SELECT and what follows."""
    from django.db import transaction

    d = opened("default")
    fill(d, {"a": 1})
    probe = partial(thread.call, can_write, "default")
    with transaction.atomic(), at_statement("default", "SELECT", probe, after=True) as could:
        if method == "set":
            d["a"] = 2
        else:
            del d["a"]
    assert could == [False]
    assert probe() is True


@INSIDE
@pytest.mark.parametrize("alias", ["default", "sqlite"])
def test_nobody_writes_between_what_replace_all_reads_and_writes(
    alias: str, inside: bool, thread: OtherThread
) -> None:
    """Rule 3.9: rows are locked; SQLite's transaction does not begin with a SELECT."""
    d = opened(alias)
    fill(d, {"a": 1, "b": 2})
    with (
        maybe_atomic(alias, inside),
        at_statement(alias, "SELECT", lambda: thread.call(can_write, alias), after=True) as could,
    ):
        d.replace_all({"a": 1, "c": 3})
    assert could == [False]
    assert d == {"a": 1, "c": 3} == database(alias)
    assert thread.call(can_write, alias) is True


@INSIDE
def test_pop_removes_the_value_that_it_returns(inside: bool, thread: OtherThread) -> None:
    """Rule 3.9: in one statement, though signals are listened to."""
    from django.db.models.signals import pre_delete

    from tests.djangoapp.models import Plain

    d = opened("default")
    fill(d, {"a": 1})
    assert pre_delete.has_listeners(Plain)
    with (
        maybe_atomic("default", inside),
        at_statement("default", "DELETE", lambda: thread.call(change, "default", "a", 7)),
    ):
        assert d.pop("a") == 7
    assert not d
    assert database("default") == {}


def test_a_document_that_is_equal_is_another_one_all_the_same(thread: OtherThread) -> None:
    """Rules 3.8 and 3.9: to PostgreSQL 1 is 1.0; a guarded write compares the text."""
    from tests.djangoapp.models import Document

    d: ModelDict[int, Any] = ModelDict(Document, MemoryCache(), key_col="number")
    d[1] = [1]
    seen: list[str] = []

    def add_one(value: list[Any]) -> list[Any]:
        seen.append(repr(value))
        if len(seen) == 1:
            thread.call(raw, "default", "UPDATE djangoapp_document SET value = '[1.0]'")
        return [*value, 2]

    assert repr(d.compute(1, add_one)) == "[1.0, 2]"
    assert seen == ["[1]", "[1.0]"]
