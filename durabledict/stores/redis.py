"""`RedisStore`: objects in Redis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..basicencodings import PickleEncoding
from ..extras import raise_if_missing
from ..locks import LEASE, Lease
from .cells import is_marker, is_name, marker, new_token, pack_pointer, record_of
from .dictionary import stale_pointers
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
    from ..redisleases import RedisLease
    from ..redisscripts import Script
    from ..redisservers import client_of
    from .redispipe import Call, Pipe, call, run
except ModuleNotFoundError as error:
    raise_if_missing(error, "RedisStore needs", "redis", extra="redis")
    raise

__all__ = ["RedisStore"]

#: Milliseconds that Redis takes, and more than it will run.
LONGEST = 1 << 60

# Each script is one step. Run twice, because its answer was lost, each does no more than once: the
# second time it is a marker that is not one's own any more.

#: ARGV: the marker, milliseconds. Returns whether another writer's marker was there, and else the
#: names of the pointers to the record that was; see `cells` for the numbers.
MARK = Script("""
local was = redis.call('GETRANGE', KEYS[1], 0, 13)
local names = ''
local kind = string.sub(was, 1, 1)
if (kind == 'R' or kind == 'T') and string.len(was) == 14 then
  local length = struct.unpack('>I4', string.sub(was, 11, 14))
  if length > 0 then names = redis.call('GETRANGE', KEYS[1], 14, 13 + length) end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {kind == 'M' and was ~= ARGV[1] and 1 or 0, names}
""")

#: ARGV: the marker, milliseconds. Returns what is there, or puts the marker and returns it.
READ_OR_CLAIM = Script("""
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
""")

#: ARGV: the marker, milliseconds. As READ_OR_CLAIM, but takes the place of a reader's marker, too:
#: who has the lock knows that it is of one who is gone, or who will not store what it reads.
RESERVE = Script("""
local found = redis.call('GET', KEYS[1])
if found and string.sub(found, 1, 1) ~= 'F' then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
""")

#: ARGV: the marker that is one's own ('': none), the record ('': nothing), its milliseconds ('0':
#: for ever), nobody's marker, its milliseconds ('0': the caller is a reader).
SETTLE = Script("""
local found = redis.call('GET', KEYS[1])
if ARGV[1] ~= '' and found == ARGV[1] then
  if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
  elseif ARGV[3] == '0' then
    redis.call('SET', KEYS[1], ARGV[2])
  else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  end
  return 1
