"""Payloads: the values of a dict as its store has them; what a backend uses of `coder`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import coder
from .changes import Undecodable
from .errors import MISSING, DecodingError, EncodingError
from .localcopy import LocalCopy

__all__ = ["Payloads"]


class Payloads:
    """The part of a dict that makes payloads of values, and values of payloads."""

    __slots__ = ()

    encoding: Any
    old_encoding: Any
    keyspace: str

    #: What the store is called, for messages, where it holds bytes alone.
    _holds_bytes: str | None = None

    def _encodings(self) -> tuple[Any, Any]:
        """Return `encoding` and `old_encoding` in the form that the store's place for values takes.

        As they are, unless a backend's place takes text alone, say.

        """
        return self.encoding, self.old_encoding

    def _encode(self, value: Any, key: Any = MISSING) -> Any:
        """Return the payload of a value, one that can be read back.

        :param key: for the message, and for an encoding that is bound to its place
        :raises EncodingError: before anything is sent

        """
        return self._prepare(key, value)[0]

    def _decode(self, payload: Any, key: Any = MISSING) -> Any:
        """Return the value of a payload, which may be of `old_encoding`, or `Undecodable`.

        It does not raise, so that one bad value harms one key: a `durables` that hands on what
        comes from here is as good as any.

        """
        try:
            return coder.decode(*self._encodings(), self.keyspace, key, payload)
        except DecodingError as error:
            # It is kept: without the tracebacks, whose frames hold the caller's local variables.
            kept: BaseException | None = error
            while kept is not None:
                kept.__traceback__ = kept.__context__ = None
                kept = kept.__cause__
            return Undecodable(error)

    def _decode_all(self, payloads: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return key -> value, or `Undecodable`, for pairs of a key and a payload.

        As `_decode`, in a third of its time where all are pickles: it is what a first load spends
        its time in.

        """
        pairs = payloads if isinstance(payloads, list) else list(payloads)
        entries = coder.decode_all(self._encodings()[0], pairs)
        if entries is None:
            entries = {key: self._decode(payload, key) for key, payload in pairs}
        return entries

    def _prepare(self, key: Any, value: Any) -> tuple[Any, Any]:
        """Return the payload of a value and the value as reading it back gives it.

        :raises EncodingError: before anything is sent

        """
        if isinstance(value, LocalCopy):
            raise EncodingError(
                f"the value of key {key!r} is a {type(value).__name__}, which lives in its own "
                "store and cannot be put into another: store its copy()"
            )
        encoding = self._encodings()[0]
        payload, stored = coder.prepare(encoding, self.keyspace, key, value)
        if self._holds_bytes is not None and type(payload) is not bytes:
            payload = coder.as_bytes(key, payload, self._holds_bytes)
            if getattr(encoding, "text", False) is None:
                # Handed back as the store returns it, and not as it was given.
                stored = coder.decode(encoding, None, self.keyspace, key, payload)
        return payload, stored

    def _prepare_all(self, entries: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Return key -> payload and key -> value as reading it back gives it; see `_prepare`."""
        encoding, _ = self._encodings()
        encode, immutable = encoding.encode, coder.immutable_types(encoding)
        payloads, stored = {}, {}
        for key, value in entries.items():
            if type(value) not in immutable:
                payloads[key], stored[key] = self._prepare(key, value)
                continue
            try:
                payload, stored[key] = encode(value), value
            except Exception as error:
                raise coder.refusal(key, error) from error
            if self._holds_bytes is not None:
                payload = coder.as_bytes(key, payload, self._holds_bytes)
            payloads[key] = payload
        return payloads, stored
