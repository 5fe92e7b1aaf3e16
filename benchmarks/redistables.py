"""The tables of `RedisDict`, over a server that is started for them and ends with them."""

from __future__ import annotations

from collections.abc import Iterator

import hiredis
import redis

from tests.redisservers import RedisServer

from .printing import print_rows
from .rediscommands import PROCESSES, READS, Commands, redis_commands
from .redisloads import redis_loads
from .redispeers import LeftOut
from .redisreads import redis_reads
from .redissyncs import redis_syncs
from .rediswakeup import redis_wakeups
from .rediswrites import redis_writes
from .tables import Row

__all__ = ["redis_tables"]

COMMANDS_LINE = "{:<38} {:>14} {:>14} {:>14} {:>18}"


def redis_tables() -> list[str]:
    """Print the tables; return which limits were missed."""
    left_out: LeftOut = {}
    with RedisServer() as server:
        print(
            f"\nRedis {_version(server)}, redis-py {redis.__version__} with hiredis "
            f"{hiredis.__version__}. Ratios, in turns as well; here the median round counts.\n"
            "Pinned: client and server are kept on one core; two cores: on one each; else the\n"
            "system places them, on one or on two, for a whole row.\n"
        )
        missed = print_rows(_rows(server, left_out))
    print(
        "\nCommands that a server gets, those in scripts included: of one process, and of "
        f"{PROCESSES:,}\nthat read {READS} keys a second each.\n"
    )
    print(
        COMMANDS_LINE.format(
            "what", "a read", "idle, a second", "reading, a s", f"{PROCESSES:,}, a s"
        )
    )
    for commands in redis_commands(left_out):
        print(_commands_line(commands), flush=True)
    for name, why in left_out.items():
        print(f"\nLeft out: {name}: {why}.")
    return missed


def _rows(server: RedisServer, left_out: LeftOut) -> Iterator[Row]:
    # The server is emptied in between: a million keys are in nobody else's way.
    for rows in (
        redis_reads(server, left_out),
        redis_writes(server, left_out),
        redis_loads(server),
        redis_wakeups(server),
        redis_syncs(server),
    ):
        yield from rows
        server.flush()


def _version(server: RedisServer) -> str:
    return server.info("server")["redis_version"]


def _commands_line(commands: Commands) -> str:
    return COMMANDS_LINE.format(
        commands.what,
        f"{commands.a_read:.2f}",
        f"{commands.idle:.1f}",
        f"{commands.reading:.1f}",
        f"{commands.together:,.0f}",
    )
