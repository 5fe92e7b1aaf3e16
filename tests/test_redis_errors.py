"""RedisDict where the server refuses: wrong types, rights, memory, sizes, roles, formats.

After each refusal nothing is half-written in a way that leaves a reader stale.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from durabledict import DurableDictError, RedisDict, redisreads

from .redisreaders import KEYSPACE, Keyspace
from .redisservers import RedisServer
from .servers import HOST, wait_until

START = {"a": 1, "b": 2, "c": 3}

Dict = RedisDict[Any, Any]

WRITES: dict[str, tuple[Callable[[Dict], object], dict[Any, Any]]] = {
    "set": (lambda d: d.__setitem__("a", "new"), {**START, "a": "new"}),
    "delete": (lambda d: d.__delitem__("a"), {"b": 2, "c": 3}),
    "update": (lambda d: d.update({"a": 5, "n": 6}), {**START, "a": 5, "n": 6}),
    "setdefault": (lambda d: d.setdefault("n", 7), {**START, "n": 7}),
    "pop": (lambda d: d.pop("b"), {"a": 1, "c": 3}),
    "compute": (lambda d: d.compute("c", lambda value: value + 1), {**START, "c": 4}),
    "replace_all": (lambda d: d.replace_all({"b": 2, "n": 8}), {"b": 2, "n": 8}),
    "clear": (lambda d: d.clear(), {}),
}


@pytest.fixture
def keyspace(redis_server: RedisServer, redis_url: str) -> Iterator[Keyspace]:
    with Keyspace(redis_server.port) as made:
        made.writer.update(START)
        made.check_strict(START)
        yield made


@pytest.fixture(scope="module")
def configured() -> Iterator[RedisServer]:
    """A server that tests may configure, if they put everything back."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own(configured: RedisServer) -> Iterator[Keyspace]:
    """A keyspace on that server."""
    configured.flush()
    with Keyspace(configured.port) as made:
        made.writer.update(START)
        made.check_strict(START)
        before: Any = made.raw.config_get("*")
        yield made
        for name in ("maxmemory", "proto-max-bulk-len", "client-query-buffer-limit"):
            made.raw.config_set(name, before[name])
        made.raw.replicaof("no", "one")
        made.raw.config_set("key-load-delay", 0)


# -- keys that hold something else ----------------------------------------------------------------

KEYS = ("hash", "stream", "mirror")

WRONG: dict[str, tuple[str, Callable[[Any, str], object]]] = {
    "hash": ("list", lambda raw, key: raw.rpush(key, "mine")),
    "stream": ("string", lambda raw, key: raw.set(key, "mine")),
    "mirror": ("set", lambda raw, key: raw.sadd(key, "mine")),
}


def spoil(k: Keyspace, which: str) -> tuple[str, str]:
    """Have one of the three keys hold something else; return its name and the type."""
    name: str = getattr(k, which)
    held, put = WRONG[which]
    k.raw.delete(name)
    put(k.raw, name)
    return name, held


def contents(k: Keyspace) -> list[Any]:
    """All three keys, whatever they hold."""
    return [k.raw.dump(name) for name in (k.hash, k.stream, k.mirror)]


@pytest.mark.parametrize("which", KEYS)
def test_a_keyspace_that_holds_something_else_is_not_opened(keyspace: Keyspace, which: str) -> None:
    name, held = spoil(keyspace, which)
    before = contents(keyspace)
    with pytest.raises(TypeError, match=f"'{name}' holds a {held}, not a "):
        RedisDict[Any, Any](KEYSPACE, keyspace.raw)
    assert contents(keyspace) == before


@pytest.mark.parametrize("which", KEYS)
def test_a_key_that_holds_something_else_since_is_told_to_readers(
    keyspace: Keyspace, which: str
) -> None:
    name, held = spoil(keyspace, which)
    before = contents(keyspace)
    for reader in (keyspace.strict, keyspace.manual):
        for force in (False, True):
            with pytest.raises(TypeError, match=f"'{name}' holds a {held}, not a "):
                reader.sync(force=force)
    assert contents(keyspace) == before
    keyspace.raw.delete(name)
    keyspace.check()
    keyspace.writer["a"] = "again"
    keyspace.check_strict()


