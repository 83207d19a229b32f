"""The fold refine on a fake server: one call after the other, whose state outlives any process."""

from __future__ import annotations

import json
import re

import pytest

from fanout.core.errors import BrokerError, SpecError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus
from fanout.core.spec import make_spec
from fanout.runs.reaper import MAX_HEALS, Reaper
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, Clock, FakeContext, run_branch
from tests.unit.workers.test_comparisons import Deaths, through
from workers.reduce.stages import aggregate, collect

REFINED = {
    "aggregate_prompt": "SUM {input}", "fold": "refine", "context_tokens": 700,
    "aggregate_max_tokens": 40, "tokenizer": "bytes/4", "cache": False, "fence": False,
}  # fmt: skip
TEXTS = [f"n={number % 3} " + "x" * 40 for number in range(60)]
TOTAL = sum(number % 3 for number in range(60))


def summing(request):
    """Answer a branch with its text, and a call of the chain with the sum of all numbers that it sees."""
    if not request.prompt.startswith("SUM"):
        return request.prompt
    return f"n={sum(map(int, re.findall('n=([0-9]+)', request.prompt)))}"


def refining(**fields):
    context = FakeContext(**{**REFINED, **fields})
    context.answer = summing
    return context


def chain_prompts(context):
    asked = []
    answer = context.answer

    def noted(request):
        if request.prompt.startswith("SUM"):
            asked.append(request.prompt)
        return answer(request)

    context.answer = noted
    return asked


def test_each_call_sees_the_answer_so_far_and_the_next_answers_in_order():
    context = refining()
    asked = chain_prompts(context)
    assert through(context, TEXTS, max_branches=7) == 2
    made = context.result.aggregates[""]
    assert (made.value, made.succeeded, made.failed) == (f"n={TOTAL}", len(TEXTS), 0)
    assert len(asked) > 3
    assert context.store.stage(StageId(RUN, 1)).total == len(asked)
    seen = [int(n) for prompt in asked for n in re.findall(r"\[d(\d+)\]", prompt)]
    assert seen == list(range(len(TEXTS)))
    assert all("made from" in prompt for prompt in asked[1:])
    assert all("NOTHING TO ADD" in prompt for prompt in asked)


def test_the_calls_begin_before_the_branches_have_ended():
    context = refining()
    context.write(TEXTS, max_branches=10, seal=False)
    map_id = StageId(RUN, 0)
    context.store.open_shards(map_id, window=100)
    for number in range(5):
        shard_id = map_id.shard(number)
        for position in range(10):
            run_branch(context, shard_id.branch(position))
        collect(context, [], shard_id)
    assert context.store.stage(StageId(RUN, 1)).total == 1
    first = StageId(RUN, 1).shard(0)
    run_branch(context, first.branch(0))
    collect(context, [], first)
    assert context.store.stage(StageId(RUN, 1)).total == 2
    assert ("expand", 1, 1) in context.publisher.sent


def test_a_reply_that_has_nothing_to_add_keeps_the_answer_to_the_byte():
    context = refining()
    said = iter(["  The *first*  answer.\nSCRATCHPAD\nwatch out"])
    context.answer = lambda request: (
        next(said, "Nothing to add.") if request.prompt.startswith("SUM") else request.prompt
    )
    asked = chain_prompts(context)
    through(context, TEXTS)
    made = context.result.aggregates[""]
    assert made.value == "The *first*  answer."
    assert made.notes == [f"{len(asked) - 1} calls had nothing to add"]
    assert all("watch out" in prompt for prompt in asked[1:]), "the notes stay, too"


def test_answers_with_a_schema_are_whole_objects():
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    context = refining(aggregate_schema=schema, context_tokens=900)
    context.answer = lambda request: (
        json.dumps({"n": request.prompt.count("[d")})
        if request.prompt.startswith("SUM")
        else request.prompt
    )
    asked = chain_prompts(context)
    through(context, TEXTS)
    assert context.result.aggregates[""].value == {"n": asked[-1].count("[d")}
    assert not any("NOTHING TO ADD" in prompt for prompt in asked)


