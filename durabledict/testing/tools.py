"""What the parts of the conformance suite share: clients, a clock, threads at a critical point."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import reading
from ..changes import Undecodable
from ..errors import MISSING

if TYPE_CHECKING:
    from ..base import DurableDict

__all__ = [
    "CAPABILITIES",
    "Clock",
    "SuiteBase",
    "in_thread",
    "needs",
    "new_place",
    "raises",
    "until",
]

F = TypeVar("F", bound=Callable[..., Any])

#: What a backend may say of itself. Tests of what it does not name are not collected.
CAPABILITIES = {
    "strict": "a read with autosync=`strictest` sees every write acknowledged before it began",
    "told": "the store tells of each change, and a read with autosync=`strictest` asks for no more",
    "own_stamps": "stamps are numbers of each process's own, which say nothing to the store: "
    "replace_all compares first, and a write beside a load waits for it, and compares",
    "compare_and_set": "_fetch and _compare_and_set are there",
    "delta": "changes() tells which keys changed, and writes answer with a Commit",
    "push": "wait() returns when another client writes, long before its timeout",
    "shared": "two dicts that the factory opens at one place share one store",
    "aliasing": "what is stored is a copy: later changes to the caller's object are not seen",
}

# No test waits that long: it is when a thread that hangs becomes a failure.
PATIENCE = 30.0


def needs(*capabilities: str) -> Callable[[F], F]:
    """Collect a test only for backends with these capabilities; ``"!name"``: without it."""

    def mark(function: F) -> F:
        vars(function)["needs"] = capabilities
        return function

    return mark


class Clock:
    """A clock in place of `time.monotonic`, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds


