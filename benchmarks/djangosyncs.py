"""What a sync of many rows costs after a change: one SELECT, and the decoding."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from statistics import median
from typing import Any

from durabledict import DurableDict, ModelDict

from .djangocounts import Counted, counted
from .djangoproject import Project
from .measure import Comparison, Statement, compare
from .reads import entries
from .tables import Row
from .writes import in_random_order, new_values

__all__ = ["django_syncs", "sync_counts"]

COUNT = 10_000

# What a user would write; for a column of text with the base64 that it needs.
BINARY = "held = {k: loads(v) for k, v in rows.values_list('key', 'value')}"
TEXT = "held = {k: loads(unpack(v)) for k, v in rows.values_list('key', 'value')}"


def django_syncs(project: Project) -> Iterator[Row]:
    """Measure a sync of 10,000 rows, one of which has changed, beside a loop by hand."""

    def in_postgres() -> Iterator[Row]:
        yield _over_text("default", 1.3)
        yield _over_binary("default", 1.3)

    yield from project.beside_both(in_postgres)
    yield _over_text("sqlite", None)
    yield _over_binary("sqlite", None)


def _over_text(using: str, limit: float | None) -> Row:
    from durabledict.ext.django import SettingsDict
    from durabledict.ext.django.models import Setting

    reader, writer = (
        SettingsDict[str, str]("syncs", autosync=False, using=using) for _ in range(2)
    )
    rows = Setting.objects.using(using).filter(keyspace="syncs")
    measured = _beside(reader, writer, TEXT, rows)
    what = f"sync(), 1 of {COUNT:,} changed" if using == "default" else "the same, SQLite"
    return Row(what, "values_list, base64, loads", measured, limit)


def _over_binary(using: str, limit: float | None) -> Row:
    from .djangomodels import Binary

    reader, writer = (ModelDict[str, str](Binary, autosync=False, using=using) for _ in range(2))
    measured = _beside(reader, writer, BINARY, Binary._default_manager.using(using))
    what = "the same, BinaryField" if using == "default" else "the same, SQLite, BinaryField"
    return Row(what, "values_list and loads", measured, limit)


def _beside(
    reader: DurableDict[str, str], writer: DurableDict[str, str], by_hand: str, rows: Any
) -> Comparison:
    held = entries(COUNT)
    writer.update(held)
    reader.sync()
    names: dict[str, Any] = {"w": writer, "nk": in_random_order(held), "nv": new_values()}
    return compare(
        Statement(
            by_hand,
            # A write before each of both; and what was loaded before is gone.
            untimed="held = None; w[next(nk)] = next(nv)",
            **names,
            rows=rows,
            loads=pickle.loads,
            unpack=base64.b64decode,
        ),
        Statement("d.sync()", untimed="w[next(nk)] = next(nv)", **names, d=reader),
        rounds=15,
        # Some syncs in each round.
        round_seconds=0.1,
        pick=median,
    )


def sync_counts(project: Project) -> Iterator[Counted]:
    """Count what it takes."""
    from durabledict.ext.django import SettingsDict

    reader, writer = (SettingsDict[str, str]("syncs", autosync=False) for _ in range(2))
    writer.update(entries(COUNT))
    reader.sync()
    writer["setting.500"] = "changed"
    took = counted(project.memcached, reader.sync)
    yield Counted(f"sync() after a change, {COUNT:,} rows", took, sql=1, cache=1)
