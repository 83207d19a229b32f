"""What a run has is in every view of it: cost, budget, cache, lane, batches, and what it waits for."""

from __future__ import annotations

import json
import re

import pytest
from msgspec import structs

from fanout.cli.facts import capacity_lines, fleet_line
from fanout.cli.inspect_runs import _line
from fanout.cli.progress import Progress, summary
from fanout.cli.speed import Speed, eta_s
from fanout.cli.views import fleet_view, progress_view, run_view, runs_table, workers_view
from fanout.core.budgets import Amounts, BudgetLimits, BudgetState, nano_usd_of
from fanout.core.fleet_records import Totals
from fanout.core.gathered import RunBatch
from fanout.core.latency import Latency, bucket_of
from fanout.core.rate_limits import LimitState, Rates
from fanout.core.records import NO_CALL, RunStatus, Usage
from fanout.core.spec import make_spec
from fanout.core.state import StageLoad
from fanout.report.gathering import gather
from fanout.report.page import Facts, page
from fanout.runs.budget_status import BudgetStatus
from fanout.runs.result_values import ResultValues
from fanout.runs.status import StoredResult
from tests.unit.observe.test_metrics import Fixed, scrape
from tests.unit.report.test_report import Reader, branch

from .test_progress import status
from .test_views import SPEED, drawn, fleet

BATCH = RunBatch(
    number=3, batch_id="batch_abc", state="submitted", calls=30, answered=12, age_s=303.0
)
BUDGET = BudgetStatus(
    limit=BudgetLimits.of(usd=5.0),
    spent=Amounts(nano_usd=nano_usd_of(3.2)),
    unsure=Amounts(nano_usd=nano_usd_of(0.25)),
)
DAY = BudgetStatus(limit=BudgetLimits(calls=40), spent=Amounts(calls=40), is_used_up=True)
SLOW = LimitState(learnt=Rates(requests_per_minute=1.0), is_tight=True, requests_ahead_s=9.0)
WAITS = "the budget of the day is used up: its calls wait until 00:00 UTC"
STOPS = "stopping: what its batches have answered so far is awaited"


def report(now):
    spec = make_spec(model="openai/gpt-5-mini", prompt="{input}", lane=now.lane or "realtime")
    figures = gather([branch()], created_at=0.0)
    return Reader(
        page(
            Facts(
                status=now,
                spec=spec,
                figures=figures,
                values=ResultValues(StoredResult()),
                made_at=9.0,
            )
        )
    ).text


def flat(lines):
    return " ".join(" ".join(lines).split())


VIEWS = {
    "progress line": Progress().line,
    "progress bar": lambda now: flat(
        drawn(progress_view, now, ["", *Progress()._parts(now)], Progress().hint(now), width=400)
    ),
    "status": lambda now: _line(now, Progress()),
    "status on a terminal": lambda now: flat(
        drawn(run_view, now, None, None, "fake", width=400, note=Progress().hint(now))
    ),
    "summary": summary,
    "runs": lambda now: flat(drawn(runs_table, [(now, "fake")], width=400)),
    "report": report,
    "json": lambda now: json.dumps(now.to_dict()),
}
LIVE = {"progress line", "progress bar", "status", "status on a terminal"}
ENDED = set(VIEWS) - {"progress line", "progress bar"}
COUNTED = Usage(calls=9, input_tokens=70, output_tokens=7, cost_usd=1.25)
UNSURE = Usage(calls=9, at_least={"cost_usd": 1.25, "input_tokens": 70})


