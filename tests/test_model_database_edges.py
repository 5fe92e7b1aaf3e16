"""ModelDict where a database, or a column, is not as one thinks: rules 3.4, 3.5 and 3.8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from durabledict import JSONEncoding, ModelDict, modelsignals

from .transactions import OtherProcess, OtherThread, assert_nothing_is_left, database, fill, opened


@pytest.fixture(autouse=True)
def project(django_project: None) -> None:
    """The tests' Django project."""


@pytest.fixture(params=["default", "sqlite"])
def using(request: pytest.FixtureRequest) -> Iterator[str]:
    from .djangoapp.models import Measured, Owned, Secret

    alias: str = request.param
    yield alias
    for model in (Measured, Secret, Owned):
        model.objects.using(alias).all()._raw_delete(alias)


# -- SQLite's write-ahead log ---------------------------------------------------------------------

WAL = "wal"


def add_alias(path: str) -> Any:
    """Have Django know a database of the test's own, and return its connection."""
    from django.db import connections

    known: Any = connections.settings
    known[WAL] = {**known["sqlite"], "NAME": path}
    return connections[WAL]


def write_at(path: str, key: str, value: object) -> None:
    """Write through a dict of another process's own."""
    from django.db import connections

    connection = add_alias(path)
    opened(WAL)[key] = value
    connection.close()
    del connections[WAL]  # the next test has another path


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[str]:
    """The path of a database in WAL, which the alias "wal" names; the table is in it."""
    from django.db import connections

    from .djangoapp.models import Plain

    path = str(tmp_path / "wal.sqlite")
    connection = add_alias(path)
    try:
        with connection.schema_editor() as editor:
            editor.create_model(Plain)
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode = WAL")
            assert cursor.fetchone() == ("wal",)
        yield path
    finally:
        for d in modelsignals.living():
            if d.using == WAL:  # a test that failed keeps it, and others would ask it for its alias
                del modelsignals._dicts[id(d)]
        connection.close()
        del connections[WAL]
        del connections.settings[WAL]


@pytest.fixture
def thread(logged: str) -> Iterator[OtherThread]:
    # Not the one of conftest: it has to close its connection while the alias is there.
    thread = OtherThread()
    yield thread
    thread.close()


@contextmanager
def some_rows() -> Iterator[Iterator[Any]]:
    """Begin to read the rows, so that a SELECT is open."""
    from .djangoapp.models import Plain

    rows: Any = Plain.objects.using(WAL).iterator(chunk_size=10)
    with closing(rows):
        next(rows)
        yield rows


@pytest.mark.parametrize("autosync", [True, False])
def test_a_select_that_is_open_does_not_hold_reads_in_the_past(
    logged: str, process: OtherProcess, thread: OtherThread, autosync: bool
) -> None:
    from django.db import OperationalError

    d = opened(WAL, autosync)
    d.update({f"k{number}": 0 for number in range(300)})

    def found(key: str) -> Any:
        if not autosync:
            d.sync()
        return d[key]

    assert found("k1") == 0
    with some_rows() as rows:
        process.call(write_at, logged, "k1", 1)
        assert database(WAL)["k1"] == 0  # so it is without the dict
        assert found("k1") == 1
        assert thread.call(found, "k1") == 1
        process.call(write_at, logged, "k1", 2)
        assert thread.call(found, "k1") == 2
        assert found("k1") == 2
        with pytest.raises(OperationalError, match="locked"):  # SQLite writes to no state but last
            d["k2"] = 5
        process.call(write_at, logged, "k3", 3)
        assert (found("k1"), found("k2"), found("k3")) == (2, 0, 3)
        assert len(list(rows)) == 299
    d["k2"] = 5
    assert (found("k1"), found("k2"), found("k3")) == (2, 5, 3)
    assert d == database(WAL) == thread.call(d.copy)


def test_so_it_is_for_a_dict_that_loads_there_first(logged: str, process: OtherProcess) -> None:
    opened(WAL).update({f"k{number}": 0 for number in range(300)})
    with some_rows() as rows:
        process.call(write_at, logged, "k1", 1)
        d = opened(WAL)
        assert d["k1"] == 1
        assert len(list(rows)) == 299
    assert d["k1"] == 1


def test_a_transaction_in_wal_reads_on_its_own_connection(
    logged: str, process: OtherProcess
) -> None:
    from django.db import transaction

    d = opened(WAL)
    d["a"] = 1
    with transaction.atomic(using=WAL):
        assert database(WAL) == {"a": 1}
        process.call(write_at, logged, "a", 2)
        assert d == database(WAL) == {"a": 1}
    assert d == {"a": 2}


