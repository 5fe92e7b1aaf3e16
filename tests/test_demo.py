"""The demos run, and the processes in them see no stale read: over SQLite, Redis and ZooKeeper.

That of Django has tests of its own.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from . import not_measured
from .servers import HOST, wait_until

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "examples" / "demo.py")]
ZOOKEEPER = [sys.executable, str(ROOT / "examples" / "zookeeperdemo.py")]


def server_is_gone(output: str) -> bool:
    """Whether nobody listens on the port that the demo named."""
    found = re.search(r"server of our own \(port (\d+)\)", output)
    assert found is not None, output
    with socket.socket() as probe:
        return probe.connect_ex((HOST, int(found[1]))) != 0


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_the_demo_sees_no_stale_read(backend: str) -> None:
    run = subprocess.run(
        [*COMMAND, "--backend", backend, "--seconds", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=not_measured(),
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    found = re.search(r"autosync=True: 0 stale reads of ([0-9,]+)\.", run.stdout)
    assert found is not None, run.stdout
    assert int(found[1].replace(",", "")) > 0
    assert backend != "redis" or server_is_gone(run.stdout)


def zookeeper_demo(script: str, flips: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, "--flips", str(flips)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=not_measured(),
        text=True,
        timeout=300,
    )


def test_the_demo_of_zookeeper_sees_no_stale_flag() -> None:
    run = zookeeper_demo(ZOOKEEPER[1], 4)
    assert run.returncode == 0, run.stdout
    assert "4 flips: 0 stale strict reads." in run.stdout
    assert len(re.findall(r"^ +\d   (true|false), by [AB] ", run.stdout, re.MULTILINE)) == 4
    assert len(re.findall(r" after \d+\.\d ms$", run.stdout, re.MULTILINE)) == 4
    assert server_is_gone(run.stdout)


def test_the_demo_of_zookeeper_would_see_a_stale_flag(tmp_path: Path) -> None:
    text = Path(ZOOKEEPER[1]).read_text().replace("Path(__file__).parents[1]", f"{str(ROOT)!r}")
    assert 'autosync="strict")' in text
    script = tmp_path / "zookeeperdemo.py"
    script.write_text(text.replace('autosync="strict")', "autosync=False)"))
    run = zookeeper_demo(str(script), 2)
    assert run.returncode != 0
    assert "STALE" in run.stdout
    # The process that flips last has an old flag, too, but nobody asks it.
    assert re.search("The demo failed: [12] stale strict reads in 2 flips", run.stdout)


@pytest.mark.parametrize(
    "command",
    [[*COMMAND, "--backend", "redis", "--seconds", "60"], [*ZOOKEEPER, "--flips", "1000000"]],
    ids=["redis", "zookeeper"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_server_of_the_demo_ends_with_it(
    tmp_path: Path, number: signal.Signals, command: list[str]
) -> None:
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**not_measured(), "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        said = demo.stdout.readline() + demo.stdout.readline()
        assert not server_is_gone(said)
        # As Ctrl-C does: to the demo's processes together.
        os.killpg(demo.pid, number)
        demo.stdout.read()  # the pipe may be full
        wait_until(lambda: server_is_gone(said), "the server of the demo has ended")
        demo.wait(30)


def test_an_unknown_backend_is_told_the_choices() -> None:
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    run = subprocess.run(
        ["make", "demo", "BACKEND=mysql"], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert run.returncode != 0
    assert "BACKEND=mysql: write one of sqlite redis django zookeeper" in run.stderr
    run = subprocess.run([*COMMAND, "--backend", "mysql"], capture_output=True, text=True)
    assert run.returncode != 0
    assert re.search("invalid choice: 'mysql'.*sqlite.*redis", run.stderr)
