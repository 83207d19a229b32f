"""Checks that deaths lose, double and submit nothing twice in the batch lane.

    PYTHONPATH=. python benchmarks/batch_chaos.py [--schedules 50] [--seed 1] [--at-once 2]

Each schedule has its own server, workers and provider: a mock of the batch APIs of OpenAI and Anthropic. At
seeded requests to the provider, and at seeded moments between them, a worker or the server is killed with
SIGKILL, and started again. Some answers must be asked for again, and some requests expire. Prints one line
for each schedule, and the sums. The exit status is 1 if a branch was lost, an outcome or a purchase was
doubled, or a batch was submitted twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fanout.client.client import Client
from fanout.core.errors import FanoutError
from fanout.core.spec import make_spec
from tests.batch_provider import BatchProvider, prompt_of
from tests.servers import ServerProcess

PATCHED = Path(__file__).parents[1] / "tests" / "integration" / "patched_worker.py"
MODELS = ("openai/gpt-5-mini", "anthropic/claude-haiku-4-5")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
# Of the texts: what expires at first, and from there on what is answered wrongly at first.
EXPIRE, ODD = 0.1, 0.2
# A lost request of the provider arrives within half a second here.
SETTLE_S = 2.0
FAULTS = ("kill_workers", "kill_workers", "kill_one", "kill_server", "create_lost", "create_late",
          "results_cut", "poll_failed")  # fmt: skip
VARIABLES = {
    "FANOUT_REAPER_INTERVAL_S": "0.25",
    "FANOUT_BATCH_WAIT_S": "0.3",
    "FANOUT_BATCH_POLL_S": "0.2",
    "FANOUT_BATCH_CALLS": "20",
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_STALL_S": "2",
}


@dataclass
class Report:
    """What came of one schedule."""

    seed: int
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    batches: int = 0
    lost: int = 0
    doubled: int = 0
    submitted_twice: int = 0
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.submitted_twice or self.problem)


class Fleet:
    """A server and two workers that can be killed."""

    def __init__(self, folder: Path, provider: BatchProvider) -> None:
        self._folder = folder
        self._environment = {**VARIABLES, **provider.environment}
        # What the server has acknowledged outlives its kill.
        self.server = ServerProcess(folder / "server", appendonly="yes", appendfsync="always")
        self.workers: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def start_worker(self) -> None:
        """Start a worker."""
        self._started += 1
        patches = json.dumps({"fanout.llm.batches.base:SETTLE_S": SETTLE_S})
        command = [sys.executable, str(PATCHED), patches, "-A", "workers.app", "worker"]
        command += ["--concurrency", "8", "--loglevel", "INFO"]
        command += ["--hostname", f"w{self._started}.{self._folder.name}@chaos"]
        with (self._folder / f"worker{self._started}.log").open("wb") as log:
            worker = subprocess.Popen(
                command,
                env={**os.environ, "FANOUT_BROKER_URL": self.server.url, **self._environment},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)

    def kill_workers(self, count: int = 2) -> None:
        """Kill the workers that have run for the longest time."""
        for worker in self.workers[:count]:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        del self.workers[:count]

    def kill_server(self, *, down_s: float) -> None:
        """Kill the server, and start it again with what it has on its disk."""
        self.server.kill()
        time.sleep(down_s)
        self.server.start()

    def close(self) -> None:
        """Kill all."""
        self.kill_workers(len(self.workers))
        self.server.kill()


def distinct(branches: int) -> int:
    """Return how many different texts so many branches have."""
    return branches - branches // 5


def answering(provider: BatchProvider, chance: random.Random) -> None:
    """Let some requests expire, and some answers lack their shape."""
    odd = {f"text {number};": chance.random() for number in range(10_000)}
    seen: Counter[str] = Counter()

    def item(prompt: str) -> str | None:
        seen[prompt] += 1
        return "expired" if seen[prompt] == 1 and odd.get(prompt, 1.0) < EXPIRE else None

    def reply(prompt: str) -> str:
        is_first = seen[prompt] == 1
        return "no" if is_first and EXPIRE <= odd.get(prompt, 1.0) < ODD else '{"a": 1}'

    provider.item, provider.reply = item, reply
    provider.polls = 1
    provider.late_s = 0.5


def strike(fleet: Fleet, provider: BatchProvider, fault: str, chance: random.Random) -> None:
    if fault == "kill_server":
        fleet.kill_server(down_s=chance.uniform(0.1, 1.0))
    elif fault.startswith("kill"):
        count = 1 if fault == "kill_one" else 2
        fleet.kill_workers(count)
        for _ in range(count):
            fleet.start_worker()
    else:
        provider.faults[fault] += 1


def run_schedule(seed: int, folder: Path, *, branches: int, faults: int, bound_s: float) -> Report:
    """Run a job under the faults of a schedule."""
    chance, report, began = random.Random(seed), Report(seed), time.monotonic()  # noqa: S311 - repeatable
    folder.mkdir(parents=True)
    provider = BatchProvider()
    answering(provider, chance)
    fleet = Fleet(folder, provider)
    try:
        for _ in range(2):
            fleet.start_worker()
        with Client(fleet.server.url) as client:
            spec = make_spec(
                model=chance.choice(MODELS), prompt="{input}", lane="batch", schema=SCHEMA,
                max_tokens=100, retries={"max_attempts": 9},
            )  # fmt: skip
            # A quarter of the texts are there twice.
            texts = [f"text {number % distinct(branches)};" for number in range(branches)]
            run = client.submit(spec, texts)
            until = time.monotonic() + bound_s
            for number in range(faults):
                fault = chance.choice(FAULTS)
                # At a request to the provider, or a moment after it.
                mark = len(provider.requests) + chance.randint(1, 4)
                while len(provider.requests) < mark and time.monotonic() < until - bound_s / 2:
                    time.sleep(0.001)
                    if number and _status(run) == branches:
                        break
                time.sleep(chance.choice([0.0, 0.0, 0.005, 0.02, 0.1]))
                report.faults.append(fault)
                strike(fleet, provider, fault, chance)
            while _status(run) is not None and time.monotonic() < until:
                time.sleep(0.1)
            check(report, run, provider, branches)
    except (FanoutError, AssertionError, OSError) as error:
        report.problem = f"{type(error).__name__}: {error}"
    finally:
        fleet.close()
        provider.close()
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _status(run: object) -> int | None:
    """Return how many branches have ended; None once the run has."""
    with suppress(FanoutError):
        status = run.status()  # type: ignore[attr-defined]
        return None if status.status.has_ended else status.done
    return 0


def check(report: Report, run: object, provider: BatchProvider, branches: int) -> None:
    status = run.status()  # type: ignore[attr-defined]
    report.batches = len(provider.batches)
    if not status.status.has_ended:
        report.problem = f"it has not ended: {status.done} of {branches}"
    report.lost = branches - status.succeeded
    # A batch whose items are those of another one.
    items = Counter(custom_id for batch in provider.batches for custom_id in batch.ids)
    twice = {custom_id for custom_id, times in items.items() if times > 1}
    report.submitted_twice = sum(bool(twice & set(batch.ids)) for batch in provider.batches) // 2
    # Each conversation is paid for once.
    paid = Counter(
        json.dumps(body.get("messages"), sort_keys=True)
        for batch in provider.batches
        for custom_id, body in batch.items
        if custom_id in set(batch.answered)
    )
    report.doubled = sum(times - 1 for times in paid.values())
    report.doubled += max(0, status.done - branches)
    if status.usage.calls != sum(items.values()):
        report.problem = f"{status.usage.calls} calls are counted of {sum(items.values())}"
    if status.errors:
        report.problem = f"failed: {status.errors}"
    if any(prompt_of(body) == "" for batch in provider.batches for _, body in batch.items):
        report.problem = "an empty prompt"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--schedules", type=int, default=50)
    add("--seed", type=int, default=1, help="of the first schedule; the next has the next")
    add("--branches", type=int, default=60)
    add("--faults", type=int, default=6, help="faults of a schedule")
    add("--bound", type=float, default=120.0, help="seconds that a schedule may take")
    add("--at-once", type=int, default=1, help="schedules at a time")
    add("--folder", type=Path, help="where logs are kept; else only of bad schedules")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fanout-batch-chaos-"))

    def one(seed: int) -> Report:
        where = folder / f"seed{seed}"
        report = run_schedule(
            seed, where, branches=given.branches, faults=given.faults, bound_s=given.bound
        )
        verdict = "good" if report.is_good else f"BAD {report}"
        print(f"seed {seed}: {verdict}, {report.batches} batches, {report.seconds} s,"
              f" {' '.join(report.faults)}", flush=True)  # fmt: skip
        if report.is_good and given.folder is None:
            shutil.rmtree(where, ignore_errors=True)
        return report

    with ThreadPoolExecutor(given.at_once) as pool:
        reports = list(pool.map(one, range(given.seed, given.seed + given.schedules)))
    bad = [report for report in reports if not report.is_good]
    print(
        f"{len(reports)} schedules, {sum(len(one.faults) for one in reports)} faults,"
        f" {sum(one.batches for one in reports)} batches: {sum(one.lost for one in reports)} lost,"
        f" {sum(one.doubled for one in reports)} doubled,"
        f" {sum(one.submitted_twice for one in reports)} submitted twice, {len(bad)} bad"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
