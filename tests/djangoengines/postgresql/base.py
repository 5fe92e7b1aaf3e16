"""The connections of threads that end without closing them, as those of the suites do."""

from __future__ import annotations

from django.db.backends.postgresql import base

from ..closing import ClosesAtTheEnd


class DatabaseWrapper(ClosesAtTheEnd, base.DatabaseWrapper):
    """Django's own."""
