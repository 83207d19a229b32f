"""Lua scripts of the batch lane: see ``fanout.stores.redis.gathered`` for the keys.

A branch that waits for a call of a batch has its *mark* in the hash ``gathered`` of its run: the item of
the call; ``ready:`` and the item once it is to be published again. A step counts only while the mark is
the item that it knows, so that each call has one result and each branch one place to wait.

The steps of the process that makes batches carry its epoch, and do nothing once another one leads.
"""

from __future__ import annotations

from fanout.stores.redis.join_scripts import LEADER_STATE

__all__ = ["DROP", "FILL", "FORGET_LANE", "GATHER", "LAND", "LATE", "LEAD", "PUBLISHED", "PUT_BATCH",
           "RELEASE", "SCARCE", "SHOW", "UNPACK"]  # fmt: skip

# KEYS leader; ARGV process, seconds. Returns {epoch, milliseconds left} of the process; {0, 0} if another
# one leads.
LEAD = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'process', 'until', 'epoch')
local epoch = tonumber(held[3] or 0)
local lives = held[1] and tonumber(held[2] or 0) > now
if lives and held[1] ~= ARGV[1] then return {0, 0} end
if not lives or held[1] ~= ARGV[1] then epoch = epoch + 1 end
redis.call('HSET', KEYS[1], 'process', ARGV[1], 'epoch', epoch,
    'until', string.format('%.6f', now + tonumber(ARGV[2])))
return {epoch, math.floor(1000 * tonumber(ARGV[2]))}
"""

_CLOCK = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
"""

# With KEYS[1] the leader and ARGV[1] the epoch of the caller.
_FENCE = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return false end
"""

# KEYS run, live, out, state, checkpoints, gathered, lanes, lane, queue, lines, branches, runs with gathered
# branches, asked, followed; ARGV ttl, whether the run's deadline applies, run id, lane id, record of the
# lane, prefix of a run's key, that of a key's followers, and for each branch its position, token, its field
# of ``gathered``, its task id, item, line, the key of its answer ('' for none), and whether it ``may``,
# ``only`` or ``never`` follows. Returns for each branch a verdict, and how many branches of the shard have
# ended or were gathered. One begin of the branch counts, so that the next delivery looks for a result. A
# call that is gathered again is written once.
GATHER = f"""
{_CLOCK}
{LEADER_STATE}
local run = redis.call('HMGET', KEYS[1], 'status', 'halt', 'deadline_at', 'paused')
local finished = redis.call('EXISTS', KEYS[3]) == 1
local writes, joins = false, false
local function has_leader(key, task)
    local leader = redis.call('HGET', KEYS[13], key)
    if not leader or leader:match('^%S+') == task then return false end
    return leader_state(leader, ARGV[6]) ~= 'stopped'
end
local function follow(key, call)
    redis.call('RPUSH', ARGV[7] .. key, call)
    redis.call('EXPIRE', ARGV[7] .. key, ARGV[1])
    redis.call('SADD', KEYS[14], key)
end
local function enqueue(item, task, line)
    if redis.call('HSETNX', KEYS[10], item, line) == 1 then
        redis.call('HINCRBY', KEYS[8], 'bytes', string.match(line, '^%d+'))
    end
    redis.call('HSET', KEYS[11], item, task)
    redis.call('ZADD', KEYS[9], string.format('%.6f', now), item)
    redis.call('HSET', KEYS[7], ARGV[4], ARGV[5])
    redis.call('HSET', KEYS[8], 'newest', string.format('%.6f', now))
