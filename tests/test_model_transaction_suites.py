"""What the tests of a project see of its module-level dicts: rules 3.4, 3.5 and 3.6."""

from __future__ import annotations

import shutil
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from durabledict import JSONEncoding

from .djangofolders import DjangoFolder
from .memcachedserver import MemcachedServer
from .postgresserver import PostgresServer
from .servers import free_port
from .transactions import (
    OtherProcess,
    OtherThread,
    assert_nothing_is_left,
    database,
    fill,
    look,
    opened,
)

pytestmark = pytest.mark.usefixtures("django_project")


def run(*cases: Any) -> None:
    """Run a user's classes as unittest does."""
    result = unittest.TestResult()
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    unittest.TestSuite([load(case) for case in cases]).run(result)
    assert [text for _, text in (*result.errors, *result.failures)] == []
    assert result.testsRun
    assert not result.skipped


def add(key: str, value: object, alias: str) -> None:
    from .djangoapp.models import Plain

    Plain.objects.using(alias).create(key=key, value=JSONEncoding.encode(value))


# -- a user's classes -----------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("alias", ["default", "sqlite"])
MODES = pytest.mark.parametrize(
    "autosync", [True, False, 30.0], ids=["strict", "manual", "bounded"]
)
READ_BEFORE = pytest.mark.parametrize("read_before", [True, False])


@BOTH
@MODES
@READ_BEFORE
def test_in_a_test_case(
    alias: str, autosync: Any, read_before: bool, process: OtherProcess
) -> None:
    from django.test import TestCase

    fill(opened(alias), {"before": 0})
    d = opened(alias, autosync)
    if read_before:
        assert d == {"before": 0}

    class First(TestCase):
        databases = {alias}

        @classmethod
        def setUpTestData(cls) -> None:
            d["data"] = 1
            add("row", 2, alias)

        def setUp(self) -> None:
            if autosync is False:
                d.sync()
            assert d == {"before": 0, "data": 1, "row": 2}

        def test_a_write(self) -> None:
            d["data"] = 5
            d["more"] = 6
            assert d == {"before": 0, "data": 5, "row": 2, "more": 6}
            assert database(alias) == d.copy()

        def test_b_delete(self) -> None:
            d.clear()
            assert d == {}
            assert len(d) == 0

        def test_c_past_the_dict(self) -> None:
            add("new", 7, alias)
            if autosync is False:
                assert "new" not in d
                d.sync()
            assert d["new"] == 7

        def test_d_past_the_dict_unheard(self) -> None:
            d.model.objects.using(alias).filter(key="row").update(value="8")
            d.touch_last_updated()
            if autosync is False:
                d.sync()
            assert d["row"] == 8

        def test_e_other_process(self) -> None:
            d["data"] = 5
            assert process.call(look, alias) == {"before": 0}

    class Second(TestCase):
        databases = {alias}

        def test_a_write(self) -> None:
            assert d == {"before": 0}
            d["data"] = 5
            assert d == {"before": 0, "data": 5}

        def test_b_read(self) -> None:
            assert d == {"before": 0}

    run(First, Second, First)
    assert d == {"before": 0} == process.call(look, alias) == database(alias)
    assert_nothing_is_left(d)


@BOTH
@MODES
def test_in_a_transaction_test_case(alias: str, autosync: Any, process: OtherProcess) -> None:
    from django.db import transaction
    from django.test import TestCase, TransactionTestCase

    before = {"before": 0}
    fill(opened(alias), before)
    d = opened(alias, autosync)
    assert d == {"before": 0}

    class Committed(TransactionTestCase):
        databases = {alias}

        def test_a_write(self) -> None:
            with transaction.atomic(using=alias):
                d["a"] = 1
            assert d["a"] == 1
            assert process.call(look, alias)["a"] == 1
            add("row", 2, alias)
            assert process.call(look, alias) == {"a": 1, "row": 2, **before}

        def test_b_nothing_is_left(self) -> None:
            before.clear()
            assert d == {}  # Django empties the tables after each test
            assert process.call(look, alias) == {}

        def test_c_rolled_back(self) -> None:
            with transaction.atomic(using=alias):
                d["a"] = 1
                transaction.set_rollback(True, using=alias)
            assert d == {}

    class Between(TestCase):
        databases = {alias}

        def test_write(self) -> None:
            assert d == {}
            d["a"] = 1

    run(Committed, Between, Committed, Between)
    assert d == {} == process.call(look, alias)
    assert_nothing_is_left(d)