end
if ARGV[2] ~= '' and found == ARGV[2] then return 1 end
if ARGV[5] == '0' then return 0 end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
return 0
""")

#: ARGV: a token. Returns what is there, or puts the token and returns it.
ADD = Script("""
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
""")

#: ARGV: what has to be there.
REMOVE_IF = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")


class _Proof(NamedTuple):
    """That a marker is one's own.

    :param token: the marker
    :param pointers: names of the pointers to the record that it replaced

    """

    token: bytes
    pointers: tuple[str, ...]


class RedisStore(GuardedDictionaryStore):
    """Keeps objects in Redis (6.2 or later), for lifetimes counted in milliseconds.

    A get, a put or a delete is one round trip, of a batch as well; on a cluster one to each node.
    By a key other than the first a get is two. Pointers go with the record that is put; when an
    object's other keys have changed, one more round trip removes the old ones. A delete is three
    where the class has several keys. Objects with groups take one round trip more, for their
    tokens.

    :param client: a `redis.Redis`, also of Sentinel's, or a `redis.cluster.RedisCluster`; or a URL.
        A client's settings are used, for connections of our own
    :param polymorphic: objects are also found as what their base classes are
    :param lifetime_cb: a function of an object that returns its lifetime
    :param prefix: what all names begin with
    :raises TypeError: no client of redis-py's
    :raises ValueError: redis-py cannot read the URL

    The other parameters are those of `BaseDictionaryStore`.

    """

    def __init__(
        self,
        client: Any,
        polymorphic: bool = False,
        lifetime_cb: LifetimeCallback | None = None,
        *,
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
        self._is_mine = isinstance(client, str)
        self._client = client_of(client) if isinstance(client, str) else client
        self._pipe = Pipe(self._client)

    def release(self) -> None:
        """Close the connections, if a URL was given."""
        self._pipe.close()
        if self._is_mine:
            self._client.close()

    # -- bytes under names ------------------------------------------------------------------------

    def _read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        wanted = list(names)
        replies = self._pipe.ask([call(self.prefix + name, b"GET") for name in wanted])
        return {
            name: cell
            for name, cell in zip(wanted, replies, strict=True)
            if cell is not None and not is_marker(cell)
        }

    def _write_many(self, writings: Iterable[Writing]) -> None:
        self._pipe.ask([self._set(*writing) for writing in writings])

    def _remove_many(self, names: Iterable[str]) -> None:
        self._pipe.ask([call(self.prefix + name, b"DEL") for name in names])

    def _remove_if(self, cells: Mapping[str, bytes]) -> None:
        self._pipe.ask([self._remove_cell(name, cell) for name, cell in cells.items()])

    def _put_prepared(self, prepared: Sequence[Prepared]) -> None:
        # A server runs them in this order, so the records come before their pointers.
        records = [
            self._set(each.name, each.cell or b"", each.lifetime, each.pointers)
            for each in prepared
        ]
        pointers = [
            self._set(pointer, pack_pointer(each.name), each.lifetime)
            for each in prepared
            for pointer in each.pointers
        ]
        replies = self._pipe.ask(records + pointers)
        before = {
            each.name: cell
            for each, cell in zip(prepared, replies, strict=False)
            if each.pointers and cell is not None
        }
        stale = stale_pointers(before, {each.name: each.pointers for each in prepared})
        if stale:
            self._remove_if(stale)

    def _set(
        self, name: str, cell: bytes, lifetime: float | None, pointers: tuple[str, ...] = ()
    ) -> Call:
        options = [] if lifetime is None else [b"PX", _milliseconds(lifetime)]
        # The record that it replaces says which pointers led to that.
        more = [b"GET"] if pointers else []
        return call(self.prefix + name, b"SET", cell, *options, *more)

    def _remove_cell(self, name: str, cell: bytes) -> Call:
        return run(self.prefix + name, REMOVE_IF, cell)

    def _add_tokens(self, names: Iterable[str]) -> dict[str, bytes]:
        wanted = [(name, new_token()) for name in names]
        told = self._pipe.ask([run(self.prefix + name, ADD, token) for name, token in wanted])
        return {name: token for (name, _), token in zip(wanted, told, strict=True)}

    # -- for chains -------------------------------------------------------------------------------

    def _mark_cells(self, names: Sequence[str], life: float) -> dict[str, Any]:
        tokens = {name: marker(b"M") for name in names}
        replies = self._pipe.ask(
            [
                run(self.prefix + name, MARK, token, _milliseconds(life))
                for name, token in tokens.items()
            ]
        )
        proofs: dict[str, Any] = {}
        for (name, token), (was_marked, pointers) in zip(tokens.items(), replies, strict=True):
            if not was_marked:
                names = pointers.decode("ascii", "replace").split("\n")
                proofs[name] = _Proof(token, tuple(filter(is_name, names)))
        return proofs

    def _read_or_claim(
        self, names: Sequence[str], life: float
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        tokens = {name: marker(b"F") for name in names}
        replies = self._pipe.ask(
            [
                run(self.prefix + name, READ_OR_CLAIM, token, _milliseconds(life))
                for name, token in tokens.items()
            ]
        )
        cells: dict[str, bytes] = {}
        proofs: dict[str, Any] = {}
        for (name, token), found in zip(tokens.items(), replies, strict=True):
            if found == token:
                proofs[name] = _Proof(token, ())
            elif not is_marker(found):
                cells[name] = found
                if has_expired(found):
                    record = record_of(found)
                    proofs[name] = Expired(_Proof(found, record.pointers if record else ()))
        return cells, proofs

    def _settle_cells(
        self,
        settled: Sequence[SettledCell],
        pointers: Sequence[Writing],
        removed: Mapping[str, bytes],
        writes: bool,
    ) -> None:
        spoiled = _milliseconds(SPOILED_LIFE) if writes else b"0"
        calls = [
            run(
                self.prefix + each.name,
                SETTLE,
                each.proof.token if each.proof is not None else b"",
                each.cell or b"",
                b"0" if each.lifetime is None else _milliseconds(each.lifetime),
                marker(b"S"),
                spoiled,
            )
            for each in settled
        ]
        calls += [self._set(*writing) for writing in pointers]
        # What led to the record before the marker came, and to this one does not.
        kept = {pointer for pointer, _, _ in pointers}
        gone = dict(removed)
        for each in settled:
            if each.proof is not None:
                cell = pack_pointer(each.name)
                gone.update(dict.fromkeys(each.proof.pointers, cell))
        calls += [self._remove_cell(*pair) for pair in gone.items() if pair[0] not in kept]
        self._pipe.ask(calls)

    def _reserve_cell(self, name: str) -> tuple[bytes | None, Any]:
        token = marker(b"F")
        life = _milliseconds(CREATION_LIFE)
        (found,) = self._pipe.ask([run(self.prefix + name, RESERVE, token, life)])
        if found == token:
            return None, token
        return (None, BUSY) if is_marker(found) else (found, found)

    def _put_if(self, prepared: Prepared, token: Any) -> bool:
        name, pointers, cell, lifetime = prepared
        life = b"0" if lifetime is None else _milliseconds(lifetime)
        settling = run(self.prefix + name, SETTLE, token, cell or b"", life, b"", b"0")
        if not self._pipe.ask([settling])[0]:
            return False
        if pointers:
            # After it is known to be there: else they would lead away from what is another's.
            self._write_many([(pointer, pack_pointer(name), lifetime) for pointer in pointers])
        stale = stale_pointers({name: token}, {name: pointers})
        if stale:
            self._remove_if(stale)
        return True

    def _unreserve_cell(self, proof: Reservation) -> None:
        if proof.token is not BUSY and is_marker(proof.token):
            self._remove_if({proof.name: proof.token})

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        key = f"{self.prefix}lock:{name}"

        def ask(*packed: bytes) -> list[Any]:
            return self._pipe.ask([Call(key, each) for each in packed])

        identity = ("redis", id(self._client), key)
        return RedisLease(seconds, identity, key.encode("utf-8", "surrogatepass"), ask)

    def _forget_all(self) -> None:
        self._pipe.remove_all(self.prefix)

    def _spoil_cells(self, names: Sequence[str]) -> None:
        self._write_many([(name, marker(b"S"), SPOILED_LIFE) for name in names])


def _milliseconds(lifetime: float) -> bytes:
    # Redis adds them to its clock, in 64 bits.
    return b"%d" % min(max(1, math.ceil(lifetime * 1000)), LONGEST)
