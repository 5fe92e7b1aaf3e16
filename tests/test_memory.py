"""MemoryDict: the conformance suite, and what is special to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from durabledict import DurableDict, MemoryDict, MemoryStorage, PickleEncoding
from durabledict.testing import DurableDictSuite

EVERYTHING = frozenset({"strict", "compare_and_set", "delta", "push", "shared", "aliasing"})


class TestMemoryDict(DurableDictSuite):
    capabilities = EVERYTHING - {"aliasing"}

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return MemoryDict(storage=MemoryStorage.named(str(place)), **options)


class TestMemoryDictThatPickles(DurableDictSuite):
    capabilities = EVERYTHING

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        return MemoryDict(
            encoding=PickleEncoding, storage=MemoryStorage.named(str(place)), **options
        )