@BOTH
@MODES
def test_callbacks_that_a_test_captures(alias: str, autosync: Any) -> None:
    from django.db import transaction
    from django.test import TestCase

    fill(opened(alias), {"before": 0})
    d = opened(alias, autosync)
    assert d == {"before": 0}
    kept: list[Any] = []

    class Capturing(TestCase):
        databases = {alias}

        def test_a_executed(self) -> None:
            seen: list[Any] = []
            with self.captureOnCommitCallbacks(using=alias, execute=True) as callbacks:
                d["a"] = 1
                transaction.on_commit(lambda: seen.append(d.copy()), using=alias)
                with transaction.atomic(using=alias):
                    d["b"] = 2
            kept.append(callbacks)
            assert seen == [{"before": 0, "a": 1, "b": 2}]
            assert d == {"before": 0, "a": 1, "b": 2}
            d["c"] = 3
            assert len(d) == 4

        def test_b_not_executed(self) -> None:
            with self.captureOnCommitCallbacks(using=alias):
                d["a"] = 1
            assert d == {"before": 0, "a": 1}

        def test_c_mocked(self) -> None:
            with mock.patch("django.db.transaction.on_commit", side_effect=lambda f, **_: f()):
                d["a"] = 1
                assert d == {"before": 0, "a": 1}
            assert d == {"before": 0, "a": 1}

        def test_d_nothing_is_left(self) -> None:
            assert d == {"before": 0}

    run(Capturing)
    assert kept
    d.sync()
    assert d == {"before": 0} == database(alias)
    assert_nothing_is_left(d)


# -- in processes of their own --------------------------------------------------------------------

MODELS = """
from django.db import models

from durabledict import JSONEncoding, ModelDict
from durabledict.ext.django import SettingsDict


class Option(models.Model):
    id = models.BigAutoField(primary_key=True)
    key = models.CharField(max_length=50, unique=True)
    value = models.TextField()


strict = ModelDict(Option, encoding=JSONEncoding)
manual = ModelDict(Option, encoding=JSONEncoding, autosync=False)
flags = SettingsDict("flags")
"""

PYTEST = """
import pytest

from shop.models import flags, manual, strict

ALL = pytest.mark.parametrize("d", [strict, manual, flags], ids=["strict", "manual", "flags"])


@ALL
@pytest.mark.parametrize("again", [1, 2])
def test_rolled_back(db, d, again):
    assert d == {}
    d["a"] = 1
    assert d == {"a": 1}


@ALL
@pytest.mark.parametrize("again", [1, 2])
def test_committed(transactional_db, d, again):
    assert d == {}
    d["a"] = 1
    assert d == {"a": 1}


@ALL
@pytest.mark.parametrize("again", [1, 2])
def test_captured(db, d, again, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        d["a"] = 1
    assert d == {"a": 1}


@ALL
def test_at_the_end(db, d):
    assert d == {}


def test_without_the_fixture():
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        strict["a"] = 1
"""

UNITTEST = """
from django.db import connection
from django.test import TestCase, TransactionTestCase

from shop.models import flags, manual, strict


class Mixin:
    def act(self, *dicts):
        name = str(connection.settings_dict["NAME"])
        assert "test" in name or "memory" in name
        for d in dicts:
            self.assertEqual(d, {})
            for number in range(20):
                d["a"] = number
                self.assertEqual(d, {"a": number})
            del d["a"]
            d["a"] = type(self).__name__

    def test_a(self):
        self.act(strict, flags)

    def test_b(self):
        self.act(manual, flags)

    test_c = test_a
    test_d = test_b


class First(Mixin, TestCase):
    pass


class Second(Mixin, TestCase):
    pass


class Third(Mixin, TransactionTestCase):
    pass


class Fourth(Mixin, TransactionTestCase):
    pass
"""


def made(path: Path, server: MemcachedServer, settings: str = "") -> DjangoFolder:
    folder = DjangoFolder(path, server.port, settings)
    folder.write("shop/models.py", MODELS)
    return folder


# The rows of both are of one table: what one of them writes in one test is gone in the next.
def test_with_pytest_django(tmp_path: Path, memcached_server: MemcachedServer) -> None:
    folder = made(tmp_path, memcached_server)
    folder.write("test_shop.py", PYTEST)
    folder.write("pytest.ini", "[pytest]\n")
    printed = folder.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-x")
    assert "22 passed" in printed


def on_postgres(server: PostgresServer, name: str) -> str:
    settings = {**server.django_settings(name), "ENGINE": "django.db.backends.postgresql"}
    return f"DATABASES = {{'default': {settings!r}}}"


@pytest.mark.parametrize("vendor", ["sqlite", "postgresql"])
def test_with_the_parallel_runner(
    vendor: str, tmp_path: Path, memcached_server: MemcachedServer, postgres_server: PostgresServer
) -> None:
    settings = "" if vendor == "sqlite" else on_postgres(postgres_server, "shop_parallel")
    folder = made(tmp_path, memcached_server, settings)
    folder.write("shop/tests.py", UNITTEST)
    printed = folder.manage("test", "--parallel", "2", "--verbosity", "1")
    assert "Ran 16 tests" in printed
    assert "OK" in printed


# -- nothing before the first use -----------------------------------------------------------------


def test_a_fresh_database_is_migrated(tmp_path: Path, memcached_server: MemcachedServer) -> None:
    folder = made(tmp_path, memcached_server)
    folder.manage("migrate", "--run-syncdb", "--verbosity", "0")
    use = """
    from shop.models import flags, manual, strict
    strict["a"], flags["b"] = 1, 2
    print(strict, manual.copy(), flags)
    """
    assert folder.run(use) == "{'a': 1} {'a': 1} {'b': 2}\n"


