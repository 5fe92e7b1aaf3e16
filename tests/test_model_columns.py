"""ModelDict: what its two columns take, on PostgreSQL and SQLite (rule 3.8)."""

from __future__ import annotations

import base64
import datetime
import json
import logging
import pickle
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durabledict import (
    CompressedEncoding,
    DecodingError,
    EncodingError,
    JSONEncoding,
    ModelDict,
    NoOpEncoding,
    PickleEncoding,
    SignedEncoding,
)
from durabledict.keys import encode_key

from .test_encoding import OLD_MODULES

PAYLOADS = Path(__file__).parent / "data" / "durabledict-0.9-payloads.json"

Make = Callable[..., ModelDict[Any, Any]]


@pytest.fixture(params=["default", "sqlite"])
def make(request: pytest.FixtureRequest, django_project: None) -> Iterator[Make]:
    """Make dicts over one of the models, whose rows go at the end."""
    from tests.djangoapp import models

    using: str = request.param
    used: set[Any] = set()

    def made(model: str, **options: Any) -> ModelDict[Any, Any]:
        kind = getattr(models, model)
        used.add(kind)
        return ModelDict(kind.objects, "redis", using=using, **options)

    yield made
    for kind in used:
        kind.objects.using(using).all()._raw_delete(using)


def rows(d: ModelDict[Any, Any], *names: str) -> list[tuple[Any, ...]]:
    return list(d.model.objects.using(d.using).order_by("pk").values_list(*names))


def again(d: ModelDict[Any, Any], **options: Any) -> ModelDict[Any, Any]:
    """Return another dict over the same rows, as another process has it."""
    return ModelDict(
        d.manager, "redis", key_col=d.key_col, value_col=d.value_col, using=d.using, **options
    )


KEYS: list[Any] = [
    "theme", "a/b", "", " spaces ", "é☃", "a\0b", "\ud800", "~int:1", "~sql:x", '~sql:"a\\u0000b"',
    1, -5, 2**80, 1.5, None, b"\x00\xff", ("eu", 7), ("a\0", (None,)), "\n\t",
]  # fmt: skip


