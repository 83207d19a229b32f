from __future__ import annotations

import io
import re
import threading

import pytest
from msgspec import structs

from fanout.cli.following import enqueue_monitor, follow
from fanout.cli.progress import Progress, summary
from fanout.cli.run_facts import run_rows
from fanout.core.errors import BrokerError
from fanout.core.gathered import RunBatch
from fanout.core.rate_limits import LimitState
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.core.spec import make_spec
from fanout.runs.status import StageStatus, Status


def status(**fields):
    given = {
        "run_id": "r1", "status": RunStatus.RUNNING, "total": 1000, "done": 10, "succeeded": 8,
        "failed": 2, "errors": {ErrorKind.TIMEOUT: 2}, "usage": Usage(calls=12),
        "created_at": 0.0, "elapsed_s": 2.0, "stage": 0, "error": None, "workers": 1,
    }  # fmt: skip
    return Status(**{**given, **fields})


SGR = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fanout.cli.progress.time.monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


def test_a_line_says_how_far_how_fast_and_how_long(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.show(status(usage=Usage(calls=0)))
    clock[0] += 10
    progress.show(status(done=510, usage=Usage(calls=700, input_tokens=5000, output_tokens=70)))
    # When it ends is told by the branches: some calls are made again.
    assert stream.getvalue().splitlines()[1] == (
        "running 510/1,000 · 2 failed · 70.0 calls/s · ETA 9.8 s · 5,000 tokens in, 70 out"
    )


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_has_a_bar_with_share_rate_and_eta(clock, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    progress = Progress(stream)
    stages = [
        (StageStatus(stage=0, total=1000, succeeded=done - 2, failed=2, done=done),)
        for done in (10, 510)
    ]
    progress.show(status(usage=Usage(calls=0), stages=stages[0]))
    clock[0] += 10
    progress.note("a note")
    progress.show(status(done=510, usage=Usage(calls=700), stages=stages[1], workers=0))
    shown = SGR.sub("", stream.getvalue())
    bar, details, hint = shown.rpartition("\x1b[2K")[2].splitlines()
    assert re.fullmatch(r"branches ━+[╺╸]━+ +51\.0% 510/1,000 · 2 failed", bar)
    assert len(bar) <= columns
    assert details == "running · 70.0 calls/s · ETA 9.8 s"
    assert hint == "no worker is consuming: start one with `fanout worker`"
    assert "\x1b[2Ka note\nbranches" in shown
    progress.close()
    assert stream.getvalue().endswith("\x1b[1A\x1b[2K" * 3)


def test_a_model_that_is_left_alone_is_named_once_until_it_answers():
    stream = io.StringIO()
    progress = Progress(stream)
    fails = LimitState(blocked_s=3.0, down_s=12.0)
    for limit in (None, fails, fails, None, None):
        progress.held("openai/x", limit)
    progress.held("openai/y", LimitState(blocked_s=90.0))
    progress.held("openai/y", LimitState(requests_ahead_s=5.0))
    assert stream.getvalue().splitlines() == [
        "openai/x fails for everybody since 12.0 s: all its calls wait",
        "openai/x answers again",
        "openai/y asks to wait 1:30: all its calls wait",
    ]


def test_a_line_says_how_far_the_aggregate_is(clock):
    stages = tuple(
        StageStatus(stage=n, total=total, succeeded=done, failed=0, done=done)
        # The aggregate of before a retry had two stages.
        for n, total, done in [(0, 1000, 1000), (3, 8, 8), (4, 2, 1)]
    )
    reducing = status(status=RunStatus.REDUCING, done=1000, stage=4, stages=stages)
    assert Progress().line(reducing) == "reducing 1,000/1,000 · 2 failed · reduce 2: 1/2"
    early = status(status=RunStatus.RUNNING, done=600, stage=0, stages=stages)
    assert Progress().line(early).startswith("running 600/1,000 · 2 failed · reduce 9/10+")


def test_a_dumb_terminal_gets_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    progress = Progress(stream)
    progress.show(status())
    progress.close()
    assert stream.getvalue() == "running 10/1,000 · 2 failed\n"


def test_a_broker_that_does_not_answer_is_said_once_until_it_does(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.away()
    progress.away()
    progress.show(status())
    progress.away()
    lines = stream.getvalue().splitlines()
    assert [line[:26] for line in lines] == [
        "the broker does not answer",
        "the broker answers again",
        "running 10/1,000 · 2 faile",
        "the broker does not answer",
    ]


def test_a_broker_that_refuses_is_said_once_until_it_takes_what_is_written(clock):
    stream = io.StringIO()
    progress = Progress(stream, is_quiet=True)
    progress.refused(None)
    for _ in range(3):
        progress.refused("the disk is full")
        progress.show(status())
    assert stream.getvalue() == "fanout: warning: the disk is full; the run waits for it\n"
    progress.refused(None)
    progress.refused("the disk is full")
    assert stream.getvalue().count("the disk is full") == 2


class Refusing:
    """A run whose server can be read, and refuses to stop it."""

    def __init__(self, statuses):
        self.statuses = statuses
        self.asked = 0

    def wait(self, *, on_progress, on_away):
        for now in self.statuses:
            try:
                on_progress(now)
            except BrokerError as error:
                on_away(error)
        return self.statuses[-1]

    spec = make_spec(model="fake", prompt="{input}")

    def write_problem(self):
        self.asked += 1
        return "the disk is full"

    def held_model(self):
        return None

    def cancel(self):
        raise BrokerError("the disk is full", is_passing=True, is_refusal=True)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_run_that_waits_for_a_server_that_refuses_says_so_once(clock, monkeypatch, is_stopped):
    monkeypatch.setattr("fanout.cli.following._STANDSTILL_S", 0.0)
    stream = io.StringIO()
    run = Refusing([status()] * 50)
    follow(run, Progress(stream), should_stop=lambda: is_stopped)
    assert stream.getvalue().count("\n") == 2
    assert "fanout: warning: the disk is full; the run waits for it\n" in stream.getvalue()
    paused = Refusing([status(status=RunStatus.PAUSED)] * 50)
    follow(paused, Progress(io.StringIO()))
    assert (run.asked > 0, paused.asked) == (True, 0)


class Held(Refusing):
    """A run whose model fails for all."""

    def write_problem(self):
        return None

    def held_model(self):
        return "openai/x", LimitState(blocked_s=3.0, down_s=12.0)


@pytest.mark.parametrize(
    ("last", "answers"),
    [
        ({"done": 11}, True),
        ({"done": 1000, "status": RunStatus.SUCCEEDED}, True),
        ({"done": 11, "is_stopping": True}, False),
        ({"done": 1000, "status": RunStatus.CANCELLED}, False),
        ({"done": 1000, "status": RunStatus.FAILED}, False),
    ],
)
def test_a_model_answers_again_only_where_a_run_goes_on(clock, monkeypatch, last, answers):
    monkeypatch.setattr("fanout.cli.following._STANDSTILL_S", 0.0)
    stream = io.StringIO()
    follow(Held([status(), status(), status(**last)]), Progress(stream))
    assert "openai/x fails for everybody since 12.0 s" in stream.getvalue()
    assert ("openai/x answers again" in stream.getvalue()) is answers


class Unending:
    """A run whose client looks once a second, and which does not end; the server may be away."""

    run_id = "r1"
    spec = make_spec(model="fake", prompt="{input}")

    def __init__(self, clock, workers=0, *, is_away=False, is_stoppable=True):
        self.clock, self.workers, self.is_away = clock, workers, is_away
        self.is_stoppable = is_stoppable

    def wait(self, *, on_progress, on_away):
        for _ in range(1000):
            self.clock[0] += 1
            if self.is_away:
                on_away(BrokerError("no answer", is_passing=True))
                continue
            try:
                on_progress(status(workers=self.workers))
                self.is_away = self.is_stoppable is None
            except BrokerError as error:
                on_away(error)
        return pytest.fail("one signal does not end it")

    def write_problem(self):
        return None

    def held_model(self):
        return None

    def cancel(self):
        if not self.is_stoppable and self.is_stoppable is not None:
            raise BrokerError("the disk is full", is_passing=True, is_refusal=True)


@pytest.mark.parametrize(
    ("workers", "has_own_worker", "waited_s", "words"),
    [
        (0, False, 5, "no worker is there to end it: it ends as cancelled as soon as one does"),
        (2, False, 60, "the workers have not ended it yet: it ends as cancelled"),
        (0, True, 60, "`fanout resume r1` ends it in order"),
    ],
)
def test_one_signal_ends_the_client_of_a_run_that_nobody_ends(
    clock, workers, has_own_worker, waited_s, words
):
    stream = io.StringIO()
    began_at = clock[0]
    last = follow(
        Unending(clock, workers),
        Progress(stream, is_quiet=True),
        should_stop=lambda: True,
        has_own_worker=has_own_worker,
    )
    assert last.run_id == "r1"
    assert clock[0] - began_at == waited_s + 1
    assert words in stream.getvalue()
    assert "gives what has finished" in stream.getvalue()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"is_away": True}, "no answer; run r1 could not be stopped, and goes on: `fanout cancel"),
        ({"is_stoppable": False}, "the disk is full; run r1 could not be stopped, and goes on"),
        ({"is_stoppable": None}, "no answer; run r1 is stopped: `fanout results r1` gives"),
    ],
)
def test_one_signal_ends_the_client_of_a_server_that_does_not_take_it(clock, fields, words):
    with pytest.raises(BrokerError, match=words):
        follow(Unending(clock, **fields), Progress(io.StringIO()), should_stop=lambda: True)


