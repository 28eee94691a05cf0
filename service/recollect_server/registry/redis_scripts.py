"""What Redis runs for the registry. One script is one call: all of it happens, or nothing.

Keys, all beginning with `recollect:`

    registry                 hash: schema, incarnation, changes, changed_at, audits
    tenants                  sorted set of names, all of score 0: Redis then keeps them by name
    tenant-records           hash: name -> record
    key-records              hash: key id -> record
    key-uses                 hash: key id -> Unix time in ms
    keys-of:operators        sorted set of key ids
    keys-of:tenant:<tenant>  sorted set of key ids
    namespaces-of:<tenant>   sorted set of names
    records-of:<tenant>      hash: name of a namespace -> record
    audit                    stream: the whole log
    audit-of:<tenant>        stream: the entries of one tenant, of the same numbers
    answer:<idempotency key> record, with an expiry
    answers-of:operators        sorted set of idempotency keys by when they are forgotten, Unix time in us
    answers-of:tenant:<tenant>  the same

Names that callers choose come last, so that none of them can spell another key. The keys follow from the
arguments, so this needs one Redis (with or without replicas), not a Redis Cluster.

Scripts check first and write afterwards, and their first write is one that a full Redis refuses: there is
no way to fail half-way. Those that stop a key or a tenant are refused by no full Redis (`ALSO_IF_FULL`). The
first two arguments of a script that changes something are the audit's tenant and record.
"""

from __future__ import annotations

EMPTIED = "EMPTIED"
"""Begins the error of a Redis that lost the registry: it was flushed, or came back without its data."""

ALSO_IF_FULL = "#!lua flags=allow-oom\n"
"""Begins a script that Redis runs whatever memory it has left. Redis knows this since 7.0; an older one takes
the script without this line, as `RedisConnection` sends it then, and refuses it when it is full.

A tenant cannot make more of such changes than it had keys before."""

_COMMON = """
local P = 'recollect:'
if redis.call('EXISTS', P .. 'registry') == 0 then
  return redis.error_reply('EMPTIED the registry is not there any more')
end
local function append()
  local id = redis.call('HINCRBY', P .. 'registry', 'audits', 1) .. '-0'
  redis.call('XADD', P .. 'audit', id, 'record', ARGV[2])
  redis.call('XADD', P .. 'audit-of:' .. ARGV[1], id, 'record', ARGV[2])
end
local function changed()
  local now = redis.call('TIME')
  redis.call('HINCRBY', P .. 'registry', 'changes', 1)
  redis.call('HSET', P .. 'registry', 'changed_at', now[1] .. '.' .. now[2])
  append()
end
local function has_tenant(name)
  return redis.call('HEXISTS', P .. 'tenant-records', name) == 1
end
local function page(names, after, limit)
  local from = '-'
  if after ~= '' then from = '(' .. after end
  return redis.call('ZRANGEBYLEX', names, from, '+', 'LIMIT', 0, limit)
end
local function records_of(names, records)
  local found = {}
  for i, name in ipairs(names) do found[i] = redis.call('HGET', records, name) end
  return found
end
"""

# Runs before there is anything: not after _COMMON.
OPEN = """
local registry = 'recollect:registry'
if redis.call('EXISTS', registry) == 0 then
  redis.call('HSET', registry, 'schema', ARGV[1], 'incarnation', ARGV[2], 'changes', 0, 'audits', 0)
end
return redis.call('HGET', registry, 'schema')
"""

# A Redis that lost its last changes counts on from before them: the time tells the new ones from the lost.
VERSION = (
    _COMMON
    + """
return redis.call('HMGET', P .. 'registry', 'incarnation', 'changes', 'changed_at')
"""
)

CREATE_TENANT = (
    _COMMON
    + """
local name, record = ARGV[3], ARGV[4]
if has_tenant(name) then return 'exists' end
changed()
redis.call('HSET', P .. 'tenant-records', name, record)
redis.call('ZADD', P .. 'tenants', 0, name)
return 'created'
"""
)