# -- columns that do not give back what they take -------------------------------------------------


DIGITS = Decimal("123456789012345.67891")


@contextmanager
def few_statements(alias: str, most: int = 30) -> Iterator[None]:
    """Fail where there is no end of them."""
    from django.db import connections

    sent: list[str] = []

    def count(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        sent.append(sql)
        assert len(sent) <= most, sql
        return execute(sql, *arguments)

    with connections[alias].execute_wrapper(count):
        yield


def measured(alias: str, column: str, **options: Any) -> ModelDict[str, Any]:
    from .djangoapp.models import Measured

    return ModelDict(Measured, value_col=column, using=alias, **options)


def secret(alias: str, **options: Any) -> ModelDict[str, Any]:
    from .djangoapp.models import Secret

    return ModelDict(Secret, using=alias, **options)


def exact(d: ModelDict[str, Any]) -> dict[str, str]:
    """Return the entries to the last digit, and the time zone."""
    return {key: repr(value) for key, value in d.items()}


def test_guarded_writes_of_decimals_end(using: str) -> None:
    d = measured(using, "price")
    d["a"] = DIGITS
    with few_statements(using):
        given: list[Decimal] = []

        def add(value: Decimal) -> Decimal:
            given.append(value)
            return value + 1

        d.compute("a", add)
        assert len(given) == 1
        assert exact(d) == exact(measured(using, "price"))
        assert d.compare_and_set("a", d["a"], DIGITS)
        assert not d.compare_and_set("a", Decimal(1), DIGITS)
        assert exact(d) == exact(measured(using, "price"))
        held = d["a"]
        assert d.pop("a") == held
    assert not measured(using, "price")


def test_a_row_that_is_gone_when_it_is_read_back_was_written(using: str) -> None:
    d = measured(using, "price", autosync=False)
    d["a"] = Decimal(1)
    guarded = d._rows.compare_and_set

    def removed_at_once(*arguments: Any) -> Any:
        done = guarded(*arguments)
        d.model.objects.using(using).filter(key="a")._raw_delete(using)
        return done

    d._rows.compare_and_set = removed_at_once  # type: ignore[assignment,method-assign]  # at the critical point
    assert d.compute("a", lambda value: Decimal(2)) == Decimal(2)
    del d._rows.compare_and_set
    assert dict(d) == {"a": Decimal(2)}
    d.touch_last_updated()
    d.sync()
    assert dict(d) == {}


@pytest.mark.parametrize("encoding", [None, JSONEncoding])
def test_guarded_writes_of_a_field_that_encrypts_end(using: str, encoding: Any) -> None:
    d = secret(using, encoding=encoding)
    d["a"] = 1
    with few_statements(using):
        assert d.compute("a", lambda value: value + 1) == 2
        assert secret(using, encoding=encoding) == {"a": 2}
        assert d.compare_and_set("a", 2, 3)
        assert not d.compare_and_set("a", 2, 4)
        assert d.setdefault("b", 5) == 5
        assert secret(using, encoding=encoding) == d == {"a": 3, "b": 5}
        assert d.pop("a") == 3
    assert secret(using, encoding=encoding) == d == {"b": 5}


def test_a_guarded_write_of_a_field_that_encrypts_sees_others(using: str) -> None:
    d, other = secret(using), secret(using)
    d["a"] = 1
    given: list[int] = []

    def add(value: int) -> int:
        given.append(value)
        if len(given) == 1:
            other["a"] = 10
        return value + 1

    with few_statements(using):
        assert d.compute("a", add) == 11
    assert given == [1, 10]
    assert d == other == {"a": 11}


WRITES: dict[str, Callable[[Any, Any], object]] = {
    "d[k] = v": lambda d, value: d.__setitem__("a", value),
    "a new one": lambda d, value: d.__setitem__("b", value),
    "setdefault": lambda d, value: d.setdefault("b", value),
    "update": lambda d, value: d.update(a=value, b=value),
    "replace_all": lambda d, value: d.replace_all({"b": value}),
    "compute": lambda d, value: d.compute("a", lambda _: value),
    "compare_and_set": lambda d, value: d.compare_and_set("a", d["a"], value),
}

VALUES: list[tuple[str, Any]] = [
    ("price", Decimal("1.23456789")),
    ("price", DIGITS),
    ("price", "7"),
    ("moment", datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))),
    ("moment", datetime(2024, 1, 1, 12, 0, 0, 123456)),  # noqa: DTZ001  # which Django takes too
    ("moment", date(2024, 1, 1)),
    ("moment", "2024-01-01 10:00"),
]


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:.*received a naive datetime:RuntimeWarning")
def test_a_writer_holds_what_is_stored(using: str, name: str, inside: bool) -> None:
    from django.db import transaction

    for column, value in VALUES:
        for autosync in (True, False):
            d = measured(using, column, autosync=autosync)
            d.replace_all({"a": "2020-01-01" if column == "moment" else Decimal(9)})
            with transaction.atomic(using=using) if inside else nullcontext():
                WRITES[name](d, value)
                held = exact(d)
                assert held == exact(measured(using, column))
            assert exact(d) == held == exact(measured(using, column))


