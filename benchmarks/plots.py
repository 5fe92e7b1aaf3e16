"""Measures and draws what the docs show: `python -m benchmarks --plots docs/images`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from durabledict import RedisDict, SqliteDict
from tests.redisservers import RedisServer

from .drawing import OTHERS, OURS, Curve, draw_bars, draw_curves, picture, plain
from .measure import Statement, timed
from .peers import bare_table, peers
from .reads import entries
from .rediscommands import READS, Commands, redis_commands
from .redispeers import LeftOut, redis_peers
from .rediswakeup import redis_latencies
from .syncs import pair, sync_after_one_change
from .tables import Spread
from .wakeup import KEY, wakeups
from .writes import LIMITS, in_random_order, new_values

__all__ = [
    "PICTURES",
    "draw_commands",
    "draw_reads",
    "draw_syncs",
    "draw_wakeups",
    "draw_writes",
    "plots",
]

HELD = 1_000
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
PROCESSES = (1, 10, 100, 1_000, 10_000)

#: How the names of our own modes begin.
OWN = ("autosync", "watch()")

# By size.
Curves = dict[str, list[float]]


def plots(folder: str, target: str, names: Iterable[str] | None = None) -> Iterator[str]:
    """Measure and draw; say what was measured.

    :param folder: for the files that are measured
    :param target: the folder for the pictures
    :param names: of the pictures; None: all

    """
    os.makedirs(target, exist_ok=True)
    for name in PICTURES if names is None else names:
        yield from PICTURES[name](folder, os.path.join(target, f"{name}.svg"))


# -- reads ------------------------------------------------------------------------------------


def _reads(folder: str, target: str) -> Iterator[str]:
    read = _read_cost(folder)
    draw_reads(target, read)
    yield from (f"d[k], {name}: {microseconds:.3f} us" for name, microseconds in read.items())


def draw_reads(target: str, read: Mapping[str, float]) -> None:
    """Draw the microseconds of a read, by what is read from."""
    title = f"A read of a SqliteDict of {HELD:,} entries, and of others"
    with picture(target, height=3.0) as axes:
        draw_bars(axes, read, ["autosync"], "microseconds for one d[k]", title)


def _read_cost(folder: str) -> dict[str, float]:
    """Return the microseconds of a read, by what is read from."""
    held = entries(HELD)
    statements = {}
    with ExitStack() as stack:
        for name, autosync in (("False", False), ("1.0", 1.0), ("True", True)):
            path = os.path.join(folder, f"plot-{name}.sqlite")
            d: SqliteDict[str, str] = SqliteDict(path, autosync=autosync)
            stack.enter_context(d)
            d.update(held)
            # Unrolled like no other: the loop costs as much as the fastest of these reads.
            statements[f"autosync={name}"] = Statement("d[k]", unroll=10, d=d, k="setting.500")
        for peer in stack.enter_context(peers(folder, held, "FULL")):
            statements[peer.name] = peer.reading("setting.500")
        taken = timed(statements.values())
        return {name: each * 1e6 for name, each in zip(statements, taken, strict=True)}


# -- syncs and writes, by the number of entries -----------------------------------------------


def _syncs(folder: str, target: str) -> Iterator[str]:
    after_one, reloads = [], []
    for number in SIZES:
        with pair(folder, number) as (writer, reader):
            after_one += timed([sync_after_one_change(writer, reader)])
            # The rounds of many entries are long enough to need no repeating.
            rounds = 20 if number <= 10_000 else 5
            reloads += timed([Statement("d.sync(force=True)", d=reader)], rounds=rounds)
        yield (
            f"{number:,} entries: sync() {after_one[-1] * 1e6:.0f} us, "
            f"reload {reloads[-1] * 1e6:.0f} us"
        )
    draw_syncs(target, SIZES, after_one, reloads)


def draw_syncs(
    target: str, sizes: Sequence[int], after_one: Sequence[float], reloads: Sequence[float]
) -> None:
    """Draw the seconds of a sync after one change, and of a reload, for each size."""
    curves = [
        Curve("full reload: sync(force=True)", [each * 1e3 for each in reloads], OTHERS),
        Curve("sync() after one entry changed", [each * 1e3 for each in after_one], above=False),
    ]
    with picture(target, height=3.8) as axes:
        draw_curves(axes, sizes, curves, "entries held", "milliseconds", "What a sync costs")


def _writes(folder: str, target: str) -> Iterator[str]:
    taken: Curves = {}
    for number in SIZES:
        held = entries(number)
        with ExitStack() as stack:
            statements = {}
            for synchronous in LIMITS:
                path = os.path.join(folder, f"plot-writes-{number}-{synchronous}.sqlite")
                d = stack.enter_context(
                    SqliteDict[str, str](path, autosync=False, synchronous=synchronous)
                )
                d.update(held)
                bare = stack.enter_context(bare_table(f"{path}-bare", held, synchronous))
                statements[f"d[k] = v, {synchronous}"] = Statement(
                    "d[next(k)] = next(v)", d=d, k=in_random_order(held), v=new_values()
                )
                statements[f"by hand, {synchronous}"] = bare.writing(
                    in_random_order(held), new_values()
                )
            seconds = timed(statements.values(), round_seconds=0.1)
        for name, each in zip(statements, seconds, strict=True):
            taken.setdefault(name, []).append(each)
            yield f"{number:,} entries: {name} {each * 1e6:.0f} us"
    draw_writes(target, SIZES, taken)


def draw_writes(target: str, sizes: Sequence[int], taken: Mapping[str, Sequence[float]]) -> None:
    """Draw the seconds of a write for each size, by what was written to."""
    curves = [
        Curve(
            name,
            [each * 1e6 for each in seconds],
            OURS if name.startswith("d[k]") else OTHERS,
            dashed="NORMAL" in name,
            above="NORMAL" not in name,  # the two lines between which there is least room
        )
        for name, seconds in taken.items()
    ]
    with picture(target, height=4.6) as axes:
        title = "A write to a SqliteDict, and to a table by hand"
        draw_curves(axes, sizes, curves, "entries held", "microseconds", title)


# -- wake-ups ---------------------------------------------------------------------------------


def _wakeups(folder: str, target: str) -> Iterator[str]:
    woken = wakeups(folder)
    samples = {
        "SqliteDict, watch()": woken.busy["watch"],
        "SQLite, a busy loop": woken.busy["loop"],
    }
    with RedisServer() as server, RedisDict[str, int].from_url(server.url, "wakeup") as d:
        d[KEY] = 0
        taken = redis_latencies(d, server.url)
    samples["RedisDict, watch()"] = taken["watch"]
    samples["Redis, XREAD BLOCK"] = taken["XREAD BLOCK"]
    for name, figure in draw_wakeups(target, samples).items():
        yield f"wake-up, {name}: {plain(figure)} ms"


def draw_wakeups(target: str, samples: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Draw the percentiles of nanoseconds from a write until another process has it.

    Those are left out which only the slowest sample of all would be above. Return them in
    milliseconds.

    """
    figures = {}
    for name, each in samples.items():
        for fraction in (0.5, 0.9, 0.99):
            nanoseconds = Spread(name, each).percentile(fraction)
            if nanoseconds is not None:
                figures[f"{name}, p{fraction * 100:.0f}"] = nanoseconds / 1e6
    with picture(target, height=3.8) as axes:
        title = "From a write to its value in another process"
        draw_bars(axes, figures, ["SqliteDict", "RedisDict"], "milliseconds", title)
    return figures


