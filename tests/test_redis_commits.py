"""What RedisDict's commits are made of: numbers, lists of keys, slices, pages, and no commit."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from durabledict import RedisDict, rediscommits
from durabledict.redisscripts import DELTA

from .redisreaders import KEYSPACE, Keyspace
from .redisservers import RedisServer
from .servers import HOST, PATIENCE
from .tcpproxy import TcpProxy

START = {"a": 1, "b": 2, "c": 3}

Dict = RedisDict[Any, Any]


@pytest.fixture
def keyspace(redis_server: RedisServer, redis_url: str) -> Iterator[Keyspace]:
    with Keyspace(redis_server.port) as made:
        yield made


def newest(k: Keyspace) -> dict[bytes, bytes]:
    """The fields of the newest entry."""
    told: Any = k.raw.xrevrange(k.stream, count=1)
    fields: dict[bytes, bytes] = told[0][1]
    return fields


# -- numbers --------------------------------------------------------------------------------------


def test_each_commit_has_the_next_number_and_a_nonce_of_its_own(keyspace: Keyspace) -> None:
    """Rule 2.1: contiguous, and 63 random bits; the mirror is the newest."""
    d = keyspace.writer
    d["a"] = 1
    d["a"] = 1
    d.update(START)
    d.setdefault("d", 4)
    d.compute("d", lambda value: value + 1)
    del d["d"]
    d.pop("c")
    d.replace_all(START)
    keyspace.second_writer["a"] = 2
    d.clear()
    d["a"] = 1
    numbers, nonces = zip(*(map(int, id_.split(b"-")) for id_ in keyspace.ids()), strict=True)
    assert list(numbers) == list(range(1, 12))
    assert len(set(nonces)) == 11
    assert max(nonces) < 2**63
    assert max(nonces) > 2**50
    assert keyspace.stamp() == keyspace.ids()[-1]
    assert d.last_synced == (numbers[-1], nonces[-1])
    keyspace.check_strict({"a": 1})


def test_an_entry_lists_its_keys(keyspace: Keyspace) -> None:
    keyspace.writer["a"] = 1
    assert newest(keyspace) == {b"1": b"ka"}
    keyspace.writer.update({"x": 1, "yy": 2})
    assert newest(keyspace)[b"1"][:1] == b"m"
    assert b"yy" in newest(keyspace)[b"1"]
    del keyspace.writer["x"]
    assert newest(keyspace) == {b"1": b"kx"}
    keyspace.writer.clear()
    assert newest(keyspace) == {b"1": b"*"}


def test_writers_at_once_make_one_history(redis_server: RedisServer, keyspace: Keyspace) -> None:
    """Rules 0.3 and 2.1: whoever follows on whom, all copies are the same in the end."""

    def write(d: Dict, name: str) -> None:
        for number in range(150):
            d[name] = number
            d["both"] = (name, number)
            if number % 10 == 0:
                d.update({name: -number, "both": name})
                d.pop("both", None)

    dicts = [keyspace.writer, keyspace.second_writer, keyspace.open()]
    threads = [
        threading.Thread(target=write, args=[d, str(place)]) for place, d in enumerate(dicts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keyspace.check_strict()
    numbers = [int(identifier.split(b"-")[0]) for identifier in keyspace.ids()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


# -- no commit ------------------------------------------------------------------------------------

NOTHING: dict[str, Callable[[Dict], object]] = {
    "clear of nothing": lambda d: d.clear(),
    "depersist of nothing": lambda d: d.depersist_many(["x", "y"]),
    "pop of nothing": lambda d: d.pop("x", None),
    "update with nothing": lambda d: d.update({}),
    "setdefault of what is there": lambda d: d.setdefault("a", 5),
    "replace_all by the same": lambda d: d.replace_all(START),
    "compare_and_set that does not fit": lambda d: d.compare_and_set("a", 7, 8),
    "opening": lambda d: d.sync(force=True),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_makes_no_commit(keyspace: Keyspace, name: str) -> None:
    d = keyspace.writer
    d.update(START)
    if name == "clear of nothing":
        d.clear()
    before = keyspace.ids()
    NOTHING[name](d)
    keyspace.open().close()
    assert keyspace.ids() == before
    keyspace.check_strict()


def test_nothing_is_written_to_a_keyspace_that_nobody_wrote(keyspace: Keyspace) -> None:
    keyspace.writer.clear()
    keyspace.writer.pop("x", None)
    keyspace.writer.replace_all({})
    with pytest.raises(KeyError):
        del keyspace.writer["x"]
    keyspace.check_strict({})
    assert keyspace.raw.keys() == []


def test_deleting_an_absent_key_makes_no_commit(keyspace: Keyspace) -> None:
    keyspace.writer.update(START)
    before = keyspace.ids()
    with pytest.raises(KeyError):
        del keyspace.writer["x"]
    del keyspace.writer["a"]
    with pytest.raises(KeyError):
        del keyspace.second_writer["a"]
    assert len(keyspace.ids()) == len(before) + 1
    keyspace.check_strict({"b": 2, "c": 3})


# -- many keys ------------------------------------------------------------------------------------


def test_a_write_of_many_keys_is_one_commit_in_slices(
    redis_server: RedisServer, keyspace: Keyspace
) -> None:
    """Rule 2.1: `unpack` fails near 8,000 values."""
    many = {number: str(number) for number in range(9001)}
    with redis_server.counting() as calls:
        keyspace.writer.update(many)
    assert calls["xadd"] == 1
    assert 9 <= calls["hset"] <= 19
    keyspace.check_strict(many)
    with redis_server.counting() as calls:
        keyspace.writer.depersist_many(list(many)[1:])
    assert calls["xadd"] == 1
    assert 9 <= calls["hdel"] <= 19
    keyspace.check_strict({0: "0"})
    keyspace.writer.replace_all(many)
    keyspace.check_strict(many)


@pytest.mark.parametrize(("count", "kind"), [(5000, b"m"), (5001, b"*")])
def test_a_commit_of_more_than_5000_keys_lists_none(
    keyspace: Keyspace, count: int, kind: bytes
) -> None:
    """Rule 2.1: then all is loaded anew."""
    keyspace.writer.update(dict.fromkeys(range(20000), 0))
    keyspace.manual.sync()
    reloads = keyspace.manual.stats.reloads
    keyspace.writer.update(dict.fromkeys(range(count), 1))
    assert newest(keyspace)[b"1"][:1] == kind
    keyspace.manual.sync()
    assert keyspace.manual.stats.reloads - reloads == (kind == b"*")
    assert dict(keyspace.manual) == keyspace.truth()


@pytest.mark.parametrize("write_between", [False, True])
def test_a_delta_of_many_keys_comes_in_pages(
    redis_server: RedisServer, keyspace: Keyspace, write_between: bool
) -> None:
    """Rule 2.2: what is written between two pages is in the second."""
    with (
        TcpProxy(redis_server.port) as proxy,
        redis.Redis(host=HOST, port=proxy.port, socket_timeout=PATIENCE) as client,
        RedisDict[Any, Any](KEYSPACE, client, autosync=False) as d,
    ):
        payloads = {str(number): pickle.dumps(0) for number in range(60_000)}
        keyspace.raw.hset(KEYSPACE, mapping=payloads)
        keyspace.writer["x"] = 1
        d.sync(force=True)
        for first in range(5):
            some = range(first * 4500, first * 4500 + 4900)
            keyspace.writer.update({str(number): first + 1 for number in some})
        keyspace.writer.depersist_many([str(number) for number in range(100)])
        reloads = d.stats.reloads
        pages = proxy.watch(DELTA.sha)
        thread = threading.Thread(target=d.sync)
        if write_between:
            held = proxy.hold(DELTA.sha)
            thread.start()
            held.wait()
            # Of the first page, and of none.
            keyspace.writer.update({"7": "between", "500": "between", "new": 1})
            del keyspace.writer["501"]
            held.release()
        else:
            thread.start()
        thread.join()
        assert pages.hits == 2
        assert d.stats.reloads == reloads
        assert dict(d) == keyspace.truth()


def test_a_delta_of_most_keys_is_a_reload(keyspace: Keyspace) -> None:
    """Rule 2.2: above about half of them it is cheaper."""
    keyspace.writer.update(dict.fromkeys(range(4000), 0))
    keyspace.manual.sync()
    reloads = keyspace.manual.stats.reloads
    keyspace.writer.update(dict.fromkeys(range(2000), 1))
    keyspace.manual.sync()
    assert keyspace.manual.stats.reloads == reloads
    keyspace.writer.update(dict.fromkeys(range(3000), 2))
    keyspace.manual.sync()
    assert keyspace.manual.stats.reloads == reloads + 1
    keyspace.check_strict()


def test_a_reader_that_slept_through_more_than_the_stream_keeps_reloads(
    redis_server: RedisServer, keyspace: Keyspace
) -> None:
    keyspace.writer.update(START)
    keyspace.manual.sync()
    reloads = keyspace.manual.stats.reloads
    for number in range(1500):
        keyspace.writer["abc"[number % 3]] = number
    assert 1000 <= len(keyspace.ids()) <= 1200
    keyspace.manual.sync()
    assert keyspace.manual.stats.reloads == reloads + 1
    keyspace.check_strict()


def test_long_lists_of_keys_keep_the_stream_small(keyspace: Keyspace) -> None:
    keys = [f"{number} {'x' * 100}" for number in range(2000)]
    for number in range(60):
        keyspace.writer.update(dict.fromkeys(keys, number))
    used: Any = keyspace.raw.memory_usage(keyspace.stream)
    assert used < 8_000_000
    assert len(keyspace.ids()) >= 16
    keyspace.check_strict()


# -- replacing ------------------------------------------------------------------------------------


def test_replace_all_writes_the_difference(redis_server: RedisServer, keyspace: Keyspace) -> None:
    """Rule 2.1: it is taken inside the script."""
    keyspace.writer.update({number: number for number in range(3000)})
    keyspace.manual.sync()
    fetched = keyspace.manual.stats.keys_fetched
    wanted = {number: number for number in range(2, 3000)}
    wanted[5] = -5
    wanted[-1] = 1
    with redis_server.counting() as calls:
        keyspace.second_writer.replace_all(wanted)
    assert (calls["xadd"], calls["hset"], calls["hdel"]) == (1, 1, 1)
    keyspace.manual.sync()
    assert keyspace.manual.stats.keys_fetched - fetched == 2
    keyspace.check_strict(wanted)


def test_replace_all_by_a_writer_that_knows_nothing_is_the_difference_all_the_same(
    keyspace: Keyspace,
) -> None:
    keyspace.second_writer.sync()
    keyspace.writer.update({number: number for number in range(10)})
    keyspace.second_writer.replace_all({3: 3, 4: -4, "new": 0})
    keyspace.check_strict({3: 3, 4: -4, "new": 0})
    keyspace.writer["unseen"] = 1
    keyspace.second_writer.clear()
    keyspace.check_strict({})


# -- what 0.9 wrote -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5000])
def test_a_hash_of_0_9_is_read_and_adopted_by_the_first_write(
    keyspace: Keyspace, size: int
) -> None:
    """Rule 2.3: number of entries and its counter are the stamp, and no base of a delta."""
    old = {f"key {number}": number for number in range(size)}
    payloads: Any = {key: pickle.dumps(value) for key, value in old.items()}
    keyspace.raw.hset(KEYSPACE, mapping=payloads)
    keyspace.raw.set(f"{KEYSPACE}last_updated", 7)
    keyspace.check_strict(old)
    assert keyspace.manual.last_synced == (0, size, 7)
    # A writer of 0.9.
    keyspace.raw.hset(KEYSPACE, "key 1", pickle.dumps("newer"))
    keyspace.raw.incr(f"{KEYSPACE}last_updated")
    assert keyspace.strict["key 1"] == "newer"
    keyspace.check_strict()
    assert not keyspace.raw.exists(keyspace.stream, keyspace.mirror)
    keyspace.second_writer["key 2"] = "adopted"
    assert len(keyspace.ids()) == 1
    keyspace.check_strict({**old, "key 1": "newer", "key 2": "adopted"})


def test_what_is_more_than_a_commit_takes_is_several(
    redis_server: RedisServer, keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.1: each follows on the one before, and the writer's own copy on all of them."""
    monkeypatch.setattr(rediscommits, "COMMIT_KEYS", 1000)
    d = keyspace.writer
    d["before"] = 1
    first = {f"first {number}": number for number in range(2500)}
    with redis_server.counting() as calls:
        d.update(first)
    assert calls["xadd"] == 3
    expected = {"before": 1, **first}
    assert dict.items(d) == expected.items()
    keyspace.check_strict(expected)
    # Two are left as they are, one is written anew, and the others go.
    second = {f"second {number}": number for number in range(1500)}
    second |= {"before": 2, "first 0": 0, "first 2499": 2499}
    with redis_server.counting() as calls:
        d.replace_all(second)
    assert calls["xadd"] == 2 + 3
    assert dict.items(d) == second.items()
    keyspace.check_strict(second)
    with redis_server.counting() as calls:
        commit = d.depersist_many([*second, *second])
    assert (calls["xadd"], calls["hexists"]) == (2, 1503)
    assert commit is not None
    assert {*commit.removed} == {*second}
    keyspace.check_strict({})


