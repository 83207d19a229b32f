"""Lua for calls that wait for an identical one of the batch lane: see ``fanout.stores.redis.joined``.

Of calls with one key of an answer the first is gathered: it *leads*. Branches that come to the same call
follow: they have their mark in ``gathered`` of their run, and no line. They are made ready when the answer
is kept, or when the leader has ended without one. If it failed in a way that they can take, they do.
"""

from __future__ import annotations

__all__ = ["WAKE_JOINED"]

# With ``now``. Returns of a leader, ``task item``, in a store with this prefix of a run's key:
# ``waits`` while it may give an answer, ``ended`` when it has ended or gone on to another call, and
# ``stopped`` if it never comes to that: its run was deleted, stopped, is paused or overdue.
LEADER_STATE = """
local function leader_state(leader, runs)
    local run_id, stage, shard, position, item = leader:match('^([^/%s]+)/(%d+)/(%d+)/(%d+) (%S+)')
    if not run_id then return 'stopped' end
    local run = redis.call('HMGET', runs .. run_id, 'status', 'halt', 'deadline_at', 'paused')
    if not run[1] or run[2] then return 'stopped' end
    if run[3] and stage == '0' and now >= tonumber(run[3]) then return 'stopped' end
    local field = table.concat({stage, shard, position}, ':')
    local mark = redis.call('HGET', runs .. run_id .. ':gathered', field)
    if mark == item or mark == 'ready:' .. item then return 'waits' end
    if mark then return 'ended' end
    local of_shard = table.concat({runs, run_id, ':s', stage, ':', shard})
    if redis.call('EXISTS', of_shard .. ':out') == 1 then return 'ended' end
    if redis.call('HEXISTS', of_shard .. ':live', position) == 1 then return 'ended' end
    return run[4] and 'stopped' or 'waits'
end
"""

# KEYS leader of the batches, asked, followed, ready, generations of kept answers; ARGV epoch, ttl, prefix of
# a run's key, that of a key's followers, seconds for which an answer may be on its way after its branch has
# ended, the most branches to make ready, how leases of answers begin, milliseconds for which a failure may be
# taken, and keys of answers, each with what became of it where another database has the answers: ``kept``,
# ``failed`` or ''. Makes the followers of these keys ready whose answer is kept, or whose leader has ended
# without one: they follow no other for this call, unless they come too late to take its failure. If
# it was stopped, its first follower is made ready, and leads. Returns how many are ready.
WAKE_JOINED = f"""
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return false end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
{LEADER_STATE}
local most, woken = math.min(1000, tonumber(ARGV[6])), 0
local function is_kept(key)
    for i = 5, #KEYS do
        if redis.call('HEXISTS', KEYS[i], key) == 1 then return true end
    end
    return false
end
local function wake(call, is_alone)
    local run_id, stage, shard, position, item = call:match('^([^/%s]+)/(%d+)/(%d+)/(%d+) (%S+)$')
    if not run_id then return false end
    local run, field = ARGV[3] .. run_id, table.concat({{stage, shard, position}}, ':')
    if redis.call('HGET', run .. ':gathered', field) ~= item then return false end
    if is_alone then
        local state = table.concat({{run, ':s', stage, ':', shard, ':state'}})
        redis.call('HSET', state, 'j:' .. position, item)
        redis.call('EXPIRE', state, ARGV[2])
    end
    redis.call('HSET', run .. ':gathered', field, 'ready:' .. item)
    redis.call('ZADD', KEYS[4], string.format('%.6f', now), call)
    woken = woken + 1
    return true
end
-- Returns the next follower that waits, or nothing once there is none: then the key is forgotten.
local function next_one(key, is_alone)
    for _ = 1, 1000 do
        local call = redis.call('LPOP', ARGV[4] .. key)
        if not call then
            redis.call('HDEL', KEYS[2], key)
            redis.call('SREM', KEYS[3], key)
            return nil
        end
        if wake(call, is_alone) then return call end
    end
end
local function has_ended(key, leader)
    local at = leader:match('^%S+ %S+ (%S+)$')
    if at then return tonumber(at) + tonumber(ARGV[5]) <= now end
    redis.call('HSET', KEYS[2], key, leader .. string.format(' %.3f', now))
    return false
end
local function has_failed(key)
    local lease = ARGV[7] .. key
    if (redis.call('GET', lease) or ''):byte() ~= 33 then return false end
    redis.call('PEXPIRE', lease, ARGV[8])
    return true
end
for i = 9, #ARGV, 2 do
    local key, elsewhere = ARGV[i], ARGV[i + 1]
    local leader = redis.call('HGET', KEYS[2], key)
    local state = leader and leader_state(leader, ARGV[3]) or 'stopped'
    local is_shared = state == 'ended' and (elsewhere == 'failed' or has_failed(key))
    if is_shared or elsewhere == 'kept' or is_kept(key) or (state == 'ended' and has_ended(key, leader)) then
        for _ = 1, most do
            if woken >= most or not next_one(key, not is_shared) then break end
        end
    elseif state == 'stopped' then
        local call = next_one(key, false)
        if call then redis.call('HSET', KEYS[2], key, call) end
    end
end
if woken > 0 then redis.call('EXPIRE', KEYS[4], ARGV[2]) end
return woken
"""