class TestKeys:
    @pytest.mark.parametrize("model", ["Plain", "Binary"])
    def test_text_columns_take_every_key(self, make: Make, model: str) -> None:
        d = make(model)
        expected = {key: [number] for number, key in enumerate(KEYS)}
        for key, value in expected.items():
            d[key] = value
        assert d == expected
        assert again(d) == expected
        d.clear()
        d.update(expected)
        assert again(d) == expected
        for key in KEYS:
            assert d.pop(key) == expected[key]
        assert not again(d)

    def test_a_key_is_stored_as_text_that_a_reader_knows(self, make: Make) -> None:
        d = make("Plain")
        d.update({"theme": 1, 7: 2, "a\0b": 3, "~sql:x": 4})
        assert {key for (key,) in rows(d, "key")} == {
            "theme", "~int:7", '~sql:"a\\u0000b"', "~sql:x",
        }  # fmt: skip

    @given(text=st.text(st.characters(exclude_categories=()), max_size=8))
    @settings(
        max_examples=300,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    def test_the_text_of_a_key_and_the_key_of_a_text_are_inverse(
        self, django_project: None, text: str
    ) -> None:
        from durabledict.modelcolumns import KeyColumn
        from tests.djangoapp.models import Binary

        column = KeyColumn(Binary._meta.pk)
        for key in (text, f"~sql:{text}", f'~sql:"{text}"', (text, 1)):
            stored = column.to_column(key, None)
            assert "\0" not in stored
            assert column.to_key(stored) == key
        if "\0" not in text and text.isprintable():
            # Whatever text stands there is some key, and no two texts are the same one.
            assert column.to_column(column.to_key(text), None) == text
            assert column.to_column(column.to_key(f"~sql:{text}"), None) == f"~sql:{text}"

    def test_a_key_that_is_too_long_is_refused_before_anything_is_sent(self, make: Make) -> None:
        d = make("Plain")
        d["k" * 100] = 1
        stamp = d.last_updated()
        writes: list[Callable[[str], Any]] = [
            lambda key: d.__setitem__(key, 1),
            lambda key: d.update({"good": 1, key: 2}),
            lambda key: d.setdefault(key, 1),
            lambda key: d.replace_all({key: 1}),
            lambda key: d.pop(key),
            lambda key: d.compute(key, lambda value: value, 1),
        ]
        for write in writes:
            with pytest.raises(ValueError, match=r"101 characters .* takes 100"):
                write("k" * 101)
        assert d.last_updated() == stamp
        assert d == {"k" * 100: 1}

    def test_integer_columns_take_integers_alone(self, make: Make) -> None:
        from django.db import connections
        from django.db.models import PositiveIntegerField

        from durabledict.modelcolumns import KeyColumn

        d = make("Document", key_col="number")
        d[1], d[2.0], d[-7] = "one", "two", None
        assert again(d) == {1: "one", 2: "two", -7: None}
        assert {type(key) for key in again(d)} == {int}
        for key in ("1", None, 1.5, (1,), b"1"):
            with pytest.raises(TypeError, match="takes int alone"):
                d[key] = 1
            with pytest.raises(TypeError, match="takes int alone"):
                d.pop(key)
        with pytest.raises(ValueError, match="outside"):
            d[2**63] = 1  # SQLite's integers go as far as that
        assert len(d) == 3
        column = KeyColumn(PositiveIntegerField(name="number"))
        with pytest.raises(ValueError, match="outside of 0 to"):
            column.to_column(-1, connections["default"])  # SQLite of Django 4.2 has none

    def test_uuid_columns_take_uuids_alone(self, make: Make) -> None:
        d = make("Ticket", key_col="id")
        key = uuid.uuid4()
        d[key] = "x"
        assert again(d) == {key: "x"}
        assert d.compute(key, lambda value: value + "y") == "xy"
        with pytest.raises(TypeError, match="takes UUID alone"):
            d[str(key)] = "x"
        from durabledict.testing import override

        with override(d, {key: "shown"}):
            assert d[key] == "shown"
        del d[key]
        assert not again(d)

    @pytest.mark.parametrize(("model", "key_col"), [("Binary", "pk"), ("Ticket", "pk")])
    def test_the_primary_key_by_its_other_name(self, make: Make, model: str, key_col: str) -> None:
        d = make(model, key_col=key_col)
        key: Any = uuid.uuid4() if model == "Ticket" else "k"
        d[key] = 1
        d.update({key: 2})
        assert d.pop(key) == 2
        assert d.setdefault(key, 3) == 3
        assert again(d) == {key: 3}

    def test_other_columns_are_no_keys(self, django_project: None) -> None:
        from tests.djangoapp.models import Switch

        with pytest.raises(TypeError, match="BooleanField: keys are kept in text"):
            ModelDict(Switch.objects, key_col="enabled", value_col="ratio")

    def test_a_key_that_the_collation_joins_with_another_is_refused(
        self, django_project: None
    ) -> None:
        from tests.djangoapp.models import CaseBlind

        d: ModelDict[str, int] = ModelDict(CaseBlind.objects, "redis", using="sqlite")
        try:
            d["Theme"] = 1
            writes: list[Callable[[], Any]] = [
                lambda: d.__setitem__("theme", 2),
                lambda: d.update({"theme": 2}),
                lambda: d.update({"other": 1, "THEME": 2}),
                lambda: d.pop("theme"),
                lambda: d.setdefault("theme", 2),
                lambda: d.__delitem__("theme"),
                lambda: d.compute("theme", lambda value: value, 2),
                lambda: d.replace_all({"theme": 2}),
            ]
            for write in writes:
                with pytest.raises(ValueError, match="collation"):
                    write()
                assert d == again(d) == {"Theme": 1}
            d["Theme"] = 3
            assert again(d) == {"Theme": 3}
        finally:
            CaseBlind.objects.using("sqlite").all().delete()

    def test_a_key_that_two_rows_have_harms_itself_alone(self, make: Make) -> None:
        d = make("Repeated")
        d["good"] = 1
        payload = rows(d, "value")[0][0]
        for _ in range(2):
            d.model(key="twice", value=payload).save(using=d.using)
        assert d == {"good": 1}
        with pytest.raises(DecodingError, match="'twice' cannot be told: several rows"):
            d["twice"]
        assert list(d.undecodable) == ["twice"]


ENCODINGS: list[Any] = [
    None, PickleEncoding, JSONEncoding, CompressedEncoding(), SignedEncoding("a long secret"),
    SignedEncoding("a long secret", JSONEncoding), CompressedEncoding(JSONEncoding),
]  # fmt: skip

VALUES = {"none": None, "int": 1234, "text": "é\u2603", "list": [1, [2.5, None]], "empty": ""}


class TestValues:
    @pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
    @pytest.mark.parametrize("model", ["Plain", "Binary", "Document"])
    def test_each_column_keeps_what_each_encoding_writes(
        self, make: Make, model: str, encoding: Any
    ) -> None:
        named = {"key_col": "number"} if model == "Document" else {}
        d = make(model, encoding=encoding, **named)
        expected = {
            number if named else name: value for number, (name, value) in enumerate(VALUES.items())
        }
        for key, value in expected.items():
            d[key] = value
        assert d == again(d, encoding=encoding) == expected
        d.clear()
        d.update(expected)
        assert d == again(d, encoding=encoding) == expected
        for key, value in expected.items():
            assert d.compare_and_set(key, value, [value])
            assert d.compute(key, lambda value: [*value, 1]) == [value, 1]
        assert again(d, encoding=encoding) == {k: [v, 1] for k, v in expected.items()}
        assert {d.pop(key)[1] for key in expected} == {1}
        assert not again(d, encoding=encoding)

    def test_text_columns_hold_text_and_binary_columns_bytes(self, make: Make) -> None:
        text, binary = make("Plain"), make("Binary")
        text["k"], binary["k"] = [1], [1]
        ((stored,),) = rows(text, "value")
        assert pickle.loads(base64.b64decode(stored)) == [1]
        ((stored,),) = rows(binary, "value")
        assert pickle.loads(bytes(stored)) == [1]
        text, binary = make("Plain", encoding=JSONEncoding), make("Binary", encoding=JSONEncoding)
        text["k"], binary["k"] = [1], [1]
        assert rows(text, "value") == [("[1]",)]
        assert bytes(rows(binary, "value")[0][0]) == b"[1]"

    def test_what_0_9_wrote_is_read(self, make: Make) -> None:
        cases = json.loads(PAYLOADS.read_text())["cases"]
        d = make("Plain")
        for case in cases:
            d.model(key=case["name"], value=case["payload"]).save(using=d.using)
            expected = {case["name"]: eval(case["expected"], dict(OLD_MODULES)) for case in cases}
        assert d == expected
        assert d.migrate() == len(cases)
        assert again(d) == expected

    def test_a_json_column_holds_native_json(self, make: Make) -> None:
        from django.db.models import JSONField, Value

        d = make("Document", key_col="number")
        d[1], d[2], d[3] = {"a": (1, 2)}, None, "text"
        assert d[1] == {"a": [1, 2]}  # as it comes back
        found = d.model.objects.using(d.using)
        assert found.get(value__a=[1, 2]).number == 1
        assert found.get(value=Value(None, JSONField())).number == 2  # JSON's null, not SQL's
        assert not found.filter(value__isnull=True)
        assert d.compare_and_set(2, None, {"b": 1})
        d.update({2: None, 4: None})
        assert again(d) == {1: {"a": [1, 2]}, 2: None, 3: "text", 4: None}
        for bad in ({1, 2}, float("nan"), "a\0b", "\ud800", object()):
            with pytest.raises(EncodingError, match="key 1"):
                d[1] = bad
        assert d[1] == {"a": [1, 2]}

    def test_other_columns_keep_their_own_values(self, make: Make) -> None:
        d = make("Switch", key_col="name", value_col="enabled")
        d["beta"] = True
        d["off"] = 0
        assert again(d) == {"beta": True, "off": False}
        assert {type(value) for value in d.values()} == {bool}
        assert d.compute("off", lambda value: not value) is True
        assert d.compare_and_set("beta", True, False)
        refused: list[Any] = [None, "perhaps", []]
        for bad in refused:
            with pytest.raises(EncodingError, match="'beta'"):
                d["beta"] = bad
        assert rows(d, "name", "enabled") == [("beta", False), ("off", True)]
        ratios = make("Switch", key_col="name", value_col="ratio")
        ratios["beta"] = 0.5
        ratios["off"] = None
        assert again(ratios) == {"beta": 0.5, "off": None}
        with pytest.raises(TypeError, match="keeps its own values"):
            make("Switch", key_col="name", value_col="enabled", encoding=JSONEncoding)

    def test_a_value_that_is_too_long_is_refused_before_anything_is_sent(self, make: Make) -> None:
        d = make("Switch", key_col="name", value_col="name", encoding=NoOpEncoding)
        stamp = d.last_updated()
        writes: list[Callable[..., Any]] = [
            d.persist,
            lambda key, value: d.persist_many({key: value}),
        ]
        for write in writes:
            with pytest.raises(ValueError, match=r"takes 51 characters .* room for 50"):
                write("k", "v" * 51)
        assert d.last_updated() == stamp

    def test_what_a_column_would_make_text_of_in_its_own_way_is_refused(self, make: Make) -> None:
        """Or who writes b"v" would have that, and everybody else the text "b'v'"."""
        d = make("Plain", encoding=NoOpEncoding)
        stamp = d.last_updated()
        for bad in (b"v", bytearray(b"v"), 5, None):
            for write in (d.persist, lambda key, value: d.update({key: value})):
                with pytest.raises(EncodingError, match=r"key 'k' .*Plain\.value holds str, so"):
                    write("k", bad)
        assert d.last_updated() == stamp
        d["k"] = "v"
        assert again(d, encoding=NoOpEncoding) == {"k": "v"}

    def test_a_running_system_moves_from_pickles_to_json(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = make("Plain")
        old.update({"list": [1], "digits": 1234, "text": "abcd"})
        new = again(old, encoding=JSONEncoding, old_encoding=PickleEncoding)
        assert new == {"list": [1], "digits": 1234, "text": "abcd"}
        new["more"] = 1234  # to base64 these digits are three bytes
        assert new.migrate() == 4
        assert again(old, encoding=JSONEncoding) == dict(new)
        back = again(old, old_encoding=JSONEncoding)
        assert back == dict(new)
        back.migrate()
        with caplog.at_level(logging.ERROR):
            assert again(old) == dict(new)

    def test_a_payload_copied_from_another_key_is_refused(self, make: Make) -> None:
        d = make("Plain", encoding=SignedEncoding("a long secret"))
        d["a"], d["b"] = 1, 2
        ((payload,),) = d.model.objects.using(d.using).filter(key="a").values_list("value")
        d.model.objects.using(d.using).filter(key="b").update(value=payload)
        d.touch_last_updated()
        assert d == {"a": 1}
        with pytest.raises(DecodingError, match="signature"):
            d["b"]

    def test_timestamps_follow_every_write(self, make: Make) -> None:
        d = make("Binary")
        d["k"] = 1
        marker = datetime.datetime(2001, 1, 1, tzinfo=datetime.timezone.utc)
        writes: list[Callable[[], Any]] = [
            lambda: d.__setitem__("k", 2),
            lambda: d.update(k=3),
            lambda: d.compute("k", lambda value: value + 1),
            lambda: d.replace_all({"k": 9}),
        ]
        for write in writes:
            d.model.objects.using(d.using).update(changed=marker, note="kept")
            write()
            ((changed, note),) = rows(d, "changed", "note")
            assert changed > marker
            assert note == "kept"  # the other columns are left as they are


def test_keys_are_told_apart_as_in_the_other_backends(django_project: None) -> None:
    from durabledict.modelcolumns import KeyColumn
    from tests.djangoapp.models import Binary

    column = KeyColumn(Binary._meta.pk)
    for key in ("plain", 1, 1.5, None, b"x", ("a",)):
        assert column.to_column(key, None) == encode_key(key)
