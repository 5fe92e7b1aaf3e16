"""The pictures of the benchmarks are drawn from figures, and are the same for the same ones."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import PICTURES as NAMES
from benchmarks.plots import (
    PICTURES,
    draw_commands,
    draw_reads,
    draw_syncs,
    draw_wakeups,
    draw_writes,
)
from benchmarks.rediscommands import Commands

SIZES = (100, 1_000)

Draw = Callable[[str], object]

DRAWN: dict[str, tuple[Draw, list[str]]] = {
    "reads": (
        lambda target: draw_reads(target, {"autosync=True": 0.26, "diskcache.Index": 4.5}),
        ["autosync=True", "0.26", "diskcache.Index", "4.5"],
    ),
    "syncs": (
        lambda target: draw_syncs(target, SIZES, [0.00004, 0.00005], [0.001, 0.0123]),
        ["sync() after one entry changed", "0.04", "12", "1,000"],
    ),
    "writes": (
        lambda target: draw_writes(
            target, SIZES, {"d[k] = v, FULL": [0.00017, 0.00018], "by hand, FULL": [1e-4, 1.1e-4]}
        ),
        ["d[k] = v, FULL", "170", "180", "by hand, FULL", "110"],
    ),
    "wakeups": (
        lambda target: draw_wakeups(target, {"SqliteDict, watch()": [3_100_000] * 100}),
        ["SqliteDict, watch(), p50", "SqliteDict, watch(), p99", "3.1"],
    ),
    "commands": (
        lambda target: draw_commands(target, [Commands("watch()", idle=1.2, reading=1.2)]),
        # One process, and 10,000.
        ["watch()", "1.2", "12,000", "10,000"],
    ),
}


def _texts(path: Path) -> list[str]:
    tree = ElementTree.parse(path)
    return ["".join(each.itertext()) for each in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_each_picture_can_be_asked_for_and_is_tested_here() -> None:
    # Named there as well, since matplotlib is imported only where something is drawn.
    assert list(DRAWN) == list(PICTURES) == list(NAMES)


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_has_its_figures_as_text(name: str, tmp_path: Path) -> None:
    draw, expected = DRAWN[name]
    draw(str(tmp_path / "picture.svg"))
    texts = _texts(tmp_path / "picture.svg")
    assert [each for each in expected if each not in texts] == []
    # The same figures give the same file, so that a diff shows what has changed.
    first = (tmp_path / "picture.svg").read_bytes()
    draw(str(tmp_path / "picture.svg"))
    assert (tmp_path / "picture.svg").read_bytes() == first


def test_a_percentile_that_is_one_sample_is_left_out(tmp_path: Path) -> None:
    drawn = draw_wakeups(str(tmp_path / "picture.svg"), {"watch()": range(1, 100)})
    assert list(drawn) == ["watch(), p50", "watch(), p90"]


@pytest.mark.parametrize("name", PICTURES)
def test_the_docs_show_each_picture(name: str) -> None:
    docs = Path(__file__).parent.parent / "docs"
    assert f".. image:: images/{name}.svg" in (docs / "benchmarks.rst").read_text()
    assert (docs / "images" / f"{name}.svg").exists()


def test_curves_of_the_same_figures_have_them_once(tmp_path: Path) -> None:
    each = [Commands(what, idle=5.0, reading=5.0) for what in ("autosync=1.0", "autosync=False")]
    draw_commands(str(tmp_path / "picture.svg"), each)
    texts = _texts(tmp_path / "picture.svg")
    assert texts.count("50,000") == 1
    assert {"autosync=1.0", "autosync=False"} <= set(texts)