def test_the_same_calls_go_on_after_a_death_between_two_steps(monkeypatch):
    whole = refining()
    stages = through(whole, TEXTS)
    context = refining()
    deaths = Deaths(context, monkeypatch)
    assert through(context, TEXTS) == stages
    assert deaths.unmet <= {"put_next", "seal_stage"}, "collect does the rest"
    assert context.result == whole.result
    assert context.llm.calls == whole.llm.calls


@pytest.mark.parametrize("writes", ["put_next", "open_shards", "seal_stage"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_collect_that_dies_is_done_again(writes, when, monkeypatch):
    whole = refining()
    through(whole, TEXTS)
    context = refining()
    write = getattr(context.store, writes)
    left = [3]

    def dying(*args, **options):
        # Branches open shards, too.
        is_of_branch = "draining" in options
        if left[0] and when == "before" and not is_of_branch:
            left[0] -= 1
            raise BrokerError("away")
        found = write(*args, **options)
        if left[0] and not is_of_branch:
            left[0] -= 1
            raise BrokerError("away")
        return found

    def again(task):
        def made(*args):
            while True:
                try:
                    return task(*args)
                except BrokerError:
                    continue

        return made

    monkeypatch.setattr("tests.fakes.collect", again(collect))
    monkeypatch.setattr("tests.fakes.aggregate", again(aggregate))
    context.write(TEXTS, max_branches=9)
    monkeypatch.setattr(context.store, writes, dying)
    context.process(stage=0)
    context.process(stage=1)
    assert context.result == whole.result
    assert context.llm.calls == whole.llm.calls
    assert not left[0]


def test_answers_of_a_call_that_failed_are_missing_and_a_retry_adds_them():
    context = refining(retries={"max_attempts": 1}, cache=True)
    sums = []

    def answer(request):
        if request.prompt.startswith("SUM"):
            sums.append(request.prompt)
            if len(sums) == 2:
                return ValueError("no")
        return summing(request)

    context.answer = answer
    through(context, TEXTS)
    made = context.result.aggregates[""]
    lost = len(re.findall(r"\[d\d+\]", sums[1]))
    assert (made.succeeded, made.failed) == (len(TEXTS) - lost, lost)
    assert [error.message for error in context.result.errors]
    assert retry_failed(context.store, context.publisher, RUN, None) == 0
    context.process(stage=0)
    context.process(stage=context.store.run(RUN).base_stage + 1)
    made = context.result.aggregates[""]
    assert (made.value, made.succeeded, made.failed) == (f"n={TOTAL}", len(TEXTS), 0)
    assert not context.result.errors


def test_a_run_that_is_stopped_in_the_chain_ends():
    context = refining()
    context.write(TEXTS)
    context.process(stage=0)
    first = StageId(RUN, 1).shard(0)
    run_branch(context, first.branch(0))
    context.store.halt(RUN, RunStatus.CANCELLED)
    collect(context, [], first)
    assert context.publisher.seals[-1] == ("seal", 1, 1)
    aggregate(context, StageId(RUN, 1))
    assert context.store.run(RUN).status is RunStatus.CANCELLED


def test_an_answer_so_far_that_is_longer_than_allowed_is_cut_for_the_next_call():
    """A server may ignore the limit of tokens."""
    context = refining()
    asked = chain_prompts(context)
    answer = context.answer
    context.answer = lambda request: (
        answer(request) + " long" * 1000 if request.prompt.startswith("SUM") else request.prompt
    )
    through(context, TEXTS)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    made = context.result.aggregates[""]
    assert made.value.startswith(f"n={TOTAL} long long")
    assert made.notes == [
        f"{len(asked) - 1} calls saw an answer so far that was cut, as it was longer than allowed"
    ]


def test_an_answer_so_far_that_fills_the_window_ends_the_run():
    context = refining(aggregate_schema={"type": "string"})
    context.answer = lambda request: (
        json.dumps("long " * 1000) if request.prompt.startswith("SUM") else request.prompt
    )
    context.write(TEXTS)
    context.process(stage=0)
    first = StageId(RUN, 1).shard(0)
    run_branch(context, first.branch(0))
    collect(context, [], first)
    assert context.publisher.sent[-1] == ("aggregate", 0)
    aggregate(context, StageId(RUN, 0))
    run = context.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert "the answer so far leaves 0 of" in run.error


def test_the_reaper_goes_on_with_a_chain_whose_step_was_lost():
    context = refining()
    context.write(TEXTS)
    context.process(stage=0)
    first = StageId(RUN, 1).shard(0)
    run_branch(context, first.branch(0))
    # The collect ends after it has closed the shard.
    context.store.compact(first, context.store.outcomes(first))
    context.store.open_shards(StageId(RUN, 1), window=9, finished=0)
    clock = Clock()
    reaper = Reaper(context.store, context.publisher, context.messages, stall_s=15, clock=clock)
    context.publisher.sent.clear()
    while not context.publisher.sent:
        clock.now += 5
        reaper.sweep()
        assert clock.now < 100
    assert context.publisher.sent == [("aggregate", 0)]
    aggregate(context, StageId(RUN, 0))
    assert context.store.stage(StageId(RUN, 1)).total == 2
    # A loss that healing does not remove ends the run.
    second = StageId(RUN, 1).shard(1)
    run_branch(context, second.branch(0))
    context.store.compact(second, context.store.outcomes(second))
    context.store.open_shards(StageId(RUN, 1), window=9, finished=1)
    while not context.store.run(RUN).has_ended:
        clock.now += 5
        reaper.sweep()
        assert clock.now < 1000
    assert context.publisher.sent.count(("aggregate", 0)) == MAX_HEALS
    assert "could not be brought to its end" in context.store.run(RUN).error


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"group_by": "document"}, "group_by: fold 'refine' makes one aggregate of all answers"),
        ({"lane": "batch", "model": "openai/m"}, "lane: 'batch' may take a day for each call"),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(SpecError, match=words):
        make_spec(**{"model": "fake", "prompt": "{input}", **REFINED, **fields})


