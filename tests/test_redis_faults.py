"""RedisDict where something happens to the server, or to its data, under readers of every kind.

After each fault every reader is compared with a HGETALL. Faults of the connection:
test_redis_cuts.py; what the server refuses: test_redis_errors.py.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from durabledict import RedisDict, redisload, redisreads

from .counters import Counter
from .redisreaders import KEYSPACE, Keyspace, entries
from .redisservers import RedisServer
from .servers import HOST, PATIENCE, wait_until
from .sqliteprocesses import Other
from .tcpproxy import TcpProxy
from .test_processes import processes

START = {"a": 1, "b": [2], "c": "three", 4: 4.0}


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    with Other() as process:
        yield process


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch looks at what no entry tells of soon, so that no test waits a second for it."""
    monkeypatch.setattr(redisreads, "LOOK_INTERVAL", 0.05)


@pytest.fixture
def keyspace(redis_server: RedisServer, redis_url: str, other: Other) -> Iterator[Keyspace]:
    with Keyspace(redis_server.port, other) as made:
        made.writer.update(START)
        made.writer["b"] = [2, 2]
        made.writer["c"] = "3"
        made.check_strict()
        yield made


# -- the data -------------------------------------------------------------------------------------


def in_turn(*actions: Callable[[Keyspace], object]) -> Callable[[Keyspace], None]:
    def act(keyspace: Keyspace) -> None:
        for action in actions:
            action(keyspace)

    return act


FAULTS: dict[str, Callable[[Keyspace], object]] = {
    "all is flushed": lambda k: k.raw.flushall(),
    "all is flushed, the scripts too": in_turn(
        lambda k: k.raw.flushall(),
        lambda k: k.raw.script_flush(),
    ),
    "the three keys are deleted": lambda k: k.raw.delete(k.hash, k.stream, k.mirror),
    "the mirror is deleted": lambda k: k.raw.delete(k.mirror),
    "the mirror is set back": lambda k: k.raw.set(k.mirror, k.ids()[0]),
    "the mirror is set to garbage": lambda k: k.raw.set(k.mirror, "garbage"),
    "the mirror is set to half a stamp": lambda k: k.raw.set(k.mirror, "5-"),
    "the mirror is emptied": lambda k: k.raw.set(k.mirror, ""),
    "the stream is trimmed to nothing": lambda k: k.raw.xtrim(k.stream, 0, approximate=False),
    "the stream is trimmed to the newest": lambda k: k.raw.xtrim(k.stream, 1, approximate=False),
    "the newest entry is removed": lambda k: k.raw.xdel(k.stream, k.ids()[-1]),
    "the second newest entry is removed": lambda k: k.raw.xdel(k.stream, k.ids()[-2]),
    "the oldest entry is removed": lambda k: k.raw.xdel(k.stream, k.ids()[0]),
    "all entries are removed": lambda k: k.raw.xdel(k.stream, *k.ids()),
    "the newest is removed and the mirror gone": in_turn(
        lambda k: k.raw.xdel(k.stream, k.ids()[-1]),
        lambda k: k.raw.delete(k.mirror),
    ),
    "the stream is trimmed and the mirror gone": in_turn(
        lambda k: k.raw.xtrim(k.stream, 0, approximate=False),
        lambda k: k.raw.delete(k.mirror),
    ),
    "the stream is trimmed and the mirror garbage": in_turn(
        lambda k: k.raw.xtrim(k.stream, 0, approximate=False),
        lambda k: k.raw.set(k.mirror, "garbage"),
    ),
    "an entry is added by the server's clock": lambda k: k.raw.xadd(k.stream, {"who": "knows"}),
    "an entry is added ahead": lambda k: k.raw.xadd(k.stream, {"who": "knows"}, id="5000-7"),
    "an entry is added that could be ours": lambda k: k.raw.xadd(
        k.stream, {"1": "ka"}, id=b"%d-7" % (int(k.ids()[-1].split(b"-")[0]) + 1)
    ),
    "an entry of our format is added ahead": lambda k: k.raw.xadd(
        k.stream, {"1": "ka"}, id="5000-7"
    ),
    "the stream is deleted": lambda k: k.raw.delete(k.stream),
    "the stream and the mirror are deleted": lambda k: k.raw.delete(k.stream, k.mirror),
    "the hash is deleted": lambda k: k.raw.delete(k.hash),
    "the hash is deleted, and another begins": in_turn(
        lambda k: k.raw.delete(k.hash),
        lambda k: k.second_writer.update({"a": 10}),
    ),
    "an entry of the hash is deleted": lambda k: k.raw.hdel(k.hash, "b"),
}


