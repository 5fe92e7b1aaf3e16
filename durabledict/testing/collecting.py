"""Which tests of a suite are collected: those for what the class says it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["collect"]


def collect(cls: Any, known: Mapping[str, str]) -> None:
    """Leave out the tests that need what a subclass of a suite does not name.

    :param cls: the subclass, with its `capabilities`
    :param known: all capabilities that there are
    :raises TypeError: the class names another one

    """
    unknown = cls.capabilities - known.keys()
    if unknown:
        raise TypeError(
            f"{cls.__name__} names capabilities that the suite does not know: "
            f"{', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    # What a base class of it has left out, this class may be able to do.
    left_out: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        left_out.update(vars(base).get("_left_out", {}))
    cls._left_out = {}
    for name in dir(cls):
        found = getattr(cls, name)
        test = left_out.get(name) if found is None and name not in vars(cls) else found
        needed = getattr(test, "needs", ())
        if not all(_has(cls.capabilities, capability) for capability in needed):
            cls._left_out[name] = test
            setattr(cls, name, None)
        elif needed and found is None:
            setattr(cls, name, test)


def _has(capabilities: frozenset[str], capability: str) -> bool:
    if capability.startswith("!"):
        return capability[1:] not in capabilities
    return capability in capabilities
