"""The system checks: what a dict's cache, columns and database cannot keep of its promises.

They look at settings and models alone, and ask neither database nor cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from django.conf import settings
from django.core.cache import DEFAULT_CACHE_ALIAS
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections, router

from ... import modelsignals
from ...models import ModelDict
from ...restrictedpickle import RestrictedPickleEncoding
from ...stamps import CacheStamp, MemoryCache
from .configured import durabledicts
from .settingsdict import SettingsDict

__all__ = ["check_admin", "check_dicts"]

#: The packages of the caches, and the extras that bring them.
_EXTRAS = {"pymemcache": "memcached", "redis": "redis"}

#: Parts of the names of collations that join upper and lower case, or accents.
_JOINING = {"nocase", "rtrim", "ci", "ai", "level1", "level2", "insensitive"}


def check_dicts(app_configs: Any = None, **named: Any) -> list[CheckMessage]:
    """Check every dict of this process: those of `DURABLEDICTS`, and those made anywhere else."""
    dicts = {
        id(durable): durable
        for durable in (*durabledicts.values(), *modelsignals.living())
        if isinstance(durable, ModelDict) and not durable._is_closed
    }
    messages: list[CheckMessage] = []
    for durable in dicts.values():
        for message in _messages(durable):
            if message not in messages:  # two dicts over the same rows
                messages.append(message)
    return messages


def check_admin(app_configs: Any = None, **named: Any) -> list[CheckMessage]:
    """Check the setting `DURABLEDICT_ADMIN_ALLOW`."""
    try:
        RestrictedPickleEncoding(getattr(settings, "DURABLEDICT_ADMIN_ALLOW", ()))
    except TypeError as error:
        hint = 'Write a list of classes, or of their names: ["decimal.Decimal"].'
        return [Error(str(error), hint, "DURABLEDICT_ADMIN_ALLOW", "durabledict.E004")]
    return []


def _messages(durable: ModelDict[Any, Any]) -> Iterator[CheckMessage]:
    place = _place(durable)
    try:
        stamp = durable._stamp()
        cache = getattr(stamp.cache, "cache", stamp.cache)  # Django's own, of one that is
    except Exception as error:
        yield Error(
            f"The stamp cannot be kept: {error}",
            _remedy(error),
            place,
            "durabledict.E003",
        )
    else:
        yield from _about_cache(durable, stamp, cache, place)
    if not durable._rows.is_unique:
        columns = " and ".join([*sorted(durable._scope()), durable._key_column.field.name])
        yield Error(
            f"The column of the keys, {durable._key_column.field}, is not unique: two processes "
            "can each add a row for one key.",
            "Give the field unique=True, or the model a UniqueConstraint without a condition, of "
            f"{columns}.",
            place,
            "durabledict.E001",
        )
    yield from _about_collation(durable, place)
    yield from _about_database(durable, place)


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name in _EXTRAS:
        extra = _EXTRAS[error.name]
        return f"pip install {error.name}, or install durabledict with its extra [{extra}]."
    return "Name another cache: of CACHES, or a client of pymemcache or redis-py."


def _about_cache(
    durable: ModelDict[Any, Any], stamp: CacheStamp, cache: Any, place: str
) -> Iterator[CheckMessage]:
    kind = type(cache).__name__
    alias = getattr(cache, "_alias", None) or getattr(stamp.cache, "_alias", None)
    if durable._given_cache is None:
        alias = DEFAULT_CACHE_ALIAS
    name = f"{kind} of CACHES[{alias!r}]" if isinstance(alias, str) else kind
    if isinstance(cache, DummyCache):
        yield Warning(
            f"The cache that should hold the stamp, {name}, keeps nothing: every comparison loads "
            "all rows.",
            "Keep the stamp in memcached or Redis: in CACHES, or in the cache= (CACHE in "
            "DURABLEDICTS) of this dict alone.",
            place,
            "durabledict.W001",
        )
    elif isinstance(cache, (LocMemCache, MemoryCache)):
        yield Warning(
            f"The cache that holds the stamp, {name}, is one of each process: what one process "
            "writes, the others see only when `verify` seconds have passed.",
            "Keep the stamp in memcached or Redis: in CACHES, or in the cache= (CACHE in "
            "DURABLEDICTS) of this dict alone.",
            place,
            "durabledict.W001",
        )
    elif not stamp.cache.atomic:
        yield Warning(
            f"The cache that holds the stamp, {name}, has no atomic incr: a dict loads all rows "
            "again after each write of its own.",
            "Keep the stamp in memcached or Redis, which have one.",
            place,
            "durabledict.W002",
        )


def _about_collation(durable: ModelDict[Any, Any], place: str) -> Iterator[CheckMessage]:
    field = durable._key_column.field
    if durable._key_column.kind is not str:
        return
    try:
        connection = connections[durable._alias]
        column: str = field.db_type(connection) or ""
    except Exception:
        return  # no such database, of which Django's own checks tell
    collation = getattr(field, "db_collation", None) or ""
    joins = bool(_JOINING.intersection(re.split(r"[^a-z0-9]+", collation.lower())))
    if connection.vendor == "mysql":
        joins = not collation.lower().endswith("_bin")
        if not collation:
            collation = connection.settings_dict.get("OPTIONS", {}).get("collation", "")
            collation = collation or "of the table"
        remedy = 'db_collation="utf8mb4_bin"'
    else:
        remedy = "a db_collation that is case-sensitive" if joins else "a CharField or TextField"
        if "citext" in column.lower():
            joins, collation = True, "citext"
    if joins:
        yield Warning(
            f"The collation of the column of the keys, {field} ({collation}), may take two keys "
            'for one, "Beta" and "beta" say: the second cannot be stored.',
            f"Give the field {remedy}, or write the keys in one form alone.",
            place,
            "durabledict.W003",
        )


def _about_database(durable: ModelDict[Any, Any], place: str) -> Iterator[CheckMessage]:
    alias = durable._alias
    try:
        chosen = connections[alias].settings_dict
    except Exception:
        return
    mirrored = chosen.get("TEST", {}).get("MIRROR")
    routed = _routed(durable.model)
    if mirrored:
        problem = f"is a replica of {mirrored!r}, as its TEST MIRROR says"
    elif routed is None or _is_same_database(alias, routed):
        return
    else:
        problem = f"is not {routed!r}, to which the router writes {durable.model._meta.label}"
    yield Error(
        f"The database {alias!r} {problem}: a dict that reads old rows under a new stamp keeps "
        "them.",
        f"Write using={(mirrored or routed)!r} (USING in DURABLEDICTS)"
        + ("." if durable.using else ", or change the router's db_for_write."),
        place,
        "durabledict.E002",
    )


def _routed(model: Any) -> str | None:
    """Return where the project's routers write a model; None where they leave it to Django."""
    for one in router.routers:
        method = getattr(one, "db_for_write", None)
        answer = method(model) if method is not None else None
        if answer:
            return str(answer)
    return None


def _is_same_database(alias: str, other: str) -> bool:
    if alias == other:
        return True
    try:
        one, two = connections[alias].settings_dict, connections[other].settings_dict
    except Exception:
        return False
    return all(one.get(name) == two.get(name) for name in ("ENGINE", "NAME", "HOST", "PORT"))


def _place(durable: ModelDict[Any, Any]) -> str:
    name = durabledicts.name_of(durable)
    if name is not None:
        return f"DURABLEDICTS[{name!r}]"
    kind = durable._native_class.__name__
    if isinstance(durable, SettingsDict):
        return f"{kind}({durable.keyspace!r})"
    names: Iterable[str] = (durable.model._meta.label, durable.key_col, durable.value_col)
    return f"{kind}({', '.join(names)})"
