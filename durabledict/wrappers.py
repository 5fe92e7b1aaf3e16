"""Encodings around another one, whose payload they keep behind a header byte of their own.

By the header an encoding knows its own payloads: see `recognizes` in `encoding.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from .basicencodings import BaseEncoding, Encoder, PickleEncoding
from .errors import DecodingError, EncodingError
from .keys import encode_key

__all__ = ("CompressedEncoding", "SignedEncoding")

_SIGNED = b"\x01"
_COMPRESSED = b"\x02"
_NOT_COMPRESSED = b"\x03"
_DIGEST_SIZE = hashlib.sha256().digest_size


class _Wrapper(BaseEncoding):
    """An encoding around another, whose payload it keeps behind a header byte of its own."""

    headers: tuple[bytes, ...] = ()

    def __init__(self, inner: Encoder) -> None:
        if not isinstance(inner, Encoder):
            raise TypeError(f"inner must have encode and decode, which {inner!r} has not")
        self.inner = inner
        self.immutable = getattr(inner, "immutable", frozenset())

    def __repr__(self) -> str:
        inner = self.inner
        name = inner.__qualname__ if isinstance(inner, type) else repr(inner)
        return f"{type(self).__name__}(inner={name})"

    def recognizes(self, payload: object) -> bool:
        """Return whether `payload` bears the header of this encoding."""
        if isinstance(payload, (bytes, bytearray, memoryview)):
            return bytes(payload[:1]) in self.headers
        return False

    def bind(self: _W, keyspace: str, key: object) -> _W:
        """Return this encoding for the entry of `key` in `keyspace`."""
        if not hasattr(self.inner, "bind"):
            return self
        bound = object.__new__(type(self))
        vars(bound).update(vars(self), inner=self.inner.bind(keyspace, key))
        return bound

    def _encode_inner(self, value: Any) -> bytes:
        payload = self.inner.encode(value)
        return payload.encode("utf-8") if isinstance(payload, str) else payload

    def _decode_inner(self, payload: bytes) -> Any:
        text = getattr(self.inner, "text", False)
        return self.inner.decode(payload.decode("utf-8") if text else payload)

    def _split(self, payload: bytes) -> tuple[bytes, bytes]:
        if not self.recognizes(payload):
            raise DecodingError(f"not written by {type(self).__name__}: the header is missing")
        return bytes(payload[:1]), bytes(payload[1:])


_W = TypeVar("_W", bound=_Wrapper)


class SignedEncoding(_Wrapper):
    """Signs what `inner` writes, and decodes only what was signed with one of the secrets.

    HMAC-SHA256 over the keyspace, the key and the payload, checked before `inner` sees any of it.
    A dict binds the encoding to each of its keys, so that a payload copied from another key or
    keyspace is refused; unbound, it signs for the empty key of the empty keyspace.

    >>> signed = SignedEncoding(["new secret", "old secret"]).bind("settings", "color")
    >>> signed.decode(signed.encode("red"))
    'red'
    >>> signed.bind("settings", "size").decode(signed.encode("red"))
    Traceback (most recent call last):
    durabledict.errors.DecodingError: the signature does not match

    It shows that a payload is genuine, not that it is the latest: who can write to the store can
    put back what was there before.

    :param secret: `bytes` or `str`; or a list of them, the first of which signs while all are
        accepted. It appears in no message and no `repr`, and the encoding cannot be pickled
    :param inner: encoding of the value
    :raises ValueError: if there is no secret, or an empty one

    """

    headers = (_SIGNED,)
    signs = True

    def __init__(
        self, secret: str | bytes | Sequence[str | bytes], inner: Encoder = PickleEncoding
    ) -> None:
        super().__init__(inner)
        secrets = [secret] if isinstance(secret, (str, bytes)) else secret
        if not isinstance(secrets, Sequence):
            raise TypeError(f"secret must be bytes, str or a list, not {type(secrets).__name__}")
        # Only the hashes are kept: they cannot be printed, and starting from a copy is cheap.
        self._hashes = [_keyed_hash(each) for each in secrets]
        if not self._hashes:
            raise ValueError("at least one secret is needed")
        self._place = _place("", "")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SignedEncoding cannot be pickled: its secret would be written somewhere")

    def __copy__(self) -> SignedEncoding:
        return self

    def __deepcopy__(self, memo: object) -> SignedEncoding:
        return self

    def bind(self, keyspace: str, key: object) -> SignedEncoding:
        """Return this encoding for the entry of `key` in `keyspace`; costs a few microseconds."""
        inner = self.inner.bind(keyspace, key) if hasattr(self.inner, "bind") else self.inner
        bound = object.__new__(type(self))
        vars(bound).update(vars(self), inner=inner, _place=_place(keyspace, encode_key(key)))
        return bound

    def encode(self, value: Any) -> bytes:
        """Return header, digest, and what `inner` encodes `value` as."""
        payload = self._encode_inner(value)
        return _SIGNED + self._digest(self._hashes[0], payload) + payload

    def decode(self, payload: bytes) -> Any:
        """Return what `inner` makes of the payload, if it is signed.

        :raises DecodingError: if it is not, or not for this place; `inner` has not seen it then

        """
        _, body = self._split(payload)
        digest, body = body[:_DIGEST_SIZE], body[_DIGEST_SIZE:]
        if not any(hmac.compare_digest(self._digest(each, body), digest) for each in self._hashes):
            raise DecodingError("the signature does not match")
        return self._decode_inner(body)

    def _digest(self, keyed_hash: hmac.HMAC, payload: bytes) -> bytes:
        signature = keyed_hash.copy()
        signature.update(self._place + payload)
        return signature.digest()


def _keyed_hash(secret: str | bytes) -> hmac.HMAC:
    if not isinstance(secret, (str, bytes)):
        raise TypeError(f"a secret must be bytes or str, not {type(secret).__name__}")
    if not secret:
        raise ValueError("a secret must not be empty")
    # "surrogatepass", since the error would carry the secret.
    key = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    return hmac.new(key, _SIGNED, hashlib.sha256)


def _place(keyspace: str, key: str) -> bytes:
    # With their lengths, so that no other keyspace, key and payload are the same bytes in a row.
    names = [name.encode("utf-8", "surrogatepass") for name in (keyspace, key)]
    return b"".join(len(name).to_bytes(8, "big") + name for name in names)


class CompressedEncoding(_Wrapper):
    """Compresses what `inner` writes, with zlib.

    >>> compressed = CompressedEncoding()
    >>> len(compressed.encode("x" * 10_000)) < 100
    True
    >>> compressed.decode(compressed.encode("x" * 10_000)) == "x" * 10_000
    True

    :param inner: encoding of the value
    :param level: 0 (none) to 9 (smallest), or -1 for zlib's default
    :param minimum: payloads of fewer bytes are stored as they are
    :param maximum: most bytes that a payload may have before it is compressed: what a small
        hostile payload can make a reader allocate
    :raises ValueError: if a number is out of range

    """

    headers = (_COMPRESSED, _NOT_COMPRESSED)

    def __init__(
        self,
        inner: Encoder = PickleEncoding,
        *,
        level: int = 6,
        minimum: int = 128,
        maximum: int = 64 * 1024 * 1024,
    ) -> None:
        super().__init__(inner)
        if not -1 <= level <= 9:
            raise ValueError(f"level must be from -1 to 9, not {level}")
        if minimum < 0 or maximum < 1:
            raise ValueError("minimum must not be negative, maximum must be positive")
        self.level = level
        self.minimum = minimum
        self.maximum = maximum
        self.executes_code = getattr(inner, "executes_code", False)
        self.signs = getattr(inner, "signs", False)

    def encode(self, value: Any) -> bytes:
        """Return a header and what `inner` encodes `value` as, compressed if that is shorter.

        :raises EncodingError: if that has more bytes than `maximum`, and could not be read back

        """
        payload = self._encode_inner(value)
        if len(payload) > self.maximum:
            raise EncodingError(f"{len(payload)} bytes, more than maximum={self.maximum}")
        if len(payload) >= self.minimum:
            compressed = zlib.compress(payload, self.level)
            if len(compressed) < len(payload):
                return _COMPRESSED + compressed
        return _NOT_COMPRESSED + payload

    def decode(self, payload: bytes) -> Any:
        """Return what `inner` makes of the decompressed payload.

        :raises DecodingError: if it is damaged, or has more bytes than `maximum`

        """
        header, body = self._split(payload)
        return self._decode_inner(self._decompress(body) if header == _COMPRESSED else body)

    def _decompress(self, body: bytes) -> bytes:
        stream = zlib.decompressobj()
        try:
            payload = stream.decompress(body, self.maximum + 1)
        except zlib.error as error:
            raise DecodingError("damaged: not a zlib stream") from error
        if len(payload) > self.maximum:
            raise DecodingError(f"decompresses to more than maximum={self.maximum} bytes")
        if not stream.eof or stream.unused_data:
            raise DecodingError("damaged: the zlib stream is cut short, or followed by more")
        return payload
