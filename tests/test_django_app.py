"""The Django app: its table, the setting DURABLEDICTS, `SettingsDict`, and signals of requests."""

from __future__ import annotations

import asyncio
import enum
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from durabledict import DurableDict, JSONEncoding

from .djangofolders import DjangoFolder, overridden_settings
from .memcachedserver import MemcachedServer
from .servers import PATIENCE

if TYPE_CHECKING:
    from durabledict.ext.django import SettingsDict


@pytest.fixture
def keyspace() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def settings(django_project: None) -> Iterator[Any]:
    """Django's settings, of which those that a test sets are put back."""
    with overridden_settings() as overridden:
        yield overridden


def settings_dict(keyspace: str, **options: Any) -> SettingsDict[Any, Any]:
    from durabledict.ext.django import SettingsDict

    return SettingsDict(keyspace, **options)


# -- in projects of their own -----------------------------------------------------------------


def test_the_migration_is_what_django_makes(
    tmp_path: Path, memcached_server: MemcachedServer
) -> None:
    # The project's own choice of keys is no reason for another migration.
    folder = DjangoFolder(
        tmp_path, memcached_server.port, 'DEFAULT_AUTO_FIELD = "django.db.models.AutoField"'
    )
    assert "No changes detected" in folder.manage("makemigrations", "--check", "--dry-run")


def test_dicts_made_while_apps_load_ask_nobody(tmp_path: Path) -> None:
    # Nobody listens on port 1, and there is no such database: asking would raise.
    folder = DjangoFolder(
        tmp_path,
        1,
        """
        DATABASES["default"]["NAME"] = FOLDER + "/nowhere/db.sqlite"
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        DURABLEDICTS = {
            "named": {},
            "prices": {"MODEL": "shop.Price", "KEY_COL": "article", "VALUE_COL": "cents"},
            "views": "shop.views.flags",
        }
        """,
    )
    folder.write("shop/__init__.py", "import durabledict.ext.django\n")
    folder.write(
        "shop/models.py",
        """
        from django.db import models
        from durabledict.ext.django import SettingsDict, durabledicts

        class Price(models.Model):
            article = models.CharField(max_length=20, unique=True)
            cents = models.IntegerField()

        flags = SettingsDict("of models.py", autosync=False)
        named = durabledicts["named"]
        prices = durabledicts["prices"]
        """,
    )
    folder.write(
        "shop/views.py",
        'from durabledict.ext.django import SettingsDict\nflags = SettingsDict("of views.py")\n',
    )
    assert "no issues" in folder.manage("check")
    said = folder.run(
        """
        from django.db.models.signals import post_save
        from durabledict import modelsignals
        from durabledict.ext.django.models import Setting
        import shop.models
        print(sorted(d.keyspace for d in modelsignals.living()))
        print(post_save.has_listeners(Setting), post_save.has_listeners(shop.models.Price))
        from durabledict.ext.django import durabledicts
        print(durabledicts["views"] is __import__("shop.views").views.flags)
        print(durabledicts["named"] is shop.models.named)
        try:
            shop.models.flags["key"]
        except Exception as error:
            print(type(error).__name__)
        """
    )
    assert said.splitlines() == [
        "['named', 'of models.py', 'of views.py', 'shop.price.article.cents']",
        "True True",
        "True",
        "True",
        "ConnectionRefusedError",
    ]


def test_a_dict_made_too_early_or_without_the_app_says_what_to_do(
    tmp_path: Path, memcached_server: MemcachedServer
) -> None:
    folder = DjangoFolder(tmp_path, memcached_server.port, 'INSTALLED_APPS = ["shop"]')
    said = folder.python(
        "-c",
        """
import durabledict.ext.django
from durabledict.ext.django import SettingsDict
assert "durabledicts" in dir(durabledict.ext.django)
try:
    SettingsDict("flags")
except Exception as error:
    print(type(error).__name__, error)
import django; django.setup()
try:
    SettingsDict("flags")
except Exception as error:
    print(type(error).__name__, error)
try:
    durabledict.ext.django.nothing
except AttributeError as error:
    print(error)
""",
    )
    early, missing, unknown = said.splitlines()
    assert early.startswith("AppRegistryNotReady SettingsDict('flags') is made before Django")
    assert "ImproperlyConfigured" in missing
    assert 'add "durabledict.ext.django" to INSTALLED_APPS' in missing
    assert unknown == "module 'durabledict.ext.django' has no attribute 'nothing'"


