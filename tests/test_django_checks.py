"""Django's system checks of the dicts, run by Django's own framework."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from durabledict.stamps import MemoryCache

from .djangofolders import overridden_settings


@pytest.fixture(autouse=True)
def no_other_dicts(django_project: None) -> None:
    """Collect the dicts that other tests left."""
    gc.collect()


@pytest.fixture
def settings(django_project: None) -> Iterator[Any]:
    """Django's settings, of which those that a test sets are put back."""
    with overridden_settings() as overridden:
        yield overridden


def messages(durable: Any = None, place: str | None = None) -> list[Any]:
    """Run the checks, without asking any server, and return what they say of one dict."""
    from django.core.checks import run_checks

    from durabledict.ext.django.checks import _place

    place = place or _place(durable)
    return [message for message in run_checks(tags=["durabledict"]) if message.obj == place]


def numbers(durable: Any) -> list[str]:
    return [message.id.removeprefix("durabledict.") for message in messages(durable)]


def model_dict(name: str, *arguments: Any, **options: Any) -> Any:
    from django.apps import apps

    from durabledict import ModelDict

    return ModelDict(apps.get_model("djangoapp", name), *arguments, **options)


keyspaces = itertools.count()


def settings_dict(keyspace: str | None = None, **options: Any) -> Any:
    from durabledict.ext.django import SettingsDict

    # Each of its own, since they are told apart by it.
    return SettingsDict(keyspace or f"checks {next(keyspaces)}", **options)


def test_a_good_dict_has_nothing_said_of_it() -> None:
    kept = [
        settings_dict(),
        settings_dict(cache="redis", using="sqlite"),
        model_dict("Plain"),
        model_dict("Binary", "redis"),
        model_dict("Document", key_col="number"),
        model_dict("Ticket", key_col="pk"),
        model_dict("PlainProxy"),
    ]
    assert [numbers(durable) for durable in kept] == [[]] * len(kept)


def test_checks_ask_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from django.db import connections

    kept = [settings_dict(), settings_dict(cache="files"), model_dict("Repeated", "database")]

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("a check opened a connection")

    connections.close_all()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "sendall", refuse)
    for alias in connections:
        monkeypatch.setattr(connections[alias], "connect", refuse)
    assert [numbers(durable) for durable in kept] == [[], ["W002"], ["W002", "E001"]]


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("locmem", "LocMemCache of CACHES['locmem'], is one of each process"),
        ("dummy", "DummyCache of CACHES['dummy'], keeps nothing"),
        (MemoryCache(), "MemoryCache, is one of each process"),
    ],
)
def test_w001_a_cache_of_one_process(cache: Any, said: str) -> None:
    durable = settings_dict("flags", cache=cache)
    (message,) = messages(durable)
    assert message.id == "durabledict.W001"
    assert said in message.msg
    assert "memcached or Redis" in message.hint
    assert message.obj == "SettingsDict('flags')"


@pytest.mark.parametrize(
    ("cache", "kind"), [("files", "FileBasedCache"), ("database", "DatabaseCache")]
)
def test_w002_a_cache_without_an_atomic_incr(cache: str, kind: str) -> None:
    durable = settings_dict(cache=cache)
    (message,) = messages(durable)
    assert message.id == "durabledict.W002"
    assert f"{kind} of CACHES[{cache!r}], has no atomic incr" in message.msg
    assert "memcached or Redis" in message.hint


