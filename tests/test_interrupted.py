"""What comes in the middle: a signal handler that syncs or raises, an error after a write."""

from __future__ import annotations

import functools
import gc
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    DecodingError,
    MemoryDict,
    MemoryStorage,
    ModelDict,
    NoOpEncoding,
    PickleEncoding,
    SqliteDict,
    coder,
)

from .test_subclassing import FourMethods, Table


@pytest.mark.parametrize("own", [True, False], ids=["own write", "sync"])
def test_a_sync_in_the_middle_of_an_apply_is_made_up_for_by_the_next_read(own: bool) -> None:
    storage = MemoryStorage()
    d: Any = MemoryDict[str, int](storage=storage, autosync=False)
    other = MemoryDict[str, int](storage=storage)
    other["k"] = 0
    d.sync()
    follow = d._follow

    def interrupted(*arguments: Any) -> Any:
        # As a signal handler runs: in this thread, with the lock of the dict held.
        del d._follow
        other["late"] = 1
        assert d.sync() is False
        return follow(*arguments)

    d._follow = interrupted
    if own:
        d["k"] = 1
    else:
        other["k"] = 1
        d.sync()
    assert d["late"] == 1
    assert type(d) is MemoryDict
    comparisons = d.stats.comparisons
    assert d["k"] == 1
    assert d.stats.comparisons == comparisons


def test_a_key_error_after_a_pop_is_not_taken_for_nothing_there() -> None:
    d: Any = FourMethods(Table())
    d["k"] = 1
    pop = d._pop

    def failing() -> Any:
        del d.durables
        raise KeyError("a row vanished")

    def popped(key: Any) -> Any:
        value = pop(key)
        d.durables = failing
        return value

    d._pop = popped
    with pytest.raises(KeyError, match="a row vanished"):
        d.pop("k", "default")
    assert "k" not in d


def test_an_undecodable_value_holds_nobodys_variables() -> None:
    raw: Any = MemoryDict()
    d: Any = MemoryDict(storage=raw.storage, encoding=PickleEncoding, autosync=False)
    raw["bad"] = b"garbage"

    class Big:
        pass

    def handle() -> Any:
        big = Big()
        d.sync(force=True)
        return weakref.ref(big)

    reference = handle()
    gc.collect()
    assert list(d.undecodable) == ["bad"]
    assert reference() is None


class TooLateError(ValueError):
    """What the handler of a time limit raises."""


def limit(number: int, frame: Any) -> None:
    raise TooLateError("the limit of the task")


def logged(function: Any) -> Any:
    """Decorate, as people do: all such functions have one and the same code."""

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        return function(*arguments)

    return called


