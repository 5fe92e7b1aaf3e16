"""What a strict read of a `RedisDict` costs: one GET, whichever of the entries is read."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from durabledict import RedisDict
from tests.redisservers import RedisServer

from .cores import both_ways, each_way
from .measure import Statement, Timer, compare
from .reads import entries
from .redispeers import LeftOut, redis_peers
from .tables import Row

__all__ = ["InThreads", "redis_reads"]

THREADS = 16
KEY = "setting.500"
STRING = f"string:{KEY}"
GET = f"*2\r\n$3\r\nGET\r\n${len(STRING)}\r\n{STRING}\r\n".encode()


def redis_reads(server: RedisServer, left_out: LeftOut) -> Iterator[Row]:
    """Measure strict reads beside reads of a string, and of what else keeps a mapping there."""
    held = entries(1_000)
    with (
        server.client() as client,
        RedisDict[str, str].from_url(server.url, "reads") as d,
        redis_peers(server, held, left_out) as others,
        socket.create_connection(("127.0.0.1", server.port)) as bare,
    ):
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        d.update(held)
        client.mset({f"string:{key}": pickle.dumps(value) for key, value in held.items()})
        names: dict[str, Any] = {"d": d, "c": client, "k": KEY, "string": STRING}
        getting, reading = Statement("c.get(string)", **names), Statement("d[k]", **names)

        def one_thread() -> Iterator[Row]:
            what = "d[k], autosync=True"
            measured = compare(getting, reading, pick=median)
            yield Row(what, "redis.Redis.get", measured, 0.75)

        def beside_others() -> Iterator[Row]:
            what = "d[k], autosync=True"
            asking = Statement("s.sendall(GET); s.recv(65536)", s=bare, GET=GET)
            yield Row(what, "bare socket", compare(asking, reading, pick=median))
            for peer in others:
                measured = compare(peer.reading(KEY), reading, rounds=10, pick=median)
                yield Row(what, peer.name, measured)

        def many_threads() -> Iterator[Row]:
            # Seconds a read: half of them is twice as many reads a second.
            measured = compare(
                InThreads("c.get(string)", THREADS, names),
                InThreads("d[k]", THREADS, names),
                rounds=7,
                # As long as some turns of each thread, which are 5 ms in CPython.
                round_seconds=0.2,
                pick=median,
            )
            yield Row(f"d[k], each of {THREADS} threads", "redis.Redis.get", measured, 0.5)

        yield from each_way(server.pid, one_thread)
        yield from both_ways(server.pid, beside_others)
        yield from each_way(server.pid, many_threads)


class InThreads(Statement):
    """A statement that some threads run at the same time.

    One run of it takes the time of all threads together, divided by the runs of all.

    """

    def __init__(self, source: str, threads: int, names: Mapping[str, Any]) -> None:
        super().__init__(source, **names)
        self.threads = threads

    def compiled(self, timer: Timer) -> Callable[[int], float]:
        """Return a function that has each thread run the loop so many times."""
        loop = super().compiled(timer)

        def run(count: int) -> float:
            began: list[float] = []
            # What it takes to start the threads is not in the figure.
            ready = threading.Barrier(self.threads, lambda: began.append(timer()))

            def work() -> None:
                ready.wait()
                loop(count)

            with ThreadPoolExecutor(self.threads) as pool:
                working = [pool.submit(work) for _ in range(self.threads)]
                for future in working:
                    future.result()
                ended = timer()
            return (ended - began[0]) / self.threads

        return run