# -- commands ---------------------------------------------------------------------------------


def _commands(folder: str, target: str) -> Iterator[str]:
    left_out: LeftOut = {}
    with RedisServer() as server, redis_peers(server, {}, left_out):
        pass  # to find out which there are
    counted = list(redis_commands(left_out))
    draw_commands(target, counted)
    yield from (f"{each.what}: {each.reading:.1f} commands a second" for each in counted)


def draw_commands(target: str, counted: Sequence[Commands]) -> None:
    """Draw the commands a second that many processes send, which read so often each."""
    curves: list[Curve] = []
    for number, each in enumerate(counted):
        figures = [each.reading * processes for processes in PROCESSES]
        own = each.what.startswith(OWN)
        # Those of the others lie on top of each other, and two of our own may.
        there = {plain(curve.figures[0]) for curve in curves if curve.written}
        curves.append(
            Curve(
                each.what,
                figures,
                f"C{number}",
                dashed=not own,
                written=own and plain(figures[0]) not in there,
                # Every other one: two of them are near to each other.
                above=number % 2 == 0,
            )
        )
    with picture(target, height=5.2) as axes:
        title = f"Commands that Redis gets, at {READS} reads a second in each process"
        draw_curves(axes, PROCESSES, curves, "processes", "commands a second", title)


#: What measures and draws, by the name of the picture.
PICTURES: dict[str, Callable[[str, str], Iterator[str]]] = {
    "reads": _reads,
    "syncs": _syncs,
    "writes": _writes,
    "wakeups": _wakeups,
    "commands": _commands,
}
