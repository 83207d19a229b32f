"""Lua scripts for turns, by which runs share the queue of branches.

A run has at most a few messages in the queue, its *turns*; its further messages wait in its
*backlog*, two lists of its own: one for its branches, and one for the nodes of its reduces, which
have the next turns. A node that waited behind all branches that are published already would begin
late, and all above it. The script that takes messages also moves the next messages of the same runs
from their backlogs to the queue's end. So the queue is a ring: each run gets its turn after all
others, however much it has published. A run of a higher priority has more turns.

A run with ``max_workers`` also has a *limit*: the most of its messages that may be outside its
backlog, in the queue or taken. The next ones follow when messages are settled. So the branches that
wait for a permit (fanout.stores.redis.branch_scripts) fill neither the queue nor the workers. A
backlog always has messages in the queue, unless its run is at its limit.

Keys: the queue, and with its name as prefix ``.turns``, a hash with the number of messages that each
run has in the queue; ``.of.RUN`` and ``.of.RUN.nodes``, the backlog of a run; ``.behind``, a list
with an empty string for each message in the backlogs that workers could take, of a run with a limit
only as many as that has room for: a scaler can only read lengths; ``.shares``, a hash of ``turns
limit`` of the runs with a priority or a limit (0: none); and ``.taken``, a hash with the number of
taken messages of each run with a limit. The tag of such a message ends with ``@RUN``.

``.turns`` and ``.taken`` may be wrong if a worker died between taking and counting, or if another
client put or took a message. ``TAKE`` corrects the turns when the queue is empty, and ``RECOUNT``
corrects both by counting.
"""

from __future__ import annotations

__all__ = ["FORGET_BACKLOG", "PUT", "RECOUNT", "RENEW", "RETURNED", "SETTLE", "TAKE"]

# Ten times as many messages as a batch has; Lua takes 8,000 arguments at most.
_MOST = 5_000

