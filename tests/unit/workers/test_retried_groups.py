"""Groups by the answer of a step, in a run that is retried: none has the groups of before the retry."""

from __future__ import annotations

import re

import pytest

from fanout.core.errors import LLMError
from fanout.core.group_hashes import group_hash
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.runs.retried_runs import reset_retried_shard, retry_failed
from tests.fakes import RUN, FakeContext
from workers.reduce.groups import follow_groups
from workers.reduce.items import TooEarlyError
from workers.reduce.stages import aggregate

JOB = {
    "prompt": None, "steps": [{"name": "kind", "prompt": "KIND {input}"}], "group_by": "steps.kind",
    "aggregate_prompt": "SUM {input}", "context_tokens": 4000, "aggregate_max_tokens": 40,
    "tokenizer": "bytes/4", "cache": False, "fence": False, "retries": {"max_attempts": 1},
}  # fmt: skip
MAP = StageId(RUN, 0)
ALL = {"A": 20, "B": 20}


def failing(*numbers, **fields):
    """Return a run of 40 branches in 4 shards and 2 groups, and those that fail."""
    context = FakeContext(**JOB, **fields)
    down = set(numbers)

    def answer(request):
        if request.prompt.startswith("SUM"):
            return "sum"
        number = int(re.findall("item([0-9]+)", request.prompt)[0])
        if number in down:
            raise LLMError(ErrorKind.INVALID_OUTPUT, "no")
        return "A" if number % 2 else "B"

    context.answer = answer
    context.write([f"item{number} " for number in range(40)], max_branches=10)
    return context, down


def end(context):
    """Process a run to its end."""
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage)
        stage = max(stage, context.store.run(RUN).base_stage) + 1


def counts(context):
    return {group: one.succeeded for group, one in context.result.aggregates.items()}


@pytest.mark.parametrize("least", ["min_success", "min_group_success"])
def test_a_retry_groups_the_branches_by_their_new_answers(least):
    """The share of branches that succeed is too low for a tree to begin, in the retry as well."""
    context, down = failing(0, 1, *range(10, 30), **{least: 0.8})
    end(context)
    down.clear()
    assert retry_failed(context.store, context.publisher, RUN, None) == 22
    end(context)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    assert counts(context) == ALL


@pytest.mark.parametrize("when", ["before its reset", "after its reset"])
def test_groups_of_before_a_retry_are_not_written_after_it(when, monkeypatch):
    """A worker that has read the outcomes of a shard is held up until the run is retried."""
    context, down = failing(0, 1)
    store = context.store
    put = store.put_groups
    late = []

    def held_up(shard_id, *args, **options):
        if shard_id.shard == 0:
            late.append((args, options))
            return False
        return put(shard_id, *args, **options)

    monkeypatch.setattr(store, "put_groups", held_up)
    end(context)
    monkeypatch.undo()
    [(args, options)] = late
    down.clear()
    assert retry_failed(store, context.publisher, RUN, None) == 2
    first = MAP.shard(0)
    if when == "after its reset":
        reset_retried_shard(store, first, store.run(RUN).retry)
    assert not put(first, *args, **options)
    assert store.groups_of(MAP, 0, [0]) == [None]
    end(context)
    assert counts(context) == ALL


def test_groups_of_outcomes_that_are_reset_meanwhile_are_not_written(monkeypatch):
    """A callback of before the retry reads a shard that is still to be reset."""
    context, down = failing(0, 1)
    store = context.store
    end(context)
    down.clear()
    retry_failed(store, context.publisher, RUN, None)
    put = store.put_groups

    def held_up(shard_id, *args, **options):
        reset_retried_shard(store, shard_id, store.run(RUN).retry)
        return put(shard_id, *args, **options)

    monkeypatch.setattr(store, "put_groups", held_up)
    follow_groups(context, MAP.shard(0))
    monkeypatch.undo()
    assert store.groups_of(MAP, 0, [0]) == [None]
    end(context)
    assert counts(context) == ALL


def test_the_groups_of_a_shard_are_written_only_once_all_of_it_has_ended():
    """A callback of before the retry may come to a shard that is processed again."""
    context, down = failing(0, 1)
    end(context)
    down.clear()
    retry_failed(context.store, context.publisher, RUN, None)
    follow_groups(context, MAP.shard(0))
    reset_retried_shard(context.store, MAP.shard(0), context.store.run(RUN).retry)
    assert context.store.groups_of(MAP, 0, [0]) == [None], "the reset deletes them"
    follow_groups(context, MAP.shard(0))
    assert context.store.groups_of(MAP, 0, [0]) == [None]
    assert context.store.groups_of(MAP, 0, [1]) != [None], "its outcomes stay"
    end(context)
    assert counts(context) == ALL
    [hashes] = context.store.groups_of(MAP, 0, [0])
    assert set(hashes) == {group_hash(name, run_id=RUN) for name in ALL}


def test_a_plan_of_before_a_retry_is_not_written_after_it(monkeypatch):
    """A worker that has planned the groups is held up until the run is retried."""
    context, down = failing(*range(0, 40, 2))
    store = context.store
    put, times = store.put_group_plan, []

    def held_up(*args, **options):
        times.append(1)
        if len(times) == 1:
            # The task is delivered again, and another worker ends the run.
            aggregate(context, MAP)
            context.pack()
            end(context)
            down.clear()
            assert retry_failed(store, context.publisher, RUN, None) == 20
            assert not put(*args, **options)
            return False
        return put(*args, **options)

    monkeypatch.setattr(store, "put_group_plan", held_up)
    with pytest.raises(TooEarlyError):
        context.process(0)
    assert not store.run(RUN).has_ended
    assert store.group_plan(RUN, 0) is None
    end(context)
    assert counts(context) == ALL
