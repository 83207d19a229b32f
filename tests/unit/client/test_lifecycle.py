"""Submitting, stopping, taking up and retrying a run, without a server or a worker."""

from __future__ import annotations

import itertools
import time

import pytest

from fanout.cli.run_facts import vanished_parts
from fanout.client.client import Client
from fanout.client.run import Run
from fanout.core.errors import BrokerError, InputError, RunError, UnknownRunError
from fanout.core.fleet_records import WorkerRecord
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.model_names import READER_MODEL
from fanout.core.records import Document, ErrorKind, Outcome, RunStatus
from fanout.core.spec import make_spec
from fanout.core.state import (
    BeginRequest,
    RecordRequest,
)
from fanout.inputs.intake import checked_documents
from fanout.inputs.splitters import make_splitter, split_documents
from fanout.policy.packing import pack
from fanout.runs.enqueue import Enqueuer, close_input, close_stopped_input, open_stage
from fanout.runs.reaper import Reaper
from fanout.runs.retried_runs import reset_retried_shard, retry_failed
from fanout.stores import RedisStore
from tests.fakes import RUN, MessageReader, Publisher, begin_one, fake_redis, record_one

SPEC = make_spec(model="fake", prompt="{input}")
# Two shards and a half: the samples make a shard of each 250 documents.
MANY = make_spec(model="fake", prompt="{input}", samples=2)


class Killed(BaseException):
    """The client dies here."""


@pytest.fixture
def publisher():
    return Publisher()


def texts(count, **changed):
    return [changed.get(f"t{i}", f"text {i}") for i in range(count)]


def create(store, spec=SPEC, deadline_at=None):
    store.create_run(
        RUN, spec=spec.model_dump_json(), created_at=time.time(), deadline_at=deadline_at
    )


def enqueue(store, publisher, documents, spec=MANY, how="enqueue"):
    enqueuer = Enqueuer(store, publisher)
    getattr(enqueuer, how)(RUN, spec, checked_documents(spec, documents))


def die_after(documents, count):
    yield from itertools.islice(documents, count)
    raise Killed


def half_enqueued(store, publisher, count=700):
    """A run whose client died when it had written one shard or two."""
    create(store, MANY)
    with pytest.raises(Killed):
        enqueue(store, publisher, die_after(texts(count), count - 10))


def finish(store, kinds):
    """Let shards end with outcomes of these kinds, by shard."""
    for number, some in enumerate(kinds):
        for at, kind in enumerate(some):
            index = store.indices(ShardId(RUN, 0, number))[at]
            record_one(
                store,
                RecordRequest(
                    BranchId(RUN, 0, number, at), Outcome(index=index, kind=kind, output="x")
                ),
            )
        store.compact(ShardId(RUN, 0, number), store.outcomes(ShardId(RUN, 0, number)))
        store.open_shards(StageId(RUN, 0), window=9, finished=number)


def run_handle(store, publisher):
    return Run(RUN, store, publisher, lambda: None)


@pytest.mark.parametrize(("most_mb", "expected"), [(256, 1), (16, 16), (4, 64), (1, 64)])
def test_the_documents_of_a_shard_fit_into_memory_together(store, publisher, most_mb, expected):
    spec = make_spec(model=READER_MODEL, prompt="{input}", max_document_mb=most_mb)
    create(store, spec)
    enqueue(store, publisher, texts(100), spec)
    assert len(store.indices(ShardId(RUN, 0, 0))) == expected


# An input that breaks while it is read.


def broken(count, error):
    yield from texts(count)
    raise error


@pytest.mark.parametrize("error", [InputError("it shrank"), ValueError("it shrank")])
def test_a_run_whose_input_breaks_fails_with_what_was_enqueued(store, publisher, error):
    create(store, MANY)
    with pytest.raises(type(error), match="it shrank"):
        enqueue(store, publisher, broken(700, error))
    run, stage = store.run(RUN), store.stage(StageId(RUN, 0))
    assert (run.halt, run.error) == (RunStatus.FAILED, "the input could not be read: it shrank")
    assert stage.sealed
    assert 0 < stage.total < 1_400
    assert publisher.seals


def test_a_run_whose_input_breaks_at_once_is_none(store, publisher):
    create(store, MANY)
    with pytest.raises(InputError):
        enqueue(store, publisher, broken(3, InputError("it shrank")))
    with pytest.raises(UnknownRunError):
        store.run(RUN)


