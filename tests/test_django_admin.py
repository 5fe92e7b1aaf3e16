"""The admin of `Setting`: what it shows and does, and what it never runs."""

from __future__ import annotations

import base64
import decimal
import gc
import pickle
import pickletools
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from durabledict import (
    CompressedEncoding,
    JSONEncoding,
    PickleEncoding,
    SignedEncoding,
)

from .djangofolders import overridden_settings


class Colour:
    """A class that a project may allow."""

    def __repr__(self) -> str:
        return "<a colour>"


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Hostile:
    """Leaves a trace when it is unpickled."""

    trace: list[str] = []

    def __reduce__(self) -> Any:
        return leave_trace, ("was run",)


def leave_trace(word: str) -> str:
    Hostile.trace.append(word)
    return word


def stored(value: Any, encoding: Any = PickleEncoding) -> str:
    """Return what stands in the column for a value."""
    payload = encoding.encode(value)
    return payload if isinstance(payload, str) else base64.b64encode(payload).decode()


def in_column(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def shown(payload: str, *arguments: Any, **options: Any) -> str:
    from durabledict.ext.django.rendering import shown

    return shown(payload, *arguments, **options)


# -- values as text ---------------------------------------------------------------------------


@pytest.mark.usefixtures("django_project")
class TestShown:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            3,
            2.5,
            "text",
            b"bytes",
            bytearray(b"bytes"),
            [1, [2]],
            (1,),
            (),
            {"a": {"b": (1, 2)}},
            {1, 2},
            set(),
            frozenset({1}),
            frozenset(),
            1 + 2j,
            ["same", "same", "same"] * 3,
        ],
    )
    def test_a_pickle_of_plain_values(self, value: Any) -> None:
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            payload = in_column(pickle.dumps(value, protocol))
            least: dict[type, int] = {bytes: 3, bytearray: 5}
            if protocol < least.get(type(value), 0):
                # Written as calls, of codecs.encode or bytearray, which are not allowed.
                assert "(not shown)" in shown(payload)
            else:
                assert eval(shown(payload)) == value

    def test_what_0_9_wrote(self) -> None:
        assert shown("gAJLBy4=\n") == "7"
        long = "x" * 90
        assert shown(base64.encodebytes(pickle.dumps(long, 2)).decode()) == repr(long)

    @pytest.mark.parametrize("payload", ['{"beta": true}', "true", "NaN", '"\\ud800"', "[1]", "12"])
    def test_json_is_shown_as_it_is(self, payload: str) -> None:
        assert shown(payload) == payload

    @pytest.mark.parametrize("payload", ["", "text", "no base64 \xe4", "[1", "\x00", "Zm9v"])
    def test_other_text_is_shown_as_it_is(self, payload: str) -> None:
        assert shown(payload) == payload

    def test_text_that_looks_like_endless_json(self) -> None:
        from durabledict.ext.django.rendering import is_json

        assert not is_json("[" * 100_000)
        assert shown("[" * 100_000) == "[" * 97 + "..."

    def test_signed_and_compressed_payloads(self) -> None:
        signed = stored(1, SignedEncoding("secret"))
        assert re.fullmatch(r"signed, \d+ bytes \(not shown\)", shown(signed))
        assert re.fullmatch(
            r"compressed, \d+ bytes \(not shown\)", shown(stored("x" * 999, CompressedEncoding()))
        )
        assert re.fullmatch(
            r"compressed, \d+ bytes \(not shown\)", shown(stored(1, CompressedEncoding()))
        )

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickle_of_a_class_names_it(self, protocol: int) -> None:
        payload = in_column(pickle.dumps([1, Colour(), Unshowable()], protocol))
        for allow, kind in (([], "Colour"), ([Colour], "Unshowable")):
            expected = rf"pickle, [\d,]+ bytes, of {__name__}\.{kind} \(not shown\)"
            assert re.fullmatch(expected, shown(payload, allow))

    def test_what_a_pickle_would_run_is_not_run(self) -> None:
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            payload = in_column(pickle.dumps(Hostile(), protocol))
            assert f"of {__name__}.leave_trace (not shown)" in shown(payload)
        assert Hostile.trace == []
        pickle.loads(pickle.dumps(Hostile()))
        assert Hostile.trace == ["was run"]
        Hostile.trace.clear()

    def test_an_allowed_class_is_shown(self) -> None:
        payload = stored([decimal.Decimal("1.50"), Colour()])
        assert "of decimal.Decimal (not shown)" in shown(payload)
        assert f"of {__name__}.Colour (not shown)" in shown(payload, ["decimal.Decimal"])
        expected = "[Decimal('1.50'), <a colour>]"
        assert shown(payload, ["decimal.Decimal", Colour]) == expected
        assert shown(payload, [decimal.Decimal, f"{__name__}.Colour"]) == expected
        assert "refused (not shown)" in shown(stored(Unshowable()), [Unshowable])

    @pytest.mark.parametrize(
        "payload",
        [
            b"\x80",
            b"\x80\x05",
            b"\x80\x05garbage",
            b"\x80\x63N.",  # a protocol that is not there yet
            b"\x80\x02cos\nsystem\n.",
            b"\x80\x02(ios\nsystem\n.",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
            b"\x80\x04\x93.",
            b"\x80\x02\x82\x01.",  # an extension code
            b"\x80\x02Pperson\n.",  # a persistent id
            b"\x80\x05\x97.",  # a buffer from elsewhere
            b"\x80\x02" + b"(" * 100_000 + b".",
            b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # eight exabytes
            b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",  # two gigabytes
            # The same, under a name that a look at the opcodes takes for another.
            b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x8c\x08builtins\x8c\x03set00\x93"
            b"J\xff\xff\xff\x7f\x85R.",
            b"\x80\x02c__builtin__\ncomplex\nU\x01x\x85R.",
            b"\x80\x02c__builtin__\neval\nU\x011\x85R.",
            b"\x80\x02I" + b"9" * 5000 + b"\n.",
            b"\x80\x02\x8b\xff\xff\x00\x00" + b"\x7f" * 0xFFFF + b".",
            b"\x01",
            b"\x02",
            b"\x03",
        ],
    )
    def test_hostile_payloads_are_told_about(self, payload: bytes) -> None:
        began = time.process_time()
        said = shown(in_column(payload))
        assert isinstance(said, str)
        assert len(said) <= 100
        assert time.process_time() - began < 1

    @pytest.mark.parametrize("use", [pickle.DUP, b"q\x00h\x00"])
    def test_what_would_take_for_ever_is_not_loaded(self, use: bytes) -> None:
        # A tuple of twice the same tuple, and so on: its hash takes 2 to the power of 64 steps.
        levels = (use + pickle.TUPLE2) * 64
        payload = b"\x80\x02}" + b")" + levels + b"K\x01s."
        assert re.fullmatch(r"pickle, \d+ bytes \(not shown\)", shown(in_column(payload)))

    def test_a_class_may_be_used_many_times(self) -> None:
        values = [uuid.UUID(int=number) for number in range(40)]
        said = shown(stored(values), [uuid.UUID, "uuid.SafeUUID"], longest=10_000)
        assert said.startswith(f"[{values[0]!r}, {values[1]!r}")
        assert said.endswith(f"{values[9]!r}, ...]")

    def test_long_values_are_shortened(self) -> None:
        assert len(shown(stored("x" * 10_000))) == 100
        assert len(shown(stored("x" * 10_000, JSONEncoding), longest=50)) == 50
        assert shown(stored(list(range(12)))) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]"
        assert shown(stored(dict.fromkeys(range(11), 0))).endswith("9: 0, ...}")
        assert shown(stored([[[[[[1]]]]]])) == "[[[[...]]]]"
        assert shown(stored([[[[[]]]]])) == "[[[[[]]]]]"
        assert shown(stored(1 << 5000)) == "an int of 5,001 bits"
        assert shown(stored("x" * 200_000)).endswith("bytes (not shown)")
        deep: Any = []
        deep.append(deep)
        assert shown(stored(deep)) == "[[[[...]]]]"

    def test_every_prefix_of_a_pickle_is_shown(self) -> None:
        data = pickletools.optimize(pickle.dumps({"a": [uuid.UUID(int=1), (1, 2)]}))
        for size in range(1, len(data)):
            assert shown(in_column(data[:size]))


