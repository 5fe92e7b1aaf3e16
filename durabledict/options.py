"""The options that every dict takes, checked, with messages that say what to write."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from datetime import timedelta

__all__ = ["checked_autosync", "named_options", "outage_policy", "seconds"]


def seconds(value: object) -> float | None:
    """Return a finite number or a timedelta as seconds, and None for anything else.

    >>> seconds(timedelta(minutes=1)), seconds(5), seconds(True), seconds("5")
    (60.0, 5.0, None, None)

    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def checked_autosync(value: object, words: tuple[str, ...]) -> bool | float | str:
    """Return `autosync` as it is kept, with seconds as a float.

    :param words: what else the backend takes
    :raises TypeError: anything else; the message says what to write

    """
    if value is True or value is False:
        return value
    if isinstance(value, str) and value in words:
        return value
    if isinstance(value, Mapping):
        raise TypeError(
            "the contents come from the store, and are no argument: open the dict, and write them "
            "with update()"
        )
    # An int is refused though 5 is clear: 1 and 0 are what others write for True and False.
    given = None if isinstance(value, int) else seconds(value)
    if given is not None and given > 0:
        return given
    choices = "".join(f', "{word}"' for word in words)
    raise TypeError(
        f"autosync={value!r}: write True (every read compares), False (only sync() does), or "
        f"seconds above 0 as a float or timedelta, 5.0 say{choices}"
    )


def outage_policy(on_outage: str, max_stale: object) -> tuple[str, float | None]:
    """Return `on_outage` and `max_stale` as they are kept.

    :raises ValueError: no such policy, or a bound without the policy that it bounds
    :raises TypeError: a bound that is no number of seconds

    """
    if on_outage not in ("raise", "stale"):
        raise ValueError(f'on_outage={on_outage!r}: write "raise" or "stale"')
    if max_stale is None:
        return on_outage, None
    limit = seconds(max_stale)
    if limit is None or limit < 0:
        raise TypeError(f"max_stale={max_stale!r}: write seconds, or a timedelta")
    if on_outage == "raise":
        raise ValueError('max_stale bounds how long a stale copy is served: on_outage="stale"')
    return on_outage, limit


def named_options(*classes: type) -> list[str]:
    """Return the names of the parameters of constructors that have a default, each once.

    Those of a class, and of the ones that it inherits from as far as each hands others on.

    """
    names: dict[str, None] = {}
    for kind in classes:
        for each in kind.__mro__:
            if "__init__" not in vars(each):
                continue
            constructor: Callable[..., object] = each.__init__  # type: ignore[misc]  # each its own
            parameters = inspect.signature(constructor).parameters
            names.update(
                (name, None)
                for name, parameter in parameters.items()
                if parameter.default is not inspect.Parameter.empty
            )
            if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
                break
    return list(names)
