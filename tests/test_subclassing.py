"""Classes of users' own: the four methods of 0.9, hooks of Python classes, an overlay."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    MISSING,
    Commit,
    ConnectionDurableDict,
    DurableDict,
    EncodingError,
    MemoryDict,
    MemoryStorage,
    PickleEncoding,
    reading,
)
from durabledict.reading import Syncing
from durabledict.testing import DurableDictSuite, override
from durabledict.testing.tools import PATIENCE, SuiteBase, in_thread

from .fewsequences import FewSequences

hook, stopped_clock = SuiteBase().hook, SuiteBase().clock


class Table:
    """A store of somebody's own: payloads and a counter."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.writes = 0


class FourMethods(DurableDict[Any, Any]):
    """Written for 0.9: attributes first, four methods, values encoded as 0.9's backends did."""

    def __init__(self, table: Table, *args: Any, **kwargs: Any) -> None:
        self.table = table
        super().__init__(*args, **kwargs)

    def persist(self, key: Any, value: Any) -> None:
        self.table.rows[key] = self._encode(value)
        self.table.writes += 1

    def depersist(self, key: Any) -> None:
        del self.table.rows[key]
        self.table.writes += 1

    def durables(self) -> dict[Any, Any]:
        return {key: self._decode(value) for key, value in list(self.table.rows.items())}

    def last_updated(self) -> int:
        return self.table.writes


_tables: dict[str, Table] = {}


class TestFourMethods(FewSequences, DurableDictSuite):
    capabilities = frozenset({"strict", "push", "shared", "aliasing"})

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return FourMethods(_tables.setdefault(str(place), Table()), **options)


# Each write reloads, and CPython's test of popitem makes 16,000 of them.
for _name in [name for name in dir(TestFourMethods) if name.startswith("test_mapping_popitem_")]:
    setattr(TestFourMethods, _name, pytest.mark.long(getattr(TestFourMethods, _name)))


