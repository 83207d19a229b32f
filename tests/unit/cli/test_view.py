"""The frames of ``fanout watch``: what was seen, as lines."""

from __future__ import annotations

import time

import pytest

from fanout.broker.backlog import Leases, Memory, Queue
from fanout.cli.speed import Speed
from fanout.cli.view import (
    capacity_lines,
    fleet_line,
    fleet_lines,
    run_lines,
    runs_lines,
    workers_lines,
)
from fanout.core.latency import Latency, bucket_of
from fanout.core.rate_limits import LimitState
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.observe.fleet import FleetStatus
from fanout.runs.results import StageStatus
from fanout.stores import StageWindow, Totals, WorkerRecord

from .test_progress import status

STAGES = (
    StageStatus(stage=0, total=200, succeeded=90, failed=10, done=100),
    StageStatus(stage=1, total=4, succeeded=1, failed=0, done=1),
)
SPEED = Speed(branches=12.0, calls=12.5, input_tokens=1000.0, output_tokens=50.0, lately=10.0)
NOW = 5_000.0


def fleet(**fields):
    given = {
        "workers": [
            WorkerRecord(name="a@x", concurrency=8, in_flight=8, processed=90, seen_at=NOW - 1.5)
        ],
        "queues": (
            Queue(name="fanout.control", waiting=0),
            Queue(name="fanout.branches", waiting=92, oldest_s=3.2),
        ),
        "leases": Leases(taken=8, oldest_s=1.0),
        "memory": None,
        "runs": {RunStatus.RUNNING: 1},
        "window": StageWindow(),
        "totals": Totals(),
        "limits": {},
        "read_at": NOW,
    }
    return FleetStatus(**{**given, **fields})


def seen(**fields):
    latency = Latency()
    for _ in range(10):
        latency = latency.plus(bucket_of(0.5), 0.5)
    given = {"total": 200, "done": 100, "stages": STAGES, "latency": latency}
    return status(**{**given, **fields})


def test_a_frame_has_all_there_is_to_know_of_a_run():
    usage = Usage(calls=120, input_tokens=9_000, output_tokens=800, cost_usd=0.25)
    errors = {ErrorKind.TIMEOUT: 7, ErrorKind.RATE_LIMITED: 3}
    lines = run_lines(seen(usage=usage, errors=errors), SPEED, fleet(), "openai/x")
    assert lines == [
        "run r1  running · 2.0 s  openai/x",
        "branches  [####################--------------------] 100/200 50.0% · 10 failed",
        "reduce 1  [##########------------------------------] 1/4 25.0%",
        "speed     12.5 calls/s · 1,000 tokens/s in, 50 out · ETA 10.0 s",
        "latency   p50 0.4 s · p90 0.48 s · p99 0.498 s",
        "usage     120 calls · 9,000 tokens in, 800 out · cost $0.2500",
        "retries   19 calls were made again",
        "errors    timeout 7 · rate_limited 3",
        "queues    control 0 · branches 92 (oldest 3.2 s) · taken 8 (renewed 1.0 s ago)",
        "workers   1 · 8 of 8 places in use",
        "  a@x       [##########]        8/8  90 done  seen 1.5 s ago",
    ]


def test_the_last_frame_says_how_it_ended_and_not_what_others_do():
    lines = run_lines(seen(status=RunStatus.SUCCEEDED), SPEED, None, "openai/x")
    assert lines[0] == "run r1  succeeded · 2.0 s  openai/x"
    assert [line.split()[0] for line in lines[1:]] == [
        "branches", "reduce", "latency", "usage", "errors"
    ]  # fmt: skip


def test_what_is_unknown_is_never_shown_as_nothing():
    lines = run_lines(seen(latency=Latency(), usage=Usage(calls=1)), Speed(), None, "")
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["speed"] == "? calls/s · ETA ?"
    assert shown["latency"] == "p50 ? · p90 ? · p99 ?"
    assert shown["usage"] == "1 calls · ? tokens in, ? out · cost ?"


def test_a_total_that_still_grows_has_no_share():
    lines = run_lines(seen(status=RunStatus.ENQUEUING), SPEED, None, "")
    assert lines[1].endswith("100/200+ · 10 failed")
    assert "ETA" not in "".join(lines)


def test_what_is_almost_done_is_not_shown_as_done():
    stages = (StageStatus(stage=0, total=10_000, succeeded=9_999, failed=0, done=9_999),)
    [_, line, *_] = run_lines(seen(stages=stages), SPEED, None, "")
    assert line.endswith("#-] 9,999/10,000 99.9%")
    stages = (StageStatus(stage=0, total=10_000, succeeded=1, failed=0, done=1),)
    [_, line, *_] = run_lines(seen(stages=stages), SPEED, None, "")
    assert "[#---" in line


def test_the_stages_of_a_second_aggregate_are_counted_from_one():
    again = StageStatus(stage=4, total=4, succeeded=1, failed=0, done=1)
    lines = run_lines(seen(stages=(STAGES[0], again)), SPEED, None, "")
    assert lines[2].startswith("reduce 1  [")


@pytest.mark.parametrize("width", [20, 34, 59, 60, 79, 139])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    workers = [WorkerRecord(name=f"worker-{n}@{'host' * 20}", concurrency=20) for n in range(20)]
    errors = dict.fromkeys(ErrorKind, 12_345)
    usage = Usage(calls=10**7, input_tokens=10**12, output_tokens=10**11, cost_usd=10**6)
    now = fleet(workers=workers, runs=dict.fromkeys(RunStatus, 1_000), active=("r1",) * 40)
    run = seen(errors=errors, usage=usage)
    frames = [
        run_lines(run, SPEED, now, "m" * 200, width=width),
        fleet_lines(now, [run] * 12, SPEED, width=width),
        runs_lines([(run, "m" * 200)], width=width),
    ]
    for frame in frames:
        assert max(map(len, frame)) <= width


