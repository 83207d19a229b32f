"""The store's Lua for runs: each script is one step that must not be seen half done.

The server runs a script atomically, and it costs one round trip. Each that writes of a run asks
first whether there is one: so a step that comes late leaves nothing of a run that was deleted.
"""

from __future__ import annotations

__all__ = [
    "ADD_MEMBERS",
    "ADOPT",
    "ADVANCE",
    "BEGIN",
    "COMPACT",
    "DELETE_RUN",
    "END_RUN",
    "HALT",
    "HEALED",
    "OPEN_SHARDS",
    "PAUSE",
    "PUT_RESULT",
    "PUT_SHARD",
    "RECORD",
    "RELEASE_CLAIM",
    "RENEW",
    "REOPEN_RUN",
    "REOPEN_SHARD",
    "SEAL",
    "SET_PERMITS",
    "SET_STATUS",
    "START_SHARD",
]

# KEYS run, live, out, state, parked, holders; ARGV ttl, after how many deliveries a branch must be
# begun alone, whether the run's deadline binds it, holder, seconds that a claim lasts, the ttl that
# the holder beats with, and of each branch its position, token, whether it is begun alone, what to
# park it as. Returns verdict and deliveries of each. The token makes a begin that is sent again
# count once, and extends the claim; it is stored as ``token holder until``. Until then, while its
# holder lives, only RELEASE_CLAIM ends it. A worker treats a holder as dead only after a later
# heartbeat of its own, as the server may have been unreachable for all workers.
BEGIN = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local run = redis.call('HMGET', KEYS[1], 'status', 'halt', 'deadline_at', 'paused')
local finished = redis.call('EXISTS', KEYS[3]) == 1
local begins = false
local function lives(holder)
    local lapses = tonumber(redis.call('ZSCORE', KEYS[6], holder) or 0)
    if lapses == 0 or lapses > now then return lapses > 0 end
    local own = tonumber(redis.call('ZSCORE', KEYS[6], ARGV[4]) or 0)
    return own - tonumber(ARGV[6]) <= lapses
end
local function verdict(position, token, alone, parked)
    if not run[1] then return 'gone', 0 end
    if finished or redis.call('HEXISTS', KEYS[2], position) == 1 then return 'done', 0 end
    if run[2] then return 'halted', 0 end
    if run[3] and ARGV[3] == '1' and now >= tonumber(run[3]) then return 'expired', 0 end
    local begun = redis.call('HMGET', KEYS[4], 'a:' .. position, 't:' .. position)
    local deliveries = tonumber(begun[1] or 0)
    local before, holder, lapses
    if begun[2] then
        before, holder, lapses = begun[2]:match('^(%S+) (%S*) (%S+)$')
        if before == token then
            local again = table.concat({token, ARGV[4], now + tonumber(ARGV[5])}, ' ')
            redis.call('HSET', KEYS[4], 't:' .. position, again)
            return 'go', deliveries
        end
    end
    if run[4] then
        redis.call('SADD', KEYS[5], parked)
        redis.call('EXPIRE', KEYS[5], ARGV[1])
        return 'paused', 0
    end
    if before and tonumber(lapses) > now and lives(holder) then return 'held', deliveries end
    if deliveries >= tonumber(ARGV[2]) and alone == '0' then return 'suspect', deliveries end
    local claim = table.concat({token, ARGV[4], now + tonumber(ARGV[5])}, ' ')
    redis.call('HSET', KEYS[4], 'a:' .. position, deliveries + 1, 't:' .. position, claim)
    begins = begins or deliveries == 0
    return 'go', deliveries + 1