def test_a_save_is_heard_where_only_the_setting_names_the_dict(
    tmp_path: Path, memcached_server: MemcachedServer
) -> None:
    folder = DjangoFolder(
        tmp_path,
        memcached_server.port,
        'DURABLEDICTS = {"flags": {"ENCODING": "durabledict.JSONEncoding"}}',
    )
    folder.manage("migrate")
    said = folder.run(
        """
        import subprocess, sys
        from durabledict.ext.django import durabledicts
        flags = durabledicts["flags"]
        flags["beta"] = False
        print(flags["beta"])
        code = '''
        import django; django.setup()
        from durabledict.ext.django.models import Setting
        setting = Setting.objects.get(key="beta")
        setting.value = "true"
        setting.save()
        '''
        code = "\\n".join(map(str.strip, code.splitlines()))
        subprocess.run([sys.executable, "-c", code], check=True)
        print(flags["beta"])
        subprocess.run(
            [sys.executable, "-m", "django", "shell", "-c",
             "from durabledict.ext.django.models import Setting; Setting.objects.all().delete()"],
            check=True, stdout=subprocess.DEVNULL,
        )
        print(flags)
        print("beta" in flags)
        """
    )
    assert said.splitlines() == ["False", "True", "{'beta': True}", "False"]


def test_a_setting_that_cannot_be_understood_stops_the_project(tmp_path: Path) -> None:
    folder = DjangoFolder(tmp_path, 1, 'DURABLEDICTS = {"flags": {"AUTOSNYC": True}}')
    said = folder.manage("check", status=1)
    assert "ImproperlyConfigured: DURABLEDICTS['flags'] has no option 'AUTOSNYC'" in said


# -- SettingsDict -----------------------------------------------------------------------------


@pytest.mark.usefixtures("django_project")
class TestSettingsDict:
    def test_keyspaces_are_apart(self, keyspace: str) -> None:
        from durabledict.ext.django.models import Setting

        one, two = settings_dict(keyspace), settings_dict(f"{keyspace}-2")
        again = settings_dict(keyspace)
        one.update(a=1, b=2)
        two.update(a=3, c=4)
        assert one == again == {"a": 1, "b": 2}
        syncs = two.stats.syncs
        one["a"] = 5
        one.replace_all({"a": 6})
        assert two == {"a": 3, "c": 4}
        assert two.stats.syncs == syncs  # its stamp is another one
        one.clear()
        assert one == again == {}
        assert two == {"a": 3, "c": 4}
        assert settings_dict(f"{keyspace}-2") == {"a": 3, "c": 4}
        assert Setting.objects.filter(keyspace=f"{keyspace}-2").count() == 2
        assert one.cache_key != two.cache_key
        assert one.cache_key == again.cache_key

    def test_reads_in_place_of_the_other_ways(self, keyspace: str) -> None:
        one, two = settings_dict(keyspace, autosync=False), settings_dict(keyspace)
        one["a"] = 1
        assert one.pop("a") == two.setdefault("a", 1)
        assert one.setdefault("a", 2) == 1
        assert two.compare_and_set("a", 1, 3)
        assert not two.compare_and_set("a", 1, 4)
        one.sync()
        assert one == {"a": 3}

    def test_it_keeps_what_it_was_given(self, keyspace: str) -> None:
        durable = settings_dict(
            keyspace,
            autosync=2.0,
            encoding=JSONEncoding,
            cache="redis",
            using="sqlite",
            verify=5,
            on_outage="stale",
            max_stale=60,
            cache_key="mine",
        )
        assert durable.keyspace == keyspace
        assert durable.autosync == 2.0
        assert durable.encoding is JSONEncoding
        assert (durable.using, durable.cache_key) == ("sqlite", "mine")
        assert (durable.on_outage, durable.max_stale) == ("stale", 60.0)
        assert durable._stamp().verify == 5.0
        assert durable._stamp().cache.identity == "redis"
        durable["a"] = [1]
        from durabledict.ext.django.models import Setting

        row = Setting.objects.using("sqlite").get(keyspace=keyspace)
        assert (row.key, row.value, str(row)) == ("a", "[1]", f"{keyspace}: a")
        row.delete()

    @pytest.mark.parametrize("given", [None, 3, b"flags"])
    def test_a_keyspace_is_a_str(self, given: Any) -> None:
        with pytest.raises(TypeError, match=r'write a name, SettingsDict\("flags"\) say'):
            settings_dict(given)

    @pytest.mark.parametrize("given", ["", "x" * 101, "a\0b", "\ud800"])
    def test_a_keyspace_fits_the_column(self, given: str) -> None:
        with pytest.raises(ValueError, match="keyspace="):
            settings_dict(given)
        settings_dict("x" * 100)

    def test_an_enumeration_is_its_value(self, keyspace: str) -> None:
        make: Any = enum.Enum
        kinds = make("kinds", {"FLAGS": keyspace}, type=str)
        durable = settings_dict(kinds.FLAGS)
        assert type(durable.keyspace) is str
        assert durable._scope() == {"keyspace": keyspace}

    def test_a_key_that_is_too_long_is_refused_before_it_is_sent(self, keyspace: str) -> None:
        durable = settings_dict(keyspace)
        with pytest.raises(ValueError, match="takes 255"):
            durable["k" * 256] = 1
        assert durable == {}


