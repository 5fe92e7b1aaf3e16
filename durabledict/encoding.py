"""Values to bytes and back.

An encoding has ``encode(value) -> bytes or str`` and ``decode(payload) -> value``; a class with
static methods will do, and so will an instance. A dict reads these attributes too, if they exist:

``text``
    True: the payload is a `str`, and `decode` is handed a `str`. False: it is `bytes`. None: it
    is handed back as the store returns it.
``immutable``
    the exact types whose values need no decoding once encoded, because decoding would give an
    equal value of the same type.
``aliases``
    True: what is stored is the caller's own object, not a copy of it.
``executes_code``
    True: decoding a hostile payload can run code.
``signs``
    True: payloads that were not written with a secret are refused.
``recognizes(payload)``
    True: the payload is of this encoding's own form, so no older encoding is asked about it.
``bind(keyspace, key)``
    returns the encoding to use for that one entry.

Decoding a pickle can run any code that whoever wrote it likes. Where not everyone who can write
to the store is trusted that far, there are `SignedEncoding`, `RestrictedPickleEncoding` and
`JSONEncoding`.

"""

from __future__ import annotations

from .basicencodings import (
    DefaultEncoding,
    Encoder,
    JSONEncoding,
    NoOpEncoding,
    PickleEncoding,
)
from .errors import DecodingError, EncoderError, EncodingError  # where 0.9 had them
from .restrictedpickle import RestrictedPickleEncoding
from .wrappers import CompressedEncoding, SignedEncoding

__all__ = (
    "CompressedEncoding",
    "DecodingError",
    "DefaultEncoding",
    "Encoder",
    "EncoderError",
    "EncodingError",
    "JSONEncoding",
    "NoOpEncoding",
    "PickleEncoding",
    "RestrictedPickleEncoding",
    "SignedEncoding",
)
