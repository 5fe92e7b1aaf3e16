"""The lock of a chain that is in one of its caches: while that is down, creators do without it."""

from __future__ import annotations

import logging

from ..locks import Lease

__all__ = ["LayerLease"]

logger = logging.getLogger("durabledict.stores")


class LayerLease(Lease):
    """A lock in a cache layer, which may be down: then each process has a creator of its own.

    As the rest of a chain does: a cache that is down is logged and passed over (rule 5.2 of
    docs/internals.rst).

    :param inner: the layer's lock

    """

    def __init__(self, inner: Lease) -> None:
        super().__init__(inner.seconds, inner.identity)
        self._inner = inner
        self._without: bytes | None = None

    def __repr__(self) -> str:
        return repr(self._inner)

    def acquire(self, token: bytes) -> bool:
        """Take the lock; do without it where the layer is down."""
        try:
            return self._inner.acquire(token)
        except Exception as error:
            logger.warning("%r is done without: %s", self._inner, error)
            self._without = token
            return True

    def renew(self, token: bytes) -> bool:
        """Begin the lease anew, where there is one; it is still held where nobody can tell."""
        if token == self._without:
            return True
        try:
            return self._inner.renew(token)
        except Exception as error:
            logger.debug("%r could not be renewed: %s", self._inner, error)
            return True

    def release(self, token: bytes) -> bool:
        """Give the lock up, if it is held."""
        without, self._without = self._without, None
        # It may have been taken all the same, and the answer was lost.
        try:
            return self._inner.release(token)
        except Exception:
            if token == without:
                return False
            raise

    def holder(self) -> bytes | None:
        """Return the token that holds the lock; None: nobody, or the layer is down."""
        try:
            return self._inner.holder()
        except Exception as error:
            logger.debug("%r could not be asked: %s", self._inner, error)
            return None

    def wait(self, seconds: float) -> None:
        """Wait as the layer's lock does."""
        self._inner.wait(seconds)
