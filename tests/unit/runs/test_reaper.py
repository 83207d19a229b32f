"""The reaper over a store on a fake server: what it sees twice it heals, and no healthy run is disturbed."""

from __future__ import annotations

import time

import pytest

from fanout.core.errors import BrokerError, StorageError, StoredDataError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus, Shard
from fanout.core.state import BeginRequest, RecordRequest
from fanout.runs.enqueue import delete
from fanout.runs.reaper import MAX_HEALS, Reaper
from tests.fakes import RUN, Clock, MessageReader, Publisher, begin_one, fake_store, record_one


class Fleet:
    """A store with one run of one shard, and what the reaper needs beside it."""

    def __init__(self, count=3):
        self.store = fake_store()
        self.store.create_run(RUN, spec="{}", created_at=1.0)
        chunks = [Chunk(text="t", document="d", document_index=i) for i in range(count)]
        shard = Shard(first=0, count=count, first_chunk=0, chunks=chunks)
        self.store.put_shard(ShardId(RUN, 0, 0), shard)
        self.store.open_shards(StageId(RUN, 0), window=2)
        self.store.start_shard(ShardId(RUN, 0, 0))
        self.store.seal_stage(StageId(RUN, 0))
        self.store.set_status(RUN, RunStatus.RUNNING, stage=0)
        self.publisher = Publisher()
        self.messages = MessageReader()
        self.clock = Clock()
        self.reaper = Reaper(
            self.store, self.publisher, self.messages, stall_s=15, clock=self.clock
        )

    def end(self, *positions):
        for position in positions:
            record_one(
                self.store,
                RecordRequest(BranchId(RUN, 0, 0, position), Outcome(index=position, output="x")),
            )

    def pass_time(self, seconds=60):
        """Sweep as a worker does; return what was published."""
        before = len(self.publisher.sent)
        for _ in range(0, seconds, 5):
            self.clock.now += 5
            self.reaper.sweep()
        return self.publisher.sent[before:]


@pytest.fixture
def fleet():
    return Fleet()


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_deletion_that_died_half_way_is_carried_out(fleet, has_ended):
    if has_ended:
        fleet.store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=2.0)
    fleet.store.begin_delete(RUN)
    assert fleet.pass_time(10) == [("forgotten", [1, 0])]
    assert fleet.store.active_runs() == []


def test_a_run_that_the_reaper_deletes_at_the_same_time_is_deleted(fleet):
    class Interrupted:
        def forget_run(self, run_id, shards):
            assert fleet.pass_time(10) == [("forgotten", shards)]

    delete(fleet.store, Interrupted(), RUN)
    assert fleet.store.active_runs() == []


def test_a_lost_message_is_published_again_and_no_other(fleet):
    fleet.messages.ids = {f"{RUN}/0/0/1"}
    fleet.end(0)
    assert fleet.pass_time(25) == [("branch", 0, 0, 2)]


def test_nothing_is_done_about_what_was_seen_missing_once(fleet):
    assert fleet.pass_time(20) == []
    fleet.messages.ids = {f"{RUN}/0/0/{i}" for i in range(3)}
    assert fleet.pass_time(60) == [], "it was on its way"


def test_a_shard_that_makes_progress_is_left_alone(fleet):
    for position in range(3):
        assert fleet.pass_time(10) == []
        fleet.end(position)


def test_a_branch_that_a_living_worker_holds_is_not_lost(fleet):
    fleet.store.beat("h", ttl_s=3600)
    fleet.end(0, 1)
    begin_one(
        fleet.store, BeginRequest(BranchId(RUN, 0, 0, 2), token="t", holder="h", lasts_s=3600)
    )
    assert fleet.pass_time(300) == []


def test_a_callback_that_never_ran_is_published(fleet):
    fleet.end(0, 1, 2)
    assert fleet.pass_time(25) == [("collect", 0, 0)]


def test_a_root_callback_that_never_ran_is_published(fleet):
    fleet.end(0, 1, 2)
    fleet.store.compact(ShardId(RUN, 0, 0), fleet.store.outcomes(ShardId(RUN, 0, 0)))
    fleet.store.open_shards(StageId(RUN, 0), window=2, finished=0)
    assert fleet.pass_time(25) == [("aggregate", 0)]


def test_a_shard_that_nobody_knows_to_be_open_is_taken_back(fleet):
    fleet.store.open_shards(StageId(RUN, 0), window=2, finished=0)
    assert fleet.pass_time(60) == [("branch", 0, 0, position) for position in range(3)]


def test_what_is_lost_again_and_again_is_recorded_and_the_run_goes_on(fleet):
    fleet.end(0)
    sent = fleet.pass_time(600)
    assert sent.count(("branch", 0, 0, 1)) == MAX_HEALS
    assert ("collect", 0, 0) in sent
    assert fleet.store.stage(StageId(RUN, 0)).errors == {ErrorKind.LOST: 2}


def test_a_callback_that_is_lost_for_ever_ends_the_run_with_a_reason(fleet):
    fleet.end(0, 1, 2)
    fleet.pass_time(2000)
    run = fleet.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert "shard 0 of stage 0 could not be brought to its end" in run.error


def test_a_paused_run_is_left_alone_until_it_goes_on(fleet):
    fleet.store.pause(RUN)
    assert fleet.pass_time(300) == []
    fleet.store.unpause(RUN)
    assert fleet.pass_time(25) == [("branch", 0, 0, position) for position in range(3)]


