"""ModelDict when its cache, its database, or both cannot be asked; and under an event loop."""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durabledict import ModelDict
from durabledict.reading import Syncing
from durabledict.stamps import MemoryCache
from durabledict.testing.tools import SuiteBase

from .memcachedserver import MemcachedServer
from .servers import wait_until

clock = SuiteBase().clock


class Failing(MemoryCache):
    """A cache that can be made to fail."""

    unavailable = (ConnectionError,)

    def __init__(self) -> None:
        super().__init__()
        self.down = False

    def _look(self) -> None:
        if self.down:
            raise ConnectionError("the cache is down")

    def get(self, key: str) -> int | None:
        self._look()
        return super().get(key)

    def add(self, key: str, number: int) -> bool:
        self._look()
        return super().add(key, number)

    def increase(self, key: str, by: int) -> int | None:
        self._look()
        return super().increase(key, by)

    def put(self, key: str, number: int) -> None:
        self._look()
        super().put(key, number)


@pytest.fixture(params=["default", "sqlite"])
def using(request: pytest.FixtureRequest, django_project: None) -> Iterator[str]:
    from tests.djangoapp.models import Plain

    alias: str = request.param
    # Before, too: an own dict opens on what it finds, and logs what is no payload of its own.
    Plain.objects.using(alias).all()._raw_delete(alias)
    yield alias
    Plain.objects.using(alias).all()._raw_delete(alias)


def plain(using: str, cache: Any, **options: Any) -> ModelDict[str, Any]:
    from tests.djangoapp.models import Plain

    return ModelDict(Plain.objects, cache, using=using, **options)


def write_unheard(d: ModelDict[str, Any], value: object) -> None:
    """Write as another process does whose touch did not reach the cache."""
    payload = base64.b64encode(pickle.dumps(value)).decode()
    d.model.objects.using(d.using).update(value=payload)


