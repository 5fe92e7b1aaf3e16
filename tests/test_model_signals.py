"""ModelDict hears of writes past it: signals, and what sends none (rule 3.7)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durabledict import ModelDict, modelsignals
from durabledict.stamps import MemoryCache

spawning = multiprocessing.get_context("spawn")

ZERO = "gAVLAC4="  # the payload of 0, as a pickle in base64
ONE = "gAVLAS4="


@pytest.fixture(params=["default", "sqlite"])
def using(request: pytest.FixtureRequest, django_project: None) -> Iterator[str]:
    from durabledict.ext.django.models import Setting
    from tests.djangoapp.models import Plain, PlainChild

    alias: str = request.param
    yield alias
    for model in (PlainChild, Plain, Setting):
        model.objects.using(alias).all()._raw_delete(alias)


def plain(using: str, cache: Any = "redis", **options: Any) -> ModelDict[str, Any]:
    from tests.djangoapp.models import Plain

    return ModelDict(Plain.objects, cache, using=using, **options)


WRITES: dict[str, Callable[[Any, str], object]] = {
    "save of a new one": lambda model, using: model(key="k", value=ONE).save(using=using),
    "create": lambda model, using: model.objects.using(using).create(key="k", value=ONE),
    "get_or_create": lambda model, using: model.objects.using(using).get_or_create(
        key="k", defaults={"value": ONE}
    ),
    "update_or_create": lambda model, using: model.objects.using(using).update_or_create(
        key="k", defaults={"value": ONE}
    ),
}


class TestHeard:
    @pytest.mark.parametrize("name", WRITES)
    @pytest.mark.parametrize("model", ["Plain", "PlainProxy", "PlainChild"])
    def test_what_django_tells_of(self, using: str, name: str, model: str) -> None:
        from tests.djangoapp import models

        strict, manual = plain(using), plain(using, autosync=False)
        assert not strict
        manual.sync()
        kind = getattr(models, model)
        WRITES[name](kind, using)
        assert strict == {"k": 1}
        assert not manual
        assert manual.sync() is True
        assert manual == {"k": 1}
        row = kind.objects.using(using).get(key="k")
        row.value = ZERO
        row.save()
        assert strict == {"k": 0}
        kind.objects.using(using).filter(key="k").delete()
        assert not strict
        kind(key="k", value=ONE).save(using=using)
        assert strict == {"k": 1}
        kind.objects.using(using).get(key="k").delete()
        assert not strict
        manual.sync()
        assert not manual

    def test_a_fixture(self, using: str, tmp_path: Any) -> None:
        from django.core.management import call_command

        d = plain(using)
        assert not d
        fixture = tmp_path / "rows.json"
        fixture.write_text(
            f'[{{"model": "djangoapp.plain", "pk": 7, "fields": {{"key": "k", "value": "{ONE}"}}}}]'
        )
        call_command("loaddata", str(fixture), database=using, verbosity=0)
        assert d == {"k": 1}

    def test_a_proxy_that_is_defined_after_the_dict(self, using: str) -> None:
        from tests.djangoapp.models import Plain

        d = plain(using)
        assert not d

        class LateProxy(Plain):
            class Meta:
                app_label = "djangoapp"
                proxy = True

        try:
            LateProxy(key="k", value=ONE).save(using=using)
            assert d == {"k": 1}
        finally:
            from django.apps import apps

            del apps.all_models["djangoapp"]["lateproxy"]
            apps.clear_cache()

    def test_a_save_that_fails_leaves_no_writer_behind(self, using: str) -> None:
        from django.db import IntegrityError

        from tests.djangoapp.models import Plain

        cache = MemoryCache()
        d = plain(using, cache)
        d["k"] = 1
        with pytest.raises(IntegrityError):
            Plain(key="k", value=ONE).save(using=using)
        Plain(key="other", value=ONE).save(using=using)
        number = cache.get(d.cache_key)
        assert number is not None
        assert number % 65_536 == 0

    def test_a_save_in_the_signals_of_another_one_hides_neither(self, using: str) -> None:
        from django.db.models.signals import pre_save

        from tests.djangoapp.models import Plain

        cache = MemoryCache()
        d = plain(using, cache)
        assert not d

        def save_another(sender: Any, instance: Any, **named: Any) -> None:
            if instance.key == "outer":
                Plain(key="inner", value=ONE).save(using=using)
                assert d == {"inner": 1}  # and the outer one comes later

        pre_save.connect(save_another, sender=Plain)
        try:
            Plain(key="outer", value=ONE).save(using=using)
        finally:
            pre_save.disconnect(save_another, sender=Plain)
        assert d == {"inner": 1, "outer": 1}

    def test_own_writes_are_not_told_twice(self, using: str) -> None:
        cache = MemoryCache()
        d = plain(using, cache)
        d["k"] = 1
        before = cache.get(d.cache_key)
        d["k"] = 2
        d.setdefault("other", 3)
        del d["other"]
        assert before is not None
        assert cache.get(d.cache_key) == before + 3 * 65_536

    def test_a_cache_that_is_down_does_not_fail_the_save(
        self, using: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tests.djangoapp.models import Plain

        class Down(MemoryCache):
            unavailable = (OSError,)

            def increase(self, key: str, by: int) -> int | None:
                raise OSError("down")

        kept = plain(using, Down())
        Plain(key="k", value=ONE).save(using=using)
        assert len(caplog.records) == 1
        assert "cannot be asked (OSError: down)" in caplog.text
        assert kept.stale_since is not None
        assert Plain.objects.using(using).get().key == "k"

    def test_other_keyspaces_are_left_alone(self, using: str) -> None:
        from durabledict.ext.django import SettingsDict
        from durabledict.ext.django.models import Setting

        a: SettingsDict[str, int] = SettingsDict("a", cache="redis", using=using)
        b: SettingsDict[str, int] = SettingsDict("b", cache="redis", using=using)
        assert not a
        assert not b
        stamp = b.last_updated()
        Setting(keyspace="a", key="k", value=ONE).save(using=using)
        assert a == {"k": 1}
        assert b.last_updated() == stamp
        a.clear()
        b["k"] = 5
        a.replace_all({"x": 1})
        assert b == {"k": 5}

    def test_a_row_that_moves_is_heard_where_it_was_and_where_it_is(self, using: str) -> None:
        from durabledict.ext.django import SettingsDict
        from durabledict.ext.django.models import Setting

        a: SettingsDict[str, int] = SettingsDict("a", cache="redis", using=using)
        b: SettingsDict[str, int] = SettingsDict("b", cache="redis", using=using)
        a["k"] = 1
        assert not b
        row = Setting.objects.using(using).get(keyspace="a")
        row.keyspace = "b"
        row.save()
        assert not a
        assert b == {"k": 1}

    def test_other_models_keep_djangos_fast_deletes(self, django_project: None) -> None:
        from django.contrib.sessions.models import Session
        from django.db.models.signals import post_delete, pre_delete

        from tests.djangoapp.models import Plain

        plain("default")
        assert pre_delete.has_listeners(Plain)
        assert not pre_delete.has_listeners(Session)
        assert not post_delete.has_listeners(Session)

    def test_dicts_that_are_gone_are_forgotten(self, django_project: None) -> None:
        import gc

        d = plain("default")
        assert any(one is d for one in modelsignals.living())
        identity = id(d)
        del d
        gc.collect()
        assert all(id(one) != identity for one in modelsignals.living())


class TestUnheard:
    """What sends no signals, and the remedy."""

    @pytest.mark.parametrize(
        "write",
        [
            lambda rows: rows.filter(key="k").update(value=ONE),
            lambda rows: rows.bulk_create([rows.model(key="new", value=ONE)]),
            lambda rows: rows.filter(key="k")._raw_delete(rows.db),
        ],
        ids=["update", "bulk_create", "raw delete"],
    )
    def test_touch_last_updated_is_the_remedy(self, using: str, write: Any) -> None:
        from django.db import transaction

        for inside in (False, True):
            d, manual = plain(using), plain(using, autosync=False)
            d.replace_all({"k": 0})
            manual.sync()
            rows = d.model.objects.using(using)
            write(rows)
            assert d == {"k": 0}  # nobody has told it
            if inside:
                with transaction.atomic(using=using):
                    d.touch_last_updated()
            else:
                d.touch_last_updated()
            stored = plain(using)
            assert d == dict(stored) != {"k": 0}
            assert manual.sync() is True
            assert manual == dict(stored)

    def test_a_touch_in_a_transaction_counts_when_it_is_committed(self, using: str) -> None:
        from django.db import transaction

        d = plain(using)
        elsewhere = plain(using)
        d["k"] = 0
        assert elsewhere == {"k": 0}
        with transaction.atomic(using=using):
            d.model.objects.using(using).update(value=ONE)
            d.touch_last_updated()
            assert d == {"k": 1}
        assert elsewhere == {"k": 1}

    def test_a_touch_in_a_transaction_is_for_all_dicts_of_the_table(self, using: str) -> None:
        from django.db import transaction

        d, other, manual = plain(using), plain(using), plain(using, autosync=False)
        d.replace_all({"k": 0})
        assert manual.sync()
        assert d == other == manual == {"k": 0}
        with transaction.atomic(using=using):
            d.model.objects.using(using).update(value=ONE)
            d.touch_last_updated()
            assert d == other == {"k": 1}
            assert manual == {"k": 0}
            assert manual.sync()
            assert manual == {"k": 1}
            transaction.set_rollback(True, using=using)
        assert d == other == manual == {"k": 0}


def _save(using: str) -> None:
    import django

    django.setup()
    from tests.djangoapp.models import Plain

    kept = plain(using)  # a process that has a dict tells of its saves
    Plain(key="k", value=ONE).save(using=using)
    kept.close()


def test_another_process_hears_of_a_save(using: str) -> None:
    d = plain(using)
    assert not d
    process = spawning.Process(target=_save, args=(using,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert d == {"k": 1}


class TestSavesThatStoreSomethingElse:
    """The local copy holds what is stored, whatever the model's own code made of it."""

    def test_a_receiver_that_changes_the_value(self, using: str) -> None:
        from django.db.models.signals import pre_save

        from tests.djangoapp.models import Plain

        def replace(sender: Any, instance: Any, **named: Any) -> None:
            instance.value = ZERO

        pre_save.connect(replace, sender=Plain)
        try:
            for autosync in (True, False):
                d = plain(using, autosync=autosync)
                d["k"] = 1
                assert d["k"] == 0
                d["k"] = 2
                assert d["k"] == 0
                assert d.setdefault(f"new {autosync}", 5) == 0
                assert d == plain(using)
        finally:
            pre_save.disconnect(replace, sender=Plain)

    def test_a_receiver_that_changes_the_document_later(self, using: str) -> None:
        from django.db.models.signals import post_save

        from tests.djangoapp.models import Document

        def change(sender: Any, instance: Any, **named: Any) -> None:
            instance.value["more"] = 1

        post_save.connect(change, sender=Document)
        d: ModelDict[int, Any] = ModelDict(
            Document.objects, "redis", key_col="number", using=using, autosync=False
        )
        try:
            given = {"a": [1]}
            d[1] = given
            assert given == {"a": [1]}
            assert d[1] == {"a": [1]}
        finally:
            post_save.disconnect(change, sender=Document)
        assert d.pop(1) == {"a": [1]}
