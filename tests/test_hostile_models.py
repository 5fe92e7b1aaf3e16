"""Rows of Django's models that another program wrote: each harms its own key alone.

docs/internals.rst, rules 6.1 to 6.4.
"""

from __future__ import annotations

import base64
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from durabledict import (
    CompressedEncoding,
    DecodingError,
    JSONEncoding,
    ModelDict,
    PickleEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
)
from durabledict.keys import decode_key

from .hostile import Canary
from .test_hostile_rows import GOOD, HOSTILE_TEXTS, PAYLOADS, TEXTS, assert_the_others_are_there

pytestmark = pytest.mark.usefixtures("django_project")

relaxed = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

SAFE = RestrictedPickleEncoding()

ENCODINGS: dict[str, Any] = {
    "restricted": SAFE,
    "signed": SignedEncoding("a long secret", SAFE),
    "compressed": CompressedEncoding(SAFE),
    "json": JSONEncoding,
}

#: A JSON document that Python's parser gives up at, and one that is a number to a database alone.
DEEP = "[" * 3000 + "]" * 3000
LONG = "9" * 5000


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as made:
        yield made


@contextmanager
def a_dict(model: str, using: str, **options: Any) -> Iterator[ModelDict[Any, Any]]:
    """Make a dict over one of the models, whose rows go at the end."""
    from tests.djangoapp import models

    kind = getattr(models, model)
    kind.objects.using(using).all()._raw_delete(using)
    try:
        yield ModelDict(kind.objects, "redis", using=using, **options)
    finally:
        kind.objects.using(using).all()._raw_delete(using)


def put(d: ModelDict[Any, Any], key: Any, value: Any, *, cast: str = "%s, %s", **more: Any) -> None:
    """Write a row past Django, and tell of it."""
    from django.db import connections

    connection = connections[d.using or "default"]
    fields = [d._key_column.field, d._value_column.field]
    names = [*(field.column for field in fields), *more]
    marks = ", ".join([cast, *["%s"] * len(more)])
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = ON")
        columns = ", ".join(map(connection.ops.quote_name, names))
        table = connection.ops.quote_name(d.model._meta.db_table)
        cursor.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})", [key, value, *more.values()]
        )
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = OFF")
    d.touch_last_updated()


def again(d: ModelDict[Any, Any], **options: Any) -> ModelDict[Any, Any]:
    encoding = None if d._value_column.native is not None else d.encoding
    options = {"encoding": encoding, "key_col": d.key_col, "value_col": d.value_col, **options}
    return ModelDict(d.manager, "redis", using=d.using, **options)


def assert_it_is_one_for_all(d: ModelDict[Any, Any], late: ModelDict[Any, Any]) -> None:
    """See that a first load, a later one, and a transaction of its own show the same."""
    from django.db import transaction

    late.sync()
    fresh = again(d)
    for each in (late, fresh):
        assert each.copy() == d.copy()
        assert set(each.undecodable) == set(d.undecodable)
    with transaction.atomic(using=d.using):
        assert fresh.copy() == d.copy()
        fresh["in a transaction"] = 1
        assert fresh.copy() == {**d.copy(), "in a transaction": 1}
        transaction.set_rollback(True, using=d.using)


# -- text columns ---------------------------------------------------------------------------------


TEXT_KEYS = st.one_of(
    HOSTILE_TEXTS,
    TEXTS.map(lambda text: f"~sql:{text}"),
    TEXTS.map(lambda text: f"~sql:{json.dumps(text)}"),
    st.sampled_from(
        [
            '~sql:"a\\u0000b"',
            '~str:"\\ud800"',
            "~utf8:eda080eda080",
            "~tuple:" + "[" * 90,
            "~int:" + "9" * 90,
            "k" * 100,
            "",
        ]
    ),
)
TEXT_VALUES = st.one_of(
    st.none(),
    PAYLOADS.map(lambda payload: base64.b64encode(payload).decode()),
    HOSTILE_TEXTS,
    st.just("A" * 100_000),
    st.sampled_from([DEEP, LONG, "{", "null", "gASV", "~", "=", "gAROLg=="]),
    *(
        st.builds(lambda value, e=each: _as_text(e.encode(value)), st.integers())
        for each in (SAFE, PickleEncoding, JSONEncoding, CompressedEncoding(JSONEncoding))
    ),
)


