"""What a hostile writer stores: pickles that run something, damage, and rows past the library."""

from __future__ import annotations

import os
import pickle
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from durabledict.keys import encode_key

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DEEP", "BrokenRepr", "Canary", "damaged", "hostile_pickles", "put_row", "row"]

#: Deeper than any stack of this process.
DEEP = 100_000

#: Where what a hostile pickle calls leaves its trace.
_SONG = Path(tempfile.gettempdir()) / f"durabledict-canary-{os.getpid()}"


class Canary:
    """Sings (makes a file) when it is loaded from a pickle, by whatever way."""

    def __enter__(self) -> Self:
        self.silence()
        return self

    def __exit__(self, *_: object) -> None:
        self.silence()

    def __reduce__(self) -> Any:
        return sing, ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Canary)

    def __hash__(self) -> int:
        return 1

    @staticmethod
    def payload(protocol: int = 5) -> bytes:
        return pickle.dumps(Canary(), protocol)

    @staticmethod
    def sang() -> bool:
        return _SONG.exists()

    @staticmethod
    def silence() -> None:
        _SONG.unlink(missing_ok=True)


def sing() -> Canary:
    _SONG.touch()
    return Canary()


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _named(module: bytes, name: bytes) -> bytes:
    return b"\x8c%c%b\x8c%c%b\x93" % (len(module), module, len(name), name)


#: Ways in which a pickle has something called: by REDUCE, INST, OBJ, NEWOBJ, NEWOBJ_EX, BUILD.
_SING = _named(__name__.encode(), b"sing")
_CANARY = _named(__name__.encode(), b"Canary")
_TOUCH = _named(b"pathlib", b"Path.touch")
_PATH = _named(b"pathlib", b"Path") + b"\x8c%c%b\x85R" % (len(str(_SONG)), str(_SONG).encode())
_WAYS = [
    _SING + b")R.",
    _SING + b")R0N.",
    b"}" + _SING + b")RNs.",
    b"(i%b\nsing\n." % __name__.encode(),
    b"c%b\nsing\n)R." % __name__.encode(),
    b"(" + _SING + b"o.",
    _TOUCH + _PATH + b"\x85R.",
    _named(b"os", b"system")
    + b"\x8c%c%b\x85R." % (len(f"touch {_SONG}"), f"touch {_SONG}".encode()),
    _named(b"builtins", b"exec")
    + b"\x8c%c%b\x85R." % (len(f"open({str(_SONG)!r},'w')"), f"open({str(_SONG)!r},'w')".encode()),
    _named(b"builtins", b"getattr") + _PATH + b"\x8c\x05touch\x86R)R.",
    _named(b"functools", b"partial") + _SING + b"\x85R)R.",
    b"\x80\x02" + _SING + b")R.",
]


def hostile_pickles() -> st.SearchStrategy[bytes]:
    """Pickles of which each runs something where it is loaded without care."""
    protocols = st.sampled_from([b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b""])
    return st.builds(bytes.__add__, protocols, st.sampled_from(_WAYS))


def damaged(payload: bytes | str) -> st.SearchStrategy[bytes]:
    """A payload with a bit changed, cut off, with something put in, taken out, or doubled."""
    whole = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
    places = st.integers(0, max(0, len(whole) - 1))

    def flipped(place: int, bit: int) -> bytes:
        if not whole:
            return whole
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        return bytes(changed)

    return st.one_of(
        st.builds(flipped, places, st.integers(0, 7)),
        st.builds(lambda end: whole[:end], places),
        st.builds(lambda place, new: whole[:place] + new + whole[place:], places, st.binary()),
        st.builds(lambda place: whole[:place] + whole[place + 1 :], places),
        st.builds(lambda new: whole + new, st.binary(min_size=1)),
    )


class _Rows:
    """Writes to an SQLite file of dicts as the sqlite3 shell does."""

    def __call__(self, path: Path, key: Any, payload: Any, keyspace: str = "default") -> None:
        self.run(
            path,
            "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)",
            keyspace,
            encode_key(key),
            payload,
        )

    @staticmethod
    def run(path: Path, statement: str, *values: Any) -> list[Any]:
        if not path.exists():
            from durabledict import SqliteDict

            SqliteDict[Any, Any](path).close()
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def read(self, path: Path, keyspace: str, key: Any) -> list[Any]:
        return self.run(
            path,
            "SELECT value FROM durabledict_entries WHERE keyspace = ? AND key = ?",
            keyspace,
            encode_key(key),
        )


put_row = _Rows()
row = put_row
