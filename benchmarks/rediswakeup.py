"""How soon a watch in another process shows a write to a `RedisDict`.

This process writes the time into an entry, again and again. A child notes when it knows: either a
manual dict with a `watch()` has the value, or a loop of redis-py's on ``XREAD BLOCK`` has returned
from that, which is as early as a process can be told, and then has fetched the value. They take
turns, in short rounds. The clock is the same in all processes (`time.monotonic_ns`), and the time
of the write itself is in all figures.

``python -m benchmarks.rediswakeup`` is the child.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import redis

from durabledict import RedisDict
from tests.redisservers import RedisServer

from .children import ask, child
from .cores import both_ways
from .measure import Comparison
from .tables import Row, Spread
from .wakeup import KEY, latencies, noting

__all__ = ["redis_latencies", "redis_wakeups"]

NAME = "wakeup"
STREAM = f"{{{NAME}}}:changes"

# Seconds between two writes.
SHORTEST, LONGEST = 0.002, 0.008
ROUNDS = 8
WRITES = 60
LIMIT = 2.0

# Of what was seen: the number of the commit or its value, and when.
Seen = list[tuple[int, int]]


def redis_wakeups(server: RedisServer) -> Iterator[Row]:
    """Compare the watch with the loop."""
    with RedisDict[str, int].from_url(server.url, NAME) as d:
        d[KEY] = 0
        yield from both_ways(server.pid, lambda: _rows(redis_latencies(d, server.url)))


def _rows(taken: dict[str, list[int]]) -> Iterator[Row]:
    spreads = {kind: Spread(kind, samples) for kind, samples in taken.items()}
    for kind, limit in (("XREAD BLOCK", LIMIT), ("XREAD BLOCK, HGET, loads", None)):
        for fraction in (0.5, 0.99):
            baseline, watch, again = (
                (spreads[which].percentile(fraction) or 0) / 1e9
                for which in (kind, "watch", f"{kind}, again")
            )
            what = f"wake-up by watch(), p{fraction * 100:.0f}"
            yield Row(what, kind, Comparison(baseline, watch, again), limit)


def redis_latencies(d: RedisDict[str, int], url: str) -> dict[str, list[int]]:
    """Return the nanoseconds from each write to the moment at which each kind of child knew."""
    taken: dict[str, list[int]] = {}
    with ExitStack() as stack:
        # Started here, where the process may be on one core: they are there, too.
        watch, loop = (
            stack.enter_context(child("benchmarks.rediswakeup", kind, url))
            for kind in ("watch", "loop")
        )
        turns = [(loop, ""), (watch, ""), (loop, ", again")]
        for number in range(ROUNDS):
            # A different one begins each round.
            for place in range(len(turns)):
                process, suffix = turns[(number + place) % len(turns)]
                ask(process, "begin")
                sent = _write(d)
                for kind, seen in ask(process, "end").items():
                    # Who was only told knows the number of a commit in place of its value.
                    values = [(sent.get(what, what), moment) for what, moment in seen]
                    found = latencies(list(sent.values()), values)
                    taken.setdefault(f"{kind}{suffix}", []).extend(found)
    return taken


def _write(d: RedisDict[str, int]) -> dict[int, int]:
    """Write the time at random intervals; return what was written by the commits' numbers."""
    sent = {}
    for _ in range(WRITES):
        time.sleep(random.uniform(SHORTEST, LONGEST))
        now = time.monotonic_ns()
        d[KEY] = now
        assert d.last_synced is not None
        sent[d.last_synced[0]] = now
    # However late the last one is seen, it counts.
    time.sleep(0.1)
    return sent


# -- the children -----------------------------------------------------------------------------


def _watching(url: str, seen: dict[str, Seen]) -> AbstractContextManager[None]:
    d = RedisDict[str, int].from_url(url, NAME, autosync=False)
    return noting(d, seen.setdefault("watch", []))


@contextmanager
def _looping(url: str, seen: dict[str, Seen]) -> Iterator[None]:
    """Note when a loop has been told of a commit, and when it has the value."""
    told = seen.setdefault("XREAD BLOCK", [])
    fetched = seen.setdefault("XREAD BLOCK, HGET, loads", [])
    stopping = threading.Event()

    def loop(client: redis.Redis, last: Any) -> None:
        while not stopping.is_set():
            streams: Any = client.xread({STREAM: last}, block=50)
            now = time.monotonic_ns()
            for _, commits in streams.items() if isinstance(streams, dict) else streams:
                commits = commits if isinstance(commits[0], tuple) else commits[0]
                last = commits[-1][0]
                told.append((int(last.split(b"-")[0]), now))
                payload: Any = client.hget(NAME, KEY)
                fetched.append((pickle.loads(payload), time.monotonic_ns()))

    with redis.Redis.from_url(url) as client:
        (newest,) = client.xrevrange(STREAM, count=1)
        thread = threading.Thread(target=loop, args=(client, newest[0]))
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


KINDS: dict[str, Callable[[str, dict[str, Seen]], Any]] = {"watch": _watching, "loop": _looping}


def _answer_questions(kind: str, url: str) -> None:
    with ExitStack() as stack:
        seen: dict[str, Seen] = {}
        for question in map(str.strip, sys.stdin):
            answer: object = None
            if question == "begin":
                seen = {}
                stack.enter_context(KINDS[kind](url, seen))
            elif question == "end":
                stack.close()
                answer = seen
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _answer_questions(*sys.argv[1:])
