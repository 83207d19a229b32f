"""What is drawn of runs and fleets on terminals of many widths; and plain lines for a pipe."""

from __future__ import annotations

import re
import time

import pytest
from rich.console import ConsoleDimensions

from fanout.broker.backlog import Queue, ServerMemory, TakenMessages
from fanout.cli.console import TerminalConsole
from fanout.cli.facts import capacity_lines, fleet_line, runs_lines
from fanout.cli.inspect_runs import _line
from fanout.cli.progress import Progress
from fanout.cli.run_facts import run_rows
from fanout.cli.speed import Speed
from fanout.cli.views import (
    findings_view,
    fleet_view,
    progress_view,
    run_view,
    runs_table,
    workers_view,
)
from fanout.core.fleet_records import Totals, WorkerRecord
from fanout.core.latency import Latency, bucket_of
from fanout.core.queue_names import NO_CONSUMER
from fanout.core.rate_limits import LimitState, Rates
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.core.state import StageLoad
from fanout.doctor import Finding, State
from fanout.observe.fleet import FleetStatus
from fanout.runs.status import StageStatus
from tests.unit.system.test_terminal import Tty

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
        "leases": TakenMessages(taken=8, oldest_s=1.0),
        "memory": None,
        "runs": {RunStatus.RUNNING: 1},
        "window": StageLoad(),
        "totals": Totals(),
        "limits": {},
        "read_at": NOW,
    }
    return FleetStatus(**{**given, **fields})


def seen(**fields):
    latency = Latency(counts={bucket_of(0.5): 10}, sum_s=5.0)
    given = {"total": 200, "done": 100, "stages": STAGES, "latency": latency}
    return status(**{**given, **fields})


@pytest.fixture(autouse=True)
def no_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")


def drawn(view, *given, width=80, encoding="utf-8", **more):
    """The lines that a terminal of that width shows."""
    stream = Tty(encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TerminalConsole, "size", ConsoleDimensions(width, 50))
        TerminalConsole(stream).print(view(*given, width=width, **more))
    return [line.rstrip() for line in stream.shown.decode().splitlines()]


def test_calls_that_split_documents_are_no_calls_that_were_made_again():
    plan = StageStatus(stage=0, total=4, succeeded=4, failed=0, done=4)
    for calls, shown in ((105, []), (107, [("retries", ["2 calls were made again"])])):
        now = seen(usage=Usage(calls=calls), plan=plan)
        assert [row for row in run_rows(now, None) if row[0] == "retries"] == shown


def test_a_frame_has_all_there_is_to_know_of_a_run():
    usage = Usage(calls=120, input_tokens=9_000, output_tokens=800, cost_usd=0.25)
    errors = {ErrorKind.TIMEOUT: 7, ErrorKind.RATE_LIMITED: 3}
    lines = drawn(run_view, seen(usage=usage, errors=errors), SPEED, fleet(), "openai/x")
    # It still grows, as branches go on.
    assert re.fullmatch(r"reduce 1 [━┄]{40} {7}1/4\+", lines.pop(2))
    assert lines == [
        "run r1  running · 2.0 s  openai/x",
        f"branches {'━' * 20}{'┄' * 20} 50.0% 100/200 · 10 failed",
        "speed    12.5 calls/s · 1,000 tokens/s in, 50 out · ETA 10.0 s",
        "latency  p50 0.4 s · p90 0.48 s · p99 0.498 s",
        "usage    120 calls · 9,000 tokens in, 800 out · cost $0.25",
        "retries  19 calls were made again",
        "errors   timeout 7 · rate_limited 3",
        "queues   control 0 · branches 92 (oldest 3.2 s) · taken 8 (renewed 1.0 s ago)",
        "memory   ?",
        "workers  1 · 8 of 8 places in use",
        "  WORKER  PLACES  DONE  LOAD        SEEN",
        "  a@x        8/8    90  ━━━━━━━━━━  1.5 s ago",
    ]


