"""What identifies an object: declared keys, names of records, lifetimes, cells."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from durabledict.errors import DecodingError
from durabledict.stores import NotIndexedError, ProcessMemoryStore, keys
from durabledict.stores.cells import (
    Record,
    is_marker,
    marker,
    pack_pointer,
    pack_record,
    pointer_of,
    record_of,
)
from durabledict.stores.keys import addresses_of, index_of, locate, matches
from durabledict.stores.lifetime import remaining
from durabledict.testing.things import Car, Thing


def test_names_are_readable_and_ascii() -> None:
    names = [address.name for address in addresses_of(Thing("a b", 1.5, "é/&="), False)]
    assert names == [
        "durabledict.testing.things.Thing/id=a%20b",
        "durabledict.testing.things.Thing/zone=~float:1.5&name=%C3%A9%2F%26%3D",
    ]


def test_addresses_of_a_polymorphic_object() -> None:
    found = [(address.klass.__name__, address.names) for address in addresses_of(Car("B"), True)]
    assert found == [
        ("Car", ("license_plate",)),
        ("Car", ("owner",)),
        ("Automobile", ("license_plate",)),
    ]


def test_a_tag_is_no_text() -> None:
    """A text that looks like the name of a number is another key."""
    assert locate(Thing, {"id": 1}).name != locate(Thing, {"id": "~int:1"}).name
    date = datetime(2020, 1, 2, tzinfo=timezone.utc)
    assert locate(Thing, {"id": date}).name != locate(Thing, {"id": f"!datetime:{date}"}).name


class Subclass(datetime):
    """As pandas and pendulum have them, with a text of its own."""

    def __str__(self) -> str:
        return "another"


def test_values_that_are_not_equal_have_different_names() -> None:
    digits = "0.1234567890123456789012345678901234567890"
    words = {locate(Thing, {"id": Decimal(digits + end)}).name for end in "123"}
    assert len(words) == 3
    with pytest.raises(TypeError, match="cannot be a key outside"):
        _ = locate(Thing, {"id": Decimal("NaN")}).name


def test_equal_values_have_one_name() -> None:
    moment = datetime(2020, 1, 2, 12, tzinfo=timezone.utc)
    east = moment.astimezone(timezone(timedelta(hours=9)))
    for equal in (
        (1, True, 1.0, Decimal(1), Decimal("1.00")),
        (2.25, Decimal("2.25"), Decimal("2.250")),
        (Decimal("0.1"), Decimal("0.10")),
        (Decimal("Infinity"), float("inf")),
        (datetime(2020, 1, 2, 12), Subclass(2020, 1, 2, 12)),  # noqa: DTZ001  # a key
        (moment, Subclass(2020, 1, 2, 12, tzinfo=timezone.utc)),
        (moment, east),
    ):
        assert len({locate(Thing, {"id": value}).name for value in equal}) == 1


@pytest.mark.parametrize("declared", ["id", 5, [], [()], [5], [("id", 5)], {"id"}])
def test_what_declares_no_keys_is_refused(declared: Any) -> None:
    klass = type("Wrong", (), {"__stockpyle_keys__": declared})
    with pytest.raises(TypeError, match=r"Wrong\.__stockpyle_keys__"):
        ProcessMemoryStore().get(klass, {"id": 1})


def test_a_tuple_of_keys_is_a_declaration_too() -> None:
    klass: Any = type("Right", (), {"__stockpyle_keys__": ("id", ["a", "b"])})
    assert index_of(klass).keys == (("id",), ("a", "b"))


def test_more_orders_than_are_remembered_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ORDERS", 0)
    klass: Any = type("Wide", (), {"__stockpyle_keys__": [("a", "b", "c")]})
    assert locate(klass, {"c": 3, "a": 1, "b": 2}).values == (1, 2, 3)


def test_a_class_is_not_kept_alive() -> None:
    klass: Any = type("Passing", (), {"__stockpyle_keys__": ["id"]})
    index_of(klass)
    gone = weakref.ref(klass)
    del klass
    gc.collect()
    assert gone() is None


def test_the_error_is_a_key_error_that_reads_well() -> None:
    with pytest.raises(NotIndexedError) as caught:
        locate(Thing, {"a": 1})
    assert str(caught.value) == "Thing is not indexed by 'a'; it is by 'id', ('zone', 'name')"
    with pytest.raises(TypeError, match="a class comes first"):
        locate(Thing(1), {"id": 1})  # type: ignore[arg-type]  # what is tested


def test_an_object_matches_only_with_all_it_is_asked_for() -> None:
    address = locate(Thing, {"zone": 1, "name": "x"})
    assert matches(Thing(1), address)
    assert not matches(Thing(1, name="y"), address)
    assert not matches(Car("B"), address)
    lacking = Thing(1)
    del lacking.name
    assert not matches(lacking, address)
    assert address.key == {"zone": 1, "name": "x"}
    assert address == locate(Thing, {"name": "x", "zone": 1})
    assert len({address, locate(Thing, {"name": "x", "zone": 1})}) == 1
    assert repr(address) == "Thing {'zone': 1, 'name': 'x'}"


@pytest.fixture
def _local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hours from UTC, and without a summer time that may begin meanwhile."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "<-0530>+05:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_local_time")
def test_a_moment_is_aware_or_local() -> None:
    aware = datetime.now(timezone.utc) + timedelta(hours=1)
    east = aware.astimezone(timezone(timedelta(hours=9)))
    naive = datetime.now() + timedelta(hours=1)  # noqa: DTZ005  # local time is what is tested
    for moment in (aware, east, naive):
        left = remaining(moment)
        assert left is not None
        assert 3500 < left <= 3600


def test_moments_that_the_system_cannot_tell() -> None:
    for moment in (datetime.min, datetime.min.replace(tzinfo=timezone(timedelta(hours=9)))):  # noqa: DTZ901  # the naive ones, too
        assert (remaining(moment) or 0) < 0
    for moment in (datetime.max, datetime.max.replace(tzinfo=timezone(-timedelta(hours=9)))):  # noqa: DTZ901  # the naive ones, too
        assert (remaining(moment) or 0) > 1e9


@pytest.mark.parametrize("lifetime", ["20", True, float("nan"), float("inf"), [1], b""])
def test_what_is_no_lifetime_is_refused(lifetime: Any) -> None:
    with pytest.raises(TypeError, match="write seconds"):
        remaining(lifetime)


def test_cells_come_back_as_they_were() -> None:
    cell = pack_record(5.5, ("a", "b"), b"payload\n")
    assert record_of(cell) == Record(5.5, ("a", "b"), b"payload\n")
    assert record_of(pack_record(0.0, (), "text")) == Record(0.0, (), b"text")
    assert pointer_of(pack_pointer("a/b")) == "a/b"
    assert (pointer_of(cell), record_of(pack_pointer("a"))) == (None, None)
    for kind in (b"M", b"F", b"S"):
        assert is_marker(marker(kind))
        assert (record_of(marker(kind)), pointer_of(marker(kind))) == (None, None)
        assert marker(kind) != marker(kind)
    assert is_marker(b"")
    assert not is_marker(cell)
    assert (record_of(b"anything else"), pointer_of(b"anything else")) == (None, None)


def test_a_newer_or_shorter_cell_is_refused() -> None:
    for cell, function in ((b"R\x02....", record_of), (b"P\x02name", pointer_of)):
        with pytest.raises(DecodingError, match="format 2; this durabledict knows formats up to 1"):
            function(cell)
    with pytest.raises(DecodingError, match="cut off"):
        record_of(pack_record(0.0, (), b"")[:5])
