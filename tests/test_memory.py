"""MemoryDict: the conformance suite, and what is special to it."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    DecodingError,
    DurableDict,
    MemoryDict,
    MemoryStorage,
    PickleEncoding,
    memory,
)
from durabledict.testing import DurableDictSuite
from durabledict.testing.tools import PATIENCE, in_thread

from .fewsequences import FewSequences

EVERYTHING = frozenset({"strict", "compare_and_set", "delta", "push", "shared", "aliasing"})


class TestMemoryDict(FewSequences, DurableDictSuite):
    capabilities = EVERYTHING - {"aliasing"}

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return MemoryDict(storage=MemoryStorage.named(str(place)), **options)


class TestMemoryDictThatPickles(FewSequences, DurableDictSuite):
    capabilities = EVERYTHING

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return MemoryDict(
            encoding=PickleEncoding, storage=MemoryStorage.named(str(place)), **options
        )


# CPython's longest tests, in the modes in which the class above takes them, too.
for _name in ("test_mapping_popitem_bounded", "test_mapping_popitem_manual"):
    pytest.mark.long(getattr(TestMemoryDictThatPickles, _name))


def pair(**options: Any) -> tuple[Any, Any]:
    storage = MemoryStorage()
    return MemoryDict(storage=storage, **options), MemoryDict(storage=storage, **options)


class TestStorage:
    def test_what_is_none_is_a_type_error(self) -> None:
        wrong: Any = [("k", 1)]
        with pytest.raises(
            TypeError, match=r"storage is a list: write a MemoryStorage, or a plain dict"
        ):
            MemoryDict(storage=wrong)

    def test_a_stamp_of_the_future_is_no_beginning_of_a_delta(self) -> None:
        a, b = pair(autosync=False)
        b["k"] = 1
        version, nonce = a.last_updated()
        assert a.changes((version, nonce)) is not None
        assert a.changes((version + 1, nonce)) is None

    def test_a_write_of_nothing_is_no_commit(self) -> None:
        a, _ = pair()
        stamp = a.last_updated()
        a.clear()
        a.replace_all({})
        a.depersist_many(["absent"])
        assert a.last_updated() == stamp

    def test_the_proof_is_the_object_that_was_read(self) -> None:
        a, b = pair()
        a["k"] = [1]
        _, proof = a._fetch("k")
        b["k"] = [1]
        assert a._compare_and_set("k", [2], proof) is None
        _, proof = a._fetch("k")
        assert a._compare_and_set("k", [2], proof) is not None

    @pytest.mark.parametrize(
        "find", [MemoryStorage.over, MemoryStorage.named], ids=["over", "named"]
    )
    def test_threads_that_open_it_first_at_the_same_moment_find_one(
        self, find: Callable[[Any], MemoryStorage]
    ) -> None:
        for number in range(20):
            name: Any = {} if find == MemoryStorage.over else f"first {number}"
            together = threading.Barrier(4)
            found: list[MemoryStorage] = []

            def look(name: Any = name, found: Any = found, together: Any = together) -> None:
                together.wait(PATIENCE)
                found.append(find(name))

            threads = [threading.Thread(target=look) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert len(found) == 4
            assert len({id(storage) for storage in found}) == 1

    def test_only_one_thread_looks_for_one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        alone: list[bool] = []

        class Found(weakref.WeakValueDictionary[Any, MemoryStorage]):
            def setdefault(self, key: Any, default: Any = None) -> Any:
                alone.append(not in_thread(lambda: memory._finding.acquire(blocking=False)))
                return super().setdefault(key, default)

        for name in ("_named", "_over"):
            monkeypatch.setattr(MemoryStorage, name, Found())
        MemoryStorage.named("x")
        MemoryStorage.over({})
        assert alone == [True, True]

    def test_a_delta_is_of_one_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its stamp is taken under the lock under which its payloads are."""
        a, b = pair(autosync=False)
        since = a.last_updated()
        b["k"] = 1
        original: Any = MemoryStorage.__dict__["stamp"]
        held: list[bool] = []

        def stamp(storage: Any) -> Any:
            held.append(not in_thread(lambda: acquires(storage)))
            return original.fget(storage)

        def acquires(storage: Any) -> bool:
            free: bool = storage.lock.acquire(blocking=False)
            if free:
                storage.lock.release()
            return free

        monkeypatch.setattr(MemoryStorage, "stamp", property(stamp))
        changes = a.changes(since)
        assert changes.written == {"k": 1}
        assert held == [True]

    def test_finalizers_run_where_its_lock_is_free(self) -> None:
        d: Any = MemoryDict(autosync=False)
        free: list[Any] = []

        class Final:
            def __del__(self) -> None:
                lock = d.storage.lock
                free.append(in_thread(lambda: lock.acquire(blocking=False) and not lock.release()))

        writes: list[Any] = [
            lambda: d.__setitem__("k", 1),
            lambda: d.__delitem__("k"),
            lambda: d.compare_and_set("k", d.storage.entries["k"], 1),
            lambda: d.clear(),
        ]
        for write in writes:
            d["k"] = Final()
            dict.pop(d, "k")  # so that the storage has the last reference
            write()
        assert free == [True] * 4


