"""Stamps over Django's caches, with what each can promise (rules 3.1 and 3.2)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from durabledict.stamps import WRITERS, CacheStamp, Stamp
from durabledict.testing.tools import Clock, in_thread

from .djangofolders import overridden_settings
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer
from .scenarios import ended_well, fork, run
from .servers import HOST, PATIENCE
from .stampcases import check_unavailable, read

if TYPE_CHECKING:
    from django.core.cache.backends.base import BaseCache

pytestmark = pytest.mark.usefixtures("django_project")

BACKENDS = "django.core.cache.backends"
ATOMIC = ["default", "redis"]
OTHERS = ["locmem", "files", "database"]

_numbers = itertools.count()


@pytest.fixture
def key() -> str:
    """One that no other test has."""
    return f"stamp{next(_numbers)}"


@pytest.fixture
def settings() -> Iterator[Any]:
    with overridden_settings() as overridden:
        yield overridden


def caches() -> Any:
    from django.core.cache import caches

    return caches


def of_alias(alias: str) -> Any:
    return alias


def of_instance(alias: str) -> Any:
    return caches()[alias]


def of_none(alias: str) -> Any:
    """A cache that is in no settings."""
    return caches().create_connection(alias)


def of_proxy(alias: str) -> Any:
    from django.utils.connection import ConnectionProxy

    return ConnectionProxy(caches(), alias)


@pytest.mark.parametrize("given", [of_alias, of_instance, of_none, of_proxy])
@pytest.mark.parametrize("alias", [*ATOMIC, *OTHERS])
def test_every_cache_holds_a_stamp(alias: str, given: Callable[[str], Any], key: str) -> None:
    cache = given(alias)
    one, two = CacheStamp(cache, key), CacheStamp(cache, key)
    assert one.identity == two.identity
    known = read(one)
    assert read(two) == known
    with one.writing() as write:
        assert caches()[alias].get(key) is not None
    if alias in ATOMIC:
        assert (write.before, write.after) == (known, read(two))
    else:
        assert (write.before, write.after) == (None, None)
        assert read(two) != known
    seen = {known, read(one)}
    two.touch()
    seen.add(read(one))
    one.renew()
    seen.add(read(one))
    assert len(seen) == 4
    assert read(one) == read(two)
    assert int(caches()[alias].get(key)) // WRITERS == read(one).number


@pytest.mark.parametrize("alias", [*ATOMIC, *OTHERS])
def test_what_each_can_do(alias: str, key: str) -> None:
    stamp = CacheStamp(alias, key)
    assert stamp.cache.atomic is (alias in ATOMIC)
    assert stamp.cache.nodes == 1
    assert OSError in stamp.unavailable


def test_the_dummy_cache_knows_nothing(key: str) -> None:
    stamp = CacheStamp("dummy", key)
    assert stamp.read() is None
    with stamp.writing() as write:
        pass
    assert write.after is None
    assert stamp.cache.atomic is False


def test_the_default_cache_is_the_one_of_django(key: str) -> None:
    from django.core.cache import cache

    from durabledict.djangocaches import DjangoCache

    known = read(CacheStamp(cache, key))
    for other in ("default", caches()["default"], DjangoCache(None)):
        stamp = CacheStamp(other, key)
        assert read(stamp) == known
        assert stamp.identity == CacheStamp(cache, key).identity


def test_what_is_no_cache_is_refused(key: str) -> None:
    from django.core.cache import InvalidCacheBackendError
    from django.db import models

    with pytest.raises(InvalidCacheBackendError, match="nowhere"):
        CacheStamp("nowhere", key)
    with pytest.raises(TypeError, match="pass a cache of Django's, or its alias"):
        CacheStamp(models.Manager(), key)


def test_only_caches_that_are_in_use_are_looked_at(settings: Any, key: str) -> None:
    settings.CACHES = {
        "broken": {"BACKEND": "no.such.Backend"},
        "default": {"BACKEND": f"{BACKENDS}.locmem.LocMemCache"},
    }
    assert read(CacheStamp(caches()["default"], key))


@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
@pytest.mark.parametrize("alias", ["default", "locmem"])
def test_a_key_that_the_cache_does_not_take_is_refused(alias: str) -> None:
    if alias == "default":
        with pytest.raises(ValueError, match="key"):
            CacheStamp(alias, "with space")
    else:
        assert read(CacheStamp(alias, "with space"))


@pytest.mark.parametrize("alias", [*ATOMIC, *OTHERS])
def test_prefix_and_version_are_djangos(settings: Any, alias: str, key: str) -> None:
    from django.conf import settings as current

    settings.CACHES = {
        "default": {"BACKEND": f"{BACKENDS}.dummy.DummyCache"},
        "plain": current.CACHES[alias],
        "other": {**current.CACHES[alias], "KEY_PREFIX": "other", "VERSION": 7},
    }
    plain, other = CacheStamp("plain", key), CacheStamp("other", key)
    assert read(plain) != read(other)
    plain.touch()
    assert int(caches()["other"].get(key)) // WRITERS == read(other).number
    assert caches()["plain"].get(key, version=7) is None


def test_it_does_not_expire(
    memcached_server: MemcachedServer, redis_server: RedisServer, key: str
) -> None:
    """Django's default is five minutes."""
    with closing(memcached_server.client()) as client, redis_server.client() as direct:
        for action in (CacheStamp.read, CacheStamp.renew, CacheStamp.begin):
            for alias in ATOMIC:
                action(CacheStamp(alias, key))
            assert client.raw_command(f"mg :1:{key} t").split() == [b"HD", b"t-1"]
            assert direct.ttl(f":1:{key}") == -1
            client.delete(f":1:{key}", noreply=False)
            direct.delete(f":1:{key}")