def _as_text(payload: Any) -> str:
    return payload if isinstance(payload, str) else base64.b64encode(payload).decode()


def without_nul(text: Any) -> Any:
    return text.replace("\0", "") if isinstance(text, str) else text


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("using", ["default", "sqlite"])
@given(rows=st.dictionaries(TEXT_KEYS.map(without_nul), TEXT_VALUES.map(without_nul), max_size=5))
@example(rows={"a2": None, "~int:7": "x"})
@relaxed
def test_text_of_another_program(
    canary: Canary, using: str, name: str, rows: dict[str, str | None]
) -> None:
    with a_dict("Loose", using, encoding=ENCODINGS[name]) as d:
        d.update(GOOD)
        late = again(d, autosync=False)
        late.sync()
        for key, value in rows.items():
            if key not in GOOD:
                put(d, key[:100], value)
        assert_it_is_one_for_all(d, late)
        to_key = d._key_column.to_key
        assert_the_others_are_there(d, GOOD, {to_key(key[:100]) for key in rows} - set(GOOD))
        assert d.model.objects.using(using).count() == len(GOOD)
    assert not canary.sang()


@pytest.mark.parametrize("using", ["default", "sqlite"])
@given(rows=st.dictionaries(TEXT_KEYS.map(without_nul), TEXT_VALUES.map(without_nul), max_size=5))
@relaxed
def test_settings_of_another_program(
    canary: Canary, using: str, rows: dict[str, str | None]
) -> None:
    from durabledict.ext.django import SettingsDict

    with (
        SettingsDict[Any, Any]("hostile", encoding=SAFE, using=using, cache="redis") as d,
        SettingsDict[Any, Any]("other", encoding=SAFE, using=using, cache="redis") as other,
    ):
        for each in (d, other):
            each.clear()
            each.update(GOOD)
        for key, value in rows.items():
            if key not in GOOD:
                put(d, key, value or "", keyspace="hostile")
        to_key = d._key_column.to_key
        assert_the_others_are_there(d, GOOD, {to_key(key) for key in rows} - set(GOOD))
        assert other == GOOD
        other.clear()
        assert d == GOOD
        d.clear()
    assert not canary.sang()


# -- SQLite takes anything in any column ----------------------------------------------------------


ANYTHING = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0.5, -1.5]),
    TEXTS,
    st.just("a\0b"),
    st.binary(max_size=8),
    PAYLOADS,
)
#: Bytes that are said to be text.
CASTS = {"as it is": "%s, %s", "as text": "CAST(%s AS TEXT), CAST(%s AS TEXT)"}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("model", ["Loose", "Binary"])
@given(rows=st.lists(st.tuples(ANYTHING, ANYTHING), max_size=4))
@example(rows=[(b"\xff", b"\xff"), (None, None), ("good", 10**18), ("a\0b", "x")])
@example(rows=[("k", b"\xff\xfe"), (b"k", "k")])
@relaxed
def test_sqlite_holds_anything(
    canary: Canary, model: str, cast: str, rows: list[tuple[Any, Any]]
) -> None:
    from django.db import IntegrityError

    with a_dict(model, "sqlite", encoding=SAFE) as d:
        d.update(GOOD)
        late = again(d, autosync=False)
        late.sync()
        keys = set()
        more = {"changed": "2026-01-01", "note": ""} if model == "Binary" else {}
        for key, value in rows:
            try:
                put(d, key, value, cast=CASTS[cast], **more)
            except IntegrityError:
                pass  # the key is there, or it is NULL in a column without
            else:
                keys.add(_shown(key, cast))
        assert_it_is_one_for_all(d, late)
        assert_the_others_are_there(d, GOOD, keys - {NO_KEY} - set(GOOD))
        d.clear()
        assert not again(d)
    assert not canary.sang()


NO_KEY = object()


def _shown(stored: Any, cast: str) -> Any:
    """Return the key that such a row has."""
    if isinstance(stored, bytes):
        try:
            stored = stored.decode() if cast == "as text" else None
        except UnicodeDecodeError:
            return NO_KEY
    if stored is None or "\0" in str(stored):
        return NO_KEY
    return decode_key(str(stored))


# -- columns of other kinds -----------------------------------------------------------------------


