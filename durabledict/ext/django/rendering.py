"""A stored value as text for the admin, without running anything that it holds.

What stands in the column may come from anybody who can write to the table. JSON and other text is
shown as it is; a pickle is loaded only if it asks for no class but those allowed, and only if that
takes little time; of everything else only the kind and the size are told.
"""

from __future__ import annotations

import base64
import json
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ...restrictedpickle import RestrictedPickleEncoding

__all__ = ["is_json", "shown"]

#: Pickles of more bytes are not loaded to be shown.
LARGEST = 1 << 17

#: How many items of a container, and how many containers within each other, are shown.
ITEMS = 10
LEVELS = 4

#: How often a pickle may use the same container again. Each time can double what it takes to hash,
#: so that a hundred bytes would keep a process busy for years.
REPEATS = 16


def is_json(payload: str) -> bool:
    """Whether a payload is JSON, which no pickle, signed or compressed payload is.

    >>> is_json('{"beta":true}'), is_json("gASVCQAAAAAAAACMBWhlbGxvlC4=")
    (True, False)

    """
    try:
        json.loads(payload)
    except Exception:
        return False  # RecursionError too, and whatever else a hostile text may bring about
    return True


def shown(payload: str, allow: Iterable[type | str] = (), longest: int = 100) -> str:
    """Return what the admin shows of a payload. It never raises.

    >>> shown('{"beta":true}')
    '{"beta":true}'
    >>> shown("gASVCQAAAAAAAACMBWhlbGxvlC4=")
    "'hello'"
    >>> shown("gASVHgAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu")
    'pickle, 42 bytes, of posix.system (not shown)'

    :param payload: what stands in the column
    :param allow: the classes, or their names, that a pickle may load
    :param longest: how many characters to show

    """
    try:
        return _shortened(_shown(payload, allow), longest)
    except Exception:
        return f"{len(payload)} characters (not shown)"


def _shown(payload: str, allow: Iterable[type | str]) -> str:
    if is_json(payload):
        return payload
    data = _decoded(payload)
    size = f"{len(data):,} bytes"
    if data[:1] == b"\x80":
        return _pickle_shown(data, size, allow)
    if data[:1] == b"\x01" and len(data) > 32:
        return f"signed, {size} (not shown)"
    if data[:1] in (b"\x02", b"\x03"):
        return f"compressed, {size} (not shown)"
    return payload


def _decoded(payload: str) -> bytes:
    """Return the bytes that a payload holds in base64; none if it does not."""
    try:
        # What 0.9 wrote has line breaks.
        return base64.b64decode("".join(payload.split()).encode("ascii"), validate=True)
    except ValueError:
        return b""


def _pickle_shown(data: bytes, size: str, allow: Iterable[type | str]) -> str:
    if len(data) > LARGEST:
        return f"pickle, {size} (not shown)"
    allowed = {kind if isinstance(kind, str) else _name(kind) for kind in allow}
    try:
        names, repeats = _scanned(data)
        refused = next((name for name in names if name not in allowed | _CONTAINERS), None)
        if refused is not None:
            return f"pickle, {size}, of {_shortened(refused, 60)} (not shown)"
        if repeats > REPEATS:
            return f"pickle, {size} (not shown)"
        return _repr(_Allowing(allow).decode(data), LEVELS)
    except Exception:
        return f"pickle, {size}, damaged or refused (not shown)"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class _Allowing(RestrictedPickleEncoding):
    """Allows no `bytearray` either, by whose name a pickle can ask for gigabytes.

    Those of protocol 5, which is what the encodings write, have an opcode of their own.

    """

    def __init__(self, allow: Iterable[type | str]) -> None:
        super().__init__(allow)
        if _name(bytearray) not in self._names:
            del self._allowed[_name(bytearray)]


#: What is allowed in any case, with the names of Python 2.
_CONTAINERS = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("complex", "frozenset", "set")
)


def _scanned(data: bytes) -> tuple[list[str], int]:
    """Return the names that a pickle asks for, and how often it uses a container again.

    Read from the opcodes: nothing is loaded. What a name is made of in a roundabout way is not
    seen here, and refused by the encoding.

    """
    names: list[str] = []
    texts: list[str] = []  # as they were pushed: STACK_GLOBAL takes the last two
    memo: dict[Any, str | bytes | None] = {}
    top: str | bytes | None = None  # of the stack, where it is not, or holds, a container
    repeats = 0
    for opcode, argument, _ in pickletools.genops(data):
        kind = opcode.name
        if kind == "MEMOIZE" or "PUT" in kind:
            memo[len(memo) if argument is None else argument] = top
            continue
        if "GET" in kind or kind == "DUP":
            top = top if kind == "DUP" else memo.get(argument)
            repeats += top is None
        elif kind in ("GLOBAL", "INST", "STACK_GLOBAL"):
            parts = texts[-2:] if kind == "STACK_GLOBAL" else str(argument).split(" ")
            names.append(".".join(parts))
            top = None if kind == "INST" else names[-1]
        else:
            top = argument if isinstance(argument, (str, bytes)) else None
        if isinstance(top, str):
            texts.append(top)
    return names, repeats


def _repr(value: Any, levels: int) -> str:
    """Return `repr(value)`, of no more items than are shown, whatever there is."""
    kind = type(value)
    if kind in (str, bytes, bytearray):
        return repr(value[:1000])
    if kind is int and value.bit_length() > 4096:
        return f"an int of {value.bit_length():,} bits"
    show = _SHOWN.get(kind)
    if show is None:
        return repr(value)
    if levels == 0 and value:
        return "..."
    return show(value, levels - 1)


def _items(values: Iterable[Any], length: int, levels: int) -> str:
    parts: Iterator[str] = (_repr(value, levels) for value in islice(values, ITEMS))
    return ", ".join([*parts, *(["..."] if length > ITEMS else [])])


def _list(values: list[Any], levels: int) -> str:
    return f"[{_items(values, len(values), levels)}]"


def _tuple(values: tuple[Any, ...], levels: int) -> str:
    return f"({_items(values, len(values), levels)}{',' if len(values) == 1 else ''})"


def _set(values: set[Any], levels: int) -> str:
    return f"{{{_items(values, len(values), levels)}}}" if values else "set()"


def _frozenset(values: frozenset[Any], levels: int) -> str:
    return f"frozenset({{{_items(values, len(values), levels)}}})" if values else "frozenset()"


def _dict(values: Mapping[Any, Any], levels: int) -> str:
    parts = [
        f"{_repr(key, levels)}: {_repr(value, levels)}"
        for key, value in islice(values.items(), ITEMS)
    ]
    return "{" + ", ".join([*parts, *(["..."] if len(values) > ITEMS else [])]) + "}"


_SHOWN: dict[type, Callable[[Any, int], str]] = {
    dict: _dict,
    frozenset: _frozenset,
    list: _list,
    set: _set,
    tuple: _tuple,
}


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
