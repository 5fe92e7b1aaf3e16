"""What reads of the local copy cost, beside the same reads of a dict."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from durabledict import MemoryDict, SqliteDict

from .measure import Statement, compare
from .tables import Row

__all__ = ["entries", "reads"]


class Plain(dict[str, str]):
    """What a subclass costs that adds nothing: the interpreter is faster with exact dicts."""


def entries(count: int) -> dict[str, str]:
    """Return so many entries, as settings have them: short texts."""
    return {f"setting.{number}": f"value {number}" for number in range(count)}


def reads(folder: str) -> Iterator[Row]:
    """Measure all reads; every row but those for information has a limit."""
    yield from _single_reads(folder)
    yield from _iteration(folder)
    yield from _copies(folder)


def _filled(folder: str, count: int, autosync: bool | float) -> SqliteDict[str, str]:
    path = os.path.join(folder, f"reads-{count}-{autosync}.sqlite")
    d: SqliteDict[str, str] = SqliteDict(path, autosync=autosync)
    d.update(entries(count))
    return d


def _single_reads(folder: str) -> Iterator[Row]:
    plain = Plain()
    plain.update(entries(1_000))
    for autosync, limit, sources in (
        (False, 1.1, ("d[k]", "d.get(k)", "k in d", "len(d)")),
        (1.0, 5.0, ("d[k]", "d.get(k)", "k in d")),
    ):
        with _filled(folder, 1_000, autosync) as d:
            for source in sources:
                yield Row(
                    f"{source}, autosync={autosync}",
                    "empty subclass of dict",
                    compare(
                        Statement(source, unroll=10, d=plain, k="setting.500"),
                        Statement(source, unroll=10, d=d, k="setting.500"),
                        rounds=40,
                    ),
                    limit,
                )


def _iteration(folder: str) -> Iterator[Row]:
    plain = entries(10_000)
    with _filled(folder, 10_000, False) as d:
        for what, source, limit in (
            ("iterate over 10,000 keys", "for k in d: pass", 1.5),
            ("iterate over 10,000 items", "for k, v in d.items(): pass", 2.2),
        ):
            measured = compare(Statement(source, d=plain), Statement(source, d=d))
            yield Row(what, "dict", measured, limit)
    # What an iteration may reuse of the one before it is gone after a write.
    memory: MemoryDict[str, str] = MemoryDict(False)
    memory.update(plain)
    for what, source in (
        ("10,000 keys, after a write", "for k in d: pass"),
        ("10,000 items, after a write", "for k, v in d.items(): pass"),
    ):
        measured = compare(
            Statement(source, d=plain, untimed="d['setting.1'] = ''"),
            Statement(source, d=memory, untimed="d['setting.1'] = ''"),
        )
        yield Row(what, "dict", measured)


def _copies(folder: str) -> Iterator[Row]:
    plain = entries(1_000)
    with _filled(folder, 1_000, False) as d:
        measured = compare(Statement("d.copy()", d=plain), Statement("d.copy()", d=d))
        yield Row("copy() of 1,000", "dict", measured, 3.0, wrong=_miscounted(folder))
        measured = compare(Statement("dict(d)", d=plain), Statement("dict(d)", d=d))
        yield Row("dict(d) of 1,000, autosync=False", "dict", measured)
    # The form that stays fast is a second table, which is kept only while copies are taken.
    memory: MemoryDict[str, str] = MemoryDict(False)
    memory.update(plain)
    yield Row(
        "copy() of 1,000, after two writes",
        "dict",
        compare(
            Statement("d.copy()", d=plain, untimed="d['setting.1'] = ''; d['setting.1'] = ''"),
            Statement("d.copy()", d=memory, untimed="d['setting.1'] = ''; d['setting.1'] = ''"),
        ),
    )
    with _filled(folder, 1_000, True) as strict:
        measured = compare(Statement("d.copy()", d=plain), Statement("d.copy()", d=strict))
        yield Row("copy() of 1,000, autosync=True", "dict", measured)
        measured = compare(Statement("dict(d)", d=plain), Statement("dict(d)", d=strict), rounds=5)
        yield Row("dict(d) of 1,000, autosync=True", "dict", measured)


def _miscounted(folder: str) -> str:
    """Return what is wrong with the number of comparisons that a copy costs, or nothing."""
    with _filled(folder, 1_000, True) as strict:
        before = strict.stats.comparisons
        strict.copy()
        made: Any = strict.stats.comparisons - before
    return "" if made == 1 else f"copy() made {made} comparisons, not 1"