def write_unseen(keyspace: Keyspace) -> None:
    """Only the strict one and the watched one may know of these."""
    keyspace.second_writer["a"] = "unseen"
    keyspace.second_writer["b"] = "unseen"
    del keyspace.second_writer["c"]
    keyspace.second_writer["new"] = "unseen"


@pytest.mark.parametrize("unseen", [True, False], ids=["unseen writes", "nothing unseen"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_reader_tells_the_truth_after(keyspace: Keyspace, fault: str, unseen: bool) -> None:
    """Rules 0.2, 2.1, 2.2 and 2.3: whatever is done to the three keys."""
    if unseen:
        write_unseen(keyspace)
    keyspace.outlive(lambda: FAULTS[fault](keyspace))


@pytest.mark.parametrize("unseen", [True, False], ids=["unseen writes", "nothing unseen"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_sleeper_may_be_the_first_to_write_after(
    keyspace: Keyspace, fault: str, unseen: bool
) -> None:
    """Rule 0.3: what it holds is older than its commit, and it knows that."""
    sleeper = keyspace.open(autosync=False)
    if unseen:
        write_unseen(keyspace)
    FAULTS[fault](keyspace)
    sleeper["a"] = "by the sleeper"
    sleeper.sync()
    assert dict(sleeper) == keyspace.truth()
    keyspace.check()
    sleeper["b"] = "by the sleeper"
    keyspace.check_strict()


def test_a_mirror_set_to_the_stamp_of_a_sleeping_reader_hides_nothing(keyspace: Keyspace) -> None:
    """Rule 2.1: the stamp is the stream's, and a sync asks the stream."""
    asleep = keyspace.stamp()
    keyspace.second_writer["a"] = "unseen"
    keyspace.second_writer["b"] = "unseen, too"
    keyspace.outlive(lambda: keyspace.raw.set(keyspace.mirror, asleep))


def test_a_missing_mirror_is_no_change(keyspace: Keyspace) -> None:
    """Rule 2.3: then the stream is asked, by a script that reads."""
    keyspace.raw.delete(keyspace.mirror)
    syncs = keyspace.strict.stats.syncs
    assert keyspace.strict["a"] == START["a"]
    assert keyspace.strict.stats.syncs == syncs
    keyspace.second_writer["a"] = 2
    assert keyspace.strict["a"] == 2


def test_a_strict_read_finds_that_out_without_a_sync(keyspace: Keyspace) -> None:
    asleep = keyspace.stamp()
    keyspace.second_writer["a"] = "unseen"
    keyspace.raw.set(keyspace.mirror, asleep)
    wait_until(lambda: keyspace.strict["a"] == "unseen", "it looks at the stream")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_reader_that_has_not_seen_a_removed_entry_does_not_miss_it(
    keyspace: Keyspace, place: int
) -> None:
    """Rule 2.2: the numbers after the reader's have to follow each other, to the very last."""
    for key in ("a", "b", "c", 4):
        keyspace.second_writer[key] = "unseen"
    removed = keyspace.ids()[-4:][place]
    keyspace.raw.xdel(keyspace.stream, removed)
    # With a write after it, so that the newest one of the stream is there.
    keyspace.second_writer["later"] = place
    keyspace.check()


def test_a_reader_that_slept_through_a_removed_newest_entry_does_not_miss_it(
    keyspace: Keyspace,
) -> None:
    keyspace.second_writer["a"] = "unseen"
    keyspace.raw.xdel(keyspace.stream, keyspace.ids()[-1])
    keyspace.check()
    assert keyspace.manual["a"] == "unseen"


def test_a_writer_that_slept_through_a_removed_newest_entry_does_not_miss_it(
    keyspace: Keyspace,
) -> None:
    """Rule 2.1: the number is that of the last generated id, not of the newest entry there is."""
    for again in range(20):  # the nonces are by chance in the one order or in the other
        asleep = keyspace.open(autosync=False)
        keyspace.second_writer["a"] = again
        keyspace.raw.xdel(keyspace.stream, keyspace.ids()[-1])
        asleep["b"] = again
        assert asleep["a"] == again
        assert keyspace.strict["a"] == again
        keyspace.manual.sync()
        assert keyspace.manual["a"] == again
    keyspace.check()


def test_numbers_go_on_after_a_trim_and_begin_anew_after_a_flush(keyspace: Keyspace) -> None:
    """Rule 2.1: from the last generated id, which stays when entries go."""
    number = int(keyspace.stamp().split(b"-")[0])
    keyspace.raw.xtrim(keyspace.stream, 0, approximate=False)
    keyspace.raw.set(keyspace.mirror, "1-1")
    keyspace.writer["a"] = 2
    assert keyspace.ids() == [keyspace.stamp()]
    assert keyspace.writer.last_synced[0] == number + 1
    keyspace.raw.flushall()
    keyspace.writer["a"] = 2
    assert int(keyspace.stamp().split(b"-")[0]) == 1
    keyspace.check_strict({"a": 2})


def test_the_same_numbers_after_a_flush_are_other_commits(keyspace: Keyspace) -> None:
    """Rule 0.2: number and nonce; the very numbers that the readers know are used again."""
    number = int(keyspace.stamp().split(b"-")[0])
    keyspace.raw.flushall()
    for again in range(number):
        keyspace.second_writer["a" if again % 2 else "z"] = again
    assert int(keyspace.stamp().split(b"-")[0]) == number
    keyspace.check_strict()
    assert "b" not in keyspace.manual


def test_an_evicted_hash_is_seen_by_its_number_of_entries(keyspace: Keyspace) -> None:
    """Rule 2.2: stream and mirror live, the hash does not."""
    stamp = keyspace.stamp()
    keyspace.raw.delete(keyspace.hash)
    keyspace.check({})
    assert keyspace.stamp() == stamp
    keyspace.writer.update({"a": 1})
    keyspace.check_strict({"a": 1})


def test_a_server_that_evicts_everything_is_told_truly() -> None:
    """Rule 2.2, with a real eviction: the readers go on telling what is there."""
    with RedisServer() as server, Keyspace(server.port) as keyspace:
        keyspace.writer.update(dict.fromkeys(range(200), "x" * 100))
        keyspace.check_strict()
        keyspace.raw.config_set("maxmemory-policy", "allkeys-lru")
        used = int(server.info("memory")["used_memory"])
        keyspace.raw.config_set("maxmemory", used + 2_000_000)
        gone = 0
        for filler in range(100_000):
            # Not in a pipeline: each is room that the server makes.
            keyspace.raw.set(f"filler{filler}", b"x" * 50_000)
            if filler % 40 == 0 and not keyspace.raw.exists(keyspace.hash):
                # The watch keeps the stream young; what else is there is chance.
                gone += 1
                wait_until(lambda: keyspace.watched.copy() == keyspace.truth(), "the watch sees it")
                for reader in (keyspace.strict, keyspace.manual):
                    reader.sync()
                    assert dict(reader) == keyspace.truth()
                if gone == 3:
                    break
                keyspace.writer.update(dict.fromkeys(range(200), gone))
        assert gone == 3


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_a_server_that_may_evict_dicts_is_warned_of_once_for_each_client(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 2.9."""
    with RedisServer() as server, server.client() as client, server.client() as another:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", policy)
        with (
            RedisDict[str, int]("one", client) as one,
            RedisDict[str, int]("two", client) as two,
            RedisDict[str, int]("one", another) as three,
        ):
            for d in (one, two, three):
                d["k"] = 1
                d.sync(force=True)
    records = [record for record in caplog.records if record.name == "durabledict.redis"]
    assert [record.levelno for record in records] == [logging.WARNING] * 2
    for record in records:
        message = record.getMessage()
        assert "noeviction" in message
        assert f"holds {100 * 2**20} bytes (maxmemory-policy {policy})" in message


@pytest.mark.parametrize(
    ("maxmemory", "policy"),
    [("0", "allkeys-lru"), ("100mb", "noeviction"), ("100mb", "volatile-lru")],
)
def test_a_server_that_evicts_no_dict_is_not_warned_of(
    maxmemory: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server, server.client() as client:
        client.config_set("maxmemory", maxmemory)
        client.config_set("maxmemory-policy", policy)
        with RedisDict[str, int]("k", client) as d:
            d["k"] = 1
            d.sync(force=True)
    assert not caplog.records


# -- the server -----------------------------------------------------------------------------------


def test_an_older_backup_is_restored_under_running_readers(other: Other, tmp_path: Path) -> None:
    """Rule 0.2: numbers are used again, with other nonces."""
    with RedisServer("--dbfilename", "dump.rdb") as server, Keyspace(server.port, other) as k:
        k.writer.update(START)
        k.check_strict()
        k.raw.save()
        backup = tmp_path / "backup.rdb"
        (server.folder / "dump.rdb").rename(backup)
        for key in ("a", "b", "lost"):
            k.writer[key] = "lost"
        k.check_strict()
        k.raw.save()
        number = int(k.stamp().split(b"-")[0])
        server.kill()
        backup.rename(server.folder / "dump.rdb")
        server.start()
        k.check(START)
        for again in range(3):
            k.second_writer["c"] = again
        assert int(k.stamp().split(b"-")[0]) == number
        k.check_strict()


def test_readers_that_slept_see_a_restored_backup_whose_numbers_are_the_same(
    other: Other,
) -> None:
    """As above, but nobody syncs until the number is the same again."""
    with RedisServer("--dbfilename", "dump.rdb") as server, Keyspace(server.port, other) as k:
        k.writer.update(START)
        k.raw.save()
        k.writer["a"] = "lost"
        k.writer["b"] = "lost"
        k.check_strict()
        before = k.stamp()
        server.restart()
        with server.client() as client, RedisDict[Any, Any](KEYSPACE, client) as fresh:
            fresh["c"] = "new"
            fresh["c"] = "newer"
        assert k.stamp().split(b"-")[0] == before.split(b"-")[0]
        k.check_strict({**START, "c": "newer"})


def test_a_restart_without_data_is_an_empty_dict(other: Other) -> None:
    with RedisServer() as server, Keyspace(server.port, other) as keyspace:
        keyspace.writer.update(START)
        keyspace.check_strict()
        server.restart()
        assert dict(keyspace.strict.items()) == {}
        keyspace.check({})
        keyspace.writer["a"] = 1
        keyspace.check_strict({"a": 1})


def test_a_read_while_the_server_is_down_raises_and_the_next_one_tells_the_truth() -> None:
    with RedisServer("--appendonly", "yes") as server, Keyspace(server.port) as keyspace:
        keyspace.writer.update(START)
        keyspace.check_strict()
        server.kill()
        with pytest.raises(redis.ConnectionError):
            len(keyspace.strict)
        with pytest.raises(redis.ConnectionError):
            keyspace.writer["a"] = "never"
        server.start()
        keyspace.check_strict(START)


def write_until_told(port: int, name: str, folder: Path) -> tuple[int, int, int]:
    """Write through outages; return the last number tried, the additions, and the errors."""
    plain, added = (Counter(folder / f"{name}.{what}") for what in ("set", "add"))
    errors = tried = 0
    client = redis.Redis(host=HOST, port=port, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def answers() -> bool:
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        return True

    with client, RedisDict[Any, Any](KEYSPACE, client, autosync=False, on_outage="stale") as d:
        while not (folder / "stop").exists():
            tried += 1
            try:
                d[name] = tried
                plain.value = tried
                d.compute("total", lambda total: total + 1, default=0)
                added.value += 1
            except (redis.ConnectionError, redis.TimeoutError):
                # Whichever of the two it was: at most one addition is not known of.
                errors += 1
                wait_until(answers, "the server is back")
    return tried, added.value, errors


def kill_again_and_again(kills: int, folder: Path) -> None:
    names = ("first", "second", "third")
    with (
        RedisServer("--appendonly", "yes", "--appendfsync", "always") as server,
        server.client() as client,
        Keyspace(server.port) as keyspace,
        processes() as clients,
    ):
        for name in names:
            clients.start(write_until_told, server.port, name, folder)
        plain, added = (
            {name: Counter(folder / f"{name}.{what}") for name in names} for what in ("set", "add")
        )
        for _ in range(kills):
            goals = {name: plain[name].value + 10 for name in names}
            wait_until(
                lambda goals=goals: all(plain[name].value >= goals[name] for name in names),  # type: ignore[misc]  # mypy#12557
                "each has written ten times",
            )
            server.kill()
            acknowledged = {name: plain[name].value for name in names}
            total = sum(added[name].value for name in names)
            server.start()
            held = entries(client)
            assert all(held[name] >= acknowledged[name] for name in names)
            assert held["total"] >= total
            keyspace.strict.sync()
            assert all(keyspace.strict[name] >= acknowledged[name] for name in names)
        (folder / "stop").touch()
        results = clients.results()
        additions = sum(result[1] for result in results)
        errors = sum(result[2] for result in results)
        held = entries(client)
        assert additions <= held["total"] <= additions + errors
        for name, (tried, _, _) in zip(names, results, strict=True):
            assert plain[name].value <= held[name] <= tried
        keyspace.check_strict()


def test_no_acknowledged_write_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    """Rules 0.4 and 0.8: appendfsync always; nothing is counted twice, either."""
    kill_again_and_again(5, tmp_path)


@pytest.mark.long
def test_no_acknowledged_write_is_lost_however_often_the_server_is_killed(tmp_path: Path) -> None:
    kill_again_and_again(100, tmp_path)


# -- the first load of a large hash ---------------------------------------------------------------

LARGE = {f"key {number}": number for number in range(6000)}


def moved(k: Keyspace) -> None:
    """Entries move to other keys, those that are scanned already, and those that are not."""
    gone = list(LARGE)[::7]
    k.second_writer.replace_all(
        {**{key: LARGE[key] for key in LARGE if key not in gone}, **dict.fromkeys(range(500), "")}
    )


def paged(k: Keyspace) -> None:
    """More keys than one page of a delta has."""
    for first in range(5):
        k.second_writer.update({key: [first] for key in [*LARGE][first * 100 :][:4000]})


BETWEEN: dict[str, Callable[[Keyspace], object]] = {
    "nothing": lambda k: None,
    "some are written": lambda k: k.second_writer.update(dict.fromkeys([*LARGE][::60], "new")),
    "each is written": lambda k: k.second_writer.update(dict.fromkeys(LARGE, "new")),
    "some are removed": lambda k: k.second_writer.depersist_many([*LARGE][::3]),
    "one is removed and another is there": in_turn(
        lambda k: k.second_writer.pop("key 17"),
        lambda k: k.second_writer.update({"another": 1}),
    ),
    "all are replaced": moved,
    "it is cleared": lambda k: k.second_writer.clear(),
    "it is cleared and written": in_turn(
        lambda k: k.second_writer.clear(),
        lambda k: k.second_writer.update(dict.fromkeys(LARGE, "new")),
    ),
    "it is flushed": lambda k: k.raw.flushall(),
    "it is flushed and written": in_turn(
        lambda k: k.raw.flushall(),
        lambda k: k.second_writer.update(dict.fromkeys(LARGE, "new")),
    ),
    "many commits": paged,
    "the hash is deleted": lambda k: k.raw.delete(k.hash),
    "an entry is removed by hand": lambda k: k.raw.hdel(k.hash, "key 17", "key 5000"),
    "the stream is trimmed": in_turn(
        lambda k: k.second_writer.update(dict.fromkeys([*LARGE][::60], "new")),
        lambda k: k.raw.xtrim(k.stream, 0, approximate=False),
    ),
    "the stream is deleted": in_turn(
        lambda k: k.second_writer.update(dict.fromkeys([*LARGE][::60], "new")),
        lambda k: k.raw.delete(k.stream),
    ),
}


# What the commits since tell of, so that one scan is enough.
HEARD = {
    *("nothing", "some are written", "some are removed", "one is removed and another is there"),
    *("all are replaced", "many commits"),
}


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("between", BETWEEN)
def test_a_load_in_chunks_is_one_state_when_between_two_of_them(
    redis_server: RedisServer, redis_url: str, between: str, chunk: int
) -> None:
    """Rule 2.4: what was scanned is brought up to one moment by the commits since."""
    with Keyspace(redis_server.port) as keyspace, TcpProxy(redis_server.port) as proxy:
        keyspace.writer.update(LARGE)
        with redis.Redis(host=HOST, port=proxy.port, socket_timeout=PATIENCE) as client:
            for _ in range(chunk - 1):
                proxy.hold(b"HSCAN").release()  # it passes
            held = proxy.hold(b"HSCAN")
            identified = proxy.watch(b"replication")
            loaded: list[Any] = []

            def load() -> None:
                with RedisDict[Any, Any](KEYSPACE, client, autosync=False) as d:
                    loaded.append(dict(d))
                    assert between not in HEARD or identified.hits == 2
                    d.sync()
                    loaded.append(dict(d))

            thread = threading.Thread(target=load)
            thread.start()
            held.wait()
            BETWEEN[between](keyspace)
            held.release()
            thread.join()
        assert loaded == [keyspace.truth()] * 2


def test_a_load_in_chunks_begins_anew_when_the_server_restarts_in_between() -> None:
    """Rule 2.4: a cursor means nothing to another server."""
    with (
        RedisServer("--appendonly", "yes") as server,
        Keyspace(server.port) as keyspace,
        TcpProxy(server.port) as proxy,
        redis.Redis(host=HOST, port=proxy.port, socket_timeout=PATIENCE) as client,
    ):
        keyspace.writer.update(LARGE)
        held = proxy.hold(b"HSCAN")
        scans = proxy.watch(b"HSCAN")
        loaded: list[Any] = []

        def load() -> None:
            with RedisDict[Any, Any](KEYSPACE, client, autosync=False) as d:
                loaded.append(dict(d))

        thread = threading.Thread(target=load)
        thread.start()
        held.wait()
        server.restart()
        keyspace.open()["key 17"] = "after the restart"
        held.release()
        thread.join()
        assert loaded == [keyspace.truth()]
        assert scans.hits > 4


@pytest.mark.parametrize("changes", range(redisload.TRIES + 1))
def test_a_load_in_chunks_begins_anew_when_the_server_is_another_one_at_its_end(
    redis_server: RedisServer, redis_url: str, changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2.4: after so many times all is asked for in one reply.

    :param changes: in how many of the tries the server is another one

    """
    looks = itertools.count()

    def identity(replies: list[Any]) -> list[bytes]:
        number, is_end = divmod(next(looks), 2)
        assert len(replies) == 2
        return [b"another" if is_end and number < changes else b"one"]

    monkeypatch.setattr("durabledict.redisload._identity", identity)
    with (
        redis_server.client() as direct,
        RedisDict[Any, Any](KEYSPACE, direct) as writer,
        TcpProxy(redis_server.port) as proxy,
        redis.Redis(host=HOST, port=proxy.port, socket_timeout=PATIENCE) as client,
    ):
        writer.update(LARGE)
        begun = proxy.watch(b"\r\n$1\r\n0\r\n$5\r\nCOUNT\r\n")
        with redis_server.counting() as calls:
            d = RedisDict[Any, Any](KEYSPACE, client, autosync=False)
        assert dict(d) == LARGE
        assert begun.hits == min(changes + 1, redisload.TRIES)
        assert calls["hgetall"] == (changes == redisload.TRIES)
        assert d.sync() is False
        d.close()


def test_each_load_while_somebody_writes_is_one_state_that_there_was(
    redis_server: RedisServer, redis_url: str
) -> None:
    """Rule 2.4, under a writer that never rests: each commit names the state it makes."""
    chance = random.Random(4)
    state: dict[Any, Any] = {**LARGE, "version": 0}
    changes: dict[int, dict[Any, Any]] = {}
    written, stop = threading.Event(), threading.Event()
    with Keyspace(redis_server.port) as keyspace:
        keyspace.writer.update(state)

        def write() -> None:
            version = 0
            while not stop.is_set():
                version += 1
                changes[version] = {f"key {chance.randrange(6500)}": version for _ in range(20)}
                keyspace.writer.update({**changes[version], "version": version})
                written.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            loads = []
            assert written.wait(PATIENCE)
            for _ in range(12):
                with (
                    redis.Redis(host=HOST, port=redis_server.port) as client,
                    RedisDict[Any, Any](KEYSPACE, client, autosync=False) as d,
                ):
                    loads.append(dict(d))
        finally:
            stop.set()
            thread.join()
        version = 0
        for loaded in loads:
            while version < loaded["version"]:
                version += 1
                state.update({**changes[version], "version": version})
            assert loaded == state
        assert version
        keyspace.check_strict()
