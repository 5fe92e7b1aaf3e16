"""The settings that can be changed while the project runs: a dict that all processes share."""

from __future__ import annotations

from typing import Any

from django.core.signals import request_started

from durabledict import JSONEncoding
from durabledict.ext.django import SettingsDict

# Reads are those of a plain dict: they ask nobody.
flags: SettingsDict[str, Any] = SettingsDict("flags", autosync=False, encoding=JSONEncoding)

# Once a request, one get of the cache asks whether there is anything new.
request_started.connect(flags.sync)
