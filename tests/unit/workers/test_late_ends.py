"""A worker that is held up until its run has ended and was retried does nothing to the reopened run."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest

from fanout.core.errors import LLMError, SpecError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.core.state import RecordRequest
from fanout.runs import result_writer
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext, record_one, run_branch
from workers.branch.delivery_ends import BranchHeld
from workers.branch.execution import BranchFailed
from workers.reduce import group_packing
from workers.reduce.items import TooEarlyError
from workers.reduce.stages import aggregate, collect, expand

MAP = StageId(RUN, 0)
CALLED = {
    "aggregate_prompt": "SUM {input}", "aggregate_max_tokens": 40, "context_tokens": 4_000,
    "tokenizer": "bytes/4", "fence": False,
}  # fmt: skip
JOBS = {
    "concat": {"reduce": "concat"},
    "llm": CALLED,
    "refine": {**CALLED, "fold": "refine"},
    "list": {"reduce": [{"name": "all", "reduce": "concat"}, {"name": "n", "reduce": "vote"}]},
}  # fmt: skip


class Held:
    """Holds up one write of a result; meanwhile another worker ends the run, and the user retries it."""

    def __init__(self, context, monkeypatch, write, ends_run, count=1):
        self._context, self._ends_run, self._count = context, ends_run, count
        self._write = getattr(context.store, write)
        self.answer = None
        monkeypatch.setattr(context.store, write, self)

    def __call__(self, *args, **options):
        if self.answer is not None:
            return self._write(*args, **options)
        self.answer = False
        self._ends_run()
        store = self._context.store
        assert store.run(RUN).has_ended
        retried = retry_failed(store, self._context.publisher, RUN, None)
        assert retried == self._count or self._count is None
        assert store.result(RUN) is None
        self.answer = self._write(*args, **options)
        return self.answer


def failing(**fields):
    """Return a run of 4 branches, and the prompts that fail."""
    context = FakeContext(**{"retries": {"max_attempts": 1}, "cache": False, **fields})
    bad = {"d"}

    def answer(request):
        if request.prompt in bad:
            raise LLMError(ErrorKind.INVALID_OUTPUT, "no")
        return "sum" if request.prompt.startswith("SUM") else request.prompt

    context.answer = answer
    context.write(["a", "b", "c", "d"])
    return context, bad


def finish(context):
    """Process a run that was retried to its end."""
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage)
        stage = max(stage, context.store.run(RUN).base_stage) + 1


@pytest.mark.parametrize(
    ("write", "is_large"),
    [
        ("set_status", False),
        ("put_result_piece", True),
        ("put_result", True),
        ("put_result", False),
        ("end_run", False),
    ],
)
@pytest.mark.parametrize("job", JOBS)
def test_a_result_of_before_a_retry_does_not_end_the_run_after_it(
    job, write, is_large, monkeypatch
):
    if is_large:
        monkeypatch.setattr(result_writer, "_SMALL_BYTES", -1)
    context, bad = failing(**JOBS[job])
    last = 1 if "aggregate_prompt" in JOBS[job] else 0
    if last:
        context.process(0)

    def ends_run():
        for stage in range(last + 1):
            aggregate(context, StageId(RUN, stage))

    held = Held(context, monkeypatch, write, ends_run)
    context.process(last)
    bad.clear()
    assert held.answer is False
    goes_on(context, monkeypatch)


@pytest.mark.parametrize("fields", [{"min_success": 0.9}, CALLED, {"reduce": "concat"}])
def test_a_run_that_a_late_worker_would_have_failed_goes_on(fields, monkeypatch):
    """The share of before the retry was too low; or the run was halted, which ends it in another place."""
    context, bad = failing(**fields)
    if "min_success" not in fields:
        context.store.halt(RUN, RunStatus.CANCELLED)
        bad |= {"a", "b", "c"}
    held = Held(context, monkeypatch, "end_run", partial(aggregate, context, MAP), count=None)
    context.process(0)
    bad.clear()
    assert held.answer is False
    goes_on(context, monkeypatch)


def test_groups_without_room_end_only_the_opening_of_the_run_that_they_are_of(monkeypatch):
    context, bad = failing(**CALLED, group_by="document")

    def no_room(*_args):
        raise SpecError("leaves no room", field="context_tokens")

    def ends_run():
        aggregate(context, MAP)
        context.store.end_run(RUN, RunStatus.FAILED, ended_at=2.0)

    with monkeypatch.context() as patch:
        patch.setattr(group_packing.Packing, "advance", no_room)
        held = Held(context, patch, "end_run", ends_run, count=1)
        with suppress(TooEarlyError):
            context.process(0)
    bad.clear()
    assert held.answer is False
    goes_on(context, monkeypatch)


@pytest.mark.parametrize("kind", [ErrorKind.INVALID_OUTPUT, ErrorKind.AUTH])
def test_a_branch_that_fails_late_leaves_it_to_the_retry(kind):
    """Its worker was taken for dead: another one has ended the branch and the run, which was retried."""
    context, bad = failing(reduce="concat")
    shard = MAP.shard(0)
    late = shard.branch(3)
    answer = context.answer

    def held_up(request):
        if request.prompt not in bad:
            return answer(request)
        failed = Outcome(index=3, kind=ErrorKind.TIMEOUT, message="too late", attempts=1)
        record_one(context.store, RecordRequest(late, failed))
        collect(context, [], shard)
        aggregate(context, MAP)
        assert retry_failed(context.store, context.publisher, RUN, None) == 1
        expand(context, shard)
        # That of a wrong key would stop the run after a few.
        raise LLMError(kind, "no", stop_after=1)

    context.answer = held_up
    for position in range(3):
        run_branch(context, shard.branch(position))
    with pytest.raises(BranchHeld):
        run_branch(context, late)
    assert context.store.run(RUN).halt is None
    record = context.store.stage(MAP)
    assert (record.succeeded, record.failed) == (3, 0)
    assert 3 not in context.store.outcomes(shard)
    context.answer = answer
    bad.clear()
    context.process(0)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    assert context.store.stage(MAP).succeeded == 4


def test_a_late_collect_records_no_failure_that_a_retry_has_taken_back(monkeypatch):
    context, _ = failing(reduce="concat")
    shard = MAP.shard(0)
    for position in range(3):
        run_branch(context, shard.branch(position))
    lost = [{"task_id": shard.branch(3).task_id, "state": "FAILURE", "error": "WorkerLostError"}]
    outcomes = context.store.outcomes

    def held_up(of):
        monkeypatch.undo()
        collect(context, lost, shard)
        aggregate(context, MAP)
        assert retry_failed(context.store, context.publisher, RUN, None) == 1
        expand(context, shard)
        return outcomes(of)

    monkeypatch.setattr(context.store, "outcomes", held_up)
    with pytest.raises(TooEarlyError):
        collect(context, lost, shard)
    assert 3 not in context.store.outcomes(shard)
    assert context.store.stage(MAP).failed == 0


@pytest.mark.parametrize("step", ["outcomes", "run", "compact"])
def test_a_late_collect_replaces_no_outcomes_of_a_shard_that_a_retry_has_reset(step, monkeypatch):
    context, bad = failing(reduce="concat")
    store, shard = context.store, MAP.shard(0)
    for position in range(4):
        with suppress(BranchFailed):
            run_branch(context, shard.branch(position))
    do = getattr(store, step)

    def held_up(*args, **options):
        monkeypatch.undo()
        # What is read is of before.
        found = None if step == "compact" else do(*args, **options)
        collect(context, [], shard)
        aggregate(context, MAP)
        assert retry_failed(store, context.publisher, RUN, None) == 1
        expand(context, shard)
        return do(*args, **options) if step == "compact" else found

    monkeypatch.setattr(store, step, held_up)
    with pytest.raises(TooEarlyError):
        collect(context, [], shard)
    assert not store.is_finished(shard)
    assert sorted(store.outcomes(shard)) == [0, 1, 2]
    bad.clear()
    finish(context)
    assert store.run(RUN).status is RunStatus.SUCCEEDED
    assert (store.stage(MAP).succeeded, store.stage(MAP).failed) == (4, 0)


def test_a_field_that_answers_of_before_a_retry_lack_does_not_stop_the_run(monkeypatch):
    context = FakeContext(reduce="resolve", by="firm", cache=False)
    context.answer = lambda _request: "no field"
    context.write([f"t{number}" for number in range(40)])
    halt = context.store.halt
    late: list[bool] = []

    def held_up(*args, **options):
        context.store.end_run(RUN, RunStatus.FAILED, ended_at=2.0)
        context.store.reopen_run(RUN, retry=frozenset({ErrorKind.INVALID_OUTPUT}))
        late.append(halt(*args, **options))
        return late[-1]

    monkeypatch.setattr(context.store, "halt", held_up)
    with suppress(TooEarlyError):
        context.process(0)
    assert late == [False]
    assert context.store.run(RUN).halt is None


def goes_on(context, monkeypatch):
    """Check that a run that was retried is as it was then, and comes to its end."""
    store = context.store
    run = store.run(RUN)
    assert (run.status, run.error, run.halt) == (RunStatus.RUNNING, None, None)
    assert store.result(RUN) is None
    assert RUN in store.active_runs()
    monkeypatch.undo()
    finish(context)
    run = store.run(RUN)
    assert (run.status, run.error) == (RunStatus.SUCCEEDED, None)
    found = context.result
    for one in (found, *found.named.values()):
        assert sum(some.failed for some in one.aggregates.values()) == 0
