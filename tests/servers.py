"""What the tests need of any server: free ports, and a process that surely ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HOST", "PATIENCE", "Server", "ServerError", "free_port", "wait_until"]

HOST = "127.0.0.1"

# Nothing takes that long: it is when what hangs becomes a failure.
PATIENCE = 30.0

# Below the ports that systems give to outgoing connections (Linux: from 32768). A port of those
# could be taken while its server is down, or connect to itself when a test tries whether it is
# refused. The upper end leaves room for the second port that a Redis cluster has 10000 above.
PORTS = range(10240, 22000)

# Waits for the end of its input, that is of the process that started it, however that ended. In
# place of PR_SET_PDEATHSIG, which only Linux has, which needs code between fork and exec, and
# which kills the server when the thread that started it ends.
GUARD = 'read -r line; kill -KILL "$1"; rm -rf "$2"'


class ServerError(Exception):
    """A server does not start, or is not installed."""


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Poll until `condition` is true; `what` says in the error what was waited for."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:g} s until {what}")
        time.sleep(0.005)


def free_port(*offsets: int) -> int:
    """Return a port on which nobody listens, nor on those that many higher.

    Another process may take it before it is used: `Server.start` then asks for another one.

    """
    chance = random.SystemRandom()  # Tests may seed the usual one, alike in all processes.
    for _ in range(1000):
        port = chance.choice(PORTS)
        if all(_is_free(port + offset) for offset in (0, *offsets)):
            return port
    raise ServerError(f"no port of {PORTS} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a closed connection of an earlier one does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Server(ABC):
    """A server of a test's own, in a temporary folder that goes when it is closed.

    It is also killed, and the folder removed, when the tests' process is killed.

    """

    # What the log says when another process has the port.
    clash = b"Address already in use"

    # How an administrator asks it to end, whoever is connected.
    stop_signal = signal.SIGTERM

    # A script of sh: $1 is the number of the process, $2 the folder.
    guard = GUARD

    def __init__(self, name: str, port: int | None = None) -> None:
        # Not in pytest's: the path of a unix socket must be short.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.log = self.folder / "server.log"
        self.port = port or 0
        self._settled = port is not None  # The port stays as it is.
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line; the folder is the current one."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether it is ready; without waiting, without an exception for not yet."""

    def choose_ports(self) -> None:
        self.port = free_port()

    # As many types as Popen has arguments.
    def process_options(self) -> dict[str, Any]:
        """Return what else Popen is told, as the user to run as."""
        return {}

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, unless it runs; return when it is ready."""
        deadline = time.monotonic() + PATIENCE
        while not self.running:
            if not self._settled:
                self.choose_ports()
            begin = self.log.stat().st_size if self.log.exists() else 0
            self._spawn()
            while self.running and not self.answers():
                if time.monotonic() > deadline:
                    self.kill()
                    raise ServerError(self._complaint(f"not ready after {PATIENCE:g} s"))
                time.sleep(0.005)
            if not self.running:
                status = self._process.returncode if self._process else None
                self.kill()  # What is left of it: the guard.
                clashed = self.clash in self.log.read_bytes()[begin:]
                if not clashed or time.monotonic() > deadline:
                    raise ServerError(self._complaint(f"it ended with status {status}"))
        self._settled = True

    def _spawn(self) -> None:
        self.kill()
        # In sessions of their own, so that Ctrl-C leaves them to the tests' own clean-up.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.process_options(),
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", self.guard, "sh", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _complaint(self, problem: str) -> str:
        log = self.log.read_text(errors="replace")
        return f"{problem}: {' '.join(self.command())}\n{self.log}:\n{log}"

    def stop(self) -> None:
        """Ask it to end, as an administrator does, and wait until it has."""
        if self.running:
            self.resume()
            self._signal(self.stop_signal)
            wait_until(
                lambda: not self.running, f"{self.command()[0]} ends at {self.stop_signal.name}"
            )
        self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, and wait until it has ended; its folder and port stay."""
        if self._owner != os.getpid():
            return  # In the child of a fork: it is not ours to end.
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if process is not None:
            process.kill()
        # Before the process is reaped: from then on its number may be that of another one.
        if guard is not None:
            guard.kill()
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()
        if process is not None:
            process.wait()

    def restart(self) -> None:
        """Kill it and start it again, with the port and the folder it had."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Let it answer nothing, though its connections stay open, until `resume`."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if not self.running:
            raise ServerError("the server is not running")
        os.kill(self.pid, number)

    def close(self) -> None:
        self.kill()
        if self._owner == os.getpid():
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
