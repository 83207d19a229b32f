"""Lua scripts for turns, by which runs share the queue of branches.

A run has at most a few messages in the queue, its *turns*; its further messages wait in a list of
its own, its *backlog*. The script that takes messages also moves the next messages of the same runs
from their backlogs to the queue's end. So the queue is a ring: each run gets its turn after all
others, however much it has published. The queue is never empty while a backlog is not.

Keys: the queue, and with its name as prefix ``.turns``, a hash with the number of messages that each
run has in the queue; ``.of.RUN``, the backlog of a run; ``.behind``, a list with an empty string for
each message of all backlogs: a scaler can only read lengths.

``.turns`` may differ from the queue if a worker died between taking and counting, or if another
client put or took a message. ``TAKE`` corrects it when the queue is empty, ``RECOUNT`` by counting the queue.
"""

from __future__ import annotations

__all__ = ["FORGET_BACKLOG", "PUT", "RECOUNT", "RENEW", "TAKE"]

# Ten times as many messages as a batch has; Lua takes 8,000 arguments at most.
_MOST = 5_000

_SHARED = """
local function backlog_of(queue, run) return queue .. '.of.' .. run end
local function run_of(message) return message:match('"root_id": ?"([%w_-]+)"') end
-- Puts messages of a run's backlog into the queue until it has its turns there; returns how many.
local function give_turns(queue, run, held, turns)
    local rest, moved = redis.call('LLEN', backlog_of(queue, run)), 0
    if rest > 0 and held < turns then
        local next = redis.call('RPOP', backlog_of(queue, run), turns - held) or {}
        moved = #next
        if moved > 0 then redis.call('LPUSH', queue, unpack(next)) end
    end
    if rest - moved <= 0 and held + moved <= 0 then
        redis.call('HDEL', queue .. '.turns', run)
    else
        redis.call('HSET', queue .. '.turns', run, held + moved)
    end
    return moved
end
"""

# KEYS index, messages, queue; ARGV the text that kombu stores after a message, the turns of a run (0:
# the queue has none), a message that was taken, its tag, and a tag for each further message to take.
# Returns the number of messages left, and the further ones. It leases them as kombu does, but by the
# server's clock: those of machines differ.
TAKE = f"""{_SHARED}
local queue, turns = KEYS[3], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local function keep(message, tag)
    redis.call('ZADD', KEYS[1], now, tag)
    redis.call('HSET', KEYS[2], tag, '[' .. message .. ARGV[1])
end
keep(ARGV[3], ARGV[4])
local wanted = #ARGV - 4
local taken = {{}}
if wanted > 0 then taken = redis.call('RPOP', queue, wanted) or {{}} end
if turns == 0 then
    for i, message in ipairs(taken) do keep(message, ARGV[4 + i]) end
    return {{redis.call('LLEN', queue), taken}}
end
local runs, gone, rest = {{}}, {{}}, {{}}
local function note(run, count)
    if not run then return end
    if not gone[run] then
        runs[#runs + 1], gone[run] = run, 0
        rest[run] = redis.call('LLEN', backlog_of(queue, run))
    end
    gone[run] = gone[run] + count
end
note(run_of(ARGV[3]), 1)
for _, message in ipairs(taken) do note(run_of(message), 1) end
-- No run has a turn left, so counters that say otherwise are wrong.
local is_empty = redis.call('LLEN', queue) == 0
if is_empty and redis.call('LLEN', queue .. '.behind') > 0 then
    for _, run in ipairs(redis.call('HKEYS', queue .. '.turns')) do note(run, 0) end
end
local moved, more = 0, wanted - #taken
while more > 0 do
    local with = {{}}
    for _, run in ipairs(runs) do
        if rest[run] > 0 then with[#with + 1] = run end
    end
    if #with == 0 then break end
    local share = math.ceil(more / #with)
    for _, run in ipairs(with) do
        local count = math.min(share, more, rest[run])
        if count > 0 then
            for _, message in ipairs(redis.call('RPOP', backlog_of(queue, run), count)) do
                taken[#taken + 1] = message
            end
        end
        moved, more, rest[run] = moved + count, more - count, rest[run] - count
    end
end
for i, message in ipairs(taken) do keep(message, ARGV[4 + i]) end
for _, run in ipairs(runs) do
    local held = 0
    if not is_empty then
        held = tonumber(redis.call('HGET', queue .. '.turns', run) or 0) - gone[run]
    end
    moved = moved + give_turns(queue, run, math.max(0, held), turns)
end
if moved > 0 then redis.call('LPOP', queue .. '.behind', moved) end
return {{redis.call('LLEN', queue) + redis.call('LLEN', queue .. '.behind'), taken}}
"""

