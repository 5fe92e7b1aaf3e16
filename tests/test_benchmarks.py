"""The harness of the benchmarks computes what it says; a clock of the test's own tells the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import UserDict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from statistics import median
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.protocol.states import Callback

from benchmarks.children import ask, child
from benchmarks.cores import both_ways, follow, one_core
from benchmarks.djangocounts import Counted, Counts, print_counts
from benchmarks.features import CHECKS, YES, outcome
from benchmarks.growing import MODULE, Counter, Taken
from benchmarks.growingplaces import Proxied
from benchmarks.measure import Comparison, Statement, compare
from benchmarks.printing import print_rows
from benchmarks.rediscommands import PROCESSES, READS, Commands
from benchmarks.redisreads import InThreads
from benchmarks.tables import Amount, Row, Spread
from benchmarks.wakeup import latencies
from benchmarks.zookeeperchanges import KINDS, OLD, STRICT, SYNC, TOLD, hear, reader
from benchmarks.zookeepercounts import Requests, counted, print_requests
from benchmarks.zookeeperserver import anywhere_and_pinned
from tests.memcachedserver import MemcachedServer
from tests.redisservers import RedisServer
from tests.tcpproxy import TcpProxy
from tests.zookeeperproxy import ZookeeperProxy
from tests.zookeeperservers import ZookeeperServer


class Clock:
    """A clock that only moves when something is done; notes what was done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> None:
        self.done.append(name)
        self.now += seconds


def test_statements_take_turns() -> None:
    clock = Clock()
    compare(
        Statement("work('A', 1.0)", work=clock.work),
        Statement("work('B', 1.0)", work=clock.work),
        rounds=4,
        round_seconds=1.0,
        timer=clock,
    )
    calibration, rounds = clock.done[:3], clock.done[3:]
    assert calibration == ["A", "B", "A"]
    # The first one of each round changes: A, B, A again; B, A again, A; A again, A, B.
    assert "".join(rounds) == "ABA" "BAA" "AAB" "ABA"  # fmt: skip


def compared_in_three_rounds(**options: Any) -> Comparison:
    clock = Clock()
    # Two times are for the calibration; then there are two of each round.
    baseline = iter([1.0, 1.0, 2.0, 2.5, 2.2, 3.0, 2.4, 4.0])
    return compare(
        Statement("work('A', next(seconds))", work=clock.work, seconds=baseline),
        Statement("work('B', 6.0)", work=clock.work),
        rounds=3,
        round_seconds=1.0,
        timer=clock,
        **options,
    )


def test_the_fastest_round_counts() -> None:
    compared = compared_in_three_rounds()
    # A took 2.0, 3.0 and 4.0; the second A 2.5, 2.2 and 2.4.
    assert compared.baseline == 2.0
    assert compared.again == pytest.approx(2.2)
    assert compared.candidate == pytest.approx(6.0)
    row = Row("B", "A", compared, limit=3.0)
    assert row.ratio == pytest.approx(3.0)
    assert row.noise == pytest.approx(1.1)


@pytest.mark.parametrize("unroll", [1, 10])
def test_a_round_is_filled_and_divided_by_its_runs(unroll: int) -> None:
    clock = Clock()
    compared = compare(
        Statement("work('A', 0.001)", unroll=unroll, work=clock.work),
        Statement("work('B', 0.002)", unroll=unroll, work=clock.work),
        rounds=1,
        round_seconds=1.0,
        timer=clock,
    )
    assert compared.candidate == pytest.approx(2 * compared.baseline)
    assert compared.baseline == pytest.approx(0.001)
    # The round is A, B, A; the calibration before it ends with A, too.
    (b, b_runs), (a, a_runs) = [(name, len(list(runs))) for name, runs in groupby(clock.done)][-2:]
    assert (b, a) == ("B", "A")
    assert b_runs == pytest.approx(500, abs=unroll)
    assert a_runs == pytest.approx(1000, abs=unroll)


