"""Members of enumerations, as the first releases of Python 3.11 pickle them, on any Python."""

from __future__ import annotations

import enum
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from durabledict import DecodingError, RestrictedPickleEncoding


class Colour(enum.Enum):
    RED = 1


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Plain:
    secret = "not to be had"


class Reduced:
    """Pickles to a call of a function, as `__reduce_ex__` of Python 3.11.2's Enum says it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def member(kind: Any, name: str) -> Reduced:
    return Reduced(getattr, kind, name)


ENCODING = RestrictedPickleEncoding(allow=[Colour, Permission, Plain])


def decoded(value: object) -> Any:
    return ENCODING.decode(pickle.dumps(value, 5))


def test_members_and_unions_of_flags_are_loaded() -> None:
    assert decoded(member(Colour, "RED")) is Colour.RED
    both = Reduced(operator.or_, member(Permission, "READ"), member(Permission, "WRITE"))
    assert decoded([both]) == [Permission.READ | Permission.WRITE]


@pytest.mark.parametrize(
    "hostile",
    [
        member(Plain, "secret"),
        member(Colour, "__class__"),
        member(Colour, "mro"),
        member([], "append"),
        Reduced(getattr, member(Colour, "RED"), "value"),
        Reduced(operator.or_, {1}, {2}),
        Reduced(operator.or_, member(Colour, "RED"), 1),
        Reduced(operator.or_, member(Permission, "READ"), 2),
        Reduced(getattr, Colour, []),
        Reduced(operator.and_, 1, 2),
    ],
)
def test_nothing_else_is_to_be_had_by_these_names(hostile: Reduced) -> None:
    with pytest.raises((DecodingError, TypeError)):
        decoded(hostile)