@pytest.mark.parametrize("which", KEYS)
@pytest.mark.parametrize("name", WRITES)
def test_a_key_that_holds_something_else_is_not_overwritten(
    keyspace: Keyspace, which: str, name: str
) -> None:
    """Rule 2.1: an entry of the stream too many costs a sync; all else is as it was."""
    spoiled, held = spoil(keyspace, which)
    names = {spoiled, keyspace.hash}
    before = [keyspace.raw.dump(key) for key in names]
    with pytest.raises(TypeError, match=f"'{spoiled}' holds a {held}, not a "):
        WRITES[name][0](keyspace.writer)
    assert [keyspace.raw.dump(key) for key in names] == before
    keyspace.raw.delete(spoiled)
    keyspace.check()


@pytest.mark.parametrize("which", KEYS)
def test_a_watch_of_a_key_that_holds_something_else_says_so_and_goes_on(
    keyspace: Keyspace,
    which: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redisreads, "LOOK_INTERVAL", 0.02)
    name, held = spoil(keyspace, which)

    def is_told() -> bool:
        errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
        return any(
            isinstance(error, TypeError) and f"{name!r} holds a {held}" in str(error)
            for error in errors
        )

    with caplog.at_level(logging.ERROR, "durabledict.watch"):
        wait_until(is_told, "the watch says what the key holds")
    keyspace.raw.delete(name)
    keyspace.writer["a"] = "again"
    keyspace.check()


# -- scripts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
def test_a_write_by_a_script_that_the_server_has_forgotten_is_done_once(
    keyspace: Keyspace, name: str
) -> None:
    """Rule 2.7: nothing ran, so it is sent again, in full."""
    write, expected = WRITES[name]
    commits = len(keyspace.ids())
    keyspace.raw.script_flush()
    write(keyspace.writer)
    assert len(keyspace.ids()) == commits + 1
    keyspace.check_strict(expected)


def test_readers_whose_scripts_the_server_has_forgotten_read_on(keyspace: Keyspace) -> None:
    """Rule 2.7: the look, the delta and the load."""
    keyspace.second_writer["a"] = "newer"
    for force in (False, False, True):
        keyspace.raw.script_flush()
        keyspace.manual.sync(force=force)
        assert dict(keyspace.manual) == {**START, "a": "newer"}
    keyspace.second_writer.update({number: number for number in range(5000)})
    keyspace.raw.script_flush()
    keyspace.manual.sync(force=True)
    keyspace.raw.script_flush()
    keyspace.check_strict()


# -- roles and loading ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
def test_a_replica_refuses_reads_and_writes(own: Keyspace, name: str) -> None:
    """Rule 2.6: its data may be old."""
    own.raw.replicaof(HOST, "1")
    with pytest.raises(redis.ReadOnlyError):
        own.strict.sync()
    with pytest.raises(redis.ReadOnlyError):
        WRITES[name][0](own.writer)
    with pytest.raises(redis.ReadOnlyError):
        RedisDict[Any, Any](KEYSPACE, own.raw)
    own.raw.replicaof("no", "one")
    own.check_strict(START)
    WRITES[name][0](own.writer)
    own.check_strict(WRITES[name][1])


def test_a_replica_is_an_outage_to_a_dict_that_serves_stale_reads(own: Keyspace) -> None:
    d = own.open(on_outage="stale")
    own.raw.replicaof(HOST, "1")
    d.sync()
    assert dict(d.items()) == START
    assert d.stale_since is not None
    own.raw.replicaof("no", "one")
    wait_until(lambda: d["a"] and d.stale_since is None, "the outage is over")


