"""The Lua scripts for budgets: see ``fanout.stores.redis.run_scripts``."""

from __future__ import annotations

__all__ = ["HOLD_BUDGET", "REPORT_BUDGET", "SET_BUDGET"]

# The sums of a budget, as locals, and a day's new begin.
_BUDGET = """
local own, ttl_s = 'p:' .. ARGV[1], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local names = {'usd', 'calls', 'tokens'}
local limits, map_limits = {}, {}
for i = 1, 3 do limits[i], map_limits[i] = ARGV[4 + i] or '', ARGV[7 + i] or '' end
if run then
    if redis.call('EXISTS', run) == 0 then return {} end
    local of = redis.call('HMGET', run, 'budget_usd', 'budget_calls', 'budget_tokens',
        'budget_map_usd', 'budget_map_calls', 'budget_map_tokens')
    for i = 1, 3 do
        limits[i] = of[i] or ''
        map_limits[i] = of[3 + i] or limits[i]
    end
end
local function text(number) return string.format('%.0f', number) end
local kinds, fields = {'spent', 'unsure', 'held', 'guessed', 'reduced'}, {}
for _, kind in ipairs(kinds) do
    for _, name in ipairs(names) do fields[#fields + 1] = kind .. ':' .. name end
end
local stored, sums = redis.call('HMGET', KEYS[1], unpack(fields)), {}
for k in ipairs(kinds) do
    sums[k] = {}
    for i = 1, 3 do sums[k][i] = tonumber(stored[3 * (k - 1) + i] or 0) or 0 end
end
local spent, unsure, held, guessed, reduced = unpack(sums)
local function count_reduced(i, more)
    if more == 0 then return end
    reduced[i] = math.max(0, reduced[i] + more)
    redis.call('HSET', KEYS[1], 'reduced:' .. names[i], text(reduced[i]))
end
-- What the reduce has used is no longer kept for it.
local function free_kept()
    for i = 1, 3 do
        local limit, of_map = tonumber(limits[i]), tonumber(map_limits[i])
        if limit and of_map then map_limits[i] = text(math.min(limit, of_map + reduced[i])) end
    end
end
local function parsed(record)
    local number, state, reported, h1, h2, h3, s1, s2, s3, g1, g2, g3, granted = record:match(
        '^(%d+) (%l) (%d+%.?%d*) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d*)$')
    if not number then return nil end
    return {number = tonumber(number), state = state, reported = tonumber(reported),
        held = {tonumber(h1), tonumber(h2), tonumber(h3)},
        spent = {tonumber(s1), tonumber(s2), tonumber(s3)},
        guessed = {tonumber(g1), tonumber(g2), tonumber(g3)}, granted = granted}
end
local function written(one)
    local parts = {text(one.number), one.state, string.format('%.3f', one.reported)}
    for i = 1, 3 do parts[3 + i] = text(one.held[i]) end
    for i = 1, 3 do parts[6 + i] = text(one.spent[i]) end
    for i = 1, 3 do parts[9 + i] = text(one.guessed[i]) end
    return table.concat(parts, ' ') .. ' ' .. one.granted
end
local function each(act)
    local flat = redis.call('HGETALL', KEYS[1])
    for i = 1, #flat, 2 do
        if flat[i]:sub(1, 2) == 'p:' then
            local one = parsed(flat[i + 1])
            if one then act(flat[i], one) else redis.call('HDEL', KEYS[1], flat[i]) end
        end
    end
end
local function write_sums()
    local pairs_of = {}
    for k, of in ipairs({spent, unsure, held, guessed}) do
        for i = 1, 3 do
            pairs_of[#pairs_of + 1] = fields[3 * (k - 1) + i]
            pairs_of[#pairs_of + 1] = text(of[i])
        end
    end
    redis.call('HSET', KEYS[1], unpack(pairs_of))
    if redis.call('TTL', KEYS[1]) < ttl_s / 2 then redis.call('EXPIRE', KEYS[1], ttl_s) end
end
-- What is reserved for calls of batches, by the day on which it was; these days count.
local today, days = text(math.floor(now / 86400)), 3
local function batched(name, day) return table.concat({'batched', name, day}, ':') end
if not run then
    local last = redis.call('HGET', KEYS[1], 'day')
    if last ~= today then
        redis.call('HSET', KEYS[1], 'day', today)
        redis.call('HDEL', KEYS[1], 'full')
        spent, unsure, guessed = {0, 0, 0}, {0, 0, 0}, {0, 0, 0}
        for i, name in ipairs(names) do
            for back = 0, days - 1 do
                local day = (tonumber(last) or tonumber(today)) - back
                local field = batched(name, text(day))
                if day > tonumber(today) - days then
                    unsure[i] = unsure[i] + (tonumber(redis.call('HGET', KEYS[1], field) or 0) or 0)
                else
                    redis.call('HDEL', KEYS[1], field)
                end
            end
        end
        local function forget(name, one)
            local is_idle = one.held[1] + one.held[2] + one.held[3] == 0
            if (one.state == 'd' or is_idle) and one.reported + 86400 < now and name ~= own then
                redis.call('HDEL', KEYS[1], name)
            elseif one.state == 'd' then
                one.held = {0, 0, 0}
                redis.call('HSET', KEYS[1], name, written(one))
            end
        end
        each(forget)
        write_sums()
    end
end
local function fits(of, at, left_at)
    for i = 1, 3 do
        local most = tonumber(ARGV[at + i]) + tonumber(ARGV[left_at + i])
        if of[i] ~= '' and spent[i] + unsure[i] + held[i] + most > tonumber(of[i]) then
            return false
        end
    end
    return true
end
-- Notes that calls of a day wait for the next one: what is used leaves no room for them.
local function note_full(of, at)
    local is_full = false
    for i = 1, run and 0 or 3 do
        local most, limit = tonumber(ARGV[at + i]), tonumber(of[i])
        if limit and most > limit then return end
        is_full = is_full or limit and spent[i] + unsure[i] + most > limit
    end
    if is_full then redis.call('HSET', KEYS[1], 'full', string.format('%.3f', now)) end
end
"""
_REPLY = """
local reply = {granted}
for _, sums in ipairs({limits, map_limits}) do
    for i = 1, 3 do reply[#reply + 1] = sums[i] end
end
for _, sums in ipairs({spent, unsure, held, guessed}) do
    for i = 1, 3 do reply[#reply + 1] = text(sums[i]) end
end
return reply
"""

