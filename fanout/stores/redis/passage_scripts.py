"""Lua scripts for the indexes of passages, which runs share."""

from __future__ import annotations

__all__ = ["DROP_PASSAGES", "PUBLISH_PASSAGES", "SHARE_PASSAGES"]

# KEYS pointer; ARGV run id, ttl, prefix of the keys of runs. Says that a run uses an index, and returns its
# name; nil if there is none. A name is that of one writing, so that nobody deletes what another has written.
SHARE_PASSAGES = """
local name = redis.call('GET', KEYS[1])
if not name then return false end
local base = ARGV[3] .. name
if redis.call('HEXISTS', base, 'pieces') == 0 then return false end
redis.call('SADD', base .. ':runs', ARGV[1])
for _, key in ipairs({KEYS[1], base, base .. ':runs'}) do redis.call('EXPIRE', key, ARGV[2]) end
return name
"""

# KEYS pointer, index, its runs; ARGV name, run id, ttl, pieces, digest, prefix of the keys of runs. The first
# complete index stands. Returns the name of the one that does.
PUBLISH_PASSAGES = """
local other = redis.call('GET', KEYS[1])
local name, base = ARGV[1], KEYS[2]
if other and other ~= name and redis.call('HEXISTS', ARGV[6] .. other, 'pieces') == 1 then
    name, base = other, ARGV[6] .. other
else
    redis.call('HSET', base, 'pieces', ARGV[4], 'digest', ARGV[5], 'pointer', KEYS[1])
    redis.call('SET', KEYS[1], name)
end
redis.call('SADD', base .. ':runs', ARGV[2])
for _, key in ipairs({KEYS[1], base, base .. ':runs'}) do redis.call('EXPIRE', key, ARGV[3]) end
return name
"""

# KEYS index, its runs; ARGV run id, name. Says that a run uses an index no more. Returns the number of pieces
# if no other run does: then there is no such index any more, and its pieces can be deleted; else -1.
DROP_PASSAGES = """
-- despite a full server
redis.call('SREM', KEYS[2], ARGV[1])
if redis.call('SCARD', KEYS[2]) > 0 then return -1 end
local found = redis.call('HMGET', KEYS[1], 'pieces', 'pointer')
if not found[1] then return -1 end
if redis.call('GET', found[2]) == ARGV[2] then redis.call('DEL', found[2]) end
redis.call('DEL', KEYS[1], KEYS[2])
return tonumber(found[1]) or 0
"""
