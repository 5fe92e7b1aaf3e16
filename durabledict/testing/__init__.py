"""For tests: `override` for those of applications, `DurableDictSuite` for those of backends.

Importing this needs neither pytest nor hypothesis; a subclass of the suite does.
"""

from __future__ import annotations

from .overriding import override
from .suite import DurableDictSuite

__all__ = ["DurableDictSuite", "override"]
