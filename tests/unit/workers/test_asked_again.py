"""Branches that ask again, or ask another model: a delivery goes on where the last one was."""

from __future__ import annotations

from functools import partial

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import BranchId, ShardId
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.llm import FakeLLM
from fanout.llm.base import LLMReply
from tests.fakes import RUN, FakeContext, run_branch
from workers.branch.delivery_ends import BranchHandedBack
from workers.branch.execution import BranchFailed

BRANCH = BranchId(RUN, 0, 0, 0)
CHOICES = {"choices": "good,bad"}
SURE = {"samples": 5, "certainty": 0.95}
CUT = LLMReply(text="go", finish_reason="length", usage=Usage(calls=1, input_tokens=1))
LONG, REFUSED = LLMError(ErrorKind.CONTEXT_LENGTH, "long"), LLMError(ErrorKind.BAD_REQUEST, "no")
SLOW = LLMError(ErrorKind.TIMEOUT, "slow", is_own=True)
DOWN, FILTERED = LLMError(ErrorKind.SERVER_ERROR, "5"), LLMError(ErrorKind.CONTENT_FILTER, "no")


class Died(BaseException):
    """The worker process dies in a call."""


class Script(FakeContext):
    """Gives answers one after the other to any model; once, its process dies in one of the calls."""

    def __init__(self, answers, fields, *, dies_at=None, at_death=None):
        quick = {"base_wait_s": 0.0, "max_attempts": 3}
        super().__init__(**{"model": "a", "retries": quick, **fields})
        self.asked = []
        self._left = list(answers)
        self._dies_at = dies_at
        self._at_death = at_death
        names = [*(self.spec.models or (self.spec.model,)), *self.spec.fallback]
        self.models.made = {name: FakeLLM(script=partial(self._reply, name)) for name in names}
        self.write(["text"])

    def _reply(self, model, request):
        self.asked.append((model, request))
        if len(self.asked) - 1 == self._dies_at:
            raise Died
        given = self._left.pop(0)
        return given() if callable(given) else given

    def outcome(self):
        return self.store.outcomes(ShardId(RUN, 0, 0))[0]

    def delivered(self):
        """Deliver the branch until it ends; return its outcome, without its times."""
        for _ in range(9):
            try:
                run_branch(self, BRANCH)
            except (Died, BranchHandedBack):
                continue
            except BranchFailed:
                pass
            break
        assert self._left == [], "all was asked for"
        outcome = self.outcome()
        return {
            name: getattr(outcome, name)
            for name in ("output", "kind", "message", "attempts", "usage", "usage_of", "model",
                         "finish_reason", "votes", "samples")
        }  # fmt: skip