# KEYS budget, and its run if it is that of one; ARGV session, number, seconds without a report after
# which a session is dead, ttl, limits of all calls (US dollars in billionths, calls, tokens; '' for none),
# limits of the branches, and of the session what it holds, what it has spent, the part of this that is a
# bound, as what its calls have used is unknown, the part that is of the reduce, and for each call that it
# asks for the most that this can use, 1 if it is of the reduce, and what is to be left for calls that follow
# it.
# Of the budget of a run, the record of the run has the limits. Returns {} if there is no such run; else
# a text of 1 and 0, whether each call is granted, limits, limits of the branches, spent, unsure, held, and
# guessed: the part of spent that is a bound. The limits of the branches leave what is kept for the reduce; as
# this is used, they grow.
#
# The budget is a hash: the sums (``spent:``, ``unsure:``, ``held:``, ``guessed:``), each session as ``p:``,
# with ``number state reported held spent guessed granted``, each session with calls of the reduce as ``r:``,
# with what these have used (``reduced:`` is the sum since the last retry), and of a day ``full``: when a call
# last found that it must wait for the next day. A session reports sums and not changes: so a report that
# was lost does no harm, and one that arrives twice, or late, is known by its number. What a session
# holds is free again only if it says so. That of a dead one counts as used (``unsure``), as its calls
# may have been billed, until it reports again. If nobody has reported for so long, the server may have
# been unreachable: then all sessions get as much time again.
#
# The budget of a day has no run. It begins anew at 00:00 UTC; calls in flight then count for the new day, and
# so do those of batches, which may be open for longer than a day.
REPORT_BUDGET = f"""
local run = KEYS[2]
{_BUDGET}
local dies_after_s = tonumber(ARGV[3])
local number = tonumber(ARGV[2])
local record = redis.call('HGET', KEYS[1], own)
local before = record and parsed(record)
local granted = ''
if before and before.number >= number then
    granted = before.number == number and before.granted or ''
    free_kept()
else
    local one = {{number = number, state = 'a', reported = now,
        held = {{}}, spent = {{}}, guessed = {{}}, granted = ''}}
    for i = 1, 3 do
        one.held[i] = tonumber(ARGV[10 + i])
        one.spent[i] = tonumber(ARGV[13 + i])
        one.guessed[i] = tonumber(ARGV[16 + i])
        if before then
            local sums = before.state == 'a' and held or unsure
            sums[i] = math.max(0, sums[i] - before.held[i])
        end
        spent[i] = spent[i] + math.max(0, one.spent[i] - (before and before.spent[i] or 0))
        guessed[i] = guessed[i] + math.max(0, one.guessed[i] - (before and before.guessed[i] or 0))
        held[i] = held[i] + one.held[i]
    end
    local of_reduce = {{tonumber(ARGV[20]), tonumber(ARGV[21]), tonumber(ARGV[22])}}
    if run and of_reduce[1] + of_reduce[2] + of_reduce[3] > 0 then
        local name = 'r:' .. ARGV[1]
        local was, i = redis.call('HGET', KEYS[1], name) or '0 0 0', 0
        for part in was:gmatch('%d+') do
            i = i + 1
            if i <= 3 then count_reduced(i, math.max(0, of_reduce[i] - part)) end
        end
        redis.call('HSET', KEYS[1], name, table.concat({{ARGV[20], ARGV[21], ARGV[22]}}, ' '))
    end
    local times = redis.call('HMGET', KEYS[1], 'swept', 'spared')
    local swept, spared = tonumber(times[1] or now), tonumber(times[2] or 0)
    if not times[1] or now - swept > dies_after_s / 4 then
        if now - swept > dies_after_s then
            spared = now + dies_after_s
            redis.call('HSET', KEYS[1], 'spared', string.format('%.3f', spared))
        end
        redis.call('HSET', KEYS[1], 'swept', string.format('%.3f', now))
        local function sweep(name, other)
            local is_alive = other.reported + dies_after_s >= now or name == own
            if other.state ~= 'a' or is_alive then return end
            other.state = 'd'
            for i = 1, 3 do
                held[i] = math.max(0, held[i] - other.held[i])
                unsure[i] = unsure[i] + other.held[i]
            end
            redis.call('HSET', KEYS[1], name, written(other))
        end
        if now >= spared then each(sweep) end
    end
    free_kept()
    local verdicts = {{}}
    for at = 23, #ARGV - 6, 7 do
        local of = ARGV[at + 3] == '1' and limits or map_limits
        local is_granted = fits(of, at - 1, at + 3)
        if is_granted then
            for i = 1, 3 do
                local most = tonumber(ARGV[at + i - 1])
                held[i], one.held[i] = held[i] + most, one.held[i] + most
            end
        else
            note_full(of, at - 1)
        end
        verdicts[#verdicts + 1] = is_granted and '1' or '0'
    end
    granted = table.concat(verdicts)
    one.granted = granted
    redis.call('HSET', KEYS[1], own, written(one))
    write_sums()
end
{_REPLY}
"""