TENANT = (
    _COMMON
    + """
return redis.call('HGET', P .. 'tenant-records', ARGV[1])
"""
)

TENANTS = (
    _COMMON
    + """
return records_of(page(P .. 'tenants', ARGV[1], ARGV[2]), P .. 'tenant-records')
"""
)

REPLACE_TENANT = (
    ALSO_IF_FULL
    + _COMMON
    + """
local name, record, before = ARGV[3], ARGV[4], tonumber(ARGV[5])
local stored = redis.call('HGET', P .. 'tenant-records', name)
if not stored or (cjson.decode(stored).revision or 1) ~= before then return 0 end
changed()
redis.call('HSET', P .. 'tenant-records', name, record)
return 1
"""
)

DELETE_TENANT = (
    ALSO_IF_FULL
    + _COMMON
    + """
local name = ARGV[3]
if not has_tenant(name) then return 0 end
changed()
local key_ids = P .. 'keys-of:tenant:' .. name
for _, key_id in ipairs(redis.call('ZRANGE', key_ids, 0, -1)) do
  redis.call('HDEL', P .. 'key-records', key_id)
  redis.call('HDEL', P .. 'key-uses', key_id)
end
redis.call('DEL', key_ids, P .. 'namespaces-of:' .. name, P .. 'records-of:' .. name)
redis.call('HDEL', P .. 'tenant-records', name)
redis.call('ZREM', P .. 'tenants', name)
return 1
"""
)

# Whose: 'operators' or 'tenant:<tenant>', here and in the next ones.
CREATE_KEY = (
    _COMMON
    + """
local whose, key_id, record = ARGV[3], ARGV[4], ARGV[5]
local tenant = string.match(whose, '^tenant:(.*)$')
if tenant and not has_tenant(tenant) then return 'no tenant' end
if redis.call('HEXISTS', P .. 'key-records', key_id) == 1 then return 'exists' end
changed()
redis.call('HSET', P .. 'key-records', key_id, record)
redis.call('ZADD', P .. 'keys-of:' .. whose, 0, key_id)
return 'created'
"""
)

KEY = (
    _COMMON
    + """
return {redis.call('HGET', P .. 'key-records', ARGV[1]), redis.call('HGET', P .. 'key-uses', ARGV[1])}
"""
)

# Record and last use in turn.
KEYS = (
    _COMMON
    + """
local found = {}
for _, key_id in ipairs(page(P .. 'keys-of:' .. ARGV[1], ARGV[2], ARGV[3])) do
  found[#found + 1] = redis.call('HGET', P .. 'key-records', key_id)
  found[#found + 1] = redis.call('HGET', P .. 'key-uses', key_id)
end
return found
"""
)

# As `records.may_become`.
_KEY_CHANGES = """
local function moment(at) if not at or at == cjson.null then return math.huge end return at end
local function may_become(key_id, record)
  local before, after = cjson.decode(redis.call('HGET', P .. 'key-records', key_id)), cjson.decode(record)
  return moment(after.revoked_at_ms) <= moment(before.revoked_at_ms)
    and moment(after.expires_at_ms) <= moment(before.expires_at_ms)
end
"""

REPLACE_KEY = (
    ALSO_IF_FULL
    + _COMMON
    + _KEY_CHANGES
    + """
local whose, key_id, record = ARGV[3], ARGV[4], ARGV[5]
if not redis.call('ZSCORE', P .. 'keys-of:' .. whose, key_id) then return 0 end
if not may_become(key_id, record) then return 0 end
changed()
redis.call('HSET', P .. 'key-records', key_id, record)
return 1
"""
)