class TestCacheDown:
    def test_a_write_that_is_done_is_logged_and_read_when_its_cache_failed_at_the_end(
        self, using: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And not raised: the caller would do it again. The stamp does not tell of it."""
        cache = Failing()
        with plain(using, cache) as d:
            d["k"] = 1
            stamp: Any = d._stamp()
            end = stamp.end

            def failing(opening: int) -> Any:
                cache.down = True
                try:
                    return end(opening)
                finally:
                    cache.down = False

            stamp.end = failing
            d["k"] = 2
            del stamp.end
            assert d["k"] == 2
        assert len(caplog.records) == 1
        assert "cannot be asked (ConnectionError: the cache is down)" in caplog.text

    def test_by_default_the_caches_own_error_is_raised(self, using: str) -> None:
        cache = Failing()
        d = plain(using, cache)
        d["k"] = 1
        cache.down = True
        for action in (lambda: d["k"], lambda: len(d), d.sync, lambda: d.update(k=2)):
            with pytest.raises(ConnectionError):
                action()
        cache.down = False
        assert d["k"] == 1

    def test_under_stale_the_database_itself_is_read(
        self, using: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = Failing()
        with clock() as time:
            d = plain(using, cache, on_outage="stale")
            d["k"] = 1
            cache.down = True
            with caplog.at_level(logging.WARNING):
                for number in range(2, 8):
                    write_unheard(d, number)
                    time.move(10.0)
                    assert d["k"] == number
                    assert d.checked_age == 0
                    write_unheard(d, -1)
                    assert d["k"] == number  # between two attempts nothing is asked
                assert d.stale_since is not None
            assert len(caplog.records) == 1
            write_unheard(d, 9)
            cache.down = False
            time.move(10.0)
            assert d["k"] == 9
            assert d.stale_since is None

    def test_a_bounded_outage_ends_with_the_database(self, using: str) -> None:
        cache = Failing()
        with clock() as time:
            d = plain(using, cache, autosync=False, on_outage="stale", max_stale=60.0)
            d["k"] = 1
            cache.down = True
            assert d.sync() is False
            time.move(1000.0)
            assert d["k"] == 1  # read from the database, so it is not old
            assert d.checked_age == 0

    def test_a_write_needs_the_cache_before_it_begins(self, using: str) -> None:
        cache = Failing()
        d = plain(using, cache, on_outage="stale")
        d["k"] = 1
        synced = d.last_synced
        cache.down = True
        writes: list[Callable[[], object]] = [
            lambda: d.__setitem__("k", 2),
            lambda: d.update(k=2),
            lambda: d.clear(),
            lambda: d.compare_and_set("k", 1, 2),
        ]
        for write in writes:
            with pytest.raises(ConnectionError):
                write()
        assert d.last_synced == synced  # nothing was sent
        cache.down = False
        assert d == {"k": 1}

    def test_a_write_whose_touch_fails_is_done_and_not_raised(self, using: str) -> None:
        cache = Failing()
        d = plain(using, cache)
        d["k"] = 1
        save = d._rows.save

        def cut(*arguments: Any) -> Any:
            try:
                return save(*arguments)
            finally:
                cache.down = True

        d._rows.save = cut  # type: ignore[assignment,method-assign]  # at the critical point
        d["k"] = 2
        cache.down = False
        assert d["k"] == 2
        assert d.last_synced == d.last_updated()

    def test_in_a_transaction_too(self, using: str) -> None:
        from django.db import transaction

        cache = Failing()
        with clock() as time:
            d = plain(using, cache, on_outage="stale")
            d["k"] = 1
            with transaction.atomic(using=using):
                d["k"] = 2
                cache.down = True
                assert d["k"] == 2
                assert d.copy() == {"k": 2}
            time.move(10.0)
            assert d == {"k": 2}  # from the database
            cache.down = False
            time.move(10.0)
            assert d == {"k": 2}

    def test_a_real_server_that_is_killed_and_comes_back(self, using: str) -> None:
        with MemcachedServer() as server:
            client = server.client()
            with clock() as time:
                stale = plain(using, client, on_outage="stale")
                strict = plain(using, client)
                strict["k"] = 1
                assert stale["k"] == 1
                server.kill()
                with pytest.raises(stale.unavailable):
                    strict["k"]
                assert stale["k"] == 1
                server.start()
                time.move(10.0)
                assert strict["k"] == 1
                strict["k"] = 2
                assert stale["k"] == 2
                assert stale.stale_since is None
            client.close()


class TestDatabaseDown:
    def test_the_copy_is_served_and_mends_itself(self, using: str) -> None:
        from django.db import OperationalError

        cache = MemoryCache()
        with clock() as time:
            d, elsewhere = plain(using, cache, on_outage="stale"), plain(using, cache)
            strict = plain(using, cache)
            d["k"] = 1
            assert strict["k"] == 1
            elsewhere["k"] = 2

            def fail(*arguments: Any) -> Any:
                raise OperationalError("the database is down")

            d._rows.all = strict._rows.all = fail  # type: ignore[assignment,method-assign]  # at once for both
            assert d["k"] == 1
            with pytest.raises(OperationalError):
                strict["k"]
            del d._rows.all, strict._rows.all
            time.move(10.0)
            assert d["k"] == strict["k"] == 2

    def test_a_connection_that_was_cut_is_made_anew(self, postgres_server: Any, using: str) -> None:
        from django.db import connections

        if using != "default":
            return
        cache = MemoryCache()
        d, elsewhere = plain(using, cache), plain(using, cache)
        d["k"] = 1
        assert elsewhere["k"] == 1
        # This one alone: other aliases have connections to that database, for other tests.
        connection: Any = connections[using].connection
        cut = f"SELECT pg_terminate_backend({connection.info.backend_pid})"
        wait_until(lambda: postgres_server.sql(cut) == [(False,)], "the connection has ended")
        cache.put(d.cache_key, 2**61 + 2**40)
        assert d["k"] == 1
        connections[using].close()

    def test_a_write_of_unknown_outcome_is_looked_at(self, using: str) -> None:
        from django.db import OperationalError

        d = plain(using, MemoryCache(), autosync=False)
        d["k"] = 1
        save = d._rows.save

        def lost(*arguments: Any) -> Any:
            save(*arguments)
            raise OperationalError("server closed the connection unexpectedly")

        d._rows.save = lost  # type: ignore[assignment,method-assign]  # the answer is lost
        with pytest.raises(OperationalError):
            d["k"] = 2
        assert issubclass(type(d), Syncing)
        assert d["k"] == 2  # the next read looked
        assert not issubclass(type(d), Syncing)


class TestEventLoop:
    """Rule 3.10."""

    def test_a_strict_read_is_refused_at_once_not_at_the_first_change(self, using: str) -> None:
        from django.core.exceptions import SynchronousOnlyOperation

        for autosync in (True, 3600.0):
            d = plain(using, MemoryCache(), autosync=autosync)

            async def read(d: Any = d) -> None:
                d["k"]

            with pytest.raises(SynchronousOnlyOperation, match="autosync=False"):
                asyncio.run(read())
        strict = plain(using, MemoryCache())
        strict["k"] = 1

        async def read_what_is_there() -> None:
            strict["k"]

        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(read_what_is_there())

    def test_a_write_is_refused_before_anything_is_sent(self, using: str) -> None:
        from django.core.exceptions import SynchronousOnlyOperation

        cache = MemoryCache()
        d = plain(using, cache, autosync=False)
        d["k"] = 1
        number = cache.get(d.cache_key)

        async def write() -> None:
            with pytest.raises(SynchronousOnlyOperation):
                d["k"] = 2
            with pytest.raises(SynchronousOnlyOperation):
                d.touch_last_updated()
            with pytest.raises(SynchronousOnlyOperation):
                d.sync()
            with pytest.raises(SynchronousOnlyOperation):
                d.compute("k", lambda value: value + 1)

        asyncio.run(write())
        assert cache.get(d.cache_key) == number
        assert d == {"k": 1}

    def test_a_manual_dict_is_plain_memory(self, using: str) -> None:
        from asgiref.sync import sync_to_async
        from django.core.exceptions import SynchronousOnlyOperation

        cache = MemoryCache()
        d, elsewhere = plain(using, cache, autosync=False), plain(using, cache)

        async def serve() -> None:
            with pytest.raises(SynchronousOnlyOperation):
                d["k"]  # never filled: said at the first read
            assert await sync_to_async(d.sync)() is False
            await sync_to_async(elsewhere.update)(k=1)
            assert dict(d) == {}
            assert await sync_to_async(d.sync)() is True
            assert d["k"] == 1
            d._doubt()
            assert d["k"] == 1  # as of the last sync; the next one looks
            assert await asyncio.to_thread(d.sync) in (True, False)
            assert not issubclass(type(d), Syncing)

        asyncio.run(serve())
