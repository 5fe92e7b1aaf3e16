"""What `RedisDict` runs inside the server: each script is one atomic step (docs/internals.rst).

A keyspace is three keys, which every script is given: the hash with the entries, the stream with
one entry for each commit, and the mirror, a string that holds the id of the last commit, so that a
check is one GET. The id of a commit is ``<number>-<nonce>``: each number is one more than the one
before it, and the nonce is 63 random bits of the writer's.

An entry of the stream has one field. Its name is the format; its value says which keys changed:
``k`` and one key, ``m`` and a MessagePack list of keys, or ``*``: too many to be listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = [
    "COMPARE_AND_SET",
    "DELTA",
    "FIND",
    "FORMAT",
    "LOAD",
    "REPLACE",
    "SET",
    "WRITE",
    "Caller",
    "Script",
    "pack",
]

#: The format of the stream's entries. A newer one is refused by readers and writers alike.
FORMAT = 1

#: How many entries a stream keeps, and about how many bytes of key lists. A reader that slept
#: through more reloads.
ENTRIES = 1000
LIST_BYTES = 4_000_000

#: A hash whose payloads seem to have more bytes than this, by 20 of them, is not sent at once.
WHOLE_BYTES = 4_000_000

#: A commit of more keys than this lists none.
LISTED_KEYS = 5000

#: `unpack` fails near 8,000 values.
SLICE = 1000


def pack(arguments: Iterable[bytes]) -> bytes:
    """Return a command in the form in which a server reads it (RESP)."""
    parts = [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


class Script:
    """A Lua script."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Caller:
    """Packs the calls of a script for one keyspace: what is the same in all of them only once.

    :param keys: hash, stream and mirror

    """

    def __init__(self, script: Script, keys: tuple[bytes, bytes, bytes]) -> None:
        self.script = script
        self.keys = keys
        self._beginning = pack((b"EVALSHA", script.sha, b"3", *keys))[len(b"*6\r\n") :]

    def call(self, arguments: tuple[bytes, ...]) -> bytes:
        """Return the packed call of a script that the server has met."""
        parts = [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
        return b"*%d\r\n%b%b" % (6 + len(parts), self._beginning, b"".join(parts))

    def call_in_full(self, arguments: tuple[bytes, ...]) -> bytes:
        """Return the packed call of a script that the server may not know: it will afterwards."""
        return pack((b"EVAL", self.script.text, b"3", *self.keys, *arguments))


# The number and the nonce come from the stream itself (rule 2.1), never from the mirror, which may
# have been deleted or set back: from its last generated id, which stays when entries are removed.
_STATE = f"""
local hash, stream, mirror = KEYS[1], KEYS[2], KEYS[3]
local STEP = {SLICE}

local function check_format(fields)
  local format = tonumber(fields[1])
  if format and format > {FORMAT} then
    return redis.error_reply('DURABLEDICTFORMAT ' .. fields[1])
  end
end

-- Return the id of the last commit, and an error of a newer format. No id: there was none yet.
local function last_commit()
  local told = redis.pcall('XINFO', 'STREAM', stream)
  if told.err then
    if string.find(told.err, 'no such key', 1, true) then return nil end
    return nil, told
  end
  local id
  for i = 1, #told, 2 do
    if told[i] == 'last-generated-id' then
      id = told[i + 1]
    elseif told[i] == 'last-entry' and told[i + 1] then
      local problem = check_format(told[i + 1][2])
      if problem then return nil, problem end
    end
  end
  return id
end

local function number_of(id)
  return tonumber(string.match(id, '^(%d+)'))
end
"""

# XADD comes first: what fails midway (nothing is rolled back) then costs a needless sync and hides
# nothing. On a full server XADD is refused, so there a removal begins with HDEL, after which the
# script may go on.
_COMMIT = (
    _STATE
    + f"""
local unlisted = false

-- Return the id of the last commit ('0-0': never written, and empty; false: not known), the id of
-- the one that is about to be made, and an error.
local function begin(nonce)
  local last, problem = last_commit()
  if problem then return nil, nil, problem end
  local told = redis.call('GET', mirror)
  -- Somebody changed one of them: the stream was restored, say, and has forgotten a commit. So
  -- nobody is to build on what it says: all reload.
  unlisted = told and told ~= last
  local size = redis.call('HLEN', hash)
  local before = not unlisted and (last or (size == 0 and '0-0'))
  local number = last and number_of(last) or 0
  if number >= 9007199254740991 then
    return nil, nil, redis.error_reply('ERR the ids of ' .. stream .. ' are used up: delete it')
  end
  return before, string.format('%.0f-%s', number + 1, nonce)
end

local function in_slices(command, first, last, values)
  for i = first, last, STEP do
    redis.call(command, hash, unpack(values, i, math.min(i + STEP - 1, last)))
  end
end

-- Remove the keys in `gone`, store the pairs of `values` from `first` to `last`, and record it.
local function commit(id, keys, gone, values, first, last)
  for i = 1, #gone do keys[#keys + 1] = gone[i] end
  local list, kept = '*', {ENTRIES}
  if unlisted then
    list = '*'
  elseif #keys == 1 then
    list = 'k' .. keys[1]
  elseif #keys <= {LISTED_KEYS} then
    list = 'm' .. cmsgpack.pack(keys)
  end
  if #list * kept > {LIST_BYTES} then
    kept = math.max(16, math.floor({LIST_BYTES} / #list))
  end
  local entry = {{'XADD', stream, 'MAXLEN', '~', kept, id, '{FORMAT}', list}}
  local added = redis.pcall(unpack(entry))
  local removed = false
  if added.err then
    if first <= last or not string.find(added.err, 'OOM command', 1, true) then return added end
    in_slices('HDEL', 1, #gone, gone)
    removed = true
    redis.call(unpack(entry))
  end
  redis.call('SET', mirror, id)
  if not removed then in_slices('HDEL', 1, #gone, gone) end
  in_slices('HSET', first, last, values)
end
"""
)

#: nonce, key, payload, the id that the writer saw last, the id that the commit gets if that is
#: still the last -> 1 if it was, else as WRITE. For the one entry that most writes are of, in half
#: the time: nothing else has to be found out, and nothing told.
SET = Script(
    f"""
local seen, id = ARGV[4], ARGV[5]
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
-- The mirror tells of a newest entry that was taken out.
if newest and newest[1] == seen and redis.call('GET', KEYS[3]) == seen and #ARGV[2] < 1000 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', {ENTRIES}, id, '{FORMAT}', 'k' .. ARGV[2])
  redis.call('SET', KEYS[3], id)
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
  return 1
end
"""
    + _COMMIT
    + """
local before, id, problem = begin(ARGV[1])
if problem then return problem end
return commit(id, {ARGV[2]}, {}, ARGV, 2, 3) or {before, id, {}}
"""
)

#: nonce, number of pairs, the pairs, the keys to remove -> before, after, the keys removed
WRITE = Script(
    _COMMIT
    + """
local before, id, problem = begin(ARGV[1])
if problem then return problem end
local last = 2 + 2 * tonumber(ARGV[2])
local keys, gone = {}, {}
for i = 3, last, 2 do keys[#keys + 1] = ARGV[i] end
for i = last + 1, #ARGV do
  if redis.call('HEXISTS', hash, ARGV[i]) == 1 then gone[#gone + 1] = ARGV[i] end
end
if #keys == 0 and #gone == 0 then return {before, before, gone} end
return commit(id, keys, gone, ARGV, 3, last) or {before, id, gone}
"""
)

#: nonce, key, "1" and the payload that has to be there or "0" and "", "1" and the payload to
#: store or "0" -> before, after, the keys removed; nil: something else is there
COMPARE_AND_SET = Script(
    _COMMIT
    + """
local before, id, problem = begin(ARGV[1])
if problem then return problem end
local key, stored = ARGV[2], redis.call('HGET', KEYS[1], ARGV[2])
if stored ~= (ARGV[3] == '1' and ARGV[4]) then return false end
if ARGV[5] == '1' then return commit(id, {key}, {}, {key, ARGV[6]}, 1, 2) or {before, id, {}} end
if not stored then return {before, before, {}} end
return commit(id, {}, {key}, {}, 1, 0) or {before, id, {key}}
"""
)

#: nonce, the pairs that are to be all there is -> before, after, the keys removed, the keys
#: written; without a pair it is `clear`, and the keys are not told
REPLACE = Script(
    _COMMIT
    + """
local before, id, problem = begin(ARGV[1])
if problem then return problem end
if #ARGV == 1 then
  if redis.call('HLEN', hash) == 0 then return {before, before, {}, {}} end
  local entry = {'XADD', stream, 'MAXLEN', '~', """
    + f"{ENTRIES}, id, '{FORMAT}'"
    + """, '*'}
  local added = redis.pcall(unpack(entry))
  if added.err and not string.find(added.err, 'OOM command', 1, true) then return added end
  redis.call('DEL', hash)
  if added.err then redis.call(unpack(entry)) end
  redis.call('SET', mirror, id)
  return {before, id, '*', {}}
end
local wanted, stored = {}, redis.call('HGETALL', hash)
for i = 2, #ARGV, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
local gone, keys, values = {}, {}, {}
for i = 1, #stored, 2 do
  local payload = wanted[stored[i]]
  if not payload then
    gone[#gone + 1] = stored[i]
  elseif payload == stored[i + 1] then
    wanted[stored[i]] = nil
  end
end
for i = 2, #ARGV, 2 do
  local key = ARGV[i]
  if wanted[key] then
    keys[#keys + 1] = key
    values[#values + 1] = key
    values[#values + 1] = wanted[key]
  end
end
if #keys == 0 and #gone == 0 then return {before, before, gone, keys} end
local written = {}
for i = 1, #keys do written[i] = keys[i] end
return commit(id, keys, gone, values, 1, #values) or {before, id, gone, written}
"""
)

#: how many entries may be sent together -> the id of the last commit or nil, the number of
#: entries, and the entries themselves if they are not more than that
LOAD = Script(
    _STATE
    + f"""
local function is_small(size)
  local fields, bytes = redis.pcall('HRANDFIELD', hash, 20), 0
  for i = 1, #fields do
    local length = redis.pcall('HSTRLEN', hash, fields[i])
    bytes = bytes + (tonumber(length) or 0)  -- or the user may not ask
  end
  return bytes * size < {WHOLE_BYTES} * #fields or #fields == 0
end

"""
    + """
local last, problem = last_commit()
if problem then return problem end
redis.call('GET', mirror)
local size = redis.call('HLEN', hash)
local most = tonumber(ARGV[1])
local whole = size <= most and (size == 0 or most > 1e14 or is_small(size))
return {last or false, size, whole and redis.call('HGETALL', hash) or false}
"""
)

#: the id that the reader saw last, how many keys make a page, the share of all keys above which
#: a reload is cheaper -> the id that is reached, "1" if there is more, the number of entries, the
#: keys, their payloads; nil: a reload is needed
DELTA = Script(
    _STATE
    + f"""
local since, page, share = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local entries = redis.call('XRANGE', stream, since, '+')
if #entries == 0 or entries[1][1] ~= since then return false end
local last, problem = last_commit()
if problem then return problem end
-- An entry that was taken out, at the end or in between, is a commit that nobody can tell of.
if entries[#entries][1] ~= last then return false end
local number, reached, seen, keys = number_of(since), 1, {{}}, {{}}
for i = 2, #entries do
  local id, fields = entries[i][1], entries[i][2]
  number = number + 1
  problem = check_format(fields)
  if problem then return problem end
  if number_of(id) ~= number or fields[1] ~= '{FORMAT}' then return false end
  local kind, list = string.sub(fields[2], 1, 1), string.sub(fields[2], 2)
  if kind == 'k' then
    list = {{list}}
  elseif kind == 'm' then
    local could
    could, list = pcall(cmsgpack.unpack, list)
    if not could or type(list) ~= 'table' or #list == 0 then return false end
  else
    return false
  end
  for j = 1, #list do
    -- Somebody else's entry may list anything, and says then nothing.
    if type(list[j]) ~= 'string' then return false end
    if not seen[list[j]] then
      seen[list[j]] = true
      keys[#keys + 1] = list[j]
    end
  end
  reached = i
  if #keys >= page then break end
end
local size = redis.call('HLEN', hash)
if #keys > 1000 and #keys > share * size then return false end
local payloads = {{}}
for i = 1, #keys, STEP do
  local some = redis.call('HMGET', hash, unpack(keys, i, math.min(i + STEP - 1, #keys)))
  for j = 1, #some do payloads[i + j - 1] = some[j] end
end
return {{entries[reached][1], reached < #entries and '1' or '0', size, keys, payloads}}
"""
)

#: a nonce -> the id of the commit that has it, or nil
FIND = Script(
    """
local entries = redis.call('XREVRANGE', KEYS[2], '+', '-')
for i = 1, #entries do
  if string.match(entries[i][1], '-(%d+)$') == ARGV[1] then return entries[i][1] end
end
return false
"""
)
