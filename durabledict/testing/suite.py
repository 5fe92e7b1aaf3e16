"""`DurableDictSuite`: every promise that all backends share, as one pytest class.

A backend subclasses it with a factory and the set of what it can do::

    class TestFolderDict(DurableDictSuite):
        capabilities = frozenset({"strict", "shared", "aliasing"})

        def factory(self, place, **options):
            return FolderDict(place, **options)
"""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

from . import mapping
from .collecting import collect
from .computing import ComputingTests
from .contents import ContentsTests
from .freshness import FreshnessTests
from .locks import LockTests
from .mending import MendingTests
from .modifying import ModifyingTests
from .outages import OutageTests
from .push import PushTests
from .races import RaceTests
from .sequences import SequenceTests
from .shapes import ShapesTests
from .sharing import SharingTests
from .tools import CAPABILITIES
from .writing import WritingTests

__all__ = ["DurableDictSuite"]


class DurableDictSuite(
    ContentsTests,
    WritingTests,
    ModifyingTests,
    ComputingTests,
    ShapesTests,
    MendingTests,
    FreshnessTests,
    OutageTests,
    PushTests,
    RaceTests,
    LockTests,
    SharingTests,
    SequenceTests,
):
    """Subclass it, with `factory` and `capabilities`; pytest collects the rest.

    A test is collected only if the backend has the capabilities it needs. CPython's own tests of
    the mapping protocol are added, once for each of `modes`; see `mapping.EXCEPTIONS`.

    """

    #: The values of `autosync` under which CPython's mapping tests run.
    modes: tuple[bool | float, ...] = (True, 3600.0, False)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        collect(cls, CAPABILITIES)
        for mode in cls.modes:
            for name in mapping.names():
                test = _mapping_test(mode, name)
                test.__name__ = f"{name.replace('test_', 'test_mapping_')}_{_word(mode)}"
                setattr(cls, test.__name__, test)

    def test_the_exceptions_from_cpythons_tests_are_those_that_are_listed(self) -> None:
        """The list may not grow, and each entry stands for a test that CPython has."""
        made = mapping.case(self.fresh, True, "test_read")
        replaced = {name for name in vars(type(made)) if name.startswith("test_")}
        assert replaced == set(mapping.EXCEPTIONS) <= set(mapping.names())
        assert len(mapping.EXCEPTIONS) <= 8


def _word(mode: bool | float) -> str:
    return {True: "strict", False: "manual"}[mode] if isinstance(mode, bool) else "bounded"


def _mapping_test(mode: bool | float, name: str) -> Callable[[DurableDictSuite], None]:
    def test(self: DurableDictSuite) -> None:
        def open_filled(**entries: Any) -> Any:
            opened = self.fresh(autosync=mode)
            opened.update(entries)
            return opened

        result = unittest.TestResult()
        mapping.case(open_filled, "aliasing" in self.capabilities, name).run(result)
        assert result.testsRun == 1
        for _, text in (*result.errors, *result.failures):
            raise AssertionError(text)

    return test
