"""One process that holds a dict: `python -m benchmarks.growingprocess PLACE NAME MODE`.

It does what its standard input says, a line each, and answers with what that took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import durabledict
from durabledict import DurableDict
from tests.servers import HOST

from .reads import entries

__all__ = ["KEY", "MODES", "NAME", "SIZES"]

KEY = "setting.50"
NAME = "growing"
LENGTH = 100
#: How many entries the dicts have whose memory is measured.
SIZES = (1, 1_000, 10_000)

STRICT, SECONDS, SYNC, WATCH = "autosync=True", "autosync=1.0", "sync() each request", "watch()"
LEADER = 'autosync="strict"'
#: The dict's `autosync`, by the name of the mode.
MODES: dict[str, Any] = {STRICT: True, LEADER: "strict", SECONDS: 1.0, SYNC: False, WATCH: False}

Place = dict[str, Any]


def _open(place: Place, name: str, autosync: Any) -> DurableDict[str, str]:
    # Each driver is imported only where it is used: it is a part of the memory.
    if place["kind"] == "sqlite":
        return durabledict.SqliteDict(place["path"], name, autosync=autosync)
    if place["kind"] == "redis":
        return durabledict.RedisDict.from_url(
            f"redis://{HOST}:{place['port']}/0", name, autosync=autosync
        )
    if place["kind"] == "zookeeper":
        return durabledict.ZookeeperDict.from_url(
            f"zookeeper://{HOST}:{place['port']}/{name}", autosync=autosync
        )
    return _settings(place, name, autosync)


def _settings(place: Place, name: str, autosync: Any) -> DurableDict[str, str]:
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=["durabledict.ext.django"],
        # The connection stays open from one request to the next.
        DATABASES={"default": {**place["database"], "CONN_MAX_AGE": None}},
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
                "LOCATION": f"{HOST}:{place['memcached']}",
            }
        },
    )
    django.setup()
    if place["migrate"]:
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
    from durabledict.ext.django import SettingsDict

    return SettingsDict(name, autosync=autosync)


class Holder:
    """What this process holds, and what it can be asked to do.

    :param request: what a request of a web server does before it reads

    """

    def __init__(self, held: DurableDict[str, str], request: Callable[[], object]) -> None:
        self.held = held
        self.request = request

    def fill(self, count: str) -> None:
        """Store so many entries."""
        self.held.update({key: _long(value) for key, value in entries(int(count)).items()})

    def write(self, value: str) -> None:
        """Change an entry."""
        self.held[KEY] = _long(value)

    def see(self, value: str) -> None:
        """Read until the entry has this value."""
        while True:
            self.request()
            if self.held[KEY] == _long(value):
                return
            time.sleep(0.001)

    def idle(self, seconds: str) -> None:
        """Do nothing."""
        time.sleep(float(seconds))

    def read(self, rate: str, seconds: str) -> None:
        """Read so often a second."""
        began = time.monotonic()
        for number in range(int(rate) * int(seconds)):
            self.request()
            self.held[KEY]
            time.sleep(max(0.0, began + (number + 1) / int(rate) - time.monotonic()))


def _long(value: str) -> str:
    return value.ljust(LENGTH)


def _taken() -> tuple[float, int, int]:
    """Return the processor's seconds, and the calls and bytes that were read or written."""
    seconds = time.process_time()
    with open("/proc/self/io") as lines:
        found = {name: int(value) for name, value in (line.split(":") for line in lines)}
    return seconds, found["syscr"] + found["syscw"], found["rchar"] + found["wchar"]


def _memory() -> int:
    """Return the bytes of memory that this process has, those shared with others included."""
    with open("/proc/self/statm") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _nothing() -> None:
    """Do nothing."""


def main() -> None:
    place, name, mode = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    with ExitStack() as stack:
        held = stack.enter_context(_open(place, name, MODES[mode]))
        holder = Holder(held, held.sync if mode == SYNC else _nothing)
        if mode == WATCH:
            stack.enter_context(held.watch())
        for line in sys.stdin:
            action, *arguments = line.split()
            if action == "memory":
                # Some load at the first read.
                len(held)
                print(json.dumps(_memory()), flush=True)
                continue
            # What it takes to look at that is taken off.
            looked = [_taken(), _taken()]
            getattr(holder, action)(*arguments)
            looked.append(_taken())
            first, second, third = looked
            print(
                json.dumps([z - y - (y - x) for x, y, z in zip(first, second, third, strict=True)]),
                flush=True,
            )


if __name__ == "__main__":
    main()
