"""`make load` in short, and that it says no where something grows."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import load, loadsteady
from benchmarks.loadsteady import Sample, grown, steady

from . import not_measured


def test_a_short_run_finds_nothing() -> None:
    arguments = ["--seconds", "1", "--operations", "1000", "--readers", "5", "--processes", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *arguments],
        env=not_measured(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for store in ("redis", "sqlite"):
        assert f"{store}: 2 readers in processes of their own, 3 as connections" in run.stdout
    assert re.search(r"1,\d00 operations|[2-9],\d00 operations|\d\d,\d00 op", run.stdout)
    assert "Nothing grew" in run.stdout


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("memory", [20.0, 22.0, 24.0, 26.0, 28.0, 30.0]),
        ("descriptors", [5, 5, 6, 6, 7, 7]),
        ("threads", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_growth_is_told(name: str, values: list[Any]) -> None:
    flat = Sample(20.0, 5, 1)
    assert grown([flat] * 6) == []
    (problem,) = grown([flat._replace(**{name: value}) for value in values])
    assert problem.startswith(f"{name} grew from")


@pytest.mark.parametrize(
    ("name", "values"),
    [("memory", [20.0, 23.0, 21.0, 20.0, 23.5, 21.0]), ("descriptors", [5, 9, 5, 9, 9, 5])],
)
def test_what_goes_up_and_down_does_not_grow(name: str, values: list[Any]) -> None:
    flat = Sample(20.0, 5, 1)
    assert grown([flat._replace(**{name: value}) for value in values]) == []


def test_a_leak_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = []

    class Leaking(loadsteady._User):
        def work(self, number: int) -> None:
            super().work(number)
            kept.append(open("/dev/null"))  # noqa: SIM115  # it is the leak

    monkeypatch.setattr(loadsteady, "_User", Leaking)
    # A file more each time, and each time a sample: as many as in a long run.
    monkeypatch.setattr(loadsteady, "AT_ONCE", 50)
    try:
        with load._places() as places:
            problems = steady(places[1:], 0.0, 50 * loadsteady.SAMPLES, most_seconds=60.0)
    finally:
        for file in kept:
            file.close()
    assert any(problem.startswith("descriptors grew") for problem in problems)
    assert any("left after close()" in problem for problem in problems)
