"""The lines of the tables, and whether they keep their limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .measure import Comparison

__all__ = ["Amount", "Row", "Spread"]


@dataclass(frozen=True)
class Row:
    """One line of the table of ratios.

    :param what: what was measured
    :param against: what it is compared with
    :param measured: both figures, and the second one of the baseline
    :param limit: the ratio that is allowed; None: for information
    :param unit: of the figures: "us" (they are in seconds) or "bytes"
    :param wrong: what else is not as it has to be

    """

    what: str
    against: str
    measured: Comparison
    limit: float | None = None
    unit: str = "us"
    wrong: str = ""

    @property
    def ratio(self) -> float:
        """The candidate's figure over the baseline's."""
        return self.measured.candidate / self.measured.baseline

    @property
    def noise(self) -> float:
        """The ratio of the baseline to itself."""
        return self.measured.again / self.measured.baseline

    @property
    def verdict(self) -> str:
        """'ok' or 'MISSED'; nothing where there is no limit."""
        if self.wrong:
            return f"MISSED: {self.wrong}"
        if self.limit is None:
            return ""
        return "ok" if self.ratio <= self.limit else "MISSED"


@dataclass(frozen=True)
class Amount:
    """One line of the table of what is no ratio.

    :param what: what was measured
    :param figure: how much it is
    :param limit: how much is allowed
    :param unit: of both

    """

    what: str
    figure: float
    limit: float
    unit: str

    @property
    def verdict(self) -> str:
        """'ok' or 'MISSED'."""
        return "ok" if self.figure <= self.limit else "MISSED"


@dataclass(frozen=True)
class Spread:
    """One line of the table of percentiles.

    :param what: what was measured
    :param samples: the nanoseconds that each operation took

    """

    what: str
    samples: Sequence[int]

    def percentile(self, fraction: float) -> int | None:
        """Return the least sample that this part of all samples does not exceed.

        None where so few were taken that it would be the greatest, an accident.

        >>> Spread("read", [30, 10, 20]).percentile(0.5)
        20

        """
        rank = math.ceil(len(self.samples) * fraction)
        return None if rank == len(self.samples) else sorted(self.samples)[rank - 1]
