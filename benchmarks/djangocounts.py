"""How many SQL statements and requests to memcached something takes, by Django and memcached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.memcachedserver import MemcachedServer

__all__ = ["Counted", "Counts", "counted", "print_counts"]

COUNT_HEADINGS = ("what", "SQL", "limit", "gets", "others", "limit", "")
COUNT_LINE = "{:<48} {:>5} {:>5} {:>6} {:>7} {:>5} {}"

#: The numbers in memcached's `stats` that count keys which were asked for, or written. `add` and
#: `set` are both "set" to it.
GETS = ("cmd_get",)
OTHERS = (
    "cmd_set", "cmd_touch", "incr_hits", "incr_misses", "decr_hits", "decr_misses",
    "delete_hits", "delete_misses", "cas_hits", "cas_misses", "cas_badval",
)  # fmt: skip

#: How statements begin that neither read nor write rows.
FRAMES = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


@dataclass(frozen=True)
class Counts:
    """What something took.

    :param sql: the SQL statements, without BEGIN, COMMIT and savepoints
    :param gets: the keys that the cache was asked for
    :param others: the keys that were set, added, raised or deleted in the cache

    """

    sql: int
    gets: int
    others: int

    @property
    def cache(self) -> int:
        """All that the cache was asked to do."""
        return self.gets + self.others

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.sql + other.sql, self.gets + other.gets, self.others + other.others)


@dataclass(frozen=True)
class Counted:
    """One line of the table of counts.

    :param what: what was counted
    :param counts: what it took
    :param sql: how many SQL statements are allowed; None: for information
    :param cache: how many requests to the cache are allowed

    """

    what: str
    counts: Counts
    sql: int | None = None
    cache: int | None = None

    @property
    def verdict(self) -> str:
        """'ok' or 'MISSED'; nothing where there is no limit."""
        limits = ((self.counts.sql, self.sql), (self.counts.cache, self.cache))
        if all(limit is None for _, limit in limits):
            return ""
        return "ok" if all(limit is None or took <= limit for took, limit in limits) else "MISSED"


def counted(
    memcached: MemcachedServer, action: Callable[[], object], using: str = "default"
) -> Counts:
    """Do something, and return what it took.

    :param memcached: the server, which nobody else uses meanwhile
    :param using: the alias of the database

    """
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    before = memcached.stats()
    with CaptureQueriesContext(connections[using]) as queries:
        action()
    after = memcached.stats()

    def grown(names: tuple[str, ...]) -> int:
        return sum(int(after.get(name, 0)) - int(before.get(name, 0)) for name in names)

    statements = [query["sql"] for query in queries.captured_queries]
    frames = sum(statement.startswith(FRAMES) for statement in statements)
    return Counts(len(statements) - frames, grown(GETS), grown(OTHERS))


def print_counts(lines: Iterable[Counted]) -> list[str]:
    """Print counts, each as soon as it is there; return what was missed."""
    missed = []
    print(COUNT_LINE.format(*COUNT_HEADINGS).rstrip())
    for line in lines:
        counts = line.counts
        sql, cache = ("" if limit is None else limit for limit in (line.sql, line.cache))
        print(
            COUNT_LINE.format(
                line.what, counts.sql, sql, counts.gets, counts.others, cache, line.verdict
            ).rstrip(),
            flush=True,
        )
        if line.verdict not in ("", "ok"):
            missed.append(
                f"{line.verdict}: {line.what}: {counts.sql} SQL statements and {counts.cache} "
                f"requests to the cache, limits {line.sql} and {line.cache}"
            )
    return missed
