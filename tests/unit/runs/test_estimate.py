"""What a job will use is counted from its input, without a call and in flat memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from fanout.core.rate_limits import LimitState, Rates
from fanout.core.records import BranchRef, Document
from fanout.core.spec import make_spec
from fanout.core.tokens import estimate_tokens
from fanout.inputs.fences import FENCE_BYTES, RULE, block
from fanout.inputs.prompt_layout import branch_values
from fanout.llm.prompt_plans import plan_of
from fanout.policy.token_ratio import TokenSums, bytes_by_kind
from fanout.runs import reduce_estimate
from fanout.runs.estimate import Estimator


def documents(count, text="some words of a text"):
    return (Document(name=f"d{at}", index=at, text=text) for at in range(count))


def estimated(fields, some, *, seen=TokenSums(), places=None):  # noqa: B008 - it is frozen
    job = {"model": "openai/gpt-5-mini", "prompt": "Read: {input}", "fence": False, **fields}
    estimator = Estimator(make_spec(**job), seen=lambda _model: seen, places=places)
    chunks = list(estimator.documents(some))
    return estimator.result(), chunks


@pytest.mark.parametrize(
    ("learnt", "seconds"),
    [
        (None, 60),
        (LimitState(learnt=Rates(requests_per_minute=60)), 60),
        (LimitState(learnt=Rates(requests_per_minute=2)), 300),
        (LimitState(learnt=Rates(output_tokens_per_minute=10)), 600),
        (LimitState(calls_at_once=1), 70),
    ],
)
def test_what_the_fleet_has_learnt_of_limits_tells_the_time(learnt, seconds):
    job = {"model": "openai/gpt-5-mini", "prompt": "{input}", "max_tokens": 10,
           "rate": {"requests_per_minute": 10}}  # fmt: skip
    seen = TokenSums(calls=9, elapsed_s=63)
    limits = {} if learnt is None else {"openai/gpt-5-mini": learnt}
    estimator = Estimator(make_spec(**job), seen=lambda _model: seen, places=8, limits=limits)
    list(estimator.documents(documents(10)))
    assert estimator.result().lanes[0].time_s_high == pytest.approx(seconds)


def test_documents_chunks_branches_and_tokens_are_counted():
    bad = Document(name="b", index=0, error="broken")
    found, chunks = estimated(
        {"split": "lines", "aspects": {"a": "A: {input}", "b": "B: {input}"}, "prompt": None,
         "samples": 3, "max_tokens": 50, "system": "Be brief."},
        [bad, *documents(2, "one\ntwo\nthree")],
    )  # fmt: skip
    assert (found.documents, found.bad_documents, found.chunks) == (3, 1, 6)
    assert [chunk.number for chunk in chunks] == [1, 2, 3, 4, 5, 6], "as in the run"
    assert found.branches == 7 * 2 * 3
    assert found.calls.calls_low == found.calls.calls_high == 36
    assert (found.calls.output_low, found.calls.output_high) == (36, 36 * 50)
    assert found.prompt == "A: one"
    assert found.system == "Be brief."
    assert [one.lane for one in found.lanes] == ["realtime", "flex", "batch"]
    assert found.chosen.cost_usd_low < found.chosen.cost_usd_high
    half = found.lanes[2]
    assert half.cost_usd_high == pytest.approx(found.chosen.cost_usd_high / 2)


def test_its_tokens_are_those_that_the_model_is_known_to_make():
    prompt = "Read: " + "some words of a text"
    kinds = bytes_by_kind([prompt])
    seen = TokenSums.total([TokenSums.of_call(kinds, 33)] * 100)
    plain, _ = estimated({}, documents(10))
    learnt, _ = estimated({}, documents(10), seen=seen)
    assert plain.calls.input_low == pytest.approx(10 * estimate_tokens(prompt), rel=0.1)
    assert learnt.calls.input_low == pytest.approx(330, rel=0.05)
    assert learnt.learnt_calls == 100


@pytest.mark.parametrize(
    ("fields", "adds"),
    [
        ({"fence": None}, len(RULE) + FENCE_BYTES),
        ({"fence": None, "system": "s"}, len(f"\n\n{RULE}") + FENCE_BYTES),
        ({"fence": None, "model": "fake?fence=1"}, len(RULE) + FENCE_BYTES),
        ({"fence": None, "model": "fake"}, 0),
        ({"fence": None, "model": "x:y"}, 0),
        # Only workers know whether it is a function, which gets no rule.
        ({"fence": True, "model": "x:y"}, len(RULE) + FENCE_BYTES),
    ],
)
def test_fences_and_their_rule_are_counted(fields, adds):
    found, bare = (estimated(one, documents(5))[0] for one in (fields, {**fields, "fence": False}))
    more = found.calls.input_low - bare.calls.input_low
    assert more == pytest.approx(5 * adds / 4, rel=0.25)
    assert (RULE in (found.system or "")) == (adds > FENCE_BYTES)


def test_an_index_is_that_of_the_run():
    found, _ = estimated({"prompt": "{index} {input}"}, documents(3))
    assert found.prompt == "0 some words of a text"


def test_the_text_around_a_chunk_counts_and_a_trial_keeps_it():
    job = {"split": "lines", "neighbours": 1, "prompt": "{before}|{input}|{after}"}
    found, chunks = estimated(job, documents(2, "one\ntwo\nthree"))
    assert found.prompt == "|one|two"
    assert [one.around for one in chunks[:3]] == [("", "two"), ("one", "three"), ("two", "")]
    alone, _ = estimated({**job, "prompt": "|{input}|", "neighbours": None}, documents(2, "a\nb"))
    assert found.calls.input_low > alone.calls.input_low


@pytest.mark.parametrize(
    ("order", "tokenizer", "words", "is_first"),
    [
        (None, None, 1_000, True),
        (None, None, 500, False),
        (None, "bytes/2", 500, True),
        (None, "bytes/8", 1_000, False),
        ("document_first", None, 5, True),
        ("as_written", None, 1_000, False),
    ],
)
def test_the_prompt_is_laid_out_as_it_is_sent(order, tokenizer, words, is_first):
    fields = {
        "prompt": None,
        "aspects": {"a": "A: {input}", "b": "B: {input}", "c": "C: {input}"},
        "prompt_order": order,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    # As with_tokenizer sets it.
    spec = make_spec(model="openai/gpt-5-mini", **fields).model_copy(
        update={"tokenizer": tokenizer}
    )
    estimator = Estimator(spec, seen=lambda _model: TokenSums(), places=None)
    [chunk] = estimator.documents(documents(1, "words " * words))
    ref = BranchRef(chunk=0, aspect="a", model=spec.model, sample=0)
    plan = plan_of(spec)
    sent = (
        plan.prompt(
            chunk, ref, branch_values(chunk, ref, 0), model=spec.model, chunks=9, lane="batch"
        )[0]
        if plan
        else f"A: {block('document', chunk.text)}"
    )
    assert estimator.result().prompt == sent
    assert sent.startswith("<document id=") == is_first


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        # {"answer": "perhaps"} has 21 bytes.
        ({"choices": "yes,perhaps"}, 1, 21 / 4 + 2),
        ({"max_tokens": 9}, 1, 9),
        ({"schema": {"type": "object", "required": ["name"]}, "max_tokens": 90}, 5, 90),
        ({"model": "x:y", "context_tokens": None}, 1, None),
    ],
)
def test_the_length_of_answers_is_bounded_by_what_they_must_be(fields, low, high):
    given = {name: value for name, value in fields.items() if value is not None}
    found, _ = estimated(given, documents(1))
    assert found.calls.output_low == pytest.approx(low, abs=1)
    assert found.calls.output_high == (None if high is None else pytest.approx(high, abs=1))


def test_a_vote_may_end_early():
    found, _ = estimated({"samples": 9, "certainty": 0.9, "max_tokens": 5}, documents(4))
    assert found.branches == 4
    assert 4 < found.calls.calls_low < found.calls.calls_high == 36


@pytest.mark.parametrize(
    ("group", "least", "most_groups"), [(None, 1, 9), ("document", 30, 99), ("document", 30, 8)]
)
def test_the_calls_of_the_reduce_are_counted(monkeypatch, group, least, most_groups):
    monkeypatch.setattr(reduce_estimate, "_MOST_GROUPS", most_groups)
    fields = {"aggregate_prompt": "Sum up: {input}", "group_by": group, "max_tokens": 500}
    found, _ = estimated({**fields, "context_tokens": 4_000}, documents(30))
    assert found.reduce.calls_low == least
    assert found.reduce.calls_high >= (least if group else 7), "long answers make a tree"
    total = found.by_model["openai/gpt-5-mini"]
    assert total.calls_high == 30 + found.reduce.calls_high


def test_sources_have_their_rules_in_prompts_and_may_be_asked_for_again():
    fields = {"aggregate_prompt": "Sum up: {input}", "max_tokens": 50, "aggregate_max_tokens": 50}
    plain, _ = estimated(fields, documents(3))
    cited, _ = estimated({**fields, "sources": True}, documents(3))
    assert (plain.reduce.calls_low, plain.reduce.calls_high) == (1, 1)
    assert (cited.reduce.calls_low, cited.reduce.calls_likely, cited.reduce.calls_high) == (1, 1, 2)
    assert cited.reduce.input_low > plain.reduce.input_low + 50


def test_the_longest_answers_of_a_model_are_no_likely_cost():
    found, _ = estimated({}, documents(4))
    assert found.is_wide
    assert found.chosen.cost_usd_high > 1
    assert found.chosen.cost_usd_likely == pytest.approx(4 * 500 * 2e-6, rel=0.1)
    seen = TokenSums(calls=20, answers=20, output_tokens=200)
    learnt, _ = estimated({}, documents(4), seen=seen)
    limited, _ = estimated({"max_tokens": 10}, documents(4))
    for one in (learnt, limited):
        assert not one.is_wide
        assert one.chosen.cost_usd_low < one.chosen.cost_usd_likely <= one.chosen.cost_usd_high
        assert one.chosen.cost_usd_high < 0.001


def test_json_counts_calls_and_tokens_in_whole_numbers():
    found, _ = estimated(
        {"samples": 9, "certainty": 0.9, "aggregate_prompt": "Sum: {input}"}, documents(3)
    )
    shown = found.to_dict()
    for calls in (shown["calls"], shown["reduce"], *shown["by_model"].values()):
        assert {type(count) for count in calls.values()} == {int}


def test_an_unknown_price_is_unknown():
    found, _ = estimated({"model": "openai/no-such-model", "max_tokens": 9}, documents(2))
    assert found.unpriced == ["openai/no-such-model"]
    assert found.chosen.cost_usd_low is found.chosen.cost_usd_high is None


def test_the_time_follows_from_limits():
    seen = TokenSums(calls=100, answers=100, output_tokens=900, elapsed_s=300)
    found, _ = estimated({"max_tokens": 9}, documents(60), seen=seen, places=2)
    assert (found.lanes[1].time_s_low, found.lanes[1].time_s_high) == (90, None), "flex may wait"
    assert found.chosen.time_s_low == pytest.approx(90)
    assert found.lanes[2].time_s_low is None, "a batch comes when it comes"
    limited, _ = estimated({"requests_per_minute": 6, "max_tokens": 9}, documents(60))
    assert limited.chosen.time_s_high == pytest.approx(600)


def test_memory_is_flat():
    estimator = Estimator(
        make_spec(model="openai/gpt-5-mini", prompt="Read: {input}"),
        seen=lambda _model: TokenSums(),
        places=None,
    )
    chunks = estimator.documents(documents(20_000))
    for _ in zip(range(2_000), chunks, strict=False):
        pass
    tracemalloc.start()
    for _ in chunks:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert estimator.result().chunks >= 19_999
    assert peak < 300_000


FACTS = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
ROUTED: list[dict[str, Any]] = [
    {"name": "kind", "prompt": "K {input}", "choices": ["bill", "letter"]},
    {"name": "facts", "prompt": "F {input}", "schema": FACTS, "max_tokens": 100,
     "model": "openai/gpt-4.1", "when": {"kind": "bill"}},
    {"name": "note", "prompt": "N {facts.a} {facts}", "max_tokens": 40},
    {"name": "check", "judge": "note", "criteria": "short", "max_tokens": 30, "max_rounds": 3},
]  # fmt: skip


def test_the_calls_of_steps_range_over_routes_and_rounds():
    found, _ = estimated({"prompt": None, "steps": ROUTED, "samples": 2}, documents(5))
    # Once or not; and each answer judged once to three times.
    of_step = {one.name: (one.calls.calls_low, one.calls.calls_high) for one in found.steps}
    assert of_step == {"kind": (10, 10), "facts": (0, 10), "note": (10, 30), "check": (10, 30)}
    assert (found.calls.calls_low, found.calls.calls_high) == (30, 80)
    assert found.branches == 10
    by_model = {name: (one.calls_low, one.calls_high) for name, one in found.by_model.items()}
    assert by_model == {"openai/gpt-5-mini": (30, 70), "openai/gpt-4.1": (0, 10)}
    likely = {one.name: one.calls.calls_likely for one in found.steps}
    assert likely == {"kind": 10, "facts": 5, "note": 20, "check": 20}
    # Every answer is bounded by its own limit.
    kind, facts, note, check = (one.calls.output_high for one in found.steps)
    assert (facts, note, check) == (10 * 100, 30 * 40, 30 * 30)
    assert kind < 10 * 8
    assert not found.is_wide
    # The cheapest way has no facts, and one round.
    assert found.chosen.cost_usd_low < found.chosen.cost_usd_likely < found.chosen.cost_usd_high


def test_answers_of_steps_count_in_the_prompts_of_later_ones():
    facts = {name: value for name, value in ROUTED[1].items() if name != "when"}
    plain = [facts, {**ROUTED[2], "prompt": "N"}]
    fed = [facts, ROUTED[2]]
    low, _ = estimated({"prompt": None, "steps": plain}, documents(10))
    high, _ = estimated({"prompt": None, "steps": fed}, documents(10))
    more = high.calls.input_high - low.calls.input_high
    assert more == pytest.approx(10 * 200, rel=0.05), (
        "the answer, and a field that may be all of it"
    )


def test_one_prompt_of_each_step_is_shown_with_placeholders():
    found, _ = estimated({"prompt": None, "steps": ROUTED, "system": "S"}, documents(2))
    shown = {one.name: one.prompt for one in found.steps}
    text = "some words of a text"
    assert shown["kind"] == found.prompt == f"K {text}"
    assert shown["note"] == "N [a in the answer of facts] [the answer of facts]"
    assert shown["note"] in shown["check"]
    assert "[the answer of note]" in shown["check"]
    assert found.to_dict()["steps"][1]["models"] == ["openai/gpt-4.1"]


def test_a_chain_takes_as_long_as_its_calls_one_after_the_other():
    seen = TokenSums(calls=10.0, elapsed_s=20.0)
    three = [{"name": f"s{n}", "prompt": "{input}"} for n in range(3)]
    found, _ = estimated({"prompt": None, "steps": three}, documents(1), seen=seen, places=64)
    assert found.chosen.time_s_low == pytest.approx(6.0)


def test_a_reduce_has_the_answers_of_the_step_that_gives_the_output():
    job = {"prompt": None, "aggregate_prompt": "{input}", "aggregate_max_tokens": 9}
    found, _ = estimated({**job, "steps": ROUTED}, documents(3))
    assert found.reduce.input_high >= 3 * 40
    assert found.reduce.input_high < 3 * 100


def test_functions_alone_cost_nothing():
    steps = [{"name": "a", "function": "m:f"}, {"name": "b", "function": "m:g"}]
    found, _ = estimated({"prompt": None, "steps": steps}, documents(3))
    assert (found.branches, found.calls.calls_high, found.steps) == (3, 0, [])
    assert (found.chosen.cost_usd_low, found.chosen.cost_usd_high) == (0, 0)