# KEYS index; ARGV tags. Renews the leases of messages that are still taken: an acknowledged message
# has left the index.
RENEW = """
-- despite a full server
local time = redis.call('TIME')
for _, tag in ipairs(ARGV) do
    redis.call('ZADD', KEYS[1], 'XX', time[1] + time[2] / 1e6, tag)
end
return 1
"""

# KEYS queue; ARGV turns of a run, run, its key, the number of messages just added to its backlog, and
# messages that were not. It moves no message from a list, as a client may not. Most messages go
# directly to the backlog: as arguments, they would cost the server more than all the rest. Returns
# the length of the queue; -1: the run is deleted, and so are its messages.
PUT = f"""{_SHARED}
local queue, turns, run = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local backlog, behind = backlog_of(queue, run), tonumber(ARGV[4])
local count, held, room = #ARGV - 4, 0, turns
-- A script blocks all clients: its caller must not be able to make it long.
if not (behind >= 0 and behind + count <= {_MOST}) then
    return redis.error_reply('ERR so many messages are never put at once')
end
if redis.call('EXISTS', ARGV[3]) == 0 then
    local rest = redis.call('LLEN', backlog) - behind
    redis.call('DEL', backlog)
    if rest > 0 then redis.call('LPOP', queue .. '.behind', rest) end
    return -1
end
-- An empty queue wakes no worker, even if the counters are wrong.
if redis.call('LLEN', queue) > 0 then
    held = tonumber(redis.call('HGET', queue .. '.turns', run) or 0)
    room = 0
    if redis.call('LLEN', backlog) == behind then room = math.max(0, turns - held) end
end
local first = math.min(room, count)
if first > 0 then redis.call('LPUSH', queue, unpack(ARGV, 5, 4 + first)) end
if first < count then redis.call('LPUSH', backlog, unpack(ARGV, 5 + first)) end
behind = behind + count - first
if behind > 0 then
    local blank = {{}}
    for i = 1, behind do blank[i] = '' end
    redis.call('LPUSH', queue .. '.behind', unpack(blank))
end
redis.call('HSET', queue .. '.turns', run, held + first)
return redis.call('LLEN', queue)
"""

# KEYS queue; ARGV turns of a run, the most messages in a queue that is counted, and 1 to count even
# if the queue has as many messages as there are turns. Returns the number of messages that got a turn
# which no other script would have given them.
RECOUNT = f"""-- despite a full server
{_SHARED}
local queue, turns = KEYS[1], tonumber(ARGV[1])
if redis.call('EXISTS', queue .. '.turns', queue .. '.behind') == 0 then return 0 end
local length = redis.call('LLEN', queue)
if length > tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '0' then
    for _, count in ipairs(redis.call('HVALS', queue .. '.turns')) do length = length - count end
    if length == 0 then return 0 end
end
local held = {{}}
for _, message in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    local run = run_of(message)
    if run then held[run] = (held[run] or 0) + 1 end
end
local moved, behind = 0, 0
for _, run in ipairs(redis.call('HKEYS', queue .. '.turns')) do
    local rest = redis.call('LLEN', backlog_of(queue, run))
    local given = give_turns(queue, run, held[run] or 0, turns)
    moved, behind = moved + given, behind + rest - given
end
local off = behind - redis.call('LLEN', queue .. '.behind')
if off < 0 then redis.call('LPOP', queue .. '.behind', -off) end
for _ = 1, off do redis.call('LPUSH', queue .. '.behind', '') end
return moved
"""

# KEYS queue; ARGV a deleted run: PUT gives it no further messages. Those in the queue stay: the
# worker that takes them sees that the run is deleted.
FORGET_BACKLOG = f"""-- despite a full server
{_SHARED}
local queue, run = KEYS[1], ARGV[1]
local rest = redis.call('LLEN', backlog_of(queue, run))
redis.call('HDEL', queue .. '.turns', run)
if rest == 0 then return 0 end
redis.call('DEL', backlog_of(queue, run))
redis.call('LPOP', queue .. '.behind', rest)
return rest
"""
