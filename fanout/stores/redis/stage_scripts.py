"""Lua scripts for stages and their shards: see ``fanout.stores.redis.run_scripts``."""

from __future__ import annotations

from fanout.stores.redis.run_scripts import ENDED

__all__ = [
    "ADOPT",
    "HEALED",
    "OPEN_SHARDS",
    "PUT_NEXT",
    "PUT_SHARD",
    "REOPEN_SHARD",
    "SEAL",
    "START_SHARD",
]

# KEYS open, run; ARGV ttl, shards. Adds the shards that are not open. Returns whether there is such a
# run.
ADOPT = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
for i = 2, #ARGV do redis.call('HSETNX', KEYS[1], ARGV[i], 0) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
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
# none), the most windows that may be open with the shards that drain, the most such shards of a run
# whose calls wait for batches, and the branches of a shard of the window (0: however many a shard has).
# Returns the shards that it opened, none if the run has ended; nil if there is no such run. The stage hash
# has written, total and opened. Opens at most 1,000 shards: clients write that hash, and a script blocks all
# clients.
OPEN_SHARDS = f"""
{ENDED}
local status = redis.call('HGET', KEYS[4], 'status')
if not status then return false end
local function field(name)
    return tonumber(redis.call('HGET', KEYS[1], name) or 0)
end
if tonumber(ARGV[4]) >= 0 and redis.call('HEXISTS', KEYS[2], ARGV[4]) == 1 then
    redis.call('SADD', KEYS[3], ARGV[4])
    redis.call('EXPIRE', KEYS[3], ARGV[3])
end
if tonumber(ARGV[2]) >= 0 then
    redis.call('HDEL', KEYS[2], ARGV[2])
    redis.call('SREM', KEYS[3], ARGV[2])
end
local written, opened, window = field('written'), field('opened'), tonumber(ARGV[1])
if tonumber(ARGV[7]) > 0 and written > 0 then
    -- Long prompts make shards of few branches.
    local of_branches = math.ceil(window * tonumber(ARGV[7]) * written / math.max(1, field('total')))
    window = math.max(window, math.min(of_branches, 512))
end
local open = redis.call('HLEN', KEYS[2])
local inflight = open - redis.call('SCARD', KEYS[3])
local most = window * tonumber(ARGV[5])
if redis.call('HEXISTS', KEYS[4], 'is_gathered') == 1 then most = math.max(most, tonumber(ARGV[6])) end
local shards = {{}}
if ended[status] then return shards end
while opened < written and inflight < window and open < most
        and #shards < 1000 do
    redis.call('HSET', KEYS[2], opened, 0)
    shards[#shards + 1] = opened
    opened, inflight, open = opened + 1, inflight + 1, open + 1
end
if #shards > 0 then
    redis.call('HSET', KEYS[1], 'opened', opened)
    redis.call('EXPIRE', KEYS[2], ARGV[3])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return shards
"""

# KEYS run, stage, blob, sizes, groups; ARGV blob, shard, count, ttl, index of the first branch, and the
# fields with the groups of its branches, each with its value. Returns -1 if there is no such run, 0 if the
# stage takes no more shards. A shard that a second client writes again is counted once, and the first one
# stands.
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
if #ARGV > 5 then
    redis.call('HSET', KEYS[5], unpack(ARGV, 6))
    redis.call('EXPIRE', KEYS[5], ARGV[4])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[4], ARGV[4])
return 1
"""

# KEYS run, stage, blob, sizes; ARGV blob, shard, count, ttl, index of the first branch, number of the stage,
# frontier, name of the reduce. As PUT_SHARD for a stage of reduces: how far the one has written it is written
# with its shard. Returns -1 if there is no such run, 0 if the stage takes no more shards, 1 if another
# process has written the shard, 2 if this call did.
PUT_NEXT = f"""
{ENDED}
local run = redis.call('HMGET', KEYS[1], 'status', 'halt', 'base_stage', 'ahead')
if not run[1] then return -1 end
if run[2] or ended[run[1]] or redis.call('HEXISTS', KEYS[2], 'sealed') == 1 then return 0 end
local stage = tonumber(ARGV[6])
if stage <= tonumber(run[3] or 0) then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'written') or 0) ~= tonumber(ARGV[2]) then return 1 end
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[4])
redis.call('HINCRBY', KEYS[2], 'written', 1)
redis.call('HINCRBY', KEYS[2], 'total', ARGV[3])
local suffix = ARGV[8] == '' and '' or ':' .. ARGV[8]
redis.call('HSET', KEYS[2], 'frontier' .. suffix, ARGV[7])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[5] .. ':' .. ARGV[3] .. suffix)
if stage > tonumber(run[4] or 0) then redis.call('HSET', KEYS[1], 'ahead', stage) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[4], ARGV[4])
return 2
"""

# KEYS stage, reset shards, out, live, state, run, checkpoints, groups; ARGV shard, ttl, number of kept
# outcomes, of checkpoints, and of fields of groups that go by the outcomes, position and outcome of each,
# position and checkpoint of each, these fields, and of each dropped outcome its kind, the bucket of its
# latency (-1: no call) and its seconds. A branch with a
# checkpoint has one begin: see RELEASE_CLAIM. Returns whether this call reset it; -1: no such run.
REOPEN_SHARD = """
if redis.call('EXISTS', KEYS[6]) == 0 then return -1 end
if redis.call('SADD', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[7])
local last = 5 + 2 * tonumber(ARGV[3])
for i = 6, last, 2 do
    redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[4], ARGV[2])
local begun = last + 2 * tonumber(ARGV[4])
for i = last + 1, begun, 2 do
    redis.call('HSET', KEYS[7], ARGV[i], ARGV[i + 1])
    redis.call('HSET', KEYS[5], 'a:' .. ARGV[i], 1)
end
redis.call('EXPIRE', KEYS[5], ARGV[2])
redis.call('EXPIRE', KEYS[7], ARGV[2])
last = begun + tonumber(ARGV[5])
for i = begun + 1, last do redis.call('HDEL', KEYS[8], ARGV[i]) end
for i = last + 1, #ARGV, 3 do
    local bucket = ARGV[i + 1]
    redis.call('HINCRBY', KEYS[1], 'failed', -1)
    redis.call('HINCRBY', KEYS[1], 'kind:' .. ARGV[i], -1)
    redis.call('HINCRBY', KEYS[1], 'again:' .. ARGV[i], -1)
    if bucket ~= '-1' then
        redis.call('HINCRBYFLOAT', KEYS[1], 'took_s', string.format('%.17g', -tonumber(ARGV[i + 2])))
        if redis.call('HINCRBY', KEYS[1], 'took:' .. bucket, -1) < 1 then
            redis.call('HDEL', KEYS[1], 'least:' .. bucket, 'most:' .. bucket)
        end
    end
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

# KEYS state, run; ARGV ttl. Returns whether this call was the first; -1: no such run.
START_SHARD = """
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
local first = redis.call('HSETNX', KEYS[1], 'published', 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
return first
"""
