"""Runs scenarios of forked processes, each in an interpreter of its own, and what they need.

A test process that forks beside threads is warned of since Python 3.12. A failed assertion in a
child makes its exit status 1.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "PATIENCE",
    "Signal",
    "Stop",
    "end",
    "ended_well",
    "everything_works",
    "fork",
    "held_by_a_thread",
    "run",
    "start",
    "watch_goes_on_in_both",
]

ROOT = Path(__file__).parent.parent

# No scenario takes that long: it is when one that hangs becomes a failure.
PATIENCE = 20.0


class Signal:
    """Something that one process tells another, once for each that waits."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe()

    def give(self, times: int = 1) -> None:
        os.write(self._writes, b"." * times)

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            assert os.read(self._reads, 1) == b"."


class Stop:
    """A place in the code at which one thread stops, the first time it comes there."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.errors: list[BaseException] = []

    def here(self) -> None:
        if threading.current_thread() is self.thread and not self.reached.is_set():
            self.reached.set()
            assert self.goes_on.wait(PATIENCE)

    def before(self, durable: object, name: str) -> None:
        """Stop at the beginning of a method."""
        original = getattr(durable, name)

        def stopping(*arguments: Any, **named: Any) -> Any:
            self.here()
            return original(*arguments, **named)

        setattr(durable, name, stopping)

    @contextmanager
    def by(self, action: Callable[[], object]) -> Iterator[None]:
        """Run `action` in a thread; the body begins when it has stopped. It must not fail."""

        def run() -> None:
            try:
                action()
            except BaseException as error:
                self.errors.append(error)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert self.reached.wait(PATIENCE)
        try:
            yield
        finally:
            self.goes_on.set()
            self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert not self.errors


@contextmanager
def held_by_a_thread(lock: Any) -> Iterator[None]:
    """Have another thread of this process hold a lock during the body."""
    stop = Stop()

    def hold() -> None:
        with lock:
            stop.here()

    with stop.by(hold):
        yield


def fork(child: Callable[[], object]) -> int:
    """Run a function in a forked child; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        end(child)
    return pid


def end(action: Callable[[], object]) -> NoReturn:
    signal.alarm(int(PATIENCE))
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def ended_well(*pids: int) -> None:
    """Wait for children and check that no assertion failed in them."""
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


def everything_works(d: Any) -> None:
    """Read and write in every way; the dict holds k = 1."""
    assert d["k"] == 1
    assert d.copy() == {"k": 1}
    d["l"] = 2
    assert d.compute("k", lambda value: value + 1) == 2
    assert d.pop("l") == 2
    assert list(d.items()) == [("k", 2)]
    d.replace_all({"k": 1})
    assert d.sync(force=True) is False


def watch_goes_on_in_both(d: Any, other: Any, kept: Callable[[], set[Any]] = set) -> None:
    """Watch in the parent; the child starts a thread of its own at its first read.

    :param d: a manual dict
    :param other: where its keyspace is written
    :param kept: tells what the parent has open, of which the child closes nothing

    """
    changed = threading.Event()
    d.on_change(lambda *_: changed.set())
    watch = d.watch(interval=2 * PATIENCE)
    other["k"] = 1
    assert changed.wait(PATIENCE)
    parents = kept()
    child_watches, child_heard = Signal(), Signal()

    def child() -> None:
        changed.clear()
        assert not watch.running
        assert d["k"] == 1
        assert watch.running
        d.sync()
        child_watches.give()
        assert changed.wait(PATIENCE)
        assert d["k"] == 2
        assert kept() >= parents
        child_heard.give()
        d.close()
        assert threading.active_count() == 1

    changed.clear()
    pid = fork(child)
    child_watches.wait()
    other["k"] = 2
    assert changed.wait(PATIENCE)
    child_heard.wait()
    ended_well(pid)
    changed.clear()
    assert watch.running
    other["k"] = 3
    assert changed.wait(PATIENCE)
    assert d["k"] == 3
    d.close()
    other.close()


def run(scenario: Callable[..., None], *arguments: object) -> None:
    """Run a scenario, a function of a module, in an interpreter of its own."""
    program = "import sys; from tests.scenarios import start; start(sys.argv[1])"
    warnings = ("-W", "ignore::DeprecationWarning")
    call = pickle.dumps((scenario, arguments)).hex()
    command = [sys.executable, *warnings, "-c", program, call]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(4 * PATIENCE)
        finally:
            # A child that hangs inside os.fork has had no time to set an alarm.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        output.seek(0)
        text = output.read()
    assert status == 0, text
    assert text == ""


def start(call: str) -> None:
    """Make the call that `run` packed."""
    # A process that hangs shows where, and is ended; a forked child sets its own alarm.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(2 * int(PATIENCE))
    scenario, arguments = pickle.loads(bytes.fromhex(call))
    scenario(*arguments)
