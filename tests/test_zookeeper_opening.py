"""ZookeeperDict from a URL or a client, what it refuses, and what it takes to import it."""

from __future__ import annotations

import pickle
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_acl

import durabledict
from durabledict import SignedEncoding, ZookeeperDict
from durabledict.zookeeperclient import NotConnectedError

from . import output_of
from .servers import HOST, free_port
from .zookeeperservers import ZookeeperServer

Dict = ZookeeperDict[Any, Any]


# -- by a URL -------------------------------------------------------------------------------------


def test_a_url_opens_a_dict_with_a_client_of_its_own(
    zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    url = f"zookeeper://{zookeeper_server.hosts}{zookeeper_path}"
    before = zookeeper_server.sessions()
    one = Dict.from_url(url, autosync="strict")
    two = durabledict.open(url, autosync=False)
    assert isinstance(two, ZookeeperDict)
    assert (one.autosync, two.autosync) == ("strict", False)
    assert one.connection is not two.connection
    assert len(zookeeper_server.sessions() - before) == 2
    two["a"] = 1
    assert one == {"a": 1}
    one["b"] = 2
    assert two.sync() is True
    assert two == {"a": 1, "b": 2}
    one.close()
    two.close()
    assert zookeeper_server.sessions() <= before


def test_a_url_names_several_servers(
    zookeeper_server: ZookeeperServer, zookeeper_path: str
) -> None:
    nobody = free_port()
    url = f"zookeeper://{HOST}:{nobody},{zookeeper_server.hosts}{zookeeper_path}/below/it"
    with durabledict.open(url) as d, Dict(f"{zookeeper_path}/below/it", d.connection) as same:  # type: ignore[attr-defined]  # the connection of a ZookeeperDict
        assert same.connection.hosts == [(HOST, nobody), (HOST, zookeeper_server.port)]
        assert same.connection.chroot == ""
        assert same.keyspace == f"{zookeeper_path}/below/it"
        d["a"] = 1
        same.sync()
        assert same == {"a": 1}


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ("host1,host2", [("host1", 2181), ("host2", 2181)]),
        ("host1:1,host2:2", [("host1", 1), ("host2", 2)]),
        ("[::1]:1,[fe80::1]:2", [("::1", 1), ("fe80::1", 2)]),
    ],
)
def test_the_hosts_of_a_url(
    hosts: str, found: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[KazooClient] = []

    def start(self: KazooClient, timeout: float) -> None:
        clients.append(self)
        raise self.handler.timeout_exception

    # Nobody is asked, whoever has such a name here.
    monkeypatch.setattr(KazooClient, "start", start)
    with pytest.raises(NotConnectedError):
        durabledict.open(f"zookeeper://{hosts}/path")
    assert [client.hosts for client in clients] == [found]


@pytest.mark.parametrize(
    "path", ["/caf\xe9", "/a b", "/50%", "/a#b", "/a?b", "/~int:1", "/a:b@c", "/a/\u4e2d"]
)
def test_the_path_of_a_url_is_quoted(
    zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str, path: str
) -> None:
    with durabledict.open(
        f"zookeeper://{zookeeper_server.hosts}{zookeeper_path}{quote(path)}"
    ) as d:
        d["k"] = 1
        assert d.keyspace == zookeeper_path + path
    assert zookeeper_client.get_children(zookeeper_path + path) == ["k"]


@pytest.mark.parametrize(
    "url",
    [
        "zookeeper://",
        "zookeeper://host",
        "zookeeper://host/",
        "zookeeper://host//",
        "zookeeper:///path",
        "zookeeper://user:password@host/path",
    ],
)
def test_a_url_without_a_host_or_a_path(url: str) -> None:
    shown = re.escape(url.replace("user:password@", "***@"))
    said = rf"^'{shown}': write zookeeper://host:port,host:port/path$"
    for open_it in (Dict.from_url, durabledict.open):
        with pytest.raises(ValueError, match=said):
            open_it(url)


@pytest.mark.parametrize("rest", ["?autosync=5.0", "?x", "#part", "?x#part"])
def test_what_belongs_to_no_path_is_not_left_out_in_silence(rest: str) -> None:
    """Else the entries would be those of another place."""
    for open_it in (Dict.from_url, durabledict.open):
        with pytest.raises(ValueError, match="zookeeper://host/path"):
            open_it(f"zookeeper://host/path{rest}")


@pytest.mark.parametrize("url", ["zookeeper://host:port/path", "zookeeper://,/path"])
def test_hosts_that_kazoo_does_not_take(url: str) -> None:
    with pytest.raises(ValueError, match=r"hostname|Port"):
        durabledict.open(url)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    said = r"no option 'request_limits'; there are: autosync,.*timeout, request_limit,.*on_outage"
    with pytest.raises(TypeError, match=said):
        durabledict.open("zookeeper://host/path", request_limits=1)
    for option in ("keyspace", "connection"):
        with pytest.raises(TypeError, match=f"no option '{option}'"):
            durabledict.open("zookeeper://host/path", **{option: "/path"})


#: What a dict is opened with, and what that raises. Only who is not there is not waited for.
REASONS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "not allowed": ({}, NoAuthError),
    "not there": ({"timeout": 0.05}, NotConnectedError),
    "not an option": ({"autosync": "often"}, TypeError),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_url_that_cannot_be_opened_leaves_nothing(
    zookeeper_server: ZookeeperServer,
    zookeeper_client: KazooClient,
    zookeeper_path: str,
    reason: str,
) -> None:
    options, error = REASONS[reason]
    zookeeper_client.create(zookeeper_path, acl=[make_acl("world", "anyone", admin=True)])
    sessions, threads = zookeeper_server.sessions(), set(threading.enumerate())
    hosts = f"{HOST}:{free_port()}" if reason == "not there" else zookeeper_server.hosts
    with pytest.raises(error):
        durabledict.open(f"zookeeper://{hosts}{zookeeper_path}", **options)
    assert zookeeper_server.sessions() <= sessions
    assert threads.issuperset(threading.enumerate())


# -- by a client ----------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [None, "127.0.0.1:2181", object()])
def test_what_is_no_client_is_refused(connection: Any) -> None:
    said = r"^connection is .*: write a kazoo\.client\.KazooClient, or use durabledict\.open\('zoo"
    with pytest.raises(TypeError, match=said):
        Dict("/path", connection)


@pytest.mark.parametrize("keyspace", [None, b"/path", 1, Path("/path")])
def test_a_keyspace_is_text(keyspace: Any) -> None:
    with pytest.raises(TypeError, match=r"^keyspace=.*: write a path, '/settings' say$"):
        Dict(keyspace, KazooClient())


@pytest.mark.parametrize(
    "keyspace",
    ["/a/../b", ".", "/./a", "a\0", "/a\n", "/\x7f", "/\ud800", "/a\uf000", "/\U0001f600"],
)
def test_a_keyspace_is_a_path_of_zookeepers(keyspace: str) -> None:
    with pytest.raises(ValueError, match=r"^keyspace=.* is no path that ZooKeeper takes$"):
        Dict(keyspace, KazooClient())


def test_all_that_zookeeper_has_is_a_keyspace_only_when_it_is_said(
    zookeeper_client: KazooClient,
) -> None:
    with pytest.raises(ValueError, match="keyspace='': write a path"):
        Dict("", zookeeper_client)
    with Dict("/", zookeeper_client) as d:
        assert d.keyspace == "/"


@pytest.mark.parametrize("timeout", [0, -1, timedelta(0), None, "5", True])
def test_a_timeout_is_seconds(timeout: Any) -> None:
    with pytest.raises(TypeError, match=r"timeout|write seconds"):
        Dict("/path", KazooClient(), timeout=timeout)


@pytest.mark.parametrize("limit", ["1MB", b"1", None, True, 1.0, 1e6, 0, -1])
def test_the_limit_of_a_request_is_bytes(limit: Any) -> None:
    error = ValueError if type(limit) is int else TypeError
    with pytest.raises(error, match=r"^request_limit=.*: write bytes (as an int|above 0)"):
        Dict("/path", client := KazooClient(), request_limit=limit)
    assert not client.handler.running


@pytest.mark.parametrize("autosync", ["often", None, "Strict", -1])
def test_an_autosync_that_is_none(autosync: Any) -> None:
    client = KazooClient()
    with pytest.raises(TypeError, match="strict"):
        Dict("/path", client, autosync)
    assert not client.handler.running


def test_a_path_has_one_keyspace_however_it_is_written(
    zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """Signatures are bound to it."""
    encoding = SignedEncoding("a key of thirty-two characters..")
    name = zookeeper_path.strip("/")
    forms = [f"/{name}/a", f"{name}/a", f"/{name}/a/", f"//{name}//a//"]
    dicts = [Dict(form, zookeeper_client, encoding=encoding) for form in forms]
    for number, d in enumerate(dicts):
        d[number] = number
    for d in dicts:
        d.sync()
        assert d.keyspace == f"/{name}/a"
        assert not d.undecodable
        assert d == {0: 0, 1: 1, 2: 2, 3: 3}
        d.close()


def test_seconds_may_be_a_timedelta(zookeeper_client: KazooClient, zookeeper_path: str) -> None:
    with Dict(
        zookeeper_path, zookeeper_client, timedelta(minutes=1), timeout=timedelta(seconds=30)
    ) as d:
        d["a"] = 1
        assert d.autosync == 60.0
        assert d == {"a": 1}


def test_other_programs_create_entries_in_a_place_that_opening_made(
    zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """As 0.9 did; a program that knows kazoo alone need not make it first."""
    with Dict(f"{zookeeper_path}/a/b", zookeeper_client, autosync="strict") as d:
        zookeeper_client.create(f"{zookeeper_path}/a/b/k", pickle.dumps(1))
        assert d == {"k": 1}


def test_a_place_that_may_not_be_made_is_read_as_empty(
    zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """Who may read alone opens it; the first write of another makes it."""
    zookeeper_client.create(zookeeper_path, b"", acl=[make_acl("world", "anyone", read=True)])
    with Dict(f"{zookeeper_path}/a", zookeeper_client) as d:
        assert d == {}
        with pytest.raises(NoAuthError):
            d["k"] = 1
        assert zookeeper_client.exists(f"{zookeeper_path}/a") is None


def test_opening_and_reading_makes_the_empty_place_alone(
    zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    """What removes nothing, too, makes no entry and no version."""
    with Dict(f"{zookeeper_path}/a/b", zookeeper_client) as d:
        assert d == {}
        assert d.sync() is False
        with pytest.raises(KeyError):
            del d["k"]
        d.clear()
        d.update({})
        d.replace_all({})
        assert d.pop("k", None) is None
        assert not d.compare_and_set("k", 1, 2)
        made = zookeeper_client.exists(f"{zookeeper_path}/a/b")
        assert made is not None
        assert (made.version, made.cversion) == (0, 0)
        d["k"] = 1
        assert zookeeper_client.get_children(f"{zookeeper_path}/a/b") == ["k"]
        with Dict(f"{zookeeper_path}/a/b", zookeeper_client) as other:
            assert other == {"k": 1}


# -- importing ------------------------------------------------------------------------------------


WITHOUT_KAZOO = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kazoo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import durabledict
from durabledict import *
durabledict.open("memory://")
"""

USES = [
    "from durabledict import ZookeeperDict",
    "durabledict.ZookeeperDict",
    "import durabledict.zookeeper",
    "durabledict.open('zookeeper://host/path')",
]


def test_without_the_driver_the_error_names_the_remedy() -> None:
    uses = "".join(
        f"try:\n    {use}\nexcept ImportError as error:\n    print(error.name, error)\n"
        for use in USES
    )
    lines = output_of(WITHOUT_KAZOO + uses).splitlines()
    assert len(lines) == len(USES)
    for line in lines:
        assert line.startswith("kazoo ")
        assert "needs the package kazoo: pip install kazoo" in line
        assert "extra [zookeeper]" in line


def test_kazoo_is_imported_when_the_dict_is_used() -> None:
    program = (
        "import sys, durabledict, durabledict.testing\n"
        "from durabledict import *\n"
        "dir(durabledict), durabledict.open('memory://')\n"
        "print('kazoo' in sys.modules, 'ZookeeperDict' in dir(durabledict))\n"
        "durabledict.ZookeeperDict\n"
        "print('kazoo' in sys.modules, [n for n in sys.modules if n.startswith(('gevent', 'eve'))])"
    )
    assert output_of(program).splitlines() == ["False True", "True []"]
