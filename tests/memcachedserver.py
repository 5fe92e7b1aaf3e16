"""A real memcached for the tests."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import socket
from typing import Any

from pymemcache.client.base import Client

from .servers import HOST, PATIENCE, Server, ServerError

__all__ = ["MemcachedServer"]


@functools.cache
def _binary() -> str:
    path = shutil.which("memcached")
    if path is None:
        raise ServerError(
            "memcached is not on the PATH: `make test` installs the package memcached, or do so"
            " yourself: apt-get install memcached"
        )
    return path


@functools.cache
def _unprivileged_user() -> str:
    """Return whom memcached, started by root, is to become: without one it refuses to start."""
    for name in ("memcache", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            pass
    raise ServerError("memcached does not run as root, and there is no user memcache or nobody")


class MemcachedServer(Server):
    """A server with `arguments`, which are options of memcached.

    `"-m", "2"` gives it 2 MiB of memory. It takes less only with a limit for the size of an item
    that is at most half of that: `"-m", "1", "-I", "512k"`.

    """

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        super().__init__("memcached", port)
        self.arguments = arguments

    def command(self) -> list[str]:
        command = [_binary(), "-l", HOST, "-p", str(self.port), "-U", "0"]
        if os.geteuid() == 0:
            command += ["-u", _unprivileged_user()]
        return command + list(self.arguments)

    # The options are those of pymemcache, and too many to repeat.
    def client(self, **options: Any) -> Client:
        """Return a new client, which waits for the answer of every command.

        To be closed by the caller: it is no context manager.

        """
        defaults = {"default_noreply": False, "connect_timeout": PATIENCE, "timeout": PATIENCE}
        return Client((HOST, self.port), **{**defaults, **options})

    def _ask(self, command: str, end: bytes, patience: float = PATIENCE) -> list[str]:
        """Send one command, and return the lines of the answer, up to the line `end`."""
        lines: list[str] = []
        with socket.create_connection((HOST, self.port), patience) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("rb") as stream:
                for line in stream:
                    if line.rstrip() == end:
                        return lines
                    lines.append(line.decode().rstrip())
        raise ConnectionError(f"{command}: {lines} without {end!r}")

    def stats(self, patience: float = PATIENCE) -> dict[str, int | str]:
        """Return what `stats` says: `{"cmd_get": 2, "version": "1.6.18"}`."""
        fields = (line.split(" ", 2) for line in self._ask("stats", b"END", patience))
        return {name: int(value) if value.isdecimal() else value for _, name, value in fields}

    def answers(self) -> bool:
        try:
            # Another process may have the port, and be a memcached.
            return self.stats(patience=1).get("pid") == self.pid
        except (OSError, ValueError):
            return False

    def flush(self) -> None:
        """Forget every key."""
        self._ask("flush_all", b"OK")
