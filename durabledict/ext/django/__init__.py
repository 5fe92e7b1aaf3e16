"""The Django app: `SettingsDict`, a dict without a model of one's own, and the system checks.

In the settings::

    INSTALLED_APPS = [..., "durabledict.ext.django"]
    DURABLEDICTS = {"flags": {"AUTOSYNC": False}}

and anywhere else::

    from durabledict.ext.django import durabledicts

    flags = durabledicts["flags"]

The names here load when they are first used, so that Django can import this package before its
apps are ready.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configured import durabledicts
    from .settingsdict import SettingsDict

__all__ = ["SettingsDict", "durabledicts"]

_MODULES = {"SettingsDict": "settingsdict", "durabledicts": "configured"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("durabledict.models")  # whose error says what to install
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
