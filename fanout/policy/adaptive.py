"""The policy for providers that tell no limit: how many calls a fleet has in flight at once.

A refused call means that there were too many: the window of calls in flight becomes three quarters of
what it was, once for each burst of refusals. It grows by one call for 25 that succeeded, up to the
ceiling where the provider refused before, stays there for a minute, and then tries a tenth more.
(Additive increase, multiplicative decrease, as TCP does: RFC 5681.) A provider that refuses nothing but
becomes slow gets fewer calls, too, unless that makes none of them faster.

Some providers refuse calls at random, however few there are. If fewer at once have not lowered the share of
refused ones, that is noise: the window becomes what it was, and grows, until a larger share is refused.

A provider that takes no calls at all until the next minute has a quota: all calls keep to its pace.

A fleet without refusals has no window, and nothing of this costs it anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.policy.minute_quota import UNKNOWN, MinuteQuota, metered
from fanout.policy.refusal_noise import compared, noisy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CallWindow", "Member", "WindowReport", "are_alone", "reported", "shares", "total_of"]

_DECREASE = 0.75
_SUCCESSES = 25
_PROBE = 1.1
# Seconds without a refusal until more calls than the ceiling are tried, and of a trial that was fine.
_HOLD_S = 60.0
_FINE_S = 10.0
# Refusals of calls that began so soon after a decrease belong to the same burst: not all worker
# processes know of it yet.
_BURST_S = 1.0
# Nor does a provider refuse for too many calls that takes none at all: calls must have succeeded, and
# more than were in flight then, as a multiple of the window.
_MORE = 1.5
# Seconds in which processes bring their calls into a window that has just been opened.
_OPENING_S = 2.0
# Seconds until a process that does not report no longer counts.
_SILENT_S = 5.0
# The average of calls in flight is that of the last minute, in parts of so many seconds; it is believed
# when the window is some seconds old. Many providers count by the minute.
_MEMORY_S = 60.0
_SLICE_S = 5.0
_AVERAGE_S = 10.0
# The longest time between two reports of a fleet that has calls or wants some.
_REPORTS_S = 2.0
# It is no lower than this share of what was refused, as a limit of calls in flight is that itself.
_CLOSE = 0.95
# What becomes of a ceiling that is refused itself.
_BELOW = 0.97
# A window is used if the fleet has this share of it in flight or waiting.
_USED = 0.9
# Fewer calls at once must make them faster by this factor, or the server is not crowded.
_FASTER = 0.9
# Seconds until a slow provider is tried with fewer calls again.
_CALM_S = 600.0
# Refusals for so many seconds, and twice the time of a call, without any success are no noise.
_STARVED_S = 5.0
# Seconds in which a quota of a minute shows.
_METERED_S = 150.0
# Irrational, so that the fraction of a call spreads evenly over time.
_GOLDEN = 0.6180339887


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A worker process in a window: the calls that it has and wants, and when it reported."""

    demand: int
    seen_at: float


class CallWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The calls to a model that a fleet may have in flight; times are seconds of the server's clock.

    Attributes:
        size: How many; None is any number.
        opened_at: When it was opened.
        cut_at: When it was last made smaller.
        ceiling: How many there were when the provider refused.
        over_at: Since when there are more than the ceiling; None while there are not.
        done: Calls that succeeded since it was last made smaller.
        busy_s: Seconds that these took together.
        slices: The last minute in parts: when each began, for how many seconds the fleet had or wanted
            calls in it, and the seconds that the calls took that succeeded in it.
        told_at: When a process last reported.
        slow_s: Seconds that a call took before it was made smaller for being slow.
        calm_until: When it may be made smaller for being slow again.
        refused: Calls that were refused since it was last made smaller.
        succeeded_at: When calls last succeeded, and the seconds that one of them took.
        call_s: See there.
        refused_at: When a call was last refused.
        is_starved: Whether all calls were refused for long since it was last made smaller.
        was: A size that it had, and the share of calls that was refused then.
        since: What has ended since it became smaller than that: successes, refusals, and the sum of the
            sizes at the successes.
        noise: The share of calls that the provider refuses however few there are; None if unknown.
        quota: What is known of a quota of a minute.
        members: The processes, by name.
    """

    size: float | None
    opened_at: float
    cut_at: float
    ceiling: float | None = None
    over_at: float | None = None
    done: int = 0
    busy_s: float = 0.0
    slices: tuple[tuple[float, float, float], ...] = ()
    told_at: float = 0.0
    slow_s: float | None = None
    calm_until: float = 0.0
    refused: int = 0
    succeeded_at: float = 0.0
    call_s: float = 0.0
    refused_at: float = 0.0
    is_starved: bool = False
    was: tuple[float, float] | None = None
    since: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: float | None = None
    quota: MinuteQuota = UNKNOWN
    members: dict[str, Member] = {}


class WindowReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a worker process on its calls to a model since its last one.

    Attributes:
        process: Its name.
        in_flight: Calls that it has in flight.
        waiting: Calls that wait for the window.
        done: Calls that succeeded.
        busy_s: Seconds that these took together.
        refused: Calls that were refused.
        refused_age_s: Seconds since the last call began that was refused; None if none was.
        slow_s: Seconds that its calls take lately, where that is so near to their timeout that the
            provider may be crowded; else None.
        usual: Calls that it has in flight as a rule, if none has succeeded lately; else 0. In an outage
            it has few or none, and that says nothing of what the provider takes after it.
    """

    process: str
    in_flight: int = 0
    waiting: int = 0
    done: int = 0
    busy_s: float = 0.0
    refused: int = 0
    refused_age_s: float | None = None
    slow_s: float | None = None
    usual: float = 0.0


