"""A region of dogpile.cache over a dict: what its entries are, what they cost, how it is told."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dogpile.cache.region
import dogpile.lock
import pytest
import redis
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE, CachedValue
from dogpile.cache.proxy import ProxyBackend
from dogpile.cache.util import sha1_mangle_key

from durabledict import (
    JSONEncoding,
    MemoryDict,
    NoOpEncoding,
    PickleEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
    SqliteDict,
    reading,
)
from durabledict.ext.dogpile import DictBackend, StoreBackend
from durabledict.ext.dogpilebackend import KEPT_MUTEXES
from durabledict.redis import RedisDict
from durabledict.stores import RedisStore
from durabledict.testing import tools

from .redisservers import RedisServer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from folderdict import FolderDict


def region_over(d: Any, **arguments: Any) -> Any:
    return make_region().configure("durabledict.dict", arguments={"dict": d, **arguments})


@pytest.fixture
def d(redis_client: redis.Redis) -> Iterator[RedisDict[Any, Any]]:
    with RedisDict[Any, Any]("cache", redis_client) as opened:
        yield opened


class Clock:
    """The time of dogpile's region and lock, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for module in (dogpile.cache.region, dogpile.lock):
            monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Widget:
    """Counts its pickles and unpickles."""

    pickles = unpickles = 0

    def __getstate__(self) -> dict[str, Any]:
        Widget.pickles += 1
        return {"a": 1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Widget.unpickles += 1


@pytest.fixture
def counted() -> type[Widget]:
    Widget.pickles = Widget.unpickles = 0
    return Widget


# -- how it is found and told ---------------------------------------------------------------------


def test_both_names_are_entry_points() -> None:
    found = {point.name: point.load() for point in entry_points(group="dogpile.cache")}
    assert found["durabledict.dict"] is DictBackend
    assert found["durabledict.store"] is StoreBackend


def test_what_it_lacks_is_named_with_the_remedy() -> None:
    program = (
        "import sys; sys.modules['dogpile'] = None\n"
        "try: import durabledict.ext.dogpile\n"
        "except ImportError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout == (
        "durabledict.ext.dogpile needs the package dogpile.cache: pip install dogpile.cache, or "
        "install durabledict with its extra [dogpile]\n"
    )


def test_a_url_opens_the_dict_with_its_options(redis_url: str, d: RedisDict[Any, Any]) -> None:
    region: Any = make_region().configure(
        "durabledict.dict",
        arguments={"url": redis_url, "keyspace": "cache", "autosync": False, "watch": 0.5},
    )
    try:
        region.set("k", [1])
        assert d["k"][0] == [1]
        opened = region.actual_backend.dict
        assert opened.autosync is False
        assert opened._watch.interval == 0.5
    finally:
        region.actual_backend.close()
    with pytest.raises(RuntimeError):
        region.set("k", 2)


def test_a_file_of_settings_configures_it(tmp_path: Path) -> None:
    settings = {
        "cache.backend": "durabledict.dict",
        "cache.expiration_time": "60",
        "cache.arguments.url": f"sqlite:///{tmp_path}/cache.sqlite",
        "cache.arguments.autosync": "False",
        "cache.arguments.watch": "True",
        "cache.arguments.distributed_lock": "True",
    }
    region: Any = make_region().configure_from_config(settings, "cache.")
    backend = region.actual_backend
    try:
        assert region.get_or_create("k", lambda: 1) == 1
        assert backend.dict._watch is not None
        assert backend._distributed is True
    finally:
        backend.close()


def test_close_leaves_the_callers_dict_open(d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    region.actual_backend.close()
    region.set("k", 1)
    assert region.get("k") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("durabledict.dict", {}, 'needs arguments={"dict": a DurableDict}'),
        ("durabledict.dict", {"dict": MemoryDict(), "url": "memory://"}, "needs arguments"),
        ("durabledict.dict", {"dict": {}}, "pass a DurableDict, not dict"),
        ("durabledict.dict", {"url": "memory://", "autosnyc": 1}, "has no option 'autosnyc'"),
        ("durabledict.dict", {"url": "memory://", "watch": "often"}, "write seconds above 0"),
        ("durabledict.dict", {"dict": MemoryDict(), "lock_lease": 0}, "lock_lease=0: write"),
        ("durabledict.dict", {"dict": MemoryDict(), "invalidation": True}, "SharedInvalidation"),
        ("durabledict.store", {"store": MemoryDict()}, "a Store of durabledict.stores"),
    ],
)
def test_wrong_arguments_are_refused(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_region().configure(name, arguments=arguments)


def test_other_arguments_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """dogpile has backends ignore them, and its suite tests that."""
    with caplog.at_level(logging.WARNING, "durabledict.dogpile"):
        region_over(MemoryDict(), host="localhost")
    assert "DictBackend has no argument 'host'; there are: dict, distributed_lock" in caplog.text


# -- entries --------------------------------------------------------------------------------------


def test_the_dict_has_payload_and_metadata(d: RedisDict[Any, Any], clock: Clock) -> None:
    region = region_over(d)
    region.set("k", {"a": 1})
    assert d["k"] == ({"a": 1}, {"ct": clock.now, "v": 2})
    assert type(d["k"]) is tuple
    del d["k"]
    assert region.get("k") is NO_VALUE


@pytest.mark.parametrize(
    "value",
    [5, "text", b"raw", b"dogpile", ("a", "b"), ("a", {}), [1, 2, 3], None, {"ct": 1, "v": 2}],
)
def test_what_somebody_else_has_put_there_is_a_miss(value: Any, d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    with_serializer: Any = make_region(
        serializer=pickle.dumps, deserializer=pickle.loads
    ).configure("durabledict.dict", arguments={"dict": d})
    d["k"] = value
    for each in (region, with_serializer):
        assert each.get("k") is NO_VALUE
        assert each.get_multi(["k", "other"]) == [NO_VALUE, NO_VALUE]
    assert region.get_or_create("k", lambda: "created") == "created"
    assert region.get("k") == "created"


def test_a_value_is_pickled_once(d: RedisDict[Any, Any], counted: type[Widget]) -> None:
    region = region_over(d)
    region.set("k", Widget())
    assert counted.pickles == 1
    with_serializer: Any = make_region(
        serializer=pickle.dumps, deserializer=pickle.loads
    ).configure("durabledict.dict", arguments={"dict": d})
    with_serializer.set("j", Widget())
    assert counted.pickles == 2
    counted.unpickles = 0
    assert isinstance(region.get("k"), Widget)
    assert counted.unpickles == 0


@pytest.mark.parametrize(
    "encoding",
    [
        PickleEncoding,
        JSONEncoding,
        RestrictedPickleEncoding(allow=[]),
        SignedEncoding("a secret of some length", PickleEncoding),
    ],
)
def test_every_encoding_will_do(encoding: Any, redis_client: redis.Redis) -> None:
    with RedisDict[Any, Any]("cache", redis_client, encoding=encoding) as d:
        region = region_over(d)
        region.set_multi({"a": [1, {"b": None}], "c": "x"})
        with RedisDict[Any, Any]("cache", redis_client, encoding=encoding) as elsewhere:
            assert region_over(elsewhere).get_multi(["a", "c"]) == [[1, {"b": None}], "x"]
            assert region_over(elsewhere).get("a") == [1, {"b": None}]


def test_bytes_go_through_an_encoding_that_takes_nothing_else(redis_client: redis.Redis) -> None:
    with RedisDict[Any, Any]("cache", redis_client, encoding=NoOpEncoding) as d:
        region = make_region(
            serializer=lambda v: json.dumps(v).encode(), deserializer=json.loads
        ).configure("durabledict.dict", arguments={"dict": d})
        region.set("k", {"a": 1})
        assert region.get("k") == {"a": 1}
        assert d["k"].endswith(b'|{"a": 1}')


def test_an_undecodable_value_is_a_miss(redis_client: redis.Redis) -> None:
    signed = SignedEncoding("a secret of some length", PickleEncoding)
    with RedisDict[Any, Any]("cache", redis_client, encoding=signed) as d:
        region_over(d).set_multi({"a": 1, "b": 2})
    signed = SignedEncoding("another secret of some length", PickleEncoding)
    with RedisDict[Any, Any]("cache", redis_client, encoding=signed) as d:
        region = region_over(d)
        assert set(d.undecodable) == {"a", "b"}
        assert region.get("a") is NO_VALUE
        assert region.get_or_create("a", lambda: 3) == 3
        assert region.get_multi(["a", "b"]) == [3, NO_VALUE]
        region.delete("b")
        assert not d.undecodable


def test_a_hit_is_the_object_of_the_local_copy(d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    given = [1]
    region.set("k", given)
    given.append(2)
    assert region.get("k") == [1]
    assert region.get("k") is region.get("k")


def test_values_of_a_multi_do_not_share_their_metadata() -> None:
    d = MemoryDict[Any, Any]()
    region_over(d).set_multi({"a": 1, "b": 2})
    assert d["a"][1] == d["b"][1]
    assert d["a"][1] is not d["b"][1]


# -- what it costs --------------------------------------------------------------------------------


@pytest.fixture
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's clock stands still: once a second a read asks Redis for more than the stamp."""
    monkeypatch.setattr(reading, "monotonic", tools.Clock())


@pytest.mark.usefixtures("_one_moment")
def test_multis_are_one_request(redis_server: RedisServer, d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    region.set("warm", 1)
    region.delete("warm")
    with redis_server.counting() as calls:
        region.set_multi({str(n): n for n in range(50)})
    assert calls["evalsha"] == 1
    with redis_server.counting() as calls:
        assert region.get_multi([str(n) for n in range(60)])[48:52] == [48, 49, *[NO_VALUE] * 2]
    assert sum(calls.values()) == 1
    with redis_server.counting() as calls:
        region.delete_multi([str(n) for n in range(10, 60)])
    assert calls["evalsha"] == 1
    assert len(d) == 10


def test_empty_multis_send_nothing(redis_server: RedisServer, d: RedisDict[Any, Any]) -> None:
    backend = region_over(d).backend
    with redis_server.counting() as calls:
        assert backend.get_multi([]) == []
        assert backend.get_serialized_multi([]) == []
        backend.set_multi({})
        backend.set_serialized_multi({})
        backend.delete_multi([])
    assert not calls


def test_a_hit_of_a_watched_dict_sends_nothing(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    with RedisDict[Any, Any]("cache", redis_client, autosync=False) as d:
        d.watch(3600)
        region = region_over(d)
        region.set("k", 1)
        with redis_server.counting() as calls:
            assert {region.get_or_create("k", lambda: 2) for _ in range(1000)} == {1}
            assert region.get_multi(["k", "k"]) == [1, 1]
    assert sum(calls.values()) < 100  # the watch has heard of the write


class StrictFolderDict(FolderDict[Any, Any]):
    """Of four methods, one of which does not like a key that is not there."""

    def depersist(self, key: Any) -> None:
        if not self._path(key).exists():
            raise KeyError(key)
        super().depersist(key)


def test_a_dict_without_commits_deletes_one_by_one(tmp_path: Path) -> None:
    region = region_over(StrictFolderDict(tmp_path))
    region.set_multi({"a": 1, "b": 2, "c": 3})
    region.delete_multi(["a", "c", "x"])
    assert region.get_multi(["a", "b", "c"]) == [NO_VALUE, 2, NO_VALUE]


# -- dogpile's own features -----------------------------------------------------------------------


def test_a_key_mangler_names_the_entries(d: RedisDict[Any, Any]) -> None:
    region: Any = make_region(key_mangler=sha1_mangle_key).configure(
        "durabledict.dict", arguments={"dict": d}
    )
    region.set("k", 1)
    assert region.get("k") == 1
    assert list(d) == [sha1_mangle_key("k")]


def test_keys_may_be_what_keys_of_a_dict_may_be(d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    region.set_multi({1: "one", ("a", 2): "pair"})
    assert region.get_multi([1, ("a", 2)]) == ["one", "pair"]
    with pytest.raises(TypeError):
        region.set(object(), 1)


class Encoded(ProxyBackend):
    """Values in another format: what the recipe of dogpile does, with JSON."""

    def get(self, key: Any) -> Any:
        value: Any = self.proxied.get(key)
        return value if value is NO_VALUE else CachedValue(*json.loads(value))

    def set(self, key: Any, value: Any) -> None:
        self.proxied.set(key, json.dumps(value).encode())

    def get_multi(self, keys: Any) -> Any:
        return [self.get(key) for key in keys]

    def set_multi(self, mapping: Any) -> None:
        self.proxied.set_multi({key: json.dumps(v).encode() for key, v in mapping.items()})


class Logged(ProxyBackend):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def get(self, key: Any) -> Any:
        self.seen.append(key)
        return self.proxied.get(key)


def test_proxies_wrap_it(d: RedisDict[Any, Any]) -> None:
    logged = Logged()
    region: Any = make_region().configure(
        "durabledict.dict", arguments={"dict": d}, wrap=[logged, Encoded]
    )
    assert region.get_or_create("k", lambda: {"a": [1]}) == {"a": [1]}
    assert region.get_or_create("k", lambda: 2) == {"a": [1]}
    region.set_multi({"x": 1})
    assert region.get_multi(["x", "y"]) == [1, NO_VALUE]
    assert "k" in logged.seen
    assert region.actual_backend.dict is d
    assert b'[{"a": [1]}, {"ct":' in d["k"]


def test_a_proxy_that_stores_something_else_is_told(d: RedisDict[Any, Any]) -> None:
    with pytest.raises(TypeError, match="stores CachedValue or bytes, not str"):
        region_over(d).backend.set("k", "text")
    assert not d


def test_values_expire_by_the_time_of_their_creation(d: RedisDict[Any, Any], clock: Clock) -> None:
    region: Any = make_region().configure(
        "durabledict.dict", expiration_time=10, arguments={"dict": d}
    )
    numbers = iter(range(10))
    assert region.get_or_create("k", lambda: next(numbers)) == 0
    clock.now += 9
    assert region.get_or_create("k", lambda: next(numbers)) == 0
    clock.now += 2
    assert region.get("k") is NO_VALUE
    assert region.get("k", ignore_expiration=True) == 0
    assert region.get_or_create("k", lambda: next(numbers)) == 1
    metadata = region.get_value_metadata("k")
    assert metadata is not None
    assert metadata.cached_time == clock.now


def test_a_function_is_cached_on_its_arguments(d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    calls: list[int] = []

    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    def doubles(*xs: int) -> list[int]:
        calls.extend(xs)
        return [2 * x for x in xs]

    one = region.cache_on_arguments()(double)
    many = region.cache_multi_on_arguments(namespace="many")(doubles)
    assert [one(1), one(1), one(2)] == [2, 2, 4]
    assert [many(1, 2), many(2, 3)] == [[2, 4], [4, 6]]
    assert calls == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("distributed", [False, True])
def test_another_thread_creates_what_has_expired(
    distributed: bool, d: RedisDict[Any, Any], clock: Clock
) -> None:
    threads: list[threading.Thread] = []
    may_create = threading.Event()

    def runner(cache: Any, key: Any, creator: Any, mutex: Any) -> None:
        def run() -> None:
            try:
                may_create.wait(60)
                cache.set(key, creator())
            finally:
                mutex.release()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    region: Any = make_region(async_creation_runner=runner).configure(
        "durabledict.dict",
        expiration_time=10,
        arguments={"dict": d, "distributed_lock": distributed},
    )
    assert region.get_or_create("k", lambda: "old") == "old"
    clock.now += 11
    # While it is created, all get the old one.
    assert [region.get_or_create("k", lambda: "new") for _ in range(3)] == ["old"] * 3
    assert len(threads) == 1
    may_create.set()
    threads[0].join(60)
    assert region.get_or_create("k", lambda: "newer") == "new"
    assert not region.key_is_locked("k")


# -- locks ----------------------------------------------------------------------------------------


def test_without_a_distributed_lock_it_is_of_this_process(
    d: RedisDict[Any, Any], redis_url: str
) -> None:
    mutex = region_over(d).backend.get_mutex("k")
    with RedisDict[Any, Any].from_url(redis_url, "cache") as elsewhere:
        other = region_over(elsewhere).backend.get_mutex("k")
        assert mutex.acquire()
        assert not mutex.acquire(False)
        assert other.acquire(False)
        other.release()
        mutex.release()
        assert not mutex.locked()


def test_who_handed_a_lock_to_another_thread_may_wait_for_it(
    d: RedisDict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an `async_creation_runner`, when the old value is not served any more."""
    mutex = region_over(d, distributed_lock=True).backend.get_mutex("k")
    mutex.acquire()
    queue, waiting = mutex._lock._queue, threading.Event()
    queued = queue.acquire

    def acquire(*arguments: Any) -> bool:
        waiting.set()
        return bool(queued(*arguments))

    monkeypatch.setattr(queue, "acquire", acquire)

    def run() -> None:
        waiting.wait(60)
        mutex.release()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert mutex.acquire()
        mutex.release()
    finally:
        waiting.set()
        thread.join(60)


def test_many_locks_are_not_kept_for_ever(d: RedisDict[Any, Any]) -> None:
    region = region_over(d)
    backend = region.backend
    held = region._mutex("k")
    held.acquire()
    for number in range(KEPT_MUTEXES + 10):
        backend.get_mutex(f"other {number}")
    assert len(backend._mutexes) < KEPT_MUTEXES
    # One that is held is still the one that a region finds.
    assert region.key_is_locked("k")
    held.release()
    assert not region.key_is_locked("k")


@pytest.mark.parametrize("kind", ["dict", "store", "sqlite"])
def test_a_distributed_lock_makes_one_creator(
    kind: str, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Two regions that have nothing in common but the server, as two processes have."""

    def opened() -> Any:
        if kind == "store":
            place: Any = RedisStore(redis_url)
            return place, make_region().configure(
                "durabledict.store", arguments={"store": place, "distributed_lock": True}
            )
        if kind == "sqlite":
            place = SqliteDict[Any, Any](tmp_path / "cache.sqlite")
        else:
            place = RedisDict[Any, Any].from_url(redis_url, "cache")
        return place, region_over(place, distributed_lock=True)

    (one, first), (two, second) = opened(), opened()
    creating, may_end = threading.Event(), threading.Event()
    results: list[Any] = []

    def create() -> str:
        creating.set()
        may_end.wait(60)
        return "first"

    a = threading.Thread(target=lambda: results.append(first.get_or_create("k", create)))
    b = threading.Thread(target=lambda: results.append(second.get_or_create("k", lambda: "second")))
    with one, two:
        a.start()
        assert creating.wait(60)
        assert second.key_is_locked("k")
        b.start()
        may_end.set()
        a.join(60)
        b.join(60)
        assert results == ["first", "first"]
        assert not second.key_is_locked("k")


# -- outages --------------------------------------------------------------------------------------


def test_while_the_store_is_down_reads_go_on_where_the_dict_says_so() -> None:
    with (
        RedisServer() as server,
        server.client() as client,
        RedisDict[Any, Any]("cache", client, on_outage="stale") as stale,
        RedisDict[Any, Any]("cache", client) as strict,
    ):
        patient, other = region_over(stale), region_over(strict)
        patient.set_multi({"a": 1, "b": 2})
        assert other.get("a") == 1
        server.stop()
        assert patient.get_or_create("a", lambda: 3) == 1
        assert patient.get_multi(["a", "b"]) == [1, 2]
        with pytest.raises(redis.ConnectionError):
            patient.set("a", 4)
        with pytest.raises(redis.ConnectionError):
            other.get("a")
        with pytest.raises(redis.ConnectionError):
            other.get_multi(["a", "b"])
