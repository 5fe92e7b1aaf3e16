"""What tests of the servers ask of processes and ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from . import not_measured
from .servers import HOST, PATIENCE, Server

__all__ = ["is_alive", "is_refused", "left_by_a_killed_process"]

ROOT = Path(__file__).parent.parent


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_refused(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def left_by_a_killed_process(
    make: type[Server], *more: str, pids: str = "[server.pid]"
) -> tuple[Path, list[int]]:
    """Start a server in a process of its own, and kill that; return the server's folder, and pids.

    :param more: statements that follow the start of `server`
    :param pids: an expression: those of the server
    :raises AssertionError: the server did not even run before

    """
    lines = (
        "import signal",
        f"from {make.__module__} import {make.__name__}",
        f"server = {make.__name__}()",
        "server.start()",
        *more,
        f"print(server.folder, *{pids}, flush=True)",
        "signal.pause()",
    )
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=not_measured(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        folder, *numbers = process.stdout.readline().split()
        assert is_alive(int(numbers[0]))
        process.send_signal(signal.SIGKILL)
        process.wait()
    return Path(folder), list(map(int, numbers))