def reported(window: CallWindow | None, report: WindowReport, *, now: float) -> CallWindow | None:
    """Return the window after a report; None if there is no need of one."""
    is_refused = report.refused_age_s is not None
    if window is None or window.size is None:
        calm_until = 0.0 if window is None else window.calm_until
        is_slow = report.slow_s is not None and now >= calm_until
        if not is_refused and not is_slow:
            return None if now >= calm_until else window
        slow_s = None if is_refused else report.slow_s
        window = CallWindow(
            size=0.0,
            opened_at=now,
            cut_at=now,
            slow_s=slow_s,
            calm_until=calm_until,
            succeeded_at=now,
        )
    return _judged_anew(_joined(window, report, now), report, now)


def _judged_anew(joined: CallWindow, report: WindowReport, now: float) -> CallWindow | None:
    """Return a window with a size that suits the counts of a report."""
    if joined.quota.pace is not None:
        return joined
    if joined.noise is not None:
        if (kept := noisy(joined, joined.noise)) is not None:
            return _grown(kept, report.done, now)
        joined = msgspec.structs.replace(joined, noise=None)
    if report.refused_age_s is not None:
        return _cut(joined, began=now - report.refused_age_s, now=now)
    if joined.slow_s is not None and (judged := _judged(joined, now)) is not None:
        return judged
    if report.slow_s is not None and joined.slow_s is None and now >= joined.calm_until:
        slower = msgspec.structs.replace(joined, slow_s=report.slow_s)
        return _cut(slower, began=now, now=now)
    return _grown(joined, report.done, now)


def _joined(window: CallWindow, report: WindowReport, now: float) -> CallWindow:
    """Return the window with the counts of a report."""
    members = {
        name: member
        for name, member in window.members.items()
        if now - member.seen_at <= _SILENT_S and name != report.process
    }
    size = window.size or 0.0
    is_new = report.process not in window.members
    opening_s = _SILENT_S if report.usual else _OPENING_S
    if is_new and now - window.opened_at <= opening_s:
        size += _DECREASE * max(report.in_flight, report.usual)
    demand = report.in_flight + report.waiting
    passed_s = min(now - window.told_at, _REPORTS_S) if window.told_at else 0.0
    refused_at = now if report.refused else window.refused_at
    patience_s = _STARVED_S + 2 * window.call_s
    # Calls that began before the refusal may still have succeeded after it.
    is_starved = (
        demand > 0
        and now - window.succeeded_at > patience_s
        and refused_at >= window.succeeded_at - patience_s
    )
    if demand:
        members[report.process] = Member(demand, now)
    quota = metered(
        window.quota, done=report.done, refused=report.refused, is_starved=is_starved, now=now
    )
    wanted = sum(member.demand for member in members.values())
    if quota.pace is not None or (quota.began_at and quota.began_at != window.quota.began_at):
        # All calls may begin, at the pace of the quota, or to find out how many it takes.
        size = max(size, wanted)
    return msgspec.structs.replace(
        window,
        size=max(1.0, size),
        done=window.done + report.done,
        busy_s=window.busy_s + report.busy_s,
        refused=window.refused + report.refused,
        succeeded_at=now if report.done else window.succeeded_at,
        call_s=report.busy_s / report.done if report.done else window.call_s,
        is_starved=window.is_starved or is_starved,
        refused_at=refused_at,
        quota=quota,
        slices=_sliced(window.slices, now, passed_s, report.busy_s),
        told_at=now,
        members=members,
    )


def _sliced(
    slices: tuple[tuple[float, float, float], ...], now: float, active_s: float, busy_s: float
) -> tuple[tuple[float, float, float], ...]:
    """Return the slices of the last minute with what has come since the last report."""
    kept = [one for one in slices if now - one[0] <= _MEMORY_S]
    if not kept or now - kept[-1][0] >= _SLICE_S:
        kept.append((now, 0.0, 0.0))
    began, active, busy = kept[-1]
    kept[-1] = (began, active + active_s, busy + busy_s)
    return tuple(kept)