class TestWhatFourMethodsGive:
    def test_a_write_reloads(self) -> None:
        d = FourMethods(Table(), autosync=False)
        reloads = d.stats.reloads
        d["k"] = [1]
        d["l"] = 2
        assert d.stats.reloads == reloads + 2
        d.update(m=3, n=4)
        assert d.stats.reloads == reloads + 3
        assert d == {"k": [1], "l": 2, "m": 3, "n": 4}

    def test_what_persist_returns_is_ignored_unless_it_is_a_commit(self) -> None:
        class Chatty(FourMethods):
            def persist(self, key: Any, value: Any) -> Any:
                super().persist(key, value)
                return "OK", {"key": key}

        d = Chatty(Table())
        d["k"] = 1
        assert d.copy() == {"k": 1}

    def test_a_commit_spares_the_reload(self) -> None:
        class Telling(FourMethods):
            def persist(self, key: Any, value: Any) -> Any:
                before = self.table.writes
                super().persist(key, value)
                return Commit(before, self.table.writes, {key: value})

        d = Telling(Table(), autosync=False)
        reloads = d.stats.reloads
        d["k"] = 1
        d.update(l=2, m=3)
        assert d.stats.reloads == reloads
        assert d.copy() == {"k": 1, "l": 2, "m": 3}
        assert d.last_synced == d.last_updated()

    def test_defaults_that_0_9_lost(self) -> None:
        d = FourMethods(Table())
        assert d.pop("x", None) is None
        assert d.pop("x", 0) == 0
        assert d.setdefault("x") is None
        assert d.pop("x") is None
        with pytest.raises(KeyError):
            d.pop("x")

    def test_pop_and_setdefault_of_0_9_return_values(self) -> None:
        class Old(FourMethods):
            def _pop(self, key: Any) -> Any:
                value = self.durables()[key]
                self.depersist(key)
                return value

            def _setdefault(self, key: Any, default: Any) -> Any:
                if key not in self.table.rows:
                    self.persist(key, default)
                return self.durables()[key]

        d = Old(Table())
        assert d.setdefault("k", 0) == 0
        assert d.setdefault("k", 1) == 0
        assert d.pop("k") == 0
        assert d.pop("k", "default") == "default"
        assert d == {}

    def test_writers_of_one_dict_take_turns(self) -> None:
        """A `setdefault` of several requests is atomic between threads at least."""
        d = FourMethods(Table())
        turns: list[bool] = []

        def other_writers_wait() -> None:
            lock: Any = d._writers
            turns.append(not in_thread(lambda: lock.acquire(blocking=False)))

        with (
            hook(d, "persist", before=other_writers_wait),
            hook(d, "depersist", before=other_writers_wait),
        ):
            d["k"] = 1
            d.setdefault("l", 1)
            d.pop("k")
            d.update(k=1)
            del d["k"]
        assert turns == [True] * 5

    def test_replace_all_adds_before_it_removes(self) -> None:
        d = FourMethods(Table())
        d["old name"] = 1
        order: list[str] = []
        with (
            hook(d, "persist", before=lambda: order.append("persist")),
            hook(d, "depersist", before=lambda: order.append("depersist")),
        ):
            d.replace_all({"new name": 1})
        assert order == ["persist", "depersist"]

    def test_setdefault_and_pop_ask_before_they_decide(self) -> None:
        table = Table()
        a, b = FourMethods(table), FourMethods(table)
        with hook(a, "_setdefault", before=lambda: b.update(k="theirs"), times=1):
            assert a.setdefault("k", "mine") == "theirs"
        with hook(a, "_pop", before=lambda: b.update(k="newer"), times=1):
            assert a.pop("k") == "newer"

    @pytest.mark.parametrize("autosync", [True, False])
    def test_a_key_error_after_a_write_is_that_of_the_store(self, autosync: bool) -> None:
        """Not that of the key: it may have been stored."""
        d = FourMethods(Table(), autosync=autosync)
        d["k"] = 1

        def fail() -> None:
            raise KeyError("a row vanished")

        with (
            hook(d, "durables", before=fail, times=1),
            pytest.raises(KeyError, match="a row vanished"),
        ):
            d["k"] = 2
        assert d["k"] == 2
        assert d.last_synced == d.last_updated()

    def test_an_override_is_not_taken_for_what_is_stored(self) -> None:
        d = FourMethods(Table())
        d["k"] = "store"
        with override(d, k=MISSING, only="shown"):
            with pytest.raises(KeyError):
                del d["only"]
            assert d.setdefault("only", "stored") == "shown"
            assert d.migrate() == 1
            assert d.table.rows.keys() == {"k"}
            del d["k"]
        assert d.copy() == {}

    def test_the_wait_that_polls_ends_with_the_stamp_the_timeout_or_an_interrupt(self) -> None:
        d: Any = FourMethods(Table(), autosync=False)
        pauses: list[float] = []

        class Interrupted:
            """Stands in place of the event: time passes only here."""

            answer = False

            def wait(self, pause: float) -> bool:
                pauses.append(pause)
                clock.move(pause)
                if len(pauses) == 4:
                    d.table.writes += 1
                return self.answer

        with stopped_clock() as clock:
            d._interrupted = Interrupted()
            assert d.wait(d.last_synced, 60.0) is True
            assert len(pauses) == 4
            assert pauses[0] < pauses[1] < pauses[2] < pauses[3]
            pauses[:] = [0.0] * 10
            began = clock.now
            assert d.wait(d.last_updated(), 1.0) is False
            assert 1.0 <= clock.now - began < 1.001
            assert max(pauses) <= 0.05
            Interrupted.answer = True
            count = len(pauses)
            assert d.wait(d.last_updated(), 60.0) is False
            assert len(pauses) == count + 1

    def test_each_missing_method_is_named(self) -> None:
        class Nothing(DurableDict[Any, Any]):
            pass

        with pytest.raises(NotImplementedError, match="Nothing has to define last_updated"):
            Nothing()

        class Stamped(DurableDict[Any, Any]):
            def last_updated(self) -> int:
                return 1

        with pytest.raises(NotImplementedError, match="Stamped has to define durables"):
            Stamped()

        class Reading(Stamped):
            def durables(self) -> dict[Any, Any]:
                return {"k": 1}

        d = Reading()
        with pytest.raises(NotImplementedError, match="Reading has to define persist"):
            d["k"] = 1
        with pytest.raises(NotImplementedError, match="Reading has to define depersist"):
            del d["k"]
        assert d.last_synced == 1
        assert d["k"] == 1

    def test_connection_durable_dict(self) -> None:
        hooked: list[Any] = []

        class Connected(ConnectionDurableDict[Any, Any]):
            def connection_hook(self) -> None:
                hooked.append((self.keyspace, self.connection))

            def last_updated(self) -> int:
                assert hooked
                return 1

            def durables(self) -> dict[Any, Any]:
                return {}

        connection = object()
        d = Connected("settings", connection, False, PickleEncoding)
        assert hooked == [("settings", connection)]
        assert d.autosync is False
        assert d.encoding is PickleEncoding


