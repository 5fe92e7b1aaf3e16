"""A disk that is really full: a small file system, where one may be mounted; and copies of data."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

__all__ = ["SIZE", "copy_folder", "fill_disk", "small_disk"]

#: In bytes: for a database, its log, and a backup.
SIZE = 32 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system on a folder; tell whether that may be done, as root may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = (
        os.geteuid() == 0 and not subprocess.run(command, stderr=subprocess.DEVNULL).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            # A process that was killed may not have ended yet: then with its last file.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> None:
    """Leave no byte of the file system of a folder for a while."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            while _is_room(file, size):
                pass
        time.sleep(1.0)
    ballast.unlink()


def _is_room(file: RawIOBase, size: int) -> bool:
    """Write so many bytes, if there is room."""
    try:
        return file.write(bytes(size)) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder, whose files may be written meanwhile; what they have not filled stays so."""
    subprocess.run(["cp", "--archive", "--sparse=always", str(source), str(target)], check=True)
