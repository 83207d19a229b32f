"""Lua scripts for runs.

The server runs a script atomically, in one round trip. Each script that writes data of a run first
checks that the run exists: a late step leaves no data of a deleted run.
"""

from __future__ import annotations

from fanout.core.records import TERMINAL

__all__ = [
    "DELETE_RUN",
    "END_RUN",
    "FIX_RATIO",
    "HALT",
    "NOTICE",
    "PAUSE",
    "PUT_BLOB",
    "PUT_PIECE",
    "PUT_RESULT",
    "REOPEN_RUN",
    "SET_STATUS",
]

# The final statuses, as a Lua table for scripts of runs and shards.
ENDED = f"local ended = {{{', '.join(f'{status} = true' for status in sorted(TERMINAL))}}}"

# Whether a step is late: it began at an opening of the run (RunRecord.opening) that a retry has ended; '' is
# any. The first key is the run.
LATE = """
local function is_late(opening)
    if opening == '' then return false end
    return tonumber(opening) ~= tonumber(redis.call('HGET', KEYS[1], 'reopened_at') or 0)
end
"""

# KEYS run, mark, active, passages; ARGV ttl, run id. From now on there is no such run: no script writes to
# it, and its data can be deleted. The mark and the entry among the active runs stay until that is done,
# as the deleting process may die. Returns the run's last stage; -1: there is no such run, and no
# data of one.
DELETE_RUN = """
-- despite a full server
local last = tonumber(redis.call('GET', KEYS[2]) or -1)
if redis.call('EXISTS', KEYS[1]) == 0 then return last end
local run = redis.call('HMGET', KEYS[1], 'stage', 'base_stage', 'ahead')
for i = 1, 3 do last = math.max(last, tonumber(run[i] or 0) or 0) end
redis.call('SET', KEYS[2], last, 'EX', ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
-- Which indexes it has used must be known until the end of its deletion.
local passages = redis.call('HGET', KEYS[1], 'passages')
if passages then redis.call('SET', KEYS[4], passages, 'EX', ARGV[1]) end
redis.call('DEL', KEYS[1])
return last
"""

