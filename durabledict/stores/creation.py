"""`BaseStore.get_or_create`: what a Store does about the object that is to be created."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..creating import Outcome, Target, checked_timeout, create
from ..errors import MISSING
from ..locks import Lease, Mutex
from .groups import Moments, made_after
from .keys import Address, NotIndexedError, locate, matches
from .lifetime import Terms, remaining, under

if TYPE_CHECKING:
    from .base import BaseStore, Key

__all__ = ["create_missing"]


def create_missing(
    store: BaseStore,
    klass: type,
    key: Key,
    creator: Callable[[], Any],
    lifetime: Any,
    serve_expired: bool,
    timeout: float | timedelta | None,
) -> Any:
    """Create an object that a get has not found; see `BaseStore.get_or_create`."""
    limit = checked_timeout(timeout)
    remaining(lifetime)  # refused before anything is created
    if (lifetime is not None or serve_expired) and not store._keeps_lifetimes:
        what = "lifetime=" if lifetime is not None else "serve_expired=True"
        raise TypeError(f"{what}: a {type(store).__name__} keeps objects for ever")
    target = _Object(store, _address_of(klass, key), lifetime, serve_expired)
    found = create(target, creator, limit)
    return None if found is MISSING else found


class _Object(Target):
    """One object of a Store, by the key that was asked for."""

    def __init__(
        self, store: BaseStore, address: Address, lifetime: Any, serve_expired: bool
    ) -> None:
        super().__init__((id(store), address.entry))
        self._store = store
        self._address = address
        self._lifetime = lifetime
        self._serve_expired = serve_expired
        self._proof: Any = None
        self._moments: Moments = {}

    def __repr__(self) -> str:
        return repr(self._address)

    def lease(self) -> Lease:
        try:
            name = self._address.name
        except (TypeError, KeyError):
            # Of a Store that takes any attributes, or any values.
            name = repr((self._address.names, self._address.values))
            name = f"{self._address.klass.__module__}.{self._address.klass.__qualname__}/{name}"
        return self._store._lease(name)

    def look(self) -> Any:
        return _or_missing(self._store.get(self._address.klass, self._address.key))

    def look_expired(self) -> Any:
        if not self._serve_expired:
            return MISSING
        found = self._store._get_expired(self._address, self._lifetime)
        return _or_missing(found)

    def reserve(self) -> Any:
        # Before the creator runs: what it makes is as old as this (rule 5.8).
        self._moments = self._store._moments(self._address.klass)
        found, self._proof = self._store._reserve(self._address)
        return _or_missing(found)

    def store(self, value: Any, mutex: Mutex) -> tuple[Any, Outcome]:
        if value is None:
            return MISSING, Outcome.HANDED
        if not matches(value, self._address):
            raise ValueError(f"the creator of {self!r} has returned {value!r}, which is not that")
        terms = Terms(self._address, remaining(self._lifetime), self._serve_expired)
        with under(terms), made_after(self._moments):
            stored = self._store._put_reserved(value, self._proof, mutex)
        if stored is None:
            return value, Outcome.HANDED
        self._proof = None
        return value, Outcome.STORED if stored else Outcome.NONE

    def abandon(self) -> None:
        proof, self._proof = self._proof, None
        if proof is not None:
            self._store._unreserve(self._address, proof)


def _or_missing(found: Any) -> Any:
    return MISSING if found is None else found


def _address_of(klass: type, key: Key) -> Address:
    try:
        return locate(klass, key)
    except NotIndexedError:
        # The get has answered: of a Store that takes any mapped column, say.
        if not isinstance(key, Mapping):
            raise
        names = tuple(sorted(key))
        return Address(klass, names, tuple([key[name] for name in names]))