class SelfReading:
    """A value that reads its own dict while it is unpickled."""

    durable: Any = {}

    def __reduce__(self) -> Any:
        return SelfReading, (), {"x": 1}

    def __setstate__(self, state: Any) -> None:
        self.durable.get("p")


class NotSoDeep:
    """A value whose class needs some of the stack to be unpickled."""

    def __reduce__(self) -> Any:
        return NotSoDeep, (), {"x": 1}

    def __setstate__(self, state: Any) -> None:
        descend(100)


class Endless:
    """A value whose class never has enough of the stack."""

    def __reduce__(self) -> Any:
        return Endless, (), {"x": 1}

    def __setstate__(self, state: Any) -> None:
        self.__setstate__(state)


def descend(levels: int, then: Callable[[], Any] = lambda: None) -> Any:
    return descend(levels - 1, then) if levels else then()


class TestDecoding:
    def test_a_value_that_reads_its_own_dict_is_decoded_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A recursion without end would end as an undecodable key, which nobody sees."""
        reader, writer = pair(encoding=PickleEncoding)
        monkeypatch.setattr(SelfReading, "durable", reader)
        writer["p"] = SelfReading()
        count = reader.stats.comparisons
        reader.sync()
        assert not reader.undecodable
        assert type(reader["p"]) is SelfReading
        assert reader.stats.comparisons == count + 2

    def test_a_stack_that_is_used_up_is_not_the_fault_of_the_payload(self) -> None:
        reader, writer = pair(encoding=PickleEncoding, autosync=False)
        writer["k"] = NotSoDeep()
        refused = 0
        used = len(list(frames()))
        for left in range(10, 160, 10):
            try:
                descend(sys.getrecursionlimit() - used - left, reader.sync)
            except RecursionError:
                refused += 1
            assert not reader.undecodable
        assert refused
        reader.sync()
        assert type(reader["k"]) is NotSoDeep

    def test_a_recursion_without_end_is_the_fault_of_the_payload(self) -> None:
        reader, writer = pair(encoding=PickleEncoding, autosync=False)
        raw: Any = MemoryDict(storage=writer.storage)
        raw["k"] = PickleEncoding.encode(Endless())
        writer["fine"] = 1
        reader.sync()
        assert list(reader.undecodable) == ["k"]
        assert reader["fine"] == 1


def frames() -> Any:
    frame: Any = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


class Big:
    """What a caller holds in a local variable."""


@pytest.mark.parametrize("payload", [b"no pickle", b"\x80\x05damaged", b"\x80\x05cnowhere\nX\n."])
def test_an_undecodable_key_holds_nobodys_variables(payload: bytes) -> None:
    raw: Any = MemoryDict()
    raw["bad"] = payload
    d: Any = MemoryDict(storage=raw.storage, encoding=PickleEncoding)

    def handle(use: Callable[[], object]) -> weakref.ref[Big]:
        big = Big()
        try:
            use()
        except DecodingError:
            pass
        return weakref.ref(big)

    uses: list[Callable[[], object]] = [
        lambda: d.sync(force=True), lambda: d["bad"], lambda: d.compute("bad", lambda value: value),
    ]  # fmt: skip
    references = [handle(use) for use in uses]
    gc.collect()
    assert list(d.undecodable) == ["bad"]
    assert [reference() for reference in references] == [None] * 3