JSON: dict[str, list[Any]] = {
    "default": [DEEP, LONG, '{"a": [1e400]}', '"\\ud83d\\ude00"', "[[]]", '"gAROLg=="'],
    "sqlite": [
        *(DEEP, LONG, "{", "", "nan", b"\xff", b"{}", 5, '"\\ud800"', '{"a": 1, "a": 2}'),
    ],
}


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize(
    ("using", "number"), [(using, number) for using in JSON for number in range(len(JSON[using]))]
)
def test_json_of_another_program(using: str, number: int, instances: bool) -> None:
    cast = "%s, CAST(%s AS TEXT)" if number % 2 else "%s, %s"
    with a_dict("Document", using, key_col="number") as d:
        d.update({1: 1, 2: [2], 3: None})
        late = again(d, autosync=False)
        late.sync()
        put(d, 5, JSON[using][number], cast=cast if using == "sqlite" else "%s, %s")
        with a_dict_of_instances(d) if instances else again(d) as shown:
            if 5 in shown.undecodable:
                for read in (shown.__getitem__, shown.pop, shown.setdefault):
                    with pytest.raises(DecodingError, match="key 5"):
                        read(5)
                with pytest.raises(DecodingError, match="key 5"):
                    shown.compare_and_set(5, 1, 2)
            if instances:
                assert shown[2].get_deferred_fields() == set()
            assert set(shown) | set(shown.undecodable) == {1, 2, 3, 5}
            assert shown.compute(1, lambda value: 7) is not None
            assert shown.compare_and_set(2, [2], 8)
            del shown[5]
            assert set(shown) == {1, 2, 3}
            put(d, 5, JSON[using][number], cast=cast if using == "sqlite" else "%s, %s")
            shown[5] = "mended"
            assert late.sync()
            assert late == {1: 7, 2: 8, 3: None, 5: "mended"}
            put(d, 6, JSON[using][number], cast=cast if using == "sqlite" else "%s, %s")
            shown.replace_all({1: 1})
            assert again(d) == {1: 1}


def a_dict_of_instances(d: ModelDict[Any, Any]) -> ModelDict[Any, Any]:
    return again(d, return_instances=True)


@pytest.mark.parametrize(
    ("model", "key_col", "value_col", "good", "bad", "more"),
    [
        ("Switch", "name", "ratio", {"a": 0.5, "b": None}, "no number", {"enabled": False}),
        ("Switch", "name", "ratio", {"a": 0.5, "b": None}, b"\xff", {"enabled": False}),
        ("Measured", "key", "price", {"a": None}, "no number", {}),
        ("Measured", "key", "price", {"a": None}, b"\xff", {}),
        ("Measured", "key", "moment", {"a": None}, "2026-13-45 00:00:00", {}),
        ("Measured", "key", "moment", {"a": None}, 10**18, {}),
    ],
)
def test_sqlite_holds_anything_in_columns_of_other_kinds(
    model: str, key_col: str, value_col: str, good: dict[str, Any], bad: Any, more: dict[str, Any]
) -> None:
    with a_dict(model, "sqlite", key_col=key_col, value_col=value_col) as d:
        d.update(good)
        put(d, "k", bad, **more)
        assert {key: d[key] for key in good} == good
        assert set(d) | set(d.undecodable) == {*good, "k"}
        d["k"] = None
        assert d == {**good, "k": None} == again(d)
        del d["k"]
        assert d == good


@pytest.mark.parametrize("stored", ["no UUID", b"\xff", 5, "\0"])
def test_a_uuid_that_is_none(stored: Any, caplog: pytest.LogCaptureFixture) -> None:
    with a_dict("Ticket", "sqlite", key_col="id") as d:
        key = uuid.uuid4()
        d[key] = 1
        put(d, stored, "x")
        with caplog.at_level(logging.WARNING):
            assert d == again(d) == {key: 1}
        assert "left out of the local copy" in caplog.text
        d[key] = 2
        assert d == {key: 2}
        d.clear()
        assert not again(d)


@pytest.mark.parametrize("stored", ["text", b"5", 1.5])
def test_an_integer_that_is_none(stored: Any) -> None:
    with a_dict("Document", "sqlite", key_col="number") as d:
        d[1] = "one"
        put(d, stored, "2")
        assert d == again(d) == {1: "one"}
        assert again(d, return_instances=True).keys() == {1: None}.keys()
        d[1] = "two"
        d.clear()
        assert not again(d)


