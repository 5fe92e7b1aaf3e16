"""The tests; what they share is `durabledict.testing`, which is public."""

from __future__ import annotations

import os

__all__ = ["not_measured"]


def not_measured() -> dict[str, str]:
    """Return an environment in which a child process does not measure coverage.

    For those that look at what is imported, or that may not write a file; and for many processes
    that do nothing but what others do, as measuring takes longer than that.

    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