def test_a_database_is_migrated_without_the_cache(tmp_path: Path) -> None:
    folder = DjangoFolder(tmp_path, free_port())
    folder.write("shop/models.py", MODELS)
    assert folder.manage("migrate", "--run-syncdb", "--verbosity", "0") == ""


def test_making_a_dict_asks_nobody(tmp_path: Path) -> None:
    settings = f"""
    DATABASES = {{
        "default": {{
            "ENGINE": "django.db.backends.postgresql", "NAME": "none", "HOST": "127.0.0.1",
            "PORT": {free_port()}, "OPTIONS": {{"connect_timeout": 5}},
        }}
    }}
    """
    folder = DjangoFolder(tmp_path, free_port(), settings)
    folder.write("shop/models.py", MODELS)
    folder.run(
        """
        from shop.models import Option, flags, manual, strict
        from durabledict import ModelDict
        more = ModelDict(Option, autosync=False, on_outage="stale")
        print(repr(more), more.autosync, more.stats)
        for d in (strict, manual, flags, more):
            try:
                d["a"]
            except KeyError:
                raise SystemExit("read from nowhere")
            except d.unavailable:
                pass
            else:
                raise SystemExit("read from nowhere")
        """
    )


def test_making_a_dict_sends_no_request(memcached_server: MemcachedServer) -> None:
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    def asked() -> list[Any]:
        stats = memcached_server.stats()
        return [stats[name] for name in ("cmd_get", "cmd_set", "incr_hits", "incr_misses")]

    before = asked()
    with CaptureQueriesContext(connections["default"]) as captured:
        made = [opened("default", autosync) for autosync in (True, False, 5.0)]
    assert asked() == before
    assert len(captured) == 0
    assert len(made) == 3


@MODES
def test_another_name_of_the_database(autosync: Any, tmp_path: Path) -> None:
    """The test runner gives the connection another name after the modules were imported."""
    from django.db import connections, transaction

    d = opened("sqlite", autosync)
    fill(opened("sqlite"), {"where": "development"})
    assert d == {"where": "development"}
    connection = connections["sqlite"]
    connection.close()
    settings, name = connection.settings_dict, connection.settings_dict["NAME"]
    shutil.copy(name, tmp_path / "test.sqlite")
    try:
        settings["NAME"] = str(tmp_path / "test.sqlite")
        other = opened("sqlite")
        other.replace_all({"where": "test"})
        assert d == {"where": "test"}
        with transaction.atomic(using="sqlite"):
            d["more"] = 1
        assert d == {"where": "test", "more": 1} == database("sqlite")
    finally:
        connection.close()
        settings["NAME"] = name
    connection.ensure_connection()
    assert d == {"where": "development"} == database("sqlite")
    assert_nothing_is_left(d)


# -- replicas -------------------------------------------------------------------------------------


class LaggingReplica:
    """Reads from a database that has not heard of the last writes."""

    def db_for_read(self, model: Any, **hints: object) -> str:
        return "sqlite"

    def db_for_write(self, model: Any, **hints: object) -> str:
        return "default"

    def allow_relation(self, *arguments: object, **hints: object) -> bool:
        return True


@MODES
def test_rows_come_from_the_primary(
    autosync: Any, thread: OtherThread, process: OtherProcess
) -> None:
    from django.db import transaction
    from django.test import override_settings

    from durabledict import ModelDict

    from .djangoapp.models import Plain

    fill(opened("sqlite"), {"a": "of the replica"})
    fill(opened("default"), {"a": "old"})
    with override_settings(DATABASE_ROUTERS=[LaggingReplica()]):
        assert Plain.objects.get().value == '"of the replica"'
        d: Any = ModelDict(Plain, autosync=autosync, encoding=JSONEncoding)
        assert d == {"a": "old"}
        d["a"] = "new"
        assert d == {"a": "new"} == thread.call(d.copy) == process.call(look, "default")
        with transaction.atomic():
            d["b"] = "more"
            assert d.compute("a", lambda text: text + "er") == "newer"
            assert d == {"a": "newer", "b": "more"}
            assert d.setdefault("a", "no") == "newer"
        d.sync(force=True)
        assert d == {"a": "newer", "b": "more"} == process.call(look, "default")
        other: Any = ModelDict(Plain, encoding=JSONEncoding, using="sqlite")
        assert other == {"a": "of the replica"}
        add("saved", "x", "default")
        d.sync()
        assert d["saved"] == "x"
        assert "saved" not in other
    assert_nothing_is_left(d)
    fill(opened("sqlite"), {})


def test_using_names_the_database(process: OtherProcess) -> None:
    calls: list[Callable[[], object]] = []
    one, two = opened("sqlite"), opened("default")
    fill(one, {"a": 1})
    fill(two, {"a": 2})
    calls += [lambda: one.update(b=1), lambda: two.update(b=2)]
    for call in calls:
        call()
    assert one == {"a": 1, "b": 1} == process.call(look, "sqlite")
    assert two == {"a": 2, "b": 2} == process.call(look, "default")
