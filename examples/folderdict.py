"""A durable dict over a folder: one file an entry, and one more that holds the stamp.

The worked example of docs/own_backend.rst. It defines the four methods that make a working dict
and nothing else.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> settings, elsewhere = FolderDict(folder.name), FolderDict(folder.name)
>>> settings["theme"] = "dark"
>>> elsewhere["theme"]
'dark'
>>> folder.cleanup()
"""

from __future__ import annotations

import os
import secrets
import string
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from durabledict import DurableDict, Undecodable
from durabledict.keys import decode_key, encode_key

K = TypeVar("K")
V = TypeVar("V")

# What a file name may show as it is. Capitals are not among it: some file systems take "A" and
# "a" for one name.
PLAIN = frozenset(string.ascii_lowercase + string.digits + "-_")
LONGEST_NAME = 255
SUFFIX = ".value"


class FolderDict(DurableDict[K, V]):
    """A durable dict whose entries are files.

    A folder cannot replace two files in one step. The stamp comes last, so whoever reads in between
    holds the new data under the old stamp, and syncs once more. A process that dies in between
    leaves an entry that those who have the dict open see only after somebody's next write, or after
    ``sync(force=True)``. A stamp before the data as well would mend nothing: who reads after it
    holds the old data under the stamp that stays. A write survives the crash of any process, not
    the loss of power.

    :param folder: where they are; made if it is not there
    :param options: see `DurableDict`

    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        # Before super().__init__(), which reads the store for the first time.
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(**options)

    def persist(self, key: K, value: V) -> None:
        """Store one entry: its file, then the stamp, each replaced in one step."""
        payload = self._encode(value, key)
        path = self._path(key)
        self._replace(path, payload.encode() if isinstance(payload, str) else payload)
        self._replace_stamp()

    def depersist(self, key: K) -> None:
        """Remove one entry."""
        self._path(key).unlink(missing_ok=True)
        self._replace_stamp()

    def durables(self) -> dict[K, V | Undecodable]:
        """Read all files."""
        entries: dict[K, V | Undecodable] = {}
        # Not glob(), which finds nothing in a folder that is not there: an outage is an error, or
        # all entries would seem to be removed.
        for path in self.folder.iterdir():
            if not path.name.endswith(SUFFIX):
                continue
            try:
                payload = path.read_bytes()
            except FileNotFoundError:
                continue  # removed since it was listed: a new stamp is on its way
            key: Any = decode_key(unquote(path.name.removesuffix(SUFFIX)))
            entries[key] = self._decode(payload, key)
        return entries

    def last_updated(self) -> str | None:
        """Read the stamp; None, unknown, until the first write."""
        try:
            return (self.folder / "stamp").read_text()
        except FileNotFoundError:
            return None

    def _path(self, key: object) -> Path:
        """Return the path of the file for a key.

        :raises ValueError: the name would be longer than file systems take

        """
        shown = (c if c in PLAIN else _percent(c) for c in encode_key(key))
        name = "".join(shown) + SUFFIX
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"key {key!r} makes a file name of {len(name)} bytes; {LONGEST_NAME} are allowed"
            )
        return self.folder / name

    def _replace_stamp(self) -> None:
        # Random, so that no two writes ever give the same: neither of two processes, nor one
        # before and one after the folder was restored from a backup.
        self._replace(self.folder / "stamp", secrets.token_hex(16).encode())

    def _replace(self, path: Path, content: bytes) -> None:
        """Put `content` at `path` in one step: a reader finds the old file or the new one."""
        new = self.folder / f"{secrets.token_hex(8)}.new"
        new.write_bytes(content)
        os.replace(new, path)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02x}" for byte in character.encode())
