"""The server's Lua for chords, of which nothing must be written when their run is gone.

A chord's keys bear its run's name, and Celery makes them anew for a member that returns late. So
its script is told the run's key, behind the keys that it has, and asks for it first. Its other
scripts about chords change only what is there.
"""

from __future__ import annotations

__all__ = ["SET_SIZE", "count_of_run"]

# KEYS run; ARGV key of the size, key of the claim, size, ttl. As Celery does it, in one step. The
# chord's keys are no KEYS: a client may write them, but call nothing on them.
SET_SIZE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DEL', ARGV[2])
redis.call('SET', ARGV[1], ARGV[3], 'EX', ARGV[4])
return 1
"""


def count_of_run(script: str) -> str:
    """Return Celery's script that counts a member; of a run that is gone, none is counted.

    What it returns then is what it returns for a chord that is done.
    """
    return f"if redis.call('EXISTS', KEYS[7]) == 0 then return {{-1, 0, 0, 0}} end\n{script}"