# KEYS run, active, totals of runs; ARGV status, ended at, error, ttl, run id, opening. Returns whether this
# call ended the run. A halt decides the status: the caller may have read the run before it.
END_RUN = f"""
{ENDED}
{LATE}
if is_late(ARGV[6]) then return 0 end
redis.call('SREM', KEYS[2], ARGV[5])
local status = redis.call('HGET', KEYS[1], 'status')
if not status or ended[status] then return 0 end
local final = redis.call('HGET', KEYS[1], 'halt') or ARGV[1]
redis.call('HSET', KEYS[1], 'status', final, 'ended_at', ARGV[2])
-- Clients also write these totals: a number that one has damaged must not keep a run from ending.
redis.pcall('HINCRBY', KEYS[3], 'ended:' .. final, 1)
if ARGV[3] ~= '' then redis.call('HSETNX', KEYS[1], 'error', ARGV[3]) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""

# KEYS run; ARGV status, error, opening. Returns whether this call halted the run.
HALT = f"""
-- despite a full server
{ENDED}
{LATE}
local status = redis.call('HGET', KEYS[1], 'status')
if not status or ended[status] or is_late(ARGV[3]) then return 0 end
if redis.call('HSETNX', KEYS[1], 'halt', ARGV[1]) == 0 then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[2]) end
return 1
"""

# KEYS run; ARGV notice ('' is none), opening. Returns whether it was written: not once the run has ended.
NOTICE = f"""
{ENDED}
{LATE}
local status = redis.call('HGET', KEYS[1], 'status')
if not status or ended[status] or is_late(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'notice', ARGV[1])
return 1
"""

# KEYS run; ARGV 1 to pause, 0 to go on. Returns whether it changed.
PAUSE = f"""
-- despite a full server
{ENDED}
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
local was = 0
if ARGV[1] == '0' then was = redis.call('HDEL', KEYS[1], 'paused') end
if ended[status] then return 0 end
if ARGV[1] == '0' then return was end
if redis.call('HEXISTS', KEYS[1], 'halt') == 1 then return 0 end
return redis.call('HSETNX', KEYS[1], 'paused', 1)
"""

# KEYS run, blob, and keys to delete; ARGV blob, ttl, opening. The first blob stands. Returns 1; 0: there is
# no such run; -1: it is late, and was not written.
PUT_BLOB = f"""
{LATE}
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if is_late(ARGV[3]) then return -1 end
redis.call('SET', KEYS[2], ARGV[1], 'NX', 'EX', ARGV[2])
if #KEYS > 2 then redis.call('DEL', unpack(KEYS, 3)) end
return 1
"""

# KEYS run, result, writers; ARGV result, ttl, writer ('' has no pieces), opening. The first result stands.
# Returns whether this one does; -1: there is no such run.
PUT_RESULT = f"""
{ENDED}
{LATE}
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if ended[status] or is_late(ARGV[4]) then return 0 end
if ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[3]) == 0 then return 0 end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'EX', ARGV[2]) then return 1 end
return 0
"""

# KEYS run, result, writers, piece; ARGV piece, ttl, writer, number, opening. Returns whether it was written:
# not once the run has ended, or has a result; -1: there is no such run.
PUT_PIECE = f"""
{ENDED}
{LATE}
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return -1 end
if ended[status] or is_late(ARGV[5]) or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('SET', KEYS[4], ARGV[1], 'EX', ARGV[2])
local count = tonumber(redis.call('HGET', KEYS[3], ARGV[3]) or 0)
redis.call('HSET', KEYS[3], ARGV[3], math.max(count, tonumber(ARGV[4]) + 1))
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
"""

# KEYS run, active, stage 0, and keys to delete; ARGV ttl, run id, kinds to retry. Returns whether
# this call reopened it. A late step from before may write one stage more than there are: that one, too,
# is not of the next reduce.
REOPEN_RUN = f"""
{ENDED}
local status = redis.call('HGET', KEYS[1], 'status')
if not status or not ended[status] then return 0 end
local begun = redis.call('HMGET', KEYS[1], 'stage', 'ahead', 'base_stage')
local stage = math.max(tonumber(begun[1] or 0), tonumber(begun[2] or 0), tonumber(begun[3] or 0))
redis.call('HSET', KEYS[1], 'base_stage', stage + 1)
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local times = redis.call('HMGET', KEYS[1], 'ended_at', 'idle_s')
local idle_s = tonumber(times[2] or 0) + math.max(0, now - tonumber(times[1] or now))
redis.call('HSET', KEYS[1], 'status', 'running', 'stage', 0, 'retry', ARGV[3],
    'reopened_at', string.format('%.6f', now), 'idle_s', string.format('%.6f', idle_s))
redis.call('HDEL', KEYS[1], 'halt', 'error', 'ended_at', 'paused', 'deadline_at', 'ahead')
redis.call('HSET', KEYS[3], 'opened', 0)
redis.call('HDEL', KEYS[3], 'heals')
for kind in string.gmatch(ARGV[3], '[^,]+') do
    redis.call('HSET', KEYS[3], 'again:' .. kind, redis.call('HGET', KEYS[3], 'kind:' .. kind) or 0)
end
redis.call('DEL', unpack(KEYS, 4))
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
return 1
"""

# KEYS run; ARGV status, stage ('' leaves it; it only rises), opening. Returns whether the status was set: not
# for a stage that a retry has discarded.
SET_STATUS = f"""
{ENDED}
{LATE}
local status = redis.call('HGET', KEYS[1], 'status')
if not status or ended[status] or is_late(ARGV[3]) then return 0 end
local stage = tonumber(ARGV[2])
local base = tonumber(redis.call('HGET', KEYS[1], 'base_stage') or 0)
if stage and stage > 0 and stage <= base then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[1])
local before = tonumber(redis.call('HGET', KEYS[1], 'stage') or 0)
if stage and stage > before then redis.call('HSET', KEYS[1], 'stage', stage) end
return 1
"""

# KEYS run; ARGV bytes per token, reduce. Returns the first that was fixed for this reduce of the run.
FIX_RATIO = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local field = ARGV[2] == '' and 'bytes_per_token' or 'bytes_per_token:' .. ARGV[2]
redis.call('HSETNX', KEYS[1], field, ARGV[1])
return redis.call('HGET', KEYS[1], field)
"""
