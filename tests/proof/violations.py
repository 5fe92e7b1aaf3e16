"""What can be wrong with a history."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BACK", "COPIES", "ERROR", "LOST", "NOBODYS", "STALE", "SUMS", "Violation"]

STALE = "a read is not of its time"
LOST = "a write is lost, or undone"
BACK = "a reader goes back"
NOBODYS = "a value that nobody wrote"
SUMS = "compute does not add up"
COPIES = "a copy differs from the store"
ERROR = "unexpected error"


@dataclass(frozen=True)
class Violation:
    """Something that is not as promised.

    :param kind: which of those above

    """

    kind: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.key}: {self.text}"
