"""The error tree, and the marker for an absent value."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from durabledict import errors
from durabledict.errors import MISSING, Missing, NonUniqueKeyError

EXAMPLES = [
    errors.DurableDictError("plain"),
    errors.EncoderError("either way"),
    errors.EncodingError("key 'a'", 7),
    errors.DecodingError("key 'a'"),
    errors.ConflictError("written meanwhile"),
    NonUniqueKeyError(dict, {"id": 1}),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_survive_pickling_and_copying(error: Exception, protocol: int) -> None:
    error.note = "kept"  # type: ignore[attr-defined]  # an attribute that a user adds
    for same in (
        pickle.loads(pickle.dumps(error, protocol)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(same) is type(error)
        assert same.args == error.args
        assert str(same) == str(error)
        assert vars(same) == vars(error)


def test_the_tree() -> None:
    for error in EXAMPLES:
        assert isinstance(error, errors.DurableDictError)
    value_errors: set[type] = {type(error) for error in EXAMPLES if isinstance(error, ValueError)}
    assert value_errors == {errors.EncoderError, errors.EncodingError, errors.DecodingError}
    assert issubclass(errors.EncodingError, errors.EncoderError)
    assert issubclass(errors.DecodingError, errors.EncoderError)
    assert not issubclass(errors.EncodingError, errors.DecodingError)


def test_every_error_is_exported() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert tree <= set(errors.__all__)


def test_non_unique_key_names_the_class_and_the_key() -> None:
    error = NonUniqueKeyError(dict, ("zone", 1))
    assert error.klass is dict
    assert error.key == ("zone", 1)
    assert str(error) == "more than one dict has the key ('zone', 1)"


def test_missing_is_one_readable_object() -> None:
    assert repr(MISSING) == str(MISSING) == f"{MISSING}" == "MISSING"
    assert MISSING is Missing.MISSING
    assert list(Missing) == [MISSING]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(MISSING, protocol)) is MISSING
    assert copy.copy(MISSING) is MISSING
    assert copy.deepcopy([MISSING])[0] is MISSING
    others: list[Any] = [None, 0, "", False]
    assert MISSING not in others
