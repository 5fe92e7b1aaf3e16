"""Who holds which locks: on samples of /proc/locks, and on this machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from durabledict import filelocks
from durabledict.filelocks import holders, read_locks

SAMPLE = """\
1: POSIX  ADVISORY  READ 5002 fe:00:2327434 128 128
2: POSIX  ADVISORY  READ 5002 fe:00:2327432 1073741826 1073742335
3: FLOCK  ADVISORY  WRITE 6001 fe:00:2327434 0 EOF
4: POSIX  ADVISORY  WRITE 7001 fe:00:2327434 120 120
4: -> POSIX  ADVISORY  WRITE 7002 fe:00:2327434 120 120
5: POSIX  ADVISORY  WRITE 8001 103:05:2327434 128 128
6: OFDLCK ADVISORY  READ -1 fe:00:2327434 128 128
7: POSIX  ADVISORY  READ 9001 fe:00:99 100 EOF
nonsense
"""
DEVICE = os.makedev(0xFE, 0)


@pytest.mark.parametrize(
    ("inode", "first", "last", "expected"),
    [
        (2327434, 128, 128, [5002]),
        (2327434, 120, 128, [5002, 7001]),
        (2327434, 121, 127, []),
        (2327432, 0x40000002, 0x40000002 + 509, [5002]),
        (2327432, 0, 0x40000001, []),
        (99, 5000, 5000, [9001]),
        (99, 0, 99, []),
        (1, 0, 1 << 40, []),
    ],
)
def test_a_sample(inode: int, first: int, last: int, expected: list[int]) -> None:
    assert holders(DEVICE, inode, first, last, SAMPLE) == expected


def test_a_device_with_more_digits() -> None:
    assert holders(os.makedev(0x103, 5), 2327434, 128, 128, SAMPLE) == [8001]


def test_this_machine(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 3, 7)
        status = os.fstat(file.fileno())
        place = status.st_dev, status.st_ino
        assert holders(*place, 7, 9, read_locks()) == [os.getpid()]
        assert holders(*place, 10, 10, read_locks()) == []
    assert holders(*place, 7, 9, read_locks()) == []


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(filelocks, "LOCKS", str(tmp_path / "absent"))
    assert read_locks() == ""
