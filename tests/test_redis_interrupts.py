"""A `RedisDict` that is interrupted: by signals, finalizers, a busy server, large writes."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from durabledict import (
    EncodingError,
    MemoryDict,
    NoOpEncoding,
    RedisDict,
    rediscommits,
    redisservers,
)

from .proxiedclients import client_through
from .redisservers import RedisServer
from .servers import PATIENCE, wait_until
from .tcpproxy import TcpProxy


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[redis.Redis]:
    with client_through(proxy, socket_timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def pair(client: redis.Redis) -> Iterator[tuple[RedisDict[str, int], RedisDict[str, int]]]:
    with RedisDict[str, int]("a", client) as a, RedisDict[str, int]("b", client) as b:
        a["x"], b["x"] = 1, 2
        assert (a["x"], b["x"]) == (1, 2)
        yield a, b


def test_a_signal_handler_may_read_another_dict_in_the_middle_of_a_check(
    proxy: TcpProxy, pair: tuple[RedisDict[str, int], RedisDict[str, int]]
) -> None:
    """It would wait for the connection that the thread it interrupted holds."""
    a, b = pair
    read: list[int] = []
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: read.append(b["x"]))
    held = proxy.hold(b"{a}:last_updated")

    def interrupt() -> None:
        held.wait()
        signal.pthread_kill(main, signal.SIGUSR1)
        wait_until(lambda: read, "the handler's read")
        held.release()

    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        assert a["x"] == 1
        thread.join(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)
        held.release()
    assert read == [2]


def test_a_finalizer_may_close_the_last_dict_in_the_middle_of_a_check(
    pair: tuple[RedisDict[str, int], RedisDict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    checks: Any = a._primary.server._checks
    ask = checks.ask

    def ask_meanwhile(*requests: bytes) -> Any:
        replies = ask(*requests)
        b.close()
        a._primary.close()
        return replies

    monkeypatch.setattr(checks, "ask", ask_meanwhile)
    assert a["x"] == 1
    monkeypatch.undo()
    gc.collect()
    assert not checks.is_free
    assert a["x"] == 1


def test_dicts_do_not_wait_in_a_row_for_a_server_that_does_not_answer(
    proxy: TcpProxy, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited for as long as for a reply asks on another connection."""
    monkeypatch.setattr(redisservers, "CHECK_TIMEOUT", 0.2)
    dicts = [RedisDict[str, int](f"d{number}", client) for number in range(8)]
    for d in dicts:
        d["x"] = 1
        assert d["x"] == 1
    server = dicts[0]._primary.server
    with server._check_lock:  # held by somebody who never comes back
        server._checking = -1
        with ThreadPoolExecutor(len(dicts)) as pool:
            assert list(pool.map(lambda d: d["x"], dicts)) == [1] * len(dicts)
        server._checking = None
    for d in dicts:
        d.close()


def test_a_server_that_is_busy_with_a_script_is_an_outage() -> None:
    """Not an error of the dict's: nothing ran, and it will answer again."""
    with (
        RedisServer("--lua-time-limit", "10") as server,
        server.client() as client,
        server.client(socket_timeout=PATIENCE) as other,
        RedisDict[str, int]("k", client, on_outage="stale") as d,
        ThreadPoolExecutor(1) as pool,
    ):
        d["x"] = 1
        assert d["x"] == 1
        busy = pool.submit(other.eval, "while true do end", 0)
        wait_until(lambda: is_busy(client), "the server to be busy")
        assert d["x"] == 1
        assert d.stale_since is not None
        with pytest.raises(redis.RedisError):
            d["x"] = 2
        client.script_kill()
        with pytest.raises(redis.ResponseError):
            busy.result(PATIENCE)
        wait_until(lambda: d["x"] == 1 and d.stale_since is None, "the end of the outage")
        d["x"] = 3
        assert d["x"] == 3