def test_a_row_without_a_key_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for using in ("default", "sqlite"):
        caplog.clear()
        with a_dict("Loose", using) as d, caplog.at_level(logging.WARNING):
            d["a"] = 1
            put(d, None, "x")
            put(d, None, "y")
            assert d == {"a": 1}
            for number in range(3):
                d["a"] = number
                assert d == {"a": number}
                d.sync(force=True)
            assert not d.undecodable
            assert [record.getMessage() for record in caplog.records] == [
                "a row is left out of the local copy: None in the column djangoapp.Loose.key "
                "stands for no key"
            ]


@pytest.mark.parametrize("using", ["default", "sqlite"])
def test_a_row_without_a_key_whose_value_is_good_is_left_out(using: str) -> None:
    with a_dict("Loose", using) as d:
        d["a"] = 1
        assert d == {"a": 1}
        put(d, None, "gARLBS4=")
        assert d == {"a": 1}
        assert None not in d


@pytest.mark.parametrize("using", ["default", "sqlite"])
def test_a_transaction_keeps_to_itself_what_it_read_beside_a_bad_row(using: str) -> None:
    from django.db import connections, transaction

    with a_dict("Document", using, key_col="number") as d:
        d[1] = 1
        put(d, 5, LONG)
        assert d == {1: 1}
        with transaction.atomic(using=using):
            with connections[using].cursor() as cursor:
                cursor.execute("INSERT INTO djangoapp_document (number, value) VALUES (8, '8')")
            d.sync(force=True)
            assert d == {1: 1, 8: 8}
            transaction.set_rollback(True, using=using)
        assert d == {1: 1}


def test_a_key_longer_than_its_column_can_be_removed() -> None:
    """SQLite takes it from another program, and the dict would not."""
    with a_dict("Plain", "sqlite") as d:
        d["a"] = 1
        put(d, "k" * 200, "gARLBS4=")
        assert d == {"a": 1, "k" * 200: 5}
        with pytest.raises(ValueError, match="200 characters"):
            d["k" * 200] = 6
        del d["k" * 200]
        assert d == again(d) == {"a": 1}


