"""`SharedInvalidation`: what is invalidated anywhere counts nowhere, whatever the clocks say."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dogpile.cache.region
import pytest
import redis
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.exception import DogpileCacheException
from dogpile.cache.proxy import ProxyBackend

from durabledict import MemoryDict, NoOpEncoding, SqliteDict
from durabledict.ext.dogpile import CacheRecord, SharedInvalidation
from durabledict.redis import RedisDict
from durabledict.stores import ChainedStore, MemcacheStore, ProcessMemoryStore, RedisStore

from .memcachedserver import MemcachedServer
from .redisservers import RedisServer

spawning = multiprocessing.get_context("spawn")

#: In whose regions of their own, as in different processes, the values are.
KINDS = ["redis", "watched", "sqlite", "memcached", "redis-store"]

Opener = Callable[..., Any]


def open_place(kind: str, where: str) -> Any:
    """Return the dict or Store, which `with` closes."""
    if kind == "redis":
        return RedisDict[Any, Any].from_url(where, "cache")
    if kind == "watched":
        d = RedisDict[Any, Any].from_url(where, "cache", autosync=False)
        d.watch()
        return d
    if kind == "sqlite":
        return SqliteDict[Any, Any](where)
    return MemcacheStore([where]) if kind == "memcached" else RedisStore(where)


def region_in(place: Any, name: str = "region", **options: Any) -> Any:
    invalidation = SharedInvalidation(place, name)
    backend, argument = (
        ("durabledict.dict", "dict") if isinstance(place, dict) else ("durabledict.store", "store")
    )
    configured = {"expiration_time", "wrap"}
    region = make_region(**{k: v for k, v in options.items() if k not in configured})
    return region.configure(
        backend,
        arguments={argument: place, "invalidation": invalidation},
        region_invalidator=invalidation,
        **{k: v for k, v in options.items() if k in configured},
    )


@pytest.fixture
def places(tmp_path: Path, memcached_server: MemcachedServer, redis_url: str) -> dict[str, str]:
    memcached_server.flush()
    return {
        "redis": redis_url,
        "watched": redis_url,
        "sqlite": str(tmp_path / "cache.sqlite"),
        "memcached": f"127.0.0.1:{memcached_server.port}",
        "redis-store": redis_url,
    }


@pytest.fixture
def opener(places: dict[str, str]) -> Iterator[Opener]:
    """Opens regions with nothing in common but the store."""
    with ExitStack() as ends:

        def opened(kind: str, **options: Any) -> Any:
            return region_in(ends.enter_context(open_place(kind, places[kind])), **options)

        yield opened


def heard(region: Any) -> None:
    """Have a region's watched dict hear now of what was written, as its watch will."""
    backend = region.actual_backend
    if hasattr(backend, "dict"):
        backend.dict.sync()