@contextmanager
def loading(own: Keyspace) -> Iterator[Callable[[int], None]]:
    """Have the server load its data for as long as it is not hurried; it has at the end.

    :return: a function that sets how many microseconds the server takes for each of 2,000 keys.
        Between two of them it answers: they are larger than what it loads without a look

    """
    own.raw.execute_command("DEBUG", "POPULATE", 2000, "filler", 1100)
    own.raw.config_set("rdbcompression", "no")
    own.raw.config_set("loading-process-events-interval-bytes", 1024)
    own.raw.config_set("key-load-delay", 20_000)

    def reload() -> None:
        with redis.Redis(host=HOST, port=own.port, socket_timeout=None) as client:
            client.execute_command("DEBUG", "RELOAD")

    thread = threading.Thread(target=reload)
    thread.start()

    def is_loading() -> bool:
        try:
            own.raw.get("x")
        except redis.BusyLoadingError:
            return True
        return False

    def take(microseconds: int) -> None:
        own.raw.config_set("key-load-delay", microseconds)

    own.raw = own.client(retry=None)
    try:
        wait_until(is_loading, "the server is loading")
        yield take
    finally:
        take(0)
        thread.join()


@pytest.mark.parametrize("name", WRITES)
def test_a_write_to_a_server_that_is_loading_is_done_once_or_raises(
    own: Keyspace, name: str
) -> None:
    """Rule 2.7: it is repeated for less than a second."""
    write, expected = WRITES[name]
    with loading(own) as take:
        take(50)
        try:
            write(own.writer)
        except redis.BusyLoadingError:
            expected = START
    own.check_strict(expected)


def test_a_server_that_loads_for_long_is_an_outage(own: Keyspace) -> None:
    with loading(own):
        with pytest.raises(redis.BusyLoadingError):
            own.strict.sync()
        with pytest.raises(redis.BusyLoadingError):
            own.writer["a"] = "never"
    own.check_strict(START)


# -- memory ---------------------------------------------------------------------------------------


def fill(own: Keyspace) -> None:
    own.raw.config_set("maxmemory-policy", "noeviction")
    own.raw.config_set("maxmemory", 1)


@pytest.mark.parametrize("name", ["set", "update", "setdefault", "compute", "replace_all"])
def test_a_full_server_refuses_what_adds(own: Keyspace, name: str) -> None:
    """Rule 2.1: the entry of the stream comes first, so nothing is half-written."""
    fill(own)
    before = contents(own)
    with pytest.raises(redis.OutOfMemoryError):
        WRITES[name][0](own.writer)
    assert contents(own) == before
    own.check_strict(START)
    own.raw.config_set("maxmemory", 0)
    WRITES[name][0](own.writer)
    own.check_strict(WRITES[name][1])


@pytest.mark.parametrize("name", ["delete", "pop", "clear"])
def test_a_full_server_can_be_emptied(own: Keyspace, name: str) -> None:
    """Rule 2.1: a removal begins with the hash where the stream takes nothing."""
    fill(own)
    commits = len(own.ids())
    WRITES[name][0](own.writer)
    assert len(own.ids()) == commits + 1
    assert own.stamp() == own.ids()[-1]
    own.check_strict(WRITES[name][1])


def test_a_full_server_takes_a_replacement_that_only_removes(own: Keyspace) -> None:
    fill(own)
    own.writer.replace_all({"b": 2})
    own.check_strict({"b": 2})
    own.writer.depersist_many(["b", "absent"])
    own.check_strict({})


def test_a_full_server_can_be_read(own: Keyspace) -> None:
    fill(own)
    own.raw.script_flush()
    with own.open() as fresh:
        assert dict(fresh.items()) == START
    own.check_strict(START)


# -- rights ---------------------------------------------------------------------------------------


def user(own: Keyspace, *commands: str) -> redis.Redis:
    """Return a client that may do everything but some commands."""
    own.raw.execute_command("ACL", "DELUSER", "BLOOM")
    rules = [f"-{command}" for command in commands]
    own.raw.execute_command("ACL", "SETUSER", "BLOOM", "on", ">word", "~*", "+@all", *rules)
    return own.client(username="BLOOM", password="word")


LACKING = (
    *("xadd", "hset", "set", "hdel", "del", "evalsha", "eval", "hlen", "hexists", "hget", "get"),
    *("hgetall", "xinfo", "xrevrange", "xrange", "hmget"),
)


@pytest.mark.parametrize("lacking", LACKING)
def test_a_user_without_a_command_leaves_no_reader_stale(own: Keyspace, lacking: str) -> None:
    """Rule 2.1: nothing is rolled back, so what is written first is what tells of it."""
    for write, expected in WRITES.values():
        own.writer.replace_all(START)
        own.check_strict(START)
        own.raw.script_flush()
        client = user(own, lacking)
        refused = False
        try:
            with own.open(client) as limited:
                write(limited)
        except redis.ResponseError:
            refused = True
        assert refused or own.truth() == expected
        own.check()
        own.check_strict()
        own.second_writer["later"] = lacking
        own.check_strict()


