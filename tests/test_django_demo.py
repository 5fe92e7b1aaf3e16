"""The Django project of the examples: its pages work, and two processes show no stale flag."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from . import not_measured
from .memcachedserver import MemcachedServer
from .redisservers import RedisServer
from .servers import HOST, wait_until

ROOT = Path(__file__).parents[1]


def demo(examples: Path, flips: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(examples / "djangodemo.py"), "--flips", str(flips)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=not_measured(),
        text=True,
        timeout=300,
    )


def ports(output: str) -> list[int]:
    """Return the ports that the demo named."""
    return list(map(int, re.findall(r"\b\d{4,5}\b", output.partition("The flag")[0])))


def is_silent(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def test_the_demo_sees_no_stale_flag() -> None:
    run = demo(ROOT / "examples", 4)
    assert run.returncode == 0, run.stdout
    assert "4 flips: 0 stale answers." in run.stdout
    assert run.stdout.count("comparisons with the stamp, 2 loads of the rows") == 2
    assert len(ports(run.stdout)) == 3
    assert all(map(is_silent, ports(run.stdout)))
    assert not list((ROOT / "examples").rglob("*.sqlite3"))


def test_the_demo_would_see_a_stale_flag(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path, dirs_exist_ok=True)
    module = tmp_path / "djangoproject" / "pages" / "flags.py"
    text = module.read_text()
    assert "request_started.connect(flags.sync)" in text
    module.write_text(text.replace("request_started.connect(flags.sync)", ""))
    run = demo(tmp_path, 2)
    assert run.returncode != 0
    assert "STALE" in run.stdout
    assert re.search("The demo failed: [12] stale answers in 2 flips", run.stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_the_demo_started_ends_with_it(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "djangodemo.py"), "--flips", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**not_measured(), "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(5))
        assert len(ports(said)) == 3
        assert not any(map(is_silent, ports(said)))
        # As Ctrl-C does: to the demo's processes together.
        os.killpg(process.pid, number)
        process.stdout.read()
        wait_until(lambda: all(map(is_silent, ports(said))), "what the demo started has ended")
        process.wait(30)


# The pages, by Django's own client, in a process of its own.
PAGES = """
import json, os
import django; django.setup()
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
call_command("check", fail_level="WARNING")

def ask(path, **form):
    answer = client.post(path, form) if form else client.get(path)
    return answer.status_code, answer.content.decode()

client = Client(SERVER_NAME="localhost")
assert 'id="design">old<' in ask("/")[1]
assert "There are none yet" in ask("/settings/")[1]
assert ask("/settings/", name="new_design", value="true")[0] == 302
assert ask("/settings/", name="title", value='"<b>Shop</b>"')[0] == 302
assert 'id="design">new<' in ask("/")[1]
assert "&lt;b&gt;Shop" in ask("/")[1]
assert "&lt;b&gt;Shop" in ask("/settings/")[1]
status, page = ask("/settings/", name="title", value="<b>")
assert status == 400 and "title: " in page and "<b>" not in page.replace("&lt;b&gt;", "")
assert ask("/settings/", name="n" * 300, value="1")[0] == 400
assert ask("/settings/", name="new_design", remove="yes")[0] == 302
assert 'id="design">old<' in ask("/")[1]
assert json.loads(ask("/stats/")[1])["process"] == os.getpid()
assert ask("/admin/")[0] == 302
stranger = Client(SERVER_NAME="localhost", enforce_csrf_checks=True)
assert stranger.post("/settings/", {"name": "title", "value": "1"}).status_code == 403
print("all right")
"""


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_the_pages(
    tmp_path: Path, memcached_server: MemcachedServer, redis_server: RedisServer, kind: str
) -> None:
    caches = {"memcached": f"memcached://{HOST}:{memcached_server.port}", "redis": redis_server.url}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PAGES],
        cwd=ROOT / "examples" / "djangoproject",
        env={
            **not_measured(),
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "DEMO_DATABASE": str(tmp_path / "db.sqlite3"),
            "DEMO_CACHE": caches[kind],
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout
    assert "all right" in run.stdout
