"""The tests; what they share is `durabledict.testing`, which is public."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["not_measured", "output_of"]


def not_measured() -> dict[str, str]:
    """Return an environment in which a child process does not measure coverage.

    For those that look at what is imported, or that may not write a file; and for many processes
    that do nothing but what others do, as measuring takes longer than that.

    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def output_of(program: str) -> str:
    """Return what a program prints, in an interpreter of its own where warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parent.parent,
        env=not_measured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout
