"""A real PostgreSQL server for the tests, with a cluster of its own."""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from .servers import HOST, PATIENCE, Server, ServerError, wait_until

__all__ = ["PostgresServer"]

# The user that Debian's package makes, and the superuser of our clusters.
USER = "postgres"

DEBIAN = Path("/usr/lib/postgresql")

# As PostgresServer.kill. The processes that are killed may still make a file.
GUARD = """
read -r line
kill -STOP "$1"
for status in /proc/[0-9]*/stat; do
    read -r child _ _ parent _ <"$status" && [ "$parent" = "$1" ] && kill -KILL "$child"
done
kill -KILL "$1"
rm -rf "$2" || { sleep 1; rm -rf "$2"; }
"""


@functools.cache
def _binaries() -> Path:
    """Return the folder of the newest version's programs."""
    folders = [
        folder
        for folder in DEBIAN.glob("*/bin")
        if all((folder / name).exists() for name in ("initdb", "postgres"))
    ]
    if folders:
        return max(folders, key=lambda folder: list(map(int, re.findall(r"\d+", str(folder)))))
    path = shutil.which("postgres")
    if path is not None and shutil.which("initdb") is not None:
        return Path(path).parent
    raise ServerError(
        f"postgres and initdb are neither in {DEBIAN}/*/bin nor on the PATH: `make test` installs"
        " the package postgresql, or do so yourself: apt-get install postgresql"
    )


def _user_options() -> dict[str, Any]:
    """Return the arguments of Popen to run as the user that PostgreSQL allows: not as root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        raise ServerError(
            f"PostgreSQL does not run as root, and there is no user {USER}: the package"
            " postgresql makes it"
        ) from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _processes() -> Iterator[tuple[int, str, int]]:
    """Yield the number, the state and the parent's number of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # 12 (any name) S 34: the name is the one field that may have spaces or parentheses.
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue  # It ended meanwhile.
        yield int(path.parent.name), state, int(parent)


class PostgresServer(Server):
    """A server and its cluster; `settings` are lines of postgresql.conf: `work_mem="1MB"`.

    Unless it is `durable`, it does not wait for the disk: what is committed survives the death of
    its processes, but not that of the machine.

    """

    # SIGTERM would wait until every client has left.
    stop_signal = signal.SIGINT
    guard = GUARD

    def __init__(self, *, port: int | None = None, durable: bool = False, **settings: str) -> None:
        super().__init__("postgres", port)
        self.data = self.folder / "data"
        self.settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_connections": "300",
            "fsync": "on" if durable else "off",
            # In the folder, which is removed, and not in /dev/shm, where a kill would leave it.
            "dynamic_shared_memory_type": "mmap",
            **settings,
        }
        # Readable at its end when no process of the server is left: they hold the other end.
        self._lifeline: int | None = None
        self._inherited: int | None = None

    def command(self) -> list[str]:
        command = [str(_binaries() / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def process_options(self) -> dict[str, Any]:
        return {**_user_options(), "pass_fds": [self._inherited]}

    def start(self) -> None:
        if not self.data.exists():
            self._initialize()
        super().start()
        self._release_shared_memory()

    def _initialize(self) -> None:
        options = _user_options()
        if options:
            os.chown(self.folder, options["user"], options["group"])
        command: list[str | Path] = [_binaries() / "initdb", "--pgdata", self.data, "--no-sync"]
        command += ["--auth", "trust", "--username", USER]
        command += ["--encoding", "UTF8", "--locale", "C", "--no-instructions"]
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )
        if done.returncode != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            said = done.stdout.decode(errors="replace")
            raise ServerError(f"{' '.join(map(str, command))}: status {done.returncode}:\n{said}")

    def _spawn(self) -> None:
        self.kill()
        reading, writing = os.pipe()
        self._inherited = writing
        try:
            super()._spawn()
            self._lifeline = reading
        except BaseException:
            os.close(reading)
            raise
        finally:
            self._inherited = None
            os.close(writing)

    def _pid_file(self) -> list[str]:
        """Return the lines that the server writes about itself; none before it has begun."""
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def answers(self) -> bool:
        # As pg_ctl sees it. A connection could be one to another process that has the port.
        lines = self._pid_file()
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _release_shared_memory(self) -> None:
        """Let the system remove the segment with the last process that uses it.

        One that is left after a kill would stay until the machine is restarted.

        """
        lines = self._pid_file()
        if len(lines) > 6 and re.fullmatch(r"\s*\d+\s+\d+\s*", lines[6]):
            remove = 0  # IPC_RMID
            # Of an id that is no longer in use, it is an error that says what we want.
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), remove, None)

    def _children(self) -> dict[int, str]:
        """Return the processes that serve the connections, and the others, with their states."""
        return {pid: state for pid, state, parent in _processes() if parent == self.pid}

    def kill(self) -> None:
        if self._owner != os.getpid():
            return
        if self.running:
            # After a crash of one of its processes, it has another one.
            self._release_shared_memory()
            # Stopped, it starts no more of them, and the numbers of those that end stay theirs.
            # It may have been stopped before, of which we would not be told again.
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            for child in self._children():
                os.kill(child, signal.SIGKILL)
        super().kill()
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            try:
                # Before, it would not start again.
                if not select.select([lifeline], [], [], PATIENCE)[0]:
                    raise TimeoutError(
                        f"waited {PATIENCE:g} s for the end of the server's children"
                    )
            finally:
                os.close(lifeline)

    def pause(self) -> None:
        # That alone would only keep new connections away.
        super().pause()
        for child in self._children():
            os.kill(child, signal.SIGSTOP)
        wait_until(lambda: set(self._children().values()) <= set("TtZX"), "its children stop")

    def resume(self) -> None:
        for child in self._children():
            try:
                os.kill(child, signal.SIGCONT)
            except ProcessLookupError:
                pass  # Where it was not paused, they come and go.
        super().resume()

    def connect(self, database: str = USER, **options: Any) -> psycopg.Connection:
        """Return a new connection; to be closed by the caller."""
        place: dict[str, Any] = {"host": HOST, "port": self.port, "user": USER, "dbname": database}
        return psycopg.connect(**{**place, "connect_timeout": int(PATIENCE), **options})

    def sql(
        self, statement: str | sql.Composed, database: str = USER, parameters: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run one statement, outside of any transaction, and return its rows."""
        query = statement.encode() if isinstance(statement, str) else statement
        with self.connect(database, autocommit=True) as connection:
            cursor = connection.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []

    def back_up(self, folder: Path) -> None:
        """Copy the cluster, which may be at work, to a new folder that can take its place."""
        command: list[str | Path] = [_binaries() / "pg_basebackup", "--pgdata", folder]
        command += ["--host", HOST, "--port", str(self.port), "--username", USER]
        command += ["--checkpoint", "fast", "--wal-method", "stream", "--no-sync"]
        subprocess.run(command, cwd=self.folder, check=True, **_user_options())

    def create_database(self, name: str) -> None:
        self.sql(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Drop it, if it exists, and cut those that are connected to it."""
        self.sql(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def django_settings(self, name: str) -> dict[str, Any]:
        """Return what Django's DATABASES says of the database `name`."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": USER,
            "HOST": HOST,
            "PORT": self.port,
        }
