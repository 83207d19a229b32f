"""Lua scripts for stages and their shards: see ``fanout.stores.redis.run_scripts``."""

from __future__ import annotations

from fanout.stores.redis.run_scripts import ENDED

__all__ = [
    "ADOPT",
    "ADVANCE",
    "HEALED",
    "OPEN_SHARDS",
    "PUT_SHARD",
    "REOPEN_SHARD",
    "SEAL",
    "SET_PERMITS",
    "START_SHARD",
]

# KEYS stage, open, run; ARGV ttl, shards. Adds the shards that are not open; with a cap, only as many
# as there are permits for. Returns whether there is such a run.
ADOPT = """
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
local cap = tonumber(redis.call('HGET', KEYS[1], 'cap') or 0)
local per_shard = tonumber(redis.call('HGET', KEYS[1], 'lane') or 0)
local used = 0
for _, permits in ipairs(redis.call('HVALS', KEYS[2])) do used = used + tonumber(permits) end
for i = 2, #ARGV do
    local permits = 0
    if cap > 0 then permits = math.min(per_shard, cap - used) end
    if cap > 0 and permits <= 0 then break end
    used = used + permits * redis.call('HSETNX', KEYS[2], ARGV[i], permits)
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""

# KEYS state, run; ARGV number of published branches, ttl. The number only rises. Returns whether
# there is such a run.
ADVANCE = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'next') or 0) < tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[1], 'next', ARGV[1])
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
"""

# KEYS stage or state, totals of the fleet, run; ARGV ttl. Returns whether there is such a run.
HEALED = """
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'heals', 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('HINCRBY', KEYS[2], 'heals', 1)
return 1
"""

# KEYS stage, open, draining, run; ARGV window, finished shard (-1: none), ttl, draining shard (-1:
# none), the number of its branches that have not ended, the most windows that may be open with the
# shards that drain. Returns shard, permits, shard, permits, ...; nil if there is no such run. The
# stage hash has cap (0: none), lane (permits of a shard), used (for views), written and opened.
# Opens at most 1,000 shards: clients write that hash, and a script blocks all clients.
OPEN_SHARDS = """
if redis.call('EXISTS', KEYS[4]) == 0 then return false end
local function field(name)
    return tonumber(redis.call('HGET', KEYS[1], name) or 0)
end
if tonumber(ARGV[4]) >= 0 then
    local permits = redis.call('HGET', KEYS[2], ARGV[4])
    if permits then
        redis.call('SADD', KEYS[3], ARGV[4])
        redis.call('EXPIRE', KEYS[3], ARGV[3])
        -- It cannot have more branches in flight than have not ended.
        local left = math.min(tonumber(permits), tonumber(ARGV[5]))
        redis.call('HSET', KEYS[2], ARGV[4], left)
    end
end
if tonumber(ARGV[2]) >= 0 then
    redis.call('HDEL', KEYS[2], ARGV[2])
    redis.call('SREM', KEYS[3], ARGV[2])
end
local cap, per_shard, written = field('cap'), field('lane'), field('written')
-- Summed each time: a counter could come to differ from the open shards.
local used, opened = 0, field('opened')
if cap > 0 then
    for _, permits in ipairs(redis.call('HVALS', KEYS[2])) do used = used + tonumber(permits) end
end
local window = field('window')
if window == 0 then window = tonumber(ARGV[1]) end
local open = redis.call('HLEN', KEYS[2])
local inflight = open - redis.call('SCARD', KEYS[3])
local granted = {}
while opened < written and inflight < window and open < window * tonumber(ARGV[6])
        and (cap == 0 or used < cap) and #granted < 2000 do
    local permits = 0
    if cap > 0 then permits = math.min(per_shard, cap - used) end
    redis.call('HSET', KEYS[2], opened, permits)
    granted[#granted + 1] = opened
    granted[#granted + 1] = permits
    opened, used, inflight, open = opened + 1, used + permits, inflight + 1, open + 1
end
if cap > 0 then redis.call('HSET', KEYS[1], 'used', used) end
if #granted > 0 then
    redis.call('HSET', KEYS[1], 'opened', opened)
    redis.call('EXPIRE', KEYS[2], ARGV[3])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return granted
"""

# KEYS run, stage, blob, sizes; ARGV blob, shard, count, ttl, index of the first branch. Returns -1 if
# there is no such run, 0 if the stage takes no more shards. A shard that a second client writes
# again is counted once, and the first one stands.
PUT_SHARD = f"""
{ENDED}
local run = redis.call('HMGET', KEYS[1], 'status', 'halt')
if not run[1] then return -1 end
if run[2] or ended[run[1]] or redis.call('HEXISTS', KEYS[2], 'sealed') == 1 then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'written') or 0) ~= tonumber(ARGV[2]) then return 1 end
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[4])
redis.call('HINCRBY', KEYS[2], 'written', 1)
redis.call('HINCRBY', KEYS[2], 'total', ARGV[3])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[5] .. ':' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[4], ARGV[4])
return 1
"""

# KEYS stage, reset shards, out, live, state, run; ARGV shard, ttl, number of kept outcomes, position
# and outcome of each, and the kind of each dropped outcome. Returns whether this call reset it; -1:
# no such run.
REOPEN_SHARD = """
if redis.call('EXISTS', KEYS[6]) == 0 then return -1 end
if redis.call('SADD', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
local last = 3 + 2 * tonumber(ARGV[3])
for i = 4, last, 2 do
    redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[4], ARGV[2])
for i = last + 1, #ARGV do
    redis.call('HINCRBY', KEYS[1], 'failed', -1)
    redis.call('HINCRBY', KEYS[1], 'kind:' .. ARGV[i], -1)
    redis.call('HINCRBY', KEYS[1], 'again:' .. ARGV[i], -1)
end
return 1
"""

# KEYS run, stage; ARGV ttl. Returns {shards, whether this call sealed it}; -1 shards: no such run.
SEAL = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {-1, 0} end
local first = redis.call('HSETNX', KEYS[2], 'sealed', 1)
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {tonumber(redis.call('HGET', KEYS[2], 'written') or 0), first}
"""

# KEYS stage, run; ARGV ttl, window, permits of a shard, cap. Returns whether there is such a run.
SET_PERMITS = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'window', ARGV[2], 'lane', ARGV[3], 'cap', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""

# KEYS state, run; ARGV number of published branches, ttl. Returns whether this call was the first;
# -1: no such run.
START_SHARD = """
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
local first = redis.call('HSETNX', KEYS[1], 'next', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return first
"""
