"""The setting `DURABLEDICTS`: the dicts of a project by name, one of each in a process.

A name stands for what makes the dict:

- options of `SettingsDict`, in capitals: ``"flags": {"AUTOSYNC": False}``, or ``"flags": {}``
- with "MODEL", options of `ModelDict`: ``"prices": {"MODEL": "shop.Price", "KEY_COL": "article"}``
- the dotted path of a dict of one's own: ``"routes": "myapp.routing.routes"``
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.utils.module_loading import import_string

from ...base import DurableDict
from ...models import ModelDict
from .settingsdict import SettingsDict

__all__ = ["DurableDicts", "durabledicts"]

#: What every dict of the setting takes.
OPTIONS = (
    "ALLOW_UNSIGNED", "AUTOSYNC", "CACHE", "CACHE_KEY", "ENCODING", "MAX_STALE", "OLD_ENCODING",
    "ON_OUTAGE", "USING", "VERIFY",
)  # fmt: skip

#: What one over a model of the project's own takes besides.
MODEL_OPTIONS = ("KEY_COL", "MODEL", "RETURN_INSTANCES", "VALUE_COL")


class DurableDicts(Mapping[str, DurableDict[Any, Any]]):
    """The dicts of the setting `DURABLEDICTS`; each is made once, at its first use or at start-up.

    Making one asks neither database nor cache.

    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # By name, with the options that each was made of.
        self._made: dict[str, tuple[object, DurableDict[Any, Any]]] = {}
        self._before: list[dict[str, tuple[object, DurableDict[Any, Any]]]] = []

    def __getitem__(self, name: str) -> DurableDict[Any, Any]:
        """Return the dict of that name, always the same one.

        :raises KeyError: the setting names no such dict; the message names those that it does
        :raises django.core.exceptions.ImproperlyConfigured: its options cannot be understood

        """
        made = self._made.get(name)
        if made is not None:
            return made[1]
        every = _setting()
        if name not in every:
            known = ", ".join(map(repr, every)) or "none"
            raise KeyError(f"no dict {name!r} in the setting DURABLEDICTS; there are: {known}")
        options = every[name]
        # Outside of the lock, since it imports: another thread may hold the lock of a module that
        # waits for ours.
        make = _recipe(name, options)
        with self._lock:
            if name not in self._made:
                self._made[name] = options, make()
            return self._made[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(_setting())

    def __len__(self) -> int:
        return len(_setting())

    def __repr__(self) -> str:
        return f"<durabledicts: {', '.join(map(repr, _setting())) or 'none'}>"

    def make_all(self) -> None:
        """Make them all, so that their signals are heard in this process."""
        for name in self:
            self[name]

    def name_of(self, durable: object) -> str | None:
        """Return the name of a dict that was made here; None for any other."""
        for name, (_, made) in list(self._made.items()):
            if made is durable:
                return name
        return None

    def _setting_changed(
        self, *, setting: str, value: object, enter: bool, **named: object
    ) -> None:
        """Follow a test that overrides the setting, and come back to the same dicts after it."""
        if setting != "DURABLEDICTS":
            return
        with self._lock:
            if not enter:
                self._made = self._before.pop() if self._before else {}
                return
            self._before.append(self._made)
            new = value if isinstance(value, Mapping) else {}
            self._made = {
                name: made for name, made in self._made.items() if new.get(name) is made[0]
            }


def _setting() -> Mapping[str, Any]:
    every = getattr(settings, "DURABLEDICTS", None) or {}
    if not isinstance(every, Mapping):
        raise ImproperlyConfigured(
            f'DURABLEDICTS={every!r}: write a dict of names and options, {{"flags": {{}}}} say'
        )
    return every


def _recipe(name: str, options: object) -> Callable[[], DurableDict[Any, Any]]:
    """Return a function that makes a dict and imports nothing.

    :raises django.core.exceptions.ImproperlyConfigured: the options cannot be understood

    """
    place = f"DURABLEDICTS[{name!r}]"
    if isinstance(options, str):
        found = _imported(place, options)
        if not isinstance(found, DurableDict):
            raise ImproperlyConfigured(f"{place}: {options!r} is a {_kind(found)}, and no dict")
        return lambda: found
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured(
            f"{place}={options!r}: write a dict of options, or the dotted path of a dict"
        )
    named = _named(place, options)
    model = named.pop("model", None)
    kind: Callable[[], DurableDict[Any, Any]]
    if model is None:
        kind = partial(SettingsDict[Any, Any], name, **named)
    else:
        kind = partial(ModelDict[Any, Any], _model(place, model), **named)

    def make() -> DurableDict[Any, Any]:
        try:
            return kind()
        except (TypeError, ValueError, FieldDoesNotExist) as error:
            raise ImproperlyConfigured(f"{place}: {error}") from error

    return make


def _named(place: str, options: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the options as the classes take them."""
    known = sorted(OPTIONS + MODEL_OPTIONS if "MODEL" in options else (*OPTIONS, "MODEL"))
    for option in options:
        if option not in known:
            raise ImproperlyConfigured(
                f"{place} has no option {option!r}; there are: {', '.join(known)}"
            )
    named = {str(option).lower(): value for option, value in options.items()}
    for option in ("encoding", "old_encoding"):
        if isinstance(named.get(option), str):
            named[option] = _imported(place, named[option])
    _check_alias(place, "USING", named.get("using"), connections.settings)
    _check_alias(place, "CACHE", named.get("cache"), settings.CACHES)
    return named


def _check_alias(place: str, option: str, alias: object, known: Mapping[str, Any]) -> None:
    if isinstance(alias, str) and alias not in known:
        raise ImproperlyConfigured(
            f"{place}: {option}={alias!r} is no alias; there are: {', '.join(known)}"
        )


def _imported(place: str, path: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"{place}: {path!r} cannot be imported: {error}") from error


def _model(place: str, label: object) -> Any:
    if not isinstance(label, str):
        return label  # a model, or a manager
    try:
        return apps.get_model(label, require_ready=False)
    except (LookupError, ValueError) as error:
        raise ImproperlyConfigured(
            f'{place}: MODEL={label!r}: write "app_label.Model" ({error})'
        ) from error


def _kind(found: object) -> str:
    return type(found).__name__


durabledicts = DurableDicts()

setting_changed.connect(durabledicts._setting_changed, dispatch_uid="durabledict")