def test_what_is_untimed_is_not_in_the_figure() -> None:
    clock = Clock()
    compared = compare(
        Statement("work('A', 1.0)", work=clock.work),
        Statement("work('B', 0.5)", untimed="work('pause', 100.0)", work=clock.work),
        rounds=2,
        round_seconds=200.0,
        timer=clock,
    )
    assert compared.candidate == pytest.approx(0.5)
    assert clock.done.index("pause") == clock.done.index("B") - 1
    with pytest.raises(ValueError):
        Statement("d[k]", untimed="d[k] = 1", unroll=10)


@pytest.mark.parametrize(
    ("limit", "wrong", "verdict"),
    [
        (None, "", ""),
        (2.0, "", "ok"),
        (1.9, "", "MISSED"),
        (2.0, "copy() asked twice", "MISSED: copy() asked twice"),
    ],
)
def test_verdicts(limit: float | None, wrong: str, verdict: str) -> None:
    row = Row("what", "against", Comparison(1.0, 2.0, 1.0), limit, wrong=wrong)
    assert row.verdict == verdict


@pytest.mark.parametrize(("figure", "verdict"), [(5.0, "ok"), (5.1, "MISSED"), (-0.1, "ok")])
def test_verdicts_of_what_is_no_ratio(figure: float, verdict: str) -> None:
    assert Amount("wake-up", figure, 5.0, "ms").verdict == verdict


def test_each_run_is_timed_by_itself() -> None:
    clock = Clock()
    statement = Statement(
        "work('A', next(seconds))",
        untimed="work('pause', 100.0)",
        work=clock.work,
        seconds=iter([3.0, 1.0, 2.0]),
    )
    assert statement.one_by_one(3, lambda: int(clock.now)) == [3, 1, 2]
    assert clock.done == ["pause", "A"] * 3


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.5, 500), (0.9, 900), (0.99, 990), (0.999, 999)]
)
def test_percentiles(fraction: float, expected: int) -> None:
    samples = list(range(1, 1001))
    # Whatever the order in which they were taken.
    assert Spread("d[k]", samples[::-1]).percentile(fraction) == expected


@pytest.mark.parametrize(("count", "expected"), [(99, None), (100, 99)])
def test_too_few_samples_have_no_high_percentile(count: int, expected: int | None) -> None:
    assert Spread("d[k]", range(1, count + 1)).percentile(0.99) == expected


def test_a_write_is_seen_with_the_first_value_that_is_not_older() -> None:
    # The process woke up twice for three writes: at 45 it had both that were written before.
    assert latencies([10, 20, 40], [(10, 13), (40, 45)]) == [3, 25, 5]
    with pytest.raises(RuntimeError):
        latencies([10, 20], [(10, 13)])


def test_the_median_round_may_count() -> None:
    compared = compared_in_three_rounds(pick=median)
    assert compared.baseline == pytest.approx(3.0)
    assert compared.again == pytest.approx(2.4)


def test_threads_share_the_time_among_the_runs_of_all() -> None:
    # Ten times one second in each of four threads, as a clock sees it that all of them move.
    clock, runs = Clock(), 10
    statement = InThreads("work('A', 1.0)", 4, {"work": clock.work})
    assert statement.compiled(clock)(runs) / runs == pytest.approx(1.0)
    assert len(clock.done) == 4 * runs


def test_what_a_thread_raises_is_not_taken_for_speed() -> None:
    with pytest.raises(ZeroDivisionError):
        InThreads("1 / 0", 4, {}).compiled(Clock())(1)


@pytest.fixture
def another_process() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n")


def test_client_and_server_are_on_one_core_and_go_back(another_process: int) -> None:
    before = os.sched_getaffinity(0), os.sched_getaffinity(another_process)
    with pytest.raises(ZeroDivisionError), one_core(another_process):
        assert os.sched_getaffinity(0) == os.sched_getaffinity(another_process)
        assert len(os.sched_getaffinity(0)) == 1
        raise ZeroDivisionError
    assert (os.sched_getaffinity(0), os.sched_getaffinity(another_process)) == before