def test_a_narrow_terminal_has_no_bars_and_more_lines():
    lines = run_lines(seen(), SPEED, fleet(), "openai/x", width=40)
    assert lines[1:5] == [
        "branches  100/200 50.0% · 10 failed",
        "reduce 1  1/4 25.0%",
        "speed     12.5 calls/s",
        "          1,000 tokens/s in, 50 out",
    ]
    assert lines[-1] == "  a@x             8/8  90 done  seen 1.~"


def test_work_without_a_worker_says_what_to_do():
    hint = ["workers   none: start one with `fanout worker`"]
    assert workers_lines([], read_at=NOW, left=3) == hint
    assert workers_lines([], read_at=NOW) == ["workers   none"]


def test_of_many_workers_the_fullest_are_shown():
    workers = [WorkerRecord(name=f"w{n}", concurrency=20, in_flight=n) for n in range(20)]
    lines = workers_lines(workers, read_at=NOW)
    assert lines[0] == "workers   20 · 190 of 400 places in use"
    assert lines[1].split()[0] == "w19"
    assert (len(lines), lines[-1]) == (10, "  and 12 more")
    assert len(workers_lines(workers, read_at=NOW, shown=20)) == 21


def test_a_fleet_shows_its_newest_runs_and_how_many_more():
    runs = [status(run_id=f"r{n}", total=10, done=n, failed=0) for n in range(12)]
    now = fleet(
        runs={RunStatus.RUNNING: 13, RunStatus.PAUSED: 1},
        active=tuple(f"r{n}" for n in range(14)),
        memory=Memory(used_bytes=2_500_000, limit_bytes=10_000_000),
    )
    lines = fleet_lines(now, runs, SPEED)
    assert lines[0] == "runs      1 paused · 13 running"
    assert lines[1] == f"  r0        running    [{'-' * 40}] 0/10 0.0%"
    assert lines[13] == "  and 2 more"
    assert "memory    2.5 MB of 10.0 MB" in lines
    assert lines[-1].startswith("  a@x")


def test_a_fleet_that_does_nothing_says_so():
    now = fleet(runs={}, workers=[], queues=(Queue(name="fanout.branches", waiting=2),))
    assert fleet_lines(now, [], SPEED)[0] == "runs      none"
    assert capacity_lines(now) == [
        "queues    branches 2 · taken 8 (renewed 1.0 s ago)",
        "memory    ?",
        "workers   none: start one with `fanout worker`",
    ]


def test_a_fleet_is_one_line_where_there_is_no_terminal():
    assert fleet_line(fleet(), SPEED) == (
        "runs: 1 running · 12.5 calls/s · 1,000 tokens/s in, 50 out · control 0 · branches 92 "
        "(oldest 3.2 s) · taken 8 (renewed 1.0 s ago) · 8 of 8 places of 1 worker in use"
    )


def test_a_model_that_is_left_alone_shows_and_for_how_long():
    limits = {
        "openai/x": LimitState(blocked_until=4.0, down_s=65.0),
        "openai/y": LimitState(blocked_until=30.0),
        "openai/z": LimitState(requests_until=3.0),
    }
    row = "paused    openai/x fails since 1:05, next try in 4.0 s · openai/y asks to wait 30.0 s"
    shown = fleet(limits=limits)
    assert row in run_lines(seen(), SPEED, shown, "openai/x", width=100)
    assert row in fleet_lines(shown, [], SPEED, width=100)
    assert "openai/x fails since 1:05" in fleet_line(shown, SPEED)
    assert not [line for line in fleet_lines(fleet(), [], SPEED) if line.startswith("paused")]


def test_a_table_of_runs_is_aligned():
    created_at = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    given = {"created_at": created_at, "total": 1_500, "elapsed_s": 75.0}
    rows = [
        (status(**given, run_id="abcdefgh"), "openai/x"),
        (status(**{**given, "elapsed_s": 2.0}, status=RunStatus.ENQUEUING, failed=0), "fake"),
    ]
    assert runs_lines(rows, width=100) == [
        "RUN       CREATED              STATUS          DONE  FAILED  ELAPSED  MODEL",
        "abcdefgh  2026-01-02 03:04:05  running     10/1,500       2     1:15  openai/x",
        "r1        2026-01-02 03:04:05  enqueuing  10/1,500+       0    2.0 s  fake",
    ]
    assert runs_lines([])[1:] == []


def test_no_more_places_are_taken_than_there_are():
    """A worker has begun more than it has places for: what comes next is at hand."""
    workers = [WorkerRecord(name=n, concurrency=24, in_flight=f) for n, f in (("a", 29), ("b", 3))]
    shown = [*workers_lines(workers, read_at=NOW), fleet_line(fleet(workers=workers), SPEED)]
    assert "27 of 48 places" in shown[0]
    assert "24/24" in shown[1]
    assert "27 of 48 places" in shown[-1]


def test_a_worker_that_gives_no_sign_of_life_is_marked():
    workers = [
        WorkerRecord(name="alive", concurrency=4, seen_at=NOW - 3.0),
        WorkerRecord(name="dead", concurrency=4, seen_at=NOW - 11.0),
    ]
    head, alive, dead = workers_lines(workers, read_at=NOW, width=120)
    assert head.endswith("1 silent: dead, or cut off from the server")
    assert alive.endswith("seen 3.0 s ago")
    assert dead.endswith("seen 11.0 s ago, silent")
