"""What is read in a transaction, and what becomes of it: docs/internals.rst, rule 3.4."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from .servers import PATIENCE, free_port
from .transactions import (
    ALIASES,
    OnPurposeError,
    OtherProcess,
    OtherThread,
    assert_nothing_is_left,
    database,
    fill,
    filled_with,
    look,
    opened,
    other_threads,
)

pytestmark = pytest.mark.usefixtures("django_project")

filled = partial(filled_with, {"a": 1, "b": 2})


def selects(alias: str, act: Callable[[], object]) -> int:
    """Return how many SELECTs of rows `act` sends."""
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connections[alias]) as captured:
        act()
    return sum(query["sql"].startswith("SELECT") for query in captured.captured_queries)


def raw(alias: str, sql: str, *arguments: Any) -> None:
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(sql, arguments)


def snapshot(alias: str) -> None:
    """Begin to read: from now on REPEATABLE READ and SQLite show this state."""
    raw(alias, "SELECT count(*) FROM djangoapp_document")


def change(alias: str, value: int, touch: bool = False) -> None:
    """Write past every dict, without a signal."""
    raw(alias, "UPDATE djangoapp_plain SET value = %s WHERE key = 'a'", str(value))
    if touch:
        opened(alias).touch_last_updated()


# -- how much is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("known", [True, False])
def test_fifty_reads_are_at_most_one_select(alias: str, known: bool, thread: OtherThread) -> None:
    from django.db import transaction

    d = filled(alias)
    if not known:
        thread.call(opened(alias).touch_last_updated)
    with transaction.atomic(using=alias):
        assert selects(alias, lambda: [d["a"] for _ in range(50)]) == (0 if known else 1)
        assert selects(alias, lambda: [d.copy() for _ in range(50)]) == 0
        d["a"] = 3
        # Where the copy is that of this transaction, so is what it wrote.
        assert selects(alias, lambda: [d["a"] for _ in range(50)]) == 0
        thread.call(opened(alias).touch_last_updated)
        assert selects(alias, lambda: [d["a"] for _ in range(50)]) == 1
    assert d == {"a": 3, "b": 2}
    assert_nothing_is_left(d)


@pytest.mark.parametrize("alias", ALIASES)
def test_a_manual_dict_asks_nothing(alias: str, thread: OtherThread) -> None:
    from django.db import transaction

    d = filled(alias, False)
    thread.call(opened(alias).touch_last_updated)
    with transaction.atomic(using=alias):
        assert selects(alias, lambda: [d["a"] for _ in range(50)]) == 0
        d["a"] = 3
        comparisons = d.stats.comparisons
        assert selects(alias, lambda: [d["a"] for _ in range(50)]) == 0
        assert d.stats.comparisons == comparisons
        assert d == {"a": 3, "b": 2}


@pytest.mark.parametrize("alias", ALIASES)
def test_a_bounded_dict_asks_once_in_a_while(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import transaction

    from durabledict import reading

    now = [1000.0]
    monkeypatch.setattr(reading, "monotonic", lambda: now[0])
    d = filled(alias, 5.0)
    with transaction.atomic(using=alias):
        d["a"] = 3
        d["a"]
        comparisons = d.stats.comparisons
        assert [d["a"] for _ in range(50)] == [3] * 50
        assert d.stats.comparisons == comparisons
        now[0] += 5.0
        assert [d["a"] for _ in range(50)] == [3] * 50
        assert d.stats.comparisons == comparisons + 1


@pytest.mark.parametrize("alias", ALIASES)
def test_the_own_writer_is_none_to_be_waited_for(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 3.1 looks each second while another writer is at work."""
    from django.db import transaction

    from durabledict import reading

    now = [1000.0]
    monkeypatch.setattr(reading, "monotonic", lambda: now[0])
    d = filled(alias)
    with transaction.atomic(using=alias):
        d["a"] = 3
        assert d["a"] == 3
        for _ in range(5):
            now[0] += 2.0
            assert selects(alias, lambda: d["a"]) == 0
    assert selects(alias, lambda: d["a"]) == 0


