"""What workers do around branches, without a server: a fake one, and a publisher that notes."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from fanout.core.errors import LLMError, UnknownRunError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus, Shard
from fanout.core.settings import load_settings
from fanout.runs.enqueue import unpark
from fanout.stores import BeginRequest, RecordRequest
from tests.fakes import RUN, Runtime, fake_store, run_branch
from workers.branch import claims
from workers.branch.claims import BranchHandedBack, BranchHeld, BranchParked
from workers.branch.execution import BranchFailed
from workers.context.inflight import Stop
from workers.reduce import reductions
from workers.reduce.stages import TooEarlyError, aggregate, collect, expand


def outcome(index=0):
    return Outcome(index=index, output="x", attempts=1)


def test_expand_publishes_a_whole_shard():
    runtime = Runtime()
    runtime.write(["a", "b", "c"])
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    assert runtime.publisher.sent == [("chord", 0, 0, 3, [0, 1, 2], 0)]


@pytest.mark.parametrize(("permits", "published", "feed"), [(2, 2, 3), (3, 3, 0), (9, 3, 0)])
def test_expand_publishes_as_many_branches_as_it_has_lanes(permits, published, feed):
    runtime = Runtime()
    runtime.write(["a", "b", "c"])
    expand(runtime, ShardId(RUN, 0, 0), permits=permits)
    assert runtime.publisher.sent == [("chord", 0, 0, 3, list(range(published)), feed)]


def test_a_branch_that_ends_publishes_the_next_of_its_shard():
    runtime = Runtime()
    runtime.write(["a", "b", "c"])
    expand(runtime, ShardId(RUN, 0, 0), permits=1)
    for position in range(3):
        run_branch(runtime, BranchId(RUN, 0, 0, position), 3)
    assert runtime.publisher.sent[1:] == [("branch", 0, 0, 1, 3), ("branch", 0, 0, 2, 3)]


def test_further_shards_are_published_when_few_branches_are_left_of_one():
    runtime = Runtime()
    runtime.write([str(i) for i in range(48)], max_branches=16)
    runtime.publisher.expand(StageId(RUN, 0), runtime.store.open_shards(StageId(RUN, 0), window=2))
    for position in range(12):
        assert runtime.publisher.sent == [("expand", 0, 0, 0), ("expand", 0, 1, 0)]
        run_branch(runtime, BranchId(RUN, 0, 0, position), 0)
    assert runtime.publisher.sent[2:] == [("expand", 0, 2, 0)]


def test_a_stopped_run_is_not_published_but_recorded():
    runtime = Runtime()
    runtime.write(["a", "b"])
    runtime.store.halt(RUN, RunStatus.CANCELLED)
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    assert runtime.publisher.sent == [("collect", 0, 0)]
    collect(runtime, [], ShardId(RUN, 0, 0))
    aggregate(runtime, StageId(RUN, 0))
    record = runtime.store.stage(StageId(RUN, 0))
    assert record.errors == {ErrorKind.CANCELLED: 2}
    assert runtime.store.run(RUN).status is RunStatus.CANCELLED


def test_the_branches_of_an_overdue_run_are_not_published_but_expire():
    runtime = Runtime(reduce="concat")
    runtime.store = fake_store()
    runtime.store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=2.0)
    runtime.write(["a", "b"])
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    assert runtime.publisher.sent == [("collect", 0, 0)]
    assert runtime.store.stage(StageId(RUN, 0)).errors == {ErrorKind.EXPIRED: 2}


def test_a_retried_shard_is_taken_back_when_it_is_expanded_and_only_then():
    runtime = Runtime(retries={"max_attempts": 1})
    runtime.told = lambda request: ValueError("no") if "b" in request.prompt else "fine"
    runtime.write(["a", "b"])
    runtime.process()
    runtime.store.reopen_run(RUN, retry=frozenset({ErrorKind.INTERNAL}))
    runtime.publisher.sent.clear()
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    assert runtime.publisher.sent == [("forget", 0, 0), ("chord", 0, 0, 1, [1], 0)]
    runtime.process()
    assert runtime.llm.calls == 3, "only what had failed was called again"
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    assert runtime.publisher.sent[-1] == ("collect", 0, 0), "an expand that comes again"
    assert runtime.store.stage(StageId(RUN, 0)).errors == {ErrorKind.INTERNAL: 1}


def test_a_branch_with_an_outcome_makes_no_call():
    runtime = Runtime()
    runtime.write(["a"])
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 1


def test_a_branch_that_was_begun_too_often_is_poisoned():
    runtime = Runtime()
    runtime.write(["a"])
    for token in ("one", "two"):
        runtime.store.begin(BeginRequest(BranchId(RUN, 0, 0, 0), token=token))
    with pytest.raises(BranchFailed, match="poisoned"):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 0


def test_a_suspect_is_processed_alone_and_counted_only_then():
    runtime = Runtime()
    runtime.settings = load_settings(max_deliveries=4)
    runtime.write(["a", "b"])
    for token in ("one", "two"):
        runtime.store.begin(BeginRequest(BranchId(RUN, 0, 0, 0), token=token))
    locked = []
    runtime.told = lambda request: locked.append(runtime.alone.locked()) or "fine"
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    run_branch(runtime, BranchId(RUN, 0, 0, 1), 0)
    assert locked == [True, False]


def test_a_branch_of_a_paused_run_is_parked_with_how_it_was_published():
    runtime = Runtime()
    runtime.write(["a", "b"])
    runtime.store.pause(RUN)
    with pytest.raises(BranchParked):
        run_branch(runtime, BranchId(RUN, 0, 0, 1), 2)
    assert runtime.llm.calls == 0
    runtime.store.unpause(RUN)
    assert unpark(runtime.store, runtime.publisher, RUN) == 1
    assert runtime.publisher.sent == [("branch", 0, 0, 1, 2)]
    assert unpark(runtime.store, runtime.publisher, RUN) == 0


def test_a_branch_that_is_handed_back_was_not_begun():
    runtime = Runtime()
    runtime.write(["a"])
    runtime.stop = Stop.HANDED_BACK
    with pytest.raises(BranchHandedBack):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.store.outcomes(ShardId(RUN, 0, 0)) == {}
    assert runtime.store.begin(BeginRequest(BranchId(RUN, 0, 0, 0), token="next")).deliveries == 1


def test_a_worker_that_hands_back_begins_nothing():
    runtime = Runtime()
    runtime.write(["a"])
    runtime.is_handing_back = True
    with pytest.raises(BranchHandedBack):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)


@pytest.mark.parametrize(
    ("stop", "kind"), [(Stop.HALTED, ErrorKind.CANCELLED), (Stop.EXPIRED, ErrorKind.EXPIRED)]
)
def test_a_call_that_was_ended_early_says_why(stop, kind):
    runtime = Runtime()
    runtime.write(["a"])
    runtime.stop = stop
    with pytest.raises(BranchFailed, match=kind.value):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.store.outcomes(ShardId(RUN, 0, 0))[0].attempts == 0, "no call was made"


def test_a_worker_that_never_had_an_answer_learns_from_others_that_it_is_the_document():
    runtime = Runtime(retries={"base_wait_s": 0.0})
    runtime.write(["a"])
    runtime.told = lambda _request: LLMError(ErrorKind.SERVER_ERROR, "no", status=500)
    known = runtime.store.stage
    counts = itertools.count(1)
    runtime.store.stage = lambda *key: msgspec.structs.replace(known(*key), succeeded=next(counts))
    with pytest.raises(BranchFailed, match="server_error"):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    outcome = runtime.store.outcomes(ShardId(RUN, 0, 0))[0]
    assert 15 <= outcome.attempts <= 17


def test_a_branch_whose_input_is_gone_is_lost():
    runtime = Runtime()
    runtime.write(["a"])

    async def gone(key):
        raise UnknownRunError(RUN)

    runtime.shards = gone
    with pytest.raises(BranchFailed, match="lost"):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)


def test_an_expand_that_is_delivered_again_publishes_only_what_is_missing():
    runtime = Runtime()
    runtime.write(["a", "b", "c", "d"])
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    run_branch(runtime, BranchId(RUN, 0, 0, 1), 0)
    runtime.messages.ids = {f"{RUN}/0/0/3", f"{RUN}/0/0/expand"}
    expand(runtime, ShardId(RUN, 0, 0), permits=0)
    assert runtime.publisher.sent[1:] == [("branch", 0, 0, 0, 0), ("branch", 0, 0, 2, 0)]


def test_a_failed_task_says_its_kind_and_not_what_the_provider_said():
    runtime = Runtime(retries={"max_attempts": 1})
    runtime.write(["a"])
    runtime.told = lambda request: ValueError("about the secret document")
    with pytest.raises(BranchFailed) as caught:
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert str(caught.value) == "internal"
    assert "secret" in runtime.store.outcomes(ShardId(RUN, 0, 0))[0].message


def test_the_parameters_of_a_call_are_those_of_the_spec():
    runtime = Runtime(
        system="s", temperature=0.5, max_tokens=7, seed=10, stop=["."], samples=2,
        aggregate_prompt="{input}", aggregate_max_tokens=99,
    )  # fmt: skip
    asked = []
    runtime.told = lambda request: asked.append(request) or "x"
    runtime.write(["a"])
    runtime.process()
    runtime.process(stage=1)
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
    runtime = Runtime()
    runtime.write(["a", "b"])
    runtime.store.record(RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))
    counts = collect(runtime, [None, {**record, "task_id": "r1/0/0/1"}], ShardId(RUN, 0, 0))
    assert counts == {"shard": 0, "succeeded": 1, "failed": 1}
    assert runtime.store.outcomes(ShardId(RUN, 0, 0))[1].kind == kind


def test_a_collect_before_all_branches_have_ended_does_nothing():
    """A copy of a callback, from before a retry for instance, must not end what is in flight."""
    runtime = Runtime()
    runtime.write(["a", "b"])
    runtime.store.open_shards(StageId(RUN, 0), window=1)
    runtime.store.record(RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))
    with pytest.raises(TooEarlyError):
        collect(runtime, [None, None], ShardId(RUN, 0, 0))
    assert runtime.store.stage(StageId(RUN, 0)).done == 1
    assert runtime.store.progress(StageId(RUN, 0)).open == {0: 0}


def test_a_collect_opens_the_next_shards_once():
    runtime = Runtime()
    runtime.write([str(i) for i in range(8)], max_branches=2)
    runtime.store.open_shards(StageId(RUN, 0), window=2)
    for position in range(2):
        runtime.store.record(RecordRequest(BranchId(RUN, 0, 0, position), outcome(position)))
    collect(runtime, [], ShardId(RUN, 0, 0))
    assert runtime.publisher.sent == [("expand", 0, 2, 0)]
    collect(runtime, [], ShardId(RUN, 0, 0))
    assert runtime.publisher.sent == [("expand", 0, 2, 0)], "a second delivery opens nothing"


def test_an_aggregate_before_all_branches_have_ended_does_nothing():
    runtime = Runtime(reduce="concat")
    runtime.write(["a", "b"], max_branches=1)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    collect(runtime, [], ShardId(RUN, 0, 0))
    with pytest.raises(TooEarlyError):
        aggregate(runtime, StageId(RUN, 0))
    assert not runtime.store.run(RUN).has_ended


def test_an_aggregate_of_a_stage_that_is_still_being_written_does_nothing():
    runtime = Runtime(reduce="concat")
    runtime.write(["a"], seal=False)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    collect(runtime, [], ShardId(RUN, 0, 0))
    with pytest.raises(TooEarlyError):
        aggregate(runtime, StageId(RUN, 0))


def test_an_aggregate_needs_no_collect_where_all_outcomes_are_there():
    runtime = Runtime(reduce="concat")
    runtime.write(["a"])
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    aggregate(runtime, StageId(RUN, 0))
    assert runtime.result.aggregates[""].value == "answer to a"


def test_a_copy_of_a_branch_that_a_living_worker_holds_makes_no_call():
    runtime = Runtime()
    runtime.write(["a"])
    runtime.store.beat("other", ttl_s=60)
    runtime.store.begin(
        BeginRequest(BranchId(RUN, 0, 0, 0), token="one", holder="other", lasts_s=60)
    )
    with pytest.raises(BranchHeld):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 0
    runtime.store.unbegin(BranchId(RUN, 0, 0, 0), token="one", counts=True)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 1


class HeldUpRuntime(Runtime):
    """A worker that is stopped after each begin, until others take it for dead."""

    def __init__(self, meanwhile, monkeypatch, **fields):
        super().__init__(**fields)
        monkeypatch.setattr(claims, "SURE", 0)
        self.meanwhile = meanwhile
        self.begins = 0
        self.write(["a"])

    async def begin(self, start):
        begun = self.store.begin(start)
        self.begins += 1
        if self.begins == 1:
            self.meanwhile(self.store)
        return begun


def begun_by_another(store):
    store.beat("other", ttl_s=60)
    store.begin(BeginRequest(BranchId(RUN, 0, 0, 0), token="other", holder="other", lasts_s=60))


def ended_by_another(store):
    begun_by_another(store)
    store.record(RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))


def begun_by_two_that_died(store):
    for token in ("one", "two"):
        store.begin(BeginRequest(BranchId(RUN, 0, 0, 0), token=token, holder="dead"))


def paused_with_another(store):
    begun_by_another(store)
    store.pause(RUN)


def test_a_worker_that_was_held_up_after_its_begin_asks_again(monkeypatch):
    runtime = HeldUpRuntime(lambda _store: None, monkeypatch)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert (runtime.begins, runtime.llm.calls) == (2, 1)
    assert runtime.store.outcomes(ShardId(RUN, 0, 0))[0].output == "answer to a"


def test_a_begin_is_not_asked_for_again_at_once():
    with pytest.MonkeyPatch.context() as monkeypatch:
        runtime = HeldUpRuntime(lambda _store: None, monkeypatch)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert (runtime.begins, runtime.llm.calls) == (1, 1)


@pytest.mark.parametrize(
    ("meanwhile", "error"),
    [
        (begun_by_another, BranchHeld),
        (begun_by_two_that_died, BranchHeld),
        (paused_with_another, BranchParked),
    ],
)
def test_a_worker_that_was_held_up_leaves_a_branch_to_whoever_has_begun_it(
    meanwhile, error, monkeypatch
):
    runtime = HeldUpRuntime(meanwhile, monkeypatch)
    with pytest.raises(error):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 0
    assert runtime.store.outcomes(ShardId(RUN, 0, 0)) == {}


def test_a_worker_that_was_held_up_makes_no_call_of_a_branch_that_has_ended(monkeypatch):
    runtime = HeldUpRuntime(ended_by_another, monkeypatch)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert (runtime.begins, runtime.llm.calls) == (2, 0)


def test_what_was_begun_before_a_pause_is_called_however_late(monkeypatch):
    runtime = HeldUpRuntime(lambda store: store.pause(RUN), monkeypatch)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 1
    assert runtime.store.take_parked(RUN) == []


def test_a_worker_that_was_held_up_makes_no_call_of_a_run_that_was_stopped(monkeypatch):
    runtime = HeldUpRuntime(lambda store: store.halt(RUN, RunStatus.CANCELLED), monkeypatch)
    with pytest.raises(BranchFailed, match="cancelled"):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 0


def test_a_worker_that_waited_to_try_again_leaves_the_branch_to_whoever_has_begun_it(monkeypatch):
    runtime = HeldUpRuntime(
        lambda _store: None, monkeypatch, retries={"base_wait_s": 0, "max_wait_s": 0}
    )

    def fails(_request):
        begun_by_another(runtime.store)
        raise LLMError(ErrorKind.SERVER_ERROR, "busy")

    runtime.told = fails
    with pytest.raises(BranchHeld):
        run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.llm.calls == 1


def test_a_branch_is_held_while_its_call_is_made():
    runtime = Runtime()
    runtime.write(["a"])
    runtime.store.beat(runtime.holder, ttl_s=60)
    held = []
    state = lambda: runtime.store.shard_state(ShardId(RUN, 0, 0))  # noqa: E731
    runtime.told = lambda request: held.append(state().held) or "fine"
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert held == [{0}]


def test_an_aggregate_that_is_delivered_twice_changes_nothing():
    runtime = Runtime(reduce="concat")
    runtime.write(["a"])
    runtime.process()
    ended = runtime.store.run(RUN)
    aggregate(runtime, StageId(RUN, 0))
    again = runtime.store.run(RUN)
    assert msgspec.structs.replace(again, read_at=ended.read_at) == ended


def test_an_aggregate_that_is_too_large_to_be_kept_fails_the_run_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(reductions, "_MAX_RESULT_BYTES", 100)
    runtime = Runtime(reduce="concat")
    runtime.write(["a" * 200])
    runtime.process()
    run = runtime.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert f"fanout results {RUN} --out DIR" in run.error
    assert runtime.result.aggregates == {}


def test_an_aggregate_that_died_while_opening_a_stage_can_be_done_again():
    runtime = Runtime(aggregate_prompt="{count}: {input}")
    runtime.write(["a", "b"])
    runtime.process()
    aggregate(runtime, StageId(RUN, 0))
    assert runtime.store.stage(StageId(RUN, 1)).total == 1, "the stage is opened once"
    runtime.process(stage=1)
    assert runtime.result.aggregates[""].value.startswith("answer to 2: (Each begins")


def test_a_tree_counts_what_its_partial_reductions_lost():
    """A partial reduction that failed takes its answers with it, and the root is told."""
    runtime = Runtime(
        aggregate_prompt="SUM {count} {failed}: {input}", context_tokens=300,
        aggregate_max_tokens=20, retries={"max_attempts": 1},
    )  # fmt: skip

    def told(request):
        if not request.prompt.startswith("SUM"):
            return "word " * 20
        return ValueError("no") if "[d0]" in request.prompt else "partial"

    runtime.told = told
    runtime.write([str(i) for i in range(12)])
    stage = 0
    while not runtime.store.run(RUN).has_ended:
        runtime.process(stage=stage)
        stage += 1
    root = runtime.result.aggregates[""]
    lost = runtime.store.shard(ShardId(RUN, 1, 0)).chunks[0].columns["count"]
    assert root.value == "partial"
    assert (root.succeeded, root.failed) == (12 - int(lost), int(lost))
    assert [error.kind for error in runtime.result.errors] == [ErrorKind.INTERNAL]


def test_answers_that_cannot_fit_end_the_run_with_a_clear_error():
    runtime = Runtime(aggregate_prompt="x" * 2000 + "{input}", context_tokens=400)
    runtime.write(["a"])
    runtime.process()
    record = runtime.store.run(RUN)
    assert record.status is RunStatus.FAILED
    assert "context_tokens: the context window of 400 tokens leaves no room" in record.error


def test_a_shard_may_begin_in_the_middle_of_a_chunk():
    shard = Shard(
        first=3, count=1, first_chunk=1, chunks=[Chunk(text="b", document="d", document_index=1)]
    )
    runtime = Runtime(samples=2)
    runtime.store.put_shard(ShardId(RUN, 0, 0), shard)
    run_branch(runtime, BranchId(RUN, 0, 0, 0), 0)
    assert runtime.store.outcomes(ShardId(RUN, 0, 0))[0].index == 3
