"""ZookeeperDict with `quorum=True`: what is asked of a majority, and what that sees (rule 4.4)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_acl

from .servers import HOST, PATIENCE, wait_until
from .test_zookeeper_requests import Asked
from .zookeeperproxy import ZookeeperProxy
from .zookeeperreaders import RECONNECT, AnyDict, until_available
from .zookeeperservers import Ensemble, ZookeeperServer, started
from .zookeeperstore import Store, started_in_thread


@pytest.fixture
def asked(store: Store) -> Asked:
    return Asked(store)


def test_a_strict_read_is_one_empty_transaction(asked: Asked) -> None:
    asked.fill(10)
    d = asked.open(autosync="strict", quorum=True)
    with asked.exactly(multi=10):
        for _ in range(10):
            assert d["1"] == 1
    asked.store.put(**{"1": "new"})
    with asked.exactly(multi=1, getData=1):
        assert d["1"] == "new"


def test_sync_and_compute_ask_a_majority_as_well(asked: Asked) -> None:
    asked.fill(10)
    d = asked.open(autosync=False, quorum=True)
    asked.store.put(**{"1": "new"})
    with asked.exactly(multi=1, getData=1):
        assert d.sync() is True
    with asked.exactly(multi=1, getData=2):
        assert d.compare_and_set("1", "old", "newer") is False
    assert d.compute("1", lambda value: value + "er") == "newer"
    assert asked.store.truth()["1"] == "newer"


def test_without_writes_nothing_is_changed_by_it(asked: Asked) -> None:
    asked.fill(3)
    before = [asked.store.raw.get(asked.store.path_of(str(key)))[1] for key in range(3)]
    place = asked.store.raw.get(asked.store.path)[1]
    with asked.open(autosync="strict", quorum=True) as d:
        assert len(d) == 3
    assert [asked.store.raw.get(asked.store.path_of(str(key)))[1] for key in range(3)] == before
    assert asked.store.raw.get(asked.store.path)[1] == place


def test_a_place_that_is_not_there_yet(asked: Asked) -> None:
    d = asked.open(autosync="strict", quorum=True)
    assert d == {}
    asked.store.put(first=1)
    assert d == {"first": 1}


def test_below_a_chroot(
    zookeeper_server: ZookeeperServer, zookeeper_client: KazooClient, zookeeper_path: str
) -> None:
    zookeeper_client.ensure_path(f"{zookeeper_path}-chroot")
    with (
        started(zookeeper_server.client(chroot=f"{zookeeper_path}-chroot")) as client,
        AnyDict("/place", client, "strict", quorum=True) as d,
    ):
        assert d == {}
        d["first"] = 1
        assert d == {"first": 1}


def test_a_place_that_may_not_be_read(asked: Asked) -> None:
    """The error is that of the read, as without it."""
    asked.fill(1)
    d = asked.open(autosync="strict", quorum=True)
    asked.store.raw.set_acls(asked.store.path, [make_acl("world", "anyone", admin=True)])
    assert d["0"] == 0
    asked.store.raw.set(asked.store.path_of("0"), b"no pickle")
    with pytest.raises(NoAuthError):
        d.sync(force=True)


@pytest.mark.parametrize("quorum", [None, 1, "yes"])
def test_it_is_true_or_false(quorum: Any) -> None:
    client = KazooClient()
    with pytest.raises(TypeError, match=r"^quorum=.*: write True \(ask a majority\) or False"):
        AnyDict("/path", client, quorum=quorum)
    assert not client.handler.running


def test_a_leader_that_was_given_up_and_does_not_know_it_is_not_believed() -> None:
    """Asked alone, it answers from what it knows: `sync` made each such read an old one (seen)."""
    with ExitStack() as stack:
        ensemble = stack.enter_context(Ensemble())
        old = ensemble.leader()
        proxy = stack.enter_context(ZookeeperProxy(old.port))
        others = [server.hosts for server in ensemble.servers if server is not old]
        client = stack.enter_context(
            started(
                KazooClient(
                    ",".join([f"{HOST}:{proxy.port}", *others]),
                    timeout=PATIENCE,  # it does not look elsewhere by itself
                    randomize_hosts=False,
                    connection_retry=RECONNECT,
                )
            )
        )
        writer = stack.enter_context(
            started(KazooClient(",".join(others), connection_retry=RECONNECT))
        )
        d = stack.enter_context(AnyDict("/place", client, "strict", quorum=True, timeout=PATIENCE))
        d["key"] = "old"
        elsewhere = stack.enter_context(AnyDict("/place", writer))
        old.pause()
        ensemble.wait_for_quorum()
        until_available(lambda: elsewhere.update(key="new"))
        question = proxy.watch(b"<multi>")
        read = started_in_thread(lambda: d["key"])
        question.wait()
        old.resume()
        assert read() == "new"
        ensemble.wait_for_quorum()
        wait_until(lambda: d == {"key": "new"}, "it goes on")