@pytest.mark.parametrize("alias", ALIASES)
def test_what_is_committed_is_merged_without_sql(alias: str, thread: OtherThread) -> None:
    from django.db import transaction

    d = filled(alias)
    with transaction.atomic(using=alias):
        d["a"] = 3
        d.update(c=4)
        del d["b"]
    assert selects(alias, lambda: d.copy()) == 0
    assert d == {"a": 3, "c": 4}
    reloads = d.stats.reloads
    assert thread.call(d.copy) == {"a": 3, "c": 4}
    assert d.stats.reloads == reloads


# -- what is shared -------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["repeatable", "sqlite"])
@pytest.mark.parametrize("first", [True, False])
def test_a_load_from_an_older_snapshot_is_not_shared(
    alias: str, first: bool, thread: OtherThread, process: OtherProcess
) -> None:
    from django.db import transaction

    wal = alias == "sqlite"
    if wal:  # else nobody writes while somebody reads
        raw(alias, "PRAGMA journal_mode = WAL")
    try:
        d = opened(alias) if first else filled(alias)
        other = filled(alias)
        with transaction.atomic(using=alias):
            snapshot(alias)
            thread.call(change, alias, 7, True)
            assert d["a"] == 1
            assert thread.call(d.get, "a") == 7 == process.call(look, alias)["a"]
            assert d["a"] in (1, 7)
            assert other["a"] in (1, 7)
        assert d["a"] == 7 == other["a"]
        assert_nothing_is_left(d)
    finally:
        if wal:
            thread.call(raw, alias, "SELECT 1")
            process.call(_close, alias)
            thread.call(_close, alias)
            _close(alias)
            raw(alias, "PRAGMA journal_mode = DELETE")


def _close(alias: str) -> None:
    from django.db import connections

    connections[alias].close()


def test_read_committed_without_writes_shares_its_load(thread: OtherThread) -> None:
    from django.db import transaction

    d = filled()
    thread.call(change, "default", 7, True)
    with transaction.atomic():
        snapshot("default")
        assert d["a"] == 7
        reloads = d.stats.reloads
        assert thread.call(d.get, "a") == 7
        assert d.stats.reloads == reloads
        assert d._transactions == 0


@pytest.mark.parametrize("alias", ALIASES)
def test_with_a_write_that_no_signal_told_of_a_load_is_not_shared(
    alias: str, thread: OtherThread
) -> None:
    from django.db import transaction

    d = opened(alias)
    fill(opened(alias), {"a": 1})
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        change(alias, 9)
        assert d["a"] == 9  # the first load
        assert thread.call(d.get, "a") == 1
        raise OnPurposeError
    assert d["a"] == 1
    assert_nothing_is_left(d)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("autosync", [True, False])
