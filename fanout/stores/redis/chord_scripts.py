"""Lua scripts for chords that write nothing once their run is deleted.

A chord's keys contain its run's id, and Celery recreates them for a member that returns late. So
Celery's script also gets the run's key, after its own keys, and checks that first. Celery's other
chord scripts only change existing keys.
"""

from __future__ import annotations

__all__ = ["ADD_MEMBERS", "SET_SIZE", "count_of_run"]

# KEYS results, members, claim, run; ARGV index, task id and result of each. Stores what Celery's own
# script stores of a returned member before it counts. Adds nothing to a completed chord, or if the
# run is deleted.
ADD_MEMBERS = """
if redis.call('EXISTS', KEYS[4]) == 0 then return 0 end
if redis.call('GET', KEYS[3]) == 'done' then return 0 end
for i = 1, #ARGV, 3 do
    if redis.call('SADD', KEYS[2], ARGV[i + 1] .. ':' .. ARGV[i]) == 1 then
        redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 2])
    end
end
return 1
"""

# KEYS run; ARGV key of the size, key of the claim, size, ttl. As Celery does it, in one step. The
# chord's keys are no KEYS: a client may write them, but call nothing on them.
SET_SIZE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DEL', ARGV[2])
redis.call('SET', ARGV[1], ARGV[3], 'EX', ARGV[4])
return 1
"""


def count_of_run(script: str) -> str:
    """Return Celery's script that counts a member, changed to count none of a deleted run.

    It then returns the same as for a completed chord.
    """
    return f"if redis.call('EXISTS', KEYS[7]) == 0 then return {{-1, 0, 0, 0}} end\n{script}"