def is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_a_stream_that_alone_was_restored_hides_no_commit(redis_client: redis.Redis) -> None:
    """It has forgotten one, and its number comes again: readers that know it cannot tell."""
    with (
        RedisDict[str, int]("k", redis_client) as writer,
        RedisDict[str, int]("k", redis_client, autosync=False) as reader,
    ):
        writer["a"] = 1
        writer["b"] = 1
        backup: Any = redis_client.dump("{k}:changes")
        reader.sync()
        writer["a"] = 2
        redis_client.restore("{k}:changes", 0, backup, replace=True)
        writer["b"] = 2
        reader.sync()
        assert reader.copy() == writer.copy() == {"a": 2, "b": 2}


def test_what_cannot_be_stored_is_found_before_the_first_of_several_commits(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rediscommits, "COMMIT_KEYS", 10)
    with RedisDict[Any, Any]("k", redis_client, encoding=NoOpEncoding) as d:
        with pytest.raises(EncodingError):
            d.update({**{str(number): "x" for number in range(11)}, "bad": 5})
        assert redis_client.hlen("k") == 0
        redis_client.config_set("proto-max-bulk-len", "2mb")
        try:
            with pytest.raises(ValueError, match="more than the"):
                d.update({**{str(number): "x" for number in range(11)}, "long": "x" * 3_000_000})
        finally:
            redis_client.config_set("proto-max-bulk-len", "512mb")
        assert redis_client.hlen("k") == 0
        with pytest.raises(TypeError):
            d.depersist_many([*map(str, range(11)), object()])


def test_the_part_of_a_large_write_that_was_done_is_seen(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rediscommits, "COMMIT_KEYS", 10)
    with RedisDict[str, int]("k", redis_client, autosync=False) as d:
        durable: Any = d
        run, calls = durable._run_write, []

        def run_once(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > 1:
                raise redis.exceptions.OutOfMemoryError("no more")
            return run(*arguments)

        durable._run_write = run_once
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            d.update({str(number): number for number in range(15)})
        assert len(d) == 10


@pytest.mark.parametrize("sizes", [[], [1], [5, 5], [1] * 25, [70, 70, 70], [30, 30, 30, 30]])
def test_a_large_write_is_cut_by_keys_and_by_bytes(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rediscommits, "COMMIT_KEYS", 10)
    monkeypatch.setattr(rediscommits, "COMMIT_BYTES", 64)
    parts = rediscommits.parts_of(sizes)
    assert [place for first, last in parts for place in range(first, last)] == [*range(len(sizes))]
    for first, last in parts:
        assert last - first <= 10
        assert last - first <= 1 or sum(sizes[first:last]) <= 64


@pytest.mark.parametrize("empty", [lambda d: d.clear(), lambda d: d.pop("a", None)])
def test_a_write_that_finds_the_hash_gone_has_the_copy_look(
    redis_client: redis.Redis, empty: Any
) -> None:
    with RedisDict[str, int]("k", redis_client, autosync=False) as d:
        d.update(a=1, b=2)
        redis_client.delete("k")
        empty(d)
        assert d.copy() == {}


def test_large_values_are_loaded_in_chunks(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    """However few: while the server makes a reply, it answers nobody else."""
    large = {str(number): bytes([number]) * 100_000 for number in range(100)}
    with RedisDict[str, bytes]("k", redis_client) as writer:
        writer.update(large)
        with redis_server.counting() as calls, RedisDict[str, bytes]("k", redis_client) as reader:
            assert reader.copy() == large
    assert calls["hgetall"] == 0
    assert calls["hscan"] >= 1


def test_a_watch_that_was_interrupted_while_it_started_ends_with_its_dict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    d = MemoryDict[str, int](autosync=False)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        d.watch(interval=0.01)
    monkeypatch.undo()
    watch = d._watch
    assert watch is not None
    d.close()
    wait_until(lambda: not watch.running, "the end of the watch")
