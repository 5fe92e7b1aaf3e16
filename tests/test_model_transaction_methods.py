"""What every method of a dict does in a transaction: docs/internals.rst, rule 3.4."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from durabledict import MISSING, DecodingError, JSONEncoding
from durabledict.testing import override

from .transactions import (
    ALIASES,
    OnPurposeError,
    OtherThread,
    assert_nothing_is_left,
    database,
    fill,
    filled_with,
    opened,
    other_threads,
)

pytestmark = pytest.mark.usefixtures("django_project")

filled = partial(filled_with, {"a": 1, "b": 2})


# -- everything that a dict does ------------------------------------------------------------------


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("autosync", [True, False, 30.0])
def test_every_read_and_write(alias: str, autosync: Any, thread: OtherThread) -> None:
    from django.db import transaction

    d = filled(alias, autosync)
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        d["c"] = 3
        assert d["c"] == d.get("c") == 3
        assert "c" in d
        assert len(d) == 3
        assert list(d) == list(d.keys()) == ["a", "b", "c"] == list(reversed(list(reversed(d))))
        assert list(d.items()) == [("a", 1), ("b", 2), ("c", 3)]
        assert list(d.values()) == [1, 2, 3]
        assert d.copy() == d == {"a": 1, "b": 2, "c": 3} == dict(d)
        assert d | {"d": 4} == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert d.setdefault("c", 9) == 3
        assert d.setdefault("d", 4) == 4
        assert d.popitem() == ("d", 4)
        assert d.pop("c") == 3
        assert d.pop("c", None) is None
        with pytest.raises(KeyError):
            d["c"]
        with pytest.raises(KeyError):
            del d["c"]
        assert d.get("c") is None
        assert d.compare_and_set("a", 1, 5)
        assert not d.compare_and_set("a", 1, 6)
        with override(d, b=7):
            assert d["b"] == 7
        d["e"] = [1]
        with d.edit("e") as value:
            value.append(2)
        assert d == {"a": 5, "b": 2, "e": [1, 2]}
        d.clear()
        assert not d
        assert list(d) == []
        with pytest.raises(KeyError):
            d.popitem()
        d |= {"z": 26}
        assert d == {"z": 26} == database(alias)
        assert thread.call(d.copy) == {"a": 1, "b": 2}
        raise OnPurposeError
    assert d == {"a": 1, "b": 2}
    assert_nothing_is_left(d)


@pytest.mark.parametrize("autosync", [True, False])
def test_an_override_in_a_block_with_writes(autosync: bool, thread: OtherThread) -> None:
    from django.db import transaction

    d = filled(autosync=autosync)
    with transaction.atomic():
        d["a"] = 3
        with override(d, a=10, c=12, b=MISSING):
            assert d == {"a": 10, "c": 12}
            d["b"] = 4
            d["d"] = 5
            assert d == {"a": 10, "c": 12, "d": 5}
            assert database("default") == {"a": 3, "b": 4, "d": 5}
            assert thread.call(d.copy) == {"a": 10, "c": 12}
        assert d == {"a": 3, "b": 4, "d": 5}
    assert d == {"a": 3, "b": 4, "d": 5}
    with override(d, a=10):
        with transaction.atomic():
            d["a"] = 6
            assert d["a"] == 10
        assert d["a"] == 10
    assert d == {"a": 6, "b": 4, "d": 5}
    assert_nothing_is_left(d)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("autosync", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_values_that_cannot_be_decoded(
    alias: str, autosync: bool, before: bool, thread: OtherThread
) -> None:
    from django.db import transaction

    from .djangoapp.models import Plain

    def spoil() -> None:
        row = Plain.objects.using(alias).get(key="a")
        row.value = "no JSON"
        row.save(using=alias)
        d.sync()

    d = filled(alias, autosync)
    if before:
        spoil()
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        if not before:
            spoil()
            assert thread.call(d.copy) == {"a": 1, "b": 2}
        d["c"] = 3
        reads: list[Callable[[], object]] = [
            lambda: d["a"],
            lambda: d.get("a"),
            lambda: "a" in d,
            lambda: d.pop("a"),
        ]
        for read in reads:
            with pytest.raises(DecodingError, match="'a'"):
                read()
        assert d == {"b": 2, "c": 3}
        assert len(d) == 2
        d["a"] = 5
        assert d == {"a": 5, "b": 2, "c": 3}
        raise OnPurposeError
    if before:
        with pytest.raises(DecodingError):
            d["a"]
        d["a"] = 1
    assert d == {"a": 1, "b": 2}
    assert_nothing_is_left(d)


@pytest.mark.parametrize("filled_before", [True, False])
def test_a_manual_dict_beside_a_save_past_it(filled_before: bool) -> None:
    from django.db import transaction

    from .djangoapp.models import Plain

    fill(opened("default"), {"a": 1})
    d = opened("default", False)
    if filled_before:
        assert d == {"a": 1}
    with transaction.atomic():
        Plain.objects.create(key="b", value="2")
        # What it has, until it is synced; or what there is, when it has nothing yet.
        assert d == ({"a": 1} if filled_before else {"a": 1, "b": 2})
        assert d.get("a") == 1
        d.sync()
        assert d == {"a": 1, "b": 2}
        d["c"] = 3
        assert d == {"a": 1, "b": 2, "c": 3}
        transaction.set_rollback(True)
    assert d == {"a": 1}
    assert_nothing_is_left(d)


@pytest.mark.parametrize("autosync", [True, False])
def test_instances(autosync: bool, thread: OtherThread) -> None:
    from django.db import transaction

    from .djangoapp.models import Plain

    fill(opened("default"), {"a": 1, "b": 2})
    d = opened("default", autosync, return_instances=True)
    d.sync()

    def values(source: Any) -> dict[str, Any]:
        rows = source.copy()
        assert {type(row) for row in rows.values()} <= {Plain}
        return {key: JSONEncoding.decode(row.value) for key, row in rows.items()}

    with transaction.atomic():
        d["a"] = 3
        assert values(d) == {"a": 3, "b": 2}
        d.compute("a", lambda n: n + 1)
        assert values(d) == {"a": 4, "b": 2}
        d.setdefault("c", 5)
        d.update(b=6)
        assert values(d) == {**database("default")}
        assert thread.call(values, d) == {"a": 1, "b": 2}
    assert values(d) == database("default")
    d.return_instances = False
    assert d == database("default")
    assert_nothing_is_left(d)


def test_a_dict_that_is_closed_in_the_block() -> None:
    from django.db import transaction

    d = filled()
    with transaction.atomic():
        d["a"] = 3
        d.close()
        assert d["a"] in (1, 3)
        with pytest.raises(RuntimeError, match="closed"):
            d["a"] = 4
    assert database("default")["a"] == 3
    other = opened("default")
    assert other["a"] == 3
    assert_nothing_is_left(other)


def test_many_threads_open_blocks_while_others_look_for_ended_ones() -> None:
    from django.db import transaction

    d = filled()
    done = threading.Event()

    def write(me: int) -> None:
        for number in range(40):
            with transaction.atomic():
                d[f"of {me}"] = number

    def read() -> int:
        reads = 0
        while not done.is_set():
            d.get("a")
            reads += 1
        return reads

    with ExitStack() as stack:
        writers = stack.enter_context(other_threads(3))
        readers = stack.enter_context(other_threads(2))
        reading = [one.start(read) for one in readers]
        writing = [one.start(write, me) for me, one in enumerate(writers)]
        try:
            for one in writing:
                one.result(30)
        finally:
            done.set()
        assert all(one.result(30) for one in reading)
    assert d == {"a": 1, "b": 2, "of 0": 39, "of 1": 39, "of 2": 39}
    assert_nothing_is_left(d)