# -- SQLite without autocommit --------------------------------------------------------------------


@pytest.mark.parametrize("autosync", [True, False])
@pytest.mark.parametrize("alias", ["default", "sqlite"])
@pytest.mark.parametrize(
    "write",
    [
        lambda d: d.__setitem__("a", 5),
        lambda d: d.__setitem__("new", 5),
        lambda d: d.setdefault("new", 5),
        lambda d: d.update(a=5, new=5),
        lambda d: d.replace_all({"new": 5}),
        lambda d: d.clear(),
        lambda d: d.__delitem__("a"),
        lambda d: d.compute("a", lambda value: value + 1),
        lambda d: d.get_or_create("new", 5),
        lambda d: (d.setdefault("new", 5), d.clear(), d.update(a=5)),
    ],
    ids=[
        "d[k] = v", "d[new] = v", "setdefault", "update", "replace_all", "clear", "del d[k]",
        "compute", "get_or_create", "several",
    ],
)  # fmt: skip
def test_without_autocommit_a_rollback_leaves_nothing(
    alias: str, write: Callable[[Any], object], autosync: bool
) -> None:
    from django.db import transaction

    d = opened(alias, autosync)
    before = {"a": 1, "b": 2}
    fill(d, before)
    assert d == before
    transaction.set_autocommit(False, using=alias)
    try:
        write(d)
        assert d == database(alias) != before
        transaction.rollback(using=alias)
        assert d == database(alias) == before
    finally:
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)
    assert d == database(alias) == before
    # And what is committed stays.
    transaction.set_autocommit(False, using=alias)
    try:
        write(d)
        written = database(alias)
        transaction.commit(using=alias)
    finally:
        transaction.set_autocommit(True, using=alias)
    assert d == database(alias) == opened(alias) == written != before
    assert_nothing_is_left(d)


# -- models ---------------------------------------------------------------------------------------


def test_a_manager_that_joins_rows_which_may_be_missing(using: str) -> None:
    from django.db import transaction

    from .djangoapp.models import Owned

    d: ModelDict[str, int] = ModelDict(Owned.objects, encoding=JSONEncoding, using=using)
    d["a"] = 1
    with transaction.atomic(using=using):
        d["a"] = 2
        d["b"] = 3
        assert d == {"a": 2, "b": 3}
        del d["b"]
        d.replace_all({"a": 4, "c": 5})
        assert d.compute("a", lambda value: value + 1) == 5
        assert d.pop("c") == 5
        assert d.setdefault("d", 6) == 6
        row, made = d.get_or_create("a", 0)
        assert (row.key, made) == ("a", False)
    assert d == ModelDict(Owned.objects, encoding=JSONEncoding, using=using) == {"a": 5, "d": 6}


def test_values_that_are_not_written_are_refused() -> None:
    import django
    from django.db import models
    from django.test.utils import isolate_apps

    from .djangoapp.models import Owned

    with pytest.raises(TypeError, match="parent is a ForeignKey, which is not written with a val"):
        ModelDict(Owned, value_col="parent")
    if django.VERSION < (5, 0):
        return
    with isolate_apps("tests.djangoapp"):

        class Generated(models.Model):
            key: Any = models.CharField(max_length=50, unique=True)
            size: Any = models.GeneratedField(
                expression=models.functions.Length("key"),
                output_field=models.IntegerField(),
                db_persist=True,
            )

            class Meta:
                app_label = "djangoapp"

        with pytest.raises(TypeError, match="size is a GeneratedField, which is not written"):
            ModelDict(Generated, value_col="size")
