"""What a driver or a field of Django's has no value for, in any column: it harms its own key alone.

docs/internals.rst, rule 6.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durabledict import DecodingError, ModelDict

from .test_hostile_models import USES, a_dict, again, put
from .test_interrupted import TooLateError, arrive, handled, limit

pytestmark = pytest.mark.usefixtures("django_project")

#: Dates and moments that PostgreSQL has and Python has not.
NO_DATES = ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"]

#: What SQLite takes in place of a UUID.
NO_UUIDS = ["no UUID", "", b"\xff", 5]


@contextmanager
def selects(using: str) -> Iterator[list[str]]:
    """Note the SELECTs that are sent."""
    from django.db import connections

    sent: list[str] = []

    def note(execute: Any, sql: str, *arguments: Any) -> Any:
        if sql.startswith("SELECT"):
            sent.append(sql)
        return execute(sql, *arguments)

    with connections[using].execute_wrapper(note):
        yield sent


def set_column(using: str, table: str, column: str, value: Any, key: str) -> None:
    """Write past Django."""
    from django.db import connections

    with connections[using].cursor() as cursor:
        cursor.execute(f"UPDATE djangoapp_{table} SET {column} = %s WHERE key = %s", [value, key])


def cast_to_text(table: str, key: str) -> None:
    """Have SQLite take the bytes of a value for text."""
    from django.db import connections

    with connections["sqlite"].cursor() as cursor:
        cursor.execute(
            f"UPDATE djangoapp_{table} SET value = CAST(value AS TEXT) WHERE key = %s", [key]
        )


# -- PostgreSQL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("stored", NO_DATES)
def test_a_moment_that_python_has_not_harms_its_own_key(stored: str, instances: bool) -> None:
    from django.db import transaction

    with a_dict("Measured", "default", value_col="moment") as d:
        d["a"] = None
        late = again(d, autosync=False)
        assert late == {"a": None}
        put(d, "k", stored)
        shown = again(d, return_instances=instances)
        late.sync()
        for each in (d, late, shown):
            assert list(each) == ["a"]
            assert list(each.undecodable) == ["k"]
            for read in (each.__getitem__, each.pop, each.setdefault):
                with pytest.raises(DecodingError, match="'k' cannot be read: DataError"):
                    read("k")
        with transaction.atomic():
            assert list(again(d)) == ["a"]
            shown["b"] = None
            assert set(shown) == {"a", "b"}
            assert list(shown.undecodable) == ["k"]
            del shown["b"]
        with pytest.raises(DecodingError, match="'k'"):
            shown.compute("k", lambda value: None)
        shown["k"] = None
        assert d == again(d) == {"a": None, "k": None}
        put(d, "l", stored)
        del shown["l"]
        put(d, "m", stored)
        shown.replace_all({"a": None})
        assert d == again(d) == {"a": None}


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("stored", NO_DATES)
def test_a_date_in_another_column_harms_no_more_than_its_instance(
    stored: str, instances: bool
) -> None:
    with a_dict("Guest", "default") as d:
        d.update({"a": 1, "k": 2})
        set_column("default", "guest", "since", stored, "k")
        shown = again(d, return_instances=instances)
        assert set(shown) | set(shown.undecodable) == {"a", "k"}
        assert list(shown.undecodable) == (["k"] if instances else [])
        assert again(d) == {"a": 1, "k": 2}
        if instances:
            assert shown["a"].get_deferred_fields() == set()
        shown["k"] = 3
        assert shown.compute("k", lambda value: value + 1) is not None
        assert again(d) == {"a": 1, "k": 4}
        del shown["k"]
        assert again(d) == {"a": 1}


def test_rows_are_read_cell_by_cell_only_where_one_is_harmed() -> None:
    with a_dict("Measured", "default", value_col="moment") as d:
        d["a"] = None
        with selects("default") as sent:
            again(d).sync()
            d._fetch("a")
            assert len(sent) == 2
            put(d, "k", "infinity")
            del sent[:]
            again(d).sync()
            assert len(sent) == 2


def test_more_rows_than_a_driver_is_asked_for_at_once_are_all_read() -> None:
    """Django takes 100 at once."""
    with a_dict("Guest", "default", return_instances=True) as d:
        d.update({f"k{number}": number for number in range(250)})
        set_column("default", "guest", "since", "infinity", "k107")
        fresh = again(d, return_instances=True)
        assert set(fresh) == {f"k{number}" for number in range(250)} - {"k107"}
        assert {each.key for each in fresh.values()} == set(fresh)
        assert list(fresh.undecodable) == ["k107"]


def test_what_the_server_itself_refuses_is_not_asked_again() -> None:
    from django.db import DataError

    with a_dict("Guest", "default") as d:
        d["a"] = 1
        rows = d.manager.extra(where=["1 / (length(key) - 1) = 1"])
        manager = type("Refused", (), {"model": d.model, "all": lambda self: rows.all()})()
        refused = ModelDict[Any, Any](manager, "redis")
        with selects("default") as sent, pytest.raises(DataError, match="division by zero"):
            refused.sync()
        assert len(sent) == 1


# -- SQLite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_only_after_an_error_a_row_is_read_otherwise_than_django_reads_it(
    use: Callable[[ModelDict[Any, Any]], object], instances: bool
) -> None:
    """Cell by cell takes longer: there the columns have lost their types."""
    with a_dict("Guest", "sqlite") as d:
        d.update({"a": 1, "k": 2})
        shown = again(d, return_instances=instances)
        with selects("sqlite") as sent:
            use(shown)
        assert sent
        assert not any('+"djangoapp_guest"' in sql for sql in sent)
        d["a"] = 3
        set_column("sqlite", "guest", "id", "no UUID", "a")
        set_column("sqlite", "guest", "value", memoryview(b"\xff"), "a")
        cast_to_text("guest", "a")
        with selects("sqlite") as sent:
            try:
                use(again(d, return_instances=instances))
            except DecodingError:
                pass  # of a value that `compute` would be given
        assert any('+"djangoapp_guest"' in sql for sql in sent)


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("stored", NO_UUIDS)
def test_a_primary_key_that_is_none_harms_no_more_than_its_instance(
    stored: Any, instances: bool
) -> None:
    with a_dict("Guest", "sqlite") as d:
        d.update({"a": 1, "k": 2, "l": 3})
        set_column("sqlite", "guest", "id", stored, "k")
        shown = again(d, return_instances=instances)
        assert set(shown) | set(shown.undecodable) == {"a", "k", "l"}
        assert list(shown.undecodable) == (["k"] if instances else [])
        shown["k"] = 4
        assert again(d) == {"a": 1, "k": 4, "l": 3}
        assert list(shown.undecodable) == (["k"] if instances else [])
        assert shown.compute("k", lambda value: value + 1) is not None
        assert again(d)["k"] == 5
        with pytest.raises(DecodingError, match="the row of key 'k' cannot be read"):
            shown.get_or_create("k", 6)
        shown.update({"k": 7, "l": 8})
        assert d == {"a": 1, "k": 7, "l": 8}
        del shown["k"]
        assert "k" not in shown
        assert "k" not in shown.undecodable
        assert again(d) == {"a": 1, "l": 8}
        shown["k"] = 9
        assert not shown.undecodable
        assert d == {"a": 1, "k": 9, "l": 8}


def test_a_field_is_not_handed_what_the_driver_could_not_read() -> None:
    """It might make something of it."""
    with a_dict("Secret", "sqlite") as d:
        put(d, "k", b"1000000\xff", cast="%s, CAST(%s AS TEXT)")
        with pytest.raises(DecodingError, match="cannot be read: UnicodeDecodeError"):
            d["k"]


def test_a_time_limit_in_a_field_is_none_of_the_cell_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.djangoapp.models import Salted

    read = Salted.from_db_value

    def interrupted(field: Any, value: Any, *arguments: Any) -> Any:
        arrive()
        return read(field, value, *arguments)

    with a_dict("Secret", "sqlite") as d:
        d["a"] = 1
        put(d, "k", b"1000000\xff", cast="%s, CAST(%s AS TEXT)")  # so that it is read by cells
        with handled(limit), monkeypatch.context() as patched:
            patched.setattr(Salted, "from_db_value", interrupted)
            with pytest.raises(TooLateError):
                again(d).sync()
        assert again(d) == {"a": 1}


def test_a_row_without_a_primary_key_that_comes_and_goes_is_written_in_the_end() -> None:
    with a_dict("Guest", "sqlite") as d:
        d.update({"a": 1, "k": 2})
        set_column("sqlite", "guest", "id", "no UUID", "k")
        find = d._rows.find

        def removed_meanwhile(connection: Any, key: Any) -> Any:
            found = find(connection, key)
            d.model.objects.using("sqlite").filter(key=key)._raw_delete("sqlite")
            d._rows.find = find  # type: ignore[method-assign]  # at the critical point
            return found

        d._rows.find = removed_meanwhile  # type: ignore[method-assign]  # at the critical point
        d["k"] = 3
        assert again(d) == {"a": 1, "k": 3}


def test_a_foreign_key_that_is_none_harms_no_more_than_its_instance() -> None:
    from django.db import connections

    with a_dict("Guest", "sqlite") as d:
        d.update({"a": 1, "k": 2})
        with connections["sqlite"].constraint_checks_disabled():
            set_column("sqlite", "guest", "host_id", "no UUID", "k")
            for manager in (d.model.objects, d.model.joined, d.model.prefetched):
                shown = ModelDict[Any, Any](manager, "redis", using="sqlite", return_instances=True)
                assert list(shown) == ["a"]
                assert list(shown.undecodable) == ["k"]
            shown["k"] = 3
            assert again(d) == {"a": 1, "k": 3}
            del shown["k"]
            assert again(d) == {"a": 1}


def test_objects_that_came_with_each_other_are_not_followed_for_ever() -> None:
    """So they are where a manager joins the other end of a OneToOneField."""
    from durabledict.modeldamage import harm_of
    from tests.djangoapp.models import Guest

    guest, host = Guest(key="guest"), Guest(key="host")
    guest.host, host.host = host, guest
    assert harm_of(guest) is None
    assert guest.host is host


@pytest.mark.parametrize("using", ["default", "sqlite"])
@pytest.mark.parametrize("joined", ["joined", "prefetched"])
def test_an_object_that_comes_with_a_row_harms_its_own_key_alone(using: str, joined: str) -> None:
    from django.db import DataError

    from tests.djangoapp.models import Guest

    with a_dict("Guest", using) as d:
        d.update({"a": 1, "b": 2, "host": 3, "well": 4})
        rows = Guest.objects.using(using)
        rows.filter(key="a").update(host=rows.get(key="host"))
        rows.filter(key="b").update(host=rows.get(key="well"))
        rows.filter(key="host").update(host=rows.get(key="host"))  # nothing is followed for ever
        value = {"default": "infinity", "sqlite": "2026-13-45"}[using]
        set_column(using, "guest", "since", value, "host")
        shown = ModelDict[Any, Any](
            getattr(Guest, joined), "redis", using=using, return_instances=True
        )
        assert set(shown) == {"a", "b", "well"}
        assert list(shown.undecodable) == ["host"]
        with selects(using) as sent:
            assert shown["b"].host.key == "well"
            assert len(sent) == (joined == "prefetched")  # which failed for all of them
        with pytest.raises((DataError, ValueError)):
            shown["a"].host  # noqa: B018  # an attribute that asks the database
