"""Syncing: what makes the copy good for a read, and `sync`.

Whether there is anything to do is `validity`'s to say, and `comparing` does it; what is left is
what becomes of an outage, or of a dict that another thread closes meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import reading
from .comparing import ComparedCopy
from .errors import MISSING, DecodingError
from .outage import bare

__all__ = ["SyncedCopy"]

K = TypeVar("K")
V = TypeVar("V")


class SyncedCopy(ComparedCopy[K, V], Generic[K, V]):
    """A local copy that is brought up to its store by whoever reads it."""

    __slots__ = ()

    if TYPE_CHECKING:  # the backend's part, documented in base.py

        def _overlay(self) -> Mapping[K, V] | None: ...

    def _before_read(self, key: Any = MISSING) -> Mapping[K, V] | None:
        """Make the copy good for one read; the slow way of every read of the syncing class.

        :return: the entries of this thread's open transaction, to be read instead, or None

        """
        if self._is_closed:
            return None
        if self._watch_lost:
            self._restart_watch()
        overlay = self._overlay() if self._transactions else None
        if overlay is None:
            self._make_good()
            if key is not MISSING and self._undecodable:
                self._require_decodable(key)
        return overlay

    @property
    def undecodable(self) -> Mapping[K, DecodingError]:
        """The keys whose payload cannot be decoded, each with the error, as of the last sync."""
        return MappingProxyType(self._undecodable)

    def _require_decodable(self, key: K) -> None:
        """Raise the DecodingError of a key whose payload cannot be decoded."""
        error = self._undecodable.get(key)
        if error is not None and key not in self._covered:
            # A new one each time: the traceback of one that is kept would grow. A backend of
            # 0.9's kind decodes without saying for which key.
            text = str(error) if repr(key) in str(error) else f"key {key!r}: {error}"
            raise DecodingError(text) from error.__cause__

    def _make_good(self) -> None:
        freshness = self._freshness
        error, now = freshness.error, reading.monotonic()
        if error is not None and self._on_outage == "stale" and now < freshness.retry_at:
            # Rule 0.6: between two attempts the store is left alone.
            if not self._may_serve():
                raise bare(error)
            return
        if self._is_good():
            return
        try:
            if self._autosync is True and self._hears:
                self._compare_told(unless=self._is_good)
            else:
                self._compare(unless=self._is_good)
        except self.unavailable as error:
            if self._is_closed:
                return  # by another thread meanwhile
            if self._on_outage == "raise" or not self._may_serve():
                raise
            self._report_outage(error)
        except Exception:
            if not self._is_closed:
                raise
            # Closed by another thread meanwhile: the copy as it is, as ever after.
        finally:
            self._feed.deliver()

    def sync(
        self, *, force: bool = False, signal: object = None, sender: object = None, **named: object
    ) -> bool:
        """Compare stamps and, when they differ, bring the local copy up to date.

        Costs one comparison when nothing changed; else a fetch of what changed, or, where the
        backend cannot tell, of everything.

        It can be connected as it is to a signal of Django's, `request_started.connect(d.sync)`:
        called with `signal` while there is a good copy, it logs and records an outage instead of
        raising it.

        :param force: fetch everything, whatever the stamps say
        :param signal: given by a signal
        :param sender: given by a signal, not used
        :param named: further names that a signal gives, not used
        :return: True when an entry changed
        :raises TypeError: unknown names, unless `signal` is given
        :raises RuntimeError: the dict is closed
        :raises Exception: the driver's own, when the store cannot be asked; under
            ``on_outage="stale"`` only when there is no copy that may be served

        """
        if named and signal is None:
            raise TypeError(f"sync() got unexpected names: {', '.join(sorted(named))}")
        self._require_open()
        if self._watch_lost:
            self._restart_watch()
        if self._is_inside():
            self._doubt()
            return False
        try:
            return self._compare(force=force)
        except self.unavailable as error:
            quiet = signal is not None or self._on_outage == "stale"
            if not quiet or not self._may_serve():
                raise
            self._report_outage(error)
            return False
        finally:
            self._feed.deliver()

    @property
    def cache_expired(self) -> Any:
        """The store's stamp if the local copy is out of date, else None. One comparison."""
        stamp = self.last_updated()
        return stamp if stamp != self.last_synced else None

    def _restart_watch(self) -> None:
        raise NotImplementedError  # watching.py: the first read after a fork