def test_without_a_cache_the_same_holds(
    alias: str, autosync: bool, thread: OtherThread, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import transaction
    from pymemcache.client.base import Client

    fill(opened(alias), {"a": 1})
    client = Client(("127.0.0.1", free_port()))
    d = opened(alias, autosync, cache=client, on_outage="stale")
    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        change(alias, 9)
        assert [d["a"], d["a"], len(d)] == [9, 9, 1]
        assert thread.call(lambda: [d["a"], d["a"]]) == [1, 1]
        assert d["a"] == 9
        raise OnPurposeError
    assert d["a"] == 1
    assert d._transactions == 0


# -- several dicts, several databases -------------------------------------------------------------


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("inside_first", [True, False])
def test_two_dicts_on_one_table(alias: str, inside_first: bool, thread: OtherThread) -> None:
    from django.db import transaction

    one, two = filled(alias), filled(alias)
    manual = opened(alias, False)
    assert one == two == manual
    writes: list[Callable[[], object]] = [
        lambda: one.__setitem__("a", 3),  # with a signal
        lambda: one.update(a=4),  # without
        lambda: one.pop("a"),
        lambda: one.compute("a", lambda n: n + 5, default=0),
    ]
    with transaction.atomic(using=alias):
        for write in writes:
            if inside_first:
                two.get("a")
            write()
            assert two == one == database(alias)
            assert thread.call(two.copy) == thread.call(one.copy) == {"a": 1, "b": 2}
            assert manual == {"a": 1, "b": 2}
        manual.sync()
        assert manual == one
        two["c"] = 7
        assert one == {"a": 5, "b": 2, "c": 7}
    manual.sync()
    assert one == two == manual == {"a": 5, "b": 2, "c": 7}
    for d in (one, two, manual):
        assert_nothing_is_left(d)


def test_two_keyspaces_of_one_table(process: OtherProcess) -> None:
    from django.db import transaction

    from durabledict.ext.django import SettingsDict

    one, two = SettingsDict[str, Any]("one"), SettingsDict[str, Any]("two")
    one.replace_all({"a": 1})
    two.replace_all({"a": 2})
    with transaction.atomic():
        one["a"] = 3
        assert two == {"a": 2}
        assert selects("default", lambda: (two["a"], one["a"])) == 0
        assert two._transactions == 0
        two["b"] = 4
        assert (one, two) == ({"a": 3}, {"a": 2, "b": 4})
        with pytest.raises(OnPurposeError), transaction.atomic():
            two["b"] = 5
            raise OnPurposeError
        assert (one, two) == ({"a": 3}, {"a": 2, "b": 4})
    assert (one, two) == ({"a": 3}, {"a": 2, "b": 4})
    assert_nothing_is_left(one)
    assert_nothing_is_left(two)


def test_transactions_on_two_databases_at_once(thread: OtherThread) -> None:
    from django.db import transaction

    here, there = filled("default"), filled("sqlite")
    for outer, inner in ((here, there), (there, here)):
        with transaction.atomic(using=outer._alias):
            outer["a"] = 3
            with pytest.raises(OnPurposeError), transaction.atomic(using=inner._alias):
                inner["a"] = 4
                assert (outer["a"], inner["a"]) == (3, 4)
                assert thread.call(lambda: (here["a"], there["a"])) == (1, 1)
                raise OnPurposeError
            assert (outer["a"], inner["a"]) == (3, 1)
            assert thread.call(lambda: (here["a"], there["a"])) == (1, 1)
        assert (outer["a"], inner["a"]) == (3, 1)
        outer["a"] = 1
        assert_nothing_is_left(here)
        assert_nothing_is_left(there)


def test_a_durable_block() -> None:
    from django.db import transaction

    d = filled()
    with transaction.atomic(durable=True):
        d["a"] = 3
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
            pass
        with transaction.atomic(savepoint=False):
            d["b"] = 3
    assert d == {"a": 3, "b": 3}
    assert_nothing_is_left(d)


def test_threads_read_their_own_transactions(process: OtherProcess) -> None:
    from django.db import transaction

    d = filled()
    together = threading.Barrier(3)

    def act(me: int) -> list[Any]:
        seen = []
        with transaction.atomic():
            for number in range(10):
                together.wait(PATIENCE)
                d[f"of {me}"] = number
                together.wait(PATIENCE)
                seen.append((d.copy(), len(d), list(d)))
            together.wait(PATIENCE)
            if me == 2:
                transaction.set_rollback(True)
        return seen

    with other_threads(3) as threads:
        for me, one in enumerate([one.start(act, me) for me, one in enumerate(threads)]):
            for number, seen in enumerate(one.result(2 * PATIENCE)):
                expected = {"a": 1, "b": 2, f"of {me}": number}
                assert seen == (expected, 3, list(expected))
    assert d == {"a": 1, "b": 2, "of 0": 9, "of 1": 9} == process.call(look, "default")
    assert_nothing_is_left(d)
