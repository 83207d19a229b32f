"""The tree that follows the answers: stops, ends, retries and other processes between any two steps."""

from __future__ import annotations

from contextlib import suppress

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import ShardId, StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext, run_branch
from workers.branch.execution import BranchFailed
from workers.reduce import reductions
from workers.reduce.frontier import is_due
from workers.reduce.stages import aggregate, collect, expand

MAP = StageId(RUN, 0)
# Some ten answers fill a prompt.
SMALL = {
    "reduce": "llm",
    "aggregate_prompt": "SUM {input}",
    "tokenizer": "bytes/4",
    "context_tokens": 560,
    "aggregate_max_tokens": 20,
    "fence": False,
    "cache": False,
    "retries": {"max_attempts": 1},
}


def tree(count=120, *, max_branches=60, bad=frozenset(), **fields):
    """Return a context with a run, and the prompts of its calls; ``bad`` texts fail while they are in it."""
    context = FakeContext(**{**SMALL, **fields})
    context.write([f"text {n} " * 8 for n in range(count)], max_branches=max_branches)
    context.store.open_shards(MAP, window=100)
    calls = []

    def answer(request):
        calls.append(request.prompt)
        if not request.prompt.startswith("SUM") and int(request.prompt.split()[1]) in bad:
            raise LLMError(ErrorKind.BAD_REQUEST, "no")
        return f"answer to {request.prompt[:60]}"

    context.answer = answer
    return context, calls


def process(context, shard_id):
    for position in range(context.store.shard(shard_id).count):
        with suppress(BranchFailed):
            run_branch(context, shard_id.branch(position))
    collect(context, [], shard_id)


def finish(context):
    stage = context.store.run(RUN).base_stage
    context.process(0)
    while not context.store.run(RUN).has_ended:
        stage += 1
        context.process(stage)


def on_status(monkeypatch, context, act):
    """Let something happen once the run is set to reducing, before its calls are written."""
    set_status, acts = context.store.set_status, [act]

    def set_and_act(run_id, status, **options):
        done = set_status(run_id, status, **options)
        if status is RunStatus.REDUCING and acts:
            acts.pop()()
        return done

    monkeypatch.setattr(context.store, "set_status", set_and_act)


def halt(context):
    context.store.halt(RUN, RunStatus.CANCELLED)


def test_a_run_that_has_failed_calls_its_tree_no_further():
    """It was halted by nobody: its status is the end."""
    context, calls = tree(bad=range(60, 120), min_success=0.9)
    for number in (0, 1):
        process(context, MAP.shard(number))
    written = context.store.stage(StageId(RUN, 1)).total
    aggregate(context, MAP)
    assert context.store.run(RUN).status is RunStatus.FAILED
    assert written > 1
    calls.clear()
    context.publisher.sent.clear()
    first = ShardId(RUN, 1, 0)
    process(context, first)
    expand(context, first)
    assert calls == []
    assert context.store.open_shards(StageId(RUN, 1), window=100) == []
    assert all(kind in ("collect", "retract") for kind, *_ in context.publisher.sent)
    assert context.store.stage(StageId(RUN, 2)).total == 0


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_that_is_cancelled_while_its_calls_are_written_has_no_aggregate(monkeypatch, stage):
    context, _ = tree(20, max_branches=500) if stage == 0 else tree(60)
    for number in range(stage):
        context.process(number)
    assert not context.store.run(RUN).has_ended
    on_status(monkeypatch, context, lambda: halt(context))
    context.process(stage)
    run = context.store.run(RUN)
    assert (run.status, run.error) == (RunStatus.CANCELLED, None)
    [made] = context.result.aggregates.values()
    assert made.value is None
    assert made.coverage.problem.startswith("cancelled: ")


