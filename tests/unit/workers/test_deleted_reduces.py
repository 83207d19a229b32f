"""A run that is deleted, or retried, while a reduce reads its answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fanout.core.errors import LLMError, UnknownRunError
from fanout.core.ids import ShardId, StageId
from fanout.core.records import ErrorKind
from fanout.runs.retried_runs import reset_retried_shard, retry_failed
from tests.fakes import RUN, FakeContext
from workers.branch.delivery_ends import BranchGone
from workers.reduce.items import TooEarlyError, outcomes_at

SHARD = ShardId(RUN, 0, 0)
# The most reads of a job before which its run is deleted.
_TRIED = 5
TREE = {"aggregate_prompt": "SUM {input}", "aggregate_max_tokens": 20, "tokenizer": "bytes/4"}
SUM = {"name": "sum", "llm": "SUM {input}", "aggregate_max_tokens": 20}
JOBS: dict[str, dict[str, Any]] = {
    "concat": {"reduce": "concat"},
    "vote": {"reduce": "vote", "group_by": "document"},
    "rank": {"reduce": "rank"},
    "tree": TREE,
    "groups": {**TREE, "group_by": "g"},
    "refine": {**TREE, "fold": "refine"},
    "cluster": {**TREE, "fold": "cluster"},
    "best": {"reduce": "best", "criteria": "longer", "samples": 2, "temperature": 1},
    "pairwise": {"reduce": "pairwise", "criteria": "longer", "context_tokens": 4_000},
    "resolve": {"reduce": "resolve", "by": "firm", "output_format": "json"},
    "list": {"reduce": [SUM, {**SUM, "name": "each", "group_by": "g"}, {"name": "all", "concat": None}],
             "tokenizer": "bytes/4"},
}  # fmt: skip


class Reads:
    """The reads of outcomes; before the last of so many, the run is deleted."""

    def __init__(self, store, monkeypatch, last=None):
        self._store, self._last, self._read = store, last, store.outcomes
        self.count = 0
        monkeypatch.setattr(store, "outcomes", self)

    def __call__(self, shard_id):
        self.count += 1
        if self.count == self._last:
            self._store.delete_run(RUN)
        return self._read(shard_id)


def answer(request):
    prompt = request.prompt
    if "<answer_A" in prompt:
        return json.dumps({"reasons": "r", "winner": "A"})
    if "<value_A" in prompt:
        return json.dumps({"reasons": "r", "same": True})
    return prompt if prompt.startswith("{") else f"answer {len(prompt)} " + "of words " * 4


def made(job):
    fields = {"cache": False, "context_tokens": 400, "retries": {"max_attempts": 1}}
    context = FakeContext(**{**fields, **JOBS[job]})
    context.answer = answer
    texts = [json.dumps({"firm": "Firm " + "x" * number}) for number in range(6)]
    context.write(texts, columns=[{"g": f"g{number % 2}"} for number in range(6)], max_branches=3)
    return context


def processed(context):
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage)
        stage = max(stage, context.store.run(RUN).base_stage) + 1


@pytest.mark.parametrize("job", JOBS)
def test_a_run_that_is_deleted_before_any_read_ends_the_task_as_that_of_a_run_that_is_gone(
    job, monkeypatch
):
    whole = made(job)
    reads = Reads(whole.store, monkeypatch)
    processed(whole)
    assert whole.store.run(RUN).status == "succeeded"
    assert reads.count > 1
    for last in range(1, reads.count + 1, 1 + reads.count // _TRIED):
        context = made(job)
        Reads(context.store, monkeypatch, last)
        with pytest.raises((UnknownRunError, TooEarlyError, BranchGone)):
            processed(context)
        assert context.store._redis.keys(f"*{RUN}*") == []


def test_outcomes_that_a_retry_has_discarded_are_those_of_an_early_task():
    context = made("concat")

    def failing(request):
        if request.prompt.endswith('Firm x"}'):
            raise LLMError(ErrorKind.INVALID_OUTPUT, "no")
        return request.prompt

    context.answer = failing
    context.process()
    assert [one.index for one in outcomes_at(context.store, SHARD, [1, 0])] == [1, 0]
    assert retry_failed(context.store, context.publisher, RUN, None) == 1
    context.store.open_shards(StageId(RUN, 0), window=1_000)
    reset_retried_shard(context.store, SHARD, context.store.run(RUN).retry)
    assert [one.index for one in outcomes_at(context.store, SHARD, [0, 2])] == [0, 2]
    with pytest.raises(TooEarlyError):
        outcomes_at(context.store, SHARD, [0, 1])
    context.store.delete_run(RUN)
    with pytest.raises(UnknownRunError):
        outcomes_at(context.store, SHARD, [0])
