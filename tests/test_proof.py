"""The proof, for some seconds: no violation, and each bug that is put into the library is caught.

`make prove` runs it for minutes, on each backend.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from .proof import disks
from .proof.allbackends import BACKENDS
from .proof.bugs import BUGS
from .proof.processes import Part
from .proof.report import lines
from .proof.run import prove

#: Fewer than in the long run: most of the time goes into starting them.
FEW = (Part("strict", writes=True), Part("manual", writes=True), Part("strict"))
PARTS = (*FEW, Part("manual"), Part("watched"))

SEED = 1


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_nothing_is_violated(backend: str) -> None:
    # It is to do something, however busy the machine is.
    result = prove(
        BACKENDS[backend](),
        3.0,
        SEED,
        parts=PARTS,
        enough=lambda history: history.calls > 500 and len(history.faults) > 1,
    )
    report = list(lines(result))
    assert result.violations == [], "\n".join(report)
    # And it says so.
    assert result.history.calls > 500
    assert sum(result.faults.values()) > 1
    assert len(result.history.copies) == len(PARTS) * len(result.history.stores) > 0
    assert report[0].startswith(f"{result.backend}: {result.history.calls} operations")
    for name, number in result.faults.items():
        assert any(f"{number} x {name} (" in line for line in report)


def test_a_full_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def look(_: float) -> None:
        with (
            pytest.raises(OSError, match="No space left") as refused,
            tmp_path.joinpath("more").open("wb", buffering=0) as file,
        ):
            file.write(bytes(1))
        found.append(refused.value.errno)

    with disks.small_disk(tmp_path) as mounted:
        if not mounted:
            pytest.skip("no file system may be mounted here")
        monkeypatch.setattr("tests.proof.disks.time.sleep", look)
        disks.fill_disk(tmp_path)
        assert found == [errno.ENOSPC]
        (tmp_path / "more").write_bytes(bytes(1 << 20))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_caught(name: str) -> None:
    bug = BUGS[name]
    only = bug.faults or ("no fault",)
    result = prove(
        BACKENDS[bug.backend](),
        bug.seconds,
        SEED,
        bug=name,
        only=only,
        parts=FEW,
        enough=bug.is_caught,
    )
    assert bug.is_caught(result.history), list(lines(result))
