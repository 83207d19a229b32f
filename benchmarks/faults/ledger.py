"""The ledger of calls, and what it says: which calls were made twice, why, and what took how long.

A line is ``time pid worker event key``: a call ``start``s, and it ``end``s or is ``stopped``. The
model writes it (faults.model), a kill at any moment leaves whole lines.
"""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Call",
    "Injury",
    "Verdict",
    "analyse",
    "finished_again",
    "most_in_flight",
    "parse",
    "repeats",
]

# An answer that came so shortly before its worker died may not have been written down: the one
# window in which a crash makes a call twice.
_WINDOW_S = 1.0
# While the server is away, an answer waits in its worker; that looks for the server so often.
_RETRY_S = 1.0


class Call(msgspec.Struct, kw_only=True):
    """One call.

    Attributes:
        key: Which branch made it.
        pid: The process.
        worker: The worker's name.
        start: When it began, in seconds since the epoch.
        end: When it ended; None where it never did.
        was_stopped: Whether it ended without an answer, as its worker handed it back.
    """

    key: str
    pid: int
    worker: str
    start: float
    end: float | None = None
    was_stopped: bool = False


class Injury(msgspec.Struct, kw_only=True):
    """What a fault did, in seconds since the epoch.

    Attributes:
        number: The fault.
        kind: Its kind.
        at: When it began.
        until: When it was over; None for what has died for good.
        worker: The worker that it struck; None where it struck none, or a child.
        pid: The child that it struck.
        dead_at: When what it struck was dead; None where it struck nothing dead.
        excuses: Whether a call that it struck may be made twice.
        is_server: Whether the server was away until ``until``.
        skipped: Why nothing was done.
    """

    number: int
    kind: str
    at: float
    until: float | None = None
    worker: str | None = None
    pid: int | None = None
    dead_at: float | None = None
    excuses: bool = False
    is_server: bool = False
    skipped: str | None = None

    def struck(self, call: Call, *, written: float | None = None) -> bool:
        """Whether a call was in flight on what this fault struck, when it did.

        It is so until its end, or until its answer was written for sure.
        """
        if self.pid is not None:
            is_victim = call.pid == self.pid
        else:
            is_victim = self.worker is not None and call.worker == self.worker
        until = inf if self.until is None else self.until
        return is_victim and call.start <= until and (written or call.end or inf) >= self.at


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger says.

    Attributes:
        calls: Calls that began.
        repeated_struck: Calls made again of branches that were in flight on something struck.
        repeated_unwritten: Of these, the first was answered, but so shortly before the fault, or
            while the server was away, that the answer may not have been written.
        repeated_other: Calls made again for no such reason.
        others: The keys of these.
        worker_recovery_s: For each fault that killed something with calls in flight, the longest
            time until one of them ran again.
        call_recovery_s: The same for each of these calls.
        server_recovery_s: For each fault of the server, from when it was back to the next call.
    """

    calls: int
    repeated_struck: int
    repeated_unwritten: int
    repeated_other: int
    others: list[str]
    worker_recovery_s: dict[int, float]
    call_recovery_s: list[float]
    server_recovery_s: dict[int, float]


def parse(lines: Iterable[str]) -> list[Call]:
    """Return the calls of a ledger, in the order in which they began."""
    calls: list[Call] = []
    in_flight: defaultdict[tuple[str, int], list[Call]] = defaultdict(list)
    for line in lines:
        time, pid, worker, event, key = line.split()
        if event == "start":
            call = Call(key=key, pid=int(pid), worker=worker, start=float(time))
            calls.append(call)
            in_flight[key, call.pid].append(call)
        else:
            call = in_flight[key, int(pid)].pop(0)
            call.end = float(time)
            call.was_stopped = event == "stopped"
    return sorted(calls, key=lambda call: call.start)


def repeats(calls: Iterable[Call]) -> dict[str, list[Call]]:
    """Return the calls of each branch that made more than one."""
    by_key: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    return {key: some for key, some in by_key.items() if len(some) > 1}


def finished_again(calls: Iterable[Call], *, mark: str) -> list[str]:
    """Return the keys of steps that were called after a later step of their branch.

    The answer of a step is written down before the next one begins, so that no fault excuses that.

    Args:
        calls: In the order in which they began.
        mark: What each further step adds to the key of its branch.
    """
    reached: defaultdict[str, int] = defaultdict(int)
    again = []
    for call in calls:
        branch = call.key.rstrip(mark)
        step = len(call.key) - len(branch)
        if step < reached[branch]:
            again.append(call.key)
        reached[branch] = max(reached[branch], step)
    return again


def most_in_flight(calls: list[Call], injuries: list[Injury]) -> int:
    """Return how many calls were in flight at once at most, on what no fault had struck.

    A process that is suspended or cut off cannot know that others take its permits.
    """
    done = [injury for injury in injuries if injury.skipped is None]
    changes: list[tuple[float, int]] = []
    for call in calls:
        ends = [injury.at for injury in done if injury.struck(call)]
        ends += [] if call.end is None else [call.end]
        if ends and (end := min(ends)) > call.start:
            changes += [(call.start, 1), (end, -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def analyse(calls: list[Call], injuries: list[Injury], *, ended_at: float) -> Verdict:
    """Return what the calls of a run say, given what was done to it.

    Each call that a fault struck excuses one more call of its branch, and no more than one.
    """
    done = [injury for injury in injuries if injury.skipped is None]
    excusing = [injury for injury in done if injury.excuses]
    struck = unwritten = 0
    others: list[str] = []
    for key, of_key in repeats(calls).items():
        hit = [
            call
            for call in of_key[:-1]
            if any(injury.struck(call, written=_written(call, done)) for injury in excusing)
        ]
        struck += len(hit)
        unwritten += sum(not any(injury.struck(call) for injury in excusing) for call in hit)
        others += [key] * (len(of_key) - 1 - len(hit))
    waits = _waits(calls, done, ended_at)
    return Verdict(
        calls=len(calls),
        repeated_struck=struck,
        repeated_unwritten=unwritten,
        repeated_other=len(others),
        others=others,
        worker_recovery_s={number: max(some) for number, some in waits.items()},
        call_recovery_s=[wait for some in waits.values() for wait in some],
        server_recovery_s=_server_recovery(calls, done),
    )


def _written(call: Call, injuries: list[Injury]) -> float | None:
    """Return when the answer of a call was written for sure; None where it has none."""
    if call.end is None:
        return None
    written = call.end + _WINDOW_S
    for outage in sorted(injuries, key=lambda injury: injury.at):
        if outage.is_server and outage.until and outage.at <= written <= outage.until + _WINDOW_S:
            written = outage.until + _RETRY_S + _WINDOW_S
    return written


def _waits(calls: list[Call], injuries: list[Injury], ended_at: float) -> dict[int, list[float]]:
    """Return, by fault, for each call that died of it, the seconds until it ran elsewhere."""
    waits: defaultdict[int, list[float]] = defaultdict(list)
    for call in calls:
        deaths = [
            (injury.dead_at, injury.number)
            for injury in injuries
            if injury.dead_at is not None and call.start <= injury.dead_at and injury.struck(call)
        ]
        # A worker may be killed whose child was killed before: a call dies once.
        if call.end is None and deaths:
            dead_at, number = min(deaths)
            if not _is_answered(calls, call, dead_at):
                waits[number].append(_wait(calls, call, dead_at, ended_at))
    return waits


def _is_answered(calls: list[Call], cut: Call, dead_at: float) -> bool:
    """Whether another call of a branch had an answer, so that there is nothing to recover."""
    return any(
        call.key == cut.key and not call.was_stopped and (call.end or inf) < dead_at
        for call in calls
    )


def _wait(calls: list[Call], cut: Call, dead_at: float, ended_at: float) -> float:
    again = [
        call.start
        for call in calls
        if call.key == cut.key and call is not cut and (call.end or inf) >= dead_at
    ]
    return max(0.0, min(again, default=ended_at) - dead_at)


def _server_recovery(calls: list[Call], injuries: list[Injury]) -> dict[int, float]:
    """Return, by fault, the seconds from when the server was back until the next call.

    Not where another fault of the server came before that call.
    """
    of_server = [injury for injury in injuries if injury.is_server and injury.until is not None]
    recovery = {}
    for injury in of_server:
        back_at = injury.until or 0.0
        after = min((call.start for call in calls if call.start >= back_at), default=None)
        if after is not None and not any(back_at < other.at < after for other in of_server):
            recovery[injury.number] = after - back_at
    return recovery
