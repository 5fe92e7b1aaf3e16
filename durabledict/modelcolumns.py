"""The two columns of a Django model that are a dict's keys and values, and what they take.

docs/internals.rst, rule 3.8.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import reprlib
import uuid
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Value
from django.db.models.functions import Cast

from .basicencodings import BaseEncoding, JSONEncoding, PickleEncoding
from .errors import DecodingError, EncodingError
from .keys import canonical_key, decode_key, encode_key

__all__ = ["KeyColumn", "ValueColumn"]

# Begins the text of a key that a database may not take as it is; see `_escaped`.
_ESCAPE = "~sql:"


class KeyColumn:
    """The column of the keys: text through the key codec, integers and UUIDs as they are.

    :param field: the model's field
    :raises TypeError: a field of another kind

    """

    def __init__(self, field: Any) -> None:
        self.field = field
        if isinstance(field, (models.CharField, models.TextField)):
            self.kind: type = str
        elif isinstance(field, models.IntegerField):
            self.kind = int
        elif isinstance(field, models.UUIDField):
            self.kind = uuid.UUID
        else:
            raise TypeError(
                f"the key column {field} is a {type(field).__name__}: keys are kept in text, "
                "integer and UUID columns"
            )

    def canonical(self, key: Any) -> Any:
        """Return the form in which the local copy holds a key.

        :raises TypeError: a key that this column does not take

        """
        if self.kind is uuid.UUID:
            if type(key) is uuid.UUID:
                return key
        else:
            plain = canonical_key(key)
            if self.kind is str or type(plain) is int:
                return plain
        raise TypeError(
            f"the key column {self.field} takes {self.kind.__name__} alone, not a key of type "
            f"{type(key).__qualname__!r}"
        )

    def to_column(self, key: Any, connection: Any, *, new: bool = True) -> Any:
        """Return what stands in the column for a canonical key.

        :param new: refuse text that is longer than the column; False: of a row that may be there,
            since SQLite lets another program store any length
        :raises ValueError: longer, or larger, than the column takes; nothing was sent

        """
        if self.kind is str:
            text = _escaped(encode_key(key))
            longest = self.field.max_length
            if new and longest is not None and len(text) > longest:
                raise ValueError(
                    f"key {key!r} has {len(text)} characters in the column {self.field}, which "
                    f"takes {longest}"
                )
            return text
        if self.kind is int:
            least, most = connection.ops.integer_field_range(self.field.get_internal_type())
            # Where a database has no range of its own, its driver has: 64 bits.
            least = -(2**63) if least is None else least
            most = 2**63 - 1 if most is None else most
            if not least <= key <= most:
                raise ValueError(
                    f"key {key!r} is outside of {least} to {most}, which the column {self.field} "
                    "takes"
                )
        return key

    def to_key(self, stored: Any) -> Any:
        """Return the key that stands in the column as `stored`.

        :raises ValueError: no key does: another program has put NULL there, a NUL into a text, or,
            in SQLite, bytes into a column of text, or text into one of integers

        """
        if self.kind is str:
            if isinstance(stored, str) and "\0" not in stored:
                # Most keys begin with a letter: no call for these.
                return _unescaped(stored) if stored[:1] == "~" else stored
        elif isinstance(stored, self.kind):
            return stored
        shown = reprlib.repr(stored)
        raise ValueError(f"{shown} in the column {self.field} stands for no key")

    def is_key(self, stored: Any) -> bool:
        """Whether a key stands in the column as `stored`."""
        try:
            self.to_key(stored)
        except ValueError:
            return False
        return True

    @property
    def may_join(self) -> bool:
        """Whether the collation may take two keys for one, as far as the model tells."""
        return self.kind is str and (
            getattr(self.field, "db_collation", None) is not None
            or "CI" in type(self.field).__name__
        )


def _escaped(text: str) -> str:
    """Return text that each database takes: PostgreSQL stores no NUL."""
    if "\0" in text or _inside_escape(text) is not None:
        return _ESCAPE + json.dumps(text)
    return text


def _unescaped(stored: str) -> Any:
    text = _inside_escape(stored)
    return decode_key(stored if text is None else text)


def _inside_escape(stored: str) -> str | None:
    """Return the text of which `_escaped` makes `stored`; None: it makes it of none."""
    if not stored.startswith(_ESCAPE):
        return None
    try:
        text = json.loads(stored[len(_ESCAPE) :])
    except ValueError:
        return None
    return text if isinstance(text, str) and _escaped(text) == stored else None


class ValueColumn:
    """The column of the values.

    A text column gets text (bytes in base64), a BinaryField bytes, a JSONField native JSON, and any
    other field its own values: then no encoding is at work.

    :param field: the model's field
    :param own_encoding: whether the caller gave none

    """

    def __init__(self, field: Any, own_encoding: bool) -> None:
        self.field = field
        self.is_text = isinstance(field, (models.CharField, models.TextField))
        self.is_binary = isinstance(field, models.BinaryField)
        self.is_json = isinstance(field, models.JSONField)
        self.native: Any = None
        if self.is_json and own_encoding:
            self.native = _NativeJSON(field)
        elif not (self.is_text or self.is_binary or self.is_json):
            if field.is_relation or getattr(field, "generated", False):
                raise TypeError(
                    f"the value column {field} is a {type(field).__name__}, which is not written "
                    "with a value of its own"
                )
            if not own_encoding:
                raise TypeError(
                    f"the value column {field} is a {type(field).__name__}, which keeps its own "
                    "values: an encoding is for text, binary and JSON columns"
                )
            self.native = _NativeField(field)

    def encoding(self, given: Any) -> Any:
        """Return the encoding, in the form whose payloads the column takes."""
        if given is None or self.is_binary or getattr(given, "text", False) is None:
            return given
        return _TextOf(given)

    def decodable_quickly(self, encoding: Any) -> bool:
        """Whether payloads are pickles, in base64 or as they are: most rows hold these."""
        if not (self.is_text or self.is_binary) or getattr(encoding, "bind", None) is not None:
            return False
        return getattr(encoding, "decode", None) is PickleEncoding.decode

    def require_room(self, key: Any, payload: Any) -> None:
        """See that the column takes a payload as it is, and that it is not longer than it.

        :raises EncodingError: neither text nor, in a BinaryField, bytes, of which a column would
            make text in its own way; nothing was sent
        :raises ValueError: with both lengths; nothing was sent

        """
        if self.is_text or self.is_binary:
            kinds = (str,) if self.is_text else (str, bytes, bytearray, memoryview)
            if not isinstance(payload, kinds):
                raise EncodingError(
                    f"the payload of key {key!r} is of type {type(payload).__name__}: the column "
                    f"{self.field} holds {'str' if self.is_text else 'str or bytes'}, so the "
                    "encoding has to give that"
                )
        longest = self.field.max_length
        if longest is not None and isinstance(payload, (str, bytes)) and len(payload) > longest:
            raise ValueError(
                f"the value of key {key!r} takes {len(payload)} characters in the column "
                f"{self.field}, which has room for {longest}"
            )

    def to_column(self, payload: Any) -> Any:
        """Return what an instance's attribute is set to for a payload."""
        if self.is_binary and isinstance(payload, str):
            return payload.encode("utf-8")
        if self.is_json and payload is None:
            return Value(None, self.field)  # JSON's null: None itself would be SQL's
        if self.is_json:
            return copy.deepcopy(payload)  # the local copy has the very object
        return payload

    def is_as_put(self, found: Any, payload: Any) -> bool:
        """Whether an instance that was saved has the value that a payload was put there as."""
        put = payload
        if self.is_binary and isinstance(payload, str):
            put = payload.encode("utf-8")
        return type(found) is type(put) and bool(found == put)

    def to_payload(self, stored: Any) -> Any:
        """Return the payload that a row holds."""
        if self.is_binary and isinstance(stored, (bytearray, memoryview)):
            return bytes(stored)
        return stored  # in SQLite it may be anything, which is for the encoding to refuse

    @property
    def gives_back_what_it_takes(self) -> bool:
        """Whether a value comes back as it was given: a DecimalField rounds, for one."""
        return not isinstance(self.native, _NativeField) or type(self.field) in _EXACT

    def proof(self, name: str) -> Any:
        """Return the expression that a guarded write compares, to find the row as it was read.

        The text of what stands in the column, where its value would not find it again: two equal
        documents are one to the database, a Decimal may be rounded on the way, and a field of the
        user's that encrypts does so differently each time.

        """
        if type(self.field) in _EXACT or self.is_binary:
            return models.F(name)
        return Cast(name, models.TextField())


