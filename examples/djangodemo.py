"""A Django project in two processes: what is changed in one, the next request to the other sees.

    python examples/djangodemo.py [--flips 20]

Serves `examples/djangoproject` twice, over one SQLite file and one memcached, which the demo starts
and stops, and flips its feature flag through the settings page, now of one process, now of the
other. Ends with an error if an answer was stale.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from http.cookiejar import CookieJar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
PROJECT = Path(__file__).parent / "djangoproject"

# Nothing takes that long: it is when what hangs becomes a failure.
PATIENCE = 30.0

# Waits for the end of its input, that is of this process, however that ended.
GUARD = 'read -r line; kill "$1"'


class Program(ABC):
    """A program on a port of its own, which ends with this process."""

    def __init__(self, name: str, folder: str, environment: dict[str, str]) -> None:
        self.name = name
        self.log = Path(folder) / f"{name}.log"
        self.environment = {**os.environ, **environment}
        self._start()

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers: this one, and not another that has the port."""

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port: int = probe.getsockname()[1]
        # In sessions of their own: Ctrl-C is for this process alone.
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=self.environment,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", str(self.process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def wait(self) -> Self:
        """Return when it answers; begin again where another program has taken the port."""
        deadline = time.monotonic() + PATIENCE
        starts = 1
        while not self._answers():
            if self.process.poll() is not None and starts < 5:
                self.stop()
                self._start()
                starts += 1
            elif self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            return self.answers()
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        self.process.terminate()
        # Before the process is reaped: from then on its number may be that of another one.
        self._guard.kill()
        self._guard.communicate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Memcached(Program):
    """Where the stamp is."""

    def command(self) -> list[str]:
        path = shutil.which("memcached")
        if path is None:
            raise SystemExit("the demo needs memcached; on Debian: apt-get install memcached")
        command = [path, "-l", HOST, "-p", str(self.port), "-U", "0"]
        if os.geteuid() == 0:  # as which it would not run
            users = {user.pw_name for user in pwd.getpwall()}
            command += ["-u", "memcache" if "memcache" in users else "nobody"]
        return command

    def answers(self) -> bool:
        with socket.create_connection((HOST, self.port), 1) as connection:
            connection.sendall(b"stats\r\nquit\r\n")
            with connection.makefile("rb") as stream:
                return f"STAT pid {self.process.pid}\r\n".encode() in stream.readlines()


class Web(Program):
    """One process that serves the project, and a browser that looks at it."""

    def __init__(self, name: str, folder: str, environment: dict[str, str]) -> None:
        self.browser: OpenerDirector = build_opener(HTTPCookieProcessor(CookieJar()))
        super().__init__(name, folder, environment)

    def command(self) -> list[str]:
        address = f"{HOST}:{self.port}"
        return [sys.executable, "manage.py", "runserver", "--noreload", address]

    def answers(self) -> bool:
        return bool(self.stats()["process"] == self.process.pid)

    def ask(self, path: str, form: dict[str, str] | None = None) -> str:
        data = None if form is None else urlencode(form).encode()
        with self.browser.open(f"http://{HOST}:{self.port}{path}", data, PATIENCE) as answer:
            return str(answer.read().decode())

    def stats(self) -> dict[str, Any]:
        counts: dict[str, Any] = json.loads(self.ask("/stats/"))
        return counts

    def shows_new_design(self) -> bool:
        """Read the flag off the home page."""
        found = re.search(r'id="design">(new|old)<', self.ask("/"))
        if found is None:
            raise SystemExit("The demo failed: the home page does not show the flag")
        return found[1] == "new"

    def switch(self, on: bool) -> None:
        """Send the form of the settings page, as a browser does."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.ask("/settings/"))
        if token is None:
            raise SystemExit("The demo failed: the settings page has no form")
        form = {"name": "new_design", "value": json.dumps(on), "csrfmiddlewaretoken": token[1]}
        self.ask("/settings/", form)


def migrate(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"migrate does not work:\n{done.stdout}")


def flip(webs: list[Web], flips: int) -> None:
    """Flip the flag so often, and raise SystemExit where an answer was stale."""
    stale = 0
    times = []
    before = {web.name: web.stats() for web in webs}
    print("{:>4}   {:<22}{:<29}{}".format("flip", "new_design", "the next request to", "saw"))
    for number in range(flips):
        here, there = webs[number % 2], webs[1 - number % 2]
        on = not here.shows_new_design()
        here.switch(on)
        began = time.perf_counter()
        seen = there.shows_new_design()
        times.append(time.perf_counter() - began)
        right = seen == on and here.shows_new_design() == on
        stale += not right
        print(
            "{:>4}   {:<22}{:<29}{}".format(
                number + 1,
                f"{json.dumps(on)}, by {here.name}",
                f"{there.name}, {times[-1] * 1000:.1f} ms",
                json.dumps(seen) if right else f"{json.dumps(seen)}: STALE",
            ),
            flush=True,
        )
    print()
    for web in webs:
        counts = web.stats()
        asked = counts["comparisons"] - before[web.name]["comparisons"]
        loads = counts["loads"] - before[web.name]["loads"]
        print(f"{web.name}: {asked} comparisons with the stamp, {loads} loads of the rows.")
    if flips:
        print(f"The next request took {statistics.median(times) * 1000:.1f} ms (median).")
    print(f"{flips} flips: {stale} stale answers.")
    if stale or not flips:
        raise SystemExit(f"The demo failed: {stale} stale answers in {flips} flips")
    print("\nRead next: examples/djangoproject/pages/flags.py, then docs/backends/django.rst.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Two Django processes that share settings.")
    parser.add_argument("--flips", type=int, default=20, help="how often to flip the flag")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        memcached = stack.enter_context(Memcached("memcached", folder, {})).wait()
        environment = {
            "DEMO_DATABASE": f"{folder}/db.sqlite3",
            "DEMO_CACHE": f"memcached://{HOST}:{memcached.port}",
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "PYTHONUNBUFFERED": "1",
        }
        migrate(environment)
        webs = [
            stack.enter_context(Web(f"process {name}", folder, environment)) for name in ("A", "B")
        ]
        ports = [web.wait().port for web in webs]
        print(
            f"Processes A and B serve examples/djangoproject on the ports {ports[0]} and "
            f"{ports[1]}. The settings\nare rows in one SQLite file, their stamp is in a memcached "
            f"of our own (port {memcached.port}). The flag\nis flipped on the settings page of one "
            "process; then the other one is asked for its home page.\n",
            flush=True,
        )
        flip(webs, arguments.flips)


if __name__ == "__main__":
    main()
