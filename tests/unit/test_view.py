"""The frames of ``fanout watch``: what was seen, as lines."""

from __future__ import annotations

import io

import pytest

from fanout.cli.view import Meter, Screen, Speed, fleet_lines, run_lines, workers_lines
from fanout.fleet import FleetStatus
from fanout.latency import Latency, bucket_of
from fanout.queues import Leases, Queue
from fanout.results import StageStatus
from fanout.runs import ErrorKind, RunStatus, Usage
from fanout.stores import StageWindow, Totals, WorkerRecord

from .test_progress import status

STAGES = (
    StageStatus(stage=0, total=200, succeeded=90, failed=10, done=100),
    StageStatus(stage=1, total=4, succeeded=1, failed=0, done=1),
)
SPEED = Speed(branches=10.0, calls=12.5, input_tokens=1000.0, output_tokens=50.0)


def fleet(**fields):
    given = {
        "workers": [WorkerRecord(name="a@x", concurrency=8, in_flight=8, processed=90)],
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
        "branches  [############------------] 100/200 50.0% · 10 failed",
        "reduce 1  [######------------------] 1/4 25.0%",
        "speed     12.5 calls/s · 1,000 tokens/s in, 50 out · ETA 10.0 s",
        "latency   p50 0.4 s · p90 0.48 s · p99 0.498 s",
        "tokens    9,000 in, 800 out · cost $0.2500",
        "errors    timeout 7 · rate_limited 3",
        "queues    control 0 · branches 92 (oldest 3.2 s) · taken 8",
        "workers   1, 8 of 8 places in use",
        "  a@x  [##########]       8/8  90 done",
    ]


def test_what_is_unknown_is_never_shown_as_nothing():
    lines = run_lines(seen(latency=Latency(), usage=Usage(calls=1)), Speed(), None, "")
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["speed"] == "?"
    assert shown["latency"] == "p50 ? · p90 ? · p99 ?"
    assert shown["tokens"] == "? in, ? out · cost ?"


def test_a_total_that_still_grows_has_no_share():
    lines = run_lines(seen(status=RunStatus.ENQUEUING), SPEED, None, "")
    assert lines[1].endswith("100/200+ · 10 failed")
    assert "ETA" not in "".join(lines)


def test_work_without_a_worker_says_what_to_do():
    assert workers_lines([], left=3) == ["workers   none: start one with `fanout worker`"]
    assert workers_lines([]) == ["workers   none"]


def test_of_many_workers_the_fullest_are_shown():
    workers = [WorkerRecord(name=f"w{n}", concurrency=20, in_flight=n) for n in range(20)]
    lines = workers_lines(workers)
    assert lines[0] == "workers   20, 190 of 400 places in use"
    assert lines[1].split()[0] == "w19"
    assert (len(lines), lines[-1]) == (10, "  and 12 more")
    assert len(workers_lines(workers, shown=20)) == 21


def test_a_fleet_shows_its_runs():
    runs = [status(run_id=f"r{n}", total=10, done=n, failed=0) for n in range(14)]
    lines = fleet_lines(fleet(runs={RunStatus.RUNNING: 14}), runs, SPEED)
    assert lines[0] == "runs      14 in progress"
    assert lines[1] == "  r0  running    [------------------------] 0/10 0.0%"
    assert lines[13] == "  and 2 more"


def test_speed_is_that_of_the_last_seconds():
    meter = Meter()
    assert meter.see(0, Usage(calls=0), now=0.0) == Speed()
    meter.see(1_000, Usage(calls=1_000), now=10.0)
    for second in range(11, 31):
        speed = meter.see(1_000, Usage(calls=1_000, input_tokens=None), now=float(second))
    assert (speed.branches, speed.calls, speed.input_tokens) == (0, 0, None)


def test_a_retry_is_no_negative_speed():
    meter = Meter()
    meter.see(100, Usage(calls=100), now=0.0)
    assert meter.see(60, Usage(calls=110), now=1.0).branches == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_frame_is_drawn_over_the_one_before(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "4")
    stream = Terminal()
    screen = Screen(stream)
    screen.draw(["one", "x" * 99])
    screen.draw(["a", "b", "c", "d", "e"])
    screen.clear()
    # Nothing wraps, nothing scrolls: or the way back would be another one.
    assert stream.getvalue() == f"one\n{'x' * 29}\n\x1b[2F\x1b[Ja\nb\nc\n\x1b[3F\x1b[J"


@pytest.mark.parametrize(("term", "fit"), [("xterm", True), ("dumb", False), ("", False)])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term, fit):
    monkeypatch.setenv("TERM", term)
    assert Screen.is_fit(Terminal()) is fit
    assert Screen.is_fit(io.StringIO()) is False
