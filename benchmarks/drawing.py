"""How the pictures look. They are SVG with texts as text, and the same figures give the same files.

Only this module and `plots` need matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["OTHERS", "OURS", "Curve", "draw_bars", "draw_curves", "picture", "plain"]

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


@dataclass(frozen=True)
class Curve:
    """A line of a picture.

    :param label: what it shows
    :param figures: one for each size
    :param colour: of the line
    :param dashed: whether it is
    :param above: whether its figures are written above it, and not below
    :param written: whether they are written at all

    """

    label: str
    figures: Sequence[float]
    colour: str = OURS
    dashed: bool = False
    above: bool = True
    written: bool = True


@contextmanager
def picture(path: str, width: float = 7.0, height: float = 3.4) -> Iterator[Axes]:
    """Give something to draw on, which is then stored."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots()
        # Without the date and the version: the file changes only with the figures.
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def draw_bars(
    axes: Axes, figures: Mapping[str, float], ours: Sequence[str], unit: str, title: str
) -> None:
    """Draw a bar for each figure.

    :param figures: by their names
    :param ours: how the names begin whose bars have another colour
    :param unit: what is written below the axis

    """
    colours = [OURS if name.startswith(tuple(ours)) else OTHERS for name in figures]
    bars = axes.barh(list(figures), list(figures.values()), color=colours)
    axes.bar_label(bars, [plain(figure) for figure in figures.values()], padding=4)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(_tick)
    axes.set_xlabel(f"{unit}, logarithmic")
    axes.set_title(title, fontsize=11)


def draw_curves(
    axes: Axes, sizes: Sequence[int], curves: Sequence[Curve], of: str, unit: str, title: str
) -> None:
    """Draw what changes with a number.

    :param sizes: the numbers
    :param of: what they count
    :param unit: what is written beside the axis

    """
    for curve in curves:
        style = "--" if curve.dashed else "-"
        axes.plot(
            sizes, curve.figures, marker="o", color=curve.colour, label=curve.label, linestyle=style
        )
        for number, figure in zip(sizes, curve.figures, strict=True) if curve.written else ():
            axes.annotate(
                plain(figure), (number, figure), xytext=(0, 7 if curve.above else -14),
                textcoords="offset points", ha="center",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.2)
    axes.yaxis.set_major_formatter(_tick)
    axes.yaxis.set_minor_formatter(_nothing)
    axes.set_xticks(sizes, [f"{number:,}" for number in sizes])
    axes.set_xlabel(of)
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=11)
    # Below, where it hides nothing.
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, -0.2), ncols=2)


def _tick(value: float, place: int | None) -> str:
    return plain(value)


def _nothing(value: float, place: int | None) -> str:
    return ""  # as it comes, a short axis has powers of ten between its figures


def plain(figure: float) -> str:
    """Return two significant digits, never with an exponent.

    >>> plain(0.0234), plain(4.56), plain(1234.5)
    ('0.023', '4.6', '1,200')

    """
    rounded = float(f"{figure:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