class TestPythonsHooks:
    def test_the_syncing_class_is_not_registered_as_a_subclass(self) -> None:
        registered: list[type] = []

        class Registry(MemoryDict[Any, Any]):
            def __init_subclass__(cls, **options: Any) -> None:
                registered.append(cls)
                super().__init_subclass__(**options)

        class Entry(Registry):
            pass

        assert Entry() == {}
        assert registered == [Entry]

    def test_type_of_a_dict_makes_another_one(self) -> None:
        d = MemoryDict[str, int]()
        assert issubclass(type(d), Syncing)
        made = type(d)(autosync=False)
        made["k"] = 1
        assert type(made) is MemoryDict
        assert type(type(d)()) is type(d)

    def test_a_metaclass_is_kept(self) -> None:
        class Meta(type):
            pass

        class Made(MemoryDict[Any, Any], metaclass=Meta):
            pass

        d = Made()
        assert type(type(d)) is Meta
        assert d.__class__ is Made

    def test_patching_the_class_is_seen_by_all_instances(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Patched(MemoryDict[Any, Any]):
            pass

        strict, manual = Patched(), Patched(autosync=False)
        calls: list[str] = []
        for name in ("last_updated", "durables", "persist", "sync"):
            original = getattr(Patched, name)

            def noted(
                self: Any, *args: Any, _name: str = name, _was: Any = original, **kw: Any
            ) -> Any:
                calls.append(_name)
                return _was(self, *args, **kw)

            monkeypatch.setattr(Patched, name, noted)
        for d in (strict, manual):
            calls.clear()
            d["k"] = 1
            d.sync(force=True)
            assert calls == ["persist", "sync", "last_updated", "durables"]
        calls.clear()
        assert strict["k"] == 1
        assert calls == ["last_updated"]

    def test_readers_of_a_users_own_are_called_in_both_classes(self) -> None:
        class Shouting(MemoryDict[str, str]):
            def __getitem__(self, key: str) -> str:
                return super().__getitem__(key).upper()

            def __missing__(self, key: str) -> str:
                return f"no {key}"

        for autosync in (True, 5.0, False):
            d = Shouting(autosync=autosync)
            d["k"] = "v"
            assert d["k"] == "V"
            assert d["x"] == "NO X"
            assert d.get("x") is None

    def test_two_levels_of_subclasses_each_have_their_syncing_class(self) -> None:
        class First(MemoryDict[Any, Any]):
            pass

        class Second(First):
            pass

        first, second = First(), Second()
        assert type(first) is not type(second)
        assert type(second).__mro__[2] is Second
        assert (first.__class__, second.__class__) == (First, Second)

    def test_the_class_changes_while_other_threads_read(self) -> None:
        d = MemoryDict[str, int](autosync=False)
        d["k"] = 1
        stop = threading.Event()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    assert d["k"] == d.get("k") == 1
                    assert "k" in d
                    assert len(d) == 1
                    assert list(d) == ["k"]
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(2000):
            d.autosync = True
            d.autosync = False
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors

    def test_class_options(self) -> None:
        assert MemoryDict.__name__ == type(MemoryDict()).__name__
        assert type(MemoryDict()).__doc__ == MemoryDict.__doc__
        assert type(MemoryDict()).__module__ == "durabledict.memory"


def test_the_syncing_class_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(MemoryDict[Any, Any]):
        pass

    made: list[Any] = []
    original: Any = reading._make_syncing_class
    inside, goes_on = threading.Event(), threading.Event()

    def slow(native: Any) -> Any:
        made.append(native)
        inside.set()
        assert goes_on.wait(PATIENCE)
        return original(native)

    monkeypatch.setattr(reading, "_make_syncing_class", slow)
    waits = Waited(reading._making)
    monkeypatch.setattr(reading, "_making", waits)
    threads = [threading.Thread(target=Made) for _ in range(2)]
    threads[0].start()
    assert inside.wait(PATIENCE)
    threads[1].start()
    assert waits.second.wait(PATIENCE)
    goes_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert made == [Made]


class Waited:
    """A lock that tells when a second thread comes."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.first, self.second = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
        self.lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self.lock.release()


class Transactional(MemoryDict[Any, Any]):
    """A backend with transactions, as far as reading goes: a thread sees its own writes early."""

    def __init__(self, **options: Any) -> None:
        self._open = threading.local()
        super().__init__(**options)

    @contextmanager
    def transaction(self, **pending: Any) -> Iterator[None]:
        self._open.entries = {**self.durables(), **pending}
        self._transaction_opened()
        try:
            yield
        finally:
            self._transaction_closed()
            self._open.entries = None

    def _overlay(self) -> Mapping[Any, Any] | None:
        return getattr(self._open, "entries", None)


@pytest.mark.parametrize("autosync", [True, 5.0, False])
def test_a_thread_reads_its_own_open_transaction(autosync: Any) -> None:
    d = Transactional(autosync=autosync)
    d["k"] = "shared"

    def elsewhere(read: Any) -> Any:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(read()))
        thread.start()
        thread.join()
        return got[0]

    with d.transaction(k="mine", more=1):
        assert (d["k"], d.get("k"), d.get("x", 0), "more" in d, len(d)) == (
            "mine",
            "mine",
            0,
            True,
            2,
        )
        assert list(d) == ["k", "more"]
        assert list(d.items()) == [("k", "mine"), ("more", 1)]
        assert list(reversed(d)) == ["more", "k"]
        assert d.copy() == d == {"k": "mine", "more": 1}
        with pytest.raises(KeyError):
            d["x"]
        assert elsewhere(lambda: (d["k"], d.copy())) == ("shared", {"k": "shared"})
    assert d.copy() == {"k": "shared"}
    assert issubclass(type(d), Syncing) is (autosync is not False)


def test_own_values_may_be_refused_before_anything_is_sent() -> None:
    """What a backend finds out before it sends leaves no doubt behind."""

    class Small(MemoryDict[Any, Any]):
        def persist(self, key: Any, value: Any) -> Any:
            if len(str(value)) > 10:
                raise EncodingError(
                    f"the value of key {key!r} is too large: {len(str(value))} > 10"
                )
            return super().persist(key, value)

    d = Small(autosync=False)
    with pytest.raises(ValueError, match="11 > 10"):
        d["k"] = "x" * 11
    assert type(d) is Small
    assert d.last_synced is not None


class TestSharingMemory:
    def test_by_storage_by_plain_dict_and_by_name(self) -> None:
        plain: dict[Any, Any] = {"there": 1}
        storage = MemoryStorage()
        for options in ({"storage": plain}, {"storage": storage}):
            a, b = MemoryDict[Any, Any](**options), MemoryDict[Any, Any](**options)
            a["k"] = [1]
            assert b["k"] is a["k"]
        assert plain == {"there": 1, "k": [1]}
        assert MemoryDict[Any, Any](storage={})._fetch("k")[0] is MISSING
        assert MemoryDict() == {}

    def test_a_reader_far_behind_reloads(self) -> None:
        storage = MemoryStorage()
        writer = MemoryDict[Any, Any](storage=storage)
        reader = MemoryDict[Any, Any](storage=storage, autosync=False)
        for number in range(1001):
            writer["k"] = number
        reloads = reader.stats.reloads
        assert reader.sync() is True
        assert reader.stats.reloads == reloads + 1
        writer["k"] = "last"
        assert reader.sync() is True
        assert reader.stats.reloads == reloads + 1
        assert reader == {"k": "last"}

    def test_another_storage_in_the_place_of_the_first_is_a_reload(self) -> None:
        """The number alone would say that nothing, or little, has changed."""
        d = MemoryDict[Any, Any](autosync=False)
        d["k"] = 1
        other = MemoryStorage()
        MemoryDict[Any, Any](storage=other)["k"] = 2
        d.storage = other
        assert d.sync() is True
        assert d["k"] == 2

    def test_finalizers_may_use_the_dict(self) -> None:
        """The storage drops no value while it holds its lock."""

        class Final:
            def __del__(self) -> None:
                ran.append(d.get("k"))

        ran: list[Any] = []
        d = MemoryDict[Any, Any](autosync=False)
        d["k"] = 1
        d["f"] = Final()
        d["f"] = Final()
        d.compare_and_set("f", d["f"], 5)
        d["f"] = Final()
        d.clear()
        assert len(ran) == 3
