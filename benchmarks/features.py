"""Does with each mapping what its users do with a dict, and prints what came of it.

What cannot be found out by running a few lines is in the table of docs/comparison.rst alone.
"""

from __future__ import annotations

import json
import logging
import os
import shelve
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from importlib import import_module
from importlib.metadata import version
from typing import Any

from durabledict import SqliteDict
from tests.redisservers import RedisServer

__all__ = ["CHECKS", "YES", "feature_tables", "outcome"]

YES = "yes"

# Whatever the mapping is: some of these are no Mapping, and that is what is asked.
Check = Callable[[Any], bool]


def _stores(value: Any) -> Check:
    def check(d: Any) -> bool:
        d["k"] = value
        return bool(d["k"] == value and type(d["k"]) is type(value))

    return check


def _two_keys(d: Any) -> bool:
    d["1"], d[1] = "text", "number"
    return bool(d["1"] == "text" and 1 in list(d))


def _tuple_key(d: Any) -> bool:
    d["eu", 7] = "limit"
    return ("eu", 7) in list(d)


def _merge(d: Any) -> bool:
    d["k"] = "v"
    return bool((d | {"other": "w"})["other"] == "w")


def _copy(d: Any) -> bool:
    d["k"] = "v"
    return bool(d.copy()["k"] == "v")


def _keywords(d: Any) -> bool:
    d.update(k="v")
    return bool(d["k"] == "v")


def _as_json(d: Any) -> bool:
    d["k"] = "v"
    return bool(json.loads(json.dumps(d))["k"] == "v")


#: By what they are called in the table.
CHECKS: dict[str, Check] = {
    "isinstance(d, dict)": lambda d: isinstance(d, dict),
    "isinstance(d, MutableMapping)": lambda d: isinstance(d, MutableMapping),
    "1 and '1' are two keys": _two_keys,
    "a tuple is a key": _tuple_key,
    "d | {...}": _merge,
    "d.copy()": _copy,
    "d.update(k='v')": _keywords,
    "json.dumps(d)": _as_json,
    "None is a value": _stores(None),
    "bytes are a value": _stores(b"bytes"),
    "a Fraction is a value": _stores(Fraction(1, 3)),
    "a tuple comes back as one": _stores((1, "two")),
}

LINE = "{:<29} {:<11} {:<15} {:<16} {:<14} {:<16} {}"


def outcome(check: Check, opened: Any) -> str:
    """Return 'yes', 'no', or the name of what was raised."""
    try:
        return YES if check(opened) else "no"
    except Exception as error:
        # Whatever it is: what a peer raises is what is asked for here.
        return type(error).__name__


def feature_tables(folder: str) -> list[str]:
    """Print the table; there are no limits, so that none was missed."""
    print("\nWhat mappings do, by running it. 'no': it went through, with another result.\n")
    # It logs what it raises; and pottery warns of each walk over all keys.
    logging.getLogger("sqlitedict").setLevel(logging.CRITICAL + 1)
    with RedisServer() as server, ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openers = dict(_openers(folder, server))
        print(LINE.format("what", *openers))
        for number, (what, check) in enumerate(CHECKS.items()):
            found = [
                outcome(check, stack.enter_context(opener(f"{number}")))
                for opener in openers.values()
            ]
            print(LINE.format(what, *found).rstrip(), flush=True)
    return []


Opener = Callable[[str], Any]


def _openers(folder: str, server: RedisServer) -> Iterator[tuple[str, Opener]]:
    """Give what opens an empty mapping of each kind, by its name and version."""
    # As modules without types: some have none, and some have wrong ones.
    diskcache, pottery, redis_dict, sqlitedict = (
        import_module(name) for name in ("diskcache", "pottery", "redis_dict", "sqlitedict")
    )

    def path(*parts: str) -> str:
        return os.path.join(folder, "-".join(("features", *parts)))

    yield "durabledict", lambda name: SqliteDict[Any, Any](path("ours"), name)
    yield (
        f"diskcache {version('diskcache')}",
        lambda name: _closed(diskcache.Index(path("index", name)), lambda d: d.cache.close()),
    )
    yield (
        f"sqlitedict {version('sqlitedict')}",
        lambda name: sqlitedict.SqliteDict(path("sqlitedict", name), autocommit=True),
    )
    yield "shelve", lambda name: shelve.open(path("shelve", name))  # noqa: SIM115  # whoever asked closes it
    yield (
        f"redis-dict {version('redis-dict')}",
        lambda name: _closed(
            redis_dict.RedisDict(f"features{name}", host="127.0.0.1", port=server.port),
            lambda d: d.redis.close(),
        ),
    )
    yield (
        f"pottery {version('pottery')}",
        lambda name: _closed(
            pottery.RedisDict(redis=server.client(decode_responses=True), key=f"pottery{name}"),
            lambda d: d.redis.close(),
        ),
    )


@contextmanager
def _closed(opened: Any, close: Callable[[Any], object]) -> Iterator[Any]:
    """Close something at the end, in the way that it has for it."""
    try:
        yield opened
    finally:
        close(opened)
