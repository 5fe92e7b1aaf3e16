"""Show other values in a durable dict for the length of a test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from typing import Any, Generic, TypeVar, cast

from ..base import DurableDict

__all__ = ["override"]


D = TypeVar("D", bound=DurableDict[Any, Any])
F = TypeVar("F", bound=Callable[..., Any])


class override(ContextDecorator, Generic[D]):  # noqa: N801  # read as a verb, as unittest.mock.patch is
    """Show `values` in place of what the store holds; a context manager and a decorator.

    Local to this process, and nothing is written. Syncs go on underneath: at the end every key
    shows what the store holds then. Overrides nest; `MISSING` as a value hides a key. A write to
    an overridden key goes to the store as always, and is seen here when the override ends.

    >>> from durabledict import MemoryDict
    >>> flags = MemoryDict()
    >>> flags["checkout"] = "old"
    >>> with override(flags, checkout="new", banner=True):
    ...     flags["checkout"], flags["banner"]
    ('new', True)
    >>> flags
    {'checkout': 'old'}

    :param durable: the dict
    :param values: key -> value, where keys are not names
    :param named: further values
    :raises TypeError: not a durable dict, or a key of a class that no store holds

    """

    def __init__(
        self, durable: D, values: Mapping[Any, Any] | None = None, /, **named: Any
    ) -> None:
        if not isinstance(durable, DurableDict):
            raise TypeError(f"override takes a durable dict, not {type(durable).__name__}")
        self._durable = durable
        self._values = {
            durable._canonical(key): value for key, value in {**(values or {}), **named}.items()
        }
        self._entered: list[dict[Any, Any]] = []

    def __call__(self, function: F) -> F:
        """Show the values whenever `function` runs, be it a plain function or a coroutine.

        :raises TypeError: a class or a generator function: what runs when is not to be seen from
            outside; use ``with override(...)`` inside

        """
        if inspect.isclass(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                f"override decorates functions, and {function!r} is none that runs in one go: "
                "write 'with override(...)' inside it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def overridden(*arguments: Any, **named: Any) -> Any:
                with self:
                    return await function(*arguments, **named)

            return cast(F, overridden)
        return super().__call__(function)

    def __enter__(self) -> D:
        layer = dict(self._values)
        self._entered.append(layer)
        durable = self._durable
        with durable._copy_lock:
            durable._overrides.append(layer)
            replaced = durable._show_overrides()
        del replaced  # finalizers run outside the lock
        return durable

    def __exit__(self, *_: object) -> None:
        layer = self._entered.pop()
        durable = self._durable
        with durable._copy_lock:
            # By identity: two overrides may say the same.
            durable._overrides = [other for other in durable._overrides if other is not layer]
            replaced = durable._show_overrides()
        del replaced