@pytest.mark.parametrize("how", [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED])
def test_the_last_line_does_not_say_that_all_branches_ended_as_the_run(how):
    assert Progress().line(status(status=how, done=1000)).startswith("ended 1,000/1,000 · 2 failed")


def test_who_waits_to_enqueue_a_run_is_told_why(clock, monkeypatch):
    monkeypatch.setattr("fanout.cli.following._STANDSTILL_S", 0.0)
    stream = io.StringIO()
    run = Refusing([])
    with enqueue_monitor(Progress(stream)) as begin:
        begin(lambda: run)
        for _ in range(1000):
            if run.asked > 2:
                break
            threading.Event().wait(0.01)
    assert stream.getvalue() == "fanout: warning: the disk is full; the run waits for it\n"
    with enqueue_monitor(Progress(stream)):
        pass


def test_a_total_that_still_grows_is_marked_and_has_no_eta(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.show(status(status=RunStatus.ENQUEUING))
    assert "enqueuing 10/1,000+" in stream.getvalue()
    assert "ETA" not in stream.getvalue()


def test_without_a_terminal_there_is_a_line_for_each_status_and_now_and_then(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    for done in range(5):
        progress.show(status(done=done))
        clock[0] += 1
    assert stream.getvalue().count("\n") == 1
    clock[0] += 10
    progress.show(status(done=9))
    progress.show(status(status=RunStatus.REDUCING))
    assert stream.getvalue().count("\n") == 3


def test_what_a_batch_does_is_a_new_line_though_no_branch_ends(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    batch = RunBatch(number=1, batch_id="b1", state="submitted", calls=9, age_s=1.0)
    for answered in (0, 0, 4):
        clock[0] += 20
        batch = structs.replace(batch, answered=answered, age_s=batch.age_s + 20)
        progress.show(status(gathered=9, batches=(batch,)))
    lines = stream.getvalue().splitlines()
    assert [line.rpartition(" · ")[2] for line in lines] == [
        "b1 is at the provider, 0 of 9 answered after 21.0 s",
        "b1 is at the provider, 4 of 9 answered after 1:01",
    ]
    # That it stops does not wait for the next line to be due.
    progress.show(status(gathered=9, batches=(batch,), is_stopping=True))
    assert "stopping: what its batches have answered" in stream.getvalue().splitlines()[2]


def test_a_fleet_without_workers_is_reported(clock):
    stream = io.StringIO()
    Progress(stream).show(status(workers=0))
    assert "no worker is consuming: start one with `fanout worker`" in stream.getvalue()


def test_who_follows_a_paused_run_is_told_how_it_goes_on(clock):
    paused = status(status=RunStatus.PAUSED, workers=0)
    assert Progress(idle="").line(paused).endswith(" · `fanout unpause r1` lets it go on")
    assert "unpause" not in Progress().line(status(workers=0))


def test_quiet_is_quiet(clock):
    stream = Terminal()
    progress = Progress(stream, is_quiet=True)
    progress.show(status())
    progress.note("x")
    progress.close()
    assert stream.getvalue() == ""


def test_the_summary_says_how_it_ended():
    line = summary(
        status(
            status=RunStatus.SUCCEEDED,
            done=1000,
            succeeded=998,
            elapsed_s=3723,
            usage=Usage(calls=1004, input_tokens=9, output_tokens=8, cost_usd=1.25),
        )
    )
    assert line == (
        "run r1 succeeded: 998 of 1,000 branches (99.8%) · 2 failed: timeout 2 · "
        "1,004 calls in 1 h 2 min · 9 tokens in, 8 out · $1.25"
    )


def test_failed_calls_of_the_reduce_are_counted(clock):
    stages = (
        StageStatus(stage=0, total=9, succeeded=9, failed=0, done=9),
        StageStatus(stage=3, total=8, succeeded=1, failed=7, done=8),
        StageStatus(stage=4, total=1, succeeded=0, failed=1, done=1),
    )
    now = status(status=RunStatus.SUCCEEDED, failed=0, errors={}, stages=stages)
    assert " · 8 calls of the reduce failed or left out · 12 calls in " in summary(now)
    assert " · 8 calls of the reduce failed or left out" in Progress(io.StringIO()).line(now)
    assert dict(run_rows(now, None))["errors"] == ["8 calls of the reduce failed or left out"]
    assert "reduce" not in summary(status(stages=stages[:1]))


def test_the_summary_shows_the_known_part_of_a_cost():
    usage = Usage(
        calls=3,
        input_tokens=9,
        cached_input_tokens=4,
        at_least={"output_tokens": 8, "cost_usd": 0.5},
    )
    line = summary(status(status=RunStatus.SUCCEEDED, usage=usage))
    assert line.endswith("9 tokens in (4 cached), at least 8 out · at least $0.50")
