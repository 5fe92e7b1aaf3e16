"""Draws what reads and syncs cost: `python -m benchmarks --plots docs/images`.

Only this module needs matplotlib. The pictures are SVG with texts as text, and the same figures
give the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from durabledict import SqliteDict

from .measure import Statement, timed
from .peers import peers
from .reads import entries
from .syncs import pair, sync_after_one_change

__all__ = ["plots"]

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "durabledict",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Not transparent: dark letters would vanish on a dark page.
    "savefig.facecolor": "white",
}
OURS, OTHERS = "#2a6f97", "#b0b0b0"

HELD = 1_000
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def plots(folder: str, target: str) -> Iterator[str]:
    """Measure and draw; say what was drawn.

    :param folder: for the files that are measured
    :param target: the folder for the pictures

    """
    os.makedirs(target, exist_ok=True)
    read = _reads(folder)
    with _picture(os.path.join(target, "reads.svg"), 7.0, 3.0) as axes:
        _draw_reads(axes, read)
    yield from (f"d[k], {name}: {seconds * 1e6:.3f} us" for name, seconds in read.items())
    after_one, reloads = _syncs(folder)
    with _picture(os.path.join(target, "syncs.svg"), 7.0, 3.4) as axes:
        _draw_syncs(axes, after_one, reloads)
    for number, one, all_entries in zip(SIZES, after_one, reloads, strict=True):
        yield f"{number:,} entries: sync() {one * 1e6:.0f} us, reload {all_entries * 1e6:.0f} us"


@contextmanager
def _picture(path: str, width: float, height: float) -> Iterator[Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots()
        # Without the date and the version: the file changes only with the figures.
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _reads(folder: str) -> dict[str, float]:
    """Return the seconds of a read, by what is read from."""
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
        return dict(zip(statements, timed(statements.values()), strict=True))


def _syncs(folder: str) -> tuple[list[float], list[float]]:
    """Return the seconds of a sync after one change, and of a reload, for each size."""
    after_one, reloads = [], []
    for number in SIZES:
        with pair(folder, number) as (writer, reader):
            after_one += timed([sync_after_one_change(writer, reader)])
            # The rounds of many entries are long enough to need no repeating.
            rounds = 20 if number <= 10_000 else 5
            reloads += timed([Statement("d.sync(force=True)", d=reader)], rounds=rounds)
    return after_one, reloads


def _draw_reads(axes: Axes, read: Mapping[str, float]) -> None:
    names = list(read)
    colours = [OURS if name.startswith("autosync") else OTHERS for name in names]
    microseconds = [seconds * 1e6 for seconds in read.values()]
    bars = axes.barh(names, microseconds, color=colours)
    axes.bar_label(bars, [_plain(figure) for figure in microseconds], padding=4)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(_tick)
    axes.set_xlabel("microseconds for one d[k], logarithmic")
    axes.set_title(f"A read of a SqliteDict of {HELD:,} entries, and of others", fontsize=11)


def _draw_syncs(axes: Axes, after_one: Sequence[float], reloads: Sequence[float]) -> None:
    for label, seconds, colour in (
        ("full reload: sync(force=True)", reloads, OTHERS),
        ("sync() after one entry changed", after_one, OURS),
    ):
        milliseconds = [each * 1e3 for each in seconds]
        axes.plot(SIZES, milliseconds, marker="o", color=colour, label=label)
        for number, figure in zip(SIZES, milliseconds, strict=True):
            axes.annotate(
                _plain(figure), (number, figure), xytext=(0, 7), textcoords="offset points",
                ha="center",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(_tick)
    axes.set_xticks(SIZES, [f"{number:,}" for number in SIZES])
    axes.set_xlabel("entries held")
    axes.set_ylabel("milliseconds")
    axes.set_title("What a sync costs", fontsize=11)
    axes.legend(frameon=False)


def _tick(value: float, place: int | None) -> str:
    return _plain(value)


def _plain(figure: float) -> str:
    """Return two significant digits, never with an exponent.

    >>> _plain(0.0234), _plain(4.56), _plain(1234.5)
    ('0.023', '4.6', '1,200')

    """
    rounded = float(f"{figure:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