end
local verdicts = {}
for i = 7, #ARGV, 4 do
    local decision, deliveries = verdict(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    verdicts[#verdicts + 1] = decision
    verdicts[#verdicts + 1] = deliveries
end
if begins then redis.call('EXPIRE', KEYS[4], ARGV[1]) end
return verdicts
"""

# KEYS index; ARGV tags. Only what is still there: a message that was acknowledged stays away.
RENEW = """
-- despite a full server
local time = redis.call('TIME')
for _, tag in ipairs(ARGV) do
    redis.call('ZADD', KEYS[1], 'XX', time[1] + time[2] / 1e6, tag)
end
return 1
"""

# KEYS state; ARGV position, token, what is added to its begins: -1 where the call that was handed
# back has not been tried.
RELEASE_CLAIM = """
-- despite a full server
local claim = redis.call('HGET', KEYS[1], 't:' .. ARGV[1])
if not claim or claim:match('^%S+') ~= ARGV[2] then return 0 end
redis.call('HINCRBY', KEYS[1], 'a:' .. ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[1], 't:' .. ARGV[1])
return 1
"""

# KEYS run, stage, live, out, state, totals of the fleet; ARGV ttl, feed, and of each branch its
# position, outcome, kind, calls, input tokens, output tokens, cost, bucket of the latency (-1: no
# call), seconds. An unknown quantity is the empty string. Returns of each first, next, and how many
# of the shard have ended with it. All counts of a run are made here, so that no sum can
# differ from the outcomes.
RECORD = """
local recorded, counts, sums, unknown = {}, {}, {}, {}
local is_open = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('EXISTS', KEYS[4]) == 0
local feed = tonumber(ARGV[2])
local ended = redis.call('HLEN', KEYS[3])
local function add(to, name, quantity)
    to[name] = (to[name] or 0) + tonumber(quantity)
end
local function count(i)
    local ok = ARGV[i + 2] == ''
    add(counts, ok and 'succeeded' or 'failed', 1)
    if not ok then add(counts, 'kind:' .. ARGV[i + 2], 1) end
    if ARGV[i + 3] ~= '0' then add(counts, 'calls', ARGV[i + 3]) end
    for j, name in ipairs({'input_tokens', 'output_tokens', 'cost_usd'}) do
        local value = ARGV[i + 3 + j]
        if value ~= '' then add(sums, name, value) end
        if value == '' and (ok or ARGV[i + 3] ~= '0') then unknown['unknown:' .. name] = true end
    end
    if ARGV[i + 7] ~= '-1' then
        add(counts, 'took:' .. ARGV[i + 7], 1)
        add(sums, 'took_s', ARGV[i + 8])
    end
end
for i = 3, #ARGV, 9 do
    local first, following = 0, -1
    if is_open and redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 1]) == 1 then
        first = 1
        ended = ended + 1
        count(i)
        if feed > 0 then
            -- Not one that has ended: of a shard that is retried, most have.
            local at = tonumber(redis.call('HGET', KEYS[5], 'next') or 0)
            while at < feed and redis.call('HEXISTS', KEYS[3], at) == 1 do at = at + 1 end
            if at < feed then following = at end
            redis.call('HSET', KEYS[5], 'next', math.min(at + 1, feed))
        end
    end
    recorded[#recorded + 1] = first
    recorded[#recorded + 1] = following
    recorded[#recorded + 1] = ended
end
if next(counts) then redis.call('EXPIRE', KEYS[3], ARGV[1]) end
for _, key in ipairs({KEYS[2], KEYS[6]}) do
    for name, number in pairs(counts) do
        redis.call('HINCRBY', key, name, string.format('%d', number))
    end
    for name, sum in pairs(sums) do
        redis.call('HINCRBYFLOAT', key, name, string.format('%.17g', sum))
    end
    for name in pairs(unknown) do redis.call('HSET', key, name, 1) end
end
return recorded
"""

# KEYS stage, open, draining, run; ARGV window, finished (-1: none), ttl, draining (-1: none), how
# many of its branches have not ended, how many times the window may be open with those that drain.
# Returns shard, permits, shard, permits, ...; nil if there is no such run. The stage hash has cap (0:
# none), lane (permits of a shard), used, written and opened; used is for views. At most 1,000
# shards at a time: clients write that hash, and a script holds up everybody.
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
        -- It cannot have more in flight than are left of it.
        local left = math.min(tonumber(permits), tonumber(ARGV[5]))
        redis.call('HSET', KEYS[2], ARGV[4], left)
    end
end
if tonumber(ARGV[2]) >= 0 then
    redis.call('HDEL', KEYS[2], ARGV[2])
    redis.call('SREM', KEYS[3], ARGV[2])
end
local cap, lane, written = field('cap'), field('lane'), field('written')
-- Summed, not counted: a sum cannot come to differ from what is open.
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
    if cap > 0 then permits = math.min(lane, cap - used) end
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

# KEYS stage, open, run; ARGV ttl, shards. Those that are not open become so; with a cap, as many as
# it has permits for. Returns whether there is such a run.
ADOPT = """
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
local cap = tonumber(redis.call('HGET', KEYS[1], 'cap') or 0)
local lane = tonumber(redis.call('HGET', KEYS[1], 'lane') or 0)
local used = 0
for _, permits in ipairs(redis.call('HVALS', KEYS[2])) do used = used + tonumber(permits) end
for i = 2, #ARGV do
    local permits = 0
    if cap > 0 then permits = math.min(lane, cap - used) end
    if cap > 0 and permits <= 0 then break end
    used = used + permits * redis.call('HSETNX', KEYS[2], ARGV[i], permits)
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""

# KEYS state, run; ARGV how many are published, ttl. It only rises. Returns whether there is such a
# run.
ADVANCE = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'next') or 0) < tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[1], 'next', ARGV[1])
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
"""

# KEYS state, run; ARGV how many are published, ttl. Returns whether it is the first to say so; -1:
# no such run.
START_SHARD = """
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
local first = redis.call('HSETNX', KEYS[1], 'next', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return first
"""

# KEYS stage, run; ARGV ttl, window, permits of a shard, cap. Returns whether there is such a run.
SET_PERMITS = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'window', ARGV[2], 'lane', ARGV[3], 'cap', ARGV[4])
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

# KEYS run, stage, blob, sizes; ARGV blob, shard, count, ttl, index of the first branch, and the
# final statuses. Returns -1 where there is no such run, 0 where the stage takes no more shards. A
# shard that is written again, by a second client, is counted once, and the first one stands.
PUT_SHARD = """
local run = redis.call('HMGET', KEYS[1], 'status', 'halt')
if not run[1] then return -1 end
if run[2] or redis.call('HEXISTS', KEYS[2], 'sealed') == 1 then return 0 end
for i = 6, #ARGV do
    if run[1] == ARGV[i] then return 0 end
end
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

# KEYS run, stage; ARGV ttl. Returns {shards, whether it was sealed now}; -1 shards: no such run.
SEAL = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {-1, 0} end
local first = redis.call('HSETNX', KEYS[2], 'sealed', 1)
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {tonumber(redis.call('HGET', KEYS[2], 'written') or 0), first}
"""

# KEYS live, state, out, run; ARGV blob, ttl. Returns whether there is such a run.
COMPACT = """
if redis.call('EXISTS', KEYS[4]) == 0 then return 0 end
redis.call('SET', KEYS[3], ARGV[1], 'NX', 'EX', ARGV[2])
redis.call('DEL', KEYS[1], KEYS[2])
return 1
"""

# KEYS result, run; ARGV blob, ttl. Returns whether there is such a run.
PUT_RESULT = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
return 1
"""

# KEYS run, mark, active; ARGV ttl, run id. From now on there is no such run: no script writes to it,
# and its data can be deleted. The mark stays until that is done, and so does its
# place among the active runs, as the deleting process may die. Returns the run's last stage; -1: there
# is no such run, and nothing is left of one.
DELETE_RUN = """
-- despite a full server
local last = tonumber(redis.call('GET', KEYS[2]) or -1)
if redis.call('EXISTS', KEYS[1]) == 0 then return last end
local run = redis.call('HMGET', KEYS[1], 'stage', 'base_stage')
last = math.max(last, tonumber(run[1] or 0) or 0, tonumber(run[2] or 0) or 0)
redis.call('SET', KEYS[2], last, 'EX', ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('DEL', KEYS[1])
return last
"""

# KEYS run; ARGV status, stage ('' leaves it; it only rises), and the final statuses. Returns
# whether it moved.
SET_STATUS = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
for i = 3, #ARGV do
    if status == ARGV[i] then return 0 end
end
redis.call('HSET', KEYS[1], 'status', ARGV[1])
local before = tonumber(redis.call('HGET', KEYS[1], 'stage') or 0)
local stage = tonumber(ARGV[2])
if stage and stage > before then redis.call('HSET', KEYS[1], 'stage', stage) end
return 1
"""

# KEYS run, active, totals of runs; ARGV status, ended at, error, ttl, run id, and the final
# statuses. Returns whether it ended now.
END_RUN = """
redis.call('SREM', KEYS[2], ARGV[5])
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
for i = 6, #ARGV do
    if status == ARGV[i] then return 0 end
end
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'ended_at', ARGV[2])
-- Clients write these totals, too: a number that one has spoilt keeps no run from ending.
redis.pcall('HINCRBY', KEYS[3], 'ended:' .. ARGV[1], 1)
if ARGV[3] ~= '' then redis.call('HSETNX', KEYS[1], 'error', ARGV[3]) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""

# KEYS run; ARGV status, error, and the final statuses. Returns whether it is this halt that stands.
HALT = """
-- despite a full server
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
for i = 3, #ARGV do
    if status == ARGV[i] then return 0 end
end
if redis.call('HSETNX', KEYS[1], 'halt', ARGV[1]) == 0 then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[2]) end
return 1
"""

# KEYS run, active; ARGV 1 to pause, 0 to go on, and the final statuses. Returns whether it changed.
PAUSE = """
-- despite a full server
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
local was = 0
if ARGV[1] == '0' then was = redis.call('HDEL', KEYS[1], 'paused') end
for i = 2, #ARGV do
    if status == ARGV[i] then return 0 end
end
if ARGV[1] == '0' then return was end
if redis.call('HEXISTS', KEYS[1], 'halt') == 1 then return 0 end
return redis.call('HSETNX', KEYS[1], 'paused', 1)
"""

# KEYS run, stage 0, its open shards, result, active, parked, shards taken back, those that drain;
# ARGV ttl, run id,
# kinds to retry, and the final statuses. Returns whether it was this call that reopened it.
REOPEN_RUN = """
local status = redis.call('HGET', KEYS[1], 'status')
local has_ended = false
for i = 4, #ARGV do
    if status == ARGV[i] then has_ended = true end
end
if not has_ended then return 0 end
local stage = tonumber(redis.call('HGET', KEYS[1], 'stage') or 0)
if stage > 0 then redis.call('HSET', KEYS[1], 'base_stage', stage) end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('HSET', KEYS[1], 'status', 'running', 'stage', 0, 'retry', ARGV[3],
    'reopened_at', string.format('%.6f', now))
redis.call('HDEL', KEYS[1], 'halt', 'error', 'ended_at', 'paused', 'deadline_at')
redis.call('HSET', KEYS[2], 'opened', 0, 'used', 0)
redis.call('HDEL', KEYS[2], 'heals')
redis.call('DEL', KEYS[3], KEYS[4], KEYS[6], KEYS[7], KEYS[8])
redis.call('SADD', KEYS[5], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""

# KEYS stage, shards taken back, out, live, state, run; ARGV shard, ttl, how many outcomes are
# kept, position and outcome of each, and the kind of each that is dropped. Returns whether it was
# now; -1: no such run.
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
end
return 1
"""

# KEYS results, members, claim, run; ARGV index, task id and result of each. What Celery's own
# script keeps of a member that returns, before it counts. Nothing may be added to a chord that is
# done, or whose run is gone.
ADD_MEMBERS = """
if redis.call('EXISTS', KEYS[4]) == 0 then return 0 end
if redis.call('GET', KEYS[3]) == 'done' then return 0 end
for i = 1, #ARGV, 3 do
    if redis.call('SADD', KEYS[2], ARGV[i + 1] .. ':' .. ARGV[i]) == 1 then
        redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 2])
    end
end
return 1
"""
