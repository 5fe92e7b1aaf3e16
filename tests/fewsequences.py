"""Random operations of the suite: some in each run of the tests, many in the long one."""

from __future__ import annotations

from typing import ClassVar

import pytest

from durabledict.testing.sequences import SequenceTests

__all__ = ["FewSequences"]


class FewSequences(SequenceTests):
    """Tries few sequences in each mode; the tests that are marked as long try many.

    Put it before the suite: ``class TestSomeDict(FewSequences, DurableDictSuite)``.

    """

    sequences = (6, 40)

    #: How many the long tests try, of how many steps: the few are the first of them.
    many: ClassVar[tuple[int, int]] = (30, 40)

    @pytest.mark.long
    @pytest.mark.parametrize("autosync", [True, 3600.0, False], ids=["strict", "bounded", "manual"])
    def test_many_random_operations(self, autosync: bool | float) -> None:
        self.sequences = self.many
        self.run_sequences(autosync)
