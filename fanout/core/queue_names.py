"""The queues of a fleet: their names, and how a user names them."""

from __future__ import annotations

__all__ = [
    "BEHIND",
    "BRANCHES_QUEUE",
    "CONTROL_QUEUE",
    "QUEUES",
    "TURNS",
    "TURNS_OF_A_RUN",
    "backlog_of",
    "parse_queues",
]

# Control tasks have a queue of their own that workers look at first: behind thousands of branches
# a collect would hold up the window.
CONTROL_QUEUE = "fanout.control"
BRANCHES_QUEUE = "fanout.branches"

# The messages of a run that are in the queue of branches at once, at most. Fewer, and idle workers
# are told one after the other of a run that has come; more, and it waits longer for its turn.
TURNS_OF_A_RUN = 4
# Beside that queue, of the runs that have more (fanout.stores.redis.turn_scripts): how many turns
# each has there, and a list that is as long as their backlogs together.
TURNS = f"{BRANCHES_QUEUE}.turns"
BEHIND = f"{BRANCHES_QUEUE}.behind"

# In the order in which a worker looks at them.
QUEUES = (CONTROL_QUEUE, BRANCHES_QUEUE)

_PREFIX = "fanout."


def backlog_of(run_id: str) -> str:
    """Return the list of what a run has published and has no turn for yet."""
    return f"{BRANCHES_QUEUE}.of.{run_id}"


def parse_queues(names: str) -> tuple[str, ...]:
    """Return the queues that ``control,branches`` or the like names, control first.

    Raises:
        ValueError: A name is unknown, or there is none.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    full = {name if name.startswith(_PREFIX) else _PREFIX + name for name in given}
    unknown = sorted(full - set(QUEUES))
    if unknown or not full:
        allowed = ", ".join(name.removeprefix(_PREFIX) for name in QUEUES)
        at = f"no queue is called {unknown[0].removeprefix(_PREFIX)!r}" if unknown else "is empty"
        msg = f"{at}; allowed are {allowed} (by comma), also as {', '.join(QUEUES)}"
        raise ValueError(msg)
    return tuple(name for name in QUEUES if name in full)