def test_the_last_frame_says_how_it_ended_and_not_what_others_do():
    lines = drawn(run_view, seen(status=RunStatus.SUCCEEDED), SPEED, None, "openai/x", note="why")
    assert lines[0] == "run r1  succeeded · 2.0 s  openai/x"
    assert [line.split()[0] for line in lines[1:]] == [
        "branches", "reduce", "latency", "usage", "errors", "note"
    ]  # fmt: skip


def test_what_is_unknown_is_never_shown_as_nothing():
    lines = drawn(run_view, seen(latency=Latency(), usage=Usage(calls=1)), Speed(), None, "")
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["speed"] == "? calls/s · ETA ?"
    assert shown["latency"] == "p50 ? · p90 ? · p99 ?"
    assert shown["usage"] == "1 call · ? tokens in, ? out · cost ?"
    least = Usage(calls=2, output_tokens=3, at_least={"input_tokens": 1_200, "cost_usd": 1.5})
    lines = drawn(run_view, seen(usage=least), Speed(), None, "")
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["usage"] == "2 calls · at least 1,200 tokens in, 3 out · cost at least $1.50"


def test_a_total_that_still_grows_has_no_share():
    lines = drawn(run_view, seen(status=RunStatus.ENQUEUING), SPEED, None, "")
    assert lines[1].endswith("100/200+ · 10 failed")
    assert "%" not in lines[1]
    assert "ETA" not in "".join(lines)


@pytest.mark.parametrize(
    ("done", "total", "halves", "share"),
    [(9_999, 10_000, 79, "99.9%"), (1, 10_000, 0, "0.0%"), (3, 3, 80, "100.0%"), (0, 0, 0, "")],
)
def test_what_is_almost_done_is_not_shown_as_done(done, total, halves, share):
    stages = (StageStatus(stage=0, total=total, succeeded=done, failed=0, done=done),)
    line = drawn(run_view, seen(stages=stages), SPEED, None, "")[1]
    assert line.count("━") * 2 + line.count("╸") == halves
    assert len(re.findall("[━╸┄]", line)) == 40
    assert line.replace("┄", " ").split()[-2:] == (
        [share, f"{done:,}/{total:,}"] if share else ["branches", "0/0"]
    )


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", "━┄"), ("ascii", "-.")])
def test_without_colours_what_is_done_and_what_is_left_differ(encoding, marks):
    """In the bars of stages, of runs whose total still grows, and of workers."""
    workers = [WorkerRecord(name="a", concurrency=4, in_flight=1, seen_at=NOW)]
    [_, bar, *_, load] = drawn(
        run_view, seen(), SPEED, fleet(workers=workers), "", encoding=encoding
    )
    growing = drawn(run_view, seen(status=RunStatus.ENQUEUING), None, None, "", encoding=encoding)
    for line, width in ((bar, 40), (growing[1], 40), (load, 10)):
        [shown] = re.findall(rf"[{re.escape(marks)}╸]{{{width}}}", line)
        assert set(marks) <= set(shown)


def test_the_stages_of_a_second_aggregate_are_counted_from_one():
    again = StageStatus(stage=4, total=4, succeeded=1, failed=0, done=1)
    run = seen(stages=(STAGES[0], again), stage=4, status=RunStatus.REDUCING)
    lines = drawn(run_view, run, SPEED, None, "")
    assert lines[2].startswith("reduce 1 ━")


def test_progress_is_bars_with_shares_and_what_else_there_is_in_short():
    parts = ["running", "12.5 calls/s", "ETA 10.0 s", "9,000 tokens in, 800 out"]
    lines = drawn(progress_view, seen(), parts, "start a worker", width=60)
    assert lines[0].split()[2:] == ["50.0%", "100/200", "·", "10", "failed"]
    assert lines[2:] == [
        "running · 12.5 calls/s · ETA 10.0 s",
        "9,000 tokens in, 800 out",
        "start a worker",
    ]
    assert len(drawn(progress_view, seen(), parts, "", width=120)) == 3