# Resuming.


def test_a_resumed_run_has_each_branch_once_as_if_nothing_had_happened(store, publisher):
    half_enqueued(store, publisher)
    assert store.stage(StageId(RUN, 0)).shards == 2
    assert not store.stage(StageId(RUN, 0)).sealed
    enqueue(store, publisher, texts(700), how="resume")
    record = store.stage(StageId(RUN, 0))
    assert (record.shards, record.total, record.sealed) == (3, 1400, True)
    assert store.run(RUN).status is RunStatus.RUNNING
    assert publisher.seals == [("seal", 0, 3)]
    granted = [sent for sent in publisher.sent if sent[0] == "expand"]
    assert granted == [("expand", 0, 0), ("expand", 0, 1)], "the window's shards, each once"
    numbers = [
        chunk.document_index for n in range(3) for chunk in store.shard(ShardId(RUN, 0, n)).chunks
    ]
    assert numbers == list(range(700))


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (texts(700, t3="other"), "differs at document 'item 4' .chunk 0 of it, in shard 0"),
        (texts(700, t300="other"), "differs at document 'item 301' .chunk 0 of it, in shard 1"),
        (texts(400), "differs at document 'item 401' .chunk 0 of it, in shard 1"),
        (texts(250), "it has ended, but 1,000 branches"),
    ],
)
def test_an_input_that_is_not_the_same_is_refused_and_named(store, publisher, documents, words):
    half_enqueued(store, publisher)
    with pytest.raises(RunError, match=words):
        enqueue(store, publisher, documents, how="resume")
    record = store.stage(StageId(RUN, 0))
    assert (record.shards, record.sealed) == (2, False), "it can be resumed with the right one"


def test_a_client_whose_run_was_resumed_and_sealed_by_another_stops(store, publisher):
    half_enqueued(store, publisher)
    enqueue(store, publisher, texts(700), how="resume")
    enqueue(store, publisher, texts(700), how="resume")
    assert store.stage(StageId(RUN, 0)).total == 1400
    assert publisher.seals == [("seal", 0, 3)], "one seal is published"


def test_two_clients_that_write_the_same_input_in_turns_count_it_once(store, publisher):
    create(store, MANY)
    one, two = (
        pack(_chunks(texts(700)), branches_per_chunk=MANY.branches_per_chunk) for _ in range(2)
    )

    def in_turns():
        for shard in one:
            store.put_shard(ShardId(RUN, 0, store.stage(StageId(RUN, 0)).shards), next(two))
            yield shard

    open_stage(store, publisher, StageId(RUN, 0), in_turns())
    assert (store.stage(StageId(RUN, 0)).shards, store.stage(StageId(RUN, 0)).total) == (3, 1400)


def _chunks(documents):
    from fanout.inputs.splitters import make_splitter, split_documents

    splitter = make_splitter("none", chunk_tokens=1000, chunk_overlap_tokens=0)
    return split_documents(checked_documents(MANY, documents), splitter)


def test_the_inputs_of_a_run_are_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "rows.jsonl").write_text('"one"\n"two"\n')
    spec = make_spec(
        model="fake", prompt="{input}", inputs=["data", "data/*.txt", "rows.jsonl"],
        base_dir=str(tmp_path),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "elsewhere")
    names = [document.name for document in checked_documents(spec, None)]
    assert names == ["data/a.txt", "data/b.md", "data/a.txt", "rows.jsonl:1", "rows.jsonl:2"]


# Stopping.


@pytest.mark.parametrize("calls", [1, 2])
def test_a_run_that_is_cancelled_while_its_client_is_dead_ends_with_what_was_written(
    store, publisher, calls
):
    half_enqueued(store, publisher)
    run = run_handle(store, publisher)
    assert [run.cancel() for _ in range(calls)] == [True, False][:calls]
    assert store.stage(StageId(RUN, 0)).sealed
    assert publisher.seals == [("seal", 0, 2)]


def test_a_client_stops_reading_when_its_run_is_cancelled(store, publisher):
    create(store, MANY)
    read = []

    def documents():
        for i in range(10_000):
            read.append(i)
            if i == 600:
                run_handle(store, publisher).cancel()
            yield f"text {i}"

    enqueue(store, publisher, documents())
    assert len(read) < 800
    assert (store.stage(StageId(RUN, 0)).shards, store.stage(StageId(RUN, 0)).sealed) == (2, True)
    assert publisher.seals == [("seal", 0, 2)]


