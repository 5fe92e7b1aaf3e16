"""The pages of the benchmarks' project, as a user would write them; imported when it is set up."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from durabledict.ext.django import SettingsDict

from .djangoproject import SETTINGS

__all__ = ["flags", "urlpatterns"]

# With `request_started.connect(flags.sync)`, which the benchmark does for one page alone.
flags = SettingsDict[str, str]("flags", autosync=False)


def of_settings_dict(request: HttpRequest) -> HttpResponse:
    """Read all settings from the dict."""
    return HttpResponse(",".join([flags[name] for name in SETTINGS]))


def of_constance(request: HttpRequest) -> HttpResponse:
    """Read all settings from django-constance."""
    from constance import config

    return HttpResponse(",".join([getattr(config, name) for name in SETTINGS]))


urlpatterns = [path("durabledict", of_settings_dict), path("constance", of_constance)]
