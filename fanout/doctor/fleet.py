"""Findings about the workers, the queues and the runs of a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.broker.fleet_version import version_problem
from fanout.doctor.findings import Finding, State, fail, not_allowed, ok, warn
from fanout.doctor.server import clock_finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.fleet_records import WorkerRecord
    from fanout.doctor.facts import FleetFacts, ModelFacts

__all__ = ["fleet_findings", "model_findings"]

_SHOWN = 5
# The default of `fanout probe`.
_POLLS_S = 30.0


def fleet_findings(facts: FleetFacts) -> Iterator[Finding]:
    """Judge a fleet."""
    yield _workers(facts)
    if facts.workers:
        yield _consumers(facts)
        yield _versions(facts)
        yield _clocks(facts)
    yield _wire(facts)
    yield _queues(facts)
    yield _runs(facts)
    limits = [f"{model} takes {words}" for model, words in sorted(facts.limits.items()) if words]
    if limits:
        yield ok("rate limits", f"learnt: {'; '.join(limits)}")
    yield _prefix(facts)


def _workers(facts: FleetFacts) -> Finding:
    if not facts.workers:
        return warn("workers", "none alive", "runs wait for one: start `fanout worker`")
    concurrency = sum(worker.concurrency for worker in facts.workers)
    in_flight = sum(worker.in_flight for worker in facts.workers)
    return ok(
        "workers",
        f"{len(facts.workers):,} alive, {concurrency:,} branches at once, {in_flight:,} in flight",
    )


def _consumers(facts: FleetFacts) -> Finding:
    # Both times are by the worker's own clock.
    stuck = [w for w in facts.workers if w.polled_at and w.sent_at - w.polled_at > _POLLS_S]
    if stuck:
        advice = "restart them; use `fanout probe` as their health check to detect this"
        return fail("consumers", f"alive, but taking no messages: {_names(stuck)}", advice)
    refusing = [worker for worker in facts.workers if worker.problem]
    if refusing:
        return fail("consumers", f"taking no messages: {_names(refusing)}", refusing[0].problem)
    standing = [worker for worker in facts.workers if worker.stuck]
    if standing:
        count = sum(worker.stuck for worker in standing)
        found = f"{count:,} branches make no progress: {_names(standing)}"
        return fail("consumers", found, "other workers take these branches; restart these workers")
    return ok("consumers", "all take messages")


def _versions(facts: FleetFacts) -> Finding:
    versions = sorted({worker.version for worker in facts.workers} | {facts.own_version})
    if len(versions) > 1:
        found = f"fanout {', '.join(versions)} (here {facts.own_version})"
        return warn("versions", found, "install the same version on workers and clients")
    return ok("versions", f"fanout {facts.own_version} everywhere")


def _clocks(facts: FleetFacts) -> Finding:
    # The worker's clock against the store's at its latest record; this includes the network delay.
    def ahead_s(worker: WorkerRecord) -> float:
        return worker.sent_at - worker.seen_at

    furthest = max(facts.workers, key=lambda worker: abs(ahead_s(worker)))
    finding = clock_finding("worker clocks", ahead_s(furthest), facts.visibility_timeout_s)
    seen = finding.found.replace("this machine", "the server")
    return Finding(
        check=finding.check,
        state=finding.state,
        found=f"{seen} at most ({furthest.name})",
        advice=None if finding.state is State.OK else finding.advice,
    )


def _wire(facts: FleetFacts) -> Finding:
    if facts.wire is None:
        return ok("wire format", f"not set yet; here version {facts.own_wire}")
    problem = version_problem("this machine", spoken=facts.wire, own=facts.own_wire)
    if problem is not None:
        found, _, advice = problem.partition("; ")
        return fail("wire format", found, advice)
    others = [worker for worker in facts.workers if worker.wire != facts.wire]
    if others:
        found = f"version {facts.wire}, but these workers have another: {_names(others)}"
        return fail("wire format", found, "stop these workers: they cannot read the messages")
    return ok("wire format", f"version {facts.wire} everywhere")


def _queues(facts: FleetFacts) -> Finding:
    found = ", ".join(f"{queue.name} {queue.waiting:,} waiting" for queue in facts.queues)
    taken = {name for worker in facts.workers for name in worker.queues}
    missed = [queue for queue in facts.queues if queue.name not in taken]
    full = [queue.name for queue in missed if queue.waiting]
    if full:
        advice = f"start a worker for it: fanout worker --queues {','.join(full)}"
        return fail("queues", f"{found}; no worker consumes {', '.join(full)}", advice)
    if facts.workers and missed:
        names = [queue.name for queue in missed]
        advice = f"runs would hang: start a worker for it: fanout worker --queues {','.join(names)}"
        return fail("queues", f"{found}; no worker consumes {', '.join(names)}", advice)
    return ok("queues", found)


def _runs(facts: FleetFacts) -> Finding:
    paused = f", {facts.paused:,} paused" if facts.paused else ""
    found = f"{facts.active:,} active{paused}"
    if facts.stalled is None:
        return not_allowed("runs", "LRANGE and HSCAN on the queues")
    if not facts.stalled:
        return ok("runs", found)
    halves = [run_id for run_id, status in facts.stalled.items() if status == "enqueuing"]
    names = _list(sorted(facts.stalled))
    if halves:
        advice = f"if its client has died: fanout resume {halves[0]}"
    else:
        advice = "the workers heal this within about half a minute, `fanout heal` at once"
    return warn("runs", f"{found}; no messages for {names}", advice)


def _prefix(facts: FleetFacts) -> Finding:
    found = f"{facts.prefix}:"
    if facts.other_prefixes:
        others = _list([f"{prefix}:" for prefix in facts.other_prefixes])
        advice = (
            "the queues are shared: give each fleet a database (redis://host:6379/1) of its own"
        )
        return fail("key prefix", f"{found} here, and in the same database {others}", advice)
    return ok("key prefix", found)


def model_findings(facts: ModelFacts) -> Iterator[Finding]:
    """Judge whether a model can be used, and whether batches of it can be made."""
    yield _model_finding(facts)
    if facts.problem is None and facts.batches is not None:
        check, problem = f"batches of {facts.model}", " ".join(facts.batches.split())
        if problem:
            yield warn(check, "cannot be made: the lanes batch and auto are not for it", problem)
        else:
            yield ok(check, "can be made")


def _model_finding(facts: ModelFacts) -> Finding:
    check = f"model {facts.model}"
    problem = None if facts.problem is None else " ".join(facts.problem.split())
    if facts.asked is None:
        return fail(check, "cannot be used", problem) if problem else ok(check, "can be used")
    if facts.asked == 0:
        found = f"there is no worker to ask; here it {'cannot' if problem else 'can'} be used"
        advice = "check again with a worker running: its credentials count"
        return warn(check, found, f"{advice} ({problem})" if problem else advice)
    if not facts.is_answered:
        advice = "they may all be busy: check again later"
        return warn(check, f"none of {facts.asked} workers has answered", advice)
    where = f"on the workers (one of {facts.asked} was asked)"
    if problem is not None:
        return fail(check, f"cannot be used {where}", problem)
    return ok(check, f"can be used {where}")


def _names(workers: Iterable[WorkerRecord]) -> str:
    return _list([worker.name for worker in workers])


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