def test_cancelling_a_paused_run_publishes_what_was_parked(store, publisher):
    create(store)
    enqueue(store, publisher, texts(3), SPEC)
    store.pause(RUN)
    begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 1), token="a"))
    run_handle(store, publisher).cancel()
    assert publisher.sent[-1] == ("branch", 0, 0, 1)


def test_cancelling_a_run_that_has_ended_does_nothing(store, publisher):
    create(store)
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=1.0)
    assert not run_handle(store, publisher).cancel()
    assert publisher.sent == []


def test_the_reaper_seals_a_run_that_was_halted_while_nobody_enqueued(store, publisher):
    half_enqueued(store, publisher)
    store.halt(RUN, RunStatus.FAILED, error="auth: no such key")
    Reaper(store, publisher, MessageReader(), stall_s=60).sweep()
    assert store.stage(StageId(RUN, 0)).sealed
    assert publisher.seals == [("seal", 0, 2)]


def test_the_reaper_ends_a_run_that_is_overdue_before_its_input_was_read(store, publisher):
    create(store, MANY, deadline_at=time.time() - 5)
    Reaper(store, publisher, MessageReader(), stall_s=60).sweep()
    run = store.run(RUN)
    assert (run.halt, run.error) == (
        RunStatus.FAILED,
        "the deadline passed before the input was read",
    )
    assert publisher.seals == [("seal", 0, 0)]


@pytest.mark.parametrize("deadline_in_s", [None, 60])
def test_a_run_whose_client_is_at_work_is_left_alone(store, publisher, deadline_in_s):
    create(store, deadline_at=deadline_in_s and time.time() + deadline_in_s)
    close_stopped_input(store, publisher, store.run(RUN))
    assert not store.stage(StageId(RUN, 0)).sealed


def test_an_overdue_run_that_is_sealed_is_not_halted(store, publisher):
    """Its branches expire, and the aggregate is made of what has finished."""
    create(store, deadline_at=time.time() - 5)
    enqueue(store, publisher, texts(3), SPEC)
    close_stopped_input(store, publisher, store.run(RUN))
    assert store.run(RUN).halt is None


def test_an_input_is_closed_once(store, publisher):
    half_enqueued(store, publisher)
    close_input(store, publisher, RUN)
    close_input(store, publisher, RUN)
    assert publisher.seals == [("seal", 0, 2)]


# Pausing.


def test_pausing_and_unpausing_say_whether_they_did_it(store, publisher):
    create(store)
    enqueue(store, publisher, texts(3), SPEC)
    run = run_handle(store, publisher)
    assert [run.pause(), run.pause()] == [True, False]
    assert run.status().status is RunStatus.PAUSED
    begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 2), token="a"))
    assert [run.unpause(), run.unpause()] == [True, False]
    assert publisher.sent[-1] == ("branch", 0, 0, 2)
    assert publisher.sent.count(("branch", 0, 0, 2)) == 1
    assert run.status().status is RunStatus.RUNNING


def test_unpausing_again_publishes_what_an_unpause_that_died_has_not(store, publisher):
    create(store)
    enqueue(store, publisher, texts(3), SPEC)
    store.pause(RUN)
    begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 2), token="a"))
    store.unpause(RUN)
    assert not run_handle(store, publisher).unpause()
    assert publisher.sent[-1] == ("branch", 0, 0, 2)


# Retrying.

BAD, SLOW = ErrorKind.BAD_REQUEST, ErrorKind.TIMEOUT


def ended(store, publisher):
    create(store)
    shards = pack(_chunks(texts(6)), branches_per_chunk=1, max_branches=2)
    open_stage(store, publisher, StageId(RUN, 0), shards)
    finish(store, [(None, BAD), (None, None), (SLOW, BAD)])
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=1.0)
    publisher.sent.clear()


@pytest.mark.parametrize(("kinds", "count"), [(None, 3), ({BAD}, 2), ({ErrorKind.AUTH}, 0)])
def test_a_retry_says_how_many_branches_it_is_about(store, publisher, kinds, count):
    ended(store, publisher)
    wanted = None if kinds is None else frozenset(kinds)
    assert retry_failed(store, publisher, RUN, wanted) == count
    assert store.run(RUN).has_ended == (count == 0)