@pytest.mark.parametrize("width", [20, 34, 59, 60, 79, 139])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    workers = [WorkerRecord(name=f"worker-{n}@{'host' * 20}", concurrency=20) for n in range(20)]
    errors = dict.fromkeys(ErrorKind, 12_345)
    usage = Usage(calls=10**7, input_tokens=10**12, output_tokens=10**11, cost_usd=10**6)
    now = fleet(workers=workers, runs=dict.fromkeys(RunStatus, 1_000), active=("r1",) * 40)
    run = seen(errors=errors, usage=usage)
    frames = [
        drawn(run_view, run, SPEED, now, "m" * 200, width=width),
        drawn(fleet_view, now, [run] * 12, SPEED, width=width),
        drawn(runs_table, [(run, "m" * 200)], width=width),
        drawn(progress_view, run, ["running", "p" * 70], "hint " * 20, width=width),
    ]
    for frame in frames:
        assert max(map(len, frame)) <= width


def test_a_narrow_terminal_has_no_bars_and_more_lines():
    lines = drawn(run_view, seen(), SPEED, fleet(), "openai/x", width=36)
    assert lines[1:5] == [
        "branches 50.0% 100/200 · 10 failed",
        "reduce 1       1/4+",
        "speed    12.5 calls/s",
        "         1,000 tokens/s in, 50 out",
    ]
    assert lines[-1] == "  a@x        8/8    90  1.5 s ago"


def test_names_are_cut_and_figures_are_not():
    workers = [WorkerRecord(name="host" * 20, concurrency=20, processed=12_345)]
    line = drawn(workers_view, fleet(workers=workers), width=60)[-1]
    assert line.split()[0].endswith("…")
    assert line.split()[1:3] == ["0/20", "12,345"]


@pytest.mark.parametrize("left", [3, 0])
def test_work_without_a_worker_says_what_to_do(left):
    words = "none: start one with `fanout worker`" if left else "none"
    now = fleet(workers=[], queues=(Queue(name="fanout.branches", waiting=left),))
    for lines in (drawn(workers_view, now), capacity_lines(now)):
        assert lines[-1].split(maxsplit=1) == ["workers", words]


def test_of_many_workers_the_fullest_are_shown():
    workers = [WorkerRecord(name=f"w{n}", concurrency=20, in_flight=n) for n in range(20)]
    now = fleet(workers=workers)
    lines = drawn(fleet_view, now, [], SPEED)
    at = lines.index("workers  20 · 190 of 400 places in use")
    assert lines[at + 2].split()[:2] == ["w19", "19/20"]
    assert (len(lines) - at, lines[-1]) == (11, "  and 12 more")
    assert len(drawn(workers_view, now)) == 2 + 2 + 20


def test_a_fleet_shows_its_newest_runs_and_how_many_more():
    runs = [status(run_id=f"r{n}", total=10, done=n, failed=0) for n in range(12)]
    now = fleet(
        runs={RunStatus.RUNNING: 13, RunStatus.PAUSED: 1},
        active=tuple(f"r{n}" for n in range(14)),
        memory=ServerMemory(used_bytes=2_500_000, limit_bytes=10_000_000),
    )
    lines = drawn(fleet_view, now, runs, SPEED)
    assert lines[0] == "runs     1 paused · 13 running"
    assert lines[1].replace("┄", "").split() == ["r0", "running", "0.0%", "0/10"]
    assert lines[2].split()[2].strip("┄") == "━" * 4
    assert lines[13] == "  and 2 more"
    assert "memory   2.5 MB of 10.0 MB" in lines
    assert lines[-1].startswith("  a@x")


def test_a_fleet_that_does_nothing_says_so():
    now = fleet(runs={}, workers=[], queues=(Queue(name="fanout.branches", waiting=2),))
    assert drawn(fleet_view, now, [], SPEED)[0] == "runs     none"