def citing(request):
    """Keep what the answer so far says, and cite a part of each turn, with a quote; notes cite one, too."""
    if not request.prompt.startswith("SUM"):
        return f"text {request.prompt}"
    so_far = re.search(r"^(said .*)$", request.prompt, re.MULTILINE)
    shown = re.findall(r"^=== \w+ \[(s-\w+)\]\n[^\n]*\n(text n=\d)", request.prompt, re.MULTILINE)
    one, words = shown[0]
    own = f'"{words}" [{one}], "no such words" [{one}] and [s-inventedxx]'
    return f"{so_far[1] if so_far else 'said'} {own}\nSCRATCHPAD\nalso [{shown[-1][0]}]"


def test_ids_of_sources_stay_real_through_all_calls():
    context = refining(sources=True, context_tokens=1_200, aggregate_max_tokens=200)
    context.answer = citing
    asked = chain_prompts(context)
    through(context, TEXTS)
    made = context.result.aggregates[""]
    calls = context.store.stage(StageId(RUN, 1)).total
    assert calls >= 3
    assert len(made.sources) == calls, "one of each turn, and those of notes are not in the answer"
    documents = {one.document for one in made.sources}
    assert len(documents) == calls
    assert "s-inventedxx" not in made.value
    assert made.value.count("[quote not found]") == made.value.count("no such words") == calls
    assert made.value.count("[unknown source]") == calls
    ids = [one.id for one in made.sources]
    assert all(f"[{one}]" in made.value for one in ids)
    assert [len(re.findall(r"^=== \w+$", one, re.MULTILINE)) for one in asked[:2]] == [1, 1], (
        "the first turn, and its call for what is not real, show no answer so far"
    )


def test_answers_without_sources_cite_nothing_in_a_chain():
    context = refining()
    through(context, TEXTS)
    assert context.result.aggregates[""].sources == []
