"""ModelDict: the names of 0.9, instances, managers, places, two processes that race, forks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durabledict import MISSING, ModelDict
from durabledict.reading import Syncing
from durabledict.stamps import MemoryCache

from .servers import wait_until

spawning = multiprocessing.get_context("spawn")

Make = Callable[..., ModelDict[Any, Any]]


@pytest.fixture(params=["default", "sqlite"])
def using(request: pytest.FixtureRequest, django_project: None) -> Iterator[str]:
    from tests.djangoapp.models import Binary, Plain, Repeated, Stamped

    alias: str = request.param
    yield alias
    for model in (Plain, Binary, Repeated, Stamped):
        model.objects.using(alias).all()._raw_delete(alias)


def plain(using: str, cache: Any = "redis", **options: Any) -> ModelDict[Any, Any]:
    from tests.djangoapp.models import Plain

    return ModelDict(Plain.objects, cache, using=using, **options)


class TestNamesOf09:
    def test_the_methods_and_attributes_are_there(self, using: str) -> None:
        from django.core.cache import cache

        from tests.djangoapp.models import Plain

        d: ModelDict[str, int] = ModelDict(
            Plain.objects, cache, "key", "value", False, True, using=using
        )
        assert (d.manager, d.cache, d.key_col, d.value_col) == (
            Plain.objects, cache, "key", "value",
        )  # fmt: skip
        assert d.return_instances is False
        assert isinstance(d.cache_key, str)
        row, created = d.get_or_create("k", 1)
        assert (row.key, created, d["k"]) == ("k", True, 1)
        stamp = d.last_updated()
        row, created = d.get_or_create("k", 2)
        assert (row.key, created, d["k"]) == ("k", False, 1)
        assert d.last_updated() == stamp
        d.touch_last_updated()
        assert d.last_updated() != stamp
        assert d.cache_expired == d.last_updated()
        assert d.sync() is False
        assert d.last_synced == d.last_updated()
        assert d.cache_expired is None

    def test_a_model_will_do_as_the_manager(self, using: str) -> None:
        from tests.djangoapp.models import Plain

        d: ModelDict[str, int] = ModelDict(Plain, "redis", using=using)
        d["k"] = 1
        assert plain(using) == {"k": 1}
        for wrong in (None, "Plain", object()):
            with pytest.raises(TypeError, match=r"write ModelDict\(Setting.objects\)"):
                ModelDict(wrong)

    def test_none_is_djangos_default_cache(self, using: str, memcached_server: Any) -> None:
        d = plain(using, None)
        d["k"] = 1
        before = memcached_server.stats()["cmd_get"]
        assert d["k"] == 1
        assert memcached_server.stats()["cmd_get"] == before + 1

    def test_the_default_key_is_one_for_each_database_table_and_pair_of_columns(
        self, django_project: None
    ) -> None:
        from tests.djangoapp.models import Binary, Plain, PlainProxy, Stamped, Switch

        keys = [
            ModelDict(Plain.objects, "redis").cache_key,
            ModelDict(Plain.objects, "redis", using="sqlite").cache_key,
            ModelDict(Binary.objects, "redis").cache_key,
            ModelDict(Stamped.objects, "redis").cache_key,
            ModelDict(Switch.objects, "redis", key_col="name", value_col="enabled").cache_key,
            ModelDict(Switch.objects, "redis", key_col="name", value_col="ratio").cache_key,
        ]
        assert len(set(keys)) == len(keys)
        assert ModelDict(PlainProxy.objects, "redis").cache_key == keys[0]
        assert all(len(key) < 100 and key.isascii() and " " not in key for key in keys)

    def test_a_file_has_one_default_key_by_whatever_links_it_is_named(
        self, django_project: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from django.db import connections

        key = plain("sqlite").cache_key
        settings = connections["sqlite"].settings_dict
        (tmp_path / "current").symlink_to(os.path.dirname(settings["NAME"]))
        link = tmp_path / "current" / os.path.basename(settings["NAME"])
        monkeypatch.setitem(settings, "NAME", link)
        assert plain("sqlite").cache_key == key
        monkeypatch.setitem(settings, "NAME", os.path.relpath(link))
        assert plain("sqlite").cache_key == key

    def test_a_key_of_ones_own_is_used_as_it_is(self, using: str, redis_server: Any) -> None:
        d = plain(using, cache_key="my-stamp")
        d["k"] = 1
        with redis_server.client() as client:
            assert any(key.endswith(b"my-stamp") for key in client.scan_iter())
        d.cache_key = "another"
        assert d.cache_key == "another"
        d["k"] = 2
        with redis_server.client() as client:
            assert any(key.endswith(b"another") for key in client.scan_iter())

    def test_a_direct_client_holds_the_stamp_too(
        self, using: str, memcached_server: Any, redis_server: Any
    ) -> None:
        for client in (memcached_server.client(), redis_server.client(), MemoryCache()):
            a, b = plain(using, client), plain(using, client, autosync=False)
            a["k"] = 1
            b.sync()
            a["k"] = 2
            assert b["k"] == 1
            assert b.sync() is True
            assert b["k"] == 2
            if not isinstance(client, MemoryCache):
                client.close()


class TestInstances:
    def test_values_are_instances(self, using: str) -> None:
        d, values = plain(using, return_instances=True), plain(using)
        d["k"] = [1]
        assert type(d["k"]).__name__ == "Plain"
        assert (d["k"].key, values["k"]) == ("k", [1])
        values.update(k=[2], other=3)
        assert {key: row.pk for key, row in d.items()} == dict(
            d.model.objects.using(using).values_list("key", "pk")
        )
        d.update(k=[4])
        assert values["k"] == [4]
        assert d["k"].pk is not None
        d["copy"] = d["k"]  # an instance stands for its value
        assert values["copy"] == [4]
        assert d.compute("k", lambda value: [*value, 5]) == [4, 5]
        assert values["k"] == [4, 5]
        assert d["k"].value == d.model.objects.using(using).get(key="k").value
        d.replace_all({"k": 1})
        assert list(d) == ["k"]
        assert d.setdefault("k", 2).key == "k"
        del d["k"]
        assert not values

    def test_it_may_be_set_at_run_time(self, using: str) -> None:
        for autosync in (True, False):
            d = plain(using, autosync=autosync)
            d["k"] = [1]
            d.return_instances = True
            assert d["k"].key == "k"
            d.return_instances = False
            assert d["k"] == [1]

    def test_a_change_of_another_column_is_seen(self, using: str) -> None:
        from tests.djangoapp.models import Binary

        d: ModelDict[str, Any] = ModelDict(
            Binary.objects, "redis", return_instances=True, using=using
        )
        d["k"] = 1
        Binary.objects.using(using).filter(key="k").update(note="new")
        d.touch_last_updated()
        assert d["k"].note == "new"


class TestManagers:
    def test_rows_that_the_manager_leaves_out_are_not_there(self, using: str) -> None:
        from django.db import IntegrityError, models

        from tests.djangoapp.models import Stamped

        class Shown(models.Manager[Any]):
            def get_queryset(self) -> Any:
                return super().get_queryset().filter(hidden=False)

        shown = Shown()
        shown.model = Stamped
        Stamped(key="hidden", value="", hidden=True).save(using=using)
        d: ModelDict[str, int] = ModelDict(shown, "redis", using=using)
        d["k"] = 1
        assert d == {"k": 1}
        with pytest.raises(IntegrityError):
            d["hidden"] = 1  # its key is taken
        assert d == {"k": 1}
        d.clear()
        assert Stamped.objects.using(using).get().key == "hidden"

    def test_a_column_that_is_not_unique_is_written_row_by_row(self, using: str) -> None:
        from tests.djangoapp.models import Repeated

        d: ModelDict[str, int] = ModelDict(Repeated.objects, "redis", using=using)
        d.update(a=1, b=2)
        d.update(a=3, c=4)
        assert d == {"a": 3, "b": 2, "c": 4}
        assert Repeated.objects.using(using).count() == 3

    def test_a_model_of_two_tables_is_refused(self, django_project: None) -> None:
        from tests.djangoapp.models import PlainChild

        with pytest.raises(TypeError, match="in two tables: give the manager of Plain"):
            ModelDict(PlainChild.objects)

    def test_other_columns_are_left_as_they_are(self, using: str) -> None:
        from tests.djangoapp.models import Binary

        d: ModelDict[str, Any] = ModelDict(Binary.objects, "redis", using=using)
        d["k"] = 1
        Binary.objects.using(using).update(note="kept")
        d["k"] = 2
        d.update(k=3)
        d.compute("k", lambda value: value + 1)
        assert d.setdefault("k", 0) == 4
        assert Binary.objects.using(using).get().note == "kept"


def test_a_new_dict_asks_nobody(django_project: None, redis_server: Any) -> None:
    """Rule 3.6."""
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    with redis_server.client() as client, CaptureQueriesContext(connections["default"]) as queries:
        before = client.info("stats")["total_commands_processed"]
        d = plain("default", autosync=False)
        assert isinstance(d, Syncing) or issubclass(type(d), Syncing)
        assert repr(d) == "{}"
        assert client.info("stats")["total_commands_processed"] <= before + 1
    assert not queries.captured_queries


def test_update_of_ten_thousand_is_a_few_statements(using: str) -> None:
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    d = plain(using)
    entries = {f"key {number}": number for number in range(10_000)}
    with CaptureQueriesContext(connections[using]) as queries:
        d.update(entries)
    assert len(queries.captured_queries) < 80
    assert plain(using) == entries
    entries.update({f"key {number}": -number for number in range(5_000)})
    entries.pop("key 9999")
    with CaptureQueriesContext(connections[using]) as queries:
        d.replace_all(entries)
    assert len(queries.captured_queries) < 80
    assert plain(using) == entries


# -- two processes ----------------------------------------------------------------------------


def _set_up() -> None:
    import django

    django.setup()


def _increment(using: str, times: int) -> None:
    _set_up()
    d = plain(using)
    for _ in range(times):
        d.compute("count", lambda value: value + 1, 0)


def _claim(using: str, name: str, keys: int, results: Any) -> None:
    _set_up()
    d = plain(using)
    results.put([key for key in range(keys) if d.setdefault(str(key), name) == name])


def _take(using: str, keys: int, results: Any) -> None:
    _set_up()
    d = plain(using)
    results.put([key for key in range(keys) if d.pop(str(key), MISSING) is not MISSING])


def _set_many(using: str, name: str, times: int) -> None:
    _set_up()
    d = plain(using)
    for number in range(times):
        d[f"key {number % 5}"] = f"{name} {number}"
        if number % 7 == 0:
            d.pop(f"key {(number + 2) % 5}", None)


def _run(*calls: tuple[Any, ...]) -> None:
    processes = [spawning.Process(target=call[0], args=call[1:]) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


class TestTwoProcesses:
    """Rule 3.9: the unique constraint and the guarded statements decide."""

    def test_increments_are_not_lost(self, using: str) -> None:
        _run((_increment, using, 60), (_increment, using, 60))
        assert plain(using)["count"] == 120

    def test_setdefault_has_one_winner_for_each_key(self, using: str) -> None:
        results = spawning.Queue()
        _run((_claim, using, "a", 40, results), (_claim, using, "b", 40, results))
        assert sorted(results.get(timeout=30) + results.get(timeout=30)) == list(range(40))
        assert len(plain(using)) == 40

    def test_pop_has_one_winner_for_each_key(self, using: str) -> None:
        plain(using).update({str(key): key for key in range(40)})
        results = spawning.Queue()
        _run((_take, using, 40, results), (_take, using, 40, results))
        assert sorted(results.get(timeout=30) + results.get(timeout=30)) == list(range(40))
        assert not plain(using)

    def test_everybody_ends_with_what_the_table_holds(self, using: str) -> None:
        strict, manual = plain(using), plain(using, autosync=False)
        _run((_set_many, using, "a", 60), (_set_many, using, "b", 60))
        manual.sync()
        assert dict(strict) == dict(manual) == dict(plain(using).durables())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_connections_of_its_own(using: str) -> None:
    """Rule 0.9: parent and child go on, each on its own connection."""
    d = plain(using, "default")
    d["k"] = 0
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            d["child"] = d.compute("k", lambda value: value + 1)
            os.write(writes, b"ok" if d["k"] == 1 else b"wrong")
        except BaseException as error:
            os.write(writes, repr(error).encode())
        finally:
            os._exit(0)
    d["parent"] = 1
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        assert pipe.read() == b"ok"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert d == {"k": 1, "child": 1, "parent": 1}


def test_a_watch_brings_what_another_process_wrote(using: str) -> None:
    d = plain(using, autosync=False)
    with d.watch(interval=30.0):
        _run((_increment, using, 3))
        wait_until(lambda: d.get("count") == 3, "the watch has brought it")