# -- what counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_hard_invalidation_is_heard_by_all(kind: str, opener: Opener) -> None:
    here, there = opener(kind), opener(kind)
    here.set_multi({"a": 1, "b": 2})
    heard(there)
    assert there.get_multi(["a", "b"]) == [1, 2]
    here.invalidate()
    heard(there)
    for region in (here, there):
        assert region.get("a") is NO_VALUE
        assert region.get_multi(["a", "b"]) == [NO_VALUE, NO_VALUE]
        assert region.get("a", ignore_expiration=True) == 1
    assert there.get_or_create("a", lambda: 3) == 3
    assert there.get_or_create_multi(["a", "b"], lambda *keys: [4] * len(keys)) == [3, 4]
    heard(here)
    assert here.get_multi(["a", "b"]) == [3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_created_before_it_and_stored_after_it_does_not_count(
    kind: str, opener: Opener
) -> None:
    here, there = opener(kind), opener(kind)

    def create() -> str:
        there.invalidate()
        heard(here)
        return "old"

    def create_many(*keys: str) -> list[str]:
        there.invalidate()
        heard(here)
        return ["old"] * len(keys)

    assert here.get_or_create("k", create) == "old"
    assert here.get("k") is NO_VALUE
    heard(there)
    assert there.get("k") is NO_VALUE
    assert here.get_or_create_multi(["a", "b"], create_many) == ["old", "old"]
    assert here.get_multi(["a", "b"]) == [NO_VALUE, NO_VALUE]
    assert here.get_or_create("k", lambda: "new") == "new"
    assert here.get("k") == "new"


def test_a_creator_within_a_creator_does_not_hide_that(opener: Opener) -> None:
    region = opener("redis")

    def create() -> str:
        region.invalidate()
        return f"outer and {region.get_or_create('inner', lambda: 'inner')}"

    assert region.get_or_create("outer", create) == "outer and inner"
    assert region.get("outer") is NO_VALUE
    assert region.get("inner") == "inner"


def test_nor_does_a_creator_in_another_thread(opener: Opener) -> None:
    began, may_end = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def runner(cache: Any, key: Any, creator: Any, mutex: Any) -> None:
        def run() -> None:
            value = creator()
            began.set()
            may_end.wait(60)
            cache.set(key, value)
            mutex.release()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    region = opener("redis", expiration_time=3600, async_creation_runner=runner)
    region.set("k", "oldest")
    region.invalidate(hard=False)
    assert region.get_or_create("k", lambda: "old") == "oldest"
    assert began.wait(60)
    region.invalidate()
    may_end.set()
    threads[0].join(60)
    assert region.get("k") is NO_VALUE


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_soft_one_the_old_value_is_served_until_there_is_a_new_one(
    kind: str, opener: Opener
) -> None:
    here, there = (opener(kind, expiration_time=3600) for _ in range(2))
    here.set("k", "old")
    there.invalidate(hard=False)
    heard(here)
    assert here.get("k") is NO_VALUE
    creating, may_end = threading.Event(), threading.Event()

    def create() -> str:
        creating.set()
        may_end.wait(60)
        return "new"

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(here.get_or_create("k", create)))
    thread.start()
    assert creating.wait(60)
    assert here.get_or_create("k", lambda: "never") == "old"
    assert here.get_or_create_multi(["k"], lambda *keys: ["never"]) == ["old"]
    may_end.set()
    thread.join(60)
    assert results == ["new"]
    assert here.get("k") == "new"


def test_a_soft_one_needs_an_expiration_time(opener: Opener) -> None:
    """As dogpile has it, so that it is not forgotten; and a hard one ends that."""
    here, there = opener("redis"), opener("redis")
    here.set("k", 1)
    there.invalidate(hard=False)
    assert here.region_invalidator.was_soft_invalidated()
    with pytest.raises(DogpileCacheException, match="Non-None expiration time"):
        here.get_or_create("k", lambda: 2)
    with pytest.raises(DogpileCacheException, match="Non-None expiration time"):
        here.get_or_create("new", lambda: 2)
    there.invalidate()
    assert here.region_invalidator.was_hard_invalidated()
    assert here.get_or_create("k", lambda: 2) == 2


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_a_soft_one_does_not_bring_back_what_a_hard_one_has_ended(
    kind: str, opener: Opener
) -> None:
    region = opener(kind, expiration_time=3600)
    region.set("k", "old")
    region.invalidate()
    region.invalidate(hard=False)
    creating, may_end = threading.Event(), threading.Event()

    def create() -> str:
        creating.set()
        may_end.wait(60)
        return "new"

    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(region.get_or_create("k", create)))
        for _ in range(2)
    ]
    threads[0].start()
    assert creating.wait(60)
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert results == ["new", "new"]


def test_what_is_set_after_it_counts_whoever_created_it_before(opener: Opener) -> None:
    region = opener("redis")
    assert region.get_or_create("k", lambda: "old") == "old"
    region.invalidate()
    region.set("k", "new")
    assert region.get("k") == "new"


