"""Freshness and outages of one dict: how old is the copy, and when to try again.

Every bound is counted from the moment the last successful comparison was *sent*, by the monotonic
clock (rule 0.6). No wall clock decides anything; `since` is for people to read.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from datetime import datetime, timezone

from . import reading

__all__ = ["FIRST_RETRY", "LONGEST_RETRY", "Freshness", "Stats", "backoff"]

FIRST_RETRY = 0.1
LONGEST_RETRY = 4.0  # and a quarter of it


@dataclass
class Stats:
    """What a dict has done so far.

    :param comparisons: times the store was asked for its stamp, failed ones included
    :param syncs: times the stamps differed and the local copy was brought up to date
    :param reloads: how many of these fetched everything
    :param keys_fetched: entries that these fetched in all
    :param failures: comparisons and syncs that failed

    """

    comparisons: int = 0
    syncs: int = 0
    reloads: int = 0
    keys_fetched: int = 0
    failures: int = 0


def backoff(attempts: int) -> float:
    """Return the seconds to wait after so many failed attempts in a row (1 or more).

    0.1 s, doubling, 5 s at the most. Each is longer by up to a quarter, so that a thousand
    processes that lost one store do not come back to it in the same instant.

    """
    delay = min(FIRST_RETRY * 2.0 ** min(attempts - 1, 16), LONGEST_RETRY)
    return delay * random.uniform(1.0, 1.25)


def bare(error: BaseException) -> BaseException:
    """Return an exception like `error`, to be kept, or raised by another thread.

    Without the traceback, whose frames hold the local variables of whoever met the error.

    """
    try:
        twin = copy.copy(error)
    except Exception:
        # Its class wants other arguments than it keeps in `args`.
        return type(error).__new__(type(error), *error.args)
    return twin if type(twin) is type(error) else error


class Freshness:
    """What is known about the age of a local copy, and about the outage it may be in."""

    def __init__(self) -> None:
        self.sent = -math.inf
        self.since: datetime | None = None
        self.error: BaseException | None = None
        self.retry_at = -math.inf
        self._attempts = 0
        self._untold = False

    def succeeded(self, sent: float) -> None:
        """Note a comparison that was sent at `sent`: an outage is over."""
        self.sent = max(self.sent, sent)
        self.since = self.error = None
        self.retry_at = -math.inf
        self._attempts = 0

    def failed(self, error: BaseException) -> None:
        """Note a comparison that failed."""
        if self.since is None:
            self.since = datetime.now(timezone.utc)
            self._untold = True
        self.error = bare(error)
        self._attempts += 1
        self.retry_at = reading.monotonic() + backoff(self._attempts)

    def age(self) -> float:
        """Return the seconds since the last successful comparison was sent."""
        return reading.monotonic() - self.sent

    def first_report(self, *, noted: bool = True) -> bool:
        """Return True once an outage: one line in the log, not thousands.

        Also where another thread has ended it meanwhile: it was one all the same, and was told of
        already or is told of now.

        :param noted: `failed` was called for what is reported

        """
        first, self._untold = self._untold or not (noted or self.error), False
        return first