def test_a_late_write_of_before_a_retry_is_not_of_its_tree(monkeypatch):
    context, _ = tree(bad={3})
    late = []

    def hold(*arguments, **options):
        late.append((arguments, options))

    with monkeypatch.context() as held:
        held.setattr(context.store, "put_next", hold)
        process(context, MAP.shard(0))
    assert late
    halt(context)
    process(context, MAP.shard(1))
    aggregate(context, MAP)
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    monkeypatch.setattr(context, "answer", lambda request: f"answer to {request.prompt[:60]}")
    retry_failed(context.store, context.publisher, RUN, None)
    arguments, options = late[0]
    assert context.store.put_next(*arguments, **options) is None
    finish(context)
    made = context.result.aggregates[""]
    assert (made.succeeded, made.failed) == (120, 0)


def test_a_late_aggregate_of_before_a_retry_leaves_the_run_at_its_map():
    """The reaper looks after the stage of a run: it would lose sight of the branches."""
    context, _ = tree(60, bad={3})
    process(context, MAP.shard(0))
    before, spec = context.store.run(RUN), context.spec
    aggregate(context, MAP)
    stage = 1
    while not context.store.run(RUN).has_ended:
        context.process(stage)
        stage += 1
    retry_failed(context.store, context.publisher, RUN, None)
    reductions.reduce(context, before, MAP, spec)
    run = context.store.run(RUN)
    assert (run.status, run.stage, run.open_stages) == (RunStatus.RUNNING, 0, (0,))


def test_two_processes_that_follow_at_the_same_time_write_each_node_once(monkeypatch):
    undisturbed, _ = tree(120, max_branches=20)
    context, _ = tree(120, max_branches=20)
    for one in (undisturbed, context):
        one.answer = lambda request: f"answer to {request.prompt[:60]}"
    put_next, is_inner = context.store.put_next, False

    def put(shard_id, shard, frontier, **options):
        nonlocal is_inner
        if not is_inner:
            # Another process writes all there is before this one writes what it has packed.
            is_inner = True
            collect(context, [], MAP.shard(shard_id.shard % 6))
            collect(context, [], MAP.shard(5 - shard_id.shard % 6))
            is_inner = False
        return put_next(shard_id, shard, frontier, **options)

    for number in range(5):
        process(context, MAP.shard(number))
    for position in range(20):
        run_branch(context, MAP.shard(5).branch(position))
    monkeypatch.setattr(context.store, "put_next", put)
    finish(context)
    finish(undisturbed)
    assert context.result.aggregates == undisturbed.result.aggregates
    assert context.result.aggregates[""].succeeded == 120


def test_a_tree_does_not_begin_while_its_run_seems_to_fail():
    context, calls = tree(bad=range(60), min_success=0.9)
    process(context, MAP.shard(0))
    assert context.store.stage(StageId(RUN, 1)).total == 0
    assert not any(prompt.startswith("SUM") for prompt in calls)


@pytest.mark.parametrize("last", [None, 20])
def test_shards_are_not_read_at_the_end_of_each_other(monkeypatch, last):
    """One prompt takes the answers of all 40 shards."""
    context, _ = tree(800, max_branches=20, context_tokens=64_000)
    shard, reads = context.store.shard, []

    def read(shard_id):
        reads.append(shard_id)
        return shard(shard_id)

    order = [number for number in range(40) if number != last]
    for number in order if last is None else [*order, last]:
        for position in range(20):
            run_branch(context, MAP.shard(number).branch(position))
        with monkeypatch.context() as counted:
            counted.setattr(context.store, "shard", read)
            collect(context, [], MAP.shard(number))
    assert 40 <= len(reads) < 300, "all at the end of each would be 820"


def test_looks_grow_apart_and_none_is_left_out():
    looks = [after for after in range(1, 60) if is_due(after - 1, after)]
    assert looks == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 41, 51]
    assert is_due(10, 11) is False
    assert is_due(10, 12) is True
    assert is_due(3, 59) is True, "a straggler has ended, and others had before it"
    assert is_due(30, 12) is False, "behind a straggler"
