"""Every example of docs/backends/redis.rst runs, over servers in place of those that it names.

So do those of Redis in the README and in the quickstart.
"""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

import durabledict
from durabledict import RedisDict

from .redisclusters import ClusterServers, SentinelServers
from .redisservers import Certificates, RedisServer
from .servers import HOST

ROOT = Path(__file__).parents[1]

PAGE = ROOT / "docs" / "backends" / "redis.rst"

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tls=Certificates(tmp_path_factory.mktemp("certificates"))) as server:
        yield server


@pytest.fixture
def namespace() -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {}
    yield names
    for value in names.values():
        if isinstance(value, (redis.Redis, redis.RedisCluster)):
            value.close()


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of redis-cli on the page, each with the output that it shows."""
    found = re.findall(r"^    \$ redis-cli (.+)\n((?:    [^$\n].*\n)+)", text, re.MULTILINE)
    return [
        (command, re.sub(r"^    ", "", output, flags=re.MULTILINE)) for command, output in found
    ]


def run_cli(server: RedisServer, command: str) -> str:
    """Run redis-cli as on a terminal."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    assert program is not None, "neither redis-cli nor valkey-cli is on the PATH"
    called = [program, "-h", HOST, "-p", str(server.port), "--no-raw", *shlex.split(command)]
    return subprocess.run(called, capture_output=True, text=True, check=True).stdout


def test_the_examples_do_what_the_page_says(server: RedisServer, namespace: dict[str, Any]) -> None:
    assert server.tls is not None
    text = PAGE.read_text()
    with ExitStack() as stack:
        cluster = stack.enter_context(ClusterServers())
        sentinels = stack.enter_context(SentinelServers())
        for there, here in [
            ("localhost", HOST),
            ("/run/redis/redis.sock", str(server.unix)),
            ("ca.pem", str(server.tls.authority)),
            ("mymaster", sentinels.name),
            ("26379", str(sentinels.sentinels[0].port)),
            ("6379", str(server.port)),
            ("6380", str(server.tls_port)),
            ("7000", str(cluster.nodes[0].port)),
        ]:
            pattern = rf"\b{there}\b" if there.isdigit() else re.escape(there)
            text, replaced = re.subn(pattern, here, text)
            assert replaced, there
        test = doctest.DocTestParser().get_doctest(text, namespace, PAGE.name, str(PAGE), 0)
        assert len(test.examples) > 20
        said: list[str] = []
        # The page's names are looked at afterwards, to close what they hold.
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        result = runner.run(test, out=said.append, clear_globs=False)
        namespace.update(test.globs)
        assert result.failed == 0, "".join(said)


def test_redis_cli_shows_what_the_page_says(server: RedisServer) -> None:
    server.flush()
    with server.client() as client, RedisDict[Any, Any]("settings", client) as settings:
        settings["theme"] = "dark"
        settings[1] = "one"
        del settings[1]
        shown = commands(PAGE.read_text())
        assert len(shown) == 5
        for command, expected in shown:
            got = run_cli(server, command)
            assert doctest.OutputChecker().check_output(expected, got, FLAGS), (command, got)


@pytest.mark.parametrize(
    ("page", "name"), [("README.rst", "settings"), ("docs/quickstart.rst", "flags")]
)
def test_the_other_pages_open_a_dict_that_works(
    server: RedisServer, namespace: dict[str, Any], page: str, name: str
) -> None:
    server.flush()
    text = (ROOT / page).read_text()
    (block,) = [
        textwrap.dedent(found)
        for found in re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
        if "RedisDict" in found
    ]
    for there, here in [
        ("redis.Redis()", f"redis.Redis({HOST!r}, {server.port})"),
        ('redis.Redis(host="localhost")', f"redis.Redis({HOST!r}, {server.port})"),
        ("redis://localhost/", f"redis://{HOST}:{server.port}/"),
    ]:
        block = block.replace(there, here)
    assert str(server.port) in block
    namespace["durabledict"] = durabledict  # which the pages have imported before
    exec(block, namespace)
    with namespace[name] as d, server.client() as client:
        assert isinstance(d, RedisDict)
        d["k"] = 1
        assert d == {"k": 1}
        assert client.exists(name)


def acl(text: str) -> list[str]:
    """Return the words of the page's ACL SETUSER."""
    (command,) = [command for command, _ in commands(text) if command.startswith("ACL SETUSER")]
    return shlex.split(command)


def use_all_of_it(client: redis.Redis) -> None:
    """Do with a dict whatever there is to be done, once."""
    with (
        RedisDict[Any, Any]("settings", client) as d,
        RedisDict[Any, Any]("settings", client, autosync=False) as other,
    ):
        d["a"] = 1
        d["b"] = 2
        d.update(c=3, d=4)
        del d["b"]
        assert other.sync()
        d["a"] = 1.5
        assert other.sync()
        d["a"] = 1
        assert (d.pop("c"), d.setdefault("e", 5), d.compute("a", lambda a: a + 1)) == (3, 5, 2)
        d.replace_all({"z": 1})
        d.sync(force=True)
        d.clear()
        # More than are loaded in one reply.
        d.update({f"key {number}": number for number in range(3000)})
        with RedisDict[Any, Any]("settings", client) as late:
            assert len(late) == 3000
        d["large"] = "x" * 2_000_000
        d.clear()
        assert other.sync()


def client_of(server: RedisServer, words: list[str], *more: str) -> redis.Redis:
    """Return a client of a user who may do what `words`, an ACL SETUSER, say."""
    server.flush()
    with server.client() as client:
        client.execute_command("ACL", "DELUSER", "app")
        client.execute_command(*words, *more)
    return server.client(username="app", password="secret")


def test_the_page_names_the_commands_that_a_user_needs(server: RedisServer) -> None:
    words = acl(PAGE.read_text())
    with client_of(server, words) as client:
        use_all_of_it(client)
        with RedisDict[Any, Any]("settings", client, autosync=False) as d:
            since = d.last_synced
            with RedisDict[Any, Any]("settings", client) as other:
                other["new"] = 1
            assert d.wait(since, 5.0)
        with client_of(server, words, "+wait") as client_that_waits:
            d = RedisDict("settings", client_that_waits, wait=(1, 1))
            with pytest.raises(redis.TimeoutError):
                d["new"] = 2
            d.close()


@pytest.mark.parametrize("missing", ["+role", "+info", "+config|get", "+type", "+hscan", "+xread"])
def test_what_the_page_says_may_be_missing_may_be(server: RedisServer, missing: str) -> None:
    text = PAGE.read_text()
    assert f"\n| ``{missing[1:].upper()}``" in text
    words = acl(text)
    words.remove(missing)
    with client_of(server, words) as client:
        use_all_of_it(client)


def test_the_other_commands_may_not_be_missing(server: RedisServer) -> None:
    text = PAGE.read_text()
    words = acl(text)
    needed = [
        word for word in words if word[0] == "+" and f"\n| ``{word[1:].upper()}``" not in text
    ]
    assert needed
    for word in needed:
        with client_of(server, [other for other in words if other != word]) as client:
            with pytest.raises(redis.ResponseError, match=r"permission|can't run this command"):
                use_all_of_it(client)
            # Nothing of it is in doubt for somebody who may.
            with server.client() as other, RedisDict[Any, Any]("settings", other) as d:
                d.sync()