def _average(window: CallWindow) -> float | None:
    """Return the calls that were in flight and succeeded, by Little's law; None if it is too early."""
    active_s = sum(one[1] for one in window.slices)
    return sum(one[2] for one in window.slices) / active_s if active_s >= 1 else None


def _cut(window: CallWindow, *, began: float, now: float) -> CallWindow:
    """Return the window after a refusal of a call that began at ``began``."""
    size = window.size or 1.0
    if began <= window.cut_at + _BURST_S or window.done < max(_SUCCESSES, _MORE * size):
        return window
    window = compared(window)
    if window.noise is not None:
        return window
    average = _average(window)
    # A window of which much is refused is too large by far.
    is_far = average is not None and average < _DECREASE * size
    base = average if average is not None and is_far else size
    # Over a minute with refusals a provider has given what it can: the average is its limit.
    is_long = average is not None and now - window.opened_at >= _AVERAGE_S
    ceiling = max(average or 0.0, _CLOSE * base) if is_long else base
    if window.ceiling is not None and window.ceiling - 1 <= size <= window.ceiling + 1:
        # The ceiling itself was too much.
        ceiling = min(ceiling, _BELOW * base)
    return msgspec.structs.replace(
        window,
        size=max(1.0, _DECREASE * base),
        cut_at=now,
        ceiling=max(1.0, min(base, ceiling)),
        over_at=None,
        done=0,
        busy_s=0.0,
        refused=0,
        is_starved=False,
    )


def _grown(window: CallWindow, done: int, now: float) -> CallWindow | None:
    """Return the window after calls that succeeded; None if the fleet does not need it."""
    size, demand = window.size or 1.0, sum(one.demand for one in window.members.values())
    ceiling = window.ceiling
    if demand < _USED * size:
        if window.noise is not None or now - window.quota.began_at < _METERED_S:
            return window
        is_enough = size >= _PROBE * demand and demand >= _USED * (ceiling or 0.0)
        return None if is_enough and now - window.cut_at > _HOLD_S else window
    grown = size + done / _SUCCESSES
    if ceiling is None:
        return msgspec.structs.replace(window, size=grown)
    if now - window.cut_at <= _HOLD_S:
        return msgspec.structs.replace(window, size=max(size, min(grown, ceiling)))
    if window.over_at is not None and now - window.over_at > _FINE_S:
        # It was fine for a while: the ceiling is higher.
        return msgspec.structs.replace(window, size=grown, ceiling=size, over_at=now)
    over_at = window.over_at if window.over_at is not None else now
    grown = max(size, min(grown, _PROBE * ceiling))
    return msgspec.structs.replace(window, size=grown, over_at=over_at)


def _judged(window: CallWindow, now: float) -> CallWindow | None:
    """Return the window after a trial whether fewer calls are faster; None while it goes on."""
    slow_s = window.slow_s or 0.0
    if now - window.cut_at < 2 * slow_s or window.done < _SUCCESSES:
        return None
    if window.busy_s / window.done <= _FASTER * slow_s:
        # The server is crowded. If the calls are still too slow, the next report tells.
        return msgspec.structs.replace(
            window, slow_s=None, ceiling=window.ceiling or window.size, calm_until=now
        )
    return msgspec.structs.replace(
        window, size=None, slow_s=None, calm_until=now + _CALM_S, members={}
    )


def are_alone(window: CallWindow) -> bool:
    """Return whether a refused call says nothing of others: it was so at random, or they have a pace."""
    quota = window.quota
    return window.noise is not None or (quota.pace is not None and not quota.is_used_up)


def total_of(window: CallWindow, *, now: float) -> int | None:
    """Return the whole calls of a window at a moment; over time their mean is its size."""
    if window.size is None:
        return None
    return max(1, int(window.size + int(now) * _GOLDEN % 1))


def shares(window: CallWindow, *, now: float) -> Mapping[str, int] | None:
    """Return how many calls each process may have in flight; None for any number.

    Each gets what it wants, or as much as every other. If there are fewer calls than processes, they
    take turns.
    """
    left = total_of(window, now=now)
    if left is None:
        return None
    count = len(window.members)
    fair = -(-left // max(1, count))
    wanted = sorted(
        (min(member.demand, fair), (number + int(now)) % count, name)
        for number, (name, member) in enumerate(sorted(window.members.items()))
    )
    given: dict[str, int] = {}
    # Those that want least first: what they leave is for the others.
    for number, (_, _, name) in enumerate(wanted):
        given[name] = min(window.members[name].demand, left // (count - number))
        left -= given[name]
    return given