USES: dict[str, Callable[[ModelDict[Any, Any]], object]] = {
    "load": lambda d: d._load(),
    "set": lambda d: d.__setitem__("a", 2),
    "delete": lambda d: d.__delitem__("a"),
    "compute": lambda d: d.compute("a", lambda value: 2),
    "replace_all": lambda d: d.replace_all({"a": 2}),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("using", ["default", "sqlite"])
def test_a_query_that_fails_for_another_reason_is_not_asked_again(
    using: str, use: Callable[[ModelDict[Any, Any]], object]
) -> None:
    """An error of the database's, or of the stack's, says nothing of a row."""
    from django.db import DatabaseError, connections

    with a_dict("Plain", using) as d:
        d["a"] = 1
        asked = []

        def refuse(execute: Any, sql: str, *arguments: Any) -> Any:
            if not sql.startswith("SELECT"):
                return execute(sql, *arguments)
            asked.append(sql)
            raise DatabaseError("disk I/O error")

        with (
            connections[using].execute_wrapper(refuse),
            pytest.raises(DatabaseError, match="disk I/O"),
        ):
            use(d)
        assert len(asked) == 1
        assert again(d) == {"a": 1}


class TookTooLongError(Exception):
    """What the signal of a task's time limit raises, wherever the task is."""


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("using", ["default", "sqlite"])
def test_a_time_limit_is_none_of_the_rows(using: str, instances: bool) -> None:
    """It is not taken for what a row holds, and asked past, as if there were no limit."""
    from django.db import connections

    connection = connections[using]
    with a_dict("Plain", using) as d:
        d["a"] = 1
        shown = again(d, return_instances=instances)
        for use in USES.values():
            raised: list[str] = []

            def limit(execute: Any, sql: str, *arguments: Any, raised: list[str] = raised) -> Any:
                if sql.startswith("SELECT") and not raised:
                    raised.append(sql)
                    raise TookTooLongError
                return execute(sql, *arguments)

            with connection.execute_wrapper(limit), pytest.raises(TookTooLongError):
                use(shown)
            assert raised
            assert again(d) == {"a": 1}


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("model", ["Plain", "Binary"])
def test_a_key_that_is_no_utf_8_is_none_of_the_instances_either(
    model: str, instances: bool, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"changed": "2026-01-01", "note": ""} if model == "Binary" else {}
    with a_dict(model, "sqlite") as d:
        d["a"] = 1
        put(d, b"k\xff", "gARLBS4=", cast="CAST(%s AS TEXT), %s", **more)
        shown = again(d, return_instances=instances)
        with caplog.at_level(logging.WARNING):
            assert list(shown) == ["a"]
        assert not shown.undecodable
        assert "stands for no key" in caplog.text


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("column", ["note", "changed"])
def test_a_column_that_is_none_of_the_dict_s_does_not_keep_a_row_from_being_written(
    column: str, instances: bool
) -> None:
    from django.db import connections

    with a_dict("Binary", "sqlite") as d:
        d["a"] = 1
        columns = {"changed": "2026-01-01", "note": ""}
        for key in ("k", "l"):
            put(d, key, PickleEncoding.encode(5), **columns)
        bad = {"note": "CAST(x'ff' AS TEXT)", "changed": "'2026-13-45 00:00:00'"}[column]
        with connections["sqlite"].cursor() as cursor:
            cursor.execute(f"UPDATE djangoapp_binary SET {column} = {bad} WHERE key <> 'a'")
        shown = again(d, return_instances=instances)
        assert set(shown) | set(shown.undecodable) == {"a", "k", "l"}
        assert set(shown.undecodable) == ({"k", "l"} if instances else set())
        shown["k"] = 7
        assert again(d) == {"a": 1, "k": 7, "l": 5}
        del shown["k"]
        del shown["l"]
        assert again(d) == {"a": 1}


# -- the stamp ------------------------------------------------------------------------------------


@pytest.mark.parametrize("using", ["default", "sqlite"])
@pytest.mark.parametrize("cache", ["default", "redis"])
@given(
    stored=st.one_of(
        PAYLOADS,
        TEXTS.map(str.encode),
        st.integers().map(lambda number: b"%d" % number),
        st.sampled_from([b"", b" ", b"1e30", b"9" * 5000, b"-1", b"0x10", b"\xff", b"5 "]),
    )
)
@relaxed
def test_a_stamp_of_another_program(canary: Canary, cache: str, using: str, stored: bytes) -> None:
    """Whatever stands there is put right by the next read or write, and no write is missed."""
    from tests.djangoapp.models import Plain

    one, other = (
        ModelDict[Any, Any](Plain.objects, cache, using=using, cache_key="hostile")
        for _ in range(2)
    )
    put_stamp = _raw_stamp(cache)
    try:
        one["a"] = 1
        assert other == {"a": 1}
        put_stamp(stored)
        assert one == other == {"a": 1}
        put_stamp(stored)
        one["a"] = 2
        assert other == {"a": 2}
        put_stamp(stored)
        del one["a"]
        one["b"] = 3
        assert other == {"b": 3}
        assert one == {"b": 3}
    finally:
        Plain.objects.using(using).all()._raw_delete(using)
    assert not canary.sang()


def _raw_stamp(alias: str) -> Callable[[bytes], Any]:
    """Return what puts bytes where the stamp is, with the flags of a pickle in memcached."""
    from django.core.cache import caches

    cache: Any = caches[alias]
    name = cache.make_and_validate_key("hostile")
    if alias == "redis":
        client = cache._cache.get_client(write=True)
        return lambda stored: client.set(name, stored)
    return lambda stored: cache._cache.set(name, stored, flags=1, noreply=False)


def test_a_pickle_in_place_of_the_stamp_is_not_loaded(canary: Canary) -> None:
    from django.core.cache import caches

    from tests.djangoapp.models import Plain

    for alias in ("default", "redis"):
        caches[alias].set("hostile", canary, timeout=None)
        d = ModelDict[Any, Any](Plain.objects, alias, cache_key="hostile")
        assert not d
        d["a"] = 1
        assert d == {"a": 1}
        d.clear()
        assert not canary.sang()
        caches[alias].set("hostile", canary, timeout=None)
        caches[alias].get("hostile")  # Django does
        assert canary.sang()
        canary.silence()
