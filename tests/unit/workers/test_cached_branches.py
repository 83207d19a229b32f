"""Branches whose answers are kept: what their outcomes, stages and totals have."""

from __future__ import annotations

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, Usage
from fanout.llm import FakeLLM, LLMReply
from fanout.stores import RedisStore
from tests.fakes import RUN, FakeContext, fake_redis

USED = Usage(
    calls=1, input_tokens=10, cached_input_tokens=0, cache_write_tokens=0, output_tokens=2,
    reasoning_tokens=0, cost_usd=0.5,
)  # fmt: skip


class Fleet:
    """Runs on one server, whose model answers with the prompt, and counts its calls."""

    def __init__(self):
        self.server = fake_redis()
        self.prompts = []
        # What the run's own model does; None for an answer.
        self.first = None

    def run(self, name, texts, **fields):
        """Process a run; return its context."""
        store = RedisStore(self.server)
        context = FakeContext(store, **fields)
        created_at = float(ord(name))
        store.create_run(RUN, spec=context.spec.model_dump_json(), created_at=created_at)
        context.llm.identity = "m"

        def answer(request):
            self.prompts.append(request.prompt)
            return LLMReply(text=f"<{request.prompt}>", usage=USED, finish_reason="stop")

        context.answer = self.first or answer
        other = context.models.made[OTHER] = FakeLLM(script=answer)
        other.identity = "other"
        context.write(texts)
        for number in range(3):
            context.process(number)
            if store.run(RUN).has_ended:
                break
        stage, totals = store.stage(StageId(RUN, 0)), store.totals()
        outcomes = store.outcomes(StageId(RUN, 0).shard(0))
        result = context.result if store.result(RUN) else None
        store.delete_run(RUN)
        return stage, totals, outcomes, result


@pytest.fixture
def fleet():
    return Fleet()


def test_a_second_run_takes_the_answers_of_the_first(fleet):
    first, _, outcomes, _ = fleet.run("a", ["x", "y"])
    assert (first.usage.calls, first.usage.cost_usd, first.saved.calls) == (2, 1.0, 0)
    assert [one.is_cached for one in outcomes.values()] == [False, False]
    second, totals, outcomes, _ = fleet.run("b", ["x", "y", "z"])
    assert fleet.prompts == ["x", "y", "z"]
    assert (second.usage.calls, second.usage.cost_usd) == (1, 0.5)
    assert (second.saved.calls, second.saved.cost_usd, second.saved.input_tokens) == (2, 1.0, 20)
    assert (totals.usage.calls, totals.saved.calls, totals.saved.cost_usd) == (3, 2, 1.0)
    assert [(one.output, one.attempts, one.is_cached) for one in outcomes.values()] == [
        ("<x>", 0, True), ("<y>", 0, True), ("<z>", 1, False),
    ]  # fmt: skip
    assert {one.finish_reason for one in outcomes.values()} == {"stop"}


OTHER = "fake?seed=1"


def test_the_answer_of_a_fallback_is_kept_as_its_own(fleet):
    asked = []

    def refuses(request):
        asked.append(request.prompt)
        raise LLMError(ErrorKind.CONTENT_FILTER, "no", usage=USED)

    fleet.first = refuses
    first, _, outcomes, _ = fleet.run("a", ["x"], fallback=(OTHER,))
    assert (first.usage.calls, first.saved.calls, outcomes[0].model) == (2, 0, OTHER)
    second, _, outcomes, _ = fleet.run("b", ["x"], fallback=(OTHER,))
    # The first model is asked again, as it may answer by now; the fallback is not.
    assert (asked, fleet.prompts) == (["x"] * 2, ["x"])
    assert (second.usage.calls, second.saved.calls, second.saved.cost_usd) == (1, 1, 0.5)
    assert (outcomes[0].output, outcomes[0].model, outcomes[0].attempts) == ("<x>", OTHER, 1)
    fleet.first = None
    _, _, outcomes, _ = fleet.run("c", ["x"], fallback=(OTHER,))
    assert (outcomes[0].model, fleet.prompts) == (None, ["x"] * 2), "it is no answer of the first"


def test_identical_branches_of_a_run_take_a_failure_and_ask_the_fallback(fleet):
    asked = []

    def refuses(request):
        asked.append(request.prompt)
        raise LLMError(ErrorKind.CONTENT_FILTER, "no", usage=USED)

    fleet.first = refuses
    stage, _, outcomes, _ = fleet.run("a", ["x", "x", "y", "x"])
    assert asked == ["x", "y"]
    assert (stage.usage.calls, stage.usage.cost_usd, stage.failed) == (2, 1.0, 4)
    assert {one.message for one in outcomes.values()} == {"no"}
    assert [one.usage.cost_usd for one in outcomes.values()] == [0.5, 0.0, 0.5, 0.0]
    assert stage.saved.calls == 0, "a failure is no answer"
    stage, _, outcomes, _ = fleet.run("b", ["x", "x"], fallback=(OTHER,))
    assert (asked, [one.model for one in outcomes.values()]) == (["x", "y", "x"], [OTHER] * 2)
    assert (stage.usage.calls, stage.usage.cost_usd, stage.saved.calls) == (2, 1.0, 1)
    usages = [(one.attempts, one.usage.cost_usd) for one in outcomes.values()]
    assert usages == [(2, 1.0), (0, 0.0)]


def test_nothing_is_taken_or_kept_without_the_cache(fleet):
    fleet.run("a", ["x"], cache=False)
    fleet.run("b", ["x"])
    fleet.run("c", ["x"], cache=False)
    assert fleet.prompts == ["x"] * 3


def test_each_sample_has_an_answer_of_its_own(fleet):
    fleet.run("a", ["x"], samples=2)
    assert len(fleet.prompts) == 2
    stage, *_ = fleet.run("b", ["x"], samples=3)
    assert (len(fleet.prompts), stage.saved.calls) == (3, 2)


def test_a_consensus_counts_the_answers_that_were_kept(fleet):
    fields = {"samples": 5, "certainty": 0.8}
    _, _, first, _ = fleet.run("a", ["x"], **fields)
    calls = len(fleet.prompts)
    stage, _, second, _ = fleet.run("b", ["x"], **fields)
    assert len(fleet.prompts) == calls == first[0].samples == second[0].samples
    assert (second[0].output, second[0].votes) == (first[0].output, first[0].votes)
    assert (second[0].attempts, second[0].saved.calls, second[0].usage.calls) == (0, calls, 0)
    assert (stage.usage.cost_usd, stage.saved.cost_usd) == (0, 0.5 * calls)


def test_an_aggregate_is_kept_too(fleet):
    fields = {"aggregate_prompt": "Sum up: {input}"}
    _, _, _, first = fleet.run("a", ["x", "y"], **fields)
    calls = len(fleet.prompts)
    assert calls == 3
    _, _, _, second = fleet.run("b", ["x", "y"], **fields)
    assert len(fleet.prompts) == calls
    assert second.aggregates == first.aggregates


def test_an_answer_that_is_not_valid_is_not_kept(fleet):
    fleet.run("a", ["x"], model="fake", output_format="json")
    failed = len(fleet.prompts)
    fleet.run("b", ["x"], model="fake", output_format="json")
    assert len(fleet.prompts) == 2 * failed
