"""The worked example of docs/stores.rst: three methods on bytes make a Store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from durabledict.stores import BaseDictionaryStore


class FolderStore(BaseDictionaryStore):
    """Keeps objects in a folder, each cell in a file that is replaced in one step."""

    def __init__(self, folder: Path | str, **options: Any) -> None:
        super().__init__(**options)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keyspace = self.folder.name

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()

    def _read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder)
        with open(handle, "wb") as file:
            file.write(cell)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, self._path(name))

    def _remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