# KEYS budget, calls that are held, and its run if it is that of one; ARGV id of the call, 1 to hold the
# most that it can use and 0 to settle it, 0, and as of REPORT_BUDGET from the ttl to the limits of the
# branches; then the most that it can use, or what it has used ('' for unknown: then what was held), 1 if
# it is of the reduce, the part of what it has used that is a bound, and what is to be left for calls that
# follow it. Returns as REPORT_BUDGET does, of this one call. It is for calls that no process waits for: what
# they can use counts as used (``unsure``) until they are settled. Each step counts once.
#
# The calls that are held for the budget of a day are in one key a day, as some are never settled: after three
# days they count no more. The ``batched:`` sums are those of each day. What is held for a call of the reduce
# ends with ``r``.
HOLD_BUDGET = f"""
local run = KEYS[3]
{_BUDGET}
local function key_of(day) return run and KEYS[2] or KEYS[2] .. ':' .. day end
local known, held_on, granted = false, today, '1'
for back = 0, run and 0 or days - 1 do
    local day = text(tonumber(today) - back)
    local found = not known and redis.call('HGET', key_of(day), ARGV[1])
    if found then known, held_on = found, day end
end
local function count_batched(i, amount)
    if run then return end
    local field = batched(names[i], held_on)
    local sum = (tonumber(redis.call('HGET', KEYS[1], field) or 0) or 0) + amount
    if sum > 0 then
        redis.call('HSET', KEYS[1], field, text(sum))
    else
        redis.call('HDEL', KEYS[1], field)
    end
end
free_kept()
if ARGV[2] == '1' and not known then
    local of = ARGV[14] == '1' and limits or map_limits
    if fits(of, 10, 17) then
        for i = 1, 3 do
            local most = tonumber(ARGV[10 + i])
            unsure[i] = unsure[i] + most
            count_batched(i, most)
            if run and ARGV[14] == '1' then count_reduced(i, most) end
        end
        local key, mark = key_of(today), ARGV[14] == '1' and ' r' or ''
        redis.call('HSET', key, ARGV[1], table.concat({{ARGV[11], ARGV[12], ARGV[13]}}, ' ') .. mark)
        local ends_s = (tonumber(today) + days) * 86400 - now
        redis.call('EXPIRE', key, run and ttl_s or math.max(1, math.ceil(ends_s)))
        write_sums()
    else
        granted = '0'
        note_full(of, 10)
    end
elseif ARGV[2] ~= '1' and known then
    local i = 0
    for part in known:gmatch('%d+') do
        i = i + 1
        if i > 3 then break end
        local most = tonumber(part)
        unsure[i] = math.max(0, unsure[i] - most)
        local used = tonumber(ARGV[10 + i])
        spent[i] = spent[i] + (used or most)
        if run and known:sub(-1) == 'r' then count_reduced(i, (used or most) - most) end
        guessed[i] = guessed[i] + (used and tonumber(ARGV[14 + i]) or used and 0 or most)
        count_batched(i, -most)
    end
    redis.call('HDEL', key_of(held_on), ARGV[1])
    write_sums()
end
{_REPLY}
"""

# KEYS run, its budget; ARGV ttl, number of fields to delete, these, and fields with their values. What is
# kept for the reduce is then for a new one. Returns whether there is such a run.
SET_BUDGET = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local last = math.min(#ARGV, 2 + math.max(0, tonumber(ARGV[2])))
for i = 3, last do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = last + 1, #ARGV - 1, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], 'reduced:usd', 'reduced:calls', 'reduced:tokens')
return 1
"""