# Fields whose values compare equal to themselves in every database.
_EXACT = frozenset(
    {
        models.BigIntegerField,
        models.BooleanField,
        models.CharField,
        models.FloatField,
        models.IntegerField,
        models.PositiveBigIntegerField,
        models.PositiveIntegerField,
        models.PositiveSmallIntegerField,
        models.SlugField,
        models.SmallIntegerField,
        models.TextField,
        models.UUIDField,
    }
)


class _TextOf(BaseEncoding):
    """An encoding whose payloads are text, for a column of text: bytes are written in base64."""

    text = True

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._is_text = bool(getattr(inner, "text", False))
        for name in ("aliases", "executes_code", "signs", "immutable"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))
        if hasattr(inner, "bind"):
            self.bind = lambda keyspace, key: _TextOf(inner.bind(keyspace, key))
        if hasattr(inner, "recognizes"):
            self.recognizes = lambda payload: inner.recognizes(self._inside(payload))

    def __repr__(self) -> str:
        return repr(self._inner)

    def encode(self, value: Any) -> str:
        """Return the payload as text."""
        payload = self._inner.encode(value)
        if isinstance(payload, str):
            return payload
        return base64.b64encode(payload).decode("ascii")

    def decode(self, payload: str) -> Any:
        """Return the value of a payload."""
        return self._inner.decode(self._inside(payload))

    def _inside(self, payload: Any) -> Any:
        if self._is_text or not isinstance(payload, str):
            return payload
        try:
            return base64.b64decode(payload.encode("ascii"), validate=True)
        except (ValueError, binascii.Error):
            return payload.encode("utf-8")  # what 0.9 wrote has line breaks, which pickles know


