"""Lua scripts for the state of the fleet: see ``fanout.stores.redis.run_scripts``."""

from __future__ import annotations

__all__ = [
    "ADD_SUMS",
    "ALIVE",
    "ASK_BREAKER",
    "BEAT",
    "CLAIM_WIRE",
    "CLOSE_BREAKER",
    "CORRECT_SLOT",
    "LOCK",
    "PAUSE_MODEL",
    "SWAP_WINDOW",
    "TAKE_SLOT",
    "TRIP_BREAKER",
]

# KEYS workers, their records; ARGV name, record, ttl, seconds that a silent worker is remembered. All
# scripts here use the server's clock, as those of machines differ.
ALIVE = """
-- despite a full server
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[4]))) do
    redis.call('ZREM', KEYS[1], name)
    redis.call('HDEL', KEYS[2], name)
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
"""

# KEYS holders; ARGV holder, ttl, seconds that a lapsed holder is remembered. A late beat was delayed,
# mostly because the server was unreachable. Then the holders that were alive at the beat before it
# get the same time again; otherwise the first to return would treat the others as dead.
BEAT = """
-- despite a full server
local time = redis.call('TIME')
local now, ttl = tonumber(time[1]) + tonumber(time[2]) / 1e6, tonumber(ARGV[2])
local until_then = redis.call('ZSCORE', KEYS[1], ARGV[1])
if until_then and now > tonumber(until_then) - ttl / 3 then
    local before = tonumber(until_then) - ttl
    for _, holder in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], before, '+inf')) do
        redis.call('ZADD', KEYS[1], now + ttl, holder)
    end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[3]))
redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
return 1
"""

# KEYS lock; ARGV holder, ttl. Returns whether the holder has the lock now.
LOCK = """
-- despite a full server
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""

# KEYS wire, its holders, active; ARGV version, holder, ttl, the prefix of a run's key. Returns the
# fleet's version: the requested one unless a live process or an active run uses the stored one. A
# run with a third version does not count, as clients write a run's version. An expired run may still
# be among the active runs.
CLAIM_WIRE = """
-- despite a full server
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local spoken = redis.call('GET', KEYS[1])
if spoken and spoken ~= ARGV[1] then
    if redis.call('ZCARD', KEYS[2]) > 0 then return tonumber(spoken) end
    for _, run in ipairs(redis.call('SMEMBERS', KEYS[3])) do
        local there = redis.call('EXISTS', ARGV[4] .. run) == 1
        local wire = there and redis.pcall('HGET', ARGV[4] .. run, 'wire')
        if there and (not wire or wire == spoken) then return tonumber(spoken) end
    end
end
if spoken ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2])
return tonumber(ARGV[1])
"""

# KEYS limits; ARGV model, the burst, the furthest ahead, ttl, and the seconds of each limit that the
# calls use: requests, tokens, input and output tokens. Returns {wait in seconds, whether the time is
# reserved, for each limit the seconds from now until which it is used up then} as strings: Lua's
# numbers would lose their fractions. See fanout.core.rate_limits. The fields of a model are the times
# until which its requests (``r:``), tokens (``t:``), input (``i:``) and output tokens (``u:``) are
# used up and it is paused (``b:``), and the learnt limits (``l:``). A limit without a use stays. One that
# is used up for longer than any calls can have used it is one whose provider once counted wrongly: such a
# use is forgotten.
TAKE_SLOT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local model, burst, ahead = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local names = {'r:' .. model, 't:' .. model, 'i:' .. model, 'u:' .. model}
local known = redis.call('HMGET', KEYS[1], names[1], names[2], names[3], names[4], 'b:' .. model)
local start = math.max(now, tonumber(known[5] or 0))
local used, costs = {}, {}
for i = 1, 4 do
    used[i], costs[i] = tonumber(known[i] or 0), tonumber(ARGV[4 + i])
    if costs[i] > 0 then
        if used[i] - now > math.max(tonumber(ARGV[4]), 10 * costs[i]) then used[i] = now end
        start = math.max(start, used[i] - burst)
    end
end
local wait = start - now
if wait > ahead then return {tostring(wait - ahead / 2), '0'} end
local reply = {tostring(wait), '1'}
for i = 1, 4 do
    local after = used[i]
    if costs[i] ~= 0 then
        after = math.max(used[i], start) + costs[i]
        redis.call('HSET', KEYS[1], names[i], string.format('%.6f', after))
    end
    reply[2 + i] = tostring(after - now)
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return reply
"""

# KEYS limits; ARGV model, seconds of the limit of tokens that the tokens use, of that of input and of
# that of output tokens; each may be negative.
CORRECT_SLOT = """
for i, kind in ipairs({'t:', 'i:', 'u:'}) do
    local name = kind .. ARGV[1]
    if tonumber(ARGV[1 + i]) ~= 0 and redis.call('HEXISTS', KEYS[1], name) == 1 then
        redis.call('HINCRBYFLOAT', KEYS[1], name, ARGV[1 + i])
    end
end
return 1
"""

