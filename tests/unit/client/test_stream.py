"""The branches of a run as they end: each once, at a bounded cost."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest

from fanout.client import run as run_module
from fanout.client import stream
from fanout.client.run import Run
from fanout.core.errors import BrokerError, LLMError
from fanout.core.ids import ShardId, StageId
from fanout.core.records import ErrorKind, RunStatus
from tests.fakes import RUN, FakeContext, run_branch
from workers.branch.execution import BranchFailed
from workers.reduce.stages import aggregate, collect

MAP = StageId(RUN, 0)


@pytest.fixture
def context():
    return FakeContext()


def streamed(context, monkeypatch, steps):
    """Stream a run of which one step after the other is done while the stream waits."""
    pending, waits = iter(steps), []

    def sleep(seconds):
        waits.append(seconds)
        step = next(pending, None)
        assert step is not None or len(waits) < 100, "the stream does not end"
        if step is not None:
            step()

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: sum(waits))
    monkeypatch.setattr(run_module, "time", clock)
    yield from Run(RUN, context.store, context.publisher, lambda: None).stream()


def call(context, shard, position):
    def step():
        with contextlib.suppress(BranchFailed):
            run_branch(context, ShardId(RUN, 0, shard).branch(position))

    return step


def test_branches_come_in_the_order_of_their_ends_and_each_once(context, monkeypatch):
    context.write([f"t{n}" for n in range(6)], max_branches=3)
    context.store.open_shards(MAP, window=2)
    order = [(1, 2), (0, 1), (1, 0), (0, 0), (0, 2), (1, 1)]
    steps = []
    for shard, position in order:
        # A branch that is delivered twice has one outcome.
        steps += [call(context, shard, position)] * 2
        if (shard, position) in {(0, 2), (1, 1)}:
            steps.append(lambda shard=shard: collect(context, [], ShardId(RUN, 0, shard)))
    steps.append(lambda: aggregate(context, MAP))
    given = [branch.index for branch in streamed(context, monkeypatch, steps)]
    assert given == [3 * shard + position for shard, position in order]


def test_what_had_ended_before_comes_first_and_failures_come_too(context, monkeypatch):
    context.write(["a", "bad", "c"])

    def answer(request):
        if request.prompt == "bad":
            raise LLMError(ErrorKind.BAD_REQUEST, "no")
        return "fine"

    context.answer = answer
    context.process()
    given = {one.index: (one.output, one.kind) for one in streamed(context, monkeypatch, [])}
    assert given == {0: ("fine", None), 1: (None, ErrorKind.BAD_REQUEST), 2: ("fine", None)}


def test_branches_that_are_retried_come_once_with_their_last_outcome(context, monkeypatch):
    context.write(["a", "bad"] * 3, max_branches=2)
    answers = Counter()

    def answer(request):
        answers[request.prompt] += 1
        if request.prompt == "bad" and answers["bad"] <= 3:
            raise LLMError(ErrorKind.BAD_REQUEST, "no")
        return "fine"

    context.answer = answer
    context.process()
    run = Run(RUN, context.store, context.publisher, lambda: None)
    assert run.retry_failed() == 3
    given = [(one.index, one.output) for one in streamed(context, monkeypatch, [context.process])]
    assert sorted(given) == [(n, "fine") for n in range(6)]


def test_branches_of_shards_that_were_never_opened_come_at_the_end(context, monkeypatch):
    context.write([f"t{n}" for n in range(4)], max_branches=2)
    context.store.open_shards(MAP, window=1)

    def stop():
        context.store.halt(RUN, RunStatus.CANCELLED)
        context.process()

    given = [one.index for one in streamed(context, monkeypatch, [call(context, 0, 1), stop])]
    assert (given[0], sorted(given)) == (1, [0, 1, 2, 3])


def test_a_server_that_is_away_for_a_moment_costs_no_branch_and_repeats_none(context, monkeypatch):
    context.write([f"t{n}" for n in range(6)], max_branches=2)
    context.process()
    read, calls = context.store.outcomes, Counter()

    def outcomes(shard_id):
        calls[shard_id.shard] += 1
        if shard_id.shard == 1 and calls[1] <= 2:
            raise BrokerError("away", is_passing=True)
        return read(shard_id)

    monkeypatch.setattr(context.store, "outcomes", outcomes)
    assert [one.index for one in streamed(context, monkeypatch, [])] == list(range(6))
    monkeypatch.setattr(context.store, "outcomes", lambda _: 1 / 0)
    monkeypatch.setattr(
        context.store, "stage", lambda _: (_ for _ in ()).throw(BrokerError("no rights"))
    )
    with pytest.raises(BrokerError, match=f"no rights; run {RUN} goes on"):
        list(streamed(context, monkeypatch, []))


def test_an_ended_shard_is_read_once_and_an_open_one_only_for_what_is_new(context, monkeypatch):
    context.write([f"t{n}" for n in range(200)], max_branches=10)
    context.store.open_shards(MAP, window=1_000)
    monkeypatch.setattr(stream, "_KEPT_CHARS", 60)
    reads, asked = Counter(), []
    for name in ("outcomes", "shard"):
        read = getattr(context.store, name)
        monkeypatch.setattr(
            context.store, name,
            lambda shard_id, read=read, name=name: reads.update([name]) or read(shard_id),
        )  # fmt: skip
    some = context.store.some_outcomes
    monkeypatch.setattr(
        context.store, "some_outcomes", lambda of, new: asked.extend(new) or some(of, new)
    )
    ended = stream.EndedBranches(context.store, RUN)
    given = []
    for shard in range(20):
        for position in range(10):
            call(context, shard, position)()
            given += [outcome.index for _, outcome in ended.read()]
            assert list(ended.read()) == []
        collect(context, [], ShardId(RUN, 0, shard))
    given += [outcome.index for _, outcome in ended.read()]
    assert given == list(range(200))
    assert len(asked) <= 200
    # What workers read of a shard is in these counts too.
    before = dict(reads)
    assert list(ended.read()) == []
    assert reads == before
    aggregate(context, MAP)
    reads.clear()
    assert list(ended.rest()) == []
    assert reads["outcomes"] <= 1
    assert len(ended._inputs) <= 3
    assert sum(map(len, ended._given.values())) <= 10


def test_a_retry_asks_once_for_all_shards_and_gives_those_without_failures_at_once(
    context, monkeypatch
):
    context.write(["bad" if n == 90 else f"t{n}" for n in range(100)], max_branches=10)
    is_bad = True

    def answer(request):
        if request.prompt == "bad" and is_bad:
            raise LLMError(ErrorKind.BAD_REQUEST, "no")
        return "fine"

    context.answer = answer
    context.process()
    run = Run(RUN, context.store, context.publisher, lambda: None)
    assert run.retry_failed() == 1
    asked = []
    reopened = context.store.reopened
    monkeypatch.setattr(
        context.store, "reopened", lambda of, some: asked.append(some) or reopened(of, some)
    )
    monkeypatch.setattr(context.store, "is_reopened", lambda _: 1 / 0)
    context.store.open_shards(MAP, window=1_000)
    ended = stream.EndedBranches(context.store, RUN)
    assert list(ended.read()) == []
    assert len(asked) == 1
    for number in range(9):
        collect(context, [], ShardId(RUN, 0, number))
    assert [outcome.index for _, outcome in ended.read()] == list(range(90))
    assert ended._first == 9
    assert list(ended.read()) == []
    assert asked[-1] == [9]


def test_a_shard_that_lacks_an_outcome_costs_the_others_no_memory(context):
    context.write([f"t{n}" for n in range(100)], max_branches=10)
    context.process()
    ended = stream.EndedBranches(context.store, RUN)
    outcomes = context.store.outcomes

    def lossy(shard_id):
        found = outcomes(shard_id)
        found.pop(3 if shard_id.shard == 0 else None, None)
        return found

    context.store.outcomes = lossy
    given = [outcome.index for _, outcome in ended.read()]
    assert (len(given), ended._first, ended._complete) == (99, 10, set())
    assert list(ended._given) == [0]
    context.store.outcomes = outcomes
    given += [outcome.index for _, outcome in ended.rest()]
    assert sorted(given) == list(range(100))


@pytest.mark.parametrize("seen", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_shards_that_end_in_any_order_are_given_once(context, monkeypatch, order, seen):
    """What is seen before the run has ended, and what only then, has no order either."""
    context.write([f"t{n}" for n in range(6)], max_branches=2)
    context.store.open_shards(MAP, window=3)
    steps = []

    def end(numbers):
        for number in numbers:
            for position in range(2):
                call(context, number, position)()
            collect(context, [], ShardId(RUN, 0, number))

    for number, is_seen in zip(order, seen, strict=True):
        if is_seen:
            steps.append(partial(end, [number]))
    unseen = [number for number, is_seen in zip(order, seen, strict=True) if not is_seen]
    steps.append(lambda: (end(unseen), aggregate(context, MAP)))
    given = [branch.index for branch in streamed(context, monkeypatch, steps)]
    assert sorted(given) == list(range(6))
