"""`SettingsDict`: a dict in a Django database, without a model of one's own."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from django.apps import apps
from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured

from ...models import ModelDict

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...base import Options

__all__ = ["SettingsDict"]

K = TypeVar("K")
V = TypeVar("V")

APP = "durabledict.ext.django"


class SettingsDict(ModelDict[K, V]):
    """A `ModelDict` over the app's own table, in which each keyspace is a dict of its own.

    >>> from durabledict.ext.django import SettingsDict
    >>> flags = SettingsDict("flags", autosync=False)  # doctest: +SKIP

    It may be made where a module is imported, models.py included: the database and the cache are
    asked by the first read or write. What each operation costs: see `ModelDict`. Two keyspaces
    have stamps of their own, so that a write to one costs the readers of the other nothing.

    :param keyspace: the name of the dict, the same in all processes
    :param autosync: see `DurableDict`
    :param encoding: see `DurableDict`; None: pickles. The admin shows and edits what is JSON
    :param old_encoding: see `DurableDict`
    :param cache: where the stamp is kept; see `ModelDict`
    :param cache_key: see `ModelDict`
    :param using: see `ModelDict`
    :param verify: see `ModelDict`
    :param options: ``on_outage``, ``max_stale``, ``allow_unsigned``: see `DurableDict`
    :raises TypeError: a keyspace that is no str
    :raises ValueError: a keyspace that the column does not take: empty, too long, or with
        characters that a database refuses
    :raises django.core.exceptions.AppRegistryNotReady: made before Django has loaded the apps
    :raises django.core.exceptions.ImproperlyConfigured: the app is not in INSTALLED_APPS

    """

    __slots__ = ("keyspace",)

    def __init__(
        self,
        keyspace: str,
        autosync: bool | float | timedelta = True,
        encoding: Any = None,
        old_encoding: Any = None,
        *,
        cache: Any = None,
        cache_key: str | None = None,
        using: str | None = None,
        verify: float | timedelta | None = 60.0,
        **options: Unpack[Options],
    ) -> None:
        model = _model(keyspace)
        self.keyspace = _checked(keyspace, model._meta.get_field("keyspace").max_length)
        super().__init__(
            model,
            cache,
            autosync=autosync,
            encoding=encoding,
            old_encoding=old_encoding,
            cache_key=cache_key,
            using=using,
            verify=verify,
            **options,
        )

    def _scope(self) -> dict[str, Any]:
        return {"keyspace": self.keyspace}

    def _has(self, instance: Any) -> bool:
        return self.keyspace in (instance.keyspace, instance._loaded_keyspace)


def _model(keyspace: object) -> Any:
    try:
        installed = apps.is_installed(APP)
    except AppRegistryNotReady as error:
        raise AppRegistryNotReady(
            f"SettingsDict({keyspace!r}) is made before Django has loaded the apps: make it in "
            "models.py, views.py or AppConfig.ready()"
        ) from error
    if not installed:
        raise ImproperlyConfigured(
            f'SettingsDict({keyspace!r}) needs a table: add "{APP}" to INSTALLED_APPS, and migrate'
        )
    from .models import Setting

    return Setting


def _checked(keyspace: object, longest: int) -> str:
    if not isinstance(keyspace, str):
        raise TypeError(f'keyspace={keyspace!r}: write a name, SettingsDict("flags") say')
    name = str.__str__(keyspace)  # of a subclass, such as an enumeration
    if not 0 < len(name) <= longest:
        raise ValueError(
            f"keyspace={name!r} has {len(name)} characters: write a name of 1 to {longest}"
        )
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"keyspace={name!r} has characters that a database does not take")
    return name
