"""The proof, for some seconds: no violation, and each bug that is put into the library is caught.

`make prove` runs it for minutes, on each backend.
"""

from __future__ import annotations

import pytest

from .proof.backends import Backend, RedisBackend, SqliteBackend
from .proof.bugs import BUGS
from .proof.processes import Part
from .proof.report import lines
from .proof.run import Result, prove

#: Fewer than in the long run: most of the time goes into starting them.
PARTS = (
    Part("strict", writes=True),
    Part("manual", writes=True),
    Part("strict"),
    Part("manual"),
    Part("watched"),
)

SEED = 1


def short(backend: Backend, seconds: float, *, bug: str = "", only: tuple[str, ...] = ()) -> Result:
    return prove(backend, seconds, SEED, bug=bug, only=only, parts=PARTS)


@pytest.mark.parametrize("backend", [SqliteBackend, RedisBackend])
def test_nothing_is_violated(backend: type[Backend]) -> None:
    result = short(backend(), 5.0)
    report = list(lines(result))
    assert result.violations == [], "\n".join(report)
    # It has done something, and says so.
    assert result.history.calls > 500
    assert sum(result.faults.values()) > 1
    assert len(result.history.copies) == len(PARTS)
    assert report[0].startswith(f"{result.backend}: {result.history.calls} operations")
    for name, number in result.faults.items():
        assert any(f"{number} x {name} (" in line for line in report)


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_caught(name: str) -> None:
    bug = BUGS[name]
    backend = {"sqlite": SqliteBackend, "redis": RedisBackend}[bug.backend]
    result = short(backend(), bug.seconds, bug=name, only=bug.faults or ("-",))
    assert result.violations
    kinds = {violation.kind for violation in result.violations}
    assert kinds & set(bug.caught_as), list(lines(result))
