"""The names of a fleet's queues, and the parser of the names that a user gives."""

from __future__ import annotations

__all__ = [
    "BEHIND",
    "BRANCHES_QUEUE",
    "CONTROL_QUEUE",
    "NO_CONSUMER",
    "QUEUES",
    "TAKEN",
    "TURNS",
    "TURNS_OF_A_RUN",
    "UNACKED",
    "UNACKED_INDEX",
    "backlogs_of",
    "parse_queues",
]

# Control tasks have a queue of their own, which workers poll first: a collect that waits behind
# thousands of branches would hold up the window.
CONTROL_QUEUE = "fanout.control"
BRANCHES_QUEUE = "fanout.branches"
# What to tell whose work is in the queues of a fleet without workers.
NO_CONSUMER = "no worker is consuming: start one with `fanout worker`"

# The most messages of a run in the queue of branches at once. With fewer, idle workers learn of a
# new run one after the other; with more, a new run waits longer for its turn.
TURNS_OF_A_RUN = 4
# For the runs that have more messages (fanout.stores.redis.turn_scripts): a key with the turns of
# each run in that queue, and a list with an entry for each message in a backlog that could be taken.
TURNS = f"{BRANCHES_QUEUE}.turns"
BEHIND = f"{BRANCHES_QUEUE}.behind"
# The number of taken messages of each run with max_workers.
TAKEN = f"{BRANCHES_QUEUE}.taken"

# The keys of kombu's Redis transport for messages that workers have taken.
UNACKED = "unacked"
UNACKED_INDEX = "unacked_index"

# In the order in which a worker polls them.
QUEUES = (CONTROL_QUEUE, BRANCHES_QUEUE)

_PREFIX = "fanout."


def backlogs_of(run_id: str) -> tuple[str, str]:
    """Return the keys of the lists of a run's messages that wait for a turn: branches, and nodes.

    Nodes, the calls of a reduce, have the next turns.
    """
    backlog = f"{BRANCHES_QUEUE}.of.{run_id}"
    return backlog, f"{backlog}.nodes"


def parse_queues(names: str) -> tuple[str, ...]:
    """Return the queues that a list such as ``control,branches`` names, control first.

    Raises:
        ValueError: A name is unknown, or the list is empty.
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