_HAS_SHARES = "local has_shares = redis.call('EXISTS', queue .. '.shares') == 1"
_SHARED = """
local function backlog_of(run) return queue .. '.of.' .. run end
local function nodes_of(run) return backlog_of(run) .. '.nodes' end
local function behind_of(run)
    return redis.call('LLEN', backlog_of(run)) + redis.call('LLEN', nodes_of(run))
end
-- Takes the next messages of a run from its backlog.
local function next_of(run, count)
    local found = redis.call('RPOP', nodes_of(run), count) or {}
    if #found == 0 then return redis.call('RPOP', backlog_of(run), count) or {} end
    if #found < count then
        local rest = redis.call('RPOP', backlog_of(run), count - #found) or {}
        for _, message in ipairs(rest) do found[#found + 1] = message end
    end
    return found
end
local function run_of(message) return message:match('"root_id": ?"([%w_-]+)"') end
-- Returns the turns of a run, and its limit, if it has one.
local function share_of(run)
    local share = has_shares and redis.call('HGET', queue .. '.shares', run)
    if not share then return turns end
    local own, limit = share:match('^(%d+) (%d+)$')
    limit = tonumber(limit)
    return tonumber(own), limit > 0 and limit or nil
end
local function count_taken(run, count)
    local taken = redis.call('HINCRBY', queue .. '.taken', run, count)
    if taken < 0 then redis.call('HSET', queue .. '.taken', run, 0) end
    return math.max(0, taken)
end
-- Returns how many of the messages of a backlog `.behind` has: the limit has room for some of them.
local function countable(rest, room) return math.max(0, math.min(rest, room)) end
-- Lengthens `.behind`.
local function count_behind(count)
    if count < 0 then redis.call('LPOP', queue .. '.behind', -count) end
    if count <= 0 then return end
    local blank = {}
    for i = 1, count do blank[i] = '' end
    for i = 1, count, 5000 do
        redis.call('LPUSH', queue .. '.behind', unpack(blank, i, math.min(count, i + 4999)))
    end
end
-- Puts messages of a run's backlog into the queue until it has its turns there, but no more than
-- `room`. Returns how many.
local function give_turns(run, held, own, room)
    local rest, moved = behind_of(run), 0
    local count = math.min(own - held, room)
    if rest > 0 and count > 0 then
        local next = next_of(run, count)
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
# Returns the number of messages left, the further messages, and the tags of all if they differ from
# the given ones. It leases them as kombu does, but by the server's clock: those of machines differ.
TAKE = f"""
local queue, turns = KEYS[3], tonumber(ARGV[2])
-- Workers have no right to such a key of the other queue.
local has_shares = turns > 0 and redis.call('EXISTS', queue .. '.shares') == 1
{_SHARED}
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local tags = {{}}
local function keep(message, tag)
    if has_shares and turns > 0 then
        local run = run_of(message)
        if run then
            local _, limit = share_of(run)
            if limit then tag = tag .. '@' .. run end
        end
        tags[#tags + 1] = tag
    end
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
local runs, gone = {{}}, {{}}
local function note(run, count)
    if not run then return end
    if not gone[run] then runs[#runs + 1], gone[run] = run, 0 end
    gone[run] = gone[run] + count
end
note(run_of(ARGV[3]), 1)
for _, message in ipairs(taken) do note(run_of(message), 1) end
-- Nobody has a turn left: what the counters say otherwise is wrong.
local is_empty = redis.call('LLEN', queue) == 0
if is_empty and redis.call('LLEN', queue .. '.behind') > 0 then
    for _, run in ipairs(redis.call('HKEYS', queue .. '.turns')) do note(run, 0) end
end
local held, own, limited, room, rest, moved = {{}}, {{}}, {{}}, {{}}, {{}}, 0
for _, run in ipairs(runs) do
    local limit
    own[run], limit = share_of(run)
    held[run], room[run], rest[run] = 0, math.huge, behind_of(run)
    local counted = 0
    if limit or not is_empty then
        counted = tonumber(redis.call('HGET', queue .. '.turns', run) or 0)
    end
    if not is_empty then held[run] = math.max(0, counted - gone[run]) end
    if limit then
        limited[run] = rest[run]
        local count = count_taken(run, gone[run])
        room[run] = math.max(0, limit - count - held[run])
        moved = moved + countable(rest[run], limit - count + gone[run] - counted)
        rest[run] = math.min(rest[run], room[run])
    end
end
local more = wanted - #taken
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
            for _, message in ipairs(next_of(run, count)) do taken[#taken + 1] = message end
            if limited[run] then
                count_taken(run, count)
                limited[run] = limited[run] - count
            else
                moved = moved + count
            end
        end
        more, rest[run], room[run] = more - count, rest[run] - count, room[run] - count
    end
end
for i, message in ipairs(taken) do keep(message, ARGV[4 + i]) end
for _, run in ipairs(runs) do
    local given = give_turns(run, held[run], own[run], room[run])
    if limited[run] then
        moved = moved - countable(limited[run] - given, room[run] - given)
    else
        moved = moved + given
    end
end
count_behind(-moved)
return {{redis.call('LLEN', queue) + redis.call('LLEN', queue .. '.behind'), taken, tags}}
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

# KEYS queue; ARGV turns of a run, run, its key, 1 for messages of nodes, how many were put into its
# backlog just now, and some that were not, which come after those. It takes nothing from anywhere, as
# a client may not; and most of what goes into the backlog anyway does not pass through it, which
# would cost the server more than all the rest.
# Returns how long the queue is; -1: the run is gone, and so is what was put.
PUT = f"""
local queue, turns, run = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local record = redis.call('HMGET', ARGV[3], 'turns', 'in_play')
local has_shares = record[1] or record[2]
if has_shares then
    local share = (record[1] or turns) .. ' ' .. (record[2] or 0)
    redis.call('HSET', queue .. '.shares', run, share)
end
{_SHARED}
local backlog, behind = ARGV[4] == '1' and nodes_of(run) or backlog_of(run), tonumber(ARGV[5])
local count, held = #ARGV - 5, 0
local own, limit = share_of(run)
local room = own
-- A script blocks all clients: its caller must not be able to make it long.
if not (behind >= 0 and behind + count <= {_MOST}) then
    return redis.error_reply('ERR so many messages are never put at once')
end
if redis.call('EXISTS', ARGV[3]) == 0 then
    -- Whether it had a limit is no longer known; RECOUNT corrects the length.
    local rest = behind_of(run) - behind
    redis.call('DEL', backlog_of(run), nodes_of(run))
    if rest > 0 then redis.call('LPOP', queue .. '.behind', rest) end
    return -1
end
-- An empty queue wakes no worker, even if the counters are wrong.
if redis.call('LLEN', queue) > 0 then
    held = tonumber(redis.call('HGET', queue .. '.turns', run) or 0)
    room = 0
    if behind_of(run) == behind then room = math.max(0, own - held) end
end
local left, was_behind = math.huge, 0
if limit then
    left = limit - tonumber(redis.call('HGET', queue .. '.taken', run) or 0)
    local counted = tonumber(redis.call('HGET', queue .. '.turns', run) or 0)
    was_behind = countable(behind_of(run) - behind, left - counted)
    left = left - held
    room = math.min(room, math.max(0, left))
end
local first = math.min(room, count)
if first > 0 then redis.call('LPUSH', queue, unpack(ARGV, 6, 5 + first)) end
if first < count then redis.call('LPUSH', backlog, unpack(ARGV, 6 + first)) end
behind = behind + count - first
if limit then behind = countable(behind_of(run), left - first) - was_behind end
count_behind(behind)
redis.call('HSET', queue .. '.turns', run, held + first)
return redis.call('LLEN', queue)
"""

# KEYS index, messages, queue; ARGV turns of a run, and the tags of settled messages. Gives a turn for
# each message of a run with a limit.
SETTLE = f"""-- despite a full server
local queue, turns = KEYS[3], tonumber(ARGV[1])
{_HAS_SHARES}
{_SHARED}
local runs, tags = {{}}, {{}}
for i = 2, #ARGV do
    local run = ARGV[i]:match('@([%w_-]+)$') or ''
    if not tags[run] then runs[#runs + 1], tags[run] = run, {{}} end
    table.insert(tags[run], ARGV[i])
end
for _, run in ipairs(runs) do
    redis.call('ZREM', KEYS[1], unpack(tags[run]))
    local gone = redis.call('HDEL', KEYS[2], unpack(tags[run]))
    local own, limit = share_of(run)
    if run ~= '' and limit and gone > 0 then
        local counted = tonumber(redis.call('HGET', queue .. '.turns', run) or 0)
        local held = redis.call('LLEN', queue) > 0 and counted or 0
        local rest, left = behind_of(run), limit - count_taken(run, -gone)
        local was_behind = countable(rest, left - gone - counted)
        local given = give_turns(run, held, own, left - held)
        count_behind(countable(rest - given, left - held - given) - was_behind)
    end
end
return 1
"""

# KEYS queue; ARGV a run with a limit. A message of it that was taken is in the queue again.
RETURNED = """-- despite a full server
local taken = tonumber(redis.call('HGET', KEYS[1] .. '.taken', ARGV[1]) or 0)
if taken > 0 then redis.call('HSET', KEYS[1] .. '.taken', ARGV[1], taken - 1) end
redis.call('HINCRBY', KEYS[1] .. '.turns', ARGV[1], 1)
return 1
"""

# KEYS queue, messages; ARGV turns of a run, the length from which on a queue is not counted, and 1
# where it is although it has as many messages as there are turns. Returns how many messages were
# given a turn that no other script would have given them.
RECOUNT = f"""-- despite a full server
local queue, turns = KEYS[1], tonumber(ARGV[1])
if redis.call('EXISTS', queue .. '.turns', queue .. '.behind', queue .. '.shares') == 0 then
    return 0
end
local length = redis.call('LLEN', queue)
if length > tonumber(ARGV[2]) then return 0 end
{_HAS_SHARES}
{_SHARED}
local taken = {{}}
if has_shares then
    for _, tag in ipairs(redis.call('HKEYS', KEYS[2])) do
        local run = tag:match('@([%w_-]+)$')
        if run then taken[run] = (taken[run] or 0) + 1 end
    end
    redis.call('DEL', queue .. '.taken')
    for run, count in pairs(taken) do redis.call('HSET', queue .. '.taken', run, count) end
elseif ARGV[3] == '0' then
    local rest = length
    for _, count in ipairs(redis.call('HVALS', queue .. '.turns')) do rest = rest - count end
    if rest == 0 then return 0 end
end
local held = {{}}
for _, message in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    local run = run_of(message)
    if run then held[run] = (held[run] or 0) + 1 end
end
local moved, behind = 0, 0
for _, run in ipairs(redis.call('HKEYS', queue .. '.turns')) do
    local rest = behind_of(run)
    local own, limit = share_of(run)
    local room = math.huge
    if limit then room = limit - (taken[run] or 0) - (held[run] or 0) end
    local given = give_turns(run, held[run] or 0, own, room)
    moved = moved + given
    behind = behind + countable(rest - given, room - given)
end
if has_shares then
    -- A run without messages has no need of a share: the next that it puts bring it again.
    for _, run in ipairs(redis.call('HKEYS', queue .. '.shares')) do
        if not taken[run] and redis.call('HEXISTS', queue .. '.turns', run) == 0 then
            redis.call('HDEL', queue .. '.shares', run)
        end
    end
end
count_behind(behind - redis.call('LLEN', queue .. '.behind'))
return moved
"""

# KEYS queue; ARGV a deleted run: PUT gives it no further messages. Those in the queue stay: the
# worker that takes them sees that the run is deleted.
FORGET_BACKLOG = f"""-- despite a full server
local queue, run, turns = KEYS[1], ARGV[1], 0
{_HAS_SHARES}
{_SHARED}
local rest = behind_of(run)
local _, limit = share_of(run)
local counted = rest
if limit then
    for _, part in ipairs({{'.turns', '.taken'}}) do
        limit = limit - tonumber(redis.call('HGET', queue .. part, run) or 0)
    end
    counted = countable(rest, limit)
end
for _, part in ipairs({{'.turns', '.shares', '.taken'}}) do redis.call('HDEL', queue .. part, run) end
if rest == 0 then return 0 end
redis.call('DEL', backlog_of(run), nodes_of(run))
count_behind(-counted)
return rest
"""