@pytest.mark.parametrize("action", [CacheStamp.read, CacheStamp.renew, CacheStamp.begin])
def test_nor_does_it_elsewhere(action: Callable[[CacheStamp], object], key: str) -> None:
    """In a cache that is asked through Django."""
    from django.db import connection

    for alias in OTHERS:
        action(CacheStamp(alias, key))
    locmem: Any = caches()["locmem"]
    assert locmem._expire_info[f":1:{key}"] is None
    with connection.cursor() as cursor:
        cursor.execute("SELECT expires FROM cache_table WHERE cache_key = %s", [f":1:{key}"])
        assert cursor.fetchone()[0].year == 9999


def test_a_read_is_one_request(
    memcached_server: MemcachedServer, redis_server: RedisServer, key: str, clock: Clock
) -> None:
    memcached, over_redis = CacheStamp("default", key), CacheStamp("redis", key)
    read(memcached), read(over_redis)
    before = memcached_server.stats()
    with redis_server.counting() as calls:
        for stamp in (memcached, over_redis):
            for _ in range(5):
                read(stamp)
            for _ in range(3):
                with stamp.writing():
                    pass
    after = memcached_server.stats()
    assert calls == {"get": 5, "incrby": 6}
    assert int(after["cmd_get"]) - int(before["cmd_get"]) == 5
    assert int(after["incr_hits"]) - int(before["incr_hits"]) == 6
    assert int(after["cmd_set"]) == int(before["cmd_set"])


class TestServers:
    """Caches over servers of a test's own."""

    @staticmethod
    def cache(kind: str, *ports: int, **options: Any) -> BaseCache:
        from django.utils.module_loading import import_string

        prefix = "redis://" if kind == "redis.RedisCache" else ""
        places = [f"{prefix}{HOST}:{port}" for port in ports]
        cache: BaseCache = import_string(f"{BACKENDS}.{kind}")(places, {"OPTIONS": options})
        return cache

    @pytest.mark.parametrize("options", [{}, {"ignore_exc": True}, {"default_noreply": True}])
    def test_memcached_is_down(self, options: dict[str, Any], key: str) -> None:
        """With `ignore_exc`, as many projects have it, Django takes an outage for a miss."""
        with MemcachedServer() as server:
            cache = self.cache("memcached.PyMemcacheCache", server.port, **options)
            stamp = CacheStamp(cache, key)
            known = read(stamp)
            server.kill()
            check_unavailable(stamp)
            server.start()
            assert read(stamp) != known
            cache.close()

    def test_redis_is_down(self, key: str) -> None:
        with RedisServer() as server:
            stamp = CacheStamp(self.cache("redis.RedisCache", server.port), key)
            known = read(stamp)
            server.kill()
            check_unavailable(stamp)
            server.start()
            assert read(stamp) != known

    def test_several_nodes_of_memcached_need_verify(
        self, memcached_server: MemcachedServer, key: str
    ) -> None:
        cache = self.cache("memcached.PyMemcacheCache", memcached_server.port, 1)
        with pytest.raises(ValueError, match="verify=None over 2 nodes of memcached"):
            CacheStamp(cache, key, verify=None)
        assert CacheStamp(cache, key).cache.nodes == 2

    def test_of_several_redis_servers_the_first_is_asked(self, key: str) -> None:
        """Django reads from the others, which are replicas and lag."""
        with RedisServer() as primary, RedisServer() as lagging:
            cache = self.cache("redis.RedisCache", primary.port, lagging.port)
            assert cache.get(key) is None
            stamp = CacheStamp(cache, key)
            known = read(stamp)
            with stamp.writing() as write:
                pass
            assert (write.before, write.after) == (known, read(stamp))
            with lagging.client() as client:
                assert client.keys() == []

    def test_another_class_that_counts_is_asked_through_django(
        self, memcached_server: MemcachedServer, key: str
    ) -> None:
        """As that of another package over another library, with an incr of its own."""
        from durabledict.djangocaches import DjangoCache, _AnyCache

        inner: Any = self.cache("memcached.PyMemcacheCache", memcached_server.port)
        stamp = CacheStamp(inner, key)
        assert isinstance(stamp.cache, DjangoCache)
        stamp.cache._place = _AnyCache(None, inner)
        stamp.cache._names_keys = False
        known = read(stamp)
        with stamp.writing() as write:
            assert not stamp.cache.is_in_use()
        assert (write.before, write.after) == (known, read(stamp))
        inner.delete(key)
        stamp.touch()
        with stamp.writing() as write:
            pass
        assert write.after == read(stamp)
        inner.set(key, "text")
        assert stamp.cache.increase(key, 1) is None
        assert read(stamp) != write.after
        inner.close()