def test_each_row_is_measured_pinned_and_not(another_process: int) -> None:
    cores = []

    def measure() -> Iterator[Row]:
        cores.append(os.sched_getaffinity(0))
        yield Row("d[k]", "get", Comparison(1.0, 2.0, 1.0))

    assert [row.what for row in both_ways(another_process, measure)] == ["d[k], pinned", "d[k]"]
    assert len(cores[0]) == 1
    assert cores[1] == os.sched_getaffinity(0)


def test_the_commands_of_many_processes_are_those_of_one() -> None:
    commands = Commands("watch()", idle=0.5, reading=0.5 + READS)
    assert commands.a_read == 1.0
    assert commands.together == (0.5 + READS) * PROCESSES
    # What is counted by chance at the edges is no negative cost.
    assert Commands("watch()", idle=0.6, reading=0.5).a_read == 0.0


def test_a_ratio_far_below_one_is_printed_as_more_than_zero(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        Row("sync()", "all", Comparison(1.0, 0.00005, 1.0), 0.0001),
        Row("d[k]", "get", Comparison(1.0, 2.0, 1.0), 0.75),
    ]
    assert print_rows(rows) == ["MISSED: d[k]: 2.00 x get, limit 0.75"]
    printed = capsys.readouterr().out
    assert " 0.000050 " in printed
    assert printed.endswith("MISSED\n")


def test_all_threads_of_a_server_are_on_that_core_and_go_back(
    memcached_server: MemcachedServer, another_process: int
) -> None:
    def allowed() -> list[set[int]]:
        threads = os.listdir(f"/proc/{memcached_server.pid}/task")
        assert len(threads) > 1
        return [os.sched_getaffinity(int(thread)) for thread in threads]

    before = allowed()
    with one_core(another_process):
        follow(another_process, memcached_server.pid)
        assert all(one == os.sched_getaffinity(0) and len(one) == 1 for one in allowed())
    follow(another_process, memcached_server.pid)
    assert allowed() == before


@pytest.mark.parametrize(
    ("sql", "cache", "verdict"),
    [(None, None, ""), (2, 3, "ok"), (2, None, "ok"), (1, 3, "MISSED"), (2, 2, "MISSED")],
)
def test_verdicts_of_counts(sql: int | None, cache: int | None, verdict: str) -> None:
    assert Counted("d[k] = v", Counts(2, 1, 2), sql, cache).verdict == verdict


def test_counts_are_printed_with_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        Counted("d[k]", Counts(0, 1, 0), sql=0, cache=1),
        Counted("d[k] = v", Counts(3, 0, 2), sql=2, cache=2),
        Counted("for information", Counts(9, 50, 9)),
    ]
    assert print_counts(lines) == [
        "MISSED: d[k] = v: 3 SQL statements and 2 requests to the cache, limits 2 and 2"
    ]
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert verdicts == ["ok", "MISSED", "9"]


def test_each_row_is_measured_with_all_threads_of_the_jvm_on_one_core(
    zookeeper_server: ZookeeperServer,
) -> None:
    pid = zookeeper_server.pid

    def cores() -> set[frozenset[int]]:
        return {
            frozenset(os.sched_getaffinity(int(thread)))
            for thread in os.listdir(f"/proc/{pid}/task")
        }

    found = []

    def measure() -> Iterator[Row]:
        found.append(cores())
        yield Row("d[k]", "get", Comparison(1.0, 2.0, 1.0))

    rows = anywhere_and_pinned(zookeeper_server, measure)
    assert [row.what for row in rows] == ["d[k], pinned", "d[k]"]
    (pinned,), (anywhere,) = found
    assert len(pinned) == 1
    assert anywhere == os.sched_getaffinity(0)
    assert cores() == {anywhere}


