"""What workers do around branches, without a server: a fake one, and a publisher that notes."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from fanout.core.errors import BrokerError, LLMError, LostDataError, UnknownRunError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus, Shard
from fanout.core.settings import load_settings
from fanout.core.state import BeginRequest, RecordRequest
from fanout.runs import result_writer
from fanout.runs.enqueue import unpark
from tests.fakes import (
    RUN,
    FakeContext,
    InlineExecutor,
    begin_one,
    fake_store,
    record_one,
    run_branch,
)
from workers.branch import claims
from workers.branch.delivery_ends import BranchHandedBack, BranchHeld, BranchParked
from workers.branch.execution import BranchFailed
from workers.context.batches import LoadingCache
from workers.context.inflight import StopReason
from workers.reduce import stages
from workers.reduce.items import TooEarlyError
from workers.reduce.stages import aggregate, collect, expand


@pytest.fixture(autouse=True)
def _anew(monkeypatch):
    monkeypatch.setattr(stages._TREE_FILTER, "_next", float("-inf"))


def outcome(index=0):
    return Outcome(index=index, output="x", attempts=1)


def test_expand_publishes_a_whole_shard():
    context = FakeContext()
    context.write(["a", "b", "c"])
    expand(context, ShardId(RUN, 0, 0))
    assert context.publisher.sent == [("chord", 0, 0, [0, 1, 2])]


def test_further_shards_are_published_when_few_branches_are_left_of_one():
    context = FakeContext()
    context.write([str(i) for i in range(48)], max_branches=16)
    context.publisher.expand(StageId(RUN, 0), context.store.open_shards(StageId(RUN, 0), window=2))
    for position in range(12):
        assert context.publisher.sent == [("expand", 0, 0), ("expand", 0, 1)]
        run_branch(context, BranchId(RUN, 0, 0, position))
    assert context.publisher.sent[2:] == [("expand", 0, 2)]


def test_a_stopped_run_is_not_published_but_recorded():
    context = FakeContext()
    context.write(["a", "b"])
    context.store.halt(RUN, RunStatus.CANCELLED)
    expand(context, ShardId(RUN, 0, 0))
    assert context.publisher.sent == [("collect", 0, 0)]
    collect(context, [], ShardId(RUN, 0, 0))
    assert context.kept_learnt == 1, "an embedded worker ends with its run"
    aggregate(context, StageId(RUN, 0))
    record = context.store.stage(StageId(RUN, 0))
    assert record.errors == {ErrorKind.CANCELLED: 2}
    assert context.store.run(RUN).status is RunStatus.CANCELLED


def test_the_branches_of_an_overdue_run_are_not_published_but_expire():
    store = fake_store()
    store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=2.0)
    context = FakeContext(store, reduce="concat")
    context.write(["a", "b"])
    expand(context, ShardId(RUN, 0, 0))
    assert context.publisher.sent == [("collect", 0, 0)]
    assert context.store.stage(StageId(RUN, 0)).errors == {ErrorKind.EXPIRED: 2}


def test_a_retried_shard_is_taken_back_when_it_is_expanded_and_only_then():
    context = FakeContext(retries={"max_attempts": 1})
    context.answer = lambda request: ValueError("no") if "b" in request.prompt else "fine"
    context.write(["a", "b"])
    context.process()
    context.store.reopen_run(RUN, retry=frozenset({ErrorKind.INTERNAL}))
    context.publisher.sent.clear()
    expand(context, ShardId(RUN, 0, 0))
    assert context.publisher.sent == [("forget", 0, 0), ("chord", 0, 0, [1])]
    context.process()
    assert context.llm.calls == 3, "only what had failed was called again"
    expand(context, ShardId(RUN, 0, 0))
    assert context.publisher.sent[-1] == ("collect", 0, 0), "an expand that comes again"
    assert context.store.stage(StageId(RUN, 0)).errors == {ErrorKind.INTERNAL: 1}


@pytest.mark.parametrize("late", ["collect", "aggregate"])
def test_a_callback_from_before_a_retry_does_not_end_the_run_as_it_was(late):
    context = FakeContext(retries={"max_attempts": 1}, reduce="concat")
    context.answer = lambda request: ValueError("no") if "b" in request.prompt else "fine"
    context.write(["a", "b"])
    context.process()
    map_id, shard_id = StageId(RUN, 0), ShardId(RUN, 0, 0)
    assert context.store.run(RUN).has_ended
    context.store.reopen_run(RUN, retry=frozenset({ErrorKind.INTERNAL}))
    context.store.seal_stage(map_id)
    opened = context.store.open_shards(map_id, window=1)
    with pytest.raises(TooEarlyError):
        collect(context, [], shard_id) if late == "collect" else aggregate(context, map_id)
    assert not context.store.run(RUN).has_ended
    assert context.store.progress(map_id).open == {0}
    # The retry goes on as if the copy had not been there.
    context.answer = lambda request: "fine"
    context.publisher.expand(map_id, opened)
    context.process()
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    assert context.store.stage(map_id).failed == 0


def test_a_branch_with_an_outcome_makes_no_call():
    context = FakeContext()
    context.write(["a"])
    run_branch(context, BranchId(RUN, 0, 0, 0))
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 1


def test_a_branch_that_was_begun_too_often_is_poisoned():
    context = FakeContext()
    context.write(["a"])
    for token in ("one", "two"):
        begin_one(context.store, BeginRequest(BranchId(RUN, 0, 0, 0), token=token))
    with pytest.raises(BranchFailed, match="poisoned"):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 0


def test_a_suspect_is_processed_alone_and_counted_only_then():
    context = FakeContext()
    context.settings = load_settings(max_deliveries=4)
    context.write(["a", "b"])
    for token in ("one", "two"):
        begin_one(context.store, BeginRequest(BranchId(RUN, 0, 0, 0), token=token))
    locked = []
    context.answer = lambda request: locked.append(context.branches.alone.locked()) or "fine"
    run_branch(context, BranchId(RUN, 0, 0, 0))
    run_branch(context, BranchId(RUN, 0, 0, 1))
    assert locked == [True, False]


def test_a_branch_of_a_paused_run_is_parked_with_how_it_was_published():
    context = FakeContext()
    context.write(["a", "b"])
    context.store.pause(RUN)
    with pytest.raises(BranchParked):
        run_branch(context, BranchId(RUN, 0, 0, 1))
    assert context.llm.calls == 0
    context.store.unpause(RUN)
    assert unpark(context.store, context.publisher, RUN) == 1
    assert context.publisher.sent == [("branch", 0, 0, 1)]
    assert unpark(context.store, context.publisher, RUN) == 0


def test_a_branch_that_is_handed_back_was_not_begun():
    context = FakeContext()
    context.write(["a"])
    context.models.in_flight.stop = StopReason.HANDED_BACK
    with pytest.raises(BranchHandedBack):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.store.outcomes(ShardId(RUN, 0, 0)) == {}
    assert (
        begin_one(context.store, BeginRequest(BranchId(RUN, 0, 0, 0), token="next")).deliveries == 1
    )


def test_a_worker_that_hands_back_begins_nothing():
    context = FakeContext()
    context.write(["a"])
    context.hand_back.has_begun = True
    with pytest.raises(BranchHandedBack):
        run_branch(context, BranchId(RUN, 0, 0, 0))


@pytest.mark.parametrize(
    ("stop", "kind"),
    [(StopReason.HALTED, ErrorKind.CANCELLED), (StopReason.EXPIRED, ErrorKind.EXPIRED)],
)
def test_a_call_that_was_ended_early_says_why(stop, kind):
    context = FakeContext()
    context.write(["a"])
    context.models.in_flight.stop = stop
    with pytest.raises(BranchFailed, match=kind.value):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    outcome = context.store.outcomes(ShardId(RUN, 0, 0))[0]
    assert outcome.attempts == 0, "no call was made"
    assert outcome.message.endswith(" before this branch was called")


def test_a_worker_that_never_had_an_answer_learns_from_others_that_it_is_the_document():
    context = FakeContext(retries={"base_wait_s": 0.0})
    context.write(["a"])
    context.answer = lambda _request: LLMError(ErrorKind.SERVER_ERROR, "no", status=500)
    known = context.store.stage
    counts = itertools.count(1)
    context.store.stage = lambda *key: msgspec.structs.replace(known(*key), succeeded=next(counts))
    with pytest.raises(BranchFailed, match="server_error"):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    outcome = context.store.outcomes(ShardId(RUN, 0, 0))[0]
    assert 15 <= outcome.attempts <= 17


def test_a_branch_whose_input_is_gone_is_lost():
    context = FakeContext()
    context.write(["a"])

    def gone(key):
        raise UnknownRunError(RUN)

    context.runs.shards = LoadingCache(gone, InlineExecutor(), size=1)
    with pytest.raises(BranchFailed, match="lost"):
        run_branch(context, BranchId(RUN, 0, 0, 0))


def test_an_expand_that_is_delivered_again_publishes_only_what_is_missing():
    context = FakeContext()
    context.write(["a", "b", "c", "d"])
    expand(context, ShardId(RUN, 0, 0))
    run_branch(context, BranchId(RUN, 0, 0, 1))
    context.messages.ids = {f"{RUN}/0/0/3", f"{RUN}/0/0/expand"}
    expand(context, ShardId(RUN, 0, 0))
    assert context.publisher.sent[1:] == [("branch", 0, 0, 0), ("branch", 0, 0, 2)]


def test_a_failed_task_shows_its_kind_and_not_the_text_of_the_provider():
    context = FakeContext(retries={"max_attempts": 1})
    context.write(["a"])
    context.answer = lambda request: ValueError("about the secret document")
    with pytest.raises(BranchFailed) as caught:
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert str(caught.value) == "internal"
    assert "secret" in context.store.outcomes(ShardId(RUN, 0, 0))[0].message


def test_the_parameters_of_a_call_are_those_of_the_spec():
    context = FakeContext(
        system="s", temperature=0.5, max_tokens=7, seed=10, stop=["."], samples=2,
        aggregate_prompt="{input}", aggregate_max_tokens=99,
    )  # fmt: skip
    asked = []
    context.answer = lambda request: asked.append(request) or "x"
    context.write(["a"])
    context.process()
    context.process(stage=1)
    assert [(r.system, r.temperature, r.stop) for r in asked] == [("s", 0.5, (".",))] * 3
    assert [(r.seed, r.max_tokens) for r in asked] == [(10, 7), (11, 7), (10, 99)]


RECORDS = [
    ({"state": "FAILURE", "error": "WorkerLostError"}, "worker_lost"),
    ({"state": "FAILURE", "error": "TimeLimitExceeded"}, "time_limit"),
    ({"state": "FAILURE", "error": "ZeroDivisionError"}, "internal"),
    ({"state": "REVOKED", "error": "TaskRevokedError", "reason": "['expired']"}, "expired"),
    ({"state": "REVOKED", "error": "TaskRevokedError", "reason": "['terminated']"}, "cancelled"),
]


@pytest.mark.parametrize(("record", "kind"), RECORDS)
def test_a_branch_that_wrote_no_outcome_gets_one_from_its_chord(record, kind):
    context = FakeContext()
    context.write(["a", "b"])
    record_one(context.store, RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))
    counts = collect(context, [None, {**record, "task_id": "r1/0/0/1"}], ShardId(RUN, 0, 0))
    assert counts == {"shard": 0, "succeeded": 1, "failed": 1}
    assert context.store.outcomes(ShardId(RUN, 0, 0))[1].kind == kind


def test_a_collect_before_all_branches_have_ended_does_nothing():
    """A copy of a callback, from before a retry for instance, must not end what is in flight."""
    context = FakeContext()
    context.write(["a", "b"])
    context.store.open_shards(StageId(RUN, 0), window=1)
    record_one(context.store, RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))
    with pytest.raises(TooEarlyError):
        collect(context, [None, None], ShardId(RUN, 0, 0))
    assert context.store.stage(StageId(RUN, 0)).done == 1
    assert context.store.progress(StageId(RUN, 0)).open == {0}


def test_a_collect_opens_the_next_shards_once():
    context = FakeContext()
    context.write([str(i) for i in range(8)], max_branches=2)
    context.store.open_shards(StageId(RUN, 0), window=2)
    for position in range(2):
        record_one(context.store, RecordRequest(BranchId(RUN, 0, 0, position), outcome(position)))
    collect(context, [], ShardId(RUN, 0, 0))
    assert context.publisher.sent == [("expand", 0, 2)]
    collect(context, [], ShardId(RUN, 0, 0))
    assert context.publisher.sent == [("expand", 0, 2)], "a second delivery opens nothing"


def test_an_aggregate_before_all_branches_have_ended_does_nothing():
    context = FakeContext(reduce="concat")
    context.write(["a", "b"], max_branches=1)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    collect(context, [], ShardId(RUN, 0, 0))
    with pytest.raises(TooEarlyError):
        aggregate(context, StageId(RUN, 0))
    assert not context.store.run(RUN).has_ended


def test_an_aggregate_of_a_stage_that_is_still_being_written_does_nothing():
    context = FakeContext(reduce="concat")
    context.write(["a"], seal=False)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    collect(context, [], ShardId(RUN, 0, 0))
    with pytest.raises(TooEarlyError):
        aggregate(context, StageId(RUN, 0))


def test_an_aggregate_needs_no_collect_where_all_outcomes_are_there():
    context = FakeContext(reduce="concat")
    context.write(["a"])
    run_branch(context, BranchId(RUN, 0, 0, 0))
    aggregate(context, StageId(RUN, 0))
    assert context.result.aggregates[""].value == "answer to a"


def test_a_tree_has_the_answers_of_shards_whose_callback_was_lost():
    context = FakeContext(aggregate_prompt="{input}")
    context.write(["a", "b", "c"], max_branches=1)
    for shard in range(3):
        run_branch(context, BranchId(RUN, 0, shard, 0))
    collect(context, [], ShardId(RUN, 0, 0))
    aggregate(context, StageId(RUN, 0))
    node = context.store.shard(ShardId(RUN, 1, 0)).chunks[0]
    assert [f"answer to {text}" in node.text for text in "abc"] == [True] * 3


@pytest.mark.parametrize("spec", ["garbage", "{}", '{"of_a_later_version": 1}'])
def test_a_shard_ends_though_the_spec_cannot_be_read(spec, caplog):
    store = fake_store()
    store.create_run(RUN, spec=spec, created_at=1.0)
    context = FakeContext(store)
    shards = [ShardId(RUN, 0, shard) for shard in range(2)]
    context.write(["a", "b"], max_branches=1)
    for shard_id in shards:
        record_one(store, RecordRequest(shard_id.branch(0), outcome=outcome(shard_id.shard)))
        ended = collect(context, [], shard_id)
        assert ended == {"shard": shard_id.shard, "succeeded": 1, "failed": 0}
    assert store.stage(StageId(RUN, 0)).succeeded == 2
    assert caplog.text.count("cannot follow shard") == 1


@pytest.mark.parametrize(
    "fault",
    [ValueError("a secret"), LostDataError("gone"), BrokerError("later"), UnknownRunError(RUN)],
)
def test_a_fault_of_the_tree_is_none_of_its_shard(fault, monkeypatch, caplog):
    def fails(*_given):
        raise fault

    monkeypatch.setattr(stages, "follow", fails)
    context = FakeContext()
    context.write(["a"])
    run_branch(context, BranchId(RUN, 0, 0, 0))
    if isinstance(fault, BrokerError | UnknownRunError):
        # The task is done again, or its run is gone.
        with pytest.raises(type(fault)):
            collect(context, [], ShardId(RUN, 0, 0))
        return
    assert collect(context, [], ShardId(RUN, 0, 0))["succeeded"] == 1
    assert type(fault).__name__ in caplog.text
    assert "test_stages.py:" in caplog.text
    assert "secret" not in caplog.text


def test_a_copy_of_a_branch_that_a_living_worker_holds_makes_no_call():
    context = FakeContext()
    context.write(["a"])
    context.store.beat("other", ttl_s=60)
    begin_one(
        context.store, BeginRequest(BranchId(RUN, 0, 0, 0), token="one", holder="other", lasts_s=60)
    )
    with pytest.raises(BranchHeld):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 0
    context.store.release_claim(BranchId(RUN, 0, 0, 0), token="one", counts=True)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 1


class HeldUpContext(FakeContext):
    """A worker that is stopped after each begin, until others take it for dead."""

    def __init__(self, meanwhile, monkeypatch, **fields):
        super().__init__(**fields)
        monkeypatch.setattr(claims, "SURE", 0)
        self.meanwhile = meanwhile
        self.begins = 0
        self.branches.begin = self.begin
        self.write(["a"])

    async def begin(self, request):
        begun = begin_one(self.store, request)
        self.begins += 1
        if self.begins == 1:
            self.meanwhile(self.store)
        return begun


def begun_by_another(store):
    store.beat("other", ttl_s=60)
    begin_one(
        store, BeginRequest(BranchId(RUN, 0, 0, 0), token="other", holder="other", lasts_s=60)
    )


def ended_by_another(store):
    begun_by_another(store)
    record_one(store, RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))


def begun_by_two_that_died(store):
    for token in ("one", "two"):
        begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 0), token=token, holder="dead"))


def paused_with_another(store):
    begun_by_another(store)
    store.pause(RUN)


def test_a_worker_that_was_held_up_after_its_begin_asks_again(monkeypatch):
    context = HeldUpContext(lambda _store: None, monkeypatch)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert (context.begins, context.llm.calls) == (2, 1)
    assert context.store.outcomes(ShardId(RUN, 0, 0))[0].output == "answer to a"


def test_a_begin_is_not_asked_for_again_at_once():
    with pytest.MonkeyPatch.context() as monkeypatch:
        context = HeldUpContext(lambda _store: None, monkeypatch)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert (context.begins, context.llm.calls) == (1, 1)


@pytest.mark.parametrize(
    ("meanwhile", "error"),
    [
        (begun_by_another, BranchHeld),
        (begun_by_two_that_died, BranchHeld),
        (paused_with_another, BranchParked),
    ],
)
def test_a_worker_that_was_held_up_leaves_a_branch_to_its_new_holder(meanwhile, error, monkeypatch):
    context = HeldUpContext(meanwhile, monkeypatch)
    with pytest.raises(error):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 0
    assert context.store.outcomes(ShardId(RUN, 0, 0)) == {}


def test_a_worker_that_was_held_up_makes_no_call_of_a_branch_that_has_ended(monkeypatch):
    context = HeldUpContext(ended_by_another, monkeypatch)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert (context.begins, context.llm.calls) == (2, 0)


def test_what_was_begun_before_a_pause_is_called_however_late(monkeypatch):
    context = HeldUpContext(lambda store: store.pause(RUN), monkeypatch)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 1
    assert context.store.take_parked(RUN) == []


def test_a_worker_that_was_held_up_makes_no_call_of_a_run_that_was_stopped(monkeypatch):
    context = HeldUpContext(lambda store: store.halt(RUN, RunStatus.CANCELLED), monkeypatch)
    with pytest.raises(BranchFailed, match="cancelled"):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 0


def test_a_worker_that_waited_to_try_again_leaves_the_branch_to_its_new_holder(monkeypatch):
    context = HeldUpContext(
        lambda _store: None, monkeypatch, retries={"base_wait_s": 0, "max_wait_s": 0}
    )

    def fails(_request):
        begun_by_another(context.store)
        raise LLMError(ErrorKind.SERVER_ERROR, "busy")

    context.answer = fails
    with pytest.raises(BranchHeld):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.llm.calls == 1


def test_a_branch_is_held_while_its_call_is_made():
    context = FakeContext()
    context.write(["a"])
    context.store.beat(context.holder, ttl_s=60)
    held = []
    state = lambda: context.store.shard_state(ShardId(RUN, 0, 0))  # noqa: E731
    context.answer = lambda request: held.append(state().held) or "fine"
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert held == [{0}]


def test_an_aggregate_that_is_delivered_twice_changes_nothing():
    context = FakeContext(reduce="concat")
    context.write(["a"])
    context.process()
    ended = context.store.run(RUN)
    aggregate(context, StageId(RUN, 0))
    again = context.store.run(RUN)
    assert msgspec.structs.replace(again, read_at=ended.read_at) == ended


def test_an_aggregate_that_is_too_large_to_be_kept_fails_the_run_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(result_writer, "_MAX_RECORD_BYTES", 500)
    context = FakeContext(reduce="concat", group_by="document")
    context.write(["a", "b", "c"])
    context.process()
    run = context.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert f"fanout results {RUN} --out DIR" in run.error
    assert context.result.aggregates == {}


def test_an_aggregate_that_died_while_opening_a_stage_can_be_done_again():
    context = FakeContext(aggregate_prompt="{count}: {input}")
    context.write(["a", "b"])
    context.process()
    aggregate(context, StageId(RUN, 0))
    assert context.store.stage(StageId(RUN, 1)).total == 1, "the stage is opened once"
    context.process(stage=1)
    assert context.result.aggregates[""].value.startswith("answer to 2: (Each begins")


def test_a_tree_counts_what_its_partial_reductions_lost():
    """A partial reduction that failed takes its answers with it, and the root is told."""
    context = FakeContext(
        aggregate_prompt="SUM {count} {failed}: {input}", context_tokens=300,
        aggregate_max_tokens=20, retries={"max_attempts": 1},
    )  # fmt: skip

    def told(request):
        if not request.prompt.startswith("SUM"):
            return "word " * 20
        return ValueError("no") if "[d0]" in request.prompt else "partial"

    context.answer = told
    context.write([str(i) for i in range(12)])
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage += 1
    root = context.result.aggregates[""]
    lost = context.store.shard(ShardId(RUN, 1, 0)).chunks[0].columns["count"]
    assert root.value == "partial"
    assert (root.succeeded, root.failed) == (12 - int(lost), int(lost))
    assert [error.kind for error in context.result.errors] == [ErrorKind.INTERNAL]


def test_answers_that_cannot_fit_end_the_run_with_a_clear_error():
    context = FakeContext(aggregate_prompt="x" * 2000 + "{input}", context_tokens=400)
    context.write(["a"])
    context.process()
    record = context.store.run(RUN)
    assert record.status is RunStatus.FAILED
    assert "context_tokens: the context window of 400 tokens leaves no room" in record.error


def test_a_shard_may_begin_in_the_middle_of_a_chunk():
    shard = Shard(
        first=3, count=1, first_chunk=1, chunks=[Chunk(text="b", document="d", document_index=1)]
    )
    context = FakeContext(samples=2)
    context.store.put_shard(ShardId(RUN, 0, 0), shard)
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.store.outcomes(ShardId(RUN, 0, 0))[0].index == 3