def test_the_default_cache_is_named(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    durable = settings_dict()
    (message,) = messages(durable)
    assert "LocMemCache of CACHES['default']" in message.msg


def test_e001_a_key_that_is_not_unique() -> None:
    durable = model_dict("Repeated")
    (message,) = messages(durable)
    assert message.id == "durabledict.E001"
    assert message.is_serious()
    assert "djangoapp.Repeated.key, is not unique" in message.msg
    assert "unique=True" in message.hint
    assert "UniqueConstraint" in message.hint
    assert message.obj == "ModelDict(djangoapp.Repeated, key, value)"


def test_e001_looks_at_the_scope() -> None:
    from durabledict import ModelDict
    from durabledict.ext.django.models import Setting

    # The keys of all keyspaces together are not unique.
    durable = ModelDict[Any, Any](Setting, using="default")
    assert numbers(durable) == ["E001"]
    assert numbers(settings_dict()) == []


def test_w003_a_collation_that_joins_keys() -> None:
    durable = model_dict("CaseBlind", using="sqlite")
    (message,) = messages(durable)
    assert message.id == "durabledict.W003"
    assert "djangoapp.CaseBlind.key (NOCASE)" in message.msg
    assert "case-sensitive" in message.hint


class TestCollations:
    """The names of collations, on a model that no database has a table of."""

    names: ClassVar[Iterator[int]] = itertools.count()

    def dict_over(self, field: Any, **options: Any) -> Any:
        from django.apps import apps
        from django.db import models

        from durabledict import ModelDict

        name = f"Collated{next(self.names)}"
        meta = type("Meta", (), {"app_label": "djangoapp"})
        fields = {"__module__": __name__, "Meta": meta, "key": field, "value": models.TextField()}
        try:
            return ModelDict(type(name, (models.Model,), fields), **options)
        finally:
            del apps.all_models["djangoapp"][name.lower()]
            apps.clear_cache()

    @pytest.mark.parametrize(
        ("collation", "joins"),
        [
            (None, False),
            ("C", False),
            ("ucs_basic", False),
            ("BINARY", False),
            ("en-x-icu", False),
            ("nocase", True),
            ("RTRIM", True),
            ("utf8mb4_0900_ai_ci", True),
            ("utf8mb4_0900_as_cs", False),
            ("case_insensitive", True),
            ("und-u-ks-level2", True),
        ],
    )
    def test_w003_by_its_name(self, collation: str | None, joins: bool) -> None:
        from django.db import models

        fields: list[Any] = [
            models.CharField(max_length=50, unique=True, db_collation=collation),
            models.TextField(unique=True, db_collation=collation),
        ]
        for field in fields:
            durable = self.dict_over(field)
            assert numbers(durable) == (["W003"] if joins else [])

    @pytest.mark.parametrize(
        ("collation", "joins"),
        [(None, True), ("utf8mb4_0900_ai_ci", True), ("utf8mb4_bin", False)],
    )
    def test_w003_on_mysql(
        self, monkeypatch: pytest.MonkeyPatch, collation: str | None, joins: bool
    ) -> None:
        from django.db import connections, models

        # The checks connect to no database, so that this is all of MySQL that they see.
        monkeypatch.setattr(connections["sqlite"], "vendor", "mysql", raising=False)
        field: Any = models.CharField(max_length=50, unique=True, db_collation=collation)
        durable = self.dict_over(field, using="sqlite")
        found = messages(durable)
        assert [message.id for message in found] == (["durabledict.W003"] if joins else [])
        assert all('db_collation="utf8mb4_bin"' in message.hint for message in found)
        # Numbers are one key only where they are equal.
        number = self.dict_over(models.IntegerField(unique=True), using="sqlite")
        assert numbers(number) == []

    def test_w003_citext(self) -> None:
        from django.db import models

        kind = type("CaseBlindField", (models.TextField,), {"db_type": lambda *_: "citext"})
        durable = self.dict_over(kind(unique=True))
        (message,) = messages(durable)
        assert message.id == "durabledict.W003"
        assert "(citext)" in message.msg
        assert "CharField or TextField" in message.hint


class ReadsFromMirror:
    """A router as Django's documentation shows them."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


class WritesToMirror:
    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "sqlite"


class KnowsNothing:
    def db_for_write(self, model: Any, **hints: Any) -> None:
        return None


class TestReplicas:
    @pytest.fixture
    def mirror(self, monkeypatch: pytest.MonkeyPatch) -> str:
        from django.db import connections

        monkeypatch.setitem(connections["sqlite"].settings_dict["TEST"], "MIRROR", "default")
        return "sqlite"

    def test_e002_using_a_mirror(self, mirror: str) -> None:
        durable = settings_dict(using=mirror)
        (message,) = messages(durable)
        assert message.id == "durabledict.E002"
        assert "The database 'sqlite' is a replica of 'default'" in message.msg
        assert message.hint == "Write using='default' (USING in DURABLEDICTS)."
        assert numbers(settings_dict(using="default")) == []

    def test_e002_a_router_that_writes_to_a_mirror(self, mirror: str, settings: Any) -> None:
        settings.DATABASE_ROUTERS = [WritesToMirror()]
        durable = settings_dict()
        (message,) = messages(durable)
        assert message.id == "durabledict.E002"
        assert "db_for_write" in message.hint

    def test_e002_another_database_than_the_router_writes_to(self, settings: Any) -> None:
        settings.DATABASE_ROUTERS = [KnowsNothing(), object(), ReadsFromMirror()]
        durable = settings_dict(using="sqlite")
        (message,) = messages(durable)
        assert message.id == "durabledict.E002"
        assert "is not 'default', to which the router writes durabledict.Setting" in message.msg
        # Another alias of the same database is no replica.
        assert numbers(settings_dict(using="repeatable")) == []

    def test_without_a_router_that_knows_the_choice_is_the_users(self, settings: Any) -> None:
        settings.DATABASE_ROUTERS = [KnowsNothing()]
        durable = settings_dict(using="sqlite")
        assert numbers(durable) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "nothing"}, "The connection 'nothing' doesn't exist"),
        ({"cache": {}}, "not in a dict"),
        ({"using": "nothing"}, "The connection 'nothing' doesn't exist"),
    ],
)
def test_e003_no_place_for_the_stamp(options: dict[str, Any], said: str) -> None:
    durable = settings_dict(**options)
    (message,) = messages(durable)
    assert message.id == "durabledict.E003"
    assert said in message.msg


def test_a_dict_is_named_as_in_the_setting(settings: Any) -> None:
    settings.DURABLEDICTS = {"flags": {"CACHE": "locmem"}, "own": f"{__name__}.own"}
    global own
    from durabledict import MemoryDict

    own = MemoryDict()  # not over a model: nothing is said of it
    (message,) = messages(place="DURABLEDICTS['flags']")
    assert message.id == "durabledict.W001"


own: Any = None


def test_one_message_for_two_dicts_over_the_same_rows() -> None:
    kept = [settings_dict("twice", cache="dummy"), settings_dict("twice", cache="dummy")]
    assert len(messages(kept[0])) == 1
    for durable in kept:
        durable.close()
    assert messages(kept[0]) == []


def test_e004_the_setting_of_the_admin(settings: Any) -> None:
    assert messages(place="DURABLEDICT_ADMIN_ALLOW") == []
    settings.DURABLEDICT_ADMIN_ALLOW = ["decimal.Decimal", pytest.Item]
    assert messages(place="DURABLEDICT_ADMIN_ALLOW") == []
    for wrong in ("decimal.Decimal", [3]):
        settings.DURABLEDICT_ADMIN_ALLOW = wrong
        (message,) = messages(place="DURABLEDICT_ADMIN_ALLOW")
        assert message.id == "durabledict.E004"