# KEYS limits; ARGV model, the window that the caller has read, or '', its successor, or '' for none, ttl.
# Returns whether it was still that one.
SWAP_WINDOW = """
local name = 'a:' .. ARGV[1]
if (redis.call('HGET', KEYS[1], name) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
    redis.call('HDEL', KEYS[1], name)
else
    redis.call('HSET', KEYS[1], name, ARGV[3])
    redis.call('EXPIRE', KEYS[1], ARGV[4])
end
return 1
"""

# KEYS limits, totals; ARGV model, seconds, ttl.
PAUSE_MODEL = """
local time = redis.call('TIME')
local lapses = tonumber(time[1]) + tonumber(time[2]) / 1e6 + tonumber(ARGV[2])
local before = tonumber(redis.call('HGET', KEYS[1], 'b:' .. ARGV[1]) or 0)
redis.call('HINCRBY', KEYS[2], 'pauses', 1)
if lapses > before then
    redis.call('HSET', KEYS[1], 'b:' .. ARGV[1], string.format('%.6f', lapses))
    redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
"""

# The breaker of a model (fanout.policy.outages) has the fields ``o:``, the time when it opened,
# ``n:``, its number of probes, and ``c:``, the time when it was last closed. The time of the next
# probe is the end of the model's pause, ``b:``, so callers that only read pauses also wait.

# KEYS limits; ARGV model, seconds to the first probe, seconds after which an open breaker is
# forgotten, seconds that a closed breaker stays closed, ttl. Returns whether it is open.
TRIP_BREAKER = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local known = redis.call('HMGET', KEYS[1], 'o:' .. ARGV[1], 'b:' .. ARGV[1], 'c:' .. ARGV[1])
local blocked = tonumber(known[2] or 0)
if known[1] and now - blocked <= tonumber(ARGV[3]) then return 1 end
if known[3] and now - tonumber(known[3]) < tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], 'o:' .. ARGV[1], string.format('%.6f', now), 'n:' .. ARGV[1], 0,
    'b:' .. ARGV[1], string.format('%.6f', math.max(blocked, now + tonumber(ARGV[2]))))
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
"""

# KEYS limits; ARGV model, seconds to the first probe, the most seconds between two probes, seconds
# after which an open breaker is forgotten. Returns {seconds to wait, seconds that it has been open
# or '', whether the caller may probe} as strings.
ASK_BREAKER = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local known = redis.call('HMGET', KEYS[1], 'o:' .. ARGV[1], 'b:' .. ARGV[1], 'n:' .. ARGV[1])
local blocked = tonumber(known[2] or 0)
local wait = math.max(0, blocked - now)
if not known[1] then return {tostring(wait), '', '0'} end
if now - blocked > tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], 'o:' .. ARGV[1], 'n:' .. ARGV[1])
    return {'0', '', '0'}
end
local down = tostring(math.max(0, now - tonumber(known[1])))
if wait > 0 then return {tostring(wait), down, '0'} end
local probes = tonumber(known[3] or 0) + 1
wait = math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) * 2 ^ math.min(probes, 30))
redis.call('HSET', KEYS[1], 'n:' .. ARGV[1], probes,
    'b:' .. ARGV[1], string.format('%.6f', now + wait))
return {tostring(wait), down, '1'}
"""

# KEYS limits; ARGV model, ttl.
CLOSE_BREAKER = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('HDEL', KEYS[1], 'o:' .. ARGV[1], 'n:' .. ARGV[1], 'b:' .. ARGV[1])
redis.call('HSET', KEYS[1], 'c:' .. ARGV[1], string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS what is known of models' tokens; ARGV model, most calls, seconds to keep it, and the sums to add, the
# calls first. Of more calls than the most, all sums are halved. Returns the sums, as text.
ADD_SUMS = """
local known, found = {}, 0
for number in string.gmatch(redis.call('HGET', KEYS[1], ARGV[1]) or '', '%S+') do
    found = found + 1
    known[found] = tonumber(number) or 0
end
local count = #ARGV - 3
-- Another version may sum up other things.
if found ~= count then known = {} end
for at = 1, count do
    known[at] = (known[at] or 0) + (tonumber(ARGV[at + 3]) or 0)
end
local share = 1
if (known[1] or 0) > tonumber(ARGV[2]) then share = 0.5 end
for at = 1, count do
    known[at] = string.format('%.17g', known[at] * share)
end
local sums = table.concat(known, ' ')
redis.call('HSET', KEYS[1], ARGV[1], sums)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return sums
"""