end
local function verdict(position, token, field, task, item, line, key, how)
    if not run[1] then return 'gone' end
    if finished or redis.call('HEXISTS', KEYS[2], position) == 1 then return 'done' end
    local claim = redis.call('HGET', KEYS[4], 't:' .. position)
    if not claim or claim:match('^%S+') ~= token then return 'held' end
    if run[2] then return 'halted' end
    if run[3] and ARGV[2] == '1' and now >= tonumber(run[3]) then return 'expired' end
    if run[4] then return 'paused' end
    if redis.call('HGET', KEYS[4], 'j:' .. position) == item then key = '' end
    -- It waits already, or its result has just come: there is another message of it, or will be.
    local result = redis.call('HGET', KEYS[5], 'p:' .. position)
    local waits = redis.call('HGET', KEYS[6], field) == item
        or (result and result:match('^%S+') == item)
    local follows = not waits and key ~= '' and how ~= 'never' and has_leader(key, task)
    if how == 'only' and not waits and not follows then return 'alone' end
    redis.call('HSET', KEYS[4], 'a:' .. position, 1)
    redis.call('HDEL', KEYS[4], 't:' .. position)
    writes = true
    if waits then return 'gathered' end
    redis.call('HSET', KEYS[6], field, item)
    redis.call('HINCRBY', KEYS[4], 'gathered', 1)
    joins = joins or key ~= ''
    if follows then
        follow(key, task .. ' ' .. item)
        redis.call('HSET', KEYS[4], 'w:' .. position, item)
        return 'joined'
    end
    if key ~= '' and not has_leader(key, task) then
        redis.call('HSET', KEYS[13], key, task .. ' ' .. item)
    end
    enqueue(item, task, line)
    return 'gathered'
