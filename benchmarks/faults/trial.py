"""One run under one schedule, and the account of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from fanout import Client
from fanout.core.errors import FanoutError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind
from fanout.policy.packing import MAX_SHARD_BYTES
from faults.client import MARK, RunPlan, key
from faults.injector import ClientKeeper, Injector, Slot
from faults.ledger import Injury, Verdict, analyse, finished_again, most_in_flight, parse
from faults.model import summed
from faults.nodes import Server, Worker, storage
from faults.schedule import KINDS, FleetShape, make_schedule

if TYPE_CHECKING:
    from pathlib import Path

    import redis
    from hosts import Hosts

    from fanout import Run
    from faults.schedule import Fault

__all__ = ["Options", "Report", "run_trial"]

_LOOK_S = 0.1
# Long enough for what should not come any more, a second call of a branch that has ended.
_AFTER_S = 1.0
_LOG_LINES = 40


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial is made of.

    Attributes:
        branches: Branches of the run.
        shard_branches: Branches of a shard, about.
        fleet: The workers.
        concurrency: Branches that each worker has in flight.
        latency_s: The least that a call takes.
        jitter_s: What it takes more at most.
        faults: Faults of a schedule.
        gap_s: Seconds between two faults, on average.
        kinds: The kinds of faults.
        trickle_s: Seconds over which the documents come in.
        bound_s: Seconds after the last fault within which the run must end.
        max_workers: The cap of the run; None where it has none.
        steps: Calls of a branch, one after the other.
        tree: Whether a tree of calls sums up the answers.
    """

    branches: int = 600
    shard_branches: int = 100
    fleet: FleetShape = FleetShape()
    concurrency: int = 6
    latency_s: float = 0.5
    jitter_s: float = 1.0
    faults: int = 12
    gap_s: float = 3.0
    kinds: tuple[str, ...] = tuple(KINDS)
    trickle_s: float = 15.0
    bound_s: float = 120.0
    max_workers: int | None = None
    steps: int = 1
    tree: bool = False

    def schedule(self, seed: int) -> list[Fault]:
        """Return the schedule of a seed."""
        return make_schedule(
            seed, self.fleet, faults=self.faults, gap_s=self.gap_s, kinds=self.kinds
        )

    def environment(self) -> dict[str, str]:
        """Return the settings of the workers: the default ones, scaled to the lease."""
        lease_s = self.fleet.lease_s
        return {
            "FANOUT_VISIBILITY_TIMEOUT_S": str(int(lease_s)),
            "FANOUT_STALL_S": str(max(1.0, lease_s / 2)),
            "FANOUT_REAPER_INTERVAL_S": str(lease_s / 6),
            "FANOUT_GRACE_S": str(lease_s * 2 / 3),
            "CHAOS_LATENCY_S": str(self.latency_s),
            "CHAOS_JITTER_S": str(self.jitter_s),
        }


class Report(msgspec.Struct, kw_only=True):
    """The account of one trial.

    Attributes:
        seed: Its schedule's.
        faults: Faults that were carried out.
        skipped: Faults that were not.
        branches: Branches of the run.
        outcomes: Branches that have an outcome.
        lost: Branches that have none, or one of the kind ``lost``.
        failed: Other failures by kind.
        duplicated: Outcomes that are there, or counted, more than once.
        is_aggregate_right: Whether the aggregate counts each output once.
        is_hung: Whether the run had not ended within the bound.
        seconds: From the first fault's zero to the run's end.
        client_failures: How often the client gave up by itself.
        worker_deaths: Workers that died though nothing struck them.
        most_in_flight: Calls in flight at once at most, on what nothing had struck.
        max_workers: The cap of the run; None where it has none.
        steps_again: Steps that were called again after a later step of their branch had begun.
        verdict: What the ledger says.
        injuries: What was done.
        evidence: The lines of the ledger of each branch that was called again for no reason, or
            was lost; seconds from the first fault's zero.
        diagnostics: The state of things where the run was hung.
    """

    seed: int
    faults: int
    skipped: int
    branches: int
    outcomes: int = 0
    lost: int = 0
    failed: dict[str, int] = {}
    duplicated: int = 0
    is_aggregate_right: bool = False
    is_hung: bool = False
    seconds: float = 0.0
    client_failures: int = 0
    worker_deaths: list[str] = []
    most_in_flight: int = 0
    max_workers: int | None = None
    steps_again: list[str] = []
    verdict: Verdict | None = None
    injuries: list[dict[str, Any]] = []
    evidence: dict[str, list[str]] = {}
    diagnostics: dict[str, Any] = {}

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        others = self.verdict.repeated_other if self.verdict else 0
        is_over = self.max_workers is not None and self.most_in_flight > self.max_workers
        bad = self.lost or self.duplicated or self.is_hung or others or is_over
        return not (bad or self.steps_again) and self.is_aggregate_right


