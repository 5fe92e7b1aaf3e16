"""What the processes write to."""

from __future__ import annotations

__all__ = ["BALLAST", "COUNTER", "KEYS", "REMOVED", "WRITTEN"]

#: The key that is counted up by `compute`.
COUNTER = "total"

#: Keys that are only written, and keys that are also removed.
WRITTEN = ["a", "b", "c"]
REMOVED = ["x", "y"]
KEYS = [*WRITTEN, *REMOVED, COUNTER]

#: Entries that nobody changes, so that a change is less than half of all.
BALLAST = {f"ballast {number}": number for number in range(20)}