ROTATE_KEY = (
    _COMMON
    + _KEY_CHANGES
    + """
local whose, old_id, old, new_id, new = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if not redis.call('ZSCORE', P .. 'keys-of:' .. whose, old_id) then return 0 end
if not may_become(old_id, old) then return 0 end
if redis.call('HEXISTS', P .. 'key-records', new_id) == 1 then return 0 end
changed()
redis.call('HSET', P .. 'key-records', old_id, old, new_id, new)
redis.call('ZADD', P .. 'keys-of:' .. whose, 0, new_id)
return 1
"""
)

# Pairs of a key id and a time.
TOUCH_KEYS = (
    _COMMON
    + """
for i = 1, #ARGV, 2 do
  local key_id, at_ms = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', P .. 'key-uses', key_id)
  if redis.call('HEXISTS', P .. 'key-records', key_id) == 1
    and (not known or tonumber(known) < tonumber(at_ms)) then
    redis.call('HSET', P .. 'key-uses', key_id, at_ms)
  end
end
return 1
"""
)

CREATE_NAMESPACE = (
    _COMMON
    + """
local tenant, name, record, at_most = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
if not has_tenant(tenant) then return 'no tenant' end
local names, records = P .. 'namespaces-of:' .. tenant, P .. 'records-of:' .. tenant
if redis.call('HEXISTS', records, name) == 1 then return 'exists' end
if redis.call('ZCARD', names) >= at_most then return 'full' end
changed()
redis.call('HSET', records, name, record)
redis.call('ZADD', names, 0, name)
return 'created'
"""
)

NAMESPACE = (
    _COMMON
    + """
return redis.call('HGET', P .. 'records-of:' .. ARGV[1], ARGV[2])
"""
)

NAMESPACES = (
    _COMMON
    + """
return records_of(page(P .. 'namespaces-of:' .. ARGV[1], ARGV[2], ARGV[3]), P .. 'records-of:' .. ARGV[1])
"""
)

DELETE_NAMESPACE = (
    _COMMON
    + """
local tenant, name = ARGV[3], ARGV[4]
local records = P .. 'records-of:' .. tenant
if redis.call('HEXISTS', records, name) == 0 then return 0 end
changed()
redis.call('HDEL', records, name)
redis.call('ZREM', P .. 'namespaces-of:' .. tenant, name)
return 1
"""
)

APPEND_AUDIT = (
    _COMMON
    + """
append()
return 1
"""
)

# Of one tenant if the first argument is 'of', of all if it is 'all'. Number and record in turn.
AUDIT_LOG = (
    _COMMON
    + """
local log = P .. 'audit'
if ARGV[1] == 'of' then log = P .. 'audit-of:' .. ARGV[2] end
local newest = '+'
if ARGV[3] ~= '0' then newest = '(' .. ARGV[3] .. '-0' end
local found = {}
for _, entry in ipairs(redis.call('XREVRANGE', log, newest, '-', 'COUNT', ARGV[4])) do
  found[#found + 1] = string.match(entry[1], '^%d+')
  found[#found + 1] = entry[2][2]
end
return found
"""
)

ANSWER = (
    _COMMON
    + """
return redis.call('GET', P .. 'answer:' .. ARGV[1])
"""
)

REMEMBER = (
    _COMMON
    + """
local whose, key, record, for_s, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local kept, now = P .. 'answers-of:' .. whose, redis.call('TIME')
local now_us = now[1] * 1000000 + now[2]
redis.call('SET', P .. 'answer:' .. key, record, 'EX', for_s)
redis.call('ZADD', kept, now_us + for_s * 1000000, key)
redis.call('ZREMRANGEBYSCORE', kept, '-inf', now_us)
local beyond = redis.call('ZCARD', kept) - most
if beyond > 0 then
  for _, oldest in ipairs(redis.call('ZRANGE', kept, 0, beyond - 1)) do
    redis.call('DEL', P .. 'answer:' .. oldest)
  end
  redis.call('ZREMRANGEBYRANK', kept, 0, beyond - 1)
end
if redis.call('TTL', kept) < for_s then redis.call('EXPIRE', kept, for_s) end
return 1
"""
)
