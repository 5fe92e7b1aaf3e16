"""For tests: `override` for those of applications, suites for those of backends and Stores.

Importing this needs neither pytest nor hypothesis; a subclass of a suite does.
"""

from __future__ import annotations

from .overriding import override
from .stores import StoreSuite
from .suite import DurableDictSuite

__all__ = ["DurableDictSuite", "StoreSuite", "override"]
