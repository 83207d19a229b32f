"""Estimates and trials as text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from fanout.cli.estimate_view import estimate_lines, short_estimate, trial_lines
from fanout.client.trials import BegunTrial, trial_of
from fanout.core.rate_limits import Rates
from fanout.core.records import NO_CALL, Document, ErrorKind, Usage
from fanout.core.spec import make_spec
from fanout.core.units import dollars, duration
from fanout.policy.token_ratio import TokenSums
from fanout.runs.estimate import Estimator
from fanout.runs.plan_estimate import PlanEstimator


def estimate(documents=200, **fields):
    spec = make_spec(
        **{"model": "openai/gpt-5-mini", "prompt": "Read: {input}", "fence": False, **fields}
    )
    estimator = Estimator(spec, seen=lambda _model: TokenSums(), places=8)
    list(estimator.documents(Document(name=f"{at}", index=at, text="x") for at in range(documents)))
    return estimator.result()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "branches: 200 calls, 350 tokens in, 200 to 25,600,000 out"),
        ({}, "realtime (the lane of this job): about $0.2001 ($0.00049 to $51.20)"),
        ({}, "batch: about $0.10 ($0.00024 to $25.60), within a day"),
        (
            {},
            "the high end has the longest answers that the model can give: --max-tokens, or a trial,",
        ),
        ({"documents": 1, "max_tokens": 9}, "branches: 1 call, 2 tokens in, 1 to 9 out"),
        ({"lane": "batch", "max_tokens": 9}, "batch (the lane of this job): about $0.0018"),
        ({"lane": "auto", "deadline_s": 9, "max_tokens": 9}, "batch (auto): about $0.0018"),
        (
            {"lane": "auto", "deadline_s": 9, "max_tokens": 9},
            "realtime (auto, what would be late): about $0.0037",
        ),
        ({"aggregate_prompt": "Sum: {input}", "max_tokens": 9}, "reduce: 1 call, "),
    ],
)
def test_an_estimate_says_what_is_likely_and_in_which_lane(fields, line):
    shown = list(estimate_lines(estimate(**fields)))
    assert [one for one in shown if one.startswith(line)], shown


def test_the_steps_of_a_branch_stand_above_the_reduces():
    steps = [{"name": name, "prompt": "{input}"} for name in ("a", "b")]
    reduces = [{"name": "sum", "reduce": "llm", "aggregate_prompt": "{input}"}]
    found = estimate(prompt=None, steps=steps, reduces=reduces, max_tokens=9, fence=None)
    shown = [line.split(":")[0].split(" (")[0] for line in estimate_lines(found)]
    assert shown[1:6] == ["branches", "  step a", "  step b", "reduce", "  reduce sum"]


def test_in_python_an_estimate_and_a_trial_are_shown_in_one_short_line():
    steps = [{"name": "first", "prompt": "{input}" * 999}, {"name": "next", "prompt": "{first}"}]
    of_steps = estimate(prompt=None, steps=steps, max_tokens=9)
    shown = [repr(estimate(max_tokens=9)), repr(of_steps), repr(of_steps.steps[0]), repr(tried([]))]
    for line in shown:
        assert len(line) < 500
        assert "\n" not in line
    begin = "<Estimate documents=200 branches=200 calls=200 cost_usd_low=0.0004875 cost_usd_high="
    assert shown[0].startswith(begin)
    assert shown[2] == "<StepEstimate name='first' models=['openai/gpt-5-mini'] calls=200>"
    assert shown[3].startswith(
        "<Trial run_id='r' branches=0 succeeded=0 cost_usd=None failures=None"
    )


def split_estimate(prompt, **fields):
    fields = {
        "model": "openai/gpt-5-mini",
        "fence": False,
        "split": "model",
        "max_tokens": 9,
        **fields,
    }
    spec = make_spec(prompt=prompt, **fields)
    estimator = Estimator(spec, seen=lambda _model: TokenSums(), places=8)
    planner = PlanEstimator(spec, seen=lambda _model: TokenSums(), places=8)
    texts = ["word " * 5_000, "word", " "]
    documents = (Document(name=f"{at}", index=at, text=text) for at, text in enumerate(texts))
    list(estimator.documents(planner.counted(documents)))
    return planner.added_to(estimator.result())


@pytest.mark.parametrize(
    ("prompt", "fields", "many"),
    [
        ("{title}: {input}", {}, "parts"),
        ("{title}, {subtask}: {input}", {"aggregate_prompt": "Sum: {input}"}, "subtasks"),
        (None, {"steps": [{"name": "a", "prompt": "{title}, {subtask}, {input}"}]}, "subtasks"),
    ],
)
def test_what_a_model_will_split_is_counted_as_the_least(prompt, fields, many):
    found = split_estimate(prompt, **fields)
    short, lines = short_estimate(found), list(estimate_lines(found))
    assert lines[0].startswith(f"3 documents, at least 2 {many}, at least 3 branches")
    for line in [*lines[1:], short]:
        if " tokens in" in line and not line.startswith("split by the model: 2 calls"):
            assert line.count("at least ") >= 3, line
    assert any(f"how many {many} the model will name is unknown" in line for line in lines)
    assert f"how many {many} the model will name is unknown" in short
    assert "[title]" in lines[-1]
    assert ("[subtask]" in lines[-1]) is (many == "subtasks")
    assert found.calls.input_low > 6_000, "all of a long text"
    assert not any("about" in line or "inf" in line.split() for line in [*lines, short])
    as_json = found.to_dict()
    assert as_json["calls"]["calls_low"] == 2
    assert as_json["calls"]["calls_high"] is as_json["lanes"][0]["cost_usd_high"] is None
    assert as_json["unknown_parts"] == many


def test_a_price_that_is_unknown_is_named_once_as_a_run_names_it_too():
    found = estimate(model="openai/no-such-model", max_tokens=9)
    assert "cost unknown" in short_estimate(found)
    assert "price" not in short_estimate(found)
    [line] = [line for line in estimate_lines(found) if "price" in line]
    assert line.startswith("the price of openai/no-such-model is unknown: ")


def test_a_short_one_says_what_narrows_it():
    assert short_estimate(estimate()).endswith("; --max-tokens, or a trial, narrows it")
    assert "narrows" not in short_estimate(estimate(max_tokens=9))
    assert "narrows" not in short_estimate(estimate(choices="yes,no"))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "estimate: 200 branches, 200 calls, 350 tokens in, 200 to 1,800 out, "),
        ({"aggregate_prompt": "Sum: {input}"}, "estimate: 200 branches, 201 calls, "),
        ({"reduce": "pairwise", "criteria": "c"}, "estimate: 200 branches, "),
    ],
)
def test_a_short_one_counts_the_calls_of_the_reduce(fields, line):
    found = estimate(max_tokens=9, **fields)
    assert short_estimate(found).startswith(line)
    assert found.all_calls.calls_high == found.calls.calls_high + found.reduce.calls_high
    split = replace(found, plan=found.calls)
    assert split.all_calls.input_high == found.all_calls.input_high + found.calls.input_high
    assert f"{split.all_calls.calls_high:,.0f} calls" in short_estimate(split)


def test_the_prompts_of_steps_are_short_and_one_system_prompt_is_there_once():
    long = "\n".join(f"line {at} {{input}}" for at in range(40))
    steps = [
        {"name": "a", "prompt": long},
        {"name": "b", "prompt": "word " * 1_000},
        {"name": "c", "prompt": "{a}"},
    ]
    job = {"prompt": None, "max_tokens": 9, "system": "Be brief."}
    text = "\n".join(estimate_lines(estimate(steps=steps, **job)))
    assert text.count("Be brief.") == 1
    assert "\nsystem prompt:\nBe brief.\nfirst prompt of step a:\nline 0 x\n" in text
    assert "line 5 x\n[... " in text
    assert text.count("more characters: --json has all]") == 2
    assert len(text.splitlines()) < 30
    assert text.count("word ") <= 100
    steps[1]["system"] = "Own."
    text = "\n".join(estimate_lines(estimate(steps=steps, **job)))
    assert "\nsystem prompt of steps a, c:\nBe brief.\nsystem prompt of step b:\nOwn.\n" in text


def output(chunk, *, cached=False, attempts=None, saved=None, elapsed_s=0.1, kind=None):
    usage = Usage(calls=1, input_tokens=5, output_tokens=17, cost_usd=0.002)
    attempts = (not cached) if attempts is None else attempts
    saved = saved or (usage if cached else NO_CALL)
    return SimpleNamespace(
        chunk=chunk, kind=kind, usage=usage, saved=saved, cached=cached, attempts=int(attempts),
        elapsed_s=elapsed_s,
    )  # fmt: skip


def begun(outputs, found, **fields):
    job = {"model": "openai/gpt-5-mini", "prompt": "Read: {input}", "max_tokens": 9, **fields}
    run = SimpleNamespace(run_id="r", outcomes=lambda: iter(outputs))
    return BegunTrial(run=run, spec=make_spec(**job), estimate=found, places=8, rates=Rates())


def tried(outputs, *, lane="realtime", **fields):
    return trial_of(begun(outputs, replace(estimate(), lane=lane), **fields))


def test_a_trial_of_one_chunk_has_a_mean_and_no_interval():
    shown = list(trial_lines(tried([output(0)])))
    assert "answers: 17 tokens" in shown
    assert "  cost: $0.40 (one chunk has no interval)" in shown


def test_no_job_is_faster_than_one_of_its_calls():
    found = tried([output(at) for at in range(5)])
    assert found.time_s == pytest.approx(25 * 0.1)
    few = replace(found.estimate, branches=5)
    assert trial_of(begun([output(0)], few)).time_s == pytest.approx(0.1)


def test_the_time_of_a_trial_has_an_interval_and_is_no_shorter_than_its_slowest_call():
    found = tried(
        [output(at, elapsed_s=seconds) for at, seconds in enumerate((0.1, 0.2, 0.3, 0.2))]
    )
    # 200 calls in 25 turns; Student's with three degrees of freedom, and 196 of 200 that were not seen.
    margin = 3.182 * (0.02 / 3 / 4 * 0.98) ** 0.5
    assert found.time_s == pytest.approx(25 * 0.2)
    assert found.time_s_low == pytest.approx(25 * (0.2 - margin))
    assert found.time_s_high == pytest.approx(25 * (0.2 + margin))
    low, high = duration(found.time_s_low), duration(found.time_s_high)
    assert f"  time: {duration(5.0)} (95%: {low} to {high})" in list(trial_lines(found))
    slow = tried([output(at, elapsed_s=seconds) for at, seconds in enumerate((0.1, 0.1, 60.0))])
    assert slow.time_s_low == 60
    one = tried([output(0)])
    assert (one.time_s_low, one.time_s_high) == (None, None)
    assert f"  time: {duration(2.5)} (one branch has no interval)" in list(trial_lines(one))


def test_the_steps_of_a_branch_count_whether_called_or_kept():
    saved = Usage(calls=2, input_tokens=5, output_tokens=3, cost_usd=0.001)
    found = tried([output(at, attempts=1, saved=saved) for at in range(5)])
    # 200 chunks.
    assert found.cost_usd.value == pytest.approx(200 * 0.003)
    assert found.output_tokens.value == pytest.approx(200 * 20)
    # Three calls each, at 8 places.
    assert found.time_s == pytest.approx(200 * 0.1 / 8)


def test_answers_from_the_cache_do_not_say_how_long_a_call_takes():
    assert tried([output(0), output(1, cached=True)]).time_s == pytest.approx(25 * 0.1)
    assert tried([output(0, cached=True)]).time_s is None
    assert tried([output(0)], lane="batch").time_s is None


def test_a_trial_leaves_out_what_the_budget_cut_and_says_for_how_many_branches_it_is_enough():
    shown = [output(at) for at in range(5)]
    cut = [output(at, kind=ErrorKind.BUDGET) for at in range(5, 20)]
    job = {"budget": {"calls": 50}, "aggregate_prompt": "{input}"}
    found, alone = tried([*shown, *cut], **job), tried(shown)
    assert (found.branches, found.cut_chunks, found.errors) == (20, 15, {"budget": 15})
    assert (found.cost_usd, found.failures) == (alone.cost_usd, alone.failures)
    assert (found.time_s, found.budget.enough_likely) == (alone.time_s, 45)
    lines = list(trial_lines(found))
    assert "the budget had no room for 15 chunks: nothing is projected by them" in lines
    line = "the budget of 50 calls is enough for about 45 of 200 branches, with 5 calls of it kept"
    assert f"  {line} for the reduce" in lines
    assert found.to_dict()["budget"]["limit"] == {"calls": 50}
    nothing = tried(cut, **job)
    assert (nothing.cost_usd, nothing.failures, nothing.budget.enough_likely) == (None, None, None)
    assert alone.budget is alone.to_dict()["budget"] is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budget": {"calls": 50}}, "of 50 calls is enough for about 50 of 200 branches"),
        ({"budget": {"calls": 200}}, "of 200 calls is enough for all 200 branches"),
        (
            {"budget": {"calls": 300}, "samples": 2, "prompt": "{input}"},
            "of 300 calls is enough for about 300 of 400 branches",
        ),
        (
            {"budget": {"usd": 0.0001, "calls": 1000}, "max_tokens": 9},
            "of $0.0001, 1,000 calls is enough for about 1 of 200 branches (1 to 7)",
        ),
        (
            {"budget": {"usd": 0.3}, "max_tokens": 2_000},
            "of $0.30 is likely enough for all 200 branches (for 74 at least)",
        ),
    ],
)
def test_an_estimate_says_for_how_many_branches_the_budget_is_enough(fields, words):
    found = estimate(**fields)
    assert f"the budget {words}" in list(estimate_lines(found))
    assert f"; the budget {words}" in short_estimate(found)
    assert found.to_dict()["budget"]["enough_likely"] == found.budget.enough_likely


def test_of_unknown_parts_nobody_knows_for_how_many_the_budget_is_enough():
    found = split_estimate("{title}: {input}", budget={"calls": 9})
    line = "the budget of 9 calls: for how many branches it is enough is unknown"
    assert line in list(estimate_lines(found))


def test_a_trial_adds_the_cost_of_the_reduce_to_that_of_its_branches():
    reduced = estimate(aggregate_prompt="Sum: {input}", aggregate_max_tokens=50, max_tokens=9)
    found = trial_of(begun([output(at) for at in range(5)], reduced))
    low, likely, high = (
        getattr(reduced.reduces[0], f"cost_usd_{end}") for end in ("low", "likely", "high")
    )
    assert 0 < low <= likely <= high
    words = f"about {dollars(0.4 + likely)} ({dollars(0.4 + low)} to {dollars(0.4 + high)})"
    if low == high:
        words = dollars(0.4 + low)
    assert f"  cost with the reduce: {words}" in list(trial_lines(found))
    assert not any("with the reduce" in line for line in trial_lines(tried([output(0)])))