# As many as before the change, and at the end.
ENTRIES = 7


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (TOLD, (1, 2, 2)),
        (STRICT, (2, 3, 3)),
        (SYNC, (2, 3, 3)),
        # The list, and each value.
        (OLD, (ENTRIES + 1, ENTRIES + 2, ENTRIES + 1)),
    ],
)
def test_the_requests_after_a_change_are_counted(
    zookeeper_server: ZookeeperServer,
    zookeeper_client: KazooClient,
    kind: str,
    expected: tuple[int, int, int],
) -> None:
    assert counted(zookeeper_server, zookeeper_client, kind, ENTRIES) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_heard_of_a_change_reads_it(
    zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, kind: str
) -> None:
    with (
        ZookeeperProxy(zookeeper_server.port) as proxy,
        reader(kind, ENTRIES, zookeeper_client, proxy.port) as opened,
    ):
        seen = set()
        for _ in range(ENTRIES):
            opened.change()
            seen.add(opened.read())
            with proxy.counting() as calls:
                opened.read()
            # Once is enough; who asks the leader, asks again whether there was more.
            assert calls.total() == (kind in (STRICT, SYNC))
    # One of them is the entry that is read; a sync says that there was something new.
    assert len(seen) == (1 if kind == SYNC else 2)


def test_what_was_told_has_been_handled_when_it_counts_as_heard(
    zookeeper_client: KazooClient,
) -> None:
    handled = []

    def handle() -> None:
        # Each is another wait for the server; to hear takes one.
        for _ in range(20):
            zookeeper_client.sync("/")
        handled.append("event")

    zookeeper_client.handler.dispatch_callback(Callback("watch", handle, ()))
    hear(zookeeper_client)
    assert handled == ["event"]


@pytest.mark.parametrize(
    ("limit", "verdict"), [(None, ""), (3, "ok"), (2, "MISSED"), (1, "MISSED")]
)
def test_verdicts_of_requests(limit: int | None, verdict: str) -> None:
    assert Requests("sync()", changed=2, added=3, removed=3, limit=limit).verdict == verdict


def test_requests_are_printed_with_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        Requests("d[k]", 1, 2, 2, limit=2),
        Requests("sync()", 2, 4, 3, limit=3),
        Requests("for information", 1_001, 1_002, 1_001),
    ]
    assert print_requests(lines) == ["MISSED: sync(): 4 requests, limit 3"]
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert verdicts == ["ok", "MISSED", "1001"]


def test_what_a_mapping_does_is_told_from_what_it_raises() -> None:
    merge = CHECKS["d | {...}"]
    assert outcome(merge, {}) == YES
    assert outcome(merge, TextKeys()) == "TypeError"
    assert outcome(CHECKS["1 and '1' are two keys"], TextKeys()) == "no"


class TextKeys(UserDict[str, object]):
    """A mapping whose keys all become texts, and that cannot be merged."""

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(str(key), value)

    def __or__(self, other: object) -> Any:
        raise TypeError


def test_what_many_processes_take_is_that_of_one_multiplied() -> None:
    taken = Taken(
        "d", connections=2, idle=0.5, processor=0.1, reading=50.5, change=3, change_bytes=9
    )
    assert taken.together(1_000) == (2_000, 500, 50_500, 3_000, 9_000)
    assert taken.a_read == 0.5
    # What is counted by chance at the edges is no negative cost.
    assert replace(taken, reading=0.4).a_read == 0.0


def test_what_a_process_sends_is_counted_in_between(redis_server: RedisServer) -> None:
    place = {"kind": "redis", "port": redis_server.port}
    with (
        TcpProxy(redis_server.port) as proxy,
        child(MODULE, json.dumps(place), "counted", "autosync=True") as writer,
    ):
        ask(writer, "fill 100")
        ask(writer, "write first")
        proxied = Proxied({**place, "port": proxy.port}, {"Redis": proxy})
        with child(MODULE, json.dumps(proxied.place), "counted", "autosync=True") as reader:
            ask(reader, "see first")
            counter = Counter("autosync=True", proxied, reader)
            began = time.monotonic()
            _, reads = counter.count("read 100 1")
            seconds = time.monotonic() - began
            # One GET for each; once a second a script, which the server may have to be told first.
            assert 100 <= reads["Redis"][0] <= 102 + seconds
            # The first change also sends the texts of scripts.
            for value in ("second", "third"):
                write = partial(ask, writer, f"write {value}")
                _, change = counter.count(f"see {value}", first=write)
            # The stamp, with ROLE once a second, and what changed; the value has 100 characters.
            assert 2 <= change["Redis"][0] <= 4
            assert 100 < change["Redis"][1] < 1_000