def test_a_request_in_the_middle_of_another_is_told_of(key: str) -> None:
    """Of a cache that is asked through Django: its connection is not ours."""
    from django.core.cache.backends.locmem import LocMemCache

    seen = []

    class Curious(LocMemCache):
        def get(self, *arguments: Any, **named: Any) -> Any:
            seen.append((stamp.cache.is_in_use(), in_thread(stamp.cache.is_in_use)))
            return super().get(*arguments, **named)

    stamp = CacheStamp(Curious(key, {}), key)
    read(stamp)
    assert seen == [(True, False)] * len(seen)
    assert seen
    assert not stamp.cache.is_in_use()


def test_what_the_database_did_not_store_is_not_held_for_stored(key: str) -> None:
    """Django swallows the error of a `set` there. Then nothing is better than the old number."""
    from django.core.cache.backends.db import DatabaseCache

    class Failing(DatabaseCache):
        fails = False

        def set(self, *arguments: Any, **named: Any) -> None:
            if not self.fails:
                super().set(*arguments, **named)

    cache = Failing("cache_table", {})
    stamp, reader = CacheStamp(cache, key), CacheStamp(cache, key)
    known = read(reader)
    cache.fails = True
    with stamp.writing():
        pass
    assert read(reader) != known


def test_other_settings_are_another_cache(settings: Any, key: str) -> None:
    """As in a TestCase with `override_settings`, for a dict that was made before."""
    stamp = CacheStamp("default", key)
    known = read(stamp)
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.locmem.LocMemCache"}}
    assert read(stamp) != known
    assert stamp.cache.atomic is False


@pytest.mark.parametrize("alias", [*ATOMIC, *OTHERS])
def test_threads_have_what_is_theirs(alias: str, key: str) -> None:
    stamp = CacheStamp(alias, key)
    first = read(stamp).number
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def work() -> None:
        from django.db import connections

        try:
            barrier.wait(PATIENCE)
            for _ in range(10):
                with stamp.writing():
                    pass
                # Where another thread is in the middle of a `put`, nothing may be known.
                assert stamp.read() is not None or alias == "database"
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not errors
    assert read(stamp).number != first
    if alias in ATOMIC:
        assert read(stamp) == Stamp(first + 40, 0, 0)


def both_go_on(ports: dict[str, int]) -> None:
    from django.conf import settings

    settings.configure(
        CACHES={
            "default": {
                "BACKEND": f"{BACKENDS}.memcached.PyMemcacheCache",
                "LOCATION": f"{HOST}:{ports['memcached']}",
            },
            "redis": {
                "BACKEND": f"{BACKENDS}.redis.RedisCache",
                "LOCATION": f"redis://{HOST}:{ports['redis']}",
            },
        }
    )
    for alias in ATOMIC:
        stamp = CacheStamp(alias, "forked")
        first = read(stamp).number

        def work(stamp: CacheStamp) -> None:
            for _ in range(30):
                with stamp.writing():
                    read(stamp)

        pids = [fork(partial(work, stamp)) for _ in range(2)]
        work(stamp)
        ended_well(*pids)
        assert read(stamp) == Stamp(first + 90, 0, 0)


def test_a_forked_child_has_connections_of_its_own(
    memcached_server: MemcachedServer, redis_server: RedisServer
) -> None:
    run(both_go_on, {"memcached": memcached_server.port, "redis": redis_server.port})


def test_files_are_where_django_puts_them(tmp_path: Path, key: str) -> None:
    from django.core.cache.backends.filebased import FileBasedCache

    stamp = CacheStamp(FileBasedCache(str(tmp_path), {}), key)
    read(stamp)
    assert len(list(tmp_path.iterdir())) == 1
