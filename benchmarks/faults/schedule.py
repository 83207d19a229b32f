"""What breaks, and when: a pure function of a seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from faults.model_outages import OUTAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["KINDS", "OUTAGES", "REFUSALS", "WORKER_KINDS", "Fault", "FleetShape", "make_schedule"]

# The kinds that strike one worker; all others strike the server or the client.
WORKER_KINDS = {
    "kill_worker": "SIGKILL of a worker and its children",
    "kill_child": "SIGKILL of one child of a prefork worker",
    "terminate_worker": "SIGTERM, then SIGKILL after a short grace, as Kubernetes does",
    "stop_short": "SIGSTOP of a worker, and SIGCONT before its lease has ended",
    "stop_long": "SIGSTOP of a worker, and SIGCONT when its lease has long ended",
    "cut_network": "the link of a worker's network namespace goes down for some seconds",
    "no_threads": "a worker can start no more threads for some seconds",
    "no_descriptors": "a worker can open no more files or connections for some seconds",
}
# The server answers, and refuses writes for some seconds: what it says, and how it comes to that.
REFUSALS = {
    "refuse_disk": ("MISCONF", "its snapshot cannot be written"),
    "refuse_replicas": ("NOREPLICAS", "min-replicas-to-write, and there are none"),
    "refuse_script": ("BUSY", "a script that does not end, until it is killed"),
    "refuse_rights": ("NOPERM", "the user's ACL has no writes"),
}
KINDS = {
    **WORKER_KINDS,
    "restart_server": "SIGTERM of the server, then a start on the same data",
    "kill_server": "SIGKILL of the server, then a start on the same data",
    "pause_server": "SIGSTOP of the server, then SIGCONT",
    "reset_connections": "the server drops all its clients",
    "kill_client": "SIGKILL of the client; another one resumes the run",
    **{kind: f"{says}: {how}" for kind, (says, how) in REFUSALS.items()},
    "unmount_storage": "FANOUT_STORAGE is an empty folder for some seconds",
    **OUTAGES,
}


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that breaks.

    Attributes:
        number: From 0, in the order of time.
        kind: One of KINDS.
        at_s: Seconds after the first call of the run.
        slot: The place in the fleet whose worker it strikes; None where it strikes no worker.
        pick: Picks a child: this number modulo the number of children.
        lasts_s: How long something is stopped, cut off or down, or what grace it has.
        replaced_s: Seconds after which what has died is replaced.
    """

    number: int
    kind: str
    at_s: float
    slot: int | None = None
    pick: int = 0
    lasts_s: float = 0.0
    replaced_s: float = 0.0


class FleetShape(msgspec.Struct, frozen=True, kw_only=True):
    """What can break.

    Attributes:
        workers: Places for workers.
        prefork: How many of them, the last ones, run a prefork pool.
        lease_s: Seconds that a worker keeps its messages without renewing them.
    """

    workers: int = 3
    prefork: int = 1
    lease_s: float = 5.0


def make_schedule(
    seed: int, fleet: FleetShape, *, faults: int, gap_s: float, kinds: Sequence[str] = tuple(KINDS)
) -> list[Fault]:
    """Return ``faults`` faults, on average ``gap_s`` seconds apart.

    The kinds are dealt like cards, so that each has had its turn before one comes again.
    """
    dice = random.Random(seed)  # noqa: S311 - the same seed must give the same schedule
    playable = [kind for kind in kinds if kind != "kill_child" or fleet.prefork]
    deck = _dealt(playable, dice)
    schedule = []
    at_s = 0.0
    for number in range(faults):
        at_s += gap_s * dice.uniform(0.4, 1.6)
        schedule.append(_fault(number, next(deck), at_s, fleet, dice))
    return schedule


def _dealt(kinds: Sequence[str], dice: random.Random) -> Iterator[str]:
    while True:
        hand = sorted(kinds)
        dice.shuffle(hand)
        yield from hand


def _fault(number: int, kind: str, at_s: float, fleet: FleetShape, dice: random.Random) -> Fault:
    least, most = _bounds(kind, fleet.lease_s)
    slots = range(fleet.workers)
    if kind == "kill_child":
        slots = range(fleet.workers - fleet.prefork, fleet.workers)
    slot = dice.choice(slots)
    return Fault(
        number=number,
        kind=kind,
        at_s=round(at_s, 3),
        slot=slot if kind in WORKER_KINDS else None,
        pick=dice.randrange(1 << 16),
        lasts_s=round(dice.uniform(least, most), 3),
        replaced_s=round(dice.uniform(0.2, 4.0), 3),
    )


def _bounds(kind: str, lease_s: float) -> tuple[float, float]:
    """Return the least and the most seconds that a fault of a kind lasts."""
    return {
        "terminate_worker": (0.2, 2.0),
        # A worker renews a lease when a quarter of it is over: three quarters are left at least.
        "stop_short": (0.05 * lease_s, 0.6 * lease_s),
        "stop_long": (1.4 * lease_s, 2.2 * lease_s),
        "cut_network": (0.3 * lease_s, 2.0 * lease_s),
        "restart_server": (0.1, 2.0),
        "kill_server": (0.1, 2.0),
        "pause_server": (0.1 * lease_s, 1.5 * lease_s),
        "no_threads": (0.3 * lease_s, 2.0 * lease_s),
        "no_descriptors": (0.3 * lease_s, 2.0 * lease_s),
        **dict.fromkeys(REFUSALS, (0.3 * lease_s, 2.0 * lease_s)),
        "unmount_storage": (0.3 * lease_s, 2.0 * lease_s),
        **dict.fromkeys(OUTAGES, (0.5 * lease_s, 3.0 * lease_s)),
    }.get(kind, (0.0, 0.0))