UNREAD = Document(name="x.pdf", index=0, error="it is encrypted")


@pytest.mark.parametrize(
    ("others", "kinds", "status", "expected"),
    [
        # Nothing else has failed.
        ([None], None, RunStatus.SUCCEEDED, (0, True)),
        ([None], {BAD}, RunStatus.SUCCEEDED, (0, True)),
        # It would fail again.
        ([], None, RunStatus.FAILED, (0, True)),
        # Its aggregate may succeed.
        ([None], None, RunStatus.FAILED, (0, False)),
        ([None, SLOW], None, RunStatus.SUCCEEDED, (1, False)),
        # What the provider refused may be accepted.
        ([None, BAD], {BAD}, RunStatus.SUCCEEDED, (1, False)),
        ([None, BAD, SLOW], None, RunStatus.SUCCEEDED, (2, False)),
    ],
)
def test_documents_that_could_not_be_read_are_not_retried(
    store, publisher, others, kinds, status, expected
):
    create(store)
    documents = [
        UNREAD,
        *(Document(name=f"{n}", index=n, text="x") for n, _ in enumerate(others, 1)),
    ]
    chunks = split_documents(iter(documents), make_splitter("none", chunk_tokens=9))
    open_stage(
        store, publisher, StageId(RUN, 0), pack(chunks, branches_per_chunk=1, max_branches=2)
    )
    kinds_of = [BAD, *others]
    finish(store, [tuple(kinds_of[at : at + 2]) for at in range(0, len(kinds_of), 2)])
    store.end_run(RUN, status, ended_at=1.0)
    count = retry_failed(store, publisher, RUN, None if kinds is None else frozenset(kinds))
    assert (count, store.run(RUN).has_ended) == expected


def test_the_time_before_a_retry_does_not_count(store, publisher):
    born = time.time() - 1_000
    store.create_run(RUN, spec=SPEC.model_dump_json(), created_at=born, deadline_at=None)
    enqueue(store, publisher, texts(1), SPEC)
    finish(store, [(SLOW,)])
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=born + 2)
    for worked_s in (2, 5):
        assert store.run(RUN).elapsed_s == pytest.approx(worked_s, abs=0.01)
        retry_failed(store, publisher, RUN, None)
        run = store.run(RUN)
        assert run.elapsed_s == pytest.approx(worked_s, abs=60), "the time in between"
        store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=run.reopened_at + 3)


def test_branches_that_are_retried_are_neither_done_nor_failed_meanwhile(store, publisher):
    """From the first look on, also while no shard is taken back; unless the retry is stopped."""
    ended(store, publisher)
    run = run_handle(store, publisher)

    def counts():
        now = run.status()
        assert now.done == now.stages[0].done == now.succeeded + now.failed
        assert now.failed == sum(now.errors.values())
        return now.done, now.errors

    assert counts() == (6, {BAD: 2, SLOW: 1})
    run.retry_failed([BAD])
    assert counts() == (4, {SLOW: 1})
    reset_retried_shard(store, ShardId(RUN, 0, 2), frozenset({BAD}))
    assert counts() == (4, {SLOW: 1})
    record_one(store, RecordRequest(BranchId(RUN, 0, 2, 1), Outcome(index=5, kind=BAD)))
    assert counts() == (5, {BAD: 1, SLOW: 1}), "it failed again"
    store.halt(RUN, RunStatus.CANCELLED)
    assert counts() == (6, {BAD: 2, SLOW: 1}), "what is not taken back stays as it was"


def test_a_status_names_workers_that_vanished_with_branches_in_hand(store, publisher):
    store.worker_alive(WorkerRecord(name="idle@x"), ttl_s=-1)
    store.worker_alive(WorkerRecord(name="dead@x", in_flight=2), ttl_s=-1)
    store.create_run(RUN, spec=SPEC.model_dump_json(), created_at=time.time() - 9, deadline_at=None)
    enqueue(store, publisher, texts(1), SPEC)
    run = run_handle(store, publisher)
    assert run.status().vanished == run.status().to_dict()["vanished"] == {"dead@x": 2}
    said = ["worker dead@x has vanished with 2 branches in hand"]
    assert vanished_parts(run.status()) == said
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=time.time())
    assert run.status().vanished == {}