def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in another thread, to its end, and return what it returned or raise."""
    outcome: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the thread hangs: a lock is held that should not be"
    if errors:
        raise errors[0]
    return outcome[0]


@contextmanager
def new_place() -> Iterator[Path]:
    """Make a folder, and remove it at the end."""
    # In memory where there is such a folder, so that thousands of fsyncs cost nothing.
    memory = "/dev/shm"
    usable = os.path.isdir(memory) and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


class SuiteBase:
    """A store for each test, clients of it, and ways to stop them where it matters."""

    #: What the backend can do; see `CAPABILITIES`.
    capabilities: ClassVar[frozenset[str]] = frozenset()

    #: The `autosync` that the tests open a dict with where they say none. A backend to which
    #: True promises less has a word for more, and runs the suite with both.
    strictest: ClassVar[bool | str] = True

    place: Path
    latest_place: Path

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        """Open one more client of the store at `place`, a folder that is new in each test."""
        raise NotImplementedError(f"{type(self).__name__} has to define factory(place, **options)")

    def setup_method(self, method: object = None) -> None:
        """Make the place; pytest calls this before each test."""
        self._stack = ExitStack()
        # Beside those of `fresh`, not around them: where places are paths of znodes, one below
        # another is an entry there.
        self.place = self._stack.enter_context(new_place()) / "place"
        self.place.mkdir()

    def teardown_method(self, method: object = None) -> None:
        """Close the clients and remove the place."""
        self._stack.close()

    # Any: the tests write what no type checker lets pass, to see it refused.

    def open(self, place: Path | None = None, **options: Any) -> Any:
        """Open one more client, closed at the end of the test."""
        options.setdefault("autosync", self.strictest)
        opened = self.factory(place or self.place, **options)
        self._stack.callback(opened.close)
        self._latest = opened
        return opened

    def reader(self, place: Path | None = None, **options: Any) -> Any:
        """Open a second client of the store, or return the first where there is no second."""
        return self.open(place, **options) if "shared" in self.capabilities else self._latest

    def fresh(self, **options: Any) -> Any:
        """Open a client of a store of its own, at `latest_place`."""
        self.latest_place = Path(tempfile.mkdtemp(dir=self.place.parent))
        return self.open(self.latest_place, **options)

    def seen(self, durable: DurableDict[Any, Any]) -> Any:
        """Return the dict, synced by hand where its reads are not strict."""
        if "strict" not in self.capabilities or durable.autosync != self.strictest:
            durable.sync()
        return durable

    def check(self, durable: DurableDict[Any, Any], expected: dict[Any, Any]) -> None:
        """Compare a dict, synced, with what is expected, in every way of reading; and itself."""
        durable.sync()
        assert durable == expected
        assert dict(durable) == expected
        assert {key: durable[key] for key in durable} == expected
        assert sorted(map(repr, durable.items())) == sorted(map(repr, expected.items()))
        assert len(durable) == len(expected)
        assert self.other(durable) == expected
        self.invariant(durable)

    def other(self, durable: DurableDict[Any, Any]) -> dict[Any, Any]:
        """Return what the store holds, past the local copy."""
        entries = durable.durables()
        return {key: v for key, v in entries.items() if not isinstance(v, Undecodable)}

    @staticmethod
    def invariant(durable: DurableDict[Any, Any]) -> None:
        """Check what must be true of every local copy at any time."""
        with durable._copy_lock:
            keys = list(dict.keys(durable))
            assert all(durable._canonical(key) == key for key in keys)
            assert not set(keys) & set(durable._undecodable)
            twin = durable._twin
            assert twin is None or list(twin.items()) == list(dict.items(durable))
            assert durable._filled or not keys

    @contextmanager
    def clock(self) -> Iterator[Clock]:
        """Put a clock that stands still in place of the library's."""
        clock, original = Clock(), reading.monotonic
        reading.monotonic = clock
        try:
            yield clock
        finally:
            reading.monotonic = original

    @contextmanager
    def hook(
        self,
        durable: DurableDict[Any, Any],
        name: str,
        *,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
        times: int | None = None,
    ) -> Iterator[list[Any]]:
        """Run functions just before and after one of the backend's methods, on this dict alone.

        :param times: only at so many first calls
        :return: a list that grows by what the method returned at each call

        """
        original = getattr(durable, name)
        calls: list[Any] = []

        def hooked(*arguments: Any, **named: Any) -> Any:
            runs = times is None or len(calls) < times
            calls.append(MISSING)
            position = len(calls) - 1
            if before is not None and runs:
                before()
            result = original(*arguments, **named)
            calls[position] = result
            if after is not None and runs:
                after()
            return result

        setattr(durable, name, hooked)
        try:
            yield calls
        finally:
            delattr(durable, name)

    @contextmanager
    def replaced(self, durable: Any, name: str, new: Any) -> Iterator[None]:
        """Put something in place of a method of one object."""
        setattr(durable, name, new)
        try:
            yield
        finally:
            delattr(durable, name)

    def comparisons(self, durable: DurableDict[Any, Any], action: Callable[[], object]) -> int:
        """Return how often an action asks the store for its stamp."""
        with self.hook(durable, "last_updated") as calls:
            action()
        return len(calls)

    def outage(self, durable: DurableDict[Any, Any]) -> BaseException:
        """Return an exception that means an outage to this backend."""
        return durable.unavailable[0]("the store cannot be asked")

    @contextmanager
    def down(self, durable: DurableDict[Any, Any]) -> Iterator[list[Any]]:
        """Make the store of one client unavailable."""

        def fail() -> None:
            raise self.outage(durable)

        with ExitStack() as stack:
            calls = stack.enter_context(self.hook(durable, "last_updated", before=fail))
            for name in ("durables", "changes", "persist", "persist_many", "depersist"):
                stack.enter_context(self.hook(durable, name, before=fail))
            yield calls

    @contextmanager
    def logged(self) -> Iterator[list[logging.LogRecord]]:
        """Collect what is logged under "durabledict"."""
        records: list[logging.LogRecord] = []

        class Collector(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record)

        logger, collector = logging.getLogger("durabledict"), Collector()
        logger.addHandler(collector)
        try:
            yield records
        finally:
            logger.removeHandler(collector)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until another thread has done something; `what` says in the error what that was."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, f"waited in vain until {what}"
        time.sleep(0.001)


@contextmanager
def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...], *parts: str
) -> Iterator[None]:
    """Expect an exception whose message has all these parts; pytest is not needed for it."""
    caught: BaseException | None = None
    try:
        yield
    except kind as error:
        caught = error
    assert caught is not None, f"{kind} was not raised"
    for part in parts:
        assert part in str(caught), f"{part!r} is not in {caught}"
