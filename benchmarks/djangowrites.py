"""What writes to a `SettingsDict` and a `ModelDict` cost, beside Django's own."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from durabledict import ModelDict

from .djangocounts import Counted, counted
from .djangoproject import Project
from .measure import Statement, compare
from .reads import entries
from .tables import Row
from .writes import in_random_order, new_values

__all__ = ["django_writes", "write_counts"]

COUNT = 10_000

# Django has no upsert of one row; what it offers in its place.
ONE_BY_HAND = "rows.update_or_create(key=next(k), defaults={'value': dumps(next(v))})"

MANY_BY_HAND = """
payloads = {key: dumps(value) for key, value in batch.items()}
rows.bulk_create(
    [Model(key=key, value=payload) for key, payload in payloads.items()],
    update_conflicts=True,
    unique_fields=["key"],
    update_fields=["value"],
)
written = {key: loads(payload) for key, payload in payloads.items()}
"""


def django_writes(project: Project) -> Iterator[Row]:
    """Measure single writes, for information, and one of many entries."""
    yield from project.beside_both(_single)
    yield from project.beside_both(_updates)


def _single() -> Iterator[Row]:
    from .djangomodels import Binary, BinaryByHand

    for number in (100, COUNT):
        held = entries(number)
        rows = BinaryByHand._default_manager
        d = ModelDict[str, str](Binary)
        d.replace_all(held)
        rows.all().delete()
        rows.bulk_create(
            [BinaryByHand(key=key, value=pickle.dumps(value)) for key, value in held.items()]
        )
        _clear_dead_rows()
        measured = compare(
            Statement(
                ONE_BY_HAND, rows=rows, k=in_random_order(held), v=new_values(), dumps=pickle.dumps
            ),
            Statement("d[next(k)] = next(v)", d=d, k=in_random_order(held), v=new_values()),
            pick=median,
        )
        yield Row(f"d[k] = v, {number:,} rows", "update_or_create", measured)


def _updates() -> Iterator[Row]:
    from .djangomodels import Binary, BinaryByHand

    batches = (dict.fromkeys(entries(COUNT), f"value {turn}") for turn in count())
    d = ModelDict[str, str](Binary)
    untimed = "clear(); batch = next(batches)"
    names: dict[str, Any] = {"batches": batches, "clear": _clear_dead_rows}
    measured = compare(
        Statement(
            MANY_BY_HAND.strip(),
            untimed=untimed,
            **names,
            Model=BinaryByHand,
            rows=BinaryByHand._default_manager,
            dumps=pickle.dumps,
            loads=pickle.loads,
        ),
        Statement("d.update(batch)", untimed=untimed, **names, d=d),
        rounds=15,
        pick=median,
    )
    yield Row(f"update() with {COUNT:,}", "bulk_create, dumps, loads", measured, 1.5)


def _clear_dead_rows() -> None:
    """Make what earlier writes left behind cost none of those that follow."""
    from django.db import connection

    from .djangomodels import Binary, BinaryByHand

    with connection.cursor() as cursor:
        for model in (Binary, BinaryByHand):
            cursor.execute(f"VACUUM {connection.ops.quote_name(model._meta.db_table)}")


def write_counts(project: Project) -> Iterator[Counted]:
    """Count what they take, of few rows and of many."""
    from durabledict.ext.django import SettingsDict

    for number in (10, COUNT):
        d = SettingsDict[str, str](f"counted writes {number}")
        d.update(entries(number))
        for what, key in (("an existing key", "setting.5"), ("a new key", "new")):
            took = counted(project.memcached, partial(d.__setitem__, key, "written"))
            yield Counted(f"d[k] = v, {what}, {number:,} rows", took, sql=2, cache=2)
    took = counted(project.memcached, lambda: d.update(entries(COUNT)))
    yield Counted(f"update() with {COUNT:,}", took, sql=1, cache=2)
