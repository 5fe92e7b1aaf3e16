"""`MemcacheStore`: objects in memcached."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ..basicencodings import PickleEncoding
from ..extras import raise_if_missing
from ..hiding import kind_of
from ..locks import LEASE, Lease
from . import lifetime as clock
from .cells import is_marker, marker, new_token, pack_pointer
from .guarded import CREATION_LIFE, SPOILED_LIFE
from .guardeddictionary import (
    Expired,
    GuardedDictionaryStore,
    SettledCell,
    has_expired,
)
from .lifetime import LifetimeCallback
from .reserving import BUSY, Prepared, Reservation, Writing

try:
    from pymemcache import Client, HashClient, PooledClient

    from ..memcachedcaches import connections_of
    from .generations import TRIES, Generations, not_kept
    from .metacommands import TOO_LARGE, Reply, get_many
except ModuleNotFoundError as error:
    raise_if_missing(error, "MemcacheStore needs", "pymemcache", extra="memcached")
    raise

__all__ = ["MemcacheStore"]

#: What memcached takes as a key.
LONGEST = 250

#: Characters of "@" and a generation.
SUFFIX = 17

#: Seconds above which memcached takes a lifetime for a moment: 30 days.
LONGEST_RELATIVE = 60 * 60 * 24 * 30

#: The last moment that memcached knows, in January 2038: one beyond it has passed, it thinks.
LAST_MOMENT = (1 << 31) - 1

#: Seconds to wait for a server whose client was made here.
TIMEOUT = 2.0

#: Commands that are sent before their answers are read: more could fill the buffers of both sides.
AT_ONCE = 2000

_FORBIDDEN = re.compile(r"[^\x21-\x7e]")

# The flag of a writer's marker, told without sending what is stored.
_WRITERS = b"1"


class _Token(NamedTuple):
    """What shows that an item is still the same.

    :param cas: its number
    :param is_marker: it is one's own marker, and no record that has expired

    """

    cas: Any
    is_marker: bool


class MemcacheStore(GuardedDictionaryStore):
    """Keeps objects in memcached (1.6 or later), which forgets what it has no room for.

    A get, a put or a delete is one request, of a batch one for each server. By a key other than the
    first a get is two. Where the class has more than one key, a put and a delete first ask for the
    record that is there.

    Objects with groups take one request more, for their tokens. A token that is evicted invalidates
    its group. Lifetimes are rounded up to whole seconds.

    :param servers: addresses, as in ``["localhost:11211"]``
    :param polymorphic: objects are also found as what their base classes are
    :param lifetime_cb: a function of an object that returns its lifetime
    :param client: a client of pymemcache, in place of `servers`: Client, PooledClient or
        HashClient. Its settings are used, for connections of our own
    :param prefix: what all names begin with
    :raises TypeError: neither servers nor a client, or both

    A name that is too long for memcached, or has characters that it does not take, is hashed. The
    other parameters are those of `BaseDictionaryStore`.

    """

    def __init__(
        self,
        servers: Iterable[str | tuple[str, int]] | None = None,
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        *,
        client: Any = None,
        prefix: str = "durabledict:",
        encoding: Any = PickleEncoding,
        old_encoding: Any = None,
        allow_unsigned: bool = False,
    ) -> None:
        super().__init__(
            prefix,
            polymorphic,
            lifetime_cb,
            encoding=encoding,
            old_encoding=old_encoding,
            allow_unsigned=allow_unsigned,
        )
        if (servers is None) == (client is None):
            raise TypeError('MemcacheStore takes servers=["localhost:11211"], or client=')
        if client is not None and not isinstance(client, (Client, PooledClient, HashClient)):
            raise TypeError(
                f"client is {kind_of(client)}: pass a Client, PooledClient or HashClient of "
                "pymemcache"
            )
        self._client = client if client is not None else _client_of(servers)
        self._is_mine = client is None
        self._connections = connections_of(self._client)
        self._room = LONGEST - len(getattr(self._client, "key_prefix", b"") or b"") - SUFFIX
        self._is_taken = not _FORBIDDEN.search(prefix)
        self._generations = Generations(self._key("generation"))

    def release(self) -> None:
        """Close the connections, if the client was made here."""
        if self._is_mine:
            self._connections.close()

    # -- bytes under names ------------------------------------------------------------------------

    def _read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        wanted = {self._key(name): name for name in names}
        # Markers among them are no records, nor pointers: to who reads, they are nothing.
        return {
            wanted[key]: cell
            for part in self._connections.ask_nodes(wanted, self._get_many)
            for key, cell in part
        }

    def _write_many(self, writings: Iterable[Writing]) -> None:
        cells = {name: (cell, lifetime) for name, cell, lifetime in writings}
        replies = self._ask(
            cells, lambda key, name: [_set(key, cells[name][0], _ttl(cells[name][1]))]
        )
        for name, (reply,) in replies.items():
            self._check_size(reply, name, cells[name][0])

    def _remove_many(self, names: Iterable[str]) -> None:
        self._ask(names, lambda key, name: [b"md %b\r\n" % key])

    def _remove_if(self, cells: Mapping[str, bytes]) -> None:
        found = self._ask(cells, lambda key, name: [b"mg %b v c\r\n" % key])
        still = {
            name: reply.flags[b"c"]
            for name, (reply,) in found.items()
            if reply.status == b"VA" and reply.value == cells[name]
        }
        self._ask(still, lambda key, name: [b"md %b C%b\r\n" % (key, still[name])])

    def _add_tokens(self, names: Iterable[str]) -> dict[str, bytes]:
        # `ME` adds. An answer of nothing: it was evicted at once, and what has it is invalid.
        replies = self._ask(
            names, lambda key, name: [_set(key, new_token(), 0, b" ME"), b"mg %b v\r\n" % key]
        )
        return {name: told.value for name, (_, told) in replies.items() if told.status == b"VA"}

    # -- for chains -------------------------------------------------------------------------------

    def _mark_cells(self, names: Sequence[str], life: float) -> dict[str, Any]:
        # The two are not one step, but come together: who interferes in between is overwritten,
        # and so finds that its own marker is gone.
        replies = self._ask(
            names,
            lambda key, name: [
                b"mg %b f\r\n" % key,
                _set(key, marker(b"M"), _ttl(life), b" F%b c" % _WRITERS),
            ],
        )
        return {
            name: mark.flags[b"c"]
            for name, (before, mark) in replies.items()
            if before.flags.get(b"f") != _WRITERS and b"c" in mark.flags
        }

    def _read_or_claim(
        self, names: Sequence[str], life: float
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        replies = self._ask(names, lambda key, name: [b"mg %b v c N%d\r\n" % (key, _ttl(life))])
        cells: dict[str, bytes] = {}
        proofs: dict[str, Any] = {}
        for name, (reply,) in replies.items():
            if b"W" in reply.flags:
                proofs[name] = reply.flags[b"c"]
            elif reply.status == b"VA" and not is_marker(reply.value):
                cells[name] = reply.value
                if has_expired(reply.value):
                    proofs[name] = Expired(reply.flags[b"c"])
        return cells, proofs

    def _settle_cells(
        self,
        settled: Sequence[SettledCell],
        pointers: Sequence[Writing],
        removed: Mapping[str, bytes],
        writes: bool,
    ) -> None:
        own = {each.name: each for each in settled if each.proof is not None}
        ways = {pointer: (cell, lifetime) for pointer, cell, lifetime in pointers}

        def commands(key: bytes, name: str) -> list[bytes]:
            if name in own:
                _, cell, lifetime, proof = own[name]
                if cell is None:
                    return [b"md %b C%b\r\n" % (key, proof)]
                return [_set(key, cell, _ttl(lifetime), b" C%b" % proof)]
            if name in ways:
                return [_set(key, ways[name][0], _ttl(ways[name][1]))]
            # In a cache a pointer that was meanwhile somebody else's costs a miss.
            return [b"md %b\r\n" % key]

        replies = self._ask([*own, *ways, *(set(removed) - ways.keys() - own.keys())], commands)
        # The old marker is gone as well where its successor was too large.
        failed = [name for name in own if replies[name][0].status != b"HD"]
        failed += [each.name for each in settled if each.proof is None]
        if writes and failed:
            self._spoil_cells(failed)

    def _reserve_cell(self, name: str) -> tuple[bytes | None, Any]:
        life = _ttl(CREATION_LIFE)
        ((found,),) = self._ask(
            [name], lambda key, name: [b"mg %b v c N%d\r\n" % (key, life)]
        ).values()
        token = found.flags.get(b"c", b"")
        if b"W" in found.flags:
            return None, _Token(token, True)
        if not is_marker(found.value):
            return found.value, _Token(token, False)
        if found.value[:1] not in (b"", b"F"):
            return None, BUSY
        # A reader's: who has the lock knows that it is of one who is gone, or will not store.
        ((mark,),) = self._ask(
            [name], lambda key, name: [_set(key, marker(b"F"), life, b" C%b c" % token)]
        ).values()
        return (None, _Token(mark.flags[b"c"], True)) if b"c" in mark.flags else (None, BUSY)

    def _put_if(self, prepared: Prepared, token: Any) -> bool:
        name, pointers, cell, lifetime = prepared
        payload, ttl = cell or b"", _ttl(lifetime)
        replies = self._ask(
            [name], lambda key, name: [_set(key, payload, ttl, b" C%b" % token.cas)]
        )
        self._check_size(replies[name][0], name, payload)
        if replies[name][0].status != b"HD":
            return False
        if pointers:
            self._write_many([(pointer, pack_pointer(name), lifetime) for pointer in pointers])
        return True

    def _unreserve_cell(self, proof: Reservation) -> None:
        token = proof.token
        if token is not BUSY and token.is_marker:
            self._ask([proof.name], lambda key, name: [b"md %b C%b\r\n" % (key, token.cas)])

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        return self._connections.lease(self._key(f"lock:{_quoted(name)}"), seconds)

    def _forget_all(self) -> None:
        self._connections.ask_all(self._generations.renew)

    def _spoil_cells(self, names: Sequence[str]) -> None:
        self._ask(names, lambda key, name: [_set(key, marker(b"S"), _ttl(SPOILED_LIFE))])

    # -- requests ---------------------------------------------------------------------------------

    def _ask(
        self, names: Iterable[str], commands: Callable[[bytes, str], list[bytes]]
    ) -> dict[str, list[Reply]]:
        """Send some commands for each name; return their replies. One request for each server."""
        wanted = {self._key(name): name for name in names}
        if not wanted:
            return {}

        def ask(node: Any, keys: list[str]) -> dict[str, list[Reply]]:
            found: dict[str, list[Reply]] = {}
            for begin in range(0, len(keys), AT_ONCE):
                part = keys[begin : begin + AT_ONCE]

                def sent(generation: str, part: list[str] = part) -> list[list[bytes]]:
                    return [
                        commands(
                            node.key_prefix + _in_generation(key, generation).encode(), wanted[key]
                        )
                        for key in part
                    ]

                replies = self._generations.exchange(node, sent)
                found.update({wanted[k]: told for k, told in zip(part, replies, strict=True)})
            return found

        together: dict[str, list[Reply]] = {}
        for part in self._connections.ask_nodes(wanted, ask):
            together.update(part)
        return together

    def _get_many(self, node: Any, keys: list[str]) -> list[tuple[str, bytes]]:
        own = node.key_prefix + self._generations.name.encode()
        for _ in range(TRIES):
            end = "@" + self._generations.of(node)
            wires = {node.key_prefix + (key + end).encode(): key for key in keys}
            cells = get_many(node, [own, *wires])
            if self._generations.is_still(node, cells.pop(own, None)):
                return [(wires[wire], cell) for wire, cell in cells.items()]
        raise not_kept(node)

    def _key(self, name: str) -> str:
        key = self.prefix + name
        # A name has no such characters, but the prefix may.
        if len(key) <= self._room and self._is_taken:
            return key
        return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

    def _check_size(self, reply: Reply, name: str, cell: bytes) -> None:
        if reply.status != TOO_LARGE:
            return
        limits = self._connections.ask_nodes([self._key(name)], lambda node, _: _item_size(node))
        raise ValueError(
            f"the value of key {name!r} has {len(cell):,} bytes with its header, and memcached "
            f"takes items of {limits[0]:,} bytes: start it with a larger -I, or put a "
            "CompressedEncoding around the encoding"
        )


def _client_of(servers: Any) -> Any:
    if isinstance(servers, (str, bytes)) or not isinstance(servers, Iterable):
        raise TypeError(f'servers={servers!r}: write a list, ["localhost:11211"]')
    addresses = list(servers)
    options: dict[str, Any] = {
        "default_noreply": False,
        "connect_timeout": TIMEOUT,
        "timeout": TIMEOUT,
    }
    if len(addresses) == 1:
        return Client(addresses[0], **options)
    if not addresses:
        raise TypeError("servers=[]: name one")
    return HashClient(addresses, **options)


def _quoted(name: str) -> str:
    """Return the name of a lock in characters that memcached takes."""
    return quote(name.encode("utf-8", "surrogatepass"))


def _in_generation(key: str, generation: str) -> str:
    return f"{key}@{generation}"


def _set(key: bytes, cell: bytes, ttl: int, flags: bytes = b"") -> bytes:
    return b"ms %b %d T%d%b\r\n%b\r\n" % (key, len(cell), ttl, flags, cell)


def _ttl(lifetime: float | None) -> int:
    """Return a lifetime as memcached takes it; 0 is for ever."""
    if lifetime is None:
        return 0
    whole = max(1, math.ceil(lifetime))
    if whole <= LONGEST_RELATIVE:
        return whole
    moment = int(clock.now()) + whole
    return moment if moment <= LAST_MOMENT else 0


def _item_size(node: Any) -> int:
    settings: dict[bytes, Any] = node.stats("settings")
    return int(settings[b"item_size_max"])
