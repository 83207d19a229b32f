"""Lua scripts for kept answers: see ``fanout.stores.redis.answer_cache``.

Kept answers are in four hashes, the generations. New ones go to the youngest; when that has a quarter of
the room, the oldest is deleted as a whole and is the youngest from then on. An answer that is found in one
of the two older generations moves to the youngest, unless it is a file. So those that nobody asks for any
more go first, and no answer costs the server an entry of an index.

A value is ``time cost blob``: when the answer was kept, in seconds since the epoch, what its calls had cost
in dollars, or ``?``, and the answer. The hash of counters has ``young``, the youngest generation, and of
each generation ``bytes:N``, ``count:N``, ``begun:N`` and ``name:N``, the name of its files.
"""

from __future__ import annotations

__all__ = ["CLEAR_ANSWERS", "FIND_ANSWERS", "RENEW_LEASES", "SETTLE_ANSWERS", "SHRINK_ANSWERS"]

# What the server needs for an entry besides its key and value, in bytes.
_ENTRY_BYTES = 96

# KEYS 1 to 5: counters and generations. What all scripts share.
_SHARED = """
local time = redis.call('TIME')
local now = tonumber(time[1])
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or 0) or 0 end
local young = number('young')
if young ~= 1 and young ~= 2 and young ~= 3 then young = 0 end
local function generation(age)
    local at = (young - age) % 4
    return at, KEYS[2 + at]
end
-- Most often some of the generations are empty: no answer is looked for in these.
local has_answers = {}
for at = 0, 3 do has_answers[at] = redis.call('EXISTS', KEYS[2 + at]) == 1 end
-- Those that have some, the youngest first.
local function filled()
    local ages = {}
    for age = 0, 3 do
        if has_answers[(young - age) % 4] then ages[#ages + 1] = age end
    end
    return ages
end
-- What the counters change by is written once, at the end.
local changes = {}
local function add(name, by) changes[name] = (changes[name] or 0) + by end
local function count(at, entries, size)
    add('count:' .. at, entries)
    add('bytes:' .. at, size)
end
-- A file is as large as its value says.
local function size_of(key, value)
    local size = #key + #value + @entry
    if not value:find(' @', 1, true) then return size end
    return size + (tonumber(value:match('^%d+ %S+ @%x+:(%d+)@')) or 0)
end
-- The counters go when nobody has asked for an answer for twice the time that one is kept.
local function write_changes(kept_s)
    for name, by in pairs(changes) do
        local text = string.format('%.17g', by)
        -- A counter that is not a number begins anew: no answer may be lost for it.
        if by ~= 0 and type(redis.pcall('HINCRBYFLOAT', KEYS[1], name, text)) == 'table' then
            redis.call('HSET', KEYS[1], name, text)
        end
    end
    if kept_s then redis.call('EXPIRE', KEYS[1], 2 * kept_s) end
end
local function empty(at, files)
    add('evicted', redis.call('HLEN', KEYS[2 + at]))
    redis.call('UNLINK', KEYS[2 + at])
    has_answers[at] = false
    local name = redis.call('HGET', KEYS[1], 'name:' .. at)
    if name then redis.call('DEL', files .. name) end
    redis.call('HDEL', KEYS[1], 'count:' .. at, 'bytes:' .. at, 'begun:' .. at, 'name:' .. at)
    changes['count:' .. at], changes['bytes:' .. at] = nil, nil
end
""".replace("@entry", str(_ENTRY_BYTES))

# KEYS counters, generations, and the lease of each key; ARGV seconds that an answer is kept, milliseconds of
# a lease, token of the process, and for each key the key and how it is asked for: ``ask``, ``poll`` (again),
# or ``anew`` (what is there is not to be used). What is found is counted. Returns
# for each key ``=`` with the value, ``ask`` (with the lease: others wait for this process),
# ``wait`` (another one asks), ``!`` with how the calls of the last one failed, or ``free`` (ask without a
# lease: the one that had it got no answer).
FIND_ANSWERS = (
    _SHARED
    + """
local kept_s = tonumber(ARGV[1]) or 0
local has_moved = false
local ages = filled()
local function found(key, is_used)
    for _, age in ipairs(ages) do
        local at, hash = generation(age)
        local value = redis.call('HGET', hash, key)
        if value then
            local kept_at, cost = value:match('^(%d+) (%S+) ')
            local is_good = is_used and kept_at and tonumber(kept_at) + kept_s > now
            local size = size_of(key, value)
            local moves = age > 1 and not value:find('^%d+ %S+ @')
            if moves or not is_good then
                redis.call('HDEL', hash, key)
                count(at, -1, -size)
            end
            if is_good and moves then
                redis.call('HSET', KEYS[2 + young], key, value)
                count(young, 1, size)
                has_moved, has_answers[young] = true, true
                ages = filled()
            end
            if is_good then return value, cost end
        end
    end
end
local replies = {}
for i = 4, #ARGV, 2 do
    local lease = KEYS[5 + (i - 2) / 2]
    local value, cost = found(ARGV[i], ARGV[i + 1] ~= 'anew')
    if value then
        add('hits', 1)
        if tonumber(cost) then add('saved', tonumber(cost)) end
        replies[#replies + 1] = '=' .. value
    elseif redis.call('SET', lease, ARGV[3], 'NX', 'PX', ARGV[2]) then
        replies[#replies + 1] = 'ask'
    else
        local holder = redis.call('GET', lease) or ''
        local has_failed = holder:byte() == 33
        if holder == ARGV[3] or (has_failed and ARGV[i + 1] == 'anew') then
            redis.call('SET', lease, ARGV[3], 'PX', ARGV[2])
            replies[#replies + 1] = 'ask'
        elseif has_failed then
            replies[#replies + 1] = holder
        else
            replies[#replies + 1] = holder == 'free' and 'free' or 'wait'
        end
    end
end
if has_moved then redis.call('EXPIRE', KEYS[2 + young], ARGV[1]) end
write_changes(kept_s)
return replies
"""
)

