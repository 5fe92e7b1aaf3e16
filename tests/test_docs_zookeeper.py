"""Every example of docs/backends/zookeeper.rst runs, over a server in place of the one it names.

So do those of ZooKeeper in the README and in the quickstart; and each operation sends as many
requests as the page's tables say.
"""

from __future__ import annotations

import doctest
import gc
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient

import durabledict
from durabledict import ZookeeperDict

from .servers import HOST, PATIENCE
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import ZookeeperServer, started

ROOT = Path(__file__).parents[1]

PAGE = ROOT / "docs" / "backends" / "zookeeper.rst"

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def server() -> Iterator[ZookeeperServer]:
    """A server on which nothing is at the paths that the pages name."""
    with ZookeeperServer() as server:
        yield server


@pytest.fixture
def namespace(server: ZookeeperServer) -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {}
    yield names
    for value in names.values():
        if isinstance(value, ZookeeperDict):
            value.close()
    # Also that of a dict whose name was given to another one: it would try to connect for ever.
    # Not `isinstance`, at which a lazy object of Django's wakes up.
    clients = [found for found in gc.get_objects() if issubclass(type(found), KazooClient)]
    for client in clients:
        if (HOST, server.port) in client.hosts:
            client.stop()
            client.close()


def test_the_examples_do_what_the_page_says(
    server: ZookeeperServer, namespace: dict[str, Any]
) -> None:
    text, replaced = re.subn(r"\blocalhost:2181\b", f"{HOST}:{server.port}", PAGE.read_text())
    assert replaced > 5
    test = doctest.DocTestParser().get_doctest(text, namespace, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 50
    said: list[str] = []
    # The page's names are looked at afterwards, to close what they hold.
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    assert not runner.failures, "".join(said)
    # What the page closes, it says is stopped: its first client, which a dict has started.
    assert not namespace["client"].connected


@pytest.mark.parametrize(
    ("page", "name"), [("README.rst", "settings"), ("docs/quickstart.rst", "flags")]
)
def test_the_other_pages_open_a_dict_that_works(
    server: ZookeeperServer, namespace: dict[str, Any], page: str, name: str
) -> None:
    (block,) = [
        textwrap.dedent(found)
        for found in re.findall(r"::\n\n((?:    .*\n|\n)+)", (ROOT / page).read_text())
        if "ZookeeperDict" in found
    ]
    block, replaced = re.subn(r"\blocalhost:2181\b", f"{HOST}:{server.port}", block)
    assert replaced
    namespace["durabledict"] = durabledict  # which the pages have imported before
    exec(block, namespace)
    d = namespace[name]
    assert isinstance(d, ZookeeperDict)
    d["k"] = 1
    assert d == {"k": 1}
    with ZookeeperDict[str, int](f"/app/{name}", server.client()) as other:
        assert other == {"k": 1}


class Counted:
    """A dict behind a proxy, which counts what it sends, and another process's dict."""

    def __init__(self, proxy: ZookeeperProxy, client: KazooClient, others: KazooClient) -> None:
        self.proxy = proxy
        self.client = client
        self.dict = ZookeeperDict[str, int]("/app/counted", client)
        self.others = ZookeeperDict[str, int]("/app/counted", others, autosync=False)

    def requests(self, operation: Callable[[], object]) -> int:
        with self.proxy.counting() as calls:
            operation()
            # What is sent, and not waited for, has been counted after this.
            self.client.get_acls("/")
        return calls.total() - 1

    def told(self, change: Callable[[], object]) -> None:
        """Let the other process change something, and wait until the dict was told of it."""
        assert self.dict["a"] is not None  # nothing that was told before is left
        since = self.dict.last_synced
        change()
        assert self.dict.wait(since, PATIENCE)
        # A removal has two events, one of which may still be on its way.
        self.client.get_acls("/")
        self.dict._client.barrier()


@pytest.fixture
def counted(server: ZookeeperServer) -> Iterator[Counted]:
    with (
        ZookeeperProxy(server.port) as proxy,
        started(server.client()) as others,
        started(KazooClient(f"{HOST}:{proxy.port}")) as client,
    ):
        counted = Counted(proxy, client, others)
        counted.others.update(a=1, b=2, c=3)
        counted.dict.sync()
        yield counted
        counted.others.close()
        counted.dict.close()


def test_reads_cost_what_the_page_says(counted: Counted) -> None:
    d, others, requests, told = counted.dict, counted.others, counted.requests, counted.told

    def read() -> int:
        return requests(lambda: d["a"])

    assert read() == 0
    told(lambda: others.update(a=10))
    assert read() == 1
    told(lambda: others.update(new=1))
    assert read() == 2
    told(lambda: others.pop("new"))
    assert read() == 2
    others["a"] = 11
    assert requests(d.sync) == 2
    assert requests(d.sync) == 1
    d.autosync = "strict"
    assert read() == 1
    others.update(a=12, b=12)
    assert read() == 3
    d.autosync = 3600.0
    d.sync()
    assert read() == 0
    d.autosync = False
    others["a"] = 13
    assert read() == 0
    with_three = requests(lambda: ZookeeperDict[str, int]("/app/counted", counted.client).close())
    assert with_three == 2 + 2
    assert d.sync()
    assert d == others == {"a": 13, "b": 12, "c": 3}


def test_writes_cost_what_the_page_says(counted: Counted) -> None:
    d, others, requests, told = counted.dict, counted.others, counted.requests, counted.told

    def read() -> int:
        return requests(lambda: d["a"])

    def write(value: int) -> int:
        return requests(lambda: d.update(a=value) if value % 2 else d.__setitem__("a", value))

    assert read() == 0
    # The second one of each pair is sent along, and arms the watch.
    assert write(100) == 1 + 1
    assert read() == 0
    assert write(101) == 1 + 1
    assert write(102) == 1
    assert write(103) == 1
    assert read() == 1
    assert requests(lambda: d.__setitem__("new", 1)) == 1 + 1
    assert read() == 1
    assert requests(lambda: d.__delitem__("new")) == 1 + 1  # the first one
    assert read() == 1
    assert requests(lambda: d.__delitem__("b")) == 1
    assert read() == 1
    many = {f"key {number}": number for number in range(20)}
    assert requests(lambda: d.update(many)) == 1
    assert read() == 1 + 2
    assert requests(lambda: d.replace_all({"a": 1, "c": 3})) == 1 + 1 + 1
    assert read() == 1
    assert requests(lambda: d.compute("a", lambda a: a + 1)) == 3 + 1 + 1
    assert read() == 0
    assert requests(lambda: d.compare_and_set("a", 2, 3)) == 3 + 1 + 1
    assert read() == 0
    assert requests(lambda: d.setdefault("a", 0)) == 1
    assert requests(lambda: d.setdefault("new", 0)) == 1 + 3 + 1 + 1
    assert read() == 1
    assert requests(lambda: d.pop("new")) == 3 + 1
    assert read() == 1
    told(lambda: others.update(a=5))
    assert requests(lambda: d.__setitem__("c", 4)) == 1 + 1 + 1
    assert read() == 0
    assert requests(lambda: d.popitem()) == 1 + 3 + 1
    d.update(b=1, d=2)
    others.pop("b")
    d.sync()
    assert requests(lambda: d.__delitem__("d")) == 1 + 2  # another has removed a key since
    assert requests(d.sync) == 1 + 1
    others.sync()
    assert d == others
