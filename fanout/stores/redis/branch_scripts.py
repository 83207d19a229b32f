"""Lua scripts for branches: see ``fanout.stores.redis.run_scripts``."""

from __future__ import annotations

from fanout.core.records import QUANTITIES
from fanout.stores.redis.run_scripts import ENDED

__all__ = [
    "BEGIN",
    "CHECKPOINT",
    "RECORD",
    "RELEASE_CLAIM",
    "SHARE_PERMITS",
]

# KEYS run, live, out, state, parked, holders; ARGV ttl, begins after which a branch may begin only
# alone, whether the run's deadline applies, holder, seconds that a claim lasts, the ttl of the
# holder's beats, and for each branch its position, token, whether it begins alone, and its member
# of ``parked``. Returns the verdict and the deliveries of each branch, and at last when the run was
# reopened (0: never). A repeated begin with the same token is not counted, and extends the claim, which
# is stored as ``token holder until``. Until then, while its holder lives, only RELEASE_CLAIM ends it. A
# worker treats a holder as dead only after a later heartbeat of its own, as the server may have been
# unreachable for all workers.
BEGIN = """
@ended
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local run = redis.call('HMGET', KEYS[1], 'status', 'halt', 'deadline_at', 'paused', 'reopened_at')
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
    if run[2] or ended[run[1]] then return 'halted', 0 end
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
verdicts[#verdicts + 1] = run[5] or '0'
return verdicts
""".replace("@ended", ENDED)

# KEYS run, live, out, state, checkpoints; ARGV ttl, whether the run's deadline applies, holder, seconds
# that a claim lasts, and for each branch its position, token and checkpoint. Returns for each branch
# whether its next call may begin: a verdict of BEGIN. A checkpoint is written only if the delivery still
# has its claim, which lasts longer then; the deliveries so far count as one, as the branch advances.
CHECKPOINT = """
@ended
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local run = redis.call('HMGET', KEYS[1], 'status', 'halt', 'deadline_at', 'paused')
local finished = redis.call('EXISTS', KEYS[3]) == 1
local writes = false
local function verdict(position, token, checkpoint)
    if not run[1] then return 'gone' end
    if finished or redis.call('HEXISTS', KEYS[2], position) == 1 then return 'done' end
    local claim = redis.call('HGET', KEYS[4], 't:' .. position)
    if not claim or claim:match('^%S+') ~= token then return 'held' end
    claim = table.concat({token, ARGV[3], now + tonumber(ARGV[4])}, ' ')
    redis.call('HSET', KEYS[5], position, checkpoint)
    redis.call('HSET', KEYS[4], 'a:' .. position, 1, 't:' .. position, claim)
    writes = true
    if run[2] or ended[run[1]] then return 'halted' end
    if run[3] and ARGV[2] == '1' and now >= tonumber(run[3]) then return 'expired' end
    return run[4] and 'paused' or 'go'
end
local verdicts = {}
for i = 5, #ARGV, 3 do
    verdicts[#verdicts + 1] = verdict(ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
if writes then
    redis.call('EXPIRE', KEYS[4], ARGV[1])
    redis.call('EXPIRE', KEYS[5], ARGV[1])
end
return verdicts
""".replace("@ended", ENDED)