# KEYS counters, generations, and the lease of each key; ARGV seconds that an answer is kept, the room in
# bytes, token of the process, milliseconds for which nobody waits after a failure, the name of a next
# generation, the prefix of the key that says that the files of a generation are in use, whether there may
# be files, and for each key the key, what came of it (``kept``, ``failed`` or ``left``), and the
# value without the time, or after a failure that others take, ``!`` with how it failed. That takes the place
# of the lease, also where there is none.
SETTLE_ANSWERS = (
    _SHARED
    + """
local kept_s, room = tonumber(ARGV[1]) or 0, tonumber(ARGV[2]) or 0
local is_begun = false
-- Each generation that begins has a name of its own, in one call too.
local name = tonumber(ARGV[5], 16) or 0
local function next_name()
    name = (name + 1) % 4294967296
    return string.format('%08x', (name - 1) % 4294967296)
end
-- Of the youngest generation: when it was begun, and its bytes without the changes of this call. Read when
-- they are first needed.
local begun, bytes
local function is_young_over(size)
    if not begun then
        begun, bytes = number('begun:' .. young), number('bytes:' .. young)
    end
    local after = bytes + (changes['bytes:' .. young] or 0) + size
    return begun > 0 and (after > room / 4 or begun + kept_s < now)
end
local function begin()
    is_begun, begun = true, nil
    if redis.call('EXISTS', KEYS[2 + young]) == 0 then empty(young, ARGV[6]) end
    redis.call('HSETNX', KEYS[1], 'begun:' .. young, string.format('%d', now))
    if redis.call('HEXISTS', KEYS[1], 'name:' .. young) == 0 then
        redis.call('HSET', KEYS[1], 'name:' .. young, next_name())
    end
    redis.call('HSET', KEYS[1], 'young', young)
    if ARGV[7] == '1' then
        local name = redis.call('HGET', KEYS[1], 'name:' .. young)
        redis.call('SET', ARGV[6] .. name, '1', 'EX', 2 * kept_s)
    end
end
local ages, kept_at = filled(), string.format('%d', now)
local function forget(key, age)
    local at, hash = generation(age)
    local before = redis.call('HGET', hash, key)
    if before then
        redis.call('HDEL', hash, key)
        count(at, -1, -size_of(key, before))
    end
end
local function keep(key, value)
    for _, age in ipairs(ages) do
        if age > 0 then forget(key, age) end
    end
    value = kept_at .. value
    local size = size_of(key, value)
    if is_young_over(size) then
        forget(key, 0)
        young = (young + 1) % 4
        empty(young, ARGV[6])
        is_begun = false
    end
    if not is_begun then begin() end
    local hash = KEYS[2 + young]
    -- Most answers are new.
    if redis.call('HSETNX', hash, key, value) == 0 then
        forget(key, 0)
        redis.call('HSET', hash, key, value)
    end
    if not has_answers[young] or ages[1] ~= 0 then
        has_answers[young] = true
        ages = filled()
    end
    count(young, 1, size)
    add('kept', 1)
end
for i = 8, #ARGV, 3 do
    local lease = KEYS[5 + (i - 5) / 3]
    if ARGV[i + 1] == 'kept' then keep(ARGV[i], ARGV[i + 2]) end
    local holder = redis.call('GET', lease) or ''
    local is_shared = ARGV[i + 1] == 'failed' and ARGV[i + 2] ~= ''
    if holder == ARGV[3] or (is_shared and (holder == '' or holder == 'free')) then
        if ARGV[i + 1] == 'failed' then
            redis.call('SET', lease, is_shared and ARGV[i + 2] or 'free', 'PX', ARGV[4])
        else
            redis.call('DEL', lease)
        end
    end
end
if is_begun then
    redis.call('EXPIRE', KEYS[2 + young], ARGV[1])
end
write_changes(kept_s)
return 1
"""
)

# KEYS the leases; ARGV token of the process, milliseconds. Returns how many it still has.
RENEW_LEASES = """
-- despite a full server
local renewed = 0
for _, lease in ipairs(KEYS) do
    if redis.call('GET', lease) == ARGV[1] then
        renewed = renewed + redis.call('PEXPIRE', lease, ARGV[2])
    end
end
return renewed
"""

# KEYS counters, generations; ARGV the prefix as above. Deletes the oldest generation that has an answer, and
# returns how many it had.
SHRINK_ANSWERS = (
    """
-- despite a full server
"""
    + _SHARED
    + """
for age = 3, 0, -1 do
    local at, hash = generation(age)
    local entries = redis.call('HLEN', hash)
    if entries > 0 then
        empty(at, ARGV[1])
        write_changes()
        return entries
    end
end
return 0
"""
)

# KEYS counters, generations; ARGV the prefix as above. Returns how many answers there were.
CLEAR_ANSWERS = (
    """
-- despite a full server
"""
    + _SHARED
    + """
local entries = 0
for at = 0, 3 do
    entries = entries + redis.call('HLEN', KEYS[2 + at])
    local name = redis.call('HGET', KEYS[1], 'name:' .. at)
    if name then redis.call('DEL', ARGV[1] .. name) end
    redis.call('UNLINK', KEYS[2 + at])
end
redis.call('DEL', KEYS[1])
return entries
"""
)
