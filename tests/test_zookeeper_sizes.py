"""ZookeeperDict and the size of a request: what does not fit is refused, the rest is parted.

A server cuts the connection of a client that sends more than its `jute.maxbuffer`, and says nothing
else. So the dict has to know before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss
from kazoo.security import make_acl, make_digest_acl

from durabledict import MISSING, NoOpEncoding, ZookeeperDict
from durabledict.zookeepersizes import REQUEST_LIMIT

from .servers import HOST, PATIENCE, wait_until
from .zookeeperproxy import ZookeeperProxy
from .zookeeperservers import ZookeeperServer, started

LARGER = 3_000_000

Dict = ZookeeperDict[Any, Any]


class MeasuringProxy(ZookeeperProxy):
    """Also notes how large each request is, as the server counts it."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.sizes: list[int] = []

    def fault_for(self, request: bytes) -> Any:
        self.sizes.append(len(request) - 4)  # Without its length, which stands before it.
        return super().fault_for(request)


# A server keeps the last five hundred requests, so that these do not go to the one of all tests.
MEMORY = "-Xmx768m"


@pytest.fixture(scope="module")
def server() -> Iterator[ZookeeperServer]:
    with ZookeeperServer(java=[MEMORY]) as server:
        yield server


@pytest.fixture(scope="module")
def generous_server() -> Iterator[ZookeeperServer]:
    """One that takes larger requests."""
    with ZookeeperServer(java=[MEMORY, f"-Djute.maxbuffer={LARGER}"]) as server:
        yield server


@pytest.fixture
def admin(server: ZookeeperServer) -> Iterator[KazooClient]:
    """Somebody else, who looks at what is stored."""
    with started(connected(server)) as client:
        yield client


@pytest.fixture
def proxy(server: ZookeeperServer) -> Iterator[MeasuringProxy]:
    with MeasuringProxy(server.port) as proxy:
        yield proxy


# A server may take long for a megabyte, or for the list of ten thousand: neither a dict nor a
# session is to end by that.


def opened(client: KazooClient, path: str, **options: Any) -> Dict:
    return Dict(path, client, **{"encoding": NoOpEncoding, "timeout": PATIENCE, **options})


def connected(server: ZookeeperServer, **options: Any) -> KazooClient:
    return server.client(timeout=PATIENCE, **options)


def through(proxy: MeasuringProxy, server: ZookeeperServer, **options: Any) -> KazooClient:
    return connected(server, hosts=f"{HOST}:{proxy.port}{options.pop('chroot', '')}", **options)


# -- what a server takes --------------------------------------------------------------------------


# What a request has beside the path and the data.
BESIDE = {"create": 47, "set": 20, "transaction": 38}


@pytest.mark.parametrize("operation", ["create", "set", "transaction"])
@pytest.mark.parametrize("limit", [REQUEST_LIMIT, LARGER])
def test_a_server_takes_its_maxbuffer_and_not_a_byte_more(
    server: ZookeeperServer,
    generous_server: ZookeeperServer,
    zookeeper_path: str,
    operation: str,
    limit: int,
) -> None:
    asked = server if limit == REQUEST_LIMIT else generous_server
    with started(connected(asked)) as client:
        if operation != "create":
            client.create(zookeeper_path)
        for size, is_taken in ((limit + 1, False), (limit, True)):
            data = b"x" * (size - BESIDE[operation] - len(zookeeper_path))
            transaction = client.transaction()
            transaction.set_data(zookeeper_path, data)
            answer: Any = {
                "create": lambda: client.create_async(zookeeper_path, data),
                "set": lambda: client.set_async(zookeeper_path, data),
                "transaction": transaction.commit_async,
            }[operation]()
            if is_taken:
                answer.get()
                assert client.get(zookeeper_path)[0] == data
            else:
                with pytest.raises(ConnectionLoss):
                    answer.get()
                wait_until(lambda: client.connected, "the client is connected again")


# -- one value ------------------------------------------------------------------------------------


# Each stores the value of the key "k", whether it is there or not.
WRITES: dict[str, Callable[[Dict, bytes], object]] = {
    "set": lambda d, value: d.__setitem__("k", value),
    "update": lambda d, value: d.update(k=value),
    "update with others": lambda d, value: d.update(a=b"1", k=value, z=b"1"),
    "replace_all": lambda d, value: d.replace_all({"k": value, "other": b"1"}),
    "setdefault": lambda d, value: d.setdefault("k", value),
    "compute": lambda d, value: d.compute("k", lambda _: value, b""),
    "compare_and_set": lambda d, value: d.compare_and_set("k", d.get("k", MISSING), value),
}

CLIENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chroot": {"chroot": "/" + "c" * 1000},
    "acl": {
        "default_acl": [
            *(make_digest_acl("somebody", str(number), all=True) for number in range(50)),
            make_acl("world", "anyone", all=True),
        ]
    },
}