def test_a_user_without_xadd_writes_and_removes_nothing(own: Keyspace) -> None:
    with own.open(user(own, "xadd")) as limited:
        before = contents(own)
        for write, _ in WRITES.values():
            with pytest.raises(redis.ResponseError):
                write(limited)
            assert contents(own) == before
            assert dict(limited.items()) == START


def test_a_user_without_evalsha_is_told_when_it_opens(own: Keyspace) -> None:
    with pytest.raises(redis.ResponseError, match="evalsha"):
        RedisDict[Any, Any](KEYSPACE, user(own, "evalsha"))


def test_a_user_who_may_not_ask_for_the_role_the_limits_or_the_policy_can_do_all(
    own: Keyspace,
) -> None:
    with own.open(user(own, "role", "info", "config")) as limited:
        for write, expected in WRITES.values():
            limited.replace_all(START)
            write(limited)
            limited.sync()
            assert dict(limited.items()) == expected
            own.check_strict(expected)
        limited["large"] = b"x" * 2_000_000
        limited.update({number: number for number in range(5000)})
        limited.sync(force=True)
        assert dict(limited.items()) == own.truth()
        own.check_strict()


def test_a_user_who_may_not_look_at_this_keyspace_is_told(own: Keyspace) -> None:
    own.raw.execute_command("ACL", "SETUSER", "far", "on", ">word", "~other*", "+@all")
    with pytest.raises(redis.ResponseError):
        RedisDict[Any, Any](KEYSPACE, own.client(username="far", password="word"))


def test_a_user_whose_rights_are_taken_away_under_a_reader_is_told(own: Keyspace) -> None:
    with own.open(user(own)) as limited:
        assert limited["a"] == 1
        own.raw.execute_command("ACL", "SETUSER", "BLOOM", "-@all")
        with pytest.raises(redis.ResponseError):
            limited["a"]
        with pytest.raises(redis.ResponseError):
            limited["a"] = 2
        own.raw.execute_command("ACL", "SETUSER", "BLOOM", "+@all")
        own.writer["a"] = 3
        assert limited["a"] == 3
    own.check_strict()


# -- sizes ----------------------------------------------------------------------------------------

LARGE = b"x" * 3_000_000

LARGE_WRITES: dict[str, Callable[[Dict], object]] = {
    "set": lambda d: d.__setitem__("a", LARGE),
    "update": lambda d: d.update({"a": LARGE, "b": 3}),
    "setdefault": lambda d: d.setdefault("n", LARGE),
    "compute": lambda d: d.compute("a", lambda _: LARGE),
    "replace_all": lambda d: d.replace_all({"n": LARGE}),
}


@pytest.mark.parametrize("limit", ["proto-max-bulk-len", "client-query-buffer-limit"])
@pytest.mark.parametrize("name", LARGE_WRITES)
def test_a_value_that_the_server_does_not_take_is_refused_before_it_is_sent(
    own: Keyspace, configured: RedisServer, name: str, limit: str
) -> None:
    own.raw.config_set(limit, "2mb")
    own.writer["a"] = b"x" * 2_000_000
    own.writer["a"] = 1
    refused = pytest.raises(ValueError, match=rf"30000\d\d bytes .* 2097152 .*{limit}")
    with configured.counting() as calls, refused:
        LARGE_WRITES[name](own.writer)
    assert not calls["xadd"]
    assert not calls["hset"]
    own.check_strict(START)


def test_a_key_that_the_server_does_not_take_is_refused_before_it_is_sent(own: Keyspace) -> None:
    own.raw.config_set("proto-max-bulk-len", "2mb")
    with pytest.raises(ValueError, match=r"bytes .* 2097152"):
        own.writer["x" * 3_000_000] = 1
    own.check_strict(START)


