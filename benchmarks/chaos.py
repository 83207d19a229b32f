"""Checks that no fault loses a branch: runs of the fake model under seeded faults.

    python benchmarks/chaos.py [--schedules 5] [--faults 12] [--seed 1] [--out report.json]

Each schedule has its own server, workers and client. Prints a table and the violations. The exit
status is 1 if a branch was lost, a run hung, an outcome was counted twice, an aggregate is wrong, or
a call was repeated without a reason. With ``--steps`` so is a finished step that was called again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from faults.nodes import host_name
from faults.schedule import KINDS, FleetShape
from faults.table import markdown, totals, whole
from faults.trial import Options, run_trial
from hosts import Hosts, why_not

if TYPE_CHECKING:
    from faults.trial import Report


def _kinds() -> str:
    return "; ".join(f"{kind}: {text}" for kind, text in KINDS.items())


def parsed() -> argparse.Namespace:
    default, fleet = Options(), FleetShape()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--schedules", type=int, default=5)
    add("--faults", type=int, default=default.faults, help="faults of a schedule")
    add("--seed", type=int, default=1, help="of the first schedule; the next has the next")
    add("--branches", type=int, default=default.branches)
    add("--shard-branches", type=int, default=default.shard_branches)
    add("--workers", type=int, default=fleet.workers)
    add("--pool-mix", type=int, default=fleet.prefork, help="how many workers are prefork")
    add("--concurrency", type=int, default=default.concurrency, help="of each worker")
    add("--visibility-timeout", type=float, default=fleet.lease_s, help="the lease, in seconds")
    add("--latency", type=float, default=default.latency_s, help="of a call, in seconds, at least")
    add("--jitter", type=float, default=default.jitter_s, help="seconds more, at most")
    add("--gap", type=float, default=default.gap_s, help="seconds between faults, on average")
    add("--trickle", type=float, default=default.trickle_s, help="seconds of enqueuing")
    add("--bound", type=float, default=default.bound_s, help="seconds to end after the last fault")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=_kinds())
    add("--max-workers", type=int, help="the cap of the run")
    add("--tree", action="store_true", help="a tree of calls sums up the answers")
    add("--steps", type=int, default=default.steps, help="calls of a branch, one after the other")
    add("--no-namespaces", action="store_true", help="leave out cut_network")
    add("--folder", type=Path, help="where ledgers and logs are kept; else only of bad schedules")
    add("--out", type=Path, help="a file for JSON; a table in markdown is put beside it")
    add("--dry-run", action="store_true", help="print the schedules")
    return parser.parse_args()


def chosen(given: argparse.Namespace) -> Options:
    fleet = FleetShape(
        workers=given.workers, prefork=given.pool_mix, lease_s=given.visibility_timeout
    )
    kinds = [kind for kind in given.kinds if kind != "cut_network" or not given.no_namespaces]
    if "cut_network" in kinds and not given.dry_run and (reason := why_not()) is not None:
        print(f"cut_network is left out: {reason}", file=sys.stderr)
        kinds.remove("cut_network")
    return Options(
        branches=given.branches,
        shard_branches=given.shard_branches,
        fleet=fleet,
        concurrency=given.concurrency,
        latency_s=given.latency,
        jitter_s=given.jitter,
        faults=given.faults,
        gap_s=given.gap,
        kinds=tuple(kinds),
        trickle_s=given.trickle,
        bound_s=given.bound,
        max_workers=given.max_workers,
        steps=given.steps,
        tree=given.tree,
    )


def one(seed: int, options: Options, folder: Path) -> Report:
    trial = folder / f"seed{seed}"
    if "cut_network" in options.kinds:
        with Hosts() as hosts:
            for slot in range(options.fleet.workers):
                hosts.add(host_name(slot))
            report = run_trial(seed, options, trial, hosts)
    else:
        report = run_trial(seed, options, trial, None)
    progress = "good" if report.is_good else "BAD"
    print(f"seed {seed}: {progress} after {report.seconds} s", file=sys.stderr, flush=True)
    return report


def main() -> int:
    given = parsed()
    options = chosen(given)
    seeds = range(given.seed, given.seed + given.schedules)
    if given.dry_run:
        for seed in seeds:
            print(f"seed {seed}")
            for fault in options.schedule(seed):
                print(" ", json.dumps(msgspec.to_builtins(fault)))
        return 0
    # Ending this program also ends its children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fanout-chaos-"))
    folder = folder.resolve() / time.strftime("%H%M%S")
    reports = []
    for seed in seeds:
        reports.append(one(seed, options, folder))
        if given.out:
            given.out.write_text(json.dumps(whole(reports, options), indent=1) + "\n")
            given.out.with_suffix(".md").write_text(markdown(reports) + "\n")
        if reports[-1].is_good and not given.folder:
            shutil.rmtree(folder / f"seed{seed}")
    print(markdown(reports))
    print(json.dumps(totals(reports), indent=1))
    bad = [report for report in reports if not report.is_good]
    for report in bad:
        print(f"seed {report.seed} went wrong; ledger and logs: {folder}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
