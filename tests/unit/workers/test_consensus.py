"""Branches that ask until the majority is certain, on a fake server with a fake model."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from functools import partial

import pytest

from fanout.aggregators.vote import Vote
from fanout.core.errors import LLMError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.state import BeginRequest, RecordRequest
from fanout.llm import FakeLLM
from tests.fakes import RUN, FakeContext, begin_one, run_branch
from workers.branch.delivery_ends import BranchGone, BranchHandedBack, BranchHeld
from workers.branch.execution import BranchFailed
from workers.context.inflight import StopReason
from workers.context.models import CommonFailures
from workers.reduce.stages import collect, expand

BRANCH = BranchId(RUN, 0, 0, 0)


TONE = {"type": "object", "properties": {"tone": {"type": "string"}, "why": {"type": "string"}}}


class Asked(FakeContext):
    """Gives these answers one after the other; an error is raised, and a function is called."""

    def __init__(self, answers, texts=("a",), **fields):
        fields = {"samples": 9, "certainty": 0.95, "retries": {"max_attempts": 1}, **fields}
        super().__init__(**fields)
        self.requests = []
        self.write(list(texts))
        left = iter(answers)

        def answer(request):
            self.requests.append(request)
            given = next(left)
            return given() if callable(given) else given

        self.answer = answer

    def outcome(self, position=0):
        return self.store.outcomes(ShardId(RUN, 0, 0))[position]

    def checkpoint(self):
        return self.store.checkpoints([BRANCH])[0]


def failure(kind=ErrorKind.SERVER_ERROR, **more):
    return LLMError(kind, f"it is {kind}", **more)


@pytest.mark.parametrize(
    ("fields", "answers", "output", "votes", "asked"),
    [
        ({}, ["yes"] * 9, "yes", {"yes": 4}, 4),
        ({"samples": 3}, ["yes"] * 3, "yes", {"yes": 2}, 2),
        ({"samples": 5}, ["a", "b", "b", "a", "b"], "b", {"b": 3, "a": 2}, 5),
        ({"samples": 4}, ["a", "b", "b", "a"], "b", {"b": 2, "a": 1}, 3),
        ({}, ["Yes.", "**yes**", "YES", " yes "], "Yes.", {"Yes.": 4}, 4),
        ({"certainty": 0.75}, ["yes"], "yes", {"yes": 1}, 1),
        ({"certainty": 0.9}, ["a", "b", "a", "a", "a"], "a", {"a": 4, "b": 1}, 6),
        ({}, ["yes", failure(), "yes", "yes", "yes"], "yes", {"yes": 4}, 5),
        (
            {"choices": "A,a+", "samples": 20},
            ["A", "a+", "A", "A", "A", "A", "A"],
            "A",
            {"A": 6, "a+": 1},
            7,
        ),
        (
            {"schema": TONE, "reduce": "vote", "by": ["tone"]},
            ['{"tone": "+", "why": "1"}', '{"tone": "+", "why": "2"}', '{"tone": "+"}'] * 2,
            '{"tone":"+","why":"1"}',
            {'{"tone":"+","why":"1"}': 4},
            4,
        ),
        (
            {"schema": TONE, "reduce": "vote", "by": ["document"], "samples": 4},
            ['{"why": "1"}', '{"why": "2"}', '{"why": "2"}'],
            '{"why":"2"}',
            {'{"why":"2"}': 2, '{"why":"1"}': 1},
            3,
        ),
        (
            {"schema": {"type": "object", "properties": {"n": {"type": "number"}, "s": {}}}},
            ['{"n": 1, "s": "x"}', '{"s": "x", "n": 1.0}', '```json\n{"n": 1, "s": "x"}\n```'] * 2,
            '{"n":1,"s":"x"}',
            {'{"n":1,"s":"x"}': 4},
            4,
        ),
    ],
)
def test_a_branch_asks_until_its_majority_is_certain(fields, answers, output, votes, asked):
    if fields.get("certainty") == 0.9:
        answers = [*answers, "a"]
        votes = {"a": 5, "b": 1}
    context = Asked(answers, **fields)
    run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.output, outcome.kind) == (output, None)
    assert list(outcome.votes.items()) == list(votes.items())
    assert (outcome.samples, outcome.attempts, len(context.requests)) == (asked,) * 3
    assert outcome.usage.calls == asked
    assert context.checkpoint() is None, "it is deleted with the outcome"
    assert context.store.stage(StageId(RUN, 0)).usage.calls == asked


def test_samples_have_their_seeds_and_their_numbers():
    context = Asked("abcd", samples=4, seed=10, certainty=0.99, prompt="{input} {sample}")
    run_branch(context, BRANCH)
    asked = [(request.seed, request.prompt) for request in context.requests]
    assert asked == [(10, "a 0"), (11, "a 1"), (12, "a 2"), (13, "a 3")]


def test_each_model_is_asked_in_turn():
    context = Asked([], model=["fake", "other"], samples=2, certainty=0.999, seed=1)
    asked = []

    def script(model, request):
        asked.append((model, request.seed))
        return model

    for model in ("fake", "other"):
        context.models.made[model] = FakeLLM(script=partial(script, model))
    run_branch(context, BRANCH)
    assert asked == [("fake", 1), ("other", 1), ("fake", 2)], "the last one cannot win"
    outcome = context.outcome()
    assert (outcome.output, outcome.model) == ("fake", None)
    assert outcome.votes == {"fake": 2, "other": 1}
    assert {model: usage.calls for model, usage in outcome.usage_of.items()} == {
        "fake": 2,
        "other": 1,
    }


def test_a_model_that_cannot_be_called_has_no_vote_and_ends_no_branch():
    context = Asked([], model=["fake", "broken"], samples=2, certainty=0.999)
    context.models.made["fake"] = FakeLLM(script=lambda _: "yes")
    context.models.made["broken"] = FakeLLM(script=lambda _: failure(ErrorKind.AUTH))
    run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.output, outcome.votes, outcome.kind) == ("yes", {"yes": 2}, None)
    assert outcome.samples == outcome.attempts == outcome.usage.calls


def test_another_model_answers_where_the_first_one_does_not():
    context = Asked([], fallback=["other"], samples=3)
    context.models.made["fake"] = FakeLLM(script=lambda _: failure(ErrorKind.CONTENT_FILTER))
    context.models.made["other"] = FakeLLM(script=lambda _: "yes")
    run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.output, outcome.votes, outcome.model) == ("yes", {"yes": 2}, "other")
    assert {model: usage.calls for model, usage in outcome.usage_of.items()} == {
        "fake": 2,
        "other": 2,
    }


@pytest.mark.parametrize(
    ("answers", "kind", "asked"),
    [
        ([failure()] * 3, ErrorKind.SERVER_ERROR, 3),
        ([failure(), failure(ErrorKind.CONTENT_FILTER), ""], ErrorKind.INVALID_OUTPUT, 3),
        # Other samples would end alike: none is asked for.
        ([failure(ErrorKind.CONTEXT_LENGTH)], ErrorKind.CONTEXT_LENGTH, 1),
        ([failure(ErrorKind.BAD_REQUEST)], ErrorKind.BAD_REQUEST, 1),
        (["yes", failure(ErrorKind.AUTH)], ErrorKind.AUTH, 2),
        (["yes", failure(ErrorKind.BUDGET)], ErrorKind.BUDGET, 2),
    ],
)
def test_a_branch_without_an_answer_fails_with_the_last_kind(answers, kind, asked):
    context = Asked(answers, samples=3)
    context.models.common_failures = CommonFailures(context.store)
    with pytest.raises(BranchFailed, match=kind):
        run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.kind, outcome.output, outcome.samples) == (kind, None, asked)
    assert len(context.requests) == asked
    assert outcome.usage.calls == asked


SLOW_S = 0.03


def slow():
    time.sleep(SLOW_S)
    return "yes"


@pytest.mark.parametrize(
    ("answers", "retries", "asked", "kind"),
    [
        # Passing failures that only time ends: other samples would fail alike.
        ([failure()] * 9, {"max_elapsed_s": 1e-9}, 1, ErrorKind.SERVER_ERROR),
        ([failure(ErrorKind.TIMEOUT)] * 9, {"max_elapsed_s": 1e-9}, 1, ErrorKind.TIMEOUT),
        (["yes", failure(), "yes"], {"max_elapsed_s": 1e-9}, 2, None),
        # The time that samples with an answer took counts, too.
        ([slow, failure(), "yes"], {"max_elapsed_s": SLOW_S, "base_wait_s": 0.0}, 2, None),
        ([slow, failure()], {"max_elapsed_s": SLOW_S, "max_attempts": 1}, 2, None),
        # Answers may take any time, and failures of their own leave other samples theirs.
        ([slow, "yes", "yes", "yes"], {"max_elapsed_s": SLOW_S}, 4, None),
        ([failure(is_own=True)] * 18, {"max_attempts": 2, "base_wait_s": 0.0}, 18, ErrorKind.SERVER_ERROR),
        ([failure(ErrorKind.CONTENT_FILTER)] * 9, {"max_elapsed_s": 60}, 9,
         ErrorKind.CONTENT_FILTER),
    ],
)  # fmt: skip
def test_the_time_for_retries_is_that_of_the_branch(answers, retries, asked, kind):
    context = Asked(answers, retries={"max_attempts": 5, **retries})
    with nullcontext() if kind is None else pytest.raises(BranchFailed, match=kind):
        run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (len(context.requests), outcome.attempts, outcome.kind) == (asked, asked, kind)
    assert outcome.output == (None if kind else "yes")


def test_other_models_are_asked_after_one_has_used_up_the_time():
    retries = {"max_elapsed_s": 1e-9}
    context = Asked([], model=["fake", "down"], samples=6, certainty=0.99, retries=retries)
    asked = []

    def script(model, _request):
        asked.append(model)
        return "yes" if model == "fake" else failure()

    for model in ("fake", "down"):
        context.models.made[model] = FakeLLM(script=partial(script, model))
    run_branch(context, BRANCH)
    assert asked == ["fake", "down", "fake", "fake", "fake"]
    assert (context.outcome().votes, context.outcome().samples) == ({"yes": 4}, 5)


@pytest.mark.parametrize("fails", [False, True])
def test_long_answers_are_compared_in_a_thread(monkeypatch, fails):
    long = "x" * 8_001
    compared = []
    ballot = Vote.ballot

    def see(vote, answer):
        compared.append(threading.current_thread().name.startswith("fanout-validate"))
        if fails and len(answer) > 8_000:
            raise ValueError("it cannot be compared")
        return ballot(vote, answer)

    monkeypatch.setattr(Vote, "ballot", see)
    context = Asked(["x", long, long, long, long, long], certainty=0.9)
    run_branch(context, BRANCH)
    assert compared == [False, *[True] * 5]
    outcome = context.outcome()
    assert (outcome.output, outcome.votes) == (long, {long[:2_000]: 5, "x": 1})


class Died(BaseException):
    """The worker process dies in a call."""


def die():
    raise Died


def test_what_was_paid_for_is_found_again_after_each_death():
    """One call of each delivery is in flight when its worker dies; no other is made twice."""
    context = Asked(["a", "b", die, "a", die, "a", die, "a", "a"], certainty=0.9)
    for _ in range(3):
        with pytest.raises(Died):
            run_branch(context, BRANCH)
    run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.output, outcome.votes, outcome.samples) == ("a", {"a": 5, "b": 1}, 6)
    assert outcome.usage.calls == outcome.attempts == 6
    assert len(context.requests) == 6 + 3
    assert context.checkpoint() is None


def test_a_branch_that_kills_its_worker_at_the_same_call_each_time_is_poisoned():
    context = Asked(["a", die, die, die, die])
    for error in (Died, Died, BranchFailed):
        with pytest.raises(error):
            run_branch(context, BRANCH)
    outcome = context.outcome()
    assert outcome.kind is ErrorKind.POISONED
    assert outcome.usage.calls == 1, "what was paid for is counted"


def test_a_first_delivery_reads_no_checkpoint_and_a_single_call_writes_none(monkeypatch):
    context = Asked(["yes"] * 4)
    monkeypatch.setattr(context.store, "checkpoints", lambda _: pytest.fail("it was read"))
    run_branch(context, BRANCH)
    plain = FakeContext()
    plain.write(["a"])
    monkeypatch.setattr(plain.store, "checkpoints", lambda _: pytest.fail("it was read"))
    monkeypatch.setattr(plain.store, "checkpoint_all", lambda _: pytest.fail("it was written"))
    recorded = []
    record = plain.branches.record

    async def see(request: RecordRequest):
        recorded.append(request.has_checkpoint)
        return await record(request)

    plain.branches.record = see
    run_branch(plain, BRANCH)
    assert recorded == [False]


def test_a_damaged_checkpoint_begins_the_branch_anew(caplog):
    context = Asked([die, *["yes"] * 4])
    with pytest.raises(Died):
        run_branch(context, BRANCH)
    context.store._redis.hset(f"fanout:run:{RUN}:s0:0:checkpoints", "0", b"{")
    run_branch(context, BRANCH)
    assert context.outcome().votes == {"yes": 4}
    assert "damaged" in caplog.text


@pytest.mark.parametrize("stop", ["halt", "expire"])
def test_a_branch_whose_run_ends_between_two_calls_makes_no_further_one(stop):
    def end():
        if stop == "halt":
            context.store.halt(RUN, RunStatus.CANCELLED)
        else:
            context.store._redis.hset(f"fanout:run:{RUN}", "deadline_at", "2")
        return "yes"

    context = Asked(["no", end])
    if stop == "halt":
        with pytest.raises(BranchFailed, match=ErrorKind.CANCELLED):
            run_branch(context, BRANCH)
    else:
        run_branch(context, BRANCH)
    outcome = context.outcome()
    assert outcome.usage.calls == outcome.attempts == outcome.samples == 2
    assert outcome.votes == {"no": 1, "yes": 1}
    # What there is at the deadline is aggregated; on a tie, the first one wins.
    kind, output = (ErrorKind.CANCELLED, None) if stop == "halt" else (None, "no")
    assert (outcome.kind, outcome.output) == (kind, output)


@pytest.mark.parametrize(
    ("reason", "kind", "output"),
    [(StopReason.HALTED, ErrorKind.CANCELLED, None), (StopReason.EXPIRED, None, "yes")],
)
def test_a_call_that_is_ended_early_costs_no_vote_of_those_before(reason, kind, output):
    def stop():
        context.models.in_flight.stop = reason
        return "yes"

    context = Asked(["no", "yes", failure(), stop])
    with nullcontext() if kind is None else pytest.raises(BranchFailed, match=kind):
        run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.kind, outcome.output) == (kind, output)
    assert outcome.votes == {"yes": 2, "no": 1}
    assert outcome.samples == outcome.usage.calls == 4


@pytest.mark.parametrize("ending", ["the chord", "a run that was stopped", "the deadline"])
def test_a_branch_that_others_end_keeps_what_was_paid_for(ending):
    context = Asked(["no", "yes", "yes", die], model=["fake", "fake?seed=2"])
    context.models.made["fake?seed=2"] = context.models.made["fake"]
    with pytest.raises(Died):
        run_branch(context, BRANCH)
    if ending == "the chord":
        lost = {"task_id": BRANCH.task_id, "state": "FAILURE", "error": "TimeLimitExceeded"}
        collect(context, [lost], BRANCH.shard_id)
    else:
        if ending == "the deadline":
            context.store._redis.hset(f"fanout:run:{RUN}", "deadline_at", "2")
        else:
            context.store.halt(RUN, RunStatus.CANCELLED)
        expand(context, BRANCH.shard_id)
    outcome = context.outcome()
    assert (outcome.votes, outcome.samples, outcome.attempts) == ({"yes": 2, "no": 1}, 3, 3)
    assert outcome.usage.calls == 3
    assert outcome.output == ("yes" if ending == "the deadline" else None)
    stage = context.store.stage(StageId(RUN, 0))
    assert {name: usage.calls for name, usage in stage.usage_of.items()} == {
        "fake": 2,
        "fake?seed=2": 1,
    }


def test_a_branch_without_an_answer_expires_at_the_deadline():
    def stop():
        context.models.in_flight.stop = StopReason.EXPIRED
        return failure()

    context = Asked([stop])
    with pytest.raises(BranchFailed, match=ErrorKind.EXPIRED):
        run_branch(context, BRANCH)
    assert (context.outcome().votes, context.outcome().samples) == ({}, 1)


@pytest.mark.parametrize("verdict", ["halted", "expired"])
def test_the_usage_of_a_branch_that_is_not_taken_up_again_is_counted(verdict):
    context = Asked(["yes", "yes", die])
    with pytest.raises(Died):
        run_branch(context, BRANCH)
    if verdict == "halted":
        context.store.halt(RUN, RunStatus.CANCELLED)
    else:
        context.store._redis.hset(f"fanout:run:{RUN}", "deadline_at", "2")
    with pytest.raises(BranchFailed) if verdict == "halted" else nullcontext():
        run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.usage.calls, outcome.samples, outcome.votes) == (2, 2, {"yes": 2})
    assert outcome.output == (None if verdict == "halted" else "yes")


@pytest.mark.parametrize("how", ["the run is paused", "the worker stops", "in the call"])
def test_a_branch_that_is_handed_back_goes_on_where_it_was(how):
    def act():
        match how:
            case "the run is paused":
                context.store.pause(RUN)
            case "the worker stops":
                context.models.in_flight.is_stopping = True
            case _:
                context.models.in_flight.stop = StopReason.HANDED_BACK
        return "yes"

    context = Asked(["yes", act, "yes", "yes"])
    with pytest.raises(BranchHandedBack):
        run_branch(context, BRANCH)
    assert len(context.requests) == 2
    context.store.unpause(RUN)
    context.models.in_flight.is_stopping = False
    context.models.in_flight.stop = None
    run_branch(context, BRANCH)
    assert (context.outcome().votes, len(context.requests)) == ({"yes": 4}, 4)


def test_a_delivery_that_has_lost_its_branch_makes_no_further_call():
    def lose():
        begin_one(context.store, BeginRequest(BRANCH, token="another"))
        return "yes"

    context = Asked([lose])
    with pytest.raises(BranchHeld):
        run_branch(context, BRANCH)
    assert len(context.requests) == 1


def test_no_checkpoint_of_a_deleted_run_is_written():
    def delete():
        context.store.delete_run(RUN)
        return "yes"

    context = Asked([delete])
    with pytest.raises(BranchGone):
        run_branch(context, BRANCH)
    assert context.store._redis.keys("*checkpoints*") == []


def test_a_vote_counts_all_answers_that_were_asked_for():
    context = Asked(
        ["a", "a", "a", "a", "b", "A", "b", "b", "b", "b"], ["one", "two"], reduce="vote"
    )
    context.process()
    aggregate = context.result.aggregates[""]
    assert aggregate.value["votes"] == {"a": 5, "b": 5}
    assert aggregate.value["share"] == 0.5
    assert aggregate.succeeded == 2, "branches"


def test_a_retry_of_a_failed_branch_begins_anew():
    context = Asked([failure(), failure(), "yes", "yes"], samples=2)
    context.process()
    assert context.store.run(RUN).has_ended
    context.store.reopen_run(RUN, retry=frozenset({ErrorKind.SERVER_ERROR}))
    context.store.seal_stage(StageId(RUN, 0))
    context.process()
    assert (context.outcome().votes, context.outcome().samples) == ({"yes": 1}, 1)