# KEYS run, stage, live, out, totals of the fleet, and checkpoints if there may be some, which are then
# deleted; ARGV ttl, number of branches, number of quantities that follow, the numbers of the branches
# that failed, each with the opening of the run in which it did (see run_scripts.LATE), for each branch its
# position, outcome, kind, bucket of the latency (-1: no call), seconds and calls; for each quantity of usage
# that is not 0 in all branches its name and the values of the branches; then, of runs that call several
# models, for each branch and model the number of the branch, the model, calls and the quantities; with an
# empty name of the model, these are what kept answers had cost. An
# unknown quantity is ``>`` and the known part of it; the kinds ``cut`` and ``rejected``, or both, are of
# an answer that was cut off, or that a judge did not pass, and that was kept. Returns for each branch:
# first (-1: it failed before a retry, and has no outcome of after it), and the number of ended branches of
# the shard, this one included. Only this script counts outcomes, so the sums always match them.
RECORD = """
local quantities = {@quantities}
local recorded, counts, sums, unknown = {}, {}, {}, {}
local least, most = {}, {}
local function known_part(quantity)
    local value = tonumber(quantity)
    return value or tonumber(string.sub(quantity, 2)), value == nil
end
local is_open = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('EXISTS', KEYS[4]) == 0
local ended = redis.call('HLEN', KEYS[3])
local late = {}
if is_open and ARGV[4] ~= '' then
    local reopened_at = tonumber(redis.call('HGET', KEYS[1], 'reopened_at') or 0)
    for number, opening in string.gmatch(ARGV[4], '(%S+) (%S+)') do
        late[tonumber(number)] = tonumber(opening) ~= reopened_at
    end
end
local function add(to, name, quantity)
    to[name] = (to[name] or 0) + tonumber(quantity)
end
local branches = math.min(#ARGV, tonumber(ARGV[2]))
local last = 4 + 6 * branches
local names, firsts, is_named = {}, {}, {}
for _ = 1, math.min(#quantities, tonumber(ARGV[3])) do
    names[#names + 1], firsts[#firsts + 1] = ARGV[last + 1], last + 1
    is_named[ARGV[last + 1]] = true
    last = last + 1 + branches
end
local kept = {cut = {'cut'}, rejected = {'rejected'}, ['cut rejected'] = {'cut', 'rejected'}}
local has_called = false
local function count(i, number)
    local kind, bucket, calls = ARGV[i + 2], ARGV[i + 3], ARGV[i + 5]
    local marks = kept[kind]
    local ok = kind == '' or marks ~= nil
    for _, mark in ipairs(marks or {}) do add(counts, mark, 1) end
    add(counts, ok and 'succeeded' or 'failed', 1)
    if not ok then add(counts, 'kind:' .. kind, 1) end
    if bucket ~= '-1' then
        add(counts, 'took:' .. bucket, 1)
        add(sums, 'took_s', ARGV[i + 4])
        local seconds = tonumber(ARGV[i + 4])
        least[bucket] = math.min(least[bucket] or seconds, seconds)
        most[bucket] = math.max(most[bucket] or seconds, seconds)
    end
    local has_calls = calls ~= '0'
    if has_calls then
        add(counts, 'calls', calls)
        has_called = true
    end
    for j, name in ipairs(names) do
        local value, is_unknown = known_part(ARGV[firsts[j] + number])
        if value ~= 0 or has_calls and not is_unknown then sums[name] = (sums[name] or 0) + value end
        if is_unknown and (ok or has_calls) then unknown['unknown:' .. name] = true end
    end
end
for number = 1, branches do
    local i, first = 6 * number - 1, 0
    if late[number] then
        first = redis.call('HEXISTS', KEYS[3], ARGV[i]) - 1
    elseif is_open and redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 1]) == 1 then
        first = 1
        ended = ended + 1
        count(i, number)
    end
    recorded[#recorded + 1] = first
    recorded[#recorded + 1] = ended
end
for _, name in ipairs(has_called and quantities or {}) do
    if not is_named[name] then sums[name] = 0 end
end
local function save(i)
    add(counts, 'saved:calls', ARGV[i])
    for j, name in ipairs(quantities) do
        local value, is_unknown = known_part(ARGV[i + j])
        add(sums, 'saved:' .. name, value)
        if is_unknown then unknown['saved:unknown:' .. name] = true end
    end
end
for i = last + 1, #ARGV, 3 + #quantities do
    local is_first = recorded[2 * tonumber(ARGV[i]) - 1] == 1
    if is_first and ARGV[i + 1] == '' then
        save(i + 2)
    elseif is_first then
        local of = ':' .. ARGV[i + 1]
        redis.call('HINCRBY', KEYS[2], 'by:calls' .. of, ARGV[i + 2])
        for j, name in ipairs(quantities) do
            local value, is_unknown = known_part(ARGV[i + 2 + j])
            if not is_unknown or value ~= 0 then
                local sum = string.format('%.17g', value)
                redis.call('HINCRBYFLOAT', KEYS[2], 'by:' .. name .. of, sum)
            end
            if is_unknown then redis.call('HSET', KEYS[2], 'by:unknown:' .. name .. of, 1) end
        end
    end
end
-- The shortest and the longest duration of each bucket: a percentile lies between the least and the most.
for bucket, seconds in pairs(most) do
    local names = {'least:' .. bucket, 'most:' .. bucket}
    local before = redis.call('HMGET', KEYS[2], unpack(names))
    if least[bucket] < (tonumber(before[1]) or math.huge) then
        redis.call('HSET', KEYS[2], names[1], string.format('%.17g', least[bucket]))
    end
    if seconds > (tonumber(before[2]) or -1) then
        redis.call('HSET', KEYS[2], names[2], string.format('%.17g', seconds))
    end
end
if next(counts) then redis.call('EXPIRE', KEYS[3], ARGV[1]) end
for _, key in ipairs({KEYS[2], KEYS[5]}) do
    for name, number in pairs(counts) do
        redis.call('HINCRBY', key, name, string.format('%d', number))
    end
    local zeros = {}
    for name, sum in pairs(sums) do
        if sum == 0 then
            zeros[#zeros + 1] = name
        else
            redis.call('HINCRBYFLOAT', key, name, string.format('%.17g', sum))
        end
    end
    -- A sum that is known to be 0 is written once: without a field, it is unknown.
    for j, before in ipairs(zeros[1] and redis.call('HMGET', key, unpack(zeros)) or {}) do
        if not before then redis.call('HSET', key, zeros[j], 0) end
    end
    for name in pairs(unknown) do redis.call('HSET', key, name, 1) end
end
if KEYS[6] then
    for number = 1, branches do
        local position = ARGV[6 * number - 1]
        if not late[number] then redis.call('HDEL', KEYS[6], position, 'p:' .. position) end
    end
end
return recorded
""".replace("@quantities", ", ".join(f"'{name}'" for name in QUANTITIES))

