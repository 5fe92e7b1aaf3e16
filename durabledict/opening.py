"""`open(url)`: from a URL to a dict, and the register of schemes."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .base import DurableDict
from .hiding import hidden
from .options import named_options

__all__ = ["open", "register_scheme"]

# What DurableDict itself takes; a backend's **options are these.
_COMMON = [
    name
    for name, parameter in inspect.signature(DurableDict.__init__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
]


@dataclass(frozen=True)
class _Scheme:
    module: str
    name: str
    extra: str | None
    driver: str | None
    # Whether the driver takes settings of its own in the URL.
    takes_query: bool = False


_schemes: dict[str, _Scheme] = {
    "memory": _Scheme("durabledict.memory", "MemoryDict", None, None),
    "redis": _Scheme("durabledict.redis", "RedisDict", "redis", "redis", True),
    "rediss": _Scheme("durabledict.redis", "RedisDict", "redis", "redis", True),
    "sqlite": _Scheme("durabledict.sqlite", "SqliteDict", None, None),
    "unix": _Scheme("durabledict.redis", "RedisDict", "redis", "redis", True),
    "zookeeper": _Scheme("durabledict.zookeeper", "ZookeeperDict", "zookeeper", "kazoo"),
}


def register_scheme(
    scheme: str, target: str, *, extra: str | None = None, driver: str | None = None
) -> None:
    """Make `open` know a scheme; the backend's module is imported when a URL asks for it.

    >>> register_scheme("folder", "mypackage.folderdict:FolderDict")

    :param scheme: what stands before ``://``
    :param target: ``"module:Class"``; the class has a ``from_url(url, **options)``
    :param extra: the extra of durabledict that brings the driver
    :param driver: the name of the driver's package, for the message when it is missing

    """
    module, separator, name = target.partition(":")
    if not (module and separator and name):
        raise ValueError(f'target={target!r}: write "module:Class"')
    _schemes[scheme] = _Scheme(module, name, extra, driver)


def open(url: str, /, **options: Any) -> DurableDict[Any, Any]:
    """Open the dict that a URL names.

    =============================  =====================================================
    URL                            dict
    =============================  =====================================================
    ``memory://``                  `MemoryDict` with a storage of its own
    ``memory://name``              `MemoryDict`, the same storage for all of that name
    ``sqlite:///path``             `SqliteDict`; four slashes for an absolute path
    ``redis://host:port/db``       `RedisDict`; ``keyspace=...`` names the hash
    ``rediss://``                  `RedisDict` over TLS
    ``unix:///path``               `RedisDict` over a Unix socket
    ``zookeeper://a:1,b:2/path``   `ZookeeperDict`, the entries below that path
    =============================  =====================================================

    >>> import durabledict
    >>> d = durabledict.open("memory://", autosync=5.0)
    >>> durabledict.open("memory://", autosnyc=5.0)
    Traceback (most recent call last):
    TypeError: memory:// has no option 'autosnyc'; there are: autosync, encoding, old_encoding,
    storage, on_outage, max_stale, allow_unsigned

    :param url: the scheme says which class, the rest where the store is
    :param options: keywords of that class; none go into the URL, where a driver's own may be
    :raises ValueError: an unknown scheme, or options in the URL
    :raises TypeError: an unknown option
    :raises ImportError: the scheme's driver is not installed; it names the remedy

    """
    if not isinstance(url, str):
        raise TypeError(
            f"open takes a URL, not {type(url).__name__}; a path is for SqliteDict(path)"
        )
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _schemes:
        schemes = ", ".join(f"{s}://" for s in sorted(_schemes))
        problem = "the schemes are" if separator else "no URL, which begins with a scheme:"
        raise ValueError(
            f"{hidden(url)!r}: {problem} {schemes}; a file is sqlite:///relative/path or "
            "sqlite:////absolute/path"
        )
    if "?" in rest and not _schemes[scheme].takes_query:
        raise ValueError(_misplaced(url, scheme))
    target = _load(scheme)
    known = _known_options(target)
    if not _names_in_query(url).isdisjoint(known):
        raise ValueError(_misplaced(url, scheme))
    _check_options(scheme, target, options, known)
    return target.from_url(url, **options)  # type: ignore[no-any-return]  # of a class by name


def _load(scheme: str) -> Any:
    entry = _schemes[scheme]
    try:
        return getattr(importlib.import_module(entry.module), entry.name)
    except ModuleNotFoundError as error:
        if entry.driver is None or error.name == entry.module:
            raise
        message = f"{scheme}:// needs the package {entry.driver}: pip install {entry.driver}"
        if entry.extra is not None:
            message += f", or install durabledict with its extra [{entry.extra}]"
        raise ImportError(message, name=error.name) from error


def _misplaced(url: str, scheme: str) -> str:
    return f"{hidden(url)!r}: options go into keywords, as in open('{scheme}://...', autosync=5.0)"


def _names_in_query(url: str) -> set[str]:
    """Return the names of what is in the query of a URL.

    :raises ValueError: it cannot be read

    """
    try:
        return set(parse_qs(urlsplit(url).query, keep_blank_values=True))
    except ValueError:
        pass  # whose message may have the password
    raise ValueError(f"{hidden(url)!r} cannot be read: write other characters of a name as %XX")


def _known_options(target: Any) -> list[str]:
    """Return the options of a class: what stands in its URL is positional, and none of them."""
    parameters = inspect.signature(target.__init__).parameters
    known = [*_needed_options(target), *named_options(target)]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        known += [name for name in _COMMON if name not in known]
    return known


def _needed_options(target: Any) -> list[str]:
    """Return what the URL does not say: parameters of `from_url` beside it, without a default."""
    return [
        name
        for name, parameter in inspect.signature(target.from_url).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is inspect.Parameter.empty
    ][1:]


def _check_options(scheme: str, target: Any, options: dict[str, Any], known: list[str]) -> None:
    for option in options:
        if option not in known:
            raise TypeError(f"{scheme}:// has no option {option!r}; there are: {', '.join(known)}")
    for option in _needed_options(target):
        if option not in options:
            raise TypeError(f"{scheme}:// needs {option}=...")