def test_many_values_that_the_server_takes_one_by_one_are_taken_together(own: Keyspace) -> None:
    """The buffer is for what is not yet parsed: never more than one value."""
    own.raw.config_set("client-query-buffer-limit", "1mb")
    entries = dict.fromkeys(range(3000), "x" * 1000)
    own.raw.hset("plain", mapping={str(key): value for key, value in entries.items()})
    own.writer.update(entries)
    own.check_strict({**START, **entries})


def test_a_value_that_nobody_could_ask_about_leaves_nothing(own: Keyspace) -> None:
    """Without CONFIG the server's refusal is a cut connection."""
    own.raw.config_set("proto-max-bulk-len", "1mb")
    with own.open(user(own, "config")) as limited:
        with pytest.raises(redis.RedisError):
            limited["a"] = LARGE
        assert dict(limited.items()) == START
        limited["b"] = "again"
    own.check_strict({**START, "b": "again"})


# -- formats --------------------------------------------------------------------------------------


def test_a_keyspace_of_a_newer_format_is_not_opened(keyspace: Keyspace) -> None:
    keyspace.raw.xadd(keyspace.stream, {"2": "from the future"})
    with pytest.raises(DurableDictError, match=r"format 2.* 1"):
        RedisDict[Any, Any](KEYSPACE, keyspace.raw)


@pytest.mark.parametrize("hidden", [False, True], ids=["the newest", "an older one"])
def test_a_newer_format_is_told_to_readers(keyspace: Keyspace, hidden: bool) -> None:
    number = int(keyspace.stamp().split(b"-")[0])
    keyspace.raw.xadd(keyspace.stream, {"2": "from the future"}, id=f"{number + 1}-1")
    if hidden:
        keyspace.raw.xadd(keyspace.stream, {"1": "ka"}, id=f"{number + 2}-1")
    for _ in range(2):
        with pytest.raises(DurableDictError, match=r"format 2.* 1"):
            keyspace.manual.sync()


@pytest.mark.parametrize("name", WRITES)
def test_a_newer_format_is_told_to_writers_and_nothing_is_written(
    keyspace: Keyspace, name: str
) -> None:
    keyspace.raw.xadd(keyspace.stream, {"2": "from the future"})
    before = contents(keyspace)
    with pytest.raises(DurableDictError, match=r"format 2.* 1"):
        WRITES[name][0](keyspace.writer)
    assert contents(keyspace) == before


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [1, "1", (1,), (1, 2, 3), (None, 1), ("x", 1), object()])
def test_a_wait_that_is_no_pair_of_numbers_is_refused(redis_client: redis.Redis, wait: Any) -> None:
    with pytest.raises(TypeError, match="replicas, milliseconds"):
        RedisDict[Any, Any](KEYSPACE, redis_client, wait=wait)


@pytest.mark.parametrize("wait", [(0, 100), (-1, 100), (1, 0), (1, -5)])
def test_a_wait_for_nothing_or_without_end_is_refused(
    redis_client: redis.Redis, wait: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="at least one replica and one millisecond"):
        RedisDict[Any, Any](KEYSPACE, redis_client, wait=wait)


@pytest.mark.parametrize("wait", [(float("inf"), 100), (1, 0.5), (1, float("nan")), (True, 50)])
def test_a_wait_that_is_not_of_whole_numbers_is_refused(
    redis_client: redis.Redis, wait: Any
) -> None:
    with pytest.raises(TypeError, match="wait="):
        RedisDict[Any, Any](KEYSPACE, redis_client, wait=wait)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_no_replica_acknowledges_is_an_unknown_outcome(
    keyspace: Keyspace, name: str
) -> None:
    """Rule 0.8: it is done here, and may be lost with this server."""
    d = keyspace.open(wait=(1, 20))
    with pytest.raises(redis.TimeoutError, match=r"replicas .* within 20 ms"):
        WRITES[name][0](d)
    assert dict(d.items()) == WRITES[name][1]
    keyspace.check_strict(WRITES[name][1])


def test_what_writes_nothing_needs_no_replica(keyspace: Keyspace) -> None:
    d = keyspace.open(wait=(1, 20))
    with pytest.raises(KeyError):
        del d["absent"]
    assert d.pop("absent", None) is None
    d.replace_all(START)
    assert d.setdefault("a", 9) == 1
    keyspace.check_strict(START)