@pytest.mark.parametrize(
    ("fields", "words", "views", "as_json"),
    [
        ({"usage": COUNTED}, r"\$1\.25", {*LIVE, *ENDED}, '"cost_usd": 1.25'),
        ({"usage": UNSURE}, r"at least \$1\.25", {*LIVE, *ENDED}, '"at_least": {"cost_usd": 1.25'),
        ({"usage": Usage(calls=9), "asks_providers": True}, "tokens unknown · cost unknown",
         {"progress line", "summary", "progress bar"}, '"cost_usd": null'),
        ({"usage": Usage(calls=9), "asks_providers": True}, "Cost unknown", {"report"},
         '"asks_providers": true'),
        ({"saved": UNSURE}, r"at least \$1\.25 saved", {*LIVE, *ENDED} - {"runs"}, '"saved_usd": null'),
        ({"budget": BUDGET}, r"\$3\.20 of \$5\.00 spent", {*LIVE, *ENDED} - {"runs"}, '"left": {"usd": 1.8}'),
        ({"budget": BUDGET}, r"\(up to \$0\.25 of it by calls of which nothing is known\)",
         {*LIVE, *ENDED} - {"runs"}, '"unsure": {"usd": 0.25}'),
        ({"budget": BUDGET}, r"LEFT.*\$1\.80", {"runs"}, '"left": {"usd": 1.8}'),
        ({"saved": COUNTED}, "9 cached", {*LIVE, *ENDED} - {"runs", "report"}, '"cached": 9'),
        ({"saved": COUNTED}, r"CACHED.* 9 |from the cache 9 \$1\.25 saved", {"runs", "report"},
         '"saved_usd": 1.25'),
        ({"lane": "batch"}, "(?i)lane.* batch", {*LIVE, *ENDED}, '"lane": "batch"'),
        ({"lane": "flex"}, "(?i)lane.* flex", {*LIVE, *ENDED}, '"lane": "flex"'),
        ({"lane": "auto", "is_late": True}, r"(?i)lane.* auto \(calls at the list price, to be in time\)",
         {*LIVE, *ENDED} - {"runs", "report"}, '"is_late": true'),
        ({"gathered": 30, "batches": (BATCH,)},
         "wait for an answer of a batch · batch_abc is at the provider, 12 of 30 answered after 5:03",
         LIVE, '"gathered": 30'),
        ({"gathered": 1, "batches": (RunBatch(number=3, calls=1),)},
         "1 branch waits for an answer of a batch · batch 3 is being filled with 1 call", LIVE,
         '"state": "forming"'),
        ({"day_budgets": {"*": DAY}}, WAITS, LIVE, '"is_used_up": true'),
        ({"day_budgets": {"*": DAY}}, "all models: 40 of 40 calls spent, used up: calls wait",
         {"status on a terminal"}, '"is_used_up": true'),
        ({"day_budgets": {"openai/*": DAY}}, r"of the day for openai/\* is used up", LIVE,
         '"is_used_up": true'),
        ({"limits": {"openai/m": SLOW}}, "openai/m takes 1 request a minute: calls wait for that", LIVE,
         '"requests_per_minute": 1.0, "is_waited_for": true'),
        ({"limits": {"openai/m": LimitState(calls_at_once=1)}}, "openai/m takes 1 call at once", LIVE,
         '"calls_at_once": 1'),
        ({"is_stopping": True, "gathered": 3}, STOPS, LIVE, '"is_stopping": true'),
        ({"is_stopping": True}, "stopping: calls in flight end", LIVE, '"is_stopping": true'),
        ({"notice": "no answer has it"}, "no answer has it", {"status", "status on a terminal"},
         '"notice": "no answer has it"'),
    ],
)  # fmt: skip
def test_what_a_run_has_is_in_every_view(fields, words, views, as_json):
    for name in views:
        has_ended = name in ENDED - LIVE
        # What has ended waits for nothing.
        states = [RunStatus.SUCCEEDED] if has_ended else [RunStatus.RUNNING]
        if name in ENDED & LIVE and not fields.keys() & {
            "gathered",
            "day_budgets",
            "is_stopping",
            "limits",
            "notice",
        }:
            states.append(RunStatus.SUCCEEDED)
        for state in states:
            shown = VIEWS[name](status(**{"status": state, **fields}))
            if name != "json":
                assert re.search(words, shown), (name, shown)
    assert as_json in VIEWS["json"](status(**fields))


def test_a_run_without_them_says_nothing_of_them():
    for name in {*LIVE, *ENDED} - {"json", "report"}:
        state = RunStatus.SUCCEEDED if name in ENDED - LIVE else RunStatus.RUNNING
        shown = VIEWS[name](status(status=state, lane="realtime")).lower()
        assert not re.search(r"\blane|batch|budget|cached|wait|stopping:", shown), (name, shown)


@pytest.mark.parametrize(
    "fields",
    [{"asks_providers": True, "usage": NO_CALL}, {"usage": Usage(calls=9)},
     {"asks_providers": True, "usage": structs.replace(NO_CALL, calls=9)}],
)  # fmt: skip
def test_nothing_used_and_functions_without_a_price_are_not_said_to_be_unknown(fields):
    for name in ("progress line", "summary"):
        assert "unknown" not in VIEWS[name](status(**{"status": RunStatus.SUCCEEDED, **fields}))