end
local verdicts = {{}}
for i = 8, #ARGV, 8 do
    local decision, settled = verdict(unpack(ARGV, i, i + 7)), 0
    if decision == 'gathered' or decision == 'joined' then
        local gathered = tonumber(redis.call('HGET', KEYS[4], 'gathered') or 0)
        settled = gathered + redis.call('HLEN', KEYS[2])
    end
    verdicts[#verdicts + 1] = decision
    verdicts[#verdicts + 1] = settled
end
if writes then
    redis.call('SADD', KEYS[12], ARGV[3])
    for _, key in ipairs({{KEYS[4], KEYS[6], KEYS[8], KEYS[9], KEYS[10], KEYS[11]}}) do
        redis.call('EXPIRE', key, ARGV[1])
    end
    if joins then
        for i = 13, 14 do redis.call('EXPIRE', KEYS[i], ARGV[1]) end
    end
end
return verdicts
"""

# KEYS leader, lane, queue, lines, branches, batch's members, batch's lines, batch's runs, ready; ARGV
# epoch, ttl, prefix of a run's key, the most calls and bytes of the batch, how many calls to look at, and
# whether all are only made ready. Returns {calls, bytes, full, the first item}. The calls move to the batch;
# those of runs that were stopped, are paused or overdue are made ready instead, so that their branches end
# or are parked.
FILL = f"""
{_FENCE}
{_CLOCK}
local of_runs = {{}}
local function state_of(run_id)
    if of_runs[run_id] == nil then
        local run = redis.call('HMGET', ARGV[3] .. run_id, 'status', 'halt', 'deadline_at', 'paused')
        local state = 'go'
        if not run[1] then state = 'gone' end
        if run[1] and (run[2] or run[4]) then state = 'ready' end
        of_runs[run_id] = {{state, tonumber(run[3] or 0)}}
    end
    return of_runs[run_id][1], of_runs[run_id][2]
end
local calls = redis.call('HLEN', KEYS[6])
local bytes = tonumber(redis.call('HGET', KEYS[8], ':bytes') or 0)
local function take(item)
    local task, line = redis.call('HGET', KEYS[5], item), redis.call('HGET', KEYS[4], item)
    local size = tonumber(string.match(line or '', '^%d+') or 0)
    local run_id, field = string.match(task or '', '^([^/]*)/(.*)$')
    local state = 'gone'
    if run_id and line then
        field = string.gsub(field, '/', ':')
        local gathered = ARGV[3] .. run_id .. ':gathered'
        local deadline_at
        state, deadline_at = state_of(run_id)
        if redis.call('HGET', gathered, field) ~= item then state = 'gone' end
        if state == 'go' and deadline_at > 0 and now >= deadline_at and field:sub(1, 2) == '0:' then
            state = 'ready'
        end
        if state == 'go' and ARGV[7] == '1' then state = 'ready' end
        if state == 'ready' then
            redis.call('HSET', gathered, field, 'ready:' .. item)
            redis.call('ZADD', KEYS[9], string.format('%.6f', now), task .. ' ' .. item)
        end
    end
    if state == 'go' then
        if calls > 0 and bytes + size > tonumber(ARGV[5]) then return false end
        redis.call('HSET', KEYS[6], item, task)
        redis.call('HSET', KEYS[7], item, line)
        redis.call('HINCRBY', KEYS[8], run_id, 1)
        if calls == 0 then redis.call('HSET', KEYS[8], ':first', item) end
        calls, bytes = calls + 1, bytes + size
    end
    redis.call('ZREM', KEYS[3], item)
    redis.call('HDEL', KEYS[4], item)
    redis.call('HDEL', KEYS[5], item)
    if size > 0 then redis.call('HINCRBY', KEYS[2], 'bytes', -size) end
    return true
end
local most = math.min(1000, tonumber(ARGV[6]))
local some = redis.call('ZRANGE', KEYS[3], 0, most - 1)
local full = #some < most
for _, item in ipairs(some) do
    if calls >= tonumber(ARGV[4]) or not take(item) then
        full = true
        break
    end
end
if redis.call('ZCARD', KEYS[3]) == 0 then redis.call('HDEL', KEYS[2], 'bytes') end
if calls > 0 then
    redis.call('HSET', KEYS[8], ':bytes', bytes)
    for i = 6, 8 do redis.call('EXPIRE', KEYS[i], ARGV[2]) end
end
return {{calls, bytes, full and 1 or 0, redis.call('HGET', KEYS[8], ':first') or ''}}
"""

# KEYS leader, batches, and keys to delete; ARGV epoch, number, record ('' removes it), ttl. Returns whether
# it was done.
PUT_BATCH = f"""
{_FENCE}
if ARGV[3] == '' then
    redis.call('HDEL', KEYS[2], ARGV[2])
else
    redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
    redis.call('EXPIRE', KEYS[2], ARGV[4])
end
if #KEYS > 2 then redis.call('DEL', unpack(KEYS, 3)) end
return 1
"""

# KEYS leader, batch's members, batch's runs, ready; ARGV epoch, ttl, prefix of a run's key, and for each
# call its item, the run id, stage, shard and position of its branch, and its result ('' for none: the call
# is made anew). Returns how many branches got theirs. The first result is kept, and only while the branch
# waits for it.
LAND = f"""
{_FENCE}
{_CLOCK}
local landed = 0
for i = 4, #ARGV, 6 do
    local item, run_id, stage, shard, position, result = unpack(ARGV, i, i + 5)
    local run = ARGV[3] .. run_id
    local field = table.concat({{stage, shard, position}}, ':')
    local gathered = run .. ':gathered'
    if redis.call('EXISTS', run) == 1 and redis.call('HGET', gathered, field) == item then
        local checkpoints = table.concat({{run .. ':s' .. stage, shard, 'checkpoints'}}, ':')
        if result ~= '' then
            redis.call('HSET', checkpoints, 'p:' .. position, item .. ' ' .. result)
            redis.call('EXPIRE', checkpoints, ARGV[2])
        end
        redis.call('HSET', gathered, field, 'ready:' .. item)
        local task = table.concat({{run_id, stage, shard, position}}, '/')
        redis.call('ZADD', KEYS[4], string.format('%.6f', now), task .. ' ' .. item)
        landed = landed + 1
    end
    if redis.call('HDEL', KEYS[2], item) == 1 then redis.call('HINCRBY', KEYS[3], run_id, -1) end
end
redis.call('EXPIRE', KEYS[4], ARGV[2])
return landed
"""

# KEYS leader, run, gathered, ready; ARGV epoch, run id, ttl, result ('' for none), whether the next call is
# not to be gathered, prefix of a stage's key, and for each branch its field of ``gathered`` and its item.
# Returns how many were made ready.
RELEASE = f"""
{_FENCE}
{_CLOCK}
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
local released = 0
for i = 7, #ARGV, 2 do
    local field, item = ARGV[i], ARGV[i + 1]
    if redis.call('HGET', KEYS[3], field) == item then
        local stage, shard, position = field:match('^(%d+):(%d+):(%d+)$')
        local of_shard = ARGV[6] .. stage .. ':' .. shard
        if ARGV[4] ~= '' then
            redis.call('HSET', of_shard .. ':checkpoints', 'p:' .. position, item .. ' ' .. ARGV[4])
            redis.call('EXPIRE', of_shard .. ':checkpoints', ARGV[3])
        end
        if ARGV[5] == '1' then redis.call('HSET', of_shard .. ':state', 'r:' .. position, 1) end
        redis.call('HSET', KEYS[3], field, 'ready:' .. item)
        local task = ARGV[2] .. '/' .. string.gsub(field, ':', '/')
        redis.call('ZADD', KEYS[4], string.format('%.6f', now), task .. ' ' .. item)
        released = released + 1
    end
end
if released > 0 then
    redis.call('EXPIRE', KEYS[4], ARGV[3])
    if ARGV[5] == '1' then redis.call('HSET', KEYS[2], 'late', 1) end
end
return released
"""

# KEYS run. Notes that some of its calls could not wait for a batch.
LATE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[1], 'late', 1)
"""

# KEYS leader, batch's members, batch's lines, batch's runs; ARGV epoch, and for each call its item and run.
# Takes calls out of a batch that the provider does not have; returns how many.
UNPACK = f"""
{_FENCE}
local taken = 0
for i = 2, #ARGV, 2 do
    if redis.call('HDEL', KEYS[2], ARGV[i]) == 1 then
        redis.call('HINCRBY', KEYS[4], ARGV[i + 1], -1)
        taken = taken + 1
    end
    redis.call('HDEL', KEYS[3], ARGV[i])
end
return taken
"""

# KEYS ready; ARGV prefix of a run's key, and for each branch its member of ``ready``, run id, field of
# ``gathered`` and item. Forgets branches that have a message again.
PUBLISHED = """
for i = 2, #ARGV, 4 do
    redis.call('ZREM', KEYS[1], ARGV[i])
    local gathered = ARGV[1] .. ARGV[i + 1] .. ':gathered'
    if redis.call('HGET', gathered, ARGV[i + 2]) == 'ready:' .. ARGV[i + 3] then
        redis.call('HDEL', gathered, ARGV[i + 2])
    end
end
return 1
"""

# KEYS runs with gathered branches, gathered; ARGV run id. Forgets a run without such branches; returns
# whether it was forgotten.
DROP = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
return redis.call('SREM', KEYS[1], ARGV[1])
"""

# KEYS leader, lane; ARGV epoch, ttl, seconds for which no batch is made, the most calls of the next one (0
# leaves it). Notes that the provider has no room, or, with 0 seconds, that it has: a limit of calls then
# rises by a quarter.
SCARCE = f"""
{_FENCE}
{_CLOCK}
if tonumber(ARGV[3]) > 0 then
    redis.call('HSET', KEYS[2], 'held_until', string.format('%.6f', now + tonumber(ARGV[3])))
else
    redis.call('HDEL', KEYS[2], 'held_until')
    local most = tonumber(redis.call('HGET', KEYS[2], 'most_calls') or 0)
    if most > 0 then
        most = math.min(1000000, math.ceil(1.25 * most))
        redis.call('HSET', KEYS[2], 'most_calls', string.format('%d', most))
    end
end
if ARGV[4] ~= '0' then redis.call('HSET', KEYS[2], 'most_calls', ARGV[4]) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
"""

# KEYS lanes, lane, queue; ARGV lane id. Forgets a lane for which no call was gathered for a long time;
# returns whether it was forgotten.
FORGET_LANE = """
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

# KEYS run, batches of the run; ARGV their records, ttl. Returns whether there is such a run.
SHOW = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return 1
"""