def test_no_clock_is_compared(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that created the value has a clock that is an hour ahead."""
    here, there = opener("redis"), opener("redis")
    clock = SimpleNamespace(time=lambda: 5_000_000_000.0)
    monkeypatch.setattr(dogpile.cache.region, "time", clock)
    here.set("k", 1)
    there.invalidate()
    assert here.get("k") is NO_VALUE
    clock.time = lambda: 1.5
    here.set("k", 2)
    assert there.get("k") == 2


# -- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["region:hard", "region:soft"])
def test_where_a_token_is_missing_no_value_counts(kind: str, token: str, opener: Opener) -> None:
    region = opener(kind, expiration_time=3600)
    region.set("k", "old")
    region.invalidate(hard=False)
    region.set("k", "younger")
    region.actual_backend.delete(token)
    assert region.get("k") is NO_VALUE
    # It is there again for what is created from now on.
    assert region.get_or_create("k", lambda: "new") == "new"
    assert region.get("k") == "new"


def test_a_token_that_was_evicted_does_not_bring_back_old_values(opener: Opener) -> None:
    region = opener("memcached", expiration_time=3600)
    region.invalidate()
    for _ in range(2):
        region.actual_backend.delete("region:soft")
        assert region.get_or_create("k", lambda: "old") == "old"
        region.invalidate(hard=False)
        region.actual_backend.delete("region:soft")
        assert region.get("k") is NO_VALUE
        region.get_or_create("other", lambda: 1)
        assert region.get("k") is NO_VALUE


def test_what_was_stored_without_a_generation_does_not_count() -> None:
    d = MemoryDict[Any, Any]()
    plain = make_region().configure("durabledict.dict", arguments={"dict": d})
    plain.set("k", 1)
    region = region_in(d)
    assert region.get("k") is NO_VALUE
    region.set("k", 2)
    assert plain.get("k") == 2


def test_reading_writes_nothing() -> None:
    d = MemoryDict[Any, Any]()
    region = region_in(d)
    region.get("k")
    region.get_multi(["k"])
    region.delete("k")
    assert not d


def test_names_are_invalidated_apart(redis_client: redis.Redis) -> None:
    with RedisDict[Any, Any]("cache", redis_client) as d:
        one, two = region_in(d, "one"), region_in(d, "two")
        one.set("1", 1)
        two.set("2", 2)
        one.invalidate()
        assert one.get("1") is NO_VALUE
        assert two.get("2") == 2


def test_the_tokens_may_be_elsewhere(memcached_server: MemcachedServer) -> None:
    memcached_server.flush()
    tokens = MemoryDict[Any, Any]()
    with MemcacheStore([f"127.0.0.1:{memcached_server.port}"]) as store:
        invalidation = SharedInvalidation(tokens)
        region: Any = make_region().configure(
            "durabledict.store",
            arguments={"store": store, "invalidation": invalidation},
            region_invalidator=invalidation,
        )
        region.set("k", 1)
        assert set(tokens) == {"durabledict.ext.dogpile:hard", "durabledict.ext.dogpile:soft"}
        assert region.get("k") == 1
        region.invalidate()
        assert region.get("k") is NO_VALUE
        assert store.get(CacheRecord, {"key": "k"}) is not None


def test_a_read_of_a_watched_dict_sends_nothing(redis_server: RedisServer, opener: Opener) -> None:
    region = opener("watched")
    region.set("k", 1)
    with redis_server.counting() as calls:
        assert {region.get("k") for _ in range(1000)} == {1}
    assert sum(calls.values()) < 100  # the watch has heard of the write


@pytest.mark.usefixtures("clock")  # once a second a read asks for more than the stamp
def test_an_invalidation_is_one_write(redis_server: RedisServer, opener: Opener) -> None:
    region = opener("redis")
    region.set_multi({str(n): n for n in range(100)})
    with redis_server.counting() as calls:
        region.invalidate()
    assert calls["evalsha"] == 1
    with redis_server.counting() as calls:
        region.invalidate(hard=False)
    assert calls["evalsha"] == 1


def test_what_is_no_place_is_refused() -> None:
    with pytest.raises(TypeError, match="pass a DurableDict or a Store"):
        SharedInvalidation({})  # type: ignore[arg-type]  # what is refused


def test_half_of_a_hard_invalidation_is_no_soft_one() -> None:
    """In a Store its tokens may come one after the other; no expiration time is asked for."""
    d = MemoryDict[Any, Any]()
    region = region_in(d)
    for token in ("region:soft", "region:hard"):
        region.set("k", "old")
        d[token] = "of somebody's invalidation"
        assert region.get_or_create("k", lambda: "new") == "new"
        assert region.get("k") == "new"


def test_a_chain_has_the_tokens_where_all_hear_of_them(redis_url: str) -> None:
    with ExitStack() as ends:
        here, there = (
            region_in(
                ChainedStore(
                    [
                        ProcessMemoryStore(lifetime_cb=lambda obj: 3600),
                        ends.enter_context(RedisStore(redis_url)),
                    ]
                )
            )
            for _ in range(2)
        )
        here.set("k", 1)
        assert (here.get("k"), there.get("k")) == (1, 1)
        there.invalidate()
        assert here.get("k") is NO_VALUE
        assert here.get_or_create("k", lambda: 2) == 2


def test_in_a_transaction_a_region_sees_what_it_wrote(django_project: None) -> None:
    from django.db import transaction

    from durabledict.ext.django import SettingsDict

    d: Any = SettingsDict("dogpile")
    with d:
        region = region_in(d)
        region.set("k", "before")
        with transaction.atomic():
            region.set_multi({"k": "within", "j": 1})
            assert region.get("k") == "within"
            assert region.get_multi(["k", "j", "x"]) == ["within", 1, NO_VALUE]
            region.invalidate()
            assert region.get_multi(["k", "j"]) == [NO_VALUE, NO_VALUE]
            transaction.set_rollback(True)
        assert region.get_multi(["k", "j"]) == ["before", NO_VALUE]
        d.clear()


# -- serializers and proxies ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_a_serializer_changes_nothing(kind: str, opener: Opener) -> None:
    region = opener(kind, expiration_time=3600, serializer=pickle.dumps, deserializer=pickle.loads)
    region.set("k", {"a": 1})
    assert region.get("k") == {"a": 1}
    region.invalidate(hard=False)
    assert region.get("k") is NO_VALUE
    assert region.get("k", ignore_expiration=True) == {"a": 1}
    mutex = region._mutex("k")
    mutex.acquire()
    assert region.get_or_create("k", lambda: 2) == {"a": 1}
    mutex.release()
    assert region.get_or_create("k", lambda: 2) == 2
    assert region.get("k") == 2
    region.invalidate()
    assert region.get("k") is NO_VALUE


def test_tokens_go_through_an_encoding_that_takes_bytes_alone(redis_url: str) -> None:
    with ExitStack() as ends:
        here, there = (
            region_in(
                ends.enter_context(
                    RedisDict[Any, Any].from_url(redis_url, "cache", encoding=NoOpEncoding)
                ),
                expiration_time=3600,
                serializer=pickle.dumps,
                deserializer=pickle.loads,
            )
            for _ in range(2)
        )
        here.set("k", 1)
        assert there.get("k") == 1
        there.set("k", 2)
        assert here.get("k") == 2
        there.invalidate(hard=False)
        assert here.region_invalidator.was_soft_invalidated()
        assert here.get("k") is NO_VALUE
        assert here.get("k", ignore_expiration=True) == 2


class Encoded(ProxyBackend):
    def get(self, key: Any) -> Any:
        value: Any = self.proxied.get(key)
        return value if value is NO_VALUE else dogpile.cache.api.CachedValue(*json.loads(value))

    def set(self, key: Any, value: Any) -> None:
        self.proxied.set(key, json.dumps(value).encode())


def test_where_a_proxy_hides_the_metadata_every_invalidation_is_a_hard_one(
    opener: Opener,
) -> None:
    region = opener("redis", expiration_time=3600, wrap=[Encoded])
    region.set("k", 1)
    assert region.get("k") == 1
    region.invalidate(hard=False)
    assert region.get("k", ignore_expiration=True) is NO_VALUE
    assert region.get_or_create("k", lambda: 2) == 2
    assert region.get("k") == 2


def test_the_lock_is_given_back_where_the_tokens_cannot_be_read(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = opener("redis")
    with monkeypatch.context() as broken:

        def refuse(*_: Any) -> Any:
            raise redis.ConnectionError("down")

        broken.setattr(SharedInvalidation, "generation", refuse)
        with pytest.raises(redis.ConnectionError):
            region.get_or_create("k", lambda: 1)
    assert not region.key_is_locked("k")
    assert region.get_or_create("k", lambda: 2) == 2


# -- two processes --------------------------------------------------------------------------------


def obey(kind: str, where: str, pipe: Any) -> None:
    """Do in another process what is told, and answer."""
    with open_place(kind, where) as place:
        region = region_in(place, expiration_time=3600)
        while True:
            verb, *arguments = pipe.recv()
            if verb == "end":
                return
            if verb == "create":
                key, value = arguments

                def create(value: Any = value) -> Any:
                    pipe.send("creating")
                    pipe.recv()
                    return value

                pipe.send(region.get_or_create(key, create))
                continue
            found = getattr(region, verb)(*arguments)
            pipe.send("absent" if found is NO_VALUE else found)


@pytest.mark.parametrize("kind", ["redis", "sqlite", "memcached"])
def test_two_processes_hear_each_other(kind: str, places: dict[str, str]) -> None:
    here, there = spawning.Pipe()
    child = spawning.Process(target=obey, args=(kind, places[kind], there))
    child.start()

    def ask(*words: Any) -> Any:
        here.send(words)
        assert here.poll(60)
        return here.recv()

    with open_place(kind, places[kind]) as place:
        region = region_in(place, expiration_time=3600)
        region.set("k", 1)
        assert ask("get", "k") == 1
        assert ask("invalidate") is None
        assert region.get("k") is NO_VALUE
        # It creates a value while this process invalidates: that value does not count.
        assert ask("create", "k", "old") == "creating"
        region.invalidate()
        here.send("go on")
        assert here.poll(60)
        assert here.recv() == "old"
        assert region.get("k") is NO_VALUE
        assert ask("get", "k") == "absent"
        # And a soft one.
        region.set("k", 2)
        assert ask("invalidate", False) is None
        assert region.get("k") is NO_VALUE
        assert region.get("k", ignore_expiration=True) == 2
        here.send(["end"])
    child.join(60)
    assert child.exitcode == 0


def test_a_forked_child_does_not_go_on_with_the_parents_creators() -> None:
    d = MemoryDict[Any, Any]()
    region = region_in(d)
    backend = region.actual_backend
    mutex = backend.get_mutex("k")
    mutex.acquire()
    assert backend._creating
    backend._after_fork()
    assert not backend._creating
    mutex.release()


def test_stores_of_this_process_have_it_too() -> None:
    store = ProcessMemoryStore()
    region = region_in(store)
    region.set("k", 1)
    assert region.get("k") == 1
    region.invalidate()
    assert region.get("k") is NO_VALUE


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("distributed", [False, True])
def test_a_forked_child_does_not_wait_for_a_creator_of_its_parent(distributed: bool) -> None:
    """Neither where another thread creates, nor where the creator itself has forked."""
    arguments = {"dict": MemoryDict[Any, Any](), "distributed_lock": distributed}
    region = make_region().configure("durabledict.dict", arguments=arguments)
    begun, end = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        end.wait(30)
        return 1

    def forking() -> int:
        child = os.fork()
        return 2 if child == 0 else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    thread = threading.Thread(target=region.get_or_create, args=("slow", slow))
    thread.start()
    begun.wait(30)
    parent, made = os.getpid(), None
    try:
        made = region.get_or_create("forks", forking)
        if os.getpid() != parent:
            signal.alarm(30)  # which kills it
            made = region.get_or_create("slow", lambda: 3)
    finally:
        if os.getpid() != parent:
            os._exit(0 if made == 3 else 1)
        end.set()
        thread.join()
    assert made == 0