# -- the admin --------------------------------------------------------------------------------


@pytest.fixture
def settings(django_project: None) -> Iterator[Any]:
    """Django's settings, of which those that a test sets are put back."""
    with overridden_settings() as overridden:
        yield overridden


@pytest.fixture
def keyspace() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def client(settings: Any) -> Iterator[Any]:
    """A browser of somebody who may do everything."""
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import path

    settings.ROOT_URLCONF = (path("admin/", admin.site.urls),)
    settings.ALLOWED_HOSTS = ["testserver"]
    user = User.objects.create_superuser(f"root-{uuid.uuid4()}", password=None)
    client = Client()
    client.force_login(user)
    yield client
    user.delete()


LIST = "/admin/durabledict/setting/"


def dict_of(keyspace: str, **options: Any) -> Any:
    from durabledict.ext.django import SettingsDict

    return SettingsDict(keyspace, **options)


def row(keyspace: str, key: str) -> Any:
    from durabledict.ext.django.models import Setting

    return Setting.objects.get(keyspace=keyspace, key=key)


def page(client: Any, setting: Any) -> str:
    answer = client.get(f"{LIST}{setting.pk}/change/")
    assert answer.status_code == 200
    return str(answer.content.decode())


class TestAdmin:
    def test_the_list_shows_keys_and_safe_values(
        self, client: Any, keyspace: str, settings: Any
    ) -> None:
        pickles = dict_of(keyspace)
        pickles.update(plain={"size": 3}, hostile=Hostile(), price=decimal.Decimal("1.50"))
        Hostile.trace.clear()
        script = dict_of(f"{keyspace}-json", encoding=JSONEncoding)
        script["script"] = "<script>alert(1)</script>"
        answer = client.get(LIST, {"q": keyspace})
        assert answer.status_code == 200
        said = answer.content.decode()
        for text in (
            keyspace,
            "plain",
            "{&#x27;size&#x27;: 3}",
            "&lt;script&gt;alert(1)",
            f"of {__name__}.leave_trace (not shown)",
            "of decimal.Decimal (not shown)",
        ):
            assert text in said
        assert "<script>alert" not in said
        assert Hostile.trace == []
        settings.DURABLEDICT_ADMIN_ALLOW = ["decimal.Decimal"]
        assert "Decimal(&#x27;1.50&#x27;)" in client.get(LIST, {"q": keyspace}).content.decode()
        assert keyspace in client.get(LIST, {"keyspace": keyspace}).content.decode()

    def test_a_wrong_setting_does_not_break_the_list(
        self, client: Any, keyspace: str, settings: Any
    ) -> None:
        dict_of(keyspace)["plain"] = 12345
        for wrong in (3, [3], "decimal.Decimal", None):
            settings.DURABLEDICT_ADMIN_ALLOW = wrong
            answer = client.get(LIST, {"q": keyspace})
            assert answer.status_code == 200
            assert b"plain" in answer.content

    def test_a_pickle_is_not_edited(self, client: Any, keyspace: str) -> None:
        durable = dict_of(keyspace)
        durable["hostile"] = Hostile()
        Hostile.trace.clear()
        setting = row(keyspace, "hostile")
        said = page(client, setting)
        assert "leave_trace (not shown)" in said
        assert 'name="value"' not in said
        answer = client.post(f"{LIST}{setting.pk}/change/", {"value": "1", "key": "other"})
        assert answer.status_code == 302
        after = row(keyspace, "hostile")
        assert after.value == setting.value
        assert Hostile.trace == []

    def test_saving_an_unchanged_page_writes_nothing(self, client: Any, keyspace: str) -> None:
        durable = dict_of(keyspace)
        durable["a"] = 1
        before = durable.last_updated()
        answer = client.post(f"{LIST}{row(keyspace, 'a').pk}/change/", {})
        assert answer.status_code == 302
        assert durable.last_updated() == before

    def test_json_is_edited_and_heard(self, client: Any, keyspace: str) -> None:
        durable = dict_of(keyspace, encoding=JSONEncoding)
        durable["beta"] = {"percent": 5}
        setting = row(keyspace, "beta")
        said = page(client, setting)
        assert 'name="value"' in said
        assert 'name="key"' not in said
        assert 'name="keyspace"' not in said
        change = {"value": ' {"percent": 50, "name": "\xe4"} ', "key": "x", "keyspace": "y"}
        assert client.post(f"{LIST}{setting.pk}/change/", change).status_code == 302
        assert durable == {"beta": {"percent": 50, "name": "\xe4"}}
        after = row(keyspace, "beta")
        assert after.value == '{"percent":50,"name":"\\u00e4"}'
        assert after.pk == setting.pk

    @pytest.mark.parametrize(
        "value", ["{", "NaN", "text", "", "gAJLBy4=", "[" * 100_000, '"\\ud800"']
    )
    def test_what_is_not_json_is_refused(self, client: Any, keyspace: str, value: str) -> None:
        durable = dict_of(keyspace, encoding=JSONEncoding)
        durable["beta"] = True
        answer = client.post(f"{LIST}{row(keyspace, 'beta').pk}/change/", {"value": value})
        assert answer.status_code == 200
        assert b"This is not JSON" in answer.content or not value
        assert durable == {"beta": True}

    def test_nothing_is_added(self, client: Any) -> None:
        assert client.get(f"{LIST}add/").status_code == 403

    def test_one_is_deleted_and_heard(self, client: Any, keyspace: str) -> None:
        durable = dict_of(keyspace)
        durable.update(a=1, b=2)
        answer = client.post(f"{LIST}{row(keyspace, 'a').pk}/delete/", {"post": "yes"})
        assert answer.status_code == 302
        assert durable == {"b": 2}

    def test_several_are_deleted_and_heard(self, client: Any, keyspace: str) -> None:
        one, two = dict_of(keyspace), dict_of(f"{keyspace}-2")
        one.update(a=1, b=2)
        two.update(a=3, b=4)
        chosen = [row(keyspace, "a").pk, row(two.keyspace, "b").pk]
        change = {"action": "delete_selected", "_selected_action": chosen, "post": "yes"}
        assert client.post(LIST, change).status_code == 302
        assert (one, two) == ({"b": 2}, {"a": 3})

    @pytest.mark.parametrize("way", ["edit", "delete", "several"])
    def test_readers_hear_of_a_keyspace_that_this_process_has_no_dict_of(
        self, client: Any, keyspace: str, way: str
    ) -> None:
        from durabledict import modelsignals
        from durabledict.ext.django.models import Setting

        durable = dict_of(keyspace, encoding=JSONEncoding)
        durable["beta"] = True
        before = durable.last_updated()
        cache, key, pk = durable._stamp().cache, durable.cache_key, row(keyspace, "beta").pk
        assert cache.get(key) >> 16 == before[1]
        del durable
        gc.collect()
        assert all(one.keyspace != keyspace for one in modelsignals.living())
        if way == "edit":
            answer = client.post(f"{LIST}{pk}/change/", {"value": "false"})
        elif way == "delete":
            answer = client.post(f"{LIST}{pk}/delete/", {"post": "yes"})
        else:
            change = {"action": "delete_selected", "_selected_action": [pk], "post": "yes"}
            answer = client.post(LIST, change)
        assert answer.status_code == 302
        assert Setting.objects.filter(pk=pk, value="true").count() == 0
        gc.collect()
        assert cache.get(key) >> 16 != before[1]
        assert cache.get(key) % (1 << 16) == 0
