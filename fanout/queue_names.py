"""The queues of a fleet: their names, and how a user names them."""

from __future__ import annotations

__all__ = ["BRANCHES_QUEUE", "CONTROL_QUEUE", "QUEUES", "parse_queues"]

# Control tasks have a queue of their own that workers look at first: behind thousands of branches
# a collect would hold up the window.
CONTROL_QUEUE = "fanout.control"
BRANCHES_QUEUE = "fanout.branches"

# In the order in which a worker looks at them.
QUEUES = (CONTROL_QUEUE, BRANCHES_QUEUE)

_PREFIX = "fanout."


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