def run_trial(seed: int, options: Options, folder: Path, hosts: Hosts | None) -> Report:
    """Carry out the schedule of a seed against a run; ``folder`` keeps ledger and logs."""
    folder.mkdir(parents=True)
    server = Server(folder / "server", host=hosts.address if hosts else None)
    try:
        trial = _Trial(seed, options, folder, hosts, server)
        return trial.run()
    finally:
        server.close()


class _Trial:
    def __init__(
        self, seed: int, options: Options, folder: Path, hosts: Hosts | None, server: Server
    ) -> None:
        self._seed = seed
        self._options = options
        self._folder = folder
        self._hosts = hosts
        self._server = server
        self._ledger = folder / "ledger"
        self._ledger.touch()
        storage(folder).mkdir()
        self._ended_at: float | None = None

    def _start_worker(self, name: str, slot: Slot) -> Worker:
        return Worker(
            name,
            self._server.inner_url,
            self._folder,
            concurrency=self._options.concurrency,
            pool=slot.pool,
            env=self._options.environment(),
            hosts=self._hosts,
            slot=slot.number,
        )

    def run(self) -> Report:
        plan = RunPlan(
            url=self._server.url,
            branches=self._options.branches,
            document_bytes=MAX_SHARD_BYTES // self._options.shard_branches,
            begun_at=time.time() + 4,
            trickle_s=self._options.trickle_s,
            bound_s=3600,
            max_workers=self._options.max_workers,
            steps=self._options.steps,
            tree=self._options.tree,
        )
        path = self._folder / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        with Client(self._server.url) as watcher:
            clients = ClientKeeper(self._folder, path)
            injector = Injector(
                self._options.fleet,
                self._server,
                clients,
                watcher,
                self._hosts,
                self._start_worker,
            )
            try:
                return self._observed(watcher, injector, clients)
            finally:
                injector.close()
                clients.close(10 if self._ended_at else 0)

    def _observed(self, watcher: Client, injector: Injector, clients: ClientKeeper) -> Report:
        injector.wait_until_up()
        _wait_for(lambda: self._ledger.stat().st_size > 0, 60, "the first call")
        zero = time.time()
        watching = threading.Thread(target=self._watch, args=(watcher, injector))
        watching.start()
        injector.carry_out(self._options.schedule(self._seed))
        until = time.monotonic() + self._options.bound_s
        while watching.is_alive() and time.monotonic() < until:
            injector.keep()
            time.sleep(_LOOK_S)
        ended_at = self._ended_at
        injector.has_ended.set()
        watching.join()
        time.sleep(_AFTER_S)
        run = watcher.run((self._folder / "run_id").read_text())
        report = self._account(run, injector, zero, ended_at)
        report.client_failures = clients.failures
        if report.is_hung:
            report.diagnostics = self._diagnostics(watcher, run)
        return report

    def _watch(self, watcher: Client, injector: Injector) -> None:
        note = self._folder / "run_id"
        while not injector.has_ended.wait(_LOOK_S):
            try:
                ended = watcher.run(note.read_text()).status().status.has_ended
            except FanoutError:
                continue
            if ended:
                self._ended_at = time.time()
                injector.has_ended.set()

    def _account(self, run: Run, injector: Injector, zero: float, ended_at: float | None) -> Report:
        outcomes = list(run.outcomes())
        indices = Counter(outcome.index for outcome in outcomes)
        kinds = Counter(outcome.kind.value for outcome in outcomes if outcome.kind)
        gone = set(range(self._options.branches)) - set(indices)
        status = run.status()
        lines = self._ledger.read_text().splitlines()
        injuries = sorted(injector.injuries, key=lambda injury: injury.number)
        calls = parse(lines)
        verdict = analyse(calls, injuries, ended_at=ended_at or time.time())
        steps = self._options.steps
        again = finished_again(calls, mark=MARK)
        odd = [*verdict.others, *again, *(key(index) for index in sorted(gone))]
        odd += [key(outcome.index) for outcome in outcomes if outcome.kind is ErrorKind.LOST]
        succeeded = {key(outcome.index, steps) for outcome in outcomes if outcome.kind is None}
        return Report(
            seed=self._seed,
            faults=sum(injury.skipped is None for injury in injuries),
            skipped=sum(injury.skipped is not None for injury in injuries),
            branches=self._options.branches,
            outcomes=len(indices),
            most_in_flight=most_in_flight(calls, injuries),
            max_workers=self._options.max_workers,
            lost=len(gone) + kinds.pop(ErrorKind.LOST.value, 0),
            failed=dict(kinds),
            duplicated=len(outcomes) - len(indices) + max(0, status.done - len(indices)),
            is_aggregate_right=self._is_right(run, succeeded),
            is_hung=ended_at is None,
            seconds=round((ended_at or time.time()) - zero, 1),
            worker_deaths=injector.deaths,
            steps_again=again,
            verdict=verdict,
            injuries=[_relative(injury, zero) for injury in injuries],
            evidence={one: _lines_of(one, lines, zero) for one in odd},
        )

    def _is_right(self, run: Run, succeeded: set[str]) -> bool:
        aggregated, _ = run.aggregate()
        if self._options.tree:
            return bool(aggregated == summed("\n".join(succeeded)))
        return dict(aggregated["votes"] if aggregated else {}) == dict.fromkeys(succeeded, 1)

    def _diagnostics(self, watcher: Client, run: Run) -> dict[str, Any]:
        store = watcher._connected().store  # noqa: SLF001 - nothing public shows so much
        record = store.run(run.run_id)
        progress = store.progress(StageId(run.run_id, record.stage))
        client = self._server.client
        logs = sorted(self._folder.glob("*.log"))
        return {
            "status": msgspec.to_builtins(record),
            "progress": msgspec.to_builtins(progress, str_keys=True),
            "shards": {
                str(number): repr(
                    store.shard_state(StageId(run.run_id, record.stage).shard(number))
                )
                for number in progress.open
            },
            "workers": watcher.workers(),
            "queues": {
                queue: client.llen(queue)
                for queue in ("fanout.control", "fanout.branches", "fanout.branches.behind")
            },
            "unacked": client.hlen("unacked"),
            "unacked_age_s": _ages(client),
            "logs": {log.name: log.read_text("utf-8").splitlines()[-_LOG_LINES:] for log in logs},
        }


def _ages(client: redis.Redis) -> list[float]:
    index: Any = client.zrange("unacked_index", 0, 20, withscores=True)
    return [round(time.time() - score, 1) for _, score in index]


def _relative(injury: Injury, zero: float) -> dict[str, Any]:
    shown = msgspec.to_builtins(injury)
    for name in ("at", "until", "dead_at"):
        if shown[name] is not None:
            shown[name] = round(shown[name] - zero, 3)
    return {
        name: value for name, value in shown.items() if value is not None and value is not False
    }


def _lines_of(one: str, lines: list[str], zero: float) -> list[str]:
    words = [line.split() for line in lines]
    return [f"{float(w[0]) - zero:.3f} {' '.join(w[1:4])}" for w in words if w[4] == one]


def _wait_for(condition: Any, timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(_LOOK_S)
