"""Indexes of passages in the store: shared by runs, and gone with the last of them."""

from __future__ import annotations

import pytest

from fanout.core.errors import LostDataError, UnknownRunError
from fanout.core.spec import make_spec
from fanout.stores.blobs import FileBlobs
from tests.fakes import fake_store

CONTENT, OTHER = "a" * 32, "b" * 32
PIECES = [b"one" * 50, b"two"]
SPEC = make_spec(model="fake", prompt="{input}").model_dump_json()


def begin(store, run_id, **names):
    store.create_run(run_id, spec=SPEC, created_at=1.0, passages=names)


def test_runs_share_an_index_which_goes_with_the_last_of_them(any_store):
    store = any_store
    assert store.share_passages("r1", CONTENT) is None
    name = store.put_passages("r1", CONTENT, iter(PIECES), digest="d")
    begin(store, "r1", kb=name)
    assert store.share_passages("r2", CONTENT) == name
    begin(store, "r2", kb=name)
    assert store.share_passages("r3", OTHER) is None
    assert store.passages_of("r1") == store.passages_of("r2") == {"kb": name}
    assert list(store.passage_pieces(name)) == PIECES
    assert store.passage_digest(name) == "d"
    store.delete_run("r1")
    assert list(store.passage_pieces(name)) == PIECES
    store.begin_delete("r2")
    # As the reaper does, after the death of the one that began it.
    store.delete_run("r2")
    assert store.share_passages("r4", CONTENT) is None
    with pytest.raises(LostDataError, match="lost the index"):
        store.passage_pieces(name)
    assert list(store._redis.keys("*passages*")) == []


def test_of_two_writers_the_first_stands(any_store):
    def slow():
        yield PIECES[0]
        other.append(store.put_passages("r2", CONTENT, iter(PIECES), digest="d"))
        yield PIECES[1]

    store, other = any_store, []
    name = store.put_passages("r1", CONTENT, slow(), digest="d")
    assert [name] == other
    assert list(store.passage_pieces(name)) == PIECES
    for run_id in ("r1", "r2"):
        begin(store, run_id, kb=name)
        store.delete_run(run_id)
    assert store._redis.keys("*passages*") == []


def test_a_writer_that_dies_leaves_nothing_that_counts(any_store):
    def dying():
        yield PIECES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        any_store.put_passages("r1", CONTENT, dying(), digest="d")
    assert any_store.share_passages("r1", CONTENT) is None
    # What it has written expires.
    assert all(any_store._redis.ttl(key) > 0 for key in any_store._redis.keys("*passages*"))
    name = any_store.put_passages("r1", CONTENT, iter(PIECES), digest="d")
    assert list(any_store.passage_pieces(name)) == PIECES


def test_all_of_an_index_is_kept_while_it_is_used(any_store):
    name = any_store.put_passages("r1", CONTENT, iter(PIECES), digest="d")
    keys = any_store._redis.keys("*passages*")
    assert len(keys) == len(PIECES) + 3
    for key in keys:
        any_store._redis.expire(key, 60)
    any_store.use_passages(name)
    assert all(any_store._redis.ttl(key) > 604_800 for key in keys)
    for odd in ("passages-x", "../a", "r1"):
        any_store.use_passages(odd)
        with pytest.raises(LostDataError):
            any_store.passage_digest(odd)


def test_a_lost_or_damaged_piece_is_said(any_store):
    name = any_store.put_passages("r1", CONTENT, iter(PIECES), digest="d")
    any_store._redis.set(f"fanout:run:{name}:0", b"damaged")
    any_store._redis.delete(f"fanout:run:{name}:1")
    pieces = any_store.passage_pieces(name)
    with pytest.raises(LostDataError, match="damaged"):
        next(pieces)
    with pytest.raises(LostDataError, match="lost a piece"):
        any_store._piece(name, 1)


def test_files_of_an_index_that_is_gone_are_swept(tmp_path):
    store = fake_store(blobs=FileBlobs(str(tmp_path)))
    name = store.put_passages("r1", CONTENT, iter(PIECES), digest="d")
    begin(store, "r1", kb=name)
    assert store.sweep_files() == 0
    assert list(tmp_path.glob(f"{name}/*.part.*"))
    for key in store._redis.keys(f"*{name}*"):
        store._redis.delete(key)
    assert store.sweep_files() == 1
    assert not (tmp_path / name).exists()
    store.close()


def test_a_run_that_is_unknown_has_none(any_store):
    assert any_store.passages_of("none") == {}
    with pytest.raises(UnknownRunError):
        any_store.delete_run("none")