@pytest.fixture(params=CLIENTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Those of a client of each kind."""
    return CLIENTS[request.param]


@pytest.fixture
def d(
    server: ZookeeperServer,
    admin: KazooClient,
    proxy: MeasuringProxy,
    zookeeper_path: str,
    options: dict[str, Any],
) -> Iterator[Dict]:
    """A dict of such a client, behind the proxy."""
    admin.ensure_path(options.get("chroot", "/"))
    with (
        started(through(proxy, server, **options)) as client,
        opened(client, zookeeper_path) as d,
    ):
        yield d


SAID = re.compile(
    r"^the value of key 'k' is ([\d,]+) bytes as stored, ([\d,]+) with its request: ZooKeeper "
    r"takes ([\d,]+) \(jute\.maxbuffer; where the servers take more, say request_limit=\.\.\.\)$"
)


def refused(write: Callable[[Dict, bytes], object], d: Dict, value: bytes) -> list[int]:
    """Return the numbers in the error: those of the value, of its request, and the limit."""
    with pytest.raises(ValueError, match=SAID) as caught:
        write(d, value)
    found = SAID.match(str(caught.value))
    assert found is not None
    return [int(number.replace(",", "")) for number in found.groups()]


def test_a_value_at_the_limit_and_one_above(
    d: Dict,
    admin: KazooClient,
    proxy: MeasuringProxy,
    zookeeper_path: str,
    options: dict[str, Any],
) -> None:
    d["other"] = b"1"
    too_large = b"x" * REQUEST_LIMIT
    size, with_request, limit = refused(WRITES["set"], d, too_large)
    assert (size, limit) == (REQUEST_LIMIT, REQUEST_LIMIT)
    largest = size - (with_request - limit)
    # Not much is given away: what a request has beside the value, its path perhaps twice.
    assert limit - 4000 < largest < limit
    for write in WRITES.values():
        for is_there in (False, True):
            if is_there and write is WRITES["setdefault"]:
                continue
            d.replace_all({"other": b"1", **({"k": b"1"} if is_there else {})})
            d.sync()
            before = d.copy()
            # What reads before it writes may do so: nothing of the value is sent.
            proxy.sizes.clear()
            assert refused(write, d, too_large[: largest + 1]) == [
                largest + 1,
                limit + 1,
                limit,
            ]
            assert max(proxy.sizes, default=0) < 4000
            assert d == before
            assert d.sync() is False
            value = too_large[:largest]
            write(d, value)
            assert d["k"] is value
            assert limit - 4000 < max(proxy.sizes) <= limit
            path = f"{options.get('chroot', '')}{zookeeper_path}/k"
            assert admin.get(path)[0] == value


def test_what_is_refused_is_not_sent(
    server: ZookeeperServer, proxy: MeasuringProxy, zookeeper_path: str
) -> None:
    """Nor is what came with it."""
    with started(through(proxy, server)) as client, opened(client, zookeeper_path) as d:
        d["a"] = b"1"
        d.sync()
        for name in ("set", "update", "update with others", "replace_all"):
            with proxy.logging() as requests:
                refused(WRITES[name], d, b"x" * 1_100_000)
            assert requests == []
        assert d == {"a": b"1"}
        assert d.sync() is False
        # It is what is stored that counts.
        with Dict(zookeeper_path + "-2", client) as pickled, proxy.logging() as requests:
            size, _, _ = refused(lambda d, value: d.update(k=value), pickled, b"x" * 1_100_000)
            assert 1_100_000 < size < 1_100_100
        assert requests == []


def test_the_name_of_a_key_counts_as_it_is_stored(
    server: ZookeeperServer, proxy: MeasuringProxy, zookeeper_path: str
) -> None:
    with started(through(proxy, server)) as client, opened(client, zookeeper_path) as d:
        for key in ("k" * 1000, "\xe9" * 1000, "/" * 1000):
            with pytest.raises(ValueError, match=r"with its request") as caught:
                d[key] = b"x" * REQUEST_LIMIT
            numbers = re.findall(r" ([\d,]+) ", str(caught.value))
            over = int(numbers[1].replace(",", "")) - REQUEST_LIMIT
            for write in (d.__setitem__, lambda key, value: d.update({key: value})):
                d.clear()
                proxy.sizes.clear()
                write(key, b"x" * (REQUEST_LIMIT - over))
                assert max(proxy.sizes) <= REQUEST_LIMIT
        with pytest.raises(ValueError, match=r"with its request"):
            d["k" * REQUEST_LIMIT] = b""


# -- another limit --------------------------------------------------------------------------------


def test_servers_that_take_more(generous_server: ZookeeperServer, zookeeper_path: str) -> None:
    with started(connected(generous_server)) as client:
        with opened(client, zookeeper_path) as d:
            assert refused(WRITES["set"], d, b"x" * LARGER)[2] == REQUEST_LIMIT
        with (
            opened(client, zookeeper_path, request_limit=LARGER) as d,
            opened(client, zookeeper_path) as other,
        ):
            size, with_request, limit = refused(WRITES["set"], d, b"x" * LARGER)
            assert limit == LARGER
            value = b"x" * (size - (with_request - limit))
            for write in (WRITES["update"], WRITES["set"], WRITES["compute"]):
                write(d, value)
                assert d["k"] is value
                d.clear()
            # To read, there is no limit.
            d["k"] = value
            assert other.sync() is True
            assert other == {"k": value}


def test_servers_that_take_less_than_was_said(server: ZookeeperServer, zookeeper_path: str) -> None:
    """The connection is lost, as with any such client: nothing is done, and all goes on."""
    with (
        started(connected(server)) as client,
        opened(client, zookeeper_path, request_limit=LARGER) as d,
    ):
        d["a"] = b"1"
        for write in (WRITES["set"], WRITES["update"]):
            with pytest.raises(ConnectionLoss):
                write(d, b"x" * 1_100_000)
            assert d == {"a": b"1"}
            d["a"] = b"1"


def test_a_small_limit_parts_what_is_written(
    server: ZookeeperServer, proxy: MeasuringProxy, zookeeper_path: str
) -> None:
    with (
        started(through(proxy, server)) as client,
        opened(client, zookeeper_path, request_limit=2000) as d,
    ):
        entries = {str(number): b"x" * number for number in range(100)}
        renamed = {f"new-{key}": value for key, value in entries.items()}
        writes: list[tuple[Callable[[], object], int]] = [
            (lambda: d.update(entries), 20),
            (lambda: d.update(entries), 20),
            (lambda: d.replace_all(renamed), 20),
            (d.clear, 10),
        ]
        for write, most in writes:
            d.sync()
            proxy.sizes.clear()
            with proxy.counting() as calls:
                write()
            assert max(proxy.sizes) <= 2000
            assert 2 < calls["multi"] <= most
            assert d.sync() is False
        assert d == {}


# -- many entries ---------------------------------------------------------------------------------


def test_a_large_update_is_as_few_transactions_as_fit(d: Dict, proxy: MeasuringProxy) -> None:
    # Values that leave no room for what each has beside them.
    for length, number in ((0, 1_200), (300_000, 10)):
        entries = {str(key): b"x" * length for key in range(number)}
        for stored in (entries, {}):
            d.sync()
            proxy.sizes.clear()
            with proxy.counting() as calls:
                if stored:
                    d.update(stored)
                else:
                    d.clear()
            assert max(proxy.sizes) <= REQUEST_LIMIT
            bytes_sent = sum(proxy.sizes)
            assert calls["multi"] <= 2 + 2 * bytes_sent // REQUEST_LIMIT
            assert d == stored


def test_what_the_place_itself_holds_goes_with_each_removal(
    server: ZookeeperServer, proxy: MeasuringProxy, zookeeper_path: str
) -> None:
    """And is left as it is (rule 4.5)."""
    with started(through(proxy, server)) as client:
        data = b"of somebody" * 60_000
        client.create(zookeeper_path, data)
        with opened(client, zookeeper_path) as d:
            d.update({f"{number:0100}": b"" for number in range(3_000)})
            d.update({"k": b"x" * 600_000, "l": b"1", "m": b"1", "n": b"1"})
            proxy.sizes.clear()
            del d["l"]
            assert d.pop("m") == b"1"
            assert d.compare_and_set("n", b"1", MISSING)
            d.replace_all({"new": b"x" * 600_000})
            d.clear()
            assert d == {}
            assert max(proxy.sizes) <= REQUEST_LIMIT
        assert client.get(zookeeper_path)[0] == data


def test_ten_thousand_keys(
    server: ZookeeperServer, admin: KazooClient, zookeeper_path: str
) -> None:
    entries = {f"key-{number}": number for number in range(10_000)}
    with Dict(zookeeper_path, admin, False, timeout=PATIENCE) as d:
        d.update(entries)
        assert d == entries
        with (
            started(connected(server)) as client,
            Dict(zookeeper_path, client, timeout=PATIENCE) as other,
        ):
            assert other == entries
            assert (other.stats.reloads, other.stats.keys_fetched) == (1, 10_000)
            other["key-7"] = "changed"
            fetched = d.stats.keys_fetched
            assert d.sync() is True
            assert d["key-7"] == "changed"
            assert d.stats.keys_fetched == fetched + 1
            d.clear()
            assert d == {}
            assert other.sync() is True
            assert other == {}
            assert other.stats.reloads == 1
