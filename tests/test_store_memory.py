"""What is special to `ProcessMemoryStore` and `ThreadLocalStore`."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

from durabledict.stores import ProcessMemoryStore, ThreadLocalStore, memoryentries
from durabledict.stores.guarded import Settlement
from durabledict.stores.keys import locate
from durabledict.testing import StoreSuite
from durabledict.testing.things import Automobile, Car, Grouped, Thing
from durabledict.testing.tools import in_thread


def place_of(store: ProcessMemoryStore, number: int) -> Any:
    return store._place(locate(Thing, {"id": number}))


def test_the_object_used_longest_ago_goes() -> None:
    store = ProcessMemoryStore(maxsize=2)
    store.batch_put([Thing(1, name="a"), Thing(2, name="b")])
    assert store.get(Thing, {"zone": 1, "name": "a"}) is not None
    store.put(Thing(3, name="c"))
    assert store.get(Thing, {"id": 2}) is None
    assert store.get(Thing, {"id": 1}) is not None
    # What led to it is gone with it.
    assert len(store._pointers) == 2


def test_what_leads_to_an_expired_object_goes_with_it() -> None:
    with StoreSuite().clocks() as clock:
        store = ProcessMemoryStore(lifetime_cb=lambda obj: 5)
        store.put(Thing(1))
        clock.move(6)
        store.put(Thing(2, name="y"))
        assert len(store._pointers) == len(store._records) == 1


def test_nothing_grows_where_keys_change() -> None:
    store = ProcessMemoryStore()
    for number in range(100):
        store.put(Thing(1, name=number))
    assert len(store._pointers) == len(store._records) == 1
    store.delete(Thing(1))
    assert not store._pointers
    assert not store._records


@pytest.mark.parametrize("maxsize", [0, -1, 1.5, "5", True])
def test_what_is_no_maxsize_is_refused(maxsize: Any) -> None:
    with pytest.raises(ValueError, match="maxsize"):
        ProcessMemoryStore(maxsize=maxsize)


def test_an_attribute_that_is_gone_is_no_match() -> None:
    store = ProcessMemoryStore()
    thing = Thing(1)
    store.put(thing)
    del thing.name
    assert store.get(Thing, {"zone": 1, "name": "x"}) is None
    assert store.get(Thing, {"id": 1}) is thing


def test_the_last_put_of_a_name_counts_between_base_and_subclass() -> None:
    store = ProcessMemoryStore(polymorphic=True)
    store.put(Automobile("B 1"))
    store.put(Car("B 1"))
    assert type(store.get(Automobile, {"license_plate": "B 1"})) is Car
    store.put(Automobile("B 1"))
    assert type(store.get(Automobile, {"license_plate": "B 1"})) is Automobile


def test_no_lock_is_held_while_a_finalizer_runs() -> None:
    """It may use the store, and wait for another thread that does."""
    store = ProcessMemoryStore(maxsize=1)
    seen: list[Any] = []

    class Final(Thing):
        def __del__(self) -> None:
            seen.append(in_thread(lambda: store.get(Thing, {"id": 9})))

    store.put(Final(1))
    store.put(Thing(9))  # the size is one
    store.put(Final(2))
    store.delete(Final(2))
    assert len(seen) >= 2


def test_a_lifetime_callback_runs_without_the_lock() -> None:
    def callback(obj: Any) -> float:
        in_thread(lambda: store.get(Thing, {"id": 5}))
        return 3600

    store = ProcessMemoryStore(lifetime_cb=callback)
    store.put(Thing(1))
    place = place_of(store, 1)
    proofs = store._mark([place], 10)
    store._settle([Settlement(place, Thing(1), proofs[place])], writes=True)
    assert store.get(Thing, {"id": 1}) == Thing(1)


def test_a_callback_that_fails_while_a_chain_fills_leaves_nothing() -> None:
    def callback(obj: Any) -> float:
        raise ZeroDivisionError

    store = ProcessMemoryStore(lifetime_cb=callback)
    place = place_of(store, 1)
    proofs = store._claim([place], 10)
    store._settle([Settlement(place, Thing(1), proofs[place])], writes=False)
    assert store._markers == {}
    assert store.get(Thing, {"id": 1}) is None


def test_markers_of_killed_writers_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memoryentries, "MARKERS", 10)
    with StoreSuite().clocks() as clock:
        store = ProcessMemoryStore()
        for number in range(100):
            store._mark([place_of(store, number)], 10)
            clock.move(3)
        assert len(store._markers) < 20


def test_a_thread_sees_only_its_own() -> None:
    store = ThreadLocalStore()
    store.put(Thing(1))
    assert in_thread(lambda: store.get(Thing, {"id": 1})) is None

    def put_and_get() -> Any:
        store.batch_put([Thing(1, value="other")])
        return store.batch_get(Thing, [{"id": 1}])[0].value  # type: ignore[union-attr]  # it is there

    assert in_thread(put_and_get) == "other"
    assert store.get(Thing, {"id": 1}) == Thing(1)
    store.batch_delete([Thing(1)])
    assert store.get(Thing, {"id": 1}) is None


@pytest.mark.parametrize("options", [{}, {"maxsize": 50}, {"lifetime_cb": lambda obj: 100}])
def test_threads_use_it_at_once(options: dict[str, Any]) -> None:
    store = ProcessMemoryStore(**options)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(300):
                store.put(Thing(number, name=turn % 7, value=turn))
                found = store.get(Thing, {"id": number})
                assert found is not None
                assert found.value == turn
                named = store.get(Thing, {"zone": 1, "name": turn % 7})
                assert named is None or named.name == turn % 7
                if turn % 10 == 9:
                    store.delete(Thing(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_was_read_before_everything_was_forgotten_is_not_stored() -> None:
    store = ProcessMemoryStore()
    place = store._place(locate(Thing, {"id": 1}))
    proofs = store._claim([place], 10.0)
    store._forget_all()
    store._settle([Settlement(place, Thing(1), proofs[place])], writes=False)
    assert store.get(Thing, {"id": 1}) is None


WITHOUT = """
import sys
sys.modules[{driver!r}] = None
import durabledict.stores as stores
try:
    {statement}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("driver", "statement", "extra"),
    [
        ("cachetools", "stores.ProcessMemoryStore(maxsize=5)", "stores"),
        ("pymemcache", "stores.MemcacheStore", "memcached"),
        ("redis", "stores.RedisStore", "redis"),
        ("fsspec", "stores.ShoveStore(uri='memory://x')", "files"),
    ],
)
def test_a_missing_driver_is_named(driver: str, statement: str, extra: str) -> None:
    program = WITHOUT.format(driver=driver, statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"pip install {driver}" in done.stdout
    assert f"[{extra}]" in done.stdout


def test_importing_the_stores_imports_no_driver() -> None:
    program = (
        "import sys, durabledict.stores as s\n"
        "s.ProcessMemoryStore(), s.ChainedStore, s.ShoveStore, s.DurableDictStore\n"
        "assert not {'cachetools', 'redis', 'pymemcache', 'fsspec'} & set(sys.modules)\n"
        "assert 'MemcacheStore' in dir(s)\n"
        "try: s.Nothing\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "no attribute 'Nothing'" in done.stdout


def test_a_thread_forgets_what_it_put_when_it_releases_the_store() -> None:
    """And no other thread does."""
    store = ThreadLocalStore()
    store.put(Thing(1))

    def elsewhere() -> list[Any]:
        store.put(Thing(2))
        store.release()
        return [store.get(Thing, {"id": 2})]

    assert in_thread(elsewhere) == [None]
    assert store.get(Thing, {"id": 1}) is not None
    store.release()
    assert store.get(Thing, {"id": 1}) is None
    store.put(Thing(1))
    assert store.get(Thing, {"id": 1}) is not None
    # Groups are those of all threads still.
    store.release()
    store.put(Grouped(1))
    in_thread(lambda: store.invalidate_group("zone-1"))
    assert store.get(Grouped, {"id": 1}) is None