class Limit:
    def method(self, number: int, frame: Any) -> None:
        limit(number, frame)

    def __call__(self, number: int, frame: Any) -> None:
        limit(number, frame)

    @logged
    def decorated(self, number: int, frame: Any) -> None:
        limit(number, frame)

    def restoring(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        limit(number, frame)


HANDLERS: dict[str, Any] = {
    "function": limit,
    "lambda": lambda *given: limit(*given),
    "method": Limit().method,
    "object": Limit(),
    "decorated": logged(limit),
    "decorated method": Limit().decorated,
    "partial": functools.partial(lambda why, number, frame: limit(number, frame), "why"),
    "restoring": Limit().restoring,
}


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def arrive() -> None:
    """Have the signal come in the middle of the caller."""
    signal.raise_signal(signal.SIGUSR1)


class Slow:
    """An encoding in whose middle a signal comes."""

    def __init__(self) -> None:
        self.meets = ""

    def _meet(self, place: str) -> None:
        if self.meets == place:
            arrive()

    def encode(self, value: Any) -> Any:
        self._meet("encode")
        return value

    @logged
    def decode(self, payload: Any) -> Any:
        self._meet("decode")
        if self.meets == "decode, and is caught":
            try:
                arrive()
            except TooLateError as error:
                raise DecodingError("it is bad") from error
        if payload == b"bad":
            raise TooLateError("the payload's own")
        return payload


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("place", ["decode", "decode, and is caught"])
def test_a_time_limit_is_none_of_the_payload_s(place: str, handler: Any) -> None:
    encoding = Slow()
    writer: Any = MemoryDict()
    writer.update({"a": 1, "bad": b"bad"})
    d: Any = MemoryDict(storage=writer.storage, encoding=encoding, autosync=False)
    assert list(d.undecodable) == ["bad"]
    writer["b"] = 2
    encoding.meets = place
    for old_encoding in (None, PickleEncoding):
        with handled(handler), pytest.raises(TooLateError, match="limit of the task"):
            MemoryDict(storage=writer.storage, encoding=encoding, old_encoding=old_encoding)
    with handled(handler), pytest.raises(TooLateError, match="limit of the task"):
        d.sync()
    encoding.meets = ""
    assert d == {"a": 1}
    d.sync()
    assert d == {"a": 1, "b": 2}
    assert list(d.undecodable) == ["bad"]


def test_a_function_that_is_given_its_caller_s_frame_is_no_handler() -> None:
    def refuse(where: str, frame: Any) -> Any:
        raise ValueError(where)

    class Framed:
        encode = staticmethod(lambda value: value)
        decode = staticmethod(lambda payload: refuse("here", sys._getframe()))

    raw: Any = MemoryDict()
    raw["bad"] = b"bad"
    assert list(MemoryDict(storage=raw.storage, encoding=Framed).undecodable) == ["bad"]


def test_a_time_limit_in_the_old_encoding_is_none_of_the_payload_s() -> None:
    raw: Any = MemoryDict(encoding=NoOpEncoding)
    raw["k"] = "old"
    old = Slow()
    old.meets = "decode"
    with handled(limit), pytest.raises(TooLateError):
        MemoryDict(storage=raw.storage, encoding=PickleEncoding, old_encoding=old)


@pytest.mark.parametrize("write", [lambda d: d.update(k=2), lambda d: d.__setitem__("k", [2])])
def test_a_time_limit_in_encode_is_raised_as_it_is(write: Any) -> None:
    encoding = Slow()
    d: Any = MemoryDict(encoding=encoding)
    d["k"] = 1
    encoding.meets = "encode"
    with handled(limit), pytest.raises(TooLateError):
        write(d)
    for encode in (coder.encode, coder.prepare):  # which not only writes call
        with handled(limit), pytest.raises(TooLateError):
            encode(encoding, "", "k", 2)
    encoding.meets = ""
    assert d == {"k": 1}


def test_a_bad_payload_that_is_read_by_a_handler_or_after_a_limit_is_the_payload_s() -> None:
    encoding = Slow()
    d: Any = MemoryDict(encoding=encoding, autosync=False)
    other: Any = MemoryDict(storage=d.storage)

    def reads(number: int, frame: Any) -> None:
        d.sync()

    other["bad"] = b"bad"
    with handled(reads):
        arrive()
    assert list(d.undecodable) == ["bad"]
    other["bad"] = b"bad"
    with handled(limit):
        try:
            arrive()
        except TooLateError:
            d.sync()
    assert list(d.undecodable) == ["bad"]


class Unpickled:
    """A value in whose unpickling, or pickling, a signal comes."""

    where = ""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        if Unpickled.where == "pickle":
            arrive()
        return self.__dict__

    def __setstate__(self, state: Any) -> None:
        if Unpickled.where == "unpickle":
            Unpickled.where = ""  # once: what is tried again goes through
            arrive()
        self.__dict__.update(state)


@pytest.mark.parametrize("where", ["pickle", "unpickle"])
def test_a_time_limit_in_a_load_of_pickles_ends_it(where: str, tmp_path: Path) -> None:
    with SqliteDict[str, Any](tmp_path / "d.sqlite") as writer:
        writer["k"] = Unpickled(1)
        with SqliteDict[str, Any](tmp_path / "d.sqlite", autosync=False) as d:
            assert d["k"].number == 1
            writer["k"] = Unpickled(2)
            Unpickled.where = where
            try:
                with handled(limit), pytest.raises(TooLateError):
                    d.sync(force=True)
            finally:
                Unpickled.where = ""
            d.sync()
            assert d["k"].number == 2


@pytest.fixture
def plain(django_project: None) -> Iterator[Callable[..., Any]]:
    """Makes dicts over rows that go at the end."""
    from tests.djangoapp.models import Plain

    yield lambda **options: ModelDict(Plain.objects, "redis", **options)
    Plain.objects.all()._raw_delete("default")


def test_a_time_limit_in_a_load_of_a_model_s_pickles_ends_it(plain: Callable[..., Any]) -> None:
    writer, late = plain(), plain(autosync=False)
    writer["k"] = Unpickled(1)
    assert late["k"].number == 1
    writer["k"] = Unpickled(2)
    with handled(limit):
        for load in (plain().sync, late.sync, plain().durables):
            Unpickled.where = "unpickle"
            try:
                with pytest.raises(TooLateError):
                    load()
            finally:
                Unpickled.where = ""
    late.sync()
    assert late["k"].number == 2


def test_a_time_limit_says_nothing_of_the_write_that_it_ends(plain: Callable[..., Any]) -> None:
    from django.db import connection

    d = plain(autosync=False)
    d["k"] = 1

    def written(execute: Any, sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        if sql.startswith("UPDATE"):
            arrive()
        return result

    with handled(limit), connection.execute_wrapper(written), pytest.raises(TooLateError):
        d["k"] = 2  # a ValueError of the database's would say that nothing was done
    assert d == {"k": 2}