class _NativeJSON(BaseEncoding):
    """Hands a JSONField values that come back as they are.

    Tuples become lists here as they do in the column, so that the local copy has what is stored.

    """

    text = None
    immutable = JSONEncoding.immutable

    def __init__(self, field: Any) -> None:
        self._field = field

    def encode(self, value: Any) -> Any:
        """Return the value as the column gives it back.

        :raises EncodingError: what only Python's JSON has, and NUL, which no database takes
        :raises TypeError: JSON has nothing like this value

        """
        if self._field.encoder is None:
            text = JSONEncoding.encode(value)
        else:
            text = json.dumps(value, cls=self._field.encoder)
        if "\\u0000" in text:
            raise EncodingError("JSON in a database cannot hold the character NUL")
        return json.loads(text, cls=self._field.decoder)

    @staticmethod
    def decode(payload: Any) -> Any:
        """Return the value, which the field has decoded."""
        return payload


class _NativeField(BaseEncoding):
    """Hands a field of another kind (a BooleanField, say) its own values."""

    text = None

    def __init__(self, field: Any) -> None:
        self._field = field

    def encode(self, value: Any) -> Any:
        """Return the value in the field's own type.

        :raises EncodingError: one that the field does not take

        """
        if value is None:
            if not self._field.null:
                raise EncodingError(f"the column {self._field} does not take None")
            return None
        try:
            return self._field.to_python(value)
        except (ValidationError, TypeError, ValueError) as error:
            raise EncodingError(f"the column {self._field} does not take {value!r}") from error

    def decode(self, payload: Any) -> Any:
        """Return the value, which the field has read."""
        if payload is None and not self._field.null:
            raise DecodingError("the row holds no value")
        return payload