ROWS = {
    "re-asks": (["x", "y", "good"], CHOICES),
    "re-asks in vain": (["x", "y", "z"], CHOICES),
    "lone surrogates": (["x \ud800", "good"], CHOICES),
    "a second limit": ([CUT, "good"], {"max_tokens": 8}),
    "a second limit in vain": ([CUT, CUT], {"max_tokens": 8}),
    "a refused limit": ([CUT, REFUSED], {"max_tokens": 8}),
    "re-asks with a second limit": ([CUT, "x", "good"], {"max_tokens": 8, **CHOICES}),
    "retries": ([DOWN, SLOW, "yes"], {}),
    "retries in vain": ([SLOW, SLOW, SLOW], {}),
    "fallback": (["x", "y", "z", FILTERED, "v", "good"], {"fallback": ["b", "c"], **CHOICES}),
    "fallback in vain": ([FILTERED, LONG], {"fallback": ["b"]}),
    "several models": ([FILTERED, "x", "good"], {"model": ["a", "c"], "fallback": ["b"], **CHOICES}),
    "samples": (["x", "good", "y", "z", "good", "good"], {**SURE, **CHOICES}),
    "samples with fallback": (
        [FILTERED, "x", "good"] * 3, {"fallback": ["b"], **SURE, **CHOICES},
    ),
    "samples of several models": (
        ["x", "good", FILTERED, "good", "good", "x", "y", "z", "good"],
        {"model": ["a", "b"], "fallback": ["c"], **SURE, **CHOICES},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("answers", "fields"), ROWS.values(), ids=ROWS)
def test_a_death_costs_the_call_in_flight_at_any_call(answers, fields):
    whole = Script(answers, fields)
    expected = whole.delivered()
    assert expected["attempts"] == expected["usage"].calls == len(answers) == len(whole.asked)
    for number in range(len(answers)):
        context = Script(answers, fields, dies_at=number)
        assert context.delivered() == expected, number
        asked = context.asked
        assert asked[number] == asked[number + 1], "the same conversation with the same model"
        assert [*asked[:number], *asked[number + 1 :]] == whole.asked, "nothing else twice"
        assert context.store._redis.keys("*checkpoints*") == []


@pytest.mark.parametrize(("answers", "fields"), [ROWS["re-asks"], ROWS["fallback"]])
@pytest.mark.parametrize("how", ["paused", "stops", "halted"])
def test_a_branch_that_ends_between_two_calls_pays_for_none_of_them_again(answers, fields, how):
    def act():
        match how:
            case "paused":
                context.store.pause(RUN)
            case "stops":
                context.models.in_flight.is_stopping = True
            case _:
                context.store.halt(RUN, RunStatus.CANCELLED)
        return answers[0]

    context = Script([act, *answers[1:]], fields)
    if how == "halted":
        with pytest.raises(BranchFailed, match="cancelled"):
            run_branch(context, BRANCH)
        assert context.outcome().usage.calls == context.outcome().attempts == 1
        return
    with pytest.raises(BranchHandedBack):
        run_branch(context, BRANCH)
    assert len(context.asked) == 1
    context.store.unpause(RUN)
    context.models.in_flight.is_stopping = False
    assert context.delivered()["usage"].calls == len(answers) == len(context.asked)


def test_what_was_paid_for_counts_where_a_branch_is_not_taken_up_again():
    context = Script(["x", FILTERED], {"fallback": ["b"], **CHOICES}, dies_at=2)
    with pytest.raises(Died):
        run_branch(context, BRANCH)
    context.store.halt(RUN, RunStatus.CANCELLED)
    with pytest.raises(BranchFailed, match="cancelled"):
        run_branch(context, BRANCH)
    outcome = context.outcome()
    assert (outcome.attempts, outcome.usage.calls) == (2, 2)
    assert context.store.stage(BRANCH.stage_id).usage_of["a"].calls == 2


@pytest.mark.parametrize(
    ("fields", "answers", "asked"),
    [
        # With another model of the run, or a fallback, the first failure of a model is its last one.
        ({"model": ["a", "b"]}, [LONG, *["good"] * 3], "abbb"),
        ({"model": ["a", "b"]}, [REFUSED, *["good"] * 3], "abbb"),
        ({"model": ["a", "b"]}, [LONG, REFUSED], "ab"),
        ({"fallback": ["b"]}, [LONG, *["good"] * 3], "abbb"),
        ({"fallback": ["b"]}, [LONG, LONG], "ab"),
        # A model that has answered may do so again, and a failure that passes says nothing.
        ({"samples": 6}, ["bad", REFUSED, REFUSED, "good", "good"], "aaaaa"),
        ({"model": ["a", "b"], "retries": {"max_attempts": 1}},
         [DOWN, "good", LONG, "good", "good"], "ababb"),
        # A conversation is longer than the prompt of the next sample.
        ({**CHOICES, "samples": 3}, ["x", LONG, "good"], "aaa"),
        # The limit that was too low for one sample is so for the others.
        ({"max_tokens": 8, "samples": 3}, [CUT, "good", "good"], "aaa"),
        ({"max_tokens": 8, "samples": 3}, ["good", CUT, "good"], "aaa"),
        ({"max_tokens": 8, "samples": 3}, [CUT, CUT, CUT, CUT], "aaaa"),
        ({"max_tokens": 8, "samples": 3}, [CUT, REFUSED, CUT, "good"], "aaaa"),
        ({"max_tokens": 8, "fallback": ["b"], "samples": 3}, [CUT, CUT, "good", CUT, "good"], "aabab"),
    ],
)  # fmt: skip
def test_no_sample_finds_out_again_what_an_earlier_one_did(fields, answers, asked):
    fields = {**SURE, **fields}
    context = Script(answers, fields)
    expected = context.delivered()
    assert "".join(model for model, _ in context.asked) == asked
    assert expected["usage"].calls == len(answers)
    for number in range(len(answers)):
        again = Script(answers, fields, dies_at=number)
        assert again.delivered() == expected, "nor does another delivery"
        assert len(again.asked) == len(answers) + 1


def test_the_raised_limit_holds_for_further_samples():
    context = Script([CUT, "a", "b", "a"], {**SURE, "samples": 3, "max_tokens": 8})
    context.delivered()
    assert [request.max_tokens for _, request in context.asked] == [8, 16, 16, 16]