def test_a_fleet_is_plain_lines_where_there_is_no_terminal():
    assert fleet_line(fleet(), SPEED) == (
        "runs: 1 running · 12.5 calls/s · 1,000 tokens/s in, 50 out · control 0 · branches 92 "
        "(oldest 3.2 s) · taken 8 (renewed 1.0 s ago) · 8 of 8 places of 1 worker in use"
    )
    workers = [
        WorkerRecord(name="a@x", concurrency=1_000, in_flight=1, processed=9, seen_at=NOW - 1.5),
        WorkerRecord(name="b" * 12, concurrency=8, in_flight=9, seen_at=NOW - 11.0),
    ]
    assert capacity_lines(fleet(workers=workers)) == [
        "queues    control 0 · branches 92 (oldest 3.2 s) · taken 8 (renewed 1.0 s ago)",
        "memory    ?",
        "workers   2 · 9 of 1,008 places in use · 1 silent: dead, or cut off from the server",
        "  bbbbbbbbbbbb  [##########]        8/8  0 done  seen 11.0 s ago, silent",
        "  a@x           [#---------]    1/1,000  9 done  seen 1.5 s ago",
    ]


def test_a_model_that_is_left_alone_shows_and_for_how_long():
    limits = {
        "openai/x": LimitState(blocked_s=4.0, down_s=65.0),
        "openai/y": LimitState(blocked_s=30.0),
        "openai/z": LimitState(requests_ahead_s=3.0),
    }
    row = "paused   openai/x fails since 1:05, next try in 4.0 s · openai/y asks to wait 30.0 s"
    shown = fleet(limits=limits)
    assert row in drawn(run_view, seen(), SPEED, shown, "openai/x", width=100)
    assert row in drawn(fleet_view, shown, [], SPEED, width=100)
    assert "openai/x fails since 1:05" in fleet_line(shown, SPEED)
    assert not [line for line in drawn(fleet_view, fleet(), [], SPEED) if "paused" in line]


def test_learnt_limits_show():
    limits = {
        "openai/x": LimitState(learnt=Rates(requests_per_minute=1_200, tokens_per_minute=6e6)),
        "openai/y": LimitState(calls_at_once=20, learnt=Rates()),
        "openai/z": LimitState(requests_ahead_s=3.0),
    }
    row = (
        "limits   openai/x takes 1,200 requests a minute, 6,000,000 tokens a minute · "
        "openai/y takes 20 calls at once"
    )
    shown = fleet(limits=limits)
    assert row in drawn(fleet_view, shown, [], SPEED, width=120)
    assert row.replace("limits ", "limits  ") in capacity_lines(shown)


def test_a_table_of_runs_is_aligned():
    created_at = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    given = {"created_at": created_at, "total": 1_500, "elapsed_s": 75.0}
    rows = [
        (status(**given, run_id="abcdefgh"), "openai/x"),
        (status(**{**given, "elapsed_s": 2.0}, status=RunStatus.ENQUEUING, failed=0), "fake"),
    ]
    aligned = [
        "RUN       CREATED              STATUS          DONE  FAILED  ELAPSED  MODEL",
        "abcdefgh  2026-01-02 03:04:05  running     10/1,500       2     1:15  openai/x",
        "r1        2026-01-02 03:04:05  enqueuing  10/1,500+       0    2.0 s  fake",
    ]
    assert runs_lines(rows) == aligned
    assert drawn(runs_table, rows, width=100) == aligned
    assert drawn(runs_table, rows, width=60) == [line[:8] + line[29:] for line in aligned]
    assert runs_lines([])[1:] == []


LIMITS = [
    ({}, ""),
    ({"max_workers": 8, "permits_used": 5}, "max_workers 8 (5 in use)"),
    ({"priority": 4.0}, "priority 4"),
    (
        {"max_workers": 1_000, "permits_used": 0, "priority": 0.25},
        "max_workers 1,000 (0 in use) · priority 0.25",
    ),
    ({"status": RunStatus.SUCCEEDED, "max_workers": 8, "permits_used": 0}, "max_workers 8"),
]


