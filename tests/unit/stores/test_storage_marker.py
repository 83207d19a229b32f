"""The marker of a storage: the first user writes it, and a process that sees another stops."""

from __future__ import annotations

import pytest

from fanout.core.errors import StorageError
from fanout.core.ids import ShardId
from fanout.core.records import Outcome
from fanout.core.settings import load_settings
from fanout.stores import RedisStore
from fanout.stores.blobs import MARKER, FileBlobs
from tests.fakes import fake_redis, fake_store
from workers.context.fleet_checks import StorageWatch


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


@pytest.fixture
def store(fake_server, folder, monkeypatch):
    """Return a store as another process would have it."""
    monkeypatch.setattr("fanout.stores.redis.blob_references._LOOK_S", 0.0)

    def make():
        monkeypatch.setattr(FileBlobs, "_known_ids", {})
        blobs = FileBlobs(str(folder), patience_s=0.0)
        return fake_store(fake_server, blobs=blobs)

    return make


def test_the_first_marks_it_and_all_others_know_it(store, folder):
    assert store().storage_problem() is None
    marker = (folder / MARKER).read_text()
    assert store().storage_problem() is None
    assert (folder / MARKER).read_text() == marker


def test_another_server_takes_the_marker_as_it_is(store, folder):
    (folder / MARKER).write_text("0123456789abcdef\n")
    assert store().storage_problem() is None
    (folder / MARKER).write_text("fedcba9876543210\n")
    assert "another storage" in store().storage_problem()


def test_what_a_client_has_found_a_worker_registers(store, fake_server, folder):
    client, redis = store(), fake_redis(fake_server)
    assert client.storage_problem() is None
    marker = (folder / MARKER).read_text().strip()
    assert not redis.exists("fanout:storages")
    assert store().storage_problem(is_worker=True) is None
    assert redis.hget("fanout:storages", str(folder)).decode() == marker
    # From then on what clients note is of no account.
    redis.hset("fanout:noted-storages", str(folder), "f" * 16)
    assert store().storage_problem() is store().storage_problem(is_worker=True) is None


def test_a_worker_trusts_the_marker_and_not_what_a_client_has_noted(store, fake_server, folder):
    redis = fake_redis(fake_server)
    (folder / MARKER).write_text("0123456789abcdef\n")
    redis.hset("fanout:noted-storages", str(folder), "f" * 16)
    assert store().storage_problem(is_worker=True) is None
    assert redis.hget("fanout:storages", str(folder)) == b"0123456789abcdef"


def test_a_worker_that_comes_first_does_not_mark_what_clients_have_not_used(store, folder):
    assert store().storage_problem() is None
    (folder / MARKER).unlink()
    assert "has no marker" in store().storage_problem(is_worker=True)
    assert list(folder.iterdir()) == []


def test_nonsense_that_a_client_has_noted_is_ignored(store, fake_server, folder):
    redis = fake_redis(fake_server)
    redis.hset("fanout:noted-storages", str(folder), "../etc")
    assert store().storage_problem(is_worker=True) is None
    assert store().storage_problem() is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / MARKER).unlink(), "has no marker: it is not mounted here"),
        (lambda folder: (folder / MARKER).write_text("junk"), "has no marker"),
        (lambda folder: (folder / MARKER).write_text("0123456789abcdef"), "is another storage"),
        (lambda folder: (folder / MARKER).rename(folder / "x") and _gone(folder), "make it, or"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False], ids=["another process", "the same process"])
def test_a_process_that_sees_another_marker_writes_nothing_there(
    store, folder, change, words, is_new
):
    first = store()
    assert first.storage_problem() is None
    marker = (folder / MARKER).read_text().strip()
    change(folder)
    seen = store() if is_new else first
    problem = seen.storage_problem()
    if words == "make it, or":
        # The next write reports a folder that is gone.
        assert problem is not None
    else:
        assert words in problem
        assert f"write {marker} into" in problem
    with pytest.raises(StorageError):
        seen.compact(ShardId("r1", 0, 0), {0: Outcome(index=0, output="x")})
    assert not list(folder.parent.rglob("*.out.*"))


def _gone(folder):
    (folder / "x").unlink()
    folder.rmdir()


def test_without_a_storage_there_is_nothing_to_see():
    assert fake_store().storage_problem() is None


class Told(RedisStore):
    problem = None
    looks = 0

    def storage_problem(self, *, is_worker=False):
        assert is_worker
        self.looks += 1
        return self.problem


def test_a_missing_file_is_lost_only_in_the_right_storage_and_after_others_had_time(tmp_path):
    now = [100.0]
    settings = load_settings(storage=str(tmp_path), visibility_timeout_s=30)
    told = Told(fake_redis())
    watch = StorageWatch(told, settings, clock=lambda: now[0])
    shard = ("r1", 0, 0)
    told.problem = "it is another one"
    now[0] += 1_000
    assert not watch.is_lost(shard)
    assert watch.problem == "it is another one"
    told.problem = None
    assert not watch.is_lost(shard)
    assert watch.problem == ""
    now[0] += 29
    assert not watch.is_lost(shard)
    now[0] += 2
    assert watch.is_lost(shard)
    assert not watch.is_lost(("r1", 0, 1))


@pytest.mark.parametrize(("storage", "looks"), [("/mnt/x", 10), ("s3://bucket/x", 1), (None, 0)])
def test_what_is_paid_for_is_looked_at_seldom(storage, looks):
    now, told = [100.0], Told(fake_redis())
    watch = StorageWatch(told, load_settings(storage=storage), clock=lambda: now[0])
    for _ in range(10):
        watch.look()
        now[0] += 2
    assert told.looks == looks
