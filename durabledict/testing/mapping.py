"""CPython's own tests of the mapping protocol, over a durable dict.

`EXCEPTIONS` is the whole list of tests that a durable dict does not pass as they stand, each with
the test that stands in its place. The list does not grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EncodingError

if TYPE_CHECKING:
    from unittest import TestCase

    from ..base import DurableDict

__all__ = ["EXCEPTIONS", "case", "names"]

#: CPython's test -> why it does not hold, and what is tested instead.
EXCEPTIONS = {
    "test_copy": "copy() gives an equal plain dict, not one more view of the store",
    "test_fromkeys": "a classmethod that gives a plain dict: it names no store",
    "test_getitem": "BadEq and BadHash are no keys that can be stored: TypeError, nothing sent",
    "test_pop": "BadHash: as above",
    "test_setdefault": "BadHash: as above",
    "test_eq": "BadCmp: as above",
    "test_repr": "repr never raises; BadRepr and the dict itself cannot be stored: EncodingError",
    "test_repr_deep": "another durable dict cannot be stored: EncodingError",
}


def _tests() -> Any:
    try:
        from test import mapping_tests
    except ImportError as error:
        raise ImportError(
            "the suite runs CPython's own mapping tests, and this Python lacks the package 'test'. "
            "On Debian: apt-get install libpython3-testsuite (or libpython3.X-testsuite)"
        ) from error
    return mapping_tests


def names() -> list[str]:
    """Return the names of CPython's tests.

    :raises ImportError: this Python lacks them; the message says what to install

    """
    return [name for name in dir(_tests().TestHashMappingProtocol) if name.startswith("test_")]


def case(open_filled: Callable[..., DurableDict[Any, Any]], encodes: bool, name: str) -> TestCase:
    """Return one of the tests, ready to run.

    :param open_filled: opens an empty store and sets what its keywords say
    :param encodes: whether values are encoded, so that some cannot be

    """
    mapping_tests = _tests()
    plain = mapping_tests.TestMappingProtocol

    class BadKey:
        """Stands for BadHash, BadEq and BadCmp: what it breaks is never asked."""

        def __eq__(self, other: object) -> bool:
            raise AssertionError("asked for equality")

        def __hash__(self) -> int:
            return 42

    class Durable(mapping_tests.TestHashMappingProtocol):  # type: ignore[misc,name-defined]  # made at run time
        type2test = staticmethod(open_filled)

        def refused(self, write: Callable[[Any], object]) -> None:
            """No key of an unsupported class gets into the store."""
            d = self._full_mapping({1: 1})
            with self.assertRaisesRegex(TypeError, "BadKey"):
                write(d)
            self.assertEqual(d.durables(), {1: 1})

        def test_copy(self) -> None:
            d = self._full_mapping({1: 1, 2: 2, 3: 3})
            self.assertEqual(d.copy(), {1: 1, 2: 2, 3: 3})
            self.assertIs(type(d.copy()), dict)
            empty = self._empty_mapping()
            self.assertEqual(empty.copy(), empty)
            self.assertRaises(TypeError, d.copy, None)

        def test_fromkeys(self) -> None:
            d = self._full_mapping({1: 1})
            for source in (type(d), d):
                made = source.fromkeys("abc")
                self.assertEqual(made, {"a": None, "b": None, "c": None})
                self.assertIs(type(made), dict)
                self.assertEqual(source.fromkeys((4, 5), 0), {4: 0, 5: 0})
                self.assertRaises(TypeError, source.fromkeys, 3)
            self.assertEqual(d, {1: 1})

        def test_getitem(self) -> None:
            plain.test_getitem(self)
            self.refused(lambda d: d.__setitem__(BadKey(), 42))

        def test_pop(self) -> None:
            plain.test_pop(self)
            self.refused(lambda d: d.pop(BadKey()))
            self.refused(lambda d: d.pop(BadKey(), None))

        def test_setdefault(self) -> None:
            plain.test_setdefault(self)
            self.refused(lambda d: d.setdefault(BadKey(), []))

        def test_eq(self) -> None:
            self.assertEqual(self._empty_mapping(), self._empty_mapping())
            self.assertEqual(self._full_mapping({1: 2}), self._full_mapping({1: 2}))
            self.assertNotEqual(self._full_mapping({1: 2}), self._full_mapping({1: 3}))
            self.refused(lambda d: d.update({2: 2, BadKey(): 1}))

        def test_repr(self) -> None:
            d = self._empty_mapping()
            self.assertEqual(repr(d), "{}")
            d[1] = 2
            self.assertEqual(repr(d), "{1: 2}")
            self.assertRaises(EncodingError, d.__setitem__, 1, d)

            class BadRepr:
                def __repr__(self) -> str:
                    raise ZeroDivisionError

            if encodes:
                self.assertRaises(EncodingError, d.__setitem__, 1, BadRepr())
                self.assertEqual(d, {1: 2})
            else:
                d[1] = BadRepr()
                self.assertIn("BadRepr object", repr(d))

        def test_repr_deep(self) -> None:
            d = self._full_mapping({1: 2})
            self.assertRaises(EncodingError, d.__setitem__, 3, self._empty_mapping())
            self.assertEqual(d, {1: 2})
            deep: Any = []
            for _ in range(200_000):
                deep = [deep]
            if encodes:
                self.assertRaises(EncodingError, d.__setitem__, 3, deep)
            else:
                d[3] = deep
                self.assertIn("list object", repr(d))
            # Taken apart from outside: freeing it in one go is what C recursion cannot do.
            while deep:
                deep = deep.pop()

    return Durable(name)
