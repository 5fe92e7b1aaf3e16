"""Close a connection when its thread has ended."""

from __future__ import annotations

from typing import Any


class ClosesAtTheEnd:
    """Closes what a thread left open; drivers warn of that, and warnings are errors here."""

    connection: Any

    def __del__(self) -> None:
        connection = self.connection
        if connection is not None:
            self.connection = None
            connection.close()