def test_a_paused_run_whose_deadline_passes_goes_on_so_that_it_ends():
    fleet = Fleet()
    fleet.store = fake_store()
    fleet.store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=time.time() - 1)
    fleet.store.put_shard(ShardId(RUN, 0, 0), Shard(first=0, count=1, first_chunk=0, chunks=[]))
    fleet.store.open_shards(StageId(RUN, 0), window=1)
    fleet.store.seal_stage(StageId(RUN, 0))
    fleet.store.pause(RUN)
    fleet.reaper = Reaper(
        fleet.store, fleet.publisher, fleet.messages, stall_s=15, clock=fleet.clock
    )
    assert fleet.pass_time(25) == [("expand", 0, 0)]


def test_a_paused_aggregate_is_left_alone_at_any_deadline():
    fleet = Fleet()
    fleet.store = fake_store()
    fleet.store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=time.time() - 1)
    fleet.store.seal_stage(StageId(RUN, 0))
    fleet.store.put_shard(ShardId(RUN, 1, 0), Shard(first=0, count=1, first_chunk=0, chunks=[]))
    fleet.store.open_shards(StageId(RUN, 1), window=1)
    fleet.store.start_shard(ShardId(RUN, 1, 0))
    fleet.store.seal_stage(StageId(RUN, 1))
    fleet.store.set_status(RUN, RunStatus.REDUCING, stage=1)
    fleet.store.pause(RUN)
    fleet.reaper = Reaper(
        fleet.store, fleet.publisher, fleet.messages, stall_s=15, clock=fleet.clock
    )
    assert fleet.pass_time(600) == []
    assert fleet.store.stage(StageId(RUN, 1)).errors == {}
    fleet.store.unpause(RUN)
    assert fleet.pass_time(25) == [("branch", 1, 0, 0)]


def test_a_run_that_was_retried_since_the_reaper_looked_at_it_goes_on(fleet, monkeypatch):
    """The process is held up before it ends a run that does not heal."""
    ends = fleet.store.end_run

    def held_up(*args, **options):
        ends(RUN, RunStatus.FAILED, ended_at=1.0)
        assert fleet.store.reopen_run(RUN, retry=frozenset())
        monkeypatch.undo()
        answers.append(ends(*args, **options))
        return answers[-1]

    answers: list[bool] = []
    monkeypatch.setattr(fleet.store, "end_run", held_up)
    while not answers:
        fleet.pass_time(60)
        assert fleet.clock.now < 10_000
    assert answers == [False]
    assert fleet.store.run(RUN).status is RunStatus.RUNNING


def test_a_run_that_has_ended_costs_nothing(fleet):
    fleet.store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=1.0)
    fleet.messages.task_ids = lambda: pytest.fail("the queues are not read")
    assert fleet.pass_time(60) == []


def test_what_is_remembered_does_not_grow_with_the_shards_of_a_run(fleet):
    store = fake_store()
    store.create_run(RUN, spec="{}", created_at=1.0)
    for number in range(50):
        shard = Shard(first=number, count=1, first_chunk=number, chunks=[])
        store.put_shard(ShardId(RUN, 0, number), shard)
    fleet.reaper = Reaper(store, fleet.publisher, fleet.messages, stall_s=15, clock=fleet.clock)
    store.open_shards(StageId(RUN, 0), window=2)
    for number in range(48):
        # Each is suspected of being lost, and then ends all the same.
        fleet.pass_time(20)
        record_one(
            store, RecordRequest(BranchId(RUN, 0, number, 0), Outcome(index=number, output="x"))
        )
        store.open_shards(StageId(RUN, 0), window=2, finished=number)
    assert len(fleet.reaper._marks) + len(fleet.reaper._suspected) <= 6


def test_the_files_of_runs_that_are_gone_are_swept_now_and_then(fleet, caplog):
    swept = []

    def sweep_files():
        swept.append(fleet.clock.now)
        if len(swept) == 1:
            raise StorageError("the bucket is away")
        return 2

    fleet.store.sweep_files = sweep_files
    fleet.end(0, 1, 2)
    with caplog.at_level("INFO"):
        fleet.pass_time(620)
    assert swept == [5, 305, 605]
    assert "stay for now: the bucket is away" in caplog.text
    assert "deleted the files of 2 runs" in caplog.text


def test_each_sweep_gives_the_turns_again_that_were_lost(fleet):
    given = []
    fleet.messages.give_turns = lambda: given.append(1)
    fleet.reaper.sweep()
    fleet.reaper.sweep()
    assert len(given) == 2


def test_a_run_that_workers_cannot_read_is_refused_and_others_go_on(fleet):
    fleet.store.create_run("newer", spec="{}", created_at=1.0, wire=99)
    fleet.reaper.sweep()
    record = fleet.store.run("newer")
    assert record.status is RunStatus.FAILED
    assert "version 99 of the wire format, and the workers speak version" in record.error
    assert not fleet.store.run(RUN).has_ended


@pytest.mark.parametrize("error", [StoredDataError("damaged"), BrokerError("WRONGTYPE")])
def test_a_damaged_run_holds_up_no_other(fleet, caplog, monkeypatch, error):
    """A client may have written it."""
    read = fleet.store.run

    def run(run_id):
        if run_id == "0damaged":
            raise error
        return read(run_id)

    fleet.store.create_run("0damaged", spec="{}", created_at=1.0)
    monkeypatch.setattr(fleet.store, "run", run)
    assert fleet.pass_time(60)
    said = [line for line in caplog.messages if "0damaged" in line]
    assert said == [f"run 0damaged cannot be looked after: {error}"]


def test_a_server_that_is_away_ends_the_sweep(fleet, monkeypatch):
    def run(_run_id):
        raise BrokerError("away", is_passing=True)

    monkeypatch.setattr(fleet.store, "run", run)
    with pytest.raises(BrokerError, match="away"):
        fleet.reaper.sweep()
