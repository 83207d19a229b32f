"""The Redis store with its blobs as files: what counts is what the server refers to."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as AwayError

from fanout.core.errors import BrokerError, LostDataError, UnknownRunError
from fanout.core.ids import ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus, Shard
from fanout.stores.blobs import MARKER, RUN_MARKER, FileBlobs
from tests.fakes import RUN, fake_redis, fake_store

NO_KINDS = frozenset()


@pytest.fixture
def make_store(fake_server, tmp_path):
    stores = []

    def make(root="shared"):
        blobs = None
        if root is not None:
            (tmp_path / root).mkdir(exist_ok=True)
            blobs = FileBlobs(str(tmp_path / root), patience_s=0)
        stores.append(fake_store(fake_server, blobs=blobs))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store):
    store = make_store()
    store.create_run(RUN, spec="{}", created_at=1.0)
    return store


def files(tmp_path):
    """All but the markers of the storage and of its runs."""
    found = (p for p in tmp_path.rglob("*") if p.is_file() and p.name not in {MARKER, RUN_MARKER})
    return sorted(str(p.relative_to(tmp_path)) for p in found)


def shard(text="t"):
    chunk = Chunk(text=text, document="d", document_index=0)
    return Shard(first=0, count=1, first_chunk=0, chunks=[chunk])


def outcomes(output="yes"):
    return {0: Outcome(index=0, output=output)}


FAILED = {0: Outcome(index=0, kind=ErrorKind.TIMEOUT, message="late")}


def test_the_server_holds_references_and_no_contents(store, fake_server, tmp_path):
    store.put_shard(ShardId(RUN, 0, 0), shard("prompt " * 100))
    store.compact(ShardId(RUN, 0, 0), outcomes("answer " * 100))
    client = fake_redis(fake_server)
    for part in ("in", "out"):
        assert client.get(f"fanout:run:{RUN}:s0:0:{part}").startswith(b"@")
    assert [name.rpartition(".")[0] for name in files(tmp_path)] == [
        f"shared/{RUN}/s0/0.in",
        f"shared/{RUN}/s0/0.out",
    ]


def test_of_two_clients_that_write_a_shard_the_first_counts_and_one_file_stays(
    store, make_store, tmp_path
):
    store.put_shard(ShardId(RUN, 0, 0), shard("first"))
    before = files(tmp_path)
    make_store().put_shard(ShardId(RUN, 0, 0), shard("second"))
    assert store.shard(ShardId(RUN, 0, 0)) == shard("first")
    assert files(tmp_path) == before


def test_of_two_workers_that_collect_a_shard_the_first_counts_and_one_file_stays(store, tmp_path):
    store.compact(ShardId(RUN, 0, 0), outcomes("first"))
    before = files(tmp_path)
    store.compact(ShardId(RUN, 0, 0), outcomes("second"))
    assert store.outcomes(ShardId(RUN, 0, 0)) == outcomes("first")
    assert files(tmp_path) == before


def test_a_process_that_dies_behind_the_file_leaves_no_reference_to_it(
    store, tmp_path, monkeypatch
):
    def die(*_):
        raise AwayError("died")

    monkeypatch.setattr(store, "_call", die)
    with pytest.raises(BrokerError):
        store.put_shard(ShardId(RUN, 0, 0), shard())
    assert len(files(tmp_path)) == 1
    with pytest.raises(UnknownRunError):
        store.shard(ShardId(RUN, 0, 0))
    assert store.stage(StageId(RUN, 0)).shards == 0
    monkeypatch.undo()
    store.put_shard(ShardId(RUN, 0, 0), shard())
    assert store.shard(ShardId(RUN, 0, 0)) == shard()
    store.delete_run(RUN)
    assert files(tmp_path) == []


def test_a_shard_of_a_run_that_takes_no_more_leaves_no_file(store, tmp_path):
    store.halt(RUN, RunStatus.CANCELLED)
    assert not store.put_shard(ShardId(RUN, 0, 0), shard())
    with pytest.raises(UnknownRunError):
        store.put_shard(ShardId("r2", 0, 0), shard())
    assert files(tmp_path) == []


def test_a_shard_that_is_opened_again_drops_its_outcomes_and_takes_new_ones(store, tmp_path):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    store.compact(ShardId(RUN, 0, 0), FAILED)
    store.end_run(RUN, RunStatus.FAILED, ended_at=2.0)
    store.reopen_run(RUN, retry=frozenset({ErrorKind.TIMEOUT}))
    assert store.reopen_shard(ShardId(RUN, 0, 0), kept={}, dropped=[FAILED[0]])
    assert [name.rpartition(".")[0] for name in files(tmp_path)] == [f"shared/{RUN}/s0/0.in"]
    store.compact(ShardId(RUN, 0, 0), outcomes())
    # It is opened again once; the file of its new outcomes stays.
    assert not store.reopen_shard(ShardId(RUN, 0, 0), kept={}, dropped=[])
    assert store.outcomes(ShardId(RUN, 0, 0)) == outcomes()


def test_a_reader_whose_shard_is_opened_again_meanwhile_sees_what_there_is_now(store, monkeypatch):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    store.compact(ShardId(RUN, 0, 0), FAILED)
    load = store._blobs.load

    def load_late(name, held):
        monkeypatch.setattr(store._blobs, "load", load)
        store.reopen_shard(ShardId(RUN, 0, 0), kept={}, dropped=[])
        store.compact(ShardId(RUN, 0, 0), outcomes())
        return load(name, held)

    monkeypatch.setattr(store._blobs, "load", load_late)
    assert store.outcomes(ShardId(RUN, 0, 0)) == outcomes()


def test_a_file_that_is_gone_is_lost_data(store, tmp_path):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    store.compact(ShardId(RUN, 0, 0), outcomes())
    for name in files(tmp_path):
        (tmp_path / name).unlink()
    with pytest.raises(LostDataError, match=r"s0/0\.in\.\w+ is not there"):
        store.shard(ShardId(RUN, 0, 0))
    with pytest.raises(LostDataError, match=r"s0/0\.out\.\w+ is not there"):
        store.outcomes(ShardId(RUN, 0, 0))
    assert store.is_finished(ShardId(RUN, 0, 0))


def test_a_large_aggregate_is_a_file_and_a_small_one_is_not(store, tmp_path):
    large = b'"' + b"x" * 200_000 + b'"'
    store.put_result(RUN, b'"small"')
    store.put_result(RUN, large)
    assert store.result(RUN) == b'"small"'
    assert files(tmp_path) == []
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=2.0)
    store.reopen_run(RUN, retry=NO_KINDS)
    store.put_result(RUN, large)
    assert store.result(RUN) == large
    assert len(files(tmp_path)) == 1
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=2.0)
    store.reopen_run(RUN, retry=NO_KINDS)
    assert files(tmp_path) == []


def test_the_pieces_of_an_aggregate_are_files_that_go_with_it(store, tmp_path):
    for writer in ("dead", "w"):
        for number in range(2):
            assert store.put_result_piece(RUN, b"x" * 100, writer=writer, number=number)
    assert len(files(tmp_path)) == 4
    assert store.put_result(RUN, b"{}", writer="w")
    assert len(files(tmp_path)) == 2
    assert store.result_piece(RUN, writer="w", number=1) == b"x" * 100
    assert not store.put_result_piece(RUN, b"late", writer="late", number=0)
    assert len(files(tmp_path)) == 2
    store.end_run(RUN, RunStatus.SUCCEEDED, ended_at=2.0)
    store.reopen_run(RUN, retry=NO_KINDS)
    assert files(tmp_path) == []
    assert store.put_result_piece(RUN, b"x" * 100, writer="v", number=0)
    store.delete_run(RUN)
    assert files(tmp_path) == []


def test_a_client_without_storage_reads_a_run_and_leaves_its_files_to_the_sweep(
    store, make_store, tmp_path
):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    other = make_store(None)
    assert other.shard(ShardId(RUN, 0, 0)) == shard()
    other.delete_run(RUN)
    assert other.sweep_files() == make_store("elsewhere").sweep_files() == 0
    assert len(files(tmp_path)) == 1
    assert store.sweep_files() == 1
    assert files(tmp_path) == []
    assert store.sweep_files() == 0


def test_the_files_of_a_run_that_has_expired_are_swept_and_no_others(store, fake_server, tmp_path):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    store.create_run("r2", spec="{}", created_at=1.0)
    store.put_shard(ShardId("r2", 0, 0), shard())
    assert store.sweep_files() == 0
    fake_redis(fake_server).delete(f"fanout:run:{RUN}")
    assert store.sweep_files() == 1
    assert [name.split("/")[1] for name in files(tmp_path)] == ["r2"]


def test_a_run_can_be_deleted_while_the_storage_is_away(store, make_store, tmp_path):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    (tmp_path / "shared").rename(tmp_path / "away")
    store.delete_run(RUN)
    with pytest.raises(UnknownRunError):
        store.run(RUN)
    (tmp_path / "away").rename(tmp_path / "shared")
    assert store.sweep_files() == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("registry", ["inputs", "stored"])
@pytest.mark.parametrize("name", ["letters", "r2", "..", "../away", "r2/s0"])
def test_a_folder_that_somebody_has_registered_as_a_runs_is_left_alone(
    store, fake_server, tmp_path, registry, name, caplog
):
    store.put_shard(ShardId(RUN, 0, 0), shard())
    for foreign in ("shared/letters", "shared/r2/s0", "away"):
        (tmp_path / foreign).mkdir(parents=True)
        (tmp_path / foreign / "0.in.0123abcd").write_text("mine")
    before = files(tmp_path)
    client = fake_redis(fake_server)
    client.sadd(f"fanout:{registry}", f"{name} {tmp_path}/shared")
    assert store.sweep_files() == store.sweep_files() == 0
    assert files(tmp_path) == before
    assert len([line for line in caplog.messages if "is left where it is" in line]) <= 1
    assert client.scard(f"fanout:{registry}") == (registry == "inputs"), "it is said once"


def test_inputs_and_what_workers_write_are_registered_apart(store, fake_server, tmp_path):
    client = fake_redis(fake_server)
    entry = f"{RUN} {tmp_path}/shared".encode()
    store.put_shard(ShardId(RUN, 0, 0), shard())
    assert client.smembers("fanout:inputs") == {entry}
    assert not client.exists("fanout:stored")
    store.compact(ShardId(RUN, 0, 0), outcomes())
    store.put_shard(ShardId(RUN, 1, 0), shard())
    assert client.smembers("fanout:stored") == {entry}
    # As a client does, which may not write what workers keep.
    store.delete_run(RUN)
    assert files(tmp_path) == []
    assert not client.exists("fanout:inputs")
    assert client.smembers("fanout:stored") == {entry}
    store.sweep_files()
    assert not client.exists("fanout:stored")


def test_who_dies_before_the_first_file_leaves_nothing_that_stays(store, tmp_path, monkeypatch):
    """Behind the entry, and behind the marker."""
    for step in ("claim", "keep"):
        monkeypatch.setattr(store._blobs, step, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.put_shard(ShardId(RUN, 0, 0), shard())
        monkeypatch.undo()
    assert (tmp_path / "shared" / RUN / RUN_MARKER).exists()
    store.delete_run(RUN)
    assert not (tmp_path / "shared" / RUN).exists()
