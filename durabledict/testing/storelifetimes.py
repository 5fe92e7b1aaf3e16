"""What a Store promises of lifetimes: a part of `StoreSuite`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from ..stores import lifetime
from .things import Thing
from .tools import needs, raises

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LifetimeTests"]


def far() -> list[Any]:
    """Return lifetimes that do not end while the tests run; made when they do, in local time."""
    return [
        1_000_000_000,
        60 * 60 * 24 * 31,
        timedelta(days=31),
        timedelta(hours=1),
        3600,
        1.5e6,
        2_000_000_000,
        1e300,
        timedelta.max,
        datetime.max,  # noqa: DTZ901  # what people write for ever
        datetime.now(timezone.utc) + timedelta(days=400),
        datetime.now() + timedelta(hours=1),  # noqa: DTZ005  # local time is what is tested
    ]


def past() -> list[Any]:
    """Return lifetimes that are over."""
    return [
        0,
        -1,
        0.0,
        timedelta(0),
        timedelta(days=-1),
        timedelta.min,
        datetime.min,  # noqa: DTZ901  # and for never
        datetime.now(timezone.utc) - timedelta(hours=1),
        datetime.now() - timedelta(hours=1),  # noqa: DTZ005  # local time is what is tested
    ]


class LifetimeTests:
    """The tests; `clocks`, `open` and `reader` are those of `StoreSuite`."""

    clocks: Callable[[], Any]
    open: Callable[..., Any]
    reader: Callable[..., Any]

    @needs("lifetimes")
    def test_a_lifetime_of_zero_or_in_the_past_is_not_kept(self) -> None:
        """Not the object, and not what it was to replace."""
        for over in past():
            store = self.open(
                lifetime_cb=lambda obj, over=over: over if obj.value == "over" else None
            )
            store.put(Thing(1, value="first"))
            assert store.get(Thing, {"id": 1}) is not None
            store.put(Thing(1, value="over"))
            assert self.reader(store).get(Thing, {"id": 1}) is None, over
            assert store.get(Thing, {"zone": 1, "name": "x"}) is None

    @needs("lifetimes")
    def test_a_lifetime_in_each_form_is_kept_until_then(self) -> None:
        """Seconds, a timedelta, an aware and a naive datetime; also more than 30 days."""
        lifetimes = far()
        store = self.open(lifetime_cb=lambda obj: lifetimes[obj.id])
        store.batch_put([Thing(place, name=place) for place in range(len(lifetimes))])
        found = self.reader(store).batch_get(
            Thing, [{"id": place} for place in range(len(lifetimes))]
        )
        assert None not in found
        named = [{"zone": 1, "name": place} for place in range(len(lifetimes))]
        assert store.batch_get(Thing, named) == found

    @needs("lifetimes", "clock")
    def test_what_has_expired_is_not_found(self) -> None:
        """By no key, and it can be put again."""
        with self.clocks() as clock:
            moment = datetime.fromtimestamp(lifetime.now(), timezone.utc) + timedelta(seconds=20)
            lives = [20, timedelta(seconds=20), moment, moment.astimezone().replace(tzinfo=None)]
            for life in lives:
                began = clock.now
                if isinstance(life, datetime):
                    life += timedelta(seconds=began - 1000)
                store = self.open(lifetime_cb=lambda obj, life=life: life)
                store.put(Thing(1))
                clock.move(19)
                assert self.reader(store).get(Thing, {"id": 1}) == Thing(1)
                assert store.get(Thing, {"zone": 1, "name": "x"}) == Thing(1)
                clock.move(2)
                assert self.reader(store).get(Thing, {"id": 1}) is None, life
                assert store.get(Thing, {"zone": 1, "name": "x"}) is None
                if not isinstance(life, datetime):
                    store.put(Thing(1))
                    assert store.get(Thing, {"id": 1}) == Thing(1)

    @needs("lifetimes")
    def test_what_is_no_lifetime_is_refused(self) -> None:
        """Before anything is stored."""
        store = self.open(lifetime_cb=lambda obj: "20")
        with raises(TypeError, "'20'", "timedelta"):
            store.put(Thing(1))
        assert store.get(Thing, {"id": 1}) is None
        with raises(TypeError, "lifetime_cb"):
            self.open(lifetime_cb=20)