def test_of_two_that_retry_a_run_one_reopens_it(store, publisher):
    ended(store, publisher)
    assert retry_failed(store, publisher, RUN, None) == 3
    with pytest.raises(RunError, match="has not ended"):
        retry_failed(store, publisher, RUN, None)
    assert len(publisher.seals) == 1


def work(store):
    store.worker_alive(WorkerRecord(name="a@x"), ttl_s=60)


RUNNING = RunStatus.RUNNING
RETRIES = {
    "running": (RUNNING, [work], "has not ended: wait for it, or cancel it, before a retry$"),
    "no worker": (RUNNING, [], "no worker is alive: start one with `fanout worker`, then"),
    "enqueuing": (None, [work], f"if its client has died, `fanout resume {RUN}` enqueues"),
    "paused": (
        RUNNING,
        [lambda s: s.pause(RUN)],
        f"paused: `fanout unpause {RUN}` lets it go on; or",
    ),
    "stopped while paused": (
        RUNNING,
        [work, lambda s: s.pause(RUN), lambda s: s.halt(RUN, RunStatus.CANCELLED)],
        "has not ended: wait",
    ),
}


@pytest.mark.parametrize("state", RETRIES)
def test_a_retry_that_comes_too_early_names_the_command_that_helps(store, publisher, state):
    status, steps, message = RETRIES[state]
    create(store)
    if status is not None:
        store.set_status(RUN, status)
    for step in steps:
        step(store)
    with pytest.raises(RunError, match=message):
        retry_failed(store, publisher, RUN, None)


@pytest.mark.parametrize("is_paused", [False, True])
def test_an_embedded_run_that_nobody_works_on_is_resumed_before_a_retry(
    store, publisher, monkeypatch, is_paused
):
    monkeypatch.setattr(type(store), "is_embedded", True)
    create(store)
    if is_paused:
        store.pause(RUN)
    message = f"`fanout unpause {RUN}` lets it go on, then " if is_paused else "has not ended: "
    with pytest.raises(RunError, match=f"{message}`fanout resume {RUN}` works on it until its end"):
        retry_failed(store, publisher, RUN, None)


def test_a_shard_is_reset_once_however_often_it_is_published(store, publisher):
    ended(store, publisher)
    retry_failed(store, publisher, RUN, frozenset({BAD}))
    run = store.run(RUN)
    reset_retried_shard(store, ShardId(RUN, 0, 2), run.retry)
    assert store.stage(StageId(RUN, 0)).errors == {BAD: 1, SLOW: 1}
    assert store.outcomes(ShardId(RUN, 0, 2))[0].kind is SLOW
    record_one(store, RecordRequest(BranchId(RUN, 0, 2, 1), Outcome(index=5, kind=BAD)))
    reset_retried_shard(store, ShardId(RUN, 0, 2), run.retry)
    assert store.outcomes(ShardId(RUN, 0, 2))[1].kind is BAD, "it failed again, and stays so"
    reset_retried_shard(store, ShardId(RUN, 0, 1), run.retry)
    assert store.is_finished(ShardId(RUN, 0, 1)), "it has nothing to retry"


@pytest.mark.parametrize("dies_in", ["forget_chord", "expand", "seal"])
def test_a_retry_whose_client_dies_half_way_is_completed_by_the_reaper(
    store, publisher, dies_in, monkeypatch
):
    """Every shard is let in and expanded, which takes it back, and the aggregate is made."""
    ended(store, publisher)

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publisher, dies_in, die)
        with pytest.raises(Killed):
            retry_failed(store, publisher, RUN, None)
    reaper = Reaper(store, publisher, MessageReader(), stall_s=0)
    expanded = set()
    for _ in range(20):
        reaper.heal_now(wait=lambda _seconds: None)
        for what, _, *ids in publisher.sent:
            number = ids[0] if what == "expand" else None
            if number is not None and number not in expanded:
                expanded.add(number)
                reset_retried_shard(store, ShardId(RUN, 0, number), store.run(RUN).retry)
                assert store.is_finished(ShardId(RUN, 0, number)) == (number == 1)
                store.compact(ShardId(RUN, 0, number), store.outcomes(ShardId(RUN, 0, number)))
                opened = store.open_shards(StageId(RUN, 0), window=2, finished=number)
                publisher.expand(StageId(RUN, 0), opened)
                break
        if ("aggregate", 0) in publisher.sent:
            break
    assert expanded == {0, 1, 2}
    assert ("aggregate", 0) in publisher.sent