# KEYS state, checkpoints; ARGV position, token, the number to add to the begins: -1 if the call was not
# tried. A branch with a checkpoint keeps one begin: the next delivery then knows that there may be one.
RELEASE_CLAIM = """
-- despite a full server
local claim = redis.call('HGET', KEYS[1], 't:' .. ARGV[1])
if not claim or claim:match('^%S+') ~= ARGV[2] then return 0 end
local begins = redis.call('HINCRBY', KEYS[1], 'a:' .. ARGV[1], ARGV[3])
if begins < 1 and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then
    redis.call('HSET', KEYS[1], 'a:' .. ARGV[1], 1)
end
redis.call('HDEL', KEYS[1], 't:' .. ARGV[1])
return 1
"""

# KEYS holders, and for each run its hash and its permits; ARGV process, seconds without a report after
# which a process is dead, ttl, and for each run max_workers, how many permits the process has and needs
# no fewer of, and how many it could use. Each field of the permits is a process with ``granted wanted
# reported``, and ``spared`` if it has got more time since. Returns for each run how many the process has
# from now on, and how many it should have while others wait for some (max_workers if none waits); -1:
# no such run; -2: its keys are of another type, which must not hold up the other runs.
#
# What is granted together never exceeds max_workers. A process gives up permits only itself: those
# of its calls in flight are not granted to others, until it is dead. If nobody has reported for a
# while, the server may have been unreachable, and each gets as much time again; but once only, as it
# may also be that those who ask do so rarely. A process gets only its part among all live processes
# with its first request for a run, as the others may be about to ask.
SHARE_PERMITS = """
local dies_after_s, ttl_s = tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local function field(granted, could_use, reported)
    return string.format('%d %d %.3f', granted, could_use, reported)
end
local processes
local function part_of(cap)
    processes = processes or math.max(1, redis.call('ZCOUNT', KEYS[1], now, '+inf'))
    return math.ceil(cap / processes)
end
-- The other processes with permits of a run, the sum of these, and whether this process has asked.
local function others_of(permits)
    local flat = redis.call('HGETALL', permits)
    local all, youngest = {}, 0
    for i = 1, #flat, 2 do
        local granted, could_use, reported, spared =
            flat[i + 1]:match('^(%d+) (%d+) (%d+%.%d+)(.*)$')
        if granted then
            local one = {flat[i], tonumber(granted), tonumber(could_use), tonumber(reported), spared}
            youngest = math.max(youngest, one[4])
            all[#all + 1] = one
        else
            redis.call('HDEL', permits, flat[i])
        end
    end
    local was_away = now - youngest > dies_after_s / 3
    local others, sum, has_asked = {}, 0, false
    for _, one in ipairs(all) do
        local name, granted, could_use, reported, spared = unpack(one)
        if name == ARGV[1] then
            has_asked = true
        else
            if was_away and spared == '' then
                redis.call('HSET', permits, name, field(granted, could_use, now) .. ' spared')
            elseif reported + dies_after_s < now then
                redis.call('HDEL', permits, name)
                granted = nil
            end
            if granted then
                sum = sum + granted
                others[#others + 1] = one
            end
        end
    end
    return others, sum, has_asked
end
-- The level up to which all that is wanted can be granted.
local function level_of(cap, wanted, others)
    local wants = {wanted}
    for _, one in ipairs(others) do wants[#wants + 1] = one[3] end
    table.sort(wants)
    local left = cap
    for i, want in ipairs(wants) do
        local share = math.floor(left / (#wants - i + 1))
        if want > share then return share end
        left = left - want
    end
    return cap
end
local function share(run, permits, cap, has, wanted)
    if redis.call('EXISTS', run) == 0 then return -1, 0 end
    local others, theirs, has_asked = others_of(permits)
    local level = level_of(cap, wanted, others)
    local do_others_wait = false
    for _, one in ipairs(others) do
        if one[2] < math.min(one[3], math.max(1, level)) then do_others_wait = true end
    end
    local free = math.max(0, cap - theirs)
    local most = do_others_wait and math.min(wanted, math.max(1, level)) or wanted
    if not has_asked then most = math.min(most, part_of(cap)) end
    local granted = math.max(math.min(has, free), math.min(most, free))
    if granted == 0 and wanted == 0 then
        redis.call('HDEL', permits, ARGV[1])
    else
        redis.call('HSET', permits, ARGV[1], field(granted, wanted, now))
        -- The rest is written only if it changes: reports are frequent, and replicas get each write.
        if redis.call('TTL', permits) < ttl_s / 2 then redis.call('EXPIRE', permits, ttl_s) end
    end
    -- For views.
    local seen = tonumber(redis.call('HGET', run, 'permits') or 0)
    if seen ~= theirs + granted then redis.call('HSET', run, 'permits', theirs + granted) end
    return granted, do_others_wait and level or cap
end
local replies = {}
for i = 1, (#KEYS - 1) / 2 do
    local at = 1 + 3 * i
    local wants = {tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])}
    local is_well, granted, level = pcall(share, KEYS[2 * i], KEYS[2 * i + 1], unpack(wants))
    if not is_well then
        local problem = type(granted) == 'table' and granted.err or tostring(granted)
        if not problem:find('WRONGTYPE') then error(granted) end
        granted, level = -2, 0
    end
    replies[#replies + 1] = granted
    replies[#replies + 1] = level
end
return replies
"""