# -- DURABLEDICTS -----------------------------------------------------------------------------


own = object()


@pytest.mark.usefixtures("django_project")
class TestDurableDicts:
    def test_one_dict_for_a_name(self, settings: Any, keyspace: str) -> None:
        from durabledict.ext.django import durabledicts

        settings.DURABLEDICTS = {keyspace: {}}
        found = durabledicts[keyspace]
        assert type(found) is type(settings_dict(keyspace))
        assert found is durabledicts[keyspace]
        assert (found.keyspace, found.autosync) == (keyspace, True)
        assert list(durabledicts) == [keyspace]
        assert len(durabledicts) == 1
        assert repr(durabledicts) == f"<durabledicts: {keyspace!r}>"
        assert durabledicts.get("other") is None

    def test_threads_get_the_same_one(
        self, settings: Any, keyspace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from durabledict.ext.django import SettingsDict, configured, durabledicts

        made: list[Any] = []
        together = threading.Barrier(8)
        recipe = configured._recipe

        def found_none_there(*arguments: Any) -> Any:
            make = recipe(*arguments)
            together.wait(PATIENCE)
            return make

        class Counted(SettingsDict[Any, Any]):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                made.append(self)
                super().__init__(*arguments, **options)

        monkeypatch.setattr(configured, "_recipe", found_none_there)
        monkeypatch.setattr(configured, "SettingsDict", Counted)
        settings.DURABLEDICTS = {keyspace: {}}
        found = []

        def ask() -> None:
            found.append(durabledicts[keyspace])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(made) == len(set(map(id, found))) == 1

    def test_a_module_may_ask_while_it_is_imported(
        self, settings: Any, keyspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that waits for the module must not hold what the module waits for."""
        from durabledict.ext.django import durabledicts

        (tmp_path / "asks_for_a_dict.py").write_text(
            "import threading\n"
            "from durabledict.ext.django import durabledicts\n"
            "threading.importing.set()\n"
            "threading.asked.wait(30)\n"
            f"flags = durabledicts[{keyspace!r}]\n"
        )
        importing, asked = threading.Event(), threading.Event()
        monkeypatch.setattr(threading, "importing", importing, raising=False)
        monkeypatch.setattr(threading, "asked", asked, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        settings.DURABLEDICTS = {"own": "asks_for_a_dict.flags", keyspace: {}}
        found: list[object] = []

        def ask() -> None:
            importing.wait(30)
            threading.Timer(0.1, asked.set).start()
            found.append(durabledicts["own"])

        threads = [
            threading.Thread(target=__import__, args=("asks_for_a_dict",), daemon=True),
            threading.Thread(target=ask, daemon=True),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert found == [durabledicts[keyspace]]
        assert found[0] is durabledicts[keyspace]

    def test_an_unknown_name_is_told_the_known_ones(self, settings: Any) -> None:
        from durabledict.ext.django import durabledicts

        settings.DURABLEDICTS = {"flags": {}, "prices": {}}
        with pytest.raises(KeyError, match=r"no dict 'flagz' .* there are: 'flags', 'prices'"):
            durabledicts["flagz"]

    def test_every_option_arrives(self, settings: Any) -> None:
        from durabledict.ext.django import durabledicts

        settings.DURABLEDICTS = {
            "plain": {
                "MODEL": "djangoapp.Plain",
                "KEY_COL": "key",
                "VALUE_COL": "value",
                "CACHE": "redis",
                "USING": "sqlite",
                "AUTOSYNC": False,
                "ENCODING": "durabledict.JSONEncoding",
                "OLD_ENCODING": "durabledict.encoding.PickleEncoding",
                "CACHE_KEY": "plain",
                "VERIFY": None,
                "ON_OUTAGE": "stale",
                "MAX_STALE": 5,
                "RETURN_INSTANCES": True,
                "ALLOW_UNSIGNED": True,
            },
            "switches": {"MODEL": "djangoapp.Switch", "KEY_COL": "name", "VALUE_COL": "enabled"},
        }
        plain: Any = durabledicts["plain"]
        assert plain.model._meta.label == "djangoapp.Plain"
        assert (plain.cache, plain.using, plain.autosync) == ("redis", "sqlite", False)
        assert plain.encoding is JSONEncoding
        assert plain.old_encoding.__name__ == "PickleEncoding"
        assert (plain.cache_key, plain._stamp().verify) == ("plain", None)
        assert (plain.on_outage, plain.max_stale, plain.return_instances) == ("stale", 5.0, True)
        switches: Any = durabledicts["switches"]
        assert (switches.key_col, switches.value_col) == ("name", "enabled")
        durabledicts.make_all()

    def test_a_dotted_path_is_the_dict_itself(self, settings: Any) -> None:
        from durabledict.ext.django import durabledicts

        global own
        own = settings_dict("own")
        settings.DURABLEDICTS = {"own": f"{__name__}.own"}
        assert durabledicts["own"] is own

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                {"AUTOSNYC": True},
                "no option 'AUTOSNYC'; there are: ALLOW_UNSIGNED, AUTOSYNC, CACHE",
            ),
            ({"autosync": True}, "no option 'autosync'"),
            ({"KEY_COL": "key"}, "no option 'KEY_COL'.*MODEL"),
            ({"MODEL": "djangoapp.Nothing"}, "'djangoapp.Nothing': write .* a 'Nothing' model"),
            ({"MODEL": "Nothing"}, 'write "app_label.Model"'),
            ({"MODEL": "djangoapp.Plain", "KEY_COL": "kee"}, "has no field named 'kee'"),
            ({"MODEL": 3}, "write ModelDict"),
            ({"AUTOSYNC": 1}, r"DURABLEDICTS\['d'\]: autosync=1: write True"),
            ({"ENCODING": "durabledict.Nothing"}, "'durabledict.Nothing' cannot be imported"),
            ({"CACHE": "nothing"}, "CACHE='nothing' is no alias; there are: default, redis"),
            ({"USING": "nothing"}, "USING='nothing' is no alias; there are: default, "),
            (None, r"DURABLEDICTS\['d'\]=None: write a dict of options"),
            ("nothing.at.all", "'nothing.at.all' cannot be imported"),
            ("os.path", "'os.path' is a module, and no dict"),
        ],
    )
    def test_options_that_cannot_be_understood(
        self, settings: Any, options: object, said: str
    ) -> None:
        from django.core.exceptions import ImproperlyConfigured

        from durabledict.ext.django import durabledicts

        settings.DURABLEDICTS = {"d": options}
        with pytest.raises(ImproperlyConfigured, match=said):
            durabledicts["d"]

    def test_the_setting_is_a_dict(self, settings: Any) -> None:
        from django.core.exceptions import ImproperlyConfigured

        from durabledict.ext.django import durabledicts

        settings.DURABLEDICTS = ["flags"]
        with pytest.raises(ImproperlyConfigured, match="write a dict of names and options"):
            list(durabledicts)

    def test_an_overridden_setting_is_followed_and_left(self, settings: Any) -> None:
        from django.test import override_settings

        from durabledict.ext.django import durabledicts

        settings.DURABLEDICTS = {"kept": {}, "changed": {}}
        kept, changed = durabledicts["kept"], durabledicts["changed"]
        new = {**settings.DURABLEDICTS, "changed": {"AUTOSYNC": False}, "more": {}}
        with override_settings(DURABLEDICTS=new):
            assert durabledicts["kept"] is kept
            assert durabledicts["changed"] is not changed
            assert durabledicts["changed"].autosync is False
            assert "more" in durabledicts
        assert durabledicts["changed"] is changed
        assert "more" not in durabledicts
        with override_settings(USE_TZ=False):
            assert durabledicts["kept"] is kept


# -- requests ---------------------------------------------------------------------------------


def paths(flags: DurableDict[Any, Any]) -> tuple[Any, ...]:
    """Return URLs whose views answer with a flag, read in a thread and in a coroutine."""
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(flags.get("beta")))

    async def answer_async(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(flags.get("beta")))

    return path("sync", answer), path("async", answer_async)


@pytest.fixture
def flags(django_project: None, settings: Any, keyspace: str) -> Iterator[SettingsDict[Any, Any]]:
    """A manual dict that each request syncs, and URLs whose views read it."""
    from django.core.signals import request_started

    durable = settings_dict(keyspace, autosync=False)
    settings.ROOT_URLCONF = paths(durable)
    settings.MIDDLEWARE = []
    request_started.connect(durable.sync)
    try:
        yield durable
    finally:
        assert request_started.disconnect(durable.sync)


def ask_wsgi(address: str) -> str:
    from django.core.wsgi import get_wsgi_application
    from django.test import RequestFactory

    environ = RequestFactory().get(address).environ
    answer = get_wsgi_application()(environ, lambda *_: lambda _: None)
    try:
        return b"".join(answer).decode()
    finally:
        answer.close()


async def ask_asgi(address: str) -> str:
    from asgiref.testing import ApplicationCommunicator
    from django.core.asgi import get_asgi_application
    from django.test import AsyncRequestFactory

    scope = AsyncRequestFactory().get(address).scope
    make: Any = ApplicationCommunicator  # which has no types
    communicator = make(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    begin = await communicator.receive_output(30)
    assert begin["status"] == 200
    body = await communicator.receive_output(30)
    await communicator.wait()
    return str(body["body"].decode())


class TestRequests:
    def test_a_wsgi_request_sees_the_last_write(
        self, flags: SettingsDict[Any, Any], keyspace: str
    ) -> None:
        elsewhere = settings_dict(keyspace)
        for value in (True, False, True):
            elsewhere["beta"] = value
            assert ask_wsgi("/sync") == str(value)
        syncs = flags.stats.syncs
        assert ask_wsgi("/sync") == "True"
        assert flags.stats.syncs == syncs

    @pytest.mark.parametrize("address", ["/async", "/sync"])
    def test_an_asgi_request_sees_the_last_write(
        self, flags: SettingsDict[Any, Any], keyspace: str, address: str
    ) -> None:
        elsewhere = settings_dict(keyspace)

        async def requests() -> None:
            for value in (True, False, True):
                await asyncio.to_thread(elsewhere.__setitem__, "beta", value)
                assert await ask_asgi(address) == str(value)

        asyncio.run(requests())

    def test_an_outage_is_not_raised_at_the_start_of_a_request(
        self, keyspace: str, django_project: None, settings: Any
    ) -> None:
        from django.core.signals import request_started

        with MemcachedServer() as server:
            client = server.client()
            durable = settings_dict(keyspace, autosync=False, cache=client)
            settings.ROOT_URLCONF = paths(durable)
            settings.MIDDLEWARE = []
            durable["beta"] = True
            request_started.connect(durable.sync)
            try:
                assert ask_wsgi("/sync") == "True"
                server.stop()
                assert ask_wsgi("/sync") == "True"
                assert durable.stale_since is not None
            finally:
                request_started.disconnect(durable.sync)
                client.close()
