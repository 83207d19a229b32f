"""Lua scripts for the partitions of groups: see ``fanout.stores.redis.run_scripts``."""

from __future__ import annotations

from fanout.stores.redis.run_scripts import ENDED, LATE

__all__ = ["PUT_GROUPS", "PUT_PART", "PUT_PLAN", "RELEASE_PARTITION", "TAKE_PARTITION"]

# KEYS run, groups, reset shards; ARGV ttl, field, hashes, opening, shard, whether it was reset since then.
# Returns -1 if there is no such run, 0 if a retry has taken back the outcomes since, 1 if this call wrote it.
PUT_GROUPS = f"""
{LATE}
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if is_late(ARGV[4]) or redis.call('SISMEMBER', KEYS[3], ARGV[5]) ~= tonumber(ARGV[6]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""

# KEYS run, plan; ARGV ttl, opening, and each field and its value, that of the plan itself first. The first
# plan of an opening stands. Returns -1 if there is no such run, else whether this call wrote it.
PUT_PLAN = f"""
{LATE}
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if is_late(ARGV[2]) or redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1 then return 0 end
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""

# KEYS run, leases; ARGV field, token, seconds, ttl. Takes a partition for one process, or renews that.
# Returns -1 if there is no such run, else whether the process has it.
TAKE_PARTITION = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held then
    local token, until_s = string.match(held, '^(%S+) (%S+)$')
    if token ~= ARGV[2] and (tonumber(until_s) or 0) > now then return 0 end
end
local ends = string.format('%.3f', now + tonumber(ARGV[3]))
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. ends)
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
"""

# KEYS leases; ARGV field, token.
RELEASE_PARTITION = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held and string.match(held, '^(%S+) ') == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""

# KEYS run, stage, blob, sizes, parts, owners; ARGV blob, shard, count, ttl, index of the first branch, number
# of the stage, field of the partition, its record before ('' for none), its record after, name of the reduce.
# As PUT_NEXT, for one of the partitions that write a stage at the same time: the record is written with the
# shard. With a count of 0, the record is written alone. Returns -1 if there is no such run, 0 if the stage
# takes no more shards, 1 if another process has written the record, 2 if the stage has more shards meanwhile,
# 3 if this call wrote it.
PUT_PART = f"""
{ENDED}
local run = redis.call('HMGET', KEYS[1], 'status', 'halt', 'base_stage', 'ahead')
if not run[1] then return -1 end
if run[2] or ended[run[1]] or redis.call('HEXISTS', KEYS[2], 'sealed') == 1 then return 0 end
local stage, count = tonumber(ARGV[6]), tonumber(ARGV[3])
if stage <= tonumber(run[3] or 0) then return 0 end
if (redis.call('HGET', KEYS[5], ARGV[7]) or '') ~= ARGV[8] then return 1 end
if count > 0 then
    if tonumber(redis.call('HGET', KEYS[2], 'written') or 0) ~= tonumber(ARGV[2]) then return 2 end
    redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[4])
    redis.call('HINCRBY', KEYS[2], 'written', 1)
    redis.call('HINCRBY', KEYS[2], 'total', count)
    local suffix = ARGV[10] == '' and '' or ':' .. ARGV[10]
    redis.call('HSET', KEYS[4], ARGV[2], ARGV[5] .. ':' .. ARGV[3] .. suffix)
    redis.call('HSET', KEYS[6], ARGV[2], ARGV[7])
end
redis.call('HSET', KEYS[5], ARGV[7], ARGV[9])
if stage > tonumber(run[4] or 0) then redis.call('HSET', KEYS[1], 'ahead', stage) end
for _, at in ipairs({{1, 2, 4, 5, 6}}) do redis.call('EXPIRE', KEYS[at], ARGV[4]) end
return 3
"""