def test_a_commit_takes_as_many_keys_as_it_may(
    redis_server: RedisServer, keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rediscommits, "COMMIT_KEYS", 1000)
    d = keyspace.writer
    for number, commits in ((1000, 1), (1001, 2)):
        d.replace_all({"old": 1})
        entries = {(number, key): key for key in range(number)}
        with redis_server.counting() as calls:
            d.update(entries)
        assert calls["xadd"] == commits
        keyspace.check_strict({"old": 1, **entries})
    # One that takes away as well, or the additions and then the removal.
    for number, commits in ((1000, 1), (1001, 3)):
        d.replace_all({"old": 1})
        entries = {(number, key): key for key in range(number)}
        with redis_server.counting() as calls:
            d.replace_all(entries)
        assert calls["xadd"] == commits
        keyspace.check_strict(entries)


def test_a_commit_takes_as_many_bytes_as_it_may(
    redis_server: RedisServer, keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.1: of keys and payloads together; an entry that is larger has a commit for itself."""
    d = keyspace.writer
    d["00"] = "x" * 100
    size = 2 + keyspace.raw.hstrlen(keyspace.hash, "00")
    monkeypatch.setattr(rediscommits, "COMMIT_BYTES", 3 * size)
    for number, commits in ((3, 1), (4, 2), (6, 2), (7, 3)):
        d.clear()
        entries = {f"{key:02}": "x" * 100 for key in range(number)}
        with redis_server.counting() as calls:
            d.update(entries)
        assert calls["xadd"] == commits
        keyspace.check_strict(entries)
    d.clear()
    entries = {"large": "x" * 1000, "small": "x", "larger": "x" * 2000, "last": "x"}
    with redis_server.counting() as calls:
        d.update(entries)
    assert calls["xadd"] == 4
    keyspace.check_strict(entries)
    long = {f"{key:02}" + "k" * (size - 2): key for key in range(7)}
    d.update(long)
    with redis_server.counting() as calls:
        d.depersist_many(long)
    assert calls["xadd"] == 3
    keyspace.check_strict(entries)


def test_many_long_keys_do_not_fill_the_server(keyspace: Keyspace) -> None:
    """Rule 2.1: the stream keeps fewer entries, and a reader that slept through more reloads."""
    keyspace.watched.close()
    expected = {}
    for number in range(600):
        key = f"{number:05}" + "x" * 20_000
        keyspace.writer[key] = expected[key] = number
    assert keyspace.raw.memory_usage(keyspace.stream, samples=0) < 8_000_000
    for reader in (keyspace.strict, keyspace.manual, keyspace.second_writer):
        reader.sync()
        assert dict(reader) == expected


WRITES: dict[str, Callable[[Dict], object]] = {
    "set": lambda d: d.__setitem__("a", 5),
    "delete": lambda d: d.__delitem__("a"),
    "update": lambda d: d.update(a=5, n=6),
    "setdefault": lambda d: d.setdefault("n", 7),
    "pop": lambda d: d.pop("b"),
    "compute": lambda d: d.compute("c", lambda value: value + 1),
    "replace_all": lambda d: d.replace_all({"b": 5}),
    "clear": lambda d: d.clear(),
}

LAST = 2**53 - 1


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_when_the_numbers_are_used_up_nothing_is_written(
    keyspace: Keyspace, name: str, own: bool
) -> None:
    """A number beyond these is none that Lua can tell from the next.

    :param own: whether the last one is the writer's own

    """
    d = keyspace.writer
    d.update(START)
    last = LAST - 1 if own else LAST
    keyspace.raw.xadd(keyspace.stream, {"1": b"ka"}, id=f"{last}-1")
    if own:
        d["a"] = 1
        assert d.last_synced is not None
        assert d.last_synced[0] == LAST
    else:
        d.sync()
    before = [keyspace.raw.dump(key) for key in (keyspace.hash, keyspace.stream, keyspace.mirror)]
    with pytest.raises(redis.ResponseError, match="used up"):
        WRITES[name](d)
    after = [keyspace.raw.dump(key) for key in (keyspace.hash, keyspace.stream, keyspace.mirror)]
    assert after == before
    keyspace.check_strict(START)