def test_what_batches_may_use_is_told_from_what_is_never_known():
    words = "(up to $0.25 of it by calls in batches, or of which nothing is known)"
    assert words in summary(status(budget=structs.replace(BUDGET, is_batched=True)))


def test_a_run_of_batches_has_no_line_for_latencies():
    shown = [
        VIEWS["status on a terminal"](status(lane=lane, **fields))
        for lane in ("realtime", "batch")
        for fields in ({}, {"latency": Latency(counts={3: 1}, sum_s=0.02)})
    ]
    assert ["p50" in text for text in shown] == [True, True, False, True]


@pytest.mark.parametrize("fields", [{"day_budgets": {"*": DAY}}, {"is_stopping": True}])
def test_who_waits_for_the_next_day_or_stops_has_no_eta(fields):
    assert eta_s(status(), Speed(lately=2.0)) == 495
    assert eta_s(status(**fields), Speed(lately=2.0)) is None


def test_the_fleet_says_what_is_used_up_cached_and_waits_for_batches():
    totals = Totals(usage=COUNTED, saved=COUNTED)
    now = fleet(
        day_budgets={"openai/*": DAY}, day_left_s=3_600.0, totals=totals,
        window=StageLoad(gathered=30),
    )  # fmt: skip
    words = "openai/*: 40 of 40 calls spent, used up: calls wait"
    shown = {
        "workers": flat(capacity_lines(now)),
        "workers on a terminal": flat(drawn(workers_view, now, width=400)),
        "watch": flat(drawn(fleet_view, now, [], SPEED, width=400)),
    }
    for name, text in shown.items():
        assert words in text, name
        assert "the next day begins at 00:00 UTC, in 1:00:00" in text
        assert "30 wait for batches of providers" in text
    assert "30 wait for batches of providers" in fleet_line(now, SPEED)
    assert "budget of the day used up: openai/*" in fleet_line(now, SPEED)
    found = now.to_dict()["day_budgets"]["openai/*"]
    assert (found["is_used_up"], found["left"]) == (True, {"calls": 0})
    metrics = scrape(Fixed(now))
    assert metrics["fanout_budget_used_up", "openai/*"] == 1
    assert metrics["fanout_budget_calls_spent", "openai/*"] == 40
    assert metrics["fanout_answers_cached_total",] == 9
    assert metrics["fanout_cost_usd_total",] == metrics["fanout_saved_usd_total",] == 1.25
    assert metrics["fanout_branches_gathered",] == 30


def test_no_view_has_a_percentile_above_the_time_of_the_run():
    slow = Latency(counts={bucket_of(71.0): 5}, sum_s=5 * 71.0)
    assert slow.percentile_s(0.99) > 75
    now = status(
        status=RunStatus.SUCCEEDED, elapsed_s=75.0, latency=structs.replace(slow, most_s=75.0)
    )
    assert "99% 1 min 15 s" in summary(now)
    assert now.to_dict()["latency"]["p99_s"] == 75.0
    figures = gather([branch(elapsed_s=71.0)] * 4, created_at=0.0, latency=now.latency)
    assert figures.durations.p99_s == 71.0, "nor has the page one above the branches that it lists"


def test_answers_of_batches_are_left_out_of_times():
    batched = [branch(lane="batch", elapsed_s=0.00001), branch(lane="batch", kind="timeout")]
    assert gather(batched, created_at=0.0).durations.count == 0
    assert gather([*batched, branch()], created_at=0.0).durations.p50_s == 1.0


def test_what_calls_may_have_used_of_which_nothing_is_known_is_shown_while_and_after_they_run():
    state = BudgetState(
        limits=BudgetLimits.of(usd=5.0),
        spent=Amounts(nano_usd=nano_usd_of(3.0), calls=3),
        guessed=Amounts(nano_usd=nano_usd_of(1.0)),
    )
    for has_ended in (False, True):
        now = BudgetStatus.of(state, has_ended=has_ended)
        assert now.spent_words == (
            "$3.00 of $5.00 spent (up to $1.00 of it by calls of which nothing is known)"
        )
