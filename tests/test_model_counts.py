"""How many SQL statements and requests to memcached a dict makes: both servers count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.djangocounts import Counts, counted
from durabledict import JSONEncoding, ModelDict

from .memcachedserver import MemcachedServer

if TYPE_CHECKING:
    from durabledict.ext.django import SettingsDict

_keyspaces = map("counted {}".format, count())


@pytest.fixture(autouse=True)
def project(django_project: None) -> Iterator[None]:
    yield
    from durabledict.ext.django.models import Setting

    Setting.objects.all()._raw_delete("default")


@pytest.fixture
def took(memcached_server: MemcachedServer) -> Callable[[Callable[[], object]], Counts]:
    return lambda action: counted(memcached_server, action)


Took = Callable[[Callable[[], object]], Counts]


def entries(number: int) -> dict[str, int]:
    return {f"setting.{index}": index for index in range(number)}


def filled(number: int, **options: Any) -> tuple[SettingsDict[str, Any], SettingsDict[str, Any]]:
    """Return a dict of so many entries, and another one that writes to it; both have synced."""
    from durabledict.ext.django import SettingsDict

    keyspace = next(_keyspaces)
    reader: SettingsDict[str, Any] = SettingsDict(keyspace, **options)
    writer: SettingsDict[str, Any] = SettingsDict(keyspace, autosync=False)
    writer.update(entries(number))
    reader.sync()
    return reader, writer


@pytest.mark.parametrize("number", [10, 1_000])
def test_a_strict_read_is_one_get_and_no_sql(took: Took, number: int) -> None:
    d, _ = filled(number)
    assert took(lambda: d["setting.5"]) == Counts(0, 1, 0)
    assert took(lambda: d.get("setting.5")) == Counts(0, 1, 0)
    assert took(lambda: "setting.5" in d) == Counts(0, 1, 0)


def test_a_manual_read_is_nothing(took: Took) -> None:
    d, _ = filled(10, autosync=False)
    assert took(lambda: d["setting.5"]) == Counts(0, 0, 0)


@pytest.mark.parametrize("number", [10, 1_000])
def test_a_sync_when_nothing_changed_is_one_get_and_no_sql(took: Took, number: int) -> None:
    d, _ = filled(number, autosync=False)
    assert took(d.sync) == Counts(0, 1, 0)


@pytest.mark.parametrize("number", [10, 1_000])
def test_a_sync_after_a_change_is_one_get_and_one_select(took: Took, number: int) -> None:
    d, writer = filled(number, autosync=False)
    writer["setting.5"] = "changed"
    del writer["setting.6"]
    assert took(d.sync) == Counts(1, 1, 0)
    assert (d["setting.5"], "setting.6" in d) == ("changed", False)


def test_a_strict_read_after_a_change_is_one_get_and_one_select(took: Took) -> None:
    d, writer = filled(10)
    writer["setting.5"] = "changed"
    assert took(lambda: d["setting.5"]) == Counts(1, 1, 0)


@pytest.mark.parametrize("model", ["Plain", "Binary", "Document"])
@pytest.mark.parametrize("encoding", [None, JSONEncoding])
def test_a_write_is_two_statements_over_every_column(took: Took, model: str, encoding: Any) -> None:
    from tests.djangoapp import models

    kind = getattr(models, model)
    column = "number" if model == "Document" else "key"
    d: ModelDict[Any, Any] = ModelDict(kind.objects, key_col=column, encoding=encoding)
    try:
        d[1] = {"a": 1}
        for value in ({"a": 2}, None, "text", 1.5):
            assert took(lambda value=value: d.__setitem__(1, value)).sql == 2  # type: ignore[misc]  # a lambda
            assert d[1] == value
    finally:
        kind.objects.all()._raw_delete("default")


@pytest.mark.parametrize("autosync", [True, False])
@pytest.mark.parametrize("number", [10, 1_000])
@pytest.mark.parametrize("key", ["setting.5", "new"])
def test_a_write_is_two_statements_and_two_requests(
    took: Took, key: str, number: int, autosync: bool
) -> None:
    d, _ = filled(number, autosync=autosync)
    assert took(lambda: d.__setitem__(key, "written")) == Counts(2, 0, 2)
    # It has brought the local copy up: the next read finds nothing new.
    assert took(lambda: d[key]) == Counts(0, int(autosync), 0)
    assert d[key] == "written"


@pytest.mark.parametrize("number", [10, 1_000])
def test_a_removal_is_two_statements_and_two_requests(took: Took, number: int) -> None:
    d, _ = filled(number, autosync=False)
    assert took(lambda: d.__delitem__("setting.5")) == Counts(2, 0, 2)
    assert "setting.5" not in d


@pytest.mark.parametrize("before", [10, 1_000])
def test_an_update_of_many_is_one_statement_and_two_requests(took: Took, before: int) -> None:
    d, _ = filled(before, autosync=False)
    assert took(lambda: d.update(dict.fromkeys(entries(1_000), "written"))) == Counts(1, 0, 2)
    assert d["setting.999"] == "written"


def test_writes_in_a_transaction_are_announced_once(took: Took) -> None:
    from django.db import transaction

    d, _ = filled(10, autosync=False)

    def write() -> None:
        with transaction.atomic():
            for key in ("setting.1", "setting.2", "setting.3"):
                d[key] = "written"

    assert took(write) == Counts(6, 0, 2)


def test_a_page_of_fifty_reads_is_one_get(took: Took) -> None:
    from django.core.signals import request_started

    d, writer = filled(50, autosync=False)

    def page() -> list[Any]:
        request_started.send(sender=None)
        return [d[f"setting.{index}"] for index in range(50)]

    request_started.connect(d.sync)
    try:
        assert took(page) == Counts(0, 1, 0)
        writer["setting.5"] = "changed"
        assert took(page) == Counts(1, 1, 0)
        assert page()[5] == "changed"
    finally:
        request_started.disconnect(d.sync)
