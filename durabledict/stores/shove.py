"""`ShoveStore`: objects in any mapping, or in the files behind a URL of fsspec."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import MutableMapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from .. import coder
from ..base import DurableDict
from ..basicencodings import PickleEncoding
from ..extras import raise_if_missing
from ..hiding import hidden, kind_of
from . import lifetime
from .cells import is_marker
from .dictionary import BaseDictionaryStore
from .lifetime import LifetimeCallback

__all__ = ["ShoveStore", "location_of"]

#: Characters of a name that every file system takes.
LONGEST = 200

#: Schemes whose files are in another one, which the URL has to name.
_ARCHIVES = ("libarchive", "tar", "zip")

_CREDENTIALS = re.compile(r"s3://([^:/@]+):(.+)@([^@/]+)(/.*)?")


class ShoveStore(BaseDictionaryStore):
    """Keeps objects in a mapping, or as files: bytes under readable names.

    >>> ShoveStore()
    Traceback (most recent call last):
    TypeError: ShoveStore takes one of: a mapping, shove=, uri=, shoveuri=

    One read or write of the mapping for each name: it has no batches. Expired objects are not
    served; they stay until they are put or deleted. A local file is replaced in one step; what
    other file systems and mappings do when two write at once is their own affair, and there is no
    compare-and-set.

    :param mapping: any mutable mapping that holds bytes; or a URL
    :param shove: the same, under stockpyle's name
    :param uri: a URL for `fsspec`: a folder's path, ``memory://name``, ``zip://::file.zip``;
        ``s3://key:secret@bucket`` is understood
    :param shoveuri: the same, under stockpyle's name
    :param storage_options: for fsspec, in addition to what is in the URL
    :raises TypeError: none of the first four, or several
    :raises ValueError: a URL of an unknown scheme, or that names no place
    :raises ImportError: fsspec, or what it needs for the URL, is not installed

    The other parameters are those of `BaseDictionaryStore`.

    """

    def __init__(
        self,
        mapping: MutableMapping[str, Any] | str | None = None,
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        *,
        shove: MutableMapping[str, Any] | None = None,
        uri: str | None = None,
        shoveuri: str | None = None,
        storage_options: dict[str, Any] | None = None,
        encoding: Any = PickleEncoding,
        old_encoding: Any = None,
        allow_unsigned: bool = False,
    ) -> None:
        given = [each for each in (mapping, shove, uri, shoveuri) if each is not None]
        if len(given) != 1:
            raise TypeError("ShoveStore takes one of: a mapping, shove=, uri=, shoveuri=")
        super().__init__(
            polymorphic,
            lifetime_cb,
            encoding=encoding,
            old_encoding=old_encoding,
            allow_unsigned=allow_unsigned,
        )
        source = given[0]
        self._files: Any = None
        if isinstance(source, str):
            self._files = source = _open(source, storage_options or {})
        if not isinstance(source, MutableMapping):
            raise TypeError(f"{kind_of(source)} is no mutable mapping, and no URL")
        self._mapping: MutableMapping[str, Any] = source
        # A plain dict is this process's own.
        self.shared = not isinstance(source, dict) or isinstance(source, DurableDict)

    def _read(self, name: str) -> Any:
        return self._mapping.get(self._short(name))

    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        name = self._short(name)
        if self._files is not None and _is_local(self._files.fs):
            _replace(self._files._key_to_str(name), cell)
        else:
            self._mapping[name] = cell

    def _remove(self, name: str) -> None:
        try:
            self._mapping.pop(self._short(name), None)
        except KeyError:
            # Somebody else was quicker: an older fsspec takes a default of None for none at all.
            # Not `del`: fsspec's makes a KeyError of any failure; pop() reads first, and tells.
            pass

    def _short(self, name: str) -> str:
        if self._files is None or len(name.rpartition("/")[2]) <= LONGEST:
            return name
        folder, _, file = name.rpartition("/")
        digest = hashlib.sha256(file.encode()).hexdigest()
        return f"{folder}/{file[: LONGEST - len(digest) - 1]}-{digest}"

    def _decode(self, name: str, cell: Any) -> Any:
        if isinstance(cell, tuple):
            return _living(cell)
        if is_marker(cell) or cell[:1] in (b"R", b"T", b"P"):
            return super()._decode(name, cell)
        # What stockpyle stored through shove is a pickled tuple without a header.
        value = coder.decode(self.encoding, self.old_encoding, self.keyspace, name, cell)
        return _living(value) if isinstance(value, tuple) else value


def _living(stored: tuple[Any, ...]) -> Any:
    """Return the object of stockpyle's ``(object, expiry)``; None: it has expired."""
    obj, expires = stored
    if isinstance(expires, datetime):
        expires = expires.timestamp()
    return None if expires and expires <= lifetime.now() else obj


def location_of(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL without credentials, and these as fsspec's options.

    >>> location_of("s3://s3key:s3/secret@your_s3_bucket_name")
    ('s3://your_s3_bucket_name', {'key': 's3key', 'secret': 's3/secret'})
    >>> location_of("memory://objects")
    ('memory://objects', {})

    """
    found = _CREDENTIALS.fullmatch(url)
    if found is None:
        return url, {}
    key, secret, bucket, path = found.groups()
    return f"s3://{bucket}{path or ''}", {"key": unquote(key), "secret": unquote(secret)}


def _open(url: str, options: dict[str, Any]) -> Any:
    try:
        import fsspec  # type: ignore[import-untyped]  # it has no types
    except ModuleNotFoundError as error:
        raise_if_missing(error, "a URL needs", "fsspec", extra="files")
        raise
    location, credentials = location_of(url)
    given = {**credentials, **options}
    scheme, separator, rest = location.partition("://")
    if not location or (separator and not scheme):
        raise ValueError(f"{hidden(url)!r} names no place: write a folder's path, or a URL")
    if separator and scheme.split("::")[0] not in fsspec.available_protocols():
        schemes = ", ".join(sorted(fsspec.available_protocols()))
        raise ValueError(f"{hidden(url)!r}: fsspec knows no scheme {scheme!r}; it has {schemes}")
    if scheme in _ARCHIVES and "::" not in rest:
        raise ValueError(
            f"{hidden(url)!r} is inside of an archive, and does not say of which: write "
            f"{scheme}://::{rest}"
        )
    try:
        return fsspec.get_mapper(location, **given)
    except ImportError as error:
        raise ImportError(
            f"{hidden(url)!r} needs a further package; install it with pip. fsspec says: {error}",
            name=error.name,
        ) from error


def _is_local(files: Any) -> bool:
    return "file" in ([files.protocol] if isinstance(files.protocol, str) else files.protocol)


def _replace(path: str, cell: bytes) -> None:
    """Write a local file so that a reader sees the old one or the new one.

    Not by fsspec's `commit`: it comes from the system's temporary folder, which may be on another
    file system, and fails where another thread removes the file in that moment.

    """
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # Beside it, with the rights that the process gives to new files.
    beside = os.path.join(folder, f".{os.urandom(8).hex()}.new")
    try:
        with open(beside, "xb") as file:
            file.write(cell)
        os.replace(beside, path)
    except BaseException:
        try:
            os.unlink(beside)
        except FileNotFoundError:
            pass
        raise