@pytest.mark.parametrize(("fields", "text"), LIMITS)
def test_a_run_shows_its_cap_and_its_priority_if_it_has_any(fields, text):
    now = seen(**fields)
    shown = [line for line in drawn(run_view, now, None, None, "fake") if "limits" in line]
    assert shown == ([f"limits   {text}"] if text else [])
    line = _line(now, Progress(is_quiet=True))
    assert text in line
    assert ("max_workers" in line, "priority" in line) == (
        "max_workers" in text,
        "priority" in text,
    )
    assert Progress(is_quiet=True).line(seen(**fields, workers=0)).endswith(NO_CONSUMER)


def test_a_table_of_runs_has_columns_for_caps_and_priorities_if_there_are_any():
    rows = [
        (status(run_id="a", max_workers=1_000), "openai/x"),
        (status(run_id="b", priority=0.5), "fake"),
        (status(run_id="c"), "fake"),
    ]
    aligned = [
        "RUN  STATUS       DONE  FAILED  ELAPSED    CAP  PRIORITY  MODEL",
        "a    running  10/1,000       2    2.0 s  1,000            openai/x",
        "b    running  10/1,000       2    2.0 s              0.5  fake",
        "c    running  10/1,000       2    2.0 s                   fake",
    ]
    assert drawn(runs_table, rows, width=75) == aligned
    assert [line[:5] + line[26:] for line in runs_lines(rows)] == aligned
    piped = [line.split() for line in runs_lines(rows, has_head=False)]
    assert [(cells[0], cells[7:]) for cells in piped] == [
        ("a", ["s", "openai/x"]), ("b", ["s", "fake"]), ("c", ["s", "fake"])
    ]  # fmt: skip
    paid = (status(run_id="d", usage=Usage(calls=1, cost_usd=0.5)), "openai/x")
    head, *_, last = runs_lines([*rows, paid])
    assert last[: head.index("COST") + 4].endswith(" $0.50")
    assert "COST" not in runs_lines(rows)[0]
    for chosen, gone in ((rows[:1], "PRIORITY"), (rows[1:], "CAP"), (rows[2:], "PRIORITY")):
        assert gone not in runs_lines(chosen)[0]


def test_no_more_places_are_taken_than_there_are():
    """A worker has begun more than it has places for: what comes next is at hand."""
    workers = [WorkerRecord(name=n, concurrency=24, in_flight=f) for n, f in (("a", 29), ("b", 3))]
    now = fleet(workers=workers)
    for lines in (drawn(workers_view, now), capacity_lines(now)):
        assert "27 of 48 places" in lines[2]
        assert "24/24" in "".join(lines)
    assert "27 of 48 places" in fleet_line(now, SPEED)


def test_branches_that_wait_are_in_no_place():
    loads = [("a", 29, 20), ("b", 3, 3), ("c", 24, 0), ("d", 2, 5)]
    workers = [
        WorkerRecord(name=name, concurrency=24, in_flight=count, waiting=waiting)
        for name, count, waiting in loads
    ]
    now = fleet(workers=workers)
    for lines in (drawn(workers_view, now), capacity_lines(now)):
        assert "33 of 96 places" in lines[2]
        shown = [cell for line in lines[3:] for cell in line.split() if cell.endswith("/24")]
        assert sorted(shown) == ["0/24", "0/24", "24/24", "9/24"]
    assert "33 of 96 places" in fleet_line(now, SPEED)


def test_a_worker_that_gives_no_sign_of_life_is_marked():
    workers = [
        WorkerRecord(name="alive", concurrency=4, seen_at=NOW - 3.0),
        WorkerRecord(name="dead", concurrency=4, seen_at=NOW - 11.0),
    ]
    *_, head, _, alive, dead = drawn(workers_view, fleet(workers=workers), width=120)
    assert head.endswith("1 silent: dead, or cut off from the server")
    assert alive.endswith("3.0 s ago")
    assert dead.endswith("11.0 s ago, silent")


def test_findings_are_a_table_with_what_to_do_below_each():
    findings = [
        Finding(check="role", state=State.OK, found="master"),
        Finding(check="memory", state=State.WARN, found="no limit", advice="set maxmemory"),
    ]
    lines = drawn(findings_view, findings, width=60)
    assert lines == ["ok   role   master", "warn memory no limit", "            -> set maxmemory"]