# Healing on demand.


def test_healing_at_once_acts_on_what_it_saw_missing_twice(store, publisher):
    create(store)
    enqueue(store, publisher, texts(3), SPEC)
    publisher.sent.clear()
    waited = []
    reaper = Reaper(store, publisher, MessageReader(), stall_s=0)
    assert reaper.heal_now(wait=waited.append) == 1
    assert publisher.sent == [("expand", 0, 0)]
    assert waited, "a message may be on its way"


def test_healing_leaves_alone_what_is_in_order(store, publisher):
    create(store)
    reaper = Reaper(store, publisher, MessageReader(), stall_s=0)
    assert reaper.heal_now(wait=pytest.fail) == 0


# Waiting for a server that is away.


class AwayStore(RedisStore):
    """A store whose server is away for a while."""

    fails = 0
    is_passing = True

    def run(self, run_id):
        if self.fails:
            self.fails -= 1
            raise BrokerError("no broker answers", is_passing=self.is_passing)
        return super().run(run_id)


@pytest.fixture
def clock(monkeypatch):
    now = itertools.count(step=10)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


def test_waiting_tolerates_an_unreachable_server_for_a_while(publisher, clock):
    store = AwayStore(fake_redis())
    create(store)
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=1.0)
    store.fails = 3
    away = []
    status = run_handle(store, publisher).wait(on_progress=lambda _: None, on_away=away.append)
    assert status.status is RunStatus.SUCCEEDED
    assert len(away) == 3


class AwayConnections:
    """Connections whose server does not answer, or refuses, for some looks."""

    def __init__(self, fails, **error):
        self.fails, self.error = fails, error

    def claim(self):
        if self.fails:
            self.fails -= 1
            raise BrokerError("no broker answers", **self.error)

    def require_storage(self):
        pass

    def preflight(self, model, *, check, wait, batches):
        check()


def require_ready(connections, should_stop=None):
    told = []
    spec = make_spec(model="fake", prompt="{input}")
    Client()._require_ready(connections, spec, told.append, should_stop)
    return [notice.text for notice in told]


def test_a_run_that_is_to_begin_tolerates_an_unreachable_server_for_a_while(clock):
    assert require_ready(AwayConnections(0)) == []
    connections = AwayConnections(3, is_passing=True)
    assert require_ready(connections) == ["the broker does not answer; the run begins when it does"]
    assert not connections.fails


@pytest.mark.parametrize(
    ("fails", "error", "looks"),
    [
        (1000, {"is_passing": True}, 13),
        (1, {"is_passing": False}, 1),
        # A server that is full, and says so.
        (1, {"is_passing": True, "is_refusal": True}, 1),
    ],
)
def test_no_run_begins_where_the_server_stays_away_or_refuses(clock, fails, error, looks):
    connections = AwayConnections(fails, **error)
    with pytest.raises(BrokerError, match="no broker answers"):
        require_ready(connections)
    assert fails - connections.fails == looks


def test_who_waits_for_the_server_may_stop(clock):
    connections = AwayConnections(1000, is_passing=True)
    with pytest.raises(RunError, match="stopped before it began"):
        require_ready(connections, should_stop=lambda: connections.fails < 998)
    assert connections.fails == 997


@pytest.mark.parametrize(("fails", "is_passing", "looks"), [(1000, True, 12), (1, False, 1)])
def test_waiting_ends_where_the_server_stays_away_or_refuses(
    publisher, clock, fails, is_passing, looks
):
    store = AwayStore(fake_redis())
    create(store)
    store.fails, store.is_passing = fails, is_passing
    with pytest.raises(BrokerError, match=f"run {RUN} goes on: `fanout watch {RUN}` follows"):
        run_handle(store, publisher).wait()
    assert fails - store.fails == looks


# The spec.


@pytest.mark.parametrize("deadline_s", [0, -1, "soon", float("inf")])
def test_a_deadline_that_is_none_is_refused(deadline_s):
    from fanout.core.errors import SpecError

    with pytest.raises(SpecError, match=r"^deadline_s: "):
        make_spec(model="fake", prompt="{input}", deadline_s=deadline_s)


def test_a_client_without_a_broker_has_no_fleet_to_heal():
    with Client() as client, pytest.raises(BrokerError, match="no broker is configured"):
        client.heal()
